//! A cluster and its endpoints, compiled: they live on through changes, with all that is known of them.

use std::{cell::RefCell, io, rc::Rc};

use kakehi_ctl::state::{self, BackendMode, InitialVerdict};
use socket2::SockAddr;

use super::{
    affinity::{Affinity, AffinityRules, Asked, Session, opaque},
    balance::Balance,
    connect::ConnectSettings,
    endpoint::Endpoint,
    hashing::hash,
    pool::Pooling,
};
use crate::{
    ring::Share,
    tls::{Connector, Context, TlsError},
};

/// A backend's place in a cluster.
pub(super) struct Member {
    pub(super) backend: Rc<Endpoint>,
    pub(super) weight: u8,
    pub(super) backup: bool,
    /// What the operator says of it.
    pub(super) mode: BackendMode,
    /// The hash of its value in the cookie of sticky sessions.
    pub(super) session: u64,
    /// That value, where the cluster has such sessions.
    cookie: Option<Box<str>>,
}

/// The backends of a cluster at one time: immutable, and swapped whole.
pub struct Endpoints {
    pub(super) members: Vec<Member>,
    pub(super) balance: Balance,
    rules: AffinityRules,
    pub(super) settings: ConnectSettings,
    /// There are probes.
    probed: bool,
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

/// A cluster, compiled. It lives as long as its name is configured; what it consists of may change.
pub struct Cluster {
    /// Its name in the configuration.
    pub name: String,
    /// Of the buffers that backends send into.
    pub(super) share: Share,
    pub(super) members: RefCell<Rc<Endpoints>>,
}

impl Endpoints {
    /// None.
    fn none() -> Endpoints {
        Endpoints {
            members: Vec::new(),
            balance: Balance::default(),
            rules: AffinityRules::default(),
            settings: ConnectSettings::default(),
            probed: false,
        }
    }

    /// Those of `cluster`, which has this `name`; backends that are `present` already are taken over with all that is known of them.
    ///
    /// Without `tls` it is only checked what can be without the vault.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(
        name: &str,
        cluster: &state::Cluster,
        present: Option<&Cluster>,
        tls: Option<&Context>,
    ) -> Result<Endpoints, ClusterError> {
        let present = present.map(|cluster| Rc::clone(&cluster.members.borrow()));
        let before = present.clone();
        // Idle connections that were made otherwise are of no use.
        let present = present.filter(|present| {
            present.settings.configured == cluster.tls && present.settings.send_proxy == cluster.send_proxy
        });
        let balancing = cluster.balancing.as_deref().cloned().unwrap_or_default();
        // Not where all are new.
        let starts_slowly = balancing.slow_start_ms > 0
            && present.as_ref().is_some_and(|present| !present.members.is_empty());
        let initially_down =
            cluster.health.as_ref().is_some_and(|check| check.initial == InitialVerdict::Down);
        let members: Vec<Member> = cluster
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
                    None => {
                        // However it was reached: what probes say of it holds.
                        let known = before.as_ref().and_then(|before| before.members.iter().find(same));
                        let down = match known {
                            Some(known) => cluster.health.is_some() && known.backend.verdicts.is_probe_down(),
                            None => initially_down,
                        };
                        let new = Rc::new(Endpoint::new(&configured.id, address, down));
                        if starts_slowly {
                            new.start.begin();
                        }
                        new
                    }
                };
                let value = || match &configured.sticky_id {
                    Some(id) => id.clone(),
                    None => opaque(name, &configured.id).into_boxed_str(),
                };
                let cookie = balancing.sticky_session.then(value);
                let session = cookie.as_ref().map_or(0, |value| hash(value.as_bytes()));
                let state::Backend { weight, backup, mode, .. } = *configured;
                Ok(Member { backend, weight, backup, mode, session, cookie })
            })
            .collect::<io::Result<_>>()?;
        let balance = Balance::new(&balancing, &members);
        let rules = AffinityRules::new(&balancing, Balance::hashes(&balancing));
        let connector = match (&cluster.tls, tls) {
            (Some(configured), Some(context)) => Some(Connector::compile(context, configured)?),
            _ => None,
        };
        let settings =
            ConnectSettings { configured: cluster.tls.clone(), connector, send_proxy: cluster.send_proxy };
        let probed = cluster.health.is_some();
        Ok(Endpoints { members, balance, rules, settings, probed })
    }
}

impl Cluster {
    /// A cluster of the state.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(name: &str, cluster: &state::Cluster, tls: Option<&Context>) -> Result<Cluster, ClusterError> {
        let members = RefCell::new(Rc::new(Endpoints::new(name, cluster, None, tls)?));
        Ok(Cluster { name: name.to_owned(), share: Share::of(name), members })
    }

    /// One without endpoints, for a cluster of the state that is only checked: there may be very many, with many backends.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn checked(name: &str, cluster: &state::Cluster) -> Result<Cluster, ClusterError> {
        Endpoints::new(name, cluster, None, None)?;
        let members = RefCell::new(Rc::new(Endpoints::none()));
        Ok(Cluster { name: name.to_owned(), share: Share::of(name), members })
    }

    /// From now on it consists of `members`. Backends that are not among them finish the requests that they have;
    /// their idle connections are closed.
    pub fn replace(&self, members: Endpoints, pooling: &Pooling) {
        let before = self.members.replace(Rc::new(members));
        let now = self.members.borrow();
        for Member { backend, mode, .. } in &before.members {
            match now.members.iter().find(|member| Rc::ptr_eq(&member.backend, backend)) {
                None => backend.retire(pooling),
                // It comes back.
                Some(member) if *mode != BackendMode::Ready && member.mode == BackendMode::Ready => {
                    backend.start.begin();
                }
                Some(_) => {}
            }
        }
        for Member { backend, mode, .. } in &now.members {
            if backend.verdicts.set_mode(*mode) {
                backend.idle.borrow_mut().clear(pooling);
            }
            if !now.probed {
                // Nobody would say that it is well again.
                backend.set_probe(true);
            }
        }
    }

    /// What probes say of the backend of this name, if there is one.
    pub fn set_probe(&self, id: &str, up: bool) {
        if let Some(endpoint) = self.endpoint(id) {
            endpoint.set_probe(up);
        }
    }

    /// The backend of this name.
    pub fn endpoint(&self, id: &str) -> Option<Rc<Endpoint>> {
        let members = self.members.borrow();
        members.members.iter().find(|member| member.backend.id == id).map(|member| Rc::clone(&member.backend))
    }

    /// It is configured no more: all its backends go; see [`Cluster::replace`].
    pub fn retire(&self, pooling: &Pooling) {
        self.replace(Endpoints::none(), pooling);
    }

    /// What `request` says of the backend that it belongs to; `sticky_name` is the name of the cookie of sticky sessions.
    pub fn affinity(&self, request: &impl Asked, sticky_name: &str) -> Affinity {
        let members = self.members.borrow();
        if members.rules.is_empty() { Affinity::default() } else { members.rules.read(request, sticky_name) }
    }

    /// Whether it has sticky sessions: their cookie is for nobody else.
    pub fn has_sessions(&self) -> bool {
        self.members.borrow().rules.has_sessions()
    }

    /// The `Set-Cookie` line of a response of `endpoint` to a request with this affinity, if it needs one.
    pub fn session_line(
        &self,
        endpoint: &Rc<Endpoint>,
        affinity: Affinity,
        sticky_name: &str,
        secure: bool,
    ) -> Option<String> {
        let wanted = match affinity.session {
            Session::None => return None,
            Session::New => None,
            Session::With(value) => Some(value),
        };
        let members = self.members.borrow();
        let member = members.members.iter().find(|member| Rc::ptr_eq(&member.backend, endpoint))?;
        let value = member.cookie.as_deref().filter(|_| wanted != Some(member.session))?;
        Some(members.rules.set_cookie(sticky_name, value, secure))
    }

    /// Throws away idle connections that are closed or too old.
    pub fn trim(&self, pooling: &Pooling) {
        for Member { backend, .. } in &self.members.borrow().members {
            backend.idle.borrow_mut().trim(pooling);
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
            ..state::Backend::default()
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
            ..state::Backend::default()
        };
        // The second keeps its name and moves: that is another one.
        let backends = vec![backend("b0", "127.0.0.1:80", 7), backend("b1", "127.0.0.1:82", 100)];
        let wanted = state::Cluster { backends, ..state::Cluster::default() };
        let members = Endpoints::new("web", &wanted, Some(&present), None).unwrap();
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
            ..state::Backend::default()
        };
        let configured = state::Cluster { backends: vec![backend], ..state::Cluster::default() };
        assert!(Cluster::new("web", &configured, None).is_err());
    }
}
