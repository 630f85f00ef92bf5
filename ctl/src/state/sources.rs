//! How much may come from whom, and from whom nothing may.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::is_token;
use crate::{keys::keyed, limits};

keyed! {
    /// From whom requests and connections are taken.
    pub struct Sources;
    own {
        /// Networks of clients; requests of all others are refused with 403, connections that are passed on closed. Without
        /// it: all are served. The client is whom a header of the PROXY protocol names, else the peer, and where that is one of
        /// `trusted_peers`, the last one in `X-Forwarded-For` that is not. A listener closes connections of others at once where
        /// it can tell by the peer.
        "allow" => allow: Vec<IpNet> = Vec::new(), Networks, Own, Requests;
        /// The same of networks whose clients are refused; it goes before `allow`.
        "deny" => deny: Vec<IpNet> = Vec::new(), Networks, Own, Requests;
    }
}

keyed! {
    /// How many requests a client, or all, may send in a time. Beyond it they are refused; connections that are passed on
    /// count as one request each, and are closed.
    pub struct RateLimit;
    required {
        /// Requests in `per`; required.
        "rate" => rate: u32 = 1, Integer(1, 1_000_000_000), Own, Requests;
    }
    own {
        /// What has a count of its own: `source`, each client's address (of IPv6 each /64); `header:NAME`, each value of a field;
        /// `cookie:NAME`, each value of a cookie; `route`, all together. A request without that field or cookie counts by its
        /// source.
        "key" => key: RateKey = RateKey::Source, LimitKey, Own, Requests;
        /// Of how long `rate` is, in seconds.
        "per" => per_ms: u64 = limits::RATE_LIMIT_PERIOD_MS, Seconds, Own, Requests;
        /// Requests that may come at once beyond what `rate` has room for. Without it: as many as `rate`.
        "burst" => burst: Option<u32> = None, Integer(0, 1_000_000_000), Own, Requests;
        /// Status of the answer to what is beyond it.
        "status" => status: u16 = limits::RATE_LIMIT_STATUS, Integer(400, 599), Own, Requests;
        /// Networks of clients that are not limited.
        "exempt" => exempt: Vec<IpNet> = Vec::new(), Networks, Own, Requests;
        /// Only count what would be refused.
        "dry_run" => dry_run: bool = false, Bool, Own, Requests;
    }
}

keyed! {
    /// What a frontend says of how much may come from whom.
    pub struct FrontendLimits;
    own {
        /// Largest request body (bytes), 0 = no limit; beyond: 413. Without it that of the cluster holds, or of the listener.
        "max_body_size" => max_body_size: Option<u64> = None, Integer(0, i64::MAX as u64), Own, Requests;
    }
    beside {
        /// From whom it takes requests.
        sources: Sources = Sources::default();
        /// How many.
        rates: Vec<RateLimit> = Vec::new();
    }
}

keyed! {
    /// What a cluster says of how much may come from whom.
    pub struct ClusterLimits;
    own {
        /// Connections that one client may have here, on all workers together; beyond: 429, or the connection is closed where
        /// connections are passed on. A connection counts at the cluster that it asked last. 0 = no limit. Without it that of
        /// the root holds.
        "max_connections_per_ip" => per_ip: Option<u32> = None, Integer(0, u32::MAX as u64), Yes, Backends;
        /// The same of the clients of a network (`subnet_ipv4_prefix`, `subnet_ipv6_prefix`); both have to admit.
        "max_connections_per_subnet" => per_subnet: Option<u32> = None, Integer(0, u32::MAX as u64), Yes, Backends;
        /// `Retry-After` of these answers 429, in seconds; 0 = without. Without it that of the root holds.
        "retry_after" => retry_after: Option<u32> = None, Integer(0, u32::MAX as u64), Yes, Backends;
        /// Largest request body (bytes), 0 = no limit; beyond: 413. Without it that of the listener holds.
        "max_body_size" => max_body_size: Option<u64> = None, Integer(0, i64::MAX as u64), Own, Backends;
    }
    beside {
        /// How many requests it takes.
        rates: Vec<RateLimit> = Vec::new();
    }
}

/// What has a count of its own under a [`RateLimit`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RateKey {
    /// Each address of a client; of IPv6 each /64.
    Source,
    /// Each value of this field; of several lines the first.
    Header(String),
    /// Each value of this cookie.
    Cookie(String),
    /// Everything together.
    Route,
}

/// A text is no key of a [`RateLimit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is none of `source`, `header:NAME`, `cookie:NAME`, `route`")]
pub struct RateKeyError;

impl fmt::Display for RateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RateKey::Source => f.write_str("source"),
            RateKey::Header(name) => write!(f, "header:{name}"),
            RateKey::Cookie(name) => write!(f, "cookie:{name}"),
            RateKey::Route => f.write_str("route"),
        }
    }
}

impl FromStr for RateKey {
    type Err = RateKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A cookie's name is a token, too (RFC 6265 section 4.1.1).
        match text.split_once(':') {
            None if text == "source" => Ok(RateKey::Source),
            None if text == "route" => Ok(RateKey::Route),
            // Names of fields have no case (RFC 9110 section 5.1): two spellings are one key.
            Some(("header", name)) if is_token(name) => Ok(RateKey::Header(name.to_ascii_lowercase())),
            Some(("cookie", name)) if is_token(name) => Ok(RateKey::Cookie(name.to_owned())),
            _ => Err(RateKeyError),
        }
    }
}

impl Sources {
    /// Whether it says anything.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_rate_limit_is_read_as_it_is_written() {
        for text in ["source", "route", "header:x-user", "cookie:Session"] {
            assert_eq!(text.parse::<RateKey>().unwrap().to_string(), text);
        }
        assert_eq!("header:X-User".parse(), Ok(RateKey::Header("x-user".to_owned())));
        for text in ["", "Source", "header", "header:", "header:a b", "cookie:a=b", "source:x", "path"] {
            assert_eq!(text.parse::<RateKey>(), Err(RateKeyError), "{text}");
        }
    }
}
