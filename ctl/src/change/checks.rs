//! Whether what a state refers to is there.

use std::collections::BTreeSet;

use super::{Change, ChangeError};
use crate::state::{Cluster, ClusterProtocol, Frontend, State};

impl State {
    /// Whether this state with `changes`, which have made `part` of what they name, refers to what is there.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn check_part(&self, part: &State, changes: &[Change]) -> Result<(), ChangeError> {
        self.part_checks(part, changes).collect()
    }

    /// The same, one short check after the other.
    pub fn part_checks<'a>(
        &'a self,
        part: &'a State,
        changes: &'a [Change],
    ) -> impl Iterator<Item = Result<(), ChangeError>> + 'a {
        // Those of clusters that no change names only matter where a listener, or a cluster that takes requests, has gone.
        let loses_listeners = self.listeners.keys().any(|address| !part.listeners.contains_key(address));
        let named: BTreeSet<&str> = changes.iter().filter_map(Change::cluster).collect();
        let takes_requests = |state: &State, name: &str| {
            state.clusters.get(name).is_some_and(|cluster| cluster.protocol == ClusterProtocol::Http)
        };
        let is_lost = |name: &&str| takes_requests(self, name) && !takes_requests(part, name);
        let looks_at_others = loses_listeners || named.iter().any(is_lost);
        let is_named = named.clone();
        let is_there =
            move |name: &str| takes_requests(if is_named.contains(name) { part } else { self }, name);
        let is_there_too = is_there.clone();
        let others = looks_at_others.then(|| {
            let others = self.clusters.iter().filter(move |(name, _)| !named.contains(name.as_str()));
            others.map(move |(name, cluster)| part.check_frontends(name, cluster, &is_there_too))
        });
        part.checks(is_there).chain(others.into_iter().flatten())
    }

    /// Whether everything in it refers to something that is there.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn check(&self) -> Result<(), ChangeError> {
        let is_there = |name: &str| {
            self.clusters.get(name).is_some_and(|cluster| cluster.protocol == ClusterProtocol::Http)
        };
        self.checks(is_there).collect()
    }

    /// `takes_requests` tells whether there is a cluster of that name that does.
    fn checks<'a>(
        &'a self,
        takes_requests: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = Result<(), ChangeError>> + 'a {
        let clusters = self
            .clusters
            .iter()
            .map(move |(name, cluster)| self.check_cluster(name, cluster, &takes_requests));
        std::iter::once_with(|| self.check_certificates()).chain(clusters)
    }

    fn check_certificates(&self) -> Result<(), ChangeError> {
        for (address, certificates) in &self.certificates {
            let terminates = self.listeners.get(address).is_some_and(|listener| listener.tls.is_some());
            if let (false, Some(fingerprint)) = (terminates, certificates.keys().next()) {
                return Err(ChangeError::NoListenerForCertificate {
                    address: *address,
                    fingerprint: *fingerprint,
                });
            }
        }
        Ok(())
    }

    fn check_cluster(
        &self,
        name: &str,
        cluster: &Cluster,
        takes_requests: &impl Fn(&str) -> bool,
    ) -> Result<(), ChangeError> {
        self.check_frontends(name, cluster, takes_requests)?;
        let mut ids = BTreeSet::new();
        match cluster.backends.iter().find(|backend| !ids.insert(&backend.id)) {
            Some(twice) => Err(ChangeError::TwoBackends { cluster: name.to_owned(), id: twice.id.clone() }),
            None => Ok(()),
        }
    }

    fn check_frontends(
        &self,
        name: &str,
        cluster: &Cluster,
        takes_requests: &impl Fn(&str) -> bool,
    ) -> Result<(), ChangeError> {
        for Frontend { address, hostname, split, .. } in &cluster.frontends {
            if !self.listeners.contains_key(address) {
                return Err(ChangeError::NoListenerFor { cluster: name.to_owned(), address: *address });
            }
            let mut parts = split.iter().flat_map(|split| &split.parts);
            if let Some(part) = parts.find(|part| !takes_requests(&part.cluster)) {
                return Err(ChangeError::NoClusterFor {
                    cluster: name.to_owned(),
                    hostname: hostname.clone(),
                    wanted: part.cluster.clone(),
                });
            }
        }
        Ok(())
    }
}
