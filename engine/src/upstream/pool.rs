//! Idle upstream connections, shared by all clients of the worker.
//!
//! Last in, first out: the connections in use stay few and warm, the others grow old and are trimmed. An idle
//! connection has its receive armed, so that it reports its own death; one that says anything unasked is thrown
//! away too, since what it says could be taken for the answer to somebody's request (RFC 9112 section 9.2).

use std::rc::Rc;

use super::cluster::Endpoint;
use crate::{
    observe::{Counter, Counters},
    ring::Ring,
    transport::TransportStream,
};

/// What the pool needs to know of the worker.
pub struct Pooling {
    /// The worker's ring.
    pub ring: Ring,
    /// The worker's counters.
    pub counters: Counters,
    /// Idle connections that are kept per backend.
    pub max_idle: usize,
    /// How long one is kept (ms).
    pub idle_timeout_ms: u64,
}

struct Idle {
    stream: TransportStream,
    since: u64,
}

/// Idle connections to one backend, the oldest first.
#[derive(Default)]
pub(super) struct IdlePool {
    idle: Vec<Idle>,
}

impl IdlePool {
    /// The one that was used last and is still whole.
    pub(super) fn take(&mut self, counters: &Counters) -> Option<TransportStream> {
        while let Some(Idle { stream, .. }) = self.idle.pop() {
            counters.uncount(Counter::UpstreamIdle);
            if stream.is_quiet() {
                return Some(stream);
            }
            counters.count(Counter::UpstreamDiscarded);
        }
        None
    }

    pub(super) fn trim(&mut self, pooling: &Pooling) {
        let now = pooling.ring.now();
        let before = self.idle.len();
        self.idle.retain(|idle| {
            idle.stream.is_quiet() && now.saturating_sub(idle.since) < pooling.idle_timeout_ms
        });
        for _ in self.idle.len()..before {
            pooling.counters.uncount(Counter::UpstreamIdle);
            pooling.counters.count(Counter::UpstreamDiscarded);
        }
        if self.idle.is_empty() {
            self.idle.shrink_to_fit();
        }
    }

    /// Throws all away.
    pub(super) fn clear(&mut self, pooling: &Pooling) {
        for _ in std::mem::take(&mut self.idle) {
            pooling.counters.uncount(Counter::UpstreamIdle);
        }
    }

    fn put(&mut self, stream: TransportStream, pooling: &Pooling) {
        if self.idle.len() >= pooling.max_idle {
            return;
        }
        stream.watch();
        stream.forget_waker();
        pooling.counters.count(Counter::UpstreamIdle);
        self.idle.push(Idle { stream, since: pooling.ring.now() });
    }
}

/// A connection to a backend, in use by one request.
pub struct Upstream {
    /// The connection.
    pub stream: TransportStream,
    /// It carried an earlier request: it may have died since without our knowing.
    pub reused: bool,
    backend: Rc<Endpoint>,
    /// It began with the address of one client, and is for nobody else.
    private: bool,
    /// It has authenticated one client.
    bound: bool,
}

impl Upstream {
    /// A connection to `backend`.
    pub fn new(stream: TransportStream, backend: Rc<Endpoint>, reused: bool) -> Upstream {
        Upstream { stream, reused, backend, private: false, bound: false }
    }

    /// This one, for this client only.
    #[must_use]
    pub fn private(self) -> Upstream {
        Upstream { private: true, ..self }
    }

    /// This one between two requests of the client connection that it is bound to: it may die meanwhile.
    #[must_use]
    pub fn bound(self) -> Upstream {
        self.stream.watch();
        self.stream.forget_waker();
        Upstream { private: true, bound: true, reused: true, ..self }
    }

    /// Whether it is bound to a client connection already.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// The name of the backend.
    pub fn backend_id(&self) -> &str {
        &self.backend.id
    }

    /// True if the log may take a line about the backend; how many were left out since the last.
    pub fn admit_complaint(&self, now: u64) -> Option<u32> {
        self.backend.complaints.admit(now)
    }

    /// Whether the backend is configured no more.
    pub fn is_retired(&self) -> bool {
        self.backend.retired.get()
    }

    /// The exchange is complete, both ways, and the backend keeps the connection open: keeps it for the next, if nothing is in
    /// flight. A backend that answered without reading all of the request may never read it.
    pub fn release(self, pooling: &Pooling) {
        let at_rest = self.stream.is_quiet() && !self.stream.is_sending();
        if !self.private && at_rest && !self.backend.retired.get() {
            self.backend.idle.borrow_mut().put(self.stream, pooling);
        } else {
            pooling.counters.count(Counter::UpstreamDiscarded);
        }
    }
}
