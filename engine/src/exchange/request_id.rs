//! Request ids: ULIDs, of which no two workers make the same.

use std::{
    hash::{BuildHasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

use ulid::Ulid;

/// Makes ids that sort by time. 48 bits of milliseconds, and 80 bits that start at random and are stepped by
/// a generator of full period: cheap, and not meant as a secret.
pub(crate) struct RequestIds {
    /// Unix time at `ring.now() == 0` (ms).
    epoch_ms: u64,
    high: u64,
    low: u64,
}

/// The id of one request: what is needed to write it, which is kept as long as the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub(crate) struct RequestId {
    /// When it was made (ms, the ring's clock).
    at: u64,
    low: u64,
}

impl RequestIds {
    pub(crate) fn new() -> RequestIds {
        let epoch_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        // `RandomState` is seeded by the operating system, differently for each instance.
        let seed = || RandomState::new().hash_one(std::process::id());
        RequestIds { epoch_ms, high: seed(), low: seed() | 1 }
    }

    /// A new id. `now` is the ring's clock (ms).
    pub(crate) fn next(&mut self, now: u64) -> RequestId {
        RequestId { at: now, low: self.random() }
    }

    /// A number that nobody knows beforehand who has not seen some. It is not meant as a secret.
    pub(crate) fn random(&mut self) -> u64 {
        // A Weyl sequence through a mixer (SplitMix64): no repetition for 2^64 ids.
        self.low = self.low.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.low;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The text of an id that was made here.
    pub(crate) fn text<'b>(&self, id: RequestId, text: &'b mut [u8; ulid::ULID_LEN]) -> &'b str {
        let random = u128::from(self.high) << 64 | u128::from(id.low);
        Ulid::from_parts(self.epoch_ms + id.at, random).array_to_str(text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn next(ids: &mut RequestIds, now: u64) -> String {
        let id = ids.next(now);
        let text = ids.text(id, &mut [0; ulid::ULID_LEN]).to_owned();
        assert_eq!(ids.text(id, &mut [0; ulid::ULID_LEN]), text, "it is the same as often as it is written");
        text
    }

    #[test]
    fn no_two_ids_are_the_same_of_one_worker_or_of_two() {
        let mut workers = [RequestIds::new(), RequestIds::new()];
        let made: HashSet<String> = (0..20_000).map(|n| next(&mut workers[n % 2], 0)).collect();
        assert_eq!(made.len(), 20_000);
    }

    #[test]
    fn later_ids_sort_behind_earlier_ones() {
        let mut ids = RequestIds::new();
        let made: Vec<String> = (0..1_000).map(|now| next(&mut ids, now)).collect();
        assert!(made.is_sorted());
    }

    #[test]
    fn an_id_tells_the_time_at_which_it_was_made() {
        let mut ids = RequestIds::new();
        let id = Ulid::from_string(&next(&mut ids, 1_234)).unwrap();
        assert_eq!(id.timestamp_ms(), ids.epoch_ms + 1_234);
    }
}
