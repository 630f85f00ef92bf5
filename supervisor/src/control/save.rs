//! The state on disk: saved when asked, or by itself after each change, and had at the next start.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kakehi_ctl::{
    order::KeyPair,
    state::{Fingerprint, State},
    store::{self, Error as StoreError},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    certificates::{count_without_files, without_keys},
    supervisor::{
        Supervisor,
        turn::{Happened, Stopped},
    },
};

/// How long a stop waits for a disk.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

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

/// The state that was saved cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`saved_state` {path}: {error}; remove the file, or name another", path = path.display())]
pub(crate) struct LoadError {
    path: PathBuf,
    error: StoreError,
}

/// The state that was saved. Of one that was saved when the file said something else, only what is by hand counts.
///
/// # Errors
/// When there is a file that is not understood.
pub(crate) fn load(in_file: &State) -> Result<Option<Saved>, LoadError> {
    let Some(path) = &in_file.settings.saved_state else { return Ok(None) };
    let saved = match store::load_with_keys(path) {
        Ok(saved) => saved,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(LoadError { path: path.clone(), error }),
    };
    let path = path.display();
    match saved.0.revision.origin == in_file.revision.origin {
        true => tracing::info!("going on with the state in {path}"),
        false => tracing::warn!(
            "the file has changed since the state was saved to {path}: what the file says holds, and what is by hand there"
        ),
    }
    Ok(Some(saved))
}

/// Saves a state to `path`, with keys or without; it is looked at only until its text is there.
fn save(
    path: &Path,
    state: Arc<State>,
    with_keys: bool,
    keys: &BTreeMap<Fingerprint, KeyPair>,
) -> Result<(), StoreError> {
    let text = match with_keys {
        true => store::text_with_keys(&state, keys),
        false => store::text_with_keys(&without_keys(&state), keys),
    }?;
    drop(state);
    store::write(path, &text)
}

impl Supervisor {
    /// Saves the state to `saved_state`; says where, and how many certificates are not in it. Keys that are in no file are
    /// saved only when they are asked for, and their certificates left out otherwise.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(crate) async fn save_state(&mut self, with_keys: bool) -> Result<(PathBuf, usize), Refused> {
        let path = self.state.settings.saved_state.clone().ok_or(Refused::NoPath)?;
        let (keys, left_out) = match with_keys {
            true => (self.certificates.keys(&self.state).map_err(Refused::Keys)?, 0),
            false => (BTreeMap::new(), count_without_files(&self.state)),
        };
        let state = Arc::clone(&self.state);
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
            let _ = tell.send(save(&to, state, with_keys, &keys));
            Ok(())
        }));
        match self.serve_until(told).await {
            Ok(Ok(Ok(()))) => Ok((path, left_out)),
            Ok(Ok(Err(error))) => Err(Refused::Store { path, error }),
            // It goes on, and the stop waits for it.
            Ok(Err(_)) | Err(Stopped) => Err(Refused::Stopping),
        }
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
        let give_up = Instant::now() + STOP_PATIENCE;
        self.wait_for_saves(give_up).await;
        // What failed before has one more chance.
        self.saving.retry = None;
        self.go_on_saving();
        self.wait_for_saves(give_up).await;
        let saved = self.saving.running.is_none() && !self.saving.again;
        if !saved {
            tracing::error!("the state on the disk is not the one that was running");
        }
        saved
    }
}
