//! A stop, or the end of a listener, loses no request that is on its way, and no answer promises what will not be kept.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Backend, Client, Config, GET, OK, Proxy, ask, send_signal, wait};

/// Connections of one round, and rounds: 2,000 requests.
const CLIENTS: usize = 100;
const ROUNDS: u64 = 20;
/// Requests come within so long around the stop.
const SPAN: Duration = Duration::from_millis(50);

/// Connections that have had an answer each.
fn idle(proxy: &Proxy) -> Vec<Client> {
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    clients
}

/// When each client sends, in order, as distances from the stop.
fn distances(seed: u64) -> Vec<Duration> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut distances: Vec<Duration> = (0..CLIENTS)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            SPAN.mul_f64((state >> 11) as f64 / (1_u64 << 53) as f64)
        })
        .collect();
    distances.sort();
    distances
}

/// Sends a request on each connection at its distance from now, and expects an answer to each.
#[track_caller]
fn race(clients: &mut [Client], seed: u64) {
    let start = Instant::now();
    for (client, distance) in clients.iter_mut().zip(distances(seed)) {
        wait::pace((start + distance).saturating_duration_since(Instant::now()));
        client.send(GET);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        match client.try_response() {
            Ok(answer) => answer.expect(200, "ok"),
            Err(broken) => panic!("seed {seed}, request {number}: {broken}"),
        };
    }
}

#[test]
fn no_request_is_lost_that_races_a_stop() {
    let backend = Backend::respond(OK);
    for seed in 1..=ROUNDS {
        // Longer than by default: this machine may stop for a moment between two requests.
        let mut proxy = Config::to(&backend).root("worker_count = 2").root("stop_idle_grace = 3").start();
        let mut clients = idle(&proxy);
        proxy.terminate();
        race(&mut clients, seed);
        clients.iter_mut().for_each(Client::expect_closed);
        // The proxy lingers for clients that do not close.
        drop(clients);
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0), "{}", proxy.log());
    }
}

#[test]
fn no_request_is_lost_that_races_the_end_of_a_listener() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").root("stop_idle_grace = 3").start();
    let listener = proxy.address().to_string();
    for seed in 1..=ROUNDS {
        let mut clients = idle(&proxy);
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| proxy.ctl(&["listener", "deactivate", &listener]));
            race(&mut clients, seed);
            assert!(removal.join().unwrap().status.success());
        });
        for client in &mut clients {
            // One that was answered before the listener went is idle still, and may have one request more.
            client.send(GET);
            if let Ok(answer) = client.try_response() {
                assert_eq!(answer.field("Connection"), Some("close"), "no answer promises to go on");
            }
            client.expect_closed();
        }
        assert!(proxy.ctl(&["listener", "activate", &listener]).status.success());
        wait::until("the listener", || Client::try_connect(proxy.address()).is_ok());
    }
}

#[test]
fn all_that_wait_in_the_queue_of_a_listener_that_goes_are_answered_and_hold_up_nobody() {
    const WAITING: usize = 600;
    let backend = Backend::respond(OK);
    let config = Config::to(&backend).another_listener().frontend_on(1, "all", r#"hostname = "*""#);
    let proxy = config.start();
    let listener = proxy.address().to_string();
    let mut other = Client::connect(proxy.address_of(1));
    ask(&mut other);
    // More idle connections than are woken at a time.
    let mut idle: Vec<_> = (0..WAITING).map(|_| proxy.client()).collect();
    idle.iter_mut().for_each(ask);
    send_signal(proxy.worker(), Signal::SIGSTOP);
    let mut waiting: Vec<_> = (0..WAITING).map(|_| proxy.client()).collect();
    waiting.iter_mut().for_each(|client| client.send(GET));
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| proxy.ctl(&["listener", "deactivate", &listener]));
        send_signal(proxy.worker(), Signal::SIGCONT);
        assert!(removal.join().unwrap().status.success());
    });
    ask(&mut other);
    waiting.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    idle.iter_mut().for_each(Client::expect_closed);
}

#[test]
fn an_answer_in_flight_when_its_listener_goes_says_that_the_connection_closes() {
    let (backend, go) = Backend::slow();
    let proxy = Proxy::to(&backend);
    let listener = proxy.address().to_string();
    for (before, length) in [None, Some(4)].into_iter().enumerate() {
        let mut client = proxy.client();
        match length {
            None => client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"),
            Some(length) => {
                client.send(format!("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nbody"))
            }
        }
        wait::until("the request is at the backend", || {
            backend.targets().iter().filter(|target| *target == "/slow").count() == before + 1
        });
        assert!(proxy.ctl(&["listener", "deactivate", &listener]).status.success());
        go.send(()).unwrap();
        let answer = client.response();
        answer.expect(200, "ok");
        assert_eq!(answer.field("Connection"), Some("close"));
        client.expect_closed();
        assert!(proxy.ctl(&["listener", "activate", &listener]).status.success());
        wait::until("the listener", || Client::try_connect(proxy.address()).is_ok());
    }
}

#[test]
fn an_idle_connection_is_closed_at_the_end_of_the_grace_or_at_once_without_one() {
    let backend = Backend::respond(OK);
    for (grace, least) in [("stop_idle_grace = 0", 0), ("stop_idle_grace = 0.5", 400), ("", 400)] {
        let mut proxy = Config::to(&backend).root(grace).start();
        let mut client = proxy.client();
        ask(&mut client);
        let start = Instant::now();
        proxy.terminate();
        client.expect_closed();
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(least), "{grace}: closed after {waited:?}");
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0), "{}", proxy.log());
    }
}

#[test]
fn the_grace_takes_no_more_than_half_of_what_a_stop_may_take() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("graceful_timeout = 1").root("stop_idle_grace = 60").start();
    let mut client = proxy.client();
    ask(&mut client);
    proxy.terminate();
    client.expect_closed();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0), "nothing was cut: {}", proxy.log());
}
