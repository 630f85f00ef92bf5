//! How a request gets a connection to an endpoint of a cluster: an idle one, or a new one, or that of another endpoint
//! when a connection attempt fails.

use std::rc::Rc;

use kakehi_ctl::state;

use super::{
    affinity::Affinity,
    balance,
    cluster::{Cluster, Endpoints},
    endpoint::Endpoint,
    lease::{InUse, Lease},
    pool::Pooling,
    queue::Full,
};
use crate::{
    http::Reason,
    observe::Counter,
    ring::{Share, Stream, Timer},
    tls::{Connector, FailureKind},
    transfer::{Watch, receive_watching},
    transport::{AddressPair, TransportStream, proxy_header},
};

/// Most backends that are tried for one request.
const MAX_ATTEMPTS: usize = 5;

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
    /// Those of the cluster when the request came.
    members: Option<Rc<Endpoints>>,
    indices: Vec<usize>,
    /// Until when it waits for room (ms), once it has begun to.
    queue_due: Option<u64>,
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
        let AttemptedEndpoints { members, indices, queue_due } = attempted;
        let members: &Endpoints = members.get_or_insert_with(|| Rc::clone(&self.members.borrow()));
        while indices.len() < MAX_ATTEMPTS
            && let Some((index, in_use)) = members.take_place(pooling, indices, queue_due, options).await?
        {
            let backend = &members.members[index].backend;
            if !options.fresh
                && !members.settings.send_proxy
                && let Some(stream) = backend.idle.borrow_mut().take(&pooling.counters)
            {
                pooling.counters.count(Counter::UpstreamReused);
                return Ok(Lease::counted(stream, in_use, true).timed(members.balance.is_timed()));
            }
            indices.push(index);
            // Boxed: rare beside the reuse of an idle connection, and large with the address in it.
            match Box::pin(backend.open(pooling, self.share, &members.settings, options)).await {
                Ok(stream) => {
                    // It did not fail: it may be asked again for this request.
                    indices.pop();
                    let lease = Lease::counted(stream, in_use, false).timed(members.balance.is_timed());
                    return Ok(if members.settings.send_proxy { lease.private() } else { lease });
                }
                Err(ConnectError::Unreachable(reason)) => failure = reason,
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
    /// A place at a backend that was not tried yet, with its index; `None` when there is no other. Waits for room where requests may.
    ///
    /// # Errors
    /// `QueueFull` or `QueueTimeout` when there is no room, and `ClientGone`.
    async fn take_place(
        &self,
        pooling: &Pooling,
        tried: &[usize],
        queue_due: &mut Option<u64>,
        options: &ConnectOptions<'_>,
    ) -> Result<Option<(usize, InUse)>, ConnectError> {
        let bound = match self.queue.is_used(pooling) {
            // Whoever waits goes first.
            true => self.balance.is_bound(options.affinity),
            false => match self.look_for_place(pooling, tried, options.affinity) {
                Ok(place) => return Ok(place),
                Err(NoRoom { bound }) => bound,
            },
        };
        if !self.queue.is_there() {
            return Err(ConnectError::Unreachable(Reason::QueueFull));
        }
        let now = pooling.ring.now();
        let due = *queue_due.get_or_insert(now.saturating_add(self.queue_timeout_ms));
        let look = || self.look_for_place(pooling, tried, options.affinity).ok();
        // Boxed: rare, and large beside what waits for a backend.
        let waiting = Box::pin(self.queue.wait(pooling, bound, look));
        match receive_watching(waiting, options.client, options.timer, (now, due)).await {
            Ok(Some(Ok(place))) => Ok(place),
            Ok(Some(Err(Full))) => Err(ConnectError::Unreachable(Reason::QueueFull)),
            Ok(None) => Err(ConnectError::Unreachable(Reason::QueueTimeout)),
            Err(_) => Err(ConnectError::ClientGone),
        }
    }

    /// The same at once.
    fn look_for_place(
        &self,
        pooling: &Pooling,
        tried: &[usize],
        affinity: Affinity,
    ) -> Result<Option<(usize, InUse)>, NoRoom> {
        let (now, ledger) = (pooling.ring.now(), pooling.ledger.as_ref());
        let choose =
            |excluded: &[usize]| self.balance.choose(&self.members, excluded, affinity, (now, ledger));
        let Some(mut index) = choose(tried) else { return Ok(None) };
        let bound = self.balance.is_bound(affinity);
        let mut excluded = Vec::new();
        loop {
            let member = &self.members[index];
            // Before it is counted.
            member.backend.load.slot(ledger);
            let in_use = InUse::new(&member.backend);
            if member.max_connections == 0 || member.backend.load.fits(member.max_connections, ledger) {
                return Ok(Some((index, in_use)));
            }
            in_use.take_back();
            if excluded.is_empty() {
                excluded.extend_from_slice(tried);
            }
            excluded.push(index);
            let rank = balance::class(member, now);
            let next = choose(&excluded).filter(|next| {
                // Rather than going to a backup, or to what failed lately, it waits.
                !self.queue.is_there() || (!bound && balance::class(&self.members[*next], now) == rank)
            });
            index = next.ok_or(NoRoom { bound })?;
        }
    }
}

impl Endpoint {
    async fn open(
        &self,
        pooling: &Pooling,
        share: Share,
        settings: &ConnectSettings,
        options: &ConnectOptions<'_>,
    ) -> Result<TransportStream, ConnectError> {
        let counters = &pooling.counters;
        let now = pooling.ring.now();
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
                return Ok(stream);
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
        let session = connector.connect(&pooling.ring, &stream, address).await.map_err(|failure| {
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
