//! What the processes of a proxy have used: CPU time, sleeps, memory.
//!
//! All of it comes from `/proc`. A proxy is its first process and all that descends from it, with all their
//! threads: nginx's worker is a child of what was started, kakehi's too, and io_uring's helper threads appear
//! as threads of their worker. The comparison reads the meters twice and takes the difference; a thread that
//! ended in between would take its time with it, which no proxy here does.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

use crate::{Attempt, BenchError};

/// `USER_HZ`, the unit of `utime` and `stime`: 100 on every Linux that kakehi runs on.
const TICK: Duration = Duration::from_millis(10);

/// Meter readings of all processes of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time (ns), from `schedstat`: exact.
    pub cpu_ns: u64,
    /// CPU time in user mode (clock ticks), from `stat`: sampled by the kernel, good for a share.
    user_ticks: u64,
    /// CPU time in the kernel (clock ticks).
    system_ticks: u64,
    /// How often a thread went to sleep of its own will.
    pub sleeps: u64,
}

impl Usage {
    /// Reads the meters of `root` and its descendants.
    ///
    /// # Errors
    /// If `root` is gone.
    pub fn of_tree(root: u32) -> Result<Self, BenchError> {
        let mut usage = Self::default();
        for pid in tree(root)? {
            match usage.add_process(pid) {
                // A descendant may end between the listing and the reading.
                Err(error) if pid != root && is_gone(&error) => {}
                outcome => outcome.attempt(|| format!("cannot read the meters of process {pid}"))?,
            }
        }
        if usage.cpu_ns == 0 {
            // A kernel without CONFIG_SCHED_INFO: ticks are all there is.
            usage.cpu_ns = (usage.user_ticks + usage.system_ticks) * TICK.as_nanos() as u64;
        }
        Ok(usage)
    }

    /// What was used since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(before.system_ticks),
            sleeps: self.sleeps.saturating_sub(before.sleeps),
        }
    }

    /// Share of the CPU time that was spent in user mode, 0 to 1; `None` if it was too short to tell.
    #[must_use]
    pub fn user_share(&self) -> Option<f64> {
        let ticks = self.user_ticks + self.system_ticks;
        (ticks > 0).then(|| self.user_ticks as f64 / ticks as f64)
    }

    fn add_process(&mut self, pid: u32) -> io::Result<()> {
        let stat = Stat::of(pid)?;
        self.user_ticks += stat.user_ticks;
        self.system_ticks += stat.system_ticks;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            // A thread may end between the listing and the reading.
            if let Ok(text) = fs::read_to_string(task.join("schedstat")) {
                self.cpu_ns += number(text.split(' ').next());
            }
            if let Ok(text) = fs::read_to_string(task.join("status")) {
                self.sleeps += field(&text, "voluntary_ctxt_switches:");
            }
        }
        Ok(())
    }
}

/// Whether a file of `/proc` cannot be read because its process has ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// CPU time of one thread of this process (ns).
///
/// # Errors
/// If there is no such thread, or the kernel does not count (`CONFIG_SCHED_INFO`).
pub fn thread_cpu_ns(thread: Pid) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"))?;
    Ok(number(text.split(' ').next()))
}

/// Proportional set size of `root` and its descendants (KiB): their share of every page that they map.
/// Kernel memory (sockets, rings) is not in it.
///
/// # Errors
/// If `root` is gone or its memory may not be looked at.
pub fn pss_kib(root: u32) -> Result<u64, BenchError> {
    let mut sum = 0;
    for pid in tree(root)? {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).attempt(|| format!("cannot read {path}"))?;
        sum += field(&text, "Pss:");
    }
    Ok(sum)
}

/// `root` and all that descends from it, root first.
///
/// # Errors
/// If `/proc` cannot be listed or `root` is gone.
pub fn tree(root: u32) -> Result<Vec<u32>, BenchError> {
    Stat::of(root).attempt(|| format!("process {root} is gone"))?;
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").attempt(|| "cannot list /proc".into())? {
        let pid = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok());
        if let Some(pid) = pid
            && let Ok(stat) = Stat::of(pid)
        {
            parents.push((pid, stat.parent));
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|&&(_, of)| of == parent).map(|&(pid, _)| pid));
        next += 1;
    }
    Ok(found)
}

/// CPU time of this process, in which clients and backend run.
///
/// # Errors
/// Those of `getrusage(2)`.
pub fn own_cpu() -> Result<Duration, BenchError> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).attempt(|| "cannot read the own CPU time".into())?;
    let times = [usage.user_time(), usage.system_time()];
    let micros: i64 = times.iter().map(|time| time.tv_sec() * 1_000_000 + time.tv_usec()).sum();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}

/// The fields of `/proc/PID/stat` that are needed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    parent: u32,
    user_ticks: u64,
    system_ticks: u64,
    /// It has ended and waits to be collected by its parent.
    pub ended: bool,
    /// When the process started (clock ticks since boot): with the pid it names one process for ever.
    pub started: u64,
}

impl Stat {
    /// Reads them.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The second field is the program's name in brackets and may hold anything, brackets too.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = after_name.split(' ').collect();
        // `after_name` starts with field 3 of proc_pid_stat(5).
        let numbered = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            ended: matches!(*fields.first()?, "Z" | "X"),
            parent: u32::try_from(numbered(4)?).ok()?,
            user_ticks: numbered(14)?,
            system_ticks: numbered(15)?,
            started: numbered(22)?,
        })
    }
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map_or(0, |rest| number(rest.split_whitespace().next()))
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|digits| digits.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_does_not_shift_the_fields() {
        let text =
            "7 (a) (b) c) S 3 7 7 0 -1 4194304 1 0 0 0 11 22 0 0 20 0 1 0 987 1000 10 18446744073709551615";
        let expected = Stat { ended: false, parent: 3, user_ticks: 11, system_ticks: 22, started: 987 };
        assert_eq!(Stat::parse(text), Some(expected));
    }

    #[test]
    fn this_process_has_meters_that_run_forward() {
        let pid = std::process::id();
        let before = Usage::of_tree(pid).unwrap();
        let mut sum = 0u64;
        while Usage::of_tree(pid).unwrap().cpu_ns <= before.cpu_ns {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(pss_kib(pid).unwrap() > 0);
    }

    #[test]
    fn a_child_belongs_to_the_tree_of_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let found = tree(std::process::id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()));
    }
}
