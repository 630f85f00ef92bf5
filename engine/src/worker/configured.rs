//! What a worker is configured to do, and how that changes while it serves: prepared first, then made at once.
//!
//! [`Configured::prepare`] does everything that can fail, and changes nothing; [`Configured::commit`] cannot fail.
//! Only what a change names is touched: a connection notices nothing unless its own listener, or the backend of
//! its tunnel, has gone.

use std::{
    cell::{Cell, Ref, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
};

use kakehi_ctl::{
    change::{Change, ChangeError},
    order::ListenerSocket,
    state::{self, Fingerprint, Revision, Settings, State},
};

use super::{DescriptorChannel, DescriptorKind, Error};
use crate::{
    config::{Clusters, CompileError, ConfigDelta, HostPrints, ListenerConfigs, RoutesPatch},
    downstream::{self, Connections},
    exchange::{ListenerConfig, ListenerHandle},
    ring::{Listener, Slice, Source},
    tls::{Context, Vault},
    upstream::{Cluster, Endpoints, Pooling},
};

/// So many certificates of a change are read before it is made.
const CERTIFICATES_TRIED: usize = 64;

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
        let (configs, clusters) = ListenerConfig::compile(&state, &Clusters::new(), Some(&tls))?;
        let accepting = configs.iter().filter(|(address, _)| state.accepts(address));
        let handles = accepting.map(|(address, config)| (*address, ListenerHandle::new(Rc::clone(config))));
        let handles = RefCell::new(handles.collect());
        let configured = Configured {
            prints: RefCell::new(HostPrints::of(&state)),
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
        for (which, socket) in sockets {
            configured.take_socket(connections, which, socket)?;
        }
        for address in configured.handles.borrow().keys() {
            if !configured.sockets.borrow().keys().any(|which| which.address == *address) {
                return Err(Error::Listener(*address));
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
        if let Some(handle) = self.listener(which.address) {
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

    /// Keeps changes for [`Configured::prepare`].
    pub(super) fn stage(&self, mut changes: Vec<Change>) {
        self.staged.borrow_mut().append(&mut changes);
    }

    /// Does everything of the staged changes and of `last` that can fail, in pieces between which others are served.
    ///
    /// # Errors
    /// See [`Refusal`].
    #[expect(
        clippy::await_holding_refcell_ref,
        reason = "orders are carried out one after another, and nothing but a commit borrows these to change them"
    )]
    pub(super) async fn prepare(
        &self,
        ring: &crate::ring::Ring,
        staged: usize,
        mut last: Vec<Change>,
        revision: Revision,
    ) -> Result<(), Refusal> {
        let mut changes = self.staged.take();
        self.abort();
        if changes.len() != staged {
            return Err(Refusal::Incomplete { staged, came: changes.len() });
        }
        changes.append(&mut last);
        // Taken in any case: they must not be taken for those of the next change.
        let listeners = self.new_listeners(ring, &changes)?;
        let mut slice = ring.admission().slices(Source::Orders);
        slice.pause().await;
        let clusters = self.clusters.borrow();
        let state = self.state.borrow();
        // Without a copy of the whole: only these clusters are concerned.
        let mut part = state.without_clusters();
        for change in &changes {
            slice.pause().await;
            state.copy_named(change, &mut part);
        }
        for change in &changes {
            slice.pause().await;
            part.apply(change)?;
        }
        check_in_slices(&mut slice, &state, &part, &changes).await?;
        let mut members = Vec::new();
        let mut new = Clusters::new();
        for (name, wanted) in &part.clusters {
            slice.pause().await;
            match clusters.get(name) {
                Some(cluster) => members.push((Rc::clone(cluster), self.renewed(name, wanted, cluster)?)),
                None => drop(new.insert(name.clone(), self.created(name, wanted)?)),
            }
        }
        self.try_certificates(&mut slice, &changes).await?;
        slice.pause().await;
        let prints = self.prints.borrow();
        let delta = ConfigDelta::new(&state, &part, &changes, &prints);
        let routing = if !changes.iter().any(Change::concerns_routes) {
            Routing::Stays
        } else if let Some(parts) = self.compile_parts(&delta, &new)? {
            Routing::Parts(parts)
        } else {
            let mut wanted = BTreeMap::new();
            for (name, cluster) in delta.all() {
                slice.pause().await;
                wanted.insert(name, cluster);
            }
            let (slice, tls) = (&mut slice, Some(&self.tls));
            let (configs, clusters) =
                ListenerConfig::compile_in_slices(slice, &wanted, &part.listeners, &clusters, tls).await?;
            Routing::Whole(configs, clusters)
        };
        drop(prints);
        discard(&mut slice, part.clusters).await;
        self.prepared.replace(Some(Prepared { changes, revision, routing, members, listeners }));
        Ok(())
    }

    /// Whether certificates that come can be used; of many, those that are wrong are found when they are first needed.
    async fn try_certificates(&self, slice: &mut Slice<'_>, changes: &[Change]) -> Result<(), Refusal> {
        let coming = changes.iter().filter_map(|change| match change {
            Change::SetCertificate { fingerprint, certificate, .. } => Some((fingerprint, certificate)),
            _ => None,
        });
        for (fingerprint, certificate) in coming.take(CERTIFICATES_TRIED) {
            slice.pause().await;
            let refused = |reason| Refusal::Certificate { fingerprint: *fingerprint, reason };
            self.tls.try_certificate(certificate).map_err(refused)?;
        }
        Ok(())
    }

    fn created(&self, name: &str, wanted: &state::Cluster) -> Result<Rc<Cluster>, CompileError> {
        let created = Cluster::new(name, wanted, Some(&self.tls));
        Ok(Rc::new(created.map_err(|error| CompileError::Backend { cluster: name.to_owned(), error })?))
    }

    fn renewed(
        &self,
        name: &str,
        wanted: &state::Cluster,
        cluster: &Cluster,
    ) -> Result<Endpoints, CompileError> {
        Endpoints::new(wanted, Some(cluster), Some(&self.tls))
            .map_err(|error| CompileError::Backend { cluster: name.to_owned(), error })
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

    /// `None` when it has to be the whole.
    fn compile_parts(&self, wanted: &ConfigDelta<'_>, new: &Clusters) -> Result<Option<Parts>, CompileError> {
        let mut configs = self.configs.borrow().clone();
        let mut changed = ListenerConfigs::new();
        for (address, listener) in &wanted.part.listeners {
            let config = match (configs.get(address), wanted.present.listeners.get(address)) {
                (Some(_), Some(present)) if present == listener => continue,
                (Some(config), _) => config.with_settings(listener),
                (None, _) => ListenerConfig::without_routes(listener)?,
            };
            changed.insert(*address, Rc::clone(&config));
            configs.insert(*address, config);
        }
        let clusters = self.clusters.borrow();
        let Some(patches) = wanted.compile(&configs, &clusters, new)? else { return Ok(None) };
        for (address, ingress) in wanted.ingresses(&configs, &clusters, new, Some(&self.tls))? {
            if let Some(config) = configs.get(&address) {
                changed.insert(address, config.behind(ingress));
            }
        }
        Ok(Some(Parts { configs: changed, patches, clusters: new.clone() }))
    }

    fn new_listeners(
        &self,
        ring: &crate::ring::Ring,
        changes: &[Change],
    ) -> Result<Vec<NewListener>, Refusal> {
        let handles = self.handles.borrow();
        let mut wanted = BTreeSet::new();
        for change in changes {
            match change {
                Change::SetListener { listener } if listener.active => wanted.insert(listener.address),
                Change::SetListener { listener } => wanted.remove(&listener.address),
                Change::RemoveListener { address } => wanted.remove(address),
                _ => continue,
            };
        }
        wanted.retain(|address| !handles.contains_key(address));
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut listeners = Vec::new();
        let adopt = |socket: OwnedFd| io::Result::Ok((socket.try_clone()?, Listener::adopt(ring, socket)?));
        for (belonging, socket) in self.channel.receive().map_err(Refusal::Sockets)? {
            if let DescriptorKind::Listener(which) = belonging {
                let (copy, listener) = adopt(socket).map_err(Refusal::Sockets)?;
                listeners.push((which, listener, copy));
            }
        }
        match wanted.iter().find(|wanted| !listeners.iter().any(|(which, ..)| which.address == **wanted)) {
            Some(missing) => Err(Refusal::NoSocket(*missing)),
            None => Ok(listeners),
        }
    }

    /// Makes what was prepared.
    ///
    /// # Errors
    /// `NothingPrepared`.
    pub(super) async fn commit(&self, connections: &Rc<Connections>) -> Result<(), Refusal> {
        let prepared = self.prepared.take().ok_or(Refusal::NothingPrepared)?;
        let Prepared { changes, revision, routing, members, listeners } = prepared;
        // What is served changes at once, below; what is known of it is changed in pieces before. Between them nobody asks
        // for it, since orders are carried out one after another.
        let mut slice = connections.shared.ring.admission().slices(Source::Orders);
        for change in &changes {
            slice.pause().await;
            let state = &mut *self.state.borrow_mut();
            let certificate = change.certificate();
            let before =
                certificate.and_then(|(address, fingerprint)| state.certificate(address, &fingerprint));
            let before = before.cloned();
            // It was tried on a copy of the same state.
            let applied = state.apply(change);
            debug_assert!(applied.is_ok(), "{applied:?}");
            if let Some((address, fingerprint)) = certificate {
                let first = state.certificates.get(&address).and_then(|all| all.values().next());
                let after = state.certificate(address, &fingerprint);
                self.tls.certificates(address).change(before.as_ref(), after, first);
            }
            match change {
                Change::RemoveListener { address } => self.tls.certificates(*address).clear(),
                Change::SetListener { listener } if listener.tls.is_none() => {
                    self.tls.certificates(listener.address).clear();
                }
                _ => {}
            }
        }
        for name in named_clusters(&changes) {
            slice.pause().await;
            self.prints.borrow_mut().update(name, &self.state.borrow());
        }
        slice.end();
        let (configs, clusters) = self.switch(connections, &changes, revision, routing, members, listeners);
        for cluster in clusters {
            slice.pause().await;
            cluster.retire(&connections.shared.pooling);
        }
        // Tunnels whose backend has gone learn of it.
        connections.wake_tunnels();
        discard(&mut slice, configs).await;
        discard(&mut slice, changes).await;
        Ok(())
    }

    /// Serves what was prepared from now on. Given back are what may be needed no more: configurations, and clusters that have
    /// gone.
    fn switch(
        &self,
        connections: &Rc<Connections>,
        changes: &[Change],
        revision: Revision,
        routing: Routing,
        members: Vec<(Rc<Cluster>, Endpoints)>,
        listeners: Vec<NewListener>,
    ) -> (Vec<Rc<ListenerConfig>>, Vec<Rc<Cluster>>) {
        let (mut before, mut gone) = (Vec::new(), Vec::new());
        let state = &mut *self.state.borrow_mut();
        state.revision = revision;
        self.tls.retain(|address| state.listeners.contains_key(address));
        for (cluster, members) in members {
            cluster.replace(members, &connections.shared.pooling);
        }
        let configs = &mut *self.configs.borrow_mut();
        match routing {
            Routing::Stays => {}
            Routing::Whole(whole, clusters) => {
                before.extend(std::mem::replace(configs, whole).into_values());
                let clusters_before = self.clusters.replace(clusters);
                let now = self.clusters.borrow();
                let is_gone = |(name, cluster)| (!now.contains_key(&name)).then_some(cluster);
                gone.extend(clusters_before.into_iter().filter_map(is_gone));
            }
            Routing::Parts(parts) => {
                configs.extend(parts.configs);
                configs.retain(|address, _| state.listeners.contains_key(address));
                for (address, patch) in parts.patches {
                    if let Some(config) = configs.get(&address) {
                        config.patch(patch);
                    }
                }
                let clusters = &mut *self.clusters.borrow_mut();
                clusters.extend(parts.clusters);
                for name in named_clusters(changes) {
                    if !state.clusters.contains_key(name)
                        && let Some(cluster) = clusters.remove(name)
                    {
                        configs.values().for_each(|config| config.forget(&cluster));
                        gone.push(cluster);
                    }
                }
            }
        }
        if self.change_handles(connections, configs, state, listeners) {
            connections.listeners_closed();
        }
        (before, gone)
    }

    /// Whether a listener was removed: then its connections have to learn of it.
    fn change_handles(
        &self,
        connections: &Rc<Connections>,
        configs: &ListenerConfigs,
        state: &State,
        listeners: Vec<NewListener>,
    ) -> bool {
        let mut closed = false;
        let mut handles = self.handles.borrow_mut();
        handles.retain(|address, handle| match configs.get(address) {
            Some(config) if state.accepts(address) => {
                handle.replace(Rc::clone(config));
                true
            }
            _ => {
                closed = true;
                handle.close(connections.shared.ring.now() + connections.stop_idle_grace_ms);
                connections.wake_acceptors(handle);
                self.sockets.borrow_mut().retain(|which, _| which.address != *address);
                false
            }
        });
        for (which, listener, copy) in listeners {
            if let Some(config) = configs.get(&which.address) {
                let handle = ListenerHandle::new(Rc::clone(config));
                self.accept(connections, which, listener, copy, &handle);
                handles.insert(which.address, handle);
            }
        }
        closed
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

    /// Which state is served, and with which settings the worker started.
    pub(super) fn revision_and_settings(&self) -> (Revision, Settings) {
        let state = self.state.borrow();
        (state.revision.clone(), state.settings.clone())
    }

    /// The cluster of this name.
    pub(super) fn cluster(&self, name: &str) -> Option<Rc<Cluster>> {
        self.clusters.borrow().get(name).map(Rc::clone)
    }

    /// Forgets what was prepared.
    pub(super) fn abort(&self) {
        self.staged.take();
        self.prepared.take();
    }

    /// Throws away idle upstream connections that are closed or too old.
    pub(super) fn trim(&self, pooling: &Pooling) {
        self.clusters.borrow().values().for_each(|cluster| cluster.trim(pooling));
    }
}

/// The clusters that the changes name.
/// [`State::check_part`], in pieces between which others are served.
async fn check_in_slices(
    slice: &mut Slice<'_>,
    state: &State,
    part: &State,
    changes: &[Change],
) -> Result<(), ChangeError> {
    slice.pause().await;
    part.check_certificates()?;
    for (name, cluster) in &part.clusters {
        slice.pause().await;
        part.check_cluster(name, cluster)?;
    }
    if state.loses_listeners(part) {
        let named = named_clusters(changes);
        for (name, cluster) in state.clusters.iter().filter(|(name, _)| !named.contains(name.as_str())) {
            slice.pause().await;
            part.check_frontends(name, cluster)?;
        }
    }
    Ok(())
}

/// Gives up what is needed no more, in pieces between which others are served.
async fn discard<T>(slice: &mut Slice<'_>, items: impl IntoIterator<Item = T>) {
    for item in items {
        slice.pause().await;
        drop(item);
    }
}

fn named_clusters(changes: &[Change]) -> BTreeSet<&str> {
    changes.iter().filter_map(Change::cluster).collect()
}
