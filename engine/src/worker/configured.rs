//! What a worker is configured to do, and how that changes while it serves: prepared first, then made at once.
//!
//! [`Configured::prepare`] does everything that can fail, and changes nothing; [`Configured::commit`] cannot fail.
//! Only what a change names is touched: a connection notices nothing unless its own listener, or the backend of
//! its tunnel, has gone.

mod change;
mod names;

use std::{
    cell::{Cell, Ref, RefCell},
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
};

use kakehi_ctl::{
    change::{Change, ChangeError},
    order::{BackendLoad, BackendName, ClosedSessions, Found, Inquiry, ListenerSocket, Verdict},
    state::{Fingerprint, NameAnswer, Revision, Settings, State},
};

use self::names::Names;
use super::{DescriptorChannel, DescriptorKind, Error};
use crate::{
    config::{Clusters, CompileError, HostPrints, ListenerConfigs, RoutesPatch},
    downstream::{self, Connections},
    exchange::{ListenerConfig, ListenerHandle, Shared, explain},
    ledger::Ledger,
    quota,
    ring::Listener,
    tls::{Context, Vault},
    upstream::{Cluster, Endpoints, Pooling},
};

/// Why a change was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It does not fit the state.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// What it leads to cannot be compiled.
    #[error(transparent)]
    ListenerConfig(#[from] CompileError),
    /// The socket of a new listener did not come.
    #[error("the listening sockets did not come: {0}")]
    Sockets(io::Error),
    /// The socket of a new listener is missing.
    #[error("no listening socket was handed over for {0}")]
    NoSocket(SocketAddr),
    /// A certificate cannot be used.
    #[error("certificate {fingerprint}: {reason}")]
    Certificate {
        /// Which.
        fingerprint: Fingerprint,
        /// Why.
        reason: String,
    },
    /// Some of the changes did not come.
    #[error("{staged} changes were staged, of which {came} came")]
    Incomplete {
        /// So many were sent.
        staged: usize,
        /// So many can be read.
        came: usize,
    },
    /// There is nothing to commit.
    #[error("nothing was prepared")]
    NothingPrepared,
}

/// The configuration of a worker.
pub(super) struct Configured {
    state: RefCell<State>,
    clusters: RefCell<Clusters>,
    names: Names,
    /// How much came from whom.
    sources: Option<Ledger>,
    /// By address, whether connections are accepted there or not.
    configs: RefCell<ListenerConfigs>,
    /// Which hosts each cluster is for.
    prints: RefCell<HostPrints>,
    handles: RefCell<BTreeMap<SocketAddr, Rc<ListenerHandle>>>,
    /// Changes that are to be prepared with the next ones.
    staged: RefCell<Vec<Change>>,
    prepared: RefCell<Option<Prepared>>,
    channel: Rc<dyn DescriptorChannel>,
    /// The listening sockets that accept.
    sockets: RefCell<BTreeMap<ListenerSocket, Taken>>,
    tls: Context,
}

/// Changes that are ready to be made.
struct Prepared {
    changes: Vec<Change>,
    revision: Revision,
    routing: Routing,
    /// What clusters that stay will consist of.
    members: Vec<(Rc<Cluster>, Endpoints)>,
    /// Listeners that come.
    listeners: Vec<NewListener>,
}

/// What a change does to the routing.
enum Routing {
    /// Nothing.
    Stays,
    /// New tables for everything.
    Whole(ListenerConfigs, Clusters),
    /// New rules for some hosts.
    Parts(Parts),
}

#[derive(Default)]
struct Parts {
    /// Listeners that come or have other settings, with the routes that they have or none.
    configs: ListenerConfigs,
    patches: Vec<(SocketAddr, RoutesPatch)>,
    /// Clusters that come.
    clusters: Clusters,
}

/// A listening socket that accepts.
pub(super) struct Taken {
    /// For a supervisor to come.
    pub(super) copy: OwnedFd,
    /// Set when another process is to accept there; its task holds the other end.
    yielded: Rc<Cell<bool>>,
}

/// A listener that comes: which socket, itself, and a copy of it.
type NewListener = (ListenerSocket, Listener, OwnedFd);

impl Configured {
    /// Compiles `state` and begins to accept.
    ///
    /// # Errors
    /// When the state cannot be compiled, or a listening socket is missing or cannot be used.
    pub(super) fn new(
        connections: &Rc<Connections>,
        state: State,
        sockets: Vec<(ListenerSocket, OwnedFd)>,
        (names, verdicts): (Vec<NameAnswer>, &[Verdict]),
        channel: Rc<dyn DescriptorChannel>,
        tls: Context,
    ) -> Result<Configured, Error> {
        for (address, certificates) in &state.certificates {
            tls.certificates(*address).begin(certificates.values());
        }
        if state.listeners.values().any(|it| it.tls.is_some())
            || state.clusters.values().any(|it| it.tls.is_some())
        {
            tls.warm_up();
        }
        if let Some(table) = &connections.shared.pooling.sources {
            quota::expect(&state, table);
        }
        let (configs, clusters) = ListenerConfig::compile(&state, &Clusters::new(), Some(&tls))?;
        let accepting = configs.iter().filter(|(address, _)| state.accepts(address));
        let handles = accepting.map(|(address, config)| (*address, ListenerHandle::new(Rc::clone(config))));
        let handles = RefCell::new(handles.collect());
        let configured = Configured {
            prints: RefCell::new(HostPrints::of(&state)),
            names: Names::of(&state),
            sources: connections.shared.pooling.sources.clone(),
            state: RefCell::new(state),
            clusters: RefCell::new(clusters),
            handles,
            configs: RefCell::new(configs),
            staged: RefCell::default(),
            prepared: RefCell::default(),
            channel,
            sockets: RefCell::default(),
            tls,
        };
        configured.take_names(connections, names);
        configured.take_verdicts(verdicts);
        for (which, socket) in sockets {
            configured.take_socket(connections, which, socket)?;
        }
        for binding in configured.state.borrow().bindings() {
            if !configured.sockets.borrow().keys().any(|which| which.binding() == binding) {
                return Err(Error::Listener(binding.address));
            }
        }
        Ok(configured)
    }

    /// Accepts on a socket. One without a listener in the state is simply not served.
    fn take_socket(
        &self,
        connections: &Rc<Connections>,
        which: ListenerSocket,
        socket: OwnedFd,
    ) -> io::Result<()> {
        let is_wanted = self.state.borrow().accepts_on(&which.binding());
        if let Some(handle) = self.listener(which.address).filter(|_| is_wanted) {
            let copy = socket.try_clone()?;
            let listener = Listener::adopt(&connections.shared.ring, socket)?;
            self.accept(connections, which, listener, copy, &handle);
        }
        Ok(())
    }

    fn accept(
        &self,
        connections: &Rc<Connections>,
        which: ListenerSocket,
        listener: Listener,
        copy: OwnedFd,
        handle: &Rc<ListenerHandle>,
    ) {
        let yielded = Rc::new(Cell::new(false));
        let task =
            downstream::accept(Rc::clone(connections), listener, Rc::clone(handle), Rc::clone(&yielded));
        connections.shared.ring.spawn(task);
        self.sockets.borrow_mut().insert(which, Taken { copy, yielded });
    }

    /// Takes what was sent over the descriptor channel: accepts on listening sockets; the channels of predecessors are
    /// returned.
    ///
    /// # Errors
    /// When it did not come, or there is no descriptor or slot left.
    pub(super) fn take(&self, connections: &Rc<Connections>) -> io::Result<Vec<OwnedFd>> {
        let mut predecessors = Vec::new();
        for (belonging, descriptor) in self.channel.receive()? {
            match belonging {
                DescriptorKind::Listener(which) => self.take_socket(connections, which, descriptor)?,
                DescriptorKind::Predecessor => predecessors.push(descriptor),
                _ => {}
            }
        }
        Ok(predecessors)
    }

    /// Accepts no more on these sockets, which another process has too; waits until that is certain.
    pub(super) async fn give_up(&self, connections: &Connections, sockets: &[ListenerSocket]) {
        let given_up: Vec<Taken> =
            sockets.iter().filter_map(|which| self.sockets.borrow_mut().remove(which)).collect();
        given_up.iter().for_each(|taken| taken.yielded.set(true));
        for handle in sockets.iter().filter_map(|which| self.listener(which.address)) {
            connections.wake_acceptors(&handle);
        }
        while given_up.iter().any(|taken| Rc::strong_count(&taken.yielded) > 1) {
            connections.connection_closed().await;
        }
    }

    /// Looks into the queue of every listening socket.
    pub(super) fn rearm(&self, connections: &Connections) {
        for handle in self.handles.borrow().values() {
            handle.rearm();
            connections.wake_acceptors(handle);
        }
    }

    /// The ticket keys in the vault are others now.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn renew_ticket_keys(&self) -> io::Result<()> {
        self.tls.renew_ticket_keys()
    }

    /// The vault.
    pub(super) fn vault(&self) -> &Vault {
        self.tls.vault()
    }

    /// The listener at an address.
    pub(super) fn listener(&self, address: SocketAddr) -> Option<Rc<ListenerHandle>> {
        self.handles.borrow().get(&address).map(Rc::clone)
    }

    /// The listening sockets that accept.
    pub(super) fn sockets(&self) -> Ref<'_, BTreeMap<ListenerSocket, Taken>> {
        self.sockets.borrow()
    }

    /// Gives up the copies of the listening sockets: they close with the last of the listeners themselves.
    pub(super) fn release_sockets(&self) {
        self.sockets.borrow_mut().clear();
    }

    /// What is served, as JSON.
    ///
    /// # Errors
    /// Never for what was read from JSON.
    pub(super) fn state_text(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&*self.state.borrow())
    }

    /// The settings as they are now.
    pub(super) fn settings(&self) -> Ref<'_, Settings> {
        Ref::map(self.state.borrow(), |state| &state.settings)
    }

    /// Asks the state for something.
    pub(super) fn with_state<T>(&self, ask: impl FnOnce(&State) -> T) -> T {
        ask(&self.state.borrow())
    }

    /// Which state is served, and its settings.
    pub(super) fn revision_and_settings(&self) -> (Revision, Settings) {
        let state = self.state.borrow();
        (state.revision.clone(), state.settings.clone())
    }

    /// The cluster of this name.
    pub(super) fn cluster(&self, name: &str) -> Option<Rc<Cluster>> {
        self.clusters.borrow().get(name).map(Rc::clone)
    }

    /// What probes found of some backends holds from now on. Those that are not there any more have none.
    pub(super) fn take_verdicts(&self, verdicts: &[Verdict]) {
        take_verdicts(&self.clusters.borrow(), verdicts);
    }

    /// What these backends have to do.
    pub(super) fn loads(&self, backends: &[BackendName], pooling: &Pooling) -> Vec<Option<BackendLoad>> {
        let clusters = self.clusters.borrow();
        let load = |it: &BackendName| clusters.get(&it.cluster)?.load_of(&it.id, pooling);
        backends.iter().map(load).collect()
    }

    /// What would become of a request at a listener; `None`: there is no such listener.
    pub(super) fn explain(&self, listener: SocketAddr, shared: &Shared, inquiry: &Inquiry) -> Option<Found> {
        let config = self.configs.borrow().get(&listener).map(Rc::clone)?;
        Some(explain(&config, shared, inquiry))
    }

    /// Closes sessions of a backend of a cluster, or of all its backends.
    pub(super) fn close_sessions(
        &self,
        cluster: &str,
        backend: Option<&str>,
        connections: &Connections,
    ) -> ClosedSessions {
        let pooling = &connections.shared.pooling;
        let closed = self.cluster(cluster).map(|cluster| cluster.close_sessions(backend, pooling));
        connections.sessions_closed();
        closed.unwrap_or_default()
    }

    /// Throws away idle upstream connections that are closed or too old.
    pub(super) fn trim(&self, pooling: &Pooling) {
        self.clusters.borrow().values().for_each(|cluster| cluster.trim(pooling));
        self.names.trim(&self.state.borrow());
    }
}

fn take_verdicts(clusters: &Clusters, verdicts: &[Verdict]) {
    for Verdict { backend: BackendName { cluster, id }, up } in verdicts {
        if let Some(cluster) = clusters.get(cluster) {
            cluster.set_probe(id, *up);
        }
    }
}
