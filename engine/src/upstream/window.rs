//! How often something happened in the last seconds, on all workers.

use std::cell::{Cell, OnceCell};

use super::names::Name;
use crate::ledger::{Ledger, Slot};

/// Parts of a window, each of which is forgotten as a whole.
const PARTS: u64 = 10;
/// Bits of a count, and of the part of time, in the word that a worker publishes.
const COUNT_BITS: u32 = 24;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// Two counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) all: u64,
    /// Those of them that matter: failures, repetitions.
    pub(super) some: u64,
}

/// What happened in a window of time.
pub(super) struct Window {
    /// Of a part (ms).
    part_ms: u64,
    parts: [Cell<Counts>; PARTS as usize],
    /// The part that is counted in now, since the host began.
    present: Cell<u64>,
    name: Name,
    slot: OnceCell<Slot>,
}

impl Window {
    /// One of `length_ms`, that has this name in the ledger.
    pub(super) fn new(length_ms: u64, name: Name) -> Window {
        Window {
            part_ms: (length_ms / PARTS).max(1),
            parts: Default::default(),
            present: Cell::new(0),
            name,
            slot: OnceCell::new(),
        }
    }

    /// One more, at `now` by the clock of the host.
    pub(super) fn count(&self, some: bool, now: u64, ledger: Option<&Ledger>) {
        self.go_to(now);
        self.change(|counts| counts.all += 1);
        if some {
            self.change(|counts| counts.some += 1);
        }
        self.publish(ledger);
    }

    /// One of those that were counted already matters.
    pub(super) fn mark(&self, now: u64, ledger: Option<&Ledger>) {
        self.go_to(now);
        self.change(|counts| counts.some += 1);
        self.publish(ledger);
    }

    /// What all workers have counted in the time before `now`.
    pub(super) fn sum(&self, now: u64, ledger: Option<&Ledger>) -> Counts {
        self.go_to(now);
        let here = self.here();
        let part = now / self.part_ms;
        let others = self.slot(ledger).into_iter().flat_map(Slot::others);
        others.fold(here, |sum, word| {
            let said = word >> (2 * COUNT_BITS);
            // Who has counted nothing for as long as the window is has nothing in it.
            let is_old = (part & 0xffff).wrapping_sub(said) & 0xffff >= PARTS;
            if word == 0 || is_old {
                return sum;
            }
            let (all, some) = (word & COUNT_MAX, (word >> COUNT_BITS) & COUNT_MAX);
            Counts { all: sum.all + all, some: sum.some + some }
        })
    }

    fn here(&self) -> Counts {
        self.parts.iter().map(Cell::get).fold(Counts::default(), |sum, part| Counts {
            all: sum.all + part.all,
            some: sum.some + part.some,
        })
    }

    fn slot(&self, ledger: Option<&Ledger>) -> Option<&Slot> {
        match self.slot.get() {
            Some(slot) => Some(slot).filter(|slot| slot.is_valid()),
            None => ledger?.slot_of_configured(self.name.0).map(|slot| self.slot.get_or_init(|| slot)),
        }
    }

    /// Forgets what is older.
    fn go_to(&self, now: u64) {
        let part = now / self.part_ms;
        let before = self.present.replace(part);
        for gone in (before + 1..=part).rev().take(PARTS as usize) {
            self.parts[(gone % PARTS) as usize].set(Counts::default());
        }
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        let cell = &self.parts[(self.present.get() % PARTS) as usize];
        let mut counts = cell.get();
        change(&mut counts);
        cell.set(counts);
    }

    fn publish(&self, ledger: Option<&Ledger>) {
        let Some(slot) = self.slot(ledger) else { return };
        let Counts { all, some } = self.here();
        let time = (self.present.get() & 0xffff) << (2 * COUNT_BITS);
        slot.publish(time | some.min(COUNT_MAX) << COUNT_BITS | all.min(COUNT_MAX));
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // So that the slot can be given back.
        if let Some(slot) = self.slot.get() {
            slot.publish(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let window = Window::new(10_000, Name(1));
        for now in (0..30_000).step_by(100) {
            window.count(now % 200 == 0, 1_000_000 + now, None);
        }
        let Counts { all, some } = window.sum(1_029_900, None);
        assert!((90..=100).contains(&all) && some.abs_diff(all / 2) <= 1, "{all} {some}");
        assert_eq!(window.sum(1_060_000, None), Counts::default());
    }

    #[test]
    fn all_workers_count_together_and_who_is_silent_is_forgotten() {
        let (_supervisor, file) = Ledger::create(c"test", 64).unwrap();
        let [one, two] = [1, 2].map(|pid| {
            let ledger = Ledger::map(&file).unwrap();
            ledger.claim_lane(pid);
            (Window::new(10_000, Name(5)), ledger)
        });
        (0..7).for_each(|_| one.0.count(true, 500_000, Some(&one.1)));
        (0..3).for_each(|_| two.0.count(false, 500_500, Some(&two.1)));
        two.0.mark(500_500, Some(&two.1));
        let both = Counts { all: 10, some: 8 };
        assert_eq!(one.0.sum(501_000, Some(&one.1)), both);
        assert_eq!(two.0.sum(501_000, Some(&two.1)), both);
        assert_eq!(two.0.sum(515_000, Some(&two.1)), Counts::default());
    }
}
