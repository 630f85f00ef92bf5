//! Clusters: the backends behind a name, which of them takes the next request, and the connections to them.
//!
//! - `balance` chooses a backend: weighted round robin, past those that failed lately.
//! - `pool` keeps idle upstream connections, shared by all clients of the worker.
//! - [`Cluster::connect`] brings a request to a backend: an idle connection, or a new one, or that of another
//!   backend when a connection attempt fails.
//!
//! Relies on `ring`, on `observe` for counting and on the reasons of `http`. All state is the worker's own; nothing is shared between workers.

mod balance;
mod pool;

use std::{cell::RefCell, io, rc::Rc};

use kakehi_ctl::state;
use socket2::SockAddr;

pub use self::pool::{Pooling, Upstream};
use self::{balance::Balance, pool::IdlePool};
use crate::{
    http::Reason,
    observe::{Counter, Counters},
    ring::{Ring, Stream, Timer},
};

/// Most backends that are tried for one request.
const MAX_ATTEMPTS: usize = 5;

/// A backend with what this worker knows of it.
pub struct Backend {
    /// Its name in the configuration.
    pub id: String,
    address: SockAddr,
    weight: u8,
    backup: bool,
    health: balance::Health,
    idle: RefCell<IdlePool>,
}

/// A cluster, compiled.
pub struct Cluster {
    /// Its name in the configuration.
    pub name: String,
    backends: Vec<Rc<Backend>>,
    balance: Balance,
}

/// The backends that were tried for a request, so that none is tried twice.
#[derive(Debug, Default, Clone)]
pub struct Tried(Vec<usize>);

impl Cluster {
    /// A cluster of the state.
    ///
    /// # Errors
    /// When the path of a Unix socket is too long.
    pub fn new(name: &str, cluster: &state::Cluster) -> io::Result<Cluster> {
        let backends = cluster
            .backends
            .iter()
            .map(|backend| {
                let address = match &backend.address {
                    state::BackendAddress::Ip(address) => SockAddr::from(*address),
                    state::BackendAddress::Unix(path) => SockAddr::unix(path)?,
                };
                Ok(Rc::new(Backend {
                    id: backend.id.clone(),
                    address,
                    weight: backend.weight,
                    backup: backend.backup,
                    health: balance::Health::default(),
                    idle: RefCell::default(),
                }))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let balance = Balance::new(backends.len());
        Ok(Cluster { name: name.to_owned(), backends, balance })
    }

    /// A connection to a backend that was not tried yet: an idle one, else a new one; other backends when
    /// connecting fails. With `fresh` idle ones are left alone: a repeated request does not meet another that
    /// has just died. `timer` is used for the deadline of each attempt (ms).
    ///
    /// # Errors
    /// `NoBackend`, `BackendConnectFailed`, or `BackendConnectTimeout` when the last attempt was too slow.
    pub async fn connect(
        &self,
        pooling: &Pooling,
        tried: &mut Tried,
        fresh: bool,
        connect_ms: u64,
        timer: &Timer,
    ) -> Result<Upstream, Reason> {
        let mut failure = Reason::NoBackend;
        while tried.0.len() < MAX_ATTEMPTS
            && let Some(index) = self.balance.choose(&self.backends, &tried.0, pooling.ring.now())
        {
            let backend = &self.backends[index];
            if !fresh && let Some(stream) = backend.idle.borrow_mut().take(&pooling.counters) {
                pooling.counters.count(Counter::UpstreamReused);
                return Ok(Upstream::new(stream, Rc::clone(backend), true));
            }
            tried.0.push(index);
            // Boxed: rare beside the reuse of an idle connection, and large with the address in it.
            match Box::pin(backend.open(&pooling.ring, &pooling.counters, connect_ms, timer)).await {
                Ok(stream) => {
                    // It did not fail: it may be asked again for this request.
                    tried.0.pop();
                    return Ok(Upstream::new(stream, Rc::clone(backend), false));
                }
                Err(reason) => failure = reason,
            }
        }
        Err(failure)
    }

    /// Throws away idle connections that are closed or too old.
    pub fn trim(&self, pooling: &Pooling) {
        for backend in &self.backends {
            backend.idle.borrow_mut().trim(pooling);
        }
    }
}

impl Backend {
    async fn open(
        &self,
        ring: &Ring,
        counters: &Counters,
        connect_ms: u64,
        timer: &Timer,
    ) -> Result<Stream, Reason> {
        timer.set(connect_ms);
        let reason = match timer.limit(Stream::connect(ring, self.address.clone())).await {
            Ok(Ok(stream)) => {
                self.health.connected();
                counters.count(Counter::UpstreamConnects);
                return Ok(stream);
            }
            Ok(Err(error)) => {
                tracing::debug!(backend = %self.id, %error, "cannot connect");
                Reason::BackendConnectFailed
            }
            Err(_) => Reason::BackendConnectTimeout,
        };
        self.health.failed(ring.now());
        counters.count(Counter::UpstreamConnectErrors);
        Err(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(addresses: &[&str]) -> io::Result<Cluster> {
        let backends = addresses.iter().enumerate().map(|(n, address)| state::Backend {
            id: format!("b{n}"),
            address: address.parse().unwrap(),
            weight: 100,
            backup: false,
        });
        Cluster::new("web", &state::Cluster { backends: backends.collect(), ..state::Cluster::default() })
    }

    #[test]
    fn backends_are_compiled_in_the_order_of_the_state() {
        let cluster = cluster(&["127.0.0.1:80", "[::1]:81", "unix:/run/app.sock"]).unwrap();
        assert_eq!(cluster.name, "web");
        let ids: Vec<_> = cluster.backends.iter().map(|backend| backend.id.as_str()).collect();
        assert_eq!(ids, ["b0", "b1", "b2"]);
        let addresses: Vec<_> = cluster.backends.iter().map(|backend| &backend.address).collect();
        assert_eq!(addresses[0].as_socket(), "127.0.0.1:80".parse().ok());
        assert_eq!(addresses[1].as_socket(), "[::1]:81".parse().ok());
        assert_eq!(addresses[2].as_pathname(), Some("/run/app.sock".as_ref()));
    }

    #[test]
    fn a_cluster_may_be_without_backends() {
        assert!(cluster(&[]).unwrap().backends.is_empty());
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
        assert!(Cluster::new("web", &configured).is_err());
    }
}
