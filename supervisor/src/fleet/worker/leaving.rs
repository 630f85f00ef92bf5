//! The processes of a worker whose place was taken: they finish what they have, hand over what they can, and end.

use std::{io, time::Duration};

use kakehi_ctl::{
    order::{Order, Report},
    state::Settings,
};
use kakehi_engine::observe::Counters;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::{STOP, Worker};
use crate::fleet::{
    adoption::Orphan,
    attend::{Attendance, Event, What},
    process::{Block, Process, reason_of_end},
};

/// A process that leaves and has not ended so long after its own deadline is killed.
const LEAVE_SLACK: Duration = Duration::from_secs(1);

/// A process whose place was taken.
pub(super) struct Leaving {
    pub(super) process: Process,
    pub(super) counters: Counters,
    /// It is killed if it has not ended by then.
    pub(super) kill_at: Instant,
}

impl Worker {
    /// Takes note of a process that was leaving when another supervisor left it, or that must.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor or memory.
    pub(crate) fn adopt_leaving(&mut self, orphan: Orphan, attendance: &Attendance) -> io::Result<()> {
        let Orphan { about, counters, launched, .. } = orphan;
        self.launches = self.launches.max(about.launch);
        let deadline_ms = self.settings.drain_timeout_ms;
        let must_be_told = !about.leaving;
        let process = Process::adopt(about, launched, attendance)?;
        if must_be_told {
            process.order(STOP, Order::Stop { deadline_ms }).map_err(io::Error::other)?;
        }
        let kill_at = self.kill_at();
        self.leaving.push(Leaving { process, counters: Block::map(counters)?.counters, kill_at });
        Ok(())
    }

    /// When a process must have ended that leaves from now on.
    pub(super) fn kill_at(&self) -> Instant {
        let Settings { drain_timeout_ms, stop_idle_grace_ms, .. } = self.settings;
        Instant::now() + Duration::from_millis(drain_timeout_ms + stop_idle_grace_ms) + LEAVE_SLACK
    }

    /// Gives the processes that leave an order, whose answer nobody waits for.
    pub(crate) fn order_leaving(&self, order: &Order) {
        for Leaving { process, .. } in &self.leaving {
            // One that does not read ends at its own deadline.
            let _ = process.order(STOP, order.clone());
        }
    }

    /// Orders a process to give away what it has and to end.
    pub(super) fn let_leave(&mut self, before: Process, counters: Counters) {
        let deadline_ms = self.settings.drain_timeout_ms;
        if let Err(error) = before.order(STOP, Order::HandOver { deadline_ms }) {
            tracing::warn!(
                worker = self.id,
                "cannot be ordered to hand over ({error}), sending SIGTERM instead"
            );
            before.send(Signal::SIGTERM);
        }
        let kill_at = self.kill_at();
        self.leaving.push(Leaving { process: before, counters, kill_at });
    }

    pub(super) fn on_event_of_leaving(&mut self, event: Event) {
        let Some(place) = self.leaving.iter().position(|it| it.process.launch == event.launch) else {
            return;
        };
        match event.what {
            What::Ended(status) => {
                let Leaving { process, counters, .. } = self.leaving.remove(place);
                self.ended.counters.absorb(&counters);
                if process.drained == Some(true) {
                    tracing::info!(
                        worker = self.id,
                        pid = process.pid,
                        "has handed everything over and ended"
                    );
                } else {
                    let reason = reason_of_end(process.last_words, status);
                    tracing::warn!(
                        worker = self.id,
                        pid = process.pid,
                        "did not hand everything over: {reason}"
                    );
                }
            }
            What::Reported(_, Report::Finished { drained }) => {
                self.leaving[place].process.drained = Some(drained);
            }
            What::Reported(_, Report::Refused { reason }) => {
                if self.may_complain() {
                    tracing::warn!(worker = self.id, "refused to hand over: {reason}");
                }
                self.leaving[place].process.send(Signal::SIGTERM);
            }
            What::Mute(position) => {
                let reason = self.unresponsive(&position);
                let process = &mut self.leaving[place].process;
                process.last_words = Some(reason);
                process.kill();
            }
            What::Reported(..) | What::Deaf(_) => {}
        }
    }

    /// When a process that leaves must have ended.
    pub(crate) fn leave_due(&self) -> Option<Instant> {
        self.leaving.iter().filter(|it| !it.process.killed).map(|it| it.kill_at).min()
    }

    /// Kills those that should have left by `now`.
    pub(crate) fn kill_overdue(&mut self, now: Instant) {
        for Leaving { process, .. } in self.leaving.iter_mut().filter(|it| it.kill_at <= now) {
            process.kill();
        }
    }
}
