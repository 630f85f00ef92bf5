//! Changes of a state: the vocabulary in which everything that happens to a running kakehi is said.
//!
//! A reload is the difference of two states, a verb of `kakehictl` is one change, and the workers are told either in
//! the same words. Promises: the changes that [`State::difference`] finds, applied in their order, lead from the one
//! state to the other; and a change that cannot be applied leaves the state as it was.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::config::write;
use crate::layers::ByHand;
use crate::state::{
    Backend, Certificate, Cluster, Fingerprint, Frontend, Listener, PathRule, Predicates, RulePosition,
    Settings, State,
};

mod checks;
mod words;

/// One change of a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The settings become these. What of them needs new workers or a new start is known from then on, and holds later.
    SetSettings {
        /// All of them.
        settings: Box<Settings>,
    },
    /// A listener comes, or the one at this address becomes this one. Without TLS, its certificates go.
    SetListener {
        /// The listener.
        listener: Box<Listener>,
    },
    /// A listener goes, with its certificates. Its connections finish the exchange that they are in.
    RemoveListener {
        /// Which.
        address: SocketAddr,
    },
    /// A cluster comes, or the one of this name becomes this one.
    SetCluster {
        /// Its name.
        name: String,
        /// The cluster.
        cluster: Cluster,
    },
    /// A cluster goes, with its frontends and backends.
    RemoveCluster {
        /// Which.
        name: String,
    },
    /// A frontend comes, or the one for the same requests becomes this one.
    SetFrontend {
        /// Its cluster.
        cluster: String,
        /// The frontend.
        frontend: Frontend,
    },
    /// A frontend goes. Requests that it led somewhere are finished.
    RemoveFrontend {
        /// Its cluster.
        cluster: String,
        /// Which.
        rule: FrontendRule,
    },
    /// A backend comes, or the one of this name becomes this one.
    SetBackend {
        /// Its cluster.
        cluster: String,
        /// The backend.
        backend: Backend,
    },
    /// A backend goes. It finishes the requests that it has.
    RemoveBackend {
        /// Its cluster.
        cluster: String,
        /// Which.
        id: String,
    },
    /// A certificate comes, or the one of this fingerprint becomes this one.
    SetCertificate {
        /// Its listener.
        address: SocketAddr,
        /// SHA-256 of it.
        fingerprint: Fingerprint,
        /// The certificate.
        certificate: Arc<Certificate>,
    },
    /// A certificate goes. Connections that were made with it go on.
    RemoveCertificate {
        /// Its listener.
        address: SocketAddr,
        /// Which.
        fingerprint: Fingerprint,
    },
}

/// What makes a frontend different from others: the requests that it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontendRule {
    /// The listener.
    pub address: SocketAddr,
    /// As in [`Frontend::hostname`]; the case of letters makes no difference.
    pub hostname: String,
    /// Which paths.
    pub path: PathRule,
    /// Which method; `None` = any.
    pub method: Option<String>,
    /// When it is looked at.
    #[serde(default, skip_serializing_if = "is_default")]
    pub position: RulePosition,
    /// What else it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicates: Option<Box<Predicates>>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl FrontendRule {
    /// One that asks for nothing more.
    pub fn new(
        address: SocketAddr,
        hostname: String,
        path: PathRule,
        method: Option<String>,
    ) -> FrontendRule {
        FrontendRule { address, hostname, path, method, position: RulePosition::Tree, predicates: None }
    }

    /// Whether `frontend` takes the same requests, and is looked at as this one.
    pub fn is_of(&self, frontend: &Frontend) -> bool {
        self.is_for(frontend) && self.position == frontend.position && self.predicates == frontend.predicates
    }

    /// Whether listener, host, path and method are those of `frontend`.
    pub(crate) fn is_for(&self, frontend: &Frontend) -> bool {
        self.address == frontend.address
            && self.hostname.eq_ignore_ascii_case(&frontend.hostname)
            && self.path == frontend.path
            && self.method == frontend.method
    }

    /// The one of `frontends` that is meant: [the same](FrontendRule::is_of), or else, where nothing is said but listener, host, path and method,
    /// the only one with these.
    pub(crate) fn find<'a>(&self, frontends: &'a [Frontend]) -> Option<&'a Frontend> {
        let same = frontends.iter().find(|it| self.is_of(it));
        let says_no_more = self.position == RulePosition::Tree && self.predicates.is_none();
        same.or_else(|| {
            let mut alike = frontends.iter().filter(|it| says_no_more && self.is_for(it));
            alike.next().filter(|_| alike.next().is_none())
        })
    }

    /// Why none of `frontends` of a cluster is [meant](FrontendRule::find).
    pub(crate) fn not_found(&self, cluster: &str, frontends: &[Frontend]) -> ChangeError {
        let (cluster, hostname) = (cluster.to_owned(), self.hostname.clone());
        match frontends.iter().filter(|it| self.is_for(it)).count() {
            0 => ChangeError::NoFrontend { cluster, hostname },
            count => ChangeError::ManyFrontends { cluster, hostname, count },
        }
    }

    /// What it says beyond listener, host, path and method, as a file does; empty if that is nothing.
    pub fn asks(&self) -> String {
        let mut text = String::new();
        if self.position == RulePosition::Tree && self.predicates.is_none() {
            return text;
        }
        let (position, predicates) = (self.position, self.predicates.clone());
        let mut keys = write::frontend(&Frontend { position, predicates, ..Frontend::default() });
        keys.retain(|key, _| Frontend::REQUIRED.iter().all(|required| required.name != key));
        for (key, value) in keys {
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{space}{key}={value}");
        }
        text
    }
}

impl From<&Frontend> for FrontendRule {
    fn from(frontend: &Frontend) -> FrontendRule {
        FrontendRule {
            address: frontend.address,
            hostname: frontend.hostname.clone(),
            path: frontend.path.clone(),
            method: frontend.method.clone(),
            position: frontend.position,
            predicates: frontend.predicates.clone(),
        }
    }
}

/// Why a change cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such listener.
    #[error("there is no listener at {0}")]
    NoListener(SocketAddr),
    /// There is no such cluster.
    #[error("there is no cluster `{0}`")]
    NoCluster(String),
    /// There is no such backend.
    #[error("cluster `{cluster}` has no backend `{id}`")]
    NoBackend {
        /// The cluster.
        cluster: String,
        /// The backend.
        id: String,
    },
    /// There is no such frontend.
    #[error(
        "cluster `{cluster}` has no such frontend for `{hostname}`; path, kind of path and method count too"
    )]
    NoFrontend {
        /// The cluster.
        cluster: String,
        /// Its hostname.
        hostname: String,
    },
    /// There are several, which differ in what else they ask for.
    #[error(
        "cluster `{cluster}` has {count} such frontends for `{hostname}`: say which with `--when KEY=VALUE`, of `position`, \
         `header_predicates`, `query_predicates`, `cookie_predicates`, `sources` and `alpn`"
    )]
    ManyFrontends {
        /// The cluster.
        cluster: String,
        /// Their hostname.
        hostname: String,
        /// How many.
        count: usize,
    },
    /// Frontends would be left without their listener.
    #[error("a frontend of cluster `{cluster}` is on {address}, where nothing would listen")]
    NoListenerFor {
        /// The cluster.
        cluster: String,
        /// Where.
        address: SocketAddr,
    },
    /// A frontend would divide its requests among clusters one of which is not there, or takes no requests.
    #[error(
        "a frontend of cluster `{cluster}` for `{hostname}` has the cluster `{wanted}` in its `split`, which would not be there, or take no requests"
    )]
    NoClusterFor {
        /// The cluster of the frontend.
        cluster: String,
        /// Its hostname.
        hostname: String,
        /// The one that it names.
        wanted: String,
    },
    /// There is no such certificate.
    #[error("the listener at {address} has no certificate {fingerprint}")]
    NoCertificate {
        /// The listener.
        address: SocketAddr,
        /// The certificate.
        fingerprint: Fingerprint,
    },
    /// A certificate would be left without a listener that uses it.
    #[error("certificate {fingerprint} is for {address}, where no `https` listener would be")]
    NoListenerForCertificate {
        /// Where.
        address: SocketAddr,
        /// The certificate.
        fingerprint: Fingerprint,
    },
    /// Two backends of a cluster would have one name.
    #[error("cluster `{cluster}` would have two backends `{id}`")]
    TwoBackends {
        /// The cluster.
        cluster: String,
        /// Their name.
        id: String,
    },
}

impl Change {
    /// Whether requests may find another way than before: the routing tables have to be compiled anew.
    pub fn concerns_routes(&self) -> bool {
        !matches!(
            self,
            Change::SetSettings { .. }
                | Change::SetBackend { .. }
                | Change::RemoveBackend { .. }
                | Change::SetCertificate { .. }
                | Change::RemoveCertificate { .. }
        )
    }

    /// The cluster that it changes.
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Change::SetSettings { .. }
            | Change::SetListener { .. }
            | Change::RemoveListener { .. }
            | Change::SetCertificate { .. }
            | Change::RemoveCertificate { .. } => None,
            Change::SetCluster { name, .. } | Change::RemoveCluster { name } => Some(name),
            Change::SetFrontend { cluster, .. }
            | Change::RemoveFrontend { cluster, .. }
            | Change::SetBackend { cluster, .. }
            | Change::RemoveBackend { cluster, .. } => Some(cluster),
        }
    }

    /// The certificate that it names.
    pub fn certificate(&self) -> Option<(SocketAddr, Fingerprint)> {
        match self {
            Change::SetCertificate { address, fingerprint, .. }
            | Change::RemoveCertificate { address, fingerprint } => Some((*address, *fingerprint)),
            _ => None,
        }
    }
}

impl State {
    /// Makes one change.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing has changed then.
    pub fn apply(&mut self, change: &Change) -> Result<(), ChangeError> {
        match change {
            Change::SetSettings { settings } => self.settings.clone_from(settings),
            Change::SetListener { listener } => {
                self.listeners.insert(listener.address, Listener::clone(listener));
                if listener.tls.is_none() {
                    self.certificates.remove(&listener.address);
                }
            }
            Change::RemoveListener { address } => {
                self.listeners.remove(address).ok_or(ChangeError::NoListener(*address))?;
                self.certificates.remove(address);
            }
            Change::SetCluster { name, cluster } => {
                self.clusters.insert(name.clone(), cluster.clone());
            }
            Change::RemoveCluster { name } => {
                self.clusters.remove(name).ok_or_else(|| ChangeError::NoCluster(name.clone()))?;
            }
            Change::SetFrontend { cluster, frontend } => {
                let frontends = &mut self.cluster_mut(cluster)?.frontends;
                let rule = FrontendRule::from(frontend);
                match frontends.iter_mut().find(|present| rule.is_of(present)) {
                    Some(present) => *present = frontend.clone(),
                    None => frontends.push(frontend.clone()),
                }
            }
            Change::RemoveFrontend { cluster, rule } => {
                let frontends = &mut self.cluster_mut(cluster)?.frontends;
                let index = frontends.iter().position(|present| rule.is_of(present));
                let Some(index) = index else { return Err(rule.not_found(cluster, frontends)) };
                frontends.remove(index);
            }
            Change::SetBackend { cluster, backend } => {
                let backends = &mut self.cluster_mut(cluster)?.backends;
                match backends.iter_mut().find(|present| present.id == backend.id) {
                    Some(present) => *present = backend.clone(),
                    None => backends.push(backend.clone()),
                }
            }
            Change::RemoveBackend { cluster, id } => {
                let backends = &mut self.cluster_mut(cluster)?.backends;
                let index = backends.iter().position(|present| present.id == *id);
                let missing = || ChangeError::NoBackend { cluster: cluster.clone(), id: id.clone() };
                backends.remove(index.ok_or_else(missing)?);
            }
            Change::SetCertificate { address, fingerprint, certificate } => {
                let certificates = self.certificates.entry(*address).or_default();
                certificates.insert(*fingerprint, certificate.clone());
            }
            Change::RemoveCertificate { address, fingerprint } => {
                let missing = ChangeError::NoCertificate { address: *address, fingerprint: *fingerprint };
                let certificates = self.certificates.get_mut(address).ok_or_else(|| missing.clone())?;
                certificates.remove(fingerprint).ok_or(missing)?;
                if certificates.is_empty() {
                    self.certificates.remove(address);
                }
            }
        }
        Ok(())
    }

    /// The certificate of a listener that has this fingerprint.
    pub fn certificate(&self, address: SocketAddr, fingerprint: &Fingerprint) -> Option<&Arc<Certificate>> {
        self.certificates.get(&address)?.get(fingerprint)
    }

    fn cluster_mut(&mut self, name: &str) -> Result<&mut Cluster, ChangeError> {
        self.clusters.get_mut(name).ok_or_else(|| ChangeError::NoCluster(name.to_owned()))
    }

    /// A copy of what `changes` name: their clusters, and all listeners. What can be applied to that can be applied to the
    /// whole, if [`State::check_part`] agrees.
    pub fn part(&self, changes: &[Change]) -> State {
        let mut part = self.without_clusters();
        changes.iter().for_each(|change| self.copy_named(change, &mut part));
        part
    }

    /// The beginning of [`State::part`], for who makes it in pieces: all listeners, and nothing that refers to one.
    pub fn without_clusters(&self) -> State {
        State {
            version: self.version,
            revision: self.revision.clone(),
            settings: self.settings.clone(),
            listeners: self.listeners.clone(),
            clusters: BTreeMap::new(),
            certificates: BTreeMap::new(),
            by_hand: ByHand::default(),
        }
    }

    /// Adds what `change` names to `part`, before anything is applied to that.
    pub fn copy_named(&self, change: &Change, part: &mut State) {
        if let Some((name, cluster)) = change.cluster().and_then(|name| self.clusters.get_key_value(name))
            && !part.clusters.contains_key(name)
        {
            part.clusters.insert(name.clone(), cluster.clone());
        }
        if let Change::SetListener { listener } = change
            && let Listener { address, tls: None, .. } = &**listener
            && let Some(all) = self.certificates.get(address)
        {
            // Those that go with its TLS.
            part.certificates.insert(*address, all.clone());
        }
        if let Some((address, fingerprint)) = change.certificate()
            && let Some(present) = self.certificate(address, &fingerprint)
        {
            part.certificates.entry(address).or_default().insert(fingerprint, Arc::clone(present));
        }
    }

    /// The changes that lead from here to `wanted`, settings apart.
    ///
    /// Where only the backends of a cluster differ, only those are named: routing is then left alone.
    pub fn difference(&self, wanted: &State) -> Vec<Change> {
        let mut changes = Vec::new();
        let is_set = |listener: &Listener| self.listeners.get(&listener.address) != Some(listener);
        for listener in wanted.listeners.values() {
            if is_set(listener) {
                changes.push(Change::SetListener { listener: Box::new(listener.clone()) });
            }
        }
        // They go with a listener, or with its TLS.
        let go_along = |address: &SocketAddr| {
            wanted.listeners.get(address).is_none_or(|it| it.tls.is_none() && is_set(it))
        };
        for (address, certificates) in &wanted.certificates {
            let present = self.certificates.get(address).filter(|_| !go_along(address));
            for (fingerprint, certificate) in certificates {
                if present.and_then(|present| present.get(fingerprint)) != Some(certificate) {
                    changes.push(Change::SetCertificate {
                        address: *address,
                        fingerprint: *fingerprint,
                        certificate: certificate.clone(),
                    });
                }
            }
        }
        for (name, cluster) in &wanted.clusters {
            match self.clusters.get(name) {
                Some(present) if present == cluster => {}
                Some(present) if present.routes_like(cluster) && present.reaches(cluster) => {
                    changes.extend(present.backend_changes(name, cluster));
                }
                _ => changes.push(Change::SetCluster { name: name.clone(), cluster: cluster.clone() }),
            }
        }
        let gone = self.clusters.keys().filter(|name| !wanted.clusters.contains_key(*name));
        changes.extend(gone.map(|name| Change::RemoveCluster { name: name.clone() }));
        for (address, certificates) in &self.certificates {
            let kept = wanted.certificates.get(address);
            let gone = certificates.keys().filter(|it| !kept.is_some_and(|kept| kept.contains_key(*it)));
            let gone = gone.filter(|_| !go_along(address));
            changes.extend(gone.map(|it| Change::RemoveCertificate { address: *address, fingerprint: *it }));
        }
        let gone = self.listeners.keys().filter(|address| !wanted.listeners.contains_key(address));
        changes.extend(gone.map(|address| Change::RemoveListener { address: *address }));
        changes
    }
}

impl Cluster {
    /// Whether the same requests lead to both, and meet the same treatment.
    fn routes_like(&self, other: &Cluster) -> bool {
        Cluster { backends: Vec::new(), ..self.clone() } == Cluster { backends: Vec::new(), ..other.clone() }
    }

    /// Whether [`Cluster::backend_changes`] leads to `other`, the order of the backends included.
    fn reaches(&self, other: &Cluster) -> bool {
        let kept = self.backends.iter().map(|it| &it.id).filter(|id| other.has_backend(id));
        let new = other.backends.iter().map(|it| &it.id).filter(|id| !self.has_backend(id));
        kept.chain(new).eq(other.backends.iter().map(|it| &it.id))
    }

    fn has_backend(&self, id: &str) -> bool {
        self.backends.iter().any(|it| it.id == id)
    }

    fn backend_changes(&self, name: &str, wanted: &Cluster) -> Vec<Change> {
        let changed = wanted.backends.iter().filter(|it| !self.backends.contains(it));
        let set = changed.map(|it| Change::SetBackend { cluster: name.to_owned(), backend: it.clone() });
        let gone = self.backends.iter().filter(|it| !wanted.has_backend(&it.id));
        let remove = gone.map(|it| Change::RemoveBackend { cluster: name.to_owned(), id: it.id.clone() });
        set.chain(remove).collect()
    }
}

#[cfg(test)]
mod tests;
