//! The supervisor: opens the sockets, launches the workers, replaces those that die, stops them all.
//!
//! One thread, one loop ([`Supervisor::run`]), which alone owns the workers and what is known about them.
//! Everything that waits elsewhere is a task that sends it events: one per worker process ([`attend`]), one per client of the
//! command socket ([`command`]). The loop itself waits in one place ([`turn`]). Nothing here touches a connection.
//!
//! | file | what it is for |
//! |---|---|
//! | [`resources`], [`cores`] | what the host allows: io_uring, limits, cores |
//! | [`listeners`] | the listening sockets |
//! | [`begin`] | from nothing, or from what another supervisor left, to a supervisor that serves |
//! | [`worker`], [`process`], [`launch`], [`handle`], [`attend`], [`backoff`] | one worker's life |
//! | [`liveness`] | whether a worker still answers, and where it stands if not |
//! | [`adoption`] | workers that another supervisor left |
//! | [`command`] | the command socket |
//! | [`turn`] | waiting, for whatever an operation needs, while everything else goes on |
//! | [`change`], [`orders`], [`save`] | reloads and other changes: all workers or none; the state on disk |
//! | [`certificates`] | what of TLS lies in files: read, checked, watched, kept in the vault |
//! | [`upgrade`], [`replace`] | new processes in the place of old ones: workers, and the supervisor itself |
//! | [`scale`], [`steering`], [`placement`], [`rebalance`] | more or fewer workers, where they run, what each gets |
//! | [`signals`], [`pid_file`], [`init_system`] | what an init system sees |

pub(crate) mod orders;
pub(crate) mod turn;

use std::{collections::VecDeque, io, path::PathBuf, rc::Rc, time::Duration};

use kakehi_ctl::{
    edit::EditError,
    order::{Changed, Phase, Request, Response, Status, WorkerOutcome, WorkerState},
    state::{Settings, State},
};
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

use crate::{
    certificates::{self, Keeper},
    control::{
        change,
        command::{self, Question},
        save::Saving,
    },
    fleet::{
        attend::{Attendance, Event},
        launch::Provisions,
        record::StateRecord,
        worker::{self, Death, Outcome, Worker},
    },
    host::{init_system, listeners, resources, signals::Signals},
    placement::{pin, rebalance::Watch},
    supervisor::turn::Happened,
};

/// After the workers' own deadline they have this long to be gone before they are killed.
pub(crate) const KILL_SLACK: Duration = Duration::from_secs(1);
/// A larger text of the state is made anew each time: to keep it costs more than that.
pub(crate) const LARGEST_KEPT: usize = 4 << 20;
/// Events and requests that wait for the loop; who sends more waits.
pub(crate) const QUEUE: usize = 64;

/// Why kakehi does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The host does not allow what kakehi needs.
    #[error(transparent)]
    Resources(#[from] resources::Error),
    /// A rule or an address of the configuration cannot be used.
    #[error(transparent)]
    State(#[from] kakehi_engine::config::CompileError),
    /// A certificate, or another file that TLS needs, cannot be used.
    #[error(transparent)]
    Certificate(#[from] certificates::Error),
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
    /// Another version has put certificates into memory.
    #[error(
        "the certificates of the workers that run cannot be read in memory: {0}; start the program that started these \
         workers, or end them (SIGTERM) and start anew"
    )]
    Vault(io::Error),
    /// The state that was saved cannot be used.
    #[error("`saved_state` {path}: {error}; remove the file, or name another", path = path.display())]
    SavedState {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: kakehi_ctl::store::Error,
    },
    /// A worker could not be started for the first time.
    #[error("worker {id} could not start: {reason}")]
    FirstStart {
        /// Which worker.
        id: u32,
        /// What it said, or how it ended.
        reason: String,
    },
    /// The file is wrong, and no worker could be taken over.
    #[error("{0}; no worker could be taken over")]
    NobodyGoesOn(String),
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
    /// The state could not be saved.
    Unsaved,
}

/// Everything that is running.
pub(crate) struct Supervisor {
    pub(crate) state: State,
    pub(crate) source: Source,
    /// `state` as the workers get it, once one has got it.
    pub(crate) state_text: Option<Rc<[u8]>>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) signals: Signals,
    pub(crate) asked: Receiver<Question>,
    pub(crate) events: Receiver<Event>,
    /// For the tasks beside processes to come.
    pub(crate) attendance: Attendance,
    pub(crate) started: Instant,
    /// Orders are numbered from 1.
    pub(crate) orders_given: u64,
    pub(crate) watch: Watch,
    pub(crate) saving: Saving,
    pub(crate) record: StateRecord,
    pub(crate) certificates: Keeper,
    /// How often the init system's watchdog is to be fed, and when next.
    pub(crate) watchdog: Option<(Duration, Instant)>,
    /// When the keys of session tickets are to be renewed.
    pub(crate) ticket_keys_due: Instant,
    /// The start is complete.
    pub(crate) started_up: bool,
    /// An operation is under way; the start is one.
    pub(crate) operating: bool,
    /// Processes that are not workers and that operations wait for.
    pub(crate) helpers: Vec<u32>,
    /// A SIGHUP came while something else was under way.
    pub(crate) reload_due: bool,
    /// Questions that wait until the operation that runs has ended.
    pub(crate) line: VecDeque<Question>,
    /// Files of certificates that were found not to be as they were.
    pub(crate) changed_files: Vec<certificates::Changed>,
    /// The state is about to be another: a process that started now would start from the one before.
    pub(crate) launches_held: bool,
    pub(crate) stopping: Option<Stopping>,
}

/// Where the configuration came from.
pub(crate) struct Source {
    /// `None`: no file to read again.
    pub(crate) file: Option<PathBuf>,
    /// As the file had them, before they were fitted to what the host allows.
    pub(crate) settings: Settings,
    /// Where the program lies that an upgrade runs.
    pub(crate) program: Option<PathBuf>,
}

/// A stop that is under way.
pub(crate) struct Stopping {
    /// Who has not ended by then is killed.
    pub(crate) kill_at: Option<Instant>,
    pub(crate) end: End,
}

impl Supervisor {
    /// One without workers.
    pub(crate) fn new(
        state: State,
        source: Source,
        certificates: Keeper,
        signals: Signals,
        asked: Receiver<Question>,
    ) -> Self {
        let (event_sender, events) = channel(QUEUE);
        let attendance = Attendance::new(event_sender, state.settings.worker_liveness_ms);
        let record = StateRecord::new(&state.settings.command_socket);
        let mut supervisor = Supervisor {
            state,
            source,
            state_text: None,
            workers: Vec::new(),
            signals,
            asked,
            events,
            attendance,
            started: Instant::now(),
            orders_given: 0,
            watch: Watch::new(),
            saving: Saving::default(),
            record,
            certificates,
            watchdog: init_system::watchdog_period().map(|period| (period, Instant::now())),
            ticket_keys_due: Instant::now(),
            started_up: false,
            operating: true,
            helpers: Vec::new(),
            reload_due: false,
            line: VecDeque::new(),
            changed_files: Vec::new(),
            launches_held: false,
            stopping: None,
        };
        supervisor.plan_ticket_keys();
        supervisor
    }

    /// The state is another than before.
    pub(crate) fn note_changed(&mut self) {
        self.state_text = None;
        self.record.tidy(&self.state);
        self.save_automatically();
    }

    /// The state as a worker gets it.
    pub(crate) fn state_text(&mut self) -> io::Result<Rc<[u8]>> {
        if let Some(text) = &self.state_text {
            return Ok(Rc::clone(text));
        }
        let text: Rc<[u8]> = serde_json::to_vec(&self.state)?.into();
        if text.len() <= LARGEST_KEPT {
            self.state_text = Some(Rc::clone(&text));
        }
        Ok(text)
    }

    /// What every process of a worker starts from.
    pub(crate) fn provisions(&mut self) -> io::Result<Provisions> {
        Ok(Provisions { state: self.state_text()?, vault: Rc::clone(self.certificates.vault()) })
    }

    /// Serves until a stop is complete.
    pub(crate) async fn run(&mut self) -> Result<End, Error> {
        self.started_up = true;
        self.operating = false;
        loop {
            self.forget_retired();
            let nobody_left = !self.workers.iter().any(Worker::has_future);
            match &self.stopping {
                Some(stopping) if nobody_left => {
                    tracing::info!(
                        "stopped{}",
                        if stopping.end == End::Cut { ", connections were cut" } else { "" }
                    );
                    let end = stopping.end;
                    self.record.remove();
                    let saved = self.finish_saving().await;
                    return Ok(if end == End::Clean && !saved { End::Unsaved } else { end });
                }
                None if nobody_left => return Err(Error::NoWorkerLeft),
                _ => {}
            }
            self.operating = true;
            let operated = self.operate().await;
            self.operating = false;
            if operated {
                continue;
            }
            let until = [self.rebalance_due(), self.ticket_keys_due()].into_iter().flatten().min();
            if let Happened::Event(event) = self.turn(until).await {
                self.on_event(event);
            }
        }
    }

    /// Carries out one operation that is due, if any is; whether there was one.
    pub(crate) async fn operate(&mut self) -> bool {
        let now = Instant::now();
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if std::mem::take(&mut self.reload_due) {
            if !self.is_stopping() {
                self.reload_on_signal().await;
            }
        } else if let Some(question) = self.line.pop_front() {
            self.carry_out_request(question).await;
        } else if !self.changed_files.is_empty() {
            let changed = std::mem::take(&mut self.changed_files);
            self.on_changed_files(changed).await;
        } else if is_due(self.rebalance_due()) {
            self.rebalance_if_due().await;
        } else if is_due(self.ticket_keys_due()) {
            self.renew_ticket_keys_if_due().await;
        } else {
            return false;
        }
        true
    }

    pub(crate) fn on_stop(&mut self, signal: &'static str) {
        match &self.stopping {
            None => {
                let deadline_ms = self.state.settings.graceful_timeout_ms;
                tracing::info!(
                    "{signal}: stopping; what is in flight has {deadline_ms} ms, a second signal cuts it"
                );
                init_system::stopping();
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
    pub(crate) fn cut(&mut self) {
        let anybody = self.workers.iter().any(Worker::has_future);
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = None;
            if anybody {
                stopping.end = End::Cut;
            }
        }
        self.workers.iter_mut().for_each(Worker::kill);
    }

    /// Takes note of what happened to a process, and attends to it. What an operation may wait for is given back.
    pub(crate) fn on_event(&mut self, event: Event) -> Outcome {
        let id = event.worker;
        let outcome = self.note(event);
        self.attend_to(id, outcome)
    }

    /// Attends to what happened to a worker. What an operation may wait for is given back.
    pub(crate) fn attend_to(&mut self, id: u32, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Ready => tracing::info!(worker = id, "ready, replaces the one that died"),
            Outcome::Answered { refused: Some(reason), .. } => {
                tracing::warn!(worker = id, "refused an order: {reason}");
            }
            Outcome::Died(death) => self.on_death(id, death),
            // An upgrade that was given up, or the end of one that an operation waits for.
            other => return other,
        }
        Outcome::Nothing
    }

    pub(crate) fn on_death(&mut self, id: u32, Death { reason, drained, lived }: Death) {
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
            return;
        }
        self.plan_replacement(id, &reason, lived);
    }

    /// Has another process take the place of one that has `lived` so long.
    pub(crate) fn plan_replacement(&mut self, id: u32, reason: &str, lived: Duration) {
        if let Some(worker) = self.worker(id) {
            let delay = worker.plan_replacement(lived);
            tracing::error!(worker = id, "{reason}; to be replaced in {} ms", delay.as_millis());
        }
    }

    /// Passes the event to the worker that it is about.
    pub(crate) fn note(&mut self, event: Event) -> Outcome {
        match self.worker(event.worker) {
            Some(worker) => worker.on_event(event),
            None => Outcome::Nothing,
        }
    }

    pub(crate) fn worker(&mut self, id: u32) -> Option<&mut Worker> {
        self.workers.get_mut(id as usize)
    }

    /// Whether what is due of a worker may be done now.
    pub(crate) fn may_attend(&self, worker: &Worker) -> bool {
        worker.state() == WorkerState::Starting || !(self.launches_held || worker.is_being_upgraded())
    }

    /// When something is due that is done at any moment.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let kill_at = self.stopping.as_ref().and_then(|stopping| stopping.kill_at);
        let workers = self.workers.iter();
        workers
            .flat_map(|worker| [worker.due().filter(|_| self.may_attend(worker)), worker.leave_due()])
            .flatten()
            .chain(kill_at)
            .chain(self.watchdog.map(|(_, due)| due))
            .chain(self.certificates_due())
            .min()
    }

    pub(crate) fn on_due(&mut self) {
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
        let due = |worker: &Worker| self.may_attend(worker) && worker.due().is_some_and(|due| due <= now);
        let due: Vec<u32> = self.workers.iter().filter(|worker| due(worker)).map(Worker::id).collect();
        if due.is_empty() {
            return;
        }
        let provisions = self.provisions();
        for worker in self.workers.iter_mut().filter(|worker| due.contains(&worker.id())) {
            if worker.state() == WorkerState::Starting {
                worker.on_late_start();
                continue;
            }
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

    /// Carries out what changes something, and says how it went.
    pub(crate) async fn carry_out_request(&mut self, question: Question) {
        let Question { request, peer, privileged, asker, answer } = question;
        let by = &peer;
        let response = match request {
            Request::Reload { dry_run } => respond(self.reload(dry_run, by).await),
            Request::UpgradeWorkers { worker } => outcomes(self.upgrade(worker, by).await),
            Request::Scale { count } => outcomes(self.scale(count, by).await),
            Request::Rebalance => outcomes(self.rebalance(by).await),
            Request::Pin { worker, core } => outcomes(self.pin(worker, core, by).await),
            Request::PinAuto { no_smt, numa, reserve_for_irq } => {
                outcomes(self.pin_auto(&pin::Wish { no_smt, numa, reserve_for_irq }, by).await)
            }
            Request::Upgrade => match asker {
                Some(asker) => {
                    let refused = self.replace(&asker, by).await;
                    tracing::error!("upgrade by {by}: {refused}");
                    Response::Refused { reason: format!("{refused}; everything goes on as it was") }
                }
                None => Response::Refused { reason: "no descriptor is left; try again".to_owned() },
            },
            Request::LoadState { state, keys, dry_run } => {
                respond(self.load_state(*state, &keys, dry_run, by).await)
            }
            request @ Request::AddCertificate { .. } => match certificates::Wanted::from(request) {
                Some(wanted) => respond(self.add_certificate(&wanted, by).await),
                None => return,
            },
            Request::RemoveCertificate { address, which } => {
                respond(self.remove_certificate(address, &which, by).await)
            }
            Request::SaveState { with_keys } => match self.save_state(with_keys).await {
                Ok((path, left_out)) => Response::Saved { path, left_out },
                Err(error) => Response::Refused { reason: error.to_string() },
            },
            Request::Apply { changes } => respond(self.apply(changes, by).await),
            Request::Edit { edits, folder, if_generation } => {
                respond(self.edit(&edits, &folder, if_generation, by).await)
            }
            // It needs no turn.
            request => {
                let question = Question { request, peer, privileged, asker, answer };
                if let Some(Question { answer, .. }) = self.answer_now(question) {
                    let reason = "this program does not do that".to_owned();
                    let _ = answer.send(Response::Refused { reason });
                }
                return;
            }
        };
        // Whoever asked may have left; that is nobody's loss.
        let _ = answer.send(response);
    }

    pub(crate) fn status(&self) -> Status {
        let workers: Vec<_> = self.workers.iter().map(Worker::info).collect();
        let clusters = self.state.clusters.values();
        let figures = certificates::figures(&self.state);
        let phase = match (self.is_stopping(), self.started_up) {
            (true, _) => Phase::Stopping,
            (false, true) => Phase::Running,
            (false, false) => Phase::Starting,
        };
        Status {
            phase,
            generation: self.state.revision.generation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            listeners: self.state.active_addresses().collect(),
            clusters: clusters.len(),
            frontends: clusters.clone().map(|cluster| cluster.frontends.len()).sum(),
            backends: clusters.map(|cluster| cluster.backends.len()).sum(),
            connections: worker::add_up(workers.iter().map(|worker| worker.connections)),
            requests: worker::add_up(workers.iter().map(|worker| worker.requests)),
            restarts: worker::add_up(self.workers.iter().map(Worker::restarts)),
            save_failed: self.saving.failure().map(str::to_owned),
            counters: worker::sum(&self.workers).into_iter().chain(figures).collect(),
            workers,
        }
    }
}

fn outcomes<E: std::fmt::Display>(outcome: Result<Vec<WorkerOutcome>, E>) -> Response {
    match outcome {
        Ok(outcomes) => Response::Outcomes(outcomes),
        Err(refused) => Response::Refused { reason: refused.to_string() },
    }
}

fn respond(outcome: Result<Changed, change::Refused>) -> Response {
    match outcome {
        Ok(changed) => Response::Changed(changed),
        Err(change::Refused::Edit(misused @ EditError::Usage(_))) => {
            Response::Misused { reason: misused.to_string() }
        }
        Err(refused) => Response::Refused { reason: refused.to_string() },
    }
}

/// Waits for ever when nothing is due.
pub(crate) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
