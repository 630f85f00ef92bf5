//! Which names are asked for, when next, and what came of it: state without a loop. [`asker`](super::asker) drives it.
//!
//! A name is there once, however many backends of however many clusters have it.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kakehi_ctl::{
    limits,
    order::{NameFailure, NameInfo},
    state::{Cluster, DnsName, KnownName, NameAddress, NameAnswer, Settings},
};
use tokio::time::Instant;

use super::lookup::{self, Found, Memory, Outcome};

/// Pause between two lines of the log about the addresses of a name.
const PAUSE: Duration = Duration::from_secs(10);

/// All that is known of names.
#[derive(Default)]
pub(super) struct Table {
    names: BTreeMap<DnsName, Entry>,
    /// The names of each cluster that has any.
    clusters: BTreeMap<String, BTreeSet<DnsName>>,
    /// Who is asked for next. A name has one place that counts: that of its `due`.
    queue: BinaryHeap<Reverse<(Instant, DnsName)>>,
    /// Names of which workers are to be told.
    untold: BTreeSet<DnsName>,
    times: Times,
}

/// How long answers are good.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Times {
    min: Duration,
    max: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times::of(&Settings::default())
    }
}

impl Times {
    fn of(settings: &Settings) -> Times {
        let (min, max) = (settings.dns_min_ttl_ms, settings.dns_max_ttl_ms);
        Times { min: Duration::from_millis(min.min(max)), max: Duration::from_millis(max) }
    }
}

/// A name.
struct Entry {
    /// What the workers go by.
    answer: NameAnswer,
    /// When there were addresses last (milliseconds since 1970).
    resolved_ms: Option<u64>,
    left_out: usize,
    failing: Option<NameFailure>,
    /// Failures in a row.
    failures: u32,
    memory: Arc<Memory>,
    /// Something came of asking for it.
    asked: bool,
    /// When it is asked for next; `None` while it is.
    due: Option<Instant>,
    /// When the log was told of its addresses.
    said: Option<Instant>,
    /// Changes of which it was not told since.
    unsaid: u32,
}

/// A name to be looked up.
pub(super) struct Job {
    pub(super) name: DnsName,
    pub(super) memory: Arc<Memory>,
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

impl Entry {
    fn new(name: &DnsName, now: Instant) -> Entry {
        Entry {
            answer: NameAnswer { name: name.clone(), addresses: None, empty: false },
            resolved_ms: None,
            left_out: 0,
            failing: None,
            failures: 0,
            memory: Arc::default(),
            asked: false,
            due: Some(now),
            said: None,
            unsaid: 0,
        }
    }

    /// Takes note of addresses; true if they are others than before.
    fn found(&mut self, found: Found, now: Instant) -> bool {
        let name = &self.answer.name;
        if self.failing.take().is_some() {
            tracing::info!("the backend `{name}` is resolved again");
        }
        self.failures = 0;
        self.resolved_ms = Some(now_ms());
        self.memory = found.memory;
        if found.left_out > 0 && self.left_out == 0 {
            tracing::warn!(
                "the backend `{name}` has more than {} addresses: {} are not used",
                limits::ADDRESSES_PER_NAME,
                found.left_out
            );
        }
        self.left_out = found.left_out;
        if self.answer.addresses.as_ref() == Some(&found.addresses) && !self.answer.empty {
            return false;
        }
        let before = self.answer.addresses.replace(found.addresses).unwrap_or_default();
        self.answer.empty = false;
        self.say_change(&before, now);
        true
    }

    fn say_change(&mut self, before: &[NameAddress], now: Instant) {
        if self.said.is_some_and(|said| now < said + PAUSE) {
            self.unsaid = self.unsaid.saturating_add(1);
            return;
        }
        let of = |all: &[NameAddress]| all.iter().map(|it| it.address).collect::<BTreeSet<_>>();
        let (before, after) = (of(before), of(self.answer.addresses.as_deref().unwrap_or_default()));
        let (come, gone) = (after.difference(&before).count(), before.difference(&after).count());
        let unsaid = match std::mem::take(&mut self.unsaid) {
            0 => String::new(),
            unsaid => format!(" ({unsaid} changes before were not said)"),
        };
        let name = &self.answer.name;
        tracing::info!(
            "the backend `{name}` has {} addresses: {come} came, {gone} went{unsaid}",
            after.len()
        );
        self.said = Some(now);
    }

    /// Takes note that there are no addresses; true if that is news to workers. `certain`: there are none, for certain.
    fn lacks(&mut self, reason: Cow<'static, str>, certain: bool) -> bool {
        let name = &self.answer.name;
        self.failures = self.failures.saturating_add(1);
        let since_ms = self.failing.as_ref().map_or_else(now_ms, |failing| failing.since_ms);
        if self.failing.is_none() {
            let known = self.answer.addresses.as_ref().map_or(0, Vec::len);
            match (known, certain) {
                (0, _) => tracing::warn!("the backend `{name}` is not resolved: {reason}"),
                (known, false) => {
                    tracing::warn!(
                        "the backend `{name}` is not resolved: {reason}; its last {known} addresses stay"
                    );
                }
                (known, true) => tracing::warn!(
                    "the backend `{name}` is not resolved: {reason}; its last {known} addresses stay, unless `dns_on_empty` is `drop`"
                ),
            }
        }
        self.failing = Some(NameFailure { reason: reason.into_owned(), since_ms });
        // That nobody says anything changes nothing of what was said last.
        if !certain || self.answer.empty {
            return false;
        }
        self.answer.empty = true;
        true
    }
}

impl Table {
    /// How long answers are good from now on; what is known is asked for anew where `anew`.
    pub(super) fn configure(&mut self, settings: &Settings, anew: bool) {
        let times = Times::of(settings);
        if std::mem::replace(&mut self.times, times) == times && !anew {
            return;
        }
        let now = Instant::now();
        for (name, entry) in &mut self.names {
            if entry.due.is_some_and(|due| due > now) {
                entry.failures = 0;
                entry.due = Some(now);
                self.queue.push(Reverse((now, name.clone())));
            }
        }
    }

    /// Has the names of a cluster followed as it is now; `None`: it is no more.
    pub(super) fn follow(&mut self, cluster: &str, now: Option<&Cluster>) {
        let names: BTreeSet<DnsName> = now.into_iter().flat_map(Cluster::dns_names).cloned().collect();
        for name in &names {
            self.expect(name);
            // Workers may have forgotten it.
            self.untold.insert(name.clone());
        }
        match names.is_empty() {
            true => drop(self.clusters.remove(cluster)),
            false => drop(self.clusters.insert(cluster.to_owned(), names)),
        }
    }

    /// Has a name asked for, which a cluster may have soon: [`Table::forget_unused`] ends that. True if nothing came of it yet.
    pub(super) fn expect(&mut self, name: &DnsName) -> bool {
        if let Some(entry) = self.names.get(name) {
            return !entry.asked;
        }
        let now = Instant::now();
        self.names.insert(name.clone(), Entry::new(name, now));
        self.queue.push(Reverse((now, name.clone())));
        true
    }

    /// Forgets what no cluster has. True if there was anything.
    pub(super) fn forget_unused(&mut self) -> bool {
        if self.names.is_empty() {
            return false;
        }
        let before = self.names.len();
        let used: BTreeSet<&DnsName> = self.clusters.values().flatten().collect();
        self.names.retain(|name, _| used.contains(name));
        self.untold.retain(|name| used.contains(name));
        if self.names.is_empty() {
            self.queue.clear();
        }
        self.names.len() < before
    }

    /// Goes on with what another supervisor knew.
    pub(super) fn inherit(&mut self, known: &[KnownName]) {
        for KnownName { answer, resolved_ms, hosts } in known {
            self.expect(&answer.name);
            if let Some(entry) = self.names.get_mut(&answer.name) {
                entry.answer.clone_from(answer);
                entry.resolved_ms = *resolved_ms;
                entry.memory = Arc::new(lookup::remembered(hosts));
            }
        }
    }

    /// What another supervisor can go on with.
    pub(super) fn known(&self) -> Vec<KnownName> {
        let known = self.names.values().filter(|entry| entry.knows());
        let known = known.map(|it| KnownName {
            answer: it.answer.clone(),
            resolved_ms: it.resolved_ms,
            hosts: lookup::hosts(&it.memory),
        });
        known.collect()
    }

    /// True if there is a name of which nothing is known, as nothing came of asking for it yet.
    pub(super) fn lacks_answers(&self) -> bool {
        self.names.values().any(|entry| !entry.asked && !entry.knows())
    }

    /// The same of one of these.
    pub(super) fn lacks_any(&self, names: &BTreeSet<DnsName>) -> bool {
        names.iter().any(|name| self.names.get(name).is_some_and(|entry| !entry.asked))
    }

    /// True if there is none.
    pub(super) fn is_idle(&self) -> bool {
        self.names.is_empty()
    }

    /// Names that are to be looked up `now`, so many at most, and when the next one is.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> (Vec<Job>, Option<Instant>) {
        let mut jobs = Vec::new();
        while let Some(Reverse((due, name))) = self.queue.peek() {
            let due = *due;
            let Some(entry) = self.names.get_mut(name).filter(|entry| entry.due == Some(due)) else {
                self.queue.pop();
                continue;
            };
            if due > now || jobs.len() == most {
                return (jobs, Some(due));
            }
            entry.due = None;
            jobs.push(Job { name: name.clone(), memory: Arc::clone(&entry.memory) });
            self.queue.pop();
        }
        (jobs, None)
    }

    /// Takes note of what came of a lookup.
    pub(super) fn note(&mut self, name: &DnsName, outcome: Outcome, now: Instant) {
        let Some(entry) = self.names.get_mut(name).filter(|entry| entry.due.is_none()) else { return };
        entry.asked = true;
        let Times { min, max } = self.times;
        let good_for = |ttl: Duration| ttl.clamp(min, max);
        let (is_news, pause) = match outcome {
            Outcome::Found(found) => {
                let ttl = found.ttl;
                (entry.found(found, now), good_for(ttl))
            }
            Outcome::Empty(reason) => (entry.lacks(reason, true), retry_after(entry.failures, min, max)),
            Outcome::Failed(reason) => (entry.lacks(reason, false), retry_after(entry.failures, min, max)),
        };
        entry.due = Some(now + pause);
        self.queue.push(Reverse((now + pause, name.clone())));
        if is_news {
            self.untold.insert(name.clone());
        }
    }

    /// True if there is something to be told.
    pub(super) fn has_news(&self) -> bool {
        !self.untold.is_empty()
    }

    /// What workers are to be told, and the clusters that it is about.
    pub(super) fn take_news(&mut self) -> (Vec<NameAnswer>, Vec<String>) {
        let untold = std::mem::take(&mut self.untold);
        let about = |names: &BTreeSet<DnsName>| !names.is_disjoint(&untold);
        let clusters = self.clusters.iter().filter(|(_, names)| about(names)).map(|(name, _)| name.clone());
        let clusters = clusters.collect();
        let known = untold.iter().filter_map(|name| self.names.get(name));
        // What was taken over from another supervisor is not newer than what its workers know.
        let known = known.filter(|entry| entry.asked && entry.knows());
        (known.map(|entry| entry.answer.clone()).collect(), clusters)
    }

    /// All that is known.
    pub(super) fn answers(&self) -> Vec<NameAnswer> {
        self.names.values().filter(|entry| entry.knows()).map(|entry| entry.answer.clone()).collect()
    }

    /// The same, by name; `None` while there are some of which nothing is known.
    pub(super) fn all_answers(&self) -> Option<BTreeMap<DnsName, NameAnswer>> {
        let complete = self.names.values().all(Entry::knows);
        complete
            .then(|| self.names.iter().map(|(name, entry)| (name.clone(), entry.answer.clone())).collect())
    }

    /// The clusters that have names.
    pub(super) fn clusters(&self) -> Vec<String> {
        self.clusters.keys().cloned().collect()
    }

    /// The cluster with addresses in the place of names.
    pub(super) fn expanded<'c>(&self, cluster: &'c Cluster, settings: &Settings) -> Cow<'c, Cluster> {
        cluster.expanded(settings.dns_on_empty, |name| self.names.get(name).map(|entry| &entry.answer))
    }

    /// The backends of a cluster that have names, as they are shown.
    pub(super) fn shown(&self, cluster: &str, configured: &Cluster, expanded: &Cluster) -> Vec<NameInfo> {
        let mut shown = Vec::new();
        for backend in &configured.backends {
            let Some(name) = backend.dns_name() else { continue };
            let entry = self.names.get(name);
            let of_it = |id: &str| {
                let address = id.strip_prefix(&*backend.id).and_then(|rest| rest.strip_prefix('-'));
                address.is_some_and(|address| address.parse::<SocketAddr>().is_ok())
            };
            shown.push(NameInfo {
                cluster: cluster.to_owned(),
                id: backend.id.clone(),
                name: name.clone(),
                addresses: expanded.backends.iter().filter(|it| of_it(&it.id)).count(),
                left_out: entry.map_or(0, |entry| entry.left_out),
                resolved_ms: entry.and_then(|entry| entry.resolved_ms),
                failing: entry.and_then(|entry| entry.failing.clone()),
            });
        }
        shown
    }
}

impl Entry {
    /// There is something that workers can be told.
    fn knows(&self) -> bool {
        self.answer.addresses.is_some() || self.answer.empty
    }
}

/// The pause after so many failures in a row: the shortest first, and then twice as long each time.
fn retry_after(failures: u32, min: Duration, max: Duration) -> Duration {
    let longest = Duration::from_millis(limits::DNS_RETRY_MS).min(max).max(min);
    min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
