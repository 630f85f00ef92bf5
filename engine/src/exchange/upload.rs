//! The rest of a request body on its way to the backend, while the response is awaited beside it.
//!
//! A backend may answer before it has the whole body, and may go on reading while it answers: both run at once. What
//! is left of the body when the response is complete is not sent on.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use super::{
    Downstream, Failure, Record, Request,
    connect::Attempts,
    response::{self, Answered, DuplexState, ResponseContext},
};
use crate::{
    http::{Reason, Version},
    ring::{Recv, SendBuf, Timer},
    transfer::{Body, MinRate, ReadBuffer, Relay, RelayError, Watch, flush, note_length},
    upstream::Lease,
};

/// RFC 9110 section 10.1.1: what a client that expects it waits for.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Sends the rest of the body, and passes the response on. The flag: the backend got the whole body.
pub(super) async fn run<D: Downstream>(
    downstream: &mut D,
    request: &Request,
    lease: &Lease,
    body: &mut Body,
    record: &Record,
    attempts: &Attempts,
) -> Result<(Answered, bool), Failure> {
    let before = body.moved();
    let mut read_buffer = std::mem::take(downstream.read_buffer());
    let outcome = both(downstream, &mut read_buffer, request, lease, body, (record, attempts)).await;
    *downstream.read_buffer() = read_buffer;
    note_length(downstream.body(), body.moved());
    record.add_request_bytes(body.moved() - before);
    outcome
}

async fn both<D: Downstream>(
    downstream: &D,
    read_buffer: &mut ReadBuffer,
    request: &Request,
    lease: &Lease,
    body: &mut Body,
    (record, attempts): (&Record, &Attempts),
) -> Result<(Answered, bool), Failure> {
    let ring = &downstream.shared().ring;
    let timeouts = &request.config.settings.timeouts;
    let duplex = DuplexState::default();
    duplex.uploading.set(true);
    let timer = Timer::new(ring);
    let mut relay = Relay {
        ring,
        from: downstream.body(),
        read_buffer,
        to: &lease.stream,
        body,
        timer: &timer,
        // A file of sozu bounds a silent upload by `front_timeout`.
        source: MinRate::new(timeouts.body_ms.min(timeouts.front_ms), timeouts.body_min_rate, ring.now()),
        sink: MinRate::new(timeouts.back_ms, 0, ring.now()),
        due: u64::MAX,
        watch: Watch::Nothing,
        limit: request.max_body_size,
    };
    let mut upload = pin!(async {
        if request.expect_continue && relay.read_buffer.is_empty() {
            invite(downstream, request, &timer, &duplex, relay.read_buffer).await?;
        }
        relay.run().await
    });
    let context = ResponseContext::new(downstream, request, lease, record, attempts).beside(&duplex);
    let mut response = pin!(response::forward(&context));
    let mut sent = false;
    poll_fn(|context| {
        if duplex.uploading.get()
            && let Poll::Ready(outcome) = upload.as_mut().poll(context)
        {
            duplex.uploading.set(false);
            sent = outcome.is_ok();
            match outcome {
                // The backend reads no more: it may have answered, which the other side will show.
                Ok(()) | Err(RelayError::SinkBroken) => {}
                Err(error) => return Poll::Ready(Err(failure(error, duplex.answered.get()))),
            }
        }
        response.as_mut().poll(context).map_ok(|answered| (answered, sent))
    })
    .await
}

fn failure(error: RelayError, answered: bool) -> Failure {
    let reason = match error {
        RelayError::SourceEnded => return Failure::ClientGone,
        // What has begun cannot be taken back.
        _ if answered => return Failure::Cut { reset: true, defect: None },
        RelayError::SourceSlow => Reason::BodyTimeout,
        RelayError::Malformed(reason) => reason,
        RelayError::TooLarge => Reason::BodyTooLarge,
        RelayError::SinkStalled => Reason::BackendTimeout,
        RelayError::SinkBroken => Reason::BackendClosed,
    };
    Failure::Reply(reason)
}

/// The client waits to be told to go on. The backend may do so; after a while we do.
async fn invite<D: Downstream>(
    downstream: &D,
    request: &Request,
    timer: &Timer,
    duplex: &DuplexState,
    read_buffer: &mut ReadBuffer,
) -> Result<(), RelayError> {
    let (client, timeouts) = (downstream.body(), &request.config.settings.timeouts);
    timer.set(timeouts.continue_ms);
    match timer.limit(client.receive()).await {
        Ok(Ok(Recv::Data(buffer))) => {
            read_buffer.push(buffer);
            return Ok(());
        }
        Ok(Ok(Recv::Finished) | Err(_)) => return Err(RelayError::SourceEnded),
        Err(_) => {}
    }
    flush(client, timer, timeouts.front_ms).await?;
    if !duplex.answered.get() && request.version == Version::Http11 {
        client.start_send(SendBuf::Static(CONTINUE));
    }
    Ok(())
}
