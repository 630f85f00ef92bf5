//! A connected stream socket on the ring.
//!
//! One task owns a stream; it, and whoever it lends the stream to within the same task, may receive and send
//! at the same time. Dropping a stream cancels what is in flight and closes the connection: to have everything
//! delivered, [`Stream::flush`] first.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    ops::Range,
    os::fd::{BorrowedFd, IntoRawFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use io_uring::{opcode, types};
use socket2::{Domain, SockAddr, SockRef, Socket as SystemSocket, Type};

use super::{
    buffers::Buf,
    core::{Core, Ring},
    socket::{End, Mark, Operation, Sending},
    sys,
};

/// Bytes to send; the ring owns them until the kernel has taken them all.
#[derive(Debug)]
pub enum Outgoing {
    /// A range of a buffer from [`Ring::head_buffer`], [`Ring::bulk_buffer`] or anywhere.
    Owned(Vec<u8>, Range<u32>),
    /// What was received, passed on where it lies.
    Received(Buf),
    /// A constant.
    Static(&'static [u8]),
}

impl Outgoing {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Outgoing::Owned(buffer, range) => &buffer[range.start as usize..range.end as usize],
            Outgoing::Received(buffer) => buffer,
            Outgoing::Static(bytes) => bytes,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<u8>> for Outgoing {
    fn from(buffer: Vec<u8>) -> Self {
        // Nothing of 4 GiB is ever built in memory.
        let end = buffer.len() as u32;
        Outgoing::Owned(buffer, 0..end)
    }
}

/// What a receive brought.
#[derive(Debug)]
pub enum Received {
    /// Some bytes, at least one.
    Data(Buf),
    /// The peer will send no more.
    Finished,
}

/// The slot of a stream that has given up its descriptor.
const DETACHED: u32 = u32::MAX;

/// A connected stream socket.
pub struct Stream {
    core: Rc<Core>,
    slot: u32,
}

impl Stream {
    /// Puts a connected stream socket on the ring.
    ///
    /// # Errors
    /// `OutOfMemory` when the table of sockets is full (2^24).
    pub fn adopt(ring: &Ring, socket: OwnedFd) -> io::Result<Stream> {
        let core = Rc::clone(ring.core());
        let slot = core.insert(socket.into_raw_fd())?;
        Ok(Stream { core, slot })
    }

    /// As [`Stream::adopt`], for a client that has just connected: it may have a single message to send, so that
    /// the first receive is not a multishot one, which would have to be cancelled before the close.
    pub(super) fn adopt_accepted(ring: &Ring, socket: OwnedFd) -> io::Result<Stream> {
        let stream = Stream::adopt(ring, socket)?;
        stream.core.sockets.borrow_mut().get(stream.slot).untried = true;
        Ok(stream)
    }

    /// Connects to an address, TCP or Unix. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// Those of `socket(2)` and `connect(2)`.
    pub async fn connect(ring: &Ring, address: SockAddr) -> io::Result<Stream> {
        let socket = SystemSocket::new(address.domain(), Type::STREAM, None)?;
        if address.domain() != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let stream = Stream::adopt(ring, socket.into())?;
        {
            let sockets = &mut *stream.core.sockets.borrow_mut();
            let socket = sockets.get(stream.slot);
            let fd = types::Fd(socket.fd);
            let mark =
                Mark { operation: Operation::Connect, slot: stream.slot, generation: socket.generation };
            let address = socket.extra().address.insert(address);
            let entry = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
            // SAFETY: the address lies in the boxed part of the slot and stays there until the completion.
            unsafe { stream.core.start(socket, mark, entry) };
        }
        let outcome = poll_fn(|context| stream.poll_outcome(context)).await;
        if outcome < 0 {
            return Err(io::Error::from_raw_os_error(-outcome));
        }
        Ok(stream)
    }

    /// Waits until the descriptor is readable, without receiving.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(libc::POLLIN | libc::POLLRDHUP).await
    }

    /// Waits until the socket is writable, without sending.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(libc::POLLOUT).await
    }

    async fn ready(&self, events: i16) -> io::Result<()> {
        {
            let sockets = &mut *self.core.sockets.borrow_mut();
            let socket = sockets.get(self.slot);
            let mark =
                Mark { operation: Operation::Readiness, slot: self.slot, generation: socket.generation };
            // One that an abandoned wait left behind will do: who waits for readiness tries, and waits again.
            if !socket.is_in_flight(Operation::Readiness) {
                let entry = opcode::PollAdd::new(types::Fd(socket.fd), events as u32).build();
                // SAFETY: the entry points to no memory.
                unsafe { self.core.start(socket, mark, entry) };
            }
        }
        match poll_fn(|context| self.poll_outcome(context)).await {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            _ => Ok(()),
        }
    }

    /// Waits for the outcome of a connect or a wait for readiness.
    fn poll_outcome(&self, context: &Context<'_>) -> Poll<i32> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        match socket.extra().outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                socket.keep_waker(context.waker());
                Poll::Pending
            }
        }
    }

    /// Receives what comes next.
    ///
    /// # Errors
    /// Those of `recv(2)`, again at each call.
    pub fn poll_receive(&self, context: &Context<'_>) -> Poll<io::Result<Received>> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if let Some(buffer) = self.core.pop_received(socket) {
            return Poll::Ready(Ok(Received::Data(buffer)));
        }
        match socket.end {
            Some(End::Finished) => return Poll::Ready(Ok(Received::Finished)),
            Some(End::Broken(error)) => return Poll::Ready(Err(io::Error::from_raw_os_error(error))),
            None => {}
        }
        socket.wants_receive = true;
        socket.keep_waker(context.waker());
        if !socket.pausing {
            self.core.arm_receive(socket, self.slot);
        }
        Poll::Pending
    }

    /// Receives what comes next.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub fn receive(&self) -> impl Future<Output = io::Result<Received>> + '_ {
        poll_fn(move |context| self.poll_receive(context))
    }

    /// Receives, without waiting, what has arrived already.
    pub fn try_receive(&self) -> Option<Buf> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        self.core.pop_received(sockets.get(self.slot))
    }

    /// Arms the receive without waiting, so that [`Stream::is_quiet`] learns of data and of the end.
    pub fn watch(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        socket.wants_receive = false;
        self.core.arm_receive(socket, self.slot);
    }

    /// Whether nothing has arrived, and the connection is whole as far as is known.
    pub fn is_quiet(&self) -> bool {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        // With the receive by readiness, a poll that came up is data or the end: its receive is in flight.
        let coming = !self.core.features.provided_buffers && socket.is_in_flight(Operation::Receive);
        socket.queued == 0 && socket.end.is_none() && socket.send_error == 0 && !coming
    }

    /// Forgets the task that waited last, and what it sent, so that the stream can rest without keeping either.
    pub fn forget_waker(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        socket.waker = None;
        socket.wants_receive = false;
        socket.wants_send = false;
        if !socket.is_in_flight(Operation::Send)
            && let Some(sending) = socket.sending.take()
        {
            self.core.retire(sending.data);
        }
    }

    /// Ends the armed receive and waits until it is over. What arrived before is still to be received.
    /// The next [`Stream::poll_receive`] arms it again.
    pub async fn pause_receive(&self) {
        poll_fn(|context| self.poll_pause(context)).await;
    }

    fn poll_pause(&self, context: &Context<'_>) -> Poll<()> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        socket.wants_receive = false;
        socket.starved = false;
        let (receiving, polling) =
            (socket.is_in_flight(Operation::Receive), socket.is_in_flight(Operation::Poll));
        if !receiving && !polling {
            return Poll::Ready(());
        }
        socket.keep_waker(context.waker());
        if !socket.pausing {
            socket.pausing = true;
            let operation = if receiving { Operation::Receive } else { Operation::Poll };
            let mark = Mark { operation, slot: self.slot, generation: socket.generation };
            self.core.uring.borrow_mut().push_cancel(mark.pack());
        }
        Poll::Pending
    }

    /// Starts to receive into a range of `buffer`, a private buffer. The armed receive must be paused, and what
    /// it brought taken. Finish with [`Stream::poll_receive_bulk`].
    pub fn start_receive_bulk(&self, mut buffer: Vec<u8>, range: Range<usize>) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        debug_assert!(
            socket.queued == 0 && socket.in_flight & (Operation::Receive.bit() | Operation::Poll.bit()) == 0
        );
        let space = &mut buffer[range];
        let entry = opcode::Recv::new(types::Fd(socket.fd), space.as_mut_ptr(), space.len() as u32).build();
        let mark = Mark { operation: Operation::ReceiveBulk, slot: self.slot, generation: socket.generation };
        let extra = socket.extra();
        extra.bulk = Some(buffer);
        extra.outcome = None;
        // SAFETY: the slot owns the buffer, whose heap block does not move, until the completion.
        unsafe { self.core.start(socket, mark, entry) };
    }

    /// Waits for what [`Stream::start_receive_bulk`] started: the buffer, and how many bytes came (0 = the end).
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub fn poll_receive_bulk(&self, context: &Context<'_>) -> Poll<(Vec<u8>, io::Result<usize>)> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.is_in_flight(Operation::ReceiveBulk) {
            socket.keep_waker(context.waker());
            return Poll::Pending;
        }
        let extra = socket.extra();
        let outcome = match extra.outcome.take() {
            Some(count) if count >= 0 => Ok(count as usize),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::InvalidInput.into()),
        };
        Poll::Ready((extra.bulk.take().unwrap_or_default(), outcome))
    }

    /// Gives up what [`Stream::start_receive_bulk`] started, if nothing has come yet: its outcome is then `ECANCELED`.
    pub fn stop_receive_bulk(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.is_in_flight(Operation::ReceiveBulk) {
            let generation = socket.generation;
            let mark = Mark { operation: Operation::ReceiveBulk, slot: self.slot, generation };
            self.core.uring.borrow_mut().push_cancel(mark.pack());
        }
    }

    /// Waits for what [`Stream::start_receive_bulk`] started; see [`Stream::poll_receive_bulk`].
    pub fn receive_bulk(&self) -> impl Future<Output = (Vec<u8>, io::Result<usize>)> + '_ {
        poll_fn(move |context| self.poll_receive_bulk(context))
    }

    /// Ready when no send is in flight.
    ///
    /// # Errors
    /// That of the last send.
    pub fn poll_flush(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.send_error != 0 {
            return Poll::Ready(Err(io::Error::from_raw_os_error(socket.send_error)));
        }
        if !socket.is_in_flight(Operation::Send) {
            return Poll::Ready(Ok(()));
        }
        socket.wants_send = true;
        socket.keep_waker(context.waker());
        if std::mem::take(&mut socket.expected) {
            self.core.uring.borrow_mut().expect_less();
        }
        Poll::Pending
    }

    /// Waits until the kernel has taken everything.
    ///
    /// # Errors
    /// Those of `send(2)`.
    pub fn flush(&self) -> impl Future<Output = io::Result<()>> + '_ {
        poll_fn(move |context| self.poll_flush(context))
    }

    /// Sends `data` when the send before it, if any, has completed; returns without waiting for this one.
    ///
    /// # Errors
    /// That of an earlier send; that of this one comes with the next call.
    pub async fn send(&self, data: Outgoing) -> io::Result<()> {
        self.flush().await?;
        self.start_send(data);
        Ok(())
    }

    /// Sends `data`; no send may be in flight. For use after [`Stream::poll_flush`].
    pub fn start_send(&self, data: Outgoing) {
        if data.is_empty() {
            return;
        }
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        self.core.send(socket, self.slot, Sending { data, at: 0, kept: false });
    }

    /// Like [`Stream::start_send`], but the data stays until the next send, for [`Stream::take_kept`].
    pub fn start_send_kept(&self, data: Vec<u8>) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        self.core.send(socket, self.slot, Sending { data: data.into(), at: 0, kept: true });
    }

    /// Takes back what [`Stream::start_send_kept`] sent, whole, however much of it went out. `None` when
    /// something was sent after it, or the send has not completed.
    pub fn take_kept(&self) -> Option<Vec<u8>> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.is_in_flight(Operation::Send) {
            return None;
        }
        match socket.sending.take()?.data {
            Outgoing::Owned(buffer, _) => Some(buffer),
            Outgoing::Received(_) | Outgoing::Static(_) => None,
        }
    }

    /// What is to be sent cannot be: from now on as after a send that has failed.
    pub fn break_sending(&self) {
        self.core.sockets.borrow_mut().get(self.slot).send_error = libc::EPIPE;
    }

    /// Whether a send is in flight.
    pub fn is_sending(&self) -> bool {
        self.core.sockets.borrow_mut().get(self.slot).is_in_flight(Operation::Send)
    }

    /// How much of the send in flight the kernel has taken (bytes): a measure of progress.
    pub fn send_progress(&self) -> u32 {
        self.core.sockets.borrow_mut().get(self.slot).sending.as_ref().map_or(0, |sending| sending.at)
    }

    /// Tells the peer that nothing more will be sent; receiving goes on. Flush first.
    pub fn shutdown_write(&self) {
        // A connection that is gone already needs no goodbye.
        let _ = self.with_socket(|socket| socket.shutdown(std::net::Shutdown::Write));
    }

    /// Makes the close abortive: the peer sees a reset, and cannot take what it got for the whole.
    pub fn reset_on_close(&self) {
        let _ = self.with_socket(|socket| socket.set_linger(Some(Duration::ZERO)));
    }

    /// Sends small messages at once.
    pub fn set_nodelay(&self) {
        // Fails on a Unix socket, where nothing is delayed.
        let _ = self.with_socket(|socket| socket.set_tcp_nodelay(true));
    }

    /// The address of the peer; `None` when it is gone or has none.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.with_socket(|socket| socket.peer_addr()).ok().and_then(|address| address.as_socket())
    }

    /// The address that the peer connected to; `None` when the connection is gone or has none.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.with_socket(|socket| socket.local_addr()).ok().and_then(|address| address.as_socket())
    }

    /// Takes the socket off the ring, open as it is; nothing can be done with the stream then but to drop it. `None` when
    /// something is in flight or was received and not taken: flush and pause first.
    pub fn detach(&mut self) -> Option<OwnedFd> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.in_flight != 0 || socket.queued != 0 {
            return None;
        }
        if let Some(sent) = socket.sending.take() {
            self.core.retire(sent.data);
        }
        let descriptor = sys::owned(sockets.remove(self.slot));
        self.slot = DETACHED;
        Some(descriptor)
    }

    /// The descriptor, for a system call of this folder.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        sys::borrow(self.core.sockets.borrow_mut().get(self.slot).fd)
    }

    fn with_socket<T>(&self, call: impl FnOnce(SockRef<'_>) -> T) -> T {
        call(SockRef::from(&self.descriptor()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.slot != DETACHED {
            self.core.release(self.slot);
        }
    }
}
