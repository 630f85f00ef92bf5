//! Whose the entries of a state are: a file's, or by hand (`kakehictl`).
//!
//! A state is what is served: all layers, the ones over the others. Besides it has, of each entry in which the layer by hand
//! differs from what the file says, what the file says ([`ByHand`]): so the file's layer can be had from it, and replaced by that of
//! another file ([`State::lay_by_hand_over`]) without touching what is by hand. Of entries that are as in the file nothing is kept
//! twice.
//!
//! | what is by hand | in the state | in [`ByHand`] |
//! |---|---|---|
//! | an entry that no file has | is there | [`InFile::Nothing`] |
//! | an entry of the file that was removed | is not there | [`InFile::This`] |
//! | an entry of the file with other keys | is there | [`InFile::This`], which tells the keys |
//!
//! Entries are known by what stays the same of them: listeners by address, clusters by name, certificates by their file, and only
//! those without one by their fingerprint.

mod certificates;
mod over;
mod places;
mod words;

pub use self::over::LayersError;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    change::{Change, ChangeError, FrontendRule},
    config::write,
    state::{Backend, Certificate, Cluster, Fingerprint, Frontend, Listener, PathRule, State},
};

/// Whose an entry is. A higher layer lies over the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The configuration file's.
    File,
    /// A feed's: a source that changes by itself. There is none yet.
    Feed,
    /// By hand, over the command socket.
    Hand,
}

/// Whose changes are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// By hand.
    Hand,
    /// They follow from what is in other files than that of the configuration; whose entries are stays.
    Files,
    /// They lead to what another file says, over which this is by hand.
    Layers(ByHand),
}

/// What the layers below say of an entry that is by hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InFile<T> {
    /// It is not there.
    Nothing,
    /// This.
    This(T),
}

impl<T> InFile<T> {
    fn of(value: Option<T>) -> InFile<T> {
        value.map_or(InFile::Nothing, InFile::This)
    }

    fn as_ref(&self) -> Option<&T> {
        match self {
            InFile::Nothing => None,
            InFile::This(value) => Some(value),
        }
    }
}

/// What of a state is by hand: of each such entry, what the file says of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ByHand {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    listeners: BTreeMap<SocketAddr, InFile<Listener>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    clusters: BTreeMap<String, ClusterByHand>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    certificates: BTreeMap<SocketAddr, BTreeMap<Fingerprint, InFile<Arc<Certificate>>>>,
}

/// What of a cluster is by hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct ClusterByHand {
    /// Its own keys, or all of it; here it has neither frontends nor backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<InFile<Cluster>>,
    /// By [`rule`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    frontends: BTreeMap<String, InFile<Frontend>>,
    /// By name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    backends: BTreeMap<String, InFile<Backend>>,
}

impl ClusterByHand {
    fn is_empty(&self) -> bool {
        self.own.is_none() && self.frontends.is_empty() && self.backends.is_empty()
    }
}

/// The requests that a frontend takes, as a text that is the same for the same requests.
fn rule(frontend: &Frontend) -> String {
    rule_of(&FrontendRule::from(frontend))
}

fn rule_of(rule: &FrontendRule) -> String {
    let (kind, path) = match &rule.path {
        PathRule::Prefix(path) => ("prefix", path),
        PathRule::Equals(path) => ("equals", path),
        PathRule::Regex(path) => ("regex", path),
    };
    let hostname = rule.hostname.to_ascii_lowercase();
    let method = rule.method.as_deref().unwrap_or("*");
    let asks = rule.asks();
    let space = if asks.is_empty() { "" } else { " " };
    format!("{} {method} {hostname} {kind} {path}{space}{asks}", rule.address)
}

fn by_rule(cluster: Option<&Cluster>) -> HashMap<String, &Frontend> {
    cluster.into_iter().flat_map(|it| &it.frontends).map(|it| (rule(it), it)).collect()
}

fn by_id(cluster: Option<&Cluster>) -> HashMap<&str, &Backend> {
    cluster.into_iter().flat_map(|it| &it.backends).map(|it| (it.id.as_str(), it)).collect()
}

fn bare(cluster: &Cluster) -> Cluster {
    Cluster {
        protocol: cluster.protocol,
        send_proxy: cluster.send_proxy,
        tls: cluster.tls.clone(),
        balancing: cluster.balancing.clone(),
        admission: cluster.admission.clone(),
        retries: cluster.retries.clone(),
        passive: cluster.passive.clone(),
        limits: cluster.limits.clone(),
        health: cluster.health.clone(),
        answers: cluster.answers.clone(),
        https_redirect: cluster.https_redirect,
        https_redirect_port: cluster.https_redirect_port,
        users: cluster.users.clone(),
        www_authenticate: cluster.www_authenticate.clone(),
        mode: cluster.mode,
        maintenance_retry_after: cluster.maintenance_retry_after,
        dns_on_empty: cluster.dns_on_empty,
        frontends: Vec::new(),
        backends: Vec::new(),
    }
}

/// Two values are the same if a file says the same of them: what the files hold that they name may have changed.
trait Said {
    fn said(&self) -> toml::Table;

    fn says_the_same(&self, other: &Self) -> bool
    where
        Self: PartialEq,
    {
        self == other || self.said() == other.said()
    }

    /// What it is where a file says `in_file` of it and it was added by hand: what it leaves to the file is as there.
    fn beside(&self, _in_file: &Self) -> Self
    where
        Self: Clone,
    {
        self.clone()
    }
}

impl Said for Listener {
    fn said(&self) -> toml::Table {
        write::listener(self)
    }
}

impl Said for Cluster {
    fn said(&self) -> toml::Table {
        write::cluster(&bare(self))
    }
}

impl Said for Frontend {
    fn said(&self) -> toml::Table {
        write::frontend(self)
    }

    fn beside(&self, in_file: &Frontend) -> Frontend {
        Frontend { order: self.order.or(in_file.order), ..self.clone() }
    }
}

impl Said for Backend {
    fn said(&self) -> toml::Table {
        write::backend(self)
    }
}

/// Whether an entry is as in the file, so that it is not by hand.
fn as_in_file<T: Said + PartialEq>(present: Option<&T>, in_file: &InFile<T>) -> bool {
    match (present, in_file) {
        (None, InFile::Nothing) => true,
        (Some(present), InFile::This(in_file)) => present.says_the_same(in_file),
        _ => false,
    }
}

impl State {
    /// Makes changes that were checked, and notes whose they are.
    ///
    /// # Errors
    /// See [`ChangeError`]; those before the one that fails are made.
    pub fn apply_as(&mut self, whose: &Whose, changes: &[Change]) -> Result<(), ChangeError> {
        match whose {
            Whose::Hand => changes.iter().try_for_each(|change| self.apply_by_hand(change)),
            Whose::Files => self.apply_renewed(changes),
            Whose::Layers(by_hand) => {
                changes.iter().try_for_each(|change| self.apply(change))?;
                self.by_hand = by_hand.clone();
                Ok(())
            }
        }
    }

    /// Forgets of what is by hand that which is not, as something is missing: a state was saved without some certificates.
    pub fn settle_by_hand(&mut self) {
        let mut by_hand = std::mem::take(&mut self.by_hand);
        by_hand.settle_all(self);
        self.by_hand = by_hand;
    }

    /// As [`State::apply`], by hand: the next file does not undo it.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing has changed then.
    fn apply_by_hand(&mut self, change: &Change) -> Result<(), ChangeError> {
        let mut by_hand = std::mem::take(&mut self.by_hand);
        by_hand.mark(self, change);
        let applied = self.apply(change);
        by_hand.settle(self, change);
        self.by_hand = by_hand;
        applied
    }

    /// Only the entries that are by hand, for who lays them over another file and needs nothing else.
    #[must_use]
    pub fn hand_layer(&self) -> State {
        let mut hand = State { by_hand: self.by_hand.clone(), ..State::default() };
        for address in self.by_hand.listeners.keys() {
            hand.listeners.extend(self.listeners.get(address).map(|it| (*address, it.clone())));
        }
        for (name, marks) in &self.by_hand.clusters {
            let Some(cluster) = self.clusters.get(name) else { continue };
            let mut copy = bare(cluster);
            let frontends = cluster.frontends.iter().filter(|it| marks.frontends.contains_key(&rule(it)));
            copy.frontends.extend(frontends.cloned());
            let backends = cluster.backends.iter().filter(|it| marks.backends.contains_key(&it.id));
            copy.backends.extend(backends.cloned());
            hand.clusters.insert(name.clone(), copy);
        }
        hand.certificates = self.certificates_by_hand();
        hand
    }

    /// What the file says, without what is by hand.
    #[must_use]
    pub fn file_layer(&self) -> State {
        let mut file = self.clone();
        let by_hand = std::mem::take(&mut file.by_hand);
        for (address, in_file) in by_hand.listeners {
            match in_file {
                InFile::Nothing => file.listeners.remove(&address),
                InFile::This(listener) => file.listeners.insert(address, listener),
            };
        }
        for (name, marks) in by_hand.clusters {
            match marks.own {
                Some(InFile::Nothing) => {
                    file.clusters.remove(&name);
                    continue;
                }
                Some(InFile::This(own)) => {
                    let cluster = file.clusters.entry(name.clone()).or_default();
                    let (frontends, backends) =
                        (std::mem::take(&mut cluster.frontends), std::mem::take(&mut cluster.backends));
                    *cluster = Cluster { frontends, backends, ..own };
                }
                None => {}
            }
            let Some(cluster) = file.clusters.get_mut(&name) else { continue };
            if !marks.frontends.is_empty() {
                cluster.frontends.retain(|it| !marks.frontends.contains_key(&rule(it)));
            }
            cluster.backends.retain(|it| !marks.backends.contains_key(&it.id));
            cluster.frontends.extend(marks.frontends.values().filter_map(InFile::as_ref).cloned());
            cluster.backends.extend(marks.backends.values().filter_map(InFile::as_ref).cloned());
        }
        for (address, marks) in by_hand.certificates {
            let certificates = file.certificates.entry(address).or_default();
            for (fingerprint, in_file) in marks {
                match in_file {
                    InFile::Nothing => certificates.remove(&fingerprint),
                    InFile::This(certificate) => certificates.insert(fingerprint, certificate),
                };
            }
        }
        file.certificates.retain(|address, it| {
            !it.is_empty() && file.listeners.get(address).is_some_and(|listener| listener.tls.is_some())
        });
        file
    }
}

impl ByHand {
    /// What the file says of clusters that are by hand.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.values().filter_map(|marks| marks.own.as_ref()?.as_ref())
    }

    /// The same, to be changed.
    pub(crate) fn clusters_mut(&mut self) -> impl Iterator<Item = &mut Cluster> {
        self.clusters.values_mut().filter_map(|marks| match &mut marks.own {
            Some(InFile::This(cluster)) => Some(cluster),
            Some(InFile::Nothing) | None => None,
        })
    }

    /// That by which `state` differs from `file`.
    pub fn between(file: &State, state: &State) -> ByHand {
        let mut by_hand = ByHand::default();
        let addresses = file.listeners.keys().chain(state.listeners.keys());
        for address in addresses {
            by_hand.mark_listener(file, *address);
        }
        for name in file.clusters.keys().chain(state.clusters.keys()) {
            let (before, after) = (file.clusters.get(name), state.clusters.get(name));
            if before != after {
                by_hand.mark_cluster(name, before, after);
            }
        }
        for (address, certificates) in file.certificates.iter().chain(&state.certificates) {
            for fingerprint in certificates.keys() {
                by_hand.mark_certificate(file, *address, *fingerprint);
            }
        }
        by_hand.settle_all(state);
        by_hand
    }

    /// Whether nothing is by hand.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.clusters.is_empty() && self.certificates.is_empty()
    }

    /// How many entries are.
    pub fn len(&self) -> usize {
        let of_cluster =
            |it: &ClusterByHand| usize::from(it.own.is_some()) + it.frontends.len() + it.backends.len();
        let clusters: usize = self.clusters.values().map(of_cluster).sum();
        let certificates: usize = self.certificates.values().map(BTreeMap::len).sum();
        self.listeners.len() + clusters + certificates
    }

    /// Keeps what the file says of that which `change` is about to change by hand, unless it is kept already.
    fn mark(&mut self, before: &State, change: &Change) {
        match change {
            // Those by hand are known by their keys ([`crate::state::Revision`]).
            Change::SetSettings { .. } => {}
            Change::SetListener { listener } => self.mark_listener(before, listener.address),
            Change::RemoveListener { address } => self.mark_listener(before, *address),
            Change::SetCluster { name, cluster } => {
                self.mark_cluster(name, before.clusters.get(name), Some(cluster));
            }
            Change::RemoveCluster { name } => self.mark_cluster(name, before.clusters.get(name), None),
            Change::SetFrontend { cluster, frontend } => {
                self.mark_frontend(before, cluster, &FrontendRule::from(frontend));
            }
            Change::RemoveFrontend { cluster, rule } => self.mark_frontend(before, cluster, rule),
            Change::SetBackend { cluster, backend } => self.mark_backend(before, cluster, &backend.id),
            Change::RemoveBackend { cluster, id } => self.mark_backend(before, cluster, id),
            Change::SetCertificate { address, fingerprint, .. }
            | Change::RemoveCertificate { address, fingerprint } => {
                self.mark_certificate(before, *address, *fingerprint);
            }
        }
    }

    fn mark_listener(&mut self, before: &State, address: SocketAddr) {
        let present = || InFile::of(before.listeners.get(&address).cloned());
        self.listeners.entry(address).or_insert_with(present);
    }

    fn mark_cluster(&mut self, name: &str, before: Option<&Cluster>, after: Option<&Cluster>) {
        let marks = self.clusters.entry(name.to_owned()).or_default();
        marks.own.get_or_insert_with(|| InFile::of(before.map(bare)));
        let (old, new) = (by_rule(before), by_rule(after));
        for (rule, frontend) in &old {
            if new.get(rule) != Some(frontend) {
                let present = || InFile::This(Frontend::clone(frontend));
                marks.frontends.entry(rule.clone()).or_insert_with(present);
            }
        }
        for rule in new.into_keys().filter(|rule| !old.contains_key(rule)) {
            marks.frontends.entry(rule).or_insert(InFile::Nothing);
        }
        let (old, new) = (by_id(before), by_id(after));
        for (id, backend) in &old {
            if new.get(id) != Some(backend) {
                let present = || InFile::This(Backend::clone(backend));
                marks.backends.entry((*id).to_owned()).or_insert_with(present);
            }
        }
        for id in new.into_keys().filter(|id| !old.contains_key(id)) {
            marks.backends.entry(id.to_owned()).or_insert(InFile::Nothing);
        }
    }

    fn mark_frontend(&mut self, before: &State, cluster: &str, wanted: &FrontendRule) {
        let marks = self.clusters.entry(cluster.to_owned()).or_default();
        let present = || {
            let frontends = before.clusters.get(cluster).map_or(&[][..], |it| &it.frontends);
            InFile::of(frontends.iter().find(|it| wanted.is_of(it)).cloned())
        };
        marks.frontends.entry(rule_of(wanted)).or_insert_with(present);
    }

    fn mark_backend(&mut self, before: &State, cluster: &str, id: &str) {
        let marks = self.clusters.entry(cluster.to_owned()).or_default();
        let present = || {
            let backends = before.clusters.get(cluster).map_or(&[][..], |it| &it.backends);
            InFile::of(backends.iter().find(|it| it.id == id).cloned())
        };
        marks.backends.entry(id.to_owned()).or_insert_with(present);
    }

    fn mark_certificate(&mut self, before: &State, address: SocketAddr, fingerprint: Fingerprint) {
        let present = || InFile::of(before.certificate(address, &fingerprint).cloned());
        self.certificates.entry(address).or_default().entry(fingerprint).or_insert_with(present);
    }

    /// Forgets what `change` has made as in the file.
    fn settle(&mut self, state: &State, change: &Change) {
        match change {
            Change::SetSettings { .. } => return,
            Change::SetListener { listener } => self.settle_listener(state, &listener.address),
            Change::RemoveListener { address } => self.settle_listener(state, address),
            Change::SetFrontend { cluster, frontend } => {
                self.settle_frontend(state, cluster, &FrontendRule::from(frontend));
            }
            Change::RemoveFrontend { cluster, rule } => self.settle_frontend(state, cluster, rule),
            Change::SetBackend { cluster, backend: Backend { id, .. } }
            | Change::RemoveBackend { cluster, id } => {
                let Some(marks) = self.clusters.get_mut(cluster) else { return };
                let backends = state.clusters.get(cluster).map_or(&[][..], |it| &it.backends);
                let present = backends.iter().find(|it| it.id == *id);
                if marks.backends.get(id).is_some_and(|it| as_in_file(present, it)) {
                    marks.backends.remove(id);
                }
            }
            Change::SetCluster { name, .. } | Change::RemoveCluster { name } => {
                self.settle_cluster(name, state.clusters.get(name));
            }
            Change::SetCertificate { address, fingerprint, .. }
            | Change::RemoveCertificate { address, fingerprint } => {
                self.settle_certificate(state, *address, fingerprint);
            }
        }
        self.tidy_of(change);
    }

    fn settle_listener(&mut self, state: &State, address: &SocketAddr) {
        if self.listeners.get(address).is_some_and(|it| as_in_file(state.listeners.get(address), it)) {
            self.listeners.remove(address);
        }
        if state.listeners.get(address).is_none_or(|it| it.tls.is_none()) {
            // They have gone with it.
            self.certificates.remove(address);
        }
    }

    fn settle_frontend(&mut self, state: &State, cluster: &str, wanted: &FrontendRule) {
        let Some(marks) = self.clusters.get_mut(cluster) else { return };
        let frontends = state.clusters.get(cluster).map_or(&[][..], |it| &it.frontends);
        let present = frontends.iter().find(|it| wanted.is_of(it));
        let key = rule_of(wanted);
        if marks.frontends.get(&key).is_some_and(|it| as_in_file(present, it)) {
            marks.frontends.remove(&key);
        }
    }

    fn settle_cluster(&mut self, name: &str, cluster: Option<&Cluster>) {
        let Some(marks) = self.clusters.get_mut(name) else { return };
        if marks.own.as_ref().is_some_and(|own| as_in_file(cluster, own)) {
            marks.own = None;
        }
        let (frontends, backends) = (by_rule(cluster), by_id(cluster));
        marks.frontends.retain(|rule, it| !as_in_file(frontends.get(rule).copied(), it));
        marks.backends.retain(|id, it| !as_in_file(backends.get(id.as_str()).copied(), it));
    }

    /// Forgets everything that is as in the file.
    fn settle_all(&mut self, state: &State) {
        self.listeners.retain(|address, it| !as_in_file(state.listeners.get(address), it));
        for name in self.clusters.keys().cloned().collect::<Vec<_>>() {
            self.settle_cluster(&name, state.clusters.get(&name));
        }
        for (address, marks) in &mut self.certificates {
            marks.retain(|fingerprint, it| it.as_ref() != state.certificate(*address, fingerprint));
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        self.clusters.retain(|_, it| !it.is_empty());
        self.certificates.retain(|_, it| !it.is_empty());
    }

    /// The same, of what `change` names.
    fn tidy_of(&mut self, change: &Change) {
        if let Some(name) = change.cluster()
            && self.clusters.get(name).is_some_and(ClusterByHand::is_empty)
        {
            self.clusters.remove(name);
        }
        if let Some((address, _)) = change.certificate()
            && self.certificates.get(&address).is_some_and(BTreeMap::is_empty)
        {
            self.certificates.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests;
