//! The life of one worker, through all the processes that take its place one after the other.
//!
//! What stays: its number, its core, its listening sockets, its counters. What changes: the process. A worker is
//! `Starting` until its process reports that it accepts, then `Running`; `Stopping` once it was ordered to;
//! `Dead` between the end of one process and the start of the next.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::ExitStatus,
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{Envelope, Order, Report, WorkerInfo, WorkerState},
    wire,
};
use kakehi_engine::{
    http::Reason,
    observe::{Counter, Counters},
};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc::{Sender, channel},
    time::Instant,
};

use super::{
    attend::{Event, What, attend, write_orders},
    backoff::Backoff,
    launch::launch,
    listeners::Sockets,
};
use crate::scm;

/// Orders that wait to be written; a change takes two.
const ORDERS_ON_THEIR_WAY: usize = 16;
/// The number of the order to stop, whose answer is the end of the process.
const STOP: u64 = 0;

/// One place in the row of workers.
pub(super) struct Worker {
    id: u32,
    core: Option<usize>,
    sockets: Sockets,
    counters: Counters,
    counters_memory: OwnedFd,
    state: WorkerState,
    /// The present process; `None` while `Dead`.
    process: Option<Process>,
    /// How many processes were started.
    launches: u64,
    backoff: Backoff,
    /// When something is due: a process must be ready, or be replaced.
    due: Option<Instant>,
}

/// One process of a worker.
struct Process {
    pid: u32,
    started: Instant,
    /// Frames on their way to it.
    orders: Sender<Vec<u8>>,
    descriptors: OwnedFd,
    signals: Sender<Signal>,
    io_uring_level: u8,
    io_uring_features: Vec<String>,
    /// Why it said that it cannot serve, or why we ended it.
    last_words: Option<String>,
    /// It was ended by SIGKILL of ours.
    killed: bool,
}

/// What an event means to the supervisor.
pub(super) enum Outcome {
    /// Nothing.
    Nothing,
    /// The worker accepts.
    Ready,
    /// It has carried out the order of this number, or says why not.
    Answered { order: u64, refused: Option<String> },
    /// Its process ended.
    Died(Death),
}

/// The end of a process.
pub(super) struct Death {
    /// In words.
    pub(super) reason: String,
    /// It was ordered to stop, and ended by itself with nothing left in flight.
    pub(super) drained: bool,
}

impl Worker {
    /// A worker without a process.
    ///
    /// # Errors
    /// When the kernel refuses the memory of its counters.
    pub(super) fn new(id: u32, core: Option<usize>, sockets: Sockets) -> io::Result<Self> {
        let name = CString::new(format!("kakehi-counters-{id}"))?;
        let (counters, counters_memory) = Counters::create(&name)?;
        Ok(Worker {
            id,
            core,
            sockets,
            counters,
            counters_memory,
            state: WorkerState::Dead,
            process: None,
            launches: 0,
            backoff: Backoff::default(),
            due: None,
        })
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Where it is in its life.
    pub(super) fn state(&self) -> WorkerState {
        self.state
    }

    /// When its process must be ready, or is to be replaced.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a process of it is alive, or will be.
    pub(super) fn has_future(&self) -> bool {
        self.process.is_some() || self.due.is_some()
    }

    /// Starts a process for it, which is to serve `state` (JSON).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn launch(&mut self, state: &[u8], events: &Sender<Event>) -> io::Result<()> {
        let launched = launch(self.id, self.core, state, &self.counters_memory, &self.sockets)?;
        let (signals, wanted) = channel(4);
        let (orders, frames) = channel(ORDERS_ON_THEIR_WAY);
        tokio::spawn(write_orders(launched.orders.try_clone()?, frames));
        self.launches += 1;
        self.process = Some(Process {
            pid: launched.child.id().unwrap_or(0),
            started: Instant::now(),
            orders,
            descriptors: launched.descriptors,
            signals,
            io_uring_level: 0,
            io_uring_features: Vec::new(),
            last_words: None,
            killed: false,
        });
        self.state = WorkerState::Starting;
        self.due = Some(Instant::now() + Duration::from_millis(limits::WORKER_READY_TIMEOUT_MS));
        let key = (self.id, self.launches);
        tokio::spawn(attend(key, launched.child, launched.orders, wanted, events.clone()));
        Ok(())
    }

    /// Takes note of what happened to a process; nothing if it is not the present one.
    pub(super) fn on_event(&mut self, event: Event) -> Outcome {
        if event.launch != self.launches {
            return Outcome::Nothing;
        }
        let Some(process) = self.process.as_mut() else { return Outcome::Nothing };
        match event.what {
            What::Reported(_, Report::Ready { io_uring_level, io_uring_features }) => {
                process.io_uring_level = io_uring_level;
                process.io_uring_features = io_uring_features;
                if self.state != WorkerState::Starting {
                    return Outcome::Nothing;
                }
                self.state = WorkerState::Running;
                self.due = None;
                Outcome::Ready
            }
            What::Reported(_, Report::Failed { reason }) => {
                process.last_words = Some(reason);
                Outcome::Nothing
            }
            What::Reported(order, Report::Refused { reason }) => {
                Outcome::Answered { order, refused: Some(reason) }
            }
            What::Reported(order, Report::Done) => Outcome::Answered { order, refused: None },
            What::Deaf(why) => {
                // Before its end every worker closes the channel, so this alone is no news.
                tracing::debug!(worker = self.id, "{why}");
                Outcome::Nothing
            }
            What::Ended(status) => Outcome::Died(self.bury(status)),
        }
    }

    fn bury(&mut self, status: io::Result<ExitStatus>) -> Death {
        let stopping = self.state == WorkerState::Stopping;
        self.state = WorkerState::Dead;
        self.due = None;
        let Some(process) = self.process.take() else {
            return Death { reason: String::new(), drained: stopping };
        };
        let clean = status.as_ref().is_ok_and(ExitStatus::success);
        let end = match status {
            Ok(status) => describe(status),
            Err(error) => format!("ended, and its status cannot be had: {error}"),
        };
        let reason = match process.last_words {
            Some(words) => words,
            None => end,
        };
        Death { reason, drained: stopping && clean && !process.killed }
    }

    /// Plans the replacement of a process that has just ended after having `lived` so long; returns the delay.
    pub(super) fn plan_replacement(&mut self, lived: Duration) -> Duration {
        let delay = self.backoff.after_death(lived);
        self.due = Some(Instant::now() + delay);
        delay
    }

    /// How long the present process has lived.
    pub(super) fn age(&self) -> Duration {
        self.process.as_ref().map_or(Duration::ZERO, |process| process.started.elapsed())
    }

    /// Ends a process that was not ready in time.
    pub(super) fn on_late_start(&mut self) {
        self.due = None;
        let seconds = limits::WORKER_READY_TIMEOUT_MS / 1000;
        self.condemn(&format!("was not ready within {seconds} s"));
    }

    /// Gives it no further process, whatever happens.
    ///
    /// The supervisor's copies of its listening sockets are closed: when the worker closes its own, further
    /// clients are refused at once instead of waiting in a queue that nobody will serve.
    pub(super) fn retire(&mut self) {
        self.sockets.clear();
        self.due = None;
    }

    /// Retires it and orders it to accept no more and to end within `deadline_ms`.
    pub(super) fn stop(&mut self, deadline_ms: u64) {
        self.retire();
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
    pub(super) fn kill(&mut self) {
        if let Some(process) = self.process.as_mut() {
            process.killed = true;
        }
        self.signal(Signal::SIGKILL);
    }

    /// Whether there is a process that orders can be given to.
    pub(super) fn takes_orders(&self) -> bool {
        self.process.is_some() && matches!(self.state, WorkerState::Starting | WorkerState::Running)
    }

    /// Gives an order; its answer comes as [`Outcome::Answered`] with the same number.
    ///
    /// # Errors
    /// When there is no process, its channel is closed, or it does not read.
    pub(super) fn order(&mut self, number: u64, order: Order) -> Result<(), wire::WireError> {
        let process = self.process.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let frame = wire::encode(&Envelope::new(number, order), limits::MAX_FRAME)?;
        // The queue is empty or nearly so: an order that finds no place means a worker that does not read.
        process.orders.try_send(frame).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe).into())
    }

    /// Sends the sockets of new listeners, for the order that follows.
    ///
    /// # Errors
    /// When it does not take them.
    pub(super) fn pass(&self, sockets: &Sockets) -> Result<(), scm::Error> {
        match &self.process {
            Some(process) => scm::send(&process.descriptors, sockets),
            None => Ok(()),
        }
    }

    /// Keeps the sockets of listeners that have come, and closes those of listeners that have gone.
    pub(super) fn change_sockets(&mut self, come: Sockets, stays: impl Fn(&SocketAddr) -> bool) {
        self.sockets.extend(come);
        self.sockets.retain(|(address, _)| stays(address));
    }

    /// Ends a process that is not what it should be, so that another takes its place.
    pub(super) fn condemn(&mut self, reason: &str) {
        if let Some(process) = self.process.as_mut() {
            process.last_words = Some(reason.to_owned());
        }
        self.kill();
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // Full only when signals are already on their way.
            let _ = process.signals.try_send(signal);
        }
    }

    /// What there is to know about it.
    pub(super) fn info(&self) -> WorkerInfo {
        let process = self.process.as_ref();
        let pid = process.map_or(0, |process| process.pid);
        let (cpu_user_ms, cpu_system_ms) = cpu_time_ms(pid).unwrap_or_default();
        WorkerInfo {
            id: self.id,
            pid,
            core: self.core.and_then(|core| u32::try_from(core).ok()),
            state: self.state,
            // The connections of a process that has ended are closed, though nobody counted them down.
            connections: process.map_or(0, |_| self.counters.get(Counter::Connections)),
            requests: self.counters.get(Counter::Requests),
            cpu_user_ms,
            cpu_system_ms,
            io_uring_level: process.map_or(0, |process| process.io_uring_level),
            io_uring_features: process.map_or_else(Vec::new, |process| process.io_uring_features.clone()),
            ring_enters: self.counters.get(Counter::RingEnters),
            ring_sqes: self.counters.get(Counter::RingSqes),
            ring_cqes: self.counters.get(Counter::RingCqes),
            ring_no_buffers: self.counters.get(Counter::RingNoBuffers),
            ring_overflows: self.counters.get(Counter::RingOverflows),
            ring_bulk: self.counters.get(Counter::RingBulk),
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) if code == i32::from(crate::EXIT_CUT) => {
            "cut what was still in flight at its deadline".to_owned()
        }
        (Some(0), _) => "ended without being told to".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(Ok(signal))) => format!("was ended by {signal}"),
        (None, _) => format!("ended ({status})"),
    }
}

/// User and system time of a process (ms).
fn cpu_time_ms(pid: u32) -> Option<(u64, u64)> {
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (user, system) = cpu_ticks(&stat)?;
    let ms = |ticks: u64| Some(ticks.saturating_mul(1000) / u64::try_from(ticks_per_second).ok()?.max(1));
    Some((ms(user)?, ms(system)?))
}

/// Fields 14 and 15 of `/proc/PID/stat`; the name in field 2 may have spaces and parentheses itself.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Every counter by its name, summed over `workers`, and the answers by reason.
pub(super) fn sum(workers: &[Worker]) -> BTreeMap<String, u64> {
    let counters = Counter::ALL.iter().map(|counter| {
        // What a process that is gone had open is open no more.
        let counted = workers.iter().filter(|worker| worker.process.is_some() || !counter.is_gauge());
        (counter.name().to_owned(), counted.map(|worker| worker.counters.get(*counter)).sum())
    });
    let answers = Reason::ALL.iter().map(|reason| {
        let answers = workers.iter().map(|worker| worker.counters.answers(*reason)).sum();
        (format!("answers.{}", reason.code()), answers)
    });
    counters.chain(answers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some((12, 34)));
        assert_eq!(cpu_ticks("7 (a"), None);
        assert!(cpu_time_ms(std::process::id()).is_some());
    }

    #[test]
    fn the_end_of_a_process_is_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "was ended by SIGKILL");
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "ended with exit code 1");
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "cut what was still in flight at its deadline");
        assert_eq!(describe(ExitStatus::from_raw(0)), "ended without being told to");
    }
}
