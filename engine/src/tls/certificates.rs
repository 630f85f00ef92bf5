//! The certificates of a listener: which one a client gets, and how it is made ready to sign with when it is first needed.
//!
//! What is known of each is what the state says of it; chain and key stay in the vault until a client asks. Promises: a
//! certificate is served for the names that it is configured for, and a broken one is passed over, not served.

use std::{
    cell::RefCell,
    collections::HashSet,
    fmt,
    hash::{BuildHasher as _, RandomState},
    io,
    num::NonZeroUsize,
    sync::Arc,
};

use hashbrown::HashTable;
use kakehi_ctl::{
    limits,
    state::{Certificate, KeyKind, Place, UnknownName},
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
    /// Those that could not be used, which was said.
    broken: Own<HashSet<Place>>,
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
        KeyStore { vault, provider, ready: own(LruCache::new(most)), broken: own(HashSet::new()) }
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
        self.broken.borrow_mut().remove(&place);
    }
}

/// What rustls wants to be shared between threads, in a worker that has one: a lock would only ever be open.
type Own<T> = SendWrapper<RefCell<T>>;

fn own<T>(value: T) -> Own<T> {
    SendWrapper::new(RefCell::new(value))
}

/// Which certificate a handshake was given, and for which name.
pub(crate) struct Served {
    pub(crate) certificate: Arc<Certificate>,
    pub(crate) name: Option<Box<str>>,
}

/// The certificates of a listener. They change while handshakes go on.
pub(crate) struct Certificates {
    keys: Arc<KeyStore>,
    index: Own<Index>,
    /// Of the handshake that was last looked at.
    served: Own<Option<Served>>,
}

/// There may be very many, and every worker has them all: the table holds no names of its own, but looks at those of the
/// certificates, which are the same that the state has.
#[derive(Default)]
struct Index {
    hasher: RandomState,
    /// By name, of which it has the position; those for all names below one have the `*.` in front.
    names: HashTable<(Arc<Certificate>, u32)>,
    defaults: Vec<Arc<Certificate>>,
    /// The one with the least fingerprint.
    first: Option<Arc<Certificate>>,
}

fn name_of((certificate, position): &(Arc<Certificate>, u32)) -> &str {
    certificate.names.at(*position)
}

impl Index {
    fn of_all<'a>(all: impl Iterator<Item = &'a Arc<Certificate>> + Clone) -> Index {
        let mut index = Index { first: all.clone().next().cloned(), ..Index::default() };
        let count = all.clone().map(|certificate| certificate.names.iter().count()).sum();
        index.names.reserve(count, |named| index.hasher.hash_one(name_of(named)));
        all.for_each(|certificate| index.insert(certificate));
        index
    }

    fn insert(&mut self, certificate: &Arc<Certificate>) {
        let hasher = &self.hasher;
        for (position, name) in certificate.names.positions() {
            let named = (Arc::clone(certificate), position);
            self.names.insert_unique(hasher.hash_one(name), named, |it| hasher.hash_one(name_of(it)));
        }
        if certificate.default {
            self.defaults.push(Arc::clone(certificate));
        }
    }

    fn remove(&mut self, certificate: &Arc<Certificate>) {
        for (position, name) in certificate.names.positions() {
            let is_it =
                |named: &(Arc<Certificate>, u32)| Arc::ptr_eq(&named.0, certificate) && named.1 == position;
            if let Ok(found) = self.names.find_entry(self.hasher.hash_one(name), is_it) {
                found.remove();
            }
        }
        self.defaults.retain(|other| !Arc::ptr_eq(other, certificate));
    }

    /// Those for exactly this name.
    fn named(&self, name: &str) -> Vec<&Arc<Certificate>> {
        let of_its_hash = self.names.iter_hash(self.hasher.hash_one(name));
        of_its_hash.filter(|named| name_of(named) == name).map(|(certificate, _)| certificate).collect()
    }

    /// Those for a name: exact ones, or else those for all names below its parent.
    fn of(&self, name: &str) -> Vec<&Arc<Certificate>> {
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

    /// All that there are, in the order of their fingerprints.
    pub(crate) fn begin<'a>(&self, all: impl Iterator<Item = &'a Arc<Certificate>> + Clone) {
        self.index.replace(Index::of_all(all));
    }

    /// One comes, goes, or takes the place of another; `first` is the one with the least fingerprint then.
    pub(crate) fn change(
        &self,
        before: Option<&Arc<Certificate>>,
        after: Option<&Arc<Certificate>>,
        first: Option<&Arc<Certificate>>,
    ) {
        let index = &mut *self.index.borrow_mut();
        if let Some(before) = before {
            index.remove(before);
            self.keys.forget(before.place);
        }
        if let Some(after) = after {
            index.insert(after);
        }
        index.first = first.cloned();
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
    ) -> Option<(Arc<Certificate>, Arc<CertifiedKey>)> {
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
        candidates.sort_by_key(|it| (!offer.fits(it.key), it.key, -it.not_after));
        candidates.into_iter().find_map(|certificate| match self.keys.load(certificate.place) {
            Ok(key) => Some((Arc::clone(certificate), key)),
            Err(error) => {
                if self.keys.broken.borrow_mut().insert(certificate.place) {
                    tracing::error!("the certificate for {} cannot be used: {error}", certificate.names);
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
        let (certificate, key) = self.certificates.choose(&hello, self.unknown, self.tls13)?;
        let name = hello.server_name().map(Box::from);
        *self.certificates.served.borrow_mut() = Some(Served { certificate, name });
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

    fn certificate(n: i64, names: &[&str], default: bool) -> Arc<Certificate> {
        let names = names.iter().collect();
        let (key, place) = (KeyKind::Ecdsa, Place::default());
        Arc::new(Certificate { names, key, not_after: n, default, named: false, place, files: None })
    }

    /// By what each is known in these tests.
    fn of(index: &Index, name: &str) -> Vec<i64> {
        let mut found: Vec<i64> = index.of(name).iter().map(|certificate| certificate.not_after).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn certificates_are_found_by_their_names_and_gone_when_removed() {
        let [one, two, three] = [
            certificate(1, &["a.example"], true),
            certificate(2, &["*.example"], false),
            certificate(3, &["a.example", "*.example", "a.example"], false),
        ];
        let mut index = Index::of_all([&one, &two, &three].into_iter());
        assert_eq!(of(&index, "a.example"), [1, 3, 3]);
        assert_eq!(of(&index, "b.example"), [2, 3]);
        assert!(of(&index, "b.a.example").is_empty() && of(&index, ".example").is_empty());
        assert!(index.first.as_ref().is_some_and(|first| Arc::ptr_eq(first, &one)));
        assert_eq!(index.defaults.len(), 1);
        index.remove(&one);
        index.remove(&one);
        assert!(index.defaults.is_empty());
        assert_eq!(of(&index, "a.example"), [3, 3]);
        index.remove(&three);
        assert_eq!((of(&index, "a.example"), of(&index, "b.example")), (vec![2], vec![2]));
        index.remove(&two);
        assert!(index.names.is_empty());
    }
}
