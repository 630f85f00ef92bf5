//! The memory in which all workers count together ([`kakehi_engine::ledger`]): made for the first of them, and handed on to all
//! that come, also from one supervisor to the next.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use kakehi_engine::ledger::{GivenBack, Ledger};
use tokio::time::Instant;

use crate::fleet::{process::is_alive, roster::Roster};

/// After a change slots are given back so much later: those who still have what was removed are at its end by then.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(1);
/// It is tried again so much later where slots were kept, as something is counted in them.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Slots in which something is still counted are given back after this time all the same: what is written there may be rubbish.
const CLEARED_AFTER: Duration = Duration::from_secs(600);

/// That memory, once there is a worker.
#[derive(Default)]
pub(crate) struct SharedLedger {
    present: OnceCell<Option<Present>>,
    /// When slots are given back.
    due: Cell<Option<Instant>>,
    /// Since when those are kept that are not configured, by their names.
    kept_since: RefCell<HashMap<u64, Instant>>,
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
            Ok(ledger) => {
                drop(self.present.set(Some(Present { ledger, memory: Arc::new(memory) })));
                // What was removed before.
                self.note_removed();
            }
            Err(error) => tracing::warn!("what workers count together cannot be gone on with: {error}"),
        }
    }

    /// Something is configured no more: its slots are to be given back soon.
    pub(crate) fn note_removed(&self) {
        self.due.set(self.due.get().or_else(|| Some(Instant::now() + GIVE_BACK_AFTER)));
    }

    /// Slots cannot be given back yet.
    pub(crate) fn postpone(&self) {
        self.due.set(Some(Instant::now() + TRY_AGAIN_AFTER));
    }

    /// When slots are to be given back.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.get()
    }

    /// Gives the slots of all back that is not configured: `names` are those of what is.
    pub(crate) fn give_back(&self, names: &HashSet<u64>) {
        self.due.set(None);
        let Some(Some(present)) = self.present.get() else { return };
        let now = Instant::now();
        let mut kept_since = self.kept_since.borrow_mut();
        let is_rubbish = |name: u64| kept_since.get(&name).is_some_and(|since| now - *since >= CLEARED_AFTER);
        let GivenBack { freed, kept } = present.ledger.give_back(|name| names.contains(&name), is_rubbish);
        tracing::debug!(freed, kept = kept.len(), "slots of the ledger were given back");
        *kept_since = kept.iter().map(|name| (*name, kept_since.get(name).copied().unwrap_or(now))).collect();
        if !kept.is_empty() {
            self.due.set(Some(now + TRY_AGAIN_AFTER));
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
