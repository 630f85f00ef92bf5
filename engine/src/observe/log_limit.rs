//! Bounds how often the log says the same of one subject.

use std::cell::Cell;

use crate::limits;

/// One line each [`limits::LOG_INTERVAL_MS`]; the others are counted, and the next line has their number.
#[derive(Debug, Default)]
pub struct LogLimit {
    next: Cell<u64>,
    left_out: Cell<u32>,
}

impl LogLimit {
    /// Asks for a line at `now` (ms): `None` if it is too early, otherwise how many were left out since the last line.
    pub fn admit(&self, now: u64) -> Option<u32> {
        if now < self.next.get() {
            self.left_out.set(self.left_out.get().saturating_add(1));
            return None;
        }
        self.next.set(now + limits::LOG_INTERVAL_MS);
        Some(self.left_out.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_line_in_an_interval_and_it_says_how_many_were_left_out() {
        let limit = LogLimit::default();
        let interval = limits::LOG_INTERVAL_MS;
        assert_eq!(limit.admit(5), Some(0));
        assert_eq!((limit.admit(5), limit.admit(4 + interval)), (None, None));
        assert_eq!(limit.admit(5 + interval), Some(2));
        assert_eq!(limit.admit(5 + 3 * interval), Some(0));
    }
}
