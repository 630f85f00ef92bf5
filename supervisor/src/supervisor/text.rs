//! The state as workers get it: a text, which is written on another thread, as it may be large.

use std::{io, sync::Arc};

use kakehi_ctl::state::State;
use tokio::task::JoinHandle;

use crate::{
    fleet::launch::Provisions,
    supervisor::{Supervisor, turn::Stopped},
};

/// A larger text of the state is made anew each time: to keep it costs more than that.
const LARGEST_KEPT: usize = 4 << 20;

type Text = io::Result<Arc<Vec<u8>>>;

/// The text of a state, where there is one.
#[derive(Default)]
pub(super) struct StateText {
    /// Of the state as it is now.
    kept: Option<Arc<Vec<u8>>>,
    /// It is being written for workers that are due.
    coming: Option<JoinHandle<Text>>,
    /// It was written for them.
    come: Option<Text>,
}

impl StateText {
    /// The state is another one.
    pub(super) fn forget(&mut self) {
        *self = StateText::default();
    }

    /// Nobody is due.
    pub(super) fn forget_come(&mut self) {
        self.come = None;
    }

    /// Whether it is being written for workers that are due.
    pub(super) fn is_coming(&self) -> bool {
        self.coming.is_some()
    }

    /// Waits until it is written for workers that are due; for ever when it is not. May be given up at any time without loss.
    pub(super) async fn comes(&mut self) {
        let Some(coming) = &mut self.coming else { return std::future::pending().await };
        // It cannot fail but by a panic, which ends the program.
        let text = coming.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.coming = None;
        self.keep(&text);
        self.come = Some(text);
    }

    fn keep(&mut self, text: &Text) {
        self.kept = text.as_ref().ok().filter(|text| text.len() <= LARGEST_KEPT).cloned();
    }

    /// What there is.
    fn take(&mut self) -> Option<Text> {
        self.kept.clone().map(Ok).or_else(|| self.come.take())
    }
}

fn write(state: &State) -> Text {
    Ok(Arc::new(serde_json::to_vec(state)?))
}

impl Supervisor {
    /// What every process of a worker starts from.
    ///
    /// # Errors
    /// When a stop has begun, or it cannot be written.
    pub(crate) async fn provisions(&mut self) -> io::Result<Provisions> {
        let text = match self.state_text.take() {
            Some(text) => text,
            None => {
                let state = Arc::clone(&self.state);
                let written = self.serve_beside(move || write(&state)).await;
                let text = written.unwrap_or_else(|Stopped| Err(io::Error::other("kakehi is stopping")));
                self.state_text.keep(&text);
                text
            }
        };
        Ok(self.provisions_with(text?))
    }

    /// The same, for workers that are due at any moment; `None` when it has to be written first: [`StateText::comes`] says when it is.
    pub(super) fn provisions_at_once(&mut self) -> Option<io::Result<Provisions>> {
        if let Some(text) = self.state_text.take() {
            return Some(text.map(|text| self.provisions_with(text)));
        }
        let state = Arc::clone(&self.state);
        self.state_text.coming.get_or_insert_with(|| tokio::task::spawn_blocking(move || write(&state)));
        None
    }

    fn provisions_with(&self, state: Arc<Vec<u8>>) -> Provisions {
        self.ledger.forget_dead(&self.attendance.roster);
        Provisions {
            state,
            vault: Arc::clone(self.certificates.vault()),
            ledger: self.ledger.memory(self.state.settings.table_size),
            verdicts: self.health.verdicts_text(),
            names: self.names.answers_text(),
        }
    }
}
