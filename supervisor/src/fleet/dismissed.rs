//! Processes that another supervisor left and that are no workers of this one: each was told to end, and is killed if it does not.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::{sync::watch, task::JoinSet};

use crate::fleet::{adoption::AdoptionFile, handle::Handle, process::KILL_SLACK, roster::Entry};

/// Those that have not ended yet.
pub(crate) struct Dismissed {
    ending: JoinSet<()>,
    at_once: watch::Sender<bool>,
}

impl Dismissed {
    pub(crate) fn new() -> Dismissed {
        Dismissed { ending: JoinSet::new(), at_once: watch::channel(false).0 }
    }

    /// Has a process end, which is killed if it has not within `stop_ms`.
    pub(crate) fn add(&mut self, handle: Handle, entry: Entry, adoption: Option<AdoptionFile>, stop_ms: u64) {
        handle.signal(Signal::SIGTERM);
        let deadline = Duration::from_millis(stop_ms) + KILL_SLACK;
        let mut at_once = self.at_once.subscribe();
        self.ending.spawn(async move {
            let ended = tokio::select! {
                _ = handle.ended() => true,
                _ = at_once.wait_for(|at_once| *at_once) => false,
                () = tokio::time::sleep(deadline) => false,
            };
            if !ended {
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

    /// Kills those that are left.
    pub(crate) fn kill(&self) {
        self.at_once.send_replace(true);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ending.is_empty()
    }

    /// Waits until one more has ended; `None` at once when all have.
    pub(crate) async fn next(&mut self) -> Option<()> {
        // It cannot fail but by a panic, which ends the program.
        self.ending.join_next().await.map(drop)
    }
}
