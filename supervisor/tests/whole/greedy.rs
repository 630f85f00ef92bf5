//! Whatever is shared has a share per owner: beside many peers that take all they can get, an honest client with a request
//! every 10 ms is always answered, and about as fast as before they came.
//!
//! `KAKEHI_GREEDY_PEERS` sets the number of greedy peers (200; the long run takes 1,000).

use std::{fs, time::Duration};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::{Client, Config, Crowd, GET, Habit, Pages, Pki, Process, Proxy, honest, setting, wait};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// A page that kakehi cannot hold in one buffer.
const PAGE: usize = 240_000;
/// What all bodies of the worker may take beside the shares of their connections.
const BODY_MEMORY: u64 = 4 * MIB;
/// How long the honest client asks before, and beside the others.
const QUIET: Duration = Duration::from_millis(1_000);
const BESIDE: Duration = Duration::from_millis(2_500);

fn peers() -> usize {
    setting("KAKEHI_GREEDY_PEERS", 200) as usize
}

/// Everything goes to `pages`; the arena has about as many buffers per peer as it has for 1,000 by default.
fn to(pages: &Pages) -> Config {
    Config::new()
        .root(&format!("buffer_count = {}", (2 * peers()).next_power_of_two()))
        .root(&format!("body_memory = {BODY_MEMORY}"))
        .frontend("all", r#"hostname = "*""#)
        .backend_at("all", &pages.address(), "")
}

fn request(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// The honest client, alone and beside peers of this habit; and these, for what is left to be looked at.
#[track_caller]
fn beside(proxy: &Proxy, habit: &Habit) -> Crowd {
    let quiet = honest::ask_for(QUIET, proxy.address());
    let crowd = Crowd::of(peers(), proxy.address(), habit);
    let what: String = format!("{} x {habit:?}", peers()).chars().take(80).collect();
    honest::expect_like(&quiet, BESIDE, proxy.address(), &what);
    assert_eq!(proxy.counter("worker.restarts"), 0);
    crowd
}

/// Fails unless the worker has grown by no more than a share for each peer.
#[track_caller]
fn expect_memory(worker: Process, before: u64) {
    let grown = worker.resident().saturating_sub(before);
    let bound = 64 * KIB * peers() as u64 + BODY_MEMORY + 8 * MIB;
    eprintln!("{} KiB for {} peers", grown / KIB, peers());
    assert!(grown <= bound, "the worker grew by {} KiB for {} peers", grown / KIB, peers());
}

#[test]
fn slow_readers_of_a_chunked_page_leave_buffers_for_the_others() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let _crowd = beside(&proxy, &Habit::Deaf(request("/chunked")));
    expect_memory(worker, before);
}

#[test]
fn slow_readers_of_a_page_with_a_length_cost_little_memory_and_no_time() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let _crowd = beside(&proxy, &Habit::Deaf(request("/length")));
    expect_memory(worker, before);
}

#[test]
fn slow_readers_over_tls_cost_little_memory_and_no_time() {
    let pages = Pages::of(PAGE);
    let pki = Pki::new();
    let proxy = to(&pages)
        .another_listener()
        .https(&pki.issue(&["a"]))
        .frontend_on(1, "all", r#"hostname = "*""#)
        .start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let quiet = honest::ask_for(QUIET, proxy.address());
    let mut deaf = Vec::new();
    for target in ["/chunked", "/length"] {
        for _ in 0..peers() / 2 {
            let tcp = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            tcp.set_recv_buffer_size(4_096).unwrap();
            tcp.connect(&proxy.address_of(1).into()).unwrap();
            let mut client = pki.caller().over(tcp.into()).unwrap();
            client.send(request(target));
            deaf.push(client);
        }
    }
    honest::expect_like(&quiet, BESIDE, proxy.address(), "slow readers over TLS");
    expect_memory(worker, before);
}

#[test]
fn heads_that_trickle_cost_the_others_nothing() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let start = "GET / HTTP/1.1\r\nHost: a\r\nA: ".to_owned();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let _crowd = beside(&proxy, &Habit::Trickle(start, b'x', Duration::from_millis(100)));
    expect_memory(worker, before);
}

#[test]
fn uploads_that_stand_still_cost_the_others_nothing() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let head = "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    let _crowd = beside(&proxy, &Habit::Deaf(format!("{head}{}", "x".repeat(100_000))));
    expect_memory(worker, before);
}

#[test]
fn chunked_uploads_that_trickle_cost_the_others_nothing() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let head = "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n".to_owned();
    let _crowd = beside(&proxy, &Habit::Trickle(head, b'x', Duration::from_millis(100)));
}

#[test]
fn clients_that_reset_in_the_middle_of_an_answer_cost_the_others_nothing() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    for target in ["/length", "/chunked"] {
        // Each comes again at once: fewer of them are as many connections.
        let quiet = honest::ask_for(QUIET / 2, proxy.address());
        let crowd = Crowd::of(peers() / 20, proxy.address(), &Habit::Reset(request(target), 20_000));
        honest::expect_like(&quiet, BESIDE / 2, proxy.address(), &format!("resets in {target}"));
        assert!(crowd.ended() > peers() / 20, "{} connections were reset", crowd.ended());
    }
    proxy.wait_for_counter("client.connections", 0);
    proxy.wait_for_counter("worker.restarts", 0);
}

#[test]
fn clients_that_sip_cost_the_others_nothing() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let _crowd = beside(&proxy, &Habit::Sip(request("/chunked"), 64, Duration::from_millis(50)));
    expect_memory(worker, before);
}

#[test]
fn a_backend_that_trickles_costs_the_others_nothing() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let _crowd = beside(&proxy, &Habit::Deaf(request("/trickle")));
    expect_memory(worker, before);
}

#[test]
fn a_cluster_whose_backends_hang_holds_up_no_other_cluster() {
    let (hanging, pages) = (Pages::of(PAGE), Pages::of(PAGE));
    let proxy = Config::new()
        .root(&format!("buffer_count = {}", (2 * peers()).next_power_of_two()))
        .frontend("hanging", r#"hostname = "*", path = "/hang""#)
        .backend_at("hanging", &hanging.address(), "")
        .frontend("healthy", r#"hostname = "*""#)
        .backend_at("healthy", &pages.address(), "")
        .start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let _crowd = beside(&proxy, &Habit::Deaf(request("/hang")));
    expect_memory(worker, before);
}

#[test]
fn connections_without_a_byte_cost_the_others_nothing() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let (worker, before) = (proxy.worker(), proxy.worker().resident());
    let _crowd = beside(&proxy, &Habit::Mute);
    expect_memory(worker, before);
}

/// A unix socket that listens, accepts nobody, and whose queue is full.
fn full(path: &std::path::Path) -> impl Sized + use<> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
    socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        if client.connect(&SockAddr::unix(path).unwrap()).is_err() {
            return (socket, waiting);
        }
        waiting.push(client);
    }
}

fn threads(worker: Process) -> usize {
    fs::read_dir(format!("/proc/{}/task", worker.0)).map_or(0, Iterator::count)
}

#[test]
fn a_backend_on_a_unix_socket_whose_queue_is_full_costs_no_thread_and_the_others_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.sock");
    let _full = full(&path);
    let pages = Pages::of(PAGE);
    let proxy = Config::new()
        .listener("connect_timeout = 2")
        .frontend("full", r#"hostname = "*", path = "/full""#)
        .backend_at("full", &format!("unix:{}", path.display()), "")
        .frontend("healthy", r#"hostname = "*""#)
        .backend_at("healthy", &pages.address(), "")
        .start();
    let worker = proxy.worker();
    let before = threads(worker);
    let quiet = honest::ask_for(QUIET, proxy.address());
    let _crowd = Crowd::of(peers(), proxy.address(), &Habit::Deaf(request("/full")));
    wait::pace(Duration::from_millis(300));
    let during = threads(worker);
    honest::expect_like(&quiet, BESIDE, proxy.address(), "requests for a full backend");
    assert!(during <= before + 4, "{during} threads beside {} requests, {before} before", peers());
}

#[test]
fn where_the_queue_of_one_backend_is_full_another_one_of_the_cluster_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.sock");
    let _full = full(&path);
    let pages = Pages::of(PAGE);
    let proxy = Config::new()
        .frontend("all", r#"hostname = "*""#)
        .backend_at("all", &format!("unix:{}", path.display()), "")
        .backend_at("all", &pages.address(), "")
        .start();
    let before = threads(proxy.worker());
    let figures = honest::ask_for(QUIET, proxy.address());
    assert!(figures.failures.is_empty(), "{:?}", figures.failures);
    assert!(figures.p99 < Duration::from_millis(500), "{figures:?}");
    let during = threads(proxy.worker());
    assert!(during <= before + 4, "{during} threads, {before} before");
}

#[test]
fn a_worker_without_descriptors_serves_on_and_accepts_again_as_soon_as_there_are_some() {
    let pages = Pages::of(PAGE);
    let proxy = to(&pages).start();
    let worker = proxy.worker();
    let mut kept = proxy.client();
    kept.send(GET);
    kept.response().expect(200, "ok");
    let [soft, hard] = limits(worker);
    // No descriptor more than there are, but for gaps between their numbers.
    set_limit(worker, worker.descriptors().len() as u64, hard);
    let mut waiting: Vec<Client> = (0..50).map(|_| proxy.client()).collect();
    for _ in 0..50 {
        kept.send(GET);
        kept.response().expect(200, "ok");
        wait::pace(Duration::from_millis(10));
    }
    let before = worker.cpu_time();
    wait::pace(Duration::from_millis(500));
    let spent = worker.cpu_time() - before;
    assert!(
        spent < Duration::from_millis(250),
        "the worker used {spent:?} of 500 ms while it could accept nobody"
    );
    set_limit(worker, soft, hard);
    for client in &mut waiting {
        client.send(GET);
        client.response().expect(200, "ok");
    }
    assert_eq!(proxy.worker(), worker, "the worker is the same");
}

/// Soft and hard limit of open files.
fn limits(process: Process) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{}/limits", process.0)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    [0, 1].map(|place| words[place].parse().unwrap())
}

fn set_limit(process: Process, soft: u64, hard: u64) {
    let status = std::process::Command::new("prlimit")
        .arg(format!("--pid={}", process.0))
        .arg(format!("--nofile={soft}:{hard}"))
        .status()
        .expect("prlimit (util-linux)");
    assert!(status.success(), "prlimit: {status}");
}
