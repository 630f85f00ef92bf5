//! The checks that only need an address to talk to: requests, bodies, tunnels.
//!
//! Each is a plain function from the address to "it held" or a sentence that says what happened instead.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::backend::{FAREWELL, GREETING};
use crate::message::{SOCKET_DEADLINE, Sum, Wire, chunked, pattern};
use crate::{Verdict, explain};

const MIB: usize = 1024 * 1024;

/// A check by its name, which is the sentence that it proves.
pub(crate) type Check = (&'static str, fn(SocketAddr) -> Verdict);

/// All of them, in the order in which they run.
pub(crate) const CHECKS: [Check; 10] = [
    ("one_connection_carries_many_requests", one_connection_carries_many_requests),
    ("many_connections_are_served_at_once", many_connections_are_served_at_once),
    ("every_request_may_have_its_own_connection", every_request_may_have_its_own_connection),
    ("pipelined_requests_are_answered_in_order", pipelined_requests_are_answered_in_order),
    ("a_request_may_arrive_byte_by_byte", a_request_may_arrive_byte_by_byte),
    ("a_chunked_response_arrives_whole", a_chunked_response_arrives_whole),
    ("a_chunked_request_arrives_whole", a_chunked_request_arrives_whole),
    ("eight_mebibytes_go_up", eight_mebibytes_go_up),
    ("eight_mebibytes_come_down", eight_mebibytes_come_down),
    ("a_websocket_tunnel_carries_both_ways_and_half_closes", a_tunnel_carries_both_ways_and_half_closes),
];

/// A connection of the driver to `address`.
pub(crate) fn connect(address: SocketAddr) -> Result<Wire, String> {
    let stream = TcpStream::connect_timeout(&address, SOCKET_DEADLINE)
        .map_err(explain(&format!("connecting to {address}")))?;
    Wire::new(stream).map_err(explain("setting up the socket"))
}

/// Sends one request and returns the body of its 200.
pub(crate) fn get<S: Read + Write>(wire: &mut Wire<S>, target: &str) -> Result<Vec<u8>, String> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: guest.test\r\n\r\n");
    wire.send(request.as_bytes()).map_err(explain("sending a request"))?;
    answer(wire)
}

/// The body of the next response, which must be a 200.
pub(crate) fn answer<S: Read + Write>(wire: &mut Wire<S>) -> Result<Vec<u8>, String> {
    let head = wire.read_head().map_err(explain("reading a response"))?;
    let head = head.ok_or("the connection ended instead of a response")?;
    let body = wire.read_body(&head, true).map_err(explain(&format!("after `{}`", head.first_line)))?;
    if head.second_word() != "200" {
        return Err(format!("`{}`: {}", head.first_line, String::from_utf8_lossy(&body)));
    }
    Ok(body)
}

/// `got` must be `wanted`.
pub(crate) fn expect(got: &[u8], wanted: &[u8]) -> Verdict {
    if got == wanted {
        return Ok(());
    }
    Err(format!("got `{}` instead of `{}`", String::from_utf8_lossy(got), String::from_utf8_lossy(wanted)))
}

/// `count` requests over one connection.
pub(crate) fn requests(address: SocketAddr, count: usize) -> Verdict {
    let mut wire = connect(address)?;
    for number in 0..count {
        let body = get(&mut wire, "/hello").map_err(|error| format!("request {number}: {error}"))?;
        expect(&body, b"hello")?;
    }
    Ok(())
}

fn one_connection_carries_many_requests(address: SocketAddr) -> Verdict {
    requests(address, 200)
}

fn many_connections_are_served_at_once(address: SocketAddr) -> Verdict {
    let clients: Vec<_> = (0..16).map(|_| std::thread::spawn(move || requests(address, 10))).collect();
    clients.into_iter().try_for_each(|client| client.join().map_err(|_| "a client panicked".to_owned())?)
}

fn every_request_may_have_its_own_connection(address: SocketAddr) -> Verdict {
    for _ in 0..30 {
        let mut wire = connect(address)?;
        wire.send(b"GET /hello HTTP/1.1\r\nHost: guest.test\r\nConnection: close\r\n\r\n")
            .map_err(explain("sending"))?;
        expect(&answer(&mut wire)?, b"hello")?;
        wire.expect_end().map_err(explain("waiting for the end"))?;
    }
    Ok(())
}

fn pipelined_requests_are_answered_in_order(address: SocketAddr) -> Verdict {
    let mut wire = connect(address)?;
    let targets: Vec<String> = (0..5).map(|number| format!("/echo-target/{number}")).collect();
    let requests: String =
        targets.iter().map(|target| format!("GET {target} HTTP/1.1\r\nHost: guest.test\r\n\r\n")).collect();
    wire.send(requests.as_bytes()).map_err(explain("sending"))?;
    targets.iter().try_for_each(|target| expect(&answer(&mut wire)?, target.as_bytes()))
}

fn a_request_may_arrive_byte_by_byte(address: SocketAddr) -> Verdict {
    let mut wire = connect(address)?;
    for byte in b"POST /sum HTTP/1.1\r\nHost: guest.test\r\nContent-Length: 5\r\n\r\n12345" {
        wire.send(std::slice::from_ref(byte)).map_err(explain("sending"))?;
    }
    expect(&answer(&mut wire)?, Sum::of(b"12345").to_string().as_bytes())
}

fn a_chunked_response_arrives_whole(address: SocketAddr) -> Verdict {
    let mut wire = connect(address)?;
    let body = get(&mut wire, "/chunked/300000")?;
    same(Sum::of(&body), Sum::of(&pattern(300_000)))?;
    // The connection must be at the right place for the next one.
    expect(&get(&mut wire, "/hello")?, b"hello")
}

fn a_chunked_request_arrives_whole(address: SocketAddr) -> Verdict {
    let mut wire = connect(address)?;
    let body = pattern(300_000);
    let head = b"POST /sum HTTP/1.1\r\nHost: guest.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    wire.send(head).map_err(explain("sending a head"))?;
    wire.send(&chunked(&body, 9000)).map_err(explain("sending a body"))?;
    expect(&answer(&mut wire)?, Sum::of(&body).to_string().as_bytes())?;
    expect(&get(&mut wire, "/hello")?, b"hello")
}

fn eight_mebibytes_go_up(address: SocketAddr) -> Verdict {
    let mut wire = connect(address)?;
    let body = pattern(8 * MIB);
    let head = format!("POST /sum HTTP/1.1\r\nHost: guest.test\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.send(head.as_bytes()).map_err(explain("sending a head"))?;
    wire.send(&body).map_err(explain("sending a body"))?;
    expect(&answer(&mut wire)?, Sum::of(&body).to_string().as_bytes())
}

fn eight_mebibytes_come_down(address: SocketAddr) -> Verdict {
    let mut wire = connect(address)?;
    let body = get(&mut wire, &format!("/bytes/{}", 8 * MIB))?;
    same(Sum::of(&body), Sum::of(&pattern(8 * MIB)))?;
    expect(&get(&mut wire, "/hello")?, b"hello")
}

/// Opens a tunnel; whatever is sent into it comes back.
pub(crate) fn tunnel(address: SocketAddr) -> Result<Wire, String> {
    let mut wire = connect(address)?;
    wire.send(
        b"GET /socket HTTP/1.1\r\nHost: guest.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .map_err(explain("sending the upgrade"))?;
    let head = wire.read_head().map_err(explain("reading the 101"))?;
    let head = head.ok_or("the connection ended instead of a 101")?;
    if head.second_word() != "101" {
        return Err(format!("`{}` instead of 101", head.first_line));
    }
    expect(&wire.take(GREETING.len()).map_err(explain("reading the greeting"))?, GREETING)?;
    Ok(wire)
}

fn a_tunnel_carries_both_ways_and_half_closes(address: SocketAddr) -> Verdict {
    let mut wire = tunnel(address)?;
    // Both directions at once, more than any buffer on the way holds.
    let sent = pattern(MIB);
    let mut writer = wire.stream.try_clone().map_err(explain("cloning the socket"))?;
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes)?;
        writer.shutdown(Shutdown::Write)
    });
    let echoed = wire.take(sent.len()).map_err(explain("reading the echo"));
    writing.join().map_err(|_| "the writer panicked")?.map_err(explain("writing into the tunnel"))?;
    same(Sum::of(&echoed?), Sum::of(&sent))?;

    let mut rest = wire.take(FAREWELL.len()).map_err(explain("reading after the half-close"))?;
    wire.stream.read_to_end(&mut rest).map_err(explain("reading the end of the tunnel"))?;
    expect(&rest, FAREWELL)
}

fn same(got: Sum, wanted: Sum) -> Verdict {
    if got == wanted { Ok(()) } else { Err(format!("got {got} instead of {wanted}")) }
}
