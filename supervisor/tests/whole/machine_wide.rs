//! What all workers count together: names that come and go without end, one trial of a backend at a time, and how it is shown.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Backend, Client, Config, OK, Proxy, get, send_signal, silent_port, wait};

/// What `kakehictl backends` says of the backend in this place.
fn shown(proxy: &Proxy, place: usize) -> Value {
    proxy.ctl_json("backends")["backends"][place].clone()
}

fn asking(proxy: &Proxy, path: &str) -> Client {
    let mut client = proxy.client();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client
}

/// A backend for very many connections, of which nothing is kept.
fn forgetful() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = Vec::new();
            let mut piece = [0; 4_096];
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(length @ 1..) => request.extend_from_slice(&piece[..length]),
                    _ => break,
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        }
    });
    address
}

/// The ledger has 32,768 slots, and each of these names takes one at least.
#[test]
fn more_backends_come_and_go_than_can_be_counted_at_a_time_and_limits_still_hold_on_all_workers() {
    const ROUNDS: usize = 20;
    const NAMES: usize = 2_000;
    const LIMIT: usize = 3;
    let ((slow, go), any) = (Backend::slow(), forgetful());
    let config = Config::new()
        .root("worker_count = 2")
        .root("log_level = \"warn\"")
        .frontend("churn", "hostname = \"churn\"")
        .frontend("limited", "hostname = \"a\"");
    let limited = |config: Config, name: &str| {
        config.backend_with("limited", &slow, &format!("backend_id = \"{name}\", max_connections = {LIMIT}"))
    };
    let proxy = limited(config.clone(), "first").start();
    for round in 0..ROUNDS {
        let names = 0..NAMES;
        let with_names = names.fold(config.clone(), |config, number| {
            config.backend_at("churn", &any, &format!("backend_id = \"b{round}-{number}\""))
        });
        let text = limited(with_names, "first").text(&[proxy.address()]);
        fs::write(proxy.folder().join("kakehi.toml"), text).unwrap();
        let reloaded = proxy.ctl(&["reload"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        // Each in its turn.
        let mut client = proxy.client();
        for _ in 0..NAMES {
            client.send("GET / HTTP/1.1\r\nHost: churn\r\n\r\n");
            client.response().expect(200, "ok");
        }
    }
    // A name that nobody has used yet is counted by all workers together.
    let text = limited(config, "last").text(&[proxy.address()]);
    fs::write(proxy.folder().join("kakehi.toml"), text).unwrap();
    assert!(proxy.ctl(&["reload"]).status.success());
    // Slots are given back a second after a change.
    let mut clients: Vec<Client> = Vec::new();
    wait::until("room in the ledger", || {
        clients = (0..16).map(|_| asking(&proxy, "/slow")).collect();
        let refused = clients.iter_mut().filter_map(|client| {
            client.patience(Duration::from_millis(200));
            client.try_response().ok()
        });
        let refused = refused.filter(|answer| answer.status() == 503).count();
        (0..16 - refused).for_each(|_| go.send(()).unwrap());
        refused == 16 - LIMIT
    });
}

/// A backend that was there, is not reached any more, and counts attempts.
fn attempts(proxy: &Proxy) -> u64 {
    proxy.counter("upstream.connect_errors")
}

#[test]
fn of_a_backend_that_takes_no_connections_one_attempt_is_made_at_a_time_on_the_machine() {
    const TIMEOUT: Duration = Duration::from_millis(1_500);
    let (address, _kept) = silent_port();
    let proxy = Config::new()
        .root("worker_count = 2")
        .listener("connect_timeout = 1.5")
        .frontend("all", "hostname = \"*\"")
        .cluster("all", "passive = false")
        .backend_at("all", &address.to_string(), "backend_id = \"b0\"")
        .start();
    let both_know = || shown(&proxy, 0)["traffic"]["passed_over_by"].as_array().map_or(0, Vec::len) == 2;
    wait::within(Duration::from_secs(30), "both workers to have failed", || {
        let clients: Vec<Client> = (0..16).map(|_| asking(&proxy, "/")).collect();
        for mut client in clients {
            client.patience(Duration::from_secs(5));
            client.response();
        }
        both_know().then_some(())
    });
    let b0 = shown(&proxy, 0);
    let since = b0["traffic"]["since_ms"].as_u64();
    assert!(since.is_some_and(|it| it > 1_600_000_000_000), "{b0}");
    // From all sides for a while: with an attempt of each worker there were twice as many.
    let (before, begun) = (attempts(&proxy), Instant::now());
    let slowest = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while begun.elapsed() < 4 * TIMEOUT {
                    let asked = Instant::now();
                    let status = get(&proxy, "a", "/").status();
                    assert!([503, 504].contains(&status), "{status}");
                    if status == 503 {
                        slowest.fetch_max(asked.elapsed().as_millis() as usize, SeqCst);
                    }
                    wait::pace(Duration::from_millis(5));
                }
            });
        }
    });
    let made = attempts(&proxy) - before;
    assert!((2..=5).contains(&made), "{made} attempts");
    // They wait for no attempt.
    assert!(slowest.load(SeqCst) < 1_200, "a refusal took {slowest:?} ms");
}

#[test]
fn a_worker_that_is_stopped_while_it_tries_a_backend_keeps_the_others_from_it_for_one_attempt_only() {
    let (address, _kept) = silent_port();
    let proxy = Config::new()
        .root("worker_count = 2")
        .root("worker_liveness = 0")
        .listener("connect_timeout = 1")
        .frontend("all", "hostname = \"*\"")
        .cluster("all", "passive = false")
        .backend_at("all", &address.to_string(), "")
        .start();
    wait::within(Duration::from_secs(30), "both workers to have failed", || {
        let clients: Vec<Client> = (0..16).map(|_| asking(&proxy, "/")).collect();
        clients.into_iter().for_each(|mut client| drop(client.try_response()));
        let known = shown(&proxy, 0)["traffic"]["passed_over_by"].as_array().map_or(0, Vec::len);
        (known == 2).then_some(())
    });
    // One of them is trying it now; it stands still from here on.
    let mut trial: Vec<Client> = (0..16).map(|_| asking(&proxy, "/")).collect();
    let waits = |client: &mut Client| client.patience(Duration::from_millis(20)).try_response().is_err();
    wait::until("the refusals", || {
        trial.retain_mut(waits);
        trial.len() <= 1
    });
    let workers = proxy.workers();
    let before = attempts(&proxy);
    send_signal(workers[0], Signal::SIGSTOP);
    // The other one gets its turn, whichever of them it was.
    wait::within(Duration::from_secs(10), "attempts of the other worker", || {
        let mut clients: Vec<Client> = (0..8).map(|_| asking(&proxy, "/")).collect();
        clients.iter_mut().for_each(|client| drop(client.patience(Duration::from_millis(50)).try_response()));
        (attempts(&proxy) >= before + 3).then_some(())
    });
    send_signal(workers[0], Signal::SIGCONT);
}

#[test]
fn who_waits_is_shown_for_all_workers_and_since_when_a_backend_is_passed_over() {
    let (slow, go) = Backend::slow();
    let proxy = Config::new()
        .root("worker_count = 2")
        .frontend("all", "hostname = \"*\"")
        .cluster("all", "queue_size = 100")
        .cluster("all", "queue_timeout = 30")
        .backend_with("all", &slow, "max_connections = 1")
        .start();
    let mut clients: Vec<Client> = (0..13).map(|_| asking(&proxy, "/slow")).collect();
    wait::until("all of them", || shown(&proxy, 0)["waiting"] == 12);
    let text = String::from_utf8(proxy.ctl(&["backends"]).stdout).unwrap();
    let column = text.lines().next().unwrap().split_whitespace().position(|word| word == "QUEUE");
    assert!(column.is_some() && text.lines().nth(1).unwrap().contains(" 12 "), "{text}");
    (0..13).for_each(|_| go.send(()).unwrap());
    clients.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    wait::until("nobody", || shown(&proxy, 0)["waiting"] == 0);

    let failing = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&failing);
    let sick = Backend::answer(move |_| {
        seen.fetch_add(1, SeqCst);
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_vec()
    });
    let well = Backend::respond(OK);
    let proxy = Config::new()
        .root("worker_count = 2")
        .frontend("all", "hostname = \"*\"")
        .backend("all", &sick)
        .backend("all", &well)
        .start();
    wait::until("an ejection", || {
        get(&proxy, "a", "/");
        proxy.counter("upstream.ejections") == 1
    });
    let since = || shown(&proxy, 0)["traffic"]["since_ms"].as_u64();
    let first = since().expect("it is passed over");
    wait::pace(Duration::from_millis(1_200));
    assert!(since().is_some_and(|now| now.abs_diff(first) < 500), "it moves: {first} {:?}", since());
    let text = String::from_utf8(proxy.ctl(&["backends"]).stdout).unwrap();
    assert!(text.contains("s by 2 workers: it answered badly"), "{text}");
    assert_eq!(failing.load(SeqCst), 5);
}

#[test]
fn attempts_of_one_request_are_bounded_at_the_root_and_otherwise_in_a_cluster() {
    let busy = || Backend::respond("HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy");
    let all: Vec<Backend> = (0..4).map(|_| busy()).collect();
    let mut config = Config::new()
        .root("worker_count = 2")
        .root("max_connection_attempts = 2")
        .frontend("inherits", "hostname = \"a\"")
        .frontend("own", "hostname = \"b\"")
        .cluster("own", "max_connection_attempts = 3");
    for name in ["inherits", "own"] {
        config = config.cluster(name, "retry_on = [503]").cluster(name, "passive = false");
        config = all.iter().fold(config, |config, backend| config.backend(name, backend));
    }
    let proxy = config.start();
    let asked = |host: &str| {
        let sum = || all.iter().map(|backend| backend.requests().len()).sum::<usize>();
        let before = sum();
        get(&proxy, host, "/").expect(503, "busy");
        sum() - before
    };
    assert_eq!((asked("a"), asked("b")), (2, 3));
    assert!(proxy.ctl(&["cluster", "patch", "own", "max_connection_attempts=1"]).status.success());
    assert_eq!((asked("a"), asked("b")), (2, 1));
}
