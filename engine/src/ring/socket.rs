//! The state of one socket: which operations are in flight, what has arrived, who waits.
//!
//! A slot owns its descriptor and all memory that its operations point to, and is given back only when the last
//! of them has completed. The slots live in a table of pages that never move.
//!
//! # Warning
//! A socket may have several users at once: an upload receives from the client while a response is sent to it, and both
//! may wait for readiness. Each kind of operation therefore has its own outcome and its own waiter, and there is at most
//! one operation of a kind in flight; [`Socket::begin`] asserts that.

use std::{collections::VecDeque, num::NonZeroU16, os::fd::RawFd, task::Waker};

use super::{body_memory::BulkBuf, buffers::Role, message::SendBuf};

/// A kind of operation; part of its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    /// Receive, into the arena.
    Receive = 1,
    /// Wait until readable, where a receive would pin a buffer.
    Poll = 2,
    /// Send, or wait for room to do so.
    Send = 3,
    /// Connect.
    Connect = 4,
    /// Receive, into a private buffer.
    ReceiveBulk = 5,
    /// Wait until readable, without receiving.
    ReadReady = 6,
    /// Wait until writable, without sending.
    WriteReady = 7,
    /// Wait until the connection is broken.
    Hangup = 8,
}

impl Operation {
    pub(super) const ALL: [Operation; 8] = [
        Operation::Receive,
        Operation::Poll,
        Operation::Send,
        Operation::Connect,
        Operation::ReceiveBulk,
        Operation::ReadReady,
        Operation::WriteReady,
        Operation::Hangup,
    ];
    /// The first of the kinds whose outcome and waiter are in [`ColdState`].
    const FIRST_COLD: u8 = Operation::Connect as u8;
    const COLD: usize = Operation::ALL.len() + 1 - Operation::FIRST_COLD as usize;

    fn from_number(number: u8) -> Option<Operation> {
        Operation::ALL.into_iter().find(|operation| *operation as u8 == number)
    }

    /// Its bit in [`Socket::in_flight`].
    pub(super) fn bit(self) -> u16 {
        1 << (self as u8 - 1)
    }

    /// Its place in [`ColdState::pending`]; `None` for the kinds that [`Socket`] itself keeps.
    fn cold_index(self) -> Option<usize> {
        (self as u8).checked_sub(Operation::FIRST_COLD).map(usize::from)
    }
}

/// The token of an operation: what, on which slot, in which of the slot's lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) operation: Operation,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Token {
    /// `operation: 8 | slot: 24 | generation: 32`.
    pub(super) fn pack(self) -> u64 {
        (self.operation as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    pub(super) fn unpack(user_data: u64) -> Option<Token> {
        Some(Token {
            operation: Operation::from_number((user_data >> 56) as u8)?,
            slot: (user_data >> 32) as u32 & Table::SLOT_MASK,
            generation: user_data as u32,
        })
    }
}

/// How receiving or sending ended: the peer has finished, or the connection broke. Two bytes, since every socket keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End(NonZeroU16);

impl End {
    /// The peer will send no more.
    pub(super) const FINISHED: End = End(NonZeroU16::MAX);

    /// What a receive that completed with `result` says of the connection; `None` = it goes on.
    pub(super) fn of(result: i32) -> Option<End> {
        match result {
            1.. => None,
            0 => Some(End::FINISHED),
            error => Some(End::broken(-error)),
        }
    }

    /// The connection broke with an errno, all of which are below 4,096.
    pub(super) fn broken(errno: i32) -> End {
        u16::try_from(errno).ok().and_then(NonZeroU16::new).map_or(End::FINISHED, End)
    }

    /// The errno of a connection that broke; `None` when the peer has finished.
    pub(super) fn errno(self) -> Option<i32> {
        (self != End::FINISHED).then_some(i32::from(self.0.get()))
    }
}

/// Outcome and waiter of one kind of operation.
#[derive(Default)]
pub(super) struct Pending {
    /// A count, a set of poll events, or a negative errno.
    pub(super) outcome: Option<i32>,
    waker: Option<Waker>,
}

impl Pending {
    /// The outcome, for the task that waited for it, which waits no longer.
    pub(super) fn take_outcome(&mut self) -> Option<i32> {
        let outcome = self.outcome.take();
        if outcome.is_some() {
            self.waker = None;
        }
        outcome
    }

    /// Nobody waits for the outcome any more.
    pub(super) fn stop_waiting(&mut self) {
        self.waker = None;
    }
}

/// In what the length of an expected body is counted (bytes): one byte of a socket tells those that fit a private buffer apart.
pub(super) const BULK_UNIT: u64 = 8 * 1024;

/// How much a receive may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// As many buffers as come, until it is paused.
    Many,
    /// One, and then many: nothing has come yet, and the peer may be gone after its first message.
    First,
    /// One: whoever takes it is slow.
    Single,
    /// No more than a head: much is behind it that is not to be copied, of so many [`BULK_UNIT`]s at a guess.
    Brief(u8),
}

/// What few sockets need, apart, so that the others stay small.
#[derive(Default)]
pub(super) struct ColdState {
    /// The private buffer of a bulk receive: the kernel writes to it while `ReceiveBulk` is in flight.
    pub(super) bulk: Option<BulkBuf>,
    /// The address that the kernel reads while `Connect` is in flight.
    pub(super) address: Option<Box<socket2::SockAddr>>,
    /// What was received and moved out of the arena, behind what of it still lies there.
    pub(super) spilled: VecDeque<Vec<u8>>,
    pending: [Pending; Operation::COLD],
}

impl ColdState {
    /// Outcome and waiter of `operation`, one of the kinds that are kept here.
    pub(super) fn pending(&mut self, operation: Operation) -> &mut Pending {
        let index = operation.cold_index();
        debug_assert!(index.is_some(), "{operation:?} is kept in the socket itself");
        &mut self.pending[index.unwrap_or(0)]
    }
}

/// One slot of the table.
pub(super) struct Socket {
    pub(super) fd: RawFd,
    /// Life of the slot: goes up when it is given back, so that late completions find nobody.
    pub(super) generation: u32,
    /// Operations in flight, by [`Operation::bit`].
    pub(super) in_flight: u16,
    /// Whose it is: which buffers it receives into, and whose share of them that takes.
    pub(super) role: Role,
    /// The handle is gone; the slot goes when nothing is in flight.
    pub(super) closing: bool,
    /// The receive waiter wants to know of: something received, the end. The send waiter: a send completed.
    pub(super) wants_receive: bool,
    pub(super) wants_send: bool,
    /// How much a receive may bring.
    pub(super) intake: Intake,
    /// Its send is expected to complete at once, and nobody waits for that.
    pub(super) expected: bool,
    /// What is in flight as its send is the wait for room.
    pub(super) awaits_room: bool,
    /// A cancel of the receive is under way.
    pub(super) pausing: bool,
    /// The window in which it last received something; see `batching`.
    pub(super) window: u8,
    /// Waits for a buffer in the queue of the starved.
    pub(super) starved: bool,
    /// Received buffers, linked through the arena: how many, the first, the last.
    pub(super) queued: u16,
    pub(super) first: u16,
    pub(super) last: u16,
    /// The buffer lent to a receive where the kernel does not pick one.
    pub(super) lent: u16,
    pub(super) end: Option<End>,
    /// Why sending is over.
    pub(super) send_end: Option<End>,
    /// What is being sent: the kernel reads it while `Send` is in flight.
    pub(super) sending: Option<SendBuf>,
    /// It is not given up at the completion: it may have to be sent again elsewhere.
    pub(super) replayable: bool,
    receive_waker: Option<Waker>,
    send_waker: Option<Waker>,
    pub(super) cold: Option<Box<ColdState>>,
    next_free: u32,
}

impl Socket {
    fn free(next_free: u32) -> Socket {
        Socket {
            fd: -1,
            generation: 0,
            in_flight: 0,
            role: Role::Control,
            closing: false,
            wants_receive: false,
            wants_send: false,
            intake: Intake::Many,
            expected: false,
            awaits_room: false,
            pausing: false,
            window: 0,
            starved: false,
            queued: 0,
            first: 0,
            last: 0,
            lent: 0,
            end: None,
            send_end: None,
            sending: None,
            replayable: false,
            receive_waker: None,
            send_waker: None,
            cold: None,
            next_free,
        }
    }

    pub(super) fn is_in_flight(&self, operation: Operation) -> bool {
        self.in_flight & operation.bit() != 0
    }

    /// Notes that an operation of a kind is in flight, of which there may be only one at a time: a second one would
    /// take over the memory that the kernel uses for the first.
    pub(super) fn begin(&mut self, operation: Operation) {
        assert!(!self.is_in_flight(operation), "one operation of a kind at a time: {operation:?}");
        debug_assert!(!self.closing, "nothing begins on a socket that closes");
        self.in_flight |= operation.bit();
    }

    pub(super) fn cold(&mut self) -> &mut ColdState {
        self.cold.get_or_insert_default()
    }

    /// Received data that nobody took yet is there, or was moved out of the arena.
    pub(super) fn has_unread(&self) -> bool {
        self.queued > 0 || self.has_spilled()
    }

    pub(super) fn has_spilled(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.spilled.is_empty())
    }

    /// Keeps the waker of the task that waits for something received, for the end, or for a pause.
    pub(super) fn wait_for_receive(&mut self, waker: &Waker) {
        keep(&mut self.receive_waker, waker);
    }

    /// Keeps the waker of the task that waits for its send to complete.
    pub(super) fn wait_for_send(&mut self, waker: &Waker) {
        keep(&mut self.send_waker, waker);
    }

    /// Keeps the waker of the task that waits for the outcome of an operation.
    pub(super) fn wait_for(&mut self, operation: Operation, waker: &Waker) {
        keep(&mut self.cold().pending(operation).waker, waker);
    }

    pub(super) fn wake_receiver(&self) {
        wake(&self.receive_waker);
    }

    pub(super) fn wake_sender(&self) {
        wake(&self.send_waker);
    }

    /// An operation whose outcome is kept in [`ColdState`] has completed.
    pub(super) fn conclude(&mut self, operation: Operation, outcome: i32) {
        let pending = self.cold().pending(operation);
        pending.outcome = Some(outcome);
        wake(&pending.waker);
    }

    /// Wakes every task that waits on the socket, to look at something else that has changed.
    pub(super) fn wake_all(&self) {
        self.wake_receiver();
        self.wake_sender();
        if let Some(cold) = &self.cold {
            cold.pending.iter().for_each(|pending| wake(&pending.waker));
        }
    }

    /// Forgets who waited, so that the socket can rest without keeping a task alive.
    pub(super) fn forget_waiters(&mut self) {
        self.receive_waker = None;
        self.send_waker = None;
        (self.wants_receive, self.wants_send) = (false, false);
        if let Some(cold) = &mut self.cold {
            cold.pending.iter_mut().for_each(|pending| pending.waker = None);
        }
    }

    /// Whether a task waits for the outcome of this kind of operation.
    pub(super) fn is_awaited(&mut self, operation: Operation) -> bool {
        self.cold().pending(operation).waker.is_some()
    }

    /// An operation of this kind was given up, and has ended: its outcome interests nobody.
    pub(super) fn forget(&mut self, operation: Operation) {
        if self.cold.is_some() {
            *self.cold().pending(operation) = Pending::default();
        }
        self.shed_cold_state();
    }

    /// Gives the cold state up, if nothing of it is needed: what rests stays small. An outcome that a task was woken for,
    /// and has not taken yet, is needed.
    pub(super) fn shed_cold_state(&mut self) {
        let cold_in_flight = Operation::ALL
            .into_iter()
            .any(|operation| operation.cold_index().is_some() && self.is_in_flight(operation));
        let is_spare = |cold: &ColdState| {
            cold.spilled.is_empty()
                && cold.bulk.is_none()
                && cold.pending.iter().all(|pending| pending.waker.is_none())
        };
        if !cold_in_flight && self.cold.as_deref().is_some_and(is_spare) {
            self.cold = None;
        }
    }
}

/// Most of the time it is the same waker again. Another one may only come when the task before has let go.
fn keep(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(present) if present.will_wake(waker) => {}
        _ => *place = Some(waker.clone()),
    }
}

fn wake(waker: &Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake_by_ref();
    }
}

/// The table of slots. Pages never move, so growing copies nothing.
pub(super) struct Table {
    pages: Vec<Box<[Socket]>>,
    first_free: u32,
}

const PAGE_SHIFT: u32 = 6;
const PAGE: u32 = 1 << PAGE_SHIFT;
const NONE: u32 = u32::MAX;

impl Table {
    const SLOT_MASK: u32 = (1 << 24) - 1;

    pub(super) fn new() -> Table {
        Table { pages: Vec::new(), first_free: NONE }
    }

    pub(super) fn get(&mut self, slot: u32) -> &mut Socket {
        &mut self.pages[(slot >> PAGE_SHIFT) as usize][(slot & (PAGE - 1)) as usize]
    }

    /// The slot that a token is for, unless that life of it is over.
    pub(super) fn find(&mut self, token: Token) -> Option<&mut Socket> {
        let socket = self.pages.get_mut((token.slot >> PAGE_SHIFT) as usize)?;
        let socket = &mut socket[(token.slot & (PAGE - 1)) as usize];
        (socket.generation == token.generation && socket.fd >= 0).then_some(socket)
    }

    /// The sockets of a page that are in use; `None` behind the last page.
    pub(super) fn page(&self, number: usize) -> Option<impl Iterator<Item = &Socket>> {
        Some(self.pages.get(number)?.iter().filter(|socket| socket.fd >= 0))
    }

    /// A slot for `fd`; `None` when there are 2^24 already.
    pub(super) fn insert(&mut self, fd: RawFd, role: Role) -> Option<u32> {
        if self.first_free == NONE {
            self.grow()?;
        }
        let slot = self.first_free;
        let socket = self.get(slot);
        let (next_free, generation) = (socket.next_free, socket.generation);
        *socket = Socket { fd, generation, role, ..Socket::free(NONE) };
        self.first_free = next_free;
        Some(slot)
    }

    fn grow(&mut self) -> Option<()> {
        let base = self.pages.len() as u32 * PAGE;
        if base + PAGE > Table::SLOT_MASK {
            return None;
        }
        let page: Vec<Socket> = (base..base + PAGE)
            .map(|slot| Socket::free(if slot + 1 < base + PAGE { slot + 1 } else { NONE }))
            .collect();
        self.pages.push(page.into_boxed_slice());
        self.first_free = base;
        Some(())
    }

    /// Gives a slot back; nothing may be in flight on it. The descriptor is the caller's.
    pub(super) fn remove(&mut self, slot: u32) -> RawFd {
        let next_free = self.first_free;
        let socket = self.get(slot);
        assert!(socket.in_flight == 0, "the kernel may still use what the slot owns");
        debug_assert!(socket.fd >= 0 && socket.queued == 0);
        let fd = socket.fd;
        *socket = Socket { generation: socket.generation.wrapping_add(1), ..Socket::free(next_free) };
        self.first_free = slot;
        fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_packing() {
        for operation in Operation::ALL {
            let token = Token { operation, slot: 0xabcdef, generation: 0xdeadbeef };
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(super::super::uring::NOBODY), None);
        assert_eq!(Token::unpack(super::super::uring::TIMEOUT), None);
    }

    #[test]
    fn a_completion_of_an_earlier_life_finds_nobody() {
        let mut table = Table::new();
        let slot = table.insert(7, Role::Downstream).unwrap();
        let token = Token { operation: Operation::Send, slot, generation: table.get(slot).generation };
        assert!(table.find(token).is_some());
        assert_eq!(table.remove(slot), 7);
        assert!(table.find(token).is_none());
        assert_eq!(table.insert(8, Role::Downstream), Some(slot), "the slot is used again");
        assert!(table.find(token).is_none());
    }

    #[test]
    fn a_socket_that_waits_takes_little_memory() {
        assert!(size_of::<Socket>() <= 112, "{}", size_of::<Socket>());
    }

    #[test]
    fn slots_are_distinct_over_many_pages() {
        let mut table = Table::new();
        let mut slots: Vec<_> = (0..1000).map(|fd| table.insert(fd, Role::Downstream).unwrap()).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 1000);
    }

    #[test]
    fn outcomes_of_two_kinds_on_one_socket_are_apart() {
        let mut table = Table::new();
        let slot = table.insert(7, Role::Downstream).unwrap();
        let socket = table.get(slot);
        socket.begin(Operation::ReadReady);
        socket.begin(Operation::WriteReady);
        socket.begin(Operation::ReceiveBulk);
        socket.conclude(Operation::WriteReady, 4);
        socket.conclude(Operation::ReceiveBulk, 114_744);
        assert_eq!(socket.cold().pending(Operation::ReadReady).outcome, None);
        assert_eq!(socket.cold().pending(Operation::WriteReady).outcome, Some(4));
        assert_eq!(socket.cold().pending(Operation::ReceiveBulk).outcome, Some(114_744));
    }

    #[test]
    #[should_panic(expected = "one operation of a kind at a time")]
    fn a_second_operation_of_a_kind_is_refused() {
        let mut table = Table::new();
        let slot = table.insert(7, Role::Downstream).unwrap();
        table.get(slot).begin(Operation::Send);
        table.get(slot).begin(Operation::Send);
    }

    #[test]
    fn an_outcome_that_a_task_was_woken_for_outlives_an_operation_that_was_given_up() {
        let mut table = Table::new();
        let slot = table.insert(7, Role::Downstream).unwrap();
        let socket = table.get(slot);
        socket.wait_for(Operation::ReadReady, Waker::noop());
        // One turn of the loop: the upload's wait has an outcome, and the watch of the response that was cancelled ends.
        socket.conclude(Operation::ReadReady, 1);
        socket.conclude(Operation::Hangup, -libc::ECANCELED);
        socket.forget(Operation::Hangup);
        assert_eq!(socket.cold().pending(Operation::ReadReady).take_outcome(), Some(1));
        // Once it is taken, nobody waits for anything.
        socket.shed_cold_state();
        assert!(socket.cold.is_none());
    }

    #[test]
    fn errors_and_the_end_are_told_apart() {
        assert_eq!(End::of(5), None);
        assert_eq!(End::of(0).map(End::errno), Some(None));
        assert_eq!(End::of(-104).map(End::errno), Some(Some(104)));
    }
}
