//! A cluster and its endpoints, and how a request gets a connection to one of them: an idle connection, or a new one, or
//! that of another endpoint when a connection attempt fails.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
};

use kakehi_ctl::state;
use socket2::SockAddr;

use super::{
    balance::{self, Balance},
    pool::{IdlePool, Pooling, Upstream},
};
use crate::{
    http::Reason,
    observe::{Counter, LogLimit},
    ring::{Share, Stream, Timer},
    tls::{Connector, Context, Failure, FailureKind, TlsError},
    transport::{AddressPair, TransportStream, proxy_header},
};

/// Most backends that are tried for one request.
const MAX_ATTEMPTS: usize = 5;

/// A backend with what this worker knows of it. One of the same name and address stays the same through all changes.
pub struct Endpoint {
    /// Its name in the configuration.
    pub id: String,
    address: SockAddr,
    pub(super) health: balance::Health,
    pub(super) idle: RefCell<IdlePool>,
    /// It is in the configuration no more: it finishes what it has, and keeps no idle connections.
    pub(super) retired: Cell<bool>,
    /// That a handshake with it has failed was said.
    tls_failed: Cell<bool>,
    /// Lines of the log about its responses.
    pub(super) complaints: LogLimit,
}

/// A backend's place in a cluster.
pub(super) struct Member {
    pub(super) backend: Rc<Endpoint>,
    pub(super) weight: u8,
    pub(super) backup: bool,
}

/// The backends of a cluster at one time: immutable, and swapped whole.
pub struct Endpoints {
    pub(super) members: Vec<Member>,
    pub(super) balance: Balance,
    settings: ConnectSettings,
}

/// How connections to the backends of a cluster are made.
#[derive(Default)]
struct ConnectSettings {
    /// As it is configured.
    configured: Option<Box<state::BackendTls>>,
    connector: Option<Connector>,
    send_proxy: bool,
}

/// Why a cluster cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The path of a unix socket is too long.
    #[error("{0}")]
    Address(#[from] io::Error),
    /// TLS to its backends cannot be set up.
    #[error("`backend_tls`: {0}")]
    Tls(#[from] TlsError),
}

/// How a request wants to get to a backend.
pub struct ConnectOptions<'a> {
    /// Idle connections are left alone: a repeated request does not meet another that has just died.
    pub fresh: bool,
    /// Deadline of each attempt (ms).
    pub connect_ms: u64,
    /// For that deadline.
    pub timer: &'a Timer,
    /// Whom it is for, as far as that is known; asked for where backends are info.
    pub addresses: &'a dyn Fn() -> Option<AddressPair>,
}

/// A cluster, compiled. It lives as long as its name is configured; what it consists of may change.
pub struct Cluster {
    /// Its name in the configuration.
    pub name: String,
    /// Of the buffers that backends send into.
    share: Share,
    pub(super) members: RefCell<Rc<Endpoints>>,
}

/// The backends that were tried for a request, so that none is tried twice.
#[derive(Default, Clone)]
pub struct AttemptedEndpoints {
    /// Those of the cluster when the request came.
    members: Option<Rc<Endpoints>>,
    indices: Vec<usize>,
}

impl Endpoints {
    /// Those of `cluster`; backends that are `present` already are taken over with all that is known of them.
    ///
    /// Without `tls` it is only checked what can be without the vault.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(
        cluster: &state::Cluster,
        present: Option<&Cluster>,
        tls: Option<&Context>,
    ) -> Result<Endpoints, ClusterError> {
        let present = present.map(|cluster| Rc::clone(&cluster.members.borrow()));
        // Idle connections that were made otherwise are of no use.
        let present = present.filter(|present| {
            present.settings.configured == cluster.tls && present.settings.send_proxy == cluster.send_proxy
        });
        let members = cluster
            .backends
            .iter()
            .map(|configured| {
                let address = match &configured.address {
                    state::BackendAddress::Ip(address) => SockAddr::from(*address),
                    state::BackendAddress::Unix(path) => SockAddr::unix(path)?,
                };
                let same = |it: &&Member| it.backend.id == configured.id && it.backend.address == address;
                let known = present.as_ref().and_then(|present| present.members.iter().find(same));
                let backend = match known {
                    Some(known) => Rc::clone(&known.backend),
                    None => Rc::new(Endpoint {
                        id: configured.id.clone(),
                        address,
                        health: balance::Health::default(),
                        idle: RefCell::default(),
                        retired: Cell::new(false),
                        tls_failed: Cell::new(false),
                        complaints: LogLimit::default(),
                    }),
                };
                Ok(Member { backend, weight: configured.weight, backup: configured.backup })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let balance = Balance::new(members.len());
        let connector = match (&cluster.tls, tls) {
            (Some(configured), Some(context)) => Some(Connector::compile(context, configured)?),
            _ => None,
        };
        let settings =
            ConnectSettings { configured: cluster.tls.clone(), connector, send_proxy: cluster.send_proxy };
        Ok(Endpoints { members, balance, settings })
    }
}

impl Cluster {
    /// A cluster of the state.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(name: &str, cluster: &state::Cluster, tls: Option<&Context>) -> Result<Cluster, ClusterError> {
        let members = RefCell::new(Rc::new(Endpoints::new(cluster, None, tls)?));
        Ok(Cluster { name: name.to_owned(), share: Share::of(name), members })
    }

    /// From now on it consists of `members`. Backends that are not among them finish the requests that they have;
    /// their idle connections are closed.
    pub fn replace(&self, members: Endpoints, pooling: &Pooling) {
        let before = self.members.replace(Rc::new(members));
        let now = self.members.borrow();
        for Member { backend, .. } in &before.members {
            if !now.members.iter().any(|member| Rc::ptr_eq(&member.backend, backend)) {
                backend.retire(pooling);
            }
        }
    }

    /// The backend of this name.
    pub fn endpoint(&self, id: &str) -> Option<Rc<Endpoint>> {
        let members = self.members.borrow();
        members.members.iter().find(|member| member.backend.id == id).map(|member| Rc::clone(&member.backend))
    }

    /// It is configured no more: all its backends go; see [`Cluster::replace`].
    pub fn retire(&self, pooling: &Pooling) {
        let settings = ConnectSettings::default();
        self.replace(Endpoints { members: Vec::new(), balance: Balance::new(0), settings }, pooling);
    }

    /// A connection to a backend that was not tried yet: an idle one, else a new one; other backends when
    /// connecting fails.
    ///
    /// # Errors
    /// `NoBackend`, `BackendConnectFailed`, `BackendConnectTimeout` when the last attempt was too slow, or
    /// `BackendTlsFailed` and `BackendCertificate`.
    pub async fn connect(
        &self,
        pooling: &Pooling,
        attempted: &mut AttemptedEndpoints,
        options: ConnectOptions<'_>,
    ) -> Result<Upstream, Reason> {
        let mut failure = Reason::NoBackend;
        let AttemptedEndpoints { members, indices } = attempted;
        let members: &Endpoints = members.get_or_insert_with(|| Rc::clone(&self.members.borrow()));
        while indices.len() < MAX_ATTEMPTS
            && let Some(index) = members.balance.choose(&members.members, indices, pooling.ring.now())
        {
            let backend = &members.members[index].backend;
            if !options.fresh
                && !members.settings.send_proxy
                && let Some(stream) = backend.idle.borrow_mut().take(&pooling.counters)
            {
                pooling.counters.count(Counter::UpstreamReused);
                return Ok(Upstream::new(stream, Rc::clone(backend), true));
            }
            indices.push(index);
            // Boxed: rare beside the reuse of an idle connection, and large with the address in it.
            match Box::pin(backend.open(pooling, self.share, &members.settings, &options)).await {
                Ok(stream) => {
                    // It did not fail: it may be asked again for this request.
                    indices.pop();
                    let upstream = Upstream::new(stream, Rc::clone(backend), false);
                    return Ok(if members.settings.send_proxy { upstream.private() } else { upstream });
                }
                Err(reason) => failure = reason,
            }
        }
        Err(failure)
    }

    /// Throws away idle connections that are closed or too old.
    pub fn trim(&self, pooling: &Pooling) {
        for Member { backend, .. } in &self.members.borrow().members {
            backend.idle.borrow_mut().trim(pooling);
        }
    }
}

impl Endpoint {
    fn retire(&self, pooling: &Pooling) {
        self.retired.set(true);
        self.idle.borrow_mut().clear(pooling);
    }

    async fn open(
        &self,
        pooling: &Pooling,
        share: Share,
        settings: &ConnectSettings,
        options: &ConnectOptions<'_>,
    ) -> Result<TransportStream, Reason> {
        let counters = &pooling.counters;
        options.timer.set(options.connect_ms);
        let reason = match options.timer.limit(self.reach(pooling, share, settings, options)).await {
            Ok(Ok(stream)) => {
                self.health.connected();
                counters.count(Counter::UpstreamConnects);
                return Ok(stream);
            }
            Ok(Err(reason)) => reason,
            Err(_) => Reason::BackendConnectTimeout,
        };
        self.health.failed(pooling.ring.now());
        counters.count(Counter::UpstreamConnectErrors);
        Err(reason)
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
        let session = connector.connect(&stream, address).await.map_err(|failure| {
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

    /// An operator has to see why a backend is not used; not with every request.
    fn note_tls_failure(&self, failure: &Failure) {
        if self.tls_failed.replace(true) {
            tracing::debug!(backend = %self.id, "no TLS connection: {failure}");
        } else {
            tracing::warn!(backend = %self.id, "no TLS connection: {failure}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(addresses: &[&str]) -> Result<Cluster, ClusterError> {
        let backends = addresses.iter().enumerate().map(|(n, address)| state::Backend {
            id: format!("b{n}"),
            address: address.parse().unwrap(),
            weight: 100,
            backup: false,
        });
        Cluster::new(
            "web",
            &state::Cluster { backends: backends.collect(), ..state::Cluster::default() },
            None,
        )
    }

    #[test]
    fn backends_are_compiled_in_the_order_of_the_state() {
        let cluster = cluster(&["127.0.0.1:80", "[::1]:81", "unix:/run/app.sock"]).unwrap();
        assert_eq!(cluster.name, "web");
        let members = cluster.members.borrow();
        let backends = || members.members.iter().map(|member| &member.backend);
        let ids: Vec<_> = backends().map(|backend| backend.id.as_str()).collect();
        assert_eq!(ids, ["b0", "b1", "b2"]);
        let addresses: Vec<_> = backends().map(|backend| &backend.address).collect();
        assert_eq!(addresses[0].as_socket(), "127.0.0.1:80".parse().ok());
        assert_eq!(addresses[1].as_socket(), "[::1]:81".parse().ok());
        assert_eq!(addresses[2].as_pathname(), Some("/run/app.sock".as_ref()));
    }

    #[test]
    fn a_cluster_may_be_without_backends() {
        assert!(cluster(&[]).unwrap().members.borrow().members.is_empty());
    }

    #[test]
    fn a_backend_that_stays_is_the_same_one_with_another_weight() {
        let present = cluster(&["127.0.0.1:80", "127.0.0.1:81"]).unwrap();
        let backend = |id: &str, address: &str, weight| state::Backend {
            id: id.to_owned(),
            address: address.parse().unwrap(),
            weight,
            backup: false,
        };
        // The second keeps its name and moves: that is another one.
        let backends = vec![backend("b0", "127.0.0.1:80", 7), backend("b1", "127.0.0.1:82", 100)];
        let wanted = state::Cluster { backends, ..state::Cluster::default() };
        let members = Endpoints::new(&wanted, Some(&present), None).unwrap();
        let before = present.members.borrow();
        assert!(Rc::ptr_eq(&members.members[0].backend, &before.members[0].backend));
        assert_eq!(members.members[0].weight, 7);
        assert!(!Rc::ptr_eq(&members.members[1].backend, &before.members[1].backend));
    }

    #[test]
    fn a_socket_path_that_the_kernel_cannot_take_is_an_error() {
        let backend = state::Backend {
            id: "long".to_owned(),
            address: state::BackendAddress::Unix(format!("/{}", "x".repeat(200)).into()),
            weight: 100,
            backup: false,
        };
        let configured = state::Cluster { backends: vec![backend], ..state::Cluster::default() };
        assert!(Cluster::new("web", &configured, None).is_err());
    }
}
