//! What is missing of the workers is added and launched; whether that has gone well is said to whoever waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use kakehi_ctl::{limits, order::WorkerState, state::Binding};

use super::Error;
use crate::{
    fleet::worker::{Outcome, Worker},
    host::{
        init_system,
        listeners::{self, Beside, Sockets},
        pid_file::PidFile,
    },
    supervisor::{Supervisor, turn::Happened},
};

impl Supervisor {
    /// Adds what is missing of `count` workers, without processes. They get the sockets in `kept`, or new ones; where there
    /// is no worker at all yet, also those that the init system has `passed` on. `others_leave`: processes that were not taken
    /// over may have the addresses, and are to end.
    pub(super) async fn complete(
        &mut self,
        count: usize,
        mut kept: BTreeMap<u32, Sockets>,
        passed: Vec<(Binding, OwnedFd)>,
        others_leave: bool,
    ) -> Result<(), Error> {
        // Until it is written down which sockets there are.
        self.launches_held = true;
        let bindings: Vec<Binding> = self.state.bindings().collect();
        let settings = self.state.settings.clone();
        let present: BTreeSet<u32> = self.workers.iter().map(Worker::id).collect();
        let highest = present.last().map_or(0, |id| *id as usize + 1);
        let missing: Vec<u32> = (0..count.max(highest) as u32).filter(|id| !present.contains(id)).collect();
        // With a worker that goes on, the addresses are ours, and taken.
        let mut opened = match present.is_empty() && kept.is_empty() {
            true => {
                let beside = if others_leave { Beside::WhoLeaves } else { Beside::Nobody };
                let open = listeners::open(&bindings, missing.len(), passed, beside);
                // There is nobody yet who would have to be stopped.
                let Ok(opened) = self.serve_until(open).await else { return Ok(()) };
                opened?
            }
            false => Vec::new(),
        }
        .into_iter();
        // The one before may have died between the record of a change and the workers that make it.
        // Their places in the row are not settled yet: some are missing.
        for place in 0..self.workers.len() {
            let worker = &self.workers[place];
            let id = worker.id();
            let here: BTreeSet<Binding> = worker.sockets().iter().map(|(which, _)| which.binding()).collect();
            let lacks: Vec<Binding> = bindings.iter().filter(|it| !here.contains(it)).copied().collect();
            if lacks.is_empty() && here.len() == bindings.len() {
                continue;
            }
            let come = self.open_more(&lacks).await?;
            self.workers[place].change_sockets(come, |binding| bindings.contains(binding));
            self.unlike_state.insert(id);
        }
        for id in missing {
            let sockets = match (kept.remove(&id), opened.next()) {
                (Some(sockets), _) | (None, Some(sockets)) => sockets,
                (None, None) => self.open_more(&bindings).await?,
            };
            let core = self.core_of(id);
            self.workers.push(Worker::new(id, core, sockets, &settings).map_err(Error::Runtime)?);
        }
        self.workers.sort_by_key(Worker::id);
        Ok(())
    }

    /// Writes down what is served and on which sockets, launches the workers that have no process, and waits until each accepts, or
    /// a stop has begun.
    ///
    /// The first start is the only one whose failure is final: what is wrong now will be wrong again. Workers that were
    /// taken over go on then, without a supervisor.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        if self.is_stopping() {
            return Ok(());
        }
        if self.workers.iter().any(|worker| !worker.has_future()) {
            // They are to know the addresses of backends before they serve, where the DNS is quick.
            self.await_names(Duration::from_millis(limits::NAMES_PATIENCE_MS)).await;
        }
        let provisions = match self.provisions().await {
            Ok(provisions) => provisions,
            Err(_) if self.is_stopping() => return Ok(()),
            Err(error) => return Err(Error::Runtime(error)),
        };
        self.begin_record(Arc::clone(&provisions.state)).await;
        if self.note_sockets(&[]).await.is_err() {
            return Ok(());
        }
        self.launches_held = false;
        let fresh: BTreeSet<u32> =
            self.workers.iter().filter(|worker| !worker.has_future()).map(Worker::id).collect();
        for worker in self.workers.iter_mut().filter(|worker| fresh.contains(&worker.id())) {
            if let Err(error) = worker.launch(&provisions, &self.attendance) {
                let failed = Error::FirstStart { id: worker.id(), reason: error.to_string() };
                self.kill(&fresh).await;
                return Err(failed);
            }
        }
        drop(provisions);
        while !self.is_stopping() && self.workers.iter().any(|it| it.state() == WorkerState::Starting) {
            let Happened::Event(event) = self.turn(None).await else { continue };
            let id = event.worker;
            match self.note(event) {
                Outcome::Died(death) if fresh.contains(&id) && !self.is_stopping() => {
                    self.kill(&fresh).await;
                    return Err(Error::FirstStart { id, reason: death.reason });
                }
                // They are ready for the first time.
                Outcome::Ready => {}
                other => drop(self.attend_to(id, other)),
            }
        }
        if self.is_stopping() {
            tracing::info!("asked to stop before the start was complete");
            self.kill(&fresh).await;
        }
        Ok(())
    }

    pub(super) async fn write_pid_file(&mut self) -> Result<(), Error> {
        let Some(path) = self.state.settings.pid_file_path.clone() else { return Ok(()) };
        let to = path.clone();
        let Ok(written) = self.serve_beside(move || PidFile::write(&to)).await else { return Ok(()) };
        let error = match written {
            Ok(file) => {
                self.pid_file = Some(file);
                return Ok(());
            }
            Err(error) => Error::PidFile { path, error },
        };
        match error {
            // Those that go on need no file.
            error if self.workers.iter().any(|worker| !worker.is_fresh()) => {
                tracing::error!("{error}");
                Ok(())
            }
            error => {
                let fresh = self.workers.iter().filter(|worker| worker.is_fresh()).map(Worker::id).collect();
                self.kill(&fresh).await;
                // No worker is left.
                self.remove_records().await;
                Err(error)
            }
        }
    }

    pub(super) fn tell_ready(&self) {
        let addresses: Vec<String> = self.state.bindings().map(|it| it.to_string()).collect();
        let addresses = match addresses.is_empty() {
            true => "nothing (no listener is configured)".to_owned(),
            false => addresses.join(", "),
        };
        self.steer();
        init_system::ready(self.workers.len());
        tracing::info!("ready: {} workers, listening on {addresses}", self.workers.len());
    }

    /// Kills these workers and waits until each has ended.
    async fn kill(&mut self, ids: &BTreeSet<u32>) {
        let concerned = |worker: &&mut Worker| ids.contains(&worker.id());
        for worker in self.workers.iter_mut().filter(concerned) {
            worker.retire();
            worker.kill();
        }
        while self.workers.iter().any(|worker| ids.contains(&worker.id()) && worker.has_future()) {
            if let Happened::Event(event) = self.turn(None).await {
                self.note(event);
            }
        }
    }
}
