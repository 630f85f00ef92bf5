//! The state is saved by itself after each change, where that is wanted. The disk is waited for elsewhere; a save that failed is
//! tried again until it succeeds.

use std::{sync::Arc, time::Duration};

use kakehi_ctl::{event::Happening, store};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    certificates::{count_without_files, without_keys},
    supervisor::{Supervisor, turn::Happened},
    timer::sleep_until,
};

/// A failed save is tried again after this time, then after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Saves after changes, which a thread of their own waits for.
#[derive(Default)]
pub(crate) struct Saving {
    pub(crate) running: Option<JoinHandle<Result<(), String>>>,
    /// The one that is under way was asked for; how it ends is told to whoever asked.
    pub(crate) by_hand: bool,
    /// The state is not as it was saved last.
    pub(crate) again: bool,
    /// Somebody saves the state by hand: nothing is begun.
    pub(crate) held: bool,
    /// Why the last save failed.
    failed: Option<String>,
    /// What of that those who watch know.
    told: Option<String>,
    /// When a save that failed is tried again, and after how long the one after it.
    pub(crate) retry: Option<(Instant, Duration)>,
}

impl Saving {
    /// Waits until the save that is under way has ended, or one that failed is to be tried again: [`Supervisor::go_on_saving`]
    /// is to be called then. May be given up at any time without loss.
    pub(crate) async fn is_to_go_on(&mut self) {
        let Some(running) = &mut self.running else {
            return sleep_until(self.retry.map(|(at, _)| at).filter(|_| !self.held)).await;
        };
        // It cannot fail but by a panic, which ends the program.
        let ended = running.await.unwrap_or_else(|error| Err(error.to_string()));
        self.running = None;
        if !std::mem::take(&mut self.by_hand) {
            self.note(ended);
        }
    }

    /// Why the state on the disk is not the one that is running, if that could not be helped.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    fn note(&mut self, ended: Result<(), String>) {
        match ended {
            Ok(()) => {
                if self.failed.take().is_some() {
                    tracing::info!("the state is saved again");
                }
                self.retry = None;
            }
            Err(reason) => {
                let pause = self.retry.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
                if self.failed.as_ref() != Some(&reason) {
                    tracing::error!(
                        "the state is not saved: {reason}; it is tried again until that succeeds"
                    );
                }
                self.failed = Some(reason);
                self.again = true;
                self.retry = Some((Instant::now() + pause, pause));
            }
        }
    }

    /// What is new for those who watch.
    fn news(&mut self) -> Option<Happening> {
        if self.failed == self.told {
            return None;
        }
        self.told.clone_from(&self.failed);
        Some(match &self.failed {
            Some(reason) => Happening::SaveFailed { reason: reason.clone() },
            None => Happening::SavedAgain,
        })
    }

    fn may_begin(&self) -> bool {
        let is_time = self.retry.is_none_or(|(at, _)| at <= Instant::now());
        self.again && self.running.is_none() && !self.held && is_time
    }
}

impl Supervisor {
    /// Begins to save the state, where that is wanted. The disk is waited for elsewhere; what changes meanwhile is
    /// saved afterwards.
    pub(crate) fn save_automatically(&mut self) {
        if !self.state.settings.automatic_state_save {
            return;
        }
        self.saving.again = true;
        self.go_on_saving();
    }

    /// Begins the next save when it is time.
    pub(crate) fn go_on_saving(&mut self) {
        if let Some(news) = self.saving.news() {
            self.tell(news);
        }
        if !self.saving.may_begin() {
            return;
        }
        self.saving.again = false;
        let Some(path) = self.state.settings.saved_state.clone() else { return };
        // Never a key.
        let left_out = count_without_files(&self.state);
        let before = std::mem::replace(&mut self.certificates.left_out, left_out);
        if left_out > before {
            tracing::warn!(
                "the state is saved without {left_out} certificates, whose keys are in no file; they will be missing \
                 after a stop (`kakehictl state save --with-keys` saves them)"
            );
        }
        let state = Arc::clone(&self.state);
        let save = move || {
            let text = serde_json::to_vec(&*without_keys(&state));
            // Others wait until nobody looks at it; not until a disk has it.
            drop(state);
            store::write(&path, &text.map_err(|error| error.to_string())?)
                .map_err(|error| format!("{}: {error}", path.display()))
        };
        self.saving.running = Some(tokio::task::spawn_blocking(save));
    }

    /// Has no save begin, and waits for the one that is under way, not longer than `until`; whether it has ended.
    pub(crate) async fn saves_end(&mut self, until: Instant) -> bool {
        self.saving.held = true;
        self.wait_for_saves(until).await;
        self.saving.running.is_none()
    }

    /// Waits until no save is under way, not longer than `until`.
    pub(crate) async fn wait_for_saves(&mut self, until: Instant) {
        while self.saving.running.is_some() {
            match self.turn(Some(until)).await {
                Happened::Event(event) => drop(self.on_event(event)),
                Happened::Late => return,
                Happened::Other => {}
            }
        }
    }
}
