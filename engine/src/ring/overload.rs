//! Whether the loop has more to do than it can: what it is told waits too long, turn after turn.
//!
//! What arrives while tasks run waits until they have run: as long as the turn takes. One long turn is a stall, whose cause is over;
//! many of them in a row, with none that is short enough between them, are an overload.

use std::cell::Cell;

use crate::limits::OVERLOAD_TIME_MS;

/// Watches how long turns take.
#[derive(Debug, Default)]
pub(super) struct Overload {
    /// A turn that takes longer is late (ms); 0 = none is.
    delay_ms: Cell<u64>,
    /// Of the turns that were late without a break: when the first ended, and the last.
    late: Cell<Option<(u64, u64)>>,
}

impl Overload {
    /// From now on turns that take longer than this are late (ms); 0 = none is.
    pub(super) fn set_delay(&self, delay_ms: u64) {
        self.delay_ms.set(delay_ms);
        self.late.set(None);
    }

    /// Whether somebody has to measure.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.delay_ms.get() > 0
    }

    /// A turn has taken so long, and ends `now` (ms).
    #[inline]
    pub(super) fn note(&self, took_ms: u64, now: u64) {
        let is_late = took_ms > self.delay_ms.get();
        self.late.set(is_late.then(|| (self.late.get().map_or(now, |(first, _)| first), now)));
    }

    /// Whether there is an overload. What has no work to do has none, however long ago its last turn was.
    #[inline]
    pub(super) fn is_there(&self) -> bool {
        self.late.get().is_some_and(|(first, last)| last - first >= OVERLOAD_TIME_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether there is an overload after turns that took so long.
    fn overloaded(delay_ms: u64, turns: &[u64]) -> bool {
        let overload = Overload::default();
        overload.set_delay(delay_ms);
        let mut now = 1_000;
        for took in turns {
            now += took;
            overload.note(*took, now);
        }
        overload.is_there()
    }

    #[test]
    fn many_late_turns_in_a_row_are_an_overload_and_one_stall_is_none() {
        assert!(overloaded(50, &[60, 60, 60, 60, 60]));
        assert!(!overloaded(50, &[60, 60, 60]), "not for long enough");
        assert!(!overloaded(50, &[60, 60, 60, 50, 60, 60, 60, 60]), "one was short enough");
        assert!(!overloaded(50, &[5_000]), "a stall, however long ago it was");
        assert!(!overloaded(50, &[5_000, 1]) && overloaded(50, &[5_000, 300]));
    }
}
