//! Where in a configuration the content of files is needed: who issues certificates, and what backends are shown.

use kakehi_ctl::{
    change::Change,
    state::{BackendTls, ClientAuth, Cluster, Fingerprint, Frontend, Listener, Material, Place, State},
};

use super::{
    files::{Source, Whole},
    keeper::Kept,
};

/// One such place.
pub(super) enum Slot<'a> {
    /// Who issues certificates.
    Issuers(&'a mut Material),
    /// Which of them are void.
    Crls(&'a mut Material),
    /// What backends are shown: chain and key.
    Client(&'a mut Material, &'a mut Material),
}

impl Slot<'_> {
    /// What is to be read for it.
    pub(super) fn source(&self) -> Source {
        match self {
            Slot::Issuers(material) => Source::Issuers(material.path.clone()),
            Slot::Crls(material) => Source::Crls(material.path.clone()),
            Slot::Client(chain, key) => Source::Client(chain.path.clone(), key.path.clone()),
        }
    }

    /// As it is filled now.
    pub(super) fn materials(&self) -> Vec<&Material> {
        match self {
            Slot::Issuers(material) | Slot::Crls(material) => vec![material],
            Slot::Client(chain, key) => vec![chain, key],
        }
    }

    /// Fills it.
    pub(super) fn fill(self, kept: &Kept) {
        let set = |material: &mut Material, place: Place, digest: Whole| {
            material.place = place;
            material.digest = Fingerprint(digest).to_string();
        };
        match self {
            Slot::Issuers(material) | Slot::Crls(material) => set(material, kept.places[0], kept.digests[0]),
            Slot::Client(chain, key) => {
                set(chain, kept.places[0], kept.digests[0]);
                set(key, kept.places[1], kept.digests[1]);
            }
        }
    }
}

fn of_client_auth(auth: Option<&mut ClientAuth>) -> Vec<Slot<'_>> {
    let Some(ClientAuth { ca, crl, more_cas, more_crls, .. }) = auth else { return Vec::new() };
    let cas = std::iter::once(ca).chain(more_cas).map(Slot::Issuers);
    cas.chain(crl.iter_mut().chain(more_crls).map(Slot::Crls)).collect()
}

/// Those of a listener.
pub(super) fn of_listener(listener: &mut Listener) -> Vec<Slot<'_>> {
    listener.tls.as_mut().map_or_else(Vec::new, |tls| of_client_auth(tls.client_auth.as_mut()))
}

/// Those of a frontend.
pub(super) fn of_frontend(frontend: &mut Frontend) -> Vec<Slot<'_>> {
    frontend.tls.as_mut().map_or_else(Vec::new, |tls| of_client_auth(tls.client_auth.as_mut()))
}

/// Those of a cluster and its frontends.
pub(super) fn of_cluster(cluster: &mut Cluster) -> Vec<Slot<'_>> {
    let mut slots: Vec<Slot<'_>> = cluster.frontends.iter_mut().flat_map(of_frontend).collect();
    let of_probes = cluster.health.as_deref_mut().and_then(|check| check.tls.as_deref_mut());
    for BackendTls { ca, client, .. } in cluster.tls.as_deref_mut().into_iter().chain(of_probes) {
        slots.push(Slot::Issuers(ca));
        slots.extend(client.as_mut().map(|(chain, key)| Slot::Client(chain, key)));
    }
    slots
}

/// All of a state: what is read for each, and where it lies.
pub(super) fn listed(state: &State) -> Vec<(Source, Vec<Place>)> {
    let mut listed = Vec::new();
    let mut list = |slot: Slot<'_>| {
        let places = slot.materials().iter().map(|material| material.place).collect();
        listed.push((slot.source(), places));
    };
    for listener in state.listeners.values().filter(|it| it.tls.is_some()) {
        of_listener(&mut listener.clone()).into_iter().for_each(&mut list);
    }
    for cluster in state.clusters.values().filter(|it| has_any(it)) {
        of_cluster(&mut cluster.clone()).into_iter().for_each(&mut list);
    }
    listed
}

fn has_any(cluster: &Cluster) -> bool {
    let probes = cluster.health.as_ref().is_some_and(|check| check.tls.is_some());
    probes || cluster.tls.is_some() || cluster.frontends.iter().any(|frontend| frontend.tls.is_some())
}

/// The changes that fill with `kept` what is read from `source`.
pub(super) fn changes(state: &State, source: &Source, kept: &Kept) -> Vec<Change> {
    let fill = |slots: Vec<Slot<'_>>| {
        let concerned = slots.into_iter().filter(|slot| slot.source() == *source);
        concerned.map(|slot| slot.fill(kept)).count() > 0
    };
    let mut changes = Vec::new();
    for listener in state.listeners.values().filter(|it| it.tls.is_some()) {
        let mut listener = listener.clone();
        if fill(of_listener(&mut listener)) {
            changes.push(Change::SetListener { listener: Box::new(listener) });
        }
    }
    for (name, cluster) in state.clusters.iter().filter(|(_, it)| has_any(it)) {
        let mut cluster = cluster.clone();
        if fill(of_cluster(&mut cluster)) {
            changes.push(Change::SetCluster { name: name.clone(), cluster });
        }
    }
    changes
}
