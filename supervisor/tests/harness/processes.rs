//! What `/proc` says about a process: enough to find, watch and end the processes of one proxy.

use std::{
    fs,
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd};

use super::sys;

/// A process, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// The children that it has now.
    pub(crate) fn children(self) -> Vec<Process> {
        let parent = self.0.to_string();
        all().filter(|process| process.stat_field(1).as_deref() == Some(&parent) && process.runs()).collect()
    }

    /// Whether it exists and has not ended.
    pub(crate) fn runs(self) -> bool {
        self.stat_field(0).is_some_and(|state| state != "Z" && state != "X")
    }

    /// A line of its `status` file: `VmRSS`, `Cpus_allowed_list`.
    pub(crate) fn status(self, key: &str) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    /// Memory that is resident (bytes).
    pub(crate) fn resident(self) -> u64 {
        let text = self.status("VmRSS").unwrap_or_default();
        text.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// CPU time so far, user and system.
    pub(crate) fn cpu_time(self) -> Duration {
        let ticks: u64 = [11, 12].iter().filter_map(|&i| self.stat_field(i)?.parse::<u64>().ok()).sum();
        let hertz = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Duration::from_millis(ticks * 1000 / hertz.unsigned_abs())
    }

    /// What each of its descriptors leads to.
    pub(crate) fn descriptors(self) -> Vec<String> {
        let Ok(folder) = fs::read_dir(format!("/proc/{}/fd", self.0)) else {
            return Vec::new();
        };
        folder
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .map(|target| target.display().to_string())
            .collect()
    }

    /// Breaks its listening socket at this address (IPv4), which is then one that does not listen.
    #[track_caller]
    pub(crate) fn break_listener(self, address: SocketAddr) {
        let inode = sys::listening_socket(address).expect("a listening socket");
        let link = format!("socket:[{inode}]");
        let number = fs::read_dir(format!("/proc/{}/fd", self.0))
            .expect("its descriptors")
            .flatten()
            .find_map(|entry| {
                let is_it =
                    fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == link.as_str());
                if is_it { entry.file_name().to_str()?.parse().ok() } else { None }
            });
        let pid = rustix::process::Pid::from_raw(self.0 as i32).expect("a number above 0");
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
        let number = number.expect("it has the socket");
        let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).expect("pidfd_getfd");
        TcpStream::from(socket).shutdown(Shutdown::Both).expect("shutdown");
    }

    /// Field of `stat`, counted from the state, which is 0.
    fn stat_field(self, index: usize) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        // The name in parentheses may hold anything; nothing after it holds a parenthesis.
        text.rsplit_once(") ")?.1.split_ascii_whitespace().nth(index).map(str::to_owned)
    }
}

/// Sends a signal; a process that is gone is no failure.
pub(crate) fn send_signal(process: Process, signal: Signal) {
    if let Ok(number) = i32::try_from(process.0) {
        let _ = kill(Pid::from_raw(number), signal);
    }
}

/// Every process whose environment names `folder`: the program and its workers, orphans too.
pub(super) fn marked_with(folder: &Path) -> Vec<Process> {
    let mark = folder.as_os_str().as_bytes();
    all()
        .filter(|process| {
            fs::read(format!("/proc/{}/environ", process.0))
                .is_ok_and(|environment| environment.windows(mark.len()).any(|window| window == mark))
        })
        .collect()
}

fn all() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process))
}
