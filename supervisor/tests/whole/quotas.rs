//! How much may come from whom, on two workers together: rates, connections of one client, networks, sizes of bodies.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::harness::{
    Backend, Client, Config, GET, Message, OK, OPEN, Proxy, SWITCHING, ask, send_signal, wait,
};

/// Two workers, and clients that a trusted proxy names.
fn behind(backend: &Backend) -> Config {
    Config::to(backend).root("worker_count = 2").listener("trusted_peers = [\"127.0.0.1\"]")
}

/// A request that a trusted proxy sends for this client, with more lines of its own.
fn from(client: &str, lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n{lines}\r\n")
}

/// How many of ten requests on connections of their own are let through.
#[track_caller]
fn through(proxy: &Proxy, request: &str) -> usize {
    let ask = |_: &usize| answer(proxy, request).status() == 200;
    (0..10).filter(ask).count()
}

#[track_caller]
fn answer(proxy: &Proxy, request: &str) -> Message {
    let mut client = proxy.client();
    client.send(request);
    client.response()
}

/// A connection from another address of the loopback.
fn connect_from(source: [u8; 4], address: SocketAddr) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    Client::of(TcpStream::from(socket))
}

/// Connections that have been served, and stay open.
fn held(proxy: &Proxy, count: usize) -> Vec<Client> {
    let mut clients: Vec<_> = (0..count).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    clients
}

#[test]
fn a_rate_is_that_of_the_machine_and_no_field_changes_it() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root("worker_count = 2")
        .cluster("all", "rate_limits = [{ key = \"source\", rate = 100, burst = 20 }]")
        .start();
    let (admitted, refused) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let began = Instant::now();
    let time = Duration::from_secs(5);
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let (admitted, refused, address) = (Arc::clone(&admitted), Arc::clone(&refused), proxy.address());
            thread::spawn(move || {
                let mut client = connect_from([127, 0, 0, 9], address);
                for round in 0.. {
                    if began.elapsed() > time {
                        return;
                    }
                    client.send(from(&format!("203.0.{n}.{}", round % 250), "Forwarded: for=192.0.2.9\r\n"));
                    let answer = client.response();
                    match answer.status() {
                        200 => drop(admitted.fetch_add(1, SeqCst)),
                        429 => {
                            assert_eq!(answer.field("Retry-After"), Some("1"));
                            refused.fetch_add(1, SeqCst);
                        }
                        other => panic!("{other}"),
                    }
                    wait::pace(Duration::from_millis(5));
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (seconds, admitted) = (began.elapsed().as_secs_f64(), admitted.load(SeqCst) as f64);
    assert!(refused.load(SeqCst) > 1_000, "{refused:?} were refused");
    let most = 100.0 * seconds + 21.0;
    // At the end of the time each client sends one more.
    assert!(admitted <= most * 1.01 && admitted >= (100.0 * 5.0 + 20.0) * 0.99, "{admitted} of {most}");
    assert_eq!(proxy.counter("answers.rate_limited"), refused.load(SeqCst) as u64);
}

#[test]
fn whom_a_trusted_proxy_names_is_the_client_and_each_key_has_its_own_count() {
    let backend = Backend::respond(OK);
    let limits = "[{ key = \"header:X-User\", rate = 1, per = \"1h\", burst = 2, status = 503, exempt = [\"198.51.100.0/24\"] }]";
    let proxy = behind(&backend).cluster("all", &format!("rate_limits = {limits}")).start();
    assert_eq!(through(&proxy, &from("6.6.6.6, 192.0.2.1", "")), 3);
    assert_eq!(through(&proxy, &from("7.7.7.7, 192.0.2.1", "")), 0, "what stands before is not believed");
    assert_eq!(through(&proxy, &from("192.0.2.2", "")), 3);
    assert_eq!(through(&proxy, &from("192.0.2.2", "X-User: a\r\n")), 3);
    assert_eq!(
        through(&proxy, &from("192.0.2.3", "X-User: a\r\n")),
        0,
        "the user counts, wherever it comes from"
    );
    assert_eq!(through(&proxy, &from("192.0.2.3", "X-User: b\r\n")), 3);
    assert_eq!(through(&proxy, &from("198.51.100.7", "X-User: a\r\n")), 10);
    let refused = answer(&proxy, &from("192.0.2.1", ""));
    refused.expect(503, "503 Service Unavailable: rate_limited\n");
    let seconds: u32 = refused.field("Retry-After").unwrap().parse().unwrap();
    assert!((1_700..=1_800).contains(&seconds), "{seconds}");
}

#[test]
fn limits_are_judged_from_the_listener_to_the_cluster_and_what_admitted_has_counted() {
    let backend = Backend::respond(OK);
    let limit = |burst: u32, more: &str| {
        format!("rate_limits = [{{ key = \"source\", rate = 1, per = \"1h\", burst = {burst}{more} }}]")
    };
    let config = behind(&backend)
        .listener(&limit(5, ""))
        .frontend("all", &format!("hostname = \"b\", {}", limit(1, "")))
        .cluster("all", &limit(3, ", dry_run = true"));
    let proxy = config.clone().start();
    let of_b = "GET / HTTP/1.1\r\nHost: b\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    assert_eq!(through(&proxy, of_b), 2, "by the frontend");
    assert_eq!(
        through(&proxy, &from("192.0.2.1", "")),
        0,
        "the listener counted those that the frontend refused"
    );
    assert_eq!(through(&proxy, &from("192.0.2.2", "")), 6);
    assert_eq!(proxy.counter("limits.dry_run"), 2, "the fifth and sixth");
    // A reload that does not change a limit keeps its counts, and one that does counts on.
    proxy.reload(&config.clone().listener("front_timeout = 5"));
    assert_eq!(through(&proxy, &from("192.0.2.2", "")), 0);
    // So do the end of a worker, of the supervisor, and an upgrade.
    send_signal(proxy.workers()[0], Signal::SIGKILL);
    proxy.wait_for_counter("worker.restarts", 1);
    assert_eq!(through(&proxy, &from("192.0.2.2", "")), 0);
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success());
    assert_eq!(through(&proxy, &from("192.0.2.2", "")), 0);
    let mut proxy = proxy;
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(through(&proxy, &from("192.0.2.2", "")), 0);
}

#[test]
fn a_client_has_as_many_connections_as_it_may_whichever_workers_serve_them() {
    let backend = Backend::respond(OK);
    let config = Config::to(&backend)
        .root("worker_count = 2")
        .root("max_connections_per_ip = 6")
        .frontend("other", "hostname = \"b\"")
        .backend("other", &backend)
        .cluster("other", "max_connections_per_ip = 0");
    let mut proxy = config.clone().start();
    let mut clients = held(&proxy, 6);
    let refused = |proxy: &Proxy| {
        for _ in 0..6 {
            let answer = answer(proxy, GET);
            answer.expect_answer(429, "too_many_connections");
            assert_eq!(answer.field("Retry-After"), Some("60"));
        }
    };
    refused(&proxy);
    // Others are served, and so are those that have a place.
    ask(&mut connect_from([127, 0, 0, 2], proxy.address()));
    clients.iter_mut().for_each(ask);
    // A connection counts where it asked last.
    clients[0].send("GET / HTTP/1.1\r\nHost: b\r\n\r\n");
    clients[0].response().expect(200, "ok");
    let mut seventh = proxy.client();
    ask(&mut seventh);
    refused(&proxy);
    // One that goes makes room.
    drop(seventh);
    wait::until("room", || answer(&proxy, GET).status() == 200);
    wait::until("all of it", || {
        clients[0].send(GET);
        clients[0].response().status() == 200
    });
    // So do those that have been open when a limit came.
    proxy.reload(&config.clone().root("max_connections_per_subnet = 9"));
    clients.iter_mut().for_each(ask);
    refused(&proxy);
    // An upgrade keeps the places of those that move, though they ask for nothing; a reload does, too.
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success());
    proxy.wait_for_counter("client.taken_over", 6);
    refused(&proxy);
    proxy.reload(&config.clone().listener("front_timeout = 50"));
    refused(&proxy);
    proxy.kill_supervisor();
    refused(&proxy);
    proxy.start_again();
    refused(&proxy);
    // What a worker holds that is killed is free.
    for worker in proxy.workers() {
        send_signal(worker, Signal::SIGKILL);
    }
    drop(clients);
    wait::until("all places", || {
        let mut clients: Vec<_> = (0..6).filter_map(|_| Client::try_connect(proxy.address()).ok()).collect();
        clients.iter_mut().for_each(|client| client.send(GET));
        clients.len() == 6
            && clients
                .iter_mut()
                .all(|client| client.try_response().is_ok_and(|answer| answer.status() == 200))
    });
}

#[test]
fn tunnels_and_connections_that_are_passed_on_have_places_and_refusals_reach_no_backend() {
    let backend = Backend::script(|conn| {
        conn.request();
        conn.send(SWITCHING);
        conn.echo();
    });
    let proxy = Config::to(&backend)
        .root("worker_count = 2")
        .cluster("all", "max_connections_per_ip = 2")
        .cluster("all", "retry_after = 0")
        .start();
    let mut tunnels: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    for tunnel in &mut tunnels {
        tunnel.send(OPEN);
        assert_eq!(tunnel.head().status(), 101);
    }
    let refused = answer(&proxy, GET);
    refused.expect_answer(429, "too_many_connections");
    assert_eq!(refused.field("Retry-After"), None);
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success());
    proxy.wait_for_counter("client.taken_over", 2);
    answer(&proxy, GET).expect_answer(429, "too_many_connections");
    assert_eq!(tunnels[0].converse(b"still", 5), b"still");

    let echo = Backend::script(|conn| conn.echo());
    let proxy = Config::new()
        .root("worker_count = 2")
        .root("max_connections_per_subnet = 3")
        .root("subnet_ipv4_prefix = 24")
        .listener("protocol = \"tcp\"")
        .cluster("tcp", "protocol = \"tcp\"")
        .frontend("tcp", "rate_limits = [{ rate = 1, per = \"1h\", burst = 30 }], deny = [\"127.0.1.0/24\"]")
        .backend("tcp", &echo)
        .start();
    // What the start has left goes.
    proxy.wait_for_counter("tunnel.open", 0);
    let before = echo.connections();
    let mut clients: Vec<_> = (1..4).map(|n| connect_from([127, 0, 0, n], proxy.address())).collect();
    for client in &mut clients {
        assert_eq!(client.converse(b"hello", 5), b"hello");
    }
    connect_from([127, 0, 0, 4], proxy.address()).expect_closed();
    connect_from([127, 0, 1, 1], proxy.address()).expect_closed();
    assert_eq!(connect_from([127, 0, 2, 1], proxy.address()).converse(b"hello", 5), b"hello");
    proxy.wait_for_counter("tunnel.open", 3);
    assert_eq!(proxy.counter("answers.too_many_connections"), 1);
    assert_eq!(proxy.counter("answers.source_refused"), 1);
    assert_eq!(echo.connections(), before + 4);
    // And the rate: one source, connection by connection.
    let mut served = 0;
    while served < 100 {
        let mut client = connect_from([127, 0, 3, 1], proxy.address());
        client.send("hello");
        if client.try_bytes(5).is_none() {
            break;
        }
        served += 1;
        drop(client);
        proxy.wait_for_counter("tunnel.open", 3);
    }
    assert_eq!(served, 31);
}

#[test]
fn networks_that_are_denied_are_refused_as_soon_as_the_client_is_known() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root("worker_count = 2")
        .listener("deny = [\"127.0.0.3\", \"192.0.2.0/24\"]")
        .listener("trusted_peers = [\"127.0.0.8\"]")
        .frontend("all", "hostname = \"inner\", allow = [\"127.0.0.5\", \"10.0.0.0/8\"]")
        .start();
    connect_from([127, 0, 0, 3], proxy.address()).expect_closed();
    assert_eq!(proxy.counter("listener.sources_refused"), 1);
    let status = |source, request: &str| {
        let mut client = connect_from(source, proxy.address());
        client.send(request);
        client.response().status()
    };
    assert_eq!(status([127, 0, 0, 4], &from("192.0.2.1", "")), 200, "it is not believed");
    assert_eq!(status([127, 0, 0, 8], &from("192.0.2.1", "")), 403);
    assert_eq!(status([127, 0, 0, 8], &from("192.0.2.1, 198.51.100.1", "")), 200);
    let inner = |client: &str| from(client, "").replace("Host: a", "Host: inner");
    assert_eq!(status([127, 0, 0, 5], &inner("192.0.2.1")), 200);
    assert_eq!(status([127, 0, 0, 4], &inner("10.1.1.1")), 403);
    assert_eq!(status([127, 0, 0, 8], &inner("10.1.1.1")), 200);
    assert_eq!(proxy.counter("answers.source_refused"), 2);

    let proxy =
        Config::to(&backend).listener("expect_proxy = true").listener("deny = [\"203.0.113.0/24\"]").start();
    for (named, expected) in [("203.0.113.7", 403), ("198.51.100.7", 200)] {
        let mut client = proxy.client();
        client.send(format!("PROXY TCP4 {named} 198.51.100.1 4711 443\r\n{GET}"));
        assert_eq!(client.response().status(), expected, "{named}");
    }
}

#[test]
fn the_largest_body_is_that_of_the_frontend_or_the_cluster_or_the_listener() {
    let backend = Backend::respond(OK);
    // Small bodies come with their head, large ones behind it.
    for unit in [1, 2_000] {
        let proxy = Config::new()
            .listener(&format!("max_body_size = {}", 100 * unit))
            .frontend("plain", "hostname = \"listener\"")
            .frontend("own", "hostname = \"cluster\"")
            .frontend("own", &format!("hostname = \"more\", max_body_size = {}", 300 * unit))
            .frontend("own", &format!("hostname = \"less\", max_body_size = {}", 50 * unit))
            .frontend("own", "hostname = \"any\", max_body_size = 0")
            .cluster("own", &format!("max_body_size = {}", 200 * unit))
            .backend("plain", &backend)
            .backend("own", &backend)
            .start();
        let post = |host: &str, size: usize| {
            let body = "x".repeat(size);
            let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\n");
            let whole = answer(&proxy, &format!("{head}Content-Length: {size}\r\n\r\n{body}")).status();
            let chunks = format!("{size:x}\r\n{body}\r\n0\r\n\r\n");
            let chunked =
                answer(&proxy, &format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}")).status();
            assert_eq!(chunked, whole, "{host} {size}");
            whole
        };
        for (host, most) in [("listener", 100), ("cluster", 200), ("more", 300), ("less", 50)] {
            let most = most * unit;
            assert_eq!((post(host, most), post(host, most + 1)), (200, 413), "{host} {most}");
        }
        assert_eq!(post("any", 400 * unit), 200);
    }
}

#[test]
fn those_that_are_idle_longest_make_room_for_new_connections() {
    let (slow, answer) = Backend::slow();
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root("max_connections = 300")
        .root("evict_on_queue_full = true")
        .frontend("slow", "hostname = \"slow\"")
        .backend("slow", &slow)
        .start();
    // The oldest of all waits for its answer.
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: slow\r\n\r\n");
    slow.wait_for_requests(1);
    let mut old = held(&proxy, 99);
    let mut young = held(&proxy, 200);
    proxy.wait_for_counter("client.connections", 300);
    assert_eq!(proxy.counter("client.evicted"), 0, "nobody waits yet");
    // Each pass makes room for three.
    let mut more = held(&proxy, 9);
    let evicted = proxy.counter("client.evicted");
    assert!((9..=12).contains(&evicted), "{evicted}");
    more.iter_mut().chain(&mut young).for_each(ask);
    let is_gone = |client: &mut Client| !client.try_send(GET.as_bytes()) || client.try_response().is_err();
    let gone = old.iter_mut().filter_map(|client| is_gone(client).then_some(())).count();
    assert_eq!(gone as u64, evicted, "all of them were among the oldest");
    answer.send(()).unwrap();
    assert_eq!(busy.response().status(), 200);
}

#[test]
fn in_an_overload_first_requests_are_refused_new_connections_wait_and_others_go_on() {
    // Each request takes the worker long: a long path that is held against many expressions, none of which it matches.
    let rules = (0..200).map(|n| format!("hostname = \"a\", path_type = \"REGEX\", path = \"/(a|b)*c{n}\""));
    let config = Config::new().root("overload_delay = 0.002");
    let proxy = rules.fold(config, |config, rule| config.frontend("slow", &rule)).start();
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(8_000));
    let mut young: Vec<_> = (0..24).map(|_| proxy.client()).collect();
    proxy.wait_for_counter("client.connections", 24);
    let stop = Arc::<AtomicUsize>::default();
    let mut served: Vec<_> = (0..16).map(|_| proxy.client()).collect();
    for client in &mut served {
        client.patience(Duration::from_secs(30)).send(GET);
        client.response().expect_answer(404, "no_route");
    }
    let busy: Vec<_> = served
        .into_iter()
        .map(|mut client| {
            let (stop, request) = (Arc::clone(&stop), request.clone());
            thread::spawn(move || {
                while stop.load(SeqCst) == 0 {
                    client.send(&request);
                    client.response().expect_answer(404, "no_route");
                }
            })
        })
        .collect();
    let mut late = Vec::new();
    wait::within(Duration::from_secs(20), "an overload", || {
        late.push(proxy.client());
        (proxy.counter("listener.overload_paused") > 0).then_some(())
    });
    // Where the machine is busy with other things it ends for a moment now and then: what comes in that moment is served.
    wait::within(Duration::from_secs(20), "a first request that is refused", || {
        let mut client = young.pop().expect("one more");
        client.send(GET);
        let answer = client.response();
        if answer.status() == 404 {
            return None;
        }
        answer.expect_answer(503, "overloaded");
        assert_eq!((answer.field("Retry-After"), answer.field("Connection")), (Some("1"), Some("close")));
        client.expect_closed();
        Some(())
    });
    let mut waiting = wait::within(Duration::from_secs(20), "a connection that is not accepted", || {
        let accepted = proxy.counter("listener.accepted");
        let mut client = proxy.client();
        client.patience(Duration::from_millis(300)).send(GET);
        let answer = client.try_response();
        let is_served = answer.is_ok_and(|answer| matches!(answer.status(), 404 | 503));
        (!is_served && proxy.counter("listener.accepted") == accepted).then_some(client)
    });
    waiting.patience(wait::SOON);
    stop.store(1, SeqCst);
    busy.into_iter().for_each(|client| client.join().expect("every request is answered"));
    // Served, or refused, should it have been accepted before the last of the overload was over.
    assert!(matches!(waiting.response().status(), 404 | 503));
}

#[test]
fn a_flood_of_keys_frees_none_that_is_busy_and_walks_around_nothing() {
    let backend = Backend::respond(OK);
    let proxy = behind(&backend)
        .root("table_size = 1024")
        .cluster("all", "rate_limits = [{ key = \"header:X-User\", rate = 1, per = \"1h\", burst = 0 }]")
        .start();
    let user = |name: &str| from("192.0.2.1", &format!("X-User: {name}\r\n"));
    assert_eq!(through(&proxy, &user("first")), 1);
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    let before: u64 = proxy.workers().iter().map(|worker| worker.resident()).sum();
    let mut admitted = 0;
    for round in 0..2_000 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(user(&format!("{n}-{round}")));
            admitted += usize::from(client.response().status() == 200);
        }
    }
    assert!((700..=769).contains(&admitted), "{admitted} of 8,000 keys, with room for 768");
    assert_eq!(through(&proxy, &user("first")), 0, "it is known still");
    let after: u64 = proxy.workers().iter().map(|worker| worker.resident()).sum();
    assert!(after < before + (4 << 20), "{before} {after}");
}

#[test]
fn who_asks_too_often_costs_others_nothing() {
    let backend = Backend::respond(OK);
    let limits = "rate_limits = [{ rate = 200, burst = 10 }]\nmax_connections_per_ip = 8";
    let proxy = Config::to(&backend).root("worker_count = 2").cluster("all", limits).start();
    let stop = Arc::<AtomicUsize>::default();
    let address = proxy.address();
    let greedy: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut refused = 0;
                while stop.load(SeqCst) == 0 {
                    let mut clients: Vec<_> =
                        (0..4).map(|_| connect_from([127, 0, 0, 66], address)).collect();
                    clients.iter_mut().for_each(|client| client.send(GET));
                    refused += clients
                        .iter_mut()
                        .map(|client| usize::from(client.response().status() == 429))
                        .sum::<usize>();
                }
                refused
            })
        })
        .collect();
    let mut honest: Vec<_> = (1..5).map(|n| connect_from([127, 0, 0, n], address)).collect();
    for _ in 0..40 {
        honest.iter_mut().for_each(ask);
        wait::pace(Duration::from_millis(20));
    }
    stop.store(1, SeqCst);
    let refused: usize = greedy.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_file_that_says_what_cannot_be_is_refused() {
    let backend = Backend::respond(OK);
    let refuses = |line: &str, expected: &str| {
        let config = Config::to(&backend).cluster("all", line);
        let (status, said) = Proxy::start_failing(&config);
        assert!(!status.success() && said.contains(expected), "{line}: {said}");
    };
    refuses("rate_limits = [{ key = \"source\" }]", "`rate`");
    refuses("rate_limits = [{ rate = 0 }]", "`rate` must be an integer from 1");
    refuses("rate_limits = [{ rate = 1, key = \"header:a b\" }]", "`header:NAME`");
    refuses("rate_limits = [{ rate = 1, status = 200 }]", "from 400 to 599");
    refuses("rate_limits = [{ rate = 1, exempt = [\"10.0.0.0/33\"] }]", "networks");
    let many = vec!["{ rate = 1 }"; 17].join(", ");
    refuses(&format!("rate_limits = [{many}]"), "16 rate limits");
}
