//! Whatever comes in place of a handshake, or after one: it ends, it is counted, and a neighbour notices nothing.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustls::ContentType;

use crate::harness::{
    Backend, Client, Config, Forger, GET, OK, Pki, Process, Proxy, ask, exchange, noise, wait,
};

const MIB: usize = 1 << 20;
const GONE: &str = "gone";
const TIMEOUT: &str = "timeout";
const MALFORMED: &str = "malformed";

/// A record of this type.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3], &length[..], content].concat()
}

/// A message of this type that says to be so long.
fn handshake(kind: u8, says: u32, content: &[u8]) -> Vec<u8> {
    let size = says.to_be_bytes();
    [&[kind], &size[1..], content].concat()
}

fn failed(proxy: &Proxy, kind: &str) -> u64 {
    proxy.counter(&format!("tls.handshake.failed.{kind}"))
}

/// A worker after it was attacked: nothing of that is left.
struct Before {
    worker: Process,
    descriptors: usize,
}

impl Before {
    fn of(proxy: &Proxy) -> Before {
        wait::until("all connections are closed", || proxy.counter("client.connections") == 0);
        Before { worker: proxy.worker(), descriptors: proxy.worker().descriptors().len() }
    }

    #[track_caller]
    fn expect_again(&self, proxy: &Proxy) {
        assert_eq!(proxy.worker(), self.worker, "the worker died");
        proxy.wait_for_counter("client.connections", 0);
        wait::until("no descriptor is left over", || self.worker.descriptors().len() <= self.descriptors);
        let spent = self.worker.cpu_time();
        wait::pace(Duration::from_millis(300));
        let spent = self.worker.cpu_time() - spent;
        assert!(spent <= Duration::from_millis(50), "{spent:?} of CPU time for nothing");
        assert_eq!(proxy.counter("worker.restarts"), 0);
    }
}

fn config(backend: &Backend, pki: &Pki, seconds: f32) -> [Config; 2] {
    let plain = Config::https_to(backend, &pki.issue(&["a"])).root("upstream_max_idle = 0");
    // Here the name is looked at before the handshake.
    let named = plain.clone().listener(r#"unknown_sni = "refuse""#);
    [plain, named].map(|config| config.listener(&format!("handshake_timeout = {seconds}")))
}

#[test]
fn what_is_no_handshake_is_closed_and_counted_while_a_neighbour_is_served() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let hello = pki.caller().hello();
    let half = hello[..hello.len() / 2].to_vec();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", Vec::new(), TIMEOUT),
        ("one byte", vec![22], TIMEOUT),
        ("half a hello", half, TIMEOUT),
        ("a hello and nothing more", hello, TIMEOUT),
        ("garbage", noise(5_000), MALFORMED),
        ("zeros", vec![0; 100], MALFORMED),
        ("a record that is too long", vec![22, 3, 1, 0xff, 0xff], MALFORMED),
        ("data before all else", record(23, b"hello"), MALFORMED),
        ("an unknown type", record(99, b"hello"), MALFORMED),
        ("another message", record(22, &handshake(2, 40, &[0; 40])), MALFORMED),
        ("a message that is too long", record(22, &handshake(1, 0xff_ffff, &[0; 9_000])), MALFORMED),
        ("a hello of nonsense", record(22, &handshake(1, 2_000, &noise(2_000))), MALFORMED),
        ("empty records", record(22, &[]).repeat(10_000), MALFORMED),
        ("changes of ciphers", record(20, &[1]).repeat(10_000), MALFORMED),
        ("SSL 2", [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10][..], &[1; 60]].concat(), MALFORMED),
    ];
    for config in config(&backend, &pki, 0.5) {
        let proxy = config.start();
        let mut neighbour = pki.caller().connect(proxy.address());
        ask(&mut neighbour);
        for (name, bytes, kind) in &cases {
            let before = failed(&proxy, kind);
            let mut client = Client::connect(proxy.address());
            client.send(bytes);
            ask(&mut neighbour);
            let (_, end) = client.rest();
            assert_ne!(end, crate::harness::End::Deadline, "{name}");
            wait::until(&format!("{name} is counted as {kind}"), || failed(&proxy, kind) == before + 1);
        }
        drop(neighbour);
        let before = Before::of(&proxy);
        for (_, bytes, _) in cases.iter().filter(|(.., kind)| *kind == MALFORMED) {
            for _ in 0..10 {
                Client::connect(proxy.address()).send(bytes);
            }
        }
        before.expect_again(&proxy);
    }
}

#[test]
fn a_hello_of_64_kib_is_refused_or_served_and_holds_nobody_up() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    for config in config(&backend, &pki, 0.5) {
        let proxy = config.start();
        let before = Before::of(&proxy);
        let counted = || failed(&proxy, MALFORMED) + failed(&proxy, TIMEOUT);
        let base = counted();
        let message = handshake(1, 65_000, &noise(65_000));
        let records: Vec<u8> = message.chunks(16_000).flat_map(|part| record(22, part)).collect();
        for size in [1, 100, 5_000, records.len()] {
            let mut client = Client::connect(proxy.address());
            // Only the beginning in tiny pieces: each is a record of its own.
            let tiny: Vec<u8> = message[..2_000].chunks(size).flat_map(|part| record(22, part)).collect();
            client.send(if size < 5_000 { &tiny } else { &records });
            ask(&mut pki.caller().connect(proxy.address()));
            assert_ne!(client.rest().1, crate::harness::End::Deadline);
        }
        wait::until("all are counted", || counted() == base + 4);
        before.expect_again(&proxy);
    }
}

#[test]
fn clear_text_on_the_port_of_tls_gets_an_answer_in_clear_text() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    for config in config(&backend, &pki, 0.5) {
        let proxy = config.start();
        for request in [GET, "POST / HTTP/1.1\r\n", "G"] {
            exchange(&proxy, request).expect_answer(400, "clear_text_on_tls");
        }
        backend.expect_untouched();
    }
}

#[test]
fn alerts_and_ends_in_the_middle_of_a_handshake_are_counted() {
    let (backend, pki, stranger) = (Backend::respond(OK), Pki::new(), Pki::named("Stranger"));
    for config in config(&backend, &pki, 0.5) {
        let proxy = config.start();
        let before = Before::of(&proxy);
        let hello = pki.caller().tls12().hello();
        let base = failed(&proxy, GONE);
        for part in [&hello[..0], &hello[..3], &hello[..100], &hello] {
            Client::connect(proxy.address()).send(part);
            let mut client = Client::connect(proxy.address());
            client.send(part);
            client.reset();
            let mut client = Client::connect(proxy.address());
            client.send(part);
            client.half_close();
            client.rest();
        }
        wait::until("all have gone", || failed(&proxy, GONE) == base + 12);
        // Whoever does not trust the certificate says so.
        for caller in [stranger.caller().tls12(), stranger.caller().tls13()] {
            assert!(caller.distrust(proxy.address()).is_some());
        }
        let fatal = record(21, &[2, 40]);
        Client::connect(proxy.address()).send([hello.clone(), fatal].concat());
        wait::until("alerts are counted", || failed(&proxy, "alert_received") == 3);
        // Warnings mean little, but not without end.
        let warnings = record(21, &[1, 90]).repeat(5_000);
        let mut client = Client::connect(proxy.address());
        client.send([hello, warnings].concat());
        assert_ne!(client.rest().1, crate::harness::End::Deadline);
        drop(client);
        before.expect_again(&proxy);
    }
}

#[test]
fn a_hello_byte_by_byte_is_one_all_the_same() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    for config in config(&backend, &pki, 5.0) {
        let proxy = config.start();
        for caller in [pki.caller().tls12(), pki.caller().tls13()] {
            let slow = Trickle::to(proxy.address());
            let mut client = caller.over(slow.client()).unwrap();
            ask(&mut client);
        }
    }
}

/// Passes on what a client says byte by byte, as far as TCP goes along with that, and answers as they come.
struct Trickle(SocketAddr);

impl Trickle {
    fn to(address: SocketAddr) -> Trickle {
        Trickle(address)
    }

    fn client(&self) -> TcpStream {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let mut proxy = TcpStream::connect(self.0).unwrap();
        proxy.set_nodelay(true).unwrap();
        let (mut back, mut answers) = (far.try_clone().unwrap(), proxy.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = far.read(&mut piece) {
                for byte in &piece[..count] {
                    if proxy.write_all(&[*byte]).is_err() {
                        return;
                    }
                }
            }
        });
        near
    }
}

#[test]
fn records_that_no_library_sends_end_their_connection_and_nothing_else() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"]))
        .root("upstream_max_idle = 0")
        .listener("request_timeout = 0.6")
        .start();
    let before = Before::of(&proxy);
    let caller = pki.caller();
    let key_update = [24, 0, 0, 1, 1];
    for (name, kind, payload, times) in [
        ("empty data", ContentType::ApplicationData, &[][..], 20_000),
        ("warnings", ContentType::Alert, &[1, 90], 1_000),
        ("a fatal alert", ContentType::Alert, &[2, 40], 1),
        ("half an alert", ContentType::Alert, &[1], 3),
        ("no alert at all", ContentType::Alert, &[], 3),
        ("new keys", ContentType::Handshake, &key_update, 1),
        ("new keys again and again", ContentType::Handshake, &key_update.repeat(2_000), 5),
        ("half of new keys", ContentType::Handshake, &key_update[..2], 1),
        ("another hello", ContentType::Handshake, &[1, 0, 0, 4, 3, 3, 0, 0], 1),
        ("an empty message", ContentType::Handshake, &[], 10),
        ("a large message", ContentType::Handshake, &[24, 0, 0xff, 0xf0, 0], 1),
        ("an unknown type", ContentType::Unknown(99), b"hello", 1),
        ("a change of ciphers", ContentType::ChangeCipherSpec, &[1], 100),
        ("a heartbeat", ContentType::Heartbeat, &[1, 0xff, 0xff], 1),
    ] {
        let mut forger = Forger::connect(&caller, proxy.address());
        for _ in 0..times {
            if !forger.send(kind, payload) {
                break;
            }
        }
        ask(&mut caller.connect(proxy.address()));
        assert!(forger.is_closed(), "{name}");
        assert_eq!(proxy.worker(), before.worker, "{name}");
    }
    // Bytes that are no record any more.
    for bytes in [noise(4_000), record(23, &noise(300)), vec![23, 3, 3, 0x41, 0x02], vec![23, 3, 3, 0, 0]] {
        let mut forger = Forger::connect(&caller, proxy.address());
        forger.send(ContentType::ApplicationData, &GET.as_bytes()[..9]);
        forger.send_raw(&bytes);
        assert!(forger.is_closed());
    }
    before.expect_again(&proxy);
    backend.wait_for_requests(14);
}

/// While a body is received in bulk, parts of messages of the handshake come, and something has to be sent.
#[test]
fn parts_of_messages_in_a_large_upload_do_no_harm() {
    let backend = Backend::script(|conn| {
        let Some(_) = conn.head() else { return };
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 8 * MIB));
        while let Ok(part) = conn.bytes(65_536) {
            if !conn.send(part) {
                return;
            }
        }
    });
    let pki = Pki::new();
    let proxy = Config::https_to(&backend, &pki.issue(&["a"]))
        .root("upstream_max_idle = 0")
        .root("body_timeout = 1")
        .root("back_timeout = 1")
        .start();
    let before = Before::of(&proxy);
    let begun = Instant::now();
    // The beginning of a message, one that never ends, and one that is said to be larger than any.
    for (first, more, times) in [
        (&[24, 0][..], &[][..], 0),
        (&[24, 0, 0xff, 0xf0], &[7; 1], 60_000),
        (&[24, 0xff, 0, 0], &[7; 100], 9),
    ] {
        let mut forger = Forger::connect(&pki.caller(), proxy.address());
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 * MIB);
        forger.send(ContentType::ApplicationData, head.as_bytes());
        for part in noise(MIB / 2).chunks(16_384) {
            assert!(forger.send(ContentType::ApplicationData, part));
        }
        assert!(forger.take(MIB / 2));
        for part in noise(65_536 * 2).chunks(16_384) {
            assert!(forger.send(ContentType::ApplicationData, part));
        }
        // The backend's answers to these have to be encrypted now.
        forger.send(ContentType::Handshake, first);
        for _ in 0..times {
            if !forger.send(ContentType::Handshake, more) {
                break;
            }
        }
        assert!(forger.is_closed(), "{first:?}");
        forger.shutdown();
        assert_eq!(proxy.worker(), before.worker, "{first:?}");
    }
    before.expect_again(&proxy);
    assert!(begun.elapsed() < Duration::from_secs(15));
}
