//! Every limit holds, says what it is in the answer, and costs nobody else anything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Client, Config, End, OK, Proxy, chunks, exchange, get, send_signal, silent_port, wait,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const MIB: u64 = 1 << 20;

/// Milliseconds.
const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Sends `request` and expects this refusal, the end of the connection, and nothing at the backend.
#[track_caller]
fn refused(lines: &[&str], request: &[u8], status: u16, code: &str) {
    let backend = Backend::respond(OK);
    let proxy = lines.iter().fold(Config::to(&backend), |config, line| config.listener(line)).start();
    let mut client = proxy.client();
    client.send(request);
    client.response().expect_answer(status, code);
    client.expect_closed();
    backend.expect_untouched();
    get(&proxy, "a", "/").expect(200, "ok");
}

#[test]
fn a_head_larger_than_its_limit_gets_431() {
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(64 * 1024));
    refused(&[], request.as_bytes(), 431, "head_too_large");
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(1024));
    refused(&["max_head_size = 1024"], request.as_bytes(), 431, "head_too_large");
}

#[test]
fn a_head_that_never_ends_is_refused_at_its_limit() {
    refused(
        &[],
        &b"GET / HTTP/1.1\r\nHost: a\r\nA: ".iter().copied().chain([b'x'; 20_000]).collect::<Vec<_>>(),
        431,
        "head_too_large",
    );
}

#[test]
fn a_head_just_below_its_limit_is_served() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let value = "x".repeat(16_384 - 200);
    exchange(&proxy, format!("GET / HTTP/1.1\r\nHost: a\r\nA: {value}\r\n\r\n")).expect(200, "ok");
    assert_eq!(backend.request().field("a"), Some(value.as_str()));
}

#[test]
fn more_fields_than_their_limit_get_431() {
    let many = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    refused(&[], many(129).as_bytes(), 431, "too_many_fields");
    refused(&["max_head_fields = 10"], many(11).as_bytes(), 431, "too_many_fields");
    refused(&[], many(1000).as_bytes(), 431, "too_many_fields");
    let backend = Backend::respond(OK);
    exchange(&Proxy::to(&backend), many(128)).expect(200, "ok");
}

#[test]
fn a_target_longer_than_its_limit_gets_414() {
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(8192));
    refused(&[], request.as_bytes(), 414, "target_too_long");
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(64));
    refused(&["max_target_size = 64"], request.as_bytes(), 414, "target_too_long");
}

#[test]
fn a_body_whose_length_is_over_the_limit_gets_413_before_the_backend_hears_of_it() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world";
    refused(&["max_body_size = 10"], request, 413, "body_too_large");
    let huge = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n";
    refused(&["max_body_size = 10"], huge, 413, "body_too_large");
}

#[test]
fn a_chunked_body_over_the_limit_gets_413_and_never_becomes_a_request() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("max_body_size = 10").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(chunks(b"hello world", 4));
    client.send("0\r\n\r\n");
    client.response().expect_answer(413, "body_too_large");
    client.expect_closed();
    assert!(backend.requests().is_empty());
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n");
    client.response().expect(200, "ok");
}

#[test]
fn a_head_that_trickles_gets_408_at_its_deadline() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("request_timeout = 0.4").start();
    let mut client = proxy.client();
    let start = Instant::now();
    for byte in format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "x".repeat(1000)).bytes() {
        if start.elapsed() > ms(600) {
            break;
        }
        client.send([byte]);
        wait::pace(ms(20));
    }
    // Bytes did come all the time, and did not extend the deadline.
    client.response().expect_answer(408, "request_timeout");
    assert!(start.elapsed() < ms(3000), "after {:?}", start.elapsed());
    client.expect_closed();
    backend.expect_untouched();
}

#[test]
fn a_client_that_says_nothing_is_closed_at_the_deadline_of_the_head() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("request_timeout = 0.3").start();
    let start = Instant::now();
    let mut client = proxy.client();
    let (answer, end) = client.rest();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "), "{}", answer.escape_ascii());
    assert!(end != End::Deadline && start.elapsed() > ms(200), "{end:?} after {:?}", start.elapsed());
}

#[test]
fn a_body_that_stands_still_is_cut_at_its_deadline() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("body_timeout = 0.3").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    client.response().expect_answer(408, "body_timeout");
    client.expect_closed();
    assert!(backend.requests().is_empty());
    wait::until("the end of the backend's connection", || backend.ended() == 1);
}

#[test]
fn a_body_slower_than_its_rate_is_cut_though_it_moves() {
    let backend = Backend::respond(OK);
    let proxy =
        Config::to(&backend).listener("body_timeout = 0.3").listener("body_min_rate = 100000").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
    let start = Instant::now();
    while start.elapsed() < ms(900) {
        client.send("x");
        wait::pace(ms(20));
    }
    client.response().expect_answer(408, "body_timeout");
    client.expect_closed();
}

#[test]
fn a_body_that_is_slow_but_fast_enough_is_served() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("body_timeout = 0.3").listener("body_min_rate = 1").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n");
    for _ in 0..15 {
        client.send("x");
        wait::pace(ms(50));
    }
    client.response().expect(200, "ok");
}

/// A backend that sends a response without end, `piece` bytes each `pause`, until it is cut.
fn trickling(piece: usize, pause: Duration) -> (Backend, Arc<AtomicBool>) {
    let cut = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&cut);
    let backend = Backend::script(move |conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        let piece = vec![b'x'; piece];
        while conn.send(&piece) {
            wait::pace(pause);
        }
        seen.store(true, Ordering::SeqCst);
    });
    (backend, cut)
}

#[test]
fn a_response_slower_than_its_rate_is_cut_though_it_moves() {
    for (rate, expected) in [("response_min_rate = 100000", true), ("response_min_rate = 1", false)] {
        let (backend, cut) = trickling(10, ms(20));
        let proxy = Config::to(&backend).listener("back_timeout = 0.3").listener(rate).start();
        let mut client = proxy.client();
        client.send(GET);
        assert_eq!(client.head().status(), 200);
        let start = Instant::now();
        while start.elapsed() < ms(1_500) && !cut.load(Ordering::SeqCst) {
            wait::pace(ms(20));
        }
        assert_eq!(cut.load(Ordering::SeqCst), expected, "{rate}");
        assert_eq!(proxy.counter("http.backend_truncations"), u64::from(expected), "{rate}");
    }
}

#[test]
fn a_client_that_sips_is_cut_where_that_is_slower_than_its_rate() {
    for (rate, expected) in [("response_min_rate = 100000000", true), ("response_min_rate = 0", false)] {
        let (backend, cut) = trickling(MIB as usize, ms(0));
        let proxy = Config::to(&backend).listener("front_timeout = 0.5").listener(rate).start();
        let mut client = proxy.client();
        client.send(GET);
        assert_eq!(client.head().status(), 200);
        let start = Instant::now();
        // Fast enough never to stand still for `front_timeout`, and far below the rate.
        while start.elapsed() < ms(3_000) && !cut.load(Ordering::SeqCst) {
            let _ = client.try_bytes(256 * 1024);
            wait::pace(ms(50));
        }
        assert_eq!(cut.load(Ordering::SeqCst), expected, "{rate}");
    }
}

#[test]
fn a_response_that_takes_longer_than_it_may_is_cut_however_fast_it_is() {
    let (backend, cut) = trickling(1_000, ms(10));
    let proxy = Config::to(&backend).listener("max_response_time = 0.5").start();
    let mut client = proxy.client();
    client.send(GET);
    let start = Instant::now();
    let (_, end) = client.rest();
    assert!(start.elapsed() > ms(400), "after {:?}", start.elapsed());
    assert!(end != End::Deadline, "{end:?}");
    wait::until("the backend is told", || cut.load(Ordering::SeqCst));
}

#[test]
fn a_response_whose_head_does_not_come_in_time_is_504() {
    let backend = Backend::script(|conn| {
        conn.request();
        conn.rest();
    });
    let proxy = Config::to(&backend).listener("max_response_time = 0.3").start();
    get(&proxy, "a", "/").expect_answer(504, "backend_timeout");
}

#[test]
fn a_front_timeout_below_the_body_timeout_bounds_a_silent_upload() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("front_timeout = 0.3").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    let start = Instant::now();
    client.response().expect_answer(408, "body_timeout");
    assert!(start.elapsed() > ms(200), "after {:?}", start.elapsed());
}

#[test]
fn an_idle_connection_is_closed_at_its_deadline_without_a_word() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("front_timeout = 0.3").start();
    let mut client = proxy.client();
    client.send(GET);
    client.response().expect(200, "ok");
    let start = Instant::now();
    client.expect_closed();
    assert!(start.elapsed() > ms(200), "after {:?}", start.elapsed());
}

#[test]
fn a_backend_that_cannot_be_connected_in_time_gives_504() {
    let (address, _keep) = silent_port();
    let proxy = Config::new()
        .listener("connect_timeout = 0.3")
        .frontend("web", r#"hostname = "*""#)
        .backend_at("web", &address.to_string(), "")
        .start();
    let start = Instant::now();
    get(&proxy, "a", "/").expect_answer(504, "backend_connect_timeout");
    assert!(start.elapsed() > ms(200), "after {:?}", start.elapsed());
}

#[test]
fn a_backend_that_cannot_be_connected_in_time_costs_no_client_a_request_where_there_is_another() {
    let (address, _keep) = silent_port();
    let healthy = Backend::respond(OK);
    let proxy = Config::new()
        .listener("connect_timeout = 0.2")
        .frontend("web", r#"hostname = "*""#)
        .backend_at("web", &address.to_string(), "")
        .backend("web", &healthy)
        .start();
    for _ in 0..6 {
        get(&proxy, "a", "/").expect(200, "ok");
    }
}

#[test]
fn a_backend_that_does_not_answer_gives_504() {
    let backend = Backend::script(|conn| {
        conn.request();
        conn.rest();
    });
    let proxy = Config::to(&backend).listener("back_timeout = 0.3").start();
    let start = Instant::now();
    get(&proxy, "a", "/").expect_answer(504, "backend_timeout");
    assert!(start.elapsed() > ms(200), "after {:?}", start.elapsed());
    wait::until("the end of the backend's connection", || backend.ended() == 1);
    assert_eq!(backend.connections(), 1, "a slow backend is not asked twice");
}

#[test]
fn a_backend_that_stops_in_the_middle_of_its_body_is_cut_and_seen_to_be() {
    let backend = Backend::script(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
        conn.rest();
    });
    let proxy = Config::to(&backend).listener("back_timeout = 0.3").start();
    let mut client = proxy.client();
    client.send(GET);
    let broken = client.try_response().expect_err("three bytes of ten are no body");
    assert!(broken.end != End::Deadline && broken.got.ends_with(b"abc"), "{broken}");
}

#[test]
fn a_client_that_does_not_read_costs_little_memory_and_is_cut() {
    let cut = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&cut);
    let backend = Backend::script(move |conn| {
        conn.request();
        let piece = vec![b'x'; MIB as usize];
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 256 * MIB));
        let whole = (0..256).all(|_| conn.send(&piece));
        seen.store(!whole, Ordering::SeqCst);
    });
    let proxy = Config::to(&backend).listener("front_timeout = 1").start();
    let worker = proxy.worker();
    let before = worker.resident();
    let mut client = proxy.client();
    client.send(GET);
    assert_eq!(client.head().status(), 200);
    let mut most = 0;
    wait::until("kakehi gives up on a client that reads nothing", || {
        most = most.max(worker.resident());
        cut.load(Ordering::SeqCst)
    });
    let grown = most.saturating_sub(before);
    assert!(grown < 8 * MIB, "the worker grew by {} KiB for one client that does not read", grown / 1024);
    assert!(client.rest().0.len() < 256 * MIB as usize);
}

#[test]
fn a_client_more_than_may_be_served_waits_and_is_then_served() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("max_connections = 2").start();
    let mut clients: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = proxy.client();
            client.send(GET);
            client.response().expect(200, "ok");
            client
        })
        .collect();
    let mut waiting = proxy.client();
    waiting.send(GET);
    waiting.expect_silence(ms(200));
    clients.pop();
    waiting.response().expect(200, "ok");
}

#[test]
fn of_many_that_come_at_once_to_several_listeners_no_more_are_taken_than_may_be_served() {
    const MOST: u64 = 10;
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).another_listener().root(&format!("max_connections = {MOST}")).start();
    proxy.wait_for_counter("client.connections", 0);
    // They all wait when the worker looks.
    send_signal(proxy.worker(), Signal::SIGSTOP);
    let clients: Vec<_> = (0..100).map(|n| Client::connect(proxy.address_of(n % 2))).collect();
    let before = proxy.counter("listener.accepted");
    send_signal(proxy.worker(), Signal::SIGCONT);
    proxy.wait_for_counter("client.connections", MOST);
    wait::until("accepting pauses", || proxy.counter("listener.connection_capped") > 0);
    assert_eq!(proxy.counter("listener.accepted") - before, MOST);
    drop(clients);
    get(&proxy, "a", "/").expect(200, "ok");
}

#[test]
fn running_out_of_descriptors_neither_spins_nor_loses_a_client() {
    const CLIENTS: usize = 220;
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).ulimit("-n 200").start();
    let worker = proxy.worker();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| proxy.client()).collect();
    let mut served = 0;
    for client in &mut clients {
        client.send(GET);
        client.patience(ms(if served == 0 { 2000 } else { 10 }));
        served += usize::from(client.try_response().is_ok_and(|response| response.status() == 200));
    }
    assert!(served > 0 && served < CLIENTS, "{served} of {CLIENTS} were served with 200 descriptors");
    let before = worker.cpu_time();
    wait::pace(ms(500));
    let spent = worker.cpu_time() - before;
    assert!(spent < ms(250), "the worker used {spent:?} of 500 ms while it had nothing to do");
    let mut late = clients.split_off(CLIENTS - 20);
    drop(clients);
    for client in &mut late {
        // A response may have come in the meantime: it has not been read.
        client.patience(wait::SOON);
        client.response().expect(200, "ok");
    }
    assert_eq!(proxy.worker(), worker, "the worker is the same");
}

#[test]
fn more_connections_than_receive_buffers_are_all_served() {
    const CLIENTS: usize = 200;
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("buffer_count = 16").start();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| proxy.client()).collect();
    for _ in 0..5 {
        // All at once: far more arrives than there are buffers for.
        clients.iter_mut().for_each(|client| client.send(GET));
        clients.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    }
}

#[test]
fn each_refusal_is_counted_by_its_reason() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("max_head_size = 512").start();
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(600));
    for _ in 0..3 {
        exchange(&proxy, &long).expect_answer(431, "head_too_large");
    }
    let counters = &proxy.ctl_json("status")["counters"];
    assert_eq!(counters["answers.head_too_large"], 3, "{counters}");
    assert!(counters["http.own_answers"].as_u64() >= Some(3), "{counters}");
}
