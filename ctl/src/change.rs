//! Changes of a state: the vocabulary in which everything that happens to a running kakehi is said.
//!
//! A reload is the difference of two states, a verb of `kakehictl` is one change, and the workers are told either in
//! the same words. Promises: the changes that [`State::difference`] finds, applied in their order, lead from the one
//! state to the other; and a change that cannot be applied leaves the state as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

use crate::state::{Backend, Certificate, Cluster, Fingerprint, Frontend, Listener, PathRule, State};

mod words;

/// One change of a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A listener comes, or the one at this address becomes this one. Without TLS, its certificates go.
    SetListener {
        /// The listener.
        listener: Listener,
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
        certificate: Certificate,
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
}

impl FrontendRule {
    /// Whether `frontend` takes the same requests.
    pub fn is_of(&self, frontend: &Frontend) -> bool {
        self.address == frontend.address
            && self.hostname.eq_ignore_ascii_case(&frontend.hostname)
            && self.path == frontend.path
            && self.method == frontend.method
    }
}

impl From<&Frontend> for FrontendRule {
    fn from(frontend: &Frontend) -> FrontendRule {
        FrontendRule {
            address: frontend.address,
            hostname: frontend.hostname.clone(),
            path: frontend.path.clone(),
            method: frontend.method.clone(),
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
    /// Frontends would be left without their listener.
    #[error("a frontend of cluster `{cluster}` is on {address}, where nothing would listen")]
    NoListenerFor {
        /// The cluster.
        cluster: String,
        /// Where.
        address: SocketAddr,
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
            Change::SetBackend { .. }
                | Change::RemoveBackend { .. }
                | Change::SetCertificate { .. }
                | Change::RemoveCertificate { .. }
        )
    }

    /// The cluster that it changes.
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Change::SetListener { .. }
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
}

impl State {
    /// Makes one change.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing has changed then.
    pub fn apply(&mut self, change: &Change) -> Result<(), ChangeError> {
        match change {
            Change::SetListener { listener } => {
                self.listeners.insert(listener.address, listener.clone());
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
                let missing =
                    || ChangeError::NoFrontend { cluster: cluster.clone(), hostname: rule.hostname.clone() };
                frontends.remove(index.ok_or_else(missing)?);
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

    fn cluster_mut(&mut self, name: &str) -> Result<&mut Cluster, ChangeError> {
        self.clusters.get_mut(name).ok_or_else(|| ChangeError::NoCluster(name.to_owned()))
    }

    /// A copy of what `changes` name: their clusters, and all listeners. What can be applied to that can be applied to the
    /// whole, if [`State::check_part`] agrees.
    pub fn part(&self, changes: &[Change]) -> State {
        let named: BTreeSet<&str> = changes.iter().filter_map(Change::cluster).collect();
        let clusters = named.iter().filter_map(|name| self.clusters.get_key_value(*name));
        State {
            version: self.version,
            revision: self.revision.clone(),
            settings: self.settings.clone(),
            listeners: self.listeners.clone(),
            clusters: clusters.map(|(name, cluster)| (name.clone(), cluster.clone())).collect(),
            certificates: self.named_certificates(changes),
        }
    }

    fn named_certificates(
        &self,
        changes: &[Change],
    ) -> BTreeMap<SocketAddr, BTreeMap<Fingerprint, Certificate>> {
        let mut named = BTreeMap::<_, BTreeMap<_, _>>::new();
        for change in changes {
            if let Change::SetListener { listener: Listener { address, tls: None, .. } } = change {
                // Those that go with its TLS.
                named.extend(self.certificates.get(address).map(|all| (*address, all.clone())));
            }
            let (Change::SetCertificate { address, fingerprint, .. }
            | Change::RemoveCertificate { address, fingerprint }) = change
            else {
                continue;
            };
            if let Some(present) = self.certificates.get(address).and_then(|it| it.get(fingerprint)) {
                named.entry(*address).or_default().insert(*fingerprint, present.clone());
            }
        }
        named
    }

    /// Whether this state with `changes`, which have made `part` of what they name, refers to what is there.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn check_part(&self, part: &State, changes: &[Change]) -> Result<(), ChangeError> {
        part.check()?;
        if self.listeners.keys().all(|address| part.listeners.contains_key(address)) {
            return Ok(());
        }
        let named: BTreeSet<&str> = changes.iter().filter_map(Change::cluster).collect();
        for (name, cluster) in self.clusters.iter().filter(|(name, _)| !named.contains(name.as_str())) {
            for Frontend { address, .. } in &cluster.frontends {
                if !part.listeners.contains_key(address) {
                    return Err(ChangeError::NoListenerFor { cluster: name.clone(), address: *address });
                }
            }
        }
        Ok(())
    }

    /// Whether everything in it refers to something that is there.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn check(&self) -> Result<(), ChangeError> {
        for (address, certificates) in &self.certificates {
            let terminates = self.listeners.get(address).is_some_and(|listener| listener.tls.is_some());
            if let (false, Some(fingerprint)) = (terminates, certificates.keys().next()) {
                return Err(ChangeError::NoListenerForCertificate {
                    address: *address,
                    fingerprint: *fingerprint,
                });
            }
        }
        for (name, cluster) in &self.clusters {
            for Frontend { address, .. } in &cluster.frontends {
                if !self.listeners.contains_key(address) {
                    return Err(ChangeError::NoListenerFor { cluster: name.clone(), address: *address });
                }
            }
            let mut ids = BTreeSet::new();
            if let Some(twice) = cluster.backends.iter().find(|backend| !ids.insert(&backend.id)) {
                return Err(ChangeError::TwoBackends { cluster: name.clone(), id: twice.id.clone() });
            }
        }
        Ok(())
    }

    /// The changes that lead from here to `wanted`, settings apart.
    ///
    /// Where only the backends of a cluster differ, only those are named: routing is then left alone.
    pub fn difference(&self, wanted: &State) -> Vec<Change> {
        let mut changes = Vec::new();
        let is_set = |listener: &Listener| self.listeners.get(&listener.address) != Some(listener);
        for listener in wanted.listeners.values() {
            if is_set(listener) {
                changes.push(Change::SetListener { listener: listener.clone() });
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
mod tests {
    use super::*;
    use crate::state::{KeyKind, PathRule, Place};

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn backend(id: &str, port: u16, weight: u8) -> Backend {
        let address = address(port).to_string().parse().unwrap();
        Backend { id: id.to_owned(), address, weight, backup: false }
    }

    fn cluster(hosts: &[&str], backends: &[Backend]) -> Cluster {
        let frontend = |host: &&str| Frontend {
            address: address(80),
            hostname: (*host).to_owned(),
            path: PathRule::Prefix(String::new()),
            method: None,
            deny: false,
            tls: None,
        };
        Cluster {
            frontends: hosts.iter().map(frontend).collect(),
            backends: backends.to_vec(),
            ..Cluster::default()
        }
    }

    fn state(listeners: &[u16], clusters: &[(&str, Cluster)]) -> State {
        State {
            listeners: listeners
                .iter()
                .map(|port| (address(*port), Listener::http(address(*port))))
                .collect(),
            clusters: clusters.iter().map(|(name, cluster)| ((*name).to_owned(), cluster.clone())).collect(),
            ..State::default()
        }
    }

    /// A state with a listener on port 80 that terminates TLS and has these certificates.
    fn secure(certificates: &[u8], default: u8) -> State {
        let mut state = state(&[80, 81], &[("web", cluster(&["x"], &[]))]);
        for listener in state.listeners.values_mut().filter(|it| it.address == address(80)) {
            listener.tls = Some(Box::default());
        }
        for n in certificates {
            let certificate = Certificate {
                names: vec![format!("{n}.example")],
                key: KeyKind::Ecdsa,
                not_after: 0,
                default: *n == default,
                named: false,
                place: Place { offset: 5_000, length: u32::from(*n) },
                files: None,
            };
            state.certificates.entry(address(80)).or_default().insert(Fingerprint([*n; 32]), certificate);
        }
        state
    }

    fn various() -> Vec<State> {
        let (a, b, c) = (backend("a", 1, 100), backend("b", 2, 100), backend("c", 3, 1));
        let mut patched = state(&[80], &[("web", cluster(&["x"], std::slice::from_ref(&a)))]);
        patched.listeners.values_mut().for_each(|listener| listener.timeouts.request_ms += 1);
        vec![
            state(&[], &[]),
            state(&[80], &[]),
            state(&[80, 81], &[("web", cluster(&["x"], &[a.clone(), b.clone()]))]),
            state(&[80], &[("web", cluster(&["x"], &[b.clone(), a.clone()]))]),
            state(&[80], &[("web", cluster(&["x", "y"], &[a.clone(), c.clone()]))]),
            state(
                &[80],
                &[("web", cluster(&["x"], &[backend("a", 9, 7), c])), ("other", cluster(&["z"], &[b]))],
            ),
            patched,
            secure(&[], 0),
            secure(&[1, 2], 1),
            secure(&[2, 3], 3),
        ]
    }

    #[test]
    fn the_difference_of_any_two_states_leads_from_one_to_the_other() {
        for from in various() {
            for to in various() {
                let mut state = from.clone();
                for change in from.difference(&to) {
                    assert!(!state.describe(&change).is_empty());
                    state.apply(&change).unwrap();
                }
                assert_eq!(state, to);
                assert_eq!(state.check(), Ok(()));
                assert!(state.difference(&to).is_empty());
            }
        }
    }

    #[test]
    fn a_backend_that_comes_or_goes_leaves_the_routes_alone() {
        let (a, b) = (backend("a", 1, 100), backend("b", 2, 100));
        let one = state(&[80], &[("web", cluster(&["x"], std::slice::from_ref(&a)))]);
        let two = state(&[80], &[("web", cluster(&["x"], &[a, b]))]);
        for (from, to) in [(&one, &two), (&two, &one)] {
            let changes = from.difference(to);
            assert!(changes.len() == 1 && !changes[0].concerns_routes(), "{changes:?}");
        }
    }

    #[test]
    fn certificates_go_with_the_tls_of_their_listener() {
        let (from, to) = (secure(&[1, 2], 1), state(&[80, 81], &[("web", cluster(&["x"], &[]))]));
        let changes = from.difference(&to);
        assert!(matches!(&changes[..], [Change::SetListener { .. }]), "{changes:?}");
        let mut part = from.part(&changes);
        assert_eq!(part.describe(&changes[0])[1..], ["  - its 2 certificates, as it is without TLS"]);
        part.apply(&changes[0]).unwrap();
        assert_eq!((from.check_part(&part, &changes), part.certificates.len()), (Ok(()), 0));
    }

    #[test]
    fn what_is_not_there_cannot_be_removed_and_nothing_happens() {
        let mut present = various().remove(2);
        let before = present.clone();
        let web = || "web".to_owned();
        for (change, error) in [
            (Change::RemoveCluster { name: "no".to_owned() }, ChangeError::NoCluster("no".to_owned())),
            (Change::RemoveListener { address: address(9) }, ChangeError::NoListener(address(9))),
            (
                Change::RemoveBackend { cluster: web(), id: "no".to_owned() },
                ChangeError::NoBackend { cluster: web(), id: "no".to_owned() },
            ),
        ] {
            assert_eq!(present.apply(&change), Err(error));
        }
        assert_eq!(present, before);
    }

    #[test]
    fn a_frontend_without_its_listener_and_two_backends_of_one_name_are_found() {
        let lone = state(&[81], &[("web", cluster(&["x"], &[]))]);
        assert!(matches!(lone.check(), Err(ChangeError::NoListenerFor { .. })));
        let twins = state(&[80], &[("web", cluster(&["x"], &[backend("a", 1, 1), backend("a", 2, 1)]))]);
        assert!(matches!(twins.check(), Err(ChangeError::TwoBackends { .. })));
        assert_eq!(various()[2].check(), Ok(()));
    }
}
