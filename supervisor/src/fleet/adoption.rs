//! Workers that another supervisor has left behind, because it died or because this one takes its place.
//!
//! Each worker listens on an adoption socket from its start: a unix socket beside the command socket, named after that
//! and the worker, so that a new supervisor finds all workers of the old one, and knows how many there are. The
//! supervisor makes the socket and removes its file when the process has ended. A file that nobody listens behind
//! belongs to a process that was killed while there was no supervisor.
//!
//! What a worker hands over is compared with what the supervisor that started it has written down ([`super::record`],
//! [`super::socket_record`]). One that does not fit is told to end, and is no worker of this supervisor.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{Adopted, Envelope, Order, Report},
    wire::{self, Decoder},
};
use kakehi_engine::{
    ring,
    worker::{AdoptRequest, DescriptorKind, Patient},
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::{
    io::Errno,
    net::{self, SocketAddrUnix},
};
use tokio::task::JoinSet;

use crate::{
    fleet::{
        adoption_file::{AdoptionFile, is_of_worker, prefix, socket},
        dismissed::Dismissed,
        handle::Handle,
        launch::Launched,
        record::{self, Identity, ProcessRecord},
        reports,
        roster::{Entry, Roster},
        socket_record::KnownSockets,
    },
    host::listeners::{self, Sockets},
    scm,
};

/// A worker that does not answer for so long is left alone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// So long it may take to take the order to end.
const DISMISS_TIMEOUT: Duration = Duration::from_millis(100);

/// What is known before anything is asked of workers.
pub(crate) struct Known {
    pub(crate) trust: Trust,
    /// The listening sockets that workers were given; `None`: that is not known.
    pub(crate) sockets: Option<KnownSockets>,
    pub(crate) roster: Roster,
    /// The processes that a program knows which was in the place of this one, by the names of their adoption sockets: also those whose
    /// records no disk has taken.
    pub(crate) records: BTreeMap<OsString, ProcessRecord>,
    /// The names of the adoption sockets of processes that were told to end before, and are seen to.
    pub(crate) ending: BTreeSet<OsString>,
    /// The processes that may be workers, as long as it is looked which are.
    pub(crate) _entered: Vec<Entry>,
}

impl Known {
    /// What a supervisor that is no more has written down beside its command socket.
    pub(crate) fn read(command_socket: &Path, roster: Roster) -> Known {
        let sockets = KnownSockets::read(command_socket).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        let nothing = Known::nothing(roster.clone());
        let recorded = beside(command_socket).filter_map(|path| nothing.alive_at(&path));
        let entered = recorded.map(|recorded| roster.enter(recorded.pid)).collect();
        Known { sockets, _entered: entered, ..Known::nothing(roster) }
    }

    /// Nothing of that.
    pub(crate) fn nothing(roster: Roster) -> Known {
        Known {
            trust: Trust::Recorded,
            sockets: None,
            roster,
            records: BTreeMap::new(),
            ending: BTreeSet::new(),
            _entered: Vec::new(),
        }
    }

    /// Which process is behind an adoption socket; `None` where nobody has written it down.
    ///
    /// # Errors
    /// When its record is not what a supervisor of ours writes.
    fn process_at(&self, path: &Path) -> io::Result<Option<ProcessRecord>> {
        let told = path.file_name().and_then(|name| self.records.get(name));
        told.map_or_else(|| ProcessRecord::read(path), |told| Ok(Some(told.clone())))
    }

    /// The same, if that process is still there.
    fn alive_at(&self, path: &Path) -> Option<ProcessRecord> {
        self.process_at(path).ok().flatten().filter(|it| it.check_alive().is_ok())
    }
}

/// Of whom it is believed that they are workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Processes of which there is a record.
    Recorded,
    /// These, and children of this process: those of a program that was executed in this one's place before there were records.
    Children,
}

/// A worker process that was found, and what it gave.
pub(crate) struct Orphan {
    pub(crate) about: Adopted,
    pub(crate) sockets: Sockets,
    pub(crate) counters: OwnedFd,
    pub(crate) ended: OwnedFd,
    /// A worker of a program from before there were certificates has none.
    pub(crate) vault: Option<OwnedFd>,
    /// Where it counts together with the others.
    pub(crate) ledger: Option<OwnedFd>,
    pub(crate) launched: Launched,
    pub(crate) entry: Entry,
}

/// What there was beside the command socket.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) orphans: Vec<Orphan>,
    /// What was not taken over. It may still serve: it is told to end when others do.
    pub(crate) refused: Vec<Refused>,
}

/// What is behind an adoption socket, and is no worker of this supervisor.
pub(crate) struct Refused {
    path: PathBuf,
    /// The channel that it was offered; `None`: it may not have come to that.
    orders: Option<UnixStream>,
    /// The process that should be there, and that it is a worker's all the same.
    process: Option<Box<(Identity, AdoptionFile, Entry)>>,
}

/// The adoption sockets beside `command_socket`.
fn beside(command_socket: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = match command_socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let prefix = prefix(command_socket);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(move |entry| {
        entry.file_name().as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes()).is_some_and(is_of_worker)
            && entry.file_type().is_ok_and(|kind| std::os::unix::fs::FileTypeExt::is_socket(&kind))
    });
    ours.map(|entry| entry.path())
}

/// Whether a worker process runs that a supervisor with this command socket has started.
pub(crate) fn is_anybody_there(command_socket: &Path) -> bool {
    beside(command_socket).any(|path| {
        let recorded = ProcessRecord::read(&path);
        recorded.is_ok_and(|recorded| recorded.is_some_and(|recorded| recorded.check_alive().is_ok()))
    })
}

/// What became of one that was asked to come under this supervisor; nothing when nobody listens there any more.
type Taken = Result<Option<Orphan>, (io::Error, Option<Refused>)>;

/// The taking over of every worker process whose adoption socket is beside a command socket. Each is waited for on a thread of its
/// own, so that those that stand still cost the time of one.
pub(crate) struct Search {
    running: JoinSet<(PathBuf, Taken)>,
    unanswered: BTreeSet<PathBuf>,
    known: Arc<Known>,
    found: Found,
}

impl Search {
    /// Begins it beside `command_socket`.
    pub(crate) fn begin(command_socket: &Path, known: Known) -> Search {
        let known = Arc::new(known);
        let is_ending = |path: &PathBuf| path.file_name().is_some_and(|name| known.ending.contains(name));
        let unanswered: BTreeSet<PathBuf> = beside(command_socket).filter(|path| !is_ending(path)).collect();
        let mut running = JoinSet::new();
        for path in unanswered.clone() {
            let known = Arc::clone(&known);
            running.spawn_blocking(move || {
                let taken = take_over(&path, &known);
                (path, taken)
            });
        }
        Search { running, unanswered, known, found: Found::default() }
    }

    /// Waits until all have answered, or have not in time. May be given up at any time without loss.
    pub(crate) async fn complete(&mut self) {
        while let Some(ended) = self.running.join_next().await {
            // It cannot fail but by a panic, which ends the program.
            let Ok((path, taken)) = ended else { continue };
            self.unanswered.remove(&path);
            let taken = match taken {
                Ok(Some(orphan)) if self.found.has(&orphan) => {
                    let error = io::Error::other("it says that it is a worker that is there already");
                    Err((error, Some(Refused::of(&path, Some(orphan.launched.orders), &self.known))))
                }
                taken => taken,
            };
            match taken {
                Ok(orphan) => self.found.orphans.extend(orphan),
                Err((error, refused)) => {
                    tracing::warn!("the worker behind {} cannot be taken over: {error}", path.display());
                    self.found.refused.extend(refused);
                }
            }
        }
    }

    /// What was found. Those that have not answered by now are no workers of this supervisor.
    pub(crate) fn end(self) -> Found {
        let Search { unanswered, mut found, known, .. } = self;
        for path in unanswered {
            tracing::warn!("the worker behind {} is not waited for any longer", path.display());
            found.refused.push(Refused::of(&path, None, &known));
        }
        found
    }
}

/// What does not answer is left alone.
fn take_over(path: &Path, known: &Known) -> Taken {
    let offered = offer(path).map_err(|error| (error, None))?;
    let Some((orders, descriptors, inheritance)) = offered else { return Ok(None) };
    let channels = orders.try_clone().map(|orders| (orders, descriptors, inheritance));
    let taken = channels.and_then(|channels| receive(path, channels, known));
    taken.map(Some).map_err(|error| (error, Some(Refused::of(path, Some(orders), known))))
}

/// The ends of the supervisor of what a worker is offered: orders, listening sockets, and what it hands over.
type Channels = (UnixStream, OwnedFd, OwnedFd);

/// Asks the worker behind an adoption socket to come under this supervisor. `None` when nobody listens there any more.
fn offer(path: &Path) -> io::Result<Option<Channels>> {
    let own = rustix::process::geteuid().as_raw();
    // Before anything is said to whoever it is.
    let owner = fs::symlink_metadata(path)?.uid();
    if owner != own {
        return Err(io::Error::other(format!("it belongs to uid {owner}")));
    }
    let connection = socket()?;
    match net::connect(&connection, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED) => {
            AdoptionFile::at(path.to_owned()).remove();
            return Ok(None);
        }
        // The command socket of an instance with such a name.
        Err(Errno::PROTOTYPE) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Not by rustix, which has no place for the number 0: that of a process outside of our namespace.
    let peer = getsockopt(&connection, PeerCredentials)?;
    if peer.uid() != own {
        return Err(io::Error::other(format!("it belongs to uid {}", peer.uid())));
    }
    let (orders, their_orders) = scm::streams()?;
    let (descriptors, their_descriptors) = scm::pair()?;
    let (inheritance, successor) = scm::pair()?;
    let request = serde_json::to_string(&AdoptRequest::new())?;
    let channels = [their_orders.into(), their_descriptors, successor];
    ring::send_descriptors(&connection, &request, &channels)?;
    drop(channels);
    Ok(Some((orders, descriptors, inheritance)))
}

impl Found {
    /// Whether another one says that it is the same process. Where there are records, none can.
    fn has(&self, orphan: &Orphan) -> bool {
        let place = |it: &Orphan| (it.about.id, it.about.launch);
        self.orphans.iter().any(|it| it.launched.pid == orphan.launched.pid || place(it) == place(orphan))
    }
}

impl Refused {
    fn of(path: &Path, orders: Option<UnixStream>, known: &Known) -> Refused {
        let recorded = known.alive_at(path).map(|it| (it.identity(), AdoptionFile::of(path.to_owned(), it)));
        let process = recorded.or_else(|| {
            let listens = listener_at(path, known)?;
            Some((listens, AdoptionFile::at(path.to_owned())))
        });
        let process = process.map(|(process, adoption)| {
            let entry = known.roster.enter(process.pid);
            Box::new((process, adoption, entry))
        });
        Refused { path: path.to_owned(), orders, process }
    }

    /// Whether the process is there that should be.
    pub(crate) fn lives(&self) -> bool {
        self.process.as_ref().is_some_and(|it| it.0.check_alive().is_ok())
    }

    /// Tells it to end within `stop_ms`, and the process that should be there, which is killed if it does not: a worker that
    /// nobody leads must not go on beside others, nor stand still with connections in its queues.
    pub(crate) fn dismiss(self, stop_ms: u64, dismissed: &mut Dismissed) {
        let stop = Envelope::new(0, Order::Stop { deadline_ms: stop_ms });
        if let Some(orders) = &self.orders {
            // It may be gone, or not listen.
            let mut orders = Patient::new(orders, DISMISS_TIMEOUT);
            let _ = wire::write_message(&mut orders, &stop, limits::MAX_FRAME);
        }
        let Some((process, adoption, entry)) = self.process.map(|it| *it) else {
            return tracing::warn!("who listens behind {} cannot be found out", self.path.display());
        };
        // Opened before it is looked at: its number may become that of another.
        if let Ok(handle) = Handle::of_process(process.pid)
            && process.check_alive().is_ok()
        {
            dismissed.add(process, handle, entry, Some(adoption), stop_ms);
        }
    }

    /// The process that should be there.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|it| it.0.pid)
    }
}

/// The one process of kakehi's program that listens behind an adoption socket of ours, where nobody has written down which it is. None
/// where several do: one may have given the socket to another.
fn listener_at(path: &Path, known: &Known) -> Option<Identity> {
    fs::symlink_metadata(path).ok().filter(|it| it.uid() == rustix::process::geteuid().as_raw())?;
    let table = fs::read("/proc/net/unix").ok()?;
    let sockets = listening_in(&table, path);
    let [_] = sockets[..] else { return None };
    let mut holders = listeners::holders(&sockets);
    let pid = holders.next()?;
    let is_alone = holders.next().is_none();
    let is_known = pid == std::process::id() || known.roster.worker_of(pid).is_some();
    // Whose number is taken now has the socket still.
    let process = Identity::of(pid).ok()?;
    let is_worker = program_of(pid).is_some_and(|name| Some(name) == program_of(std::process::id()));
    (is_alone && !is_known && is_worker && listeners::holds(pid, &sockets)).then_some(process)
}

/// The name of the program that a process runs, which may have been replaced on the disk.
fn program_of(pid: u32) -> Option<OsString> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.as_encoded_bytes();
    Some(OsString::from_vec(name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec()))
}

/// The inodes of sockets that listen at a path, in the text of `/proc/net/unix`.
fn listening_in(table: &[u8], path: &Path) -> Vec<u64> {
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    let sockets = lines.filter_map(|line| {
        let (place, bound) = line.split_at(line.iter().position(|byte| *byte == b'/')?);
        let mut columns = std::str::from_utf8(place).ok()?.split_whitespace().skip(3);
        // `__SO_ACCEPTCON`
        let listens = columns.next() == Some("00010000");
        let inode = columns.nth(2)?.parse().ok()?;
        // An abstract name is none in the folder.
        if columns.next().is_some() {
            return None;
        }
        (listens && bound == path.as_os_str().as_encoded_bytes()).then_some(inode)
    });
    sockets.collect()
}

/// Tells a child of this process to end, which is killed if it has not within `stop_ms`.
pub(crate) fn dismiss_child(pid: u32, stop_ms: u64, roster: &Roster, dismissed: &mut Dismissed) {
    if let Ok(handle) = Handle::of_process(pid)
        && record::is_child(pid)
        && let Ok(process) = Identity::of(pid)
    {
        dismissed.add(process, handle, roster.enter(pid), None, stop_ms);
    }
}

impl Orphan {
    /// Has the process end, which is killed if it has not within `stop_ms`.
    pub(crate) fn dismiss(self, stop_ms: u64, dismissed: &mut Dismissed) {
        let Launched { pid, handle, adoption, .. } = self.launched;
        // It has ended otherwise.
        if let Ok(process) = Identity::of(pid) {
            dismissed.add(process, handle, self.entry, Some(adoption), stop_ms);
        }
    }
}

/// Takes what it hands over, and compares it with what is known.
fn receive(path: &Path, (orders, descriptors, inheritance): Channels, known: &Known) -> io::Result<Orphan> {
    let mut sockets = Sockets::new();
    let mut others = BTreeMap::new();
    let handed_over = scm::receive(&descriptors, ANSWER_TIMEOUT).map_err(|error| match error {
        // It may say why.
        scm::Error::Ended => match answer(&orders) {
            Ok(Some(Report::Failed { reason })) => io::Error::other(reason),
            _ => io::Error::other(error),
        },
        error => io::Error::other(error),
    })?;
    for (kind, descriptor) in handed_over {
        match kind {
            DescriptorKind::Listener(which) => sockets.push((which, descriptor)),
            other => drop(others.insert(other, descriptor)),
        }
    }
    let vault = others.remove(&DescriptorKind::Vault);
    let ledger = others.remove(&DescriptorKind::Ledger);
    let mut other =
        |kind| others.remove(&kind).ok_or_else(|| io::Error::other(format!("it did not send {kind:?}")));
    let (counters, ended) = (other(DescriptorKind::Counters)?, other(DescriptorKind::Ended)?);
    let Some(Report::Adopted(mut about)) = answer(&orders)? else {
        return Err(io::Error::other("it did not say what it is"));
    };
    // Not before it has said everything: a worker is then under this supervisor, and hears that it is to end.
    let recorded = known.process_at(path)?;
    if recorded.is_none() && known.trust == Trust::Recorded {
        return Err(io::Error::other("no supervisor has written down that it started it"));
    }
    // Opened here, before its number is looked at: a number alone may become that of another process.
    let pid = recorded.as_ref().map_or(about.pid, |recorded| recorded.pid);
    let handle = Handle::of_process(pid);
    match &recorded {
        Some(recorded) => {
            recorded.check_alive()?;
            recorded.check_memory(&counters, &ended, vault.as_ref())?;
            ledger.as_ref().map_or(Ok(()), |ledger| recorded.check_ledger(ledger))?;
            recorded.check_words(&mut about)?;
        }
        None => record::check_child(&about)?,
    }
    // Nobody uses those of one that leaves.
    sockets.retain(|_| !about.leaving);
    match &known.sockets {
        Some(known) => known.check(&sockets)?,
        None if sockets.is_empty() => {}
        None => return Err(io::Error::other("it is not known which listening sockets it was given")),
    }
    let mut adoption = AdoptionFile::at(path.to_owned());
    if let Some(recorded) = recorded {
        // The program before may not have come to write it.
        match ProcessRecord::read(path) {
            Ok(Some(there)) if there == recorded => adoption = AdoptionFile::of(path.to_owned(), recorded),
            _ => adoption.note(recorded),
        }
    }
    let launched = Launched { pid, handle: handle?, orders, descriptors, inheritance, adoption };
    let entry = known.roster.enter(pid);
    Ok(Orphan { about: *about, sockets, counters, ended, vault, ledger, launched, entry })
}

/// The next report; `None` at the end of the channel. Every report answers an order, so none follows on its heels.
fn answer(orders: &UnixStream) -> io::Result<Option<Report>> {
    let mut decoder = Decoder::new(limits::MAX_REPORT_FRAME);
    let mut orders = Patient::new(orders, ANSWER_TIMEOUT);
    let report = wire::read_message(&mut orders, &mut decoder).map_err(io::Error::other)?;
    Ok(report.map(|envelope: Envelope<Report>| reports::bounded(envelope.body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_listen_at_the_path_are_found() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 11 /run/k.sock.w0.0\n\
            0000000000000000: 00000003 00000000 00000000 0005 03 12 /run/k.sock.w0.0\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 13 /run/k.sock.w0.01\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 14\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 15 @/run/k.sock.w0.0\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 1\xff6 /run/k.sock.w0.0\n\
            nonsense /run/k.sock.w0.0\n";
        assert_eq!(listening_in(table, Path::new("/run/k.sock.w0.0")), [11]);
        assert!(listening_in(b"", Path::new("/run/k.sock.w0.0")).is_empty());
    }

    #[test]
    fn whoever_listens_where_nobody_has_written_down_who_it_is_is_not_this_process_nor_a_worker_that_is_known()
     {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.sock.w0.0");
        let _listens = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let table = fs::read("/proc/net/unix").unwrap();
        assert_eq!(listening_in(&table, &path).len(), 1);
        assert_eq!(listener_at(&path, &Known::nothing(Roster::default())), None);
    }
}
