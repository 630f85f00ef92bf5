//! A connection of a test that sends and receives what can be at once, and waits for readiness both ways.

use std::{
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{wait, wire::Stream};

impl Stream {
    pub(crate) fn set_nonblocking(&mut self, on: bool) {
        match self {
            Stream::Tcp(tcp) => tcp.set_nonblocking(on),
            Stream::Unix(unix) => unix.set_nonblocking(on),
            Stream::Tls(socket) => socket.tcp.set_nonblocking(on),
        }
        .expect("O_NONBLOCK");
    }

    /// Reads something; 0: the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.read(buffer),
            Stream::Unix(unix) => unix.read(buffer),
            Stream::Tls(socket) => socket.read(buffer),
        }
    }

    /// Reads what is there, whether or not anything can be written.
    pub(crate) fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tls(socket) => socket.read_now(buffer),
            Stream::Tcp(_) | Stream::Unix(_) => self.read(buffer),
        }
    }

    /// Sends all of it.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.write_all(bytes),
            Stream::Unix(unix) => unix.write_all(bytes),
            Stream::Tls(socket) => socket.write_all(bytes),
        }
    }

    /// Writes what is taken now. Over TLS that may still have to leave: see [`Stream::wants_write`].
    pub(crate) fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.write(bytes),
            Stream::Unix(unix) => unix.write(bytes),
            Stream::Tls(socket) => socket.write_now(bytes),
        }
    }

    /// Something that was taken has not left.
    pub(crate) fn wants_write(&self) -> bool {
        match self {
            Stream::Tls(socket) => socket.connection.wants_write(),
            Stream::Tcp(_) | Stream::Unix(_) => false,
        }
    }

    /// Lets something of it leave; whether anything did.
    pub(crate) fn flush_now(&mut self) -> bool {
        match self {
            Stream::Tls(socket) => socket.connection.write_tls(&mut socket.tcp).is_ok_and(|count| count > 0),
            Stream::Tcp(_) | Stream::Unix(_) => false,
        }
    }

    /// Waits until the socket can be read or written, or `until`.
    pub(crate) fn wait_for(&self, read: bool, write: bool, until: Instant) {
        let fd = match self {
            Stream::Tcp(tcp) => tcp.as_fd(),
            Stream::Unix(unix) => unix.as_fd(),
            Stream::Tls(socket) => socket.tcp.as_fd(),
        };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, read);
        flags.set(PollFlags::POLLOUT, write);
        let left = until.saturating_duration_since(Instant::now());
        if flags.is_empty() {
            // Both directions pause.
            return wait::pace(left.min(Duration::from_millis(5)));
        }
        let timeout =
            PollTimeout::try_from(left.min(Duration::from_millis(100))).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(fd, flags)], timeout);
    }

    /// Closes one or both directions.
    pub(crate) fn shutdown(&mut self, how: Shutdown) {
        let _ = match self {
            Stream::Tcp(tcp) => tcp.shutdown(how),
            Stream::Unix(unix) => unix.shutdown(how),
            Stream::Tls(socket) => {
                socket.shutdown(how);
                Ok(())
            }
        };
    }
}
