//! Names of backends: what the DNS says of them, and the clusters that have them.
//!
//! The supervisor tells what a name stands for ([`Fact::Names`](kakehi_ctl::order::Fact)), also before a change that brings the
//! name, so that its cluster is never without backends that others know of. The state has names only.
//!
//! Promises: an address that stays keeps its connections and all that is known of it; one that goes finishes what it has; without a
//! supervisor the last addresses hold.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kakehi_ctl::state::{Cluster, DnsName, NameAnswer, Settings, State};

use super::Configured;
use crate::downstream::Connections;

/// What is known of a name that no backend has is forgotten when so many looks have found that: a change may be about to bring it.
const LOOKS: u8 = 3;

/// What is known of names.
#[derive(Default)]
pub(super) struct Names {
    answers: RefCell<BTreeMap<DnsName, Known>>,
    /// The clusters that have any.
    clusters: RefCell<BTreeSet<String>>,
}

struct Known {
    answer: NameAnswer,
    /// Looks in a row that have found no backend of this name.
    unused: u8,
}

fn has_names(cluster: &Cluster) -> bool {
    cluster.dns_names().next().is_some()
}

impl Names {
    /// Those of a state, of which nothing is known yet.
    pub(super) fn of(state: &State) -> Names {
        let clusters = state.clusters.iter().filter(|(_, cluster)| has_names(cluster));
        let clusters = RefCell::new(clusters.map(|(name, _)| name.clone()).collect());
        Names { answers: RefCell::default(), clusters }
    }

    /// The cluster with addresses in the place of names.
    pub(super) fn expanded<'c>(&self, cluster: &'c Cluster, settings: &Settings) -> Cow<'c, Cluster> {
        let answers = self.answers.borrow();
        cluster.expanded(settings.dns_on_empty, |name| answers.get(name).map(|known| &known.answer))
    }

    /// Takes note; true if something is different now.
    fn note(&self, mut answer: NameAnswer) -> bool {
        let mut answers = self.answers.borrow_mut();
        if answer.addresses.is_none()
            && let Some(known) = answers.get_mut(&answer.name)
        {
            // Whoever says it knows less than we do.
            answer.addresses = known.answer.addresses.take();
            let differs = known.answer.empty != answer.empty;
            known.answer = answer;
            return differs;
        }
        let differs = answers.get(&answer.name).is_none_or(|known| known.answer != answer);
        answers.insert(answer.name.clone(), Known { answer, unused: 0 });
        differs
    }

    /// Forgets what no backend of `state` has asked for in a while.
    pub(super) fn trim(&self, state: &State) {
        let mut answers = self.answers.borrow_mut();
        if answers.is_empty() {
            return;
        }
        let clusters = self.clusters.borrow();
        let clusters = clusters.iter().filter_map(|name| state.clusters.get(name));
        let used: BTreeSet<&DnsName> = clusters.flat_map(Cluster::dns_names).collect();
        answers.retain(|name, known| {
            known.unused = if used.contains(name) { 0 } else { known.unused + 1 };
            known.unused < LOOKS
        });
    }
}

impl Configured {
    /// Goes by these answers from now on.
    pub(in crate::worker) fn take_names(&self, connections: &Connections, answers: Vec<NameAnswer>) {
        let names = answers.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
        let told = names.into_iter().zip(answers);
        let changed: BTreeSet<DnsName> =
            told.filter_map(|(name, answer)| self.names.note(answer).then_some(name)).collect();
        if changed.is_empty() {
            return;
        }
        let clusters = self.names.clusters.borrow();
        for name in clusters.iter() {
            let state = self.state.borrow();
            let Some(cluster) = state.clusters.get(name) else { continue };
            if cluster.dns_names().any(|it| changed.contains(it)) {
                self.renew(connections, name, cluster, &state.settings);
            }
        }
        // Tunnels whose backend has gone learn of it.
        connections.wake_tunnels();
    }

    /// After a change of these clusters, or, if `all`, of what holds for all: what has been told since it was prepared holds.
    pub(super) fn follow_names(&self, connections: &Connections, changed: &BTreeSet<&str>, all: bool) {
        let state = self.state.borrow();
        let mut clusters = self.names.clusters.borrow_mut();
        for name in changed {
            match state.clusters.get(*name) {
                Some(cluster) if has_names(cluster) => drop(clusters.insert((*name).to_owned())),
                _ => drop(clusters.remove(*name)),
            }
        }
        for name in clusters.iter().filter(|name| all || changed.contains(name.as_str())) {
            if let Some(cluster) = state.clusters.get(name) {
                self.renew(connections, name, cluster, &state.settings);
            }
        }
    }

    /// Has a cluster consist of the addresses that its names have now.
    fn renew(&self, connections: &Connections, name: &str, configured: &Cluster, settings: &Settings) {
        let Some(cluster) = self.clusters.borrow().get(name).map(Rc::clone) else { return };
        let wanted = self.names.expanded(configured, settings);
        match self.renewed(name, &wanted, &cluster) {
            Ok(members) => cluster.replace(members, &connections.shared.pooling),
            // It was compiled with the same keys before, but for addresses.
            Err(error) => tracing::error!("the addresses of cluster `{name}` stay as they were: {error}"),
        }
    }
}
