//! What systemd is told, and what it passes on: readiness, reloads, the watchdog, listening sockets.
//!
//! All of it does nothing when kakehi was not started by systemd. Whoever starts it may speak the same protocol
//! (`sd_notify(3)`, `sd_listen_fds(3)`).

use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use command_fds::inherited::take_fd_ownership;
use sd_notify::NotifyState;
use socket2::SockRef;

/// What processes of kakehi's own must not take for meant for them.
pub(super) const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Every worker accepts.
pub(super) fn ready(workers: usize) {
    let status = format!("{workers} workers");
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id()), NotifyState::Status(&status)]);
}

/// The file is read again; [`ready`] follows.
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The stop has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The loop turns.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be called: twice as often as the watchdog demands.
pub(super) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2).filter(|period| !period.is_zero())
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!("the init system is not told: {error}");
    }
}

/// Listening sockets that were passed on, with their addresses.
pub(super) fn activated() -> Vec<(SocketAddr, OwnedFd)> {
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
            let address = SockRef::from(&socket).local_addr().map_err(|error| error.to_string())?;
            let listens = SockRef::from(&socket).is_listener().map_err(|error| error.to_string())?;
            // Whoever made it may have made it so that accepting blocks.
            rustix::io::ioctl_fionbio(&socket, true).map_err(|error| error.to_string())?;
            match address.as_socket().filter(|_| listens) {
                Some(address) => Ok((address, socket)),
                None => Err("it is no TCP socket that listens".to_owned()),
            }
        });
        match taken {
            Ok(socket) => sockets.push(socket),
            Err(error) => tracing::warn!("descriptor {number} of the init system is not used: {error}"),
        }
    }
    sockets
}
