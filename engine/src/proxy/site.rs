//! The configuration of a listener, compiled: immutable, and swapped whole.

use std::{collections::BTreeMap, io, net::SocketAddr, rc::Rc};

use kakehi_ctl::state::{self, State};

use crate::{
    cluster::Cluster,
    http::HeadLimits,
    route::{RouteError, RouteTable, Rule},
};

/// What is done with a request that a rule matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Forward it to the cluster.
    Forward,
    /// 401.
    Deny,
    /// 301 to `https`, at this port.
    RedirectHttps(Option<u16>),
}

/// Where a rule leads.
pub(super) struct Target {
    pub(super) cluster: Rc<Cluster>,
    pub(super) action: Action,
}

/// The configuration of a listener, compiled.
pub struct Site {
    pub(super) settings: state::Listener,
    pub(super) routes: RouteTable,
    pub(super) targets: Vec<Target>,
    pub(super) request_limits: HeadLimits,
    pub(super) response_limits: HeadLimits,
    /// The port that clients connect to, as text.
    pub(super) local_port: String,
}

/// The sites of a state, by the address of their listener.
pub type Sites = BTreeMap<SocketAddr, Rc<Site>>;

/// Why a state cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A rule is wrong.
    #[error("cluster `{cluster}`: {error}")]
    Route {
        /// The cluster whose frontend it is.
        cluster: String,
        /// What is wrong.
        error: RouteError,
    },
    /// Rules of different clusters contradict each other.
    #[error("listener {address}: {error}")]
    Routes {
        /// The listener.
        address: SocketAddr,
        /// What is wrong.
        error: RouteError,
    },
    /// A backend's address cannot be used.
    #[error("cluster `{cluster}`: {error}")]
    Backend {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        error: io::Error,
    },
}

impl Site {
    /// Compiles the whole state: a site for each listener, and the clusters.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub fn compile(state: &State) -> Result<(Sites, Vec<Rc<Cluster>>), SiteError> {
        let mut clusters = Vec::with_capacity(state.clusters.len());
        let mut rules: BTreeMap<SocketAddr, (Vec<Rule>, Vec<Target>)> = BTreeMap::new();
        for (name, configured) in &state.clusters {
            let cluster = Cluster::new(name, configured)
                .map_err(|error| SiteError::Backend { cluster: name.clone(), error })?;
            let cluster = Rc::new(cluster);
            for frontend in &configured.frontends {
                crate::route::check_hostname(&frontend.hostname)
                    .and_then(|()| crate::route::check_path(&frontend.path))
                    .map_err(|error| SiteError::Route { cluster: name.clone(), error })?;
                let (rules, targets) = rules.entry(frontend.address).or_default();
                // One target per cluster and action: rules that repeat each other do not contradict each other.
                let action = if frontend.deny {
                    Action::Deny
                } else if configured.https_redirect {
                    Action::RedirectHttps(configured.https_redirect_port)
                } else {
                    Action::Forward
                };
                let same = |target: &Target| Rc::ptr_eq(&target.cluster, &cluster) && target.action == action;
                let index = targets.iter().rev().take(2).position(same).map(|back| targets.len() - 1 - back);
                let index = index.unwrap_or_else(|| {
                    targets.push(Target { cluster: Rc::clone(&cluster), action });
                    targets.len() - 1
                });
                rules.push(Rule {
                    hostname: frontend.hostname.clone(),
                    path: frontend.path.clone(),
                    method: frontend.method.clone(),
                    // Bounded by the size of the control frames.
                    target: index as u32,
                });
            }
            clusters.push(cluster);
        }
        let mut sites = Sites::new();
        for (address, listener) in &state.listeners {
            let (rules, targets) = rules.remove(address).unwrap_or_default();
            let routes =
                RouteTable::compile(rules).map_err(|error| SiteError::Routes { address: *address, error })?;
            sites.insert(*address, Rc::new(Site::new(listener, routes, targets)));
        }
        Ok((sites, clusters))
    }

    fn new(listener: &state::Listener, routes: RouteTable, targets: Vec<Target>) -> Site {
        let sizes = &listener.sizes;
        Site {
            routes,
            targets,
            request_limits: HeadLimits { bytes: sizes.head, fields: sizes.fields, target: sizes.target },
            response_limits: HeadLimits { bytes: sizes.response_head, fields: sizes.fields, target: 0 },
            local_port: listener.public_address.unwrap_or(listener.address).port().to_string(),
            settings: listener.clone(),
        }
    }
}
