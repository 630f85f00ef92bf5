//! The life of one worker, through all the processes that take its place one after the other.
//!
//! What stays: its number, its core, its listening sockets, its counters. What changes: the process. At an upgrade two
//! live side by side: the one that comes, and, once that accepts, the one that leaves. A worker is
//! `Starting` until its process reports that it accepts, then `Running`; `Stopping` once it was ordered to;
//! `Dead` between the end of one process and the start of the next.

mod figures;
mod leaving;
mod sockets;

pub(crate) use self::figures::{add_up, sum};
use self::leaving::Leaving;

use std::{io, os::fd::OwnedFd, process::ExitStatus, time::Duration};

use kakehi_ctl::{
    keys::Effect,
    limits,
    order::{BackendLoad, ClosedSessions, Found, ListenerSocket, Order, Report, WorkerState},
    state::Settings,
    wire,
};
use kakehi_engine::observe::Counter;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::{
    fleet::{
        adoption::Orphan,
        attend::{Attendance, Event, What},
        backoff::Backoff,
        launch::{Provisions, Start},
        process::{Block, Process, Written, reason_of_end},
    },
    host::{
        cores,
        listeners::{self, Sockets},
    },
};

/// The number of the orders to stop and to hand over, whose answer is the end of the process.
const STOP: u64 = 0;

/// Pause between two lines of the log about orders that a worker refused and that nobody waits for.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(1);

/// One place in the row of workers.
pub(crate) struct Worker {
    id: u32,
    core: Option<usize>,
    sockets: Sockets,
    /// What the present process counts, and those before it that died.
    block: Block,
    /// What processes counted that left and have ended.
    ended: Block,
    state: WorkerState,
    /// The present process; `None` while `Dead`.
    process: Option<Process>,
    /// The process that is to take its place, until it accepts.
    coming: Option<(Process, Block)>,
    /// Processes whose place was taken, until they have ended.
    leaving: Vec<Leaving>,
    /// How many processes were started.
    launches: u64,
    settings: Settings,
    /// What its present process, and one that comes, were started with; of one that was taken over, what it said.
    launched_with: Option<Settings>,
    backoff: Backoff,
    /// It was taken out of the row, and ends for good when its last process has.
    retired: bool,
    /// When something is due: a process must be ready, or be replaced.
    due: Option<Instant>,
    /// When the log was last told of an order that it refused and that nobody waits for.
    complained: Option<Instant>,
}

/// What an event means to the supervisor.
pub(crate) enum Outcome {
    /// Nothing.
    Nothing,
    /// The worker accepts.
    Ready,
    /// A new process has taken the place of the one before, which leaves.
    Upgraded,
    /// The process that was to take the place has ended.
    NotUpgraded(String),
    /// It has carried out the order of this number, or says why not.
    Answered { order: u64, refused: Option<String> },
    /// It has closed sessions, as the order of this number says.
    SessionsClosed { order: u64, closed: ClosedSessions },
    /// It says what backends have to do, to the order of this number.
    Loads { order: u64, loads: Vec<Option<BackendLoad>> },
    /// It says what becomes of a request, to the order of this number.
    Explained { order: u64, found: Box<Found> },
    /// Its process ended.
    Died(Death),
}

/// The end of a process.
pub(crate) struct Death {
    /// In words.
    pub(crate) reason: String,
    /// It was ordered to stop, and ended by itself with nothing left in flight.
    pub(crate) drained: bool,
    /// How long it has lived.
    pub(crate) lived: Duration,
}

impl Worker {
    /// A worker without a process.
    ///
    /// # Errors
    /// When the kernel refuses the memory of its counters.
    pub(crate) fn new(
        id: u32,
        core: Option<usize>,
        sockets: Sockets,
        settings: &Settings,
    ) -> io::Result<Self> {
        Ok(Worker {
            id,
            core,
            sockets,
            block: Block::new(id)?,
            ended: Block::new(id)?,
            state: WorkerState::Dead,
            process: None,
            coming: None,
            leaving: Vec::new(),
            launches: 0,
            settings: settings.clone(),
            launched_with: None,
            backoff: Backoff::default(),
            retired: false,
            due: None,
            complained: None,
        })
    }

    /// A worker that goes on with the process that another supervisor left.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor or memory.
    pub(crate) fn adopt(orphan: Orphan, settings: &Settings, attendance: &Attendance) -> io::Result<Self> {
        let Orphan { about, sockets, counters, ended, launched, .. } = orphan;
        // Where it runs now, which may have been changed since its start.
        let core = cores::only_core(about.pid);
        let mut worker = Worker {
            block: Block::map(counters)?,
            ended: Block::map(ended)?,
            launches: about.launch,
            ..Worker::new(about.id, core, sockets, settings)?
        };
        worker.launched_with = Some(about.settings.clone());
        worker.process = Some(Process::adopt(about, launched, attendance)?);
        worker.state = WorkerState::Running;
        Ok(worker)
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> WorkerState {
        self.state
    }

    /// When its process must be ready, or is to be replaced.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a process of it is alive, or will be.
    pub(crate) fn has_future(&self) -> bool {
        self.process.is_some() || self.due.is_some() || !self.leaving.is_empty()
    }

    /// Starts a process for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn launch(&mut self, provisions: &Provisions, attendance: &Attendance) -> io::Result<()> {
        let number = self.launches.saturating_add(1);
        self.core = self.core_to_come();
        let start = self.start(provisions);
        self.process = Some(Process::start(&start, number, &self.block, None, attendance)?);
        self.launched_with = Some(self.settings.clone());
        self.launches = number;
        self.state = WorkerState::Starting;
        self.due = Some(Instant::now() + Duration::from_millis(limits::WORKER_READY_TIMEOUT_MS));
        Ok(())
    }

    /// As [`Worker::launch`], in the place of a process that died.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn relaunch(&mut self, provisions: &Provisions, attendance: &Attendance) -> io::Result<()> {
        listeners::listen_again(&self.sockets);
        self.launch(provisions, attendance)?;
        self.ended.counters.count(Counter::Restarts);
        Ok(())
    }

    /// The settings of its present process.
    pub(crate) fn launched_with(&self) -> Option<&Settings> {
        self.launched_with.as_ref().filter(|_| self.process.is_some())
    }

    /// The settings are these now; a process that runs takes over what it can.
    pub(crate) fn take_settings(&mut self, settings: &Settings) {
        self.settings.clone_from(settings);
        if let Some(launched_with) = &mut self.launched_with {
            launched_with.take_keys(settings, Effect::Live);
        }
    }

    /// The core that it is tied to.
    pub(crate) fn core(&self) -> Option<u32> {
        self.core.and_then(|core| u32::try_from(core).ok())
    }

    /// Whether it was taken out of the row of workers.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Takes it out of the row: its process gives all that it has away, and no other follows.
    pub(crate) fn leave_for_good(&mut self) {
        self.sockets.clear();
        self.due = None;
        self.retired = true;
        self.state = WorkerState::Stopping;
        if let Some(process) = self.process.take()
            && let Ok(block) = Block::new(self.id)
        {
            let counters = std::mem::replace(&mut self.block, block).counters;
            self.let_leave(process, counters);
        }
    }

    /// Puts it into the row again; it has no process that serves.
    pub(crate) fn come_back(&mut self, core: Option<usize>, sockets: Sockets) {
        self.retired = false;
        self.core = core;
        self.sockets = sockets;
    }

    /// Its sockets, which it loses.
    pub(crate) fn give_up_sockets(&mut self) -> Sockets {
        self.retired = true;
        self.due = None;
        std::mem::take(&mut self.sockets)
    }

    /// Closes the copy of one listening socket, which others have too.
    pub(crate) fn drop_socket(&mut self, which: ListenerSocket) {
        self.sockets.retain(|(it, _)| *it != which);
    }

    /// A copy of the end where the connections come out that its process gives away.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn inheritance(&self) -> io::Result<Option<OwnedFd>> {
        self.process.as_ref().map(Process::inheritance).transpose()
    }

    /// Ties its process to another core, and those that follow.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn pin(&mut self, core: usize) -> io::Result<()> {
        if let Some(process) = &self.process {
            cores::pin(process.pid, core)?;
        }
        self.core = Some(core);
        Ok(())
    }

    /// Its listening sockets.
    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Starts a process that is to take the place of the present one: [`Outcome::Upgraded`] says that it has.
    ///
    /// # Errors
    /// When the worker does not run, or the kernel refuses.
    pub(crate) fn begin_upgrade(
        &mut self,
        provisions: &Provisions,
        attendance: &Attendance,
    ) -> io::Result<()> {
        let present = match &self.process {
            Some(process) if self.state == WorkerState::Running && self.coming.is_none() => process,
            _ => return Err(io::Error::other("it does not run now; try again")),
        };
        let block = Block::new(self.id)?;
        let number = self.launches.saturating_add(1);
        let process = Process::start(&self.start(provisions), number, &block, Some(present), attendance)?;
        self.coming = Some((process, block));
        self.launches = number;
        Ok(())
    }

    /// Gives the process up that was to take the place of the present one. At a stop it has `stop_ms` to finish: it may serve
    /// already, without its word having come.
    pub(crate) fn give_up_upgrade(&mut self, stop_ms: Option<u64>) {
        let Some((process, block)) = self.coming.take() else { return };
        let kill_at = match stop_ms {
            Some(deadline_ms) if process.order(STOP, Order::Stop { deadline_ms }).is_ok() => self.kill_at(),
            _ => Instant::now(),
        };
        self.leaving.push(Leaving { process, counters: block.counters, kill_at });
    }

    /// The core of the next process: that of the present one, unless `handle_process_affinity` has changed since that started.
    fn core_to_come(&self) -> Option<usize> {
        let pinned = |settings: &Settings| settings.pin_workers;
        let stays = self.launched_with.as_ref().is_none_or(|it| pinned(it) == pinned(&self.settings));
        if stays { self.core } else { cores::of_worker(&self.settings, self.id) }
    }

    fn start<'a>(&'a self, provisions: &'a Provisions) -> Start<'a> {
        Start {
            id: self.id,
            core: self.core_to_come(),
            provisions,
            sockets: &self.sockets,
            command_socket: &self.settings.command_socket,
            ended: &self.ended,
            program: None,
            settings: &self.settings,
        }
    }

    /// Takes note of what happened to a process.
    pub(crate) fn on_event(&mut self, event: Event) -> Outcome {
        if self.coming.as_ref().is_some_and(|(process, _)| process.launch == event.launch) {
            return self.on_event_of_coming(event.what);
        }
        let Some(process) = self.process.as_mut().filter(|process| process.launch == event.launch) else {
            self.on_event_of_leaving(event);
            return Outcome::Nothing;
        };
        match event.what {
            What::Reported(_, Report::Ready { io_uring_level, io_uring_features, capabilities }) => {
                process.note_ready((io_uring_level, io_uring_features), capabilities);
                if self.state != WorkerState::Starting {
                    return Outcome::Nothing;
                }
                self.state = WorkerState::Running;
                self.due = None;
                Outcome::Ready
            }
            What::Reported(_, Report::Failed { reason }) => {
                process.last_words = Some(reason.clone());
                if self.state == WorkerState::Running { self.on_failure(reason) } else { Outcome::Nothing }
            }
            What::Reported(order, Report::Refused { reason }) => {
                Outcome::Answered { order, refused: Some(reason) }
            }
            What::Reported(_, Report::Finished { drained }) => {
                process.drained = Some(drained);
                Outcome::Nothing
            }
            What::Reported(_, Report::Adopted(_)) => Outcome::Nothing,
            What::Reported(order, Report::SessionsClosed { closed }) => {
                Outcome::SessionsClosed { order, closed }
            }
            What::Reported(order, Report::Loads { loads }) => Outcome::Loads { order, loads },
            What::Reported(order, Report::Explained(found)) => Outcome::Explained { order, found },
            What::Reported(order, Report::Done) => Outcome::Answered { order, refused: None },
            What::Mute(position) => {
                let reason = self.unresponsive(&position);
                self.condemn(&reason);
                Outcome::Nothing
            }
            What::Deaf(why) => {
                // Before its end every worker closes the channel, so this alone is no news.
                tracing::debug!(worker = self.id, "{why}");
                Outcome::Nothing
            }
            What::Ended(status) => Outcome::Died(self.bury(status)),
        }
    }

    fn on_event_of_coming(&mut self, what: What) -> Outcome {
        match (what, self.coming.as_mut()) {
            (
                What::Reported(_, Report::Ready { io_uring_level, io_uring_features, capabilities }),
                Some((process, _)),
            ) => {
                process.note_ready((io_uring_level, io_uring_features), capabilities);
                self.take_place();
                Outcome::Upgraded
            }
            (What::Reported(_, Report::Failed { reason }), Some((process, _))) => {
                process.last_words = Some(reason);
                Outcome::Nothing
            }
            (What::Ended(status), _) => match self.coming.take() {
                Some((process, _)) => Outcome::NotUpgraded(reason_of_end(process.last_words, status)),
                None => Outcome::Nothing,
            },
            _ => Outcome::Nothing,
        }
    }

    /// The process that comes accepts: the present one gives it what it has, and leaves.
    fn take_place(&mut self) {
        let Some((process, block)) = self.coming.take() else { return };
        let before = self.process.replace(process);
        self.core = self.core_to_come();
        self.launched_with = Some(self.settings.clone());
        let counters = std::mem::replace(&mut self.block, block).counters;
        self.state = WorkerState::Running;
        self.due = None;
        let Some(before) = before else {
            // It died in the meantime.
            self.ended.counters.absorb(&counters);
            return;
        };
        self.let_leave(before, counters);
    }

    /// The present process serves no new connections any more. It finishes what it has, beside the one that takes its place.
    fn on_failure(&mut self, reason: String) -> Outcome {
        // Without memory for counters, it is replaced when it has ended.
        let Ok(block) = Block::new(self.id) else { return Outcome::Nothing };
        let Some(process) = self.process.take() else { return Outcome::Nothing };
        let counters = std::mem::replace(&mut self.block, block).counters;
        let kill_at = self.kill_at();
        let lived = process.started.elapsed();
        self.leaving.push(Leaving { process, counters, kill_at });
        self.state = WorkerState::Dead;
        self.due = None;
        Outcome::Died(Death { reason, drained: false, lived })
    }

    /// Gives the present process up, which does not answer: it is told to end when it has finished what it has, beside the one
    /// that takes its place.
    pub(crate) fn give_up(&mut self, reason: String) -> Outcome {
        self.signal(Signal::SIGTERM);
        self.on_failure(reason)
    }

    /// Whether the log is told of an order that it refuses though nobody waits for the answer: the log is not its own to fill.
    pub(crate) fn may_complain(&mut self) -> bool {
        let may = self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_PAUSE);
        if may {
            self.complained = Some(Instant::now());
        }
        may
    }

    /// Whether a process is about to take the place of the present one.
    pub(crate) fn is_being_upgraded(&self) -> bool {
        self.coming.is_some()
    }

    /// Counts a process that stands still; why it is ended, in words.
    fn unresponsive(&self, position: &str) -> String {
        self.ended.counters.count(Counter::Unresponsive);
        format!("answered nothing for `worker_liveness` and is killed; it stood still: {position}")
    }

    fn bury(&mut self, status: io::Result<ExitStatus>) -> Death {
        let stopping = self.state == WorkerState::Stopping;
        self.state = WorkerState::Dead;
        self.due = None;
        let Some(process) = self.process.take() else {
            return Death { reason: String::new(), drained: stopping, lived: Duration::ZERO };
        };
        let lived = process.started.elapsed();
        let clean = process.drained.unwrap_or_else(|| status.as_ref().is_ok_and(ExitStatus::success));
        let reason = reason_of_end(process.last_words, status);
        Death { reason, drained: stopping && clean && !process.killed, lived }
    }

    /// Plans the replacement of a process that has just ended after having `lived` so long; returns the delay.
    pub(crate) fn plan_replacement(&mut self, lived: Duration) -> Duration {
        let delay = self.backoff.after_death(lived);
        self.due = Some(Instant::now() + delay);
        delay
    }

    /// Ends a process that was not ready in time.
    pub(crate) fn on_late_start(&mut self) {
        self.due = None;
        let seconds = limits::WORKER_READY_TIMEOUT_MS / 1000;
        self.condemn(&format!("was not ready within {seconds} s"));
    }

    /// Gives it no further process, whatever happens.
    ///
    /// The supervisor's copies of its listening sockets are closed: when the worker closes its own, further
    /// clients are refused at once instead of waiting in a queue that nobody will serve.
    pub(crate) fn retire(&mut self) {
        self.sockets.clear();
        self.due = None;
    }

    /// Retires it and orders it to accept no more and to end within `deadline_ms`.
    pub(crate) fn stop(&mut self, deadline_ms: u64) {
        self.retire();
        for Leaving { process, .. } in &self.leaving {
            // One that does not read ends at its own deadline.
            let _ = process.order(STOP, Order::Stop { deadline_ms });
        }
        if self.process.is_none() {
            return;
        }
        self.state = WorkerState::Stopping;
        if let Err(error) = self.order(STOP, Order::Stop { deadline_ms }) {
            tracing::warn!(worker = self.id, "cannot be ordered to stop ({error}), sending SIGTERM instead");
            self.signal(Signal::SIGTERM);
        }
    }

    /// Ends its process at once, with everything that it serves.
    pub(crate) fn kill(&mut self) {
        let leaving = self.leaving.iter_mut().map(|it| &mut it.process);
        for process in self.process.iter_mut().chain(leaving) {
            process.kill();
        }
    }

    /// Whether there is a process that orders can be given to.
    pub(crate) fn takes_orders(&self) -> bool {
        !self.retired
            && self.process.is_some()
            && matches!(self.state, WorkerState::Starting | WorkerState::Running)
    }

    /// Gives an order; its answer comes as [`Outcome::Answered`] with the same number.
    ///
    /// # Errors
    /// When there is no process, its channel is closed, or it does not read.
    pub(crate) fn order(&self, number: u64, order: Order) -> Result<(), wire::WireError> {
        let process = self.process.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        process.order(number, order)
    }

    /// As [`Worker::order`], an order that was written before.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn give(&self, order: Written) -> Result<(), wire::WireError> {
        let process = self.process.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        process.give(order)
    }

    /// Ends a process that is not what it should be, so that another takes its place.
    pub(crate) fn condemn(&mut self, reason: &str) {
        if let Some(process) = self.process.as_mut() {
            process.last_words = Some(reason.to_owned());
            process.kill();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.send(signal);
        }
    }
}
