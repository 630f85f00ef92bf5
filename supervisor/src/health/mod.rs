//! Whether backends are well: probes of them, once for each backend however many workers there are, and what follows.
//!
//! | file | idea |
//! |---|---|
//! | `table` | what is probed, when next, what was found, and what is to be told |
//! | `standing` | what probes have found of one backend |
//! | `plan` | how the backends of a cluster are probed |
//! | `prober` | the task that makes probes when they are due |
//! | `probe` | one probe: its connection and its deadline |
//! | `answer` | the answer to one, without I/O |
//! | `asking` | workers are asked what backends have to do |
//!
//! Relies on `tls` of the engine for whom to trust. Promises: the supervisor's loop never waits for a backend; what a backend sends
//! is bounded, and is in no text that is shown.
//!
//! A program that takes the place of another one goes on with its verdicts. A supervisor that takes workers over after a death knows
//! none. It tells them none until its own probes have made one, which they do at the
//! pace of a second at least: until then workers go by the last that they were told.

mod answer;
mod asking;
mod plan;
mod probe;
mod prober;
mod standing;
mod table;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use kakehi_ctl::{
    event::Happening,
    order::{BackendName, ClusterCondition, Verdict},
    state::{Backend, Cluster, State},
};
use kakehi_engine::tls::{Context, Vault};
use tokio::{sync::Notify, time::Instant};

use self::table::Table;
pub(crate) use self::{
    asking::{Asking, MOST_SHOWN, Said},
    table::{Known, now_ms},
};
use crate::errand::Errand;

/// A worker that did not take its verdicts is told again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether backends that take no new work have any left.
const DRAIN_POLL: Duration = Duration::from_secs(1);

#[expect(
    clippy::disallowed_types,
    reason = "it is held by two tasks of one thread, which never wait with it"
)]
type Lock<T> = std::sync::Mutex<T>;

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// The backend is well.
    Good(Cow<'static, str>),
    /// It is not.
    Bad(Cow<'static, str>),
    /// Nothing that says anything of the backend.
    Void(Cow<'static, str>),
}

impl Outcome {
    fn good(text: impl Into<Cow<'static, str>>) -> Outcome {
        Outcome::Good(text.into())
    }

    fn bad(text: impl Into<Cow<'static, str>>) -> Outcome {
        Outcome::Bad(text.into())
    }
}

/// What the loop of the supervisor and the prober share. Both are tasks of one thread: the lock is never waited for.
#[derive(Default)]
struct Shared {
    table: Lock<Table>,
    vault: Lock<Option<Arc<Vault>>>,
    /// There is more to probe, or it is to be probed otherwise.
    changed: Notify,
    /// There is something to tell.
    news: Notify,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For TLS.
    fn context(&self) -> Option<Context> {
        let vault = self.vault.lock().unwrap_or_else(PoisonError::into_inner);
        let vault = vault.as_ref()?.try_clone();
        let context = vault.and_then(|vault| Context::new(vault, u64::MAX / 4));
        context.inspect_err(|error| tracing::warn!("probes cannot speak TLS: {error}")).ok()
    }
}

/// The health of all backends, in the hands of the supervisor.
#[derive(Default)]
pub(crate) struct Health {
    shared: Arc<Shared>,
    prober: Errand,
    /// Workers that are to be told all verdicts.
    owed: BTreeSet<u32>,
    /// When those are tried again.
    retry_at: Option<Instant>,
    /// When backends that take no new work are looked at next.
    drains_at: Option<Instant>,
}

impl Health {
    /// Follows everything in `state`, as it was found, with what `expand` makes of each cluster: that with addresses in the place of
    /// names.
    pub(crate) fn begin(
        &mut self,
        state: &State,
        expand: impl for<'c> Fn(&'c Cluster) -> Cow<'c, Cluster>,
        vault: &Arc<Vault>,
    ) {
        *self.shared.vault.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(vault));
        let mut table = self.shared.table();
        for name in table.names() {
            table.follow(&name, state.clusters.get(&name).map(&expand).as_deref(), true);
        }
        for (name, cluster) in &state.clusters {
            table.follow(name, Some(&expand(cluster)), true);
        }
        table.inherit(&[]);
        drop(table);
        self.go_on();
    }

    /// What the program before had found is what [`Health::begin`] begins with.
    pub(crate) fn inherit(&mut self, verdicts: &[Verdict]) {
        self.shared.table().inherit(verdicts);
    }

    /// True if there is a backend without a verdict.
    pub(crate) fn lacks_verdicts(&self) -> bool {
        self.shared.table().lacks_verdicts()
    }

    /// Follows these clusters as they are in `state`, which has changed in them, or in what `expand` makes of them.
    pub(crate) fn follow<'a>(
        &mut self,
        state: &State,
        expand: impl for<'c> Fn(&'c Cluster) -> Cow<'c, Cluster>,
        names: impl Iterator<Item = &'a str>,
    ) {
        let mut table = self.shared.table();
        for name in names.collect::<BTreeSet<&str>>() {
            table.follow(name, state.clusters.get(name).map(&expand).as_deref(), false);
        }
        drop(table);
        self.go_on();
    }

    /// After a change of what is followed.
    fn go_on(&mut self) {
        let (is_idle, has_news, drains) = {
            let table = self.shared.table();
            (table.is_idle(), table.has_news(), !table.draining(1).is_empty())
        };
        let shared = &self.shared;
        if !self.prober.keep(!is_idle, || prober::run(Arc::clone(shared))) {
            shared.changed.notify_one();
        }
        if has_news {
            self.shared.news.notify_one();
        }
        self.drains_at = drains.then(|| self.drains_at.unwrap_or_else(Instant::now));
    }

    /// Probes no more: a stop has begun.
    pub(crate) fn stop(&mut self) {
        self.prober.stop();
        (self.retry_at, self.drains_at) = (None, None);
    }

    /// Waits until there is something to tell ([`Health::take_news`]). May be given up at any time without loss.
    pub(crate) async fn news(&self) {
        self.shared.news.notified().await;
    }

    /// What is to be told: verdicts to workers, and what has happened.
    pub(crate) fn take_news(&mut self) -> (Vec<Verdict>, Vec<Happening>) {
        self.shared.table().take_news()
    }

    /// All verdicts.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        self.shared.table().verdicts(false)
    }

    /// What a process of a worker starts with, as JSON text; empty: nothing.
    pub(crate) fn verdicts_text(&self) -> Arc<Vec<u8>> {
        let unusual = self.shared.table().verdicts(true);
        let text = if unusual.is_empty() { Ok(Vec::new()) } else { serde_json::to_vec(&unusual) };
        // It is told all verdicts again when it is ready.
        Arc::new(text.unwrap_or_default())
    }

    /// This worker is to be told all verdicts: now, or later as it did not take them.
    pub(crate) fn owe(&mut self, worker: u32, later: bool) {
        self.owed.insert(worker);
        let at = if later { Instant::now() + RETRY } else { Instant::now() };
        self.retry_at = Some(self.retry_at.map_or(at, |before| before.min(at)));
    }

    /// Those that are to be told all verdicts now.
    pub(crate) fn take_owed(&mut self, now: Instant) -> BTreeSet<u32> {
        match self.retry_at {
            Some(at) if at <= now => {
                self.retry_at = None;
                std::mem::take(&mut self.owed)
            }
            _ => BTreeSet::new(),
        }
    }

    /// Backends that take no new work and may have some left, if it is time to look.
    pub(crate) fn take_drains(&mut self, now: Instant) -> Vec<BackendName> {
        if self.drains_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let draining = self.shared.table().draining(MOST_SHOWN);
        self.drains_at = (!draining.is_empty()).then_some(now + DRAIN_POLL);
        draining
    }

    /// These backends have nothing in flight any more.
    pub(crate) fn note_drained<'a>(&mut self, backends: impl Iterator<Item = &'a BackendName>) {
        let mut table = self.shared.table();
        backends.for_each(|it| table.note_drained(it));
        if table.has_news() {
            self.shared.news.notify_one();
        }
    }

    /// When something is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        [self.retry_at, self.drains_at].into_iter().flatten().min()
    }

    /// What is known of a backend.
    pub(crate) fn known(&self, cluster: &str, backend: &Backend) -> Known {
        self.shared.table().known(cluster, backend)
    }

    /// What is the matter with a cluster.
    pub(crate) fn condition(&self, cluster: &str) -> Option<ClusterCondition> {
        self.shared.table().condition(cluster)
    }
}
