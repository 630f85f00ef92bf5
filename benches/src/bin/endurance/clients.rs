//! The clients: requests at a fixed rate, whatever becomes of those before (an open loop), and tunnels with sequence
//! numbers.
//!
//! Latency counts from the moment at which the schedule wants a request, so a proxy that stands still for a while is
//! charged with all the requests that were due meanwhile.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::{
    task::spawn_local,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    servers::PAGE,
    stream::{Resumed, Stream, Trust},
    tally::{Failure, Kind, Tally},
};

/// A request without its whole answer after this long has failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Requests on a short keep-alive connection.
const SHORT: u32 = 10;
/// A slow body: so many parts, one after the other with this pause.
const PARTS: usize = 8;
const PART: usize = 4 << 10;
const PAUSE: Duration = Duration::from_millis(40);
/// Between two messages of a tunnel.
const BEAT: Duration = Duration::from_millis(500);
/// Of so many requests one is of each slow or large kind.
const SLOW_EVERY: u64 = 100;
/// A large body.
const LARGE: usize = 1 << 20;
/// A slow reader takes so much at once, with this pause between.
const SIP: usize = 16 << 10;
const SIP_PAUSE: Duration = Duration::from_millis(20);

/// Of so many groups of clients, one speaks TLS.
const SECURE_EVERY: u64 = 4;

/// The load of a run.
pub(crate) struct Load {
    /// The proxy, and the relay in front of it; the same over TLS.
    pub(crate) targets: [SocketAddr; 4],
    /// Of those over TLS.
    pub(crate) trust: Trust,
    /// Requests per second.
    pub(crate) rate: u32,
    pub(crate) tunnels: usize,
}

/// What the clients of a run share.
pub(crate) struct Clients {
    load: Load,
    pub(crate) tally: RefCell<Tally>,
    /// Idle connections by target: long-lived ones, and short-lived ones with the requests that they have had.
    long: [RefCell<VecDeque<Connection>>; 4],
    short: [RefCell<VecDeque<Connection>>; 4],
    stopping: Cell<bool>,
    running: Cell<usize>,
}

struct Connection {
    stream: Stream,
    requests: u32,
}

impl Clients {
    /// Starts them; they run on the current `LocalSet`.
    pub(crate) fn start(load: Load) -> Rc<Clients> {
        let clients = Rc::new(Clients {
            load,
            tally: RefCell::new(Tally::new()),
            long: Default::default(),
            short: Default::default(),
            stopping: Cell::new(false),
            running: Cell::new(0),
        });
        for n in 0..clients.load.tunnels {
            clients.run(Rc::clone(&clients).tunnel(clients.load.targets[n % 2]));
        }
        clients.run(Rc::clone(&clients).schedule());
        clients
    }

    fn run(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.running.set(self.running.get() + 1);
        let clients = Rc::clone(self);
        spawn_local(async move {
            task.await;
            clients.running.set(clients.running.get() - 1);
        });
    }

    /// Sends no more, and waits for the answers to what was sent.
    pub(crate) async fn stop(&self) {
        self.stopping.set(true);
        while self.running.get() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn schedule(self: Rc<Self>) {
        let began = Instant::now();
        let gap = Duration::from_secs(1) / self.load.rate;
        for n in 0_u64.. {
            if self.stopping.get() {
                return;
            }
            let due = began + gap * n as u32;
            sleep_until(due).await;
            let kind = match n % SLOW_EVERY {
                0 => Kind::Slow,
                25 => Kind::Large,
                50 => Kind::Sip,
                75 => Kind::Reset,
                n => [Kind::Long, Kind::Short, Kind::New, Kind::Long][n as usize % 4],
            };
            // A quarter of the clients is far away.
            let far = usize::from(n / 4 % 4 == 0);
            // Both directions of a large exchange are spliced: that is what it is for.
            let secure = kind != Kind::Large && n / 16 % SECURE_EVERY == 0;
            let target = far + 2 * usize::from(secure);
            self.run(Rc::clone(&self).request(kind, target, due));
        }
    }

    async fn request(self: Rc<Self>, kind: Kind, target: usize, due: Instant) {
        let (mut connection, was_idle) = match self.connection(kind, target).await {
            Ok(connection) => connection,
            Err(error) => return self.fail(kind, format!("cannot connect: {error}"), due, false),
        };
        {
            let mut tally = self.tally.borrow_mut();
            (tally.in_flight, tally.begun) = (tally.in_flight + 1, tally.begun + 1);
        }
        let outcome = timeout(PATIENCE, Box::pin(exchange(&mut connection.stream, kind))).await;
        self.tally.borrow_mut().in_flight -= 1;
        match outcome {
            Ok(Ok(ended)) => {
                connection.requests += 1;
                let mut tally = self.tally.borrow_mut();
                tally.answer(kind, due.elapsed());
                let secure = connection.stream.is_secure();
                tally.secure.requests += u64::from(secure);
                if ended && kind != Kind::New {
                    match kind {
                        _ if secure => tally.secure.ended += 1,
                        // The answer began before the request had been read to its end: what follows cannot be a request.
                        Kind::Large => {}
                        _ => tally.ended += 1,
                    }
                    return;
                }
                drop(tally);
                let idle = match kind {
                    Kind::Reset => {
                        // A connection that is gone already cannot be reset.
                        let _ = connection.stream.reset();
                        return;
                    }
                    Kind::Long | Kind::Slow | Kind::Large | Kind::Sip => &self.long[target],
                    Kind::Short if connection.requests < SHORT => &self.short[target],
                    _ => return,
                };
                idle.borrow_mut().push_back(connection);
            }
            Ok(Err(error)) => {
                let closed = matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                );
                self.fail(kind, error.to_string(), due, was_idle && closed);
            }
            Err(_) => self.fail(kind, format!("no answer within {} s", PATIENCE.as_secs()), due, false),
        }
    }

    fn fail(&self, kind: Kind, why: String, began: Instant, under_a_request: bool) {
        let (began, ended) = (began.into_std(), std::time::Instant::now());
        self.tally.borrow_mut().failures.push(Failure { kind, why, began, ended, under_a_request });
    }

    /// An idle connection that has not been closed, or a new one; and which of the two it is.
    async fn connection(&self, kind: Kind, target: usize) -> io::Result<(Connection, bool)> {
        let idle = match kind {
            Kind::Long | Kind::Slow | Kind::Large | Kind::Sip | Kind::Reset => Some(&self.long[target]),
            Kind::Short => Some(&self.short[target]),
            Kind::New | Kind::Message => None,
        };
        while let Some(mut connection) = idle.and_then(|idle| idle.borrow_mut().pop_front()) {
            if connection.stream.is_idle() {
                return Ok((connection, true));
            }
            // A client that looks sees that, and loses nothing.
            let tally = &mut *self.tally.borrow_mut();
            let closed = match connection.stream.is_secure() {
                true => &mut tally.secure.idle_closed,
                false => &mut tally.idle_closed,
            };
            *closed += 1;
        }
        let stream = timeout(PATIENCE, self.connect(target)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok((Connection { stream, requests: 0 }, false))
    }

    async fn connect(&self, target: usize) -> io::Result<Stream> {
        let address = self.load.targets[target];
        if target < 2 {
            return Stream::connect(address).await;
        }
        let (stream, resumed) = Stream::connect_secure(address, &self.load.trust).await?;
        let secure = &mut self.tally.borrow_mut().secure;
        secure.handshakes += 1;
        secure.offered += u64::from(resumed != Resumed::NotOffered);
        secure.resumed += u64::from(resumed == Resumed::Accepted);
        Ok(stream)
    }

    /// A tunnel for as long as the run lasts: messages with a number, each of which must come back.
    async fn tunnel(self: Rc<Self>, target: SocketAddr) {
        let mut began = Instant::now();
        let outcome = async {
            let mut stream = Stream::connect(target).await?;
            stream
                .write_all(b"GET /socket HTTP/1.1\r\nHost: endurance.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
                .await?;
            let head = stream.read_head().await?;
            if !head.starts_with("HTTP/1.1 101 ") {
                return Err(io::Error::other(format!("no tunnel: {head}")));
            }
            self.tally.borrow_mut().tunnels += 1;
            for number in 0_u64.. {
                if self.stopping.get() {
                    break;
                }
                let due = Instant::now();
                stream.write_all(&number.to_be_bytes()).await?;
                let mut echo = [0; 8];
                timeout(PATIENCE, stream.read_exact(&mut echo)).await.map_err(|_| io::ErrorKind::TimedOut)??;
                if u64::from_be_bytes(echo) != number {
                    return Err(io::Error::other(format!("{number} came back as {}", u64::from_be_bytes(echo))));
                }
                self.tally.borrow_mut().answer(Kind::Message, due.elapsed());
                began = Instant::now();
                sleep_until(due + BEAT).await;
            }
            Ok(())
        }
        .await;
        if let Err(error) = outcome {
            let (began, ended) = (began.into_std(), std::time::Instant::now());
            let why = error.to_string();
            self.tally.borrow_mut().broken.push(Failure {
                kind: Kind::Message,
                why,
                began,
                ended,
                under_a_request: false,
            });
        }
    }
}

/// Sends a request and reads its answer; whether that ends the connection.
async fn exchange(stream: &mut Stream, kind: Kind) -> io::Result<bool> {
    let get = |target| format!("GET {target} HTTP/1.1\r\nHost: endurance.test\r\n\r\n");
    let post = |target, length| {
        format!("POST {target} HTTP/1.1\r\nHost: endurance.test\r\nContent-Length: {length}\r\n\r\n")
    };
    match kind {
        Kind::Slow => {
            stream.write_all(post("/", PARTS * PART).as_bytes()).await?;
            for _ in 0..PARTS {
                sleep(PAUSE).await;
                stream.write_all(&[b'x'; PART]).await?;
            }
        }
        Kind::New => {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: endurance.test\r\nConnection: close\r\n\r\n").await?;
        }
        Kind::Large => stream.write_all(post("/echo", LARGE).as_bytes()).await?,
        Kind::Sip => stream.write_all(get("/chunked").as_bytes()).await?,
        Kind::Reset => stream.write_all(get("/page").as_bytes()).await?,
        Kind::Long | Kind::Short | Kind::Message => stream.write_all(get("/").as_bytes()).await?,
    }
    let head = stream.read_head().await?;
    if !head.starts_with("HTTP/1.1 200 ") {
        let line = head.lines().next().unwrap_or_default().to_owned();
        return Err(io::Error::other(line));
    }
    match kind {
        Kind::Large => {
            let (sent, mut got) = (pattern(LARGE), vec![0; LARGE]);
            stream.converse(&sent, &mut got).await?;
            if let Some(place) = got.iter().zip(&sent).position(|(a, b)| a != b) {
                return Err(io::Error::other(format!("another byte at {place} than the one that was sent")));
            }
        }
        Kind::Sip => Box::pin(read_slowly(stream)).await?,
        Kind::Reset => stream.read_exact(&mut [0; SIP]).await?,
        _ => {
            let mut body = [0; 16];
            stream.read_exact(&mut body).await?;
            if &body != b"sixteen bytes ok" {
                return Err(io::Error::other("another body than that of the backend"));
            }
        }
    }
    Ok(head.to_ascii_lowercase().contains("\r\nconnection: close\r\n"))
}

/// Bytes that repeat at no distance that a buffer could have.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// Reads a page in chunks, a sip at a time.
async fn read_slowly(stream: &mut Stream) -> io::Result<()> {
    let (mut total, mut sip) = (0, vec![0; SIP]);
    loop {
        let line = stream.read_line().await?;
        let mut left = usize::from_str_radix(&line, 16).map_err(io::Error::other)?;
        total += left;
        while left > 0 {
            let length = left.min(SIP);
            stream.read_exact(&mut sip[..length]).await?;
            if sip[..length].iter().any(|byte| *byte != b'p') {
                return Err(io::Error::other("another byte in a page than those of the backend"));
            }
            left -= length;
            sleep(SIP_PAUSE).await;
        }
        // What ends the chunk, or the body.
        stream.read_line().await?;
        if line == "0" {
            break;
        }
    }
    if total == PAGE { Ok(()) } else { Err(io::Error::other(format!("{total} bytes of a page of {PAGE}"))) }
}
