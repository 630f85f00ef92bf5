//! One request: its head, where it leads, the backend it goes to, and the answer, whatever becomes of each.

use std::rc::Rc;

use super::{
    Shared,
    client::{ClientConnection, Disposition},
    listener::{Action, HstsPolicy, ListenerConfig},
    response::{self, Answered, Failure, ResponseContext},
    tunnel, upload,
};
use crate::{
    h1::{
        ClientCertificate, ForwardedBy, HeadProgress, OutConnection, OutFraming, RequestBody, RequestHead,
        ResponseDefect, StrictTransport, write_answer,
    },
    http::{Method, Reason, Version},
    limits,
    observe::Counter,
    ring::{Recv, SendBuf},
    transfer::{Decoder, Watch, flush},
    upstream::{AttemptedEndpoints, Cluster, ConnectOptions, Upstream},
};

/// What of a request is still needed when its head has gone.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) keep_alive: bool,
    /// The client has said that it will send no other, nor has this one a body, behind which some send a line end.
    last: bool,
    pub(crate) expect_continue: bool,
    pub(crate) upgrade: bool,
    /// Its credentials are of NTLM or Negotiate.
    authenticates_connection: bool,
    pub(crate) config: Rc<ListenerConfig>,
    /// The cluster that it goes to; `None` until it is known.
    cluster: Option<Rc<Cluster>>,
    /// What is to be said of `Strict-Transport-Security`.
    pub(crate) transport: Option<Rc<StrictTransport>>,
}

impl Request {
    /// The cluster that it goes to.
    pub(crate) fn cluster_name(&self) -> &str {
        self.cluster.as_ref().map_or("", |cluster| &cluster.name)
    }

    /// Whether the client is watched while the backend is waited for.
    pub(super) fn watch(&self) -> Watch {
        if self.config.settings.abort_on_close { Watch::ResetOrEnd } else { Watch::Reset }
    }

    /// True if the upstream connection belongs to this client from now on: NTLM and Negotiate authenticate the connection
    /// (RFC 4559), so that what comes next on it is answered as if this client asked. RFC 9110 section 3.3.
    fn binds(&self, answered: &Answered) -> bool {
        self.authenticates_connection || answered.authenticates_connection
    }

    /// How the connection goes on when all of the request was read and answered.
    fn next(&self, keep_alive: bool) -> Disposition {
        match (keep_alive, self.last) {
            (true, _) => Disposition::Request,
            (false, true) => Disposition::Finish,
            (false, false) => Disposition::Close,
        }
    }
}

/// A request that goes to a backend.
struct RoutedRequest {
    request: Request,
    /// The head as the backend gets it.
    head: Vec<u8>,
    body: RequestBody,
}

/// What is known of a request that kakehi answers itself.
struct LocalReply {
    reason: Reason,
    head_only: bool,
    /// The connection can go on: the request has ended, and where is beyond doubt.
    keep_alive: bool,
    version: Version,
    /// `Location` of a redirect.
    location: Option<String>,
    /// `Strict-Transport-Security`.
    transport: Option<Rc<StrictTransport>>,
}

impl LocalReply {
    /// Nothing is known of the request but that it is wrong.
    fn broken(reason: Reason) -> LocalReply {
        let (version, location, transport) = (Version::Http11, None, None);
        LocalReply { reason, head_only: false, keep_alive: false, version, location, transport }
    }

    /// `request` is answered so; the connection goes on if nothing of it is left to be read.
    fn whole(reason: Reason, request: &Request, ended: bool) -> LocalReply {
        LocalReply {
            reason,
            head_only: request.method == Method::Head,
            keep_alive: request.keep_alive && ended,
            version: request.version,
            location: None,
            transport: request.transport.as_ref().map(Rc::clone),
        }
    }
}

/// What the bytes in the read_buffer amount to.
enum Head {
    Incomplete,
    Forward(RoutedRequest),
    Answer(LocalReply),
}

/// Serves one request; its first bytes are in the read_buffer.
pub(crate) async fn exchange(connection: &mut ClientConnection) -> Disposition {
    let routed = match read_head(connection).await {
        Ok(Some(routed)) => routed,
        Ok(None) => {
            connection.shared.counters.count(Counter::ClientAborts);
            return Disposition::Abort { reset: false };
        }
        Err(refused) => return answer(connection, refused).await,
    };
    match forward(connection, routed).await {
        Ok(next) => next,
        Err(refused) => answer(connection, refused).await,
    }
}

/// Reads until the head is complete; `None` when the client goes away before.
async fn read_head(connection: &mut ClientConnection) -> Result<Option<RoutedRequest>, LocalReply> {
    let mut progress = HeadProgress::default();
    let config = connection.config();
    let mut due = None;
    loop {
        match plan(connection, &config, &mut progress) {
            Head::Forward(routed) => return Ok(Some(routed)),
            Head::Answer(refused) => return Err(refused),
            Head::Incomplete => {}
        }
        connection.read_buffer.copy_out_of_pool();
        // The deadline is that of the whole head, however many pieces it comes in.
        let due = *due.get_or_insert_with(|| connection.head_due(&config));
        connection.timer.set_at(due);
        match connection.timer.limit(connection.client.receive()).await {
            Ok(Ok(Recv::Data(buffer))) => connection.read_buffer.push(buffer),
            Ok(Ok(Recv::Finished) | Err(_)) => return Ok(None),
            Err(_) => return Err(LocalReply::broken(Reason::RequestTimeout)),
        }
    }
}

/// Parses the head in the read_buffer, finds where it leads, and writes it as the backend gets it.
fn plan(connection: &mut ClientConnection, config: &Rc<ListenerConfig>, progress: &mut HeadProgress) -> Head {
    let peer = connection.peer();
    let draining = connection.is_last();
    let ClientConnection { shared, read_buffer, info, client, .. } = connection;
    let secured = info.as_ref().and_then(|info| info.secured.as_ref());
    let scratch = &mut *shared.scratch.borrow_mut();
    let head = match RequestHead::parse(read_buffer.bytes(), progress, &config.request_limits, scratch) {
        Ok(Some(head)) => head,
        Ok(None) => return Head::Incomplete,
        Err(reason) => return Head::Answer(LocalReply::broken(reason)),
    };
    let (body, length) = (head.body, head.len);
    let ended = matches!(body, RequestBody::None | RequestBody::Length(0));
    let mut request = Request {
        method: head.method,
        version: head.version,
        keep_alive: head.keep_alive && !draining,
        last: !head.keep_alive && body == RequestBody::None,
        expect_continue: head.expect_continue && !ended,
        upgrade: head.upgrade,
        authenticates_connection: head.authenticates_connection,
        config: Rc::clone(config),
        cluster: None,
        transport: config.transport.as_ref().filter(|_| client.is_tls()).map(Rc::clone),
    };
    let answer = |reason, request: &Request| Head::Answer(LocalReply::whole(reason, request, ended));
    // RFC 9110 section 7.4.
    match (secured, &config.tls) {
        (Some(secured), Some(terminator)) if terminator.misdirects(head.host_name(), secured) => {
            read_buffer.consume(length);
            return answer(Reason::Misdirected, &request);
        }
        // Its listener has come to speak TLS since it began.
        (None, Some(_)) => {
            read_buffer.consume(length);
            request.keep_alive = false;
            return answer(Reason::Misdirected, &request);
        }
        _ => {}
    }
    let action = match config.routes.borrow().find(head.host_name(), head.path(), head.method_text) {
        Ok(target) => {
            request.cluster = Some(Rc::clone(&target.cluster));
            if let (true, HstsPolicy::Own(own)) = (client.is_tls(), &target.transport) {
                request.transport.clone_from(own);
            }
            target.action
        }
        Err(reason) => {
            read_buffer.consume(length);
            return answer(reason, &request);
        }
    };
    let refused = match action {
        Action::Deny => Some((Reason::Denied, None)),
        Action::RedirectHttps(port) if !client.is_tls() => {
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            let location = format!("https://{}{port}{}", head.host_name(), head.target);
            Some((Reason::HttpsRedirect, Some(location)))
        }
        Action::Forward | Action::RedirectHttps(_) => match body {
            RequestBody::Length(length)
                if config.settings.sizes.body != 0 && length > config.settings.sizes.body =>
            {
                Some((Reason::BodyTooLarge, None))
            }
            // RFC 9110 section 7.6.2: who receives 0 answers as the last recipient.
            _ if head.max_forwards == Some(0) && head.method == Method::Trace => {
                Some((Reason::TraceEnded, None))
            }
            _ if head.max_forwards == Some(0) => Some((Reason::OptionsEnded, None)),
            _ => None,
        },
    };
    if let Some((reason, location)) = refused {
        read_buffer.consume(length);
        return Head::Answer(LocalReply { location, ..LocalReply::whole(reason, &request, ended) });
    }
    let mut out = shared.ring.head_buffer();
    let mut peer_text = [0; 48];
    let mut id_text = [0; ulid::ULID_LEN];
    let forwarding = &config.settings.forwarding;
    head.write_forwarded(
        &ForwardedBy {
            peer_ip: write_ip(peer, &mut peer_text),
            local_port: &config.local_port,
            proto: if client.is_tls() { "https" } else { "http" },
            trusted: peer.is_some_and(|peer| forwarding.trusted_peers.iter().any(|net| net.contains(&peer))),
            switches: forwarding,
            request_id: shared.request_ids.borrow_mut().next(shared.ring.now(), &mut id_text),
            client: secured.and_then(|secured| secured.client.as_ref()).map(|client| ClientCertificate {
                subject: &client.subject,
                fingerprint: &client.fingerprint,
            }),
        },
        &mut out,
    );
    read_buffer.consume(length);
    Head::Forward(RoutedRequest { request, head: out, body })
}

/// The text of an address; `unknown` (RFC 7239 section 6.2) when the client has none.
fn write_ip(peer: Option<std::net::IpAddr>, text: &mut [u8; 48]) -> &str {
    use std::{io::Write, net::IpAddr};
    let length = match peer {
        None => return "unknown",
        Some(IpAddr::V4(peer)) => {
            // By hand: the formatting machinery takes as long as routing does.
            let mut length = 0;
            for (place, octet) in peer.octets().into_iter().enumerate() {
                if place > 0 {
                    text[length] = b'.';
                    length += 1;
                }
                let mut buffer = itoa::Buffer::new();
                let digits = buffer.format(octet).as_bytes();
                text[length..length + digits.len()].copy_from_slice(digits);
                length += digits.len();
            }
            length
        }
        Some(IpAddr::V6(peer)) => {
            let mut rest = &mut text[..];
            // 45 bytes at most.
            if write!(rest, "{peer}").is_err() {
                return "unknown";
            }
            48 - rest.len()
        }
    };
    std::str::from_utf8(&text[..length]).unwrap_or("unknown")
}

/// Brings the request to a backend, and its answer back. An error is what kakehi answers instead.
async fn forward(
    connection: &mut ClientConnection,
    routed: RoutedRequest,
) -> Result<Disposition, LocalReply> {
    let RoutedRequest { request, mut head, body } = routed;
    let shared = Rc::clone(&connection.shared);
    let timeouts = &request.config.settings.timeouts;
    let sizes = &request.config.settings.sizes;
    let mut moved = 0;
    let mut decoder = match body {
        RequestBody::None => Decoder::Length(0),
        RequestBody::Length(length) => Decoder::Length(length),
        RequestBody::Chunked => {
            Decoder::request_chunks(sizes.fields, request.config.settings.forwarding.underscores)
        }
    };
    let whole = decoder
        .coalesce(&mut connection.read_buffer, &mut head, &mut moved)
        .map_err(|reason| LocalReply { version: request.version, ..LocalReply::broken(reason) })?;
    if sizes.body != 0 && moved > sizes.body {
        return Err(LocalReply::whole(Reason::BodyTooLarge, &request, false));
    }
    let refuse = |reason| LocalReply::whole(reason, &request, whole);
    // Whoever got here was routed.
    let Some(cluster) = &request.cluster else { return Err(refuse(Reason::NoRoute)) };
    let mut attempted = AttemptedEndpoints::default();
    let mut repeated = false;
    // What is left is the next request: it waits, and must not hold a shared buffer meanwhile.
    connection.read_buffer.copy_out_of_pool();
    let mut bound = connection.take_bound(cluster);
    let was_bound = bound.is_some();
    loop {
        let upstream = match bound.take() {
            Some(bound) => bound,
            None => cluster
                .connect(
                    &shared.pooling,
                    &mut attempted,
                    ConnectOptions {
                        fresh: repeated,
                        connect_ms: timeouts.connect_ms,
                        timer: &connection.timer,
                        addresses: &|| connection.addresses(),
                    },
                )
                .await
                .map_err(refuse)?,
        };
        match flush(&upstream.stream, &connection.timer, timeouts.back_ms).await {
            Ok(()) => {}
            // Died in the pool, with nothing of this request on it.
            Err(_) if upstream.reused => continue,
            Err(_) => return Err(refuse(Reason::BackendClosed)),
        }
        // What is kept of the head is gone when more of the request is sent.
        let request_line = if whole { Vec::new() } else { first_line(&head).to_vec() };
        upstream.stream.start_send_replayable(head);
        let outcome = if whole {
            let context = ResponseContext {
                shared: &shared,
                request: &request,
                client: &connection.client,
                timer: &connection.timer,
                upstream: &upstream.stream,
                beside: None,
            };
            response::forward(context).await
        } else {
            let body = upload::Body { decoder, moved, request_line };
            return Box::pin(with_upload(connection, &request, upstream, body, was_bound)).await;
        };
        match outcome {
            Ok(answered) if answered.upgraded => {
                return Ok(Box::pin(tunnel::open(
                    connection,
                    &request,
                    upstream,
                    answered.early_tunnel_data,
                ))
                .await);
            }
            Ok(answered) => {
                shared.counters.count(Counter::Requests);
                if answered.reusable {
                    let binds = was_bound || request.binds(&answered);
                    part_with(connection, upstream, binds.then_some(cluster), answered.keep_alive);
                }
                return Ok(request.next(answered.keep_alive));
            }
            // It may never have read the request: RFC 9110 section 9.2.2 lets us repeat it, once. What is no status line
            // belongs to the response before (RFC 9112 section 9.2), and the connection is as good as dead.
            Err(Failure::Unanswered | Failure::Refused(ResponseDefect::NoStatusLine))
                if upstream.reused && !repeated && request.method.is_idempotent() =>
            {
                match upstream.stream.take_replay() {
                    Some(again) => head = again,
                    None => return Err(refuse(Reason::BackendClosed)),
                }
                shared.counters.count(Counter::Retries);
                repeated = true;
            }
            Err(failure) => {
                if let Some(defect) = failure.defect() {
                    let head = upstream.stream.take_replay().unwrap_or_default();
                    tell_refused(&shared, cluster, &upstream, first_line(&head), defect);
                }
                return fail(&shared, failure, refuse);
            }
        }
    }
}

/// Gives an upstream connection back that can carry another request: to the pool, or to the client connection that it is
/// bound to, if that goes on.
fn part_with(
    connection: &mut ClientConnection,
    upstream: Upstream,
    binds_to: Option<&Rc<Cluster>>,
    goes_on: bool,
) {
    match binds_to {
        None => upstream.release(&connection.shared.pooling),
        Some(cluster) if goes_on => connection.bind(upstream, cluster),
        // It ends with the client's.
        Some(_) => {}
    }
}

/// The request line of a head, without its line end; what is longer than a line of the log should be is cut.
fn first_line(head: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'\r', head).unwrap_or(head.len());
    &head[..end.min(limits::MAX_LOGGED_REQUEST_LINE)]
}

/// Says in the log why a response was refused: one line a second for each backend.
#[cold]
fn tell_refused(
    shared: &Shared,
    cluster: &Cluster,
    upstream: &Upstream,
    request_line: &[u8],
    defect: ResponseDefect,
) {
    let Some(left_out) = upstream.admit_complaint(shared.ring.now()) else { return };
    tracing::warn!(
        cluster = %cluster.name,
        backend = upstream.backend_id(),
        request = %request_line.escape_ascii(),
        left_out,
        "response refused: {defect}"
    );
}

/// Goes on with a request whose body has yet to come.
async fn with_upload(
    connection: &mut ClientConnection,
    request: &Request,
    upstream: Upstream,
    mut body: upload::Body,
    was_bound: bool,
) -> Result<Disposition, LocalReply> {
    let shared = Rc::clone(&connection.shared);
    let request_line = std::mem::take(&mut body.request_line);
    let outcome = upload::run(connection, request, &upstream.stream, body).await;
    let refuse = |reason| LocalReply::whole(reason, request, false);
    match outcome {
        Ok((answered, uploaded)) if answered.upgraded => {
            if uploaded {
                return Ok(
                    Box::pin(tunnel::open(connection, request, upstream, answered.early_tunnel_data)).await
                );
            }
            // RFC 9110 section 7.8. A switch of protocols in the middle of a body: nobody could say where the tunnel begins.
            shared.counters.count(Counter::BackendTruncations);
            Ok(Disposition::Abort { reset: true })
        }
        Ok((answered, uploaded)) => {
            shared.counters.count(Counter::Requests);
            if answered.reusable && uploaded {
                let binds = was_bound || request.binds(&answered);
                let cluster = request.cluster.as_ref().filter(|_| binds);
                part_with(connection, upstream, cluster, answered.keep_alive);
            }
            // Answered before the body was all there: what is still to come of it is not a request (RFC 9112 section 9.3).
            Ok(if answered.keep_alive && uploaded { Disposition::Request } else { Disposition::Close })
        }
        Err(failure) => {
            if let (Some(defect), Some(cluster)) = (failure.defect(), &request.cluster) {
                tell_refused(&shared, cluster, &upstream, &request_line, defect);
            }
            fail(&shared, failure, refuse)
        }
    }
}

/// What becomes of the connection after a failure.
fn fail(
    shared: &Shared,
    failure: Failure,
    refuse: impl Fn(Reason) -> LocalReply,
) -> Result<Disposition, LocalReply> {
    match failure {
        Failure::Unanswered => Err(refuse(Reason::BackendClosed)),
        Failure::Silent(reason) => Err(refuse(reason)),
        Failure::Refused(defect) => Err(refuse(defect.reason())),
        Failure::Cut { reset, .. } => {
            shared.counters.count(Counter::Requests);
            shared.counters.count(Counter::BackendTruncations);
            Ok(Disposition::Abort { reset })
        }
        Failure::ClientGone => {
            shared.counters.count(Counter::ClientAborts);
            Ok(Disposition::Abort { reset: false })
        }
        Failure::ClientStalled => {
            shared.counters.count(Counter::ClientStalls);
            Ok(Disposition::Abort { reset: true })
        }
    }
}

/// Answers by ourselves.
async fn answer(connection: &mut ClientConnection, refused: LocalReply) -> Disposition {
    let shared = &connection.shared;
    shared.counters.count(Counter::Requests);
    shared.counters.count_answer(refused.reason);
    let keep_alive = refused.keep_alive && !connection.is_last() && refused.version == Version::Http11;
    let mut out = shared.ring.head_buffer();
    // A head that is not one came over TLS all the same.
    let config = connection.config();
    let inherited = config.transport.as_ref().filter(|_| connection.client.is_tls());
    let transport = refused.transport.as_ref().or(inherited);
    let extra: Vec<(&str, &str)> = [
        refused.location.as_deref().map(|location| ("location", location)),
        transport.map(|transport| ("strict-transport-security", transport.value.as_str())),
    ]
    .into_iter()
    .flatten()
    .collect();
    write_answer(refused.reason, !keep_alive, refused.head_only, &extra, &shared.date(), &mut out);
    let front_ms = connection.config().settings.timeouts.front_ms;
    match flush(&connection.client, &connection.timer, front_ms).await {
        Ok(()) => connection.client.start_send(SendBuf::from(out)),
        Err(_) => return Disposition::Abort { reset: false },
    }
    if keep_alive { Disposition::Request } else { Disposition::Close }
}

/// Whether a response that leaves so lets the client's connection go on.
pub(crate) fn goes_on(framing: OutFraming, connection: OutConnection) -> bool {
    framing != OutFraming::UntilClose
        && matches!(connection, OutConnection::Implicit | OutConnection::KeepAlive10)
}
