//! More workers, or fewer, while they serve.
//!
//! A listening socket that was closed with connections in its queue would reset them, so none is ever closed: when a
//! worker goes, another takes its sockets and accepts on them too, and gives them back when there are more workers again.
//! Lest that one gets more new connections than others, a filter of the socket group sends new ones to the workers' own
//! sockets only ([`super::steering`]).

use kakehi_ctl::{
    limits,
    order::{ListenerSocket, Order, WorkerOutcome, WorkerState},
    state::{Binding, Settings},
};
use std::{io, time::Duration};
use tokio::time::Instant;

use crate::{
    fleet::worker::{Outcome, Worker},
    host::{
        cores,
        listeners::{self, Sockets},
    },
    supervisor::{
        Supervisor,
        turn::{Happened, Stopped},
    },
};

/// Why the number of workers did not become what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// No such number.
    #[error("there can be 1 to {max} workers, not {0}", max = limits::MAX_WORKERS)]
    Count(u32),
    /// It is too late.
    #[error("kakehi is stopping")]
    Stopping,
    /// A worker does not run.
    #[error("worker {0} does not run now; try again when `kakehictl workers` shows it running")]
    NotRunning(u32),
    /// A new worker did not come up.
    #[error("worker {id} does not come up: {reason}; there are {count} workers")]
    Failed {
        /// Which one.
        id: u32,
        /// Why.
        reason: String,
        /// How many there are now.
        count: usize,
    },
    /// A worker did not take what another leaves.
    #[error("worker {id} does not take the sockets of another: {reason}; there are {count} workers")]
    NotTaken {
        /// Which one.
        id: u32,
        /// Why.
        reason: String,
        /// How many there are now.
        count: usize,
    },
    /// The kernel refused.
    #[error("{0}")]
    System(#[from] io::Error),
    /// No further socket can be opened.
    #[error(transparent)]
    Listener(#[from] listeners::Error),
}

/// Workers that the settings ask for.
pub(crate) fn worker_count(settings: &Settings) -> usize {
    let default = || cores::default_worker_count(&cores::allowed());
    settings.worker_count.map_or_else(default, |configured| usize::from(configured).max(1))
}

impl Supervisor {
    /// Makes it `wanted` workers.
    ///
    /// # Errors
    /// See [`Refused`]; what was done up to there stays.
    pub(crate) async fn scale(&mut self, wanted: u32, by: &str) -> Result<Vec<WorkerOutcome>, Refused> {
        if wanted == 0 || wanted > limits::MAX_WORKERS {
            return Err(Refused::Count(wanted));
        }
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        let mut outcomes = Vec::new();
        let done = self.scale_step_by_step(wanted as usize, &mut outcomes).await;
        for WorkerOutcome { id, outcome } in &outcomes {
            tracing::info!(worker = id, "{outcome} for {by}");
        }
        if !self.is_stopping() {
            let count = u16::try_from(self.count()).ok();
            self.own_state().await.settings.worker_count = count;
            self.note_placement().await;
            self.steer();
        }
        if done.is_ok() {
            self.source.is_unscaled = false;
        }
        done.map(|()| outcomes)
    }

    async fn scale_step_by_step(
        &mut self,
        wanted: usize,
        outcomes: &mut Vec<WorkerOutcome>,
    ) -> Result<(), Refused> {
        let total = self.count().abs_diff(wanted) as u32;
        while self.count() < wanted && !self.is_stopping() {
            let id = self.count() as u32;
            self.add(id).await?;
            outcomes.push(WorkerOutcome { id, outcome: "added".to_owned() });
            self.tell_step("scale", format!("worker {id} added"), (outcomes.len() as u32, total));
        }
        while self.count() > wanted && !self.is_stopping() {
            let id = self.count() as u32 - 1;
            self.remove(id).await?;
            outcomes.push(WorkerOutcome { id, outcome: "removed".to_owned() });
            self.tell_step("scale", format!("worker {id} removed"), (outcomes.len() as u32, total));
        }
        if self.is_stopping() { Err(Refused::Stopping) } else { Ok(()) }
    }

    /// The core of worker `id`, where workers are pinned.
    pub(crate) fn core_of(&self, id: u32) -> Option<usize> {
        cores::of_worker(&self.state.settings, id)
    }

    /// The rank of the next socket that is bound so.
    pub(crate) fn next_rank(&self, binding: &Binding) -> u32 {
        let sockets = self.workers.iter().flat_map(Worker::sockets);
        let ranks = sockets.filter(|(which, _)| which.binding() == *binding).map(|(which, _)| which.rank);
        ranks.max().map_or(0, |rank| rank.saturating_add(1))
    }

    /// Opens one socket more for each of `bindings`.
    ///
    /// # Errors
    /// See [`listeners::Error`]; nothing stays open then.
    pub(crate) async fn open_more(&mut self, bindings: &[Binding]) -> Result<Sockets, listeners::Error> {
        match listeners::open_more(bindings, |binding| self.next_rank(binding)) {
            Ok(opened) => Ok(opened),
            // Who has it is found out on another thread; at a stop that does not matter.
            Err(error) => {
                let address = error.address();
                let found = self.serve_until(error.with_holder()).await;
                found.map_err(|Stopped| listeners::Error::Taken { address, holder: None }).and_then(Err)
            }
        }
    }

    async fn add(&mut self, id: u32) -> Result<(), Refused> {
        let spare = self.spare_sockets();
        let is_spare = |binding: &Binding| spare.iter().any(|(_, which)| which.binding() == *binding);
        let missing: Vec<Binding> = self.state.bindings().filter(|it| !is_spare(it)).collect();
        let mut sockets = self.open_more(&missing).await?;
        for (host, which) in &spare {
            let taken = self.workers[*host as usize].sockets().iter().find(|(it, _)| it == which);
            if let Some((which, socket)) = taken {
                sockets.push((*which, socket.try_clone()?));
            }
        }
        let (core, settings) = (self.core_of(id), self.state.settings.clone());
        self.note_sockets(std::slice::from_ref(&sockets)).await.map_err(|Stopped| Refused::Stopping)?;
        match self.workers.get_mut(id as usize) {
            // The one before of this number has not quite ended.
            Some(worker) => worker.come_back(core, sockets),
            None => self.workers.push(Worker::new(id, core, sockets, &settings)?),
        }
        if let Err(reason) = self.launch_and_wait(id).await {
            if self.is_stopping() {
                return Err(Refused::Stopping);
            }
            self.take_back(id, &missing).await;
            return Err(Refused::Failed { id, reason, count: self.count() });
        }
        for (host, which) in spare {
            let yielded = self.order_worker(host, Order::Yield { sockets: vec![which] }).await;
            if let Err(reason) = yielded {
                // Both accept there: not as even as it should be, but nothing is lost.
                tracing::warn!(worker = host, "goes on accepting for another: {reason}");
                continue;
            }
            self.workers[host as usize].drop_socket(which);
        }
        if let Err(reason) = self.order_worker(id, Order::Stir).await {
            tracing::warn!(worker = id, "did not look into its queues: {reason}");
        }
        Ok(())
    }

    /// For each listener one socket of a worker that has several, and the worker.
    fn spare_sockets(&self) -> Vec<(u32, ListenerSocket)> {
        let spare_of = |binding: &Binding| {
            let spare = self.workers.iter().filter_map(|worker| {
                let own = worker.sockets().iter().map(|(which, _)| *which);
                let mut own: Vec<_> = own.filter(|which| which.binding() == *binding).collect();
                own.sort();
                own.get(1).map(|which| (worker.id(), *which))
            });
            // The lowest, as the filter counts on the workers' own sockets being the first, in their order.
            spare.min_by_key(|(_, which)| which.rank)
        };
        self.state.bindings().filter_map(|binding| spare_of(&binding)).collect()
    }

    /// A worker that was to be added does not come up: its new sockets go to another, as they may have connections.
    async fn take_back(&mut self, id: u32, opened: &[Binding]) {
        let Some(worker) = self.workers.get_mut(id as usize) else { return };
        worker.kill();
        let (new, others): (Sockets, Sockets) =
            worker.give_up_sockets().into_iter().partition(|(which, _)| opened.contains(&which.binding()));
        drop(others);
        if let Err(reason) = self.give_sockets(0, new, None).await {
            tracing::error!(worker = 0, "does not take the sockets of one that did not come up: {reason}");
        }
        self.forget_retired();
    }

    /// Launches the process of a worker and waits until it accepts.
    async fn launch_and_wait(&mut self, id: u32) -> Result<(), String> {
        let provisions = self.provisions().await.map_err(|error| error.to_string())?;
        let worker = self.workers.get_mut(id as usize).ok_or("it is gone")?;
        worker.launch(&provisions, &self.attendance).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + Duration::from_millis(limits::WORKER_READY_TIMEOUT_MS);
        loop {
            match self.turn(Some(deadline)).await {
                Happened::Event(event) => {
                    let about = event.worker;
                    match self.note(event) {
                        Outcome::Ready if about == id => return Ok(()),
                        Outcome::Died(death) if about == id => return Err(death.reason),
                        other => drop(self.attend_to(about, other)),
                    }
                }
                Happened::Late => {
                    return Err(format!(
                        "it was not ready within {} s",
                        limits::WORKER_READY_TIMEOUT_MS / 1000
                    ));
                }
                Happened::Other if self.is_stopping() => return Err("kakehi is stopping".to_owned()),
                Happened::Other => {}
            }
        }
    }

    async fn remove(&mut self, id: u32) -> Result<(), Refused> {
        let host = id % (self.count() as u32 - 1);
        for needed in [host, id] {
            if self.workers[needed as usize].state() != WorkerState::Running {
                return Err(Refused::NotRunning(needed));
            }
        }
        let worker = &self.workers[id as usize];
        let sockets = worker
            .sockets()
            .iter()
            .map(|(which, socket)| Ok((*which, socket.try_clone()?)))
            .collect::<io::Result<_>>()?;
        self.give_sockets(host, sockets, Some(id)).await.map_err(|reason| Refused::NotTaken {
            id: host,
            reason,
            count: self.count(),
        })?;
        self.workers[id as usize].leave_for_good();
        Ok(())
    }

    /// Gives worker `host` listening sockets, and what comes out of the process of worker `predecessor`.
    async fn give_sockets(
        &mut self,
        host: u32,
        sockets: Sockets,
        predecessor: Option<u32>,
    ) -> Result<(), String> {
        let predecessor = match predecessor.and_then(|id| self.workers.get(id as usize)) {
            Some(worker) => worker.inheritance().map_err(|error| error.to_string())?,
            None => None,
        };
        let worker = self.workers.get_mut(host as usize).ok_or("it is gone")?;
        worker.pass_with(&sockets, predecessor.as_ref()).map_err(|error| error.to_string())?;
        self.order_worker(host, Order::Take).await?;
        if let Some(worker) = self.workers.get_mut(host as usize) {
            worker.change_sockets(sockets, |_| true);
        }
        Ok(())
    }

    /// Forgets workers that have ended for good; what they counted is counted on.
    pub(crate) fn forget_retired(&mut self) {
        while self.workers.len() > 1
            && self.workers.last().is_some_and(|worker| worker.is_retired() && !worker.has_future())
        {
            if let (Some(gone), Some(first)) = (self.workers.pop(), self.workers.first()) {
                first.count_on(&gone);
            }
        }
    }
}
