//! Which processes are workers, for who must have nothing to do with them: no worker has business at the command socket, so one that
//! connects there runs a stranger's code.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::fleet::process::{is_alive, parent_of};

/// Generations of processes that are looked at: what a worker starts is a worker's, too.
const GENERATIONS: usize = 32;
/// A process that has ended stands in the roster for so long: connections that it has made may still wait to be accepted.
const AFTER_THE_END: Duration = Duration::from_secs(60);

/// The processes of workers: those that serve, leave, or are to end, and those that have ended a short time ago.
#[derive(Clone, Default)]
pub(crate) struct Roster(Arc<watch::Sender<BTreeMap<u32, Standing>>>);

/// One of them.
#[derive(Default)]
struct Standing {
    /// Entries that are there.
    entries: usize,
    /// Until when it stands there without any.
    until: Option<Instant>,
}

impl Standing {
    fn holds(&self) -> bool {
        self.entries > 0 || self.until.is_some_and(|until| until > Instant::now())
    }
}

/// A process stands in the roster as long as this is there, and [`AFTER_THE_END`] longer if it has ended by then.
pub(crate) struct Entry {
    roster: Roster,
    pid: u32,
}

impl Roster {
    /// Adds a process.
    pub(crate) fn enter(&self, pid: u32) -> Entry {
        self.0.send_modify(|all| {
            all.retain(|_, standing| standing.holds());
            all.entry(pid).or_default().entries += 1;
        });
        Entry { roster: self.clone(), pid }
    }

    /// The worker process that this process is, or comes from as far as that is to be seen.
    pub(crate) fn worker_of(&self, pid: u32) -> Option<u32> {
        let all = self.0.borrow();
        let line = std::iter::successors(Some(pid), |pid| parent_of(*pid));
        line.take(GENERATIONS).find(|pid| all.get(pid).is_some_and(Standing::holds))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // One that lives is known to be no worker after all.
        let until = (!is_alive(self.pid)).then(|| Instant::now() + AFTER_THE_END);
        self.roster.0.send_modify(|all| {
            if let Some(standing) = all.get_mut(&self.pid) {
                standing.entries -= 1;
                standing.until = until;
            }
            all.retain(|_, standing| standing.holds());
        });
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_a_workers_while_it_stands_there_and_so_is_what_it_starts() {
        let (roster, own) = (Roster::default(), std::process::id());
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        assert_eq!(roster.worker_of(own), None);
        let (one, two) = (roster.enter(own), roster.clone().enter(own));
        assert_eq!((roster.worker_of(own), roster.worker_of(child.id())), (Some(own), Some(own)));
        assert_eq!(roster.worker_of(1), None);
        drop(one);
        assert_eq!(roster.worker_of(own), Some(own));
        drop(two);
        assert_eq!(roster.worker_of(child.id()), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_has_ended_stands_there_for_a_while() {
        let roster = Roster::default();
        let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let (pid, entry) = (child.id(), roster.enter(child.id()));
        child.wait().unwrap();
        drop(entry);
        assert_eq!(roster.worker_of(pid), Some(pid), "what it has put into the queue is looked at now");
        roster.0.send_modify(|all| all.get_mut(&pid).unwrap().until = Some(Instant::now()));
        assert_eq!(roster.worker_of(pid), None);
        let _other = roster.enter(std::process::id());
        assert!(!roster.0.borrow().contains_key(&pid), "it takes room for ever");
    }
}
