//! The generator against the backend, without a proxy between them.

use super::*;
use crate::backend::Backend;
use crate::process::pause;

fn backend() -> Backend {
    let core = crate::cores::allowed().unwrap()[0];
    Backend::start(core).unwrap()
}

fn load(backend: &Backend) -> Load {
    Load { connections: 8, ..Load::on(backend.address()) }
}

fn drive(load: Load, requests: u64) -> (Tally, Generator) {
    let mut generator = Generator::new(load).unwrap();
    let tally = generator.drive(Bound::Requests(requests)).unwrap();
    (tally, generator)
}

#[test]
fn kept_connections_carry_many_requests_without_a_fault() {
    let backend = backend();
    for body in [0, 16, 16_384, 16_385, 1 << 20] {
        for chunked in [false, true] {
            let (tally, generator) = drive(Load { body, chunked, ..load(&backend) }, 100);
            assert!(tally.requests >= 100);
            assert_eq!((tally.faults.total(), tally.renewed), (0, 0), "{body} {chunked}");
            assert_eq!(generator.open_connections(), 8);
        }
    }
}

#[test]
fn every_request_of_the_close_mode_has_its_own_connection() {
    let backend = backend();
    let (tally, _) = drive(Load { mode: Mode::Close, ..load(&backend) }, 200);
    assert_eq!(tally.faults.to_string(), "none");
}

#[test]
fn at_a_fixed_rate_no_request_is_sent_before_it_is_due() {
    let backend = backend();
    let open = Load { rate: Some(2_000.0), ..load(&backend) };
    let mut generator = Generator::new(open).unwrap();
    for bound in [Bound::Requests(200), Bound::Time(Duration::from_millis(100))] {
        let tally = generator.drive(bound).unwrap();
        assert_eq!(tally.faults.to_string(), "none");
        let due = tally.elapsed.as_secs_f64() * 2_000.0;
        assert!(tally.requests as f64 <= due + 1.0, "{} of {due}", tally.requests);
    }
}

/// A server that answers as the backend does, but stands still before its first answer.
fn stalling(stall: Duration) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n".to_vec();
        answer.extend(payload::body(16));
        let (mut bytes, mut first) = ([0; 4_096], true);
        while stream.read(&mut bytes).is_ok_and(|length| length > 0) {
            if std::mem::take(&mut first) {
                pause(stall);
            }
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    });
    address
}

#[test]
fn at_a_fixed_rate_a_server_that_stands_still_is_charged_with_all_that_was_due() {
    let stall = Duration::from_millis(200);
    let load = Load { rate: Some(1_000.0), ..Load::on(stalling(stall)) };
    let tally = Generator::new(load).unwrap().drive(Bound::Time(stall / 2)).unwrap();
    assert_eq!(tally.faults.to_string(), "none");
    // A hundred were due in the first half of the time that it stood still, and are waited for beyond the end.
    let late = tally.latency.count_between(stall.as_nanos() as u64 / 4, u64::MAX);
    assert!(late >= 50 && tally.requests >= late, "{late} of {}", tally.requests);
}

#[test]
fn uploads_are_taken_whole_before_they_are_answered() {
    let backend = backend();
    for upload in [1, 1_000, 300_000] {
        for chunked in [false, true] {
            let (tally, _) = drive(Load { upload, chunked, ..load(&backend) }, 50);
            assert_eq!(tally.faults.to_string(), "none", "{upload} {chunked}");
        }
    }
}

#[test]
fn messages_come_back_through_tunnels() {
    let backend = backend();
    let (tally, generator) = drive(Load { mode: Mode::Tunnel, body: 64, ..load(&backend) }, 200);
    assert_eq!((tally.faults.to_string().as_str(), generator.open_connections()), ("none", 8));
}

#[test]
fn held_connections_stay_open_and_their_end_is_a_fault() {
    let backend = backend();
    let (tally, mut generator) = drive(Load { mode: Mode::Hold, connections: 100, ..load(&backend) }, 100);
    assert_eq!((tally.requests, tally.faults.total()), (100, 0));
    assert_eq!(generator.open_connections(), 100);
    drop(backend);
    let after = generator.drive(Bound::Time(Duration::from_millis(50)));
    assert!(after.map_or(true, |tally| tally.faults.total() >= 100));
}

#[test]
fn a_server_that_is_not_there_ends_the_run() {
    let address = backend().address();
    let result = Generator::new(Load::on(address)).unwrap().drive(Bound::Requests(1));
    assert!(matches!(result, Err(BenchError::TooManyFaults { .. })), "{result:?}");
}
