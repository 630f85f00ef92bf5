//! The rest of a request body on its way to the backend, while the answer is awaited beside it.
//!
//! A backend may answer before it has the whole body, and may go on reading while it answers: both run at once. What
//! is left of the body when the answer is complete is not sent on.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use super::{
    client::ClientConnection,
    forward::Request,
    response::{self, Answered, DuplexState, Failure, ResponseContext},
};
use crate::{
    http::{Reason, Version},
    ring::{Recv, SendBuf, Timer},
    transfer::{Decoder, MinRate, ReadBuffer, Relay, RelayError, Watch, flush},
    transport::TransportStream,
};

/// RFC 9110 section 10.1.1: what a client that expects it waits for.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A body of which something is still to come.
pub(super) struct Body {
    pub(super) decoder: Decoder,
    pub(super) moved: u64,
    /// For the log.
    pub(super) request_line: Vec<u8>,
}

/// Sends the body, receives the answer. The flag: the body was sent whole.
pub(super) async fn run(
    connection: &mut ClientConnection,
    request: &Request,
    upstream: &TransportStream,
    body: Body,
) -> Result<(Answered, bool), Failure> {
    let shared = std::rc::Rc::clone(&connection.shared);
    let ClientConnection { client, timer, read_buffer, .. } = connection;
    let timeouts = &request.config.settings.timeouts;
    let beside = DuplexState::default();
    beside.uploading.set(true);
    let own_timer = Timer::new(&shared.ring);
    let mut relay = Relay {
        ring: &shared.ring,
        from: client,
        read_buffer,
        to: upstream,
        decoder: body.decoder,
        timer: &own_timer,
        // A file of sozu bounds a silent upload by `front_timeout`.
        source: MinRate::new(
            timeouts.body_ms.min(timeouts.front_ms),
            timeouts.body_min_rate,
            shared.ring.now(),
        ),
        sink: MinRate::new(timeouts.back_ms, 0, shared.ring.now()),
        due: None,
        watch: Watch::Nothing,
        limit: request.config.settings.sizes.body,
        moved: body.moved,
    };
    let mut uploaded = None;
    let outcome = {
        let mut upload = pin!(async {
            if request.expect_continue && relay.read_buffer.is_empty() {
                invite(request, client, &own_timer, &beside, relay.read_buffer).await?;
            }
            relay.run().await
        });
        let context =
            ResponseContext { shared: &shared, request, client, timer, upstream, beside: Some(&beside) };
        let mut answer = pin!(response::forward(context));
        poll_fn(|context| {
            if uploaded.is_none()
                && let Poll::Ready(outcome) = upload.as_mut().poll(context)
            {
                beside.uploading.set(false);
                uploaded = Some(outcome.is_ok());
                match outcome {
                    // The backend reads no more: it may have answered, which the other side will show.
                    Ok(()) | Err(RelayError::SinkBroken) => {}
                    Err(error) => return Poll::Ready(Err(failure(error, beside.answered.get()))),
                }
            }
            answer.as_mut().poll(context)
        })
        .await
    };
    outcome.map(|answered| (answered, uploaded == Some(true)))
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
    Failure::Silent(reason)
}

/// The client waits to be told to go on. The backend may do so; after a while we do.
async fn invite(
    request: &Request,
    client: &TransportStream,
    timer: &Timer,
    beside: &DuplexState,
    read_buffer: &mut ReadBuffer,
) -> Result<(), RelayError> {
    let timeouts = &request.config.settings.timeouts;
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
    if !beside.answered.get() && request.version == Version::Http11 {
        client.start_send(SendBuf::Static(CONTINUE));
    }
    Ok(())
}
