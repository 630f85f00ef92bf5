//! What happens to workers, and what follows from it.

use std::time::Duration;

use kakehi_ctl::event::Happening;

use crate::{
    fleet::{
        attend::{Event, What},
        worker::{Death, Outcome, Worker},
    },
    supervisor::{End, Supervisor},
};

impl Supervisor {
    /// Takes note of what happened to a process, and attends to it. What an operation may wait for is given back.
    pub(crate) fn on_event(&mut self, event: Event) -> Outcome {
        let id = event.worker;
        let outcome = self.note(event);
        self.attend_to(id, outcome)
    }

    /// Attends to what happened to a worker. What an operation may wait for is given back.
    pub(crate) fn attend_to(&mut self, id: u32, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Ready => {
                tracing::info!(worker = id, "ready, replaces the one that died");
                let pid = self.worker(id).map_or(0, |worker| worker.info().pid);
                self.tell(Happening::WorkerReplaced { worker: id, pid });
            }
            Outcome::Answered { refused: Some(reason), .. } => {
                if self.worker(id).is_some_and(Worker::may_complain) {
                    tracing::warn!(worker = id, "refused an order: {reason}");
                }
            }
            Outcome::Died(death) => self.on_death(id, death),
            // An upgrade that was given up, or the end of one that an operation waits for.
            other => return other,
        }
        Outcome::Nothing
    }

    fn on_death(&mut self, id: u32, Death { reason, drained, lived }: Death) {
        if let Some(stopping) = &mut self.stopping {
            if drained {
                tracing::info!(worker = id, "has finished");
            } else {
                stopping.end = End::Cut;
                tracing::warn!(worker = id, "did not finish: {reason}");
            }
            return;
        }
        if !self.state.settings.worker_automatic_restart {
            tracing::error!(worker = id, "{reason}; not replaced, as `worker_automatic_restart` is false");
            self.tell(Happening::WorkerDied { worker: id, reason, replaced_in_ms: None });
            return;
        }
        self.plan_replacement(id, &reason, lived);
    }

    /// Has another process take the place of one that has `lived` so long.
    pub(crate) fn plan_replacement(&mut self, id: u32, reason: &str, lived: Duration) {
        if let Some(worker) = self.worker(id) {
            let delay = worker.plan_replacement(lived).as_millis();
            tracing::error!(worker = id, "{reason}; to be replaced in {delay} ms");
            let (reason, replaced_in_ms) = (reason.to_owned(), u64::try_from(delay).ok());
            self.tell(Happening::WorkerDied { worker: id, reason, replaced_in_ms });
        }
    }

    /// Passes the event to the worker that it is about.
    pub(crate) fn note(&mut self, event: Event) -> Outcome {
        let ended = matches!(event.what, What::Ended(_));
        let id = event.worker;
        let outcome = match self.worker(id) {
            Some(worker) => worker.on_event(event),
            None => Outcome::Nothing,
        };
        if ended {
            self.ledger.forget_dead(&self.attendance.roster);
        }
        match outcome {
            Outcome::Loads { order, loads } => {
                self.note_loads(id, order, loads);
                return Outcome::Nothing;
            }
            // While it started it was told nothing.
            Outcome::Ready | Outcome::Upgraded => self.health.owe(id, false),
            Outcome::Explained { order, found } => {
                self.note_explained(id, order, *found);
                return Outcome::Nothing;
            }
            Outcome::Answered { order, refused: Some(ref reason) }
                if self.explaining.note_refused(id, order, reason) =>
            {
                return Outcome::Nothing;
            }
            Outcome::Died(_) => {
                self.asking.forget(id);
                self.explaining.forget(id);
            }
            _ => {}
        }
        outcome
    }

    pub(crate) fn worker(&mut self, id: u32) -> Option<&mut Worker> {
        self.workers.get_mut(id as usize)
    }

    /// Has another process take the place of the one of a worker, whatever `worker_automatic_restart` says: this one has not died.
    pub(crate) fn give_up(&mut self, id: u32, reason: String) {
        let outcome = self.worker(id).map(|worker| worker.give_up(reason));
        if let Some(Outcome::Died(Death { reason, lived, .. })) = outcome {
            self.plan_replacement(id, &reason, lived);
        }
    }

    /// How many workers there are, without those that are about to end for good.
    pub(crate) fn count(&self) -> usize {
        self.workers.iter().take_while(|worker| !worker.is_retired()).count()
    }
}
