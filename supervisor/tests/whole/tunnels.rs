//! An `Upgrade` that the backend accepts becomes a tunnel; until then, and if not, all stays HTTP.

use std::thread;

use crate::harness::{Backend, Client, Config, End, OK, Proxy, assert_same_bytes, contains, noise};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: x\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

fn tunnel(proxy: &Proxy) -> Client {
    let mut client = proxy.client();
    client.send(UPGRADE);
    let head = client.head();
    assert_eq!(head.status(), 101);
    assert_eq!(head.field("upgrade"), Some("websocket"));
    assert_eq!(head.field("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    client
}

#[test]
fn bytes_that_follow_the_switch_in_the_same_segment_pass_both_ways() {
    let backend = Backend::script(|conn| {
        let Some(request) = conn.head() else { return };
        assert_eq!(request.field("upgrade"), Some("websocket"));
        conn.send(format!("{SWITCHING}from the backend"));
        conn.echo();
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send(format!("{UPGRADE}from the client"));
    assert_eq!(client.head().status(), 101);
    assert_eq!(client.bytes(16), b"from the backend");
    assert_eq!(client.bytes(15), b"from the client");
}

#[test]
fn the_backend_sees_the_fields_of_the_upgrade() {
    let backend = Backend::script(|conn| {
        conn.request();
        conn.send(SWITCHING);
        conn.echo();
    });
    let proxy = Proxy::to(&backend);
    let _client = tunnel(&proxy);
    let request = backend.request();
    assert_eq!(request.all("upgrade"), ["websocket"]);
    assert_eq!(request.field("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    assert_eq!(request.field("sec-websocket-key"), Some("x"));
}

#[test]
fn a_mebibyte_passes_each_way_at_the_same_time() {
    let backend = Backend::script(|conn| {
        conn.head();
        conn.send(SWITCHING);
        conn.echo();
    });
    let proxy = Proxy::to(&backend);
    let stream = std::net::TcpStream::connect(proxy.address()).unwrap();
    let mut sender = Client::of(stream.try_clone().unwrap());
    let mut client = Client::of(stream);
    client.send(UPGRADE);
    assert_eq!(client.head().status(), 101);
    let data = noise(1 << 20);
    let sent = data.clone();
    let sending = thread::spawn(move || sender.try_send(&sent));
    assert_same_bytes(&client.bytes(data.len()), &data, "echo through the tunnel");
    assert!(sending.join().unwrap());
}

#[test]
fn a_connection_that_brought_a_large_body_carries_a_tunnel_like_any_other() {
    let body = noise(64 << 10);
    let answer = body.clone();
    let backend = Backend::script(move |conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len()));
        conn.send(&answer);
        // The same connection.
        conn.head();
        conn.send(SWITCHING);
        conn.echo();
    });
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    assert_same_bytes(&client.bytes(body.len()), &body, "the body");
    client.send(UPGRADE);
    assert_eq!(client.head().status(), 101);
    let bulk = || proxy.ctl_json("status")["counters"]["ring.bulk"].as_u64().unwrap();
    let before = bulk();
    // Small messages between large ones, each answered before the next is sent.
    for length in [16, 100 << 10, 17, 40 << 10, 1, 300 << 10, 5_000] {
        let message = noise(length);
        client.send(&message);
        assert_same_bytes(&client.bytes(length), &message, "the echo");
    }
    // The figure is told once a second.
    crate::harness::wait::until("the bulk mode", || bulk() > before);
}

#[test]
fn each_direction_of_a_tunnel_ends_on_its_own() {
    let backend = Backend::script(|conn| {
        conn.head();
        conn.send(SWITCHING);
        let heard = conn.rest();
        conn.send(format!("heard {}", heard.len()));
    });
    let proxy = Proxy::to(&backend);
    let mut client = tunnel(&proxy);
    client.send("12345");
    client.half_close();
    assert_eq!(client.rest(), (b"heard 5".to_vec(), End::Eof));
}

#[test]
fn the_backends_end_of_a_tunnel_reaches_the_client() {
    let backend = Backend::script(|conn| {
        conn.head();
        conn.send(format!("{SWITCHING}bye"));
    });
    let proxy = Proxy::to(&backend);
    let mut client = tunnel(&proxy);
    assert_eq!(client.rest(), (b"bye".to_vec(), End::Eof));
}

#[test]
fn an_upgrade_that_the_backend_does_not_take_stays_http() {
    let backend = Backend::respond(OK);
    let proxy = Config::new()
        .frontend("web", r#"hostname = "a""#)
        .backend("web", &backend)
        .frontend("admin", r#"hostname = "a", path = "/admin", redirect = "unauthorized""#)
        .backend("admin", &backend)
        .start();
    let mut client = proxy.client();
    client.send(format!("{UPGRADE}GET /admin HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.response().expect(200, "ok");
    assert_eq!(client.response().status(), 401);
    if let Ok(response) = client.try_response() {
        response.expect(200, "ok");
    }
    assert!(!contains(&backend.received(), "/admin"));
}

#[test]
fn nothing_of_a_tunnel_reaches_the_backend_before_it_agreed() {
    let backend = Backend::script(|conn| {
        if conn.head().is_none() {
            return;
        }
        let early = conn.bytes(1);
        conn.send(if early.is_ok() { "HTTP/1.1 500 Early\r\nContent-Length: 0\r\n\r\n" } else { SWITCHING });
    });
    let proxy = Config::to(&backend).listener("back_timeout = 0.4").start();
    let mut client = proxy.client();
    // Not a whole request: that would be one of its own, and rightly be sent on after the answer to this one.
    client.send(format!("{UPGRADE}GET /smuggled HTTP/1.1\r\nHost: a\r\n"));
    // The backend waits for a byte, kakehi for its answer: the one that gives up is kakehi, with 504.
    client.response().expect_answer(504, "backend_timeout");
    assert!(!contains(&backend.received(), "/smuggled"));
}

#[test]
fn a_switch_that_nobody_asked_for_is_a_bad_answer() {
    let backend = Backend::respond(SWITCHING);
    let proxy = Proxy::to(&backend);
    crate::harness::get(&proxy, "a", "/").expect_answer(502, "backend_bad_response");
}

#[test]
fn an_upgrade_to_cleartext_http_2_is_not_passed_on() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    crate::harness::exchange(
        &proxy,
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    )
    .expect(200, "ok");
    let request = backend.request();
    assert_eq!((request.field("upgrade"), request.field("http2-settings")), (None, None));
}

#[test]
fn a_silent_tunnel_is_closed_at_its_deadline() {
    let backend = Backend::script(|conn| {
        conn.head();
        conn.send(SWITCHING);
        conn.rest();
    });
    let proxy = Config::to(&backend).listener("tunnel_timeout = 0.3").start();
    let mut client = tunnel(&proxy);
    client.expect_closed();
    crate::harness::wait::until("the end of the backend's side", || backend.ended() == 1);
}
