//! The hidden command `worker`: takes what the supervisor left in known descriptors and hands it to the engine.
//!
//! Relies on the supervisor having put the descriptors in their places. Promises that the
//! supervisor learns why, in a report, when a worker cannot even begin.

use std::{
    cell::RefCell,
    io::{self, Read as _, Seek as _},
    os::{
        fd::{BorrowedFd, OwnedFd, RawFd},
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use command_fds::inherited::take_fd_ownership;
use kakehi_ctl::{
    layers::ByHand,
    limits,
    order::{Program, Report},
    state::{STATE_VERSION, Settings, State},
};
use kakehi_engine::{
    ledger::Ledger,
    observe::Counters,
    ring::Level,
    tls::Vault,
    worker::{self, DescriptorChannel, DescriptorKind, End, Identity, Setup},
};
use nix::unistd::{Group, User, getegid, geteuid};

use crate::{logging, scm, sys};

/// Exit code of a stop that cut something that was in flight: of the worker that did, and then of the supervisor.
pub(crate) const EXIT_CUT: u8 = 3;
/// Where a worker finds its order channel.
pub(crate) const ORDERS: RawFd = 3;
/// Where it finds the socket over which its listeners come.
pub(crate) const DESCRIPTORS: RawFd = 4;
/// Where it finds the memory of its counters.
pub(crate) const COUNTERS: RawFd = 5;
/// Where it finds the state that it starts from.
pub(crate) const STATE: RawFd = 6;
/// Where it finds the channel to the process that may take its place.
pub(crate) const SUCCESSOR: RawFd = 7;
/// Where it finds the channel from the process whose place it takes, if there is one.
pub(crate) const PREDECESSOR: RawFd = 8;

/// Where it finds the socket over which another supervisor takes it over.
pub(crate) const ADOPTION: RawFd = 9;
/// Where it finds the memory of what processes before it counted.
pub(crate) const ENDED: RawFd = 10;
/// Where it finds the memory in which certificates and ticket keys lie.
pub(crate) const VAULT: RawFd = 11;
/// Where it finds the memory in which all workers count together, if there is any.
pub(crate) const LEDGER: RawFd = 12;
/// Where it finds what probes found of backends, if there is anything.
pub(crate) const VERDICTS: RawFd = 13;
/// Where it finds what the DNS says of names of backends, if there is anything.
pub(crate) const NAMES: RawFd = 14;

/// How long the listening sockets may take that a worker starts with: the supervisor sends them after the start.
const SOCKETS_PATIENCE: Duration = Duration::from_millis(limits::WORKER_READY_TIMEOUT_MS);

/// Why a worker could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("descriptor {0} is missing: `kakehi worker` is started by `kakehi start` only")]
    Descriptor(RawFd),
    #[error("the order channel cannot be duplicated: {0}")]
    Orders(io::Error),
    #[error("the counters cannot be mapped: {0}")]
    Counters(io::Error),
    #[error("the state cannot be read: {0}")]
    State(io::Error),
    #[error("the state has version {found}, this program reads version {STATE_VERSION}")]
    StateVersion { found: u32 },
    #[error("there is no user `{0}` (`user`)")]
    NoUser(String),
    #[error("there is no group `{0}` (`group`)")]
    NoGroup(String),
    #[error("certificates cannot be had from memory: {0}")]
    Vault(io::Error),
    #[error(transparent)]
    Listeners(#[from] scm::Error),
}

/// Which process of which worker this is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Place {
    /// Its place in the row of workers.
    #[arg(long)]
    id: u32,
    /// Which of the worker's processes, counted from 1.
    #[arg(long)]
    launch: u64,
    /// The core to run on.
    #[arg(long)]
    core: Option<usize>,
    /// Whether the process before hands its connections over.
    #[arg(long)]
    inherits: bool,
}

/// Runs one worker until it has drained, or has cut what did not end in time; its whole life.
pub(crate) fn run(Place { id, launch, core, inherits }: Place) -> ExitCode {
    name_process(id);
    let orders = match take(ORDERS) {
        Ok(orders) => UnixStream::from(orders),
        Err(error) => {
            logging::complain(error);
            return ExitCode::FAILURE;
        }
    };
    let setup = match receive(Place { id, launch, core, inherits }, &orders) {
        Ok(setup) => setup,
        Err(error) => {
            report_failure(&orders, &error);
            return ExitCode::FAILURE;
        }
    };
    // The engine owns the channel from here: the supervisor must see its end when the worker closes it.
    drop(orders);
    let span = tracing::error_span!("kakehi", worker = id);
    let _entered = span.enter();
    match worker::run(setup) {
        Ok(End::Drained) => ExitCode::SUCCESS,
        Ok(End::Cut) => ExitCode::from(EXIT_CUT),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn receive(place: Place, orders: &UnixStream) -> Result<Setup, Error> {
    let Place { id, launch, core, inherits } = place;
    let (counters, counters_memory) = Counters::adopt(take(COUNTERS)?).map_err(Error::Counters)?;
    counters.reset_gauges();
    let mut state = parse_state(take(STATE)?)?;
    // A worker serves, whoever wanted it.
    state.by_hand = ByHand::default();
    sys::give_memory_back();
    logging::open_for_worker(&state.settings.log_level);
    if let Err(error) = sys::ignore_hangup() {
        tracing::warn!(worker = id, "SIGHUP cannot be ignored: {error}");
    }
    let descriptors = take(DESCRIPTORS)?;
    let listeners =
        scm::receive(&descriptors, SOCKETS_PATIENCE)?.into_iter().filter_map(|(kind, socket)| match kind {
            DescriptorKind::Listener(which) => Some((which, socket)),
            _ => None,
        });
    let listeners = listeners.collect();
    let channel = Rc::new(Channel { socket: RefCell::new(descriptors) });
    let orders = orders.try_clone().map_err(Error::Orders)?.into();
    let successor = take(SUCCESSOR)?;
    // A supervisor from before there was a vault, which only tries whether this program comes up, has none.
    let vault = match take(VAULT) {
        Ok(vault) => Vault::adopt(vault).map_err(Error::Vault)?,
        Err(_) => Vault::create().map_err(Error::Vault)?,
    };
    let ledger = ledger();
    let verdicts = take(VERDICTS).map(read_list).unwrap_or_default();
    let names = take(NAMES).map(read_list).unwrap_or_default();
    let predecessor = inherits.then(|| take(PREDECESSOR)).transpose()?;
    // The supervisor has looked at it.
    let from_environment = level_from_environment().ok().flatten();
    let level = from_environment.or_else(|| state.settings.io_uring_level.and_then(Level::new));
    Ok(Setup {
        identity: identity(&state.settings)?,
        level: level.unwrap_or(Level::HIGHEST),
        set_log_level: logging::set_level,
        id,
        core,
        state,
        listeners,
        orders,
        counters,
        successor,
        predecessor,
        channel,
        adoption: take(ADOPTION)?,
        counters_memory,
        ended_memory: take(ENDED)?,
        ledger,
        vault,
        verdicts,
        names,
        launch,
        program: this_program(),
    })
}

/// `KAKEHI_IO_URING_LEVEL`, which goes before the key `io_uring_level`.
///
/// # Errors
/// What it is set to, when that is anything but 0 to 4.
pub(crate) fn level_from_environment() -> Result<Option<Level>, String> {
    let Some(text) = std::env::var_os("KAKEHI_IO_URING_LEVEL").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let level = text.to_str().and_then(|text| text.parse().ok()).and_then(Level::new);
    level.map(Some).ok_or_else(|| text.to_string_lossy().into_owned())
}

/// Whom the settings have this process become, if it is not that already.
///
/// # Errors
/// When there is no such user or group.
pub(crate) fn identity(settings: &Settings) -> Result<Option<Identity>, Error> {
    let Settings { user, group, .. } = settings;
    let named = user.as_deref().map(|name| match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        _ => Err(Error::NoUser(name.to_owned())),
    });
    let named = named.transpose()?;
    let named_group = group.as_deref().map(|name| match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(Error::NoGroup(name.to_owned())),
    });
    let (user, group) = (
        named.as_ref().map_or_else(geteuid, |user| user.uid),
        named_group.transpose()?.or(named.map(|user| user.gid)).unwrap_or_else(getegid),
    );
    Ok(((user, group) != (geteuid(), getegid())).then_some(Identity { user, group }))
}

/// Which program this process runs.
pub(crate) fn this_program() -> Program {
    // Behind the link is the file that runs, even after another has taken its name.
    let file = std::fs::metadata("/proc/self/exe").map(|file| (file.dev(), file.ino()));
    Program { version: env!("CARGO_PKG_VERSION").to_owned(), file: file.unwrap_or_default() }
}

/// The descriptor channel of the supervisor of the moment.
struct Channel {
    socket: RefCell<OwnedFd>,
}

impl DescriptorChannel for Channel {
    fn receive(&self) -> io::Result<Vec<(DescriptorKind, OwnedFd)>> {
        // What an order speaks of was sent before it, so it is there.
        scm::receive(&*self.socket.borrow(), Duration::ZERO).map_err(|error| match error {
            scm::Error::Io(error) => error,
            scm::Error::Ended => io::ErrorKind::UnexpectedEof.into(),
            malformed @ scm::Error::Malformed(_) => io::Error::new(io::ErrorKind::InvalidData, malformed),
        })
    }

    fn send(&self, descriptors: &[(DescriptorKind, BorrowedFd<'_>)]) -> io::Result<usize> {
        scm::send_some(&*self.socket.borrow(), descriptors, Duration::ZERO).map_err(|error| match error {
            scm::Error::Io(error) => error,
            other => io::Error::other(other),
        })
    }

    fn replace(&self, channel: OwnedFd) {
        self.socket.replace(channel);
    }
}

fn take(descriptor: RawFd) -> Result<OwnedFd, Error> {
    take_fd_ownership(descriptor).map_err(|_| Error::Descriptor(descriptor))
}

/// The state in `memory`.
///
/// # Errors
/// When it is of another version, or none.
pub(crate) fn read_state(memory: OwnedFd) -> io::Result<State> {
    parse_state(memory).map_err(io::Error::other)
}

/// Where this process counts together with the others: `None` where it counts for itself.
fn ledger() -> Option<(Ledger, OwnedFd)> {
    let memory = take(LEDGER).ok()?;
    let ledger = match Ledger::map(&memory) {
        Ok(ledger) => ledger,
        Err(error) => {
            tracing::warn!("what all workers count together cannot be mapped: {error}");
            return None;
        }
    };
    if !ledger.claim_lane(std::process::id()) {
        tracing::warn!("there are too many processes that count together: this one counts for itself");
    }
    Some((ledger, memory))
}

fn parse_state(memory: OwnedFd) -> Result<State, Error> {
    let mut file = std::fs::File::from(memory);
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(Error::State)?;
    let state: State = serde_json::from_slice(&text).map_err(|error| Error::State(error.into()))?;
    if state.version != STATE_VERSION {
        return Err(Error::StateVersion { found: state.version });
    }
    Ok(state)
}

/// The facts that the supervisor has put into `memory`. Where they cannot be read, the supervisor says them again soon.
fn read_list<T: serde::de::DeserializeOwned>(memory: OwnedFd) -> Vec<T> {
    let mut file = std::fs::File::from(memory);
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut text));
    read.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn report_failure(orders: &UnixStream, error: &Error) {
    if worker::say_last(orders, Report::Failed { reason: error.to_string() }).is_err() {
        logging::complain(error);
    }
}

/// Lets `ps` and `top` tell workers apart; the kernel keeps 15 bytes. A nicety, so failure is nothing.
fn name_process(id: u32) {
    if let Ok(name) = std::ffi::CString::new(format!("kakehi-w{id}")) {
        let _ = rustix::thread::set_name(&name);
    }
}
