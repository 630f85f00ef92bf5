//! The vault: memory in which certificates, keys and the keys of tickets lie, shared by the supervisor and its workers.
//!
//! The supervisor writes, workers read what they need when they need it: so a worker without privileges has the keys of
//! files that it could not open, many certificates cost little until they are asked for, and a worker whose supervisor
//! has died goes on with all of them. It is a memfd without a name in any file system; what is removed is overwritten.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::rand;
use kakehi_ctl::state::Place;
use nix::sys::memfd::{MFdFlags, memfd_create};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Where records begin; the ticket keys lie before.
const RECORDS: u64 = 4_096;
/// Length of a ticket key (bytes).
const KEY: usize = 32;
/// Ticket keys that are kept: the one in use, and those that still open tickets.
pub const TICKET_KEYS: usize = 2;
/// Where it stands since when they are in use.
const TICKET_KEYS_SINCE: u64 = 128;
/// Where it stands after what time they are replaced (ms); 0, as those wrote who did not say it: not known.
const TICKET_KEY_ROTATION: u64 = 136;
/// Most parts of a record: certificates of a chain, and a key.
const MAX_PARTS: usize = 64;
/// Of the length of a part: it lies elsewhere, at the offset that follows.
const ELSEWHERE: u32 = 1 << 31;
/// The longest part of a record (bytes). Whoever can write to the vault can have no more than a few of them reserved.
const MAX_PART: usize = 1 << 20;
/// The longest record, also with what of it lies elsewhere (bytes).
const MAX_RECORD: usize = 4 << 20;
/// The longest thing that lies in a vault at all (bytes): the content of a file.
const MAX_LENGTH: u32 = 16 << 20;

/// The keys of tickets, the one in use first.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKeys(pub Vec<[u8; KEY]>);

impl TicketKeys {
    /// These with a new key in front; the oldest goes.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn renewed(&self) -> io::Result<TicketKeys> {
        let mut key = [0; KEY];
        rand::fill(&mut key).map_err(|_| io::Error::other("no random numbers can be had"))?;
        let mut keys = vec![key];
        keys.extend(self.0.iter().take(TICKET_KEYS - 1));
        Ok(TicketKeys(keys))
    }
}

/// What lies under a certificate's place.
pub struct Stored {
    /// The certificate, and those that it is sent with.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Stored {
    /// Whether it is small enough for a vault.
    pub fn fits(&self) -> bool {
        let parts = || self.chain.iter().map(|der| &**der).chain([self.key.secret_der()]);
        let all: usize = parts().map(|part| part.len() + 4).sum();
        parts().all(|part| part.len() <= MAX_PART) && all <= MAX_RECORD && parts().count() <= MAX_PARTS
    }

    /// The bytes that lie in a vault for it when nothing of it lies elsewhere.
    pub fn record(&self) -> Vec<u8> {
        self.record_with(&[])
    }

    /// The bytes that lie in a vault for it when those that it is sent with lie there already: the first at `issuers[0]`,
    /// and so on.
    pub fn record_with(&self, issuers: &[Place]) -> Vec<u8> {
        let mut record = Vec::new();
        let elsewhere = [None].into_iter().chain(issuers.iter().map(Some)).chain(std::iter::repeat(None));
        for (der, place) in self.chain.iter().zip(elsewhere) {
            match place {
                Some(Place { offset, length }) => {
                    record.extend_from_slice(&(length | ELSEWHERE).to_le_bytes());
                    record.extend_from_slice(&offset.to_le_bytes());
                }
                None => write_part(&mut record, der),
            }
        }
        write_part(&mut record, self.key.secret_der());
        record
    }
}

fn write_part(record: &mut Vec<u8>, part: &[u8]) {
    // Read from files of far less than 2 GiB.
    record.extend_from_slice(&(part.len() as u32).to_le_bytes());
    record.extend_from_slice(part);
}

/// A part of a record.
enum Part<'a> {
    Here(&'a [u8]),
    Elsewhere(Place),
}

impl<'a> Part<'a> {
    /// The first part of `record`, and the rest; `None`: it is no record.
    fn split(record: &'a [u8]) -> Option<(Part<'a>, &'a [u8])> {
        let (length, rest) = record.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length);
        if (length & !ELSEWHERE) as usize > MAX_PART {
            return None;
        }
        if length & ELSEWHERE != 0 {
            let (offset, rest) = rest.split_first_chunk::<8>()?;
            let place = Place { offset: u64::from_le_bytes(*offset), length: length & !ELSEWHERE };
            return Some((Part::Elsewhere(place), rest));
        }
        let (part, rest) = rest.split_at_checked(length as usize)?;
        Some((Part::Here(part), rest))
    }
}

/// The vault. Whoever holds it can read it and write to it.
pub struct Vault {
    memory: File,
}

impl Vault {
    /// An empty one, with a first ticket key.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`.
    pub fn create() -> io::Result<Vault> {
        let memory = memfd_create(c"kakehi-vault", MFdFlags::MFD_CLOEXEC)?;
        let vault = Vault { memory: memory.into() };
        vault.memory.set_len(RECORDS)?;
        vault.write_ticket_keys(&TicketKeys(Vec::new()).renewed()?)?;
        Ok(vault)
    }

    /// The ticket keys of the moment.
    ///
    /// # Errors
    /// When the memory is not that of a vault.
    pub fn ticket_keys(&self) -> io::Result<TicketKeys> {
        let mut bytes = [0; 1 + KEY * TICKET_KEYS];
        self.memory.read_exact_at(&mut bytes, 0)?;
        let count = usize::from(bytes[0]).min(TICKET_KEYS);
        // Chunks of exactly that length.
        let keys = bytes[1..].chunks_exact(KEY).take(count).filter_map(|key| key.try_into().ok());
        Ok(TicketKeys(keys.collect()))
    }

    /// Puts other ticket keys in place. Whoever reads at the same moment may see a mixture: tell them afterwards.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn write_ticket_keys(&self, keys: &TicketKeys) -> io::Result<()> {
        let mut bytes = [0; 1 + KEY * TICKET_KEYS];
        // Not more than a few.
        bytes[0] = keys.0.len().min(TICKET_KEYS) as u8;
        for (place, key) in bytes[1..].chunks_exact_mut(KEY).zip(&keys.0) {
            place.copy_from_slice(key);
        }
        self.memory.write_all_at(&bytes, 0)?;
        self.memory.write_all_at(&seconds_since_1970().to_le_bytes(), TICKET_KEYS_SINCE)
    }

    /// How long the ticket keys of the moment have been in place. It does not begin anew with a new supervisor.
    ///
    /// # Errors
    /// When the memory is not that of a vault.
    pub fn ticket_keys_age(&self) -> io::Result<Duration> {
        let mut since = [0; 8];
        self.memory.read_exact_at(&mut since, TICKET_KEYS_SINCE)?;
        // A clock that was set back makes them new: they are renewed later, not in a row.
        Ok(Duration::from_secs(seconds_since_1970().saturating_sub(u64::from_le_bytes(since))))
    }

    /// Notes after what time ticket keys are replaced. Whoever has read it before is to be told.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn write_ticket_key_rotation(&self, rotation_ms: u64) -> io::Result<()> {
        self.memory.write_all_at(&rotation_ms.to_le_bytes(), TICKET_KEY_ROTATION)
    }

    /// After what time ticket keys are replaced (ms), if that has been noted.
    ///
    /// # Errors
    /// When the memory is not that of a vault.
    pub fn ticket_key_rotation(&self) -> io::Result<Option<u64>> {
        let mut rotation = [0; 8];
        self.memory.read_exact_at(&mut rotation, TICKET_KEY_ROTATION)?;
        Ok(Some(u64::from_le_bytes(rotation)).filter(|rotation| *rotation != 0))
    }

    /// Puts a certificate with its key at the end.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn add_certificate(&self, stored: &Stored) -> io::Result<Place> {
        self.add(&stored.record())
    }

    /// The certificate at `place`, with what of it lies elsewhere.
    ///
    /// # Errors
    /// `InvalidData` when there is none.
    pub fn certificate(&self, place: Place) -> io::Result<Stored> {
        let (mut parts, mut left) = (Vec::new(), MAX_RECORD);
        self.visit(place, |part| {
            let length = match &part {
                Part::Here(bytes) => bytes.len(),
                Part::Elsewhere(place) => place.length as usize,
            };
            left = left.checked_sub(length + 4).ok_or_else(none_there)?;
            parts.push(match part {
                Part::Here(bytes) => bytes.to_vec(),
                Part::Elsewhere(place) => self.read(place)?,
            });
            Ok(())
        })?;
        let key = parts.pop().and_then(|key| PrivateKeyDer::try_from(key).ok()).ok_or_else(none_there)?;
        if parts.is_empty() {
            return Err(none_there());
        }
        Ok(Stored { chain: parts.into_iter().map(CertificateDer::from).collect(), key })
    }

    /// Where what the certificate at `place` is sent with lies, as far as it lies elsewhere.
    ///
    /// # Errors
    /// `InvalidData` when there is none.
    pub fn elsewhere(&self, place: Place) -> io::Result<Vec<Place>> {
        let mut places = Vec::new();
        self.visit(place, |part| {
            places.extend(match part {
                Part::Here(_) => None,
                Part::Elsewhere(place) => Some(place),
            });
            Ok(())
        })?;
        Ok(places)
    }

    /// Shows `see` all parts of the record at `place`.
    fn visit(&self, place: Place, mut see: impl FnMut(Part<'_>) -> io::Result<()>) -> io::Result<()> {
        if place.length as usize > MAX_RECORD {
            return Err(none_there());
        }
        let record = self.read(place)?;
        let (mut rest, mut count) = (&record[..], 0);
        while !rest.is_empty() {
            let (part, after) = Part::split(rest).filter(|_| count < MAX_PARTS).ok_or_else(none_there)?;
            see(part)?;
            (rest, count) = (after, count + 1);
        }
        Ok(())
    }

    /// Puts the content of a file at the end.
    ///
    /// # Errors
    /// When there is no memory, or it is too long.
    pub fn add(&self, bytes: &[u8]) -> io::Result<Place> {
        let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_LENGTH);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        let offset = self.memory.metadata()?.len().max(RECORDS);
        self.memory.write_all_at(bytes, offset)?;
        Ok(Place { offset, length })
    }

    /// What lies at `place`.
    ///
    /// # Errors
    /// When that is outside the vault, or longer than anything in it.
    pub fn read(&self, place: Place) -> io::Result<Vec<u8>> {
        let size = self.memory.metadata()?.len();
        if place.length > MAX_LENGTH {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "nothing in a vault is that long"));
        }
        if place.offset < RECORDS || place.offset.saturating_add(place.length.into()) > size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the place is outside the vault"));
        }
        let mut bytes = vec![0; place.length as usize];
        self.memory.read_exact_at(&mut bytes, place.offset)?;
        Ok(bytes)
    }

    /// Overwrites what lies at `place`, and gives its memory back as far as it is whole pages.
    ///
    /// # Errors
    /// Those of `pwrite(2)`.
    pub fn erase(&self, place: Place) -> io::Result<()> {
        if place.offset < RECORDS { Ok(()) } else { self.punch(place.offset, place.length.into()) }
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let whole = |number: u64| i64::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.memory, flags, whole(offset)?, whole(length)?)?)
    }

    /// Erases everything that lies outside of `used`.
    ///
    /// # Errors
    /// Those of `pwrite(2)`.
    pub fn erase_all_but(&self, mut used: Vec<Place>) -> io::Result<()> {
        used.sort_unstable_by_key(|place| place.offset);
        let end = self.memory.metadata()?.len();
        let mut from = RECORDS;
        for Place { offset, length } in used.into_iter().chain([Place { offset: end, length: 0 }]) {
            // In one go, however far apart they are; a place that is not in this vault lies at its end.
            let offset = offset.min(end);
            self.punch(from, offset.saturating_sub(from))?;
            from = from.max(offset.saturating_add(length.into()));
        }
        Ok(())
    }

    /// Another handle to the same vault.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Vault> {
        Ok(Vault { memory: self.memory.try_clone()? })
    }
}

fn none_there() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the vault has no certificate there")
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl From<OwnedFd> for Vault {
    fn from(memory: OwnedFd) -> Vault {
        Vault { memory: memory.into() }
    }
}

impl From<Vault> for OwnedFd {
    fn from(vault: Vault) -> OwnedFd {
        vault.memory.into()
    }
}

impl AsFd for Vault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a PKCS #8 key, as far as its kind is looked at, with something behind it.
    fn key() -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(vec![0x30, 6, 2, 1, 0, 0x30, 1, 7].into())
    }

    #[test]
    fn what_is_put_in_is_found_at_its_place_and_gone_when_erased() {
        let vault = Vault::create().unwrap();
        let chain = vec![CertificateDer::from(vec![1; 700]), CertificateDer::from(vec![2; 10])];
        let first = vault.add_certificate(&Stored { chain: chain.clone(), key: key() }).unwrap();
        let second = vault.add(b"text").unwrap();
        let reader = vault.try_clone().unwrap();
        let stored = reader.certificate(first).unwrap();
        assert_eq!(stored.chain, chain);
        assert_eq!(stored.key.secret_der(), key().secret_der());
        assert_eq!(reader.read(second).unwrap(), b"text");
        vault.erase(first).unwrap();
        assert!(reader.read(first).unwrap().iter().all(|byte| *byte == 0));
        assert!(reader.certificate(first).is_err());
        assert_eq!(reader.read(second).unwrap(), b"text");
    }

    #[test]
    fn what_several_certificates_are_sent_with_lies_there_once() {
        let vault = Vault::create().unwrap();
        let issuers: Vec<Place> = [2, 3].iter().map(|n| vault.add(&[*n; 1_000]).unwrap()).collect();
        for (n, shared) in [(1, 0), (4, 1), (5, 2)] {
            let chain = [vec![n; 700], vec![2; 1_000], vec![3; 1_000]];
            let stored = Stored { chain: chain.map(CertificateDer::from).into(), key: key() };
            let record = stored.record_with(&issuers[..shared]);
            assert_eq!(stored.record().len() - record.len(), shared * (1_000 - 8));
            let place = vault.add(&record).unwrap();
            assert_eq!(vault.elsewhere(place).unwrap(), issuers[..shared]);
            assert_eq!(vault.certificate(place).unwrap().record(), stored.record());
        }
        // Longer than what is left.
        let place = vault.add(&(ELSEWHERE | 5).to_le_bytes()).unwrap();
        assert!(vault.certificate(place).is_err() && vault.elsewhere(place).is_err());
        let outside = [&(ELSEWHERE | 5).to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        assert!(vault.certificate(vault.add(&outside).unwrap()).is_err());
    }

    #[test]
    fn what_nobody_uses_is_erased_and_the_rest_is_not() {
        let vault = Vault::create().unwrap();
        let places: Vec<Place> = (1..=6).map(|n| vault.add(&[n; 5_000]).unwrap()).collect();
        vault.erase_all_but(vec![places[3], places[1], places[3], Place::default()]).unwrap();
        for (n, place) in (1..).zip(places) {
            let expected = if n == 2 || n == 4 { n } else { 0 };
            assert_eq!(vault.read(place).unwrap(), [expected; 5_000]);
        }
        assert!(vault.ticket_keys().unwrap().0.len() == 1 && vault.ticket_keys_age().unwrap().as_secs() < 60);
    }

    #[test]
    fn a_place_outside_and_a_record_that_is_none_are_errors() {
        let vault = Vault::create().unwrap();
        let place = vault.add(b"\xff\xff\xff\xff garbage").unwrap();
        assert!(vault.certificate(place).is_err());
        for wrong in [
            Place { offset: 0, length: 10 },
            Place { offset: place.offset, length: 1_000 },
            Place { offset: u64::MAX, length: 1 },
        ] {
            assert!(vault.read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_longer_than_anything_in_a_vault_is_not_even_reserved() {
        let vault = Vault::create().unwrap();
        // As whoever can write to it could make it look.
        vault.memory.set_len(1 << 40).unwrap();
        assert!(vault.read(Place { offset: RECORDS, length: MAX_LENGTH }).is_ok());
        assert!(vault.read(Place { offset: RECORDS, length: MAX_LENGTH + 1 }).is_err());
        let far = |length: u32| [(ELSEWHERE | length).to_le_bytes().to_vec(), vec![0, 16, 0, 0, 0, 0, 0, 0]];
        let mut whole = Stored { chain: vec![vec![1; MAX_PART].into()], key: key() };
        let place = vault.add(&whole.record()).unwrap();
        assert!(whole.fits() && vault.certificate(place).is_ok());
        for (parts, length) in [(1, MAX_PART as u32 + 1), (4, MAX_PART as u32)] {
            let mut record = (0..parts).flat_map(|_| far(length).concat()).collect();
            write_part(&mut record, key().secret_der());
            assert!(vault.certificate(vault.add(&record).unwrap()).is_err(), "{parts} parts of {length}");
        }
        let large = Place { length: MAX_RECORD as u32 + 1, ..place };
        assert!(vault.elsewhere(large).is_err());
        whole.chain[0] = vec![1; MAX_PART + 1].into();
        assert!(!whole.fits() && vault.add(&vec![0; MAX_LENGTH as usize + 1]).is_err());
        // Places of another vault do no harm.
        vault.erase_all_but(vec![Place { offset: u64::MAX, length: u32::MAX }]).unwrap();
        assert!(vault.certificate(place).is_err());
    }

    #[test]
    fn ticket_keys_are_renewed_and_the_one_before_stays_for_a_while() {
        let vault = Vault::create().unwrap();
        let first = vault.ticket_keys().unwrap();
        let second = first.renewed().unwrap();
        let third = second.renewed().unwrap();
        vault.write_ticket_keys(&third).unwrap();
        let read = vault.ticket_keys().unwrap();
        assert!(read == third);
        assert_eq!((first.0.len(), read.0.len()), (1, 2));
        assert!(read.0[1] == second.0[0] && read.0[0] != second.0[0]);
    }
}
