//! How a worker ends that was told to: when nothing is left, or at its deadline.

use std::rc::Rc;

use super::{End, Worker};
use crate::{limits, observe::Counter, ring::Timer};

impl Worker {
    pub(super) fn end_when_drained(self: &Rc<Self>, deadline_ms: u64) {
        let due = self.connections.shared.ring.now().saturating_add(deadline_ms);
        let planned = self.end_due.get();
        self.end_due.set(Some(planned.map_or(due, |planned| planned.min(due))));
        if planned.is_some() {
            // Its task looks at the deadline again.
            self.connections.wake_waiting();
            return;
        }
        let worker = Rc::clone(self);
        self.connections.shared.ring.spawn(async move {
            let timer = Timer::new(&worker.connections.shared.ring);
            let in_time = worker.drained(&timer).await || worker.close_idle(&timer).await;
            let end = if in_time {
                End::Drained
            } else {
                let cut = worker.connections.shared.counters.get(Counter::Connections);
                tracing::warn!(
                    connections = cut,
                    "the time to finish has passed: cutting what is still in flight"
                );
                End::Cut
            };
            worker.end.set(Some(end));
            worker.connections.shared.ring.note_local_work();
        });
    }

    /// Waits until nothing is left, or until the end is due. Whether nothing is left.
    async fn drained(&self, timer: &Timer) -> bool {
        while !self.connections.is_drained() {
            let due = self.end_due.get().unwrap_or_default();
            timer.set_at(due);
            if timer.limit(self.connections.connection_closed()).await.is_err()
                && self.end_due.get() == Some(due)
            {
                return self.connections.is_drained();
            }
        }
        true
    }

    /// Closes what is idle and could not be handed over. Whether nothing is left then.
    async fn close_idle(&self, timer: &Timer) -> bool {
        if !self.connections.is_handing_over() {
            return false;
        }
        self.connections.drain(u64::MAX);
        // Each lingers for so long by itself.
        timer.set(self.connections.stop_idle_grace_ms.get() + 2 * limits::LINGER_TIMEOUT_MS);
        let closed = async {
            while !self.connections.is_drained() {
                self.connections.connection_closed().await;
            }
        };
        timer.limit(closed).await.is_ok()
    }
}
