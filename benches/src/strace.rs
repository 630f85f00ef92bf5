//! Counts the system calls of a proxy per request, in a run of its own.
//!
//! `strace` slows every call down several times over, so nothing else is measured while it watches; it does
//! not change how many calls a request takes under a load that stays saturated.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::pause;
use crate::{Attempt, BenchError};

const ATTACHED_WITHIN: Duration = Duration::from_secs(10);

/// Calls by name.
pub type Calls = BTreeMap<String, u64>;

/// An `strace -c` that watches processes and their threads.
#[derive(Debug)]
pub struct Strace {
    child: Child,
    summary: std::path::PathBuf,
}

impl Strace {
    /// Attaches to `processes`.
    ///
    /// # Errors
    /// If `strace` is not installed or may not attach.
    pub fn attach(processes: &[u32], folder: &Path) -> Result<Self, BenchError> {
        let summary = folder.join("strace.txt");
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-q", "-o"]).arg(&summary);
        for process in processes {
            command.args(["-p", &process.to_string()]);
        }
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().attempt(|| "cannot run strace".into())?;
        let strace = Self { child, summary };
        let deadline = Instant::now() + ATTACHED_WITHIN;
        while !processes.iter().all(|&process| is_traced(process)) {
            if Instant::now() > deadline {
                return Err(BenchError::Program("strace did not attach: may this user trace?".into()));
            }
            pause(Duration::from_millis(5));
        }
        Ok(strace)
    }

    /// Detaches and returns what was counted.
    ///
    /// # Errors
    /// If strace's summary cannot be read.
    pub fn finish(mut self) -> Result<Calls, BenchError> {
        self.interrupt();
        let text = fs::read_to_string(&self.summary).attempt(|| "strace left no summary".into())?;
        Ok(parse(&text))
    }

    /// strace writes its summary when it is interrupted, and lets go of what it traced.
    fn interrupt(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none())
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        drop(self.child.wait());
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.interrupt();
    }
}

fn is_traced(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
}

/// Lines are `% time, seconds, usecs/call, calls, [errors,] name`; header, rules and the total are not calls.
fn parse(summary: &str) -> Calls {
    let mut calls = Calls::new();
    for line in summary.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let (Some(count), Some(&name)) =
            (fields.get(3).and_then(|count| count.parse().ok()), fields.last())
            && fields.len() >= 5
            && name != "total"
        {
            calls.insert(name.to_owned(), count);
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read_with_and_without_errors() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n \
                    61.21    0.011100           5      2100           writev\n \
                    38.79    0.007034           3      2031       700 recvfrom\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.018134           4      4131       700 total\n";
        let expected = Calls::from([("writev".into(), 2100), ("recvfrom".into(), 2031)]);
        assert_eq!(parse(text), expected);
    }
}
