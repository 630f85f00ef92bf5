//! Workers are asked what backends have to do, and what they say is added up. What they say is believed for nothing but to be shown, and
//! to say that a backend is drained; one that does not answer within [`PATIENCE`] has not said it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use kakehi_ctl::order::{BackendLoad, BackendName};
use tokio::time::Instant;

/// How long workers have to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Backends that are asked about, and shown, at a time.
pub(crate) const MOST_SHOWN: usize = 4_096;

/// What is asked of workers, one question after the other.
pub(crate) struct Asking<T> {
    current: Option<Current<T>>,
    waiting: VecDeque<(Vec<BackendName>, T)>,
}

impl<T> Default for Asking<T> {
    fn default() -> Self {
        Asking { current: None, waiting: VecDeque::new() }
    }
}

/// A question that workers were asked.
struct Current<T> {
    order: u64,
    backends: Vec<BackendName>,
    purpose: T,
    /// By worker: what it has said so far.
    said: BTreeMap<u32, Vec<Option<BackendLoad>>>,
    /// Those that have not said everything.
    missing: BTreeSet<u32>,
    /// One was not asked, or has ended.
    incomplete: bool,
    due: Instant,
}

/// What workers have said.
pub(crate) struct Said<T> {
    pub(crate) backends: Vec<BackendName>,
    pub(crate) purpose: T,
    /// By worker, one for each backend.
    pub(crate) loads: BTreeMap<u32, Vec<Option<BackendLoad>>>,
    /// A worker has not said it.
    pub(crate) incomplete: bool,
}

impl<T> Said<T> {
    /// Connections in use at the backend in this place, and what it has served, of all workers; `None`: not all have said it.
    pub(crate) fn total(&self, place: usize) -> Option<(u64, u64)> {
        let loads = || self.loads.values().filter_map(|loads| loads.get(place).copied().flatten());
        let sum = |of: fn(BackendLoad) -> u64| loads().map(of).fold(0, u64::saturating_add);
        (!self.incomplete).then(|| (sum(|it| it.connections.into()), sum(|it| it.served)))
    }

    /// Requests that wait in the cluster of the backend in this place, on all workers; `None`: not all have said it.
    pub(crate) fn waiting(&self, place: usize) -> Option<u64> {
        let loads = self.loads.values().filter_map(|loads| loads.get(place).copied().flatten());
        (!self.incomplete).then(|| loads.map(|it| u64::from(it.waiting)).sum())
    }
}

impl<T> Asking<T> {
    /// True if nothing is asked.
    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    /// Puts a question into the line.
    pub(crate) fn ask(&mut self, backends: Vec<BackendName>, purpose: T) {
        self.waiting.push_back((backends, purpose));
    }

    /// The next question, if workers are asked none.
    pub(crate) fn next(&mut self) -> Option<(Vec<BackendName>, T)> {
        if self.current.is_some() { None } else { self.waiting.pop_front() }
    }

    /// These workers were asked, by the order of this number.
    pub(crate) fn begin(
        &mut self,
        order: u64,
        (backends, purpose): (Vec<BackendName>, T),
        workers: BTreeSet<u32>,
        incomplete: bool,
    ) {
        let (said, due) = (BTreeMap::new(), Instant::now() + PATIENCE);
        self.current = Some(Current { order, backends, purpose, said, missing: workers, incomplete, due });
    }

    /// A worker has said something to the order of this number.
    pub(crate) fn note(&mut self, worker: u32, order: u64, mut loads: Vec<Option<BackendLoad>>) {
        let Some(current) = self.current.as_mut().filter(|it| it.order == order) else { return };
        if !current.missing.contains(&worker) {
            return;
        }
        let said = current.said.entry(worker).or_default();
        said.append(&mut loads);
        if said.len() >= current.backends.len() {
            said.truncate(current.backends.len());
            current.missing.remove(&worker);
        }
    }

    /// A worker has ended, or does not understand it.
    pub(crate) fn forget(&mut self, worker: u32) {
        if let Some(current) = &mut self.current
            && current.missing.remove(&worker)
        {
            current.said.remove(&worker);
            current.incomplete = true;
        }
    }

    /// When it is waited no longer.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.current
            .as_ref()
            .map(|current| if current.missing.is_empty() { Instant::now() } else { current.due })
    }

    /// What was said, once all have answered, or it is too late.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Said<T>> {
        let current = self.current.take_if(|it| it.missing.is_empty() || it.due <= now)?;
        let Current { backends, purpose, mut said, missing, incomplete, .. } = current;
        let incomplete = incomplete || !missing.is_empty();
        said.retain(|_, loads| loads.len() == backends.len());
        Some(Said { backends, purpose, loads: said, incomplete })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<BackendName> {
        (0..count).map(|n| BackendName { cluster: "a".to_owned(), id: n.to_string() }).collect()
    }

    fn load(connections: u32) -> Option<BackendLoad> {
        Some(BackendLoad { connections, served: 10, ..BackendLoad::default() })
    }

    #[test]
    fn what_workers_say_is_added_up_when_all_have_said_it() {
        let mut asking = Asking::default();
        asking.ask(names(2), 7);
        let question = asking.next().unwrap();
        asking.begin(1, question, BTreeSet::from([0, 1]), false);
        assert!(asking.next().is_none() && asking.take(Instant::now()).is_none());
        asking.note(0, 1, vec![load(1)]);
        asking.note(0, 1, vec![load(2), load(99)]);
        asking.note(0, 2, vec![load(99)]);
        asking.note(7, 1, vec![load(99), load(99)]);
        asking.note(1, 1, vec![None, load(4)]);
        asking.note(1, 1, vec![load(99)]);
        let said = asking.take(Instant::now()).unwrap();
        assert_eq!((said.total(0), said.total(1), said.purpose), (Some((1, 10)), Some((6, 20)), 7));
        assert!(asking.due().is_none());
    }

    #[test]
    fn whoever_does_not_answer_leaves_it_unknown() {
        let mut asking = Asking::default();
        asking.ask(names(1), ());
        let question = asking.next().unwrap();
        asking.begin(1, question, BTreeSet::from([0, 1]), false);
        asking.note(0, 1, vec![load(0)]);
        let said = asking.take(Instant::now() + PATIENCE).unwrap();
        assert!(said.incomplete && said.total(0).is_none());
        asking.ask(names(1), ());
        let question = asking.next().unwrap();
        asking.begin(2, question, BTreeSet::from([0]), false);
        asking.forget(0);
        assert!(asking.take(Instant::now()).unwrap().incomplete);
    }
}
