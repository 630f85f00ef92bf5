//! The answer of a backend: interim heads, the final head, its body, and whether its connection can be used again.

use std::{cell::Cell, io};

use super::{
    Shared,
    forward::{Request, goes_on},
};
use crate::{
    h1::{
        Emit, HeadProgress, OutConnection, OutFraming, ResponseBody, ResponseDefect, ResponseHead,
        ResponsePlan,
    },
    http::{Reason, Version},
    observe::Counter,
    ring::{Recv, Timer},
    transfer::{Decoder, MinRate, ReadBuffer, Relay, RelayError, flush, receive_watching},
    transport::TransportStream,
};

/// Interim responses to one request; RFC 9110 section 15.2 sets no bound, we do.
const MAX_INTERIM: u32 = 32;

/// How an exchange ended that ended well.
pub(super) struct Answered {
    /// The client's connection goes on.
    pub(super) keep_alive: bool,
    /// The upstream connection can carry another request, as far as the response goes.
    pub(super) reusable: bool,
    /// The backend accepted an upgrade: a tunnel follows.
    pub(super) upgraded: bool,
    /// It was a 401 that authenticates the connection, not the request.
    pub(super) authenticates_connection: bool,
    /// What the backend sent behind the head of an accepted upgrade.
    pub(super) early_tunnel_data: ReadBuffer,
}

/// How an exchange ended that did not.
pub(super) enum Failure {
    /// The backend closed without a byte of an answer: it may never have read the request.
    Unanswered,
    /// The client has got no final answer yet: it can be told.
    Silent(Reason),
    /// So it is where the response is refused.
    Refused(ResponseDefect),
    /// The response is cut short; with `reset` nothing else would show that. `defect`: what was wrong with it, if it was.
    Cut { reset: bool, defect: Option<ResponseDefect> },
    /// The client is gone.
    ClientGone,
    /// The client took nothing for too long.
    ClientStalled,
}

impl Failure {
    /// What was wrong with the response, if anything was.
    pub(super) fn defect(&self) -> Option<ResponseDefect> {
        match self {
            Failure::Refused(defect) => Some(*defect),
            Failure::Cut { defect, .. } => *defect,
            _ => None,
        }
    }
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
}

struct Final {
    head: Vec<u8>,
    decoder: Decoder,
    framing: OutFraming,
    keep_alive: bool,
    reusable: bool,
    upgraded: bool,
    authenticates_connection: bool,
}

/// Where a response comes from and goes to.
pub(super) struct ResponseContext<'a> {
    pub(super) shared: &'a Shared,
    pub(super) request: &'a Request,
    pub(super) client: &'a TransportStream,
    pub(super) timer: &'a Timer,
    pub(super) upstream: &'a TransportStream,
    /// The upload that runs beside, if there is one.
    pub(super) beside: Option<&'a DuplexState>,
}

/// Receives the response and passes it on.
pub(super) async fn forward(context: ResponseContext<'_>) -> Result<Answered, Failure> {
    let timeouts = &context.request.config.settings.timeouts;
    let mut read_buffer = ReadBuffer::default();
    let began = context.shared.ring.now();
    let Final { mut head, mut decoder, framing, keep_alive, reusable, upgraded, authenticates_connection } =
        await_head(&context, &mut read_buffer).await?;
    if let Some(beside) = context.beside {
        beside.answered.set(true);
    }
    if upgraded {
        send(&context, head).await?;
        let (keep_alive, reusable) = (false, false);
        return Ok(Answered {
            keep_alive,
            reusable,
            upgraded,
            authenticates_connection,
            early_tunnel_data: read_buffer,
        });
    }
    let mut moved = 0;
    // The head has not gone out yet: what is wrong with the body's beginning can still be told.
    let whole = decoder
        .coalesce(&mut read_buffer, &mut head, &mut moved)
        .map_err(|reason| Failure::Refused(ResponseDefect::Body(reason)))?;
    send(&context, head).await?;
    if !whole {
        let now = context.shared.ring.now();
        let mut relay = Relay {
            ring: &context.shared.ring,
            from: context.upstream,
            read_buffer: &mut read_buffer,
            to: context.client,
            decoder,
            timer: context.timer,
            source: MinRate::new(timeouts.back_ms, timeouts.response_min_rate, now),
            sink: MinRate::new(timeouts.front_ms, timeouts.response_min_rate, now),
            due: (timeouts.response_ms != 0).then(|| began + timeouts.response_ms),
            watch: context.request.watch(),
            limit: 0,
            moved,
        };
        let outcome = Box::pin(relay.run()).await;
        outcome.map_err(|error| cut(error, framing))?;
    }
    // Bytes behind the response belong to nobody: they must not reach the next client.
    let reusable = reusable && read_buffer.is_empty();
    Ok(Answered {
        keep_alive,
        reusable,
        upgraded,
        authenticates_connection,
        early_tunnel_data: ReadBuffer::default(),
    })
}

/// Receives until the final head is complete; passes interim responses on.
async fn await_head(context: &ResponseContext<'_>, read_buffer: &mut ReadBuffer) -> Result<Final, Failure> {
    let ResponseContext { shared, request, upstream, timer, .. } = context;
    let back_ms = request.config.settings.timeouts.back_ms;
    let mut progress = HeadProgress::default();
    let mut interim = 0;
    let mut reusable = true;
    let mut due = shared.ring.now() + back_ms;
    loop {
        if !read_buffer.is_empty() {
            let read = read(context, read_buffer, &mut progress).map_err(|defect| {
                // Behind an interim response it is a malformed final one.
                let begun = interim > 0 && defect == ResponseDefect::NoStatusLine;
                Failure::Refused(if begun { ResponseDefect::StatusLine } else { defect })
            })?;
            match read {
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
            upstream.receive(),
            (context.client, request.watch()),
            timer,
            (shared.ring.now(), due),
        );
        match received.await.map_err(|_| Failure::ClientGone)? {
            Some(Ok(Recv::Data(buffer))) => read_buffer.push(buffer),
            // With TLS 1.3 a backend says only now that it does not accept our certificate.
            Some(Err(error)) if read_buffer.is_empty() && error.kind() == io::ErrorKind::InvalidData => {
                shared.counters.count(Counter::UpstreamTlsErrors);
                return Err(Failure::Silent(Reason::BackendTlsFailed));
            }
            Some(Ok(Recv::Finished) | Err(_)) if read_buffer.is_empty() => {
                return Err(match interim {
                    0 => Failure::Unanswered,
                    _ => Failure::Silent(Reason::BackendClosed),
                });
            }
            Some(Ok(Recv::Finished) | Err(_)) => return Err(Failure::Refused(ResponseDefect::HeadCut)),
            None if context.beside.is_some_and(|beside| beside.uploading.get()) => {
                due = shared.ring.now() + back_ms;
            }
            None => return Err(Failure::Silent(Reason::BackendTimeout)),
        }
    }
}

/// RFC 9110 section 15.2: interim responses are passed on.
async fn pass_interim(context: &ResponseContext<'_>, out: Option<Vec<u8>>) -> Result<(), Failure> {
    if let Some(beside) = context.beside {
        beside.answered.set(true);
    }
    match out {
        Some(out) => send(context, out).await,
        None => Ok(()),
    }
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

async fn send(context: &ResponseContext<'_>, out: Vec<u8>) -> Result<(), Failure> {
    let front_ms = context.request.config.settings.timeouts.front_ms;
    match flush(context.client, context.timer, front_ms).await {
        Ok(()) => {
            context.client.start_send(out.into());
            Ok(())
        }
        Err(RelayError::SinkStalled) => Err(Failure::ClientStalled),
        Err(_) => Err(Failure::ClientGone),
    }
}

/// Reads the head in the read buffer, and writes it as the client gets it. One that is refused becomes 502, and its
/// connection is closed (RFC 9112 section 6.3).
fn read(
    context: &ResponseContext<'_>,
    read_buffer: &mut ReadBuffer,
    progress: &mut HeadProgress,
) -> Result<Head, ResponseDefect> {
    let ResponseContext { shared, request, .. } = context;
    let scratch = &mut *shared.scratch.borrow_mut();
    let parsed = ResponseHead::parse(
        read_buffer.bytes(),
        request.method,
        progress,
        &request.config.response_limits,
        scratch,
    )?;
    let Some(head) = parsed else { return Ok(Head::Incomplete) };
    let upgraded = head.status == 101;
    if upgraded && !request.upgrade {
        // RFC 9110 section 15.2.2: nobody asked for it.
        return Err(ResponseDefect::UnaskedUpgrade);
    }
    let keep_alive =
        request.keep_alive && !shared.is_draining() && !(context.client.is_tls() && shared.is_handing_over());
    let plan = ResponsePlan::new(&head, request.method, request.version, keep_alive);
    let length = head.len;
    if head.is_interim() {
        // RFC 9110 section 15.2: a client of HTTP/1.0 does not know interim responses.
        let out = (request.version == Version::Http11).then(|| {
            let mut out = shared.ring.head_buffer();
            head.write_forwarded(&plan, None, None, &mut out);
            out
        });
        let reusable = head.keep_alive;
        read_buffer.consume(length);
        return Ok(Head::Interim { out, reusable });
    }
    let mut out = shared.ring.head_buffer();
    let date = (!head.dated).then(|| shared.date());
    head.write_forwarded(&plan, request.transport.as_deref(), date.as_ref(), &mut out);
    let decoder = match head.body {
        ResponseBody::None => Decoder::Length(0),
        ResponseBody::Length(length) => Decoder::Length(length),
        ResponseBody::Chunked => {
            let emit = if plan.framing == OutFraming::Chunked { Emit::Chunked } else { Emit::Data };
            Decoder::chunked(emit, request.config.response_limits.fields)
        }
        ResponseBody::UntilClose => Decoder::UntilClose { wrap: plan.framing == OutFraming::Chunked },
    };
    let reusable = head.keep_alive && !matches!(head.body, ResponseBody::UntilClose) && !upgraded;
    let authenticates_connection = head.authenticates_connection;
    read_buffer.consume(length);
    Ok(Head::Final(Final {
        head: out,
        decoder,
        framing: plan.framing,
        keep_alive: !upgraded
            && plan.connection != OutConnection::Close
            && goes_on(plan.framing, plan.connection),
        reusable,
        upgraded,
        authenticates_connection,
    }))
}
