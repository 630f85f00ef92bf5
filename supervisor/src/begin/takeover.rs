//! Workers that another supervisor left go on: as what, with which state, and how they are brought up to what the file says.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    time::Duration,
};

use kakehi_ctl::{
    event::Happening,
    keys::Effect,
    state::{State, WantedCertificate},
};
use kakehi_engine::tls::Vault;

use super::{Error, leftovers};
use crate::{
    estate::record::StateRecord,
    fleet::{
        adoption::{self, Found, Known, Orphan, Refused, Search},
        worker::Worker,
    },
    host::listeners::{self, Sockets},
    supervisor::{Supervisor, trial::TRIAL, turn::Stopped},
};

/// A worker that was only to show that it comes up is told to go.
fn not_on_trial(orphan: &Orphan) -> bool {
    let on_trial = orphan.about.id == TRIAL;
    if on_trial {
        orphan.launched.handle.signal(nix::sys::signal::Signal::SIGKILL);
        orphan.launched.adoption.remove();
    }
    !on_trial
}

/// What is left of the supervisor before, without its workers.
pub(super) struct Left {
    /// The vault of the workers that go on: they all have the same.
    vault: Option<OwnedFd>,
    /// There are workers that go on.
    goes_on: bool,
}

impl Left {
    /// That of these workers.
    pub(super) fn with(orphans: &mut [Orphan]) -> Left {
        let vault = orphans.iter_mut().find_map(|orphan| orphan.vault.take());
        Left { vault, goes_on: orphans.iter().any(|orphan| !orphan.about.leaving) }
    }

    /// The vault.
    pub(super) fn vault(&mut self) -> Result<Option<Vault>, Error> {
        self.vault.take().map(Vault::take_over).transpose().map_err(Error::Vault)
    }
}

/// What the workers serve that go on, as the supervisor before has written it down.
pub(super) fn recorded_state(in_file: &State, left: &Left) -> Option<State> {
    if !left.goes_on {
        return None;
    }
    let missing = || io::Error::other("there is no record of what the workers serve");
    let recorded = StateRecord::load(&in_file.settings.command_socket).and_then(|it| it.ok_or_else(missing));
    let recorded = recorded.inspect_err(|error| tracing::warn!("{error}: what the file says holds"));
    recorded.ok().map(|recorded| recorded.state)
}

/// Workers are replaced without knowing the addresses of names when the DNS has said nothing for so long.
const FIRST_ANSWERS: Duration = Duration::from_secs(10);

impl Supervisor {
    /// What a supervisor that is no more has written down of its workers, which cannot use the command socket from then on. Removes what
    /// it was writing when it was killed.
    ///
    /// # Errors
    /// When a stop has begun.
    pub(super) async fn read_known(&mut self) -> Result<Known, Stopped> {
        let (settings, roster) = (self.state.settings.clone(), self.attendance.roster.clone());
        let read = move || {
            // No other supervisor of this instance writes there.
            leftovers::clear(&settings);
            Known::read(&settings.command_socket, roster)
        };
        self.serve_beside(read).await
    }

    /// Has what another supervisor left come under this one; at a stop, what has answered by then.
    pub(super) async fn find_orphans(&mut self, known: Known) -> Found {
        let mut search = Search::begin(&self.state.settings.command_socket, known);
        let _ = self.serve_until(search.complete()).await;
        search.end()
    }

    /// A stop has begun before it was known what is to be served: what was left of another supervisor ends as well.
    pub(super) fn stop_found(&mut self, Found { orphans, refused }: Found) -> Result<(), Error> {
        tracing::info!("asked to stop before the start was complete");
        self.take_over(orphans)?;
        // Each has its place in the row, by its number.
        let (present, settings) = (std::mem::take(&mut self.workers), self.state.settings.clone());
        for worker in present {
            while (self.workers.len() as u32) < worker.id() {
                let id = self.workers.len() as u32;
                self.workers.push(Worker::new(id, None, Sockets::new(), &settings).map_err(Error::Runtime)?);
            }
            self.workers.push(worker);
        }
        self.workers.iter_mut().for_each(|worker| worker.stop(settings.graceful_timeout_ms));
        self.dismiss(refused);
        Ok(())
    }

    /// Makes workers out of the processes that another supervisor left.
    pub(super) fn take_over(&mut self, mut orphans: Vec<Orphan>) -> Result<(), Error> {
        orphans
            .iter_mut()
            .filter_map(|orphan| orphan.ledger.take())
            .for_each(|memory| self.ledger.adopt(memory));
        let (leaving, mut serving): (Vec<_>, Vec<_>) =
            orphans.into_iter().filter(not_on_trial).partition(|orphan| orphan.about.leaving);
        // The newest process of a worker first: an older one beside it was about to be replaced.
        serving.sort_by_key(|orphan| (orphan.about.id, std::cmp::Reverse(orphan.about.launch)));
        let settings = self.state.settings.clone();
        let mut workers = BTreeMap::new();
        let mut older = leaving;
        for orphan in serving {
            let (id, pid) = (orphan.about.id, orphan.about.pid);
            if workers.contains_key(&id) {
                older.push(orphan);
                continue;
            }
            for (which, socket) in &orphan.sockets {
                // The one before may have died in the midst of a change that would have closed it.
                if let Err(error) = listeners::let_in(socket) {
                    tracing::warn!("{} may hear nobody: {error}", which.address);
                }
            }
            let worker = Worker::adopt(orphan, &settings, &self.attendance).map_err(Error::Runtime)?;
            tracing::info!(worker = id, pid, "goes on under this supervisor");
            workers.insert(id, worker);
        }
        for orphan in older {
            let id = orphan.about.id;
            if let Some(worker) = workers.get_mut(&id) {
                worker.adopt_leaving(orphan, &self.attendance).map_err(Error::Runtime)?;
                continue;
            }
            // It says that it leaves, and nobody has taken its place: nobody would see to it that it does.
            tracing::warn!(
                worker = id,
                pid = orphan.about.pid,
                "leaves without anybody in its place: told to end"
            );
            orphan.dismiss(self.state.settings.drain_timeout_ms, &mut self.dismissed);
        }
        self.workers = workers.into_values().collect();
        Ok(())
    }

    /// Has what was not taken over end, now that others serve.
    pub(super) fn dismiss(&mut self, refused: Vec<Refused>) {
        let stop_ms = self.state.settings.graceful_timeout_ms;
        refused.into_iter().for_each(|refused| refused.dismiss(stop_ms, &mut self.dismissed));
    }

    /// The same for processes of workers that nobody is there for any more, though the program before had started them.
    pub(super) fn dismiss_children(&mut self, left: BTreeSet<u32>) {
        let stop_ms = self.state.settings.graceful_timeout_ms;
        for pid in left {
            tracing::warn!(pid, "this process of a worker cannot be found where it should wait: told to end");
            adoption::dismiss_child(pid, stop_ms, &self.attendance.roster, &mut self.dismissed);
        }
    }

    /// After taking workers over: those that run another program, or with other settings, are replaced one by one, and
    /// what the file says is applied if it has changed since it was read last.
    pub(super) async fn catch_up(
        &mut self,
        in_file: Option<State>,
        certificates: Vec<WantedCertificate>,
        count: usize,
    ) {
        // Before anything changes: they are compared with the state that they were found with.
        let behind =
            |worker: &&Worker| worker.is_behind(&self.state) || self.unlike_state.contains(&worker.id());
        let behind: Vec<u32> = self.workers.iter().filter(behind).map(Worker::id).collect();
        if self.count() > count
            && let Err(refused) = self.scale(count as u32, "the takeover").await
        {
            tracing::error!("{refused}");
        }
        for failed in self.pin_as_configured("the takeover").await {
            tracing::error!("{failed}");
        }
        if !behind.is_empty() {
            // What takes their place is to know what they know.
            self.await_names(FIRST_ANSWERS).await;
            self.await_verdicts().await;
        }
        for id in behind.into_iter().filter(|id| (*id as usize) < self.count()).collect::<Vec<_>>() {
            if let Err(refused) = self.upgrade(Some(id), "the takeover").await {
                tracing::error!("{refused}");
            }
        }
        self.take_ticket_key_rotation().await;
        let differs = |worker: &Worker| {
            worker
                .launched_with()
                .is_some_and(|it| !it.differing(&self.state.settings, Effect::Live).is_empty())
        };
        if self.workers.iter().any(differs) {
            self.tell_settings().await;
        }
        let changed = in_file.filter(|in_file| self.state.revision.origin != in_file.revision.origin);
        let Some(in_file) = changed else { return };
        let changed = match self.furnish_file(in_file, certificates, false).await {
            Ok((in_file, warnings)) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                self.change_to(in_file, "the start").await.map(drop)
            }
            Err(refused) => Err(refused),
        };
        self.certificates.settle(changed.is_ok());
        if let Err(mut refused) = changed {
            if let Some(file) = self.source.file.clone() {
                refused = self.with_places(&file, refused).await;
            }
            tracing::error!("the file has changed, and cannot be applied: {refused}");
            self.tell(Happening::refused("the start", &refused.to_string()));
        }
    }
}
