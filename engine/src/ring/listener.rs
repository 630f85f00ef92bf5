//! A listening socket: the ring waits, `accept4(2)` takes one connection after the other.
//!
//! # Warning
//! Never by `IORING_OP_ACCEPT`, multishot least of all: the kernel goes on accepting within one `io_uring_enter` as long as
//! connections come as fast as it takes them, and nobody is served meanwhile (60 ms for 1,000 connections of one client).

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::SocketAddr,
    num::NonZeroU32,
    os::fd::{IntoRawFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use socket2::SockRef;

use super::{
    buffers::Role,
    core::{Core, Ring},
    socket::Operation,
    stream::{Stream, receive_urgent_data_inline},
    sys,
};

/// A listening socket.
pub struct Listener {
    ring: Ring,
    core: Rc<Core>,
    slot: u32,
    queue: Cell<Queue>,
}

/// What is known of the queue of a listening socket. An accept that finds nothing costs as much as several looks (2 us; the kernel
/// makes a socket first), so it comes behind one.
#[derive(Clone, Copy)]
enum Queue {
    Unknown,
    /// So many connections were there at the last look; accepting tells.
    Holds(NonZeroU32),
    Empty,
}

/// A client that has just connected.
pub struct Accepted {
    /// Its connection.
    pub stream: Stream,
    /// Its address, if it has one.
    pub peer: Option<SocketAddr>,
}

/// Why nothing was accepted, and what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The process or the host has no descriptor or memory left: try again when connections were closed.
    #[error("no file descriptor or memory left for another connection: {0}")]
    Exhausted(io::Error),
    /// This attempt failed, for a reason of the network or of a filter: pause, and try again.
    #[error("a connection could not be accepted: {0}")]
    Transient(io::Error),
    /// The descriptor is no listening socket (any more): accepting is over.
    #[error("the listening socket is broken: {0}")]
    Broken(io::Error),
}

impl AcceptError {
    fn from_errno(errno: i32) -> AcceptError {
        let error = io::Error::from_raw_os_error(errno);
        match errno {
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => AcceptError::Exhausted(error),
            libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EOPNOTSUPP | libc::EFAULT => {
                AcceptError::Broken(error)
            }
            // accept(2): errors of the network that are pending on the new socket are given here, EPERM by a firewall.
            _ => AcceptError::Transient(error),
        }
    }
}

impl Listener {
    /// Puts a listening socket on the ring. It accepts nothing until [`Listener::accept`] is called.
    ///
    /// # Errors
    /// `OutOfMemory` when the table of sockets is full; those of making it non-blocking.
    pub fn adopt(ring: &Ring, socket: OwnedFd) -> io::Result<Listener> {
        // Another program may have made it.
        rustix::io::ioctl_fionbio(&socket, true)?;
        // What it accepts inherits that.
        receive_urgent_data_inline(SockRef::from(&socket));
        let core = Rc::clone(ring.core());
        let slot = core.insert(socket.into_raw_fd(), Role::Listener)?;
        Ok(Listener { ring: ring.clone(), core, slot, queue: Cell::new(Queue::Unknown) })
    }

    /// The next connection.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub async fn accept(&self) -> Result<Accepted, AcceptError> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    /// The next connection; see [`Listener::accept`]. Between two calls nothing is accepted: connections stay in the socket's
    /// queue.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub fn poll_accept(&self, context: &Context<'_>) -> Poll<Result<Accepted, AcceptError>> {
        loop {
            match self.queue.get() {
                Queue::Unknown => self.queue.set(self.look()),
                Queue::Holds(count) => match self.accept_now() {
                    Ok(Some(accepted)) => {
                        let left = NonZeroU32::new(count.get() - 1);
                        self.queue.set(left.map_or(Queue::Unknown, Queue::Holds));
                        return Poll::Ready(Ok(accepted));
                    }
                    Ok(None) => self.queue.set(Queue::Empty),
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Queue::Empty => {
                    self.core.start_poll(self.slot, Operation::ReadReady, libc::POLLIN, false);
                    // Whatever it says, accepting tells more.
                    ready!(self.core.poll_outcome(self.slot, Operation::ReadReady, context));
                    self.queue.set(Queue::Holds(NonZeroU32::MIN));
                }
            }
        }
    }

    /// Whether somebody waits in the queue, as far as that can be told without accepting.
    pub fn has_waiting(&self) -> bool {
        !matches!(self.look(), Queue::Empty)
    }

    /// Looks into the queue, without waiting.
    fn look(&self) -> Queue {
        let listener = sys::borrow(self.core.sockets.borrow_mut().get(self.slot).fd);
        // If it cannot be told, accepting tells.
        let waiting = sys::connections_waiting(listener).unwrap_or(1);
        NonZeroU32::new(waiting).map_or(Queue::Empty, Queue::Holds)
    }

    /// Takes a connection from the queue, if there is one.
    fn accept_now(&self) -> Result<Option<Accepted>, AcceptError> {
        let listener = sys::borrow(self.core.sockets.borrow_mut().get(self.slot).fd);
        loop {
            // What was set at the adoption may be gone: whoever has the socket too, an init system that starts us again for
            // instance, shares the flag, and a queue that somebody else has emptied would then stop the worker.
            rustix::io::ioctl_fionbio(listener, true).map_err(|error| AcceptError::Broken(error.into()))?;
            // Non-blocking from its birth.
            match acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((connection, peer)) => {
                    let stream =
                        Stream::adopt_accepted(&self.ring, connection).map_err(AcceptError::Exhausted)?;
                    let peer = peer.and_then(|peer| peer.try_into().ok());
                    return Ok(Some(Accepted { stream, peer }));
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(AcceptError::from_errno(error.raw_os_error())),
            }
        }
    }

    /// Has the next [`Listener::accept`] look into the queue before it waits.
    pub fn look_again(&self) {
        self.queue.set(Queue::Unknown);
    }

    /// A copy of the socket.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        sys::borrow(self.core.sockets.borrow_mut().get(self.slot).fd).try_clone_to_owned()
    }

    /// Stops accepting for good: the connections in the socket's queue, one after the other, as far as they can be had. Those
    /// that are left when the iterator is dropped are reset.
    pub fn finish(self) -> impl Iterator<Item = Accepted> {
        std::iter::from_fn(move || self.accept_now().ok().flatten())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.core.release(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use super::*;

    #[test]
    fn it_is_known_how_many_connections_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = || sys::connections_waiting(listener.as_fd()).unwrap();
        assert_eq!(waiting(), 0);
        // Over loopback a connection that is made waits in the queue.
        let clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(waiting(), 3);
        drop(listener.accept().unwrap());
        assert_eq!((waiting(), clients.len()), (2, 3));
    }

    #[test]
    fn only_a_broken_descriptor_ends_a_listener() {
        for errno in [libc::EBADF, libc::ENOTSOCK, libc::EINVAL, libc::EOPNOTSUPP] {
            assert!(matches!(AcceptError::from_errno(errno), AcceptError::Broken(_)), "{errno}");
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert!(matches!(AcceptError::from_errno(errno), AcceptError::Exhausted(_)), "{errno}");
        }
        for errno in [libc::EPERM, libc::EPROTO, libc::ENETDOWN, libc::EHOSTUNREACH, libc::ENONET, libc::EIO]
        {
            assert!(matches!(AcceptError::from_errno(errno), AcceptError::Transient(_)), "{errno}");
        }
    }
}
