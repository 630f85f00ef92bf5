//! A flood of handshakes or of connections, or a large reload, stalls nobody: heavy work is admitted for about a millisecond
//! per turn of the loop, and established clients are served in between.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::harness::{
    Backend, Client, Config, GET, Issued, OK, Pki, Proxy, ask, get, send_signal, setting, wait,
};

/// ClientHellos that come at once.
const FLOOD: usize = 1_000;
/// One request of an honest client in each such time.
const EVERY: Duration = Duration::from_millis(10);
/// How much more than in quiet the slowest request of an honest client may take under a flood, beside whatever else a shared
/// machine does (ms); `KAKEHI_GREEDY_STALL_MS` demands less. Without admission it is 160 ms (P-256) and 550 ms (RSA-2048) at best.
const MORE_MS: u64 = 40;
/// The same of a large reload, for which nothing else is promised than that it is divided. In one piece it is 200 ms.
const MORE_AT_RELOAD: Duration = Duration::from_millis(40);
/// A machine that does something else meanwhile makes a measurement worse, never better: the best of so many counts, in
/// quiet and under the flood.
const ATTEMPTS: usize = 12;

/// An established client with a request every 10 ms.
struct Honest {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Duration>>,
}

impl Honest {
    fn begin(mut client: Client) -> Honest {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let asking = thread::spawn(move || {
            let mut times = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let began = Instant::now();
                ask(&mut client);
                times.push(began.elapsed());
                wait::pace(EVERY.saturating_sub(began.elapsed()));
            }
            times
        });
        Honest { stop, asking }
    }

    /// The slowest request.
    fn end(self) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        self.asking.join().expect("every request was answered").into_iter().max().unwrap_or_default()
    }
}

/// How slow the slowest requests of one client in clear text and one over TLS are while something happens.
fn slowest_while(proxy: &Proxy, pki: &Pki, happening: impl FnOnce()) -> Duration {
    let honest = [proxy.client(), pki.caller().connect(proxy.address_of(1))].map(Honest::begin);
    happening();
    honest.map(Honest::end).into_iter().max().unwrap_or_default()
}

/// In clear text on the first listener, TLS on the second.
fn config(backend: &Backend, issued: &Issued) -> Config {
    Config::to(backend).another_listener().https(issued).listener("handshake_timeout = 20").frontend_on(
        1,
        "all",
        r#"hostname = "*""#,
    )
}

/// Connections that have said nothing yet and are accepted.
fn connections(proxy: &Proxy, address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let before = proxy.counter("listener.accepted");
    let connections: Vec<_> =
        (0..count).map(|_| TcpStream::connect(address).expect("a connection")).collect();
    proxy.wait_for_counter("listener.accepted", before + count as u64);
    connections
}

fn flood(proxy: &Proxy, pki: &Pki) -> (Duration, Duration) {
    let quiet = slowest_while(proxy, pki, || wait::pace(Duration::from_millis(500)));
    let hello = pki.caller().hello();
    let mut greedy = connections(proxy, proxy.address_of(1), FLOOD);
    let flooded = slowest_while(proxy, pki, || {
        for connection in &mut greedy {
            connection.write_all(&hello).expect("a hello is small");
        }
        // Each is answered.
        for connection in &mut greedy {
            connection.set_read_timeout(Some(Duration::from_secs(20))).expect("SO_RCVTIMEO");
            let mut answer = [0];
            connection.read_exact(&mut answer).expect("an answer");
            assert_eq!(answer, [22], "a record of the handshake");
        }
    });
    (quiet, flooded)
}

#[track_caller]
fn expect_no_stall(proxy: &Proxy, pki: &Pki, what: &str) {
    let mut best = (Duration::MAX, Duration::MAX);
    let held = (0..ATTEMPTS).any(|_| {
        let (quiet, flooded) = flood(proxy, pki);
        println!("{what}: quiet {quiet:?}, under the flood {flooded:?}");
        best = (best.0.min(quiet), best.1.min(flooded));
        best.1 <= best.0 + Duration::from_millis(setting("KAKEHI_GREEDY_STALL_MS", MORE_MS))
    });
    assert!(held, "{what}: slowest in quiet and under the flood, at best: {best:?}");
    // Else nothing had to wait, and the flood was none.
    wait::until("work that had to wait", || proxy.counter("ring.deferred") > 0);
    // And whoever wants to come in gets in.
    ask(&mut pki.caller().connect(proxy.address_of(1)));
}

#[test]
fn established_clients_do_not_notice_a_thousand_handshakes_of_p256() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    expect_no_stall(&config(&backend, &pki.issue(&["a"])).start(), &pki, "P-256");
}

#[test]
fn established_clients_do_not_notice_a_thousand_handshakes_of_rsa() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    expect_no_stall(&config(&backend, &pki.issue_rsa(&["a"])).start(), &pki, "RSA-2048");
}

#[test]
fn a_thousand_connections_that_come_at_once_are_begun_in_many_turns() {
    // Of 40 us each, a millisecond of them per turn.
    const TURNS: u64 = FLOOD as u64 / 25;
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = config(&backend, &pki.issue(&["a"])).start();
    let mut established = proxy.client();
    ask(&mut established);
    let before = ["listener.accepted", "ring.deferred"].map(|name| proxy.counter(name));
    // They all wait when the worker looks.
    send_signal(proxy.worker(), Signal::SIGSTOP);
    let mut greedy: Vec<_> = (0..FLOOD).map(|_| proxy.client()).collect();
    established.send(GET);
    send_signal(proxy.worker(), Signal::SIGCONT);
    established.response().expect(200, "ok");
    proxy.wait_for_counter("listener.accepted", before[0] + FLOOD as u64);
    wait::until("turns that were full", || proxy.counter("ring.deferred") >= before[1] + TURNS / 2);
    greedy.iter_mut().for_each(ask);
}

/// Connects from another address of the loopback.
fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("an address of the loopback");
    socket.connect(&address.into()).expect("a connection");
    socket.into()
}

#[test]
fn handshakes_beyond_max_handshakes_wait_and_one_source_cannot_take_all_places() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"]))
        .root("max_handshakes = 8")
        .listener("handshake_timeout = 3")
        .start();
    let hello = pki.caller().hello();
    // Of one source a quarter: two. The others wait, and time out as these do.
    let mut greedy = connections(&proxy, proxy.address(), 20);
    for connection in &mut greedy {
        connection.write_all(&hello).expect("a hello is small");
    }
    proxy.wait_for_counter("tls.handshakes_deferred", 18);
    let began = Instant::now();
    for last in 2..6 {
        let tcp = connect_from(Ipv4Addr::new(127, 0, 0, last), proxy.address());
        ask(&mut pki.caller().over(tcp).expect("a handshake"));
    }
    assert!(began.elapsed() < Duration::from_millis(2_500), "honest handshakes waited for greedy ones");
    let answered = greedy
        .iter()
        .filter(|connection| {
            connection.set_nonblocking(true).expect("O_NONBLOCK");
            connection.peek(&mut [0]).is_ok_and(|length| length > 0)
        })
        .count();
    assert_eq!(answered, 2, "greedy handshakes under way");
    proxy.wait_for_counter("tls.handshake.failed.timeout", 20);
    // The places are free again.
    ask(&mut pki.caller().connect(proxy.address()));
}

#[test]
fn a_reload_of_twenty_thousand_frontends_stalls_nobody() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let small = config(&backend, &pki.issue(&["a"]));
    let proxy = small.clone().start();
    let addresses = [proxy.address(), proxy.address_of(1)];
    let reload = |text: String| {
        std::fs::write(proxy.folder().join("kakehi.toml"), text).expect("a file");
        let output = proxy.ctl(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    };
    let large = (0..20_000).fold(small.clone(), |config, n| {
        config.frontend(&format!("c{}", n / 20), &format!(r#"hostname = "h{n}.test", path = "/x{}""#, n % 7))
    });
    let (small, large) = (small.text(&addresses), large.text(&addresses));
    let mut best = (Duration::MAX, Duration::MAX);
    let held = (0..ATTEMPTS).any(|_| {
        let quiet = slowest_while(&proxy, &pki, || wait::pace(Duration::from_millis(500)));
        let reloading = slowest_while(&proxy, &pki, || reload(large.clone()));
        get(&proxy, "h19999.test", "/x0").expect_answer(503, "no_backend");
        let back = slowest_while(&proxy, &pki, || reload(small.clone()));
        println!("reload: quiet {quiet:?}, there {reloading:?}, back {back:?}");
        best = (best.0.min(quiet), best.1.min(reloading.max(back)));
        best.1 <= best.0 + MORE_AT_RELOAD
    });
    assert!(held, "slowest in quiet and at a large reload, at best: {best:?}");
}
