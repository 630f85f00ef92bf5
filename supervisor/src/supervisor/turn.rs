//! The one place where the supervisor waits.
//!
//! Whatever takes a while (an upgrade, a change, a scaling, a start) is a loop over [`Supervisor::turn`]: while it waits for
//! what it needs, signals are obeyed, the watchdog is fed, workers that died are replaced, and questions that change nothing
//! are answered. Those that change something wait in a line, as one operation runs at a time.
//!
//! Every operation must look at [`Supervisor::is_stopping`] after a turn, and end: a stop waits for none.

use std::pin::pin;

use tokio::time::Instant;

use crate::{
    fleet::{attend::Event, worker::Worker},
    host::signals::{self, Wish},
    supervisor::Supervisor,
    timer::sleep_until,
};

/// Most of what waits that is attended to before work on this thread goes on.
const MOST_WAITING: usize = 16;

/// What a turn has brought.
pub(crate) enum Happened {
    /// Something about a process, of which nobody has taken note yet: [`Supervisor::on_event`] does.
    Event(Event),
    /// It is the time until which the operation waits.
    Late,
    /// Something that was attended to. The operation may find it stopped, or a worker gone.
    Other,
}

/// A stop has begun.
pub(crate) struct Stopped;

impl Supervisor {
    /// Waits until something happens, and attends to it; not longer than `until`. May be given up at any time without loss.
    pub(crate) async fn turn(&mut self, until: Option<Instant>) -> Happened {
        let wake = self.next_due();
        tokio::select! {
            Some(event) = self.events.recv() => return Happened::Event(event),
            wish = self.signals.next() => match wish {
                // When the operation that runs has ended.
                Wish::Reload => self.reload_due = true,
                Wish::Reap => {
                    let helpers = self.helpers.iter().copied();
                    let ours: Vec<u32> = self.workers.iter().flat_map(Worker::pids).chain(helpers).collect();
                    signals::reap_strangers(&ours);
                }
                Wish::Stop(signal) => self.on_stop(signal),
            },
            Some(question) = self.asked.recv() => {
                // Each client has one question at a time, so that the line is as long as there are places for clients.
                if let Some(question) = self.answer_now(question) {
                    self.line.push_back(question);
                }
            }
            Some(ask) = self.admin.asked.recv() => self.answer_admin(ask),
            () = self.saving.is_to_go_on() => self.go_on_saving(),
            () = self.state_text.comes() => {}
            () = self.telling_state.is_to_go_on() => self.tell_state(),
            Some(()) = self.dismissed.next() => {}
            () = self.health.news() => self.tell_health(),
            () = self.names.news() => self.tell_names(),
            changed = self.certificates.watching.changed() => self.changed_files.extend(changed),
            () = sleep_until(wake) => self.on_due(),
            () = sleep_until(until) => return Happened::Late,
        }
        Happened::Other
    }

    /// Serves until `work` is done, which must not need this supervisor.
    ///
    /// # Errors
    /// When a stop has begun: nobody waits for it any more then.
    pub(crate) async fn serve_until<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        let mut work = pin!(work);
        while !self.is_stopping() {
            tokio::select! {
                done = &mut work => return Ok(done),
                happened = self.turn(None) => if let Happened::Event(event) = happened {
                    self.on_event(event);
                },
            }
        }
        Err(Stopped)
    }

    /// Attends to what waits now, in the midst of what takes long on this thread.
    pub(crate) async fn serve_waiting(&mut self) {
        // Sockets and signals are looked at.
        tokio::task::yield_now().await;
        for _ in 0..MOST_WAITING {
            match self.turn(Some(Instant::now())).await {
                Happened::Event(event) => drop(self.on_event(event)),
                Happened::Late => break,
                Happened::Other => {}
            }
        }
    }

    /// As [`Supervisor::serve_beside`], to its end also when a stop has begun: for what only computes.
    ///
    /// # Panics
    /// When `work` does.
    pub(crate) async fn serve_to_end<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let mut work = tokio::task::spawn_blocking(work);
        loop {
            tokio::select! {
                done = &mut work => match done {
                    Ok(done) => return done,
                    // It was not cancelled: nobody else has its handle.
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                },
                happened = self.turn(None) => if let Happened::Event(event) = happened {
                    self.on_event(event);
                },
            }
        }
    }

    /// As [`Supervisor::serve_until`], also when a stop has begun, but not longer than `until`: `None` then.
    pub(crate) async fn serve_late<T>(&mut self, until: Instant, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                happened = self.turn(Some(until)) => match happened {
                    Happened::Event(event) => drop(self.on_event(event)),
                    Happened::Late => return None,
                    Happened::Other => {}
                },
            }
        }
    }

    /// Runs what computes for long, or waits for a disk, on a thread of its own, and serves meanwhile.
    ///
    /// # Errors
    /// When a stop has begun: it is not begun any more then, or goes on to its end with nobody waiting.
    ///
    /// # Panics
    /// When `work` does.
    pub(crate) async fn serve_beside<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        if self.is_stopping() {
            return Err(Stopped);
        }
        match self.serve_until(tokio::task::spawn_blocking(work)).await? {
            Ok(done) => Ok(done),
            // It was not cancelled: nobody else has its handle.
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}
