//! What is decided before the first request of a connection: where it is passed on to as it is, and how TLS is terminated.
//! All that it can go by is the listener, and what the first message of a client of TLS says: a name, and protocols.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
};

use kakehi_ctl::state::{self, ClusterProtocol, Frontend, FrontendLimits, FrontendTls, ListenerProtocol};

use super::{
    compile::{Clusters, CompileError, ListenerConfigs, check},
    delta::ConfigDelta,
};
use crate::{
    exchange::{Passage, Passthrough},
    quota::Guard,
    tls::{Context, Terminator, demands_by_name},
    upstream::Cluster,
};

/// What is decided before the first request.
pub struct TlsIngress {
    /// How TLS is terminated, if it is.
    pub(super) tls: Option<Rc<Terminator>>,
    pub(super) passthrough: Rc<Passthrough>,
}

impl TlsIngress {
    /// Of a listener without TLS that passes nothing on.
    pub(super) fn open() -> TlsIngress {
        TlsIngress { tls: None, passthrough: Rc::default() }
    }
}

/// What a frontend says that counts before the first request; `None`: nothing.
fn said(protocol: ClusterProtocol, frontend: &Frontend) -> Option<Said<'_>> {
    let own = frontend.tls.as_deref().filter(|own| own.versions.is_some() || own.client_auth.is_some());
    let counts = protocol == ClusterProtocol::Tcp || own.is_some();
    let limits = frontend.limits.as_deref().filter(|_| protocol == ClusterProtocol::Tcp);
    let Frontend { address, hostname, .. } = frontend;
    let alpn = frontend.predicates.as_ref().map_or(&[][..], |asks| &asks.alpn);
    counts.then_some(Said { protocol, address: *address, hostname, alpn, own, limits })
}

#[derive(PartialEq)]
struct Said<'a> {
    protocol: ClusterProtocol,
    address: SocketAddr,
    hostname: &'a str,
    alpn: &'a [String],
    own: Option<&'a FrontendTls>,
    limits: Option<&'a FrontendLimits>,
}

/// What the frontends of a listener say that counts before the first request.
#[derive(Default)]
pub(super) struct IngressPlan<'a> {
    own: Vec<(&'a str, &'a FrontendTls)>,
    passthrough: Passthrough,
}

impl<'a> IngressPlan<'a> {
    /// Takes note of what a frontend of `cluster` says.
    ///
    /// # Errors
    /// When it contradicts another.
    pub(super) fn add(
        &mut self,
        protocol: ClusterProtocol,
        frontend: &'a Frontend,
        cluster: &Rc<Cluster>,
    ) -> Result<(), CompileError> {
        let Some(Said { protocol, address, hostname, alpn, own, .. }) = said(protocol, frontend) else {
            return Ok(());
        };
        if protocol == ClusterProtocol::Tcp {
            let guard = Guard::of_frontend(frontend).map(Rc::new);
            let added = self.passthrough.add(hostname, alpn, Passage { cluster: Rc::clone(cluster), guard });
            return added.map_err(|error| CompileError::Names { address, error });
        }
        self.own.extend(own.map(|own| (hostname, own)));
        Ok(())
    }

    /// Compiles it. `hosts` are those of all frontends that lead requests somewhere.
    ///
    /// # Errors
    /// When frontends contradict each other, or TLS cannot be terminated as it is configured.
    pub(super) fn compile<'h>(
        self,
        listener: &state::Listener,
        hosts: impl IntoIterator<Item = &'h str>,
        context: Option<&Context>,
    ) -> Result<TlsIngress, CompileError> {
        let IngressPlan { own, mut passthrough } = self;
        let address = listener.address;
        let contradiction = |error| CompileError::Names { address, error };
        if passthrough.goes_by_name() {
            // What is terminated under its own name is not passed on with all others of its kind.
            for host in hosts {
                passthrough.terminate(host).map_err(contradiction)?;
            }
        }
        let tls = match &listener.tls {
            Some(configured) => {
                let demands = demands_by_name(configured, own).map_err(contradiction)?;
                context
                    .map(|context| Terminator::compile(context, address, configured, demands).map(Rc::new))
                    .transpose()
                    .map_err(|error| CompileError::Tls { address, error })?
            }
            None => None,
        };
        Ok(TlsIngress { tls, passthrough: Rc::new(passthrough) })
    }
}

impl<'a> ConfigDelta<'a> {
    /// Compiles what changes before the first requests of connections, by listener. Routes stay as they are.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub fn ingresses(
        &self,
        configs: &ListenerConfigs,
        clusters: &Clusters,
        new: &Clusters,
        context: Option<&Context>,
    ) -> Result<Vec<(SocketAddr, TlsIngress)>, CompileError> {
        let concerned = self.concerned(configs);
        if concerned.is_empty() {
            return Ok(Vec::new());
        }
        let mut plans: BTreeMap<SocketAddr, IngressPlan<'_>> =
            concerned.into_iter().map(|address| (address, IngressPlan::default())).collect();
        for (name, cluster) in self.all() {
            // Every cluster of the state has been made.
            let Some(made) = new.get(name).or_else(|| clusters.get(name)) else { continue };
            for frontend in &cluster.frontends {
                if let Some(plan) = plans.get_mut(&frontend.address) {
                    if self.named.contains(name) {
                        check(name, frontend)?;
                    }
                    plan.add(cluster.protocol, frontend, made)?;
                }
            }
        }
        let mut ingresses = Vec::new();
        for (address, plan) in plans {
            let Some(listener) = self.part.listeners.get(&address) else { continue };
            let routed = self.all().filter(|(_, cluster)| cluster.protocol == ClusterProtocol::Http);
            let frontends = routed.flat_map(|(_, cluster)| &cluster.frontends);
            let hosts = frontends.filter(|it| it.address == address).map(|it| it.hostname.as_str());
            ingresses.push((address, plan.compile(listener, hosts, context)?));
        }
        Ok(ingresses)
    }

    /// The listeners where something else is decided before the first request than it was.
    fn concerned(&self, configs: &ListenerConfigs) -> BTreeSet<SocketAddr> {
        let mut concerned = BTreeSet::new();
        let all_said = |cluster: &'a state::Cluster| {
            cluster.frontends.iter().filter_map(|frontend| said(cluster.protocol, frontend))
        };
        let passes_on =
            |address: &SocketAddr| configs.get(address).is_some_and(|config| config.passes_on_by_name());
        for name in &self.named {
            let both = [self.present, self.part].map(|state| state.clusters.get(*name));
            let [before, after] = both.map(|cluster| cluster.into_iter().flat_map(all_said));
            if !before.clone().eq(after.clone()) {
                concerned.extend(before.chain(after).map(|said| said.address));
            }
            // What is decrypted there is not passed on, so every frontend makes a difference.
            let addresses = both.into_iter().flatten().flat_map(|it| &it.frontends).map(|it| it.address);
            concerned.extend(addresses.filter(passes_on));
        }
        for (address, listener) in &self.part.listeners {
            let before = self.present.listeners.get(address);
            if listener.protocol != before.map_or(ListenerProtocol::Http, |before| before.protocol)
                || listener.tls.as_ref() != before.and_then(|before| before.tls.as_ref())
            {
                concerned.insert(*address);
            }
        }
        concerned
    }

    /// All clusters as they will be.
    pub fn all(&self) -> impl Iterator<Item = (&'a str, &'a state::Cluster)> {
        let others = self.present.clusters.iter().filter(|(name, _)| !self.named.contains(name.as_str()));
        others.chain(&self.part.clusters).map(|(name, cluster)| (name.as_str(), cluster))
    }
}

#[cfg(test)]
#[path = "tls_ingress_tests.rs"]
mod tests;
