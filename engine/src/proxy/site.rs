//! The configuration of a listener, compiled: immutable, and swapped whole.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
};

use kakehi_ctl::state::{self, ClusterProtocol, State};

use super::entrance::{Entrance, Forwards, Plan};
use crate::{
    cluster::{Cluster, ClusterError},
    http::{HeadLimits, Reason, StrictTransport},
    route::{Outcome, RouteError, RouteTable, Rule, check_hostname, check_path},
    tls::{Context, Contradiction, Terminator, TlsError},
};

/// What is done with a request that a rule matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Forward it to the cluster.
    Forward,
    /// 401.
    Deny,
    /// 301 to `https`, at this port, unless it came that way.
    RedirectHttps(Option<u16>),
}

impl Action {
    fn of(frontend: &state::Frontend, cluster: &state::Cluster) -> Action {
        if frontend.deny {
            Action::Deny
        } else if cluster.https_redirect {
            Action::RedirectHttps(cluster.https_redirect_port)
        } else {
            Action::Forward
        }
    }
}

/// Whether what a frontend of `cluster` names can be looked for.
///
/// # Errors
/// `Route`.
pub(super) fn check(cluster: &str, frontend: &state::Frontend) -> Result<(), SiteError> {
    let checked = check_hostname(&frontend.hostname).and_then(|()| check_path(&frontend.path));
    checked.map_err(|error| SiteError::Route { cluster: cluster.to_owned(), error })
}

pub(super) fn rule(frontend: &state::Frontend, target: u32) -> Rule {
    Rule {
        hostname: frontend.hostname.clone(),
        path: frontend.path.clone(),
        method: frontend.method.clone(),
        target,
    }
}

/// Where a rule leads.
pub(super) struct Target {
    pub(super) cluster: Rc<Cluster>,
    pub(super) action: Action,
    /// What its frontends say of `Strict-Transport-Security`.
    pub(super) transport: Transport,
}

/// Which `Strict-Transport-Security` responses get.
#[derive(Clone, Default, PartialEq)]
pub(super) enum Transport {
    /// That of the listener.
    #[default]
    Inherited,
    /// This one, or none.
    Own(Option<Rc<StrictTransport>>),
}

impl Target {
    /// Where `frontend` of `configured` leads.
    pub(super) fn of(
        cluster: &Rc<Cluster>,
        frontend: &state::Frontend,
        configured: &state::Cluster,
    ) -> Target {
        Target {
            cluster: Rc::clone(cluster),
            action: Action::of(frontend, configured),
            transport: Transport::of(frontend),
        }
    }

    pub(super) fn is_same(&self, other: &Target) -> bool {
        Rc::ptr_eq(&self.cluster, &other.cluster)
            && self.action == other.action
            && self.transport == other.transport
    }
}

impl Transport {
    fn of(frontend: &state::Frontend) -> Transport {
        match frontend.tls.as_ref().and_then(|tls| tls.hsts.as_ref()) {
            None => Transport::Inherited,
            Some(hsts) => Transport::Own(strict_transport(hsts)),
        }
    }
}

/// RFC 6797 section 6.1.
fn strict_transport(hsts: &state::Hsts) -> Option<Rc<StrictTransport>> {
    let state::Hsts { enabled, max_age, include_subdomains, preload, force_replace_backend } = hsts;
    enabled.then(|| {
        let subdomains = if *include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if *preload { "; preload" } else { "" };
        let value = format!("max-age={max_age}{subdomains}{preload}");
        Rc::new(StrictTransport { value, replaces: *force_replace_backend })
    })
}

/// The configuration of a listener, compiled.
pub struct Site {
    pub(super) settings: state::Listener,
    pub(super) routes: Rc<RefCell<Routes>>,
    pub(super) request_limits: HeadLimits,
    pub(super) response_limits: HeadLimits,
    /// The port that clients connect to, as text.
    pub(super) local_port: String,
    /// How TLS is terminated, if it is.
    pub(super) tls: Option<Rc<Terminator>>,
    pub(super) forwards: Rc<Forwards>,
    /// `Strict-Transport-Security` of frontends that say nothing of it.
    pub(super) transport: Option<Rc<StrictTransport>>,
}

/// Which rule takes a request, and where it leads. A change of some hosts is put in between two requests; who looked
/// something up keeps what it found.
pub(super) struct Routes {
    pub(super) table: RouteTable,
    /// By their place; `None` where one was whose cluster is gone.
    pub(super) targets: Vec<Option<Target>>,
}

impl Routes {
    /// Where a request leads.
    ///
    /// # Errors
    /// Why it leads nowhere.
    pub(super) fn find(&self, host: &str, path: &str, method: &str) -> Result<&Target, Reason> {
        match self.table.lookup(host, path, method) {
            // No rule leads to a target that is gone.
            Outcome::Target(target) => self.targets[target as usize].as_ref().ok_or(Reason::NoRoute),
            Outcome::AmbiguousPath => Err(Reason::AmbiguousPath),
            Outcome::NoRoute => Err(Reason::NoRoute),
        }
    }
}

/// The sites of a state, by the address of their listener.
pub type Sites = BTreeMap<SocketAddr, Rc<Site>>;

/// The clusters of a state, by name.
pub type Clusters = BTreeMap<String, Rc<Cluster>>;

/// What a listener and its connections share: the site of the moment, and whether the listener still is.
pub struct Front {
    site: RefCell<Rc<Site>>,
    closed: Cell<bool>,
    /// How often its queue has to be looked into again.
    stirred: Cell<u32>,
}

impl Front {
    /// A listener that accepts.
    pub fn new(site: Rc<Site>) -> Rc<Front> {
        Rc::new(Front { site: RefCell::new(site), closed: Cell::new(false), stirred: Cell::new(0) })
    }

    /// The configuration of the moment. An exchange keeps the one that it began with.
    pub(super) fn site(&self) -> Rc<Site> {
        Rc::clone(&self.site.borrow())
    }

    /// The deadlines of the moment.
    pub(super) fn timeouts<T>(&self, of: impl FnOnce(&state::Timeouts) -> T) -> T {
        of(&self.site.borrow().settings.timeouts)
    }

    /// The next request meets `site`.
    pub fn replace(&self, site: Rc<Site>) {
        self.site.replace(site);
    }

    /// The listener is configured no more: what it has accepted ends with the exchange that it is in. Wake all then.
    pub fn close(&self) {
        self.closed.set(true);
    }

    /// Another process has stopped to accept here. Of two that wait for connections the kernel wakes one, which may have
    /// been that one: what it left in the queue is taken when accepting begins anew. Wake all then.
    pub fn stir(&self) {
        self.stirred.set(self.stirred.get().wrapping_add(1));
    }

    /// How often [`Front::stir`] was called.
    pub(super) fn stirred(&self) -> u32 {
        self.stirred.get()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

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
        error: ClusterError,
    },
    /// What frontends say of names contradicts each other.
    #[error("listener {address}: {error}")]
    Names {
        /// The listener.
        address: SocketAddr,
        /// What is wrong.
        error: Contradiction,
    },
    /// TLS cannot be terminated as it is configured.
    #[error("listener {address}: {error}")]
    Tls {
        /// The listener.
        address: SocketAddr,
        /// What is wrong.
        error: TlsError,
    },
}

impl Site {
    /// Compiles the whole state: a site for each listener, and the clusters. Those that are `present` already stay
    /// the same, with the backends that they have. Without `tls` everything is checked that can be without the vault.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub fn compile(
        state: &State,
        present: &Clusters,
        tls: Option<&Context>,
    ) -> Result<(Sites, Clusters), SiteError> {
        let mut clusters = Clusters::new();
        let mut rules: BTreeMap<SocketAddr, (Vec<Rule>, Vec<Target>)> = BTreeMap::new();
        let mut plans: BTreeMap<SocketAddr, Plan<'_>> = BTreeMap::new();
        for (name, configured) in &state.clusters {
            let cluster = match present.get(name) {
                Some(present) => Rc::clone(present),
                None => {
                    let cluster = Cluster::new(name, configured, tls);
                    Rc::new(cluster.map_err(|error| SiteError::Backend { cluster: name.clone(), error })?)
                }
            };
            for frontend in &configured.frontends {
                check(name, frontend)?;
                let plan = plans.entry(frontend.address).or_default();
                plan.add(configured.protocol, frontend, &cluster)?;
                if configured.protocol == ClusterProtocol::Tcp {
                    continue;
                }
                let (rules, targets) = rules.entry(frontend.address).or_default();
                // One target per cluster and action: rules that repeat each other do not contradict each other.
                let wanted = Target::of(&cluster, frontend, configured);
                let same = |target: &Target| target.is_same(&wanted);
                let index = targets.iter().rev().take(2).position(same).map(|back| targets.len() - 1 - back);
                let index = index.unwrap_or_else(|| {
                    targets.push(wanted);
                    targets.len() - 1
                });
                // Bounded by the size of the control frames.
                rules.push(rule(frontend, index as u32));
            }
            clusters.insert(name.clone(), cluster);
        }
        let mut sites = Sites::new();
        for (address, listener) in &state.listeners {
            let (rules, targets) = rules.remove(address).unwrap_or_default();
            let plan = plans.remove(address).unwrap_or_default();
            let hosts = rules.iter().map(|rule: &Rule| rule.hostname.as_str());
            let entrance = plan.compile(listener, hosts, tls)?;
            let table =
                RouteTable::compile(rules).map_err(|error| SiteError::Routes { address: *address, error })?;
            let targets = targets.into_iter().map(Some).collect();
            let routes = Rc::new(RefCell::new(Routes { table, targets }));
            sites.insert(*address, Rc::new(Site::new(listener, routes, entrance)));
        }
        Ok((sites, clusters))
    }

    /// Whether some connections are passed on as they are, by the name that they ask for: then frontends of other clusters
    /// make a difference there too.
    pub fn passes_on_by_name(&self) -> bool {
        !self.forwards.names.is_empty()
    }

    /// Whether something comes before the first request.
    pub(super) fn has_prologue(&self) -> bool {
        self.settings.expect_proxy || self.settings.protocol != state::ListenerProtocol::Http
    }

    /// The same routes with other settings.
    pub fn with_settings(&self, listener: &state::Listener) -> Rc<Site> {
        let (tls, forwards) = (self.tls.as_ref().map(Rc::clone), Rc::clone(&self.forwards));
        Rc::new(Site::new(listener, Rc::clone(&self.routes), Entrance { tls, forwards }))
    }

    /// The same routes and settings behind another entrance.
    pub fn behind(&self, entrance: Entrance) -> Rc<Site> {
        Rc::new(Site::new(&self.settings, Rc::clone(&self.routes), entrance))
    }

    /// A listener that no frontend names yet.
    ///
    /// # Errors
    /// Never: there is nothing that could be wrong.
    pub fn without_routes(listener: &state::Listener) -> Result<Rc<Site>, SiteError> {
        let table = RouteTable::compile([])
            .map_err(|error| SiteError::Routes { address: listener.address, error })?;
        let routes = Routes { table, targets: Vec::new() };
        Ok(Rc::new(Site::new(listener, Rc::new(RefCell::new(routes)), Entrance::open())))
    }

    fn new(
        listener: &state::Listener,
        routes: Rc<RefCell<Routes>>,
        Entrance { tls, forwards }: Entrance,
    ) -> Site {
        let sizes = &listener.sizes;
        let hsts = listener.tls.as_ref().and_then(|tls| tls.hsts.as_ref());
        Site {
            tls,
            forwards,
            transport: hsts.and_then(strict_transport),
            routes,
            request_limits: HeadLimits { bytes: sizes.head, fields: sizes.fields, target: sizes.target },
            response_limits: HeadLimits { bytes: sizes.response_head, fields: sizes.fields, target: 0 },
            local_port: listener.public_address.unwrap_or(listener.address).port().to_string(),
            settings: listener.clone(),
        }
    }
}
