//! One socket has two users: a request's body and its response flow at the same time, at any pace and in either order of
//! their ends, and every byte of both arrives.
//!
//! Sizes, pieces, pauses and framing are random. `KAKEHI_DUPLEX_SEED` repeats what a failure prints;
//! `KAKEHI_DUPLEX_ROUNDS` makes each test so many rounds long, with bodies of up to 64 MiB (`scripts/test --long`).

use std::{
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::harness::{
    Caller, Config, Dice, Pki, Proxy, Stream,
    flow::{self, Body, Fate, Mirror, Order, Plan, Range, Seen},
    setting,
};

const MIB: usize = 1 << 20;
/// How long the random rounds of one test take in an ordinary run.
const SHORT: Duration = Duration::from_secs(2);

/// Clients at once, and exchanges of each, where many meet.
const CLIENTS: usize = 40;
const EXCHANGES: usize = 8;

/// How a client reaches the proxy.
#[derive(Clone)]
enum Front {
    Clear,
    Tls(Box<Caller>),
}

impl Front {
    fn connect(&self, proxy: &Proxy) -> Stream {
        match self {
            Front::Clear => flow::plain(proxy.address()),
            Front::Tls(caller) => {
                let tcp = TcpStream::connect(proxy.address()).expect("a connection to the proxy");
                caller.stream(tcp).expect("a handshake with the proxy")
            }
        }
    }
}

/// A proxy between clients and a backend that follow plans.
struct Bench {
    proxy: Proxy,
    mirror: Mirror,
    front: Front,
    connection: Option<Stream>,
    next: usize,
    _pki: Pki,
    _folder: tempfile::TempDir,
}

/// Which of both sides speaks what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Clear,
    Tls,
    Unix,
}

impl Bench {
    fn new(front: Side, back: Side, level: Option<u8>) -> Bench {
        let pki = Pki::new();
        let folder = tempfile::tempdir().expect("a folder");
        let mirror = match back {
            Side::Clear => Mirror::tcp(None),
            Side::Tls => Mirror::tcp(Some(&pki.server(&["localhost"]))),
            Side::Unix => Mirror::unix(&folder.path().join("backend.sock")),
        };
        let mut config = Config::new().frontend("all", r#"hostname = "*""#);
        config = config.backend_at("all", mirror.address(), "");
        if back == Side::Tls {
            let keys = format!("backend_tls = {{ {}, server_name = \"localhost\" }}", pki.ca("ca"));
            config = config.cluster("all", &keys);
        }
        let mut client = Front::Clear;
        if front == Side::Tls {
            config = config.https(&pki.issue(&["a"]));
            client = Front::Tls(Box::new(pki.caller()));
        }
        if let Some(level) = level {
            config = config.environment("KAKEHI_IO_URING_LEVEL", &level.to_string());
        }
        let proxy = config.start();
        Bench { proxy, mirror, front: client, connection: None, next: 0, _pki: pki, _folder: folder }
    }

    /// One exchange, on the connection of the one before where that goes on; what client and backend saw.
    #[track_caller]
    fn exchange(&mut self, plan: &Plan) -> [Seen; 2] {
        let number = self.next;
        self.next += 1;
        self.mirror.expect(number, plan);
        let mut connection = self.connection.take().unwrap_or_else(|| self.front.connect(&self.proxy));
        let client = flow::call(&mut connection, plan, number);
        let closes = client.head.contains("\r\nconnection: close\r\n") || plan.order == Order::ResponseFirst;
        if !closes && client.fate == Fate::Whole {
            self.connection = Some(connection);
        } else {
            // The backend may wait for the rest of an upload that nobody sends.
            drop(connection);
        }
        [client, self.mirror.seen(number)]
    }

    /// Fails unless all of it arrived on both sides.
    #[track_caller]
    fn check(&mut self, plan: &Plan, what: &str) {
        let [client, backend] = self.exchange(plan);
        assert_eq!(client.fate, Fate::Whole, "the response: {what}: {plan:?}");
        // What comes behind a complete response need not be sent on.
        if plan.order == Order::UploadFirst {
            assert_eq!(backend.fate, Fate::Whole, "the request: {what}: {plan:?}");
        }
    }

    /// Random exchanges: as many as were asked for, or as fit into `short`, but some at any rate.
    #[track_caller]
    fn rounds(&mut self, short: Duration) {
        let rounds = setting("KAKEHI_DUPLEX_ROUNDS", 0);
        let long = rounds > 0;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = setting("KAKEHI_DUPLEX_SEED", now.as_nanos() as u64);
        let begin = Instant::now();
        let mut round = 0;
        while if long { round < rounds } else { round < 4 || begin.elapsed() < short } {
            let round_seed = seed.wrapping_add(round);
            let mut dice = Dice::new(round_seed);
            let large = long && dice.once_in(20);
            let range = Range {
                size: if large { 64 * MIB } else { 6 * MIB },
                pause: Duration::from_millis(if long && dice.once_in(10) { 1_600 } else { 60 }),
            };
            let plan = Plan::random(&mut dice, range);
            let before = Instant::now();
            self.check(&plan, &format!("KAKEHI_DUPLEX_SEED={round_seed} (round {round})"));
            if before.elapsed() > Duration::from_secs(1) {
                eprintln!("KAKEHI_DUPLEX_SEED={round_seed} took {:?}: {plan:?}", before.elapsed());
            }
            round += 1;
        }
        self.end();
    }

    /// Nothing may be left of all that, and nothing may have died.
    #[track_caller]
    fn end(&mut self) {
        self.connection = None;
        self.proxy.wait_for_counter("client.connections", 0);
        assert_eq!(self.proxy.counter("worker.restarts"), 0);
    }
}

#[test]
fn every_byte_arrives_both_ways_in_clear_text() {
    Bench::new(Side::Clear, Side::Clear, None).rounds(SHORT);
}

#[test]
fn every_byte_arrives_both_ways_from_a_client_with_tls() {
    Bench::new(Side::Tls, Side::Clear, None).rounds(SHORT);
}

#[test]
fn every_byte_arrives_both_ways_from_a_backend_with_tls() {
    Bench::new(Side::Clear, Side::Tls, None).rounds(SHORT);
}

#[test]
fn every_byte_arrives_both_ways_with_tls_on_both_sides() {
    Bench::new(Side::Tls, Side::Tls, None).rounds(SHORT);
}

#[test]
fn every_byte_arrives_both_ways_from_a_backend_on_a_unix_socket() {
    Bench::new(Side::Clear, Side::Unix, None).rounds(SHORT);
}

#[test]
fn every_byte_arrives_both_ways_from_a_unix_socket_to_a_client_with_tls() {
    Bench::new(Side::Tls, Side::Unix, None).rounds(SHORT);
}

#[test]
fn every_byte_arrives_both_ways_at_every_level_of_io_uring() {
    for level in 0..=4 {
        eprintln!("level {level}");
        Bench::new(Side::Clear, Side::Clear, Some(level)).rounds(SHORT / 4);
    }
}

#[test]
fn every_byte_arrives_both_ways_with_tls_at_every_level_of_io_uring() {
    for level in 0..=4 {
        eprintln!("level {level}");
        Bench::new(Side::Tls, Side::Tls, Some(level)).rounds(SHORT / 4);
    }
}

#[test]
fn a_chunked_response_beside_a_large_upload_with_a_length_arrives_whole() {
    let mut bench = Bench::new(Side::Clear, Side::Clear, None);
    for order in [Order::UploadFirst, Order::ResponseFirst] {
        let plan = Plan {
            up: Body { place: 7, ..Body::of(8 * MIB) },
            down: Body { chunked: true, ..Body::of(13 * MIB / 2) },
            order,
            answer_after: 256 * 1024,
        };
        bench.check(&plan, &format!("{order:?}"));
    }
    bench.end();
}

#[test]
fn a_client_that_pauses_in_the_middle_of_both_bodies_gets_all_of_the_response() {
    for (front, back) in [(Side::Clear, Side::Clear), (Side::Tls, Side::Clear), (Side::Clear, Side::Unix)] {
        let mut bench = Bench::new(front, back, None);
        let pause = Duration::from_millis(1_500);
        let plan = Plan {
            up: Body { send_pauses: vec![(MIB, pause / 2)], ..Body::of(4 * MIB) },
            down: Body { place: 9, receive_pauses: vec![(3 * MIB, pause)], ..Body::of(30 * MIB) },
            order: Order::UploadFirst,
            answer_after: 0,
        };
        bench.check(&plan, "a pause");
        bench.end();
    }
}

#[test]
fn a_backend_that_pauses_in_the_middle_of_both_bodies_gets_all_of_the_request() {
    for (front, back) in [(Side::Clear, Side::Clear), (Side::Tls, Side::Clear), (Side::Clear, Side::Unix)] {
        let mut bench = Bench::new(front, back, None);
        let pause = Duration::from_millis(1_500);
        let plan = Plan {
            up: Body { receive_pauses: vec![(3 * MIB, pause)], ..Body::of(30 * MIB) },
            down: Body { place: 9, send_pauses: vec![(MIB, pause / 2)], ..Body::of(4 * MIB) },
            order: Order::UploadFirst,
            answer_after: 0,
        };
        bench.check(&plan, "a pause");
        bench.end();
    }
}

#[test]
fn uploads_of_many_clients_go_on_beside_responses_that_watch_them() {
    // Each pause is long enough that the response has begun to watch its client when the next piece ends that.
    let bench = Bench::new(Side::Clear, Side::Clear, None);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for _ in 0..EXCHANGES {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let mut dice = Dice::new(number as u64);
                    let [up, down] = [(); 2].map(|()| {
                        let pauses = (0..12)
                            .map(|_| (dice.below(MIB), Duration::from_millis(11 + dice.below(6) as u64)));
                        let mut send_pauses: Vec<_> = pauses.collect();
                        send_pauses.sort_unstable();
                        Body { send_pauses, ..Body::of(MIB) }
                    });
                    let plan = Plan { up, down, order: Order::UploadFirst, answer_after: 0 };
                    bench.mirror.expect(number, &plan);
                    let client = flow::call(&mut bench.front.connect(&bench.proxy), &plan, number);
                    assert_eq!(client.fate, Fate::Whole, "the response of {number}");
                    assert_eq!(bench.mirror.seen(number).fate, Fate::Whole, "the request of {number}");
                }
            });
        }
    });
}

#[test]
fn bodies_of_64_mib_pass_each_other() {
    let mut bench = Bench::new(Side::Clear, Side::Clear, None);
    let framings = [(false, true), (false, false), (true, false), (true, true)];
    let count = if setting("KAKEHI_DUPLEX_ROUNDS", 0) > 0 { framings.len() } else { 1 };
    for &(up, down) in &framings[..count] {
        let plan = Plan {
            up: Body { chunked: up, ..Body::of(64 * MIB) },
            down: Body { chunked: down, place: 11, ..Body::of(64 * MIB) },
            ..Plan::default()
        };
        bench.check(&plan, &format!("chunked: {up} up, {down} down"));
    }
    bench.end();
}
