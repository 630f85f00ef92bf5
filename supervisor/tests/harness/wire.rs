//! A socket with a read buffer, a deadline for every read, and an exact account of how it ended.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// How a stream stopped giving bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed in order.
    Eof,
    /// The peer cut the connection.
    Reset,
    /// Nothing came before the deadline.
    Deadline,
    /// The bytes are no HTTP/1.
    Garbage,
}

/// A message that did not become whole.
#[derive(Debug, Clone)]
pub(crate) struct Broken {
    /// Why there is no more.
    pub(crate) end: End,
    /// What had come of it.
    pub(crate) got: Vec<u8>,
}

impl Broken {
    /// The same, with the bytes that had been read before.
    pub(crate) fn after(mut self, before: &[u8]) -> Broken {
        self.got.splice(0..0, before.iter().copied());
        self
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no whole message, ended by {:?} after: {}", self.end, super::show(&self.got))
    }
}

/// A stream socket of either family.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Takes a copy of all that is read.
pub(crate) type Tap = Box<dyn FnMut(&[u8]) + Send>;

/// The socket with what was read and not yet taken.
pub(crate) struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
    taken: usize,
    patience: Option<Duration>,
    tap: Option<Tap>,
    ends_with_reset: bool,
}

impl Wire {
    /// A read fails when its whole message did not come within `patience`; `None` waits for ever.
    pub(crate) fn new(stream: Stream, patience: Option<Duration>, tap: Option<Tap>) -> Wire {
        if let Stream::Tcp(stream) = &stream {
            stream.set_nodelay(true).expect("TCP_NODELAY");
        }
        Wire { stream, buffer: Vec::new(), taken: 0, patience, tap, ends_with_reset: false }
    }

    pub(crate) fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    /// Sends all of `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// The bytes up to and with the first `mark`.
    pub(crate) fn read_through(&mut self, mark: &[u8]) -> Result<Vec<u8>, Broken> {
        let deadline = self.deadline();
        let mut from = 0;
        loop {
            let waiting = &self.buffer[self.taken..];
            if let Some(place) = waiting[from..].windows(mark.len()).position(|window| window == mark) {
                return Ok(self.take(from + place + mark.len()));
            }
            from = waiting.len().saturating_sub(mark.len() - 1);
            self.fill(deadline)?;
        }
    }

    /// Exactly `count` bytes.
    pub(crate) fn read_exactly(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        let deadline = self.deadline();
        while self.buffer.len() - self.taken < count {
            self.fill(deadline)?;
        }
        Ok(self.take(count))
    }

    /// Whatever is there, at least one byte.
    pub(crate) fn read_some(&mut self) -> Result<Vec<u8>, Broken> {
        if self.buffer.len() == self.taken {
            let deadline = self.deadline();
            self.fill(deadline)?;
        }
        Ok(self.take(self.buffer.len() - self.taken))
    }

    /// All that comes until the stream ends, and how it ends.
    pub(crate) fn read_to_end(&mut self) -> (Vec<u8>, End) {
        let deadline = self.deadline();
        loop {
            if let Err(broken) = self.fill(deadline) {
                let rest = self.take(self.buffer.len() - self.taken);
                return (rest, broken.end);
            }
        }
    }

    /// Closes one or both directions; nothing where a reset is to come, since that would be an orderly end.
    pub(crate) fn shutdown(&mut self, how: Shutdown) {
        if self.ends_with_reset {
            return;
        }
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Ends a TCP connection with a reset instead of an orderly close, once the wire is dropped.
    pub(crate) fn reset_on_close(&mut self) {
        self.ends_with_reset = true;
        if let Stream::Tcp(stream) = &self.stream {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.patience.map(|patience| Instant::now() + patience)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.buffer[self.taken..self.taken + count].to_vec();
        self.taken += count;
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
        bytes
    }

    fn fill(&mut self, deadline: Option<Instant>) -> Result<(), Broken> {
        let mut piece = [0; 65_536];
        let end = loop {
            let left = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break End::Deadline,
                left => left,
            };
            let result = match &mut self.stream {
                Stream::Tcp(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(&mut piece)),
                Stream::Unix(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(&mut piece)),
            };
            match result {
                Ok(0) => break End::Eof,
                Ok(count) => {
                    if let Some(tap) = &mut self.tap {
                        tap(&piece[..count]);
                    }
                    self.buffer.extend_from_slice(&piece[..count]);
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => break End::Deadline,
                    _ => break End::Reset,
                },
            }
        };
        Err(Broken { end, got: self.buffer[self.taken..].to_vec() })
    }
}
