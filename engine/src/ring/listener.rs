//! A listening socket on the ring.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};

use super::{
    core::{Core, Ring},
    socket::{Mark, Operation},
    stream::Stream,
    sys,
};

/// A listening socket of this worker alone: with multishot accept, a shared one would give one worker everything.
pub struct Listener {
    ring: Ring,
    core: Rc<Core>,
    slot: u32,
}

/// Why nothing was accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The process or the host has no descriptor or memory left; try again when connections were closed.
    #[error("no file descriptor or memory left for another connection: {0}")]
    Exhausted(io::Error),
    /// The listening socket itself is unusable.
    #[error("the listening socket is broken: {0}")]
    Broken(io::Error),
}

impl Listener {
    /// Puts a listening socket on the ring. It accepts nothing until [`Listener::accept`] is called.
    ///
    /// # Errors
    /// `OutOfMemory` when the table of sockets is full.
    pub fn adopt(ring: &Ring, socket: OwnedFd) -> io::Result<Listener> {
        let core = Rc::clone(ring.core());
        let slot = core.insert(socket.into_raw_fd())?;
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
            let extra = socket.extra();
            if let Some(fd) = extra.accepted.pop_front() {
                fd
            } else if let Some(error) = extra.accept_error.take() {
                socket.wants_receive = false;
                let exhausted = matches!(error, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM);
                let error = io::Error::from_raw_os_error(error);
                return Poll::Ready(Err(if exhausted {
                    AcceptError::Exhausted(error)
                } else {
                    AcceptError::Broken(error)
                }));
            } else {
                socket.wants_receive = true;
                socket.keep_waker(context.waker());
                self.core.arm_accept(socket, self.slot);
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
        if !socket.is_in_flight(Operation::Accept) {
            socket.pausing = false;
            return Poll::Ready(());
        }
        socket.keep_waker(context.waker());
        if !socket.pausing {
            socket.pausing = true;
            let mark = Mark { operation: Operation::Accept, slot: self.slot, generation: socket.generation };
            self.core.uring.borrow_mut().push_cancel(mark.pack());
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
        sockets.get(self.slot).extra().accepted.drain(..).map(sys::owned).collect()
    }

    fn adopt_accepted(&self, fd: OwnedFd) -> Option<Stream> {
        Stream::adopt_accepted(&self.ring, fd).ok()
    }

    /// Stops accepting for good: every connection that has reached the socket's queue by now is returned.
    pub async fn finish(self) -> Vec<Stream> {
        let mut accepted = self.take_accepted().await;
        let fd = sys::borrow(self.core.sockets.borrow_mut().get(self.slot).fd);
        // The socket is in blocking mode (the ring needs it so): ask before each accept.
        let mut readiness = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        while poll(&mut readiness, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            match accept4(fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(connection) => accepted.push(sys::owned(connection)),
                Err(_) => break,
            }
        }
        accepted.into_iter().filter_map(|fd| self.adopt_accepted(fd)).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.core.release(self.slot);
    }
}
