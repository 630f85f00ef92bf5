//! Interim responses: who says `100 Continue`, and who hears of `103 Early Hints`.

use crate::harness::{Backend, Config, OK, Proxy};

const EXPECTING: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[test]
fn the_backends_100_continue_reaches_the_client() {
    let backend = Backend::script(|conn| {
        let Some(mut request) = conn.head() else { return };
        conn.send("HTTP/1.1 100 Continue\r\n\r\n");
        conn.body(&mut request);
        conn.send(OK);
        conn.rest();
    });
    let proxy = Config::to(&backend).listener("continue_timeout = 60").start();
    let mut client = proxy.client();
    client.send(EXPECTING);
    assert_eq!(client.response().status(), 100);
    client.send("hello");
    client.response().expect(200, "ok");
    assert_eq!(backend.request().body, b"hello");
}

#[test]
fn kakehi_says_100_continue_where_the_backend_does_not() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("continue_timeout = 0.1").start();
    let mut client = proxy.client();
    client.send(EXPECTING);
    assert_eq!(client.response().status(), 100);
    client.send("hello");
    client.response().expect(200, "ok");
    assert_eq!(backend.request().body, b"hello");
}

#[test]
fn a_client_that_does_not_wait_for_100_is_served_all_the_same() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("continue_timeout = 0.1").start();
    let mut client = proxy.client();
    client.send(format!("{EXPECTING}hello"));
    let mut response = client.response();
    if response.status() == 100 {
        response = client.response();
    }
    response.expect(200, "ok");
    assert_eq!(backend.request().body, b"hello");
}

#[test]
fn a_refusal_instead_of_100_reaches_the_client_and_no_body_is_a_request() {
    let backend = Backend::script(|conn| {
        while conn.head().is_some() {
            conn.send("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let proxy = Config::to(&backend).listener("continue_timeout = 60").start();
    let mut client = proxy.client();
    client.send(EXPECTING);
    assert_eq!(client.response().status(), 417);
    client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let (rest, _) = client.patience(std::time::Duration::from_millis(500)).rest();
    // Five bytes of body, and then nothing that could be taken for a request to the backend.
    assert!(!rest.starts_with(b"HTTP/1.1 417"), "{}", rest.escape_ascii());
    assert!(!crate::harness::contains(&backend.received(), "GET /smuggled"));
}

#[test]
fn early_hints_reach_a_client_of_http_1_1() {
    let backend = Backend::respond(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        for link in ["</a>", "</b>"] {
            let hint = client.response();
            assert_eq!((hint.status(), hint.field("link")), (103, Some(link)));
            assert_eq!((hint.field("content-length"), hint.field("transfer-encoding")), (None, None));
        }
        client.response().expect(200, "ok");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_client_of_http_1_0_gets_no_interim_response() {
    let backend = Backend::respond(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    client.expect_closed();
}

#[test]
fn an_expectation_of_an_http_1_0_client_is_not_waited_for() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("continue_timeout = 60").start();
    let mut client = proxy.client();
    client.send(format!("{}hello", EXPECTING.replace("HTTP/1.1", "HTTP/1.0")));
    client.response().expect(200, "ok");
    assert_eq!(backend.request().body, b"hello");
}
