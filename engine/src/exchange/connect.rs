//! Leases an upstream connection for a request.

use super::{Downstream, Failure, Outcome, Record, Request, Shared};
use crate::{
    http::Reason,
    limits,
    observe::Counter,
    transfer::{Body, Watch, flush, receive_watching},
    upstream::{AttemptedEndpoints, ConnectError, ConnectOptions, Lease},
};

/// The endpoints that were tried for a request, and whether it was sent twice.
pub(super) struct Attempts {
    endpoints: AttemptedEndpoints,
    repeated: bool,
    /// The connection that is bound to the client, until it was tried.
    bound: Option<Lease>,
    pub(super) was_bound: bool,
}

impl Attempts {
    /// None yet; a connection that is `bound` to the client goes first.
    pub(super) fn new(bound: Option<Lease>) -> Attempts {
        let was_bound = bound.is_some();
        Attempts { endpoints: AttemptedEndpoints::default(), repeated: false, bound, was_bound }
    }

    /// True if the request may be sent once more.
    pub(super) fn may_repeat(&self, request: &Request) -> bool {
        !self.repeated && request.method.is_idempotent()
    }

    /// Notes that it is sent once more.
    pub(super) fn repeat(&mut self, shared: &Shared) {
        shared.counters.count(Counter::Retries);
        self.repeated = true;
        // A pooled connection that had died was no attempt.
        self.endpoints.take_back();
    }

    /// Whether a request may be sent again because of how it was answered, as far as it goes by the request and by time. `complete`: all
    /// of it is there to be sent again.
    pub(super) fn may_retry(&self, request: &Request, complete: bool, record: &Record, now: u64) -> bool {
        let Some(retries) = &request.retries else { return false };
        let in_time = retries.timeout_ms == 0 || now.saturating_sub(record.started) < retries.timeout_ms;
        complete
            && in_time
            && !request.upgrade
            && request.method.is_idempotent()
            && self.endpoints.may_go_on()
    }

    /// Notes how the endpoint behind `lease` has answered: with this status, or not at all, within this time (ms).
    pub(super) fn note_answer(&self, shared: &Shared, lease: &Lease, status: Option<u16>, elapsed: u32) {
        self.endpoints.note_answer(lease, &shared.pooling, status, elapsed);
    }

    /// Whether a request that was answered with this status is sent again; then that is charged.
    pub(super) fn retries_status(
        &self,
        shared: &Shared,
        request: &Request,
        status: u16,
        record: &Record,
    ) -> bool {
        request.retries.as_ref().is_some_and(|retries| retries.on.statuses.contains(status))
            && self.may_retry(request, true, record, shared.ring.now())
            && request.cluster.spend_retry(&shared.pooling)
    }

    /// Notes that it is sent again, to another backend if there is one.
    pub(super) fn retry(&mut self, shared: &Shared, lease: &Lease) {
        shared.counters.count(Counter::Retries);
        self.endpoints.note_answered(lease);
    }
}

/// Leases a connection on which nothing is in flight.
///
/// # Errors
/// A local reply, when no endpoint can be reached; `ClientGone`.
pub(super) async fn lease<D: Downstream>(
    downstream: &D,
    request: &Request,
    body: &Body,
    attempts: &mut Attempts,
    record: &Record,
) -> Result<Lease, Outcome> {
    let shared = downstream.shared();
    let refuse = |reason| request.local_reply(reason, body.is_done());
    loop {
        let options = ConnectOptions {
            fresh: attempts.repeated,
            affinity: request.affinity,
            connect_ms: request.config.settings.timeouts.connect_ms,
            timer: downstream.timer(),
            client: (downstream.body(), request.watch()),
            // No backend knows of it yet, and who gave up would have others wait for nothing.
            watch_in_queue: Watch::ResetOrEnd,
            addresses: &|| downstream.addresses(),
        };
        let lease = match attempts.bound.take() {
            Some(bound) => bound,
            None => {
                let lease = request.cluster.connect(&shared.pooling, &mut attempts.endpoints, &options).await;
                lease.map_err(|error| match error {
                    ConnectError::Unreachable(reason) => {
                        record.endpoint.set(attempts.endpoints.last());
                        refuse(reason)
                    }
                    ConnectError::ClientGone => Outcome::ClientGone,
                })?
            }
        };
        match flush(&lease.stream, downstream.timer(), request.config.settings.timeouts.back_ms).await {
            Ok(()) => {
                record.attempts.set(record.attempts.get() + 1);
                record.leased_ms.set(record.since_start(shared.ring.now()));
                record.endpoint.set(Some(std::rc::Rc::clone(lease.endpoint())));
                return Ok(lease);
            }
            // Died in the pool, with nothing of this request on it.
            Err(_) if lease.reused => attempts.endpoints.take_back(),
            Err(_) => return Err(refuse(Reason::BackendClosed)),
        }
    }
}

/// Shortest and longest wait before a request is sent again that was answered badly, or not at all (ms).
const RETRY_DELAY_MS: (u64, u64) = (25, 250);

/// Waits a moment that is not the same for all, so that those who come back do not come together.
///
/// # Errors
/// `ClientGone`.
pub(super) async fn pause<D: Downstream>(downstream: &D, request: &Request) -> Result<(), Outcome> {
    let now = downstream.shared().ring.now();
    let due = now + fastrand::u64(RETRY_DELAY_MS.0..=RETRY_DELAY_MS.1);
    let client = (downstream.body(), request.watch());
    let waited = receive_watching(std::future::pending::<()>(), client, downstream.timer(), (now, due));
    waited.await.map(drop).map_err(|_| Outcome::ClientGone)
}

/// Writes how often the request was sent.
pub(super) fn write_attempts(request: &Request, head: &mut [u8], record: &Record) {
    if let Some(number) = request.attempts_at.and_then(|at| head.get_mut(at.get() as usize..)?.get_mut(..3)) {
        let text = format!("{:3}", record.attempts.get().clamp(1, 999));
        number.copy_from_slice(text.as_bytes());
    }
}

/// The request line of a head, without its line end; what is longer than a line of the log should be is cut.
pub(super) fn first_line(head: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'\r', head).unwrap_or(head.len());
    &head[..end.min(limits::MAX_LOGGED_REQUEST_LINE)]
}

/// Says in the log why a response was refused, if it was: one line a second for each backend. `request_line` is known where
/// the copy of the head is gone.
pub(super) fn log_defect(
    shared: &Shared,
    request: &Request,
    lease: &Lease,
    request_line: &[u8],
    failure: &Failure,
) {
    let Some(defect) = failure.defect() else { return };
    let Some(left_out) = lease.endpoint().admit_complaint(shared.ring.now()) else { return };
    let head = lease.take_replay().unwrap_or_default();
    let request_line = if request_line.is_empty() { first_line(&head) } else { request_line };
    tracing::warn!(
        cluster = %request.cluster.name,
        backend = lease.endpoint().id,
        request = %request_line.escape_ascii(),
        left_out,
        "response refused: {defect}"
    );
}
