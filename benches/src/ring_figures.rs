//! What kakehi's ring did per request: its own counters, asked for at the control socket as `kakehictl` does.
//!
//! A worker publishes the figures of its ring once a second, so right after a load they miss its end. They are
//! complete as soon as they have changed once more, which a worker at rest sees to as well: to publish, it wakes up.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kakehi_ctl::limits;
use kakehi_ctl::order::{Envelope, Request, Response};
use kakehi_ctl::wire::{self, Decoder, WireError};
use serde::Serialize;

use crate::process::pause;
use crate::{Attempt, BenchError};

/// How long the supervisor may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long the figures may take to change: they are published once a second.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(3);
/// How often they are asked for until they do.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// The sums over all workers since kakehi started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFigures {
    /// `io_uring_enter` system calls.
    enters: u64,
    /// Submission queue entries.
    sqes: u64,
    /// Completion queue entries.
    cqes: u64,
    /// Requests answered.
    requests: u64,
}

/// What the ring did for one request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerRequest {
    /// `io_uring_enter` system calls.
    pub enters: f64,
    /// Submission queue entries.
    pub sqes: f64,
    /// Completion queue entries.
    pub cqes: f64,
}

impl RingFigures {
    /// What the kakehi behind `socket` says now; up to a second old.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub fn read(socket: &Path) -> Result<Self, BenchError> {
        let wire_failed = |error: WireError| match error {
            WireError::Io(error) => error,
            other => io::Error::other(other),
        };
        let answer = || -> io::Result<Option<Response>> {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            let question = Envelope::new(1, Request::Workers);
            wire::write_message(&mut stream, &question, limits::MAX_REQUEST_FRAME).map_err(wire_failed)?;
            let mut decoder = Decoder::new(limits::MAX_FRAME);
            let answer = wire::read_message(&mut stream, &mut decoder).map_err(wire_failed)?;
            Ok(answer.map(|envelope| envelope.body))
        };
        let answer = answer().attempt(|| format!("cannot ask kakehi at {}", socket.display()))?;
        let Some(Response::Workers(workers)) = answer else {
            return Err(BenchError::Program(format!("kakehi does not tell of its workers: {answer:?}")));
        };
        Ok(workers.iter().fold(Self::default(), |sum, worker| Self {
            enters: sum.enters + worker.ring_enters,
            sqes: sum.sqes + worker.ring_sqes,
            cqes: sum.cqes + worker.ring_cqes,
            requests: sum.requests + worker.requests,
        }))
    }

    /// Waits until everything that one worker's ring has done by now is published, and reads it.
    ///
    /// # Errors
    /// As [`Self::read`], or if nothing new is published within some seconds.
    pub fn settle(socket: &Path) -> Result<Self, BenchError> {
        let begun = Instant::now();
        let first = Self::read(socket)?;
        while begun.elapsed() < PUBLISHED_WITHIN {
            let now = Self::read(socket)?;
            if now.enters != first.enters {
                return Ok(now);
            }
            pause(ASK_EVERY);
        }
        Err(BenchError::Program(format!(
            "kakehi's worker published nothing of its ring within {} s",
            PUBLISHED_WITHIN.as_secs()
        )))
    }

    /// What was done per request since `before`; `None` without a request.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<PerRequest> {
        let requests = self.requests.checked_sub(before.requests).filter(|&count| count > 0)? as f64;
        let per_request = |now: u64, before: u64| now.saturating_sub(before) as f64 / requests;
        Some(PerRequest {
            enters: per_request(self.enters, before.enters),
            sqes: per_request(self.sqes, before.sqes),
            cqes: per_request(self.cqes, before.cqes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_per_request_since_the_first_reading() {
        let first = RingFigures { enters: 10, sqes: 20, cqes: 30, requests: 1 };
        let last = RingFigures { enters: 60, sqes: 420, cqes: 430, requests: 101 };
        assert_eq!(last.since(&first), Some(PerRequest { enters: 0.5, sqes: 4.0, cqes: 4.0 }));
        assert_eq!(first.since(&first), None);
    }

    #[test]
    fn a_supervisor_is_asked_in_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let supervisor = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut decoder = Decoder::new(limits::MAX_REQUEST_FRAME);
            let question = wire::read_message::<Request>(&mut stream, &mut decoder).unwrap().unwrap();
            assert_eq!(question.body, Request::Workers);
            let answer = Envelope::new(question.id, Response::Workers(Vec::new()));
            wire::write_message(&mut stream, &answer, limits::MAX_FRAME).unwrap();
        });
        assert_eq!(RingFigures::read(&socket).unwrap(), RingFigures::default());
        supervisor.join().unwrap();
        assert!(RingFigures::read(&socket).is_err(), "nobody listens any more");
    }
}
