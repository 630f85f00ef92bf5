//! The signals that the supervisor obeys. SIGPIPE is ignored by every Rust program from its start.

use std::io;

use nix::sys::{
    signal::{self as kernel, SigSet},
    wait::{Id, WaitPidFlag, waitid},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// SIGTERM or SIGINT: stop; the second time at once.
    Stop(&'static str),
    /// SIGHUP: read the file again.
    Reload,
    /// A process has ended whose parent is gone: as process 1, of a container, this one has to reap it.
    Reap,
}

/// The signals, from the moment of [`Signals::new`].
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// As process 1 only.
    child: Option<Signal>,
}

impl Signals {
    /// From now on these signals do not end the process.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            child: (std::process::id() == 1).then(|| signal(SignalKind::child())).transpose()?,
        })
    }

    /// The next one. May be given up at any time without loss.
    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Wish::Stop("SIGINT"),
            _ = self.hangup.recv() => Wish::Reload,
            () = next_child(&mut self.child) => Wish::Reap,
        }
    }
}

/// Waits for ever where nobody needs to know.
async fn next_child(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Reaps the processes that have ended and are none of `ours`, which are waited for elsewhere.
pub(crate) fn reap_strangers(ours: &[u32]) {
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    while let Ok(status) = waitid(Id::All, ended | WaitPidFlag::WNOWAIT) {
        let Some(pid) = status.pid() else { return };
        let is_ours = u32::try_from(pid.as_raw()).is_ok_and(|pid| ours.contains(&pid));
        // The kernel shows one of those that have ended: if it is ours, the others come with the next signal.
        if is_ours || waitid(Id::Pid(pid), ended).is_err() {
            return;
        }
    }
}

fn of_supervisor() -> SigSet {
    [kernel::Signal::SIGTERM, kernel::Signal::SIGINT, kernel::Signal::SIGHUP].into_iter().collect()
}

/// Has the kernel keep the signals that come from now on, for this process or for a program that takes its place.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn hold_back() -> io::Result<()> {
    Ok(of_supervisor().thread_block()?)
}

/// Lets the signals in that [`hold_back`] has kept.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn let_in() -> io::Result<()> {
    Ok(of_supervisor().thread_unblock()?)
}
