//! What an endpoint has to do at the moment, and how quick it was lately, as this worker sees it.

use std::cell::Cell;

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
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Connections that somebody uses.
    pub(super) connections: Cell<u32>,
    /// Those of them that are no tunnels.
    pub(super) requests: Cell<u32>,
    /// Requests and connections so far.
    pub(super) served: Cell<u64>,
    /// How long connecting takes.
    pub(super) connecting: Average,
    /// How long the head of a response takes.
    pub(super) answering: Average,
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
    fn a_peak_counts_at_once() {
        let average = Average::default();
        average.observe_peak(5, 1_000);
        average.observe_peak(500, 1_001);
        assert!(average.get(1_001) > 499.0);
        average.observe_peak(5, 1_002);
        assert!(average.get(1_002) > 400.0);
    }
}
