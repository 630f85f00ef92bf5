//! How long to wait before a worker that died is replaced.

use std::time::Duration;

use kakehi_ctl::limits;

/// A worker that lived this long is replaced at once, and the row of delays begins anew: something from outside has
/// ended it, or something rare. What dies again and again at its start, or of every request, dies sooner.
const HEALTHY_AFTER: Duration = Duration::from_millis(250);

/// The row of delays of one worker: none, then [`limits::RESTART_DELAY_MS`], doubling up to the ceiling.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// The last delay; `None` while no death is remembered.
    last: Option<Duration>,
}

impl Backoff {
    /// The delay before the replacement of a worker that lived for `lived`.
    pub(crate) fn after_death(&mut self, lived: Duration) -> Duration {
        let delay = match self.last {
            Some(_) if lived >= HEALTHY_AFTER => Duration::ZERO,
            None => Duration::ZERO,
            Some(Duration::ZERO) => Duration::from_millis(limits::RESTART_DELAY_MS),
            Some(last) => (last * 2).min(Duration::from_millis(limits::RESTART_DELAY_CEILING_MS)),
        };
        self.last = Some(delay);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_death_is_repaired_at_once_and_later_ones_ever_more_slowly_up_to_the_ceiling() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> =
            (0..10).map(|_| backoff.after_death(Duration::from_millis(100)).as_millis() as u64).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn a_worker_that_served_for_a_while_is_replaced_at_once_again() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after_death(Duration::from_millis(249));
        }
        assert_eq!(backoff.after_death(Duration::from_millis(250)), Duration::ZERO);
        assert_eq!(backoff.after_death(Duration::ZERO), Duration::from_millis(limits::RESTART_DELAY_MS));
    }
}
