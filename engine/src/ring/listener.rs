//! A listening socket on the ring.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll},
};

use nix::{
    errno::Errno,
    sys::socket::{SockFlag, accept4},
};

use socket2::SockRef;

use super::{
    buffers::Role,
    core::{Core, Ring},
    socket::{Operation, Socket},
    stream::{Stream, receive_urgent_data_inline},
    sys,
};

/// A listening socket of this worker alone: with multishot accept, a shared one would give one worker everything.
pub struct Listener {
    ring: Ring,
    core: Rc<Core>,
    slot: u32,
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
        Ok(Listener { ring: ring.clone(), core, slot })
    }

    /// The next connection.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub async fn accept(&self) -> Result<Stream, AcceptError> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    /// The next connection; see [`Listener::accept`].
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub fn poll_accept(&self, context: &Context<'_>) -> Poll<Result<Stream, AcceptError>> {
        let fd = {
            let sockets = &mut *self.core.sockets.borrow_mut();
            let socket = sockets.get(self.slot);
            let cold = socket.cold();
            if let Some(fd) = cold.accepted.pop_front() {
                fd
            } else if let Some(errno) = cold.accept_error.take() {
                socket.wants_receive = false;
                return Poll::Ready(Err(AcceptError::from_errno(errno)));
            } else {
                socket.wants_receive = true;
                socket.wait_for_receive(context.waker());
                if !socket.pausing {
                    self.core.arm_accept(socket, self.slot);
                }
                return Poll::Pending;
            }
        };
        Poll::Ready(Stream::adopt_accepted(&self.ring, sys::owned(fd)).map_err(AcceptError::Exhausted))
    }

    /// Stops accepting until the next [`Listener::accept`], and waits until that is certain. Connections stay
    /// in the socket's queue, but for those that had been accepted already: `accept` brings them first.
    pub async fn pause(&self) {
        poll_fn(|context| self.poll_pause(context)).await;
    }

    fn poll_pause(&self, context: &Context<'_>) -> Poll<()> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        socket.wants_receive = false;
        let Some(operation) = armed(socket) else {
            socket.pausing = false;
            return Poll::Ready(());
        };
        socket.wait_for_receive(context.waker());
        if !socket.pausing {
            socket.pausing = true;
            self.core.cancel(socket, operation, self.slot);
        }
        Poll::Pending
    }

    /// Stops accepting for good, and leaves what waits in the socket's queue to another process that has the socket
    /// too: only connections that had been accepted already are returned.
    pub async fn leave(self) -> Vec<Stream> {
        self.take_accepted().await.into_iter().filter_map(|fd| self.adopt_accepted(fd)).collect()
    }

    /// A copy of the socket.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        sys::borrow(self.core.sockets.borrow_mut().get(self.slot).fd).try_clone_to_owned()
    }

    async fn take_accepted(&self) -> Vec<OwnedFd> {
        self.pause().await;
        let sockets = &mut *self.core.sockets.borrow_mut();
        sockets.get(self.slot).cold().accepted.drain(..).map(sys::owned).collect()
    }

    fn adopt_accepted(&self, fd: OwnedFd) -> Option<Stream> {
        Stream::adopt_accepted(&self.ring, fd).ok()
    }

    /// Stops accepting for good: every connection that has reached the socket's queue by now is returned.
    pub async fn finish(self) -> Vec<Stream> {
        let mut accepted = self.take_accepted().await;
        let fd = sys::borrow(self.core.sockets.borrow_mut().get(self.slot).fd);
        loop {
            match accept4(fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Ok(connection) => accepted.push(sys::owned(connection)),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                // The queue is empty, or nothing can be had from it.
                Err(_) => break,
            }
        }
        accepted.into_iter().filter_map(|fd| self.adopt_accepted(fd)).collect()
    }
}

/// Which operation of a listener waits for connections.
fn armed(socket: &Socket) -> Option<Operation> {
    [Operation::Accept, Operation::Poll].into_iter().find(|operation| socket.is_in_flight(*operation))
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.core.release(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
