//! What comes before the first request of a connection, on listeners where something does: a header of the PROXY
//! protocol, a TLS handshake. Connections of TCP listeners, and of names that are not terminated here, are passed on as
//! they are from then on.

use std::rc::Rc;

use super::{
    connection::{Connection, Next},
    inbox::Inbox,
    site::Site,
    tunnel,
};
use crate::{
    cluster::{Approach, Cluster, Tried},
    http::{Reason, write_answer},
    observe::Counter,
    proxy_header,
    ring::{Outgoing, Received},
    tls::{self, Failure, FailureKind, Hello, Input, Shaken, Terminator},
};
use kakehi_ctl::state::ListenerProtocol;

/// How long tickets wait for the first response to be sent with it (ms): longer than a client needs to ask for something.
const TICKET_DELAY_MS: u64 = 10;
/// Longest header of the PROXY protocol, with whatever came behind it in one go.
const MAX_HEADER: usize = 32 * 1024;

/// Does what has to be done before the first request. `Next::Request`: requests follow.
pub(super) async fn begin(connection: &mut Connection) -> Next {
    let site = connection.site();
    let handshake_ms = site.tls.as_ref().map(|terminator| terminator.handshake_ms);
    let due = connection.shared.ring.now() + handshake_ms.unwrap_or(site.settings.timeouts.request_ms);
    connection.timer.set_at(due);
    if site.settings.expect_proxy {
        let header = read_header(&mut *connection, &site).await;
        if let Err(next) = header {
            return next;
        }
    }
    match (site.settings.protocol, &site.tls) {
        (ListenerProtocol::Http, _) => {
            connection.begin_requests();
            Next::Request
        }
        (ListenerProtocol::Https, Some(terminator)) => {
            let next = secure(connection, &site, terminator).await;
            if next == Next::Request {
                connection.begin_requests();
            }
            next
        }
        // Without the vault nothing is served, and the vault is always there.
        (ListenerProtocol::Https, None) => Next::Abort { reset: true },
        (ListenerProtocol::Tcp, _) => pass_on(connection, &site).await,
    }
}

/// Reads more into the inbox, within the deadline that the timer has. Who is `late`, or `gone`, is counted so.
async fn read_more(connection: &mut Connection, late: Counter, gone: Option<Counter>) -> Result<(), Next> {
    let counters = &connection.shared.counters;
    match connection.timer.limit(connection.client.receive()).await {
        Ok(Ok(Received::Data(buffer))) => {
            connection.inbox.push(buffer);
            Ok(())
        }
        Ok(Ok(Received::Finished) | Err(_)) => {
            gone.into_iter().for_each(|gone| counters.count(gone));
            Err(Next::Abort { reset: false })
        }
        Err(_) => {
            counters.count(late);
            Err(Next::Abort { reset: false })
        }
    }
}

async fn read_header(connection: &mut Connection, site: &Site) -> Result<(), Next> {
    let peer = connection.client.peer_address().map(|address| address.ip().to_canonical());
    let trusted = peer.is_some_and(|peer| site.settings.proxy_peers.iter().any(|net| net.contains(&peer)));
    if !trusted {
        connection.shared.counters.count(Counter::ProxyPeersRefused);
        return Err(Next::Abort { reset: true });
    }
    loop {
        match proxy_header::parse(connection.inbox.bytes()) {
            Ok(Some(header)) => {
                connection.inbox.consume(header.length);
                connection.told().ends = header.ends;
                return Ok(());
            }
            Ok(None) if connection.inbox.bytes().len() < MAX_HEADER => {}
            Ok(None) | Err(_) => {
                connection.shared.counters.count(Counter::ProxyHeaderErrors);
                return Err(Next::Abort { reset: false });
            }
        }
        connection.inbox.settle();
        read_more(connection, Counter::IdleTimeouts, None).await?;
    }
}

/// Does the handshake, or passes the connection on, as the name says that the client asks for.
async fn secure(connection: &mut Connection, site: &Rc<Site>, terminator: &Rc<Terminator>) -> Next {
    if connection.inbox.is_empty()
        && let Err(next) = read_more(connection, Counter::TlsTimeout, Some(Counter::TlsGone)).await
    {
        return next;
    }
    // What begins like a method of HTTP is no record of TLS.
    if connection.inbox.bytes().first().is_some_and(u8::is_ascii_uppercase) {
        return refuse_clear_text(connection);
    }
    let first = connection.inbox.take();
    let shaken = {
        let Connection { client, timer, .. } = &*connection;
        // It is in clear text as long as there is no handshake.
        let Some(stream) = client.clear() else { return Next::Abort { reset: true } };
        timer
            .limit(async {
                if !terminator.depends_on_name() && site.forwards.names.is_empty() {
                    return tls::accept(stream, terminator, None, first).await.map(Outcome::shaken);
                }
                let Hello { name, bytes } = match tls::read_hello(stream, first).await {
                    Ok(hello) => hello,
                    Err((failure, bytes)) => return tell(stream, terminator, failure, bytes).await,
                };
                let name = name.as_deref();
                if let Some(Some(cluster)) = name.and_then(|name| site.forwards.names.find(name)) {
                    return Ok(Outcome::PassOn(Rc::clone(cluster), bytes));
                }
                if terminator.refuses(name) {
                    stream.send(tls::unrecognized_name().into()).await?;
                    return Err(Failure::UnknownName);
                }
                tls::accept(stream, terminator, name, Input::Own(bytes)).await.map(Outcome::shaken)
            })
            .await
    };
    match shaken {
        Ok(Ok(Outcome::Shaken(shaken))) => {
            let Shaken { session, secured, data } = *shaken;
            let counters = &connection.shared.counters;
            counters.count(Counter::TlsHandshakes);
            if secured.resumed {
                counters.count(Counter::TlsResumed);
            }
            connection.client.secure(&connection.shared.ring, session);
            connection.told().secured = Some(secured);
            if let Some(data) = data {
                connection.inbox.push(data);
            }
            give_tickets(connection).await
        }
        Ok(Ok(Outcome::PassOn(cluster, bytes))) => {
            connection.inbox.push_copy(&bytes);
            forward(connection, site, &cluster).await
        }
        Ok(Err(failure)) => fail(connection, &failure),
        Err(_) => {
            connection.shared.counters.count(Counter::TlsTimeout);
            Next::Abort { reset: false }
        }
    }
}

enum Outcome {
    Shaken(Box<Shaken>),
    PassOn(Rc<Cluster>, Vec<u8>),
}

impl Outcome {
    fn shaken(shaken: Shaken) -> Outcome {
        Outcome::Shaken(Box::new(shaken))
    }
}

/// Has rustls say what is wrong with a first message that could not be read.
async fn tell(
    stream: &crate::ring::Stream,
    terminator: &Terminator,
    failure: Failure,
    bytes: Vec<u8>,
) -> Result<Outcome, Failure> {
    match failure {
        Failure::Tls(_) => {
            tls::accept(stream, terminator, None, Input::Own(bytes)).await.map(Outcome::shaken)
        }
        Failure::HelloTooLarge => {
            stream.send(tls::too_large().into()).await?;
            Err(Failure::HelloTooLarge)
        }
        other => Err(other),
    }
}

fn fail(connection: &Connection, failure: &Failure) -> Next {
    tracing::debug!("no TLS connection: {failure}");
    connection.shared.counters.count(match failure.kind() {
        FailureKind::Gone => Counter::TlsGone,
        FailureKind::NoCommonParameters => Counter::TlsNoCommonParameters,
        FailureKind::NoCommonProtocol => Counter::TlsNoCommonProtocol,
        FailureKind::UnknownName => Counter::TlsUnknownName,
        FailureKind::Certificate => Counter::TlsClientCertificate,
        FailureKind::AlertReceived => Counter::TlsAlertReceived,
        FailureKind::Malformed => Counter::TlsMalformed,
    });
    match failure.kind() {
        FailureKind::Gone => Next::Abort { reset: false },
        // The alert has been sent; closing in stages lets the client have it.
        _ => Next::Close,
    }
}

fn refuse_clear_text(connection: &Connection) -> Next {
    let counters = &connection.shared.counters;
    counters.count(Counter::TlsMalformed);
    counters.count_answer(Reason::ClearTextOnTls);
    let mut out = connection.shared.ring.head_buffer();
    write_answer(Reason::ClearTextOnTls, true, false, &[], &mut out);
    connection.client.start_send(Outgoing::from(out));
    Next::Close
}

/// Tickets go with the first response, if it is asked for soon: one packet less for each handshake.
async fn give_tickets(connection: &mut Connection) -> Next {
    if !connection.client.has_pending() || !connection.inbox.is_empty() {
        return Next::Request;
    }
    connection.timer.set(TICKET_DELAY_MS);
    match connection.timer.limit(connection.client.receive()).await {
        Ok(Ok(Received::Data(buffer))) => {
            connection.inbox.push(buffer);
            Next::Request
        }
        Ok(Ok(Received::Finished) | Err(_)) => Next::Finish,
        Err(_) => {
            connection.client.send_pending();
            Next::Request
        }
    }
}

/// Passes a connection of a TCP listener on.
async fn pass_on(connection: &mut Connection, site: &Rc<Site>) -> Next {
    if site.forwards.names.is_empty() {
        return match &site.forwards.any {
            Some(cluster) => forward(connection, site, cluster).await,
            None => Next::Abort { reset: true },
        };
    }
    if connection.inbox.is_empty()
        && let Err(next) = read_more(connection, Counter::IdleTimeouts, None).await
    {
        return next;
    }
    let first = connection.inbox.take();
    let hello = {
        let Some(stream) = connection.client.clear() else { return Next::Abort { reset: true } };
        connection.timer.limit(tls::read_hello(stream, first)).await
    };
    let (name, bytes) = match hello {
        Ok(Ok(Hello { name, bytes })) => (name, bytes),
        // Not TLS, or nothing that we understand: it is for whoever takes all that has no name.
        Ok(Err((_, bytes))) => (None, bytes),
        Err(_) => {
            connection.shared.counters.count(Counter::TlsTimeout);
            return Next::Abort { reset: false };
        }
    };
    let named = name.as_deref().and_then(|name| site.forwards.names.find(name)).and_then(Option::as_ref);
    match named.or(site.forwards.any.as_ref()) {
        Some(cluster) => {
            connection.inbox.push_copy(&bytes);
            forward(connection, site, cluster).await
        }
        None => {
            connection.shared.counters.count(Counter::TlsUnknownName);
            connection.client.start_send(tls::unrecognized_name().into());
            Next::Close
        }
    }
}

/// Forwards the connection, with what is in the inbox, as it is.
async fn forward(connection: &mut Connection, site: &Rc<Site>, cluster: &Rc<Cluster>) -> Next {
    let shared = Rc::clone(&connection.shared);
    let timeouts = &site.settings.timeouts;
    let upstream = {
        let approach = Approach {
            fresh: true,
            connect_ms: timeouts.connect_ms,
            timer: &connection.timer,
            ends: &|| connection.ends(),
        };
        cluster.connect(&shared.pooling, &mut Tried::default(), approach).await
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(reason) => {
            shared.counters.count_answer(reason);
            // Nothing can be said, but that it is not the end of something.
            return Next::Abort { reset: true };
        }
    };
    shared.counters.count(Counter::TcpForwarded);
    tunnel::run(connection, &cluster.name, timeouts.tunnel_ms, upstream, Inbox::default()).await
}
