//! The log: lines on standard output, filtered by `log_level` or by the environment's `KAKEHI_LOG`.
//!
//! A worker must never wait for whoever reads the log, nor die because nobody does any more. So a line is
//! written only when the kernel says that it can be taken without waiting, and is thrown away otherwise; the
//! supervisor has a little more patience. Errors of writing are ignored. What ends the program is also told on
//! standard error ([`complain`]).

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write},
    os::fd::AsFd as _,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Environment variable that overrides `log_level`.
const VARIABLE: &str = "KAKEHI_LOG";
/// How long the supervisor waits for a slow reader of the log (ms).
const SUPERVISOR_PATIENCE_MS: u16 = 500;
/// Longest line: a pipe that has room at all takes as much without blocking (`PIPE_BUF`).
const MAX_LINE: usize = 4096;

/// Tells whoever started the program why it ends. A standard error that is gone is no reason to panic.
pub(crate) fn complain(error: impl Display) {
    let _ = writeln!(io::stderr(), "kakehi: {error}");
}

/// Opens the log of the supervisor.
pub(crate) fn open_for_supervisor(log_level: &str) {
    open(log_level, SUPERVISOR_PATIENCE_MS);
}

/// Opens the log of a worker, which waits for nobody.
pub(crate) fn open_for_worker(log_level: &str) {
    open(log_level, 0);
}

fn open(log_level: &str, patience_ms: u16) {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| log_level.to_owned());
    let (filter, complaint) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let opened = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stdout().is_terminal())
        .with_writer(BestEffort { patience_ms })
        .with_target(false)
        // The report of such an error would go to standard error, and panic when that is gone as well.
        .log_internal_errors(false)
        .try_init();
    if opened.is_ok()
        && let Some(error) = complaint
    {
        tracing::warn!("`{wanted}` is not a filter of the log ({error}); using `info`");
    }
}

/// Standard output that gives up rather than block.
#[derive(Clone, Copy)]
struct BestEffort {
    patience_ms: u16,
}

impl Write for BestEffort {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        let mut wanted = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
        let takes = matches!(poll(&mut wanted, PollTimeout::from(self.patience_ms)), Ok(count) if count > 0);
        if takes {
            // Straight to the descriptor: a buffer would keep a line that could not be written.
            let _ = match line.get(..MAX_LINE) {
                None => nix::unistd::write(&stdout, line),
                Some(start) => nix::unistd::write(&stdout, &[&start[..MAX_LINE - 1], b"\n"].concat()),
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
        assert_eq!(BestEffort { patience_ms: 0 }.write(line).unwrap(), line.len());
    }
}
