//! How a request gets a connection to an endpoint of a cluster: an idle one, or a new one, or that of another endpoint
//! when a connection attempt fails.

use std::rc::Rc;

use kakehi_ctl::state::{self, Retries};

use super::{
    affinity::Affinity,
    balance::{self, Present},
    cluster::{Cluster, Endpoints},
    ejection::{self, Moment},
    endpoint::Endpoint,
    lease::{InUse, Lease},
    pool::Pooling,
    queue::Full,
    trial,
};
use crate::{
    http::Reason,
    limits,
    observe::Counter,
    ring::{Share, Stream, Timer},
    tls::{Connector, FailureKind},
    transfer::{Watch, receive_watching},
    transport::{AddressPair, TransportStream, proxy_header},
};

/// So many requests may be sent again in 10 seconds, however few there are.
const LEAST_RETRIES: u64 = 30;

/// How connections to the backends of a cluster are made.
#[derive(Default)]
pub(super) struct ConnectSettings {
    /// As it is configured.
    pub(super) configured: Option<Box<state::BackendTls>>,
    pub(super) connector: Option<Connector>,
    pub(super) send_proxy: bool,
}

/// How a request wants to get to a backend.
pub struct ConnectOptions<'a> {
    /// Idle connections are left alone: a repeated request does not meet another that has just died.
    pub fresh: bool,
    /// Which backend it belongs to.
    pub affinity: Affinity,
    /// Deadline of each attempt (ms).
    pub connect_ms: u64,
    /// For that deadline.
    pub timer: &'a Timer,
    /// Whom it is for, and whether it is seen to while a connection is made.
    pub client: (&'a TransportStream, Watch),
    /// How it is seen to while it waits for a backend to have room.
    pub watch_in_queue: Watch,
    /// Whom it is for, as far as that is known; asked for where backends are told.
    pub addresses: &'a dyn Fn() -> Option<AddressPair>,
}

/// Why there is no connection for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// No backend can be reached or has room: `NoBackend`, `QueueFull`, `QueueTimeout`, `BackendConnectFailed`, `BackendConnectTimeout` when the last attempt was too
    /// slow, `BackendTlsFailed` or `BackendCertificate`.
    Unreachable(Reason),
    /// The client went away meanwhile.
    ClientGone,
}

/// The backends that were tried for a request, so that none is tried twice.
#[derive(Default, Clone)]
pub struct AttemptedEndpoints {
    /// Those of the cluster when it was asked last.
    members: Option<Rc<Endpoints>>,
    indices: Vec<usize>,
    /// Those that were reached, and have not answered, or badly: a bit for each of the first 64.
    answered: u64,
    /// Until when it waits for room (ms), once it has begun to.
    queue_due: u64,
    /// How often a connection was asked for.
    attempts: u8,
}

impl AttemptedEndpoints {
    /// The endpoint behind `lease` was reached, and is to be asked again only when there is no other.
    pub fn note_answered(&mut self, lease: &Lease) {
        self.answered |=
            lease.index().and_then(|index| 1_u64.checked_shl(u32::try_from(index).ok()?)).unwrap_or(0);
    }

    /// The endpoint behind `lease` has answered with this status within this time (ms), or not at all.
    pub fn note_answer(&self, lease: &Lease, pooling: &Pooling, status: Option<u16>, elapsed: u32) {
        if let (Some(members), Some(index)) = (&self.members, lease.index()) {
            members.note_answer(index, pooling, status, elapsed);
        }
    }

    /// The connection is passed on as it is: that the endpoint was reached is all that it says.
    pub fn note_connected(&self, lease: &Lease, pooling: &Pooling) {
        if let (Some(members), Some(index)) = (&self.members, lease.index()) {
            members.note_connected(index, pooling);
        }
    }

    /// The endpoint that was asked last.
    pub fn last(&self) -> Option<Rc<Endpoint>> {
        let members = self.members.as_ref()?;
        members.members.get(*self.indices.last()?).map(|member| Rc::clone(&member.backend))
    }

    /// Goes by what `cluster` consists of now.
    fn follow(&mut self, cluster: &Cluster) {
        let now = Rc::clone(&cluster.members.borrow());
        let Some(before) = self.members.as_ref().filter(|before| !Rc::ptr_eq(before, &now)) else {
            self.members = Some(now);
            return;
        };
        let place_now = |index: usize| {
            let endpoint = &before.members.get(index)?.backend;
            now.members.iter().position(|member| Rc::ptr_eq(&member.backend, endpoint))
        };
        let answered = (0..64).filter(|index| self.answered >> index & 1 == 1).filter_map(place_now);
        let answered = answered.filter_map(|index| 1_u64.checked_shl(u32::try_from(index).ok()?));
        let answered = answered.fold(0, |all, bit| all | bit);
        self.indices = self.indices.iter().filter_map(|index| place_now(*index)).collect();
        (self.answered, self.members) = (answered, Some(now));
    }

    /// A request that a pooled connection has not carried over is no attempt.
    pub fn take_back(&mut self) {
        self.attempts = self.attempts.saturating_sub(1);
    }

    /// Whether there may be another attempt.
    pub fn may_go_on(&self) -> bool {
        self.members.as_ref().is_none_or(|members| self.attempts < members.max_attempts())
    }
}

impl Cluster {
    /// A connection to a backend that was not tried yet: an idle one, else a new one; other backends when
    /// connecting fails.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        &self,
        pooling: &Pooling,
        attempted: &mut AttemptedEndpoints,
        options: &ConnectOptions<'_>,
    ) -> Result<Lease, ConnectError> {
        let mut failure = Reason::NoBackend;
        loop {
            attempted.follow(self);
            let AttemptedEndpoints { members: Some(members), indices, answered, attempts, queue_due } =
                attempted
            else {
                break;
            };
            if *attempts >= members.max_attempts() {
                break;
            }
            let place = match members.place_at_once(pooling, indices, *answered, options.affinity) {
                Ok(place) => place,
                Err(NoRoom { bound }) => {
                    let tried = members.tried(pooling, indices, *answered, options.affinity);
                    // Boxed: rare, and large beside what waits for a backend.
                    Box::pin(members.wait_for_place(pooling, tried, bound, queue_due, options)).await?
                }
            };
            let Some((index, in_use)) = place else {
                if members.outdated.get() {
                    continue;
                }
                break;
            };
            *attempts += 1;
            let backend = &members.members[index].backend;
            if backend.verdicts.is_probe_down() {
                pooling.counters.count(Counter::ProbesOverruled);
            }
            if !options.fresh
                && !members.settings.send_proxy
                && let Some(stream) = backend.idle.borrow_mut().take(&pooling.counters)
            {
                pooling.counters.count(Counter::UpstreamReused);
                return Ok(Lease::counted(stream, in_use, true).at(index));
            }
            indices.push(index);
            // Boxed: rare beside the reuse of an idle connection, and large with the address in it.
            match Box::pin(backend.open(pooling, self.share, &members.settings, options)).await {
                // Another worker tries it: that is no attempt of ours.
                Ok(None) => *attempts -= 1,
                Ok(Some(stream)) => {
                    // It did not fail: it may be asked again for this request.
                    indices.pop();
                    let lease = Lease::counted(stream, in_use, false).at(index);
                    return Ok(if members.settings.send_proxy { lease.private() } else { lease });
                }
                Err(ConnectError::Unreachable(reason)) => {
                    members.note_answer(index, pooling, None, 0);
                    failure = reason;
                }
                Err(ConnectError::ClientGone) => return Err(ConnectError::ClientGone),
            }
        }
        Err(ConnectError::Unreachable(failure))
    }
}

/// The backends that could be used have no room.
struct NoRoom {
    /// The request is for one of them alone.
    bound: bool,
}

impl Endpoints {
    /// Those that a request does not go to: that could not be reached, and, where there is another, that have answered badly.
    fn tried(&self, pooling: &Pooling, unreached: &[usize], answered: u64, affinity: Affinity) -> Vec<usize> {
        let mut tried = unreached.to_vec();
        if answered != 0 {
            tried.extend((0..64).filter(|index| answered >> index & 1 == 1));
            let present = self.present(pooling);
            if self.balance.choose(&self.members, &tried, affinity, present).is_none() {
                tried.truncate(unreached.len());
            }
        }
        tried
    }

    /// A place at a backend that was not tried yet, with its index; `None` when there is no other.
    ///
    /// # Errors
    /// When none of them has room, or others wait for it.
    fn place_at_once(
        &self,
        pooling: &Pooling,
        unreached: &[usize],
        answered: u64,
        affinity: Affinity,
    ) -> Result<Option<(usize, InUse)>, NoRoom> {
        if self.queue.as_ref().is_some_and(|queue| queue.is_used(pooling)) {
            // Whoever waits goes first.
            return Err(NoRoom { bound: self.balance.is_bound(affinity) });
        }
        let tried = self.tried(pooling, unreached, answered, affinity);
        self.look_for_place(pooling, &tried, affinity)
    }

    /// The same, as soon as there is room, where requests may wait for it.
    ///
    /// # Errors
    /// `QueueFull` or `QueueTimeout` when there is none, and `ClientGone`.
    async fn wait_for_place(
        &self,
        pooling: &Pooling,
        tried: Vec<usize>,
        bound: bool,
        queue_due: &mut u64,
        options: &ConnectOptions<'_>,
    ) -> Result<Option<(usize, InUse)>, ConnectError> {
        let Some(queue) = &self.queue else {
            return Err(ConnectError::Unreachable(Reason::QueueFull));
        };
        let now = pooling.ring.now();
        if *queue_due == 0 {
            *queue_due = now.saturating_add(self.queue_timeout_ms);
        }
        let due = *queue_due;
        let look = || match self.outdated.get() {
            // There may be others.
            true => Some(None),
            false => self.look_for_place(pooling, &tried, options.affinity).ok(),
        };
        let waiting = queue.wait(pooling, bound, look);
        let client = (options.client.0, options.watch_in_queue);
        match receive_watching(waiting, client, options.timer, (now, due)).await {
            Ok(Some(Ok(place))) => Ok(place),
            Ok(Some(Err(Full))) => Err(ConnectError::Unreachable(Reason::QueueFull)),
            Ok(None) => Err(ConnectError::Unreachable(Reason::QueueTimeout)),
            Err(_) => Err(ConnectError::ClientGone),
        }
    }

    /// Backends that are tried for one request.
    fn max_attempts(&self) -> u8 {
        self.retries.as_ref().map_or(limits::MAX_CONNECTION_ATTEMPTS, |retries| retries.max_attempts)
    }

    fn present<'a>(&self, pooling: &'a Pooling) -> Present<'a> {
        Present { now: pooling.ring.now(), host: pooling.host_now(), ledger: pooling.ledger.as_ref() }
    }

    /// The endpoint at `index` was reached, where it gives no answers that are looked at.
    pub(super) fn note_connected(&self, index: usize, pooling: &Pooling) {
        if self.passive.enabled {
            let moment = self.moment(pooling);
            ejection::succeeded(&self.passive, &self.members, index, &moment);
        }
    }

    fn moment<'a>(&self, pooling: &'a Pooling) -> Moment<'a> {
        Moment { host: pooling.host_now(), ring: pooling.ring.now(), ledger: pooling.ledger.as_ref() }
    }

    /// The endpoint at `index` has answered with this status within this time (ms), or not at all.
    pub(super) fn note_answer(&self, index: usize, pooling: &Pooling, status: Option<u16>, elapsed: u32) {
        let passive = &self.passive;
        let endpoint = &self.members[index].backend;
        let now = pooling.ring.now();
        // One that was not reached says nothing of how long answers take.
        let says_time = status.is_some() || elapsed > 0;
        if says_time && (self.balance.is_timed() || passive.latency_factor.is_on()) {
            endpoint.load.answering.observe_peak(u64::from(elapsed), now);
        }
        if !passive.enabled {
            return;
        }
        let moment = self.moment(pooling);
        let ejected = match status {
            Some(status) if !passive.statuses.contains(status) => {
                ejection::succeeded(passive, &self.members, index, &moment)
            }
            _ => ejection::failed(passive, &self.members, index, &moment),
        };
        if ejected {
            pooling.counters.count(Counter::UpstreamEjections);
            tracing::warn!(backend = %endpoint.id, "answers badly: it is passed over for a while (`passive`)");
        }
    }

    /// The same at once.
    fn look_for_place(
        &self,
        pooling: &Pooling,
        tried: &[usize],
        affinity: Affinity,
    ) -> Result<Option<(usize, InUse)>, NoRoom> {
        let present = self.present(pooling);
        let ledger = present.ledger;
        let choose = |excluded: &[usize]| self.balance.choose(&self.members, excluded, affinity, present);
        let Some(mut index) = choose(tried) else { return Ok(None) };
        let bound = self.balance.is_bound(affinity);
        let mut excluded = Vec::new();
        loop {
            let member = &self.members[index];
            // Before it is counted.
            member.backend.load.slot(ledger);
            let in_use = InUse::new(&member.backend);
            if member.max_connections == 0 || member.backend.load.fits(member.max_connections, ledger) {
                self.balance.took(&self.members, index, present);
                return Ok(Some((index, in_use)));
            }
            in_use.take_back();
            if excluded.is_empty() {
                excluded.extend_from_slice(tried);
            }
            excluded.push(index);
            let judge = self.balance.judge(&self.members, present);
            let rank = balance::class(member, judge);
            let next = choose(&excluded).filter(|next| {
                // Rather than going to a backup, or to what failed lately, it waits.
                self.queue.is_none() || (!bound && balance::class(&self.members[*next], judge) == rank)
            });
            index = next.ok_or(NoRoom { bound })?;
        }
    }
}

/// A connection that is being made, as long as this lives.
struct Opening<'a>(&'a Endpoint);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
    }
}

impl Cluster {
    /// Counts a request that might be sent again.
    pub fn count_request(&self, pooling: &Pooling) {
        let members = self.members.borrow();
        if let Some(repetitions) = &members.repetitions {
            repetitions.count(false, pooling.host_now(), pooling.ledger.as_ref());
        }
    }

    /// When requests are sent again, if they are.
    pub fn retries(&self) -> Option<Rc<Retries>> {
        self.members.borrow().retries.as_ref().map(Rc::clone)
    }

    /// Whether one more request may be sent again; then it counts as such.
    pub fn spend_retry(&self, pooling: &Pooling) -> bool {
        let members = self.members.borrow();
        let (Some(retries), Some(repetitions)) = (&members.retries, &members.repetitions) else {
            return false;
        };
        let (now, ledger) = (pooling.host_now(), pooling.ledger.as_ref());
        let budget = u64::from(retries.budget);
        let counts = repetitions.sum(now, ledger);
        let most = (counts.all * budget / 100).max(LEAST_RETRIES);
        let allowed = budget > 0 && counts.some < most;
        if allowed {
            repetitions.mark(now, ledger);
        } else {
            pooling.counters.count(Counter::RetryBudgetSpent);
        }
        allowed
    }
}

impl Endpoint {
    /// A new connection; `None`: it could not be reached lately, and another worker is trying it.
    async fn open(
        &self,
        pooling: &Pooling,
        share: Share,
        settings: &ConnectSettings,
        options: &ConnectOptions<'_>,
    ) -> Result<Option<TransportStream>, ConnectError> {
        let counters = &pooling.counters;
        let now = pooling.ring.now();
        let Ok(_trial) = trial::begin(self, options.connect_ms, pooling) else { return Ok(None) };
        self.opening.set(self.opening.get() + 1);
        let _opening = Opening(self);
        let attempt = self.reach(pooling, share, settings, options);
        let times = (now, now.saturating_add(options.connect_ms));
        let reached = receive_watching(attempt, options.client, options.timer, times).await;
        let reason = match reached.map_err(|_| ConnectError::ClientGone)? {
            Some(Ok(stream)) => {
                if self.health.connected() {
                    self.start.begin();
                }
                self.load.connecting.observe(pooling.ring.now() - now, pooling.ring.now());
                counters.count(Counter::UpstreamConnects);
                return Ok(Some(stream));
            }
            Some(Err(reason)) => reason,
            None => Reason::BackendConnectTimeout,
        };
        self.health.failed(pooling.ring.now());
        counters.count(Counter::UpstreamConnectErrors);
        Err(ConnectError::Unreachable(reason))
    }

    /// Connects, and says and does what has to come before the first request.
    async fn reach(
        &self,
        pooling: &Pooling,
        share: Share,
        settings: &ConnectSettings,
        options: &ConnectOptions<'_>,
    ) -> Result<TransportStream, Reason> {
        let stream = Stream::connect(&pooling.ring, self.address.clone(), share).await.map_err(|error| {
            tracing::debug!(backend = %self.id, %error, "cannot connect");
            Reason::BackendConnectFailed
        })?;
        if settings.send_proxy {
            let mut header = pooling.ring.head_buffer();
            proxy_header::write_v2((options.addresses)().as_ref(), &mut header);
            stream.start_send(header.into());
        }
        let Some(connector) = &settings.connector else { return Ok(stream.into()) };
        let address = self.address.as_socket().map(|address| address.ip());
        let session = connector
            .connect(&pooling.ring, &stream, (self.server_name.as_deref(), address))
            .await
            .map_err(|failure| {
                pooling.counters.count(Counter::UpstreamTlsErrors);
                self.note_tls_failure(&failure);
                match failure.kind() {
                    FailureKind::Certificate => Reason::BackendCertificate,
                    _ => Reason::BackendTlsFailed,
                }
            })?;
        let mut stream = TransportStream::from(stream);
        stream.secure(&pooling.ring, session);
        Ok(stream)
    }
}
