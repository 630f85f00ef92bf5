//! The loop of a supervisor that serves: one operation at a time, and turns in between.

use std::{collections::HashSet, sync::Arc};

use kakehi_ctl::order::{Ending, Response};
use kakehi_engine::upstream::names_in_ledger;
use tokio::time::Instant;

use crate::{
    fleet::worker::Worker,
    supervisor::{End, Stopping, Supervisor, question::Question, turn::Happened},
};

/// All workers are gone and none is to be replaced.
#[derive(Debug, thiserror::Error)]
#[error("no worker is left and `worker_automatic_restart` is false")]
pub(crate) struct NoWorkerLeft;

impl Supervisor {
    /// Serves until a stop is complete.
    pub(crate) async fn run(&mut self) -> Result<End, NoWorkerLeft> {
        let end = self.run_to_end().await;
        self.pause_admin().await;
        self.watchers.end(Ending::Stopped, None).await;
        end
    }

    async fn run_to_end(&mut self) -> Result<End, NoWorkerLeft> {
        self.started_up = true;
        self.plan_ticket_keys();
        loop {
            self.forget_retired();
            let nobody_left = !self.workers.iter().any(Worker::has_future);
            match &self.stopping {
                Some(stopping) if nobody_left && self.dismissed.is_empty() => {
                    tracing::info!(
                        "stopped{}",
                        if stopping.end == End::Cut { ", connections were cut" } else { "" }
                    );
                    let end = stopping.end;
                    // Nobody is left to be killed.
                    self.stopping = Some(Stopping { kill_at: None, end });
                    self.remove_records().await;
                    let saved = self.finish_saving().await;
                    self.turn_away_line();
                    return Ok(if end == End::Clean && !saved { End::Unsaved } else { end });
                }
                None if nobody_left => return Err(NoWorkerLeft),
                _ => {}
            }
            if self.operate().await {
                continue;
            }
            let due = [
                self.rebalance_due(),
                self.ticket_keys_due(),
                self.tidy_due(),
                self.record_due(),
                self.ledger_due(),
            ];
            let until = due.into_iter().flatten().min();
            if let Happened::Event(event) = self.turn(until).await {
                self.on_event(event);
            }
        }
    }

    /// The next of those who wait for their turn. Root and our own user go before guests, who may all be one.
    fn next_in_line(&mut self) -> Option<Question> {
        let first = self.line.iter().position(|question| question.privileged).unwrap_or(0);
        self.line.remove(first)
    }

    /// Tells those whose questions wait that it is too late.
    fn turn_away_line(&mut self) {
        for question in self.line.drain(..) {
            let reason = "kakehi is stopping; nothing was done".to_owned();
            question.answer.send(Response::Refused { reason });
        }
    }

    /// Gives the slots of the ledger back of what is configured no more.
    async fn give_slots_back(&mut self) {
        let Some(answers) = self.names.all_answers() else {
            // Workers may use addresses that are not known here yet.
            return self.ledger.postpone();
        };
        let state = Arc::clone(&self.state);
        let names = self.serve_beside(move || {
            let on_empty = state.settings.dns_on_empty;
            let names = state.clusters.iter().flat_map(|(name, cluster)| {
                let cluster = cluster.expanded(on_empty, |name| answers.get(name));
                names_in_ledger(name, &cluster)
            });
            names.collect::<HashSet<u64>>()
        });
        if let Ok(names) = names.await {
            self.ledger.give_back(&names);
        }
    }

    /// Carries out one operation that is due, if any is; whether there was one.
    async fn operate(&mut self) -> bool {
        let now = Instant::now();
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if std::mem::take(&mut self.reload_due) {
            if !self.is_stopping() {
                self.reload_on_signal().await;
            }
        } else if let Some(question) = self.next_in_line() {
            self.carry_out_request(question).await;
        } else if !self.changed_files.is_empty() {
            let changed = std::mem::take(&mut self.changed_files);
            self.on_changed_files(changed).await;
        } else if is_due(self.rebalance_due()) {
            self.rebalance_if_due().await;
        } else if is_due(self.ticket_keys_due()) {
            self.renew_ticket_keys_if_due().await;
        } else if is_due(self.tidy_due()) {
            self.tidy_certificates().await;
        } else if is_due(self.record_due()) {
            self.record_again().await;
        } else if is_due(self.ledger_due()) {
            self.give_slots_back().await;
        } else {
            return false;
        }
        true
    }
}
