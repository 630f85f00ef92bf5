//! Whatever is ambiguous about where a request ends is refused, the connection closed, the backend not bothered.

use crate::harness::{Backend, End, OK, Proxy, contains, exchange, show, wait};

/// What is refused: why it is here, the bytes, the statuses that are right, and the reason (empty: any).
type Case = (&'static str, &'static [u8], &'static [u16], &'static str);

/// Sends each case, followed by a request that would be served if the case were not refused or its end mistaken.
#[track_caller]
fn all_are_refused(cases: &[Case]) {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut failures = String::new();
    for (name, bytes, statuses, code) in cases {
        let mut client = proxy.client();
        client.send([bytes, b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".as_slice()].concat());
        let problem = match client.try_response() {
            Err(broken) => format!("{broken}"),
            Ok(answer) => {
                let (rest, end) = client.rest();
                if !statuses.contains(&answer.status()) {
                    format!("status {}: {}", answer.status(), answer.text())
                } else if !answer.text().trim_end().ends_with(code) {
                    format!("reason: {}", answer.text())
                } else if !rest.is_empty() || end == End::Deadline {
                    format!("not closed ({end:?}) after {}", show(&rest))
                } else {
                    continue;
                }
            }
        };
        failures += &format!(
            "{name}: expected {statuses:?} `{code}` and the end, got {problem}\n  {}\n",
            show(bytes)
        );
    }
    assert!(failures.is_empty(), "\n{failures}");
    backend.expect_untouched();
    exchange(&proxy, "GET /after HTTP/1.1\r\nHost: a\r\n\r\n").expect(200, "ok");
}

#[test]
fn conflicting_and_malformed_lengths_are_refused() {
    const BAD: &str = "bad_content_length";
    all_are_refused(&[
        (
            "Content-Length, then Transfer-Encoding",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
            "content_length_and_transfer_encoding",
        ),
        (
            "Transfer-Encoding, then Content-Length",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            &[400],
            "content_length_and_transfer_encoding",
        ),
        (
            "two lengths",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 10\r\n\r\nhello",
            &[400],
            BAD,
        ),
        (
            "a list that differs",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello",
            &[400],
            BAD,
        ),
        ("a plus sign", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", &[400], BAD),
        ("a minus sign", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", &[400], BAD),
        ("hexadecimal", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", &[400], BAD),
        ("empty", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello", &[400], BAD),
        ("a space inside", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 5\r\n\r\nhello", &[400], BAD),
        ("a fraction", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\nhello", &[400], BAD),
        (
            "more than 64 bits",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello",
            &[400],
            BAD,
        ),
        (
            "a number and its like",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5x\r\n\r\nhello",
            &[400],
            BAD,
        ),
    ]);
}

#[test]
fn every_transfer_encoding_but_one_plain_chunked_is_refused() {
    const BAD: &str = "bad_transfer_encoding";
    all_are_refused(&[
        ("a prefix", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[400, 501], ""),
        ("twice in a list", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", &[400], BAD),
        ("a leading comma", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", &[400], BAD),
        (
            "two lines",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
            BAD,
        ),
        (
            "two lines that differ",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n\r\n0\r\n\r\n",
            &[400, 501],
            "",
        ),
        ("another coding first", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", &[400, 501], ""),
        ("chunked not last", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", &[400, 501], ""),
        ("identity", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", &[400, 501], ""),
        ("quoted", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", &[400, 501], ""),
        ("empty", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", &[400, 501], ""),
        ("a parameter", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", &[400, 501], ""),
        ("a vertical tab", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", &[400], ""),
        (
            "in HTTP/1.0",
            b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
            "transfer_encoding_in_http10",
        ),
    ]);
}

#[test]
fn heads_with_other_line_ends_or_control_bytes_are_refused() {
    all_are_refused(&[
        ("a bare LF in the fields", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", &[400], "bare_line_feed"),
        ("a bare LF after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", &[400], "bare_line_feed"),
        ("LF LF as the end", b"GET / HTTP/1.1\nHost: a\n\n", &[400], "bare_line_feed"),
        ("CRLF LF as the end", b"GET / HTTP/1.1\r\nHost: a\r\n\n", &[400], "bare_line_feed"),
        ("a bare CR in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", &[400], ""),
        ("a NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", &[400], "bad_field"),
        ("a DEL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", &[400], "bad_field"),
        ("a NUL in the target", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", &[400], ""),
        ("a folded line", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", &[400], "obsolete_fold"),
        ("a folded first line", b"GET / HTTP/1.1\r\n Host: a\r\nX: a\r\n\r\n", &[400], "obsolete_fold"),
        ("a space before the colon", b"GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", &[400], "bad_field"),
        (
            "a space before the colon of a length",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello",
            &[400],
            "bad_field",
        ),
        ("an empty name", b"GET / HTTP/1.1\r\nHost: a\r\n: a\r\nX: b\r\n\r\n", &[400], "bad_field"),
        ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n", &[400], "bad_field"),
        ("a name that is no token", b"GET / HTTP/1.1\r\nHost: a\r\nX[0]: a\r\n\r\n", &[400], "bad_field"),
        ("a name of high bytes", b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: a\r\n\r\n", &[400], "bad_field"),
    ]);
}

#[test]
fn request_lines_that_are_none_are_refused() {
    all_are_refused(&[
        ("HTTP/0.9", b"GET /\r\n\r\n", &[400, 505], ""),
        ("a method of high bytes", b"\xffGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[400], ""),
        ("a method in brackets", b"(GET) / HTTP/1.1\r\nHost: a\r\n\r\n", &[400], ""),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", &[400], ""),
        ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", &[400, 505], ""),
        ("a tab for the space", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", &[400], ""),
        ("a space at the end", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", &[400, 505], ""),
        ("a fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", &[400], "bad_target"),
        ("a target without a slash", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", &[400], "bad_target"),
        ("the asterisk without OPTIONS", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", &[400], "bad_target"),
        ("another scheme", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", &[400], "bad_target"),
        ("a user in the authority", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", &[400], ""),
        ("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", &[400, 505], ""),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", &[400, 505], ""),
        ("HTTP/1.10", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", &[400, 505], ""),
        ("http/1.1", b"GET / http/1.1\r\nHost: a\r\n\r\n", &[400, 505], ""),
        ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400, 505], ""),
        ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &[400], ""),
        ("CONNECT", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", &[405], "connect_refused"),
        (
            "an expectation that nobody knows",
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 5\r\n\r\nhello",
            &[417],
            "bad_expect",
        ),
    ]);
}

#[test]
fn hosts_that_are_none_are_refused() {
    all_are_refused(&[
        ("none", b"GET / HTTP/1.1\r\nX: y\r\n\r\n", &[400], "missing_host"),
        ("two", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &[400], "duplicate_host"),
        ("the same twice", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", &[400], "duplicate_host"),
        ("empty", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", &[400], ""),
        ("port 0", b"GET / HTTP/1.1\r\nHost: h:0\r\n\r\n", &[400], "bad_host"),
        ("port 65536", b"GET / HTTP/1.1\r\nHost: h:65536\r\n\r\n", &[400], "bad_host"),
        ("a port that is no number", b"GET / HTTP/1.1\r\nHost: h:8a\r\n\r\n", &[400], "bad_host"),
        ("a list", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", &[400], "bad_host"),
        ("a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", &[400], "bad_host"),
        ("a user", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", &[400], "bad_host"),
        ("a space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", &[400], "bad_host"),
        ("an open bracket", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", &[400], "bad_host"),
    ]);
}

#[test]
fn hosts_that_are_unusual_but_valid_are_served() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    for host in ["[::1]", "[2001:db8::1]:8080", "a_b.example", "a:65535", "127.0.0.1:1", "A.EXAMPLE."] {
        crate::harness::get(&proxy, host, "/").expect(200, "ok");
        assert_eq!(backend.requests().last().unwrap().field("host"), Some(host));
    }
}

#[test]
fn a_length_that_is_repeated_is_passed_on_once() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    for fields in ["Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5, 5", "content-length: 5 \t"] {
        exchange(&proxy, format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello")).expect(200, "ok");
    }
    for request in backend.requests() {
        assert_eq!(
            (request.all("content-length"), request.body.as_slice()),
            (vec!["5"], b"hello".as_slice())
        );
    }
}

#[test]
fn a_chunked_body_that_is_malformed_never_becomes_a_request() {
    let cases: &[(&str, &[u8])] = &[
        ("no hexadecimal", b"x\r\nabc\r\n0\r\n\r\n"),
        ("0x", b"0x3\r\nabc\r\n0\r\n\r\n"),
        ("a sign", b"+3\r\nabc\r\n0\r\n\r\n"),
        ("a minus", b"-1\r\nabc\r\n0\r\n\r\n"),
        ("empty size", b"\r\nabc\r\n0\r\n\r\n"),
        ("only an extension", b";a\r\nabc\r\n0\r\n\r\n"),
        ("17 digits", b"00000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("more than 64 bits", b"fffffffffffffffff\r\nabc"),
        ("a leading space", b" 3\r\nabc\r\n0\r\n\r\n"),
        ("a bare LF after the size", b"3\nabc\r\n0\r\n\r\n"),
        ("a bare LF after the data", b"3\r\nabc\n0\r\n\r\n"),
        ("a bare LF in an extension", b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
        ("a bare CR in an extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
        ("data longer than its size", b"3\r\nabcd\r\n0\r\n\r\n"),
        ("other bytes for CRLF", b"3\r\nabcXX0\r\n\r\n"),
        ("a bare LF after the last chunk", b"3\r\nabc\r\n0\n\r\n"),
        ("a trailer without a colon", b"3\r\nabc\r\n0\r\nnothing\r\n\r\n"),
        ("a folded trailer", b"3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n"),
        ("a bare LF in the trailers", b"3\r\nabc\r\n0\r\nA: b\nC: d\r\n\r\n"),
    ];
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut failures = String::new();
    for (name, body) in cases {
        let mut client = proxy.client();
        let head = b"POST /bad HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
        client.send([head, body, b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        let (answer, end) = client.rest();
        if !answer.starts_with(b"HTTP/1.1 400 ") || end == End::Deadline || contains(&answer, "HTTP/1.1 200")
        {
            failures += &format!("{name}: {end:?} after {}\n  {}\n", show(&answer), show(body));
        }
    }
    assert!(failures.is_empty(), "expected 400 and the end\n{failures}");
    wait::until("the end of every backend connection", || backend.ended() == backend.connections());
    assert!(backend.targets().is_empty(), "whole requests: {:?}", backend.targets());
    assert!(!contains(&backend.received(), "smuggled"));
}

#[test]
fn trailers_that_would_change_the_request_are_dropped() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    exchange(
        &proxy,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: evil\r\nContent-Length: 5\r\n\
         Transfer-Encoding: gzip\r\nAuthorization: x\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close\r\nA_B: x\r\nProxy: x\r\nDigest: x\r\n\r\n",
    )
    .expect(200, "ok");
    assert_eq!(backend.request().trailers, [("Digest".to_owned(), "x".to_owned())]);
}

#[test]
fn the_body_of_a_get_is_its_body_and_no_request() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = proxy.client();
    client
        .send(format!("GET /1 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()));
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    client.response().expect(200, "ok");
    assert_eq!(backend.targets(), ["/1", "/2"]);
    assert_eq!(backend.requests()[0].text(), smuggled);
}

#[test]
fn fields_that_connection_names_end_here_in_requests() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    exchange(
        &proxy,
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-One ,, \"x\"\r\nConnection: x-two,host,Content-Length\r\n\
         X-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\nKeep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\n\
         TE: gzip\r\nProxy-Authorization: x\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nhi",
    )
    .expect(200, "ok");
    let request = backend.request();
    for name in ["x-one", "x-two", "keep-alive", "proxy-connection", "te", "proxy-authorization", "upgrade"] {
        assert_eq!(request.field(name), None, "{name}");
    }
    assert_eq!((request.field("x-three"), request.field("host")), (Some("3"), Some("a")));
    assert_eq!(request.body, b"hi", "what frames and routes a request is not up to Connection");
}

#[test]
fn fields_that_connection_names_end_here_in_responses() {
    let backend = Backend::respond(
        "HTTP/1.1 200 OK\r\nConnection: X-One\r\nConnection: x-two, keep-alive\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n\
         Keep-Alive: timeout=9\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::to(&backend);
    let response = crate::harness::get(&proxy, "a", "/");
    response.expect(200, "ok");
    for name in ["x-one", "x-two", "keep-alive"] {
        assert_eq!(response.field(name), None, "{name}");
    }
    assert_eq!(response.field("x-three"), Some("3"));
}
