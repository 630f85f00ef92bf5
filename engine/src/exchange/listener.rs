//! The configuration of a listener, compiled: immutable, and swapped whole.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use kakehi_ctl::{
    state::{self, Binding, RedirectScheme},
    template::Template,
};

use super::{edits::EditRules, passthrough::Passthrough, split::Split, wakers::Wakers};
use crate::{
    h1::{HeadLimits, StrictTransport},
    http::{Asked, Reason, Templates},
    quota::Guard,
    route::{Outcome, Rewriter, RouteTable},
    tls::Terminator,
    upstream::Cluster,
};

/// What is done with a request that a rule matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Forward it to the cluster.
    Forward,
    /// 401.
    Deny,
    /// The connection closes without an answer.
    Close,
    /// A redirect with this status.
    Redirect(u16),
    /// 301 to `https`, at this port, unless it came that way.
    RedirectHttps(Option<u16>),
}

/// Where a rule leads.
pub(crate) struct Target {
    pub(crate) cluster: Rc<Cluster>,
    pub(crate) action: Action,
    /// The clusters among which its requests are divided, where they are.
    pub(crate) split: Option<Rc<Split>>,
    /// What is made of where the request leads, where that is anything.
    pub(crate) rewriting: Option<Rc<Rewriting>>,
    /// What is changed of fields, where that is anything.
    pub(crate) edits: Option<Rc<EditRules>>,
    /// What its frontends say of `Strict-Transport-Security`.
    pub(crate) hsts: HstsPolicy,
    /// How much its frontend takes from whom, where that is limited.
    pub(crate) guard: Option<Rc<Guard>>,
    /// The whole response of a redirect.
    pub(crate) template: Option<Rc<Template>>,
    /// It takes requests of the cluster's users only.
    pub(crate) required_auth: bool,
}

/// Which `Strict-Transport-Security` responses get.
#[derive(Clone, Default, PartialEq)]
pub(crate) enum HstsPolicy {
    /// That of the listener.
    #[default]
    Inherited,
    /// This one, or none.
    Own(Option<Rc<StrictTransport>>),
}

/// What a frontend makes of where its requests lead.
pub(crate) struct Rewriting {
    pub(crate) scheme: RedirectScheme,
    pub(crate) port: Option<u16>,
    pub(crate) rewriter: Rewriter,
    /// What it was made of.
    pub(crate) source: (state::Rewrite, String, state::PathRule),
}

impl PartialEq for Rewriting {
    fn eq(&self, other: &Rewriting) -> bool {
        self.source == other.source
    }
}

impl Target {
    pub(crate) fn is_same(&self, other: &Target) -> bool {
        let same_action = || {
            self.action == other.action
                && self.hsts == other.hsts
                && self.guard == other.guard
                && self.rewriting == other.rewriting
                && self.edits == other.edits
                && self.template == other.template
                && self.required_auth == other.required_auth
                && self.split == other.split
        };
        Rc::ptr_eq(&self.cluster, &other.cluster) && same_action()
    }

    /// The cluster of a request; `random` is asked where requests are divided by chance.
    pub(crate) fn cluster_for(&self, asked: &impl Asked, random: impl FnOnce() -> u64) -> &Rc<Cluster> {
        match &self.split {
            None => &self.cluster,
            Some(split) => split.choose(asked, random),
        }
    }

    /// Whether it sends requests to `cluster`.
    pub(crate) fn names(&self, cluster: &Rc<Cluster>) -> bool {
        Rc::ptr_eq(&self.cluster, cluster) || self.split.as_ref().is_some_and(|split| split.names(cluster))
    }
}

/// The configuration of a listener, compiled.
pub struct ListenerConfig {
    pub(crate) settings: state::Listener,
    pub(crate) routes: Rc<RefCell<Routes>>,
    pub(crate) request_limits: HeadLimits,
    pub(crate) response_limits: HeadLimits,
    /// The port that clients connect to, as text.
    pub(crate) local_port: String,
    /// How TLS is terminated, if it is.
    pub(crate) tls: Option<Rc<Terminator>>,
    pub(crate) passthrough: Rc<Passthrough>,
    /// `Strict-Transport-Security` of frontends that say nothing of it.
    pub(crate) hsts: Option<Rc<StrictTransport>>,
    /// How much it takes from whom, where that is limited.
    pub(crate) guard: Option<Guard>,
    /// Responses of kakehi's own, where the cluster has none.
    pub(crate) templates: Option<Rc<Templates>>,
}

/// Which rule takes a request, and where it leads. A change of some hosts is put in between two requests; who looked
/// something up keeps what it found.
pub(crate) struct Routes {
    pub(crate) table: RouteTable,
    /// By their place; `None` where one was whose cluster is gone.
    pub(crate) targets: Vec<Option<Target>>,
}

impl Routes {
    /// Where a request leads.
    ///
    /// # Errors
    /// Why it leads nowhere.
    pub(crate) fn find(
        &self,
        host: &str,
        path: &str,
        method: &str,
        asked: &dyn Asked,
    ) -> Result<&Target, Reason> {
        match self.table.lookup(host, path, method, asked) {
            // No rule leads to a target that is gone.
            Outcome::Target(target) => self.targets[target as usize].as_ref().ok_or(Reason::NoRoute),
            Outcome::AmbiguousPath => Err(Reason::AmbiguousPath),
            Outcome::NoRoute => Err(Reason::NoRoute),
        }
    }
}

/// What a listener and its connections share: the config of the moment, and whether the listener still is.
pub struct ListenerHandle {
    config: RefCell<Rc<ListenerConfig>>,
    /// When connections close that are idle then (ms), once the listener was removed.
    idle_close_due: Cell<Option<u64>>,
    /// How often its queue has to be looked into again.
    rearmed: Cell<u32>,
    /// The loops that accept here.
    pub(crate) acceptors: Wakers,
}

impl ListenerHandle {
    /// A listener that accepts.
    pub fn new(config: Rc<ListenerConfig>) -> Rc<ListenerHandle> {
        Rc::new(ListenerHandle {
            config: RefCell::new(config),
            idle_close_due: Cell::new(None),
            rearmed: Cell::new(0),
            acceptors: Wakers::default(),
        })
    }

    /// The configuration of the moment. An exchange keeps the one that it began with.
    pub(crate) fn config(&self) -> Rc<ListenerConfig> {
        Rc::clone(&self.config.borrow())
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.config.borrow().settings.address
    }

    /// Where its sockets are bound.
    pub fn binding(&self) -> Binding {
        self.config.borrow().settings.binding()
    }

    /// The deadlines of the moment.
    pub(crate) fn timeouts<T>(&self, of: impl FnOnce(&state::Timeouts) -> T) -> T {
        of(&self.config.borrow().settings.timeouts)
    }

    /// The next request meets `config`.
    pub fn replace(&self, config: Rc<ListenerConfig>) {
        self.config.replace(config);
    }

    /// The listener is configured no more: what it has accepted ends with the exchange that it is in, or, if it stays idle,
    /// at `idle_close_due` (ms). Wake all connections then.
    pub fn close(&self, idle_close_due: u64) {
        self.idle_close_due.set(Some(idle_close_due));
    }

    /// When connections close that are idle then (ms), if the listener was removed.
    pub(crate) fn idle_close_due(&self) -> Option<u64> {
        self.idle_close_due.get()
    }

    /// Whether a connection of `peer` is closed as it comes: nobody whose address it is would be served, and it is its own.
    pub(crate) fn refuses(&self, peer: impl FnOnce() -> Option<SocketAddr>) -> bool {
        self.config.borrow().refuses(|| peer().map(|peer| peer.ip()))
    }

    /// Another process has stopped to accept here. Of two that wait for connections the kernel wakes one, which may have
    /// been that one: what it left in the queue is taken when accepting begins anew. Wake the acceptors then
    /// of it.
    pub fn rearm(&self) {
        self.rearmed.set(self.rearmed.get().wrapping_add(1));
    }

    /// How often [`ListenerHandle::rearm`] was called.
    pub(crate) fn rearmed(&self) -> u32 {
        self.rearmed.get()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.idle_close_due.get().is_some()
    }
}

impl ListenerConfig {
    /// See [`ListenerHandle::refuses`].
    pub(crate) fn refuses(&self, peer: impl FnOnce() -> Option<IpAddr>) -> bool {
        let Some(guard) = self.guard.as_ref().filter(|guard| guard.has_sources()) else { return false };
        let peer = peer().map(|peer| peer.to_canonical());
        let trusted = &self.settings.forwarding.trusted_peers;
        let speaks_for_others = self.settings.expect_proxy
            || peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(&peer)));
        !speaks_for_others && !guard.admits(peer)
    }

    /// Whether some connections are passed on as they are, by the name that they ask for: then frontends of other clusters
    /// make a difference there too.
    pub fn passes_on_by_name(&self) -> bool {
        self.passthrough.goes_by_name()
    }

    /// Whether something comes before the first request.
    pub(crate) fn has_preamble(&self) -> bool {
        self.settings.expect_proxy || self.settings.protocol != state::ListenerProtocol::Http
    }
}
