//! A disk that stands still for a while.

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{Need, Process, machine, send_signal};

/// Some system calls of a process take as long as one likes, by `strace`, until this is dropped.
pub(crate) struct SlowDisk(Child);

impl SlowDisk {
    /// Whether this machine can have one; see [`machine::has`].
    #[track_caller]
    pub(crate) fn can_be_had() -> bool {
        machine::has(Need::Root) && machine::has(Need::Program("strace"))
    }

    /// Each of `calls` takes `time` more; only those that are about `path`, if there is one.
    pub(crate) fn under(process: Process, calls: &str, path: Option<&Path>, time: Duration) -> SlowDisk {
        let mut strace = Command::new("strace")
            .args(["-f", "-p", &process.0.to_string(), "-o", "/dev/null"])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:delay_enter={}", time.as_micros())])
            .args(path.map(|path| ["-P".as_ref(), path.as_os_str()]).into_iter().flatten())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says that it is attached.
        let mut said = [0; 256];
        let length = strace.stderr.as_mut().unwrap().read(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said[..length]).into_owned();
        assert!(said.contains("attached"), "{said}");
        SlowDisk(strace)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        send_signal(Process(self.0.id()), Signal::SIGINT);
        let _ = self.0.wait();
    }
}
