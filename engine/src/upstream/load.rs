//! What an endpoint has to do at the moment, on this worker and on all, and how quick it was lately, as this worker sees it.

use std::cell::{Cell, OnceCell};

use super::names::Name;
use crate::ledger::{Ledger, Slot};

/// Within this time the weight of what was observed falls to a third (ms).
const DECAY_MS: f64 = 10_000.0;

/// An average of times (ms) in which the later ones weigh more, and which is forgotten with time.
#[derive(Debug, Default)]
pub(super) struct Average {
    value: Cell<f64>,
    at: Cell<u64>,
}

impl Average {
    /// What it is `now`.
    pub(super) fn get(&self, now: u64) -> f64 {
        self.value.get() * self.kept(now)
    }

    /// Whether anything was observed yet: less than a millisecond is 0.
    pub(super) fn is_known(&self) -> bool {
        self.at.get() > 0
    }

    /// How much of the past still counts.
    fn kept(&self, now: u64) -> f64 {
        libm::exp(-(now.saturating_sub(self.at.get()) as f64) / DECAY_MS)
    }

    /// Takes a time in; at once if it is a `peak`: longer than the average.
    fn take(&self, time: u64, now: u64, peak: bool) {
        let (time, average) = (time as f64, self.value.get());
        // Of two times in the same moment both count.
        let kept = self.kept(now).min(0.9);
        let next = if peak && time > self.get(now) { time } else { average * kept + time * (1.0 - kept) };
        self.value.set(next);
        self.at.set(now);
    }

    pub(super) fn observe(&self, time: u64, now: u64) {
        self.take(time, now, false);
    }

    /// What is longer than the average counts at once, what is shorter bit by bit.
    pub(super) fn observe_peak(&self, time: u64, now: u64) {
        self.take(time, now, true);
    }
}

/// What an endpoint has to do.
#[derive(Default)]
pub(super) struct Load {
    /// In the ledger.
    name: Name,
    /// Where all workers count it, once one has used it here.
    slot: OnceCell<Slot>,
    /// Connections that somebody uses, on this worker.
    connections: Cell<u32>,
    /// Those of them that are no tunnels.
    requests: Cell<u32>,
    /// Requests and connections so far.
    pub(super) served: Cell<u64>,
    /// How long connecting takes.
    pub(super) connecting: Average,
    /// How long the head of a response takes.
    pub(super) answering: Average,
}

/// Connections in use and requests in flight, in one word of the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct InFlight {
    pub(super) connections: u32,
    pub(super) requests: u32,
}

impl InFlight {
    fn word(self) -> u64 {
        u64::from(self.requests) << 32 | u64::from(self.connections)
    }

    fn of(word: u64) -> InFlight {
        // The halves.
        InFlight { connections: word as u32, requests: (word >> 32) as u32 }
    }

    fn plus(self, other: InFlight) -> InFlight {
        InFlight {
            connections: self.connections.saturating_add(other.connections),
            requests: self.requests.saturating_add(other.requests),
        }
    }
}

impl Load {
    /// Of what has this name in the ledger.
    pub(super) fn named(name: Name) -> Load {
        Load { name, ..Load::default() }
    }

    /// Where all workers count it.
    #[inline]
    pub(super) fn slot(&self, ledger: Option<&Ledger>) -> Option<&Slot> {
        match self.slot.get() {
            // One that was given back may be that of somebody else.
            Some(slot) => Some(slot).filter(|slot| slot.is_valid()),
            None => self.find_slot(ledger?),
        }
    }

    #[cold]
    fn find_slot(&self, ledger: &Ledger) -> Option<&Slot> {
        let slot = ledger.slot_of_configured(self.name.0)?;
        // Where there was none at once, it has counted already.
        slot.publish(self.here().word());
        Some(self.slot.get_or_init(|| slot))
    }

    /// Whether it is counted where it was, if it is at all.
    pub(super) fn is_in_place(&self) -> bool {
        self.slot.get().is_none_or(Slot::is_valid)
    }

    /// What this worker has there.
    pub(super) fn here(&self) -> InFlight {
        InFlight { connections: self.connections.get(), requests: self.requests.get() }
    }

    /// What all workers have there.
    pub(super) fn everywhere(&self, ledger: Option<&Ledger>) -> InFlight {
        let others = self.slot(ledger).into_iter().flat_map(Slot::others);
        others.fold(self.here(), |sum, word| sum.plus(InFlight::of(word)))
    }

    /// Makes `of` what this worker has there.
    pub(super) fn set(&self, of: InFlight) {
        self.connections.set(of.connections);
        self.requests.set(of.requests);
        if let Some(slot) = self.slot.get() {
            slot.publish(of.word());
        }
    }

    /// Whether, with what is counted here already, there are no more connections than `most` on all workers. Of two workers that
    /// ask at the same time for the last place neither may get it, and never both.
    pub(super) fn fits(&self, most: u32, ledger: Option<&Ledger>) -> bool {
        Slot::settle();
        self.everywhere(ledger).connections <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_follows_what_is_observed_and_forgets() {
        let average = Average::default();
        for now in 0..200 {
            average.observe(100, now * 100);
        }
        assert!((90.0..=100.0).contains(&average.get(19_900)), "{}", average.get(19_900));
        for now in 200..400 {
            average.observe(10, now * 100);
        }
        assert!(average.get(39_900) < 25.0, "{}", average.get(39_900));
        assert!(average.get(139_900) < 0.01);
    }

    #[test]
    fn what_all_workers_have_is_the_sum() {
        let (_supervisor, file) = Ledger::create(c"test", 64).unwrap();
        let workers = [1, 2].map(|pid| {
            let ledger = Ledger::map(&file).unwrap();
            ledger.claim_lane(pid);
            (Load::named(Name(9)), ledger)
        });
        let [(one, of_one), (two, of_two)] = &workers;
        assert!(one.slot(Some(of_one)).is_some() && two.slot(Some(of_two)).is_some());
        one.set(InFlight { connections: 3, requests: 2 });
        two.set(InFlight { connections: 4, requests: 4 });
        assert_eq!(one.everywhere(Some(of_one)), InFlight { connections: 7, requests: 6 });
        assert_eq!(two.everywhere(Some(of_two)), InFlight { connections: 7, requests: 6 });
        assert!(one.fits(7, Some(of_one)) && !two.fits(6, Some(of_two)));
        let alone = Load::named(Name(9));
        alone.set(InFlight { connections: 1, requests: 1 });
        assert_eq!(alone.everywhere(None), InFlight { connections: 1, requests: 1 });
    }

    #[test]
    fn a_peak_counts_at_once() {
        let average = Average::default();
        assert!(!average.is_known());
        average.observe_peak(0, 999);
        assert!(average.is_known());
        average.observe_peak(5, 1_000);
        average.observe_peak(500, 1_001);
        assert!(average.get(1_001) > 499.0);
        average.observe_peak(5, 1_002);
        assert!(average.get(1_002) > 400.0);
    }
}
