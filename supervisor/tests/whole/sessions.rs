//! Sessions of a cluster that are closed by hand, on all workers: tunnels, connections that are passed on, idle ones, and what is in flight.

use std::process::Output;

use serde_json::Value;

use crate::harness::{Backend, Client, Config, End, OK, OPEN, Proxy, SWITCHING, ask, noise, wait};

/// Workers of each proxy, and how many connections it takes until each of them surely has some.
const WORKERS: usize = 2;
const MANY: usize = 24;

#[track_caller]
fn close(proxy: &Proxy, arguments: &[&str]) -> Value {
    let output = proxy.ctl(&[&["cluster", "close-sessions", "--json"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn counts(closed: &Value) -> [u64; 3] {
    ["idle", "tunnels", "ending"].map(|key| closed[key].as_u64().unwrap())
}

fn config() -> Config {
    Config::new().root(&format!("worker_count = {WORKERS}"))
}

/// Workers that have connections of clients.
fn busy_workers(proxy: &Proxy) -> usize {
    let workers = proxy.ctl_json("workers");
    workers.as_array().unwrap().iter().filter(|worker| worker["connections"].as_u64() > Some(0)).count()
}

fn refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(why), "{output:?}");
}

fn tunnels(proxy: &Proxy, count: usize) -> Vec<Client> {
    let open = |_| {
        let mut client = proxy.client();
        client.send(OPEN);
        assert_eq!(client.head().status(), 101);
        client.send("here");
        assert_eq!(client.bytes(4), b"here");
        client
    };
    (0..count).map(open).collect()
}

fn echoing() -> Backend {
    Backend::script(|conn| {
        if conn.head().is_some() {
            conn.send(SWITCHING);
            conn.echo();
        }
    })
}

#[test]
fn tunnels_are_closed_at_once_on_all_workers_and_others_stay() {
    let (one, other, elsewhere) = (echoing(), echoing(), echoing());
    let proxy = config()
        .frontend("web", "hostname = \"a\"")
        .backend_with("web", &one, "backend_id = \"b0\"")
        .backend_with("web", &other, "backend_id = \"b1\"")
        .frontend("else", "hostname = \"b\"")
        .backend("else", &elsewhere)
        .start();
    let mut open = tunnels(&proxy, MANY);
    let mut stays = proxy.client();
    stays.send(OPEN.replace("Host: a", "Host: b"));
    assert_eq!(stays.head().status(), 101);
    assert_eq!(busy_workers(&proxy), WORKERS);
    let to_first = one.connections();
    assert!(to_first > 2 && to_first + other.connections() == MANY);
    // Of one backend.
    assert_eq!(counts(&close(&proxy, &["web", "--backend", "b0"])), [0, to_first as u64, 0]);
    wait::until("the end of its tunnels", || one.ended() == to_first);
    proxy.wait_for_counter("tunnel.open", (MANY - to_first + 1) as u64);
    assert_eq!(other.ended(), 0);
    proxy.logged("sessions of cluster web, backend b0, closed by uid ");
    // Of all.
    assert_eq!(counts(&close(&proxy, &["web"])), [0, (MANY - to_first) as u64, 0]);
    for client in &mut open {
        let (bytes, end) = client.rest();
        assert!(bytes.is_empty() && matches!(end, End::Eof | End::Reset), "{end:?}");
    }
    proxy.wait_for_counter("tunnel.open", 1);
    stays.send("still");
    assert_eq!(stays.bytes(5), b"still");
    // What comes afterwards is a session like any other.
    let mut again = tunnels(&proxy, 4);
    again.iter_mut().for_each(|client| {
        client.send("x");
        assert_eq!(client.bytes(1), b"x");
    });
    assert_eq!(counts(&close(&proxy, &["web"])), [0, 4, 0]);
    assert_eq!(counts(&close(&proxy, &["web"])), [0, 0, 0]);
    refused(&proxy.ctl(&["cluster", "close-sessions", "nobody"]), "there is no cluster `nobody`");
    let wrong = proxy.ctl(&["cluster", "close-sessions", "web", "--backend", "b9"]);
    refused(&wrong, "the cluster `web` has no backend `b9`");
}

#[test]
fn connections_that_are_passed_on_are_closed_at_once() {
    let backend = Backend::script(super::harness::Conn::echo);
    let proxy = config().passing_on("db", &backend).start();
    let mut clients: Vec<Client> = (0..MANY).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send("hello");
        assert_eq!(client.bytes(5), b"hello");
    }
    assert_eq!(busy_workers(&proxy), WORKERS);
    assert_eq!(counts(&close(&proxy, &["db"])), [0, MANY as u64, 0]);
    clients.iter_mut().for_each(|client| assert!(client.rest().0.is_empty()));
    wait::until("the end at the backend", || backend.ended() == backend.connections());
    proxy.wait_for_counter("tunnel.open", 0);
}

#[test]
fn idle_connections_are_closed_at_once_and_their_clients_go_on() {
    let backend = Backend::respond(OK);
    let proxy = config().frontend("all", "hostname = \"*\"").backend("all", &backend).start();
    let mut clients: Vec<Client> = (0..MANY).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    let idle = backend.connections();
    assert!(idle >= WORKERS && proxy.counter("upstream.idle") == idle as u64);
    assert_eq!(counts(&close(&proxy, &["all"])), [idle as u64, 0, 0]);
    wait::until("the end at the backend", || backend.ended() == idle);
    assert_eq!(proxy.counter("upstream.idle"), 0);
    clients.iter_mut().for_each(ask);
    assert!(backend.connections() > idle);
}

#[test]
fn a_download_ends_whole_and_its_connection_carries_nothing_after_it() {
    const SIZE: usize = 8 << 20;
    let body = noise(SIZE);
    let answer = body.clone();
    let backend = Backend::answer(move |_| {
        let mut all = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
        all.extend_from_slice(&answer);
        all
    });
    let proxy = config().frontend("all", "hostname = \"*\"").backend("all", &backend).start();
    let mut clients: Vec<Client> = (0..8).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        // It reads no further: the rest waits.
        assert_eq!(client.head().field("connection"), None);
    }
    let connections = backend.connections();
    assert_eq!(counts(&close(&proxy, &["all"])), [0, 0, 8]);
    for client in &mut clients {
        crate::harness::assert_same_bytes(&client.bytes(SIZE), &body, "the download");
        // The connection of the client goes on: it is bound to no backend.
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        crate::harness::assert_same_bytes(&client.bytes(SIZE), &body, "another one");
    }
    wait::until("the end of the first ones at the backend", || backend.ended() >= connections);
}

#[test]
fn a_client_that_is_bound_to_a_backend_is_closed_with_it() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = crate::harness::Lock::new(gone);
    let backend = Backend::script(move |conn| {
        while let Some(request) = conn.request() {
            if request.target() == "/wait" {
                let _ = gone.lock().unwrap().recv();
            }
            let challenge =
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 3\r\n\r\nwho";
            conn.send(challenge);
        }
    });
    let proxy = config().frontend("all", "hostname = \"*\"").backend("all", &backend).start();
    let begin = || {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: NTLM 1\r\n\r\n");
        client.response().expect(401, "who");
        client
    };
    let mut idle: Vec<Client> = (0..6).map(|_| begin()).collect();
    let mut busy: Vec<Client> = (0..6).map(|_| begin()).collect();
    busy.iter_mut().for_each(|client| client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"));
    backend.wait_for_requests(18);
    assert_eq!(counts(&close(&proxy, &["all"])), [0, 6, 6]);
    idle.iter_mut().for_each(Client::expect_closed);
    (0..6).for_each(|_| go.send(()).unwrap());
    for client in &mut busy {
        let answer = client.response();
        assert_eq!((answer.status(), answer.field("connection")), (401, Some("close")), "{answer:?}");
        client.expect_closed();
    }
    wait::until("the end at the backend", || backend.ended() == backend.connections());
}
