//! How a request gets a connection to an endpoint of a cluster: an idle one, or a new one, or that of another endpoint
//! when a connection attempt fails.

use std::rc::Rc;

use kakehi_ctl::state;

use super::{
    affinity::Affinity,
    cluster::{Cluster, Endpoints},
    endpoint::Endpoint,
    lease::Lease,
    pool::Pooling,
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
    /// No backend can be reached: `NoBackend`, `BackendConnectFailed`, `BackendConnectTimeout` when the last attempt was too
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
        let AttemptedEndpoints { members, indices } = attempted;
        let members: &Endpoints = members.get_or_insert_with(|| Rc::clone(&self.members.borrow()));
        while indices.len() < MAX_ATTEMPTS
            && let Some(index) =
                members.balance.choose(&members.members, indices, options.affinity, pooling.ring.now())
        {
            let backend = &members.members[index].backend;
            if backend.verdicts.is_probe_down() {
                pooling.counters.count(Counter::ProbesOverruled);
            }
            if !options.fresh
                && !members.settings.send_proxy
                && let Some(stream) = backend.idle.borrow_mut().take(&pooling.counters)
            {
                pooling.counters.count(Counter::UpstreamReused);
                return Ok(Lease::new(stream, Rc::clone(backend), true).timed(members.balance.is_timed()));
            }
            indices.push(index);
            // Boxed: rare beside the reuse of an idle connection, and large with the address in it.
            match Box::pin(backend.open(pooling, self.share, &members.settings, options)).await {
                Ok(stream) => {
                    // It did not fail: it may be asked again for this request.
                    indices.pop();
                    let lease = Lease::new(stream, Rc::clone(backend), false);
                    let lease = lease.timed(members.balance.is_timed());
                    return Ok(if members.settings.send_proxy { lease.private() } else { lease });
                }
                Err(ConnectError::Unreachable(reason)) => failure = reason,
                Err(ConnectError::ClientGone) => return Err(ConnectError::ClientGone),
            }
        }
        Err(ConnectError::Unreachable(failure))
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
