//! The certificates of a listener: which one a client gets, and how it is made ready to sign with when it is first needed.
//!
//! What is known of each is what the state says of it; chain and key stay in the vault until a client asks. Promises: a
//! certificate is served for the names that it is configured for, and a broken one is passed over, not served.

use std::{
    cell::RefCell,
    fmt,
    hash::{BuildHasher as _, RandomState},
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use hashbrown::HashTable;
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
    /// See [`Certificate::names`]: one in each line.
    names: Box<str>,
    key: KeyKind,
    not_after: i64,
    default: bool,
    /// Of its place: apart, as both together would take more room.
    offset: u64,
    length: u32,
    /// It could not be used; said once.
    broken: AtomicBool,
}

impl Entry {
    /// Whether it is for this host, which is in lower case.
    pub(crate) fn covers(&self, host: &str) -> bool {
        self.names().any(|(_, name)| match name.strip_prefix("*.") {
            Some(parent) => parent_of(host) == Some(parent),
            None => name == host,
        })
    }

    fn place(&self) -> Place {
        Place { offset: self.offset, length: self.length }
    }

    /// Its names, and where they begin.
    fn names(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.split_terminator('\n').scan(0, |begin, name| {
            let named = (*begin, name);
            *begin += name.len() as u32 + 1;
            Some(named)
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

/// There may be very many, and every worker has them all: tables hold no keys of their own, but look at the entries.
#[derive(Default)]
struct Index {
    hasher: RandomState,
    /// By fingerprint.
    entries: HashTable<Arc<Entry>>,
    /// By name, which begins at this byte of those of the entry; those for all names below one have the `*.` in front.
    names: HashTable<(Arc<Entry>, u32)>,
    defaults: Vec<Arc<Entry>>,
    /// The one with the least fingerprint.
    first: Option<Arc<Entry>>,
}

fn name_of((entry, begin): &(Arc<Entry>, u32)) -> &str {
    let rest = &entry.names[*begin as usize..];
    rest.split_once('\n').map_or(rest, |(name, _)| name)
}

impl Index {
    /// Makes room for so many, which have a name each.
    fn reserve(&mut self, count: usize) {
        let hasher = &self.hasher;
        self.entries.reserve(count, |entry| hasher.hash_one(entry.fingerprint));
        self.names.reserve(count, |named| hasher.hash_one(name_of(named)));
    }

    fn insert(&mut self, fingerprint: Fingerprint, certificate: &Certificate) {
        let entry = Arc::new(Entry {
            fingerprint,
            names: certificate.names.join("\n").into(),
            key: certificate.key,
            not_after: certificate.not_after,
            default: certificate.default,
            offset: certificate.place.offset,
            length: certificate.place.length,
            broken: AtomicBool::new(false),
        });
        let hasher = &self.hasher;
        for (begin, name) in entry.names() {
            let named = (Arc::clone(&entry), begin);
            self.names.insert_unique(hasher.hash_one(name), named, |it| hasher.hash_one(name_of(it)));
        }
        if entry.default {
            self.defaults.push(Arc::clone(&entry));
        }
        if self.first.as_ref().is_none_or(|first| fingerprint < first.fingerprint) {
            self.first = Some(Arc::clone(&entry));
        }
        let hash = hasher.hash_one(fingerprint);
        self.entries.insert_unique(hash, entry, |it| hasher.hash_one(it.fingerprint));
    }

    fn remove(&mut self, fingerprint: &Fingerprint) -> Option<Arc<Entry>> {
        let hash = self.hasher.hash_one(fingerprint);
        let found = self.entries.find_entry(hash, |entry| entry.fingerprint == *fingerprint);
        let (entry, _) = found.ok()?.remove();
        for (_, name) in entry.names() {
            let hash = self.hasher.hash_one(name);
            let is_it = |named: &(Arc<Entry>, u32)| Arc::ptr_eq(&named.0, &entry) && name_of(named) == name;
            if let Ok(found) = self.names.find_entry(hash, is_it) {
                found.remove();
            }
        }
        self.defaults.retain(|other| !Arc::ptr_eq(other, &entry));
        if self.first.as_ref().is_some_and(|first| Arc::ptr_eq(first, &entry)) {
            self.first = self.entries.iter().min_by_key(|entry| entry.fingerprint).cloned();
        }
        Some(entry)
    }

    /// Those for exactly this name.
    fn named(&self, name: &str) -> Vec<&Arc<Entry>> {
        let of_its_hash = self.names.iter_hash(self.hasher.hash_one(name));
        of_its_hash.filter(|named| name_of(named) == name).map(|(entry, _)| entry).collect()
    }

    /// Those for a name: exact ones, or else those for all names below its parent.
    fn of(&self, name: &str) -> Vec<&Arc<Entry>> {
        let exact = self.named(name);
        match parent_of(name) {
            Some(parent) if exact.is_empty() => self.named(&format!("*.{parent}")),
            _ => exact,
        }
    }
}

impl Certificates {
    pub(crate) fn new(keys: &Arc<KeyStore>) -> Certificates {
        Certificates { keys: Arc::clone(keys), index: own(Index::default()), served: own(None) }
    }

    /// So many come.
    pub(crate) fn reserve(&self, count: usize) {
        self.index.borrow_mut().reserve(count);
    }

    /// A certificate comes, or becomes another of the same fingerprint.
    pub(crate) fn set(&self, fingerprint: Fingerprint, certificate: &Certificate) {
        self.remove(&fingerprint);
        self.index.borrow_mut().insert(fingerprint, certificate);
    }

    pub(crate) fn remove(&self, fingerprint: &Fingerprint) {
        if let Some(entry) = self.index.borrow_mut().remove(fingerprint) {
            self.keys.forget(entry.place());
        }
    }

    /// All go.
    pub(crate) fn clear(&self) {
        self.index.replace(Index::default());
    }

    /// Which certificate the handshake got that was last looked at.
    pub(crate) fn take_served(&self) -> Option<Served> {
        self.served.borrow_mut().take()
    }

    /// Whether there is one for this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.index.borrow().of(name).is_empty()
    }

    fn choose(
        &self,
        hello: &ClientHello<'_>,
        unknown: UnknownName,
        tls13: bool,
    ) -> Option<(Arc<Entry>, Arc<CertifiedKey>)> {
        let index = self.index.borrow();
        let mut candidates = hello.server_name().map_or_else(Vec::new, |name| index.of(name));
        if candidates.is_empty() {
            match unknown {
                UnknownName::Refuse => return None,
                // Without one that was named: the same one each time.
                _ if index.defaults.is_empty() => candidates.extend(&index.first),
                _ => candidates.extend(&index.defaults),
            }
        }
        let offer = Offer::of(hello, tls13);
        // The quickest key that the client knows, and of those the one that is good for longest.
        candidates.sort_by_key(|entry| (!offer.fits(entry.key), entry.key, -entry.not_after));
        candidates.into_iter().find_map(|entry| match self.keys.load(entry.place()) {
            Ok(key) => Some((Arc::clone(entry), key)),
            Err(error) => {
                if !entry.broken.swap(true, Relaxed) {
                    let names = entry.names.replace('\n', ", ");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn index(certificates: &[(u8, &[&str], bool)]) -> Index {
        let mut index = Index::default();
        index.reserve(certificates.len());
        for (n, names, default) in certificates {
            let certificate = Certificate {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                key: KeyKind::Ecdsa,
                not_after: 0,
                default: *default,
                named: false,
                place: Place::default(),
                files: None,
            };
            index.insert(Fingerprint([*n; 32]), &certificate);
        }
        index
    }

    fn of(index: &Index, name: &str) -> Vec<u8> {
        let mut found: Vec<u8> = index.of(name).iter().map(|entry| entry.fingerprint.0[0]).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn certificates_are_found_by_their_names_and_gone_when_removed() {
        let mut index = index(&[
            (3, &["a.example", "*.example", "a.example"], false),
            (1, &["a.example"], true),
            (2, &["*.example"], false),
        ]);
        assert_eq!(of(&index, "a.example"), [1, 3, 3]);
        assert_eq!(of(&index, "b.example"), [2, 3]);
        assert!(of(&index, "b.a.example").is_empty() && of(&index, ".example").is_empty());
        let first = |index: &Index| index.first.as_ref().map(|entry| entry.fingerprint.0[0]);
        assert_eq!((first(&index), index.defaults.len()), (Some(1), 1));
        assert!(index.remove(&Fingerprint([1; 32])).is_some());
        assert!(index.remove(&Fingerprint([1; 32])).is_none());
        assert_eq!((first(&index), index.defaults.len()), (Some(2), 0));
        assert_eq!(of(&index, "a.example"), [3, 3]);
        assert!(index.remove(&Fingerprint([3; 32])).is_some());
        assert_eq!((of(&index, "a.example"), of(&index, "b.example")), (vec![2], vec![2]));
        assert!(index.remove(&Fingerprint([2; 32])).is_some());
        assert_eq!((index.entries.len(), index.names.len(), first(&index)), (0, 0, None));
    }
}
