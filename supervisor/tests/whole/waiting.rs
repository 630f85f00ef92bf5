//! Who only waits costs nothing: no computing time, and no thread of the kernel, whatever the peer's connection looks like
//! meanwhile, and whatever the worker may use of io_uring.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    sync::LazyLock,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::{Backend, Caller, Config, Conn, GET, Issued, Pki, Process, Proxy, wait};

const MIB: usize = 1 << 20;
/// How many peers wait at once: a thread for each of them would show.
const PEERS: usize = 24;
/// How long they are looked at.
const LOOK: Duration = Duration::from_millis(400);
/// What so many peers may cost in that time: an eighth of a core, where one that is asked for again and again takes all of it.
const MOST_TIME: Duration = Duration::from_millis(50);
/// The worker's own, and those that the kernel keeps for a ring.
const MOST_THREADS: usize = 8;

/// How an exchange waits, by the target of its request.
const WAITS: [(&str, &str); 6] = [
    ("/head", "for the head of the response"),
    ("/part", "for the rest of a small response"),
    ("/large", "for the rest of a large response"),
    ("/length", "for the client to take a response with a length"),
    ("/chunks", "for the client to take a chunked response"),
    ("/until-close", "for the client to take a response without a length"),
];

fn answer(conn: &mut Conn) {
    // Made once: a hundred of them at once are gigabytes.
    static PAGE: LazyLock<Vec<u8>> = LazyLock::new(|| vec![b'x'; 32 * MIB]);
    static CHUNKS: LazyLock<Vec<u8>> = LazyLock::new(|| crate::harness::chunks(&PAGE, 16_000));
    let Some(request) = conn.request() else { return };
    match request.target() {
        "/part" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"),
        "/large" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\nab"),
        "/length" => {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PAGE.len()));
            conn.send(&*PAGE)
        }
        "/chunks" => {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            conn.send(&*CHUNKS)
        }
        "/until-close" => conn.send("HTTP/1.1 200 OK\r\n\r\n") && conn.send(&*PAGE),
        _ => true,
    };
    conn.rest();
}

/// A connection with a small buffer to receive into, so that what is sent to it soon waits.
fn connect(proxy: &Proxy) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16_384).unwrap();
    socket.connect(&proxy.address().into()).unwrap();
    OwnedFd::from(socket).into()
}

/// Fails unless the worker rests.
#[track_caller]
fn expect_rest(worker: Process, what: &str) {
    // What the peers have begun takes its time, on a busy machine too.
    let mut used = Duration::MAX;
    for _ in 0..10 {
        let before = worker.cpu_time();
        wait::pace(LOOK);
        used = worker.cpu_time() - before;
        if used <= MOST_TIME {
            break;
        }
    }
    assert!(used <= MOST_TIME, "{what}: {PEERS} peers took {used:?} in {LOOK:?}");
    let threads: usize = worker.status("Threads").unwrap().parse().unwrap();
    assert!(threads <= MOST_THREADS, "{what}: {threads} threads");
}

/// Carries `check` out where waits end with the first event, where they go on, and with all that the kernel has.
fn each_level(check: impl Fn(&str, &dyn Fn(Config) -> Config)) {
    for level in [0, 2, 4] {
        let at_level = |config: Config| config.environment("KAKEHI_IO_URING_LEVEL", &level.to_string());
        check(&format!("level {level}"), &at_level);
    }
}

/// A proxy that tunnels what comes to a backend of the test's own.
fn tunnels(at_level: &dyn Fn(Config) -> Config) -> (Proxy, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap().to_string();
    let config = Config::new()
        .listener(r#"protocol = "tcp""#)
        .cluster("web", r#"protocol = "tcp""#)
        .frontend("web", "")
        .backend_at("web", &backend, "");
    (at_level(config).start(), listener)
}

/// Clients that say that they send no more, before or after the worker has begun to wait.
fn half_closed_clients(issued: Option<&Issued>, caller: Option<&Caller>) {
    each_level(|level, at_level| {
        let backend = Backend::script(answer);
        let config = at_level(Config::to(&backend));
        let proxy = issued.map_or_else(|| config.clone(), |issued| config.clone().https(issued)).start();
        let mut answered = 0;
        for (target, wait) in WAITS {
            let mut clients = Vec::new();
            for number in 0..PEERS {
                let tcp = connect(&proxy);
                let twin = tcp.try_clone().unwrap();
                let mut client = match caller {
                    Some(caller) => caller.over(tcp).unwrap(),
                    None => crate::harness::Client::of(tcp),
                };
                client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
                if number % 2 == 0 {
                    twin.shutdown(Shutdown::Write).unwrap();
                }
                clients.push((client, twin));
            }
            answered += PEERS;
            backend.wait_for_requests(answered);
            wait::pace(Duration::from_millis(50));
            for (_, twin) in clients.iter().skip(1).step_by(2) {
                twin.shutdown(Shutdown::Write).unwrap();
            }
            expect_rest(proxy.worker(), &format!("{level}, half-closed, waiting {wait}"));
            // Nobody was given up for that.
            assert_eq!(proxy.counter("client.connections"), PEERS as u64, "{level}, waiting {wait}");
            for (client, _) in clients {
                client.reset();
            }
            proxy.wait_for_counter("client.connections", 0);
        }
    });
}

#[test]
fn clients_that_send_no_more_cost_nothing_while_they_wait() {
    half_closed_clients(None, None);
}

#[test]
fn clients_that_send_no_more_cost_nothing_while_they_wait_with_tls() {
    let pki = Pki::new();
    half_closed_clients(Some(&pki.issue(&["a"])), Some(&pki.caller()));
}

#[test]
fn backends_that_send_no_more_cost_nothing_while_they_take_no_more() {
    each_level(|level, at_level| {
        for framing in ["Content-Length: 33554432", "Transfer-Encoding: chunked"] {
            let backend = Backend::script(|conn| {
                conn.head();
                conn.half_close();
                // It reads nothing, for longer than it is looked at.
                wait::pace(10 * LOOK + Duration::from_secs(4));
            });
            let proxy = at_level(Config::to(&backend)).start();
            let clients: Vec<_> = (0..PEERS)
                .map(|_| {
                    let mut client = connect(&proxy);
                    client.set_nonblocking(true).unwrap();
                    write!(client, "POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").unwrap();
                    let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
                    while client.write(piece.as_bytes()).is_ok() {}
                    client
                })
                .collect();
            expect_rest(proxy.worker(), &format!("{level}, {framing}"));
            drop(clients);
        }
    });
}

#[test]
fn both_ends_of_a_tunnel_may_send_no_more_and_take_nothing() {
    each_level(|level, at_level| {
        let (proxy, listener) = tunnels(at_level);
        let mut ends = Vec::new();
        for number in 0..PEERS {
            let mut pair = [connect(&proxy), listener.accept().unwrap().0];
            let silent = number % 2;
            // One end sends until nothing more goes, to one that takes nothing, and sends no more.
            pair[silent].shutdown(Shutdown::Write).unwrap();
            pair[1 - silent].set_nonblocking(true).unwrap();
            while pair[1 - silent].write(&[b'x'; 65_536]).is_ok() {}
            ends.push(pair);
        }
        expect_rest(proxy.worker(), &format!("{level}, a tunnel"));
        assert_eq!(proxy.counter("client.connections"), PEERS as u64, "{level}");
    });
}

#[test]
fn urgent_data_is_data() {
    each_level(|level, at_level| {
        let backend = Backend::script(|conn| {
            while let Some(request) = conn.request() {
                let body = request.body.clone();
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
                conn.send(&body);
            }
        });
        let proxy = at_level(Config::to(&backend)).start();
        let urgent = |client: &TcpStream, byte: &[u8]| {
            assert_eq!(SockRef::from(&client.as_fd()).send_out_of_band(byte).unwrap(), 1);
        };
        // Before a request, in its head, and in its body, however that is moved.
        let size = MIB;
        for (case, begin) in [
            ("alone", String::new()),
            ("in a head", "GET / HTTP/1.1\r\nHost: a\r\nX: ".to_owned()),
            ("in a small body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx".to_owned()),
            (
                "in a large body",
                format!(
                    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{}",
                    "x".repeat(size / 4)
                ),
            ),
        ] {
            let clients: Vec<_> = (0..PEERS)
                .map(|_| {
                    let mut client = TcpStream::connect(proxy.address()).unwrap();
                    client.write_all(begin.as_bytes()).unwrap();
                    client
                })
                .collect();
            wait::until("all of them", || proxy.counter("client.connections") >= PEERS as u64);
            wait::pace(Duration::from_millis(50));
            for mut client in &clients {
                urgent(client, b"!");
                if case == "in a large body" {
                    client.write_all("y".repeat(1_000).as_bytes()).unwrap();
                }
            }
            expect_rest(proxy.worker(), &format!("{level}, urgent data {case}"));
            drop(clients);
            proxy.wait_for_counter("client.connections", 0);
        }
        // Nothing of a body is lost to it.
        let mut tcp = TcpStream::connect(proxy.address()).unwrap();
        let sender = tcp.try_clone().unwrap();
        write!(tcp, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n").unwrap();
        tcp.write_all(&vec![b'x'; size / 2]).unwrap();
        urgent(&sender, b"!");
        tcp.write_all(&vec![b'y'; size / 2 - 1]).unwrap();
        let mut client = crate::harness::Client::of(tcp);
        let body = client.response().body;
        assert_eq!((body.len(), body[size / 2]), (size, b'!'), "{level}");
        client.send(GET);
        assert_eq!(client.response().status(), 200, "{level}");
    });
}

#[test]
fn a_side_of_a_tunnel_that_has_finished_and_is_gone_ends_the_tunnel() {
    each_level(|level, at_level| {
        let (proxy, listener) = tunnels(at_level);
        for gone in [0, 1] {
            let pair = [TcpStream::connect(proxy.address()).unwrap(), listener.accept().unwrap().0];
            pair[gone].shutdown(Shutdown::Write).unwrap();
            // The other one has heard of that, and says nothing.
            assert_eq!((&pair[1 - gone]).read(&mut [0]).unwrap(), 0, "{level}");
            let [client, backend] = pair;
            let (ends, stays) = if gone == 0 { (client, backend) } else { (backend, client) };
            SockRef::from(&ends).set_linger(Some(Duration::ZERO)).unwrap();
            drop(ends);
            proxy.wait_for_counter("client.connections", 0);
            drop(stays);
        }
    });
}

#[test]
fn who_takes_nothing_costs_little_memory_whatever_a_receive_may_bring() {
    const READERS: usize = 100;
    /// Beside two small buffers each, what the allocator keeps for later.
    const MOST_KIB: u64 = READERS as u64 * 64 + 24 * 1_024;
    for level in 0..=4 {
        let backend = Backend::script(answer);
        let config = Config::to(&backend).environment("KAKEHI_IO_URING_LEVEL", &level.to_string());
        let proxy = config.start();
        let before = proxy.worker().resident();
        let clients: Vec<_> = (0..READERS)
            .map(|_| {
                let mut client = connect(&proxy);
                client.write_all(b"GET /chunks HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                client
            })
            .collect();
        backend.wait_for_requests(READERS);
        // Until no more goes into it.
        wait::pace(Duration::from_millis(1_500));
        let more = proxy.worker().resident().saturating_sub(before) / 1_024;
        assert!(more <= MOST_KIB, "level {level}: {more} KiB for {READERS} readers");
        drop(clients);
    }
}
