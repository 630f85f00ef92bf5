//! The core of the ring: who a completion is for, and the turn of the loop.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    io,
    os::fd::RawFd,
    rc::Rc,
    task::Poll,
    time::Instant,
};

use io_uring::{cqueue, opcode, squeue, types};

use super::{
    batching::Batching,
    buffers::{Buf, BufferRing, Link, Pool},
    features::Features,
    setup::{Settings, SetupError},
    socket::{End, Mark, Operation, Sending, Socket, Table},
    splice::Pipe,
    stream::Outgoing,
    sys,
    timer::Wheel,
    uring::{Completion, NOBODY, Stats, TIMEOUT, Uring, Wait, limit_per_turn},
};

/// Size of a private buffer for large transfers (bytes).
pub const BULK_SIZE: usize = 256 * 1024;
/// Buffers that a socket may hold unread before its multishot receive is cancelled: with 16 KiB each, what
/// a sender can make us keep beyond what protocol code has asked for.
const QUEUE_HIGH: u16 = 8;
/// Sends up to this size (bytes) are left to the kernel until all of it has gone.
const SMALL_SEND: usize = 16 * 1024;
/// Heads are written into buffers that start at this size (bytes).
const HEAD_SIZE: usize = 1024;
/// Buffers of a kind that are kept for the next user.
const KEPT_HEADS: usize = 1024;
const KEPT_BULK: usize = 16;

/// A worker's ring. Clones are handles to the same one.
#[derive(Clone)]
pub struct Ring {
    core: Rc<Core>,
}

/// What the handles share.
pub(super) struct Core {
    pub(super) features: Features,
    // Order matters: the ring goes, and with it all operations, before the memory that they point to.
    pub(super) uring: RefCell<Uring>,
    pub(super) sockets: RefCell<Table>,
    pub(super) wheel: RefCell<Wheel>,
    pub(super) pool: Rc<Pool>,
    provided: RefCell<Option<BufferRing>>,
    starved: RefCell<VecDeque<Mark>>,
    began: Instant,
    now: Cell<u64>,
    /// Tasks were made ready by other tasks: the next turn must not sleep.
    local_work: Cell<bool>,
    batching: RefCell<Batching>,
    heads: RefCell<Vec<Vec<u8>>>,
    bulk: RefCell<Vec<Vec<u8>>>,
    pub(super) pipes: RefCell<Vec<Pipe>>,
}

impl Ring {
    /// Makes the ring of this thread. Must be driven, and used, on it.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn new(settings: &Settings) -> Result<Ring, SetupError> {
        let features = Features::probe(settings.level)?;
        let uring = Uring::new(&features)?;
        let buffers_error =
            |error| SetupError::Buffers { count: settings.buffer_count, size: settings.buffer_size, error };
        let pool = Rc::new(Pool::new(settings.buffer_count, settings.buffer_size).map_err(buffers_error)?);
        let provided = if features.provided_buffers {
            let mut ring = BufferRing::register_pool(uring.raw(), Rc::clone(&pool)).map_err(buffers_error)?;
            ring.refill();
            Some(ring)
        } else {
            None
        };
        uring.enable().map_err(SetupError::Enable)?;
        Ok(Ring {
            core: Rc::new(Core {
                features,
                uring: RefCell::new(uring),
                sockets: RefCell::new(Table::new()),
                wheel: RefCell::new(Wheel::new()),
                pool,
                provided: RefCell::new(provided),
                starved: RefCell::default(),
                began: Instant::now(),
                now: Cell::new(0),
                local_work: Cell::new(false),
                batching: RefCell::default(),
                heads: RefCell::default(),
                bulk: RefCell::default(),
                pipes: RefCell::default(),
            }),
        })
    }

    pub(super) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// The features in use.
    pub fn features(&self) -> Features {
        self.core.features
    }

    /// What the ring did since it began.
    pub fn stats(&self) -> Stats {
        self.core.uring.borrow().stats
    }

    /// The clock of the loop: milliseconds since the ring began, read once a turn.
    pub fn now(&self) -> u64 {
        self.core.now.get()
    }

    /// Runs a task on this thread until it ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
        self.note_local_work();
    }

    /// To be called by whoever wakes a task other than through the ring: the loop then does not go to sleep on it.
    pub fn note_local_work(&self) {
        self.core.local_work.set(true);
    }

    /// Wakes every task that waits on a socket, to look at something else that has changed.
    pub fn wake_all(&self) {
        self.core.sockets.borrow_mut().for_each(Socket::wake);
        self.note_local_work();
    }

    /// Lets everything else that is ready have its turn, and the ring be served, before this task goes on.
    pub async fn yield_turn(&self) {
        self.note_local_work();
        yield_once().await;
    }

    /// Counts a transfer that went over to private buffers.
    pub fn count_bulk(&self) {
        self.core.uring.borrow_mut().stats.bulk += 1;
    }

    /// An empty buffer to write a message head into; it comes back by itself when it was sent.
    pub fn head_buffer(&self) -> Vec<u8> {
        self.core.heads.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(HEAD_SIZE))
    }

    /// A private buffer of [`BULK_SIZE`] bytes for large transfers; it comes back by itself when it was sent.
    pub fn bulk_buffer(&self) -> Vec<u8> {
        self.core.bulk.borrow_mut().pop().unwrap_or_else(|| vec![0; BULK_SIZE])
    }

    /// Gives a buffer of [`Ring::head_buffer`] or [`Ring::bulk_buffer`] back that was not sent.
    pub fn recycle(&self, buffer: Vec<u8>) {
        self.core.recycle(buffer);
    }

    /// The main future of the executor: turns the loop until `finished` says so.
    ///
    /// # Errors
    /// When the ring itself fails, which leaves nothing to go on with.
    pub async fn drive(&self, mut finished: impl FnMut() -> bool) -> io::Result<()> {
        let mut completions = Vec::with_capacity(1024);
        while !finished() {
            self.core.turn(&mut completions)?;
            yield_once().await;
        }
        Ok(())
    }
}

/// Lets every task that is ready run before this one goes on.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Core {
    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    fn turn(&self, completions: &mut Vec<Completion>) -> io::Result<()> {
        // Before the wait: the tasks that have just run gave buffers back, and somebody may be starving for them.
        self.feed();
        let wait = if self.local_work.replace(false) {
            Wait::No
        } else {
            match self.wheel.borrow().next_look() {
                None => Wait::Forever,
                Some(until) => Wait::Until { now: self.now.get(), until },
            }
        };
        {
            let mut uring = self.uring.borrow_mut();
            uring.enter(wait, self.batching.borrow_mut().wanted(self.now.get()))?;
            uring.reap(completions);
        }
        // From what `Instant` counts since the ring began: below 2^64 ms for half a billion years.
        self.now.set(self.began.elapsed().as_millis() as u64);
        for completion in &*completions {
            self.complete(*completion);
        }
        self.wheel.borrow_mut().advance(self.now.get());
        Ok(())
    }

    /// Gives the kernel its buffers back, and receives to the sockets that found none.
    fn feed(&self) {
        let available = match &mut *self.provided.borrow_mut() {
            Some(provided) => usize::from(provided.refill()),
            None => self.pool.free_count(),
        };
        if self.starved.borrow().is_empty() {
            return;
        }
        for _ in 0..available {
            let Some(mark) = self.starved.borrow_mut().pop_front() else { break };
            if let Some(socket) = self.sockets.borrow_mut().find(mark)
                && !socket.closing
                && socket.starved
            {
                socket.starved = false;
                self.arm_receive(socket, mark.slot);
            }
        }
    }

    fn complete(&self, completion: Completion) {
        match completion.user_data {
            NOBODY => return,
            TIMEOUT => return self.uring.borrow_mut().timeout_completed(completion.result),
            _ => {}
        }
        // A buffer comes back, whoever it was for.
        let buffer = cqueue::buffer_select(completion.flags);
        if buffer.is_some()
            && let Some(provided) = &mut *self.provided.borrow_mut()
        {
            provided.consumed();
        }
        let sockets = &mut *self.sockets.borrow_mut();
        let mark = Mark::unpack(completion.user_data);
        let Some((mark, socket)) = mark.and_then(|mark| sockets.find(mark).map(|socket| (mark, socket)))
        else {
            if let Some(id) = buffer {
                self.pool.give_back(id);
            }
            return;
        };
        let more = cqueue::more(completion.flags);
        if !more {
            socket.in_flight &= !mark.operation.bit();
        }
        match mark.operation {
            Operation::Receive => self.received(socket, mark, completion.result, buffer, more),
            Operation::Poll => self.became_readable(socket, mark, completion.result),
            Operation::Send => self.sent(socket, mark, completion.result),
            Operation::Accept => self.accepted(socket, mark, completion.result, more),
            Operation::Connect | Operation::ReceiveBulk | Operation::Readiness => {
                socket.extra().outcome = Some(completion.result);
                match mark.operation {
                    // One that was given up says nothing of the connection.
                    Operation::ReceiveBulk if completion.result == -libc::ECANCELED => {}
                    Operation::ReceiveBulk if !socket.closing => socket.end = end_of(completion.result),
                    Operation::Connect => socket.extra().address = None,
                    _ => {}
                }
                socket.wake();
            }
        }
        if socket.closing && socket.in_flight == 0 {
            self.close(sockets, mark.slot);
        }
    }

    fn received(&self, socket: &mut Socket, mark: Mark, result: i32, buffer: Option<u16>, more: bool) {
        let buffer = match buffer {
            None if !self.features.provided_buffers => Some(socket.lent),
            other => other,
        };
        let paused = !more && std::mem::take(&mut socket.pausing);
        match (result, buffer) {
            (1.., Some(id)) if !socket.closing => {
                // The kernel never receives more than the buffer's size, which is below 2^16.
                self.pool.set_link(id, Link { next: 0, length: result as u16 });
                if socket.queued == 0 {
                    socket.first = id;
                } else {
                    self.pool.set_link(socket.last, Link { next: id, ..self.pool.link(socket.last) });
                }
                socket.last = id;
                self.batching.borrow_mut().received(&mut socket.window);
                socket.queued += 1;
                // Where buffers are scarce nobody keeps more than one unread.
                let scarce = self.buffers_at_hand() < usize::from(self.pool.count()) / 4;
                let high = if scarce { 1 } else { QUEUE_HIGH };
                if more && socket.queued >= high && !socket.pausing {
                    socket.pausing = true;
                    self.uring.borrow_mut().push_cancel(mark.pack());
                }
            }
            (_, buffer) => {
                if let Some(id) = buffer {
                    self.pool.give_back(id);
                }
                match -result {
                    // Whoever asked for the pause is woken below; it is what they waited for.
                    libc::ENOBUFS if paused => {}
                    libc::ENOBUFS => return self.starve(socket, mark),
                    // A pause, or an interrupted attempt: armed again when somebody asks.
                    libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                        if socket.wants_receive && !socket.closing {
                            self.arm_receive(socket, mark.slot);
                        }
                    }
                    _ => socket.end = end_of(result),
                }
            }
        }
        // A multishot receive may end with data and no reason: armed again when the data has been taken.
        if paused {
            socket.wake();
        } else if socket.wants_receive && (socket.queued > 0 || socket.end.is_some()) {
            socket.wants_receive = false;
            socket.wake();
        }
    }

    /// Buffers that nobody holds: on the free list, or published to the kernel.
    fn buffers_at_hand(&self) -> usize {
        let published = self.provided.borrow().as_ref().map_or(0, BufferRing::published);
        self.pool.free_count() + usize::from(published)
    }

    fn starve(&self, socket: &mut Socket, mark: Mark) {
        self.uring.borrow_mut().stats.no_buffers += 1;
        if let Some(provided) = &mut *self.provided.borrow_mut() {
            provided.widen();
        }
        if !socket.starved && !socket.closing {
            socket.starved = true;
            self.starved.borrow_mut().push_back(mark);
        }
    }

    fn became_readable(&self, socket: &mut Socket, mark: Mark, result: i32) {
        if socket.closing || result == -libc::ECANCELED {
            socket.pausing = false;
            socket.wake();
            return;
        }
        // Readable, hung up or broken: the receive tells which.
        self.receive_now(socket, mark.slot);
    }

    /// Without provided buffers: lends one to a receive that will complete at once.
    fn receive_now(&self, socket: &mut Socket, slot: u32) {
        let mark = Mark { operation: Operation::Receive, slot, generation: socket.generation };
        let Some(id) = self.pool.borrow_one() else { return self.starve(socket, mark) };
        socket.lent = id;
        let entry = opcode::Recv::new(types::Fd(socket.fd), self.pool.address(id), self.pool.size()).build();
        // SAFETY: the buffer stays lent until the completion, which gives it back or passes it on.
        unsafe { self.start(socket, mark, entry) };
    }

    /// Queues an operation of a slot and notes that it is in flight.
    ///
    /// # Safety
    /// As for [`Uring::push`].
    pub(super) unsafe fn start(&self, socket: &mut Socket, mark: Mark, entry: squeue::Entry) {
        debug_assert!(!socket.is_in_flight(mark.operation), "one operation of a kind at a time");
        debug_assert!(!socket.closing);
        socket.in_flight |= mark.operation.bit();
        // SAFETY: the caller's promise.
        unsafe { self.uring.borrow_mut().push(entry.user_data(mark.pack())) };
    }

    /// Sees to it that a receive is armed, unless one is, or there will be no more to receive.
    pub(super) fn arm_receive(&self, socket: &mut Socket, slot: u32) {
        let busy = Operation::Receive.bit() | Operation::Poll.bit() | Operation::ReceiveBulk.bit();
        if socket.in_flight & busy != 0 || socket.end.is_some() || socket.starved {
            return;
        }
        let fd = types::Fd(socket.fd);
        let generation = socket.generation;
        let mark = Mark { operation: Operation::Receive, slot, generation };
        let untried = std::mem::take(&mut socket.untried);
        let (mark, entry) = if self.features.multishot_recv && !untried {
            // One buffer per turn: a sender in a hurry does not fill the queue before anybody has looked at it.
            let entry = opcode::RecvMulti::new(fd, BufferRing::GROUP).build();
            (mark, if self.features.recv_limit { limit_per_turn(entry, self.pool.size()) } else { entry })
        } else if self.features.provided_buffers {
            let entry = opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(BufferRing::GROUP).build();
            (mark, entry.flags(squeue::Flags::BUFFER_SELECT))
        } else {
            let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
            (Mark { operation: Operation::Poll, ..mark }, opcode::PollAdd::new(fd, events).build())
        };
        // SAFETY: the kernel picks the memory from the registered buffers, or touches none.
        unsafe { self.start(socket, mark, entry) };
    }

    fn sent(&self, socket: &mut Socket, mark: Mark, result: i32) {
        let Some(mut sending) = socket.sending.take() else { return };
        if result > 0 && !socket.closing {
            sending.at += result as u32;
            if (sending.at as usize) < sending.data.len() {
                // A short send: the rest follows.
                return self.send(socket, mark.slot, sending);
            }
        }
        if result == 0 && socket.send_error == 0 {
            // Nothing was taken of something: the socket is of no use.
            socket.send_error = libc::EPIPE;
        }
        if result < 0 && socket.send_error == 0 {
            if (-result == libc::EINTR || -result == libc::EAGAIN) && !socket.closing {
                return self.send(socket, mark.slot, sending);
            }
            socket.send_error = -result;
        }
        if sending.kept {
            socket.sending = Some(sending);
        } else {
            self.retire(sending.data);
        }
        if socket.wants_send {
            socket.wants_send = false;
            socket.wake();
        }
    }

    /// Starts a send; none may be in flight.
    pub(super) fn send(&self, socket: &mut Socket, slot: u32, sending: Sending) {
        if let Some(kept) = socket.sending.take() {
            self.retire(kept.data);
        }
        let bytes = &sending.data.bytes()[sending.at as usize..];
        // The kernel's own retrying of short sends (5.19) saves turns, but hides the progress of long ones.
        let wait_all = if bytes.len() <= SMALL_SEND { libc::MSG_WAITALL } else { 0 };
        let entry = opcode::Send::new(types::Fd(socket.fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | wait_all)
            .build();
        let mark = Mark { operation: Operation::Send, slot, generation: socket.generation };
        let small = bytes.len() <= SMALL_SEND;
        // The data's heap block or arena buffer does not move with the handle to it.
        socket.sending = Some(sending);
        socket.expected = small;
        // SAFETY: the slot owns the data until the completion.
        unsafe { self.start(socket, mark, entry) };
        if small {
            self.uring.borrow_mut().expect_immediate();
        }
    }

    pub(super) fn retire(&self, data: Outgoing) {
        if let Outgoing::Owned(buffer, ..) = data {
            self.recycle(buffer);
        }
    }

    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        let (kept, most) = if buffer.capacity() == BULK_SIZE {
            // Its bytes are written over by the next receive; all of them count as initialised.
            buffer.resize(BULK_SIZE, 0);
            (&self.bulk, KEPT_BULK)
        // Smaller ones were not made here: kept, they would be of no use to a head.
        } else if (HEAD_SIZE..=4 * HEAD_SIZE).contains(&buffer.capacity()) {
            buffer.clear();
            (&self.heads, KEPT_HEADS)
        } else {
            return;
        };
        let mut kept = kept.borrow_mut();
        if kept.len() < most {
            kept.push(buffer);
        }
    }

    fn accepted(&self, socket: &mut Socket, mark: Mark, result: i32, more: bool) {
        if result >= 0 {
            if socket.closing {
                sys::close(result);
            } else {
                socket.extra().accepted.push_back(result);
            }
        } else if !matches!(-result, libc::ECANCELED | libc::EINTR | libc::EAGAIN | libc::ECONNABORTED) {
            socket.extra().accept_error = Some(-result);
        }
        if !more && !socket.closing && socket.wants_receive && socket.extra().accept_error.is_none() {
            self.arm_accept(socket, mark.slot);
        }
        socket.wake();
    }

    /// Sees to it that an accept is armed.
    pub(super) fn arm_accept(&self, socket: &mut Socket, slot: u32) {
        if socket.is_in_flight(Operation::Accept) {
            return;
        }
        let fd = types::Fd(socket.fd);
        let entry = if self.features.multishot_accept {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        };
        let mark = Mark { operation: Operation::Accept, slot, generation: socket.generation };
        // SAFETY: no address is asked for, so the entry points to no memory.
        unsafe { self.start(socket, mark, entry) };
    }

    /// A slot for a descriptor.
    pub(super) fn insert(&self, fd: RawFd) -> io::Result<u32> {
        self.sockets.borrow_mut().insert(fd).ok_or_else(|| {
            sys::close(fd);
            io::Error::from(io::ErrorKind::OutOfMemory)
        })
    }

    /// Takes the first received buffer off a socket's queue.
    pub(super) fn pop_received(&self, socket: &mut Socket) -> Option<Buf> {
        if socket.queued == 0 {
            return None;
        }
        let id = socket.first;
        let link = self.pool.link(id);
        socket.first = link.next;
        socket.queued -= 1;
        Some(Buf::take(&self.pool, id, link.length))
    }

    /// The handle is gone: cancels what is in flight, and closes when the last of it has completed.
    pub(super) fn release(&self, slot: u32) {
        let sockets = &mut *self.sockets.borrow_mut();
        let socket = sockets.get(slot);
        while self.pop_received(socket).is_some() {}
        socket.waker = None;
        socket.closing = true;
        if socket.in_flight == 0 {
            return self.close(sockets, slot);
        }
        for operation in Operation::ALL {
            if socket.is_in_flight(operation) && !(operation == Operation::Receive && socket.pausing) {
                let mark = Mark { operation, slot, generation: socket.generation };
                self.uring.borrow_mut().push_cancel(mark.pack());
            }
        }
    }

    /// Gives a slot back and closes its descriptor.
    fn close(&self, sockets: &mut Table, slot: u32) {
        let socket = sockets.get(slot);
        if let Some(sending) = socket.sending.take() {
            self.retire(sending.data);
        }
        if let Some(extra) = &mut socket.extra {
            extra.accepted.drain(..).for_each(sys::close);
            if let Some(buffer) = extra.bulk.take() {
                self.recycle(buffer);
            }
        }
        let fd = sockets.remove(slot);
        let mut entry = opcode::Close::new(types::Fd(fd)).build().user_data(NOBODY);
        if self.features.skip_cqe {
            entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        }
        // SAFETY: the entry points to no memory, and the slot that owned the descriptor has given it up.
        unsafe { self.uring.borrow_mut().push(entry) };
    }
}

fn end_of(result: i32) -> Option<End> {
    match result {
        0 => Some(End::Finished),
        error if error < 0 => Some(End::Broken(-error)),
        _ => None,
    }
}
