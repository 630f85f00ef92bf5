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
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
    fs::Mode,
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    process::umask,
};
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    fleet::{
        dismissed::Dismissed,
        handle::Handle,
        launch::Launched,
        record::{self, ProcessRecord},
        reports,
        roster::{Entry, Roster},
        socket_record::KnownSockets,
    },
    host::listeners::Sockets,
    scm,
};

/// A worker that does not answer for so long is left alone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// So long it may take to take the order to end.
const DISMISS_TIMEOUT: Duration = Duration::from_millis(100);
/// A record that could not be written is tried again after this time, then after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So long the end of a process waits for its record to be written.
const NOTE_PATIENCE: Duration = Duration::from_millis(100);
/// Supervisors that may be about to take a worker over at a time.
const BACKLOG: i32 = 8;
/// Names that are tried for one worker: the processes of a worker that may live at a time.
const MAX_NAMES: u32 = 100;

/// The file of an adoption socket. It stays when this is dropped: the process may outlive the supervisor.
pub(crate) struct AdoptionFile {
    path: PathBuf,
    /// The record beside it is being written.
    noted: Option<JoinHandle<()>>,
    /// It was removed.
    is_gone: Arc<AtomicBool>,
}

impl AdoptionFile {
    fn at(path: PathBuf) -> AdoptionFile {
        AdoptionFile { path, noted: None, is_gone: Arc::default() }
    }

    /// Removes it: the process behind it has ended, or was never started.
    pub(crate) fn remove(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(ProcessRecord::path(&self.path));
    }

    /// The same, not before the record is written that would come behind it; a disk that stands still is not waited for.
    pub(crate) async fn remove_when_noted(&mut self) {
        if let Some(noted) = self.noted.take() {
            let _ = tokio::time::timeout(NOTE_PATIENCE, noted).await;
        }
        self.remove();
    }

    /// Has it written down which process is behind it, for a supervisor to come. Tried again while the process lives, where there is no
    /// room.
    pub(crate) fn note(&mut self, process: ProcessRecord) {
        let note = Arc::new(Note { path: self.path.clone(), process, is_gone: Arc::clone(&self.is_gone) });
        self.noted = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = note.write() {
                tracing::warn!(
                    worker = note.process.id,
                    "its record {} cannot be written: {error}; until it can, which is tried again and again, a supervisor that has to go on \
                     after this one replaces the worker",
                    ProcessRecord::path(&note.path).display()
                );
                tokio::spawn(write_later(note));
            }
        }));
    }
}

/// Which process is behind an adoption socket.
struct Note {
    path: PathBuf,
    process: ProcessRecord,
    /// The socket was removed.
    is_gone: Arc<AtomicBool>,
}

impl Note {
    /// Writes it down as long as the process lives: the file of one that has ended was removed, and must not come back.
    fn write(&self) -> io::Result<()> {
        let is_gone = || self.is_gone.load(Ordering::SeqCst);
        if is_gone() || self.process.check_alive().is_err() || !self.path.exists() {
            return Ok(());
        }
        let written = self.process.write(&self.path);
        if is_gone() {
            // It may have been removed before this was there.
            let _ = fs::remove_file(ProcessRecord::path(&self.path));
        }
        written
    }
}

/// Writes it down as soon as that can be done.
async fn write_later(note: Arc<Note>) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let again = Arc::clone(&note);
        match tokio::task::spawn_blocking(move || again.write()).await {
            Ok(Err(_)) => pause = (pause * 2).min(LONGEST_PAUSE),
            _ if note.is_gone.load(Ordering::SeqCst) => return,
            _ => return tracing::info!(worker = note.process.id, "its record is written"),
        }
    }
}

/// Makes an adoption socket for a process of worker `id`, beside `command_socket`.
///
/// # Errors
/// Those of the file system and of `socket(2)`.
pub(crate) fn listen(command_socket: &Path, id: u32) -> io::Result<(OwnedFd, AdoptionFile)> {
    let socket = socket()?;
    for n in 0..MAX_NAMES {
        let mut name = prefix(command_socket);
        name.push(format!("{id}.{n}"));
        let path = command_socket.with_file_name(name);
        // For its owner only, from the first moment.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = SocketAddrUnix::new(&path).and_then(|address| net::bind(&socket, &address));
        umask(before);
        match bound {
            Ok(()) => {
                net::listen(&socket, BACKLOG)?;
                return Ok((socket, AdoptionFile::at(path)));
            }
            Err(Errno::ADDRINUSE) => {}
            Err(error) => {
                return Err(io::Error::new(
                    io::Error::from(error).kind(),
                    format!("its adoption socket {} cannot be made: {error}", path.display()),
                ));
            }
        }
    }
    Err(io::Error::other("there are too many adoption sockets beside the command socket"))
}

/// Not bound, not blocking.
fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// How the names of all adoption sockets begin.
fn prefix(command_socket: &Path) -> OsString {
    let mut name = command_socket.file_name().unwrap_or_default().to_owned();
    name.push(".w");
    name
}

/// Whether a name behind [`prefix`] is that of a socket: of worker N, its process M.
fn is_of_worker(rest: &[u8]) -> bool {
    let number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    rest.iter()
        .position(|byte| *byte == b'.')
        .is_some_and(|dot| number(&rest[..dot]) && number(&rest[dot + 1..]))
}

/// Whether a file beside `command_socket` with this name is the record of a worker's process.
pub(crate) fn is_record(command_socket: &Path, name: &[u8]) -> bool {
    let rest = name.strip_prefix(prefix(command_socket).as_encoded_bytes());
    rest.and_then(|rest| rest.strip_suffix(b".record")).is_some_and(is_of_worker)
}

/// What is known before anything is asked of workers.
pub(crate) struct Known {
    pub(crate) trust: Trust,
    /// The listening sockets that workers were given; `None`: that is not known.
    pub(crate) sockets: Option<KnownSockets>,
    pub(crate) roster: Roster,
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
        let recorded = beside(command_socket).filter_map(|path| alive(&path));
        let entered = recorded.map(|recorded| roster.enter(recorded.pid)).collect();
        Known { trust: Trust::Recorded, sockets, roster, _entered: entered }
    }

    /// Nothing of that.
    pub(crate) fn nothing(roster: Roster) -> Known {
        Known { trust: Trust::Recorded, sockets: None, roster, _entered: Vec::new() }
    }
}

/// The record of the process behind an adoption socket, if that process is still there.
fn alive(path: &Path) -> Option<ProcessRecord> {
    ProcessRecord::read(path).ok().flatten().filter(|it| it.check_alive().is_ok())
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
    /// Of the process that should be there, and that it is a worker's all the same.
    recorded: Option<Box<(ProcessRecord, Entry)>>,
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
        let unanswered: BTreeSet<PathBuf> = beside(command_socket).collect();
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
                    Err((error, Some(Refused::of(&path, Some(orphan.launched.orders), &self.known.roster))))
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
            found.refused.push(Refused::of(&path, None, &known.roster));
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
    taken.map(Some).map_err(|error| (error, Some(Refused::of(path, Some(orders), &known.roster))))
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
    fn of(path: &Path, orders: Option<UnixStream>, roster: &Roster) -> Refused {
        let recorded = alive(path).map(|it| {
            let entry = roster.enter(it.pid);
            Box::new((it, entry))
        });
        Refused { path: path.to_owned(), orders, recorded }
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
        if let Some((recorded, entry)) = self.recorded.map(|it| *it)
            && let Ok(handle) = Handle::of_process(recorded.pid)
            && recorded.check_alive().is_ok()
        {
            dismissed.add(handle, entry, Some(AdoptionFile::at(self.path)), stop_ms);
        }
    }

    /// The process that should be there.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.recorded.as_ref().map(|it| it.0.pid)
    }
}

/// Tells a child of this process to end, which is killed if it has not within `stop_ms`.
pub(crate) fn dismiss_child(pid: u32, stop_ms: u64, roster: &Roster, dismissed: &mut Dismissed) {
    if let Ok(handle) = Handle::of_process(pid)
        && record::is_child(pid)
    {
        dismissed.add(handle, roster.enter(pid), None, stop_ms);
    }
}

impl Orphan {
    /// Has the process end, which is killed if it has not within `stop_ms`.
    pub(crate) fn dismiss(self, stop_ms: u64, dismissed: &mut Dismissed) {
        let Launched { handle, adoption, .. } = self.launched;
        dismissed.add(handle, self.entry, Some(adoption), stop_ms);
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
    let mut other =
        |kind| others.remove(&kind).ok_or_else(|| io::Error::other(format!("it did not send {kind:?}")));
    let (counters, ended) = (other(DescriptorKind::Counters)?, other(DescriptorKind::Ended)?);
    let Some(Report::Adopted(mut about)) = answer(&orders)? else {
        return Err(io::Error::other("it did not say what it is"));
    };
    // Not before it has said everything: a worker is then under this supervisor, and hears that it is to end.
    let recorded = ProcessRecord::read(path)?;
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
    let adoption = AdoptionFile::at(path.to_owned());
    let launched = Launched { pid, handle: handle?, orders, descriptors, inheritance, adoption };
    let entry = known.roster.enter(pid);
    Ok(Orphan { about: *about, sockets, counters, ended, vault, launched, entry })
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
    fn only_the_whole_name_is_that_of_a_worker_of_this_instance() {
        for (name, is_one) in [
            ("0.0", true),
            ("12.99", true),
            ("0.0.record", false),
            ("0.", false),
            (".0", false),
            ("", false),
            // Of an instance whose command socket is `kakehi.sock.www`.
            ("ww.w0.0", false),
        ] {
            assert_eq!(is_of_worker(name.as_bytes()), is_one, "{name}");
        }
        let socket = Path::new("/run/kakehi.sock");
        assert!(is_record(socket, b"kakehi.sock.w0.12.record"));
        for name in ["kakehi.sock.w0.12", "kakehi.sock.www.w0.12.record", "w0.12.record", "kakehi.sock.state"]
        {
            assert!(!is_record(socket, name.as_bytes()), "{name}");
        }
    }
}
