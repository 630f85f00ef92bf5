//! One process of a worker: what the supervisor holds of it while it lives, and what its end means.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::ExitStatus,
    str::SplitWhitespace,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{Adopted, Envelope, Order},
    wire,
};
use kakehi_engine::{observe::Counters, worker::DescriptorKind};
use nix::sys::signal::Signal;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use tokio::{
    sync::mpsc::{Sender, channel},
    time::Instant,
};

use crate::{
    fleet::{
        attend::{Attendance, Attended, attend, write_orders},
        handle::Handle,
        launch::{self, Launched, Start},
        record::ProcessRecord,
    },
    scm,
};

/// After the workers' own deadline they have this long to be gone before they are killed.
pub(crate) const KILL_SLACK: Duration = Duration::from_secs(1);
/// Orders that wait to be written; a change takes two.
const ORDERS_ON_THEIR_WAY: usize = 16;

/// Counters, and the memory by which a process writes them.
pub(crate) struct Block {
    pub(crate) counters: Counters,
    pub(crate) memory: OwnedFd,
}

impl Block {
    /// The one behind `memory`.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub(crate) fn map(memory: OwnedFd) -> io::Result<Block> {
        let (counters, memory) = Counters::adopt(memory)?;
        Ok(Block { counters, memory })
    }

    /// A new one for a process of worker `id`.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub(crate) fn new(id: u32) -> io::Result<Block> {
        let name = CString::new(format!("kakehi-counters-{id}"))?;
        let (counters, memory) = Counters::create(&name)?;
        Ok(Block { counters, memory })
    }
}

/// An order as it goes over the channel. A large one is written on another thread.
#[derive(Clone)]
pub(crate) struct Written {
    /// Of its parts.
    names: BTreeSet<&'static str>,
    frames: Vec<u8>,
}

impl Written {
    /// # Errors
    /// When a part of it is too large.
    pub(crate) fn new(number: u64, order: Order) -> Result<Written, wire::WireError> {
        let (mut names, mut frames) = (BTreeSet::new(), Vec::new());
        for part in order.in_parts() {
            names.insert(part.name());
            frames.append(&mut wire::encode(&Envelope::new(number, part), limits::MAX_FRAME)?);
        }
        Ok(Written { names, frames })
    }
}

/// Which process, and how far it is.
struct Place {
    worker: u32,
    launch: u64,
    /// It takes orders already.
    ready: bool,
}

/// One process of a worker.
pub(crate) struct Process {
    /// Which of the worker's processes, counted from 1.
    pub(crate) launch: u64,
    pub(crate) pid: u32,
    pub(crate) started: Instant,
    /// Frames on their way to it.
    orders: Sender<Vec<u8>>,
    descriptors: OwnedFd,
    inheritance: OwnedFd,
    handle: Arc<Handle>,
    /// It leaves a ping unanswered.
    is_mute: Arc<AtomicBool>,
    /// Of a supervisor's program that comes in the place of this one: what it is to know of the process, and the name of its adoption
    /// socket.
    record: Option<(String, ProcessRecord)>,
    /// What it said of itself when it was taken over from another supervisor.
    pub(crate) taken_over: Option<Adopted>,
    pub(crate) io_uring_level: u8,
    pub(crate) io_uring_features: Vec<String>,
    /// The orders that it understands; none: it does not say.
    capabilities: Vec<String>,
    /// Why it said that it cannot serve, or why we ended it.
    pub(crate) last_words: Option<String>,
    /// It said that it ends, and whether nothing was in flight any more.
    pub(crate) drained: Option<bool>,
    /// It was ended by SIGKILL of ours.
    pub(crate) killed: bool,
}

impl Process {
    /// Whether it leaves a ping unanswered, and is about to be given up if it goes on so.
    pub(crate) fn is_mute(&self) -> bool {
        self.is_mute.load(Ordering::Relaxed)
    }

    /// Starts process number `launch` of worker `id`; what happens to it comes to the events of `attendance`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn start(
        start: &Start<'_>,
        launch: u64,
        block: &Block,
        predecessor: Option<&Process>,
        attendance: &Attendance,
    ) -> io::Result<Process> {
        let inheritance = predecessor.map(|process| &process.inheritance);
        let launched = launch::launch(start, launch, block, inheritance)?;
        Process::attended(Place { worker: start.id, launch, ready: false }, launched, attendance)
    }

    /// The process that another supervisor left.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor.
    pub(crate) fn adopt(about: Adopted, launched: Launched, attendance: &Attendance) -> io::Result<Process> {
        let place = Place { worker: about.id, launch: about.launch, ready: true };
        let mut process = Process::attended(place, launched, attendance)?;
        process.io_uring_level = about.io_uring_level;
        process.io_uring_features.clone_from(&about.io_uring_features);
        process.capabilities.clone_from(&about.capabilities);
        process.taken_over = Some(about);
        Ok(process)
    }

    fn attended(place: Place, launched: Launched, attendance: &Attendance) -> io::Result<Process> {
        let (orders, frames) = channel(ORDERS_ON_THEIR_WAY);
        tokio::spawn(write_orders(launched.orders.try_clone()?, frames));
        let handle = Arc::new(launched.handle);
        let Place { worker, launch, ready } = place;
        let name = launched.adoption.path().file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let record = name.zip(launched.adoption.process().cloned());
        let is_mute = Arc::new(AtomicBool::new(false));
        let attended = Attended {
            worker,
            launch,
            pid: launched.pid,
            handle: Arc::clone(&handle),
            reports: launched.orders,
            orders: orders.clone(),
            adoption: launched.adoption,
            entry: attendance.roster.enter(launched.pid),
            ready,
            is_mute: Arc::clone(&is_mute),
        };
        tokio::spawn(attend(attended, attendance.clone()));
        Ok(Process {
            launch,
            is_mute,
            pid: launched.pid,
            started: Instant::now(),
            orders,
            descriptors: launched.descriptors,
            inheritance: launched.inheritance,
            handle,
            record,
            taken_over: None,
            io_uring_level: 0,
            io_uring_features: Vec::new(),
            capabilities: Vec::new(),
            last_words: None,
            drained: None,
            killed: false,
        })
    }

    /// Gives an order; its answer comes as an event with the same number.
    ///
    /// # Errors
    /// When its channel is closed, it does not read, or runs a program that does not know this order.
    pub(crate) fn order(&self, number: u64, order: Order) -> Result<(), wire::WireError> {
        self.give(Written::new(number, order)?)
    }

    /// As [`Process::order`], an order that was written before.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn give(&self, Written { names, frames }: Written) -> Result<(), wire::WireError> {
        if let Some(name) = names.iter().find(|name| !Order::is_name_understood_by(name, &self.capabilities))
        {
            return Err(wire::WireError::NotKnown(name));
        }
        // The queue is empty or nearly so: an order that finds no place means a worker that does not read.
        self.orders.try_send(frames).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe).into())
    }

    /// What a program that comes in the place of this one is to know of it, and the name of its adoption socket.
    pub(crate) fn record(&self) -> Option<&(String, ProcessRecord)> {
        self.record.as_ref()
    }

    /// Takes note of what it says of itself when it is ready.
    pub(crate) fn note_ready(&mut self, (level, features): (u8, Vec<String>), capabilities: Vec<String>) {
        (self.io_uring_level, self.io_uring_features) = (level, features);
        self.capabilities = capabilities;
    }

    /// Sends a signal, if it is still there.
    pub(crate) fn send(&self, signal: Signal) {
        self.handle.signal(signal);
    }

    /// Ends it at once, with everything that it serves.
    pub(crate) fn kill(&mut self) {
        self.killed = true;
        self.send(Signal::SIGKILL);
    }

    /// Sends descriptors, for the order that follows. Nobody waits for it: it reads them with its orders, which come one by one.
    ///
    /// # Errors
    /// When it has no room for them.
    pub(crate) fn pass(&self, descriptors: &[(DescriptorKind, &OwnedFd)]) -> Result<(), scm::Error> {
        scm::send(&self.descriptors, descriptors, Duration::ZERO)
    }

    /// A copy of the end where the connections come out that it gives away.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn inheritance(&self) -> io::Result<OwnedFd> {
        self.inheritance.try_clone()
    }
}

/// What a process said at last, or how it ended.
pub(crate) fn reason_of_end(last_words: Option<String>, status: io::Result<ExitStatus>) -> String {
    last_words.unwrap_or_else(|| match status {
        Ok(status) => describe(status),
        Err(error) => format!("ended, and its status cannot be had: {error}"),
    })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) if code == i32::from(crate::worker_main::EXIT_CUT) => {
            "cut what was still in flight at its deadline".to_owned()
        }
        (Some(0), _) => "ended without being told to".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(Ok(signal))) => format!("was ended by {signal}"),
        (None, _) => format!("ended ({status})"),
    }
}

/// User and system time of a process (ms).
pub(crate) fn cpu_time_ms(pid: u32) -> Option<(u64, u64)> {
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (user, system) = cpu_ticks(&stat)?;
    let ms = |ticks: u64| ticks.saturating_mul(1000) / ticks_per_second.max(1);
    Some((ms(user), ms(system)))
}

/// The parent of a process; `None` when it is gone, or has none that is to be seen.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat_fields(&stat)?.nth(1)?.parse().ok().filter(|parent| *parent > 0)
}

/// Whether there is a process of this number that has not ended. One of another user may not be shown to us; it is there all the same.
pub(crate) fn is_alive(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => {
            let state = stat_fields(&stat).and_then(|mut fields| fields.next());
            state.is_some_and(|state| !matches!(state, "Z" | "X"))
        }
        Err(_) => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::PERM))
        }
    }
}

/// What `/proc/PID/stat` says, from field 3 on; the name in field 2 may have spaces and parentheses itself.
pub(crate) fn stat_fields(stat: &str) -> Option<SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

/// Fields 14 and 15 of `/proc/PID/stat`.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat_fields(stat)?.skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
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
    fn a_process_that_has_ended_lives_no_more_whether_it_was_waited_for_or_not() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(is_alive(child.id()) && is_alive(std::process::id()) && is_alive(1));
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while is_alive(child.id()) {
            assert!(std::time::Instant::now() < deadline, "it has ended, and nobody has waited for it");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_alive(child.id()) && !is_alive(u32::MAX));
    }

    #[test]
    fn the_end_of_a_process_is_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "was ended by SIGKILL");
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "ended with exit code 1");
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "cut what was still in flight at its deadline");
        assert_eq!(describe(ExitStatus::from_raw(0)), "ended without being told to");
    }
}
