//! What was read of files lies in the vault once, and it is known where, so that it is not read again.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::Duration,
};

use kakehi_ctl::{
    change::Change,
    state::{Certificate, Fingerprint, PackedFiles, Place, State, WantedCertificate},
};
use kakehi_engine::tls::Vault;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    Error,
    content::{self, Facts, Fault},
    files::{self, Content, Read, Record, Short, Source, Whole},
    materials::{self, Slot},
    watch::Watching,
};

/// As many files are looked at fully that are read at once: more would make a start wait.
const FEW: usize = 1_000;
/// What nobody uses any more is erased so long after: handshakes that are under way may still need it.
const GRACE: Duration = Duration::from_secs(15);
/// The longest certificate that others are written like (bytes): it is read for each of them.
const LARGEST_MODEL: usize = 8 << 10;
/// Files of one thread; for fewer it is not worth it to start another.
const PER_THREAD: usize = 64;
/// What was read and waits to be put into the vault.
const QUEUE: usize = 64;

/// How much is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Everything.
    All,
    /// Keys and chains too where few were never read; otherwise only what has to be known of each certificate: what else is wrong is
    /// found when it is first needed.
    Few,
}

/// Holds the vault, and knows what lies where.
pub(crate) struct Keeper {
    vault: Arc<Vault>,
    /// By the name of a source: when it was read, and where what was read lies.
    known: HashMap<Short, Known>,
    /// By the beginning of its digest: where something lies.
    contents: HashMap<Short, Place>,
    /// By what makes certificates alike: where one of them lies which others are written like.
    models: HashMap<Whole, Place>,
    /// Names of sources that were read, and are not in use yet.
    fresh: Vec<Short>,
    /// Times that reading was begun.
    readings: Reading,
    /// When it is to be looked for what nobody uses any more.
    erase_at: Option<Instant>,
    pub(crate) watching: Watching,
    /// When it is told next which certificates expire.
    pub(super) expiry_due: Instant,
    /// Certificates that were left out when the state was saved last.
    pub(crate) left_out: usize,
    /// It only stands in for one that is at work on another thread.
    stands_in: bool,
}

/// When a file was read: the reading of a higher number was begun later, and has what was in the file then or later.
pub(super) type Reading = u64;

struct Known {
    stamp: Short,
    reading: Reading,
    /// One, or two for a chain and its key as materials.
    places: [Place; 2],
}

/// Where what was read of a source lies.
pub(super) struct Kept {
    pub(super) places: [Place; 2],
    /// Of what lies there; only for materials.
    pub(super) digests: [Whole; 2],
    /// Only for certificates.
    pub(super) facts: Option<Facts>,
}

/// A certificate of the listener at an address.
pub(crate) type Found = (SocketAddr, Fingerprint, Arc<Certificate>);

/// A source that was looked at: read anew, or found as it was.
enum Looked {
    Read(Read, Short),
    Known(Kept),
}

/// Gives a state the certificates that were found for it.
pub(crate) fn put_into(state: &mut State, certificates: Vec<Found>) {
    let mut by_address = HashMap::<SocketAddr, Vec<(Fingerprint, Arc<Certificate>)>>::new();
    for (address, fingerprint, certificate) in certificates {
        by_address.entry(address).or_default().push((fingerprint, certificate));
    }
    for (address, certificates) in by_address {
        // All at once, as a tree that grows one by one takes twice the memory.
        let mut certificates: std::collections::BTreeMap<_, _> = certificates.into_iter().collect();
        state.certificates.entry(address).or_default().append(&mut certificates);
    }
}

impl Keeper {
    /// One that goes on with a vault, or begins one.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub(crate) fn new(vault: Option<Vault>) -> io::Result<Keeper> {
        Ok(Keeper {
            vault: Arc::new(vault.map_or_else(Vault::create, Ok)?),
            known: HashMap::new(),
            contents: HashMap::new(),
            models: HashMap::new(),
            fresh: Vec::new(),
            readings: 0,
            erase_at: None,
            watching: Watching::new(),
            expiry_due: Instant::now(),
            left_out: 0,
            stands_in: false,
        })
    }

    /// This one, to be worked with on another thread. What stays in its place has the vault and goes on watching, and knows of nothing
    /// that is in the vault.
    pub(crate) fn lend(&mut self) -> Keeper {
        let stand_in = Keeper {
            vault: Arc::clone(&self.vault),
            known: HashMap::new(),
            contents: HashMap::new(),
            models: HashMap::new(),
            fresh: Vec::new(),
            readings: self.readings,
            erase_at: None,
            watching: std::mem::replace(&mut self.watching, Watching::new()),
            expiry_due: self.expiry_due,
            left_out: self.left_out,
            stands_in: true,
        };
        std::mem::replace(self, stand_in)
    }

    /// Has the one that was lent take its place again.
    pub(crate) fn take_back(&mut self, lent: Keeper) {
        let Keeper { watching, expiry_due, left_out, readings, .. } = std::mem::replace(self, lent);
        (self.watching, self.expiry_due, self.left_out) = (watching, expiry_due, left_out);
        self.readings = self.readings.max(readings);
    }

    /// Whether it only stands in for one that is at work elsewhere.
    pub(super) fn stands_in(&self) -> bool {
        self.stands_in
    }

    /// The vault.
    pub(crate) fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Takes note of what another supervisor has put into the vault, as far as `state` uses it and it is as it was.
    pub(crate) fn adopt(&mut self, state: &State) {
        for (fingerprint, certificate) in state.certificates.values().flatten() {
            match self.vault.certificate(certificate.place) {
                Ok(stored) => {
                    self.contents.insert(beginning(&files::digest_of(&stored)), certificate.place);
                }
                Err(error) => tracing::error!("certificate {fingerprint} cannot be had from memory: {error}"),
            }
        }
        let texts = materials::listed(state).into_iter().flat_map(|(_, places)| places);
        let texts: HashSet<Place> = self.shared(state).0.into_iter().chain(texts).collect();
        for place in texts {
            match self.vault.read(place) {
                Ok(text) => drop(self.contents.insert(beginning(&Sha256::digest(text).into()), place)),
                Err(error) => tracing::error!("the content of a file cannot be had from memory: {error}"),
            }
        }
        self.tidy_later();
    }

    /// Reads what `state` names, and the certificates that are `wanted` besides; says of what to be aware.
    ///
    /// # Errors
    /// When anything cannot be used; then nothing of it is.
    pub(crate) fn furnish(
        &mut self,
        state: &mut State,
        wanted: Vec<WantedCertificate>,
        depth: Depth,
    ) -> Result<Vec<String>, Error> {
        let mut warnings = self.fill_materials(state, depth)?;
        let (certificates, more) = self.certificates(wanted, depth)?;
        warnings.extend(more);
        put_into(state, certificates);
        Ok(warnings)
    }

    /// The first half of [`Keeper::furnish`]: what is no certificate of a listener.
    ///
    /// # Errors
    /// When anything cannot be used.
    fn fill_materials(&mut self, state: &mut State, depth: Depth) -> Result<Vec<String>, Error> {
        let listeners = state.listeners.values_mut();
        let mut slots: Vec<Slot<'_>> = listeners.flat_map(materials::of_listener).collect();
        slots.extend(state.clusters.values_mut().flat_map(materials::of_cluster));
        self.fill(slots, depth)
    }

    /// Reads the materials that `changes` name, as far as they are not known yet.
    ///
    /// # Errors
    /// When anything cannot be used.
    pub(crate) fn furnish_changes(&mut self, changes: &mut [Change]) -> Result<Vec<String>, Error> {
        let mut slots = Vec::new();
        for change in changes {
            match change {
                Change::SetListener { listener } => slots.extend(materials::of_listener(listener)),
                Change::SetCluster { cluster, .. } => slots.extend(materials::of_cluster(cluster)),
                Change::SetFrontend { frontend, .. } => slots.extend(materials::of_frontend(frontend)),
                Change::SetCertificate { fingerprint, certificate, .. } => {
                    self.check_sent(*fingerprint, certificate)?;
                }
                _ => {}
            }
        }
        slots.retain(|slot| !self.has(slot));
        self.fill(slots, Depth::All)
    }

    /// Whether a slot has been filled by this keeper.
    fn has(&self, slot: &Slot<'_>) -> bool {
        slot.materials().iter().all(|material| {
            let digest = material.digest.parse::<Fingerprint>();
            digest.is_ok_and(|it| self.contents.get(&beginning(&it.0)) == Some(&material.place))
        })
    }

    /// Whoever sends a change may name any place. Only one counts where this keeper has put the whole certificate: other bytes,
    /// those of a material or inside a record, can be made to look like a record that has the key of another.
    fn check_sent(&self, fingerprint: Fingerprint, certificate: &Certificate) -> Result<(), Error> {
        let Certificate { place, default, .. } = *certificate;
        let stored = self.vault.certificate(place).map_err(|_| Error::Elsewhere(fingerprint))?;
        let known = self.contents.get(&beginning(&files::digest_of(&stored)));
        let facts = content::facts(&stored.chain).map_err(Error::Sent)?;
        if known != Some(&place) || facts.fingerprint != fingerprint {
            return Err(Error::Elsewhere(fingerprint));
        }
        let files = certificate.files.clone();
        let expected = Certificate {
            place,
            files,
            ..facts.certificate(&certificate.said_names(), default).map_err(Error::Sent)?
        };
        if expected == *certificate { Ok(()) } else { Err(Error::Otherwise(fingerprint)) }
    }

    fn fill(&mut self, slots: Vec<Slot<'_>>, depth: Depth) -> Result<Vec<String>, Error> {
        let mut places: HashMap<Source, usize> = HashMap::new();
        let mut sources = Vec::new();
        for slot in &slots {
            let source = slot.source();
            if !places.contains_key(&source) {
                places.insert(source.clone(), sources.len());
                sources.push(source);
            }
        }
        let (kept, warnings) = self.keep_all(&sources, depth)?;
        for slot in slots {
            if let Some(kept) = places.get(&slot.source()).and_then(|place| kept.get(*place)) {
                slot.fill(kept);
            }
        }
        Ok(warnings)
    }

    /// The certificates that are `wanted`, for [`put_into`]; and of what to be aware.
    ///
    /// # Errors
    /// When one cannot be used.
    fn certificates(
        &mut self,
        wanted: Vec<WantedCertificate>,
        depth: Depth,
    ) -> Result<(Vec<Found>, Vec<String>), Error> {
        let (mut sources, mut rest) = (Vec::with_capacity(wanted.len()), Vec::with_capacity(wanted.len()));
        for WantedCertificate { address, files, names, default } in wanted {
            sources.push(Source::Certificate(files));
            rest.push((address, names, default));
        }
        let (kept, warnings) = self.keep_all(&sources, depth)?;
        let mut certificates = Vec::with_capacity(kept.len());
        for ((source, kept), (address, names, default)) in sources.into_iter().zip(kept).zip(rest) {
            let (Source::Certificate(files), Some(facts)) = (source, kept.facts) else { continue };
            let fingerprint = facts.fingerprint;
            let mut certificate = facts.certificate(&names, default).map_err(|fault| {
                Error::File(files::Error::Content { path: files.certificate.to_path_buf(), fault })
            })?;
            certificate.place = kept.places[0];
            certificate.files = Some(PackedFiles::from(&files));
            certificates.push((address, fingerprint, certificate.into()));
        }
        Ok((certificates, warnings))
    }

    /// Has what is in the sources in the vault, in their order. Those that have not changed since they were read are not
    /// read again.
    fn keep_all(&mut self, sources: &[Source], depth: Depth) -> Result<(Vec<Kept>, Vec<String>), Error> {
        let reading = self.begin_reading();
        let mut stamps = vec![Short::default(); sources.len()];
        in_parallel(
            sources,
            |_, source| Ok(source.stamp()?),
            |place, stamp| {
                stamps[place] = stamp;
                Ok(())
            },
        )?;
        let known: Vec<Option<[Place; 2]>> = sources
            .iter()
            .zip(&stamps)
            .map(|(source, stamp)| {
                let known = self.known.get_mut(&source.name()).filter(|known| known.stamp == *stamp)?;
                known.reading = reading;
                Some(known.places)
            })
            .collect();
        let fully = match depth {
            Depth::All => true,
            Depth::Few => sources.iter().filter(|it| !self.known.contains_key(&it.name())).count() < FEW,
        };
        let vault = Arc::clone(&self.vault);
        let vault: &Vault = &vault;
        let look = |place: usize, source: &Source| match known[place] {
            Some(places) => Ok(Looked::Known(found(vault, source, places)?)),
            None => Ok(Looked::Read(source.read(fully)?, stamps[place])),
        };
        let mut kept: Vec<Option<Kept>> = Vec::new();
        kept.resize_with(sources.len(), || None);
        let mut warnings = Vec::new();
        in_parallel(sources, look, |place, looked| {
            kept[place] = Some(match looked {
                Looked::Known(known) => known,
                Looked::Read(mut read, stamp) => {
                    warnings.append(&mut read.warnings);
                    self.keep(&sources[place], (stamp, reading), read)?
                }
            });
            Ok(())
        })?;
        self.tidy_later();
        Ok((kept.into_iter().flatten().collect(), warnings))
    }

    /// The stamp with which a source of this name was read last.
    pub(super) fn known_stamp(&self, name: &Short) -> Option<Short> {
        self.known.get(name).map(|known| known.stamp)
    }

    /// To be called before files are looked at: the number of what is read then.
    pub(super) fn begin_reading(&mut self) -> Reading {
        self.readings += 1;
        self.readings
    }

    /// Whether what was read of a source of this name is older than what is known of it: then it must not take its place.
    pub(super) fn is_outdated(&self, name: &Short, reading: Reading) -> bool {
        self.known.get(name).is_some_and(|known| known.reading > reading)
    }

    /// Takes note that `place` has what somebody else has read of a source just now.
    pub(super) fn note_sent(&mut self, source: &Source, place: Place) {
        let (name, reading) = (source.name(), self.begin_reading());
        // No file has this stamp: it is looked at next time.
        let known = Known { stamp: Short::default(), reading, places: [place, Place::default()] };
        self.known.insert(name, known);
        self.fresh.push(name);
    }

    /// What was read since the last time is in use now, or not: then it is read again, lest a file that has changed be
    /// taken for one that is known.
    pub(crate) fn settle(&mut self, in_use: bool) {
        for name in std::mem::take(&mut self.fresh) {
            if !in_use {
                self.known.remove(&name);
            }
        }
    }

    /// Puts what was read of a source into the vault, and takes note of it.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn keep(
        &mut self,
        source: &Source,
        (stamp, reading): (Short, Reading),
        read: Read,
    ) -> Result<Kept, Error> {
        let (mut places, mut digests) = ([Place::default(); 2], [Whole::default(); 2]);
        for (n, record) in read.records.iter().take(2).enumerate() {
            (places[n], digests[n]) = (self.put(record)?, record.digest);
        }
        let name = source.name();
        self.known.insert(name, Known { stamp, reading, places });
        self.fresh.push(name);
        Ok(Kept { places, digests, facts: read.facts })
    }

    /// Puts something into the vault, unless it is there.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn put(&mut self, record: &Record) -> Result<Place, Error> {
        self.tidy_later();
        if let Some(place) = self.contents.get(&beginning(&record.digest)) {
            return Ok(*place);
        }
        match &record.content {
            Content::Text(text) => self.write(text, &record.digest),
            Content::Pair(stored, kin) => {
                let Some((leaf, issuers)) = stored.chain.split_first() else {
                    return Err(Error::Sent(Fault::NoCertificate));
                };
                // The first one of its kind lies there as it is.
                let model = match self.models.get(kin) {
                    Some(model) => *model,
                    None => self.put_der(leaf)?,
                };
                if leaf.len() <= LARGEST_MODEL {
                    self.models.insert(*kin, model);
                }
                let mut places = vec![model];
                // Many certificates are sent with the same ones, which lie there once.
                for der in issuers {
                    places.push(self.put_der(der)?);
                }
                let model = self.vault.read(model).map_err(Error::Vault)?;
                self.write(&stored.record(&places, &model), &record.digest)
            }
        }
    }

    /// Puts a certificate into the vault that others need.
    fn put_der(&mut self, der: &[u8]) -> Result<Place, Error> {
        let digest = Sha256::digest(der).into();
        match self.contents.get(&beginning(&digest)) {
            Some(place) => Ok(*place),
            None => self.write(der, &digest),
        }
    }

    fn write(&mut self, bytes: &[u8], digest: &Whole) -> Result<Place, Error> {
        let place = self.vault.add(bytes).map_err(Error::Vault)?;
        self.contents.insert(beginning(digest), place);
        Ok(place)
    }

    /// What lies in the vault may be used by nobody any more, once what is under way is done.
    pub(crate) fn tidy_later(&mut self) {
        self.erase_at = Some(Instant::now() + GRACE);
    }

    /// When [`Keeper::tidy`] is due.
    pub(crate) fn tidy_due(&self) -> Option<Instant> {
        self.erase_at
    }

    /// Erases what `state`, which every worker has, does not use. Every certificate in memory is looked at.
    pub(crate) fn tidy(&mut self, state: &State) {
        self.erase_at = None;
        if let Err(error) = self.try_tidy(state) {
            tracing::error!("keys that nobody uses any more cannot be erased: {error}");
        }
    }

    fn try_tidy(&mut self, state: &State) -> io::Result<()> {
        let certificates = state.certificates.values().flat_map(|it| it.values()).map(|it| it.place);
        let materials = materials::listed(state).into_iter().flat_map(|(_, places)| places);
        let mut used: Vec<Place> = certificates.chain(materials).collect();
        let (shared, broken) = self.shared(state);
        if broken > 0 {
            tracing::error!("{broken} certificates cannot be had from memory; put them in place again");
        }
        used.extend(shared);
        used.sort_unstable_by_key(|place| place.offset);
        let is_used = |place: &Place| {
            place.length == 0 || used.binary_search_by_key(&place.offset, |used| used.offset).is_ok()
        };
        self.contents.retain(|_, place| is_used(place));
        self.models.retain(|_, place| is_used(place));
        self.known.retain(|_, known| known.places.iter().all(is_used));
        self.vault.erase_all_but(used)
    }

    /// Where that lies which several certificates of `state` need; and how many certificates do not say it any more.
    fn shared(&self, state: &State) -> (HashSet<Place>, usize) {
        let (mut shared, mut broken) = (HashSet::new(), 0);
        for certificate in state.certificates.values().flat_map(|it| it.values()) {
            match self.vault.elsewhere(certificate.place) {
                Ok(places) => shared.extend(places),
                Err(_) => broken += 1,
            }
        }
        (shared, broken)
    }
}

fn beginning(digest: &Whole) -> Short {
    let mut short = Short::default();
    short.copy_from_slice(&digest[..16]);
    short
}

/// What is to be known of something that lies in the vault.
fn found(vault: &Vault, source: &Source, places: [Place; 2]) -> Result<Kept, Error> {
    let mut digests = [Whole::default(); 2];
    if let Source::Certificate(_) = source {
        let stored = vault.certificate(places[0]).map_err(Error::Vault)?;
        let facts = content::facts(&stored.chain).map_err(Error::Sent)?;
        return Ok(Kept { places, digests, facts: Some(facts) });
    }
    for (digest, place) in digests.iter_mut().zip(places).filter(|(_, place)| place.length > 0) {
        *digest = Sha256::digest(vault.read(place).map_err(Error::Vault)?).into();
    }
    Ok(Kept { places, digests, facts: None })
}

/// Has `work` done on every item, on several cores where there are many, and `take` with what it gives, here, as it comes.
///
/// # Errors
/// The first one, at which it stops.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(usize, &T) -> Result<R, Error> + Sync,
    mut take: impl FnMut(usize, R) -> Result<(), Error>,
) -> Result<(), Error> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(items.len().div_ceil(PER_THREAD));
    if threads <= 1 {
        return items.iter().enumerate().try_for_each(|(n, item)| take(n, work(n, item)?));
    }
    let next = AtomicUsize::new(0);
    let (next, work) = (&next, &work);
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(QUEUE);
        for _ in 0..threads {
            let sender = sender.clone();
            scope.spawn(move || {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(n) else { return };
                    // Nobody listens any more after an error.
                    if sender.send((n, work(n, item))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut first = None;
        for (n, done) in &receiver {
            if let Err(error) = done.and_then(|done| take(n, done)) {
                first = Some(error);
                break;
            }
        }
        drop(receiver);
        first.map_or(Ok(()), Err)
    })
}
