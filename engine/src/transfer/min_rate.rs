//! The deadline of a body that must keep moving.
//!
//! A body may stand still for a slack (`body_timeout` of an upload, `back_timeout` and `front_timeout` of a response), and
//! must on the whole move at a least rate (`body_min_rate`, `response_min_rate`): each byte
//! moves the deadline by its share of a second, and never further than the slack from now. A trickle of single
//! bytes therefore ends when the slack is used up, however long each pause is.

/// When the next byte is due.
pub(crate) struct MinRate {
    due: u64,
    slack_ms: u64,
    rate: u64,
}

impl MinRate {
    /// `rate`: bytes per second; 0 = any byte buys the slack anew.
    pub(crate) fn new(slack_ms: u64, rate: u32, now: u64) -> MinRate {
        MinRate { due: now + slack_ms, slack_ms, rate: u64::from(rate) }
    }

    /// When the deadline ends (ms, the ring's clock).
    pub(crate) fn due(&self) -> u64 {
        self.due
    }

    /// `count` bytes have moved.
    pub(crate) fn moved(&mut self, count: usize, now: u64) {
        if count == 0 {
            return;
        }
        let latest = now + self.slack_ms;
        let share = (count as u64 * 1_000).checked_div(self.rate);
        self.due = share.map_or(latest, |milliseconds| (self.due + milliseconds).min(latest));
    }

    /// Nothing could move for that long (ms), and it was the other side's fault.
    pub(crate) fn excuse(&mut self, milliseconds: u64) {
        self.due += milliseconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: u32) -> MinRate {
        MinRate::new(30_000, rate, 0)
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
