//! A socket with TLS over it, of either side, under full control: records, segments, and how it ends.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{AlertDescription, Connection, Error};

use super::End;

/// Runs once the handshake is done.
pub(crate) type Done = Box<dyn FnOnce(&Connection) + Send>;

/// The socket, and the state of TLS.
pub(crate) struct TlsSocket {
    pub(crate) tcp: TcpStream,
    pub(crate) connection: Connection,
    done: Option<Done>,
}

impl TlsSocket {
    /// The handshake is done by the first read, or by [`TlsSocket::shake`].
    pub(crate) fn new(tcp: TcpStream, connection: Connection, done: Option<Done>) -> TlsSocket {
        tcp.set_nodelay(true).expect("TCP_NODELAY");
        TlsSocket { tcp, connection, done }
    }

    /// Does the handshake.
    pub(crate) fn shake(&mut self) -> io::Result<()> {
        while self.connection.is_handshaking() {
            self.flush()?;
            if self.connection.is_handshaking() {
                self.take_in()?;
            }
        }
        self.flush()
    }

    /// Reads plaintext; `Ok(0)`: the peer has said that it sends no more. `UnexpectedEof`: it has gone without a word.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            self.flush()?;
            self.take_in()?;
        }
    }

    /// Receives once, and does what has to be done with it.
    fn take_in(&mut self) -> io::Result<()> {
        if self.connection.read_tls(&mut self.tcp)? == 0 && self.connection.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(error) = self.connection.process_new_packets() {
            let _ = self.flush();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if !self.connection.is_handshaking()
            && let Some(done) = self.done.take()
        {
            done(&self.connection);
        }
        Ok(())
    }

    /// Sends all of it.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = self.connection.writer().write(bytes)?;
            bytes = &bytes[taken..];
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }

    /// Reads what is there of a socket that does not wait, whether or not anything can be written.
    pub(crate) fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            self.take_in()?;
        }
    }

    /// Takes as many bytes as there is room for, and sends what can be sent without waiting.
    pub(crate) fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.connection.writer().write(bytes)?;
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ if taken == 0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(taken),
        }
    }

    /// Says that no more will be sent.
    pub(crate) fn close_notify(&mut self) {
        self.connection.send_close_notify();
        let _ = self.flush();
    }

    /// Says that no more will be sent, and closes the direction.
    pub(crate) fn shutdown(&mut self, how: Shutdown) {
        self.close_notify();
        let _ = self.tcp.shutdown(how);
    }

    /// The records that `pieces` become, each piece in one of its own, without sending them.
    pub(crate) fn seal(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            self.connection.writer().write_all(piece).expect("plaintext");
            while self.connection.wants_write() {
                self.connection.write_tls(&mut out).expect("a vector takes all");
            }
        }
        out
    }

    /// Sends `data` and receives `count` bytes at the same time.
    pub(crate) fn converse(&mut self, data: &[u8], count: usize, limit: Duration) -> Result<Vec<u8>, End> {
        self.tcp.set_nonblocking(true).expect("O_NONBLOCK");
        let outcome = self.converse_without_waiting(data, count, Instant::now() + limit);
        self.tcp.set_nonblocking(false).expect("O_NONBLOCK");
        outcome
    }

    fn converse_without_waiting(
        &mut self,
        mut data: &[u8],
        count: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, End> {
        let mut got = Vec::with_capacity(count);
        let mut piece = vec![0; 65_536];
        while got.len() < count || !data.is_empty() || self.connection.wants_write() {
            let taken = self.connection.writer().write(data).map_err(|error| end_of(&error))?;
            data = &data[taken..];
            let mut moved = taken > 0;
            for outcome in [self.flush(), self.read(&mut piece).map(|length| got.extend(&piece[..length]))] {
                match outcome {
                    Ok(()) => moved = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(end_of(&error)),
                }
            }
            if !moved && !wait_for(&self.tcp, self.connection.wants_write(), deadline) {
                return Err(End::Deadline);
            }
        }
        Ok(got)
    }
}

/// Waits until the socket can be read, or written if `write`; whether it can.
pub(super) fn wait_for(tcp: &TcpStream, write: bool, deadline: Instant) -> bool {
    let flags = if write { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(tcp.as_fd(), flags)], timeout).is_ok_and(|ready| ready > 0)
}

/// How a connection ended, by the error of its last read.
pub(crate) fn end_of(error: &io::Error) -> End {
    if let Some(alert) = alert_of(error) {
        return End::Alert(alert);
    }
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::Deadline,
        io::ErrorKind::UnexpectedEof => End::Cut,
        io::ErrorKind::InvalidData => End::Garbage,
        _ => End::Reset,
    }
}

/// The alert that the peer sent.
pub(crate) fn alert_of(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
