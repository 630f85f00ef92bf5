//! A client that is gone holds nothing up: its reset ends the exchange at once, whatever the exchange waits for, and the
//! backend is told. A client that only says that it sends no more keeps its answer.

use std::time::{Duration, Instant};

use crate::harness::{
    Backend, Caller, Client, Config, Conn, GET, Issued, OK, Pki, Proxy, chunks, silent_port, wait,
};

const MIB: usize = 1 << 20;
/// A reset is a matter of milliseconds; every deadline of the proxy is far beyond this.
const AT_ONCE: Duration = Duration::from_millis(1_000);

/// A client in clear text, or over TLS.
fn fronts(pki: &Pki) -> [(&'static str, Option<Issued>, Option<Caller>); 3] {
    let issued = pki.issue(&["a"]);
    [
        ("clear text", None, None),
        ("TLS 1.2", Some(issued.clone()), Some(pki.caller().tls12())),
        ("TLS 1.3", Some(issued), Some(pki.caller().tls13())),
    ]
}

fn start(config: Config, issued: Option<&Issued>) -> Proxy {
    issued.map_or_else(|| config.clone(), |issued| config.clone().https(issued)).start()
}

fn connect(proxy: &Proxy, caller: Option<&Caller>) -> Client {
    caller.map_or_else(|| proxy.client(), |caller| caller.connect(proxy.address()))
}

/// Fails unless the backend's connections end at once.
#[track_caller]
fn expect_told(backend: &Backend, since: Instant, what: &str) {
    wait::within(Duration::from_secs(4), &format!("{what}: the end of the backend's connection"), || {
        (backend.ended() == backend.connections()).then_some(())
    });
    assert!(since.elapsed() < AT_ONCE, "{what}: the backend was told after {:?}", since.elapsed());
}

/// Waits for the end of the connection.
fn hang(conn: &mut Conn) {
    conn.request();
    conn.rest();
}

#[test]
fn a_reset_before_the_answer_ends_the_exchange_at_once() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        // What else the client has sent, before it goes, is no sign of life.
        for (case, behind) in
            [("alone", ""), ("with another request behind it", GET), ("with its half closed", "")]
        {
            let backend = Backend::script(hang);
            let proxy = start(Config::to(&backend), issued.as_ref());
            let mut client = connect(&proxy, caller.as_ref());
            client.send(GET);
            backend.wait_for_requests(1);
            client.send(behind);
            if case.ends_with("closed") {
                client.half_close();
                // The proxy has seen that before it sees the reset.
                wait::pace(Duration::from_millis(50));
            }
            let since = Instant::now();
            client.reset();
            expect_told(&backend, since, &format!("{front}, a request {case}"));
            proxy.wait_for_counter("client.connections", 0);
        }
    }
}

#[test]
fn a_reset_in_the_middle_of_the_answer_ends_the_exchange_at_once() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        for (case, part) in [
            ("a length", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec()),
            ("chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec()),
            ("no end", b"HTTP/1.1 200 OK\r\n\r\nabc".to_vec()),
            ("a large length", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc".to_vec()),
        ] {
            let backend = Backend::script(move |conn| {
                conn.request();
                conn.send(&part);
                conn.rest();
            });
            let proxy = start(Config::to(&backend), issued.as_ref());
            let mut client = connect(&proxy, caller.as_ref());
            client.send(GET);
            assert_eq!(client.head().status(), 200);
            let since = Instant::now();
            client.reset();
            expect_told(&backend, since, &format!("{front}, an answer with {case}"));
            proxy.wait_for_counter("client.connections", 0);
        }
    }
}

#[test]
fn a_reset_of_a_client_that_does_not_read_ends_the_exchange_at_once() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        for chunked in [false, true] {
            let backend = Backend::script(move |conn| {
                conn.request();
                let page = vec![b'x'; 16 * MIB];
                if chunked {
                    conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    conn.send(chunks(&page, 16_000));
                } else {
                    conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", page.len()));
                    conn.send(&page);
                }
                conn.rest();
            });
            let proxy = start(Config::to(&backend), issued.as_ref());
            let mut client = connect(&proxy, caller.as_ref());
            client.send(GET);
            assert_eq!(client.head().status(), 200);
            wait::pace(Duration::from_millis(100));
            let since = Instant::now();
            client.reset();
            expect_told(&backend, since, &format!("{front}, chunked: {chunked}"));
            proxy.wait_for_counter("client.connections", 0);
        }
    }
}

#[test]
fn a_reset_in_the_middle_of_an_upload_ends_the_exchange_at_once() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        for part in [100, 200_000] {
            let backend = Backend::script(|conn| {
                conn.head();
                conn.rest();
            });
            let proxy = start(Config::to(&backend), issued.as_ref());
            let mut client = connect(&proxy, caller.as_ref());
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
            client.send(vec![b'x'; part]);
            wait::until("a part of the body at the backend", || backend.received().len() > part);
            let since = Instant::now();
            client.reset();
            expect_told(&backend, since, &format!("{front}, {part} bytes of the body"));
            assert!(backend.requests().is_empty());
        }
    }
}

#[test]
fn a_reset_behind_an_upload_that_came_in_parts_ends_the_exchange_at_once() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        for rest in [1_000, 1_000_000] {
            let backend = Backend::script(hang);
            let proxy = start(Config::to(&backend), issued.as_ref());
            let mut client = connect(&proxy, caller.as_ref());
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\npart", rest + 4));
            wait::until("a part of the body at the backend", || backend.received().ends_with(b"part"));
            client.send(vec![b'x'; rest]);
            backend.wait_for_requests(1);
            let since = Instant::now();
            client.reset();
            expect_told(&backend, since, &format!("{front}, {rest} bytes behind the first part"));
            proxy.wait_for_counter("client.connections", 0);
        }
    }
}

#[test]
fn a_client_that_sends_no_more_keeps_its_answer_however_late_it_comes() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        let (backend, go) = Backend::slow();
        let proxy = start(Config::to(&backend), issued.as_ref());
        let mut client = connect(&proxy, caller.as_ref());
        client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
        client.half_close();
        backend.wait_for_requests(1);
        wait::pace(Duration::from_millis(300));
        assert_eq!(backend.ended(), 0, "{front}: the backend's connection has ended");
        go.send(()).unwrap();
        client.response().expect(200, "ok");
        client.expect_closed();
    }
}

#[test]
fn where_abort_on_close_is_set_a_client_that_sends_no_more_is_gone() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        let backend = Backend::script(|conn| {
            while let Some(request) = conn.request() {
                if request.target() == "/hang" {
                    conn.rest();
                    return;
                }
                conn.send(OK);
            }
        });
        let proxy = start(Config::to(&backend).listener("abort_on_close = true"), issued.as_ref());
        let mut client = connect(&proxy, caller.as_ref());
        client.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
        backend.wait_for_requests(1);
        let since = Instant::now();
        client.half_close();
        expect_told(&backend, since, front);
        // It is no reason to give up those that stay.
        let mut client = connect(&proxy, caller.as_ref());
        client.send(GET);
        client.response().expect(200, "ok");
    }
}

#[test]
fn a_stop_does_not_wait_for_a_client_that_is_gone() {
    let pki = Pki::new();
    for (front, issued, caller) in fronts(&pki) {
        let backend = Backend::script(hang);
        let mut proxy = start(Config::to(&backend).root("graceful_timeout = 20"), issued.as_ref());
        let mut gone = connect(&proxy, caller.as_ref());
        gone.send(GET);
        backend.wait_for_requests(1);
        gone.reset();
        proxy.terminate();
        let since = Instant::now();
        let status = proxy.wait(Duration::from_secs(10));
        assert!(
            status.success() && since.elapsed() < Duration::from_secs(4),
            "{front}: {status}, {:?}",
            since.elapsed()
        );
    }
}

#[test]
fn a_stop_goes_on_when_the_client_that_it_waits_for_goes() {
    let backend = Backend::script(hang);
    let mut proxy = start(Config::to(&backend).root("graceful_timeout = 20"), None);
    let mut client = proxy.client();
    client.send(GET);
    backend.wait_for_requests(1);
    proxy.terminate();
    wait::pace(Duration::from_millis(300));
    assert!(proxy.supervisor().runs(), "it did not wait for a request in flight");
    client.reset();
    let since = Instant::now();
    assert!(proxy.wait(Duration::from_secs(10)).success());
    assert!(since.elapsed() < Duration::from_secs(4), "after {:?}", since.elapsed());
}

#[test]
fn a_reset_while_a_backend_is_connected_to_ends_the_exchange_at_once() {
    let (address, _keep) = silent_port();
    let proxy = Config::new()
        .listener("connect_timeout = 20")
        .frontend("web", r#"hostname = "*""#)
        .backend_at("web", &address.to_string(), "")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    wait::until("the connection", || proxy.counter("client.connections") == 1);
    let since = Instant::now();
    client.reset();
    wait::until("the end of the exchange", || proxy.counter("client.connections") == 0);
    assert!(since.elapsed() < AT_ONCE, "after {:?}", since.elapsed());
}
