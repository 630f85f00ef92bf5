//! What is known of an exchange when it has ended: for counters and access logs.

use std::{cell::Cell, rc::Rc};

use crate::upstream::Endpoint;

/// One exchange: when what happened, how much moved, and who answered. Times are milliseconds since its start.
#[derive(Default)]
pub struct Record {
    /// When it started (ms, the ring's clock).
    pub started: u64,
    /// When the request was routed.
    pub routed_ms: Cell<u32>,
    /// When the last upstream connection was leased.
    pub leased_ms: Cell<u32>,
    /// When the head of the final response was complete.
    pub answered_ms: Cell<u32>,
    /// Upstream connections that the request was sent on.
    pub attempts: Cell<u16>,
    /// Status of the final response; 0 = there was none.
    pub status: Cell<u16>,
    /// Bytes that came from the client: the head as it came, and the data of the body.
    pub request_bytes: Cell<u64>,
    /// Bytes that went to the client: heads as they left, and the data of the body.
    pub response_bytes: Cell<u64>,
    /// The endpoint that the request was sent to last.
    pub endpoint: Cell<Option<Rc<Endpoint>>>,
}

impl Record {
    /// Of an exchange that starts `now` (ms).
    pub fn new(now: u64) -> Record {
        Record { started: now, ..Record::default() }
    }

    /// Milliseconds since the start, at `now`.
    pub(super) fn since_start(&self, now: u64) -> u32 {
        u32::try_from(now.saturating_sub(self.started)).unwrap_or(u32::MAX)
    }

    /// The endpoint that the request was sent to last, if it was to any.
    pub(super) fn backend(&self) -> Option<Rc<Endpoint>> {
        let endpoint = self.endpoint.take();
        self.endpoint.set(endpoint.clone());
        endpoint
    }

    pub(super) fn add_request_bytes(&self, count: u64) {
        self.request_bytes.set(self.request_bytes.get() + count);
    }

    pub(super) fn add_response_bytes(&self, count: u64) {
        self.response_bytes.set(self.response_bytes.get() + count);
    }
}
