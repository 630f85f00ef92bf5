//! Which processes are workers, for who must have nothing to do with them: no worker has business at the command socket, so one that
//! connects there runs a stranger's code.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use crate::fleet::process::parent_of;

/// Generations of processes that are looked at: what a worker starts is a worker's, too.
const GENERATIONS: usize = 32;

/// The processes of workers that live: those that serve, leave, or are to end.
#[derive(Clone, Default)]
pub(crate) struct Roster(Arc<watch::Sender<BTreeMap<u32, usize>>>);

/// A process stands in the roster as long as this is there.
pub(crate) struct Entry {
    roster: Roster,
    pid: u32,
}

impl Roster {
    /// Adds a process.
    pub(crate) fn enter(&self, pid: u32) -> Entry {
        self.0.send_modify(|all| *all.entry(pid).or_default() += 1);
        Entry { roster: self.clone(), pid }
    }

    /// The worker process that this process is, or comes from as far as that is to be seen.
    pub(crate) fn worker_of(&self, pid: u32) -> Option<u32> {
        let all = self.0.borrow();
        let line = std::iter::successors(Some(pid), |pid| parent_of(*pid));
        line.take(GENERATIONS).find(|pid| all.contains_key(pid))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roster.0.send_modify(|all| {
            if let Some(count) = all.get_mut(&self.pid) {
                *count -= 1;
            }
            all.retain(|_, count| *count > 0);
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
}
