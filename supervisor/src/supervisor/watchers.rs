//! Those who watch: clients of the command socket that are told what happens, as it happens.
//!
//! Telling never waits. Each watcher has a queue of [`KEPT`] events, which its client's task ([`crate::control::command`]) writes; one that
//! is too slow loses what finds no place, and hears with the next event how many were lost.

use std::{
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use kakehi_ctl::{
    event::{Event, Happening, Topic},
    order::Ending,
};
use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};

use crate::supervisor::Supervisor;

/// Events that wait for one watcher.
const KEPT: usize = 128;
/// Watchers at a time: each has one of the places for clients, and keeps it.
const MOST: usize = 16;
/// So many of them may be other users than root and our own.
const MOST_GUESTS: usize = 8;
/// Turns that the tasks of clients get to write what they were told: each needs one, and one more for its last frame.
const TURNS_TO_WRITE: usize = 16;

/// An event on its way, and how many before it were lost.
pub(crate) type Told = (u64, Arc<Event>);

/// Why there will be no more events, once it is known.
pub(crate) type End = Arc<OnceLock<Ending>>;

/// The supervisor's end of a watch.
pub(crate) struct Watcher {
    events: Sender<Told>,
    end: End,
    topics: Vec<Topic>,
    lost: u64,
    is_guest: bool,
}

/// The client's end of a watch.
pub(crate) struct Watch {
    /// The number under which events are told.
    pub(crate) id: u64,
    pub(crate) events: Receiver<Told>,
    pub(crate) end: End,
    pub(crate) topics: Vec<Topic>,
}

/// The two ends of a watch for these topics (none: all), told under number `id`.
pub(crate) fn watch(id: u64, topics: Vec<Topic>, is_guest: bool) -> (Watcher, Watch) {
    let (sender, events) = mpsc::channel(KEPT);
    let end = End::default();
    let watcher =
        Watcher { events: sender, end: Arc::clone(&end), topics: topics.clone(), lost: 0, is_guest };
    (watcher, Watch { id, events, end, topics })
}

impl Watcher {
    fn tell(&mut self, event: &Arc<Event>) -> bool {
        let wanted = |topic| self.topics.is_empty() || self.topics.contains(&topic);
        if !event.what.topic().is_some_and(wanted) {
            return !self.events.is_closed();
        }
        match self.events.try_send((self.lost, Arc::clone(event))) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(_)) => self.lost += 1,
            Err(TrySendError::Closed(_)) => return false,
        }
        true
    }
}

/// All watchers.
#[derive(Default)]
pub(crate) struct Watchers(Vec<Watcher>);

impl Watchers {
    /// Takes one more in.
    ///
    /// # Errors
    /// When there are too many, in words.
    pub(crate) fn add(&mut self, watcher: Watcher) -> Result<(), String> {
        self.0.retain(|it| !it.events.is_closed());
        let guests = self.0.iter().filter(|it| it.is_guest).count();
        if self.0.len() >= MOST || (watcher.is_guest && guests >= MOST_GUESTS) {
            return Err(format!("{} clients watch already; try again when one has left", self.0.len()));
        }
        self.0.push(watcher);
        Ok(())
    }

    fn tell(&mut self, generation: u64, what: Happening) {
        if self.0.is_empty() {
            return;
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let event = Arc::new(Event { time_ms, generation, lost: 0, what });
        self.0.retain_mut(|watcher| watcher.tell(&event));
    }

    /// Tells all but the watch with the end `but` that there will be no more events, and waits until that is written where it
    /// can be.
    pub(crate) async fn end(&mut self, ending: Ending, but: Option<&End>) {
        for watcher in self.0.extract_if(.., |it| but.is_none_or(|but| !Arc::ptr_eq(but, &it.end))) {
            let _ = watcher.end.set(ending);
        }
        for _ in 0..TURNS_TO_WRITE {
            tokio::task::yield_now().await;
        }
    }
}

impl Supervisor {
    /// Tells those who watch.
    pub(crate) fn tell(&mut self, what: Happening) {
        self.watchers.tell(self.state.revision.generation, what);
    }

    /// Tells those who watch how far an operation has come: so much is `done` of `total`.
    pub(crate) fn tell_step(&mut self, operation: &str, text: impl Into<String>, (done, total): (u32, u32)) {
        let (operation, text) = (operation.to_owned(), text.into());
        self.tell(Happening::Step { operation, text, done, total });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(watchers: &mut Watchers) {
        watchers.tell(1, Happening::SavedAgain);
    }

    #[test]
    fn who_is_too_slow_loses_events_and_hears_how_many() {
        let mut watchers = Watchers::default();
        let (watcher, mut watch) = watch(1, Vec::new(), false);
        watchers.add(watcher).unwrap();
        for _ in 0..KEPT + 5 {
            saved(&mut watchers);
        }
        for _ in 0..KEPT {
            assert_eq!(watch.events.try_recv().unwrap().0, 0);
        }
        assert!(watch.events.try_recv().is_err());
        saved(&mut watchers);
        saved(&mut watchers);
        assert_eq!(watch.events.try_recv().unwrap().0, 5);
        assert_eq!(watch.events.try_recv().unwrap().0, 0);
    }

    #[test]
    fn only_what_was_asked_for_is_told() {
        let mut watchers = Watchers::default();
        let (watcher, mut watch) = watch(1, vec![Topic::Workers], false);
        watchers.add(watcher).unwrap();
        saved(&mut watchers);
        watchers.tell(1, Happening::WorkerReplaced { worker: 0, pid: 1 });
        assert!(matches!(watch.events.try_recv().unwrap().1.what, Happening::WorkerReplaced { .. }));
        assert!(watch.events.try_recv().is_err());
    }

    #[tokio::test]
    async fn watchers_are_bounded_guests_more_so_and_places_of_those_that_left_are_free() {
        let mut watchers = Watchers::default();
        let mut held = Vec::new();
        for number in 0..MOST {
            let (watcher, watch) = watch(1, Vec::new(), true);
            assert_eq!(watchers.add(watcher).is_ok(), number < MOST_GUESTS);
            held.push(watch);
        }
        for number in MOST_GUESTS..=MOST {
            let (watcher, watch) = watch(1, Vec::new(), false);
            assert_eq!(watchers.add(watcher).is_ok(), number < MOST);
            held.push(watch);
        }
        let last = held.pop().unwrap();
        assert!(last.end.get().is_none());
        held.remove(0);
        let (watcher, mut watch) = watch(1, Vec::new(), true);
        watchers.add(watcher).unwrap();
        watchers.end(Ending::Stopped, None).await;
        assert!(watch.events.recv().await.is_none());
        assert_eq!(watch.end.get(), Some(&Ending::Stopped));
    }
}
