//! What is probed, when next, and what was found: state without a loop. [`prober`](super::prober) drives it.
//!
//! Only clusters are in it that are probed, or that are not `ready`, or have a backend that is not: others cost nothing. A backend is known by cluster,
//! name and address; as long as these stay, so does what was found of it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kakehi_ctl::{
    event::Happening,
    limits,
    order::{BackendName, ClusterCondition, ProbeVerdict, Verdict},
    state::{Backend, BackendAddress, BackendMode, Balancing, Cluster, ClusterMode, InitialVerdict},
};
use tokio::time::Instant;

use super::{Outcome, plan::Plan, standing::Standing};

/// Pause between two lines of the log about probes that could not be made.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// Probes that are due within so long of each other are made together, unless their interval is so short that it would matter: to wake
/// for each costs more.
const TOGETHER: Duration = Duration::from_millis(50);

/// Which backend is probed; never used again.
pub(super) type Number = u64;

/// All that is known of the health of backends.
#[derive(Default)]
pub(super) struct Table {
    clusters: BTreeMap<String, Watched>,
    targets: HashMap<Number, Target>,
    /// Who is probed next. A target has one place that counts: that of its `due`.
    queue: BinaryHeap<Reverse<(Instant, Number)>>,
    numbers: Number,
    /// Targets whose verdict workers are to be told.
    untold: BTreeSet<Number>,
    /// What has happened and was not told.
    happened: Vec<Happening>,
    complained: Option<Instant>,
    /// What the program before had found, as long as nobody has asked for it.
    inherited: HashMap<BackendName, bool>,
    /// From it the times are counted at which probes are made.
    epoch: Option<Instant>,
}

/// A cluster.
struct Watched {
    plan: Option<Arc<Plan>>,
    fail_open: bool,
    panic_threshold: u8,
    /// It takes nothing.
    maintained: bool,
    backends: Vec<Member>,
    condition: Option<ClusterCondition>,
}

/// A backend of a cluster.
struct Member {
    id: String,
    address: BackendAddress,
    weight: u8,
    backup: bool,
    mode: BackendMode,
    /// Since when (milliseconds since 1970); `None`: it was so from the start.
    mode_since_ms: Option<u64>,
    target: Option<Number>,
    /// It was told that it is drained.
    drained: bool,
}

/// A backend that is probed.
struct Target {
    backend: BackendName,
    address: BackendAddress,
    plan: Arc<Plan>,
    standing: Standing,
    /// When it is to be probed next; `None` while it is.
    due: Option<Instant>,
}

/// A probe to be made.
pub(super) struct Job {
    pub(super) number: Number,
    pub(super) plan: Arc<Plan>,
    pub(super) address: BackendAddress,
}

/// What is shown of a backend.
pub(crate) struct Known {
    pub(crate) probe: Option<ProbeVerdict>,
    pub(crate) mode_since_ms: Option<u64>,
    /// Probes do not call it dead.
    pub(crate) well: bool,
}

pub(crate) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

/// Parts of `whole` that are spread evenly for numbers in a row (the golden ratio).
fn spread(number: Number, whole: Duration) -> Duration {
    let part = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    whole.mul_f64(part as f64 / f64::from(u32::MAX))
}

/// The last of the times until `due` at which probes are made, for one that is made every `pace`.
fn together(due: Instant, epoch: Instant, pace: Duration) -> Instant {
    let step = TOGETHER.min(pace / 100).as_millis().max(1);
    let since = due.saturating_duration_since(epoch).as_millis();
    // No interval is longer than a year.
    epoch + Duration::from_millis(u64::try_from(since / step * step).unwrap_or_default())
}

impl Target {
    /// Until its next probe.
    fn pace(&self) -> Duration {
        let check = &self.plan.check;
        let pace = match self.standing.up {
            Some(_) => check.interval_ms,
            None => check.interval_ms.min(limits::FIRST_PROBES_INTERVAL_MS),
        };
        Duration::from_millis(pace.max(1))
    }
}

impl Table {
    /// Has the cluster of this name followed as it is now; `None`: it is no more. `at_start`: that is how it was found, and nothing
    /// that has changed.
    pub(super) fn follow(&mut self, name: &str, cluster: Option<&Cluster>, at_start: bool) {
        let wanted = cluster.filter(|it| {
            it.health.is_some()
                || it.mode != ClusterMode::Ready
                || it.backends.iter().any(|backend| backend.mode != BackendMode::Ready)
        });
        let before = self.clusters.remove(name);
        let Some(cluster) = wanted else {
            if before.as_ref().is_some_and(|it| it.condition == Some(ClusterCondition::Maintained))
                && cluster.is_some()
            {
                self.happened.push(Happening::ClusterReady { cluster: name.to_owned() });
            }
            for member in before.into_iter().flat_map(|it| it.backends) {
                self.forget(member.target);
            }
            return;
        };
        let (mut plan, condition) = (Plan::of(cluster).map(Arc::new), None);
        let (old_plan, condition, mut old) = match before {
            Some(Watched { plan, condition, backends, .. }) => (plan, condition, backends),
            None => (None, condition, Vec::new()),
        };
        let same_plan = plan == old_plan;
        if same_plan {
            plan = old_plan;
        }
        let balancing = cluster.balancing.as_deref().cloned().unwrap_or_default();
        let Balancing { fail_open, panic_threshold, .. } = balancing;
        let mut backends = Vec::with_capacity(cluster.backends.len());
        let mut places: HashMap<String, usize> =
            old.iter().enumerate().map(|(place, it)| (it.id.clone(), place)).collect();
        let mut reused = vec![false; old.len()];
        for backend in &cluster.backends {
            let place = places.remove(&backend.id).filter(|place| old[*place].address == backend.address);
            if let Some(place) = place {
                reused[place] = true;
            }
            let known = place.map(|place| &mut old[place]);
            backends.push(self.member(name, backend, known, plan.as_ref(), (same_plan, at_start)));
        }
        for (member, reused) in old.into_iter().zip(reused) {
            if !reused {
                self.forget(member.target);
            }
        }
        let maintained = cluster.mode == ClusterMode::Maintain;
        let watched = Watched { plan, fail_open, panic_threshold, maintained, backends, condition };
        self.clusters.insert(name.to_owned(), watched);
        self.judge(name);
    }

    fn member(
        &mut self,
        cluster: &str,
        backend: &Backend,
        known: Option<&mut Member>,
        plan: Option<&Arc<Plan>>,
        (same_plan, at_start): (bool, bool),
    ) -> Member {
        let Backend { id, address, weight, backup, mode, .. } = backend;
        let (before, mut target) = (known.as_deref().map(|it| (it.mode, it.mode_since_ms, it.drained)), None);
        if let Some(known) = known {
            target = known.target.take();
        }
        let (mode_since_ms, drained) = match before {
            Some((before, since, drained)) if before == *mode => (since, drained),
            None if at_start || *mode == BackendMode::Ready => (None, false),
            _ => (Some(now_ms()), false),
        };
        let target = match (plan, target) {
            (None, target) => {
                self.forget(target);
                None
            }
            (Some(plan), Some(number)) => {
                if let Some(target) = self.targets.get_mut(&number)
                    && !same_plan
                {
                    target.plan = Arc::clone(plan);
                    target.standing.count_anew();
                    let now = Instant::now();
                    target.due = Some(now);
                    self.queue.push(Reverse((now, number)));
                }
                // Workers may have made it anew.
                self.untold.insert(number);
                Some(number)
            }
            (Some(plan), None) => {
                let backend = BackendName { cluster: cluster.to_owned(), id: id.clone() };
                let standing = self.inherited.remove(&backend).map(Standing::inherited).unwrap_or_default();
                Some(self.begin(Target {
                    backend,
                    address: address.clone(),
                    plan: Arc::clone(plan),
                    standing,
                    due: Some(Instant::now()),
                }))
            }
        };
        Member {
            id: id.clone(),
            address: address.clone(),
            weight: *weight,
            backup: *backup,
            mode: *mode,
            mode_since_ms,
            target,
            drained,
        }
    }

    /// The first probe goes out at once.
    fn begin(&mut self, target: Target) -> Number {
        self.numbers += 1;
        self.queue.extend(target.due.map(|due| Reverse((due, self.numbers))));
        self.targets.insert(self.numbers, target);
        self.numbers
    }

    fn forget(&mut self, target: Option<Number>) {
        if let Some(number) = target {
            self.targets.remove(&number);
            self.untold.remove(&number);
        }
        if self.targets.is_empty() {
            self.queue.clear();
        }
    }

    /// What the program before had found holds, where it is followed with the next [`Table::follow`].
    pub(super) fn inherit(&mut self, verdicts: &[Verdict]) {
        self.inherited = verdicts.iter().map(|it| (it.backend.clone(), it.up)).collect();
    }

    /// True if there is a backend without a verdict.
    pub(super) fn lacks_verdicts(&self) -> bool {
        self.targets.values().any(|target| target.standing.up.is_none())
    }

    /// True if nothing is probed.
    pub(super) fn is_idle(&self) -> bool {
        self.targets.is_empty()
    }

    /// The names of all clusters that are followed.
    pub(super) fn names(&self) -> Vec<String> {
        self.clusters.keys().cloned().collect()
    }

    /// Probes that are to be made `now`, so many at most, and when the next one is.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> (Vec<Job>, Option<Instant>) {
        let mut jobs = Vec::new();
        while let Some(Reverse((due, number))) = self.queue.peek().copied() {
            let target = self.targets.get_mut(&number).filter(|target| target.due == Some(due));
            let Some(target) = target else {
                self.queue.pop();
                continue;
            };
            if due > now || jobs.len() == most {
                return (jobs, Some(due));
            }
            target.due = None;
            jobs.push(Job { number, plan: Arc::clone(&target.plan), address: target.address.clone() });
            self.queue.pop();
        }
        (jobs, None)
    }

    /// Takes note of a probe that took `took`.
    pub(super) fn note(&mut self, job: &Job, outcome: &Outcome, took: Duration, now: Instant) {
        let Some(target) = self.targets.get_mut(&job.number) else { return };
        if !Arc::ptr_eq(&target.plan, &job.plan) {
            // It is being probed in another way by now.
            return;
        }
        if let Outcome::Void(reason) = outcome
            && self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_PAUSE)
        {
            self.complained = Some(now);
            let BackendName { cluster, id } = &target.backend;
            tracing::warn!(cluster, backend = id, "a probe says nothing of the backend: {reason}");
        }
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let before = target.standing.up;
        let is_new = target.standing.note(outcome, &target.plan.check, (now_ms(), took_ms));
        let pace = target.pace();
        let due = match before.is_none() && target.standing.up.is_some() {
            // From the first verdict on, probes are spread over the interval.
            true => now + spread(job.number, pace),
            // From begin to begin.
            false => now + pace.saturating_sub(took).max(Duration::from_millis(1)),
        };
        let due = together(due, *self.epoch.get_or_insert(now), pace);
        target.due = Some(due);
        self.queue.push(Reverse((due, job.number)));
        if !is_new {
            return;
        }
        let BackendName { cluster, id: backend } = target.backend.clone();
        let reason = target.standing.reason().to_owned();
        let initially_up = target.plan.check.initial == InitialVerdict::Up;
        self.untold.insert(job.number);
        match target.standing.up {
            Some(false) => {
                self.happened.push(Happening::BackendDown { cluster: cluster.clone(), backend, reason });
            }
            // It was taken to be from the start.
            Some(true) if before.is_none() && initially_up => {}
            _ => self.happened.push(Happening::BackendUp { cluster: cluster.clone(), backend, reason }),
        }
        self.judge(&cluster);
    }

    fn is_well(&self, member: &Member) -> bool {
        let target = member.target.and_then(|number| self.targets.get(&number));
        target.is_none_or(|target| target.standing.up != Some(false))
    }

    /// Finds out whether a cluster is as it should be, and tells it where that is another answer than before.
    fn judge(&mut self, name: &str) {
        let Some(cluster) = self.clusters.get(name) else { return };
        let ready = || cluster.backends.iter().filter(|it| it.mode == BackendMode::Ready);
        let (mut well, mut all) = (0_u64, 0_u64);
        for member in ready().filter(|it| !it.backup && it.weight > 0) {
            all += u64::from(member.weight);
            well += if self.is_well(member) { u64::from(member.weight) } else { 0 };
        }
        let any_ready = ready().next().is_some();
        let is_down = !cluster.backends.is_empty() && !ready().any(|it| self.is_well(it));
        let condition = if cluster.maintained {
            Some(ClusterCondition::Maintained)
        } else if any_ready && well * 100 < all * u64::from(cluster.panic_threshold) {
            Some(ClusterCondition::Panic)
        } else if is_down {
            Some(ClusterCondition::Down)
        } else {
            None
        };
        let before = cluster.condition;
        if before == condition {
            return;
        }
        let cluster_name = || name.to_owned();
        let ended = match before {
            Some(ClusterCondition::Down) => Some(Happening::ClusterRecovered { cluster: cluster_name() }),
            Some(ClusterCondition::Panic) => Some(Happening::ClusterPanicEnded { cluster: cluster_name() }),
            Some(ClusterCondition::Maintained) => Some(Happening::ClusterReady { cluster: cluster_name() }),
            _ => None,
        };
        let begun = match condition {
            Some(ClusterCondition::Down) => {
                let fails_open = cluster.fail_open && any_ready;
                Some(Happening::ClusterDown { cluster: cluster_name(), fails_open })
            }
            Some(ClusterCondition::Panic) => {
                let healthy_percent = u8::try_from(well * 100 / all.max(1)).unwrap_or(100);
                Some(Happening::ClusterPanic { cluster: cluster_name(), healthy_percent })
            }
            Some(ClusterCondition::Maintained) => {
                Some(Happening::ClusterMaintained { cluster: cluster_name() })
            }
            _ => None,
        };
        self.happened.extend(ended.into_iter().chain(begun));
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.condition = condition;
        }
    }

    /// True if there is something to be told.
    pub(super) fn has_news(&self) -> bool {
        !self.untold.is_empty() || !self.happened.is_empty()
    }

    /// What is to be told: verdicts to workers, and what has happened.
    pub(super) fn take_news(&mut self) -> (Vec<Verdict>, Vec<Happening>) {
        let untold = std::mem::take(&mut self.untold);
        let verdicts = untold.iter().filter_map(|number| self.targets.get(number)?.verdict()).collect();
        (verdicts, std::mem::take(&mut self.happened))
    }

    /// All verdicts that there are; `unusual`: only those that a new worker does not assume.
    pub(super) fn verdicts(&self, unusual: bool) -> Vec<Verdict> {
        let is_wanted = |target: &&Target| {
            let assumed = target.plan.check.initial == InitialVerdict::Up;
            !unusual || target.standing.up != Some(assumed)
        };
        self.targets.values().filter(is_wanted).filter_map(Target::verdict).collect()
    }

    /// What is known of a backend.
    pub(super) fn known(&self, cluster: &str, backend: &Backend) -> Known {
        let member =
            self.clusters.get(cluster).and_then(|it| it.backends.iter().find(|it| it.id == backend.id));
        let target = member.and_then(|member| self.targets.get(&member.target?));
        Known {
            probe: target.map(|target| target.standing.shown()),
            mode_since_ms: member.and_then(|member| member.mode_since_ms),
            well: member.is_none_or(|member| self.is_well(member)),
        }
    }

    /// What is the matter with a cluster.
    pub(super) fn condition(&self, cluster: &str) -> Option<ClusterCondition> {
        self.clusters.get(cluster)?.condition
    }

    /// Backends that take no new work, and of which was not told that they have nothing in flight any more.
    pub(super) fn draining(&self, most: usize) -> Vec<BackendName> {
        let of = |(name, cluster): (&String, &Watched)| {
            let draining = cluster.backends.iter().filter(|it| it.mode != BackendMode::Ready && !it.drained);
            draining.map(|it| BackendName { cluster: name.clone(), id: it.id.clone() }).collect::<Vec<_>>()
        };
        self.clusters.iter().flat_map(of).take(most).collect()
    }

    /// A backend has nothing in flight any more.
    pub(super) fn note_drained(&mut self, BackendName { cluster, id }: &BackendName) {
        let member =
            self.clusters.get_mut(cluster).and_then(|it| it.backends.iter_mut().find(|it| it.id == *id));
        if let Some(member) = member.filter(|it| it.mode != BackendMode::Ready && !it.drained) {
            member.drained = true;
            let (cluster, backend) = (cluster.clone(), id.clone());
            self.happened.push(Happening::BackendDrained { cluster, backend });
        }
    }
}

impl Target {
    /// What workers are told of it.
    fn verdict(&self) -> Option<Verdict> {
        Some(Verdict { backend: self.backend.clone(), up: self.standing.up? })
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
