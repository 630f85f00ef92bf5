//! The admin address: what it asks of the loop, and how it follows the settings.

use std::os::fd::OwnedFd;

use kakehi_ctl::{limits, state::Settings};
use tokio::time::{Duration, Instant};

use crate::{
    admin::{self, Ask, Opened, Standing},
    fleet::worker::{self, Worker},
    metrics::Snapshot,
    supervisor::{Supervisor, turn::Stopped},
};

impl Supervisor {
    pub(super) fn answer_admin(&self, ask: Ask) {
        // Whoever asked may have left; that is nobody's loss.
        match ask {
            Ask::Snapshot(answer) => drop(answer.send(self.snapshot())),
            Ask::Standing(answer) => drop(answer.send(self.standing())),
        }
    }

    /// All figures of this moment.
    fn snapshot(&self) -> Snapshot {
        Snapshot::new(worker::sum(&self.workers).into_iter().chain(self.admin.figures()).collect())
    }

    fn standing(&self) -> Standing {
        let missing =
            |worker: &Worker| worker.is_missing().map(|why| format!("worker {} {why}", worker.id()));
        let lacks = if self.is_stopping() {
            Some("kakehi is stopping".to_owned())
        } else if !self.settled {
            Some("kakehi is starting: the state is not loaded yet".to_owned())
        } else if self.workers.is_empty() {
            Some("kakehi is starting: there are no workers yet".to_owned())
        } else {
            self.workers.iter().find_map(missing)
        };
        Standing { serves: self.workers.iter().any(Worker::serves), lacks }
    }

    /// Opens the admin address of these settings, if it is another than the one that is served, which stays until
    /// [`Supervisor::take_admin`].
    ///
    /// # Errors
    /// When it cannot be had; [`Stopped`] when a stop has begun.
    pub(crate) async fn open_admin(
        &mut self,
        wanted: &Settings,
    ) -> Result<Result<Option<Opened>, admin::Error>, Stopped> {
        let Some(address) = wanted.admin.address.clone() else { return Ok(Ok(None)) };
        if self.admin.address() == Some(&address) {
            return Ok(Ok(None));
        }
        let beside = match self.admin.left() {
            Ok(beside) => beside,
            Err(error) => return Ok(Err(error.into())),
        };
        let opened = self.serve_until(async move { admin::open(&address, beside).await }).await?;
        Ok(opened.map(Some))
    }

    /// Serves what was opened for the settings that hold now, or goes on with what is served.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub(crate) fn take_admin(&mut self, opened: Option<Opened>) -> Result<(), admin::Error> {
        let settings = &self.state.settings.admin;
        match opened {
            Some(opened) => {
                let served = self.admin.serve(opened, settings);
                if let (Ok(()), Some(address)) = (&served, &settings.address) {
                    tracing::info!("the admin address is {address}");
                }
                Ok(served?)
            }
            None => {
                self.admin.take(settings);
                Ok(())
            }
        }
    }

    /// Goes on with the socket that the program before has left, or opens one; without one, everything else goes on.
    pub(crate) async fn inherit_admin(&mut self, left: Option<OwnedFd>) {
        let settings = self.state.settings.clone();
        let opened = match (&settings.admin.address, left) {
            (Some(address), Some(socket)) => Ok(Some(Opened::inherit(address, socket))),
            _ => match self.open_admin(&settings).await {
                Ok(opened) => opened,
                Err(Stopped) => return,
            },
        };
        if let Err(error) = opened.and_then(|opened| self.take_admin(opened)) {
            tracing::error!("there is no admin address: {error}");
        }
    }

    /// Takes no new clients of the admin address; those that are there get their answers, if that does not take long.
    pub(crate) async fn pause_admin(&mut self) {
        let paused = self.admin.pause();
        let late = Instant::now() + Duration::from_millis(limits::ADMIN_DRAIN_MS);
        let _ = self.serve_late(late, paused).await;
    }
}
