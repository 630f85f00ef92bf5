//! Workers that another supervisor has left behind, because it died or because this one takes its place.
//!
//! Each worker listens on an adoption socket from its start: a unix socket beside the command socket, named after that
//! and the worker, so that a new supervisor finds all workers of the old one, and knows how many there are. The
//! supervisor makes the socket and removes its file when the process has ended. A file that nobody listens behind
//! belongs to a process that was killed while there was no supervisor.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{Adopted, Envelope, Order, PROTOCOL_VERSION, Report},
    state::State,
    wire::{self, Decoder},
};
use kakehi_engine::{
    ring,
    worker::{AdoptRequest, DescriptorKind, Patient},
};
use nix::sys::{
    socket::{getsockopt, sockopt::PeerCredentials},
    stat::{Mode, umask},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{handle::Handle, launch::Launched, listeners::Sockets};
use crate::scm;

/// A worker that does not answer for so long is left alone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Supervisors that may be about to take a worker over at a time.
const BACKLOG: i32 = 8;
/// Names that are tried for one worker: the processes of a worker that may live at a time.
const MAX_NAMES: u32 = 100;

/// The file of an adoption socket. It stays when this is dropped: the process may outlive the supervisor.
pub(super) struct AdoptionFile {
    path: PathBuf,
}

impl AdoptionFile {
    /// Removes it: the process behind it has ended, or was never started.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes an adoption socket for a process of worker `id`, beside `command_socket`.
///
/// # Errors
/// Those of the file system and of `socket(2)`.
pub(super) fn listen(command_socket: &Path, id: u32) -> io::Result<(OwnedFd, AdoptionFile)> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
    for n in 0..MAX_NAMES {
        let mut name = prefix(command_socket);
        name.push(format!("{id}.{n}"));
        let path = command_socket.with_file_name(name);
        // For its owner only, from the first moment.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = SockAddr::unix(&path).and_then(|address| socket.bind(&address));
        umask(before);
        match bound {
            Ok(()) => {
                socket.listen(BACKLOG)?;
                return Ok((socket.into(), AdoptionFile { path }));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("its adoption socket {} cannot be made: {error}", path.display()),
                ));
            }
        }
    }
    Err(io::Error::other("there are too many adoption sockets beside the command socket"))
}

/// How the names of all adoption sockets begin.
fn prefix(command_socket: &Path) -> OsString {
    let mut name = command_socket.file_name().unwrap_or_default().to_owned();
    name.push(".w");
    name
}

/// A worker process that was found, and what it gave.
pub(super) struct Orphan {
    pub(super) about: Adopted,
    pub(super) sockets: Sockets,
    pub(super) counters: OwnedFd,
    pub(super) ended: OwnedFd,
    /// A worker of a program from before there were certificates has none.
    pub(super) vault: Option<OwnedFd>,
    pub(super) launched: Launched,
}

/// Takes over every worker process whose adoption socket is beside `command_socket`. What does not answer is left
/// alone, with a warning.
pub(super) fn find(command_socket: &Path) -> Vec<Orphan> {
    let folder = match command_socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let prefix = prefix(command_socket);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes())
            && entry.file_type().is_ok_and(|kind| std::os::unix::fs::FileTypeExt::is_socket(&kind))
    });
    let mut orphans = Vec::new();
    for path in ours.map(|entry| entry.path()) {
        match take_over(&path) {
            Ok(Some(orphan)) => orphans.push(orphan),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("the worker behind {} cannot be taken over: {error}", path.display());
            }
        }
    }
    orphans
}

/// `None` when nobody listens there any more.
fn take_over(path: &Path) -> io::Result<Option<Orphan>> {
    let connection = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
    match connection.connect(&SockAddr::unix(path)?) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let peer = getsockopt(&connection, PeerCredentials)?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to uid {}", peer.uid())));
    }
    let (orders, their_orders) = scm::streams()?;
    let (descriptors, their_descriptors) = scm::pair()?;
    let (inheritance, successor) = scm::pair()?;
    let request = serde_json::to_string(&AdoptRequest { protocol: PROTOCOL_VERSION })?;
    let channels = [their_orders.into(), their_descriptors, successor];
    ring::send_descriptors(&connection, &request, &channels)?;
    drop(channels);

    let mut sockets = Sockets::new();
    let mut others = BTreeMap::new();
    for (kind, descriptor) in scm::receive(&descriptors, ANSWER_TIMEOUT).map_err(io::Error::other)? {
        match kind {
            DescriptorKind::Listener(which) => sockets.push((which, descriptor)),
            other => drop(others.insert(other, descriptor)),
        }
    }
    let vault = others.remove(&DescriptorKind::Vault);
    let mut other =
        |kind| others.remove(&kind).ok_or_else(|| io::Error::other(format!("it did not send {kind:?}")));
    let (counters, ended) = (other(DescriptorKind::Counters)?, other(DescriptorKind::Ended)?);
    let handle = Handle::new(other(DescriptorKind::Process)?)?;
    let Some(Report::Adopted(about)) = answer(&orders)? else {
        return Err(io::Error::other("it did not say what it is"));
    };
    let adoption = AdoptionFile { path: path.to_owned() };
    let launched = Launched { pid: about.pid, handle, orders, descriptors, inheritance, adoption };
    Ok(Some(Orphan { about: *about, sockets, counters, ended, vault, launched }))
}

impl Orphan {
    /// What it serves.
    ///
    /// # Errors
    /// When it does not answer, or with nonsense.
    pub(super) fn state(&self) -> io::Result<State> {
        let order = Envelope::new(0, Order::TellState);
        let mut orders = Patient::new(&self.launched.orders, ANSWER_TIMEOUT);
        wire::write_message(&mut orders, &order, limits::MAX_FRAME).map_err(io::Error::other)?;
        let received = scm::receive(&self.launched.descriptors, ANSWER_TIMEOUT).map_err(io::Error::other)?;
        match (answer(&self.launched.orders)?, received.into_iter().next()) {
            (Some(Report::Done), Some((DescriptorKind::State, memory))) => {
                crate::worker_main::read_state(memory)
            }
            _ => Err(io::Error::other("it did not send its state")),
        }
    }
}

/// The next report; `None` at the end of the channel. Every report answers an order, so none follows on its heels.
fn answer(orders: &UnixStream) -> io::Result<Option<Report>> {
    let mut decoder = Decoder::new(limits::MAX_FRAME);
    let mut orders = Patient::new(orders, ANSWER_TIMEOUT);
    let report = wire::read_message(&mut orders, &mut decoder).map_err(io::Error::other)?;
    Ok(report.map(|envelope: Envelope<Report>| envelope.body))
}
