//! The core of the ring: who a completion is for, and the turn of the loop.
//!
//! | file | the operations |
//! |---|---|
//! | `receive` | into the arena, shares of it, what waits for a slow reader |
//! | `send` | one send at a time, short sends, what waits for a slow peer |
//! | `room` | waits for room to send |
//! | `close` | slots, cancelling, closing |
//!
//! Connects, bulk receives and waits for readiness begin in `stream`; their outcome is kept by [`Socket::conclude`].

mod close;
mod receive;
mod room;
mod send;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    io,
    os::fd::{AsRawFd as _, RawFd},
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use io_uring::{cqueue, opcode, squeue, types};

use super::{
    admission::{self, Admission},
    batching::Batching,
    body_memory::{BodyMemory, BulkBuf},
    buffers::{BufferRing, Part, Pool},
    features::Features,
    overload::Overload,
    setup::{Settings, SetupError},
    socket::{End, Operation, Socket, Table, Token},
    splice::Pipes,
    timer::Wheel,
    uring::{Completion, NOBODY, Stats, TIMEOUT, Uring, Wait},
};

/// Heads are written into buffers that start at this size (bytes).
const HEAD_SIZE: usize = 1024;
/// Head buffers that are kept for the next user.
const KEPT_HEADS: usize = 1024;

/// Pages of sockets whose tasks one turn wakes for another reason than their sockets: 256 tasks, some 100 us.
const PAGES_WOKEN: usize = 4;

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
    /// Of each part of the pool.
    provided: Option<[RefCell<BufferRing>; 2]>,
    /// Sockets whose receive found no buffer, of each part.
    starved: [RefCell<VecDeque<Token>>; 2],
    began: Instant,
    now: Cell<u64>,
    /// Tasks were made ready by other tasks: the next turn must not sleep.
    local_work: Cell<bool>,
    /// The next page of sockets whose tasks are to be woken.
    next_woken: Cell<Option<usize>>,
    overload: Overload,
    admission: Admission,
    bulk_admission: Admission,
    connection_admission: Admission,
    batching: RefCell<Batching>,
    heads: RefCell<Vec<Vec<u8>>>,
    body_memory: Rc<BodyMemory>,
    pub(super) pipes: Pipes,
    /// Bytes received from clients, and sent to them.
    pub(super) downstream_bytes: [Cell<u64>; 2],
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
            let register = |part| {
                let mut ring = BufferRing::register_part(uring.raw(), Rc::clone(&pool), part)?;
                ring.refill();
                Ok(RefCell::new(ring))
            };
            let [downstream, upstream] = Part::ALL.map(register);
            Some([downstream.map_err(buffers_error)?, upstream.map_err(buffers_error)?])
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
                provided,
                starved: Default::default(),
                began: Instant::now(),
                now: Cell::new(0),
                local_work: Cell::new(false),
                next_woken: Cell::new(None),
                overload: Overload::default(),
                admission: Admission::new(admission::COMPUTE_BUDGET),
                bulk_admission: Admission::new(admission::BULK_BUDGET),
                connection_admission: Admission::new(admission::CONNECTION_BUDGET),
                batching: RefCell::default(),
                heads: RefCell::default(),
                body_memory: BodyMemory::new(settings.body_memory),
                pipes: Pipes::default(),
                downstream_bytes: Default::default(),
            }),
        })
    }

    pub(super) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// The number of its descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.core.uring.borrow().raw().as_raw_fd()
    }

    /// The features in use.
    pub fn features(&self) -> Features {
        self.core.features
    }

    /// What the ring did since it began.
    pub fn stats(&self) -> Stats {
        let Core { uring, body_memory, .. } = &*self.core;
        Stats {
            body_memory: body_memory.in_use() as u64,
            body_memory_refused: body_memory.refused(),
            ..uring.borrow().stats
        }
    }

    /// Bytes received from clients, and sent to them, since the ring began: counted at the sockets, records of TLS included.
    pub fn downstream_bytes(&self) -> (u64, u64) {
        let [received, sent] = &self.core.downstream_bytes;
        (received.get(), sent.get())
    }

    /// The clock of the loop: milliseconds since the ring began, read once a turn.
    pub fn now(&self) -> u64 {
        self.core.now.get()
    }

    /// How long ago the ring began, at this moment (ms): [`Ring::now`] may be behind it.
    pub fn age_ms(&self) -> u64 {
        self.core.began.elapsed().as_millis() as u64
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

    /// How often something had to wait for a later turn, of all that is admitted.
    pub fn deferred(&self) -> u64 {
        self.core.admissions().map(Admission::deferred).sum()
    }

    /// What admits work that takes more than some 50 us.
    pub fn admission(&self) -> &Admission {
        &self.core.admission
    }

    /// What admits pieces of large bodies.
    pub fn bulk_admission(&self) -> &Admission {
        &self.core.bulk_admission
    }

    /// What admits new connections, of clients and to backends.
    pub fn connection_admission(&self) -> &Admission {
        &self.core.connection_admission
    }

    /// Wakes every task that waits on a socket, to look at something else that has changed: in the turns that follow, some
    /// hundred in each, so that ten thousand idle connections hold up nobody.
    pub fn wake_all(&self) {
        self.core.next_woken.set(Some(0));
        self.note_local_work();
    }

    /// Whether [`Ring::wake_all`] has some left to wake.
    pub fn is_waking(&self) -> bool {
        self.core.next_woken.get().is_some()
    }

    /// From now on there is an overload when all turns take longer than `delay_ms` for a while; 0 = never.
    pub fn set_overload_delay(&self, delay_ms: u64) {
        self.core.overload.set_delay(delay_ms);
    }

    /// Whether what the loop has to do waits too long (`overload_delay`).
    #[inline]
    pub fn is_overloaded(&self) -> bool {
        self.core.overload.is_there()
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

    /// Private memory that bodies may take from now on (bytes).
    pub fn set_body_memory(&self, bytes: usize) {
        self.core.body_memory.set_budget(bytes);
    }

    /// Capacity that pipes have from now on (bytes); those in use keep what they have.
    pub fn set_pipe_capacity(&self, bytes: usize) {
        self.core.pipes.set_capacity(bytes);
    }

    /// A private buffer for a large transfer of `wanted` bytes at a time, or a smaller one; it comes back by itself. `None`
    /// when `body_memory` does not allow one: the transfer then goes on in the buffers that it is received into.
    pub fn bulk_buffer(&self, wanted: usize) -> Option<BulkBuf> {
        self.core.body_memory.lend(wanted)
    }

    /// Gives back what of the private buffers nobody has needed since the last time.
    pub fn trim_body_memory(&self) {
        self.core.body_memory.trim();
    }

    /// Gives a buffer of [`Ring::head_buffer`] back that was not sent.
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
        let wait = if self.local_work.replace(false) || self.is_waited_for() {
            Wait::No
        } else {
            match self.wheel.borrow().next_look() {
                None => Wait::Forever,
                Some(until) => Wait::Until { now: self.now.get(), until },
            }
        };
        if self.overload.is_on() {
            let now = self.began.elapsed().as_millis() as u64;
            self.overload.note(now - self.now.get(), now);
        }
        {
            let mut uring = self.uring.borrow_mut();
            uring.enter(wait, self.batching.borrow_mut().wanted(self.now.get()))?;
            if self.is_waited_for() {
                // The next turn is a long one: what is ready comes before it, all of it.
                uring.complete_ready()?;
            }
            uring.reap(completions);
        }
        // From what `Instant` counts since the ring began: below 2^64 ms for half a billion years.
        self.now.set(self.began.elapsed().as_millis() as u64);
        for completion in &*completions {
            self.complete(*completion);
        }
        self.wheel.borrow_mut().advance(self.now.get());
        self.admissions().for_each(Admission::begin_turn);
        self.wake_some();
        Ok(())
    }

    /// Goes on with [`Ring::wake_all`].
    fn wake_some(&self) {
        let Some(next) = self.next_woken.get() else { return };
        let sockets = self.sockets.borrow();
        for number in next..next + PAGES_WOKEN {
            let Some(page) = sockets.page(number) else { return self.next_woken.set(None) };
            page.for_each(Socket::wake_all);
        }
        self.next_woken.set(Some(next + PAGES_WOKEN));
        self.local_work.set(true);
    }

    /// True if somebody waits for a later turn.
    fn is_waited_for(&self) -> bool {
        self.admissions().any(Admission::is_waited_for)
    }

    fn admissions(&self) -> impl Iterator<Item = &Admission> {
        [&self.admission, &self.bulk_admission, &self.connection_admission].into_iter()
    }

    fn complete(&self, completion: Completion) {
        match completion.user_data {
            NOBODY => return,
            TIMEOUT => return self.uring.borrow_mut().timeout_completed(completion.result),
            _ => {}
        }
        // A buffer comes back, whoever it was for.
        let buffer = cqueue::buffer_select(completion.flags);
        if let Some(id) = buffer {
            self.consumed(id);
        }
        let sockets = &mut *self.sockets.borrow_mut();
        let token = Token::unpack(completion.user_data);
        let Some((token, socket)) = token.and_then(|token| sockets.find(token).map(|socket| (token, socket)))
        else {
            if let Some(id) = buffer {
                self.pool.give_back(id);
            }
            return;
        };
        let more = cqueue::more(completion.flags);
        if !more {
            socket.in_flight &= !token.operation.bit();
        }
        match token.operation {
            Operation::Receive => self.received(socket, token, completion.result, buffer, more),
            Operation::Poll => self.became_readable(socket, token, completion.result),
            Operation::Send => self.send_completed(socket, token, completion.result, more),
            Operation::ReceiveBulk => {
                // One that was given up says nothing of the connection.
                if completion.result != -libc::ECANCELED {
                    self.count_received(socket, completion.result);
                    socket.end = End::of(completion.result);
                }
                socket.conclude(token.operation, completion.result);
            }
            Operation::Connect => {
                socket.cold().address = None;
                socket.conclude(token.operation, completion.result);
            }
            Operation::WriteReady if !self.has_room(socket, token, completion.result, more) => {}
            Operation::ReadReady | Operation::WriteReady | Operation::Hangup => {
                socket.conclude(token.operation, completion.result);
                if completion.result == -libc::ECANCELED && !socket.is_awaited(token.operation) {
                    socket.forget(token.operation);
                }
            }
        }
        if socket.closing && socket.in_flight == 0 {
            self.close(sockets, token.slot);
        }
    }

    /// Queues an operation of a slot and notes that it is in flight.
    ///
    /// # Safety
    /// As for [`Uring::push`].
    pub(super) unsafe fn start(&self, socket: &mut Socket, token: Token, entry: squeue::Entry) {
        socket.begin(token.operation);
        // SAFETY: the caller's promise.
        unsafe { self.uring.borrow_mut().push(entry.user_data(token.pack())) };
    }

    /// Starts a wait for readiness, unless one of the kind is in flight: one that an abandoned wait left behind will do.
    pub(super) fn start_poll(&self, slot: u32, operation: Operation, events: i16, goes_on: bool) {
        let sockets = &mut *self.sockets.borrow_mut();
        let socket = sockets.get(slot);
        if !socket.is_in_flight(operation) {
            let entry = opcode::PollAdd::new(types::Fd(socket.fd), events as u32).multi(goes_on).build();
            let token = Token { operation, slot, generation: socket.generation };
            // SAFETY: the entry points to no memory.
            unsafe { self.start(socket, token, entry) };
        }
    }

    /// Waits for the outcome of an operation whose waiter is kept apart.
    pub(super) fn poll_outcome(&self, slot: u32, operation: Operation, context: &Context<'_>) -> Poll<i32> {
        let sockets = &mut *self.sockets.borrow_mut();
        let socket = sockets.get(slot);
        match socket.cold().pending(operation).take_outcome() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                socket.wait_for(operation, context.waker());
                Poll::Pending
            }
        }
    }

    /// Asks for the end of an operation that is in flight.
    pub(super) fn cancel(&self, socket: &Socket, operation: Operation, slot: u32) {
        debug_assert!(socket.is_in_flight(operation));
        let token = Token { operation, slot, generation: socket.generation };
        self.uring.borrow_mut().push_cancel(token.pack());
    }

    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        // Others were not made here: kept, they would be of no use to a head.
        if (HEAD_SIZE..=4 * HEAD_SIZE).contains(&buffer.capacity()) {
            buffer.clear();
            let mut kept = self.heads.borrow_mut();
            if kept.len() < KEPT_HEADS {
                kept.push(buffer);
            }
        }
    }
}
