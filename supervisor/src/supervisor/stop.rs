//! A stop: what is in flight may finish until the deadline, or until the second signal.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    fleet::{process::KILL_SLACK, worker::Worker},
    host::init_system,
    supervisor::{End, Stopping, Supervisor},
};

impl Supervisor {
    pub(super) fn on_stop(&mut self, signal: &'static str) {
        match &self.stopping {
            None => {
                let deadline_ms = self.state.settings.graceful_timeout_ms;
                tracing::info!(
                    "{signal}: stopping; what is in flight has {deadline_ms} ms, a second signal cuts it"
                );
                self.health.stop();
                self.names.stop();
                init_system::stopping();
                let kill_at = Instant::now() + Duration::from_millis(deadline_ms) + KILL_SLACK;
                self.stopping = Some(Stopping { kill_at: Some(kill_at), end: End::Clean });
                self.workers.iter_mut().for_each(|worker| worker.stop(deadline_ms));
            }
            Some(_) => {
                tracing::warn!("{signal} again: stopping at once");
                self.cut();
            }
        }
    }

    /// Kills whoever is still there.
    pub(super) fn cut(&mut self) {
        let anybody = self.workers.iter().any(Worker::has_future);
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = None;
            if anybody {
                stopping.end = End::Cut;
            }
        }
        self.workers.iter_mut().for_each(Worker::kill);
        self.dismissed.kill();
    }

    /// Whether a stop has begun: whatever else is under way must end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }
}
