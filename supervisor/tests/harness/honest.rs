//! One client that asks for little, at a fixed rate: what it notices of the others.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Client, GET, wait};

/// Time between two requests.
const BEAT: Duration = Duration::from_millis(10);
/// What may be added to the latency of a machine that has other things to do.
const ALLOWANCE: Duration = Duration::from_millis(50);

/// What the client has noticed.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) requests: usize,
    pub(crate) failures: Vec<String>,
    pub(crate) p99: Duration,
    pub(crate) slowest: Duration,
}

/// Asks for `/` every 10 ms for so long: every other time on the connection that it keeps, else on a new one. Latency
/// counts from when a request was due, so that one long wait is not one slow request, but many.
pub(crate) fn ask_for(time: Duration, address: SocketAddr) -> Figures {
    let begin = Instant::now();
    let (mut latencies, mut failures) = (Vec::new(), Vec::new());
    let mut kept: Option<Client> = None;
    let mut due = begin;
    while due < begin + time && failures.len() < 5 {
        wait::pace(due.saturating_duration_since(Instant::now()));
        let keeps = latencies.len().is_multiple_of(2);
        let connection = if keeps {
            kept.take().map_or_else(|| Client::try_connect(address), Ok)
        } else {
            Client::try_connect(address)
        };
        match connection {
            Err(error) => failures.push(format!("connect: {error}")),
            Ok(mut client) => {
                client.send(GET);
                match client.try_response() {
                    Ok(answer) if answer.status() == 200 && answer.body == b"ok" => {
                        if keeps && answer.field("Connection") != Some("close") {
                            kept = Some(client);
                        }
                    }
                    Ok(answer) => failures.push(super::show(&answer.raw)),
                    Err(broken) => failures.push(broken.to_string()),
                }
            }
        }
        latencies.push(due.elapsed());
        due += BEAT;
    }
    latencies.sort_unstable();
    let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default();
    let slowest = latencies.last().copied().unwrap_or_default();
    Figures { requests: latencies.len(), failures, p99, slowest }
}

/// Asks for so long, and fails unless every request was answered, about as fast as it was in the `quiet` before the others
/// came. What the machine does besides may make one measurement slow, but not three.
#[track_caller]
pub(crate) fn expect_like(quiet: &Figures, time: Duration, address: SocketAddr, what: &str) {
    assert!(quiet.failures.is_empty(), "{what}: before: {:?}", quiet.failures);
    let bound = quiet.p99 * 2 + ALLOWANCE;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let Figures { requests, failures, p99, slowest } = ask_for(time, address);
        eprintln!("{what}: p99 {:?}, then {p99:?}, slowest {slowest:?} of {requests}", quiet.p99);
        assert!(failures.is_empty(), "{what}: the honest client was failed: {failures:?}");
        if p99 <= bound {
            return;
        }
        seen.push(p99);
    }
    panic!("{what}: p99 of the honest client {seen:?}, {:?} before", quiet.p99);
}
