//! A socket with a read buffer, a deadline for every read, and an exact account of how it ended.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use rustls::AlertDescription;

use super::tls_socket::{TlsSocket, end_of, wait_for};

/// How a stream stopped giving bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed in order.
    Eof,
    /// The peer cut the connection.
    Reset,
    /// Nothing came before the deadline.
    Deadline,
    /// The bytes are no HTTP/1, or no TLS.
    Garbage,
    /// The peer closed without saying so in TLS.
    Cut,
    /// The peer said in TLS what it does not like.
    Alert(AlertDescription),
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

/// A stream socket of either family, or TLS over one.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsSocket>),
}

impl Stream {
    /// The TCP socket below.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Stream::Tcp(stream) => Some(stream),
            Stream::Tls(socket) => Some(&socket.tcp),
            Stream::Unix(_) => None,
        }
    }
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
            Stream::Tls(socket) => socket.write_all(bytes),
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
        let _ = match &mut self.stream {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
            Stream::Tls(socket) => {
                socket.shutdown(how);
                Ok(())
            }
        };
    }

    /// Closes our direction of the TCP connection, without a word of TLS.
    pub(crate) fn cut(&mut self) {
        self.stream.tcp().expect("TCP").shutdown(Shutdown::Write).expect("shutdown");
    }

    /// TLS, for what only that can.
    #[track_caller]
    pub(crate) fn tls(&mut self) -> &mut TlsSocket {
        match &mut self.stream {
            Stream::Tls(socket) => socket,
            _ => panic!("there is no TLS here"),
        }
    }

    /// Sends these bytes over TCP, as they are.
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut tcp = self.stream.tcp().expect("TCP");
        tcp.write_all(bytes)
    }

    /// Sends `data` and receives `count` bytes at the same time.
    pub(crate) fn converse(&mut self, mut data: &[u8], count: usize) -> Result<Vec<u8>, End> {
        let limit = self.patience.unwrap_or(Duration::from_secs(60));
        let tcp = match &mut self.stream {
            Stream::Tls(socket) => return socket.converse(data, count, limit),
            Stream::Unix(_) => panic!("there is no TCP here"),
            Stream::Tcp(tcp) => tcp,
        };
        let deadline = Instant::now() + limit;
        let mut got = Vec::with_capacity(count);
        let mut piece = vec![0; 65_536];
        tcp.set_nonblocking(true).expect("O_NONBLOCK");
        while got.len() < count || !data.is_empty() {
            let mut moved = false;
            if !data.is_empty() {
                match tcp.write(data) {
                    Ok(taken) => {
                        data = &data[taken..];
                        moved = true;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(end_of(&error)),
                }
            }
            match tcp.read(&mut piece) {
                Ok(0) => return Err(End::Eof),
                Ok(length) => {
                    got.extend(&piece[..length]);
                    moved = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(end_of(&error)),
            }
            if !moved && !wait_for(tcp, !data.is_empty(), deadline) {
                return Err(End::Deadline);
            }
        }
        tcp.set_nonblocking(false).expect("O_NONBLOCK");
        Ok(got)
    }

    /// Ends a TCP connection with a reset instead of an orderly close, once the wire is dropped.
    pub(crate) fn reset_on_close(&mut self) {
        self.ends_with_reset = true;
        if let Some(stream) = self.stream.tcp() {
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
                Stream::Tls(socket) => {
                    socket.tcp.set_read_timeout(left).and_then(|()| socket.read(&mut piece))
                }
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
                    _ => break end_of(&error),
                },
            }
        };
        Err(Broken { end, got: self.buffer[self.taken..].to_vec() })
    }
}
