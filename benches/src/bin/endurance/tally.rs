//! What became of every request, and how long each took.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// So long may a client not know that the process has died that had its connection: it is 10 ms away, and the kernel
/// closes the sockets of a process that was killed a little after it.
pub(crate) const NEWS: Duration = Duration::from_millis(50);

/// Where a request comes from, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// On a connection that stays for the whole run.
    Long,
    /// On a connection that is closed after ten.
    Short,
    /// On a connection of its own.
    New,
    /// With a body that comes slowly.
    Slow,
    /// With a large body, and an answer as large that flows at the same time.
    Large,
    /// Whose answer is large and read slowly.
    Sip,
    /// Whose client resets its connection in the middle of the answer.
    Reset,
    /// A message through a tunnel.
    Message,
}

/// A request that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) why: String,
    /// From when its connection was needed until it failed.
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// It was sent on a connection that had been idle, and that closed under it.
    pub(crate) under_a_request: bool,
}

/// What was done over TLS, whose connections cannot move to another process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Secure {
    pub(crate) requests: u64,
    pub(crate) handshakes: u64,
    /// Sessions that clients wanted to resume, and those that they did.
    pub(crate) offered: u64,
    pub(crate) resumed: u64,
    /// Connections that an answer has ended.
    pub(crate) ended: u64,
    /// Idle ones that were found closed.
    pub(crate) idle_closed: u64,
}

/// All of a run.
pub(crate) struct Tally {
    /// Microseconds from the moment that the schedule wanted, failures apart.
    pub(crate) latency: Histogram<u64>,
    pub(crate) answered: BTreeMap<Kind, u64>,
    pub(crate) failures: Vec<Failure>,
    /// What of it was over TLS.
    pub(crate) secure: Secure,
    /// Keep-alive connections in clear text that an answer has ended.
    pub(crate) ended: u64,
    /// Idle keep-alive connections in clear text that were found closed.
    pub(crate) idle_closed: u64,
    /// Requests that are under way.
    pub(crate) in_flight: u64,
    /// Requests that were sent, or begun to be.
    pub(crate) begun: u64,
    /// Tunnels that are open.
    pub(crate) tunnels: u64,
    /// Tunnels that broke.
    pub(crate) broken: Vec<Failure>,
}

impl Tally {
    #[expect(clippy::expect_used, reason = "the bounds are constants that the histogram accepts")]
    pub(crate) fn new() -> Tally {
        Tally {
            latency: Histogram::new_with_bounds(1, 120_000_000, 3).expect("bounds in range"),
            answered: BTreeMap::new(),
            failures: Vec::new(),
            secure: Secure::default(),
            ended: 0,
            idle_closed: 0,
            in_flight: 0,
            begun: 0,
            tunnels: 0,
            broken: Vec::new(),
        }
    }

    pub(crate) fn answer(&mut self, kind: Kind, latency: Duration) {
        *self.answered.entry(kind).or_default() += 1;
        // Those that are slow by their own doing say nothing of the proxy's latency.
        if !matches!(kind, Kind::Large | Kind::Sip | Kind::Reset) {
            self.latency.saturating_record(latency.as_micros() as u64);
        }
    }

    /// Requests that were answered, of all kinds.
    pub(crate) fn requests(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Failures that were under way at none of `kills`, nor began before word of it could reach the client.
    pub(crate) fn inexcusable<'a>(failures: &'a [Failure], kills: &[Instant]) -> Vec<&'a Failure> {
        let by = |failure: &Failure, kill: &Instant| failure.began <= *kill + NEWS && failure.ended >= *kill;
        failures.iter().filter(|failure| !kills.iter().any(|kill| by(failure, kill))).collect()
    }
}
