//! What systemd is told, and what it passes on: readiness, reloads, the watchdog, listening sockets.
//!
//! All of it does nothing when kakehi was not started by systemd. Whoever starts it may speak the same protocol
//! (`sd_notify(3)`, `sd_listen_fds(3)`). Nobody waits for an init system that does not read what it is told.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::OnceLock, time::Duration};

use command_fds::inherited::take_fd_ownership;
use kakehi_ctl::state::Binding;
use rustix::net::{getsockname, sockopt::socket_acceptconn};
use sd_notify::NotifyState;

use crate::{host::interface, outlet::Outlet};

/// Messages that wait for the init system.
const MOST_WAITING: usize = 16;
/// How long the last ones wait.
const LAST_PATIENCE: Duration = Duration::from_millis(100);

static WAITING: OnceLock<Option<Outlet<String>>> = OnceLock::new();

/// What processes of kakehi's own must not take for meant for them.
pub(crate) const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Every worker accepts.
pub(crate) fn ready(workers: usize) {
    let status = format!("{workers} workers");
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id()), NotifyState::Status(&status)]);
}

/// The file is read again; [`ready`] follows.
pub(crate) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The stop has begun.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The loop turns.
pub(crate) fn alive() {
    // That it turned once is no news behind other messages.
    if waiting().is_some_and(Outlet::is_idle) {
        tell(&[NotifyState::Watchdog]);
    }
}

/// Has the last messages heard, if anybody listens: before the process ends, or becomes another program.
pub(crate) fn flush() {
    if let Some(waiting) = waiting() {
        waiting.flush(LAST_PATIENCE);
    }
}

/// How often [`alive`] is to be called: twice as often as the watchdog demands.
pub(crate) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2).filter(|period| !period.is_zero())
}

fn tell(what: &[NotifyState<'_>]) {
    let lines: Vec<String> = what.iter().map(ToString::to_string).collect();
    if waiting().is_some_and(|waiting| !waiting.put(lines.join("\n"))) {
        tracing::warn!("the init system does not read what it is told ({})", lines.join(", "));
    }
}

/// What the init system is to be told; `None` where there is none.
fn waiting() -> Option<&'static Outlet<String>> {
    let make = || {
        std::env::var_os("NOTIFY_SOCKET")?;
        let outlet = Outlet::new(MOST_WAITING, |message: String| {
            if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
                tracing::debug!("the init system is not told: {error}");
            }
        });
        outlet.inspect_err(|error| tracing::warn!("the init system is not told anything: {error}")).ok()
    };
    WAITING.get_or_init(make).as_ref()
}

/// Listening sockets that were passed on, and where they are bound.
pub(crate) fn activated() -> Vec<(Binding, OwnedFd)> {
    let numbers = match sd_notify::listen_fds() {
        Ok(numbers) => numbers,
        Err(error) => {
            tracing::warn!("the sockets that the init system passes on cannot be taken: {error}");
            return Vec::new();
        }
    };
    let mut sockets = Vec::new();
    for number in numbers {
        let taken = take_fd_ownership(number).map_err(|error| error.to_string()).and_then(|socket| {
            let address = getsockname(&socket).map_err(|error| error.to_string())?;
            let listens = socket_acceptconn(&socket).map_err(|error| error.to_string())?;
            // Whoever made it may have made it so that accepting blocks.
            rustix::io::ioctl_fionbio(&socket, true).map_err(|error| error.to_string())?;
            let interface = interface::of(&socket).map_err(|error| error.to_string())?;
            match SocketAddr::try_from(address) {
                Ok(address) if listens => Ok((Binding { address, interface }, socket)),
                _ => Err("it is no TCP socket that listens".to_owned()),
            }
        });
        match taken {
            Ok(socket) => sockets.push(socket),
            Err(error) => tracing::warn!("descriptor {number} of the init system is not used: {error}"),
        }
    }
    sockets
}
