//! The hidden command `worker`: takes what the supervisor left in known descriptors and hands it to the engine.
//!
//! Relies on the supervisor having put the descriptors in their places. Promises that the
//! supervisor learns why, in a report, when a worker cannot even begin.

use std::{
    io::{self, Read as _, Seek as _},
    os::{
        fd::{OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    time::Duration,
};

use command_fds::inherited::take_fd_ownership;
use kakehi_ctl::{
    limits,
    order::{Envelope, Report},
    state::{STATE_VERSION, State},
};
use kakehi_engine::{
    observe::Counters,
    worker::{self, End, Setup},
};

use crate::{EXIT_CUT, logging, scm, sys};

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

/// How long the sockets of new listeners may take that were sent before we were told to take them.
const SOCKETS_PATIENCE: Duration = Duration::from_secs(2);

/// Why a worker could not begin.
#[derive(Debug, thiserror::Error)]
enum Error {
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
    #[error("the descriptor channel cannot be set up: {0}")]
    Patience(io::Error),
    #[error(transparent)]
    Listeners(#[from] scm::Error),
}

/// Runs one worker until it has drained, or has cut what did not end in time; its whole life.
pub(crate) fn run(id: u32, core: Option<usize>, inherits: bool) -> ExitCode {
    name_process(id);
    let orders = match take(ORDERS) {
        Ok(orders) => UnixStream::from(orders),
        Err(error) => {
            logging::complain(error);
            return ExitCode::FAILURE;
        }
    };
    let setup = match receive(id, core, inherits, &orders) {
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

fn receive(id: u32, core: Option<usize>, inherits: bool, orders: &UnixStream) -> Result<Setup, Error> {
    let counters = Counters::map(&take(COUNTERS)?).map_err(Error::Counters)?;
    counters.reset_gauges();
    let state = read_state(take(STATE)?)?;
    logging::open_for_worker(&state.settings.log_level);
    if let Err(error) = sys::ignore_hangup() {
        tracing::warn!(worker = id, "SIGHUP cannot be ignored: {error}");
    }
    let descriptors = take(DESCRIPTORS)?;
    let listeners = scm::receive(&descriptors)?;
    socket2::SockRef::from(&descriptors).set_read_timeout(Some(SOCKETS_PATIENCE)).map_err(Error::Patience)?;
    let receive_listeners = Box::new(move || scm::receive(&descriptors).map_err(io::Error::other));
    let orders = orders.try_clone().map_err(Error::Orders)?.into();
    let successor = take(SUCCESSOR)?;
    let predecessor = inherits.then(|| take(PREDECESSOR)).transpose()?;
    Ok(Setup { id, core, state, listeners, orders, counters, successor, predecessor, receive_listeners })
}

fn take(descriptor: RawFd) -> Result<OwnedFd, Error> {
    take_fd_ownership(descriptor).map_err(|_| Error::Descriptor(descriptor))
}

fn read_state(memory: OwnedFd) -> Result<State, Error> {
    let mut file = std::fs::File::from(memory);
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(Error::State)?;
    let state: State = serde_json::from_slice(&text).map_err(|error| Error::State(error.into()))?;
    if state.version != STATE_VERSION {
        return Err(Error::StateVersion { found: state.version });
    }
    Ok(state)
}

fn report_failure(mut orders: &UnixStream, error: &Error) {
    let report = Envelope::new(0, Report::Failed { reason: error.to_string() });
    if kakehi_ctl::wire::write_message(&mut orders, &report, limits::MAX_FRAME).is_err() {
        logging::complain(error);
    }
}

/// Lets `ps` and `top` tell workers apart; the kernel keeps 15 bytes. A nicety, so failure is nothing.
fn name_process(id: u32) {
    if let Ok(name) = std::ffi::CString::new(format!("kakehi-w{id}")) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}
