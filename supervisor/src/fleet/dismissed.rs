//! Processes that another supervisor left and that are no workers of this one: each was told to end, and is killed if it does not.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::fleet::{
    adoption_file::AdoptionFile,
    handle::Handle,
    process::KILL_SLACK,
    record::{Identity, ProcessRecord},
    roster::{Entry, Roster},
};

/// Those that have not ended yet.
pub(crate) struct Dismissed {
    ending: JoinSet<u64>,
    left: BTreeMap<u64, Left>,
    added: u64,
    at_once: watch::Sender<bool>,
}

/// One of them.
struct Left {
    process: Identity,
    adoption: Option<PathBuf>,
    kill_at: Instant,
}

/// One of them, for a program that comes in the place of this one.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub(crate) process: Identity,
    /// Its adoption socket, which goes with it.
    pub(crate) adoption: Option<PathBuf>,
    /// It is killed after so long.
    kill_in_ms: u64,
}

impl Dismissed {
    pub(crate) fn new() -> Dismissed {
        let at_once = watch::channel(false).0;
        Dismissed { ending: JoinSet::new(), left: BTreeMap::new(), added: 0, at_once }
    }

    /// Has a process end, which is killed if it has not within `stop_ms`.
    pub(crate) fn add(
        &mut self,
        process: Identity,
        handle: Handle,
        entry: Entry,
        adoption: Option<AdoptionFile>,
        stop_ms: u64,
    ) {
        handle.signal(Signal::SIGTERM);
        let kill_at = Instant::now() + Duration::from_millis(stop_ms) + KILL_SLACK;
        self.see_out(process, handle, entry, adoption, kill_at);
    }

    /// Goes on with one that the program before has told to end.
    pub(crate) fn go_on(&mut self, Ending { process, adoption, kill_in_ms }: Ending, roster: &Roster) {
        let adoption = adoption.map(|path| match ProcessRecord::read(&path) {
            Ok(Some(record)) if record.identity() == process => AdoptionFile::of(path, record),
            _ => AdoptionFile::at(path),
        });
        let handle = Handle::of_process(process.pid);
        match (handle, process.check_alive()) {
            (Ok(handle), Ok(())) => {
                let kill_at = Instant::now() + Duration::from_millis(kill_in_ms);
                let entry = roster.enter(process.pid);
                self.see_out(process, handle, entry, adoption, kill_at);
            }
            _ => adoption.iter().for_each(AdoptionFile::remove),
        }
    }

    fn see_out(
        &mut self,
        process: Identity,
        handle: Handle,
        entry: Entry,
        adoption: Option<AdoptionFile>,
        kill_at: Instant,
    ) {
        self.added += 1;
        let number = self.added;
        let path = adoption.as_ref().map(|it| it.path().to_owned());
        self.left.insert(number, Left { process, adoption: path, kill_at });
        let mut at_once = self.at_once.subscribe();
        self.ending.spawn(async move {
            let ended = tokio::select! {
                _ = handle.ended() => true,
                _ = at_once.wait_for(|at_once| *at_once) => false,
                () = tokio::time::sleep_until(kill_at) => false,
            };
            if !ended {
                handle.signal(Signal::SIGKILL);
                // How it has ended is nobody's business.
                let _ = handle.ended().await;
            }
            drop(entry);
            if let Some(adoption) = adoption {
                adoption.remove();
            }
            number
        });
    }

    /// Those that have not ended yet, for a program that comes in the place of this one.
    pub(crate) fn left(&self) -> Vec<Ending> {
        let left = self.left.values().map(|Left { process, adoption, kill_at }| {
            let kill_in = kill_at.saturating_duration_since(Instant::now()).as_millis();
            let kill_in_ms = u64::try_from(kill_in).unwrap_or(u64::MAX);
            Ending { process: process.clone(), adoption: adoption.clone(), kill_in_ms }
        });
        left.collect()
    }

    /// Kills those that are left.
    pub(crate) fn kill(&self) {
        self.at_once.send_replace(true);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ending.is_empty()
    }

    /// Waits until one more has ended; `None` at once when all have.
    pub(crate) async fn next(&mut self) -> Option<()> {
        // It cannot fail but by a panic, which ends the program.
        let ended = self.ending.join_next().await?;
        if let Ok(number) = ended {
            self.left.remove(&number);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    // Its handle waits for it.
    #[allow(clippy::zombie_processes)]
    #[tokio::test]
    async fn what_was_told_to_end_is_ended_also_by_the_program_that_comes() {
        let (roster, mut before) = (Roster::default(), Dismissed::new());
        // It does not end when it is told to.
        let script = "trap '' TERM; echo; while :; do read line; done";
        let mut child = Command::new("sh");
        let child = child.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = child.id();
        let process = Identity::of(pid).unwrap();
        before.add(process, Handle::of_process(pid).unwrap(), roster.enter(pid), None, 60_000);
        let mut left = before.left();
        assert_eq!((left.len(), left[0].process.pid), (1, pid));
        assert!(left[0].kill_in_ms > 50_000, "{}", left[0].kill_in_ms);
        left[0].kill_in_ms = 1;
        let (roster, mut after) = (Roster::default(), Dismissed::new());
        after.go_on(left.remove(0), &roster);
        assert_eq!(roster.worker_of(pid), Some(pid));
        let patience = Duration::from_secs(10);
        tokio::time::timeout(patience, after.next()).await.expect("its end");
        assert!(after.is_empty() && after.left().is_empty());
    }
}
