//! One measurement: a fresh process of one proxy, one case, one round.
//!
//! A fresh process each time keeps what one case leaves behind (memory, pooled connections) out of the next,
//! and makes the luck of an address layout part of the spread that is reported.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::accounting;
use crate::accounting::{Usage, own_cpu, pss_kib};
use crate::cores::Cores;
use crate::generator::tls::{Tickets, Tls};
use crate::generator::{Bound, Fault, Faults, Generator, Handshakes, Load, Mode, Tally};
use crate::identity::Identity;
use crate::peers::{Kind, Layer, Peer};
use crate::process::{Process, free_address};
use crate::ring_figures::{PerRequest, RingFigures};
use crate::strace::{Calls, Strace};
use crate::{Attempt, BenchError};

/// Requests before memory is read for the first time, so that what a proxy allocates once is not counted
/// to the idle connections.
const REQUESTS_AT_REST: u64 = 200;
/// How long connections are held idle before memory is read: allocators and timers get to rest.
const SETTLE: Duration = Duration::from_millis(500);
/// How long strace counts: enough for a thousand requests even at its pace.
const TRACED: Duration = Duration::from_secs(1);

/// Connections of the idle cases in a quick run: six thousand handshakes take the clients' core two seconds.
const QUICK_IDLE: usize = 500;

/// What a connection between client and proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP as it is.
    Clear,
    /// TLS, and what clients do with tickets.
    Tls(Tickets),
    /// HTTP as it is, which the proxy passes on without knowing it (`mode tcp`).
    Passed,
    /// HTTP as it is, and the proxy has policies: who gets how much, which backend, and what when it fails.
    Policed,
}

/// What is done to a proxy.
#[derive(Clone, Copy, Debug)]
pub enum Case {
    /// Requests for `body` bytes over `connections` connections at a time.
    Traffic {
        /// Connections at a time.
        connections: usize,
        /// Response body (bytes).
        body: usize,
        /// Request body (bytes).
        upload: usize,
        /// The larger one is in chunks.
        chunked: bool,
        /// Keep-alive or a new connection per request.
        mode: Mode,
        /// With or without TLS.
        transport: Transport,
    },
    /// Connections that made one request each and stay open.
    Idle {
        /// How many.
        connections: usize,
        /// With or without TLS.
        transport: Transport,
    },
    /// As `ka64`, but requests come at a fixed rate whatever becomes of those before.
    Tail {
        /// Of the rate that the best of the peers reaches (per cent).
        percent: u32,
        /// The process has just started; otherwise it is warm.
        fresh: bool,
    },
    /// From the start of the process to its first answer.
    Start,
}

/// Rates of the tail (per cent of the best peer's).
const PERCENT: [u32; 4] = [25, 50, 75, 90];

impl Case {
    /// Those of the tail: each rate, warm and fresh.
    #[must_use]
    pub fn tail() -> Vec<Self> {
        let of = |percent| [false, true].map(|fresh| Self::Tail { percent, fresh });
        PERCENT.into_iter().flat_map(of).collect()
    }

    /// The one of the tail with this name: `tail_50`, `tail_90_fresh`.
    #[must_use]
    pub fn of_tail(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("tail_")?;
        let (percent, fresh) = rest.strip_suffix("_fresh").map_or((rest, false), |percent| (percent, true));
        let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent))?;
        Some(Self::Tail { percent, fresh })
    }

    /// Its name, if it is one of the tail.
    #[must_use]
    pub fn name_in_tail(self) -> Option<String> {
        let Self::Tail { percent, fresh } = self else { return None };
        Some(format!("tail_{percent}{}", if fresh { "_fresh" } else { "" }))
    }
}

impl Case {
    /// Whether it makes sense for `kind`: the floor relays connections as they come, and so shows the cost of
    /// kept ones that carry requests and of nothing else; and not all speak TLS.
    fn suits(self, kind: Kind) -> bool {
        let carries = match self.transport() {
            Transport::Clear => true,
            Transport::Tls(_) => kind.speaks_tls(),
            Transport::Passed => kind.passes_tcp(),
            Transport::Policed => kind.has_policies(),
        };
        let tunnels = !matches!(self, Self::Traffic { mode: Mode::Tunnel, .. }) || kind.makes_tunnels();
        let kept =
            matches!(self, Self::Traffic { mode: Mode::KeepAlive | Mode::Tunnel, .. } | Self::Tail { .. });
        carries && tunnels && (kept || kind != Kind::Floor)
    }

    /// How clients speak with the proxy.
    #[must_use]
    pub fn transport(self) -> Transport {
        match self {
            Self::Traffic { transport, .. } | Self::Idle { transport, .. } => transport,
            Self::Start | Self::Tail { .. } => Transport::Clear,
        }
    }

    /// The same case, as far as its length is its own, for a run that shows only that it works.
    #[must_use]
    pub fn quick(self) -> Self {
        match self {
            Self::Idle { transport, .. } => Self::Idle { connections: QUICK_IDLE, transport },
            other => other,
        }
    }

    fn load(self, target: SocketAddr) -> Option<Load> {
        let Self::Traffic { connections, body, upload, chunked, mode, .. } = self else { return None };
        Some(Load { target, connections, body, upload, chunked, mode, rate: None, keys: 0 })
    }
}

const FULL: Transport = Transport::Tls(Tickets::Ignore);
const RESUMED: Transport = Transport::Tls(Tickets::Use);

const fn traffic(connections: usize, body: usize, mode: Mode, transport: Transport) -> Case {
    Case::Traffic { connections, body, upload: 0, chunked: false, mode, transport }
}

/// The cases of a full run, by name.
pub const CASES: [(&str, Case); 14] = [
    ("ka64", traffic(64, 16, Mode::KeepAlive, Transport::Clear)),
    ("ka1000", traffic(1_000, 16, Mode::KeepAlive, Transport::Clear)),
    ("ka1", traffic(1, 16, Mode::KeepAlive, Transport::Clear)),
    ("close", traffic(16, 16, Mode::Close, Transport::Clear)),
    ("big", traffic(16, 1 << 20, Mode::KeepAlive, Transport::Clear)),
    ("ws64", traffic(64, 64, Mode::Tunnel, Transport::Clear)),
    ("idle", Case::Idle { connections: 6_000, transport: Transport::Clear }),
    ("start", Case::Start),
    ("tls_handshake", traffic(16, 16, Mode::Close, FULL)),
    ("tls_resumed", traffic(16, 16, Mode::Close, RESUMED)),
    ("tls_ka64", traffic(64, 16, Mode::KeepAlive, FULL)),
    ("tls_big", traffic(16, 1 << 20, Mode::KeepAlive, FULL)),
    ("tls_idle", Case::Idle { connections: 6_000, transport: FULL }),
    ("policy", traffic(64, 16, Mode::KeepAlive, Transport::Policed)),
];

/// What one measurement found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Of [`Case::Traffic`].
    Traffic(Traffic),
    /// Of [`Case::Idle`].
    Idle {
        /// Connections held.
        connections: usize,
        /// Memory after some requests, without connections (KiB PSS).
        at_rest_kib: u64,
        /// Memory with all connections idle (KiB PSS).
        idle_kib: u64,
    },
    /// Of [`Case::Start`].
    Start {
        /// Until the first answer (us).
        first_answer_us: u64,
    },
}

/// What one measurement of traffic found.
#[derive(Clone, Debug, Serialize)]
pub struct Traffic {
    /// Requests answered whole and right.
    pub requests: u64,
    /// Length of the measurement (s).
    pub seconds: f64,
    /// Requests per second.
    pub rate: f64,
    /// CPU time of the proxy per request (us); absent without a proxy.
    pub cpu_us: Option<f64>,
    /// Its part in user mode, 0 to 1.
    pub user_share: Option<f64>,
    /// Share of its core that the proxy used, 0 to 1. Well below 1, its load was the bottleneck and the
    /// rate says nothing about the proxy.
    pub busy: Option<f64>,
    /// CPU time of client and backend per request (us): what a proxy saves itself, they may have to pay.
    pub ends_us: f64,
    /// How often per request the proxy went to sleep.
    pub sleeps: Option<f64>,
    /// What kakehi's ring did, warm-up included; absent for all other proxies.
    pub ring: Option<PerRequest>,
    /// Median latency (us).
    pub p50_us: f64,
    /// Latency that one in a hundred exceeds (us).
    pub p99_us: f64,
    /// Latency that one in a thousand exceeds (us).
    pub p999_us: f64,
    /// Latency that one in ten thousand exceeds (us).
    pub p9999_us: f64,
    /// The longest latency (us).
    pub most_us: f64,
    /// Connections that the server ended and announced.
    pub renewed: u64,
    /// TLS handshakes, full and resumed.
    pub handshakes: Handshakes,
    /// Share of the attempts to resume that the server accepted, warm-up included, 0 to 1; absent if there were
    /// none. Each that it did not accept is a failed request too.
    pub resumed_share: Option<f64>,
}

/// A measurement with its errors, whose number must be 0.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was found.
    pub finding: Finding,
    /// Requests that failed, warm-up included.
    pub faults: Faults,
}

/// What all measurements of a run share.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Who runs where.
    pub cores: Cores,
    /// The backend behind every proxy.
    pub backend: SocketAddr,
    /// Length of one measurement of traffic, without warm-up.
    pub duration: Duration,
    /// Length of the warm-up.
    pub warm_up: Duration,
    /// What proxies show in the TLS cases.
    pub identity: Identity,
    /// Requests per second of the best peer in `ka64`, which the rates of the tail are a part of.
    pub best_rate: Option<f64>,
}

/// A proxy that runs, or none, and where requests go.
struct Running {
    process: Option<Process>,
    target: SocketAddr,
    tls: Option<Tls>,
    since_start: Duration,
    /// Where kakehi, if it is kakehi, answers `kakehictl`.
    control: Option<PathBuf>,
    folder: tempfile::TempDir,
}

impl Bench {
    /// Measures `case` on a fresh process of `peer`. `None` if the case makes no sense for it: without a
    /// proxy there is nothing to start and no memory, and the floor only knows kept connections.
    ///
    /// # Errors
    /// If the proxy does not start, or fails so often that there is nothing to measure.
    pub fn measure(&self, peer: &Peer, case: Case) -> Result<Option<Measured>, BenchError> {
        if !case.suits(peer.kind) {
            return Ok(None);
        }
        let running = self.start(peer, case.transport())?;
        if let Some(load) = case.load(running.target) {
            return self.traffic(&running, load, self.warm_up).map(Some);
        }
        match case {
            Case::Tail { percent, fresh } => {
                let Some(best) = self.best_rate else { return Ok(None) };
                let rate = Some(best * f64::from(percent) / 100.0);
                let load = Load { rate, connections: 64, ..Load::on(running.target) };
                let warm_up = if fresh { Duration::ZERO } else { self.warm_up };
                self.traffic(&running, load, warm_up).map(Some)
            }
            Case::Idle { connections, .. } => idle(&running, connections),
            _ if running.process.is_none() => Ok(None),
            _ => {
                let first_answer_us = u64::try_from(running.since_start.as_micros()).unwrap_or(u64::MAX);
                Ok(Some(Measured { finding: Finding::Start { first_answer_us }, faults: Faults::default() }))
            }
        }
    }

    /// Counts the system calls per request of `peer` under `case`, in a run of its own.
    ///
    /// # Errors
    /// As [`Self::measure`], or if strace is missing or not allowed.
    pub fn system_calls(&self, peer: &Peer, case: Case) -> Result<Option<(Calls, u64)>, BenchError> {
        if !case.suits(peer.kind) || !matches!(case, Case::Traffic { .. }) {
            return Ok(None);
        }
        let running = self.start(peer, case.transport())?;
        let (Some(process), Some(load)) = (&running.process, case.load(running.target)) else {
            return Ok(None);
        };
        let mut generator = running.generator(load)?;
        generator.drive(Bound::Time(self.warm_up))?;
        let strace = Strace::attach(&accounting::tree(process.id())?, running.folder.path())?;
        let tally = generator.drive(Bound::Time(TRACED))?;
        Ok(Some((strace.finish()?, tally.requests)))
    }

    fn start(&self, peer: &Peer, transport: Transport) -> Result<Running, BenchError> {
        let folder = tempfile::tempdir().attempt(|| "no temporary folder".into())?;
        let listen = free_address()?;
        let tls = match transport {
            Transport::Clear | Transport::Passed | Transport::Policed => None,
            Transport::Tls(tickets) => Some(Tls::new(self.identity.certificate().clone(), tickets)?),
        };
        let secure = tls.clone().map(|tls| (&self.identity, tls));
        let layer = match transport {
            Transport::Passed => Layer::Tcp,
            Transport::Policed => Layer::Policy,
            Transport::Clear | Transport::Tls(_) => Layer::Http,
        };
        let Some(program) = peer.prepare(folder.path(), listen, self.backend, layer, secure)? else {
            let (target, since_start) = (self.backend, Duration::ZERO);
            return Ok(Running { process: None, target, tls, since_start, control: None, folder });
        };
        let mut process = Process::start(program, self.cores.proxy)?;
        let since_start = process.wait_until_ready()?;
        let control = peer.control_socket(folder.path());
        Ok(Running { process: Some(process), target: listen, tls, since_start, control, folder })
    }

    fn traffic(&self, running: &Running, load: Load, warm_up: Duration) -> Result<Measured, BenchError> {
        let ring_at_first = running.control.as_deref().map(RingFigures::read).transpose()?;
        let mut generator = running.generator(load)?;
        let warm_up = (!warm_up.is_zero()).then(|| generator.drive(Bound::Time(warm_up))).transpose()?;
        let mut faults = warm_up.as_ref().map_or_else(Faults::default, |tally| tally.faults);
        let before = running.usage()?;
        let ends_before = own_cpu()?;
        let tally = generator.drive(Bound::Time(self.duration))?;
        let ends = own_cpu()?.saturating_sub(ends_before);
        let after = running.usage()?;
        faults.add(tally.faults);
        let used = after.zip(before).map(|(after, before)| after.since(&before));
        let mut found = Traffic::new(&tally, used, ends);
        let resumed_before = warm_up.map_or(0, |tally| tally.handshakes.resumed);
        let (resumed, refused) = (resumed_before + tally.handshakes.resumed, faults.of(Fault::NotResumed));
        found.resumed_share = (resumed + refused > 0).then(|| resumed as f64 / (resumed + refused) as f64);
        // After the meters were read: waiting for kakehi to publish its figures must cost nobody anything.
        if let Some((socket, first)) = running.control.as_deref().zip(ring_at_first) {
            found.ring = RingFigures::settle(socket)?.since(&first);
        }
        Ok(Measured { finding: Finding::Traffic(found), faults })
    }
}

impl Running {
    fn generator(&self, load: Load) -> Result<Generator, BenchError> {
        Generator::with(load, self.tls.clone())
    }

    fn usage(&self) -> Result<Option<Usage>, BenchError> {
        self.process.as_ref().map(|process| Usage::of_tree(process.id())).transpose()
    }
}

impl Traffic {
    fn new(tally: &Tally, used: Option<Usage>, ends: Duration) -> Self {
        let requests = tally.requests.max(1) as f64;
        let elapsed_ns = tally.elapsed.as_nanos().max(1) as f64;
        let latency = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            requests: tally.requests,
            seconds: tally.elapsed.as_secs_f64(),
            rate: tally.rate(),
            cpu_us: used.map(|used| used.cpu_ns as f64 / 1e3 / requests),
            user_share: used.and_then(|used| used.user_share()),
            busy: used.map(|used| used.cpu_ns as f64 / elapsed_ns),
            ends_us: ends.as_nanos() as f64 / 1e3 / requests,
            sleeps: used.map(|used| used.sleeps as f64 / requests),
            ring: None,
            p50_us: latency(0.5),
            p99_us: latency(0.99),
            p999_us: latency(0.999),
            p9999_us: latency(0.9999),
            most_us: tally.latency.max() as f64 / 1e3,
            renewed: tally.renewed,
            handshakes: tally.handshakes,
            resumed_share: None,
        }
    }
}

fn idle(running: &Running, connections: usize) -> Result<Option<Measured>, BenchError> {
    let Some(process) = &running.process else { return Ok(None) };
    let load = Load { connections: 16, ..Load::on(running.target) };
    let mut faults = running.generator(load)?.drive(Bound::Requests(REQUESTS_AT_REST))?.faults;
    let at_rest_kib = pss_kib(process.id())?;
    let mut generator = running.generator(Load { connections, mode: Mode::Hold, ..load })?;
    faults.add(generator.drive(Bound::Requests(connections as u64))?.faults);
    faults.add(generator.drive(Bound::Time(SETTLE))?.faults);
    let idle_kib = pss_kib(process.id())?;
    Ok(Some(Measured { finding: Finding::Idle { connections, at_rest_kib, idle_kib }, faults }))
}
