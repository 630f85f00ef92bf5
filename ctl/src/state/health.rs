//! Whether a backend may take requests: what the operator says of it, and how it is probed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{BackendTls, ProbeHeader};
use crate::{
    keys::{keyed, words},
    limits,
};

words! {
    /// What the operator says of a backend.
    #[derive(Default)]
    pub enum BackendMode {
        /// It takes requests.
        #[default]
        Ready = "ready",
        /// It keeps its sticky sessions and what it has, and takes nothing else.
        Drain = "drain",
        /// It finishes what it has, and takes nothing.
        Maintain = "maintain",
    }
}

words! {
    /// How a backend is probed.
    #[derive(Default)]
    pub enum ProbeMode {
        /// By a request.
        #[default]
        Http = "HTTP",
        /// By a connection.
        Tcp = "TCP",
    }
}

words! {
    /// What holds before the first probes.
    #[derive(Default)]
    pub enum InitialVerdict {
        /// It is well.
        #[default]
        Up = "up",
        /// It is not.
        Down = "down",
    }
}

keyed! {
    /// How the backends of a cluster are probed.
    pub struct HealthCheck;
    own {
        /// What is asked for: the path, with its query.
        "uri" => uri: String = "/".to_owned(), Text, Yes, Backends;
        /// `HTTP`: a backend is well if it answers a GET as it should. `TCP`: if it accepts a connection; with `tls` in this table, and
        /// does a handshake.
        "mode" => mode: ProbeMode = ProbeMode::Http, Choice(ProbeMode::WORDS), Yes, Backends;
        /// Between two probes of a backend, in seconds.
        "interval" => interval_ms: u64 = limits::HEALTH_INTERVAL_MS, Seconds, Yes, Backends;
        /// Deadline of a probe, from the connection to the end of what is read of the answer, in seconds.
        "timeout" => timeout_ms: u64 = limits::HEALTH_TIMEOUT_MS, Seconds, Yes, Backends;
        /// Good probes in a row after which a backend is used again.
        "healthy_threshold" => healthy_threshold: u32 = limits::HEALTH_THRESHOLD, Integer(1, u32::MAX as u64), Yes, Backends;
        /// Bad probes in a row after which a backend is not used.
        "unhealthy_threshold" => unhealthy_threshold: u32 = limits::HEALTH_THRESHOLD, Integer(1, u32::MAX as u64), Yes, Backends;
        /// Status of a good answer; 0 = any 2xx.
        "expected_status" => expected_status: u16 = 0, Integer(0, 599), Yes, Backends;
        /// Statuses of good answers in the place of `expected_status`: `"200"`, `"200-399"`, `"2xx"`, `"any"`. A redirect is a status
        /// like others.
        "accepted_statuses" => accepted_statuses: Vec<StatusRange> = Vec::new(), AcceptedStatuses, Yes, Backends;
        /// Port that is probed in the place of the backend's own.
        "port" => port: Option<u16> = None, Integer(1, 65_535), Yes, Backends;
        /// `Host` of the request. Without it: the backend's name or address with the port, or `localhost` behind a unix socket.
        "host" => host: Option<String> = None, Text, Own, Backends;
        /// Text that must stand in the first 64 KiB of the body.
        "body_contains" => body_contains: Option<String> = None, Text, Own, Backends;
        /// What holds of a backend before its first probes: it is used (`up`), or not before it was found well (`down`).
        "initial" => initial: InitialVerdict = InitialVerdict::Up, Choice(InitialVerdict::WORDS), Own, Backends;
    }
    beside {
        /// Probes are made by TLS, otherwise than requests.
        tls: Option<Box<BackendTls>> = None;
        /// Fields of the request of a probe besides those that it has anyway.
        headers: Vec<ProbeHeader> = Vec::new();
    }
}

impl HealthCheck {
    /// Whether an answer with this status is a good one.
    pub fn accepts(&self, status: u16) -> bool {
        match (&*self.accepted_statuses, self.expected_status) {
            ([], 0) => (200..300).contains(&status),
            ([], expected) => status == expected,
            (accepted, _) => accepted.iter().any(|range| range.contains(status)),
        }
    }
}

/// Statuses of HTTP from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StatusRange {
    first: u16,
    last: u16,
}

/// A text that names no statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither a status, such as `200`, nor a range, such as `200-399` or `2xx`, nor `any`")]
pub struct StatusRangeError;

impl StatusRange {
    const ANY: StatusRange = StatusRange { first: 100, last: 999 };

    /// Whether this status is one of them.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = StatusRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let status = |text: &str| {
            let is_status = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|it| is_status && (100..=599).contains(it)).ok_or(StatusRangeError)
        };
        if text.eq_ignore_ascii_case("any") {
            return Ok(StatusRange::ANY);
        }
        if let Some((class, rest)) = text.split_at_checked(1)
            && rest.eq_ignore_ascii_case("xx")
        {
            return Ok(StatusRange {
                first: status(&format!("{class}00"))?,
                last: status(&format!("{class}99"))?,
            });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (status(first.trim())?, status(last.trim())?);
        if first <= last { Ok(StatusRange { first, last }) } else { Err(StatusRangeError) }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            StatusRange::ANY => f.write_str("any"),
            StatusRange { first, last } if first == last => first.fmt(f),
            StatusRange { first, last } if first % 100 == 0 && last == first + 99 => {
                write!(f, "{}xx", first / 100)
            }
            StatusRange { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_as_they_are_written() {
        for (text, inside, outside) in
            [("200", 200, 201), ("200-399", 302, 400), ("2xx", 299, 300), ("any", 999, 99)]
        {
            let range: StatusRange = text.parse().unwrap();
            assert_eq!(range.to_string(), text);
            assert!(range.contains(inside) && !range.contains(outside), "{text}");
        }
        assert_eq!("5XX".parse::<StatusRange>().unwrap().to_string(), "5xx");
        for text in ["", "20", "2000", "+20", "399-200", "6xx", "0xx", "200-", "-200", "éxx", "2x"] {
            assert!(text.parse::<StatusRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_good_status_is_2xx_unless_others_are_named() {
        let mut check = HealthCheck::default();
        assert!(check.accepts(204) && !check.accepts(301));
        check.expected_status = 301;
        assert!(check.accepts(301) && !check.accepts(200));
        (check.expected_status, check.accepted_statuses) = (0, vec!["404".parse().unwrap()]);
        assert!(check.accepts(404) && !check.accepts(200));
    }
}
