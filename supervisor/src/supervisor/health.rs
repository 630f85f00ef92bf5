//! What probes find reaches the workers; who asks is told how backends are.
//!
//! Verdicts are facts: they make no generation and are never saved. No worker is waited for: one that does not take what it is told is
//! told everything again.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kakehi_ctl::{
    change::Change,
    event::Happening,
    order::{
        BackendInfo, BackendLoad, BackendName, Backends, Fact, OperatorVerdict, Order, Response,
        TrafficVerdict, Verdict,
    },
    state::{Backend, BackendMode, Cluster},
    wire::WireError,
};
use tokio::time::Instant;

use crate::{
    fleet::{process::Written, worker::Worker},
    health::{MOST_SHOWN, Said, now_ms},
    supervisor::{Supervisor, question::AnswerTo, turn::Happened},
};

/// Why workers are asked what backends have to do.
pub(crate) enum Purpose {
    /// Whether those have any left that take no new work.
    Drains,
    /// Somebody wants to know it.
    Answer {
        /// Who.
        answer: AnswerTo,
        /// Of which cluster; `None`: of all.
        cluster: Option<String>,
        /// So many backends are left out.
        left_out: usize,
    },
}

/// Workers are replaced without knowing verdicts when probes have made none for so long.
const FIRST_VERDICTS: Duration = Duration::from_secs(10);

impl Supervisor {
    /// The verdicts that a program that comes goes on with.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        self.health.verdicts()
    }

    /// Goes on with the verdicts of the program before, once it is settled what is served.
    pub(crate) fn inherit_verdicts(&mut self, verdicts: &[Verdict]) {
        self.health.inherit(verdicts);
    }

    /// Waits until probes have made a verdict on each backend, not longer than [`FIRST_VERDICTS`].
    pub(crate) async fn await_verdicts(&mut self) {
        let until = Instant::now() + FIRST_VERDICTS;
        while !self.is_stopping() && self.health.lacks_verdicts() {
            match self.turn(Some(until)).await {
                Happened::Event(event) => drop(self.on_event(event)),
                Happened::Late => return,
                Happened::Other => {}
            }
        }
    }

    /// After `changes`: what is resolved and probed follows them, and what is counted.
    pub(crate) fn follow_health(&mut self, changes: &[Change]) {
        let removes = |it: &Change| {
            matches!(
                it,
                Change::SetCluster { .. } | Change::RemoveCluster { .. } | Change::RemoveBackend { .. }
            )
        };
        if changes.iter().any(removes) {
            self.ledger.note_removed();
        }
        if changes.iter().any(|change| change.cluster().is_some()) && !self.is_stopping() {
            if self.names.follow(&self.state, changes.iter().filter_map(Change::cluster)) {
                // Whoever comes after us must not take them for what the DNS says.
                self.recording.note_names_soon();
            }
            self.follow_probes(changes.iter().filter_map(Change::cluster));
        }
    }

    /// What is probed follows these clusters, or what their names stand for.
    pub(super) fn follow_probes<'a>(&mut self, clusters: impl Iterator<Item = &'a str>) {
        let settings = &self.state.settings;
        self.health.follow(&self.state, |cluster| self.names.expanded(cluster, settings), clusters);
    }

    /// Tells what is new: verdicts to the workers, everything to those who watch.
    pub(super) fn tell_health(&mut self) {
        let (verdicts, happened) = self.health.take_news();
        let ids: Vec<u32> = self.workers.iter().filter(|it| it.takes_orders()).map(Worker::id).collect();
        self.tell_verdicts(&ids, verdicts);
        for what in happened {
            match &what {
                Happening::BackendDown { .. }
                | Happening::ClusterDown { .. }
                | Happening::ClusterPanic { .. } => {
                    tracing::warn!("{what}");
                }
                _ => tracing::info!("{what}"),
            }
            self.tell(what);
        }
    }

    fn tell_verdicts(&mut self, workers: &[u32], verdicts: Vec<Verdict>) {
        if verdicts.is_empty() || workers.is_empty() {
            return;
        }
        self.tell_fact(workers, Fact::Verdicts { verdicts });
    }

    /// Tells workers a fact; who does not take it is told all facts later.
    pub(super) fn tell_fact(&mut self, workers: &[u32], fact: Fact) {
        let number = self.next_order();
        let written = match Written::new(number, Order::Fact { fact }) {
            Ok(written) => written,
            // No name is that long.
            Err(error) => return tracing::error!("workers cannot be told what is so: {error}"),
        };
        for &id in workers {
            let worker = self.workers.get(id as usize).filter(|it| it.takes_orders());
            match worker.map(|worker| worker.give(written.clone())) {
                // One that starts is told everything when it is ready. One of an earlier program knows no such facts.
                None | Some(Ok(()) | Err(WireError::NotKnown(_))) => {}
                Some(Err(error)) => {
                    tracing::debug!(worker = id, %error, "does not take facts");
                    self.health.owe(id, true);
                }
            }
        }
    }

    /// Attends to what is due of health.
    pub(super) fn attend_to_health(&mut self) {
        let now = Instant::now();
        let owed = self.health.take_owed(now);
        if !owed.is_empty() {
            let owed: Vec<u32> = owed.into_iter().collect();
            // Verdicts are about addresses.
            self.tell_answers(&owed, self.names.answers());
            let all = self.health.verdicts();
            self.tell_verdicts(&owed, all);
        }
        let draining = self.health.take_drains(now);
        // They are looked at again in any case.
        if !draining.is_empty() && self.asking.is_idle() {
            self.asking.ask(draining, Purpose::Drains);
        }
        while let Some(said) = self.asking.take(now) {
            self.on_loads(said);
        }
        self.ask_workers();
    }

    /// Asks the workers the next question, if they are asked none.
    fn ask_workers(&mut self) {
        let Some((backends, purpose)) = self.asking.next() else { return };
        let number = self.next_order();
        // What a process has that leaves, nobody can ask.
        let mut incomplete = self.workers.iter().any(Worker::has_leaving);
        let mut asked = BTreeSet::new();
        for worker in &self.workers {
            let order = Order::TellLoads { backends: backends.clone() };
            if worker.takes_orders() && worker.order(number, order).is_ok() {
                asked.insert(worker.id());
            } else {
                incomplete = true;
            }
        }
        self.asking.begin(number, (backends, purpose), asked, incomplete);
    }

    /// A worker has said what backends have to do.
    pub(super) fn note_loads(&mut self, worker: u32, order: u64, loads: Vec<Option<BackendLoad>>) {
        self.asking.note(worker, order, loads);
    }

    fn on_loads(&mut self, said: Said<Purpose>) {
        match &said.purpose {
            Purpose::Drains => {
                let idle =
                    |(place, _): &(usize, &BackendName)| said.total(*place).is_some_and(|it| it.0 == 0);
                let drained = said.backends.iter().enumerate().filter(idle).map(|(_, it)| it);
                self.health.note_drained(drained);
            }
            Purpose::Answer { cluster, left_out, .. } => {
                let backends = self.describe_backends(&said, cluster.as_deref(), *left_out);
                if let Purpose::Answer { answer, .. } = said.purpose {
                    answer.send(Response::Backends(backends));
                }
            }
        }
    }

    /// Answers how backends are: all, or those of a cluster. What they have to do has to be asked first.
    pub(super) fn tell_backends(&mut self, cluster: Option<&str>, answer: AnswerTo) {
        if let Some(name) = cluster.filter(|name| !self.state.clusters.contains_key(*name)) {
            let reason = format!("there is no cluster `{name}`");
            return answer.send(Response::Refused { reason });
        }
        let (mut names, mut left_out) = (Vec::new(), 0);
        for (name, cluster) in self.clusters_asked_for(cluster) {
            let backends = &cluster.backends;
            let room = MOST_SHOWN - names.len();
            left_out += backends.len().saturating_sub(room);
            let shown = backends.iter().take(room);
            names.extend(shown.map(|it| BackendName { cluster: name.to_owned(), id: it.id.clone() }));
        }
        let cluster = cluster.map(str::to_owned);
        self.asking.ask(names, Purpose::Answer { answer, cluster, left_out });
        self.ask_workers();
    }

    /// All clusters, or the one of this name, with addresses in the place of names.
    fn clusters_asked_for(&self, wanted: Option<&str>) -> impl Iterator<Item = (&str, Cow<'_, Cluster>)> {
        let clusters =
            self.state.clusters.iter().filter(move |(name, _)| wanted.is_none_or(|it| it == *name));
        clusters.map(|(name, it)| (name.as_str(), self.names.expanded(it, &self.state.settings)))
    }

    fn describe_backends(&self, said: &Said<Purpose>, wanted: Option<&str>, left_out: usize) -> Backends {
        let mut served: BTreeMap<&str, u64> = BTreeMap::new();
        for (place, name) in said.backends.iter().enumerate() {
            let of_cluster = served.entry(&name.cluster).or_default();
            *of_cluster = of_cluster.saturating_add(said.total(place).map_or(0, |it| it.1));
        }
        let mut shown = Backends { left_out, ..Backends::default() };
        let clusters: BTreeMap<&str, Cow<'_, Cluster>> = self.clusters_asked_for(wanted).collect();
        for (name, expanded) in clusters.iter().filter(|(_, it)| matches!(it, Cow::Owned(_))) {
            let room = MOST_SHOWN - shown.names.len();
            let configured = self.state.clusters.get(*name).into_iter();
            shown.names.extend(configured.flat_map(|it| self.names.shown(name, it, expanded)).take(room));
        }
        for (place, name) in said.backends.iter().enumerate() {
            let backends = clusters.get(name.cluster.as_str()).map_or(&[][..], |it| &it.backends);
            // It may have gone meanwhile.
            let Some(backend) = backends.iter().find(|it| it.id == name.id) else { continue };
            let all = served.get(name.cluster.as_str()).copied().unwrap_or_default();
            shown.backends.push(self.describe_backend(name, backend, (said, place), all));
        }
        let names = served.keys().filter_map(|name| Some(((*name).to_owned(), self.health.condition(name)?)));
        shown.clusters = names.collect();
        shown
    }

    fn describe_backend(
        &self,
        name: &BackendName,
        backend: &Backend,
        (said, place): (&Said<Purpose>, usize),
        served_by_cluster: u64,
    ) -> BackendInfo {
        let known = self.health.known(&name.cluster, backend);
        let loads = said.loads.iter().filter_map(|(id, loads)| Some((*id, loads.get(place).copied()??)));
        let failing: Vec<(u32, BackendLoad)> = loads.filter(|(_, load)| load.passed_over_ms > 0).collect();
        let longest = failing.iter().map(|(_, load)| load.passed_over_for_ms).max();
        let traffic = TrafficVerdict {
            up: failing.is_empty(),
            reason: match failing.iter().map(|(_, load)| load.failures).max() {
                _ if failing.iter().any(|(_, load)| load.ejected) => {
                    "it answered badly (`passive`)".to_owned()
                }
                Some(failures) => format!("{failures} connection attempts in a row failed"),
                None => String::new(),
            },
            passed_over_by: failing.iter().map(|(id, _)| *id).collect(),
            since_ms: longest.map(|it| now_ms().saturating_sub(it)),
        };
        let total = said.total(place);
        let in_flight = total.map(|(connections, _)| connections);
        let percent = |(_, served): (u64, u64)| served as f64 * 100.0 / served_by_cluster as f64;
        BackendInfo {
            cluster: name.cluster.clone(),
            id: name.id.clone(),
            address: backend.address.clone(),
            weight: backend.weight,
            backup: backend.backup,
            operator: OperatorVerdict { mode: backend.mode, since_ms: known.mode_since_ms },
            usable: backend.mode == BackendMode::Ready && known.well && traffic.up,
            probe: known.probe,
            traffic,
            in_flight,
            waiting: said.waiting(place),
            share_percent: total.filter(|_| served_by_cluster > 0).map(percent),
            drained: backend.mode != BackendMode::Ready && in_flight == Some(0),
        }
    }
}
