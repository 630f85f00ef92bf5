//! How busy workers are, from one look to the next.

use tokio::time::Instant;

use crate::fleet::worker::Worker;

/// What was seen of the workers when it was looked last.
pub(crate) struct Load {
    pub(crate) seen: Instant,
    /// CPU time of each worker (ms), with the process that it is of.
    cpu_ms: Vec<(u64, u32)>,
}

impl Load {
    /// Nothing yet.
    pub(crate) fn new() -> Load {
        Load { seen: Instant::now(), cpu_ms: Vec::new() }
    }

    /// Looks again: of each worker that runs, by its place, which part of a core it has taken since. One that has another process
    /// now has no figure for this time.
    pub(crate) fn look(&mut self, workers: &[Worker]) -> Vec<(usize, f64)> {
        let now: Vec<(u64, u32)> =
            workers.iter().map(|worker| (worker.cpu_ms(), worker.info().pid)).collect();
        let before = std::mem::replace(self, Load { seen: Instant::now(), cpu_ms: now.clone() });
        let period_ms = before.seen.elapsed().as_millis() as f64;
        let pairs = now.iter().zip(&before.cpu_ms).enumerate();
        let same = pairs.filter(|(_, (now, before))| now.1 == before.1);
        same.map(|(place, (now, before))| (place, now.0.saturating_sub(before.0) as f64 / period_ms))
            .collect()
    }
}
