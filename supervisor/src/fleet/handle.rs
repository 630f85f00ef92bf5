//! A process by its pidfd: a number that another process may get later never stands for it.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    process::ExitStatus,
};

use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;

/// A process: a child of ours, or one that another supervisor had started.
pub(crate) struct Handle {
    process: AsyncFd<OwnedFd>,
}

impl Handle {
    /// A child that has not been waited for, by its number; or a process that the caller looks at afterwards: the number may
    /// have become that of another before.
    ///
    /// # Errors
    /// When there is no such process, or no descriptor left.
    pub(crate) fn of_process(pid: u32) -> io::Result<Handle> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Handle::new(pidfd_open(pid, PidfdFlags::empty())?)
    }

    fn new(process: OwnedFd) -> io::Result<Handle> {
        Ok(Handle { process: crate::sys::watch(process)? })
    }

    /// Waits until it has ended. Its status, where it was a child of ours.
    ///
    /// # Errors
    /// `NotFound` for a process that was no child of ours.
    pub(crate) async fn ended(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.process.readable().await?;
            match waitid(
                WaitId::PidFd(self.process.get_ref().as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            ) {
                Ok(Some(status)) => {
                    let raw = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code << 8,
                        (None, Some(signal)) => signal,
                        (None, None) => 0,
                    };
                    return Ok(ExitStatus::from_raw(raw));
                }
                Ok(None) => ready.clear_ready(),
                Err(rustix::io::Errno::CHILD) => return Err(io::ErrorKind::NotFound.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends it a signal; nothing happens when it has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let Some(wanted) = rustix::process::Signal::from_named_raw(signal as i32) else { return };
        match pidfd_send_signal(self.process.get_ref(), wanted) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!("{signal} could not be sent: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    // The handle waits for it.
    #[allow(clippy::zombie_processes)]
    fn start(script: &str) -> Handle {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        Handle::of_process(child.id()).unwrap()
    }

    #[tokio::test]
    async fn a_child_that_has_ended_is_reaped_with_its_status() {
        assert_eq!(start("exit 3").ended().await.unwrap().code(), Some(3));
        let sleeper = start("read line; exec sleep 60");
        sleeper.signal(Signal::SIGKILL);
        assert_eq!(sleeper.ended().await.unwrap().signal(), Some(9));
        // It is gone, and nobody else gets the signal.
        sleeper.signal(Signal::SIGKILL);
    }

    #[tokio::test]
    async fn of_a_process_that_is_no_child_only_the_end_is_seen() {
        use std::io::{BufRead as _, BufReader};
        let mut parent = Command::new("sh")
            .args(["-c", "sleep 60 >/dev/null 2>&1 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let stranger = Handle::of_process(line.trim().parse().unwrap()).unwrap();
        stranger.signal(Signal::SIGTERM);
        assert_eq!(stranger.ended().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        parent.wait().unwrap();
    }
}
