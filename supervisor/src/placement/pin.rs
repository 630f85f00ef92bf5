//! Where workers run: what cores the host has, and how workers are spread over them.
//!
//! A worker moves to another core as it is, with all that it has in flight: its process gets another affinity.

use std::{collections::BTreeSet, io, path::Path};

use kakehi_ctl::order::{Core, WorkerOutcome};

use crate::{
    host::{cores, topology},
    supervisor::Supervisor,
};

/// Why a worker was not moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no such worker.
    #[error("there is no worker {0}; `kakehictl workers` lists them")]
    NoWorker(u32),
    /// There is no such core, or it is not for kakehi.
    #[error("kakehi may not use core {core}; those that it may are {allowed}")]
    NotAllowed {
        /// Which one.
        core: u16,
        /// In words.
        allowed: String,
    },
    /// Nothing is left.
    #[error("no core is left that kakehi may use and that is as wished")]
    NoCore,
    /// The kernel refused.
    #[error("worker {id} cannot be tied to core {core}: {error}")]
    System {
        /// Which worker.
        id: u32,
        /// Which core.
        core: u16,
        /// What it said.
        error: io::Error,
    },
}

/// How workers shall be spread.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// One of the cores that share a physical one is enough.
    pub(crate) no_smt: bool,
    /// Only cores of this NUMA node.
    pub(crate) numa: Option<u32>,
    /// Leave cores alone that serve the interrupts of network cards.
    pub(crate) reserve_for_irq: bool,
}

impl Supervisor {
    /// Ties a worker to a core.
    ///
    /// # Errors
    /// See [`Refused`]; it stays where it is.
    pub(crate) async fn pin(
        &mut self,
        worker: u32,
        core: u16,
        by: &str,
    ) -> Result<Vec<WorkerOutcome>, Refused> {
        if worker as usize >= self.count() {
            return Err(Refused::NoWorker(worker));
        }
        let outcome = self.tie(worker, core, by).await?;
        self.note_placement().await;
        Ok(vec![outcome])
    }

    /// Spreads all workers over the cores, as wished.
    ///
    /// # Errors
    /// See [`Refused`]; workers before the one that it names have moved.
    pub(crate) async fn pin_auto(&mut self, wish: &Wish, by: &str) -> Result<Vec<WorkerOutcome>, Refused> {
        let chosen = choose(&topology::read(Path::new("/")).0, wish);
        if chosen.is_empty() {
            return Err(Refused::NoCore);
        }
        let places = (0..self.count() as u32).zip(chosen.iter().cycle());
        let mut outcomes = Ok(Vec::new());
        for (worker, core) in places {
            match (self.tie(worker, *core, by).await, &mut outcomes) {
                (Ok(outcome), Ok(outcomes)) => outcomes.push(outcome),
                (Err(refused), Ok(_)) => outcomes = Err(refused),
                (_, Err(_)) => break,
            }
        }
        self.note_placement().await;
        outcomes
    }

    /// Has the workers run where the settings say; what could not be done comes back.
    pub(crate) async fn pin_as_configured(&mut self, by: &str) -> Vec<String> {
        let wanted = self.state.settings.worker_cores.clone();
        let mut failed = Vec::new();
        if wanted.is_empty() {
            return failed;
        }
        for (id, core) in (0..self.count() as u32).zip(wanted) {
            let present = self.worker(id).and_then(|worker| worker.core());
            if present != Some(u32::from(core))
                && let Err(refused) = self.tie(id, core, by).await
            {
                failed.push(refused.to_string());
            }
        }
        self.note_placement().await;
        failed
    }

    async fn tie(&mut self, id: u32, core: u16, by: &str) -> Result<WorkerOutcome, Refused> {
        let allowed = cores::allowed();
        if !allowed.contains(&usize::from(core)) {
            let allowed = allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            return Err(Refused::NotAllowed { core, allowed });
        }
        let worker = self.worker(id).ok_or(Refused::NoWorker(id))?;
        worker.pin(usize::from(core)).map_err(|error| Refused::System { id, core, error })?;
        tracing::info!(worker = id, "runs on core {core}, for {by}");
        // Those before it in the list must be in it too.
        let listed = self.state.settings.worker_cores.len();
        let present = self.workers.iter().map(|worker| worker.core().and_then(|it| u16::try_from(it).ok()));
        let cores = present.map_while(|core| core).take(listed.max(id as usize + 1)).collect();
        self.own_state().await.settings.worker_cores = cores;
        self.steer();
        Ok(WorkerOutcome { id, outcome: format!("runs on core {core}") })
    }
}

/// Cores for workers, in the order in which they are to be used: first one of each physical core.
fn choose(cores: &[Core], wish: &Wish) -> Vec<u16> {
    let fits = |core: &&Core| {
        core.allowed
            && wish.numa.is_none_or(|node| core.node == node)
            && !(wish.reserve_for_irq && core.serves_interrupts)
    };
    let fitting: Vec<&Core> = cores.iter().filter(fits).collect();
    let mut physical = BTreeSet::new();
    let (first, second): (Vec<&Core>, Vec<&Core>) =
        fitting.into_iter().partition(|core| physical.insert(core.siblings.first().copied()));
    let second = if wish.no_smt { Vec::new() } else { second };
    first.into_iter().chain(second).filter_map(|core| u16::try_from(core.id).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two physical cores each, with two threads: 0 and 4 are one, 1 and 5, 2 and 6, 3 and 7.
    fn host() -> Vec<Core> {
        let core = |id: u32| Core {
            id,
            allowed: id != 7,
            siblings: vec![id % 4, id % 4 + 4],
            node: (id % 4) / 2,
            serves_interrupts: id == 0,
        };
        (0..8).map(core).collect()
    }

    #[test]
    fn physical_cores_come_first() {
        assert_eq!(choose(&host(), &Wish::default()), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(choose(&host(), &Wish { no_smt: true, ..Wish::default() }), [0, 1, 2, 3]);
        assert_eq!(choose(&host(), &Wish { numa: Some(1), ..Wish::default() }), [2, 3, 6]);
        let reserved = Wish { reserve_for_irq: true, no_smt: true, numa: Some(0) };
        assert_eq!(choose(&host(), &reserved), [1, 4]);
        assert!(choose(&host(), &Wish { numa: Some(9), ..Wish::default() }).is_empty());
    }
}
