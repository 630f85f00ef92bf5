//! The state on disk: saved when asked, or by itself after each change, and had at the next start.

use std::{collections::BTreeMap, io, path::PathBuf, rc::Rc};

use kakehi_ctl::{
    order::KeyPair,
    state::{Fingerprint, State},
    store::{self, Error as StoreError},
};
use tokio::task::JoinHandle;

use super::{Error, Supervisor, certificates::without_keys};

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
pub(super) type Saved = (State, BTreeMap<Fingerprint, KeyPair>);

/// The state that was saved, unless the file says something else than when it was.
///
/// # Errors
/// When there is a file that is not understood.
pub(super) fn load(in_file: &State) -> Result<Option<Saved>, Error> {
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
    pub(super) async fn save_state(&mut self, with_keys: bool) -> Result<(PathBuf, usize), Refused> {
        let path = self.state.settings.saved_state.clone().ok_or(Refused::NoPath)?;
        self.finish_saving().await;
        let (state, keys, left_out) = if with_keys {
            let keys = self.certificates.keys(&self.state).map_err(Refused::Keys)?;
            (std::borrow::Cow::Borrowed(&self.state), keys, 0)
        } else {
            let (state, left_out) = without_keys(&self.state);
            (state, BTreeMap::new(), left_out)
        };
        match store::save_with_keys(&path, &state, &keys) {
            Ok(()) => Ok((path, left_out)),
            Err(error) => Err(Refused::Store { path, error }),
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
        let text = match self.text_to_save() {
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
