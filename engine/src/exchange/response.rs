//! The response of a backend: interim heads, the final head, its body, and whether its connection can be used again.

use std::{cell::Cell, io};

use super::{Downstream, Encoded, Failure, Outcome, Record, Request, Upgrade, connect::Attempts};
use crate::{
    h1::{Emit, HeadProgress, OutFraming, ResponseBody, ResponseDefect, ResponseHead},
    http::{Reason, Version},
    observe::Counter,
    ring::{Recv, SendBuf},
    transfer::{Body, MinRate, ReadBuffer, Relay, RelayError, note_length, receive_watching},
    upstream::Lease,
};

/// Interim responses to one request; RFC 9110 section 15.2 sets no bound, we do.
const MAX_INTERIM: u32 = 32;

/// How a response ended that ended well.
pub(super) enum Answered {
    /// It was passed on whole.
    Whole {
        /// The client's connection may go on.
        keep_alive: bool,
        /// The upstream connection can carry another request, as far as the response goes.
        reusable: bool,
        /// It was a 401 that authenticates the connection, not the request.
        authenticates_connection: bool,
    },
    /// The backend accepted an upgrade, and sent this behind its head.
    Upgraded(ReadBuffer),
}

impl Answered {
    /// The outcome of an exchange that was answered so. `sent`: the backend got all of the request; otherwise what is left
    /// of it is not sent on.
    pub(super) fn complete<D: Downstream>(
        self,
        downstream: &mut D,
        request: &Request,
        lease: Lease,
        was_bound: bool,
        sent: bool,
    ) -> Outcome {
        match self {
            Answered::Whole { keep_alive, reusable, authenticates_connection } => {
                let binds = binds(request, was_bound, authenticates_connection);
                // What was authenticated ends as a whole: the response may have begun before the session was closed.
                let keep_alive = keep_alive && !(binds && lease.is_dismissed());
                match (reusable && sent, binds) {
                    (true, false) => lease.release(&downstream.shared().pooling),
                    (true, true) if keep_alive => downstream.bind(lease, &request.cluster),
                    // It ends here, or with the client's.
                    _ => drop(lease),
                }
                // Answered before the body was all there: what is still to come of it is not a request.
                // RFC 9112 section 9.3.
                Outcome::Done { goes_on: keep_alive && sent, last: request.last, unread: !sent }
            }
            Answered::Upgraded(early_tunnel_data) if sent => Outcome::Upgraded(Box::new(Upgrade {
                lease,
                cluster: std::rc::Rc::clone(&request.cluster),
                idle_ms: request.config.settings.timeouts.tunnel_ms,
                early_tunnel_data,
            })),
            // RFC 9110 section 7.8. A switch of protocols in the middle of a body: nobody could say where the tunnel begins.
            Answered::Upgraded(_) => Outcome::Cut { reset: true },
        }
    }
}

/// Whether the upstream connection is for this client alone. NTLM and Negotiate authenticate the connection (RFC 4559), so that what comes
/// next on it is answered as if this client asked. RFC 9110 section 3.3.
fn binds(request: &Request, was_bound: bool, authenticates_connection: bool) -> bool {
    was_bound || request.authenticates_connection || authenticates_connection
}

/// What a response tells the upload that runs beside it, and the other way round.
#[derive(Default)]
pub(super) struct DuplexState {
    /// The request body is still on its way: the backend need not answer yet.
    pub(super) uploading: Cell<bool>,
    /// The client was told to go on, or has been answered.
    pub(super) answered: Cell<bool>,
}

/// A response head, read and written anew.
enum Head {
    Incomplete,
    /// An interim response, to be passed on unless the client is of HTTP/1.0.
    Interim {
        out: Option<Vec<u8>>,
        reusable: bool,
    },
    Final(Final),
    /// A final response that is thrown away.
    Again,
}

struct Final {
    encoded: Encoded,
    body: Body,
    reusable: bool,
    upgraded: bool,
    authenticates_connection: bool,
}

/// Where a response comes from and goes to.
pub(super) struct ResponseContext<'a, D> {
    downstream: &'a D,
    request: &'a Request,
    lease: &'a Lease,
    record: &'a Record,
    /// Set while an upload runs beside.
    duplex: Option<&'a DuplexState>,
    /// Where it is noted how the endpoint answered; it says whether the request is sent again.
    attempts: &'a Attempts,
}

impl<'a, D: Downstream> ResponseContext<'a, D> {
    pub(super) fn new(
        downstream: &'a D,
        request: &'a Request,
        lease: &'a Lease,
        record: &'a Record,
        attempts: &'a Attempts,
    ) -> ResponseContext<'a, D> {
        ResponseContext { downstream, request, lease, record, duplex: None, attempts }
    }

    /// Of a response beside which an upload runs.
    pub(super) fn beside(self, duplex: &'a DuplexState) -> ResponseContext<'a, D> {
        ResponseContext { duplex: Some(duplex), ..self }
    }
}

/// Receives the response and passes it on.
pub(super) async fn forward<D: Downstream>(context: &ResponseContext<'_, D>) -> Result<Answered, Failure> {
    // Nothing is taken out of the context that would be kept over a wait beside it: what a request takes is counted in bytes.
    let timeouts = &context.request.config.settings.timeouts;
    let ring = &context.downstream.shared().ring;
    // It counts from here, whatever the response waits for.
    let last_due = match timeouts.response_ms {
        0 => u64::MAX,
        response_ms => ring.now().saturating_add(response_ms),
    };
    let mut read_buffer = ReadBuffer::default();
    let Final { encoded, mut body, reusable, upgraded, authenticates_connection } =
        await_head(context, &mut read_buffer, last_due).await?;
    let Encoded { mut head, framing, keep_alive } = encoded;
    if let Some(duplex) = context.duplex {
        duplex.answered.set(true);
    }
    let head_bytes = head.len() as u64;
    let head = if upgraded {
        head.into()
    } else {
        // The head has not gone out yet: what is wrong with the body's beginning can still be told.
        let together = body.behind(&mut read_buffer, &mut head);
        match together.map_err(|reason| Failure::Refused(ResponseDefect::Body(reason)))? {
            Some(together) => {
                ring.recycle(head);
                SendBuf::Received(together)
            }
            None => head.into(),
        }
    };
    if context.downstream.body().is_sending() {
        // What was sent before may take the client long.
        read_buffer.copy_out_of_pool();
    }
    context.downstream.respond(head, timeouts.front_ms).await?;
    context.record.add_response_bytes(head_bytes);
    if upgraded {
        return Ok(Answered::Upgraded(read_buffer));
    }
    if !body.is_done() {
        let now = ring.now();
        let mut relay = Relay {
            ring,
            from: &context.lease.stream,
            read_buffer: &mut read_buffer,
            to: context.downstream.body(),
            body: &mut body,
            timer: context.downstream.timer(),
            source: MinRate::new(timeouts.back_ms, timeouts.response_min_rate, now),
            sink: MinRate::new(timeouts.front_ms, timeouts.response_min_rate, now),
            due: last_due,
            watch: context.request.watch(),
            limit: 0,
        };
        let relayed = Box::pin(relay.run()).await;
        if let Err(error) = relayed {
            context.record.add_response_bytes(body.moved());
            return Err(cut(error, framing));
        }
    }
    note_length(&context.lease.stream, body.moved());
    context.record.add_response_bytes(body.moved());
    // Bytes behind the response belong to nobody: they must not reach the next client.
    let reusable = reusable && read_buffer.is_empty();
    Ok(Answered::Whole { keep_alive, reusable, authenticates_connection })
}

/// Receives until the final head is complete; passes interim responses on.
async fn await_head<D: Downstream>(
    context: &ResponseContext<'_, D>,
    read_buffer: &mut ReadBuffer,
    last_due: u64,
) -> Result<Final, Failure> {
    // Nothing is taken out of the context that would be kept over a wait beside it: what a request takes is counted in bytes.
    let shared = context.downstream.shared();
    let back_ms = context.request.config.settings.timeouts.back_ms;
    let mut progress = HeadProgress::default();
    let mut interim = 0;
    let mut reusable = true;
    let mut due = shared.ring.now() + back_ms;
    loop {
        if !read_buffer.is_empty() {
            let read = read(context, read_buffer, &mut progress, interim).map_err(|defect| {
                // Behind an interim response it is a malformed final one.
                let begun = interim > 0 && defect == ResponseDefect::NoStatusLine;
                Failure::Refused(if begun { ResponseDefect::StatusLine } else { defect })
            })?;
            match read {
                Head::Again => return Err(Failure::Again),
                Head::Final(head) => return Ok(Final { reusable: head.reusable && reusable, ..head }),
                Head::Interim { out, reusable: so_far } => {
                    interim += 1;
                    reusable &= so_far;
                    if interim > MAX_INTERIM {
                        return Err(Failure::Refused(ResponseDefect::TooManyInterim));
                    }
                    // Boxed: rare, and large beside what waits for an ordinary response.
                    Box::pin(pass_interim(context, out)).await?;
                    progress = HeadProgress::default();
                    continue;
                }
                Head::Incomplete => read_buffer.copy_out_of_pool(),
            }
        }
        let received = receive_watching(
            context.lease.stream.receive(),
            (context.downstream.body(), context.request.watch()),
            context.downstream.timer(),
            (shared.ring.now(), due.min(last_due)),
        );
        match received.await.map_err(|_| Failure::ClientGone)? {
            Some(Ok(Recv::Data(buffer))) => read_buffer.push(buffer),
            // With TLS 1.3 a backend says only now that it does not accept our certificate.
            Some(Err(error)) if read_buffer.is_empty() && error.kind() == io::ErrorKind::InvalidData => {
                shared.counters.count(Counter::UpstreamTlsErrors);
                return Err(Failure::Reply(Reason::BackendTlsFailed));
            }
            Some(Ok(Recv::Finished) | Err(_)) if read_buffer.is_empty() => {
                return Err(match interim {
                    0 => Failure::Unanswered,
                    _ => Failure::Reply(Reason::BackendClosed),
                });
            }
            Some(Ok(Recv::Finished) | Err(_)) => return Err(Failure::Refused(ResponseDefect::HeadCut)),
            None if shared.ring.now() < last_due
                && context.duplex.is_some_and(|duplex| duplex.uploading.get()) =>
            {
                due = shared.ring.now() + back_ms;
            }
            None => return Err(Failure::Reply(Reason::BackendTimeout)),
        }
    }
}

/// RFC 9110 section 15.2: interim responses are passed on.
async fn pass_interim<D: Downstream>(
    context: &ResponseContext<'_, D>,
    out: Option<Vec<u8>>,
) -> Result<(), Failure> {
    if let Some(duplex) = context.duplex {
        duplex.answered.set(true);
    }
    let Some(out) = out else { return Ok(()) };
    let length = out.len() as u64;
    context.downstream.interim(out, context.request.config.settings.timeouts.front_ms).await?;
    context.record.add_response_bytes(length);
    Ok(())
}

/// RFC 9112 section 8: what is incomplete must not look complete.
fn cut(error: RelayError, framing: OutFraming) -> Failure {
    let defect = match &error {
        RelayError::Malformed(reason) => Some(ResponseDefect::Body(*reason)),
        _ => None,
    };
    match error {
        RelayError::SinkBroken => Failure::ClientGone,
        RelayError::SinkStalled => Failure::ClientStalled,
        // A body whose end is the end of the connection would look complete.
        RelayError::SourceEnded
        | RelayError::SourceSlow
        | RelayError::Malformed(_)
        | RelayError::TooLarge => Failure::Cut { reset: framing == OutFraming::UntilClose, defect },
    }
}

/// Reads the head in the read buffer, and writes it as the client gets it. One that is refused becomes 502, and its
/// connection is closed (RFC 9112 section 6.3).
fn read<D: Downstream>(
    context: &ResponseContext<'_, D>,
    read_buffer: &mut ReadBuffer,
    progress: &mut HeadProgress,
    interim: u32,
) -> Result<Head, ResponseDefect> {
    let ResponseContext { downstream, request, record, .. } = context;
    let shared = downstream.shared();
    let scratch = &mut *shared.scratch.borrow_mut();
    let limits = &request.config.response_limits;
    let parsed = ResponseHead::parse(read_buffer.bytes(), request.method, progress, limits, scratch)?;
    let Some(head) = parsed else { return Ok(Head::Incomplete) };
    let upgraded = head.status == 101;
    if upgraded && !request.upgrade {
        // RFC 9110 section 15.2.2: nobody asked for it.
        return Err(ResponseDefect::UnaskedUpgrade);
    }
    let length = head.len;
    if head.is_interim() {
        // RFC 9110 section 15.2: a client of HTTP/1.0 does not know interim responses.
        let out =
            (request.version == Version::Http11).then(|| downstream.encode(&head, request, false, "").head);
        let reusable = head.keep_alive;
        read_buffer.consume(length);
        return Ok(Head::Interim { out, reusable });
    }
    let elapsed = record.since_start(shared.ring.now()).saturating_sub(record.leased_ms.get());
    context.attempts.note_answer(shared, context.lease, Some(head.status), elapsed);
    let alone = interim == 0 && !upgraded && context.duplex.is_none();
    if alone && context.attempts.retries_status(shared, request, head.status, record) {
        return Ok(Head::Again);
    }
    // RFC 9112 section 9.3: a body that is not read to its end ends the connection, and the response says so.
    let ahead = context.duplex.is_some_and(|duplex| duplex.uploading.get());
    let binds = binds(request, context.attempts.was_bound, head.authenticates_connection);
    let last = ahead || (binds && context.lease.is_dismissed());
    let endpoint = context.lease.endpoint();
    let sticky_name = &request.config.settings.sticky_name;
    let session = request.cluster.session_line(endpoint, request.affinity, sticky_name, downstream.is_tls());
    let encoded = downstream.encode(&head, request, last, session.as_deref().unwrap_or_default());
    let chunked = encoded.framing == OutFraming::Chunked;
    let body = match head.body {
        ResponseBody::None => Body::length(0),
        ResponseBody::Length(length) => Body::length(length),
        ResponseBody::Chunked => {
            let own = &request.config.settings.forwarding.id_field;
            Body::chunked(if chunked { Emit::Chunked } else { Emit::Data }, limits.fields, own)
        }
        ResponseBody::UntilClose => Body::until_close(chunked),
    };
    let reusable = head.keep_alive && !matches!(head.body, ResponseBody::UntilClose) && !upgraded;
    let authenticates_connection = head.authenticates_connection;
    record.status.set(head.status);
    record.answered_ms.set(record.since_start(shared.ring.now()));
    read_buffer.consume(length);
    Ok(Head::Final(Final { encoded, body, reusable, upgraded, authenticates_connection }))
}
