//! Idle upstream connections, shared by all clients of the worker.
//!
//! Last in, first out: the connections in use stay few and warm, the others grow old and are trimmed. An idle
//! connection has its receive armed, so that it reports its own death; one that says anything unasked is thrown
//! away too, since what it says could be taken for the answer to somebody's request (RFC 9112 section 9.2).

use std::cell::Cell;

use kakehi_ctl::state::Settings;

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
    max_idle: Cell<u32>,
    /// How long one is kept (ms).
    idle_timeout_ms: Cell<u64>,
}

impl Pooling {
    /// For connections on `ring`.
    pub fn new(ring: Ring, counters: Counters, settings: &Settings) -> Pooling {
        let (max_idle, idle_timeout_ms) = (settings.upstream_max_idle, settings.upstream_idle_timeout_ms);
        Pooling { ring, counters, max_idle: Cell::new(max_idle), idle_timeout_ms: Cell::new(idle_timeout_ms) }
    }

    /// Takes over what the pool heeds of settings that have changed. Connections that are too many now go when they are trimmed.
    pub fn take_settings(&self, settings: &Settings) {
        self.max_idle.set(settings.upstream_max_idle);
        self.idle_timeout_ms.set(settings.upstream_idle_timeout_ms);
    }
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
        let too_many = before.saturating_sub(pooling.max_idle.get() as usize);
        self.idle.drain(..too_many);
        self.idle.retain(|idle| {
            idle.stream.is_quiet() && now.saturating_sub(idle.since) < pooling.idle_timeout_ms.get()
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

    pub(super) fn put(&mut self, stream: TransportStream, pooling: &Pooling) {
        if self.idle.len() >= pooling.max_idle.get() as usize {
            return;
        }
        stream.watch();
        stream.forget_waker();
        pooling.counters.count(Counter::UpstreamIdle);
        self.idle.push(Idle { stream, since: pooling.ring.now() });
    }
}
