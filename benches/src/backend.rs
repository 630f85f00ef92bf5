//! A backend that costs as little as it can: fixed answers, one thread, keep-alive, edge-triggered epoll.
//!
//! `GET /bytes/N` answers N bytes of [`payload`], `/chunked/N` the same in chunks; `/16` and `/1m` are short for the two
//! usual sizes. A request with `Upgrade` makes a tunnel, which sends back what comes. A request body is read and thrown away before the answer. Per request it makes one `read` and
//! one `write`.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use socket2::{Domain, Socket, Type};

use crate::chunks::{Chunks, Malformed};
use crate::{Attempt, BenchError, chunks, cores, payload};

mod request;

use request::parse;

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);
/// Proxies open up to one connection per client at once; the kernel caps this by `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
/// The answer to an upgrade.
const AGREEMENT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
/// Answers up to this size are kept whole, head and body in one piece.
const WHOLE_ANSWER_MAX: usize = 16 << 10;

/// A running backend; dropping it stops it.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Starts the backend on a free loopback port, in a thread on `core`.
    ///
    /// # Errors
    /// If the listener, the epoll instance or the thread cannot be had, or the core is not allowed.
    pub fn start(core: usize) -> Result<Self, BenchError> {
        let (ready, started) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("backend".into())
            .spawn(move || match cores::pin_this_thread(core).and_then(|()| Server::new()) {
                Ok((server, address, stop)) => {
                    if ready.send(Ok((address, stop))).is_ok() {
                        server.run();
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .attempt(|| "cannot start the backend's thread".into())?;
        let (address, stop) =
            started.recv().map_err(|_| BenchError::Program("the backend's thread died at once".into()))??;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // If the wake-up fails the thread cannot be told to stop; it ends with the process.
        if self.stop.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            drop(thread.join());
        }
    }
}

struct Connection {
    stream: TcpStream,
    /// Start of a request head whose end has not come yet, or requests sent ahead.
    input: Vec<u8>,
    /// Bytes of a request body that are still to be thrown away, before `answer` is sent.
    skip: u64,
    /// The same of one in chunks.
    chunks: Option<Chunks>,
    answer: Option<Answer>,
    close: bool,
    /// What comes is sent back.
    echoes: bool,
}

/// An answer under way: `start` holds the head and perhaps the body, the rest comes from the arena.
struct Answer {
    start: Rc<[u8]>,
    arena_length: usize,
    written: usize,
}

enum Next {
    Wait,
    Drop,
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    answers: Answers,
    scratch: Box<[u8]>,
}

impl Server {
    fn new() -> Result<(Self, SocketAddr, Waker), BenchError> {
        let set_up = || {
            let mut listener = listen()?;
            let address = listener.local_addr()?;
            let poll = Poll::new()?;
            poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
            let stop = Waker::new(poll.registry(), STOP)?;
            let server = Self {
                poll,
                listener,
                connections: Slab::new(),
                answers: Answers { arena: payload::body(payload::MAX_BODY), known: Vec::new() },
                scratch: vec![0; 64 << 10].into(),
            };
            io::Result::Ok((server, address, stop))
        };
        set_up().attempt(|| "cannot set up the backend".into())
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        loop {
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            for event in &events {
                match event.token() {
                    STOP => return,
                    LISTENER => self.accept(),
                    Token(key) => self.serve(key, event),
                }
            }
        }
    }

    /// Takes all that waits: an edge-triggered listener reports a burst once.
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let entry = self.connections.vacant_entry();
            let token = Token(entry.key());
            let connection = entry.insert(Connection {
                stream,
                input: Vec::new(),
                skip: 0,
                chunks: None,
                answer: None,
                close: false,
                echoes: false,
            });
            let registered = connection.stream.set_nodelay(true).and_then(|()| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut connection.stream, token, interest)
            });
            if registered.is_err() {
                self.connections.remove(token.0);
            }
        }
    }

    fn serve(&mut self, key: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let next = connection.advance(event.is_read_closed(), &mut self.answers, &mut self.scratch);
        if matches!(next, Ok(Next::Drop) | Err(_)) {
            self.connections.remove(key);
        }
    }
}

fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

impl Connection {
    /// Does all that can be done now. A short read means that the socket is empty and that the next bytes
    /// will be announced, unless the end of the stream (`ended`) already was.
    fn advance(&mut self, ended: bool, answers: &mut Answers, scratch: &mut [u8]) -> io::Result<Next> {
        let mut drained = false;
        loop {
            if self.skip == 0
                && self.chunks.is_none()
                && let Some(answer) = &mut self.answer
            {
                if !answer.write(&mut self.stream, &answers.arena)? {
                    return Ok(Next::Wait);
                }
                self.answer = None;
                if self.close {
                    return Ok(Next::Drop);
                }
            }
            if self.answer.is_none() && !self.input.is_empty() && self.start_request(answers)? {
                continue;
            }
            if drained && !ended {
                return Ok(Next::Wait);
            }
            let length = match self.stream.read(scratch) {
                Ok(0) => return Ok(Next::Drop),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Wait),
                Err(error) => return Err(error),
            };
            drained = length < scratch.len();
            if self.echoes {
                // Messages are short, and one is answered before the next comes.
                self.stream.write_all(&scratch[..length])?;
                continue;
            }
            let mut skipped = self.skip.min(length as u64) as usize;
            self.skip -= skipped as u64;
            skipped += self.skip_chunks(&scratch[skipped..length])?;
            self.input.extend_from_slice(&scratch[skipped..length]);
        }
    }

    /// Takes a whole head, and what is there of its body, from `input`; false if the head is not whole yet.
    fn start_request(&mut self, answers: &mut Answers) -> io::Result<bool> {
        let Some(request) = parse(&self.input)? else { return Ok(false) };
        self.close = request.close;
        self.echoes = request.upgrade;
        self.answer = Some(match request.upgrade {
            true => Answer { start: Rc::from(AGREEMENT), arena_length: 0, written: 0 },
            false => answers.to(request.body, request.chunked),
        });
        self.chunks = request.in_chunks.then(Chunks::default);
        let skipped = request.content_length.min((self.input.len() - request.head_length) as u64);
        self.skip = request.content_length - skipped;
        self.input.drain(..request.head_length + skipped as usize);
        let input = std::mem::take(&mut self.input);
        let skipped = self.skip_chunks(&input)?;
        self.input.extend_from_slice(&input[skipped..]);
        Ok(true)
    }

    /// Throws away what belongs to a request body in chunks, and says how much that was.
    fn skip_chunks(&mut self, input: &[u8]) -> io::Result<usize> {
        let Some(chunks) = &mut self.chunks else { return Ok(0) };
        let taken = chunks.take(input, |_| Ok::<_, Malformed>(()));
        let taken = taken.map_err(|Malformed| io::Error::from(io::ErrorKind::InvalidData))?;
        if chunks.is_done() {
            self.chunks = None;
        }
        Ok(taken)
    }
}

impl Answer {
    /// Writes what the socket takes; true when all is written.
    fn write(&mut self, stream: &mut TcpStream, arena: &[u8]) -> io::Result<bool> {
        let total = self.start.len() + self.arena_length;
        while self.written < total {
            let result = match self.written.checked_sub(self.start.len()) {
                Some(from_arena) => stream.write(&arena[from_arena..self.arena_length]),
                None if self.arena_length == 0 => stream.write(&self.start[self.written..]),
                None => stream.write_vectored(&[
                    IoSlice::new(&self.start[self.written..]),
                    IoSlice::new(&arena[..self.arena_length]),
                ]),
            };
            match result {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Length of a body, if there is one, and whether it is in chunks.
type Asked = (Option<usize>, bool);

/// Answers that were made before; a run asks for very few sizes.
struct Answers {
    arena: Vec<u8>,
    known: Vec<(Asked, Rc<[u8]>)>,
}

impl Answers {
    /// The answer with a body of `length` bytes, or the 404 if there is none.
    fn to(&mut self, length: Option<usize>, chunked: bool) -> Answer {
        let asked = (length, chunked);
        let start = match self.known.iter().find(|(known, _)| *known == asked) {
            Some((_, start)) => Rc::clone(start),
            None => {
                let start = self.make(asked);
                self.known.push((asked, Rc::clone(&start)));
                start
            }
        };
        let arena_length = length.filter(|&length| length > WHOLE_ANSWER_MAX && !chunked).unwrap_or(0);
        Answer { start, arena_length, written: 0 }
    }

    fn make(&self, (length, chunked): Asked) -> Rc<[u8]> {
        let Some(length) = length else {
            return Rc::from(&b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"[..]);
        };
        let framing = match chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {length}"),
        };
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/octet-stream\r\n{framing}\r\n\r\n"
        )
        .into_bytes();
        if chunked {
            answer.extend(chunks::body(length));
        } else if length <= WHOLE_ANSWER_MAX {
            answer.extend_from_slice(&self.arena[..length]);
        }
        answer.into()
    }
}
