//! A broken backend gives 502 or a connection that is visibly cut: never a wrong answer, never somebody else's.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Backend, Config, End, OK, Proxy, exchange, get, show, wait};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn answers_that_are_malformed_become_502() {
    let cases: &[(&str, &[u8])] = &[
        ("garbage", b"\x16\x03\x01\x02\x00\r\n\r\n"),
        ("no status", b"HTTP/1.1\r\n\r\n"),
        ("a status of two digits", b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
        ("a status of four digits", b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
        ("status 099", b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
        ("status 600", b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n"),
        ("another version", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk"),
        ("a length with a sign", b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"),
        ("a length that is no number", b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok"),
        ("an empty length", b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok"),
        (
            "a length and chunks",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        (
            "another coding",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        ("chunks in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("a bare LF", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        ("a bare LF between fields", b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2\r\n\r\nok"),
        ("a bare CR", b"HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 2\r\n\r\nok"),
        ("a NUL", b"HTTP/1.1 200 OK\r\nA: b\0\r\nContent-Length: 2\r\n\r\nok"),
        ("a folded line", b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok"),
        ("a space before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
    ];
    let next = AtomicUsize::new(0);
    let answers: Vec<Vec<u8>> = cases.iter().map(|(_, bytes)| bytes.to_vec()).collect();
    let backend = Backend::script(move |conn| {
        if conn.request().is_some() {
            conn.send(&answers[next.fetch_add(1, Ordering::SeqCst) % answers.len()]);
            conn.rest();
        }
    });
    let proxy = Proxy::to(&backend);
    let mut failures = String::new();
    for (name, bytes) in cases {
        let answer = get(&proxy, "a", "/");
        if answer.status() != 502 || !answer.text().contains("backend_bad_response") {
            failures += &format!("{name}: got {}\n  for {}\n", show(&answer.raw), show(bytes));
        }
    }
    assert!(failures.is_empty(), "expected 502 backend_bad_response\n{failures}");
    assert_eq!(backend.requests().len(), cases.len(), "a bad answer is no reason to ask again");
    wait::until("the end of every connection", || backend.ended() == backend.connections());
}

#[test]
fn a_head_of_a_response_that_is_too_large_becomes_502() {
    let backend = Backend::respond(format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(100_000)));
    let proxy = Proxy::to(&backend);
    get(&proxy, "a", "/").expect_answer(502, "backend_response_head_too_large");
}

#[test]
fn a_backend_that_closes_before_its_answer_gives_502() {
    for reset in [false, true] {
        let backend = Backend::script(move |conn| {
            conn.request();
            if reset {
                conn.reset();
            }
        });
        let proxy = Proxy::to(&backend);
        get(&proxy, "a", "/").expect_answer(502, "backend_closed");
    }
}

#[test]
fn a_backend_that_closes_in_the_middle_of_its_head_gives_502() {
    let backend = Backend::respond_and_close("HTTP/1.1 200 OK\r\nContent-Le");
    let proxy = Proxy::to(&backend);
    assert_eq!(get(&proxy, "a", "/").status(), 502);
}

#[test]
fn a_body_that_the_backend_cuts_short_never_looks_whole() {
    for (answer, reset) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", true),
        ("HTTP/1.1 200 OK\r\n\r\nabc", true),
    ] {
        let backend = Backend::script(move |conn| {
            conn.request();
            conn.send(answer);
            // Lets the bytes pass before a reset throws them away.
            wait::pace(std::time::Duration::from_millis(if reset { 100 } else { 0 }));
            if reset {
                conn.reset();
            }
        });
        let proxy = Proxy::to(&backend);
        for version in ["1.1", "1.0"] {
            let mut client = proxy.client();
            client.send(format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"));
            match client.try_response() {
                // Kakehi may have seen the end before it sent a byte of the answer.
                Ok(response) => {
                    assert_eq!(response.status(), 502, "HTTP/{version} {answer:?}: {}", show(&response.raw))
                }
                Err(broken) => assert_ne!(broken.end, End::Deadline, "HTTP/{version} {answer:?}: {broken}"),
            }
        }
    }
}

#[test]
fn bytes_after_an_answer_never_reach_another_client() {
    const EXTRA: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\n\r\n",
    ] {
        let backend = Backend::answer(move |_| format!("{answer}{EXTRA}").into_bytes());
        let proxy = Proxy::to(&backend);
        let mut first = proxy.client();
        for _ in 0..3 {
            first.send(GET);
            assert_ne!(first.response().text(), "evil");
            assert_ne!(get(&proxy, "b", "/").text(), "evil");
        }
        first.expect_silence(std::time::Duration::from_millis(50));
    }
}

#[test]
fn bytes_that_a_backend_sends_late_never_reach_another_client() {
    let (order, orders) = std::sync::mpsc::channel::<()>();
    let orders = std::sync::Arc::new(
        #[allow(clippy::disallowed_types)]
        std::sync::Mutex::new(orders),
    );
    let backend = Backend::script(move |conn| {
        if conn.number > 0 {
            while conn.serve(|_| OK.to_vec()) {}
            return;
        }
        conn.serve(|_| OK.to_vec());
        orders.lock().unwrap().recv().unwrap();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
        conn.rest();
    });
    let proxy = Proxy::to(&backend);
    get(&proxy, "a", "/").expect(200, "ok");
    order.send(()).unwrap();
    wait::until("kakehi drops the connection that spoke unasked", || backend.ended() == 1);
    get(&proxy, "b", "/").expect(200, "ok");
}

#[test]
fn the_body_of_an_answer_to_head_never_reaches_another_client() {
    let backend = Backend::respond("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    let proxy = Proxy::to(&backend);
    for _ in 0..3 {
        let mut client = proxy.client();
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response_to("HEAD").status(), 200);
        client.send(GET);
        client.response().expect(200, "evil");
    }
}

/// Serves one request on the first connection, reads one more there and closes; serves on all others.
fn forgetful() -> Backend {
    Backend::script(|conn| {
        if conn.number == 0 {
            conn.serve(|_| OK.to_vec());
            conn.request();
            return;
        }
        while conn.serve(|_| OK.to_vec()) {}
    })
}

#[test]
fn a_get_on_a_kept_connection_that_dies_is_asked_again_on_a_new_one() {
    let backend = forgetful();
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for target in ["/1", "/2", "/3"] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.response().expect(200, "ok");
    }
    assert_eq!(backend.targets(), ["/1", "/2", "/2", "/3"]);
    assert_eq!(backend.connections(), 2);
}

#[test]
fn a_get_of_which_something_was_answered_is_never_asked_again() {
    let backend = Backend::script(|conn| {
        if conn.number == 0 {
            conn.serve(|_| OK.to_vec());
            conn.request();
            conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
            return;
        }
        while conn.serve(|_| OK.to_vec()) {}
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().status(), 103);
    client.response().expect_answer(502, "backend_closed");
    assert_eq!(backend.targets(), ["/1", "/2"]);
}

#[test]
fn a_post_whose_body_was_sent_is_never_asked_again() {
    let backend = forgetful();
    let proxy = Proxy::to(&backend);
    get(&proxy, "a", "/").expect(200, "ok");
    let request = "POST /once HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    exchange(&proxy, request).expect_answer(502, "backend_closed");
    assert_eq!(backend.targets(), ["/", "/once"]);
}

#[test]
fn a_connection_that_the_backend_closed_while_it_was_idle_is_not_used() {
    let backend = Backend::script(|conn| {
        conn.serve(|_| OK.to_vec());
    });
    let proxy = Proxy::to(&backend);
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    for count in 1..=10 {
        exchange(&proxy, request).expect(200, "ok");
        wait::until("the end of the backend's connection", || backend.ended() == count);
        // The end is on its way through the loopback device and the worker's ring.
        wait::pace(std::time::Duration::from_millis(20));
    }
}

#[test]
fn idle_backend_connections_are_closed_at_their_deadline() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("upstream_idle_timeout = 0.2").start();
    get(&proxy, "a", "/").expect(200, "ok");
    wait::until("the end of the idle connection", || backend.ended() == 1);
    get(&proxy, "a", "/").expect(200, "ok");
    assert_eq!(backend.connections(), 2);
}

#[test]
fn a_connection_is_not_used_again_after_a_body_that_must_not_be() {
    for (answer, again) in [
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", true),
        ("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("HTTP/1.1 205 Reset Content\r\n\r\n", false),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        (
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            false,
        ),
        ("HTTP/1.1 102 P\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 204 No\r\n\r\n", false),
    ] {
        let backend = Backend::respond(answer);
        let proxy = Proxy::to(&backend);
        for _ in 0..2 {
            let mut client = proxy.client();
            client.send(GET);
            let mut response = client.head();
            if response.status() < 200 {
                response = client.head();
            }
            // A client that takes the next bytes for a body, or for no body, gets none either way.
            let framing = (response.field("content-length"), response.field("transfer-encoding"));
            let expected = match response.status() {
                204 => (None, None),
                304 if again => (Some("5"), None),
                304 => (None, None),
                _ => (Some("0"), None),
            };
            assert_eq!(framing, expected, "{answer:?}");
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert!(client.head().start.starts_with("HTTP/1.1 "), "{answer:?}");
        }
        let used = backend.connections();
        assert_eq!(used, if again { 1 } else { 4 }, "{answer:?}");
    }
}

#[test]
fn what_is_no_status_line_on_a_kept_connection_counts_as_its_death() {
    // The body of the response before comes when the next request does: nothing could have been seen before.
    for late in [
        "0\r\n\r\n",
        "evil",
        "\r\n",
        "5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ] {
        let backend = Backend::script(move |conn| {
            if conn.number == 0 {
                conn.serve(|_| OK.to_vec());
                conn.request();
                conn.send(late);
                conn.rest();
                return;
            }
            while conn.serve(|_| OK.to_vec()) {}
        });
        let proxy = Proxy::to(&backend);
        let mut client = proxy.client();
        for _ in 0..3 {
            client.send(GET);
            client.response().expect(200, "ok");
        }
        assert_eq!((backend.connections(), proxy.counter("upstream.retries")), (2, 1), "{late:?}");
        // What must not be sent twice is not.
        let backend = Backend::script(move |conn| {
            conn.serve(|_| OK.to_vec());
            conn.serve(|_| late.as_bytes().to_vec());
        });
        let proxy = Proxy::to(&backend);
        get(&proxy, "a", "/").expect(200, "ok");
        let post = exchange(&proxy, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!((post.status(), backend.requests().len()), (502, 2), "{late:?}");
    }
}

#[test]
fn why_a_response_was_refused_is_told_once_a_second() {
    const WRONG: [(&str, &str); 6] = [
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "bad_content_length"),
        ("hello", "does not begin with `HTTP/`"),
        ("HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", "bare_line_feed"),
        ("HTTP/1.1 999 OK\r\n\r\n", "status code"),
        ("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "nobody asked"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bad_chunk"),
    ];
    for (answer, why) in WRONG {
        let backend = Backend::respond(answer);
        let proxy = Config::new()
            .frontend("web", r#"hostname = "*""#)
            .backend_with("web", &backend, r#"backend_id = "one""#)
            .start();
        let request = "PUT /a?b=\u{e9} HTTP/1.1\r\nHost: a\r\nCookie: secret\r\nContent-Length: 3\r\n\r\nabc";
        for _ in 0..12 {
            let response = exchange(&proxy, request);
            assert_eq!(response.status(), 502, "{answer:?}");
        }
        let lines = || -> Vec<String> {
            let log = proxy.log();
            log.lines().filter(|line| line.contains("response refused")).map(str::to_owned).collect()
        };
        wait::until("a line of the log", || !lines().is_empty());
        let told = lines();
        // Twelve took less than a second, or the machine was slow.
        assert!(told.len() <= 3, "{told:?}");
        for part in [why, "web", "one", "PUT /a?b=\\xc3\\xa9 HTTP/1.1", "WARN"] {
            assert!(told[0].contains(part), "{part:?} in {}", told[0]);
        }
        assert!(!proxy.log().contains("secret"));
    }
    // A body that comes in parts, and a number of those that were left out.
    let backend = Backend::respond("hello");
    let proxy = Proxy::to(&backend);
    let mut asked = 0;
    wait::until("a line with a number", || {
        let mut client = proxy.client();
        client.send(format!("POST /{} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na", "x".repeat(1000)));
        client.send("b");
        asked += 1;
        assert_eq!(client.response().status(), 502);
        proxy.log().lines().any(|line| {
            line.contains("response refused") && line.contains("left_out=") && !line.contains("left_out=0")
        })
    });
    let log = proxy.log();
    let longest = log.lines().filter(|line| line.contains("response refused")).map(str::len).max();
    assert!(longest.is_some_and(|longest| longest < 600), "{log}");
    assert!(asked > 1);
}
