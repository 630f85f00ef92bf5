//! A connected stream socket on the ring.
//!
//! One task owns a stream; it, and whoever it lends the stream to within the same task, may receive and send
//! at the same time, and wait for readiness both ways: each kind of operation has an outcome and a waiter of its own.
//! Dropping a stream cancels what is in flight and closes the connection: to have everything delivered,
//! [`Stream::flush`] first.

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
    admission::Source,
    body_memory::BulkBuf,
    buffers::{Buf, Role, Share},
    core::{Core, Ring},
    message::{Recv, SendBuf},
    socket::{BULK_UNIT, End, Intake, Operation, Token},
    sys,
};

/// What a connection costs the kernel: over loopback, where both ends are its own, it is made when the ring is entered.
const CONNECT_COST: Duration = Duration::from_micros(40);

/// The slot of a stream that has given up its descriptor.
const DETACHED: u32 = u32::MAX;

/// A connected stream socket.
pub struct Stream {
    core: Rc<Core>,
    slot: u32,
}

impl Stream {
    /// Puts a connected stream socket of somebody else on the ring.
    ///
    /// # Errors
    /// `OutOfMemory` when the table of sockets is full (2^24); those of making it non-blocking.
    pub fn adopt(ring: &Ring, socket: OwnedFd, role: Role) -> io::Result<Stream> {
        // Another program may have made it.
        rustix::io::ioctl_fionbio(&socket, true)?;
        receive_urgent_data_inline(SockRef::from(&socket));
        Stream::insert(ring, socket, role)
    }

    fn insert(ring: &Ring, socket: OwnedFd, role: Role) -> io::Result<Stream> {
        let core = Rc::clone(ring.core());
        let slot = core.insert(socket.into_raw_fd(), role)?;
        Ok(Stream { core, slot })
    }

    /// A client that has just connected: it may have a single message to send, so that
    /// the first receive is not a multishot one, which would have to be cancelled before the close.
    pub(super) fn adopt_accepted(ring: &Ring, socket: OwnedFd) -> io::Result<Stream> {
        let stream = Stream::insert(ring, socket, Role::Downstream)?;
        stream.core.sockets.borrow_mut().get(stream.slot).intake = Intake::First;
        Ok(stream)
    }

    /// Connects to an address, TCP or Unix, of a backend whose cluster has this share. Dropping the future gives the attempt
    /// up.
    ///
    /// # Errors
    /// Those of `socket(2)` and `connect(2)`; `WouldBlock` when the backlog of a Unix socket is full.
    pub async fn connect(ring: &Ring, address: SockAddr, share: Share) -> io::Result<Stream> {
        ring.connection_admission().reserve(Source::Backends, CONNECT_COST).await;
        let socket = SystemSocket::new(address.domain(), Type::STREAM.nonblocking(), None)?;
        receive_urgent_data_inline(SockRef::from(&socket));
        let is_unix = address.domain() == Domain::UNIX;
        if is_unix {
            // It never waits, and has connected when it returns. On the ring a full backlog would occupy a kernel thread.
            socket.connect(&address)?;
        } else {
            socket.set_tcp_nodelay(true)?;
        }
        let stream = Stream::insert(ring, socket.into(), Role::Upstream(share))?;
        if is_unix {
            return Ok(stream);
        }
        {
            let sockets = &mut *stream.core.sockets.borrow_mut();
            let socket = sockets.get(stream.slot);
            let fd = types::Fd(socket.fd);
            let token =
                Token { operation: Operation::Connect, slot: stream.slot, generation: socket.generation };
            let address = socket.cold().address.insert(Box::new(address));
            let entry = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
            // SAFETY: the address lies in the boxed part of the slot and stays there until the completion.
            unsafe { stream.core.start(socket, token, entry) };
        }
        let outcome =
            poll_fn(|context| stream.core.poll_outcome(stream.slot, Operation::Connect, context)).await;
        if outcome < 0 {
            return Err(io::Error::from_raw_os_error(-outcome));
        }
        stream.core.sockets.borrow_mut().get(stream.slot).forget(Operation::Connect);
        Ok(stream)
    }

    /// Waits until the descriptor is readable, without receiving.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub async fn readable(&self) -> io::Result<()> {
        self.core.start_poll(self.slot, Operation::ReadReady, libc::POLLIN | libc::POLLRDHUP, false);
        self.ready(Operation::ReadReady).await
    }

    /// Waits until the socket is most likely writable, without sending.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub async fn writable(&self) -> io::Result<()> {
        {
            let sockets = &mut *self.core.sockets.borrow_mut();
            let socket = sockets.get(self.slot);
            let (operation, generation) = (Operation::WriteReady, socket.generation);
            if !socket.is_in_flight(operation) {
                self.core.await_room(socket, Token { operation, slot: self.slot, generation });
            }
        }
        self.ready(Operation::WriteReady).await
    }

    async fn ready(&self, operation: Operation) -> io::Result<()> {
        match poll_fn(|context| self.core.poll_outcome(self.slot, operation, context)).await {
            // It has been given up, or was a pause: who waits for readiness tries, and waits again.
            events if events >= 0 || matches!(-events, libc::ECANCELED | libc::ETIME) => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Ready when the connection is broken: reset by the peer, or timed out. A peer that only sends no more is still there,
    /// unless `or_finished`. Nothing is received; costs an operation, so it is for whoever waits for long.
    pub fn poll_hangup(&self, or_finished: bool, context: &Context<'_>) -> Poll<()> {
        let goes_on = self.core.features.multishot_poll;
        {
            let sockets = &mut *self.core.sockets.borrow_mut();
            let socket = sockets.get(self.slot);
            let gone = socket.end.is_some_and(|end| or_finished || end.errno().is_some());
            if gone || socket.send_end.is_some() {
                return Poll::Ready(());
            }
            if let Some(outcome) = socket.cold().pending(Operation::Hangup).outcome.take() {
                let error = i32::from(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
                let finished = outcome & i32::from(libc::POLLRDHUP) != 0;
                if outcome > 0 && (outcome & error != 0 || finished && or_finished) {
                    return Poll::Ready(());
                }
                if outcome > 0 && finished && !goes_on && !socket.is_in_flight(Operation::Hangup) {
                    // The end would be told again at once.
                    let (operation, generation) = (Operation::Hangup, socket.generation);
                    self.core.pause(socket, Token { operation, slot: self.slot, generation });
                }
            }
            socket.wait_for(Operation::Hangup, context.waker());
        }
        // Whatever is asked for, errors and the end of either direction are told.
        self.core.start_poll(self.slot, Operation::Hangup, libc::POLLRDHUP, goes_on);
        Poll::Pending
    }

    /// Nobody waits for a hang-up any more: what [`Stream::poll_hangup`] began ends, and leaves nothing behind.
    pub fn stop_watching(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.is_in_flight(Operation::Hangup) {
            socket.cold().pending(Operation::Hangup).stop_waiting();
            self.core.cancel(socket, Operation::Hangup, self.slot);
        } else {
            socket.forget(Operation::Hangup);
        }
    }

    /// Receives what comes next.
    ///
    /// # Errors
    /// Those of `recv(2)`, again at each call.
    pub fn poll_receive(&self, context: &Context<'_>) -> Poll<io::Result<Recv>> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if let Some(buffer) = self.core.pop_received(socket) {
            return Poll::Ready(Ok(Recv::Data(buffer)));
        }
        if let Some(end) = socket.end {
            return Poll::Ready(match end.errno() {
                None => Ok(Recv::Finished),
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            });
        }
        socket.wants_receive = true;
        socket.wait_for_receive(context.waker());
        if !socket.pausing {
            self.core.arm_receive(socket, self.slot);
        }
        Poll::Pending
    }

    /// Receives what comes next.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub fn receive(&self) -> impl Future<Output = io::Result<Recv>> + '_ {
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
        !socket.has_unread() && socket.end.is_none() && socket.send_end.is_none() && !coming
    }

    /// Forgets the task that waited last, and what it sent, so that the stream can rest without keeping either.
    pub fn forget_waker(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        socket.forget_waiters();
        socket.shed_cold_state();
        if socket.intake == Intake::Single {
            socket.intake = Intake::Many;
        }
        if !socket.is_in_flight(Operation::Send)
            && let Some(sent) = socket.sending.take()
        {
            self.core.retire(sent);
        }
    }

    /// Whoever takes what is received is slow: moves what nobody took yet out of the arena, and from now on receives one
    /// buffer at a time, and only when somebody asks.
    pub fn slow_down(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        self.core.spill_unread(socket);
        socket.wants_receive = false;
        socket.intake = Intake::Single;
        if socket.is_in_flight(Operation::Receive) && !socket.pausing {
            socket.pausing = true;
            self.core.cancel(socket, Operation::Receive, self.slot);
        }
    }

    /// Receives may bring many buffers again.
    pub fn speed_up(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.intake == Intake::Single {
            socket.intake = Intake::Many;
        }
    }

    /// Says whether what comes next is probably a head with a large body, whose bytes are better not copied, and of how many bytes.
    pub fn expect_bulk(&self, length: Option<u64>) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        let units = length.map(|length| u8::try_from(length.div_ceil(BULK_UNIT)).unwrap_or(u8::MAX));
        socket.intake = match (socket.intake, units) {
            (Intake::Many | Intake::First | Intake::Brief(_), Some(units)) => Intake::Brief(units),
            (Intake::Brief(_), None) => Intake::Many,
            (other, _) => other,
        };
    }

    /// What was said by [`Stream::expect_bulk`], in whole units and up to 255 of them.
    pub fn expects_bulk(&self) -> Option<u64> {
        match self.core.sockets.borrow_mut().get(self.slot).intake {
            Intake::Brief(units) => Some(u64::from(units) * BULK_UNIT),
            Intake::Many | Intake::First | Intake::Single => None,
        }
    }

    /// Whether no receive is armed and nothing received waits to be taken.
    pub fn is_paused(&self) -> bool {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        let receiving = Operation::Receive.bit() | Operation::Poll.bit() | Operation::ReceiveBulk.bit();
        !socket.has_unread() && socket.in_flight & receiving == 0
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
        socket.wait_for_receive(context.waker());
        if !socket.pausing {
            socket.pausing = true;
            let operation = if receiving { Operation::Receive } else { Operation::Poll };
            self.core.cancel(socket, operation, self.slot);
        }
        Poll::Pending
    }

    /// Starts to receive into a range of `buffer`, a private buffer. The armed receive must be paused, and what
    /// it brought taken; who waits for the outcome calls [`Stream::poll_receive_bulk`].
    pub fn start_receive_bulk(&self, mut buffer: BulkBuf, range: Range<usize>) {
        assert!(self.is_paused(), "two receives at once would tear the bytes apart");
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        let space = &mut buffer[range];
        let entry = opcode::Recv::new(types::Fd(socket.fd), space.as_mut_ptr(), space.len() as u32).build();
        let token =
            Token { operation: Operation::ReceiveBulk, slot: self.slot, generation: socket.generation };
        let cold = socket.cold();
        cold.bulk = Some(buffer);
        cold.pending(Operation::ReceiveBulk).outcome = None;
        // SAFETY: the slot owns the buffer, whose heap block does not move, until the completion.
        unsafe { self.core.start(socket, token, entry) };
    }

    /// Waits for what [`Stream::start_receive_bulk`] started: the buffer, and how many bytes came (0 = the end).
    ///
    /// # Errors
    /// Those of `recv(2)`; `InvalidInput` when nothing was started.
    pub fn poll_receive_bulk(&self, context: &Context<'_>) -> Poll<io::Result<(BulkBuf, usize)>> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.is_in_flight(Operation::ReceiveBulk) {
            socket.wait_for(Operation::ReceiveBulk, context.waker());
            return Poll::Pending;
        }
        let cold = socket.cold();
        let outcome = cold.pending(Operation::ReceiveBulk).take_outcome();
        Poll::Ready(match (outcome, cold.bulk.take()) {
            (Some(count), Some(buffer)) if count >= 0 => Ok((buffer, count as usize)),
            (Some(error), _) if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        })
    }

    /// Gives up what [`Stream::start_receive_bulk`] started, if nothing has come yet: its outcome is then `ECANCELED`.
    pub fn stop_receive_bulk(&self) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.is_in_flight(Operation::ReceiveBulk) {
            self.core.cancel(socket, Operation::ReceiveBulk, self.slot);
        }
    }

    /// Waits for what [`Stream::start_receive_bulk`] started; see [`Stream::poll_receive_bulk`].
    pub fn receive_bulk(&self) -> impl Future<Output = io::Result<(BulkBuf, usize)>> + '_ {
        poll_fn(move |context| self.poll_receive_bulk(context))
    }

    /// Ready when no send is in flight.
    ///
    /// # Errors
    /// That of the last send.
    pub fn poll_flush(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if let Some(errno) = socket.send_end.and_then(End::errno) {
            return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
        }
        if !socket.is_in_flight(Operation::Send) {
            return Poll::Ready(Ok(()));
        }
        socket.wants_send = true;
        socket.wait_for_send(context.waker());
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
    pub async fn send(&self, data: SendBuf) -> io::Result<()> {
        self.flush().await?;
        self.start_send(data);
        Ok(())
    }

    /// Sends `data`; no send may be in flight. For use after [`Stream::poll_flush`].
    pub fn start_send(&self, data: SendBuf) {
        if data.is_empty() {
            return;
        }
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        self.core.send(socket, self.slot, data, false);
    }

    /// Like [`Stream::start_send`], but the data stays until the next send, for [`Stream::take_replay`].
    pub fn start_send_replayable(&self, data: Vec<u8>) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        self.core.send(socket, self.slot, data.into(), true);
    }

    /// Takes back what [`Stream::start_send_replayable`] sent, whole, however much of it went out. `None` when
    /// something was sent after it, or the send has not completed.
    pub fn take_replay(&self) -> Option<Vec<u8>> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.is_in_flight(Operation::Send) {
            return None;
        }
        match socket.sending.take()? {
            SendBuf::Owned(buffer, _) => Some(buffer),
            SendBuf::Received(_) | SendBuf::Bulk(..) | SendBuf::Static(_) => None,
        }
    }

    /// What is to be sent cannot be: from now on as after a send that has failed.
    pub fn break_sending(&self) {
        self.core.sockets.borrow_mut().get(self.slot).send_end = Some(End::broken(libc::EPIPE));
    }

    /// Whether a send is in flight.
    pub fn is_sending(&self) -> bool {
        self.core.sockets.borrow_mut().get(self.slot).is_in_flight(Operation::Send)
    }

    /// How much of the send in flight the kernel has not taken yet (bytes): a measure of progress.
    pub fn unsent(&self) -> usize {
        self.core.sockets.borrow_mut().get(self.slot).sending.as_ref().map_or(0, SendBuf::len)
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

    /// How much the send buffer has room for behind what is being sent, as far as the kernel says (bytes): what is sent
    /// beyond that waits for the peer.
    pub fn send_room(&self) -> usize {
        let (descriptor, on_its_way) = {
            let sockets = &mut *self.core.sockets.borrow_mut();
            let socket = sockets.get(self.slot);
            let sending = socket.sending.as_ref().filter(|_| socket.is_in_flight(Operation::Send));
            (sys::borrow(socket.fd), sending.map_or(0, SendBuf::len))
        };
        // Half of it: the kernel counts what it needs to keep the bytes, too.
        sys::send_room(descriptor).map_or(usize::MAX, |room| (room / 2).saturating_sub(on_its_way))
    }

    pub(super) fn count_spliced_in(&self, count: usize) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        self.core.count_received(sockets.get(self.slot), i32::try_from(count).unwrap_or(i32::MAX));
    }

    pub(super) fn count_spliced_out(&self, count: usize) {
        let sockets = &mut *self.core.sockets.borrow_mut();
        self.core.count_sent(sockets.get(self.slot), i32::try_from(count).unwrap_or(i32::MAX));
    }

    /// Ends the waits for readiness and for a hang-up that nobody waits for any more, so that the stream can be detached.
    pub async fn stop_polls(&self) {
        for operation in [Operation::ReadReady, Operation::WriteReady, Operation::Hangup] {
            let mut asked = false;
            poll_fn(|context| {
                let sockets = &mut *self.core.sockets.borrow_mut();
                let socket = sockets.get(self.slot);
                if !socket.is_in_flight(operation) {
                    socket.forget(operation);
                    return Poll::Ready(());
                }
                socket.wait_for(operation, context.waker());
                if !std::mem::replace(&mut asked, true) {
                    self.core.cancel(socket, operation, self.slot);
                }
                Poll::Pending
            })
            .await;
        }
    }

    /// Takes the socket off the ring, open as it is; nothing can be done with the stream then but to drop it. `None` when
    /// something is in flight or was received and not taken: flush, pause and [`Stream::stop_polls`] first.
    pub fn detach(&mut self) -> Option<OwnedFd> {
        let sockets = &mut *self.core.sockets.borrow_mut();
        let socket = sockets.get(self.slot);
        if socket.in_flight != 0 || socket.has_unread() {
            return None;
        }
        if let Some(sent) = socket.sending.take() {
            self.core.retire(sent);
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

/// Has a peer's urgent data received as what it is, a part of the stream (RFC 6093). Kept apart it would end every wait on the
/// socket at once, again and again, as long as nobody asks for it.
pub(super) fn receive_urgent_data_inline(socket: SockRef<'_>) {
    // What kind of socket does not know it has none.
    let _ = socket.set_out_of_band_inline(true);
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.slot != DETACHED {
            self.core.release(self.slot);
        }
    }
}
