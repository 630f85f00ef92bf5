//! How a backend of a cluster is chosen for a request, and kept for the next ones of the same client.

use crate::{
    keys::{keyed, words},
    limits,
};

words! {
    /// How a backend is chosen.
    #[derive(Default)]
    pub enum LoadBalancing {
        /// In turns.
        #[default]
        RoundRobin = "ROUND_ROBIN",
        /// At random.
        Random = "RANDOM",
        /// The one with the smallest load.
        LeastLoaded = "LEAST_LOADED",
        /// The one of two, taken at random, with the smaller load.
        PowerOfTwo = "POWER_OF_TWO",
        /// By the highest of the hashes of key and backend (rendezvous hashing).
        Hrw = "HRW",
        /// By a table of hashes.
        Maglev = "MAGLEV",
        /// The one of two, taken at random, that answers sooner.
        PeakEwma = "PEAK_EWMA",
    }
}

words! {
    /// What the load of a backend is.
    #[derive(Default)]
    pub enum LoadMetric {
        /// Connections in use: requests in flight, tunnels, connections that are passed on.
        #[default]
        Connections = "connections",
        /// Requests in flight.
        Requests = "requests",
        /// How long connecting took lately.
        ConnectionTime = "connection_time",
    }
}

words! {
    /// What is done when no backend of a shard can be used.
    #[derive(Default)]
    pub enum ShardMode {
        /// The others are used.
        #[default]
        Fallback = "FALLBACK",
        /// None is.
        Strict = "STRICT",
    }
}

words! {
    /// Which requests of other sites bring the cookie of sticky sessions (RFC 6265bis section 5.6.7).
    #[derive(Default)]
    pub enum SameSite {
        /// Those that go to the address of a page.
        #[default]
        Lax = "Lax",
        /// None.
        Strict = "Strict",
        /// All; over `https` only.
        None = "None",
    }
}

keyed! {
    /// How a backend of a cluster is chosen.
    pub struct Balancing;
    own {
        /// How a backend is chosen for a request: `ROUND_ROBIN` in turns; `RANDOM`; `LEAST_LOADED`, by `load_metric`;
        /// `POWER_OF_TWO`, the less loaded of two that are taken at random; `HRW` and `MAGLEV`, by a hash of the client; `PEAK_EWMA`,
        /// of two the one that answers sooner. All give each backend a share by its `weight`.
        "load_balancing" => policy: LoadBalancing = LoadBalancing::RoundRobin, Choice(LoadBalancing::WORDS), Yes, Backends;
        /// What `LEAST_LOADED` and `POWER_OF_TWO` compare: connections in use, requests in flight, or how long connecting
        /// took in the last 10 seconds.
        "load_metric" => metric: LoadMetric = LoadMetric::Connections, Choice(LoadMetric::WORDS), Yes, Backends;
        /// Field of requests by whose first value `HRW`, `MAGLEV` and shards tell clients apart. Without it, and for requests
        /// that have none: the client's address.
        "affinity_header" => affinity_header: Option<String> = None, Text, Yes, Backends;
        /// The same of a cookie.
        "affinity_cookie" => affinity_cookie: Option<String> = None, Text, Yes, Backends;
        /// The same of the path, without the query.
        "affinity_path" => affinity_path: bool = false, Bool, Own, Backends;
        /// `HRW` and `MAGLEV`: a backend whose load is more than so many percent of the mean one is passed over, for the next in the
        /// order of the key; 101 to 1000, 0 = never.
        "hash_balance_factor" => hash_balance_factor: u16 = 0, Integer(0, 1000), Own, Backends;
        /// Shuffle sharding: each client is served by so many percent of the backends, at least 2. Without it: by all.
        "shard_percent" => shard_percent: Option<u8> = None, Integer(1, 100), Yes, Backends;
        /// With fewer backends than these there are no shards.
        "shard_min_backends" => shard_min_backends: u16 = limits::SHARD_MIN_BACKENDS, Integer(0, 65_535), Yes, Backends;
        /// What is done when no backend of a client's shard can be used: the others are used (`FALLBACK`), or the
        /// answer is 503 (`STRICT`).
        "shard_mode" => shard_mode: ShardMode = ShardMode::Fallback, Choice(ShardMode::WORDS), Yes, Backends;
        /// How long a backend that is new, or comes back, takes to get its full share, in seconds, beginning with a tenth of it; 0 = none.
        "slow_start" => slow_start_ms: u64 = 0, SecondsOrZero, Own, Backends;
        /// Send a client's later requests to the backend that answered the first one, by a cookie.
        "sticky_session" => sticky_session: bool = false, Bool, Yes, Backends;
        /// `SameSite` of that cookie.
        "sticky_same_site" => sticky_same_site: SameSite = SameSite::Lax, Choice(SameSite::WORDS), Own, Backends;
        /// How long a client keeps that cookie, in seconds; 0 = until it ends.
        "sticky_max_age" => sticky_max_age: u32 = 0, Integer(0, u32::MAX as u64), Own, Backends;
        /// What is done when no backend can be used: those that only probes call dead are all used, and those that failed lately are tried
        /// (`true`), or the answer is 503 at once (`false`).
        "fail_open" => fail_open: bool = true, Bool, Own, Backends;
        /// Probes are not believed while they call less than so many percent of the primaries well, by weight; 0 = never.
        "panic_threshold" => panic_threshold: u8 = 0, Integer(0, 100), Own, Backends;
    }
}
