//! The state on disk: saved when asked, or by itself after each change, and had at the next start.

use std::path::PathBuf;

use kakehi_ctl::{
    state::State,
    store::{self, Error as StoreError},
};
use tokio::task::JoinHandle;

use super::{Error, Supervisor};

/// A save that may be under way.
#[derive(Default)]
pub(super) struct Saving {
    running: Option<JoinHandle<()>>,
    /// The state has changed since it began.
    again: bool,
}

impl Saving {
    /// Waits until the save that is under way has ended, if another is to follow; otherwise for ever.
    pub(super) async fn is_to_go_on(&mut self) {
        match &mut self.running {
            Some(running) if self.again => {
                // It cannot fail but by a panic, which ends the program.
                let _ = running.await;
                self.running = None;
            }
            _ => std::future::pending().await,
        }
    }
}

/// Why the state was not saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It is not said where.
    #[error("`saved_state` is not set; name a file: `kakehictl state save FILE`")]
    NoPath,
    /// The file system refused.
    #[error("{path}: {error}", path = path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        error: StoreError,
    },
}

/// The state that was saved, unless the file says something else than when it was.
///
/// # Errors
/// When there is a file that is not understood.
pub(super) fn load(in_file: &State) -> Result<Option<State>, Error> {
    let Some(path) = &in_file.settings.saved_state else { return Ok(None) };
    let saved = match store::load(path) {
        Ok(saved) => saved,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(Error::SavedState { path: path.clone(), error }),
    };
    if saved.revision.origin != in_file.revision.origin {
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
    /// Saves the state to `saved_state`.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(super) async fn save_state(&mut self) -> Result<PathBuf, Refused> {
        let path = self.state.settings.saved_state.clone().ok_or(Refused::NoPath)?;
        self.finish_saving().await;
        store::save(&path, &self.state)
            .map_err(|error| Refused::Store { path: path.clone(), error })
            .map(|()| path)
    }

    /// Begins to save the state, where that is wanted. The disk is waited for elsewhere; what changes meanwhile is
    /// saved afterwards.
    pub(super) fn save_automatically(&mut self) {
        if !self.state.settings.automatic_state_save {
            return;
        }
        self.saving.again = true;
        self.go_on_saving();
    }

    /// Begins the next save when the one before has ended.
    pub(super) fn go_on_saving(&mut self) {
        let busy = self.saving.running.as_ref().is_some_and(|running| !running.is_finished());
        if busy || !self.saving.again {
            return;
        }
        self.saving.again = false;
        let Some(path) = self.state.settings.saved_state.clone() else { return };
        let text = match self.state_text() {
            Ok(text) => text.to_vec(),
            Err(error) => return tracing::error!("the state is not saved: {error}"),
        };
        self.saving.running = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = store::write(&path, &text) {
                tracing::error!("the state is not saved to {}: {error}", path.display());
            }
        }));
    }

    /// Waits until everything is saved that is to be.
    pub(super) async fn finish_saving(&mut self) {
        loop {
            if let Some(running) = self.saving.running.take() {
                // It cannot fail but by a panic, which ends the program.
                let _ = running.await;
            }
            if !self.saving.again {
                return;
            }
            self.go_on_saving();
        }
    }
}
