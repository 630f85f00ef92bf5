//! What is done when backends fail: requests are sent again, and backends are passed over.

use super::{Conditions, Factor, StatusRange, Statuses};
use crate::{keys::keyed, limits};

keyed! {
    /// When a request is sent again, and how often.
    pub struct Retries;
    own {
        /// When a request that may be repeated is sent again, besides after a connection attempt that failed and where a pooled connection
        /// had died: `reset`, the backend ends the connection before the head of its response; `timeout`, it says nothing for
        /// `back_timeout`; a status.
        "retry_on" => on: Conditions = Conditions::default(), RetryConditions, Own, Backends;
        /// From the beginning of a request until this, in seconds, it may be sent again; 0 = at any time.
        "retry_timeout" => timeout_ms: u64 = 0, SecondsOrZero, Own, Backends;
        /// Largest body (bytes) that is kept to be sent again; a request with a larger one is sent once.
        "retry_body_size" => body_size: u32 = limits::RETRY_BODY_SIZE, Integer(0, 1 << 20), Own, Backends;
        /// How many requests may be sent again, in percent of those of the last 10 seconds; three a second may in any case. 0 = none.
        "retry_budget" => budget: u16 = limits::RETRY_BUDGET, Integer(0, 1_000), Own, Backends;
        /// Tell the backend in `X-Kakehi-Attempts` how often the request was sent, this time included.
        "attempts_header" => attempts_header: bool = false, Bool, Own, Backends;
    }
    inherited {
        /// Backends that one request is sent to or connects to at most, the first included.
        "max_connection_attempts" => max_attempts: u8 = limits::MAX_CONNECTION_ATTEMPTS, Integer(1, 255), Yes, Backends;
    }
}

keyed! {
    /// When a backend is passed over because of how it answers.
    pub struct Passive;
    own {
        /// So many failures one after the other.
        "consecutive_failures" => consecutive_failures: u32 = limits::CONSECUTIVE_FAILURES, Integer(0, u32::MAX as u64), Own, Backends;
        /// So many percent of its answers in `window`, of at least 20; 0 = that does not matter.
        "failure_ratio" => failure_ratio: u8 = 0, Integer(0, 100), Own, Backends;
        /// Its answers take so many times as long as those of the others in the middle, of which there have to be three; 0 = that does not
        /// matter.
        "latency_factor" => latency_factor: Factor = Factor::OFF, Multiple(1_000), Own, Backends;
        /// Which time `failure_ratio` looks at, in seconds.
        "window" => window_ms: u64 = limits::PASSIVE_WINDOW_MS, Seconds, Own, Backends;
        /// For how long it is passed over, in seconds; twice as long each further time, 300 at most.
        "ejection_time" => ejection_ms: u64 = limits::EJECTION_TIME_MS, Seconds, Own, Backends;
        /// Of how many percent of the primaries at most; of one in any case, and never of all.
        "max_ejection_percent" => max_ejection_percent: u8 = limits::MAX_EJECTION_PERCENT, Integer(0, 100), Own, Backends;
        /// Statuses that are failures.
        "statuses" => statuses: Statuses = gateway_statuses(), StatusRanges, Own, Backends;
    }
    beside {
        /// It is done at all (`passive = false`).
        enabled: bool = true;
    }
}

/// Those that say that a server behind could not answer.
fn gateway_statuses() -> Statuses {
    let range: Result<StatusRange, _> = "502-504".parse();
    Statuses(range.into_iter().collect())
}
