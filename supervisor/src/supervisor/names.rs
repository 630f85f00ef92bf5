//! What the DNS says of names of backends reaches the workers, and whoever probes backends.
//!
//! It is a fact as verdicts are: it makes no generation, and no worker is waited for. Workers are told of the names that a change brings
//! before they prepare it, so that its backends are there with the change where the DNS is quick.

use std::{collections::BTreeSet, time::Duration};

use kakehi_ctl::{
    limits,
    order::Fact,
    state::{DnsName, NameAnswer, Settings, State},
};
use tokio::time::Instant;

use crate::{
    fleet::worker::Worker,
    supervisor::{Supervisor, turn::Happened},
};

impl Supervisor {
    /// Tells what is new.
    pub(super) fn tell_names(&mut self) {
        let (answers, clusters) = self.names.take_news();
        let ids: Vec<u32> = self.workers.iter().filter(|it| it.takes_orders()).map(Worker::id).collect();
        if !answers.is_empty() {
            self.recording.note_names_soon();
            // Addresses may have gone.
            self.ledger.note_removed();
        }
        self.tell_answers(&ids, answers);
        if !clusters.is_empty() && !self.is_stopping() {
            self.follow_probes(clusters.iter().map(String::as_str));
        }
    }

    pub(super) fn tell_answers(&mut self, workers: &[u32], answers: Vec<NameAnswer>) {
        if !answers.is_empty() && !workers.is_empty() {
            self.tell_fact(workers, Fact::Names { answers });
        }
    }

    /// Waits until something is known of each name, or came of asking for it, not longer than this.
    pub(crate) async fn await_names(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        while !self.is_stopping() && self.names.lack_answers() && self.turn_until(until).await {}
    }

    /// Before workers prepare what becomes of `part`: they are told of the names in it that are new, if these are resolved soon.
    pub(crate) async fn tell_coming_names(&mut self, part: &State) {
        let new: BTreeSet<DnsName> = self.names.expect(part);
        if new.is_empty() {
            return;
        }
        let until = Instant::now() + Duration::from_millis(limits::NAMES_PATIENCE_MS);
        while !self.is_stopping() && self.names.lack_any(&new) && self.turn_until(until).await {}
        self.tell_names();
    }

    /// False if it is too late.
    async fn turn_until(&mut self, until: Instant) -> bool {
        match self.turn(Some(until)).await {
            Happened::Event(event) => drop(self.on_event(event)),
            Happened::Late => return false,
            Happened::Other => {}
        }
        true
    }

    /// After the settings have changed.
    pub(crate) fn take_settings_of_names(&mut self, before: &Settings) {
        if self.is_stopping() {
            return;
        }
        self.names.configure(&self.state.settings);
        if before.dns_on_empty != self.state.settings.dns_on_empty {
            let clusters = self.names.clusters();
            self.follow_probes(clusters.iter().map(String::as_str));
        }
    }
}
