//! The vault: memory in which certificates, keys and the keys of tickets lie, shared by the supervisor and its workers.
//!
//! The supervisor writes, workers read what they need when they need it: so a worker without privileges has the keys of
//! files that it could not open, many certificates cost little until they are asked for, and a worker whose supervisor
//! has died goes on with all of them. It is a memfd without a name in any file system; what is removed is overwritten.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::{FileExt as _, PermissionsExt as _},
    },
    time::{Duration, SystemTime},
};

use kakehi_ctl::state::Place;
use rustix::{
    fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create},
    rand::GetRandomFlags,
};

use super::record::{MAX_RECORD, Record, Stored};

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
/// Where it stands in which form records are written.
const FORM: u64 = 144;
/// The form that is written here; programs from before it was noted wrote another, and 0.
const THIS_FORM: u64 = 1;
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
        // Of the kernel: AWS-LC first takes 20 ms to gather some of its own, which no start without TLS should wait for. So few
        // bytes come whole.
        rustix::rand::getrandom(&mut key, GetRandomFlags::empty())?;
        let mut keys = vec![key];
        keys.extend(self.0.iter().take(TICKET_KEYS - 1));
        Ok(TicketKeys(keys))
    }
}

/// The vault. Whoever made it can write to it, and who may become the same user; others get [`Vault::for_reading`].
pub struct Vault {
    memory: File,
}

impl Vault {
    /// An empty one, with a first ticket key.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`.
    pub fn create() -> io::Result<Vault> {
        let memory = memfd_create(c"kakehi-vault", MemfdFlags::CLOEXEC)?;
        let vault = Vault { memory: memory.into() };
        vault.keep_from_others()?;
        vault.memory.set_len(RECORDS)?;
        vault.memory.write_all_at(&THIS_FORM.to_le_bytes(), FORM)?;
        vault.write_ticket_keys(&TicketKeys(Vec::new()).renewed()?)?;
        Ok(vault)
    }

    /// The one in this memory, which another process of this user has made and maybe cannot write to.
    ///
    /// # Errors
    /// As for [`Vault::adopt`]; when it may not be written to.
    pub fn take_over(memory: OwnedFd) -> io::Result<Vault> {
        let vault = Vault::adopt(reopened(&memory, true)?)?;
        vault.keep_from_others()?;
        Ok(vault)
    }

    /// A descriptor that it can be read by, and nothing else; another user who gets it cannot open it again for more.
    ///
    /// # Errors
    /// When there is no descriptor left, or `/proc` is not there.
    pub fn for_reading(&self) -> io::Result<OwnedFd> {
        reopened(&self.memory, false)
    }

    /// Only this user may open it, as everything in `/proc/self/fd` can be opened by whom its mode allows it.
    fn keep_from_others(&self) -> io::Result<()> {
        self.memory.set_permissions(fs::Permissions::from_mode(0o600))
    }

    /// The one in this memory, which another process has made: for reading, and for more if the descriptor is.
    ///
    /// # Errors
    /// When it is none, or its records have another form than those of this program.
    pub fn adopt(memory: OwnedFd) -> io::Result<Vault> {
        let vault = Vault { memory: memory.into() };
        let mut form = [0; 8];
        vault.memory.read_exact_at(&mut form, FORM)?;
        match u64::from_le_bytes(form) {
            THIS_FORM => Ok(vault),
            form => {
                let text = format!("they have form {form}, and this program reads form {THIS_FORM}");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
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

    /// The certificate at `place`, with what of it lies elsewhere.
    ///
    /// # Errors
    /// `InvalidData` when there is none.
    pub fn certificate(&self, place: Place) -> io::Result<Stored> {
        let bytes = self.record(place)?;
        let record = Record::of(&bytes).ok_or_else(none_there)?;
        let (leaf, key) = record.unpack(&self.read(record.model)?).ok_or_else(none_there)?;
        let mut chain = vec![leaf];
        for place in &record.issuers {
            chain.push(self.read(*place)?.into());
        }
        Ok(Stored { chain, key })
    }

    /// Where that lies without which the certificate at `place` cannot be had.
    ///
    /// # Errors
    /// `InvalidData` when there is none.
    pub fn elsewhere(&self, place: Place) -> io::Result<Vec<Place>> {
        let bytes = self.record(place)?;
        let Record { model, mut issuers, .. } = Record::of(&bytes).ok_or_else(none_there)?;
        issuers.insert(0, model);
        Ok(issuers)
    }

    fn record(&self, place: Place) -> io::Result<Vec<u8>> {
        if place.length as usize > MAX_RECORD { Err(none_there()) } else { self.read(place) }
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
        // `fstat(2)`: a worker may make no call that takes a path, as `metadata` does.
        let size = rustix::fs::fstat(&self.memory)?.st_size.cast_unsigned();
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
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.memory, flags, offset, length)?)
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

/// Another opening of the same memory.
fn reopened(memory: &impl AsFd, write: bool) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
    Ok(OpenOptions::new().read(true).write(write).open(path)?.into())
}

fn none_there() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the vault has no certificate there")
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
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

    use rustls_pki_types::{CertificateDer, PrivateKeyDer};

    /// The beginning of a PKCS #8 key, as far as its kind is looked at, with something behind it.
    fn stored(chain: &[&[u8]]) -> Stored {
        let key = PrivateKeyDer::Pkcs8(vec![0x30, 6, 2, 1, 0, 0x30, 1, 7].into());
        Stored { chain: chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect(), key }
    }

    /// Puts a certificate into a vault, which is like another that lies there.
    fn put(vault: &Vault, stored: &Stored, model: Place, issuers: &[Place]) -> Place {
        let places = [&[model], issuers].concat();
        vault.add(&stored.record(&places, &vault.read(model).unwrap())).unwrap()
    }

    #[test]
    fn what_is_put_in_is_found_at_its_place_and_gone_when_erased() {
        let vault = Vault::create().unwrap();
        let model = vault.add(&[1; 600]).unwrap();
        let one = stored(&[&[1; 700]]);
        let first = put(&vault, &one, model, &[]);
        let second = vault.add(b"text").unwrap();
        let reader = vault.try_clone().unwrap();
        assert!(reader.certificate(first).unwrap().parts().eq(one.parts()));
        assert_eq!(reader.read(second).unwrap(), b"text");
        vault.erase(first).unwrap();
        assert!(reader.read(first).unwrap().iter().all(|byte| *byte == 0));
        assert!(reader.certificate(first).is_err());
        assert_eq!(reader.read(second).unwrap(), b"text");
        let again = put(&vault, &one, model, &[]);
        vault.erase(model).unwrap();
        assert!(!reader.certificate(again).is_ok_and(|read| read.parts().eq(one.parts())));
    }

    #[test]
    fn what_several_certificates_are_sent_with_lies_there_once() {
        let vault = Vault::create().unwrap();
        let model = vault.add(&[1; 700]).unwrap();
        let issuers = [2, 3].map(|n| vault.add(&[n; 1_000]).unwrap());
        for (n, count) in [(1, 0), (4, 1), (5, 2)] {
            let chain: [&[u8]; 3] = [&[n; 700], &[2; 1_000], &[3; 1_000]];
            let stored = stored(&chain[..=count]);
            let place = put(&vault, &stored, model, &issuers[..count]);
            assert!(place.length < 100, "{place:?}");
            assert_eq!(vault.elsewhere(place).unwrap(), [&[model], &issuers[..count]].concat());
            assert!(vault.certificate(place).unwrap().parts().eq(stored.parts()));
        }
        for outside in [Place { offset: u64::MAX, length: 5 }, Place { length: 2_000, ..issuers[1] }] {
            let place = put(&vault, &stored(&[&[1; 700]]), model, &[outside]);
            assert!(vault.certificate(place).is_err());
        }
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
        let place = vault.add(b"\xff\xff\xff\xff garbage which is no record").unwrap();
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
        let model = vault.add(&[1; 700]).unwrap();
        let place = put(&vault, &stored(&[&[1; 700]]), model, &[]);
        let large = Place { length: MAX_RECORD as u32 + 1, ..place };
        assert!(vault.certificate(place).is_ok());
        assert!(vault.elsewhere(large).is_err() && vault.certificate(large).is_err());
        assert!(vault.add(&vec![0; MAX_LENGTH as usize + 1]).is_err());
        // Places of another vault do no harm.
        vault.erase_all_but(vec![Place { offset: u64::MAX, length: u32::MAX }]).unwrap();
        assert!(vault.certificate(place).is_err());
    }

    #[test]
    fn a_vault_of_another_form_is_not_taken_for_one_that_can_be_read() {
        let vault = Vault::create().unwrap();
        let adopted = || Vault::adopt(vault.try_clone().unwrap().into()).map(drop);
        assert!(adopted().is_ok());
        vault.memory.write_all_at(&0_u64.to_le_bytes(), FORM).unwrap();
        assert_eq!(adopted().unwrap_err().to_string(), "they have form 0, and this program reads form 1");
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
