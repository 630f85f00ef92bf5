//! What is due at some time, whatever operation runs: workers to be replaced or killed, the watchdog, certificates to look at.

use std::{io, time::Duration};

use kakehi_ctl::order::WorkerState;
use tokio::time::Instant;

use crate::{fleet::worker::Worker, host::init_system, supervisor::Supervisor};

impl Supervisor {
    /// When something is due that is done at any moment.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let kill_at = self.stopping.as_ref().and_then(|stopping| stopping.kill_at);
        let workers = self.workers.iter();
        workers
            .flat_map(|worker| [worker.due().filter(|_| self.may_attend(worker)), worker.leave_due()])
            .flatten()
            .chain(kill_at)
            .chain(self.watchdog.map(|(_, due)| due))
            .chain(self.certificates_due())
            .chain(self.health.due())
            .chain(self.asking.due())
            .chain(self.recording.names_due())
            .min()
    }

    pub(super) fn on_due(&mut self) {
        let now = Instant::now();
        if self.stopping.as_ref().and_then(|stopping| stopping.kill_at).is_some_and(|at| at <= now) {
            tracing::warn!("`graceful_timeout` is over: killing the workers that are left");
            self.cut();
        }
        self.workers.iter_mut().for_each(|worker| worker.kill_overdue(now));
        if self.watchdog.is_some_and(|(_, due)| due <= now) {
            init_system::alive();
            self.watchdog = self.watchdog.map(|(period, _)| (period, now + period));
        }
        self.attend_to_certificates();
        self.attend_to_health();
        if !self.is_stopping() {
            self.recording.note_names_if_due(now, || self.names.known());
        }
        // None of them needs what is written for those below.
        let is_late = |worker: &&mut Worker| {
            worker.state() == WorkerState::Starting && worker.due().is_some_and(|due| due <= now)
        };
        self.workers.iter_mut().filter(is_late).for_each(Worker::on_late_start);
        let due = |worker: &Worker| self.may_attend(worker) && worker.due().is_some_and(|due| due <= now);
        let due: Vec<u32> = self.workers.iter().filter(|worker| due(worker)).map(Worker::id).collect();
        if due.is_empty() {
            self.state_text.forget_come();
            return;
        }
        let Some(provisions) = self.provisions_at_once() else { return };
        for worker in self.workers.iter_mut().filter(|worker| due.contains(&worker.id())) {
            let launched = match &provisions {
                Ok(provisions) => worker.relaunch(provisions, &self.attendance),
                Err(error) => Err(io::Error::other(error.to_string())),
            };
            match launched {
                Ok(()) => {}
                Err(error) => {
                    let delay = worker.plan_replacement(Duration::ZERO);
                    tracing::error!(
                        worker = worker.id(),
                        "cannot be replaced: {error}; to be tried again in {} ms",
                        delay.as_millis()
                    );
                }
            }
        }
    }

    /// Whether what is due of a worker may be done now.
    fn may_attend(&self, worker: &Worker) -> bool {
        let is_held = self.launches_held || self.state_text.is_coming();
        worker.state() == WorkerState::Starting || !(is_held || worker.is_being_upgraded())
    }

    /// When anything is due of certificates that concerns no worker.
    fn certificates_due(&self) -> Option<Instant> {
        [self.watch_due(), self.certificates.expiry_due(&self.state)].into_iter().flatten().min()
    }

    /// Does of that what is due.
    fn attend_to_certificates(&mut self) {
        let now = Instant::now();
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if is_due(self.watch_due()) {
            self.certificates.look_at_files(&self.state);
        }
        if is_due(self.certificates.expiry_due(&self.state)) {
            self.certificates.tell_expiry(&self.state);
        }
    }

    /// When files are to be looked at next.
    fn watch_due(&self) -> Option<Instant> {
        self.certificates.watch_due(&self.state).filter(|_| !self.is_stopping())
    }

    /// When what nobody uses is to be thrown away. That is an operation: while a change is under way, what it brings is in the vault
    /// already, and in no state yet.
    pub(crate) fn tidy_due(&self) -> Option<Instant> {
        // A worker that serves something else may still need what the state does not name.
        let all_known = self.workers.iter().all(|it| it.is_fresh() || !self.unlike_state.contains(&it.id()));
        self.certificates.tidy_due().filter(|_| !self.is_stopping() && all_known)
    }

    /// When slots of the ledger are to be given back. That is an operation: in the midst of one the workers may count already what the
    /// state does not name yet. So may a process that leaves, which serves an earlier state.
    pub(crate) fn ledger_due(&self) -> Option<Instant> {
        let serves_state = |it: &Worker| it.is_fresh() || !self.unlike_state.contains(&it.id());
        let all_known = self.workers.iter().all(|it| serves_state(it) && !it.has_leaving());
        self.ledger.due().filter(|_| !self.is_stopping() && all_known)
    }

    /// When state and sockets are to be written for a supervisor to come, which could not be done. That is an operation: in the midst of
    /// one the workers may have a change already that the state has not.
    pub(crate) fn record_due(&self) -> Option<Instant> {
        self.recording.retry_due().filter(|_| !self.is_stopping())
    }
}
