//! Both directions of one exchange at once: each side sends and receives megabytes at paces of its own, and compares every
//! byte that arrives with the one that was sent.
//!
//! A [`Body`] is known by its size and its place in a table of noise, so that either side can tell what the other sends.
//! A [`Plan`] says what both sides do; [`Mirror`] is the backend that follows the plans of a test.

use std::{
    collections::HashMap,
    io,
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::Path,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use super::{Dice, Lock, Server, noise, wait, wire::Stream};

/// Length of the table that bodies are cut from: a prime, so that nothing in the proxy has its period.
const TABLE: usize = 1_048_573;
/// Longest piece that is sent or received at once (bytes).
const MAX_PIECE: usize = 256 * 1024;
/// How long neither direction may get on (pauses of the plan are no standstill).
const STANDSTILL: Duration = Duration::from_secs(15);

fn table() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut bytes = noise(TABLE);
        bytes.extend_from_within(..MAX_PIECE);
        bytes
    })
}

/// A body, and how it is sent and received.
#[derive(Debug, Clone, Default)]
pub(crate) struct Body {
    pub(crate) size: usize,
    pub(crate) chunked: bool,
    /// Where in the table it begins.
    pub(crate) place: usize,
    /// Longest piece that its sender sends, which is also the longest chunk; and that its receiver takes.
    pub(crate) pieces: [usize; 2],
    /// After so many bytes its sender pauses.
    pub(crate) send_pauses: Vec<(usize, Duration)>,
    /// After so many bytes its receiver pauses.
    pub(crate) receive_pauses: Vec<(usize, Duration)>,
}

impl Body {
    /// Content-Length, no pauses.
    pub(crate) fn of(size: usize) -> Body {
        Body { size, pieces: [MAX_PIECE; 2], ..Body::default() }
    }

    fn piece(&self, from: usize, length: usize) -> &'static [u8] {
        let from = (self.place + from) % TABLE;
        &table()[from..from + length]
    }

    fn field(&self) -> String {
        if self.chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {}", self.size)
        }
    }
}

/// Which of the two bodies is held back near its end until the other one has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    /// The response ends after the backend has the whole request.
    #[default]
    UploadFirst,
    /// The request ends after the client has the whole response. What is left of it then need not reach the backend.
    ResponseFirst,
}

/// One exchange.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub(crate) up: Body,
    pub(crate) down: Body,
    pub(crate) order: Order,
    /// The backend answers when so much of the request's body has come, or all of it.
    pub(crate) answer_after: usize,
}

/// Sizes and pauses of random plans.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// Largest body (bytes).
    pub(crate) size: usize,
    /// Longest pause.
    pub(crate) pause: Duration,
}

impl Plan {
    /// A random exchange.
    pub(crate) fn random(dice: &mut Dice, range: Range) -> Plan {
        let [up, down] = [(); 2].map(|()| {
            let size = match dice.below(4) {
                0 => dice.below(range.size + 1),
                1 => dice.pick(&[0, 1, 65_535, 65_536, 65_537, 131_072, 1 << 20]).min(range.size),
                _ => dice.magnitude(range.size),
            };
            let pieces = [(); 2].map(|()| {
                // A body must not need more than some thousands of system calls.
                (1 + dice.magnitude(MAX_PIECE - 1)).max(size / 2_000).min(MAX_PIECE)
            });
            let mut pauses = || {
                let count = dice.pick(&[0, 0, 0, 1, 2]);
                let mut pauses: Vec<_> = (0..count)
                    .map(|_| {
                        let span = range.pause.mul_f64(dice.below(1_000) as f64 / 1_000.0);
                        (dice.below(size + 1), span)
                    })
                    .collect();
                pauses.sort_unstable();
                pauses
            };
            let (send_pauses, receive_pauses) = (pauses(), pauses());
            let (chunked, place) = (dice.once_in(2), dice.below(TABLE));
            Body { size, chunked, place, pieces, send_pauses, receive_pauses }
        });
        let order = if dice.once_in(3) { Order::ResponseFirst } else { Order::UploadFirst };
        let answer_after = match order {
            // Of no body nothing can be held back.
            Order::UploadFirst if down.size == 0 => usize::MAX,
            Order::UploadFirst => dice.pick(&[0, 0, up.size / 2, usize::MAX]),
            Order::ResponseFirst => dice.pick(&[0, 0, up.size / 4]),
        };
        Plan { up, down, order, answer_after }
    }

    /// The head of the request, for the plan with this number.
    pub(crate) fn head(&self, number: usize) -> String {
        format!("POST /{number} HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", self.up.field())
    }
}

/// What has become of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// All of it arrived, every byte right.
    Whole,
    /// The connection ended after so many right bytes of the body.
    Cut(usize),
}

/// The bytes of one direction on their way out.
struct Sending<'a> {
    body: &'a Body,
    /// Framing, or a piece that was not taken whole.
    pending: Vec<u8>,
    written: usize,
    sent: usize,
    ended: bool,
    /// Bytes of the body that may be sent before the other direction is complete.
    limit: usize,
    pause: Pauses,
}

/// The bytes of one direction as they arrive.
struct Receiving<'a> {
    body: &'a Body,
    buffer: Vec<u8>,
    taken: usize,
    got: usize,
    /// Bytes of the chunk that still have to come, its line end included.
    chunk: usize,
    state: State,
    head: String,
    pause: Pauses,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length,
    ChunkLine,
    Chunk,
    Trailer,
    Done,
}

struct Pauses {
    left: Vec<(usize, Duration)>,
    until: Option<Instant>,
}

impl Pauses {
    fn new(pauses: &[(usize, Duration)]) -> Pauses {
        Pauses { left: pauses.iter().rev().copied().collect(), until: None }
    }

    /// The end of the pause, where there is one now.
    fn now(&mut self, moved: usize) -> Option<Instant> {
        if let Some(&(at, span)) = self.left.last()
            && self.until.is_none()
            && moved >= at
        {
            self.left.pop();
            self.until = Some(Instant::now() + span);
        }
        self.until = self.until.filter(|&until| Instant::now() < until);
        self.until
    }
}

impl<'a> Sending<'a> {
    fn new(head: Vec<u8>, body: &'a Body, held: bool) -> Sending<'a> {
        // Half of it, but never all: something has to be left for the end.
        let limit = if held { body.size / 2 } else { usize::MAX };
        let pause = Pauses::new(&body.send_pauses);
        Sending { body, pending: head, written: 0, sent: 0, ended: false, limit, pause }
    }

    /// Puts the next piece into `pending`; false when there is none now.
    fn refill(&mut self, dice: &mut Dice) -> bool {
        if self.written < self.pending.len() {
            return true;
        }
        self.pending.clear();
        self.written = 0;
        let left = self.body.size.min(self.limit) - self.sent;
        if left > 0 {
            let length = left.min(1 + dice.below(self.body.pieces[0]));
            let piece = self.body.piece(self.sent, length);
            if self.body.chunked {
                self.pending.extend_from_slice(format!("{length:x}\r\n").as_bytes());
                self.pending.extend_from_slice(piece);
                self.pending.extend_from_slice(b"\r\n");
            } else {
                self.pending.extend_from_slice(piece);
            }
            self.sent += length;
        } else if self.sent == self.body.size && self.limit == usize::MAX && !self.ended {
            self.ended = true;
            if self.body.chunked {
                self.pending.extend_from_slice(b"0\r\n\r\n");
            }
        }
        !self.pending.is_empty()
    }

    fn is_done(&self) -> bool {
        self.ended && self.written == self.pending.len()
    }
}

impl<'a> Receiving<'a> {
    fn new(body: &'a Body, leftover: Vec<u8>) -> Receiving<'a> {
        let pause = Pauses::new(&body.receive_pauses);
        Receiving {
            body,
            buffer: leftover,
            taken: 0,
            got: 0,
            chunk: 0,
            state: State::Head,
            head: String::new(),
            pause,
        }
    }

    /// What was read with the head by somebody else.
    fn after_head(body: &'a Body, framing: &str, leftover: Vec<u8>) -> Receiving<'a> {
        let mut receiving = Receiving::new(body, leftover);
        receiving.begin(framing);
        receiving
    }

    fn begin(&mut self, head: &str) {
        let head = head.to_ascii_lowercase();
        self.state = if head.contains("\r\ntransfer-encoding: chunked\r\n") {
            State::ChunkLine
        } else if self.body.size == 0 {
            State::Done
        } else {
            State::Length
        };
        if self.state == State::Length {
            assert!(
                head.contains(&format!("\r\ncontent-length: {}\r\n", self.body.size)),
                "another length than {}: {head}",
                self.body.size
            );
        }
        self.head = head;
    }

    fn line(&mut self, end: &[u8]) -> Option<String> {
        let waiting = &self.buffer[self.taken..];
        let place = waiting.windows(end.len()).position(|window| window == end)?;
        let line = String::from_utf8_lossy(&waiting[..place + end.len()]).into_owned();
        self.taken += place + end.len();
        Some(line)
    }

    /// Takes what is in the buffer; fails the test at the first byte that is wrong.
    fn digest(&mut self, who: &str) {
        loop {
            match self.state {
                State::Head => {
                    let Some(head) = self.line(b"\r\n\r\n") else { break };
                    assert!(head.starts_with("HTTP/1.1 200 "), "{who}: {head}");
                    self.begin(&head);
                }
                State::Length => {
                    self.compare(self.body.size - self.got, who);
                    if self.got < self.body.size {
                        break;
                    }
                    self.state = State::Done;
                }
                State::ChunkLine => {
                    let Some(line) = self.line(b"\r\n") else { break };
                    let size = line.split(';').next().unwrap_or("").trim();
                    let size = usize::from_str_radix(size, 16)
                        .unwrap_or_else(|_| panic!("{who}: `{line}` for a size after {} bytes", self.got));
                    self.chunk = size + 2;
                    self.state = if size == 0 { State::Trailer } else { State::Chunk };
                }
                State::Chunk => {
                    if self.chunk > 2 {
                        let before = self.got;
                        self.compare(self.chunk - 2, who);
                        self.chunk -= self.got - before;
                    }
                    if self.chunk > 2 || self.buffer.len() - self.taken < 2 {
                        break;
                    }
                    let end = &self.buffer[self.taken..self.taken + 2];
                    assert_eq!(end, b"\r\n", "{who}: the end of a chunk after {} bytes", self.got);
                    self.taken += 2;
                    self.state = State::ChunkLine;
                }
                State::Trailer => {
                    let Some(line) = self.line(b"\r\n") else { break };
                    assert_eq!(line, "\r\n", "{who}: a trailer that nobody sent");
                    assert_eq!(self.got, self.body.size, "{who}: the end of the body, by its chunks");
                    self.state = State::Done;
                }
                State::Done => break,
            }
        }
        self.buffer.drain(..self.taken);
        self.taken = 0;
    }

    /// Compares up to `most` bytes with those that were sent.
    fn compare(&mut self, mut most: usize, who: &str) {
        loop {
            let waiting = &self.buffer[self.taken..];
            let length = waiting.len().min(MAX_PIECE).min(most);
            if length == 0 {
                return;
            }
            assert!(self.got + length <= self.body.size, "{who}: more than {} bytes", self.body.size);
            let expected = self.body.piece(self.got, length);
            if let Some(place) = waiting[..length].iter().zip(expected).position(|(a, b)| a != b) {
                panic!("{who}: byte {} of {} is wrong", self.got + place, self.body.size);
            }
            self.got += length;
            self.taken += length;
            most -= length;
        }
    }

    fn fate(&self) -> Fate {
        if self.state == State::Done { Fate::Whole } else { Fate::Cut(self.got) }
    }
}

/// What one side has seen.
pub(crate) struct Seen {
    /// Of the direction that came in.
    pub(crate) fate: Fate,
    /// The head that came in, in lower case; that of a request was read before.
    pub(crate) head: String,
    /// All of the other direction could be sent.
    pub(crate) sent: bool,
    /// What came behind the message.
    leftover: Vec<u8>,
}

/// Sends one message and receives the other at the same time.
fn run(
    stream: &mut Stream,
    mut out: Sending<'_>,
    mut input: Receiving<'_>,
    answer_after: usize,
    who: &str,
) -> Seen {
    let mut dice = Dice::new(out.body.place as u64 ^ input.body.place as u64);
    let mut piece = vec![0; MAX_PIECE];
    let mut last = Instant::now();
    let (mut broken, mut ended) = (false, false);
    stream.set_nonblocking(true);
    loop {
        input.digest(who);
        let received = input.state == State::Done;
        if received {
            out.limit = usize::MAX;
        }
        if (received || ended) && (broken || out.is_done() && !stream.wants_write()) {
            break;
        }
        let pauses = [out.pause.now(out.sent), input.pause.now(input.got)];
        let may_send = !broken
            && pauses[0].is_none()
            && (received || input.got >= answer_after)
            && out.refill(&mut dice);
        let may_receive = !received && !ended && pauses[1].is_none();
        let mut moved = false;
        if may_send {
            match stream.write_now(&out.pending[out.written..]) {
                Ok(taken) => {
                    out.written += taken;
                    moved = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => broken = true,
            }
        }
        if may_receive {
            let most = 1 + dice.below(input.body.pieces[1].max(64));
            match stream.read_now(&mut piece[..most.min(MAX_PIECE)]) {
                Ok(0) => ended = true,
                Ok(count) => {
                    input.buffer.extend_from_slice(&piece[..count]);
                    moved = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => (ended, broken) = (true, true),
            }
        }
        if !may_send && stream.wants_write() {
            moved |= stream.flush_now();
        }
        let paused = pauses.iter().flatten().min().copied();
        if moved || paused.is_some() {
            last = Instant::now();
        }
        if !moved && !ended {
            let until = paused.unwrap_or(last + STANDSTILL);
            if paused.is_none() && Instant::now() > until {
                eprintln!(
                    "{who}: stands still with {} of {} bytes sent, {} of {} received ({:?})",
                    out.sent, out.body.size, input.got, input.body.size, input.state
                );
                break;
            }
            stream.wait_for(may_receive, may_send || stream.wants_write(), until);
        } else if ended && !moved && !broken {
            // It reads no more, but it may still listen.
            broken = !may_send || received;
        }
    }
    stream.set_nonblocking(false);
    Seen { fate: input.fate(), head: input.head, sent: out.is_done() && !broken, leftover: input.buffer }
}

/// The client's side of an exchange.
pub(crate) fn call(stream: &mut Stream, plan: &Plan, number: usize) -> Seen {
    let out = Sending::new(plan.head(number).into_bytes(), &plan.up, plan.order == Order::ResponseFirst);
    run(stream, out, Receiving::new(&plan.down, Vec::new()), 0, &format!("client of {number}"))
}

/// A backend that follows plans.
pub(crate) struct Mirror {
    address: String,
    plans: Arc<Lock<HashMap<usize, Plan>>>,
    seen: Arc<Lock<HashMap<usize, Seen>>>,
}

impl Mirror {
    /// Over TCP, or TLS.
    pub(crate) fn tcp(server: Option<&Server>) -> Mirror {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for a backend");
        let address = listener.local_addr().expect("the address of a backend").to_string();
        let server = server.cloned();
        Mirror::run(address, move || {
            let (tcp, _) = listener.accept().ok()?;
            let _ = tcp.set_nodelay(true);
            Some(match &server {
                None => Stream::Tcp(tcp),
                Some(server) => {
                    let mut socket = server.accept(tcp);
                    // A handshake that fails is seen by the proxy.
                    let _ = socket.shake();
                    Stream::Tls(Box::new(socket))
                }
            })
        })
    }

    /// On a Unix socket at `path`.
    pub(crate) fn unix(path: &Path) -> Mirror {
        let listener = UnixListener::bind(path).expect("a socket for a backend");
        Mirror::run(format!("unix:{}", path.display()), move || Some(Stream::Unix(listener.accept().ok()?.0)))
    }

    fn run(address: String, accept: impl Fn() -> Option<Stream> + Send + 'static) -> Mirror {
        let plans = Arc::new(Lock::<HashMap<usize, Plan>>::default());
        let seen = Arc::new(Lock::default());
        let (known, results) = (Arc::clone(&plans), Arc::clone(&seen));
        // It ends with the process of the test: a listener that nobody connects to costs nothing.
        thread::spawn(move || {
            while let Some(mut stream) = accept() {
                let (plans, results) = (Arc::clone(&known), Arc::clone(&results));
                thread::spawn(move || while serve(&mut stream, &plans, &results).is_some() {});
            }
        });
        Mirror { address, plans, seen }
    }

    /// As a value of `backends[].address`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Makes a plan known, before its client calls.
    pub(crate) fn expect(&self, number: usize, plan: &Plan) {
        self.plans.lock().expect("plans").insert(number, plan.clone());
    }

    /// What the backend saw of the exchange with this number.
    #[track_caller]
    pub(crate) fn seen(&self, number: usize) -> Seen {
        let what = format!("the backend's end of exchange {number}");
        wait::within(STANDSTILL * 2, &what, || self.seen.lock().expect("results").remove(&number))
    }
}

/// Serves one exchange; `None` where there was none.
fn serve(
    stream: &mut Stream,
    plans: &Lock<HashMap<usize, Plan>>,
    results: &Lock<HashMap<usize, Seen>>,
) -> Option<()> {
    let mut head = Vec::new();
    let mut piece = [0; 16_384];
    let end = loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut piece) {
            Ok(count @ 1..) => head.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    };
    let leftover = head.split_off(end);
    let head = String::from_utf8_lossy(&head).into_owned();
    let number = head.split(['/', ' ']).nth(2)?.parse().ok()?;
    let plan = plans.lock().expect("plans").get(&number)?.clone();
    let out = format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", plan.down.field()).into_bytes();
    let held = plan.order == Order::UploadFirst;
    let who = format!("backend of {number}");
    let seen = run(
        stream,
        Sending::new(out, &plan.down, held),
        Receiving::after_head(&plan.up, &head, leftover),
        plan.answer_after,
        &who,
    );
    let goes_on = seen.fate == Fate::Whole && seen.sent && seen.leftover.is_empty();
    results.lock().expect("results").insert(number, seen);
    if !goes_on {
        stream.shutdown(Shutdown::Both);
    }
    goes_on.then_some(())
}

/// A connection in clear text for one side of an exchange.
pub(crate) fn plain(address: std::net::SocketAddr) -> Stream {
    let tcp = TcpStream::connect(address).expect("a connection to the proxy");
    tcp.set_nodelay(true).expect("TCP_NODELAY");
    Stream::Tcp(tcp)
}
