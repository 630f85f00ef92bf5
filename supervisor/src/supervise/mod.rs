//! The supervisor: opens the sockets, launches the workers, replaces those that die, stops them all.
//!
//! One thread, one loop ([`Supervisor::run`]), which alone owns the workers and what is known about them.
//! Everything that waits is a task that sends it events: one per worker process ([`attend`]), one per client of the
//! command socket ([`command`]). Nothing here touches a connection.
//!
//! | file | what it is for |
//! |---|---|
//! | [`resources`], [`cores`] | what the host allows: io_uring, limits, cores |
//! | [`listeners`] | the listening sockets |
//! | [`worker`], [`process`], [`launch`], [`attend`], [`backoff`] | one worker's life |
//! | [`command`] | the command socket |
//! | [`change`] | reloads and other changes: all workers or none |
//! | [`upgrade`] | new processes in the place of old ones |
//! | [`signals`], [`pid_file`] | what an init system sees |

mod attend;
mod backoff;
mod change;
mod command;
mod cores;
mod launch;
mod listeners;
mod pid_file;
mod process;
mod resources;
mod signals;
mod upgrade;
mod worker;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use kakehi_ctl::{
    config::Loaded,
    order::{Changed, Request, Response, Status, WorkerState},
    state::{Settings, State},
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Instant,
};

use self::{
    attend::Event,
    command::{CommandSocket, Question},
    pid_file::PidFile,
    signals::{Signals, Wish},
    worker::{Death, Outcome, Worker},
};

/// After the workers' own deadline they have this long to be gone before they are killed.
const KILL_SLACK: Duration = Duration::from_secs(1);
/// Events and requests that wait for the loop; who sends more waits.
const QUEUE: usize = 64;

/// Why kakehi does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The host does not allow what kakehi needs.
    #[error(transparent)]
    Resources(#[from] resources::Error),
    /// A rule or an address of the configuration cannot be used.
    #[error(transparent)]
    State(#[from] kakehi_engine::proxy::SiteError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listener(#[from] listeners::Error),
    /// The command socket cannot be opened.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The pid file cannot be written.
    #[error("`pid_file_path` cannot be written: {0}")]
    PidFile(io::Error),
    /// The kernel refused something that every program needs.
    #[error("the supervisor cannot run: {0}")]
    Runtime(io::Error),
    /// A worker could not be started for the first time.
    #[error("worker {id} could not start: {reason}")]
    FirstStart {
        /// Which worker.
        id: u32,
        /// What it said, or how it ended.
        reason: String,
    },
    /// All workers are gone and none is to be replaced.
    #[error("no worker is left and `worker_automatic_restart` is false")]
    NoWorkerLeft,
}

/// How a supervisor that was asked to stop has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Every worker finished what it had.
    Clean,
    /// A worker cut what was still in flight, had to be killed, or died.
    Cut,
}

/// Runs kakehi on `loaded`, which was read from `file`, until it is stopped; the whole program `kakehi start`.
pub(crate) fn run(loaded: Loaded, file: &Path) -> ExitCode {
    block_on(serve(loaded, Some(file.to_owned()), || {}))
}

/// Runs a supervisor on this thread and turns its end into an exit code; errors go to standard error.
pub(crate) fn block_on(supervisor: impl Future<Output = Result<End, Error>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Error::Runtime).and_then(|runtime| runtime.block_on(supervisor));
    match ended {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(End::Cut) => ExitCode::from(crate::EXIT_CUT),
        Err(error) => {
            crate::logging::complain(error);
            ExitCode::FAILURE
        }
    }
}

/// Starts everything, calls `when_ready`, and serves until asked to stop. A reload reads `file` again.
///
/// # Errors
/// See [`Error`]; no worker is left running then.
pub(crate) async fn serve(
    loaded: Loaded,
    file: Option<PathBuf>,
    when_ready: impl FnOnce(),
) -> Result<End, Error> {
    let mut state = loaded.state;
    let in_file = state.settings.clone();
    crate::logging::open_for_supervisor(&state.settings.log_level);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }

    kakehi_engine::worker::check(&state)?;
    if let Some(level) = resources::level_from_environment()? {
        state.settings.io_uring_level = Some(level);
    }
    kakehi_engine::ring::check().map_err(resources::Error::from)?;
    let allowed = cores::allowed();
    let count = state
        .settings
        .worker_count
        .map_or_else(|| cores::default_worker_count(&allowed), |configured| usize::from(configured).max(1));
    state.settings.max_connections =
        resources::raise_limits(count, state.settings.max_connections, state.listeners.len())?;

    // Before there is anything to clean up: a signal from now on is answered by an orderly end.
    let signals = Signals::new().map_err(Error::Runtime)?;
    let (questions, asked) = channel(QUEUE);
    let _command_file = CommandSocket::open(&state.settings.command_socket)?.serve(questions);
    let addresses: Vec<SocketAddr> = state.listeners.keys().copied().collect();
    let pin = |n: usize| state.settings.pin_workers.then(|| allowed[n % allowed.len()]);
    let drain_timeout_ms = state.settings.drain_timeout_ms;
    let mut workers = Vec::with_capacity(count);
    for (n, sockets) in listeners::open(&addresses, count).await?.into_iter().enumerate() {
        workers.push(Worker::new(n as u32, pin(n), sockets, drain_timeout_ms).map_err(Error::Runtime)?);
    }

    let source = Source { file, settings: in_file };
    let mut supervisor = Supervisor::new(state, source, workers, signals, asked)?;
    if let Some(end) = supervisor.start().await? {
        return Ok(end);
    }
    let _pid_file = supervisor.write_pid_file().await?;
    tracing::info!("ready: {count} workers, listening on {}", join(&addresses));
    when_ready();
    supervisor.run().await
}

fn join(addresses: &[SocketAddr]) -> String {
    if addresses.is_empty() {
        return "nothing (no listener is configured)".to_owned();
    }
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Everything that is running.
struct Supervisor {
    state: State,
    source: Source,
    /// `state` as the workers get it.
    state_text: Vec<u8>,
    workers: Vec<Worker>,
    signals: Signals,
    asked: Receiver<Question>,
    events: Receiver<Event>,
    /// For the tasks beside processes to come.
    event_sender: Sender<Event>,
    started: Instant,
    restarts: u64,
    /// Orders are numbered from 1.
    orders_given: u64,
    stopping: Option<Stopping>,
}

/// Where the configuration came from.
struct Source {
    /// `None`: no file to read again.
    file: Option<PathBuf>,
    /// As the file had them, before they were fitted to what the host allows.
    settings: Settings,
}

/// A stop that is under way.
struct Stopping {
    /// Who has not ended by then is killed.
    kill_at: Option<Instant>,
    end: End,
}

impl Supervisor {
    fn new(
        state: State,
        source: Source,
        workers: Vec<Worker>,
        signals: Signals,
        asked: Receiver<Question>,
    ) -> Result<Self, Error> {
        let state_text = serde_json::to_vec(&state).map_err(|error| Error::Runtime(error.into()))?;
        let (event_sender, events) = channel(QUEUE);
        Ok(Supervisor {
            state,
            source,
            state_text,
            workers,
            signals,
            asked,
            events,
            event_sender,
            started: Instant::now(),
            restarts: 0,
            orders_given: 0,
            stopping: None,
        })
    }

    /// Launches all workers and waits until each accepts. `Some` when it was asked to stop meanwhile.
    ///
    /// The first start is the only one whose failure is final: what is wrong now will be wrong again.
    async fn start(&mut self) -> Result<Option<End>, Error> {
        for worker in &mut self.workers {
            if let Err(error) = worker.launch(&self.state_text, &self.event_sender) {
                let failed = Error::FirstStart { id: worker.id(), reason: error.to_string() };
                self.kill_all().await;
                return Err(failed);
            }
        }
        while self.workers.iter().any(|worker| worker.state() == WorkerState::Starting) {
            let wake = self.next_due();
            tokio::select! {
                Some(event) = self.events.recv() => {
                    let id = event.worker;
                    if let Outcome::Died(Death { reason, .. }) = self.note(event) {
                        self.kill_all().await;
                        return Err(Error::FirstStart { id, reason });
                    }
                }
                wish = self.signals.next() => if let Wish::Stop(signal) = wish {
                    tracing::info!("{signal} before the start was complete: stopping");
                    self.kill_all().await;
                    return Ok(Some(End::Clean));
                },
                () = sleep_until(wake) => self.on_due(),
            }
        }
        Ok(None)
    }

    async fn write_pid_file(&mut self) -> Result<Option<PidFile>, Error> {
        let Some(path) = &self.state.settings.pid_file_path else { return Ok(None) };
        match PidFile::write(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) => {
                self.kill_all().await;
                Err(Error::PidFile(error))
            }
        }
    }

    /// Serves until a stop is complete.
    async fn run(&mut self) -> Result<End, Error> {
        loop {
            let nobody_left = !self.workers.iter().any(Worker::has_future);
            match &self.stopping {
                Some(stopping) if nobody_left => {
                    tracing::info!(
                        "stopped{}",
                        if stopping.end == End::Cut { ", connections were cut" } else { "" }
                    );
                    return Ok(stopping.end);
                }
                None if nobody_left => return Err(Error::NoWorkerLeft),
                _ => {}
            }
            let wake = self.next_due();
            tokio::select! {
                Some(event) = self.events.recv() => self.on_event(event),
                wish = self.signals.next() => match wish {
                    Wish::Reload => self.reload_on_signal().await,
                    Wish::Stop(signal) => self.on_stop(signal),
                },
                Some(question) = self.asked.recv() => {
                    let response = self.answer(question.request, &question.peer).await;
                    // Whoever asked may have left; that is nobody's loss.
                    let _ = question.answer.send(response);
                }
                () = sleep_until(wake) => self.on_due(),
            }
        }
    }

    fn on_stop(&mut self, signal: &'static str) {
        match &self.stopping {
            None => {
                let deadline_ms = self.state.settings.graceful_timeout_ms;
                tracing::info!(
                    "{signal}: stopping; what is in flight has {deadline_ms} ms, a second signal cuts it"
                );
                let kill_at = Instant::now() + Duration::from_millis(deadline_ms) + KILL_SLACK;
                self.stopping = Some(Stopping { kill_at: Some(kill_at), end: End::Clean });
                self.workers.iter_mut().for_each(|worker| worker.stop(deadline_ms));
            }
            Some(_) => {
                tracing::warn!("{signal} again: stopping at once");
                self.cut();
            }
        }
    }

    /// Kills whoever is still there.
    fn cut(&mut self) {
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = None;
        }
        self.workers.iter_mut().for_each(Worker::kill);
    }

    fn on_event(&mut self, event: Event) {
        let id = event.worker;
        let age = self.worker(id).map_or(Duration::ZERO, |worker| worker.age());
        match self.note(event) {
            // An upgrade that was given up.
            Outcome::Nothing | Outcome::Upgraded | Outcome::NotUpgraded(_) => {}
            Outcome::Ready => tracing::info!(worker = id, "ready, replaces the one that died"),
            Outcome::Answered { refused: None, .. } => {}
            Outcome::Answered { refused: Some(reason), .. } => {
                tracing::warn!(worker = id, "refused an order: {reason}");
            }
            Outcome::Died(death) => self.on_death(id, death, age),
        }
    }

    fn on_death(&mut self, id: u32, death: Death, lived: Duration) {
        if let Some(stopping) = &mut self.stopping {
            if death.drained {
                tracing::info!(worker = id, "has finished");
            } else {
                stopping.end = End::Cut;
                tracing::warn!(worker = id, "did not finish: {}", death.reason);
            }
            return;
        }
        let reason = death.reason;
        if !self.state.settings.worker_automatic_restart {
            tracing::error!(worker = id, "{reason}; not replaced, as `worker_automatic_restart` is false");
            return;
        }
        if let Some(worker) = self.worker(id) {
            let delay = worker.plan_replacement(lived);
            tracing::error!(worker = id, "{reason}; to be replaced in {} ms", delay.as_millis());
        }
    }

    /// Passes the event to the worker that it is about.
    fn note(&mut self, event: Event) -> Outcome {
        match self.worker(event.worker) {
            Some(worker) => worker.on_event(event),
            None => Outcome::Nothing,
        }
    }

    fn worker(&mut self, id: u32) -> Option<&mut Worker> {
        self.workers.get_mut(id as usize)
    }

    fn next_due(&self) -> Option<Instant> {
        let kill_at = self.stopping.as_ref().and_then(|stopping| stopping.kill_at);
        let workers = self.workers.iter();
        workers.flat_map(|worker| [worker.due(), worker.leave_due()]).flatten().chain(kill_at).min()
    }

    fn on_due(&mut self) {
        let now = Instant::now();
        if self.stopping.as_ref().and_then(|stopping| stopping.kill_at).is_some_and(|at| at <= now) {
            tracing::warn!("`graceful_timeout` is over: killing the workers that are left");
            self.cut();
        }
        self.workers.iter_mut().for_each(|worker| worker.kill_overdue(now));
        for worker in self.workers.iter_mut().filter(|worker| worker.due().is_some_and(|due| due <= now)) {
            if worker.state() == WorkerState::Starting {
                worker.on_late_start();
                continue;
            }
            match worker.launch(&self.state_text, &self.event_sender) {
                Ok(()) => self.restarts += 1,
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

    /// Kills all workers and waits until each is reaped.
    async fn kill_all(&mut self) {
        for worker in &mut self.workers {
            worker.retire();
            worker.kill();
        }
        while self.workers.iter().any(Worker::has_future) {
            let Some(event) = self.events.recv().await else { return };
            self.note(event);
        }
    }

    async fn answer(&mut self, request: Request, peer: &str) -> Response {
        match request {
            Request::Status => Response::Status(self.status()),
            Request::Workers => Response::Workers(self.workers.iter().map(Worker::info).collect()),
            Request::State => Response::State(Box::new(self.state.clone())),
            Request::Reload { dry_run } => respond(self.reload(dry_run, peer).await),
            Request::UpgradeWorkers { worker } => match self.upgrade(worker, peer).await {
                Ok(outcomes) => Response::Upgraded(outcomes),
                Err(refused) => Response::Refused { reason: refused.to_string() },
            },
            Request::Apply { changes } => respond(self.apply(changes, peer).await),
        }
    }

    fn status(&self) -> Status {
        let workers: Vec<_> = self.workers.iter().map(Worker::info).collect();
        let clusters = self.state.clusters.values();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            listeners: self.state.listeners.keys().copied().collect(),
            clusters: clusters.len(),
            frontends: clusters.clone().map(|cluster| cluster.frontends.len()).sum(),
            backends: clusters.map(|cluster| cluster.backends.len()).sum(),
            connections: workers.iter().map(|worker| worker.connections).sum(),
            requests: workers.iter().map(|worker| worker.requests).sum(),
            restarts: self.restarts,
            counters: worker::sum(&self.workers),
            workers,
        }
    }
}

fn respond(outcome: Result<Changed, change::Refused>) -> Response {
    match outcome {
        Ok(changed) => Response::Changed(changed),
        Err(refused) => Response::Refused { reason: refused.to_string() },
    }
}

/// Waits for ever when nothing is due.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
