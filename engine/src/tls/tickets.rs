//! Session tickets that every worker can open: the keys come from the vault, and a ticket says nothing to a listener
//! that asks clients for other certificates than the one that gave it.
//!
//! Stateless: a client resumes on whichever worker it lands, also after an upgrade. rustls binds each ticket to the name
//! that the client asked for, and refuses it for another (RFC 6066 section 3).

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf, rand,
};
use rustls::server::ProducesTickets;

use super::vault::{TicketKeys, Vault};

/// Bytes in front of a ticket that say which key opens it.
const NAME: usize = 8;

/// The keys of the moment, as all listeners of a worker see them.
pub(super) struct TicketStore {
    vault: Vault,
    keys: ArcSwap<TicketKeys>,
    /// What a ticket says for how long it is good (s).
    lifetime: AtomicU32,
}

impl TicketStore {
    /// Those in the vault, which are replaced every `rotation_ms`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn new(vault: &Vault, rotation_ms: u64) -> io::Result<Arc<TicketStore>> {
        let (vault, keys) = (vault.try_clone()?, ArcSwap::from_pointee(vault.ticket_keys()?));
        Ok(Arc::new(TicketStore { vault, keys, lifetime: lifetime(rotation_ms).into() }))
    }

    /// Reads the keys anew, and how long they are used if that is said there.
    ///
    /// # Errors
    /// When they cannot be read; the ones before stay.
    pub(super) fn renew(&self) -> io::Result<()> {
        let (keys, rotation_ms) = (self.vault.ticket_keys()?, self.vault.ticket_key_rotation()?);
        if **self.keys.load() != keys {
            self.keys.store(Arc::new(keys));
        }
        if let Some(rotation_ms) = rotation_ms {
            self.lifetime.store(lifetime(rotation_ms), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A ticket made just before its key is replaced is opened for one more period: that much every ticket lives. RFC 8446 section
/// 4.6.1: a week at most.
fn lifetime(rotation_ms: u64) -> u32 {
    (rotation_ms / 1_000).clamp(1, 604_800) as u32
}

/// The keys derived for one policy.
struct Derived {
    from: Arc<TicketKeys>,
    keys: Vec<([u8; NAME], LessSafeKey)>,
}

impl Derived {
    /// The key of this name. The names are no secret.
    fn key(&self, name: &[u8; NAME]) -> Option<&LessSafeKey> {
        self.keys.iter().find(|(known, _)| known == name).map(|(_, key)| key)
    }
}

/// Makes and opens tickets of one policy about client certificates.
pub(super) struct Ticketer {
    store: Arc<TicketStore>,
    /// What tells the policy from others.
    policy: Vec<u8>,
    derived: ArcSwap<Derived>,
    enabled: bool,
}

impl Ticketer {
    pub(super) fn new(store: &Arc<TicketStore>, policy: &[u8], enabled: bool) -> Ticketer {
        let derived = derive(&store.keys.load_full(), policy);
        Ticketer {
            store: Arc::clone(store),
            policy: policy.to_vec(),
            derived: ArcSwap::from_pointee(derived),
            enabled,
        }
    }

    /// The keys of the moment.
    fn keys(&self) -> Arc<Derived> {
        let derived = self.derived.load_full();
        let now = self.store.keys.load();
        if Arc::ptr_eq(&derived.from, &now) {
            return derived;
        }
        let derived = Arc::new(derive(&now, &self.policy));
        self.derived.store(Arc::clone(&derived));
        derived
    }
}

/// HKDF (RFC 5869) of each key with what it is for.
fn derive(keys: &Arc<TicketKeys>, policy: &[u8]) -> Derived {
    let expand = |key: &[u8; 32]| {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"kakehi session tickets").extract(key);
        let (mut name, mut bytes) = ([0; NAME], [0; 32]);
        secret.expand(&[b"name", policy], Bytes(NAME)).ok()?.fill(&mut name).ok()?;
        secret.expand(&[b"key", policy], Bytes(32)).ok()?.fill(&mut bytes).ok()?;
        Some((name, LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &bytes).ok()?)))
    };
    Derived { from: Arc::clone(keys), keys: keys.0.iter().filter_map(expand).collect() }
}

/// So many bytes are derived.
struct Bytes(usize);

impl hkdf::KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        self.enabled
    }

    fn lifetime(&self) -> u32 {
        self.store.lifetime.load(Ordering::Relaxed)
    }

    /// Name of the key, nonce, ciphertext with tag. A nonce that comes twice gives nothing away with this cipher
    /// (RFC 8452), so random ones will do for as many tickets as there may be.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let derived = self.keys();
        let (name, key) = derived.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut sealed)
            .ok()?;
        let mut ticket = Vec::with_capacity(NAME + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(&nonce);
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut derived = self.keys();
        if derived.key(name).is_none() {
            // It may be of a worker that was told of new keys before this one was.
            self.store.renew().ok()?;
            derived = self.keys();
        }
        let key = derived.key(name)?;
        let mut sealed = sealed.to_vec();
        let length =
            key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticketer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticketer(store: &Arc<TicketStore>, policy: &[u8]) -> Ticketer {
        Ticketer::new(store, policy, true)
    }

    #[test]
    fn another_worker_opens_a_ticket_and_another_policy_does_not() {
        let vault = Vault::create().unwrap();
        let (one, two) = (TicketStore::new(&vault, 1_000).unwrap(), TicketStore::new(&vault, 1_000).unwrap());
        let ticket = ticketer(&one, b"none").encrypt(b"session").unwrap();
        assert_eq!(ticketer(&two, b"none").decrypt(&ticket).as_deref(), Some(b"session".as_slice()));
        assert_eq!(ticketer(&two, b"required").decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_of_a_worker_that_knows_a_new_key_already_is_opened() {
        let vault = Vault::create().unwrap();
        let (one, two) = (TicketStore::new(&vault, 1_000).unwrap(), TicketStore::new(&vault, 1_000).unwrap());
        let (one, other) = (ticketer(&one, b""), ticketer(&two, b""));
        vault.write_ticket_keys(&vault.ticket_keys().unwrap().renewed().unwrap()).unwrap();
        two.renew().unwrap();
        assert!(one.decrypt(&other.encrypt(b"session").unwrap()).is_some());
    }

    #[test]
    fn a_ticket_is_opened_until_its_key_was_replaced_twice() {
        let vault = Vault::create().unwrap();
        let store = TicketStore::new(&vault, 1_000).unwrap();
        let ticketer = ticketer(&store, b"");
        let ticket = ticketer.encrypt(b"session").unwrap();
        for opens in [true, false] {
            vault.write_ticket_keys(&vault.ticket_keys().unwrap().renewed().unwrap()).unwrap();
            store.renew().unwrap();
            assert_eq!(ticketer.decrypt(&ticket).is_some(), opens);
        }
    }

    #[test]
    fn a_ticket_says_that_it_is_good_for_as_long_as_keys_are_used_now() {
        let vault = Vault::create().unwrap();
        let store = TicketStore::new(&vault, 3_600_000).unwrap();
        let ticketer = ticketer(&store, b"");
        for (noted, lifetime) in [(None, 3_600), (Some(7_000), 7), (Some(1), 1), (Some(u64::MAX), 604_800)] {
            noted.into_iter().for_each(|rotation| vault.write_ticket_key_rotation(rotation).unwrap());
            store.renew().unwrap();
            assert_eq!((vault.ticket_key_rotation().unwrap(), ticketer.lifetime()), (noted, lifetime));
        }
        assert!(vault.ticket_keys().unwrap().0.len() == 1 && vault.ticket_keys_age().unwrap().as_secs() < 60);
    }

    #[test]
    fn what_is_no_ticket_is_not_opened() {
        let vault = Vault::create().unwrap();
        let ticketer = ticketer(&TicketStore::new(&vault, 1_000).unwrap(), b"");
        let ticket = ticketer.encrypt(b"session").unwrap();
        for length in 0..ticket.len() {
            assert_eq!(ticketer.decrypt(&ticket[..length]), None);
        }
        for at in 0..ticket.len() {
            let mut wrong = ticket.clone();
            wrong[at] ^= 1;
            assert_eq!(ticketer.decrypt(&wrong), None, "byte {at}");
        }
        assert!(ticketer.encrypt(b"session").unwrap() != ticket, "a nonce of its own each time");
    }
}
