//! Backends by name: the DNS is asked for their addresses, once for each name however many workers and clusters there are.
//!
//! | file | idea |
//! |---|---|
//! | `table` | which names are asked for, when next, and what came of it |
//! | `asker` | the task that looks names up when they are due |
//! | `lookup` | one lookup: from a name to addresses |
//! | `resolver` | questions to servers of the DNS |
//!
//! Promises: the supervisor's loop never waits for a server of the DNS; whatever one sends, a name has a bounded number of addresses, is
//! asked for no more often than `dns_min_ttl` says, and is written about in the log only when something changes.
//!
//! What a name stands for is a fact: it makes no generation and is in no state. A program that takes the place of another one goes on with
//! what that one knew, and so does one that takes workers over after a death, by what was written down: it gives that to new processes, and
//! tells it to none that may know something newer.

mod asker;
mod lookup;
mod resolver;
mod table;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, MutexGuard, PoisonError},
};

use kakehi_ctl::{
    order::NameInfo,
    state::{Cluster, DnsName, KnownName, NameAnswer, Settings, State},
};
use tokio::sync::Notify;

use self::table::Table;
use crate::errand::Errand;

#[expect(
    clippy::disallowed_types,
    reason = "it is held by two tasks of one thread, which never wait with it"
)]
type Lock<T> = std::sync::Mutex<T>;

/// Servers of the DNS; none: those of the system.
type Servers = Arc<[SocketAddr]>;

/// What the loop of the supervisor and the asker share. Both are tasks of one thread: the lock is never waited for.
#[derive(Default)]
struct Shared {
    table: Lock<Table>,
    servers: Lock<Servers>,
    /// There is more to ask, or others are to be asked.
    changed: Notify,
    /// Something came of asking.
    news: Notify,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn servers(&self) -> Servers {
        Arc::clone(&self.servers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The names of all backends that have one, in the hands of the supervisor.
#[derive(Default)]
pub(crate) struct Names {
    shared: Arc<Shared>,
    asker: Errand,
}

impl Names {
    /// Follows everything in `state`.
    pub(crate) fn begin(&mut self, state: &State) {
        self.configure(&state.settings);
        let mut table = self.shared.table();
        for (name, cluster) in &state.clusters {
            table.follow(name, Some(cluster));
        }
        table.forget_unused();
        drop(table);
        self.go_on();
    }

    /// What the program before knew is what [`Names::begin`] begins with.
    pub(crate) fn inherit(&mut self, known: &[KnownName]) {
        self.shared.table().inherit(known);
    }

    /// What another program can go on with.
    pub(crate) fn known(&self) -> Vec<KnownName> {
        self.shared.table().known()
    }

    /// Asks these servers, as often as the settings say, from now on.
    pub(crate) fn configure(&mut self, settings: &Settings) {
        let mut servers = self.shared.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let others = **servers != *settings.resolvers;
        if others {
            *servers = settings.resolvers.as_slice().into();
        }
        drop(servers);
        self.shared.table().configure(settings, others);
        self.shared.changed.notify_one();
    }

    /// Follows these clusters as they are in `state`, which has changed in them. True if some names are gone.
    pub(crate) fn follow<'a>(&mut self, state: &State, names: impl Iterator<Item = &'a str>) -> bool {
        let mut table = self.shared.table();
        for name in names.collect::<BTreeSet<&str>>() {
            table.follow(name, state.clusters.get(name));
        }
        let forgot = table.forget_unused();
        drop(table);
        self.go_on();
        forgot
    }

    /// Asks for the names of `part` that are new: they are given back.
    pub(crate) fn expect(&mut self, part: &State) -> BTreeSet<DnsName> {
        let mut table = self.shared.table();
        let names = part.clusters.values().flat_map(Cluster::dns_names);
        let new = names.filter(|name| table.expect(name)).cloned().collect();
        drop(table);
        self.go_on();
        new
    }

    /// Asks no more for what no cluster has: a change that would have brought it was not made.
    pub(crate) fn forget_unused(&mut self) {
        self.shared.table().forget_unused();
        self.go_on();
    }

    /// After a change of what is asked for.
    fn go_on(&mut self) {
        let (is_idle, has_news) = {
            let table = self.shared.table();
            (table.is_idle(), table.has_news())
        };
        let shared = &self.shared;
        if !self.asker.keep(!is_idle, || asker::run(Arc::clone(shared))) {
            shared.changed.notify_one();
        }
        if has_news {
            self.shared.news.notify_one();
        }
    }

    /// Asks no more: a stop has begun.
    pub(crate) fn stop(&mut self) {
        self.asker.stop();
    }

    /// True if there is a name of which nothing is known, as nothing came of asking for it yet.
    pub(crate) fn lack_answers(&self) -> bool {
        self.shared.table().lacks_answers()
    }

    /// The same of one of these.
    pub(crate) fn lack_any(&self, names: &BTreeSet<DnsName>) -> bool {
        self.shared.table().lacks_any(names)
    }

    /// Waits until something came of asking ([`Names::take_news`]). May be given up at any time without loss.
    pub(crate) async fn news(&self) {
        self.shared.news.notified().await;
    }

    /// What workers are to be told, and the clusters that it is about.
    pub(crate) fn take_news(&mut self) -> (Vec<NameAnswer>, Vec<String>) {
        self.shared.table().take_news()
    }

    /// All that is known.
    pub(crate) fn answers(&self) -> Vec<NameAnswer> {
        self.shared.table().answers()
    }

    /// What a process of a worker starts with, as JSON text; empty: nothing.
    pub(crate) fn answers_text(&self) -> Arc<Vec<u8>> {
        let answers = self.answers();
        let text = if answers.is_empty() { Ok(Vec::new()) } else { serde_json::to_vec(&answers) };
        // It is told everything again when it is ready.
        Arc::new(text.unwrap_or_default())
    }

    /// The clusters that have names.
    pub(crate) fn clusters(&self) -> Vec<String> {
        self.shared.table().clusters()
    }

    /// The cluster with addresses in the place of names.
    pub(crate) fn expanded<'c>(&self, cluster: &'c Cluster, settings: &Settings) -> Cow<'c, Cluster> {
        self.shared.table().expanded(cluster, settings)
    }

    /// What the DNS has said of all names; `None` while there are some of which it has said nothing yet.
    pub(crate) fn all_answers(&self) -> Option<BTreeMap<DnsName, NameAnswer>> {
        self.shared.table().all_answers()
    }

    /// The backends of a cluster that have names, as they are shown.
    pub(crate) fn shown(&self, cluster: &str, configured: &Cluster, expanded: &Cluster) -> Vec<NameInfo> {
        self.shared.table().shown(cluster, configured, expanded)
    }
}
