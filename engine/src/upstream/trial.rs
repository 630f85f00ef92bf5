//! One attempt at a time at a backend that could not be reached, on all workers.
//!
//! Each worker finds out itself that a backend cannot be reached. Those that have asks the ledger whether another one is just trying
//! it. An attempt says there until when it lasts at most, so that one whose worker is stopped or killed is over with its deadline.

use std::sync::atomic::Ordering::Relaxed;

use super::{endpoint::Endpoint, pool::Pooling};
use crate::{
    ledger::{Ledger, Slot, Word},
    limits,
};

/// Another worker tries the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

/// The attempt of this worker, as long as this lives.
pub(super) struct Trial<'a> {
    slot: &'a Slot,
    until: u64,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        // Unless another one has begun since, as this one was late.
        let _ = self.slot.word(Word::TrialUntil).compare_exchange(self.until, 0, Relaxed, Relaxed);
    }
}

/// Whether that is the end of an attempt under way. What is further away than any is rubbish.
fn is_under_way(until: u64, host_now: u64) -> bool {
    until > host_now && until <= host_now.saturating_add(limits::MAX_EJECTION_TIME_MS)
}

/// Whether a worker tries `endpoint`, for one that knows that it could not be reached.
pub(super) fn is_tried(endpoint: &Endpoint, host_now: u64, ledger: Option<&Ledger>) -> bool {
    let slot = endpoint.load.slot(ledger);
    slot.is_some_and(|slot| is_under_way(slot.word(Word::TrialUntil).load(Relaxed), host_now))
}

/// Begins an attempt at `endpoint` that takes `connect_ms` at most. `None`: it need not be the only one, as it could be reached the last
/// time, or as workers count for themselves.
///
/// # Errors
/// When another worker tries it.
pub(super) fn begin<'a>(
    endpoint: &'a Endpoint,
    connect_ms: u64,
    pooling: &Pooling,
) -> Result<Option<Trial<'a>>, Busy> {
    if !endpoint.health.has_failed() {
        return Ok(None);
    }
    let slot = endpoint.load.slot(pooling.ledger.as_ref());
    slot.map(|slot| begin_in(slot, connect_ms, pooling.host_now())).transpose()
}

fn begin_in(slot: &Slot, connect_ms: u64, host_now: u64) -> Result<Trial<'_>, Busy> {
    let until = host_now + connect_ms.clamp(1, limits::MAX_EJECTION_TIME_MS);
    let word = slot.word(Word::TrialUntil);
    let before = word.load(Relaxed);
    let is_free = !is_under_way(before, host_now);
    let begun = is_free && word.compare_exchange(before, until, Relaxed, Relaxed).is_ok();
    if begun { Ok(Trial { slot, until }) } else { Err(Busy) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_tries_at_a_time_and_none_longer_than_its_attempt_may_take() {
        let (supervisor, file) = Ledger::create(c"test", 64).unwrap();
        let [one, two] = [1, 2].map(|pid| {
            let ledger = Ledger::map(&file).unwrap();
            ledger.claim_lane(pid);
            ledger.slot(5).unwrap()
        });
        drop(supervisor);
        let first = begin_in(&one, 3_000, 10_000).unwrap();
        assert_eq!(begin_in(&two, 3_000, 12_999).err(), Some(Busy));
        drop(first);
        // This one's worker is killed.
        std::mem::forget(begin_in(&two, 3_000, 13_000).unwrap());
        assert_eq!(begin_in(&one, 3_000, 15_999).err(), Some(Busy));
        let next = begin_in(&one, 3_000, 16_000).unwrap();
        // It was only stopped, and goes on.
        drop(Trial { slot: &two, until: 16_000 });
        assert_eq!(begin_in(&two, 3_000, 16_001).err(), Some(Busy));
        drop(next);
        one.word(Word::TrialUntil).store(u64::MAX, Relaxed);
        assert!(begin_in(&two, 3_000, 16_002).is_ok(), "rubbish is no attempt");
    }
}
