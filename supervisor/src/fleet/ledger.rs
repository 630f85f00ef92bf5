//! The memory in which all workers count together ([`kakehi_engine::ledger`]): made for the first of them, and handed on to all
//! that come, also from one supervisor to the next.

use std::{cell::OnceCell, os::fd::OwnedFd, sync::Arc};

use kakehi_engine::ledger::Ledger;

use crate::fleet::{process::is_alive, roster::Roster};

/// That memory, once there is a worker.
#[derive(Default)]
pub(crate) struct SharedLedger {
    present: OnceCell<Option<Present>>,
}

struct Present {
    ledger: Ledger,
    memory: Arc<OwnedFd>,
}

impl SharedLedger {
    /// Goes on with that of workers that were taken over, unless there is one already.
    pub(crate) fn adopt(&self, memory: OwnedFd) {
        if self.present.get().is_some() {
            return;
        }
        match Ledger::map(&memory) {
            Ok(ledger) => drop(self.present.set(Some(Present { ledger, memory: Arc::new(memory) }))),
            Err(error) => tracing::warn!("what workers count together cannot be gone on with: {error}"),
        }
    }

    /// The memory, for a worker; without it a worker counts for itself. Where it has to be made, with room for `keys` keys of limits.
    pub(crate) fn memory(&self, keys: u32) -> Option<Arc<OwnedFd>> {
        let make = || match Ledger::create(c"kakehi-ledger", keys) {
            Ok((ledger, memory)) => Some(Present { ledger, memory: Arc::new(memory) }),
            Err(error) => {
                tracing::warn!(
                    "there is no memory in which workers count together, each counts for itself: {error}"
                );
                None
            }
        };
        self.present.get_or_init(make).as_ref().map(|present| Arc::clone(&present.memory))
    }

    /// What processes counted that are no workers any more counts no more.
    pub(crate) fn forget_dead(&self, roster: &Roster) {
        if let Some(Some(present)) = self.present.get() {
            // The number of one that has ended may be that of another process now.
            present.ledger.release_lanes(|pid| is_alive(pid) && roster.worker_of(pid) == Some(pid));
        }
    }
}
