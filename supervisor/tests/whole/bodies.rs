//! Bodies pass unchanged, whatever their size and framing, and end where their framing says.

use std::time::Duration;

use crate::harness::{
    Backend, Config, End, Framing, OK, Proxy, assert_same_bytes, chunks, contains, exchange, noise, wait,
};

const MIB: usize = 1 << 20;

#[test]
fn a_chunked_request_arrives_chunked_with_its_trailers_and_without_extensions() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n\
                   003;ext=\"1;2\"\r\nabc\r\n2 ; x\r\nde\r\n0;last\r\nDigest: sum\r\nContent-Length: 9\r\n\r\n";
    exchange(&proxy, request).expect(200, "ok");
    let request = backend.request();
    assert_eq!((request.framing, request.body.as_slice()), (Framing::Chunked, b"abcde".as_slice()));
    assert_eq!(request.trailers, [("Digest".to_owned(), "sum".to_owned())]);
    assert!(!contains(&request.raw, "ext") && !contains(&request.raw, "last"));
}

#[test]
fn events_on_a_connection_that_has_brought_a_large_body_arrive_at_once_and_hold_no_private_memory_between_them()
 {
    let body = noise(100_000);
    let answer = body.clone();
    let backend = Backend::script(move |conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len()));
        conn.send(&answer);
        // The same connection: what comes now is expected to be as large.
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for length in [3_000, 10, 40_000, 10] {
            conn.send(format!("{length:x}\r\n{}\r\n", "e".repeat(length)));
        }
        conn.rest();
    });
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let mut client = proxy.client();
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(get);
    assert_eq!(client.head().status(), 200);
    assert_same_bytes(&client.bytes(body.len()), &body, "the large body");
    client.send(get);
    assert_eq!(client.head().status(), 200);
    for length in [3_000, 10, 40_000, 10] {
        let event = format!("{length:x}\r\n{}\r\n", "e".repeat(length));
        assert_same_bytes(&client.bytes(event.len()), event.as_bytes(), "an event");
    }
    // The figure is told once a second.
    wait::pace(Duration::from_millis(1_500));
    assert_eq!(proxy.counter("body_memory.in_use"), 0);
}

#[test]
fn a_chunked_response_arrives_chunked_with_its_trailers_and_without_extensions() {
    let backend = Backend::respond(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nDigest: sum\r\n\r\n",
    );
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        response.expect(200, "abcde");
        assert_eq!(response.framing, Framing::Chunked);
        assert_eq!(response.trailers, [("Digest".to_owned(), "sum".to_owned())]);
        assert!(!contains(&response.raw, "ext"));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_body_that_ends_with_the_backends_connection_becomes_chunked_and_the_client_stays() {
    let backend = Backend::respond_and_close("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        response.expect(200, "until the end");
        assert_eq!(response.framing, Framing::Chunked);
    }
}

#[test]
fn an_http_1_0_client_gets_bodies_without_chunks_and_then_the_end() {
    let chunked = Backend::respond(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nDigest: x\r\n\r\n",
    );
    let closing = Backend::respond_and_close("HTTP/1.1 200 OK\r\n\r\nabc");
    for backend in [&chunked, &closing] {
        let proxy = Proxy::to(backend);
        let mut client = proxy.client();
        client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        response.expect(200, "abc");
        assert_eq!((response.framing, response.field("transfer-encoding")), (Framing::UntilClose, None));
    }
}

#[test]
fn eight_mib_pass_in_both_directions_with_a_length() {
    let data = noise(8 * MIB);
    let answer = data.clone();
    let backend = Backend::answer(move |_| {
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len()).into_bytes();
        response.extend_from_slice(&answer);
        response
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", data.len()));
    client.send(&data);
    let response = client.response();
    assert_same_bytes(&response.body, &data, "down");
    assert_same_bytes(&backend.request().body, &data, "up");
}

#[test]
fn eight_mib_pass_in_both_directions_in_chunks() {
    let data = noise(8 * MIB);
    let answer = data.clone();
    let backend = Backend::answer(move |_| {
        let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        response.extend(chunks(&answer, 100_003));
        response.extend_from_slice(b"0\r\n\r\n");
        response
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(chunks(&data, 70_001));
    client.send("0\r\n\r\n");
    let response = client.response();
    assert_same_bytes(&response.body, &data, "down");
    assert_same_bytes(&backend.request().body, &data, "up");
}

#[test]
fn small_chunks_pass_by_the_thousand() {
    let data = noise(20_000);
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(chunks(&data, 1));
    client.send("0\r\n\r\n");
    client.response().expect(200, "ok");
    assert_same_bytes(&backend.request().body, &data, "up");
}

#[test]
fn a_body_goes_up_and_down_at_the_same_time() {
    let backend = Backend::script(|conn| {
        if conn.head().is_some() && conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n") {
            for _ in 0..4 {
                let byte = conn.bytes(1).unwrap_or_default();
                conn.send(byte);
            }
        }
        conn.rest();
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    for byte in [b"a", b"b", b"c", b"d"] {
        client.send(byte);
        assert_eq!(client.bytes(1), byte);
    }
}

#[test]
fn a_final_answer_before_the_body_was_sent_reaches_the_client_and_the_body_no_other_request() {
    let backend = Backend::script(|conn| {
        while let Some(request) = conn.head() {
            if request.target() != "/early" {
                conn.send(OK);
                continue;
            }
            conn.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
        }
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
    client.response().expect(403, "no");
    client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    // Either the connection is closed, or what comes is still the body: it is never answered as a request.
    let (rest, end) = client.patience(std::time::Duration::from_millis(500)).rest();
    assert!(rest.is_empty(), "after {end:?}: {}", rest.escape_ascii());
    exchange(&proxy, "GET /next HTTP/1.1\r\nHost: a\r\n\r\n").expect(200, "ok");
    assert!(backend.requests().is_empty());
}

#[test]
fn a_client_that_goes_in_the_middle_of_its_body_never_makes_a_whole_request() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let before = backend.ended();
        let mut client = proxy.client();
        client.send(request);
        client.half_close();
        let (answer, end) = client.rest();
        assert!(!answer.starts_with(b"HTTP/1.1 200") && end != End::Deadline, "{}", answer.escape_ascii());
        crate::harness::wait::until("the end of the backend's connection", || {
            backend.ended() > before || backend.connections() == backend.ended()
        });
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn a_client_that_goes_in_the_middle_of_an_answer_hurts_nobody_else() {
    let data = noise(4 * MIB);
    let backend = Backend::answer(move |request| {
        if request.target() == "/" {
            return OK.to_vec();
        }
        let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", data.len()).into_bytes();
        response.extend_from_slice(&data);
        response
    });
    let proxy = Proxy::to(&backend);
    for _ in 0..5 {
        let mut client = proxy.client();
        client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        client.reset();
        exchange(&proxy, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect(200, "ok");
    }
}

#[test]
fn a_client_that_closes_its_sending_side_still_gets_its_answer() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.half_close();
    client.response().expect(200, "ok");
    client.expect_closed();
}

#[test]
fn the_bytes_of_bodies_count() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let before = [proxy.counter("bytes_in"), proxy.counter("bytes_out")];
    let mut client = proxy.client();
    for chunked in [false, true] {
        let base = proxy.counter("bytes_in");
        for _ in 0..10 {
            if chunked {
                client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                client.send([chunks(&[b'x'; 10_000], 2_500), b"0\r\n\r\n".to_vec()].concat());
            } else {
                client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n");
                client.send([b'x'; 10_000]);
            }
            client.response().expect(200, "ok");
        }
        let counted = proxy.counter("bytes_in") - base;
        assert!((100_000..110_000).contains(&counted), "10 bodies of 10,000 bytes count as {counted}");
    }
    let out = proxy.counter("bytes_out") - before[1];
    assert!((20 * 40..20 * 400).contains(&out), "20 small answers count as {out}");
    assert!(proxy.counter("bytes_in") - before[0] < 220_000);
}
