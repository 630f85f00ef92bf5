//! Idle upstream connections, shared by all clients of the worker.
//!
//! Last in, first out: the connections in use stay few and warm, the others grow old and are trimmed. An idle
//! connection has its receive armed, so that it reports its own death; one that says anything unasked is thrown
//! away too, since what it says could be taken for the answer to somebody's request (RFC 9112 section 9.2).

use std::cell::Cell;

use kakehi_ctl::state::Settings;
use rustix::time::{ClockId, clock_gettime};

use crate::{
    ledger::Ledger,
    observe::{Counter, Counters},
    quota::Caps,
    ring::Ring,
    transport::TransportStream,
};

/// What the pool needs to know of the worker.
pub struct Pooling {
    /// The worker's ring.
    pub ring: Ring,
    /// The worker's counters.
    pub counters: Counters,
    /// What all workers count together.
    pub ledger: Option<Ledger>,
    /// How much came from whom: in the ledger, or, where there is none, of this worker alone.
    pub(crate) sources: Option<Ledger>,
    /// How many connections one client may have where a cluster says nothing else.
    pub(crate) caps: Cell<Caps>,
    /// Longest credentials of basic authentication (bytes).
    pub(crate) max_credential_bytes: Cell<u32>,
    /// When the ring began (ms, the clock of the host).
    began: u64,
    /// Idle connections that are kept per backend.
    max_idle: Cell<u32>,
    /// How long one is kept (ms).
    idle_timeout_ms: Cell<u64>,
}

impl Pooling {
    /// For connections on `ring`.
    pub fn new(ring: Ring, counters: Counters, ledger: Option<Ledger>, settings: &Settings) -> Pooling {
        let began = host_ms().saturating_sub(ring.age_ms());
        let (max_idle, idle_timeout_ms) = (settings.upstream_max_idle, settings.upstream_idle_timeout_ms);
        let alone = || match Ledger::create(c"kakehi-sources", settings.table_size) {
            Ok((table, _)) => Some(table),
            Err(error) => {
                tracing::warn!("there is no memory for limits, which are not heeded: {error}");
                None
            }
        };
        ring.set_overload_delay(settings.overload_delay_ms);
        let sources = ledger.clone().or_else(alone);
        Pooling {
            ring,
            counters,
            ledger,
            sources,
            caps: Cell::new(Caps::new(settings)),
            max_credential_bytes: Cell::new(settings.max_credential_bytes),
            began,
            max_idle: Cell::new(max_idle),
            idle_timeout_ms: Cell::new(idle_timeout_ms),
        }
    }

    /// The present time by the clock of the host, which all workers have (ms).
    pub fn host_now(&self) -> u64 {
        self.began + self.ring.now()
    }

    /// Takes over what the pool heeds of settings that have changed. Connections that are too many now go when they are trimmed.
    pub fn take_settings(&self, settings: &Settings) {
        self.max_idle.set(settings.upstream_max_idle);
        self.caps.set(Caps::new(settings));
        self.max_credential_bytes.set(settings.max_credential_bytes);
        self.ring.set_overload_delay(settings.overload_delay_ms);
        self.idle_timeout_ms.set(settings.upstream_idle_timeout_ms);
    }
}

/// The monotonic clock of the host (ms).
fn host_ms() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
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

    /// Throws all away; how many there were.
    pub(super) fn clear(&mut self, pooling: &Pooling) -> u64 {
        let all = std::mem::take(&mut self.idle);
        all.iter().for_each(|_| pooling.counters.uncount(Counter::UpstreamIdle));
        all.len() as u64
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
