//! Credentials that were right not long ago.
//!
//! The oldest goes first. What is kept says nothing of a password to whoever does not have the key of this process.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::{http::AttemptId, limits};

/// They are found by what they are, and forgotten in the order in which they came, which is that of their times.
#[derive(Default)]
pub(super) struct Remembered {
    /// Until when (ms).
    due: FxHashMap<AttemptId, u64>,
    order: VecDeque<AttemptId>,
}

impl Remembered {
    pub(super) fn contains(&self, id: &AttemptId, now: u64) -> bool {
        self.due.get(id).is_some_and(|due| now < *due)
    }

    /// Remembers one until `due`, which is no earlier than that of any other.
    pub(super) fn insert(&mut self, id: AttemptId, due: u64) {
        if self.due.insert(id, due).is_some() {
            self.order.retain(|other| *other != id);
        }
        self.order.push_back(id);
        if self.order.len() > limits::PASSWORDS_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.due.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;

    use super::*;
    use crate::http::authentication_tests::right;

    fn id(number: usize) -> AttemptId {
        right(&number.to_string()).id(&hmac::Key::new(hmac::HMAC_SHA256, b"test"))
    }

    #[test]
    fn what_was_right_is_remembered_for_its_time() {
        let mut remembered = Remembered::default();
        assert!(!remembered.contains(&id(1), 0));
        remembered.insert(id(1), 60_000);
        for (now, expected) in [(0, true), (59_999, true), (60_000, false), (u64::MAX, false)] {
            assert_eq!(remembered.contains(&id(1), now), expected, "{now}");
        }
        assert!(!remembered.contains(&id(2), 0));
        // Once more, when it was over.
        remembered.insert(id(1), 130_000);
        assert!(remembered.contains(&id(1), 129_999));
        assert_eq!((remembered.due.len(), remembered.order.len()), (1, 1));
    }

    #[test]
    fn the_oldest_makes_room() {
        let most = limits::PASSWORDS_REMEMBERED;
        let mut remembered = Remembered::default();
        let ids: Vec<AttemptId> = (0..=most).map(id).collect();
        ids.iter().take(most).for_each(|id| remembered.insert(*id, 60_000));
        assert!(remembered.contains(&ids[0], 0));
        // It is the youngest then.
        remembered.insert(ids[0], 60_001);
        remembered.insert(ids[most], 60_002);
        assert!(!remembered.contains(&ids[1], 0));
        assert!([0, 2, most].iter().all(|place| remembered.contains(&ids[*place], 0)));
        assert_eq!((remembered.due.len(), remembered.order.len()), (most, most));
    }
}
