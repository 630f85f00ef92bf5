//! Programs of different releases: what one does not understand it says at once, with the number of what it was asked and with
//! both versions, and nothing that came with it is left open.

use std::{
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use kakehi_ctl::{
    limits,
    order::{Envelope, Hello, Order, Report, Request, Response},
    wire::{self, Decoder},
};
use kakehi_engine::{ring, worker::AdoptRequest};
use socket2::{Domain, SockAddr, Socket, Type};

use super::hostile_worker::orphaned;
use crate::harness::{Backend, Config, OK, Proxy, ask, wait};

/// What a supervisor has of a worker that it takes over.
struct Taken {
    orders: UnixStream,
    descriptors: OwnedFd,
    decoder: Decoder,
}

impl Taken {
    /// Takes the worker behind `path` over as a supervisor does.
    fn over(path: &std::path::Path, request: &str) -> Taken {
        let connection = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        connection.connect(&SockAddr::unix(path).unwrap()).unwrap();
        let (orders, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        orders.set_read_timeout(Some(wait::SOON)).unwrap();
        let pair = || Socket::pair(Domain::UNIX, Type::SEQPACKET.nonblocking(), None).unwrap();
        let ((descriptors, their_descriptors), (_successor, their_successor)) = (pair(), pair());
        let channels = [theirs.into(), their_descriptors.into(), their_successor.into()];
        ring::send_descriptors(&connection, request, &channels).unwrap();
        Taken { orders, descriptors: descriptors.into(), decoder: Decoder::new(limits::MAX_FRAME) }
    }

    fn order(&mut self, id: u64, body: &str) {
        send(&mut self.orders, 1, id, body);
    }

    #[track_caller]
    fn report(&mut self) -> Envelope<Report> {
        wire::read_message(&mut self.orders, &mut self.decoder).unwrap().expect("a report")
    }
}

fn send(stream: &mut UnixStream, version: u32, id: u64, body: &str) {
    let text = format!("{{\"version\":{version},\"id\":{id},\"body\":{body}}}");
    stream.write_all(&[&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()).unwrap();
}

#[test]
fn an_order_that_a_worker_does_not_know_is_refused_at_once_and_its_descriptors_are_closed() {
    let backend = Backend::respond(OK);
    let (mut proxy, ..) = {
        let (proxy, worker, path) = orphaned(Config::to(&backend));
        let mut taken = Taken::over(&path, &serde_json::to_string(&AdoptRequest::new()).unwrap());
        let Report::Adopted(about) = taken.report().body else { panic!("it says what it is") };
        assert!(about.capabilities.iter().map(String::as_str).eq(Order::known()), "{about:?}");
        for (number, (order, labels)) in [
            (r#"{"dance":{"steps":7}}"#, r#"["counters"]"#),
            // A kind of descriptor that it does not know either.
            (r#""sing""#, r#"[{"song":1}]"#),
            // Known, and impossible: what came is not that.
            (r#""take""#, r#"[{"song":1}]"#),
            (
                r#"{"prepare":{"staged":3,"changes":[],"revision":{"generation":9,"origin":""}}}"#,
                r#"["vault"]"#,
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let text = format!(r#"{{"remaining":0,"labels":{labels}}}"#);
            ring::send_descriptors(&taken.descriptors, &text, &[writer]).unwrap();
            let (id, asked) = (70 + number as u64, Instant::now());
            taken.order(id, order);
            let answer = taken.report();
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
            assert_eq!(answer.id, id, "{order}");
            assert!(matches!(&answer.body, Report::Refused { .. }), "{answer:?}");
            // Nobody has the other end any more.
            assert_eq!(std::fs::File::from(reader).read(&mut [0]).unwrap(), 0, "{order}");
        }
        taken.order(90, "\"ping\"");
        assert_eq!(taken.report(), Envelope::new(90, Report::Done));
        (proxy, worker, path)
    };
    // Without this supervisor it goes on, and has another.
    proxy.start_again();
    ask(&mut proxy.client());
}

#[test]
fn a_worker_tells_a_supervisor_of_another_version_both_versions() {
    let backend = Backend::respond(OK);
    let (mut proxy, worker, path) = orphaned(Config::to(&backend));
    let mut taken = Taken::over(&path, r#"{"protocol":9,"program":"7.7.7"}"#);
    match taken.report().body {
        Report::Failed { reason } => {
            assert!(
                reason.contains("7.7.7") && reason.contains("version 9") && reason.contains("version 1"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    drop(taken);
    proxy.start_again();
    ask(&mut proxy.client());
    assert_eq!(proxy.ctl_json("workers")[0]["pid"].as_u64(), Some(worker.0.into()), "{}", proxy.log());
}

#[test]
fn a_client_of_another_release_is_told_both_versions_and_what_is_not_known() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut stream = UnixStream::connect(proxy.socket()).unwrap();
    stream.set_read_timeout(Some(wait::SOON)).unwrap();
    let mut decoder = Decoder::new(limits::MAX_FRAME);
    let mut answer = |version: u32, body: &str| -> Envelope<Response> {
        send(&mut stream, version, 33, body);
        wire::read_message(&mut stream, &mut decoder).unwrap().expect("an answer")
    };
    let hello = serde_json::to_string(&Request::Hello(Hello::new(&[]))).unwrap();
    assert!(matches!(answer(1, &hello), Envelope { id: 33, body: Response::Hello(_), .. }));
    match answer(1, r#"{"dance":{"steps":7}}"#) {
        Envelope { id: 33, body: Response::Refused { reason }, .. } => {
            assert!(reason.contains("unknown variant `dance`") && reason.contains("0.1.0"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // It may ask for something else.
    assert!(matches!(answer(1, "\"workers\""), Envelope { id: 33, body: Response::Workers(_), .. }));
    match answer(9, r#"{"anything":[1,2]}"#) {
        Envelope { version: 1, id: 33, body: Response::Refused { reason } } => {
            assert!(reason.contains("version 9") && reason.contains("version 1"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
