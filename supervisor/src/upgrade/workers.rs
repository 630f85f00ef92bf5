//! A new process in the place of an old one, without losing a connection.
//!
//! The new process is started beside the old one, on the same listening sockets. When it accepts, the old one leaves: it
//! accepts no more, gives its idle connections to the new one, and what is in the middle of an exchange when that has
//! ended. A new process that does not come up changes nothing. One worker after the other.

use std::time::Duration;

use kakehi_ctl::{limits, order::WorkerOutcome};
use tokio::time::Instant;

use crate::{
    fleet::worker::Outcome,
    supervisor::{Supervisor, turn::Happened},
};

/// Why workers were not upgraded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no such worker.
    #[error("there is no worker {0}; `kakehictl workers` lists them")]
    NoWorker(u32),
    /// It is too late.
    #[error("kakehi is stopping")]
    Stopping,
    /// The new process did not come up.
    #[error("worker {id} goes on as it is: {reason}{done}")]
    Failed {
        /// Which worker.
        id: u32,
        /// Why.
        reason: String,
        /// What was done before.
        done: String,
    },
}

impl Supervisor {
    /// Replaces the process of `which` worker, or of each.
    ///
    /// # Errors
    /// See [`Refused`]; the worker that it names goes on as it was, and so do those after it.
    pub(crate) async fn upgrade(
        &mut self,
        which: Option<u32>,
        by: &str,
    ) -> Result<Vec<WorkerOutcome>, Refused> {
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        let count = self.count() as u32;
        let ids = match which {
            Some(id) if id >= count => return Err(Refused::NoWorker(id)),
            Some(id) => id..id + 1,
            None => 0..count,
        };
        let (mut outcomes, total) = (Vec::new(), ids.len() as u32);
        for id in ids {
            if let Err(reason) = self.upgrade_one(id).await {
                tracing::error!(worker = id, "was not upgraded for {by}: {reason}");
                let done = match outcomes.len() {
                    0 => String::new(),
                    done => format!(" ({done} workers before it were upgraded)"),
                };
                return Err(Refused::Failed { id, reason, done });
            }
            tracing::info!(worker = id, "upgraded for {by}");
            self.tell_step("upgrade", format!("worker {id} upgraded"), (outcomes.len() as u32 + 1, total));
            outcomes.push(WorkerOutcome { id, outcome: "upgraded".to_owned() });
        }
        Ok(outcomes)
    }

    async fn upgrade_one(&mut self, id: u32) -> Result<(), String> {
        let provisions = self.provisions().await.map_err(|error| error.to_string())?;
        let Some(worker) = self.workers.get_mut(id as usize) else { return Err("it is gone".to_owned()) };
        worker.begin_upgrade(&provisions, &self.attendance).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + Duration::from_millis(limits::WORKER_READY_TIMEOUT_MS);
        let given_up = loop {
            match self.turn(Some(deadline)).await {
                Happened::Event(event) => {
                    let about = event.worker;
                    match self.on_event(event) {
                        Outcome::Upgraded if about == id => return Ok(()),
                        Outcome::NotUpgraded(reason) if about == id => return Err(reason),
                        _ => {}
                    }
                }
                Happened::Late => {
                    let seconds = limits::WORKER_READY_TIMEOUT_MS / 1000;
                    break format!("the new process was not ready within {seconds} s");
                }
                Happened::Other if self.is_stopping() => break "kakehi is stopping".to_owned(),
                Happened::Other => {}
            }
        };
        let stop_ms = self.is_stopping().then_some(self.state.settings.graceful_timeout_ms);
        if let Some(worker) = self.worker(id) {
            worker.give_up_upgrade(stop_ms);
        }
        Err(given_up)
    }
}
