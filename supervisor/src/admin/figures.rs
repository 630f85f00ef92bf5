//! What the admin address counts of itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number each.
#[derive(Default)]
pub(super) struct Figures {
    /// Clients that are connected.
    pub(super) clients: Figure,
    /// Requests answered.
    pub(super) requests: Figure,
    /// Connections closed as they came: `allow` does not have them.
    pub(super) refused: Figure,
    /// Clients closed to make room for another.
    pub(super) evicted: Figure,
    /// Connections closed as they came: there was no place, and nobody to go.
    pub(super) crowded: Figure,
    /// Clients cut at a deadline: of a head, between requests, or of a response that they do not take.
    pub(super) late: Figure,
}

/// A number that goes up, or up and down.
#[derive(Default)]
pub(super) struct Figure(AtomicU64);

impl Figure {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Figures {
    /// All of them by name.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        [
            ("admin.clients", &self.clients),
            ("admin.requests", &self.requests),
            ("admin.sources_refused", &self.refused),
            ("admin.evicted", &self.evicted),
            ("admin.crowded", &self.crowded),
            ("admin.timeouts", &self.late),
        ]
        .map(|(name, figure)| (name.to_owned(), figure.get()))
        .into_iter()
    }
}
