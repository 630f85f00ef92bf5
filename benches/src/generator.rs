//! The load generator: closed-loop HTTP/1.1 clients in one thread over edge-triggered epoll.
//!
//! It relies on a server that answers `GET /bytes/N` as [`crate::backend`] does, directly or through a proxy.
//! Every connection has one request in flight: a slow server is asked less often, so latency here is that of
//! a saturated server. With [`Load::rate`] requests come at a fixed rate instead, whatever becomes of those before.
//! Per request it makes one `write` and one `read`. [`Generator::with`] does the same over [`tls`].
//!
//! A [`Generator`] keeps its connections between two calls of [`Generator::drive`]: one drives it to warm up,
//! reads the meters, drives it again and reads them again.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

mod answer;
mod keys;
mod schedule;
mod tally;
pub mod tls;
mod tunnel;

use answer::{Answer, Progress};
use keys::Keys;
use schedule::{DUE, Schedule};
pub use tally::{Fault, Faults, Handshakes, Tally};
use tls::{Client, Session, Tls, WIRE_BUFFER};
use tunnel::Tunnel;

use crate::{Attempt, BenchError};
use crate::{chunks, payload};

/// Host of every request; the proxies route by it.
pub const HOST: &str = "bench.localhost";

/// Connections that are opened at once at the start; each first answer then opens one more, so that a
/// thousand do not overflow an accept queue in one burst.
const FIRST_CONNECTIONS: usize = 64;
/// A request without its whole answer after this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a phase that is bound by a count may take.
const COUNT_DEADLINE: Duration = Duration::from_secs(120);
/// After this many failed requests in one phase there is nothing to measure.
const MAX_FAULTS: u64 = 1_000;
/// Longest wait for events, so that deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What clients do with a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Send the next request on it.
    KeepAlive,
    /// Every request says `Connection: close`; the server must close, then a new connection is made.
    Close,
    /// Keep it open and idle after one answer.
    Hold,
    /// Make a tunnel of it first, through which messages of the length of a response body come back as they were sent. The answer to
    /// the upgrade counts as one of them.
    Tunnel,
}

/// The load to put on a server.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where the server listens.
    pub target: SocketAddr,
    /// Connections at the same time.
    pub connections: usize,
    /// Length of each response body (bytes, at most [`payload::MAX_BODY`]).
    pub body: usize,
    /// Length of each request body (bytes); above 0 the requests are POSTs.
    pub upload: usize,
    /// The body that was asked for, or the one that is sent, is in chunks.
    pub chunked: bool,
    /// What happens to a connection after an answer.
    pub mode: Mode,
    /// Requests per second of all kept connections together, in an open loop; without it each asks as soon as it was answered.
    pub rate: Option<f64>,
    /// Each request has a field `X-Key`, with one of so many values: with each in turn. 0: it has none.
    pub keys: u32,
}

impl Load {
    /// A kept connection to `target` that asks for 16 bytes again and again.
    #[must_use]
    pub fn on(target: SocketAddr) -> Self {
        Self {
            target,
            connections: 1,
            body: 16,
            upload: 0,
            chunked: false,
            mode: Mode::KeepAlive,
            rate: None,
            keys: 0,
        }
    }
}

/// When a phase ends. Requests in flight at its end count in the next one; in an open loop they, and those that were due, are waited
/// for.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// After this long.
    Time(Duration),
    /// After this many answers (a few more if they came together).
    Requests(u64),
}

/// Clients with their connections.
#[derive(Debug)]
pub struct Generator {
    load: Load,
    request: Vec<u8>,
    keys: Option<Keys>,
    /// What is sent through a tunnel.
    message: Vec<u8>,
    poll: Poll,
    slots: Vec<Option<Connection>>,
    scratch: Box<[u8]>,
    secure: Option<Secure>,
    schedule: Option<Schedule>,
    tally: Tally,
    swept: Instant,
}

/// What a load over TLS needs besides.
#[derive(Debug)]
struct Secure {
    tls: Tls,
    /// One per slot, as its connections are made one after the other.
    clients: Vec<Client>,
    /// What was received and is not decrypted yet.
    wire: Box<[u8]>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// Absent without TLS. Boxed: it must not make the others wide.
    session: Option<Box<Session>>,
    phase: Phase,
    sent: usize,
    /// When the request was to be sent: latency counts from then.
    since: Instant,
    /// When it was.
    asked: Instant,
    reader: Reader,
}

/// Reads what a connection receives.
#[derive(Debug)]
enum Reader {
    Answer(Answer),
    Tunnel(Tunnel),
}

impl Reader {
    fn of(mode: Mode) -> Self {
        if mode == Mode::Tunnel { Self::Tunnel(Tunnel::default()) } else { Self::Answer(Answer::default()) }
    }

    fn take(&mut self, received: &[u8], expected: u64) -> Result<Progress, Fault> {
        match self {
            Self::Answer(answer) => answer.take(received, expected),
            Self::Tunnel(tunnel) => tunnel.take(received, expected),
        }
    }

    /// Messages go through it.
    fn is_open_tunnel(&self) -> bool {
        matches!(self, Self::Tunnel(tunnel) if tunnel.is_open())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Sending,
    Receiving,
    /// The answer has come; the server has to close.
    Closing,
    Held,
    /// Its next request is not due.
    Free,
}

/// Bytes in the scratch buffer; none at the end of the stream.
#[derive(Clone, Copy, Debug)]
struct Received {
    length: usize,
    /// The socket had no more: what comes will be announced, unless the end of the stream already was.
    drained: bool,
}

enum Step {
    Wait,
    /// The connection has done its duty: make a new one in its place.
    Renew,
}

impl Generator {
    /// Prepares the load; the first [`Self::drive`] opens the connections.
    ///
    /// # Errors
    /// If no epoll instance can be had.
    pub fn new(load: Load) -> Result<Self, BenchError> {
        let poll = Poll::new().attempt(|| "cannot set up the generator".into())?;
        let schedule = load.rate.map(|rate| Schedule::new(rate, poll.registry())).transpose()?;
        let mut request = request(&load);
        Ok(Self {
            load,
            keys: Keys::of(load.keys, &mut request),
            request,
            message: payload::body(if load.mode == Mode::Tunnel { load.body } else { 0 }),
            poll,
            slots: Vec::with_capacity(load.connections),
            scratch: vec![0; 256 << 10].into(),
            secure: None,
            schedule,
            tally: Tally::new(),
            swept: Instant::now(),
        })
    }

    /// The same load over TLS, if it is to be.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(load: Load, tls: Option<Tls>) -> Result<Self, BenchError> {
        let secure = tls.map(|tls| {
            let clients = Vec::with_capacity(load.connections);
            Secure { tls, clients, wire: vec![0; WIRE_BUFFER].into() }
        });
        Ok(Self { secure, ..Self::new(load)? })
    }

    /// Runs the clients until `bound` and says what they counted.
    ///
    /// # Errors
    /// If polling fails, if more than a thousand requests failed, or if a count was not reached in two minutes.
    pub fn drive(&mut self, bound: Bound) -> Result<Tally, BenchError> {
        let start = Instant::now();
        self.tally = Tally::new();
        if let Some(schedule) = &mut self.schedule {
            schedule.restart()?;
        }
        while self.slots.len() < self.load.connections.min(FIRST_CONNECTIONS) {
            self.open_another();
        }
        let mut events = Events::with_capacity(1_024);
        let mut over = None;
        loop {
            let left = match over {
                None => remaining(bound, start.elapsed(), &self.tally)?,
                Some(_) => None,
            };
            let left = match left {
                Some(left) => left,
                None => {
                    let over = *over.get_or_insert(start.elapsed());
                    // What was due before the end counts, however long it takes.
                    if self.is_settled() || start.elapsed() > over + PATIENCE {
                        break;
                    }
                    TICK
                }
            };
            match self.poll.poll(&mut events, Some(left.min(TICK))) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).attempt(|| "the generator cannot poll".into()),
            }
            // All events of a batch are served, whatever the bound: they are not announced again.
            for event in &events {
                match event.token() {
                    DUE => {}
                    Token(slot) => self.advance(slot, event.is_read_closed()),
                }
            }
            self.send_what_is_due(over.is_some())?;
            let none_left = self.sweep();
            let faults = self.tally.faults;
            if faults.total() > MAX_FAULTS || (none_left && faults.total() > 0) {
                return Err(BenchError::TooManyFaults { count: faults.total(), kinds: faults.to_string() });
            }
        }
        self.tally.elapsed = over.unwrap_or_else(|| start.elapsed());
        Ok(std::mem::replace(&mut self.tally, Tally::new()))
    }

    /// In an open loop: has free connections send the requests that are due. No more become due when it is `over`.
    fn send_what_is_due(&mut self, over: bool) -> Result<(), BenchError> {
        let Some(schedule) = &mut self.schedule else { return Ok(()) };
        if !over {
            schedule.catch_up()?;
        }
        while let Some((slot, due)) = self.schedule.as_mut().and_then(Schedule::pair) {
            if let Some(connection) = &mut self.slots[slot] {
                (connection.phase, connection.since, connection.asked) =
                    (Phase::Sending, due, Instant::now());
                self.advance(slot, false);
            }
        }
        Ok(())
    }

    /// Whether nothing that was due waits for its answer. In a closed loop something always does, and counts in the next phase.
    fn is_settled(&self) -> bool {
        let is_free = |connection: &Connection| connection.phase == Phase::Free;
        self.schedule
            .as_ref()
            .is_none_or(|it| it.waits_for_nothing() && self.slots.iter().flatten().all(is_free))
    }

    /// Connections that are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    fn open_another(&mut self) {
        self.slots.push(None);
        if let Some(secure) = &mut self.secure {
            secure.clients.push(secure.tls.client());
        }
        self.open(self.slots.len() - 1);
    }

    /// Makes a new connection in `slot`. If that fails at once, the slot stays empty until the next sweep.
    fn open(&mut self, slot: usize) {
        let since = Instant::now();
        let connect = || {
            let mut stream = TcpStream::connect(self.load.target)?;
            self.poll.registry().register(
                &mut stream,
                Token(slot),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            if self.load.upload > 0 || self.load.mode == Mode::Tunnel {
                stream.set_nodelay(true)?;
            }
            let session = match &self.secure {
                Some(secure) => Some(Box::new(secure.clients[slot].connect()?)),
                None => None,
            };
            let phase = if self.schedule.is_some() { Phase::Free } else { Phase::Sending };
            let reader = Reader::of(self.load.mode);
            io::Result::Ok(Connection { stream, session, phase, sent: 0, since, asked: since, reader })
        };
        match connect() {
            Ok(connection) => {
                self.slots[slot] = Some(connection);
                if let Some(schedule) = &mut self.schedule {
                    schedule.free(slot);
                }
            }
            Err(_) => self.tally.faults.count(Fault::Connect),
        }
    }

    /// Goes on with one connection after an event; `ended` if the server has closed its side.
    fn advance(&mut self, slot: usize, ended: bool) {
        let Some(mut connection) = self.slots[slot].take() else { return };
        let answered = self.tally.requests;
        let step = self.step(&mut connection, ended);
        // Before the next connection is made in its place.
        if self.tally.requests > answered
            && let Some(secure) = &mut self.secure
        {
            secure.clients[slot].answered();
        }
        match step {
            Ok(Step::Wait) => self.slots[slot] = Some(connection),
            Ok(Step::Renew) => self.replace(slot, connection),
            Err(fault) => {
                self.tally.faults.count(fault);
                self.replace(slot, connection);
            }
        }
        if self.tally.requests > answered {
            if let Some(schedule) = &mut self.schedule
                && self.slots[slot].as_ref().is_some_and(|connection| connection.phase == Phase::Free)
            {
                schedule.free(slot);
            }
            if self.slots.len() < self.load.connections {
                self.open_another();
            }
        }
    }

    fn replace(&mut self, slot: usize, connection: Connection) {
        drop(connection);
        if let Some(schedule) = &mut self.schedule {
            schedule.forget(slot);
        }
        self.open(slot);
    }

    fn step(&mut self, connection: &mut Connection, ended: bool) -> Result<Step, Fault> {
        loop {
            match connection.phase {
                Phase::Held | Phase::Free if ended => return Err(Fault::Closed),
                Phase::Held | Phase::Free => return Ok(Step::Wait),
                Phase::Sending => {
                    // Where nothing could be sent at first, one is left out.
                    if let Some(keys) = &mut self.keys
                        && connection.sent == 0
                    {
                        keys.turn(&mut self.request);
                    }
                    let what = if connection.reader.is_open_tunnel() { &self.message } else { &self.request };
                    if connection.send(what)? {
                        connection.phase = Phase::Receiving;
                    }
                    if !ended {
                        return Ok(Step::Wait);
                    }
                    // What the server said before it closed is worth reading even if it refused the request.
                    connection.phase = Phase::Receiving;
                }
                Phase::Receiving => {
                    let Some(Received { length, drained }) = self.receive(connection, ended)? else {
                        return Ok(Step::Wait);
                    };
                    if length == 0 {
                        return Err(Fault::Closed);
                    }
                    match connection.reader.take(&self.scratch[..length], self.load.body as u64)? {
                        Progress::More if drained && !ended => return Ok(Step::Wait),
                        Progress::More => {}
                        Progress::Done { close } => {
                            let now = Instant::now();
                            self.tally.answered(now - connection.since);
                            (connection.since, connection.asked) = (now, now);
                            connection.sent = 0;
                            if close && self.load.mode != Mode::Close {
                                self.tally.renewed += 1;
                                return Ok(Step::Renew);
                            }
                            connection.phase = match self.load.mode {
                                Mode::KeepAlive | Mode::Tunnel if self.schedule.is_some() => Phase::Free,
                                Mode::KeepAlive | Mode::Tunnel => Phase::Sending,
                                Mode::Close => Phase::Closing,
                                Mode::Hold => Phase::Held,
                            };
                        }
                    }
                }
                Phase::Closing => {
                    return match self.receive(connection, ended)? {
                        Some(Received { length: 0, .. }) => Ok(Step::Renew),
                        Some(_) => Err(Fault::Length),
                        None => Ok(Step::Wait),
                    };
                }
            }
        }
    }

    /// Receives what there is; `None` if nothing.
    fn receive(&mut self, connection: &mut Connection, ended: bool) -> Result<Option<Received>, Fault> {
        let Some((session, secure)) = connection.session.as_mut().zip(self.secure.as_mut()) else {
            return receive(&mut connection.stream, &mut self.scratch);
        };
        let received = session.receive(&mut connection.stream, &mut secure.wire, &mut self.scratch, ended)?;
        if let Some(kind) = session.handshake()? {
            self.tally.handshakes.count(kind);
        }
        Ok(received)
    }

    /// Once per second: gives up what waits too long, and tries again what could not be opened. True if it
    /// found that not one connection can be opened.
    fn sweep(&mut self) -> bool {
        if self.swept.elapsed() < Duration::from_secs(1) {
            return false;
        }
        self.swept = Instant::now();
        for slot in 0..self.slots.len() {
            match &self.slots[slot] {
                None => self.open(slot),
                Some(connection)
                    if !matches!(connection.phase, Phase::Held | Phase::Free)
                        && connection.asked.elapsed() > PATIENCE =>
                {
                    let late =
                        if connection.phase == Phase::Closing { Fault::NotClosed } else { Fault::Timeout };
                    self.tally.faults.count(late);
                    self.slots[slot] = None;
                    self.open(slot);
                }
                Some(_) => {}
            }
        }
        self.open_connections() == 0
    }
}

/// How long a phase may still wait for events, `None` if it is over.
fn remaining(bound: Bound, elapsed: Duration, tally: &Tally) -> Result<Option<Duration>, BenchError> {
    match bound {
        Bound::Time(limit) => Ok(limit.checked_sub(elapsed).filter(|left| !left.is_zero())),
        Bound::Requests(wanted) if tally.requests >= wanted => Ok(None),
        Bound::Requests(wanted) if elapsed > COUNT_DEADLINE => {
            Err(BenchError::TooSlow { done: tally.requests, wanted, seconds: COUNT_DEADLINE.as_secs() })
        }
        Bound::Requests(_) => Ok(Some(TICK)),
    }
}

fn request(load: &Load) -> Vec<u8> {
    if load.mode == Mode::Tunnel {
        let fields = "Connection: Upgrade\r\nUpgrade: echo\r\n";
        return format!("GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: bench\r\n{fields}\r\n")
            .into_bytes();
    }
    let (method, framing) = match (load.upload, load.chunked) {
        (0, _) => ("GET", String::new()),
        (_, true) => ("POST", "Transfer-Encoding: chunked\r\n".to_owned()),
        (upload, false) => ("POST", format!("Content-Length: {upload}\r\n")),
    };
    let path = if load.chunked && load.upload == 0 { "chunked" } else { "bytes" };
    let close = if load.mode == Mode::Close { "Connection: close\r\n" } else { "" };
    let head = format!(
        "{method} /{path}/{} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: bench\r\nAccept: */*\r\n{framing}{close}\r\n",
        load.body
    );
    let mut request = head.into_bytes();
    match (load.upload, load.chunked) {
        (0, _) => {}
        (upload, true) => request.extend(chunks::body(upload)),
        (upload, false) => request.extend(payload::body(upload)),
    }
    request
}

impl Connection {
    /// Sends what the socket takes; true when the whole request is sent.
    fn send(&mut self, request: &[u8]) -> Result<bool, Fault> {
        if let Some(session) = &mut self.session {
            return session.send(&mut self.stream, request, &mut self.sent);
        }
        while self.sent < request.len() {
            match self.stream.write(&request[self.sent..]) {
                Ok(length) => self.sent += length,
                // Not connected yet: the event comes when it is.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(true)
    }
}

fn receive(stream: &mut TcpStream, scratch: &mut [u8]) -> Result<Option<Received>, Fault> {
    match stream.read(scratch) {
        Ok(length) => Ok(Some(Received { length, drained: length < scratch.len() })),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(broken(&error)),
    }
}

fn broken(error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::ConnectionRefused { Fault::Connect } else { Fault::Reset }
}

#[cfg(test)]
mod tests;
