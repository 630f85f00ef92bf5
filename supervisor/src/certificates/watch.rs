//! Files that change while kakehi runs are read again: renewed certificates are served without anybody saying so.
//!
//! Some files at a time are looked at on a thread of their own, and read there if they are not as they were. Links are
//! followed, so that it is seen when another file lies where they lead. Whatever is wrong with a file, what was read
//! before stays: half a file, or one whose key has not come yet, is looked at again after a while.
//!
//! What was read waits while an operation is under way, which may read the same files itself. So readings are numbered when they
//! begin: one that is older than what is known of a file is dropped.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use kakehi_ctl::{
    change::Change,
    state::{Certificate, Fingerprint, PackedFiles, Place, State},
};
use kakehi_engine::tls::Vault;
use tokio::{task::JoinHandle, time::Instant};

use super::{
    Error,
    content::Fault,
    files::{self, Read, Short, Source},
    keeper::{Keeper, Kept, Reading},
    materials,
};

/// Certificates that are looked at in one go.
const BATCH: usize = 1_000;
/// It is not looked more often (ms), whatever is configured.
const LEAST_INTERVAL_MS: u64 = 50;

/// How far the looking is.
pub(crate) struct Watching {
    /// When it begins anew, or goes on.
    due: Instant,
    /// The certificate that was looked at last; `None`: it has not begun.
    cursor: Option<(SocketAddr, Fingerprint)>,
    running: Option<JoinHandle<Vec<Seen>>>,
    /// What was complained about: by the name of a source.
    told: HashMap<Short, String>,
}

/// Something to look at.
struct Item {
    source: Source,
    /// The certificate that it is; `None` for materials.
    certificate: Option<(SocketAddr, Fingerprint)>,
    known: Option<Short>,
    /// Where it lies, if it is a certificate.
    place: Place,
}

/// Something that is not as it was.
struct Seen {
    source: Source,
    reading: Reading,
    certificate: Option<(SocketAddr, Fingerprint)>,
    read: Result<(Read, Short), files::Error>,
}

impl Watching {
    pub(super) fn new() -> Watching {
        Watching { due: Instant::now(), cursor: None, running: None, told: HashMap::new() }
    }

    /// Waits until it is known of some files whether they are as they were; those that are not.
    pub(crate) async fn changed(&mut self) -> Vec<Changed> {
        self.seen().await.into_iter().map(Changed).collect()
    }

    /// Notes how it went to take a file anew; what went wrong is told once, and given back for those who watch.
    pub(crate) fn note(&mut self, About { name, paths }: About, taken: Result<(), String>) -> Option<String> {
        let Err(reason) = taken else {
            self.told.remove(&name);
            return None;
        };
        if self.told.get(&name) == Some(&reason) {
            return None;
        }
        let text = format!("{paths} has changed, and what it was before stays in use: {reason}");
        tracing::warn!("{text}");
        self.told.insert(name, reason);
        Some(text)
    }

    /// What was seen, when some files have been looked at; otherwise waits for ever.
    async fn seen(&mut self) -> Vec<Seen> {
        match &mut self.running {
            Some(running) => {
                // It cannot fail but by a panic, which ends the program.
                let seen = running.await.unwrap_or_default();
                self.running = None;
                seen
            }
            None => std::future::pending().await,
        }
    }
}

fn look(vault: &Vault, items: Vec<Item>, reading: Reading) -> Vec<Seen> {
    let mut seen = Vec::new();
    for Item { source, certificate, known, place } in items {
        // After a supervisor has taken over, files are not known, but mostly what they were.
        let is_there = |read: &Read| {
            let record = read.records.first();
            place.length > 0
                && record.is_some_and(|it| {
                    vault.certificate(place).is_ok_and(|there| files::digest_of(&there) == it.digest)
                })
        };
        let read = match source.stamp() {
            Ok(stamp) if known == Some(stamp) => continue,
            Ok(stamp) => match source.read(place.length == 0) {
                Ok(read) if place.length > 0 && !is_there(&read) => source.read(true),
                read => read,
            }
            .map(|read| (read, stamp)),
            Err(error) => Err(error),
        };
        seen.push(Seen { source, reading, certificate, read });
    }
    seen
}

/// The next certificates after `cursor` that come from files.
fn after(state: &State, cursor: Option<(SocketAddr, Fingerprint)>) -> Vec<Item> {
    let from = cursor.map(|(address, _)| address);
    let listeners =
        state.certificates.iter().filter(|(address, _)| from.is_none_or(|from| **address >= from));
    let all = listeners.flat_map(|(address, certificates)| {
        let after = cursor.filter(|(at, _)| at == address).map(|(_, fingerprint)| fingerprint);
        let range = match after {
            Some(after) => certificates.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded)),
            None => certificates.range(..),
        };
        range.map(|(fingerprint, it)| (*address, *fingerprint, it))
    });
    let with_files = all.filter_map(|(address, fingerprint, certificate)| {
        Some(Item {
            source: Source::Certificate(certificate.files.as_ref()?.unpack()),
            certificate: Some((address, fingerprint)),
            known: None,
            place: certificate.place,
        })
    });
    with_files.take(BATCH).collect()
}

impl Keeper {
    /// When files are to be looked at next; `None` while they are, or where it is not wanted.
    pub(crate) fn watch_due(&self, state: &State) -> Option<Instant> {
        let watching = &self.watching;
        (state.settings.certificate_watch && watching.running.is_none() && !self.stands_in())
            .then_some(watching.due)
    }

    /// Begins to look at files, or goes on: [`Watching::changed`] says what was found.
    pub(crate) fn look_at_files(&mut self, state: &State) {
        let cursor = self.watching.cursor;
        let certificates = after(state, cursor);
        self.watching.cursor = certificates.last().and_then(|item| item.certificate);
        let whole = certificates.len() == BATCH;
        let mut items: Vec<Item> = Vec::new();
        if cursor.is_none() {
            let mut materials: Vec<Source> =
                materials::listed(state).into_iter().map(|(source, _)| source).collect();
            materials.sort_by_cached_key(Source::name);
            materials.dedup();
            let place = Place::default();
            items.extend(materials.into_iter().map(|source| Item {
                source,
                certificate: None,
                known: None,
                place,
            }));
        }
        items.extend(certificates);
        for item in &mut items {
            item.known = self.known_stamp(&item.source.name());
        }
        let interval = state.settings.certificate_watch_interval_ms.max(LEAST_INTERVAL_MS);
        let (vault, reading) = (self.vault().try_clone(), self.begin_reading());
        let watching = &mut self.watching;
        watching.due = Instant::now();
        if !whole {
            watching.cursor = None;
            watching.due += Duration::from_millis(interval);
        }
        // Without a descriptor: at the next interval.
        if let (false, Ok(vault)) = (items.is_empty(), vault) {
            watching.running = Some(tokio::task::spawn_blocking(move || look(&vault, items, reading)));
        }
    }

    /// Puts what was read of a file that has changed into the vault; the changes by which it is used, and of what to be aware.
    /// [`Keeper::settle`] is to be called when they have been made or refused.
    ///
    /// # Errors
    /// Why what was read before stays in use.
    pub(crate) fn take_anew(
        &mut self,
        state: &State,
        Changed(Seen { source, reading, certificate, read }): Changed,
    ) -> Result<(Vec<Change>, Vec<String>), String> {
        if self.is_outdated(&source.name(), reading) {
            return Ok(Default::default());
        }
        let (read, stamp) = read.map_err(|error| error.to_string())?;
        let warnings = read.warnings.clone();
        let kept = self.keep(&source, (stamp, reading), read).map_err(|error| error.to_string())?;
        let changes = match certificate {
            None => {
                let changes = materials::changes(state, &source, &kept);
                changes.into_iter().filter(|change| is_new(state, change)).collect()
            }
            Some(which) => {
                renewals(state, &source, which, &kept).map_err(|fault| Error::Sent(fault).to_string())?
            }
        };
        Ok((changes, warnings))
    }
}

/// The changes that put what was read from the files of certificate `which` into its place, at every listener that has it
/// from there.
fn renewals(
    state: &State,
    source: &Source,
    (address, fingerprint): (SocketAddr, Fingerprint),
    kept: &Kept,
) -> Result<Vec<Change>, Fault> {
    let present = state.certificate(address, &fingerprint);
    // It may have gone in the meantime; and mostly, when files are not known, they are what they were.
    let (Some(present), Some(facts), Source::Certificate(files)) = (present, &kept.facts, source) else {
        return Ok(Vec::new());
    };
    if present.place == kept.places[0] && fingerprint == facts.fingerprint {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    let files = Some(PackedFiles::from(files));
    for (address, certificates) in &state.certificates {
        for (fingerprint, present) in certificates.iter().filter(|(_, it)| it.files == files) {
            let mut renewed = facts.clone().certificate(&present.said_names(), present.default)?;
            renewed.place = kept.places[0];
            renewed.files.clone_from(&files);
            changes.extend(replacement(*address, (*fingerprint, present), (facts.fingerprint, renewed)));
        }
    }
    Ok(changes)
}

/// Whether it makes a difference.
fn is_new(state: &State, change: &Change) -> bool {
    match change {
        Change::SetListener { listener } => state.listeners.get(&listener.address) != Some(&**listener),
        Change::SetCluster { name, cluster } => state.clusters.get(name) != Some(cluster),
        _ => true,
    }
}

/// What was seen of a file that has changed.
pub(crate) struct Changed(Seen);

impl Changed {
    /// Which file it is.
    pub(crate) fn about(&self) -> About {
        let paths: Vec<String> =
            self.0.source.paths().iter().map(|path| path.display().to_string()).collect();
        About { name: self.0.source.name(), paths: paths.join(", ") }
    }
}

/// Which file, or files that belong together, something is about.
pub(crate) struct About {
    name: Short,
    paths: String,
}

impl std::fmt::Display for About {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.paths)
    }
}

/// The changes that put one certificate into the place of another.
pub(super) fn replacement(
    address: SocketAddr,
    (fingerprint, present): (Fingerprint, &Certificate),
    (new, renewed): (Fingerprint, Certificate),
) -> Vec<Change> {
    if new == fingerprint && *present == renewed {
        return Vec::new();
    }
    let set = Change::SetCertificate { address, fingerprint: new, certificate: renewed.into() };
    let remove = (new != fingerprint).then_some(Change::RemoveCertificate { address, fingerprint });
    [Some(set), remove].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use kakehi_ctl::state::{CertificateFiles, KeyKind};

    use super::{super::content::Facts, *};

    fn files(name: &str) -> CertificateFiles {
        CertificateFiles { certificate: Path::new(name).into(), chain: None, key: Path::new(name).into() }
    }

    fn state(listeners: &[(u16, &[&str])]) -> State {
        let mut state = State::default();
        for (port, names) in listeners {
            let certificates = state.certificates.entry(([127, 0, 0, 1], *port).into()).or_default();
            for (n, name) in (1..).zip(*names) {
                let certificate = Certificate {
                    names: [*name].into(),
                    key: KeyKind::Ecdsa,
                    not_after: 0,
                    default: n == 1,
                    named: false,
                    place: Place { offset: 5_000, length: n.into() },
                    files: Some(PackedFiles::from(&files(name))),
                };
                certificates.insert(Fingerprint([n; 32]), certificate.into());
            }
        }
        state
    }

    fn kept(fingerprint: u8, place: Place) -> Kept {
        let facts = Facts {
            fingerprint: Fingerprint([fingerprint; 32]),
            names: ["new"].into(),
            key: KeyKind::Rsa,
            not_after: 1,
            kin: [0; 32],
        };
        Kept { places: [place; 2], digests: Default::default(), facts: Some(facts) }
    }

    #[test]
    fn a_file_is_renewed_at_every_listener_that_has_it() {
        let mut state = state(&[(1, &["a", "b"]), (2, &["a"]), (3, &["c"])]);
        let which = (([127, 0, 0, 1], 1).into(), Fingerprint([1; 32]));
        let source = Source::Certificate(files("a"));
        let unchanged = kept(1, Place { offset: 5_000, length: 1 });
        assert_eq!(renewals(&state, &source, which, &unchanged), Ok(Vec::new()));
        let changes = renewals(&state, &source, which, &kept(9, Place { offset: 9_000, length: 9 })).unwrap();
        assert_eq!(changes.len(), 4);
        changes.iter().for_each(|change| state.apply(change).unwrap());
        let all: Vec<(&Fingerprint, bool)> = state
            .certificates
            .values()
            .flatten()
            .map(|(it, certificate)| (it, certificate.default))
            .collect();
        let [two, nine, one] = [2, 9, 1].map(|n| Fingerprint([n; 32]));
        assert_eq!(all, [(&two, false), (&nine, true), (&nine, true), (&one, true)]);
        // The one that was looked at is gone: nothing is to be done.
        assert_eq!(renewals(&state, &source, which, &unchanged), Ok(Vec::new()));
    }

    #[test]
    fn all_certificates_are_looked_at_one_after_the_other() {
        let state = state(&[(1, &["a", "b"]), (2, &[]), (3, &["c"])]);
        let mut cursor = None;
        let mut seen = Vec::new();
        while let Some(item) = after(&state, cursor).into_iter().next() {
            seen.push(item.source.paths()[0].to_owned());
            cursor = item.certificate;
        }
        assert_eq!(seen, ["a", "b", "c"].map(PathBuf::from));
    }
}
