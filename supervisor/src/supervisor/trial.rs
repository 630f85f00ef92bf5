//! A worker on trial: shows whether a worker comes up with other settings, or of another program, before anything depends on it.
//!
//! It does all that a worker does until it is ready, but gets no listening socket and no connection, and is ended then. While it
//! is waited for, everything is served.

use std::{path::Path, sync::Arc, time::Duration};

use kakehi_ctl::{
    limits,
    order::Report,
    state::{Settings, State},
};
use tokio::time::Instant;

use crate::{
    fleet::{
        attend::What,
        launch::{Provisions, Start},
        process::{Block, Process, reason_of_end},
    },
    host::{cores, listeners::Sockets},
    supervisor::{Supervisor, turn::Happened},
};

/// The number of a worker on trial.
pub(crate) const TRIAL: u32 = u32::MAX;

/// Why a trial did not succeed.
pub(crate) enum Failed {
    /// A stop has begun.
    Stopping,
    /// The worker did not come up; why.
    NotReady(String),
}

impl Supervisor {
    /// Has a worker with `settings` come up and go again: of `program`, or of the one that runs.
    ///
    /// # Errors
    /// When it does not, or not within [`limits::WORKER_READY_TIMEOUT_MS`].
    pub(crate) async fn try_worker(
        &mut self,
        settings: &Settings,
        program: Option<&Path>,
    ) -> Result<(), Failed> {
        let not_ready = |error: &dyn std::fmt::Display| Failed::NotReady(error.to_string());
        let state = State { settings: settings.clone(), ..State::default() };
        let text = serde_json::to_vec(&state).map_err(|error| not_ready(&error))?;
        let provisions = Provisions {
            state: text.into(),
            vault: Arc::clone(self.certificates.vault()),
            ledger: self.ledger.memory(settings.table_size),
            verdicts: self.health.verdicts_text(),
            names: Arc::default(),
        };
        let block = || Block::new(TRIAL).map_err(|error| not_ready(&error));
        let (counters, ended) = (block()?, block()?);
        let start = Start {
            id: TRIAL,
            core: cores::of_worker(settings, 0),
            provisions: &provisions,
            sockets: &Sockets::new(),
            command_socket: &self.state.settings.command_socket,
            ended: &ended,
            program,
            settings,
        };
        // One before it may still be about to end.
        self.trials += 1;
        let process = Process::start(&start, self.trials, &counters, None, &self.attendance)
            .map_err(|error| not_ready(&error))?;
        let pid = process.pid;
        self.helpers.push(pid);
        let outcome = self.until_it_has_ended(process).await;
        self.helpers.retain(|helper| *helper != pid);
        outcome
    }

    /// Ends the process when it is ready, or late.
    async fn until_it_has_ended(&mut self, mut process: Process) -> Result<(), Failed> {
        let patience = Duration::from_millis(limits::WORKER_READY_TIMEOUT_MS);
        let mut outcome = Err(Failed::NotReady(format!("it was not ready within {} s", patience.as_secs())));
        let deadline = Instant::now() + patience;
        loop {
            let event = match self.turn(Some(deadline)).await {
                Happened::Event(event) if event.worker == TRIAL => event,
                Happened::Event(event) => {
                    self.on_event(event);
                    continue;
                }
                Happened::Late => {
                    process.kill();
                    return outcome;
                }
                Happened::Other if self.is_stopping() => {
                    process.kill();
                    return Err(Failed::Stopping);
                }
                Happened::Other => continue,
            };
            if event.launch != process.launch {
                continue;
            }
            match event.what {
                What::Reported(_, Report::Ready { .. }) => {
                    outcome = Ok(());
                    process.kill();
                }
                What::Reported(_, Report::Failed { reason }) => process.last_words = Some(reason),
                What::Ended(_) if outcome.is_ok() => return outcome,
                What::Ended(status) => {
                    return Err(Failed::NotReady(reason_of_end(process.last_words, status)));
                }
                What::Reported(..) | What::Deaf(_) | What::Mute(_) => {}
            }
        }
    }
}
