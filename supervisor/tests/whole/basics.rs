//! A request arrives at the backend as it was meant, its answer at the client, and connections are kept.

use crate::harness::{Backend, Config, Framing, OK, Proxy, exchange, get, wait};

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn a_get_reaches_the_backend_and_its_answer_the_client() {
    let backend = Backend::respond("HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-Of: b\r\n\r\nhello");
    let proxy = Proxy::to(&backend);
    let response = exchange(&proxy, "GET /a?b=c HTTP/1.1\r\nHost: a.example:80\r\nAccept: x\r\n\r\n");
    response.expect(200, "hello");
    assert_eq!((response.start.as_str(), response.field("x-of")), ("HTTP/1.1 200 Fine", Some("b")));
    let request = backend.request();
    assert_eq!(request.start, "GET /a?b=c HTTP/1.1");
    assert_eq!(request.all("host"), ["a.example:80"]);
    assert_eq!(request.all("accept"), ["x"]);
    assert_eq!((request.field("content-length"), request.field("transfer-encoding")), (None, None));
}

#[test]
fn a_post_with_a_length_arrives_with_that_length() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    exchange(&proxy, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").expect(200, "ok");
    let request = backend.request();
    assert_eq!((request.framing, request.body.as_slice()), (Framing::Length, b"hello".as_slice()));
    assert_eq!(request.all("content-length"), ["5"]);
}

#[test]
fn targets_and_field_values_pass_byte_for_byte() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("underscores_in_headers = true").start();
    let target = "/a%2Fb/./c/../d//e;f?x=%zz&y=[]{}|^`\"<>";
    let mut client = proxy.client();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Odd: a  b\t\"c\", "));
    client.send(b"\xfc\xff\r\nx_under: 1\r\nX-Empty:\r\n\r\n");
    client.response().expect(200, "ok");
    let request = backend.request();
    assert_eq!(request.target(), target);
    assert_eq!(request.field("x-odd"), Some("a  b\t\"c\", \u{fc}\u{ff}"));
    assert_eq!((request.field("x_under"), request.field("x-empty")), (Some("1"), Some("")));
}

#[test]
fn one_backend_connection_serves_many_requests_of_many_clients() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    for _ in 0..4 {
        let mut client = proxy.client();
        for _ in 0..5 {
            client.send(GET);
            client.response().expect(200, "ok");
        }
    }
    assert_eq!((backend.requests().len(), backend.connections()), (20, 1));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::answer(|request| {
        let body = format!("{} {}", request.target(), request.text());
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         GET /3 HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n\
         GET /5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    for body in ["/1 ", "/2 abc", "/3 ", "/4 de", "/5 "] {
        client.response().expect(200, body);
    }
    client.expect_closed();
    assert_eq!(backend.targets(), ["/1", "/2", "/3", "/4", "/5"]);
}

#[test]
fn what_follows_a_request_without_a_body_is_a_request_of_its_own() {
    let public = Backend::respond(OK);
    let proxy = Config::new()
        .frontend("public", r#"hostname = "a""#)
        .backend("public", &public)
        .frontend("secret", r#"hostname = "a", path = "/admin", redirect = "unauthorized""#)
        .backend("secret", &public)
        .start();
    let mut client = proxy.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    assert_eq!(client.response().status(), 401);
    assert_eq!(public.targets(), ["/a"]);
}

#[test]
fn a_request_may_be_split_at_every_byte() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let request =
        b"POST /split HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut client = proxy.client();
    for place in 1..request.len() {
        let (first, second) = request.split_at(place);
        client.send(first);
        wait::pace(std::time::Duration::from_millis(1));
        client.send(second);
        client.response().expect(200, "ok");
    }
    for byte in request {
        client.send([*byte]);
    }
    client.response().expect(200, "ok");
    assert_eq!(backend.requests().len(), request.len());
    assert!(backend.requests().iter().all(|r| r.target() == "/split" && r.body == b"abc"));
}

#[test]
fn a_response_may_be_split_at_every_byte() {
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nDigest: x\r\n\r\n";
    let backend = Backend::script(move |conn| {
        for place in 1..answer.len() {
            if conn.request().is_none() {
                return;
            }
            let (first, second) = answer.split_at(place);
            conn.send(first);
            wait::pace(std::time::Duration::from_millis(1));
            conn.send(second);
        }
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 1..answer.len() {
        client.send(GET);
        let response = client.response();
        response.expect(200, "abc");
        assert_eq!(response.trailers, [("Digest".to_owned(), "x".to_owned())]);
    }
}

#[test]
fn the_answer_to_head_has_the_fields_of_the_body_and_no_body() {
    let backend = Backend::respond("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response_to("HEAD");
    assert_eq!((response.status(), response.field("content-length")), (200, Some("5")));
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response_to("HEAD").status(), 200);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn answers_without_a_body_by_their_status_leave_the_connection_usable() {
    let backend = Backend::answer(|request| match request.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 100\r\n\r\n".to_vec(),
        _ => OK.to_vec(),
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for target in ["/204", "/304", "/204"] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = client.response();
        assert_eq!(format!("/{}", response.status()), target);
        assert_eq!(response.field("transfer-encoding"), None);
        if target == "/204" {
            assert_eq!(response.field("content-length"), None, "RFC 9110 section 8.6");
        }
    }
    client.send(GET);
    client.response().expect(200, "ok");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_client_that_asks_for_close_gets_the_answer_and_then_the_end() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let response = client.response();
    response.expect(200, "ok");
    assert_eq!(response.field("connection"), Some("close"));
    client.expect_closed();
    get(&proxy, "a", "/").expect(200, "ok");
    assert_eq!(backend.connections(), 1, "the wish of one client is not passed on to the backend");
}

#[test]
fn a_backend_that_closes_does_not_close_its_clients() {
    let backend =
        Backend::respond_and_close("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send(GET);
        let response = client.response();
        response.expect(200, "ok");
        assert_ne!(response.field("connection"), Some("close"));
    }
    assert_eq!(backend.connections(), 3);
}

#[test]
fn an_http_1_0_client_gets_one_answer_and_the_end() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    client.expect_closed();
    assert_eq!(backend.request().version(), "HTTP/1.1");
}

#[test]
fn an_http_1_0_client_that_asks_for_it_keeps_its_connection() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        response.expect(200, "ok");
        assert_eq!(response.field("connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"));
    }
}

#[test]
fn an_http_1_0_client_needs_no_host() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    exchange(&proxy, "GET / HTTP/1.0\r\n\r\n").expect(200, "ok");
    assert!(backend.request().all("host").len() <= 1);
}

#[test]
fn the_connection_of_an_http_1_0_backend_is_not_used_again() {
    let backend = Backend::respond_and_close("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(GET);
        let response = client.response();
        response.expect(200, "ok");
        assert_eq!(response.version(), "HTTP/1.1");
    }
    assert_eq!(backend.connections(), 2);
}

#[test]
fn the_authority_of_an_absolute_target_wins_over_host() {
    let right = Backend::respond(OK);
    let wrong = Backend::respond("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong");
    let proxy = Config::new()
        .frontend("right", r#"hostname = "right.example""#)
        .backend("right", &right)
        .frontend("wrong", r#"hostname = "wrong.example""#)
        .backend("wrong", &wrong)
        .start();
    exchange(&proxy, "GET http://right.example/x?y HTTP/1.1\r\nHost: wrong.example\r\n\r\n")
        .expect(200, "ok");
    exchange(&proxy, "GET http://right.example HTTP/1.1\r\nHost: wrong.example\r\n\r\n").expect(200, "ok");
    assert_eq!(right.targets(), ["/x?y", "/"]);
    assert!(right.requests().iter().all(|request| request.all("host") == ["right.example"]));
    wrong.expect_untouched();
}

#[test]
fn options_for_the_whole_server_is_passed_on() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    exchange(&proxy, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").expect(200, "ok");
    assert_eq!(backend.targets(), ["*"]);
}

#[test]
fn methods_that_nobody_registered_are_passed_on() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    exchange(&proxy, "BREW!#$%&'*+-.^_`|~ /pot HTTP/1.1\r\nHost: a\r\n\r\n").expect(200, "ok");
    assert_eq!(backend.request().method(), "BREW!#$%&'*+-.^_`|~");
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    exchange(&proxy, format!("\r\n\r\n{GET}")).expect(200, "ok");
    assert_eq!(backend.targets(), ["/a?b=c"]);
}
