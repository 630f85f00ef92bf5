//! What one phase of load counted.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use rustls::HandshakeKind;

/// Longest latency that is told apart (ns): the generator gives up a request long before.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// Why a request did not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection was refused or could not be made.
    Connect,
    /// The connection broke.
    Reset,
    /// The connection ended before the whole answer had come, or without having said so.
    Closed,
    /// The connection stayed open after an answer that had to be the last.
    NotClosed,
    /// The status was not 200.
    Status,
    /// What came was not a response head.
    Head,
    /// The body was shorter or longer than asked for, or not framed by its length.
    Length,
    /// The body was not what the backend sent.
    Content,
    /// The answer did not come in time.
    Timeout,
    /// The handshake failed, or what came was not TLS.
    Tls,
    /// The server made a full handshake where the client came with a ticket.
    NotResumed,
}

impl Fault {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Connect, "connect"),
        (Self::Reset, "reset"),
        (Self::Closed, "closed"),
        (Self::NotClosed, "not closed"),
        (Self::Status, "status"),
        (Self::Head, "head"),
        (Self::Length, "length"),
        (Self::Content, "content"),
        (Self::Timeout, "timeout"),
        (Self::Tls, "TLS"),
        (Self::NotResumed, "not resumed"),
    ];
}

/// Failed requests by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults([u64; Fault::ALL.len()]);

impl Faults {
    /// How many of one kind.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Counts one.
    pub fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// All kinds together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds those of another phase.
    pub fn add(&mut self, other: Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// `3 reset, 1 timeout`, or `none`.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (fault, name) in Fault::ALL {
            let count = self.0[fault as usize];
            if count > 0 {
                write!(f, "{separator}{count} {name}")?;
                separator = ", ";
            }
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// Handshakes that ended as they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Handshakes {
    /// Those with a key exchange and a certificate.
    pub full: u64,
    /// Those with a ticket of an earlier one.
    pub resumed: u64,
}

impl Handshakes {
    pub(super) fn count(&mut self, kind: HandshakeKind) {
        match kind {
            HandshakeKind::Resumed => self.resumed += 1,
            HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest => self.full += 1,
        }
    }
}

/// What one phase of load counted.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Requests that were answered whole and right.
    pub requests: u64,
    /// Connections that the server ended after it had announced it.
    pub renewed: u64,
    /// Requests that failed.
    pub faults: Faults,
    /// TLS handshakes.
    pub handshakes: Handshakes,
    /// From the first byte sent (or the start of the connection) to the last byte received (ns).
    pub latency: Histogram<u64>,
    /// How long the phase took.
    pub elapsed: Duration,
}

impl Tally {
    #[expect(clippy::expect_used, reason = "the bounds are constants that the histogram accepts")]
    pub(super) fn new() -> Self {
        let latency = Histogram::new_with_bounds(100, MAX_LATENCY_NS, 3).expect("bounds in range");
        Self {
            requests: 0,
            renewed: 0,
            faults: Faults::default(),
            handshakes: Handshakes::default(),
            latency,
            elapsed: Duration::ZERO,
        }
    }

    pub(super) fn answered(&mut self, latency: Duration) {
        self.requests += 1;
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(MAX_LATENCY_NS));
    }

    /// Requests per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_by_kind() {
        let mut faults = Faults::default();
        assert_eq!(faults.to_string(), "none");
        for (index, (fault, _)) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, index);
            faults.count(fault);
        }
        faults.count(Fault::Reset);
        assert_eq!(faults.total(), 12);
        assert!(faults.to_string().starts_with("1 connect, 2 reset, 1 closed"));
    }
}
