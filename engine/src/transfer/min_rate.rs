//! The deadline of a body that must keep moving.
//!
//! A body may stand still for `body_timeout`, and must on the whole come in at `body_min_rate` or faster: each byte
//! moves the deadline by its share of a second, and never further than `body_timeout` from now. A trickle of single
//! bytes therefore ends when the slack is used up, however long each pause is.

use kakehi_ctl::state::Timeouts;

/// When the next byte is due.
pub(crate) struct MinRate {
    due: u64,
    slack_ms: u64,
    rate: u64,
}

impl MinRate {
    pub(crate) fn new(timeouts: &Timeouts, now: u64) -> MinRate {
        MinRate {
            due: now + timeouts.body_ms,
            slack_ms: timeouts.body_ms,
            rate: u64::from(timeouts.body_min_rate),
        }
    }

    /// When deadline ends (ms, the ring's clock).
    pub(crate) fn due(&self) -> u64 {
        self.due
    }

    /// `count` bytes have come.
    pub(crate) fn moved(&mut self, count: usize, now: u64) {
        let latest = now + self.slack_ms;
        let share = (count as u64 * 1_000).checked_div(self.rate);
        self.due = share.map_or(latest, |milliseconds| (self.due + milliseconds).min(latest));
    }

    /// Nothing could come for that long (ms), since the other side took nothing.
    pub(crate) fn excuse(&mut self, milliseconds: u64) {
        self.due += milliseconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: u32) -> MinRate {
        MinRate::new(&Timeouts { body_ms: 30_000, body_min_rate: rate, ..Timeouts::default() }, 0)
    }

    #[test]
    fn a_trickle_does_not_move_the_deadline_much() {
        let mut pace = pace(240);
        for second in 1..30 {
            pace.moved(1, second * 1_000);
        }
        assert!(pace.due() < 31_000);
    }

    #[test]
    fn a_fast_body_has_its_whole_slack_at_any_time_and_no_more() {
        let mut pace = pace(240);
        pace.moved(1 << 20, 5_000);
        assert_eq!(pace.due(), 35_000);
    }

    #[test]
    fn without_a_rate_any_byte_buys_the_slack_anew() {
        let mut pace = pace(0);
        pace.moved(1, 29_000);
        assert_eq!(pace.due(), 59_000);
    }
}
