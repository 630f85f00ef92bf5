//! A state compiled for traffic: a [`ListenerConfig`] for each listener, and the clusters.

use std::{cell::RefCell, collections::BTreeMap, hash::BuildHasher as _, net::SocketAddr, rc::Rc};

use kakehi_ctl::state::{self, ClusterProtocol, State};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::tls_ingress::{IngressPlan, TlsIngress};
use crate::{
    exchange::{Action, EditRules, HstsPolicy, ListenerConfig, Rewriting, Routes, Split, Target},
    h1::{HeadLimits, StrictTransport},
    http::{Templates, template},
    quota::Guard,
    ring::{Slice, run_undivided},
    route::{Rewriter, RouteError, RouteTable, RouteTableBuilder, Rule, check_hostname, check_path},
    tls::{Context, Contradiction, TlsError},
    upstream::{Cluster, ClusterError},
};

/// The listener configurations of a state, by the address of their listener.
pub type ListenerConfigs = BTreeMap<SocketAddr, Rc<ListenerConfig>>;

/// The clusters of a state, by name.
pub type Clusters = BTreeMap<String, Rc<Cluster>>;

/// Whether what a frontend of `cluster` names can be looked for.
///
/// # Errors
/// `Route`.
pub(super) fn check(cluster: &str, frontend: &state::Frontend) -> Result<(), CompileError> {
    let checked = check_hostname(&frontend.hostname).and_then(|()| check_path(&frontend.path));
    let checked = checked.and_then(|()| rewriter(frontend).map(drop));
    checked.map_err(|error| CompileError::Route { cluster: cluster.to_owned(), error })
}

/// What a frontend makes of hosts and paths.
fn rewriter(frontend: &state::Frontend) -> Result<Option<Rewriter>, RouteError> {
    let Some(rewrite) = &frontend.rewrite else { return Ok(None) };
    let (host, path) = (rewrite.host.as_deref(), rewrite.path.as_deref());
    Rewriter::compile(&frontend.hostname, &frontend.path, host, path).map(Some)
}

pub(super) fn rule(frontend: &state::Frontend, target: u32) -> Rule {
    Rule {
        hostname: frontend.hostname.clone(),
        path: frontend.path.clone(),
        method: frontend.method.clone(),
        predicates: frontend.predicates.clone(),
        position: frontend.position,
        order: frontend.order,
        target,
    }
}

impl Action {
    fn of(frontend: &state::Frontend, cluster: &state::Cluster) -> Action {
        if frontend.deny {
            return Action::Deny;
        }
        match (frontend.redirect, frontend.redirect.status()) {
            (_, Some(status)) => return Action::Redirect(status),
            (state::Redirect::SilentClose, _) => return Action::Close,
            (state::Redirect::Unauthorized, _) => return Action::Deny,
            _ => {}
        }
        if cluster.https_redirect {
            Action::RedirectHttps(cluster.https_redirect_port)
        } else {
            Action::Forward
        }
    }
}

impl Target {
    /// Where `frontend` of `configured` leads; `find` knows the other clusters.
    pub(super) fn of<'c>(
        cluster: &Rc<Cluster>,
        frontend: &state::Frontend,
        configured: &state::Cluster,
        find: impl Fn(&str) -> Option<&'c Rc<Cluster>>,
    ) -> Target {
        let rewriting = Rewriting::of(frontend);
        Target {
            cluster: Rc::clone(cluster),
            // It was checked before; what cannot be rewritten is not forwarded as it is.
            action: if rewriting.is_err() { Action::Deny } else { Action::of(frontend, configured) },
            rewriting: rewriting.ok().flatten().map(Rc::new),
            edits: EditRules::compile(&frontend.headers).map(Rc::new),
            hsts: HstsPolicy::of(frontend),
            guard: Guard::of_frontend(frontend).map(Rc::new),
            template: frontend.redirect_template.as_deref().and_then(template),
            required_auth: frontend.required_auth,
            split: frontend.split.as_deref().and_then(|split| Split::compile(split, find)),
        }
    }
}

/// The targets of a listener, each once: rules that do the same do not contradict each other.
#[derive(Default)]
pub(super) struct Targets {
    all: Vec<Target>,
    /// The last of those that may be the same.
    last: FxHashMap<u64, u32>,
    /// Of each, the one before of those that may be the same.
    before: Vec<Option<u32>>,
}

impl Targets {
    /// The place of a target, of `frontend`.
    pub(super) fn place(&mut self, wanted: Target, frontend: &state::Frontend) -> u32 {
        let made = wanted.rewriting.as_ref().map(|made| &made.source);
        // Limits are those of a rule, however its host is spelled.
        let host = || frontend.hostname.trim_end_matches('.').to_ascii_lowercase();
        let limited = wanted.guard.as_ref().map(|_| (host(), &frontend.path));
        let does = (wanted.action, made, &wanted.edits, &wanted.split);
        let hash = FxBuildHasher.hash_one((Rc::as_ptr(&wanted.cluster), does, limited));
        let last = self.last.get(&hash).copied();
        let mut alike = std::iter::successors(last, |place| self.before[*place as usize]);
        if let Some(place) = alike.find(|place| self.all[*place as usize].is_same(&wanted)) {
            return place;
        }
        // Bounded by the size of the control frames.
        let place = self.all.len() as u32;
        self.last.insert(hash, place);
        self.before.push(last);
        self.all.push(wanted);
        place
    }
}

impl Rewriting {
    fn of(frontend: &state::Frontend) -> Result<Option<Rewriting>, RouteError> {
        let (Some(rewrite), Some(rewriter)) = (&frontend.rewrite, rewriter(frontend)?) else {
            return Ok(None);
        };
        let source = (state::Rewrite::clone(rewrite), rewriter.hostname.clone(), frontend.path.clone());
        Ok(Some(Rewriting { scheme: rewrite.scheme, port: rewrite.port, rewriter, source }))
    }
}

impl HstsPolicy {
    fn of(frontend: &state::Frontend) -> HstsPolicy {
        match frontend.tls.as_ref().and_then(|tls| tls.hsts.as_ref()) {
            None => HstsPolicy::Inherited,
            Some(hsts) => HstsPolicy::Own(strict_transport(hsts)),
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

/// Why a state cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
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

impl ListenerConfig {
    /// Checks everything of a state that can be without the vault.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub fn check(state: &State) -> Result<(), CompileError> {
        let mut clusters = Clusters::new();
        for (name, configured) in &state.clusters {
            let wrong = |error| CompileError::Backend { cluster: name.clone(), error };
            clusters.insert(name.clone(), Rc::new(Cluster::checked(name, configured).map_err(wrong)?));
        }
        ListenerConfig::compile(state, &clusters, None).map(drop)
    }

    /// Compiles the whole state: a config for each listener, and the clusters. Those that are `present` already stay
    /// the same, with the backends that they have. Without `tls` everything is checked that can be without the vault.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub fn compile(
        state: &State,
        present: &Clusters,
        tls: Option<&Context>,
    ) -> Result<(ListenerConfigs, Clusters), CompileError> {
        let clusters = state.clusters.iter().map(|(name, cluster)| (name.as_str(), cluster)).collect();
        run_undivided(async |slice| {
            ListenerConfig::compile_in_slices(slice, &clusters, &state.listeners, present, tls).await
        })
    }

    /// The same of the clusters and listeners of a state, with pauses in which others are served.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub async fn compile_in_slices(
        slice: &mut Slice<'_>,
        wanted: &BTreeMap<&str, &state::Cluster>,
        listeners: &BTreeMap<SocketAddr, state::Listener>,
        present: &Clusters,
        tls: Option<&Context>,
    ) -> Result<(ListenerConfigs, Clusters), CompileError> {
        let mut clusters = Clusters::new();
        let mut rules: BTreeMap<SocketAddr, (RouteTableBuilder, Vec<&str>, Targets)> = BTreeMap::new();
        let mut plans: BTreeMap<SocketAddr, IngressPlan<'_>> = BTreeMap::new();
        for (name, configured) in wanted {
            slice.pause().await;
            let cluster = match present.get(*name) {
                Some(present) => Rc::clone(present),
                None => {
                    let cluster = Cluster::new(name, configured, tls);
                    let wrong = |error| CompileError::Backend { cluster: (*name).to_owned(), error };
                    Rc::new(cluster.map_err(wrong)?)
                }
            };
            clusters.insert((*name).to_owned(), cluster);
        }
        for (name, configured) in wanted {
            let Some(cluster) = clusters.get(*name) else { continue };
            for frontend in &configured.frontends {
                slice.pause().await;
                check(name, frontend)?;
                let address = frontend.address;
                plans.entry(address).or_default().add(configured.protocol, frontend, cluster)?;
                // Those of a listener that is not there lead nowhere.
                if configured.protocol == ClusterProtocol::Tcp || !listeners.contains_key(&address) {
                    continue;
                }
                let (builder, hosts, targets) = rules.entry(address).or_default();
                let target = Target::of(cluster, frontend, configured, |name| clusters.get(name));
                let place = targets.place(target, frontend);
                let added = builder.add(&rule(frontend, place));
                added.map_err(|error| CompileError::Routes { address, error })?;
                if hosts.last() != Some(&frontend.hostname.as_str()) {
                    hosts.push(&frontend.hostname);
                }
            }
        }
        let mut configs = ListenerConfigs::new();
        for (address, listener) in listeners {
            slice.pause().await;
            let (builder, hosts, targets) = rules.remove(address).unwrap_or_default();
            let plan = plans.remove(address).unwrap_or_default();
            let ingress = plan.compile(listener, hosts, tls)?;
            let wrong = |error| CompileError::Routes { address: *address, error };
            slice.pause().await;
            let mut layout = builder.lay_out();
            while layout.step().map_err(wrong)? {
                slice.pause().await;
            }
            let table = layout.finish().map_err(wrong)?;
            let targets = targets.all.into_iter().map(Some).collect();
            let routes = Rc::new(RefCell::new(Routes { table, targets }));
            configs.insert(*address, Rc::new(ListenerConfig::new(listener, routes, ingress)));
        }
        Ok((configs, clusters))
    }

    /// The same routes with other settings.
    pub fn with_settings(&self, listener: &state::Listener) -> Rc<ListenerConfig> {
        let (tls, passthrough) = (self.tls.as_ref().map(Rc::clone), Rc::clone(&self.passthrough));
        Rc::new(ListenerConfig::new(listener, Rc::clone(&self.routes), TlsIngress { tls, passthrough }))
    }

    /// The same routes and settings behind another TLS ingress.
    pub fn behind(&self, ingress: TlsIngress) -> Rc<ListenerConfig> {
        Rc::new(ListenerConfig::new(&self.settings, Rc::clone(&self.routes), ingress))
    }

    /// A listener that no frontend names yet.
    ///
    /// # Errors
    /// Never: there is nothing that could be wrong.
    pub fn without_routes(listener: &state::Listener) -> Result<Rc<ListenerConfig>, CompileError> {
        let table = RouteTable::compile([])
            .map_err(|error| CompileError::Routes { address: listener.address, error })?;
        let routes = Routes { table, targets: Vec::new() };
        Ok(Rc::new(ListenerConfig::new(listener, Rc::new(RefCell::new(routes)), TlsIngress::open())))
    }

    fn new(
        listener: &state::Listener,
        routes: Rc<RefCell<Routes>>,
        TlsIngress { tls, passthrough }: TlsIngress,
    ) -> ListenerConfig {
        let sizes = &listener.sizes;
        let hsts = listener.tls.as_ref().and_then(|tls| tls.hsts.as_ref());
        ListenerConfig {
            tls,
            passthrough,
            hsts: hsts.and_then(strict_transport),
            guard: Guard::of_listener(listener),
            templates: Templates::compile(&listener.answers),
            routes,
            request_limits: HeadLimits { bytes: sizes.head, fields: sizes.fields, target: sizes.target },
            response_limits: HeadLimits { bytes: sizes.response_head, fields: sizes.fields, target: 0 },
            local_port: listener.public_address.unwrap_or(listener.address).port().to_string(),
            settings: state::Listener { forwarding: listener.forwarding.effective(), ..listener.clone() },
        }
    }
}
