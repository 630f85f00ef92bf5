//! The state on disk: saved when asked, or by itself after each change, and had at the next start.

use std::{collections::BTreeMap, io, path::PathBuf, rc::Rc, time::Duration};

use kakehi_ctl::{
    order::KeyPair,
    state::{Fingerprint, State},
    store::{self, Error as StoreError},
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    certificates::without_keys,
    supervisor::{
        Error, Supervisor, sleep_until,
        turn::{Happened, Stopped},
    },
};

/// A failed save is tried again after this time, then after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a stop waits for a disk.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Saves after changes, which a thread of their own waits for.
#[derive(Default)]
pub(crate) struct Saving {
    running: Option<JoinHandle<Result<(), String>>>,
    /// The one that is under way was asked for; how it ends is told to whoever asked.
    by_hand: bool,
    /// The state is not as it was saved last.
    again: bool,
    /// Somebody saves the state by hand: nothing is begun.
    held: bool,
    /// Why the last save failed.
    failed: Option<String>,
    /// When a save that failed is tried again, and after how long the one after it.
    retry: Option<(Instant, Duration)>,
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

    fn may_begin(&self) -> bool {
        let is_time = self.retry.is_none_or(|(at, _)| at <= Instant::now());
        self.again && self.running.is_none() && !self.held && is_time
    }
}

/// Why the state was not saved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It is not said where.
    #[error("`saved_state` is not set; name a file: `kakehictl state save FILE`")]
    NoPath,
    /// It was not waited for.
    #[error("kakehi is stopping; it may have been saved or not")]
    Stopping,
    /// The keys cannot be had.
    #[error("the keys of certificates cannot be read: {0}")]
    Keys(io::Error),
    /// The file system refused.
    #[error("{path}: {error}", path = path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        error: StoreError,
    },
}

/// A state that was saved, and the keys that were saved with it.
pub(crate) type Saved = (State, BTreeMap<Fingerprint, KeyPair>);

/// The state that was saved, unless the file says something else than when it was.
///
/// # Errors
/// When there is a file that is not understood.
pub(crate) fn load(in_file: &State) -> Result<Option<Saved>, Error> {
    let Some(path) = &in_file.settings.saved_state else { return Ok(None) };
    let saved = match store::load_with_keys(path) {
        Ok(saved) => saved,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(Error::SavedState { path: path.clone(), error }),
    };
    if saved.0.revision.origin != in_file.revision.origin {
        tracing::warn!(
            "the file has changed since the state was saved to {}: what the file says holds",
            path.display()
        );
        return Ok(None);
    }
    tracing::info!("going on with the state in {}", path.display());
    Ok(Some(saved))
}

impl Supervisor {
    /// Saves the state to `saved_state`; says where, and how many certificates are not in it. Keys that are in no file are
    /// saved only when they are asked for, and their certificates left out otherwise.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(crate) async fn save_state(&mut self, with_keys: bool) -> Result<(PathBuf, usize), Refused> {
        let path = self.state.settings.saved_state.clone().ok_or(Refused::NoPath)?;
        let (state, keys, left_out) = if with_keys {
            let keys = self.certificates.keys(&self.state).map_err(Refused::Keys)?;
            (self.state.clone(), keys, 0)
        } else {
            let (state, left_out) = without_keys(&self.state);
            (state.into_owned(), BTreeMap::new(), left_out)
        };
        self.hold_saving().await;
        self.saving.held = false;
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        // As the one that is under way: two that write to one place would spoil each other's.
        let (tell, told) = oneshot::channel();
        let to = path.clone();
        self.saving.by_hand = true;
        self.saving.running = Some(tokio::task::spawn_blocking(move || {
            // Whoever asked may wait no longer.
            let _ = tell.send(store::save_with_keys(&to, &state, &keys));
            Ok(())
        }));
        match self.serve_until(told).await {
            Ok(Ok(Ok(()))) => Ok((path, left_out)),
            Ok(Ok(Err(error))) => Err(Refused::Store { path, error }),
            // It goes on, and the stop waits for it.
            Ok(Err(_)) | Err(Stopped) => Err(Refused::Stopping),
        }
    }

    /// What is saved after a change: never a key.
    fn text_to_save(&mut self) -> io::Result<Rc<[u8]>> {
        let (state, left_out) = without_keys(&self.state);
        let text = match left_out {
            0 => None,
            _ => Some(serde_json::to_vec(&state)?.into()),
        };
        let before = std::mem::replace(&mut self.certificates.left_out, left_out);
        if left_out > before {
            tracing::warn!(
                "the state is saved without {left_out} certificates, whose keys are in no file; they will be missing \
                 after a stop (`kakehictl state save --with-keys` saves them)"
            );
        }
        text.map_or_else(|| self.state_text(), Ok)
    }

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
        if !self.saving.may_begin() {
            return;
        }
        self.saving.again = false;
        let Some(path) = self.state.settings.saved_state.clone() else { return };
        let text = match self.text_to_save() {
            Ok(text) => text.to_vec(),
            Err(error) => return self.saving.note(Err(error.to_string())),
        };
        let save = move || store::write(&path, &text).map_err(|error| format!("{}: {error}", path.display()));
        self.saving.running = Some(tokio::task::spawn_blocking(save));
    }

    /// Waits until no save after a change is under way, and has none begin.
    async fn hold_saving(&mut self) {
        self.saving.held = true;
        while self.saving.running.is_some() && !self.is_stopping() {
            if let Happened::Event(event) = self.turn(None).await {
                self.on_event(event);
            }
        }
    }

    /// Saves what is not saved, when nothing else is to be done any more; whether it is saved then.
    pub(crate) async fn finish_saving(&mut self) -> bool {
        let finished = async {
            while self.saving.running.is_some() {
                self.saving.is_to_go_on().await;
            }
            // What failed before has one more chance.
            self.saving.retry = None;
            self.go_on_saving();
            while self.saving.running.is_some() {
                self.saving.is_to_go_on().await;
            }
            !self.saving.again
        };
        let saved = timeout(STOP_PATIENCE, finished).await.unwrap_or(false);
        if !saved {
            tracing::error!("the state on the disk is not the one that was running");
        }
        saved
    }
}
