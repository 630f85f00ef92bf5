//! From a configuration, or from what another supervisor left, to a supervisor that serves.
//!
//! Workers that are still there are taken over with their connections, listening sockets and counters; only what is
//! missing is started. They go on with the state that they have: changes that were made while kakehi ran are not lost
//! with the supervisor. Only when the file has changed meanwhile is it applied, as by a reload.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use kakehi_ctl::{
    config::{self, Loaded},
    order::WorkerState,
    state::{Settings, State, WantedCertificate},
};
use kakehi_engine::tls::Vault;
use nix::sys::signal::SigSet;
use tokio::{runtime::Runtime, sync::mpsc::channel};

use crate::{
    certificates::{Depth, Keeper},
    control::{
        command::{CommandSocket, SocketFile},
        save,
    },
    fleet::{
        adoption::{self, Found, Orphan, Refused, Trust},
        record::StateRecord,
        worker::{Outcome, Worker},
    },
    host::{
        cores, init_system,
        listeners::{self, Sockets},
        pid_file::PidFile,
        resources,
        signals::Signals,
    },
    supervisor::{End, Error, QUEUE, Source, Supervisor, turn::Happened},
    upgrade::program::{self, Estate},
};

/// Runs kakehi on `loaded`, which was read from `file`, until it is stopped; the whole program `kakehi start`.
pub(crate) fn run(loaded: Loaded, file: &Path) -> ExitCode {
    match run_to_end(serve(loaded, Some(file.to_owned()), || {})) {
        // What is wrong with the rules shows when they are compiled, before anything is touched.
        Err(Error::State(error)) => {
            go_on_without(&error, file).unwrap_or_else(|| exit_code(Err(Error::State(error))))
        }
        ended => exit_code(ended),
    }
}

/// Runs a supervisor on this thread and turns its end into an exit code; errors go to standard error.
pub(crate) fn block_on(supervisor: impl Future<Output = Result<End, Error>>) -> ExitCode {
    exit_code(run_to_end(supervisor))
}

fn run_to_end(supervisor: impl Future<Output = Result<End, Error>>) -> Result<End, Error> {
    let runtime = runtime().map_err(Error::Runtime)?;
    let ended = runtime.block_on(supervisor);
    // A thread that waits for a disk is not waited for.
    runtime.shutdown_background();
    ended
}

/// The same where the file is wrong and workers run that another supervisor left: they go on with what they have, until the
/// file is mended and read again. `None` where there are none.
pub(crate) fn go_on_without(error: &dyn Display, file: &Path) -> Option<ExitCode> {
    let command_socket = config::command_socket(file).ok()?;
    if !adoption::is_anybody_there(&command_socket) {
        return None;
    }
    let state = StateRecord::load(&command_socket).ok()??;
    let complaint =
        format!("{error}; the workers that run go on with what they have: mend the file, then reload");
    crate::logging::complain(&complaint);
    let loaded = Loaded { state, certificates: Vec::new(), warnings: Vec::new() };
    Some(block_on(serve_instead(loaded, Some(file.to_owned()), Some(complaint), || {})))
}

/// What a supervisor runs on: this thread, and others for what waits for a disk, which get no signals. When this thread keeps
/// signals back for a program that comes, nobody else takes them.
pub(crate) fn runtime() -> io::Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_all()
        .on_thread_start(|| {
            // Where that fails, they have a handler all the same.
            let _ = SigSet::all().thread_block();
        })
        .build()
}

/// What the program ends with; errors go to standard error.
pub(crate) fn exit_code(ended: Result<End, Error>) -> ExitCode {
    init_system::flush();
    crate::logging::flush();
    match ended {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(End::Cut | End::Unsaved) => ExitCode::from(crate::EXIT_CUT),
        Err(error) => {
            crate::logging::complain(error);
            ExitCode::FAILURE
        }
    }
}

/// Starts everything, calls `when_ready`, and serves until asked to stop. A reload reads `file` again.
///
/// # Errors
/// See [`Error`]; no worker that was started here is left running then.
pub(crate) async fn serve(
    loaded: Loaded,
    file: Option<PathBuf>,
    when_ready: impl FnOnce(),
) -> Result<End, Error> {
    serve_instead(loaded, file, None, when_ready).await
}

/// As [`serve`]; with a `complaint`, `loaded` is not what the file says, and that is why.
async fn serve_instead(
    loaded: Loaded,
    file: Option<PathBuf>,
    complaint: Option<String>,
    when_ready: impl FnOnce(),
) -> Result<End, Error> {
    let Loaded { mut state, certificates, warnings } = loaded;
    let source = Source { file, settings: state.settings.clone(), program: program::program_file() };
    crate::logging::open_for_supervisor(&state.settings.log_level);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if let Some(complaint) = &complaint {
        tracing::error!("{complaint}");
    }
    if state.settings.user.is_none() && nix::unistd::geteuid().is_root() {
        tracing::warn!(
            "the workers run as root, without capabilities: set `user` to one that owns nothing (`user = \"root\"` if that is wanted)"
        );
    }
    kakehi_engine::worker::check(&state)?;
    if let Some(level) = resources::level_from_environment()? {
        state.settings.io_uring_level = Some(level);
    }
    kakehi_engine::ring::check().map_err(resources::Error::from)?;

    // Before there is anything to clean up: a signal from now on is answered by an orderly end.
    let signals = Signals::new().map_err(Error::Runtime)?;
    let (questions, asked) = channel(QUEUE);
    let _command_file =
        CommandSocket::open(&state.settings.command_socket, &state.settings.command_allowed_uids)?
            .serve(questions);
    let Found { mut orphans, refused } = adoption::find(&state.settings.command_socket, Trust::Recorded);
    let mut keeper = Keeper::new(vault_of(&mut orphans)?).map_err(Error::Runtime)?;
    let in_file = state.clone();
    let mut to_be_read = Some(certificates);
    if let Some(running) = recorded_state(&state, &orphans) {
        state = state.going_on_from(running);
        keeper.adopt(&state);
    } else if let Some(complaint) = complaint {
        return Err(Error::NobodyGoesOn(complaint));
    } else {
        let warnings = if let Some((mut saved, keys)) = save::load(&state)? {
            let warnings = keeper.restore(&mut saved, &keys, &State::default())?;
            state = state.going_on_from(saved);
            kakehi_engine::worker::check(&state)?;
            warnings
        } else {
            keeper.furnish(&mut state, to_be_read.take().unwrap_or_default(), Depth::Few)?
        };
        keeper.settle(true);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
    }
    let count = worker_count(&state.settings);
    state.settings.max_connections =
        resources::raise_limits(count, state.settings.max_connections, state.listeners.len())?;
    let mut supervisor = Supervisor::new(state, source, keeper, signals, asked);
    let taken_over = !orphans.is_empty();
    supervisor.take_over(orphans)?;
    supervisor.complete(count, BTreeMap::new(), init_system::activated(), !refused.is_empty()).await?;
    supervisor.record.begin(&supervisor.state);
    let started = supervisor.start().await?;
    supervisor.dismiss(&refused);
    if let Some(end) = started {
        return Ok(end);
    }
    let _pid_file = supervisor.write_pid_file().await?;
    supervisor.tell_ready();
    when_ready();
    supervisor.catch_up(in_file, to_be_read.unwrap_or_default(), count).await;
    supervisor.compact();
    if taken_over {
        // What the supervisor before did not come to save.
        supervisor.save_automatically();
    }
    supervisor.run().await
}

/// A supervisor that has taken the place of the one before.
pub(crate) struct Running {
    supervisor: Supervisor,
    _command_file: SocketFile,
    _pid_file: Option<PidFile>,
}

/// Goes on where the supervisor stopped that left `estate`, which was this very process.
///
/// # Errors
/// See [`Error`]; the workers that were taken over go on without a supervisor.
pub(crate) async fn resume(estate: &Estate, file: &Path) -> Result<Running, Error> {
    let will = &estate.will;
    crate::logging::open_for_supervisor(&will.state.settings.log_level);
    let signals = Signals::new().map_err(Error::Runtime)?;
    program::receive_signals().map_err(Error::Runtime)?;
    let (questions, asked) = channel(QUEUE);
    let command_socket = &will.state.settings.command_socket;
    let source = Source {
        file: Some(file.to_owned()),
        settings: will.settings.clone(),
        program: will.program.clone(),
    };
    let Found { mut orphans, refused } = adoption::find(command_socket, Trust::Children);
    let vault = match &estate.vault {
        Some(vault) => {
            Some(Vault::take_over(vault.try_clone().map_err(Error::Runtime)?).map_err(Error::Vault)?)
        }
        None => vault_of(&mut orphans)?,
    };
    let mut keeper = Keeper::new(vault).map_err(Error::Runtime)?;
    let mut state = will.state.clone();
    if will.failed.is_none() {
        kakehi_engine::worker::check(&state)?;
    } else if let Some(running) = recorded_state(&state, &orphans) {
        // The program that failed may have misunderstood what it was left.
        state = State { settings: state.settings, ..running };
    }
    keeper.adopt(&state);
    let mut supervisor = Supervisor::new(state, source, keeper, signals, asked);
    supervisor.take_over(orphans)?;
    let mut kept: BTreeMap<u32, Sockets> = BTreeMap::new();
    for (id, which, socket) in &estate.sockets {
        let copy = socket.try_clone().map_err(Error::Runtime)?;
        kept.entry(*id).or_default().push((*which, copy));
    }
    supervisor.complete(will.workers, kept, Vec::new(), !refused.is_empty()).await?;
    supervisor.record.begin(&supervisor.state);
    supervisor.start().await?;
    supervisor.dismiss(&refused);
    let pid_file = supervisor.write_pid_file().await?;
    // Last, as its file would be removed again if anything failed after it.
    let copy = estate.command_socket.try_clone().map_err(Error::Runtime)?;
    let command_file =
        CommandSocket::inherit(copy, command_socket, &will.state.settings.command_allowed_uids)?
            .serve(questions);
    supervisor.tell_ready();
    supervisor.compact();
    Ok(Running { supervisor, _command_file: command_file, _pid_file: pid_file })
}

impl Running {
    /// Replaces the workers, answers whoever asked for all that, and serves until asked to stop.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn serve(mut self, estate: Estate) -> Result<End, Error> {
        let outcome = match &estate.will.failed {
            None => self.supervisor.upgrade(None, "the upgrade").await.map_err(|refused| {
                format!("the supervisor runs the new program, but not every worker: {refused}")
            }),
            Some(reason) => Err(format!("the new program did not come up, the one before goes on: {reason}")),
        };
        estate.answer(outcome);
        // The sockets in it are those of the workers now.
        drop(estate);
        self.supervisor.save_automatically();
        self.supervisor.run().await
    }
}

/// Workers that the settings ask for.
pub(crate) fn worker_count(settings: &Settings) -> usize {
    let default = || cores::default_worker_count(&cores::allowed());
    settings.worker_count.map_or_else(default, |configured| usize::from(configured).max(1))
}

/// A worker that was only to show that it comes up is told to go.
fn not_on_trial(orphan: &Orphan) -> bool {
    let on_trial = orphan.about.id == program::TRIAL;
    if on_trial {
        orphan.launched.handle.signal(nix::sys::signal::Signal::SIGKILL);
        orphan.launched.adoption.remove();
    }
    !on_trial
}

/// The vault of the workers that go on: they all have the same.
fn vault_of(orphans: &mut [Orphan]) -> Result<Option<Vault>, Error> {
    let vault = orphans.iter_mut().find_map(|orphan| orphan.vault.take());
    vault.map(Vault::take_over).transpose().map_err(Error::Vault)
}

/// What the workers serve that go on, as the supervisor before has written it down.
fn recorded_state(in_file: &State, orphans: &[Orphan]) -> Option<State> {
    if !orphans.iter().any(|orphan| !orphan.about.leaving) {
        return None;
    }
    let missing = || io::Error::other("there is no record of what the workers serve");
    let recorded = StateRecord::load(&in_file.settings.command_socket).and_then(|it| it.ok_or_else(missing));
    recorded.inspect_err(|error| tracing::warn!("{error}: what the file says holds")).ok()
}

impl Supervisor {
    /// Makes workers out of the processes that another supervisor left.
    fn take_over(&mut self, orphans: Vec<Orphan>) -> Result<(), Error> {
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
            let worker = Worker::adopt(orphan, &settings, &self.attendance).map_err(Error::Runtime)?;
            tracing::info!(worker = id, pid, "goes on under this supervisor");
            workers.insert(id, worker);
        }
        for orphan in older {
            let id = orphan.about.id;
            if let Some(worker) = workers.get_mut(&id) {
                worker.adopt_leaving(orphan, &self.attendance).map_err(Error::Runtime)?;
            }
        }
        self.workers = workers.into_values().collect();
        Ok(())
    }

    /// Adds what is missing of `count` workers, without processes. They get the sockets in `kept`, or new ones; where there
    /// is no worker at all yet, also those that the init system has `passed` on. `others_leave`: processes that were not taken
    /// over may have the addresses, and are to end.
    async fn complete(
        &mut self,
        count: usize,
        mut kept: BTreeMap<u32, Sockets>,
        passed: Vec<(SocketAddr, OwnedFd)>,
        others_leave: bool,
    ) -> Result<(), Error> {
        let addresses: Vec<SocketAddr> = self.state.active_addresses().collect();
        let settings = self.state.settings.clone();
        let present: BTreeSet<u32> = self.workers.iter().map(Worker::id).collect();
        let highest = present.last().map_or(0, |id| *id as usize + 1);
        let missing: Vec<u32> = (0..count.max(highest) as u32).filter(|id| !present.contains(id)).collect();
        // With a worker that goes on, the addresses are ours, and taken.
        let mut opened = match present.is_empty() && kept.is_empty() {
            true => listeners::open(&addresses, missing.len(), passed, others_leave).await?,
            false => Vec::new(),
        }
        .into_iter();
        for id in missing {
            let sockets = match (kept.remove(&id), opened.next()) {
                (Some(sockets), _) | (None, Some(sockets)) => sockets,
                (None, None) => listeners::open_more(&addresses, |address| self.next_rank(address))?,
            };
            let core = self.core_of(id);
            self.workers.push(Worker::new(id, core, sockets, &settings).map_err(Error::Runtime)?);
        }
        self.workers.sort_by_key(Worker::id);
        Ok(())
    }

    /// Has what was not taken over end, now that others serve.
    fn dismiss(&self, refused: &[Refused]) {
        refused.iter().for_each(|refused| refused.dismiss(self.state.settings.graceful_timeout_ms));
    }

    /// Launches the workers that have no process and waits until each accepts. `Some` when it was asked to stop meanwhile.
    ///
    /// The first start is the only one whose failure is final: what is wrong now will be wrong again. Workers that were
    /// taken over go on then, without a supervisor.
    async fn start(&mut self) -> Result<Option<End>, Error> {
        let provisions = self.provisions().map_err(Error::Runtime)?;
        let fresh: BTreeSet<u32> =
            self.workers.iter().filter(|worker| !worker.has_future()).map(Worker::id).collect();
        for worker in self.workers.iter_mut().filter(|worker| fresh.contains(&worker.id())) {
            if let Err(error) = worker.launch(&provisions, &self.attendance) {
                let failed = Error::FirstStart { id: worker.id(), reason: error.to_string() };
                self.kill(&fresh).await;
                return Err(failed);
            }
        }
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
            return Ok((fresh.len() == self.workers.len()).then_some(End::Clean));
        }
        Ok(None)
    }

    async fn write_pid_file(&mut self) -> Result<Option<PidFile>, Error> {
        let Some(path) = &self.state.settings.pid_file_path else { return Ok(None) };
        match PidFile::write(path) {
            Ok(file) => Ok(Some(file)),
            // Those that go on need no file.
            Err(error) if self.workers.iter().any(|worker| !worker.is_fresh()) => {
                tracing::error!("{}", Error::PidFile(error));
                Ok(None)
            }
            Err(error) => {
                let fresh = self.workers.iter().filter(|worker| worker.is_fresh()).map(Worker::id).collect();
                self.kill(&fresh).await;
                Err(Error::PidFile(error))
            }
        }
    }

    /// Has the state take as little memory as it can.
    pub(crate) fn compact(&mut self) {
        self.state = crate::sys::compacted(std::mem::take(&mut self.state), State::detached);
    }

    fn tell_ready(&self) {
        let addresses: Vec<String> = self.state.active_addresses().map(|it| it.to_string()).collect();
        let addresses = match addresses.is_empty() {
            true => "nothing (no listener is configured)".to_owned(),
            false => addresses.join(", "),
        };
        self.steer();
        init_system::ready(self.workers.len());
        tracing::info!("ready: {} workers, listening on {addresses}", self.workers.len());
    }

    /// After taking workers over: those that run another program, or with other settings, are replaced one by one, and
    /// what the file says is applied if it has changed since it was read last.
    async fn catch_up(&mut self, mut in_file: State, certificates: Vec<WantedCertificate>, count: usize) {
        // Before anything changes: they are compared with the state that they were found with.
        let behind = |worker: &&Worker| worker.is_behind(&self.state);
        let behind: Vec<u32> = self.workers.iter().filter(behind).map(Worker::id).collect();
        if self.count() > count
            && let Err(refused) = self.scale(count as u32, "the takeover").await
        {
            tracing::error!("{refused}");
        }
        for failed in self.pin_as_configured("the takeover").await {
            tracing::error!("{failed}");
        }
        for id in behind.into_iter().filter(|id| (*id as usize) < self.count()).collect::<Vec<_>>() {
            if let Err(refused) = self.upgrade(Some(id), "the takeover").await {
                tracing::error!("{refused}");
            }
        }
        self.take_ticket_key_rotation().await;
        if self.state.revision.origin == in_file.revision.origin {
            return;
        }
        let furnished = self.certificates.furnish(&mut in_file, certificates, Depth::Few);
        let changed = match furnished {
            Ok(warnings) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                self.change_to(&in_file, "the start").await.map(drop)
            }
            Err(error) => Err(error.into()),
        };
        self.certificates.settle(changed.is_ok());
        if let Err(refused) = changed {
            tracing::error!("the file has changed, and cannot be applied: {refused}");
        }
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
