//! What all exchanges of a worker share.

use std::cell::RefCell;

use super::request_id::RequestIds;
use crate::{
    http::{DateCache, DateLine, Scratch},
    observe::Counters,
    passwords::Passwords,
    ring::Ring,
    upstream::Pooling,
};

/// What all exchanges of a worker share.
pub struct Shared {
    /// The ring.
    pub ring: Ring,
    /// The counters.
    pub counters: Counters,
    /// The upstream pool's settings.
    pub pooling: Pooling,
    /// Passwords with slow hashes.
    pub(crate) passwords: Passwords,
    /// Memory of the head parsers, lent to one head at a time.
    pub(crate) scratch: RefCell<Scratch>,
    pub(super) request_ids: RefCell<RequestIds>,
    date: DateCache,
}

impl Shared {
    /// Shares what `pooling` has, the ring and the counters, and who checks passwords.
    pub fn new(pooling: Pooling, passwords: Passwords) -> Shared {
        Shared {
            ring: pooling.ring.clone(),
            counters: pooling.counters.clone(),
            pooling,
            passwords,
            scratch: RefCell::new(Scratch::new()),
            request_ids: RefCell::new(RequestIds::new()),
            date: DateCache::new(),
        }
    }

    /// `Date` of the present second.
    #[inline]
    pub(crate) fn date(&self) -> DateLine {
        self.date.line(self.ring.now(), || {
            // A clock before 1970 is as good as none.
            std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
        })
    }
}
