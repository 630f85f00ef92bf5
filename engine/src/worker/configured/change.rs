//! A change of what a worker serves: prepared in pieces between which others are served, then made at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    rc::Rc,
};

use kakehi_ctl::{
    change::Change,
    state::{self, Binding, Revision, State},
};

use super::{Configured, NewListener, Parts, Prepared, Refusal, Routing};
use crate::{
    config::{Clusters, CompileError, ConfigDelta, ListenerConfigs},
    downstream::Connections,
    exchange::{ListenerConfig, ListenerHandle},
    quota,
    ring::{Listener, Slice, Source},
    upstream::{Cluster, Endpoints},
    worker::DescriptorKind,
};

/// So many certificates of a change are read before it is made.
const CERTIFICATES_TRIED: usize = 64;

impl Configured {
    /// Keeps changes for [`Configured::prepare`].
    pub(in crate::worker) fn stage(&self, mut changes: Vec<Change>) {
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
    pub(in crate::worker) async fn prepare(
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
        for check in state.part_checks(&part, &changes) {
            check?;
            slice.pause().await;
        }
        if let Some(table) = &self.sources {
            quota::expect(&part, table);
        }
        let mut members = Vec::new();
        let mut new = Clusters::new();
        for (name, wanted) in &part.clusters {
            slice.pause().await;
            match clusters.get(name) {
                Some(cluster) => {
                    let wanted = self.names.expanded(wanted, &part.settings);
                    members.push((Rc::clone(cluster), self.renewed(name, &wanted, cluster)?));
                }
                None => {
                    let wanted = self.names.expanded(wanted, &part.settings);
                    drop(new.insert(name.clone(), self.created(name, &wanted)?));
                }
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

    pub(super) fn renewed(
        &self,
        name: &str,
        wanted: &state::Cluster,
        cluster: &Cluster,
    ) -> Result<Endpoints, CompileError> {
        Endpoints::new(&cluster.name, wanted, Some(cluster), Some(&self.tls))
            .map_err(|error| CompileError::Backend { cluster: name.to_owned(), error })
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
        let mut wanted = BTreeMap::new();
        for change in changes {
            match change {
                Change::SetListener { listener } if listener.active => {
                    wanted.insert(listener.address, listener.binding())
                }
                Change::SetListener { listener } => wanted.remove(&listener.address),
                Change::RemoveListener { address } => wanted.remove(address),
                _ => continue,
            };
        }
        let state = self.state.borrow();
        wanted.retain(|_, binding| !state.accepts_on(binding));
        drop(state);
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
        let has_come =
            |wanted: &Binding| listeners.iter().any(|(which, ..): &NewListener| which.binding() == *wanted);
        match wanted.values().find(|wanted| !has_come(wanted)) {
            Some(missing) => Err(Refusal::NoSocket(missing.address)),
            None => Ok(listeners),
        }
    }

    /// Makes what was prepared.
    ///
    /// # Errors
    /// `NothingPrepared`.
    pub(in crate::worker) async fn commit(&self, connections: &Rc<Connections>) -> Result<(), Refusal> {
        let prepared = self.prepared.take().ok_or(Refusal::NothingPrepared)?;
        let Prepared { changes, revision, routing, members, listeners } = prepared;
        let on_empty = self.settings().dns_on_empty;
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
        self.follow_names(connections, &named_clusters(&changes), on_empty != self.settings().dns_on_empty);
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
            Some(config) if state.accepts_on(&handle.binding()) => {
                handle.replace(Rc::clone(config));
                true
            }
            _ => {
                closed = true;
                handle.close(connections.shared.ring.now() + connections.stop_idle_grace_ms.get());
                connections.wake_acceptors(handle);
                self.sockets.borrow_mut().retain(|which, _| which.address != *address);
                false
            }
        });
        for (which, listener, copy) in listeners {
            if let Some(config) = configs.get(&which.address).filter(|_| state.accepts_on(&which.binding())) {
                let handle = ListenerHandle::new(Rc::clone(config));
                self.accept(connections, which, listener, copy, &handle);
                handles.insert(which.address, handle);
            }
        }
        closed
    }

    /// Forgets what was prepared.
    pub(in crate::worker) fn abort(&self) {
        self.staged.take();
        self.prepared.take();
    }
}

/// Gives up what is needed no more, in pieces between which others are served.
async fn discard<T>(slice: &mut Slice<'_>, items: impl IntoIterator<Item = T>) {
    for item in items {
        slice.pause().await;
        drop(item);
    }
}

/// The clusters that the changes name.
fn named_clusters(changes: &[Change]) -> BTreeSet<&str> {
    changes.iter().filter_map(Change::cluster).collect()
}
