//! Backends that fail: requests are sent again within a budget, and backends are passed over. With two workers.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::harness::{Backend, Config, Conn, Message, OK, Proxy, exchange, send_signal, silent_port, wait};

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

fn before(backends: &[&Backend], keys: &[&str]) -> Config {
    let config = Config::new().root("worker_count = 2").frontend("all", "hostname = \"*\"");
    let config = keys.iter().fold(config, |config, line| config.cluster("all", line));
    backends.iter().fold(config, |config, backend| config.backend("all", backend))
}

fn request(method: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn get(proxy: &Proxy) -> Message {
    exchange(proxy, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
}

#[test]
fn a_status_that_says_so_has_the_request_sent_to_another_backend() {
    let (bad, good) = (Backend::respond(UNAVAILABLE), Backend::respond(OK));
    let keys = ["retry_on = [503]", "passive = false", "attempts_header = true"];
    let proxy = before(&[&bad, &good], &keys).start();
    for _ in 0..20 {
        get(&proxy).expect(200, "ok");
    }
    let seen = bad.requests().len();
    assert!(seen >= 5 && proxy.counter("upstream.retries") == seen as u64, "{seen}");
    let attempts = |backend: &Backend| {
        backend
            .requests()
            .iter()
            .map(|it| it.field("X-Kakehi-Attempts").unwrap().trim().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(attempts(&bad).iter().all(|number| number == "1"));
    assert_eq!(attempts(&good).iter().filter(|number| *number == "2").count(), seen);
    // With its body, as long as that is small.
    let body = "x".repeat(16_000);
    for _ in 0..6 {
        exchange(&proxy, request("PUT", &body)).expect(200, "ok");
    }
    assert!(good.requests().iter().rev().take(6).all(|it| it.body == body.as_bytes()));
    // What may not be repeated is not: the answer of the backend passes as it is.
    let posts = (0..6).map(|_| exchange(&proxy, request("POST", "a=b")).status());
    // Each worker takes turns by itself.
    assert!((2..=4).contains(&posts.filter(|status| *status == 503).count()));
    let large = "x".repeat(40_000);
    let puts = (0..6).map(|_| exchange(&proxy, request("PUT", &large)).status());
    assert!((2..=4).contains(&puts.filter(|status| *status == 503).count()));
}

#[test]
fn a_body_that_is_kept_is_sent_with_its_head_however_much_has_come_with_it() {
    let (bad, good) = (Backend::respond(UNAVAILABLE), Backend::respond(OK));
    let keys = ["retry_on = [503]", "retry_budget = 1000", "passive = false"];
    let proxy = before(&[&bad, &good], &keys).start();
    let pad = format!("X-Pad: {}\r\n", "p".repeat(8_300));
    let put = |fields: &str, body: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}");
    // Less than a receive holds, as much, and more.
    for size in [4_000, 8_000, 16_000, 16_100, 16_200, 16_383, 16_384] {
        let body = "x".repeat(size);
        let length = format!("Content-Length: {size}\r\n");
        let chunks = format!("{size:x}\r\n{body}\r\n0\r\n\r\n");
        for request in [
            put(&length, &body),
            put(&format!("{pad}{length}"), &body),
            put("Transfer-Encoding: chunked\r\n", &chunks),
            put(&format!("{pad}Transfer-Encoding: chunked\r\n"), &chunks),
        ] {
            // Twice, so that both backends have had it first, and with what comes behind it.
            let mut client = proxy.client();
            client.send(format!("{request}{request}GET / HTTP/1.1\r\nHost: a\r\n{pad}\r\n"));
            (0..3).for_each(|_| client.response().expect(200, "ok"));
        }
        let seen = good.requests();
        let puts = seen.iter().rev().take(12).filter(|it| !it.body.is_empty());
        assert!(puts.clone().count() == 8 && puts.clone().all(|it| it.body == body.as_bytes()), "{size}");
    }
}

#[test]
fn an_end_and_a_silence_before_the_answer_have_it_sent_again_where_that_is_wanted() {
    let cut = || Backend::script(|conn| drop(conn.request()));
    let good = Backend::respond(OK);
    let bad = cut();
    let proxy = before(&[&bad, &good], &["retry_on = [\"reset\"]", "passive = false"]).start();
    (0..12).for_each(|_| get(&proxy).expect(200, "ok"));
    assert!(bad.requests().len() >= 4);
    let bad = cut();
    let proxy = before(&[&bad, &good], &["retry_on = [\"timeout\"]", "passive = false"]).start();
    assert!((5..=7).contains(&(0..12).filter(|_| get(&proxy).status() == 502).count()));

    let silent = Backend::script(|conn| {
        conn.request();
        conn.rest();
    });
    let keys = ["retry_on = [\"timeout\"]", "passive = false"];
    let proxy = before(&[&silent, &good], &keys).listener("back_timeout = 0.2").start();
    (0..6).for_each(|_| get(&proxy).expect(200, "ok"));
    assert!(silent.requests().len() >= 2);
    let keys = ["passive = false"];
    let proxy = before(&[&silent, &good], &keys).listener("back_timeout = 0.2").start();
    assert!((2..=4).contains(&(0..6).filter(|_| get(&proxy).status() == 504).count()));
}

#[test]
fn what_has_begun_to_arrive_is_never_sent_again() {
    let half = Backend::script(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin");
    });
    let early = Backend::script(|conn| {
        conn.request();
        conn.send(
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
        );
    });
    let keys = ["retry_on = [\"reset\", \"timeout\", \"5xx\"]", "passive = false"];
    let proxy = before(&[&half], &keys).start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    client.rest();
    assert_eq!(half.requests().len(), 1);
    let proxy = before(&[&early], &keys).start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((client.head().status(), client.response().status()), (103, 503));
    assert_eq!(early.requests().len(), 1);
}

#[test]
fn an_outage_is_not_multiplied() {
    const REQUESTS: usize = 1_000;
    let backends = [Backend::respond(UNAVAILABLE), Backend::respond(UNAVAILABLE)];
    let proxy = before(&[&backends[0], &backends[1]], &["retry_on = [\"5xx\"]", "passive = false"]).start();
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut client = proxy.client();
                for _ in 0..REQUESTS / 10 {
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                    client.response().expect(503, "busy");
                }
            });
        }
    });
    let seen: usize = backends.iter().map(|backend| backend.requests().len()).sum();
    // A fifth, and the few that are allowed in any case.
    assert!((REQUESTS + 30..=REQUESTS * 12 / 10 + 30).contains(&seen), "{seen}");
    assert!(proxy.counter("upstream.retry_budget_spent") > 0);
    let keys = ["retry_on = [\"5xx\"]", "retry_budget = 0", "passive = false"];
    let proxy = before(&[&backends[0]], &keys).start();
    (0..10).for_each(|_| get(&proxy).expect(503, "busy"));
    assert_eq!(proxy.counter("upstream.retries"), 0);
}

/// A backend that answers with 502 while it is told to.
fn moody() -> (Backend, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (bad, served) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
    let (mood, count) = (Arc::clone(&bad), Arc::clone(&served));
    let backend = Backend::answer(move |_| {
        count.fetch_add(1, SeqCst);
        match mood.load(SeqCst) {
            true => b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad".to_vec(),
            false => OK.to_vec(),
        }
    });
    (backend, bad, served)
}

#[test]
fn a_backend_that_answers_badly_is_passed_over_by_all_workers_and_comes_back() {
    let (sick, bad, served) = moody();
    let good = Backend::respond(OK);
    let mut proxy = before(&[&sick, &good], &["passive = { ejection_time = 3 }"]).start();
    let failed = (0..20).filter(|_| get(&proxy).status() == 502).count();
    assert_eq!((failed, served.load(SeqCst)), (5, 5));
    assert_eq!(proxy.counter("upstream.ejections"), 1);
    proxy.logged("answers badly");
    let shown = proxy.ctl_json("backends").to_string();
    assert!(shown.contains("it answered badly"), "{shown}");
    // Nor does it come back with other processes.
    send_signal(proxy.workers()[0], Signal::SIGKILL);
    wait::until("another worker", || proxy.ctl_json("status")["restarts"] == 1);
    proxy.kill_supervisor();
    proxy.start_again();
    (0..20).for_each(|_| get(&proxy).expect(200, "ok"));
    assert_eq!(served.load(SeqCst), 5);
    // One request at a time, which fails: it is passed over for twice as long.
    wait::within(Duration::from_secs(8), "a trial", || {
        get(&proxy);
        (served.load(SeqCst) > 5).then_some(())
    });
    (0..20).for_each(|_| get(&proxy).expect(200, "ok"));
    assert_eq!(served.load(SeqCst), 6);
    bad.store(false, SeqCst);
    wait::within(Duration::from_secs(12), "the next trial", || {
        get(&proxy).expect(200, "ok");
        (served.load(SeqCst) > 6).then_some(())
    });
    let before = served.load(SeqCst);
    (0..20).for_each(|_| get(&proxy).expect(200, "ok"));
    assert!(served.load(SeqCst) >= before + 8, "it has its share again");
}

#[test]
fn not_all_are_passed_over_and_never_the_only_one() {
    let sick: Vec<_> = (0..4).map(|_| moody()).collect();
    let all: Vec<&Backend> = sick.iter().map(|(backend, ..)| backend).collect();
    let proxy = before(&all, &[]).start();
    (0..80).for_each(|_| assert_eq!(get(&proxy).status(), 502));
    assert_eq!(proxy.counter("upstream.ejections"), 2);
    let proxy = before(&all[..1], &[]).start();
    (0..20).for_each(|_| assert_eq!(get(&proxy).status(), 502));
    assert_eq!(proxy.counter("upstream.ejections"), 0);
    let proxy = before(&all[..2], &["passive = { max_ejection_percent = 10 }"]).start();
    (0..40).for_each(|_| assert_eq!(get(&proxy).status(), 502));
    assert_eq!(proxy.counter("upstream.ejections"), 1);
}

#[test]
fn what_the_client_causes_and_what_is_not_named_is_no_failure() {
    let odd = Backend::respond("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    let good = Backend::respond(OK);
    let proxy = before(&[&odd, &good], &[]).start();
    assert!((14..=16).contains(&(0..30).filter(|_| get(&proxy).status() == 500).count()));
    assert_eq!(proxy.counter("upstream.ejections"), 0);
    let proxy =
        before(&[&odd, &good], &["passive = { statuses = [\"5xx\"], consecutive_failures = 3 }"]).start();
    assert_eq!((0..30).filter(|_| get(&proxy).status() == 500).count(), 3);
    let proxy = before(
        &[&odd, &good],
        &["passive = { statuses = [500], consecutive_failures = 0, failure_ratio = 50 }"],
    )
    .start();
    // Of at least 20 answers.
    let failed = (0..80).filter(|_| get(&proxy).status() == 500).count();
    assert!((10..=21).contains(&failed), "{failed}");
}

#[test]
fn who_answers_much_later_than_the_others_is_passed_over() {
    let times = [150, 0, 0, 0];
    let farm = times.map(|time| {
        Backend::answer(move |_| {
            wait::pace(Duration::from_millis(time));
            OK.to_vec()
        })
    });
    let all: Vec<&Backend> = farm.iter().collect();
    let proxy = before(&all, &["passive = { latency_factor = 9.5 }"]).start();
    (0..60).for_each(|_| get(&proxy).expect(200, "ok"));
    let slow = farm[0].requests().len();
    assert!((1..=4).contains(&slow) && proxy.counter("upstream.ejections") >= 1, "{slow}");
    let proxy = before(&all, &[]).start();
    (0..20).for_each(|_| get(&proxy).expect(200, "ok"));
    assert!(farm[0].requests().len() - slow >= 4);
}

#[test]
fn it_is_not_sent_again_too_late_or_too_often_nor_is_what_died_in_the_pool_a_failure() {
    let late = || {
        Backend::answer(|_| {
            wait::pace(Duration::from_millis(300));
            UNAVAILABLE.into()
        })
    };
    let (bad, other) = (late(), late());
    let keys = ["retry_on = [503]", "retry_timeout = 0.2", "passive = false"];
    let proxy = before(&[&bad, &other], &keys).start();
    (0..4).for_each(|_| get(&proxy).expect(503, "busy"));
    assert_eq!(bad.requests().len() + other.requests().len(), 4);
    let keys = ["retry_on = [503]", "max_connection_attempts = 2", "passive = false"];
    let all: Vec<_> = (0..5).map(|_| Backend::respond(UNAVAILABLE)).collect();
    let proxy = before(&all.iter().collect::<Vec<_>>(), &keys).start();
    get(&proxy).expect(503, "busy");
    assert_eq!(all.iter().map(|backend| backend.requests().len()).sum::<usize>(), 2);

    // It ends each connection when a second request comes: such a one may not have been read, and counts for nothing.
    let short = Backend::script(|conn| {
        if conn.serve(|_| OK.to_vec()) {
            conn.request();
        }
    });
    let good = Backend::respond(OK);
    let proxy = before(&[&short, &good], &["passive = { consecutive_failures = 1 }"]).start();
    let post = |_| exchange(&proxy, request("POST", "a=b")).status();
    let lost = (0..30).map(post).filter(|status| *status == 502).count();
    assert!(lost > 3 && proxy.counter("upstream.ejections") == 0, "{lost}");
}

#[test]
fn to_switch_it_off_brings_back_what_was_passed_over() {
    let ((sick, bad, served), good) = (moody(), Backend::respond(OK));
    let proxy = before(&[&sick, &good], &[]).start();
    (0..20).for_each(|_| drop(get(&proxy)));
    assert_eq!(served.load(SeqCst), 5);
    bad.store(false, SeqCst);
    assert!(proxy.ctl(&["cluster", "patch", "all", "passive=false"]).status.success());
    (0..20).for_each(|_| get(&proxy).expect(200, "ok"));
    assert!(served.load(SeqCst) >= 5 + 8, "{}", served.load(SeqCst));
    assert!(!proxy.ctl_json("backends").to_string().contains("it answered badly"));
}

#[test]
fn a_connection_that_is_passed_on_clears_failures_to_connect() {
    let greet = |conn: &mut Conn| assert!(conn.send("hello"));
    let (listener, steady) = (TcpListener::bind("127.0.0.1:0").unwrap(), Backend::script(greet));
    let address = listener.local_addr().unwrap();
    let config = Config::new().listener("protocol = \"tcp\"").cluster("db", "protocol = \"tcp\"");
    let config = config.frontend("db", "").backend_at("db", &address.to_string(), "").backend("db", &steady);
    drop(listener);
    let proxy = config.start();
    let connect = || assert_eq!(proxy.client().bytes(5), b"hello");
    // As often as it takes in a row, but never in a row.
    for round in 1..=6 {
        wait::until("an attempt that fails", || {
            connect();
            proxy.counter("upstream.connect_errors") >= round
        });
        let back = Backend::on(TcpListener::bind(address).unwrap(), greet);
        wait::until("a connection to it", || {
            connect();
            back.connections() > 0
        });
    }
    assert_eq!(proxy.counter("upstream.ejections"), 0);
}

#[test]
fn where_nobody_can_be_reached_all_are_told_so_at_once() {
    let gone = {
        let backend = Backend::respond(OK);
        backend.address()
    };
    let proxy = Config::new()
        .root("worker_count = 2")
        .frontend("all", "hostname = \"*\"")
        .backend_at("all", &gone, "")
        .start();
    let mut times = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        assert_eq!(get(&proxy).status(), 503);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    assert!(times[98] < Duration::from_millis(50), "{:?}", times[98]);

    // One that takes no connections: one attempt is made at a time, which ends at `connect_timeout`.
    let (address, _listener) = silent_port();
    let proxy = Config::new()
        .root("worker_count = 2")
        .listener("connect_timeout = 2")
        .frontend("all", "hostname = \"*\"")
        .backend_at("all", &address.to_string(), "")
        .start();
    // Both have to find it out.
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert_eq!(get(&proxy).status(), 504));
        }
    });
    // From then on one attempt is made at a time, which takes 2 s, and all others are told at once.
    let (late, prompt) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let until = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while Instant::now() < until {
                    let started = Instant::now();
                    let status = get(&proxy).status();
                    let is_late = started.elapsed() > Duration::from_millis(500);
                    assert_eq!(status, if is_late { 504 } else { 503 });
                    if is_late { &late } else { &prompt }.fetch_add(1, SeqCst);
                }
            });
        }
    });
    let (late, prompt) = (late.into_inner(), prompt.into_inner());
    assert!(late <= 6 && prompt > 100, "{late} waited, {prompt} did not");
}
