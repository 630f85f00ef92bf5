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
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
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
use nix::sys::{
    signal::Signal,
    socket::{getsockopt, sockopt::PeerCredentials},
};
use rustix::{
    fs::Mode,
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    process::umask,
};

use crate::{
    fleet::{
        handle::Handle,
        launch::Launched,
        process::KILL_SLACK,
        record::{self, ProcessRecord},
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
/// Supervisors that may be about to take a worker over at a time.
const BACKLOG: i32 = 8;
/// Names that are tried for one worker: the processes of a worker that may live at a time.
const MAX_NAMES: u32 = 100;

/// The file of an adoption socket. It stays when this is dropped: the process may outlive the supervisor.
pub(crate) struct AdoptionFile {
    path: PathBuf,
}

impl AdoptionFile {
    /// Removes it: the process behind it has ended, or was never started.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(ProcessRecord::path(&self.path));
    }

    /// Writes down which process is behind it, for a supervisor to come. Tries again while the process lives, where there is no room.
    pub(crate) fn note(&self, process: ProcessRecord) {
        if let Err(error) = process.write(&self.path) {
            tracing::warn!(
                worker = process.id,
                "its record {} cannot be written: {error}; until it can, which is tried again and again, a supervisor that has to go on \
                 after this one replaces the worker",
                ProcessRecord::path(&self.path).display()
            );
            tokio::spawn(note_later(self.path.clone(), process));
        }
    }
}

/// Writes down which process is behind an adoption socket, as soon as that can be done and while it lives.
async fn note_later(path: PathBuf, process: ProcessRecord) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        // Looked at in one go with the writing: the file of one that has ended was removed, and must not come back.
        if process.check_alive().is_err() || !path.exists() {
            return;
        }
        if process.write(&path).is_ok() {
            tracing::info!(worker = process.id, "its record is written");
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
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
                return Ok((socket, AdoptionFile { path }));
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
pub(crate) struct Known<'a> {
    pub(crate) trust: Trust,
    /// The listening sockets that workers were given; `None`: that is not known.
    pub(crate) sockets: Option<&'a KnownSockets>,
    pub(crate) roster: &'a Roster,
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
    orders: UnixStream,
    /// Of the process that should be there, and that it is a worker's all the same.
    recorded: Option<(ProcessRecord, Entry)>,
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

/// Takes over every worker process whose adoption socket is beside `command_socket`. What does not answer is left
/// alone, with a warning.
pub(crate) fn find(command_socket: &Path, known: &Known<'_>) -> Found {
    let mut found = Found::default();
    for path in beside(command_socket) {
        match take_over(&path, known, &mut found) {
            Ok(Some(orphan)) => found.orphans.push(orphan),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("the worker behind {} cannot be taken over: {error}", path.display());
            }
        }
    }
    found
}

/// `None` when nobody listens there any more.
fn take_over(path: &Path, known: &Known<'_>, found: &mut Found) -> io::Result<Option<Orphan>> {
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
            AdoptionFile { path: path.to_owned() }.remove();
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

    let taken = receive(path, (orders.try_clone()?, descriptors, inheritance), known);
    let taken = taken.and_then(|orphan| match found.has(&orphan) {
        true => Err(io::Error::other("it says that it is a worker that is there already")),
        false => Ok(orphan),
    });
    if taken.is_err() {
        let recorded = ProcessRecord::read(path).ok().flatten().filter(|it| it.check_alive().is_ok());
        let recorded = recorded.map(|it| (it.pid, it)).map(|(pid, it)| (it, known.roster.enter(pid)));
        found.refused.push(Refused { path: path.to_owned(), orders, recorded });
    }
    taken.map(Some)
}

impl Found {
    /// Whether another one says that it is the same process. Where there are records, none can.
    fn has(&self, orphan: &Orphan) -> bool {
        let place = |it: &Orphan| (it.about.id, it.about.launch);
        self.orphans.iter().any(|it| it.launched.pid == orphan.launched.pid || place(it) == place(orphan))
    }
}

impl Refused {
    /// Tells it to end within `stop_ms`, and the process that should be there, which is killed if it does not: a worker that
    /// nobody leads must not go on beside others, nor stand still with connections in its queues.
    pub(crate) fn dismiss(self, stop_ms: u64) {
        let stop = Envelope::new(0, Order::Stop { deadline_ms: stop_ms });
        // It may be gone, or not listen.
        let mut orders = Patient::new(&self.orders, DISMISS_TIMEOUT);
        let _ = wire::write_message(&mut orders, &stop, limits::MAX_FRAME);
        if let Some((recorded, entry)) = self.recorded
            && let Ok(handle) = Handle::of_process(recorded.pid)
            && recorded.check_alive().is_ok()
        {
            end_within(stop_ms, (handle, entry), Some(AdoptionFile { path: self.path }));
        }
    }

    /// The process that should be there.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.recorded.as_ref().map(|(recorded, _)| recorded.pid)
    }
}

/// Tells a child of this process to end, which is killed if it has not within `stop_ms`.
pub(crate) fn dismiss_child(pid: u32, stop_ms: u64, roster: &Roster) {
    if let Ok(handle) = Handle::of_process(pid)
        && record::is_child(pid)
    {
        end_within(stop_ms, (handle, roster.enter(pid)), None);
    }
}

/// Tells a process to end, kills it if it has not within `stop_ms`, and removes its adoption socket then.
fn end_within(stop_ms: u64, (handle, entry): (Handle, Entry), adoption: Option<AdoptionFile>) {
    handle.signal(Signal::SIGTERM);
    let deadline = Duration::from_millis(stop_ms) + KILL_SLACK;
    tokio::spawn(async move {
        if tokio::time::timeout(deadline, handle.ended()).await.is_err() {
            handle.signal(Signal::SIGKILL);
            // How it has ended is nobody's business.
            let _ = handle.ended().await;
        }
        drop(entry);
        if let Some(adoption) = adoption {
            adoption.remove();
        }
    });
}

impl Orphan {
    /// Has the process end, which is killed if it has not within `stop_ms`.
    pub(crate) fn end_within(self, stop_ms: u64, roster: &Roster) {
        let Launched { pid, handle, adoption, .. } = self.launched;
        end_within(stop_ms, (handle, roster.enter(pid)), Some(adoption));
    }
}

/// Takes what it hands over, and compares it with what is known.
fn receive(
    path: &Path,
    (orders, descriptors, inheritance): (UnixStream, OwnedFd, OwnedFd),
    known: &Known<'_>,
) -> io::Result<Orphan> {
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
    match known.sockets {
        Some(known) => known.check(&sockets)?,
        None if sockets.is_empty() => {}
        None => return Err(io::Error::other("it is not known which listening sockets it was given")),
    }
    let adoption = AdoptionFile { path: path.to_owned() };
    let launched = Launched { pid, handle: handle?, orders, descriptors, inheritance, adoption };
    Ok(Orphan { about: *about, sockets, counters, ended, vault, launched })
}

/// The next report; `None` at the end of the channel. Every report answers an order, so none follows on its heels.
fn answer(orders: &UnixStream) -> io::Result<Option<Report>> {
    let mut decoder = Decoder::new(limits::MAX_FRAME);
    let mut orders = Patient::new(orders, ANSWER_TIMEOUT);
    let report = wire::read_message(&mut orders, &mut decoder).map_err(io::Error::other)?;
    Ok(report.map(|envelope: Envelope<Report>| envelope.body))
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
