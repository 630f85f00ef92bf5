//! The program on the disk takes the place of the one that runs, supervisor and workers, under the same process id.
//!
//! First the new program is tried while everything goes on: it must accept the running state (`kakehi check`), and a
//! worker of it must come up. Then this process executes it. Workers notice that their order channel ends, and go on;
//! the new program takes them over through their adoption sockets, and replaces one after the other. What must not be
//! closed meanwhile stays open over the `execve`: the listening sockets, the command socket, the connection of whoever
//! asked. A new program that cannot go on executes the old one again, which is open as well.

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::{fd::RawFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};
use kakehi_ctl::{
    order::{Ending, Response, WorkerState},
    state::State,
};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::{
    estate::{Estate, Will, memory_with},
    fleet::{handle::Handle, worker::Worker},
    host::signals,
    supervisor::{
        Supervisor,
        question::Asker,
        trial,
        turn::{Happened, Stopped},
    },
};

/// The new program may take so long to check the state.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// Of what the new program says when it refuses, so much is passed on (bytes).
const MAX_COMPLAINT: u64 = 1024;
/// What has come is heard within this time.
const TIME_TO_HEAR: Duration = Duration::from_millis(20);
/// Turns that the tasks of clients get to write that they are turned away: each needs one.
const TURNS_TO_ANSWER: usize = 8;
/// Where the new program finds the state that it is to check.
pub(crate) const CHECKED_STATE: RawFd = 3;

/// Why the program was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no file.
    #[error(
        "kakehi was started without a configuration file, so it cannot be started again in its own place"
    )]
    NoFile,
    /// It is too late.
    #[error("kakehi is stopping")]
    Stopping,
    /// A worker does not run.
    #[error("worker {0} does not run now; try again when `kakehictl workers` shows it running")]
    NotRunning(u32),
    /// It is not known which file to run.
    #[error("it is not known where the program lies: it was not started by a path")]
    NoProgram,
    /// The new program refuses the state, or is no program.
    #[error("{program} does not accept what is running: {reason}", program = program.display())]
    Check {
        /// Its file.
        program: PathBuf,
        /// What it said.
        reason: String,
    },
    /// A worker of the new program does not come up.
    #[error("a worker of {program} does not come up: {reason}", program = program.display())]
    Worker {
        /// Its file.
        program: PathBuf,
        /// What it said.
        reason: String,
    },
    /// Something is being written that would be cut short.
    #[error("the disk has not taken {0} within `worker_timeout`; nothing was replaced, try again")]
    Disk(&'static str),
    /// The kernel refused.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Where the program lies that an upgrade runs: what was named at the start, if that is what runs.
pub(crate) fn program_file() -> Option<PathBuf> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let running = identity(Path::new("/proc/self/exe"))?;
    let named = PathBuf::from(env::args_os().next()?);
    let candidates: Vec<PathBuf> = if named.components().count() > 1 {
        vec![env::current_dir().ok()?.join(named)]
    } else {
        env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(&named)).collect()
    };
    let found = candidates.into_iter().find(|candidate| identity(candidate) == Some(running));
    found.or_else(|| fs::read_link("/proc/self/exe").ok())
}

impl Supervisor {
    /// Replaces this program by the one on the disk; returns only when that was refused, and everything goes on.
    pub(crate) async fn replace(&mut self, asker: &Asker, by: &str) -> Refused {
        match self.try_to_replace(asker, by).await {
            Ok(never) => match never {},
            Err(refused) => {
                self.attendance.set_liveness(self.state.settings.worker_liveness_ms);
                self.admin.go_on();
                refused
            }
        }
    }

    async fn try_to_replace(&mut self, asker: &Asker, by: &str) -> Result<std::convert::Infallible, Refused> {
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        let file = self.source.file.clone().ok_or(Refused::NoFile)?;
        let program = self.source.program.clone().ok_or(Refused::NoProgram)?;
        if let Some(worker) = self.workers.iter().find(|worker| worker.state() != WorkerState::Running) {
            return Err(Refused::NotRunning(worker.id()));
        }
        self.tell_step("upgrade", format!("{} is tried", program.display()), (0, 0));
        let tried = match self.try_check(&program).await {
            Ok(()) => {
                self.tell_step("upgrade", "it accepts what is running", (0, 0));
                let settings = self.state.settings.clone();
                self.try_worker(&settings, Some(&program)).await.map_err(|failed| match failed {
                    trial::Failed::Stopping => Refused::Stopping,
                    trial::Failed::NotReady(reason) => Refused::Worker { program: program.clone(), reason },
                })
            }
            refused => refused,
        };
        self.helpers.clear();
        tried?;
        self.tell_step("upgrade", "a worker of it comes up", (0, 0));
        // From here on there comes no process that the will does not name.
        self.launches_held = true;
        let replaced = self.give_way(&program, &file, asker, by).await;
        self.launches_held = false;
        self.saving.held = false;
        self.go_on_saving();
        replaced
    }

    /// Leaves everything to the program that comes.
    async fn give_way(
        &mut self,
        program: &Path,
        file: &Path,
        asker: &Asker,
        by: &str,
    ) -> Result<std::convert::Infallible, Refused> {
        let without_state = Will {
            state: State::default(),
            settings: self.source.settings.clone(),
            workers: self.workers.len(),
            program: Some(program.to_owned()),
            request: asker.request,
            watch: asker.watch.as_ref().map(|(id, topics, _)| (*id, topics.clone())),
            processes: Some(self.workers.iter().flat_map(Worker::pids).collect()),
            records: self.workers.iter().flat_map(Worker::records).collect(),
            ending: self.dismissed.left(),
            knows_signs: asker.knows_signs,
            verdicts: self.verdicts(),
            names: self.names.known(),
            failed: None,
        };
        let state = Arc::clone(&self.state);
        let write = move || {
            let will = Will { state: State::clone(&state), ..without_state };
            serde_json::to_vec(&will).map(|text| (will, text))
        };
        let written = self.serve_beside(write).await.map_err(|Stopped| Refused::Stopping)?;
        let (will, text) = written.map_err(io::Error::from)?;
        // Nothing is on its way from a worker any more, nor will be.
        self.attendance.set_liveness(0);
        self.ping_all().await;
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if let Some(worker) = self.workers.iter().find(|worker| worker.state() != WorkerState::Running) {
            return Err(Refused::NotRunning(worker.id()));
        }
        // Threads end with this program, whatever they are writing.
        let late = Instant::now() + Duration::from_millis(self.state.settings.worker_timeout_ms);
        if !self.saves_end(late).await {
            return Err(Refused::Disk("the state that is being saved"));
        }
        if !self.records_end(late).await {
            return Err(Refused::Disk("the record of what is running"));
        }
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        let mut sockets = Vec::new();
        for worker in &self.workers {
            for (which, socket) in worker.sockets() {
                sockets.push((worker.id(), *which, socket.try_clone()?));
            }
        }
        let estate = Estate {
            will,
            command_socket: asker.command_socket.try_clone()?,
            client: asker.connection.try_clone()?,
            sockets,
            vault: Some(self.certificates.vault().try_clone()?.into()),
            admin: self.admin.left()?,
            before: File::open("/proc/self/exe")?.into(),
        };
        tracing::info!("upgrade by {by}: {} takes the place of this program", program.display());
        self.tell_step("upgrade", format!("{} takes the place of this program", program.display()), (0, 0));
        let left = self.leave(&estate, &text, program, file, asker).await;
        signals::let_in()?;
        left
    }

    /// Executes the program that comes. What signals say from here on is for that one.
    async fn leave(
        &mut self,
        estate: &Estate,
        will: &[u8],
        program: &Path,
        file: &Path,
        asker: &Asker,
    ) -> Result<std::convert::Infallible, Refused> {
        signals::hold_back()?;
        // What has come before is heard here.
        let heard = Instant::now() + TIME_TO_HEAR;
        loop {
            match self.turn(Some(heard)).await {
                Happened::Late => break,
                Happened::Event(event) => drop(self.on_event(event)),
                Happened::Other => {}
            }
        }
        // From here on, whoever connects waits for the program that comes.
        self.pause_admin().await;
        self.turn_away_waiting().await;
        let own = asker.watch.as_ref().map(|(_, _, end)| end);
        self.watchers.end(Ending::Replaced, own).await;
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if std::mem::take(&mut self.reload_due) {
            nix::sys::signal::raise(Signal::SIGHUP).map_err(io::Error::from)?;
        }
        Ok(estate.leave_to(will, program, file)?)
    }

    /// Has the new program check the running state.
    async fn try_check(&mut self, program: &Path) -> Result<(), Refused> {
        let refused = |reason: String| Refused::Check { program: program.to_owned(), reason };
        let output = File::from(memory_with(&[])?);
        let provisions = self.provisions().await?;
        let state = memory_with(&provisions.state)?;
        let mut command = Command::new(program);
        command.arg("check").arg("--state").arg(CHECKED_STATE.to_string());
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        let place = FdMapping { parent_fd: state, child_fd: CHECKED_STATE };
        command.fd_mappings(vec![place]).map_err(io::Error::other)?;
        let child = command.spawn().map_err(|error| refused(format!("it cannot be run: {error}")))?;
        let handle = Handle::of_process(child.id())?;
        self.helpers.push(child.id());
        let deadline = Instant::now() + CHECK_TIMEOUT;
        let ended = loop {
            tokio::select! {
                ended = handle.ended() => break ended?,
                happened = self.turn(Some(deadline)) => {
                    let given_up = match happened {
                        Happened::Late => refused(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
                        Happened::Event(event) => {
                            self.on_event(event);
                            continue;
                        }
                        Happened::Other if self.is_stopping() => Refused::Stopping,
                        Happened::Other => continue,
                    };
                    handle.signal(Signal::SIGKILL);
                    handle.ended().await?;
                    return Err(given_up);
                }
            }
        };
        if ended.success() {
            return Ok(());
        }
        let mut complaint = String::new();
        let mut output = output;
        let read = output.rewind().and_then(|()| output.take(MAX_COMPLAINT).read_to_string(&mut complaint));
        let said = complaint.lines().rfind(|line| !line.trim().is_empty()).filter(|_| read.is_ok());
        Err(refused(said.map_or_else(|| ended.to_string(), str::to_owned)))
    }

    /// Tells those whose questions wait that they are not heard: the program that comes does not know of them.
    async fn turn_away_waiting(&mut self) {
        while let Ok(question) = self.asked.try_recv() {
            self.line.push_back(question);
        }
        for question in self.line.drain(..) {
            let reason =
                "kakehi is being replaced by another program; nothing was done, try again".to_owned();
            question.answer.send(Response::Refused { reason });
        }
        // Their tasks write it.
        for _ in 0..TURNS_TO_ANSWER {
            tokio::task::yield_now().await;
        }
    }
}
