//! How much a cluster takes at a time.

use crate::{keys::keyed, limits};

keyed! {
    /// How much a cluster takes at a time, on all workers together.
    pub struct Admission;
    own {
        /// Requests that may wait until a backend has room (`max_connections` of backends); beyond: 503. 0 = none waits.
        "queue_size" => queue_size: u32 = 0, Integer(0, 1_000_000), Own, Backends;
        /// How long a request may wait so, in seconds; then 503.
        "queue_timeout" => queue_timeout_ms: u64 = limits::QUEUE_TIMEOUT_MS, Seconds, Own, Backends;
        /// Requests, and connections that are passed on, in flight; beyond: 503, or the connection is closed. Upgraded
        /// connections do not count. 0 = no limit.
        "max_requests" => max_requests: u32 = 0, Integer(0, u32::MAX as u64), Own, Backends;
    }
}
