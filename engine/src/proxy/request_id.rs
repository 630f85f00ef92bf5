//! Request ids: ULIDs, of which no two workers make the same.

use std::{
    hash::{BuildHasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

use ulid::Ulid;

/// Makes ids that sort by time. 48 bits of milliseconds, and 80 bits that start at random and are stepped by
/// a generator of full period: cheap, and not meant as a secret.
pub(super) struct RequestIds {
    /// Unix time at `ring.now() == 0` (ms).
    epoch_ms: u64,
    high: u64,
    low: u64,
}

impl RequestIds {
    pub(super) fn new() -> RequestIds {
        let epoch_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        // `RandomState` is seeded by the operating system, differently for each instance.
        let seed = || RandomState::new().hash_one(std::process::id());
        RequestIds { epoch_ms, high: seed(), low: seed() | 1 }
    }

    /// The text of a new id. `now` is the ring's clock (ms).
    pub(super) fn next<'b>(&mut self, now: u64, text: &'b mut [u8; ulid::ULID_LEN]) -> &'b str {
        // A Weyl sequence through a mixer (SplitMix64): no repetition for 2^64 ids.
        self.low = self.low.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.low;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let random = u128::from(self.high) << 64 | u128::from(mixed);
        Ulid::from_parts(self.epoch_ms + now, random).array_to_str(text)
    }
}
