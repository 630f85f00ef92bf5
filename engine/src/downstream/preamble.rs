//! What comes before the first request of a connection, on listeners where something does: a header of the PROXY
//! protocol, a TLS handshake. Connections of TCP listeners, and of names that are not terminated here, are passed on as
//! they are from then on.

use std::rc::Rc;

use kakehi_ctl::{limits, state::ListenerProtocol, template::Values};

use super::{client::ClientConnection, tunnel};
use crate::{
    exchange::{Downstream as _, Event, ListenerConfig, Nameless, Passage, judge},
    h1::{write_answer, write_template},
    http::{Asked, Reason},
    observe::Counter,
    ring::{Recv, SendBuf, Source, Stream},
    tls::{
        self, Failure, FailureKind, HandshakeResult, Hello, Input, OfferedProtocols, Terminator, Turns,
        UnderWay,
    },
    transfer::{ReadBuffer, Watch},
    transport::proxy_header,
    upstream::{AttemptedEndpoints, ConnectError, ConnectOptions, of_client},
};

/// How long tickets wait for the first response to be sent with it (ms): longer than a client needs to ask for something.
const TICKET_DELAY_MS: u64 = 10;
/// Longest header of the PROXY protocol, with whatever came behind it in one go.
const MAX_HEADER: usize = 32 * 1024;

/// Does what has to be done before the first request. `PreambleDone`: requests follow.
pub(super) async fn begin(connection: &mut ClientConnection) -> Event {
    let config = connection.listener.config();
    let handshake_ms = config.tls.as_ref().map(|terminator| terminator.handshake_ms);
    let due = connection.shared().ring.now() + handshake_ms.unwrap_or(config.settings.timeouts.request_ms);
    connection.timer.set_at(due);
    if config.settings.expect_proxy
        && let Err(event) = read_header(&mut *connection, &config).await
    {
        return event;
    }
    match (config.settings.protocol, &config.tls) {
        (ListenerProtocol::Http, _) => {
            connection.begin_requests();
            Event::PreambleDone
        }
        (ListenerProtocol::Https, Some(terminator)) => {
            let event = secure(connection, &config, terminator).await;
            if event == Event::PreambleDone {
                connection.begin_requests();
            }
            event
        }
        // Without the vault nothing is served, and the vault is always there.
        (ListenerProtocol::Https, None) => Event::Rejected,
        (ListenerProtocol::Tcp, _) => pass_on(connection, &config).await,
    }
}

/// Reads more into the read buffer, within the deadline that the timer has. Who is `late`, or `gone`, is counted so.
async fn read_more(
    connection: &mut ClientConnection,
    late: Counter,
    gone: Option<Counter>,
) -> Result<(), Event> {
    let counters = &connection.shared().counters;
    match connection.timer.limit(connection.stream.receive()).await {
        Ok(Ok(Recv::Data(buffer))) => {
            connection.read_buffer.push(buffer);
            Ok(())
        }
        Ok(Ok(Recv::Finished) | Err(_)) => {
            gone.into_iter().for_each(|gone| counters.count(gone));
            Err(Event::PeerGone)
        }
        Err(_) => {
            counters.count(late);
            Err(Event::PeerGone)
        }
    }
}

async fn read_header(connection: &mut ClientConnection, config: &ListenerConfig) -> Result<(), Event> {
    let peer = connection.stream.peer_address().map(|address| address.ip().to_canonical());
    let trusted = peer.is_some_and(|peer| config.settings.proxy_peers.iter().any(|net| net.contains(&peer)));
    if !trusted {
        connection.shared().counters.count(Counter::ProxyPeersRefused);
        return Err(Event::Rejected);
    }
    loop {
        match proxy_header::parse(connection.read_buffer.bytes()) {
            Ok(Some(header)) => {
                connection.read_buffer.consume(header.length);
                connection.info().addresses = header.ends;
                return Ok(());
            }
            Ok(None) if connection.read_buffer.bytes().len() < MAX_HEADER => {}
            Ok(None) | Err(_) => {
                connection.shared().counters.count(Counter::ProxyHeaderErrors);
                return Err(Event::PeerGone);
            }
        }
        connection.read_buffer.copy_out_of_pool();
        read_more(connection, Counter::IdleTimeouts, None).await?;
    }
}

/// Does the handshake, or passes the connection on, as the name says that the client asks for.
async fn secure(
    connection: &mut ClientConnection,
    config: &Rc<ListenerConfig>,
    terminator: &Rc<Terminator>,
) -> Event {
    if connection.read_buffer.is_empty()
        && let Err(event) = read_more(connection, Counter::TlsTimeout, Some(Counter::TlsGone)).await
    {
        return event;
    }
    // What begins like a method of HTTP is no record of TLS.
    if connection.read_buffer.bytes().first().is_some_and(u8::is_ascii_uppercase) {
        return refuse_clear_text(connection);
    }
    let source = Source::client(connection.addresses().map(|pair| pair.source.ip()));
    let under_way = match begin_handshake(connection, source).await {
        Ok(under_way) => under_way,
        Err(event) => return event,
    };
    let first = connection.read_buffer.take();
    let outcome = {
        let ClientConnection { stream, timer, connections, .. } = &*connection;
        let turns = Turns { admission: connections.shared.ring.admission(), source };
        // It is in clear text as long as there is no handshake.
        let Some(stream) = stream.as_plain() else { return Event::Rejected };
        timer
            .limit(async {
                if !terminator.depends_on_name() && !config.passthrough.goes_by_hello() {
                    return tls::accept(turns, stream, terminator, None, first).await.map(Outcome::secured);
                }
                let Hello { name, protocols, bytes } =
                    match tls::read_hello(turns, stream, first, limits::MAX_CLIENT_HELLO).await {
                        Ok(hello) => hello,
                        Err((failure, bytes)) => {
                            return tell(turns, stream, terminator, failure, bytes).await;
                        }
                    };
                let name = name.as_deref();
                if let Some(passage) = config.passthrough.find(name, &protocols) {
                    return Ok(Outcome::PassOn(passage.clone(), bytes));
                }
                if terminator.refuses(name) {
                    stream.send(tls::unrecognized_name().into()).await?;
                    return Err(Failure::UnknownName);
                }
                tls::accept(turns, stream, terminator, name, Input::Own(bytes)).await.map(Outcome::secured)
            })
            .await
    };
    drop(under_way);
    match outcome {
        Ok(Ok(Outcome::Secured(result))) => {
            let HandshakeResult { session, info, data } = *result;
            let counters = &connection.shared().counters;
            counters.count(Counter::TlsHandshakes);
            if info.resumed {
                counters.count(Counter::TlsResumed);
            }
            connection.stream.secure(&connection.connections.shared.ring, session);
            connection.info().tls = Some(info);
            if let Some(data) = data {
                connection.read_buffer.push(data);
            }
            give_tickets(connection).await
        }
        Ok(Ok(Outcome::PassOn(passage, bytes))) => {
            connection.read_buffer.push_copy(&bytes);
            forward(connection, config, &passage).await
        }
        Ok(Err(failure)) => fail(connection, &failure),
        Err(_) => {
            connection.shared().counters.count(Counter::TlsTimeout);
            Event::PeerGone
        }
    }
}

/// Waits until the handshake may begin (`max_handshakes`), within the deadline that the timer has.
async fn begin_handshake(connection: &mut ClientConnection, source: Source) -> Result<UnderWay, Event> {
    let connections = Rc::clone(&connection.connections);
    if !connections.handshakes.is_open(source) {
        connections.shared.counters.count(Counter::TlsDeferred);
        connection.read_buffer.copy_out_of_pool();
    }
    connection.timer.limit(connections.handshakes.begin(source)).await.map_err(|_| {
        connections.shared.counters.count(Counter::TlsTimeout);
        Event::PeerGone
    })
}

enum Outcome {
    Secured(Box<HandshakeResult>),
    PassOn(Passage, Vec<u8>),
}

impl Outcome {
    fn secured(result: HandshakeResult) -> Outcome {
        Outcome::Secured(Box::new(result))
    }
}

/// Has rustls say what is wrong with a first message that could not be read.
async fn tell(
    turns: Turns<'_>,
    stream: &Stream,
    terminator: &Terminator,
    failure: Failure,
    bytes: Vec<u8>,
) -> Result<Outcome, Failure> {
    match failure {
        Failure::Tls(_) => {
            tls::accept(turns, stream, terminator, None, Input::Own(bytes)).await.map(Outcome::secured)
        }
        Failure::HelloTooLarge => {
            stream.send(tls::too_large().into()).await?;
            Err(Failure::HelloTooLarge)
        }
        other => Err(other),
    }
}

fn fail(connection: &ClientConnection, failure: &Failure) -> Event {
    tracing::debug!("no TLS connection: {failure}");
    connection.shared().counters.count(match failure.kind() {
        FailureKind::Gone => Counter::TlsGone,
        FailureKind::NoCommonParameters => Counter::TlsNoCommonParameters,
        FailureKind::NoCommonProtocol => Counter::TlsNoCommonProtocol,
        FailureKind::UnknownName => Counter::TlsUnknownName,
        FailureKind::Certificate => Counter::TlsClientCertificate,
        FailureKind::AlertReceived => Counter::TlsAlertReceived,
        FailureKind::Malformed => Counter::TlsMalformed,
    });
    match failure.kind() {
        FailureKind::Gone => Event::PeerGone,
        // The alert has been sent; closing in stages lets the client have it.
        _ => Event::FarewellSent,
    }
}

fn refuse_clear_text(connection: &ClientConnection) -> Event {
    let counters = &connection.shared().counters;
    counters.count(Counter::TlsMalformed);
    counters.count_answer(Reason::ClearTextOnTls);
    let mut out = connection.shared().ring.head_buffer();
    let (reason, date) = (Reason::ClearTextOnTls, connection.shared().date());
    let config = connection.listener.config();
    match config.templates.as_ref().and_then(|templates| templates.get(reason.status())) {
        None => write_answer(reason, reason.status(), true, false, &[], &date, &mut out),
        Some(template) => {
            let values = Values { message: reason.code(), ..Values::default() };
            write_template(template, &values, true, false, &[], &date, &mut out);
        }
    }
    connection.stream.start_send(SendBuf::from(out));
    Event::FarewellSent
}

/// Tickets go with the first response, if it is asked for soon: one packet less for each handshake.
async fn give_tickets(connection: &mut ClientConnection) -> Event {
    if !connection.stream.has_pending() || !connection.read_buffer.is_empty() {
        return Event::PreambleDone;
    }
    connection.timer.set(TICKET_DELAY_MS);
    match connection.timer.limit(connection.stream.receive()).await {
        Ok(Ok(Recv::Data(buffer))) => {
            connection.read_buffer.push(buffer);
            Event::PreambleDone
        }
        Ok(Ok(Recv::Finished) | Err(_)) => Event::Finished,
        Err(_) => {
            connection.stream.send_pending();
            Event::PreambleDone
        }
    }
}

/// Passes a connection of a TCP listener on.
async fn pass_on(connection: &mut ClientConnection, config: &Rc<ListenerConfig>) -> Event {
    if !config.passthrough.goes_by_hello() {
        return match config.passthrough.unread() {
            Some(passage) => forward(connection, config, passage).await,
            None => Event::Rejected,
        };
    }
    connection.timer.set(config.settings.sni_preread_ms);
    if connection.read_buffer.is_empty()
        && let Err(event) = read_more(connection, Counter::IdleTimeouts, None).await
    {
        return event;
    }
    let source = Source::client(connection.addresses().map(|pair| pair.source.ip()));
    let first = connection.read_buffer.take();
    let most = config.settings.sni_preread_max as usize;
    let hello = {
        let Some(stream) = connection.stream.as_plain() else { return Event::Rejected };
        let turns = Turns { admission: connection.shared().ring.admission(), source };
        connection.timer.limit(tls::read_hello(turns, stream, first, most)).await
    };
    let Hello { name, protocols, bytes } = match hello {
        Ok(Ok(hello)) => hello,
        Ok(Err((failure @ Failure::HelloTooLarge, _))) => {
            connection.stream.start_send(tls::too_large().into());
            return fail(connection, &failure);
        }
        // Not TLS, or nothing that we understand: it is for whoever takes all that has no name.
        Ok(Err((_, bytes))) => Hello { name: None, protocols: OfferedProtocols::default(), bytes },
        Err(_) => {
            connection.shared().counters.count(Counter::TlsTimeout);
            return Event::PeerGone;
        }
    };
    match config.passthrough.find(name.as_deref(), &protocols) {
        Some(passage) => {
            connection.read_buffer.push_copy(&bytes);
            forward(connection, config, passage).await
        }
        None => {
            connection.shared().counters.count(Counter::TlsUnknownName);
            connection.stream.start_send(tls::unrecognized_name().into());
            Event::FarewellSent
        }
    }
}

/// Holds the connection against what is said of how much may come from whom, before a backend hears of it.
///
/// # Errors
/// Why it is refused.
fn admit(
    connection: &mut ClientConnection,
    config: &ListenerConfig,
    Passage { cluster, guard }: &Passage,
) -> Result<(), Reason> {
    let asked = Nameless(connection.peer());
    let limits = cluster.limits();
    let of_cluster = limits.as_ref().and_then(|limits| limits.guard.as_ref());
    for guard in config.guard.iter().chain(guard.as_deref()).chain(of_cluster) {
        judge(guard, connection.shared(), &asked).map_err(|refusal| refusal.reason)?;
    }
    let pooling = &connection.shared().pooling;
    let Some((caps, table)) = cluster.caps(pooling).zip(pooling.sources.as_ref()) else { return Ok(()) };
    let place = caps.take(&cluster.name, asked.client(), table).ok_or(Reason::TooManyConnections)?;
    connection.set_place(Some(place));
    Ok(())
}

/// Passes the connection on as it is, with what is in the read buffer.
async fn forward(connection: &mut ClientConnection, config: &Rc<ListenerConfig>, passage: &Passage) -> Event {
    let connections = Rc::clone(&connection.connections);
    let shared = &connections.shared;
    let timeouts = &config.settings.timeouts;
    let cluster = &passage.cluster;
    if let Err(reason) = admit(connection, config, passage) {
        shared.counters.count_answer(reason);
        return Event::Rejected;
    }
    if cluster.maintenance().is_some() {
        shared.counters.count_answer(Reason::Maintenance);
        return Event::Rejected;
    }
    let Some(_admitted) = cluster.admit(&shared.pooling) else {
        shared.counters.count_answer(Reason::ClusterFull);
        return Event::Rejected;
    };
    let mut attempted = AttemptedEndpoints::default();
    let upstream = {
        let options = ConnectOptions {
            fresh: true,
            affinity: of_client(connection.peer()),
            connect_ms: timeouts.connect_ms,
            timer: &connection.timer,
            client: (&connection.stream, Watch::Reset),
            // Who sends no more may have said all that there is to say.
            watch_in_queue: Watch::Reset,
            addresses: &|| connection.addresses(),
        };
        cluster.connect(&shared.pooling, &mut attempted, &options).await
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(ConnectError::ClientGone) => return Event::PeerGone,
        Err(ConnectError::Unreachable(reason)) => {
            shared.counters.count_answer(reason);
            // Nothing can be said, but that it is not the end of something.
            return Event::Rejected;
        }
    };
    attempted.note_connected(&upstream, &shared.pooling);
    shared.counters.count(Counter::TcpForwarded);
    tunnel::run(connection, &cluster.name, timeouts.tunnel_ms, upstream, ReadBuffer::default()).await
}
