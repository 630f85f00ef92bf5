//! Connections move from the busiest worker to the idlest.
//!
//! What moves are connections at rest, in the way of an upgrade: a channel from the one worker to the other, and the
//! number. Where too few are at rest now, others follow as they come to rest.

use std::{cmp::Ordering, time::Duration};

use kakehi_ctl::order::{Order, WorkerOutcome, WorkerState};
use kakehi_engine::worker::DescriptorKind;
use tokio::time::Instant;

use crate::{fleet::worker::add_up, scm, supervisor::Supervisor};

/// With less work than this in a period (of one core), whatever is unequal hurts nobody.
const LEAST_LOAD: f64 = 0.05;
/// Fewer connections are not worth it.
const FEWEST: u64 = 2;

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It is too late.
    #[error("kakehi is stopping")]
    Stopping,
    /// A worker did not take part.
    #[error("worker {id}: {reason}")]
    Worker {
        /// Which one.
        id: u32,
        /// Why.
        reason: String,
    },
}

/// One move.
#[derive(Debug, PartialEq, Eq)]
struct Move {
    from: u32,
    to: u32,
    connections: u32,
}

impl Supervisor {
    /// Moves connections until all workers have about as many.
    ///
    /// # Errors
    /// See [`Refused`]; moves before it are made.
    pub(crate) async fn rebalance(&mut self, by: &str) -> Result<Vec<WorkerOutcome>, Refused> {
        if self.stopping.is_some() {
            return Err(Refused::Stopping);
        }
        let running = self.workers.iter().filter(|worker| worker.state() == WorkerState::Running);
        let connections: Vec<(u32, u64)> =
            running.map(|worker| (worker.id(), worker.connections())).collect();
        let mut outcomes = Vec::new();
        for it in moves(connections) {
            self.carry_out(&it, by).await?;
            let outcome = format!("gives {} connections to worker {}", it.connections, it.to);
            outcomes.push(WorkerOutcome { id: it.from, outcome });
        }
        Ok(outcomes)
    }

    async fn carry_out(&mut self, it: &Move, by: &str) -> Result<(), Refused> {
        let failed = |id: u32, reason: String| Refused::Worker { id, reason };
        let (ours, theirs) = scm::pair().map_err(|error| failed(it.to, error.to_string()))?;
        for (id, kind, channel, order) in [
            (it.to, DescriptorKind::Predecessor, &ours, Order::Take),
            (it.from, DescriptorKind::Successor, &theirs, Order::Share { connections: it.connections }),
        ] {
            let worker = self.worker(id).ok_or_else(|| failed(id, "it is gone".to_owned()))?;
            worker.pass_descriptors(&[(kind, channel)]).map_err(|error| failed(id, error.to_string()))?;
            self.order_worker(id, order).await.map_err(|reason| failed(id, reason))?;
        }
        tracing::info!(
            worker = it.from,
            "gives {} connections to worker {}, for {by}",
            it.connections,
            it.to
        );
        Ok(())
    }

    /// When it is to be looked next whether workers are too unequally busy.
    pub(crate) fn rebalance_due(&self) -> Option<Instant> {
        let settings = &self.state.settings;
        let interval = Duration::from_millis(settings.rebalance_interval_ms);
        (settings.rebalance_auto && self.stopping.is_none()).then(|| self.load.seen + interval)
    }

    /// Moves connections if the workers were too unequally busy since it was looked last.
    pub(crate) async fn rebalance_if_due(&mut self) {
        if self.rebalance_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let mut loads = Vec::new();
        for (place, load) in self.load.look(&self.workers) {
            let worker = &self.workers[place];
            if worker.state() == WorkerState::Running {
                loads.push((worker.id(), load, worker.connections()));
            }
        }
        let threshold = f64::from(self.state.settings.rebalance_threshold) / 100.0;
        if let Some(it) = relief(&loads, threshold)
            && let Err(refused) = self.carry_out(&it, "`rebalance = \"auto\"`").await
        {
            tracing::warn!("connections were not moved: {refused}");
        }
    }
}

/// The moves after which no two workers differ by more than one; `workers` with the connections that each has.
fn moves(mut workers: Vec<(u32, u64)>) -> Vec<Move> {
    let total = add_up(workers.iter().map(|(_, connections)| *connections));
    let count = (workers.len() as u64).max(1);
    workers.sort_by_key(|(_, connections)| std::cmp::Reverse(*connections));
    // Those that have most keep one more each, where it does not come out even.
    let wanted = |place: u64| total / count + u64::from(place < total % count);
    let (mut givers, mut takers) = (Vec::new(), Vec::new());
    for (place, (id, has)) in (0..).zip(workers) {
        match has.cmp(&wanted(place)) {
            Ordering::Greater => givers.push((id, has - wanted(place))),
            Ordering::Less => takers.push((id, wanted(place) - has)),
            Ordering::Equal => {}
        }
    }
    let mut moves = Vec::new();
    while let (Some((from, surplus)), Some((to, lack))) = (givers.last_mut(), takers.last_mut()) {
        let amount = (*surplus).min(*lack);
        moves.push(Move { from: *from, to: *to, connections: u32::try_from(amount).unwrap_or(u32::MAX) });
        (*surplus, *lack) = (*surplus - amount, *lack - amount);
        givers.retain(|(_, surplus)| *surplus > 0);
        takers.retain(|(_, lack)| *lack > 0);
    }
    moves
}

/// The move that makes the busiest and the idlest worker about equal, if they differ by more than `threshold` of the
/// mean. `workers`: load (share of a core) and connections.
fn relief(workers: &[(u32, f64, u64)], threshold: f64) -> Option<Move> {
    let by_load = |a: &&(u32, f64, u64), b: &&(u32, f64, u64)| a.1.total_cmp(&b.1);
    let (busiest, idlest) = (workers.iter().max_by(by_load)?, workers.iter().min_by(by_load)?);
    let mean = workers.iter().map(|(_, load, _)| load).sum::<f64>() / workers.len() as f64;
    let difference = busiest.1 - idlest.1;
    if mean < LEAST_LOAD || difference <= threshold * mean {
        return None;
    }
    // As if all connections of a worker were equally busy.
    let connections = (busiest.2 as f64 * difference / (2.0 * busiest.1)) as u64;
    (connections >= FEWEST).then(|| Move {
        from: busiest.0,
        to: idlest.0,
        connections: u32::try_from(connections).unwrap_or(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_moves_all_have_about_as_many() {
        for before in [
            vec![],
            vec![5],
            vec![10, 0],
            vec![0, 10],
            vec![7, 7, 7],
            vec![3, 4],
            vec![100, 1, 0, 50],
            vec![9, 0, 0, 0, 0],
            vec![2, 0, 0],
        ] {
            let mut after: Vec<u64> = before.clone();
            for it in moves((0..).zip(before.iter().copied()).collect()) {
                after[it.from as usize] -= u64::from(it.connections);
                after[it.to as usize] += u64::from(it.connections);
            }
            let (most, least) = (after.iter().max().unwrap_or(&0), after.iter().min().unwrap_or(&0));
            assert!(most - least <= 1, "{before:?} became {after:?}");
            assert_eq!(after.iter().sum::<u64>(), before.iter().sum::<u64>());
        }
    }

    #[test]
    fn only_a_difference_that_matters_is_relieved() {
        assert_eq!(relief(&[], 0.5), None);
        assert_eq!(relief(&[(0, 0.9, 100)], 0.5), None);
        assert_eq!(relief(&[(0, 0.03, 100), (1, 0.0, 0)], 0.5), None, "nearly nothing to do");
        assert_eq!(relief(&[(0, 0.6, 100), (1, 0.5, 90)], 0.5), None, "about equal");
        assert_eq!(relief(&[(0, 0.9, 1), (1, 0.1, 1)], 0.5), None, "one connection cannot be halved");
        let expected = Move { from: 0, to: 1, connections: 40 };
        assert_eq!(relief(&[(0, 1.0, 100), (1, 0.2, 5)], 0.5), Some(expected));
    }
}
