//! A client that goes on with its upload behind an early final answer gets the answer: what it sends is drained for a while,
//! and a connection that will close says so. Bytes count at the socket.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Backend, Config, End, OK, Proxy, chunks, wait};

/// How long an upload goes on behind the answer.
const UPLOAD: Duration = Duration::from_secs(4);
const BEAT: Duration = Duration::from_millis(40);

/// A client that sends `head`, then pieces of `piece` for [`UPLOAD`] without reading, and then reads: the answer, and how it
/// ended.
fn upload_blindly(proxy: &Proxy, head: &str, piece: &[u8]) -> (String, End) {
    let mut tcp = TcpStream::connect(proxy.address()).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(head.as_bytes()).unwrap();
    let begin = Instant::now();
    let mut taken = true;
    while taken && begin.elapsed() < UPLOAD {
        taken = tcp.write_all(piece).is_ok();
        wait::pace(BEAT);
    }
    let _ = tcp.shutdown(Shutdown::Write);
    tcp.set_read_timeout(Some(wait::SOON)).unwrap();
    let mut answer = Vec::new();
    let end = match tcp.read_to_end(&mut answer) {
        Ok(_) if taken => End::Eof,
        // The reset was reported to the one that wrote.
        Ok(_) => End::Reset,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => End::Deadline,
        Err(_) => End::Reset,
    };
    (String::from_utf8_lossy(&answer).into_owned(), end)
}

#[track_caller]
fn expect_whole(answer: &(String, End), start: &str, what: &str) {
    let (text, end) = answer;
    assert!(text.starts_with(start) && *end == End::Eof, "{what}: {end:?} after `{text}`");
    assert!(
        text.to_ascii_lowercase().contains("\r\nconnection: close\r\n"),
        "{what}: `{text}` closes without a word"
    );
}

const LENGTH: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_refusal_of_kakehis_own_reaches_a_client_that_goes_on_uploading() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("max_body_size = 100000").start();
    let piece = vec![b'x'; 100_000];
    thread::scope(|scope| {
        let length = scope.spawn(|| upload_blindly(&proxy, LENGTH, &piece));
        let chunked = scope.spawn(|| upload_blindly(&proxy, CHUNKED, &chunks(&vec![b'x'; 100_000], 50_000)));
        expect_whole(&length.join().unwrap(), "HTTP/1.1 413 ", "a length");
        expect_whole(&chunked.join().unwrap(), "HTTP/1.1 413 ", "chunks");
    });
}

#[test]
fn an_early_answer_of_the_backend_reaches_a_client_that_goes_on_uploading() {
    let keeps = Backend::script(|conn| {
        conn.head();
        conn.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
        conn.rest();
    });
    let reads_on = Backend::script(|conn| {
        conn.head();
        let _ = conn.bytes(300_000);
        conn.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
        conn.rest();
    });
    let closes = Backend::script(|conn| {
        conn.head();
        let _ = conn.bytes(300_000);
        conn.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    });
    let piece = vec![b'x'; 100_000];
    let pieces = chunks(&piece, 50_000);
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for (what, backend) in [("at once", &keeps), ("in the middle", &reads_on), ("and closes", &closes)] {
            for (framing, head, piece) in [("length", LENGTH, &piece), ("chunks", CHUNKED, &pieces)] {
                clients.push(scope.spawn(move || {
                    let proxy = Proxy::to(backend);
                    let answer = upload_blindly(&proxy, head, piece);
                    expect_whole(&answer, "HTTP/1.1 403 ", &format!("{framing}, answered {what}"));
                }));
            }
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
}

/// How long the connection of a client lasts that was refused, and that sends `piece` again and again.
fn lasts(line: &str, piece: &[u8]) -> Duration {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("max_body_size = 10").listener(line).start();
    let mut client = proxy.client();
    client.send(LENGTH);
    client.send("x");
    let since = Instant::now();
    client.response().expect_answer(413, "body_too_large");
    // The end of the proxy's direction comes with the answer; what counts is when the connection is given up.
    wait::within(Duration::from_secs(15), "the end of the connection", || {
        client.send(piece);
        (proxy.counter("client.connections") == 0).then_some(())
    });
    since.elapsed()
}

#[test]
fn a_client_that_stops_uploading_behind_its_answer_has_lingering_timeout_to_go_on() {
    let elapsed = lasts("lingering_timeout = 3", b"");
    assert!(elapsed > Duration::from_millis(2_500), "a client that pauses is cut after {elapsed:?}");
}

#[test]
fn a_client_that_goes_on_uploading_for_ever_is_cut_after_lingering_time() {
    let elapsed = lasts("lingering_time = 3", &[b'x'; 100]);
    assert!(elapsed > Duration::from_millis(2_500), "a client that uploads is cut after {elapsed:?}");
}
