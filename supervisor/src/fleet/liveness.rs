//! Whether a worker process still answers: how long it has left a ping unanswered, and where it stands if that is too long.
//!
//! Only time in which this supervisor ran itself counts as silence. One that was stopped, or starved of its core, finds on
//! waking that a long time has passed, which says nothing of the workers.

use std::{fmt::Write as _, fs::File, io::Read as _, time::Duration};

use tokio::{sync::oneshot, time::Instant};

/// Looks within `worker_liveness`. More let a supervisor that was stopped count less as silence of the worker.
const LOOKS: u32 = 10;
/// Looks at an unanswered ping after which a process counts as mute for whoever asks, though it is not given up yet.
const LATE_LOOKS: u32 = 2;
/// Shortest time between two looks.
const SHORTEST_PERIOD: Duration = Duration::from_millis(10);
/// So long may it take to read where a process stands: the kernel may hold a lock of a process that hangs.
const POSITION_TIMEOUT: Duration = Duration::from_millis(250);
/// Of each file in `/proc` so much is read (bytes).
const MAX_TEXT: u64 = 2048;
/// Frames of the kernel's stack that are told.
const FRAMES: usize = 8;

/// What is to be done after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Ping the process.
    Ping,
    /// Nothing: the ping before is not answered yet.
    Wait,
    /// The process was mute for `worker_liveness`.
    Mute,
}

/// The silence of one process.
pub(crate) struct Pulse {
    /// How long a ping may stay unanswered; zero: for ever.
    liveness: Duration,
    /// When it was looked last; `None`: the process does not take orders yet, or was given up.
    looked: Option<Instant>,
    /// How long the present ping is unanswered, as far as this supervisor ran meanwhile; `None`: there is none.
    silent: Option<Duration>,
}

impl Pulse {
    /// Of a process that does not take orders yet.
    pub(crate) fn new(liveness: Duration) -> Pulse {
        Pulse { liveness, looked: None, silent: None }
    }

    /// The process takes orders from now on.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.looked = Some(now);
        self.silent = None;
    }

    /// The process was given up: nothing is due any more.
    pub(crate) fn end(&mut self) {
        self.looked = None;
    }

    /// Another `worker_liveness` holds from now on.
    pub(crate) fn set_liveness(&mut self, liveness: Duration, now: Instant) {
        self.liveness = liveness;
        if self.looked.is_some() {
            self.begin(now);
        }
    }

    /// The process has said something.
    pub(crate) fn heard(&mut self) {
        self.silent = None;
    }

    /// Whether the process should have answered: it was looked for an answer twice.
    pub(crate) fn is_late(&self) -> bool {
        self.silent.is_some_and(|silent| silent >= self.period() * LATE_LOOKS)
    }

    fn period(&self) -> Duration {
        (self.liveness / LOOKS).max(SHORTEST_PERIOD)
    }

    /// When the next look is due, if any is.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.liveness.is_zero() { None } else { Some(self.looked? + self.period()) }
    }

    /// Looks. Everything that the process has said by `now` must have been told before.
    pub(crate) fn look(&mut self, now: Instant) -> Look {
        let passed = self.looked.replace(now).map_or(Duration::ZERO, |looked| now - looked);
        let Some(silent) = self.silent else {
            self.silent = Some(Duration::ZERO);
            return Look::Ping;
        };
        // A look that comes late was kept from coming: by what, nobody knows, so it is not held against the worker.
        let silent = silent + passed.min(self.period());
        self.silent = Some(silent);
        if silent >= self.liveness { Look::Mute } else { Look::Wait }
    }
}

/// Where process `pid` stands, in words of the kernel.
pub(crate) async fn position(pid: u32) -> String {
    let (tell, told) = oneshot::channel();
    // In a thread of its own, which nobody waits for: reading takes locks of a process that may be stuck with them.
    let reader = std::thread::Builder::new().spawn(move || drop(tell.send(read_position(pid))));
    match (reader, tokio::time::timeout(POSITION_TIMEOUT, told).await) {
        (Ok(_), Ok(Ok(position))) => position,
        _ => "where it stands cannot be read".to_owned(),
    }
}

/// State, and kernel stack (for root only) or else the function that it sleeps in and its system call.
fn read_position(pid: u32) -> String {
    let read = |name: &str| {
        let mut bytes = Vec::new();
        let file = File::open(format!("/proc/{pid}/{name}")).ok()?;
        file.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        Some(text).filter(|text| !text.is_empty())
    };
    let status = read("status").unwrap_or_default();
    let mut position =
        state_of(&status).map_or_else(|| "state unknown".to_owned(), |it| format!("state {it}"));
    if let Some(stack) = read("stack").map(|stack| frames_of(&stack)).filter(|stack| !stack.is_empty()) {
        let _ = write!(position, ", kernel stack {stack}");
        return position;
    }
    for (name, file) in [("waits in", "wchan"), ("system call", "syscall")] {
        // A process that runs waits in `0`.
        if let Some(text) = read(file).filter(|text| text != "0") {
            let _ = write!(position, ", {name} {text}");
        }
    }
    position
}

/// `T (stopped)` and the like, out of the text of `/proc/PID/status`.
fn state_of(status: &str) -> Option<&str> {
    status.lines().find_map(|line| line.strip_prefix("State:")).map(str::trim)
}

/// The innermost functions of `/proc/PID/stack`, whose lines read `[<0>] name+0x12/0x34`.
fn frames_of(stack: &str) -> String {
    let name = |line: &str| Some(line.split_once("] ")?.1.split('+').next()?.trim().to_owned());
    stack.lines().filter_map(name).take(FRAMES).collect::<Vec<_>>().join(" < ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pulse(now: Instant) -> Pulse {
        let mut pulse = Pulse::new(SECOND * 10);
        pulse.begin(now);
        pulse
    }

    #[tokio::test]
    async fn a_process_is_mute_when_one_ping_stays_unanswered_for_so_long() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        assert_eq!(pulse.due(), Some(start + SECOND));
        assert_eq!(pulse.look(start + SECOND), Look::Ping);
        for second in 2..=10 {
            assert_eq!(pulse.look(start + SECOND * second), Look::Wait);
        }
        assert_eq!(pulse.look(start + SECOND * 11), Look::Mute);
    }

    #[tokio::test]
    async fn whatever_is_said_ends_the_silence() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        for second in 1..100 {
            assert_ne!(pulse.look(start + SECOND * second), Look::Mute);
            if second % 9 == 0 {
                pulse.heard();
            }
        }
    }

    #[tokio::test]
    async fn time_in_which_the_supervisor_itself_did_not_run_is_no_silence() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        assert_eq!(pulse.look(start + SECOND), Look::Ping);
        assert_eq!(pulse.look(start + SECOND * 3_600), Look::Wait);
        assert_eq!(pulse.due(), Some(start + SECOND * 3_601));
    }

    #[tokio::test]
    async fn nothing_is_due_before_a_process_takes_orders_nor_where_it_is_switched_off() {
        let now = Instant::now();
        let mut pulse = Pulse::new(SECOND);
        assert_eq!(pulse.due(), None);
        pulse.begin(now);
        assert!(pulse.due().is_some());
        pulse.set_liveness(Duration::ZERO, now);
        assert_eq!(pulse.due(), None);
        pulse.set_liveness(SECOND, now);
        assert!(pulse.due().is_some());
        pulse.end();
        pulse.set_liveness(SECOND, now);
        assert_eq!(pulse.due(), None);
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let stack = "[<0>] do_signal_stop+0x1a2/0x270\n[<0>] get_signal+0x5c/0x8a0\n";
        assert_eq!(frames_of(stack), "do_signal_stop < get_signal");
        assert_eq!(frames_of(""), "");
        assert_eq!(state_of("Name:\tkakehi-w0\nState:\tT (stopped)\n"), Some("T (stopped)"));
    }

    #[tokio::test]
    async fn where_a_process_stands_is_read() {
        // Its main thread waits for the one of this test, or is it.
        let position_of_this = position(std::process::id()).await;
        assert!(
            ["state R (running)", "state S (sleeping)"].iter().any(|it| position_of_this.starts_with(it)),
            "{position_of_this}"
        );
        assert_eq!(position(u32::MAX).await, "state unknown");
    }
}
