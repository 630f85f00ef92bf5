//! The log: lines on standard output, filtered by `log_level` or by the environment's `KAKEHI_LOG`.
//!
//! Nobody waits for whoever reads the log, nor dies because nobody does any more. A line is written at once when the kernel says
//! that it can be taken without waiting. Otherwise a worker throws it away, and the supervisor keeps up to [`MOST_WAITING`] of
//! them, which a thread of their own writes. What finds no room on a disk is thrown away, too. How many were thrown away is said in
//! their place. Other errors of writing are ignored.
//! What ends the program is also told on standard error ([`complain`]).

use std::{
    fmt::Display,
    io::{self, IoSlice, IsTerminal as _, Write},
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kakehi_ctl::config::ConfigErrors;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ReadWriteFlags},
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::outlet::Outlet;

/// Environment variable that overrides `log_level`.
const VARIABLE: &str = "KAKEHI_LOG";
/// Lines of the supervisor that wait for whoever reads them.
const MOST_WAITING: usize = 1024;
/// How long the last lines of the supervisor wait for whoever reads them.
const LAST_PATIENCE: Duration = Duration::from_millis(500);
/// Longest line: a pipe that has room at all takes as much without blocking (`PIPE_BUF`).
const MAX_LINE: usize = 4096;

/// It is looked only whether standard output takes a line.
const AT_ONCE: Option<Timespec> = Some(Timespec { tv_sec: 0, tv_nsec: 0 });
/// A line waits as long as it takes.
const FOR_EVER: Option<Timespec> = None;

/// Lines that wait; none in a worker.
static WAITING: OnceLock<Outlet<Vec<u8>>> = OnceLock::new();
/// Has the log take another filter.
static CHANGE_FILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();
/// Lines that were thrown away and are not said to be yet.
static LOST: AtomicU64 = AtomicU64::new(0);
/// The last line that was written is not whole.
static CUT: AtomicBool = AtomicBool::new(false);

/// Tells whoever started the program why it ends. A standard error that is gone is no reason to panic.
pub(crate) fn complain(error: impl Display) {
    let _ = writeln!(io::stderr(), "kakehi: {error}");
}

/// Tells everything that is wrong with the configuration: each error begins a line with its place, so that an editor finds it.
pub(crate) fn complain_of_file(file: &Path, errors: &ConfigErrors) {
    let count = errors.count();
    let _ = writeln!(io::stderr(), "{errors}");
    complain(format_args!("{}: {count} error{}", file.display(), if count == 1 { "" } else { "s" }));
}

/// Opens the log of the supervisor.
pub(crate) fn open_for_supervisor(log_level: &str) {
    let outlet = Outlet::new(MOST_WAITING, |line: Vec<u8>| {
        while !put(&line, FOR_EVER) {}
        // What was lost meanwhile would have come behind the lines that wait.
        if WAITING.get().is_some_and(Outlet::is_last) {
            say_lost(FOR_EVER);
        }
    });
    // Without a thread lines are thrown away as those of a worker are.
    if let Ok(outlet) = outlet {
        let _ = WAITING.set(outlet);
    }
    open(log_level);
}

/// Opens the log of a worker.
pub(crate) fn open_for_worker(log_level: &str) {
    open(log_level);
}

/// Whether `log_level` is a filter.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_level(log_level: &str) -> Result<(), String> {
    filter(log_level).map(drop).map_err(|error| error.to_string())
}

/// The filter of a `log_level`. What the resolver of the DNS says of each datagram that it does not like is only in it where it is
/// named there: servers of the DNS could fill a disk with it.
fn filter(log_level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(log_level)?;
    if log_level.contains("hickory") {
        return Ok(filter);
    }
    ["hickory_net=off", "hickory_resolver=off", "hickory_proto=off"]
        .into_iter()
        .try_fold(filter, |filter, directive| Ok(filter.add_directive(directive.parse()?)))
}

/// Filters the log by another `log_level`, unless the environment says by what.
pub(crate) fn set_level(log_level: &str) {
    if std::env::var_os(VARIABLE).is_none()
        && let (Some(change), Ok(filter)) = (CHANGE_FILTER.get(), filter(log_level))
    {
        change(filter);
    }
}

/// Has the last lines written, if anybody reads them: before the process ends, or becomes another program.
pub(crate) fn flush() {
    if let Some(waiting) = WAITING.get() {
        waiting.flush(LAST_PATIENCE);
    }
}

fn open(log_level: &str) {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| log_level.to_owned());
    let (filter, complaint) = match filter(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stdout().is_terminal())
        .with_writer(BestEffort)
        .with_target(false)
        // The report of such an error would go to standard error, and panic when that is gone as well.
        .log_internal_errors(false)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    let change = move |filter| {
        // Only a subscriber that is gone refuses it.
        let _ = handle.reload(filter);
    };
    let opened = builder.try_init();
    if opened.is_ok() {
        let _ = CHANGE_FILTER.set(Box::new(change));
    }
    if opened.is_ok()
        && let Some(error) = complaint
    {
        tracing::warn!("`{wanted}` is not a filter of the log ({error}); using `info`");
    }
}

/// Standard output that nobody waits for.
#[derive(Clone, Copy)]
struct BestEffort;

impl Write for BestEffort {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let waiting = WAITING.get();
        let at_once = || say_lost(AT_ONCE) && put(line, AT_ONCE);
        let written = waiting.is_none_or(Outlet::is_idle) && at_once();
        if !written && !waiting.is_some_and(|waiting| waiting.put(line.to_vec())) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It is written, or nobody is there who could read it.
    Done,
    /// It was not taken in time.
    Later,
    /// There is no room for it, or for a part of it.
    NoRoom,
}

/// Writes a line when standard output takes it within `patience`; `false` if it did not. Where there is no room it is lost.
fn put(line: &[u8], patience: Option<Timespec>) -> bool {
    let put = write(line, patience);
    if put == Put::NoRoom {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
    put != Put::Later
}

fn write(line: &[u8], patience: Option<Timespec>) -> Put {
    let stdout = io::stdout();
    if !takes(&stdout, patience) {
        return Put::Later;
    }
    let cut;
    let line = match line.get(..MAX_LINE) {
        None => line,
        Some(start) => {
            cut = [&start[..MAX_LINE - 1], b"\n"].concat();
            &cut
        }
    };
    // Straight to the descriptor: a buffer would keep a line that could not be written. The flag `O_NONBLOCK` belongs to everybody
    // who has the pipe, and another of our processes may just have filled it. Before Linux 6.4 a pipe knows no other way.
    match rustix::io::pwritev2(&stdout, &[IoSlice::new(line)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Err(Errno::AGAIN) if !takes(&stdout, AT_ONCE) => Put::Later,
        // It may take a moment, and there is a thread that may wait.
        Err(Errno::AGAIN | Errno::OPNOTSUPP) if patience == AT_ONCE && WAITING.get().is_some() => Put::Later,
        Err(Errno::AGAIN | Errno::OPNOTSUPP) => outcome(rustix::io::write(&stdout, line), line),
        put => outcome(put, line),
    }
}

fn outcome(written: Result<usize, Errno>, line: &[u8]) -> Put {
    let is_whole = match written {
        Ok(length) => length == line.len(),
        Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => return Put::NoRoom,
        Err(_) => return Put::Done,
    };
    if !is_whole {
        // What comes next begins a line of its own.
        CUT.store(true, Ordering::Relaxed);
    }
    if is_whole { Put::Done } else { Put::NoRoom }
}

fn takes(stdout: &io::Stdout, patience: Option<Timespec>) -> bool {
    let mut wanted = [PollFd::new(stdout, PollFlags::OUT)];
    matches!(poll(&mut wanted, patience.as_ref()), Ok(count) if count > 0)
}

/// Says how many lines were lost, if any were; `false` if that cannot be said within `patience`.
fn say_lost(patience: Option<Timespec>) -> bool {
    let lost = LOST.swap(0, Ordering::Relaxed);
    if lost == 0 {
        return true;
    }
    let process = std::process::id();
    let end_of_line = if CUT.swap(false, Ordering::Relaxed) { "\n" } else { "" };
    let notice = format!(
        "{end_of_line}kakehi[{process}]: {lost} lines of the log were lost, as nobody read it or the disk was full\n"
    );
    let said = write(notice.as_bytes(), patience) == Put::Done;
    if !said {
        LOST.fetch_add(lost, Ordering::Relaxed);
        CUT.fetch_or(!end_of_line.is_empty(), Ordering::Relaxed);
    }
    said
}

impl MakeWriter<'_> for BestEffort {
    type Writer = BestEffort;

    fn make_writer(&self) -> BestEffort {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_always_reported_as_written() {
        let line = b"this line is shown by the test, or thrown away\n";
        assert_eq!(BestEffort.write(line).unwrap(), line.len());
    }
}
