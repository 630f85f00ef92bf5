//! Room for new connections where there are `max_connections`: those that are idle longest make it (`evict_on_queue_full`).
//!
//! Nobody keeps a list of connections. All of them are woken, and each that is idle says since when; then all are woken again, and those
//! end that are idle for as long as the hundredth of them.

use std::cell::{Cell, RefCell};

use crate::ring::Ring;

/// One of so many connections that are open makes room.
const SHARE: usize = 100;

/// What idle connections are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Nothing.
    None,
    /// Since when they are idle.
    Since,
    /// Those to end that are idle since then, or longer (ms); so many of them.
    End { since: u64, left: usize },
}

/// Makes room, one time after the other.
pub(super) struct Eviction {
    question: Cell<Question>,
    answers: RefCell<Vec<u64>>,
}

impl Default for Eviction {
    fn default() -> Eviction {
        Eviction { question: Cell::new(Question::None), answers: RefCell::default() }
    }
}

impl Eviction {
    /// Whether idle connections are asked something.
    #[inline]
    pub(super) fn asks(&self) -> bool {
        self.question.get() != Question::None
    }

    /// Answers for a connection that is idle since then (ms); true if it is to end.
    pub(super) fn answer(&self, idle_since: u64) -> bool {
        match self.question.get() {
            Question::End { since, left } if idle_since <= since && left > 0 => {
                self.question.set(Question::End { since, left: left - 1 });
                true
            }
            Question::Since => {
                self.answers.borrow_mut().push(idle_since);
                false
            }
            Question::End { .. } | Question::None => false,
        }
    }

    /// Ends those of `open` connections that are idle longest, unless this is being done already.
    pub(super) async fn run(&self, ring: &Ring, open: usize) {
        if self.asks() {
            return;
        }
        self.question.set(Question::Since);
        wake_all(ring).await;
        let mut idle = std::mem::take(&mut *self.answers.borrow_mut());
        let left = open.div_ceil(SHARE).min(idle.len());
        if let Some(last) = left.checked_sub(1) {
            let (_, since, _) = idle.select_nth_unstable(last);
            self.question.set(Question::End { since: *since, left });
            wake_all(ring).await;
        }
        self.question.set(Question::None);
    }
}

/// Wakes all, and waits until they have looked.
async fn wake_all(ring: &Ring) {
    ring.wake_all();
    while ring.is_waking() {
        ring.yield_turn().await;
    }
    // Those that were woken last.
    ring.yield_turn().await;
    ring.yield_turn().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_end_that_are_idle_longest_and_no_more_of_them() {
        let eviction = Eviction::default();
        assert!(!eviction.asks() && !eviction.answer(1));
        eviction.question.set(Question::Since);
        assert!(eviction.asks() && !eviction.answer(7));
        assert_eq!(*eviction.answers.borrow(), [7]);
        eviction.question.set(Question::End { since: 7, left: 2 });
        assert!(!eviction.answer(8) && eviction.answer(7) && eviction.answer(3) && !eviction.answer(1));
    }
}
