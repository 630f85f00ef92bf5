//! The certificates of a listener: which one a client gets, and how it is made ready to sign with when it is first needed.
//!
//! What is known of each is what the state says of it; chain and key stay in the vault until a client asks. Promises: a
//! certificate is served for the names that it is configured for, and a broken one is passed over, not served.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt, io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use kakehi_ctl::{
    limits,
    state::{Certificate, Fingerprint, KeyKind, Place, UnknownName},
};
use lru::LruCache;
use rustls::{
    CipherSuite, Error, InconsistentKeys, SignatureScheme,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use send_wrapper::SendWrapper;

use super::vault::Vault;

/// A certificate, as far as it is known without having been read.
pub(crate) struct Entry {
    pub(crate) fingerprint: Fingerprint,
    /// See [`Certificate::names`].
    pub(crate) names: Vec<Box<str>>,
    key: KeyKind,
    not_after: i64,
    default: bool,
    place: Place,
    /// It could not be used; said once.
    broken: AtomicBool,
}

impl Entry {
    /// Whether it is for this host, which is in lower case.
    pub(crate) fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => parent_of(host) == Some(parent),
            None => **name == *host,
        })
    }
}

/// The name without its first label.
pub(super) fn parent_of(name: &str) -> Option<&str> {
    name.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent)
}

/// Reads certificates from the vault, and keeps those that were used last ready to sign with. Shared by all listeners of a
/// worker.
pub(crate) struct KeyStore {
    pub(crate) vault: Vault,
    pub(crate) provider: Arc<CryptoProvider>,
    ready: Own<LruCache<Place, Arc<CertifiedKey>>>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it cannot be read: {0}")]
    Vault(#[from] io::Error),
    #[error("{0}")]
    Key(Error),
}

impl KeyStore {
    pub(crate) fn new(vault: Vault, provider: Arc<CryptoProvider>) -> KeyStore {
        let most = NonZeroUsize::new(limits::READY_CERTIFICATES).unwrap_or(NonZeroUsize::MIN);
        KeyStore { vault, provider, ready: own(LruCache::new(most)) }
    }

    pub(crate) fn load(&self, place: Place) -> Result<Arc<CertifiedKey>, Unusable> {
        if let Some(ready) = self.ready.borrow_mut().get(&place) {
            return Ok(Arc::clone(ready));
        }
        let stored = self.vault.certificate(place)?;
        let key = self.provider.key_provider.load_private_key(stored.key).map_err(Unusable::Key)?;
        let certified = CertifiedKey::new(stored.chain, key);
        match certified.keys_match() {
            // Kinds of keys of which that cannot be told do not exist here.
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(Unusable::Key(error)),
        }
        let certified = Arc::new(certified);
        self.ready.borrow_mut().put(place, Arc::clone(&certified));
        Ok(certified)
    }

    fn forget(&self, place: Place) {
        self.ready.borrow_mut().pop(&place);
    }
}

/// What rustls wants to be shared between threads, in a worker that has one: a lock would only ever be open.
type Own<T> = SendWrapper<RefCell<T>>;

fn own<T>(value: T) -> Own<T> {
    SendWrapper::new(RefCell::new(value))
}

/// Which certificate a handshake was given, and for which name.
pub(crate) struct Served {
    pub(crate) entry: Arc<Entry>,
    pub(crate) name: Option<Box<str>>,
}

/// The certificates of a listener. They change while handshakes go on.
pub(crate) struct Certificates {
    keys: Arc<KeyStore>,
    index: Own<Index>,
    /// Of the handshake that was last looked at.
    served: Own<Option<Served>>,
}

#[derive(Default)]
struct Index {
    entries: HashMap<Fingerprint, Arc<Entry>>,
    /// By name; those for `*.name` are under that.
    names: HashMap<Box<str>, Vec<Arc<Entry>>>,
    defaults: Vec<Arc<Entry>>,
}

impl Index {
    fn insert(&mut self, fingerprint: Fingerprint, certificate: &Certificate) {
        let entry = Arc::new(Entry {
            fingerprint,
            names: certificate.names.iter().map(|name| name.as_str().into()).collect(),
            key: certificate.key,
            not_after: certificate.not_after,
            default: certificate.default,
            place: certificate.place,
            broken: AtomicBool::new(false),
        });
        for name in &entry.names {
            let others = self.names.entry(name.clone()).or_default();
            others.push(Arc::clone(&entry));
            others.shrink_to_fit();
        }
        if entry.default {
            self.defaults.push(Arc::clone(&entry));
        }
        self.entries.insert(fingerprint, entry);
    }

    fn remove(&mut self, fingerprint: &Fingerprint) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(fingerprint)?;
        for name in &entry.names {
            if let Some(others) = self.names.get_mut(name) {
                others.retain(|other| !Arc::ptr_eq(other, &entry));
                if others.is_empty() {
                    self.names.remove(name);
                }
            }
        }
        self.defaults.retain(|other| !Arc::ptr_eq(other, &entry));
        Some(entry)
    }

    /// Those for a name, exact ones before those for all names below its parent.
    fn of(&self, name: &str) -> Option<&[Arc<Entry>]> {
        let exact = self.names.get(name);
        let found = exact.or_else(|| self.names.get(format!("*.{}", parent_of(name)?).as_str()));
        found.map(Vec::as_slice)
    }
}

impl Certificates {
    pub(crate) fn new(keys: &Arc<KeyStore>) -> Certificates {
        Certificates { keys: Arc::clone(keys), index: own(Index::default()), served: own(None) }
    }

    /// A certificate comes, or becomes another of the same fingerprint.
    pub(crate) fn set(&self, fingerprint: Fingerprint, certificate: &Certificate) {
        self.remove(&fingerprint);
        self.index.borrow_mut().insert(fingerprint, certificate);
    }

    pub(crate) fn remove(&self, fingerprint: &Fingerprint) {
        if let Some(entry) = self.index.borrow_mut().remove(fingerprint) {
            self.keys.forget(entry.place);
        }
    }

    /// Which certificate the handshake got that was last looked at.
    pub(crate) fn take_served(&self) -> Option<Served> {
        self.served.borrow_mut().take()
    }

    /// Whether there is one for this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.index.borrow_mut().of(name).is_some()
    }

    fn choose(
        &self,
        hello: &ClientHello<'_>,
        unknown: UnknownName,
        tls13: bool,
    ) -> Option<(Arc<Entry>, Arc<CertifiedKey>)> {
        let index = self.index.borrow_mut();
        let name = hello.server_name();
        let mut candidates: Vec<&Arc<Entry>> = match name.and_then(|name| index.of(name)) {
            Some(found) => found.iter().collect(),
            None if unknown == UnknownName::Refuse => return None,
            None if !index.defaults.is_empty() => index.defaults.iter().collect(),
            // Without one that was named: the same one each time.
            None => index.entries.values().min_by_key(|entry| entry.fingerprint).into_iter().collect(),
        };
        let offer = Offer::of(hello, tls13);
        // The quickest key that the client knows, and of those the one that is good for longest.
        candidates.sort_by_key(|entry| (!offer.fits(entry.key), entry.key, -entry.not_after));
        candidates.into_iter().find_map(|entry| match self.keys.load(entry.place) {
            Ok(key) => Some((Arc::clone(entry), key)),
            Err(error) => {
                if !entry.broken.swap(true, Relaxed) {
                    let names = entry.names.join(", ");
                    tracing::error!(certificate = %entry.fingerprint, names, "a certificate cannot be used: {error}");
                }
                None
            }
        })
    }
}

/// What a client can check signatures of.
struct Offer {
    ecdsa: bool,
    ed25519: bool,
    rsa: bool,
}

impl Offer {
    fn of(hello: &ClientHello<'_>, tls13: bool) -> Offer {
        use CipherSuite as Suite;
        let suites = hello.cipher_suites();
        let any13 = tls13
            && suites.iter().any(|suite| {
                matches!(
                    suite,
                    Suite::TLS13_AES_128_GCM_SHA256
                        | Suite::TLS13_AES_256_GCM_SHA384
                        | Suite::TLS13_CHACHA20_POLY1305_SHA256
                )
            });
        let named =
            |kind: &str| suites.iter().any(|suite| suite.as_str().is_some_and(|name| name.contains(kind)));
        // In TLS 1.2 the suite says which kind of key (RFC 8422 section 2).
        let (ecdsa_suite, rsa_suite) = (any13 || named("ECDHE_ECDSA"), any13 || named("ECDHE_RSA"));
        let schemes = hello.signature_schemes();
        let knows = |kinds: &[SignatureScheme]| schemes.iter().any(|scheme| kinds.contains(scheme));
        Offer {
            ecdsa: ecdsa_suite
                && knows(&[
                    SignatureScheme::ECDSA_NISTP256_SHA256,
                    SignatureScheme::ECDSA_NISTP384_SHA384,
                    SignatureScheme::ECDSA_NISTP521_SHA512,
                ]),
            ed25519: ecdsa_suite && knows(&[SignatureScheme::ED25519]),
            rsa: rsa_suite
                && knows(&[
                    SignatureScheme::RSA_PSS_SHA256,
                    SignatureScheme::RSA_PSS_SHA384,
                    SignatureScheme::RSA_PSS_SHA512,
                    SignatureScheme::RSA_PKCS1_SHA256,
                    SignatureScheme::RSA_PKCS1_SHA384,
                    SignatureScheme::RSA_PKCS1_SHA512,
                ]),
        }
    }

    fn fits(&self, key: KeyKind) -> bool {
        match key {
            KeyKind::Ecdsa => self.ecdsa,
            KeyKind::Ed25519 => self.ed25519,
            KeyKind::Rsa => self.rsa,
        }
    }
}

/// Chooses for one policy of a listener.
pub(super) struct Resolver {
    pub(super) certificates: Arc<Certificates>,
    pub(super) unknown: UnknownName,
    pub(super) tls13: bool,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let (entry, key) = self.certificates.choose(&hello, self.unknown, self.tls13)?;
        let name = hello.server_name().map(Box::from);
        *self.certificates.served.borrow_mut() = Some(Served { entry, name });
        Some(key)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}
