//! The state of one socket: which operations are in flight, what has arrived, who waits.
//!
//! A slot owns its descriptor and all memory that its operations point to, and is given back only when the last
//! of them has completed. The slots live in a table of pages that never move.

use std::{collections::VecDeque, os::fd::RawFd, task::Waker};

use super::stream::Outgoing;

/// What an operation does; part of its mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    /// Receive, into the arena.
    Receive = 1,
    /// Wait until readable, where a receive would pin a buffer.
    Poll = 2,
    /// Send.
    Send = 3,
    /// Connect.
    Connect = 4,
    /// Accept.
    Accept = 5,
    /// Receive, into a private buffer.
    ReceiveBulk = 6,
    /// Wait until readable or writable, without receiving or sending.
    Readiness = 7,
}

impl Operation {
    pub(super) const ALL: [Operation; 7] = [
        Operation::Receive,
        Operation::Poll,
        Operation::Send,
        Operation::Connect,
        Operation::Accept,
        Operation::ReceiveBulk,
        Operation::Readiness,
    ];

    fn from_number(number: u8) -> Option<Operation> {
        Operation::ALL.into_iter().find(|operation| *operation as u8 == number)
    }

    /// Its bit in [`Socket::in_flight`].
    pub(super) fn bit(self) -> u8 {
        1 << (self as u8 - 1)
    }
}

/// The mark of an operation: what, on which slot, in which of the slot's lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) operation: Operation,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Mark {
    /// `operation: 8 | slot: 24 | generation: 32`.
    pub(super) fn pack(self) -> u64 {
        (self.operation as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    pub(super) fn unpack(user_data: u64) -> Option<Mark> {
        Some(Mark {
            operation: Operation::from_number((user_data >> 56) as u8)?,
            slot: (user_data >> 32) as u32 & Table::SLOT_MASK,
            generation: user_data as u32,
        })
    }
}

/// How receiving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The peer will send no more.
    Finished,
    /// The connection broke: an errno.
    Broken(i32),
}

/// A send. While it is in flight the kernel reads from `data[at..]`.
pub(super) struct Sending {
    pub(super) data: Outgoing,
    pub(super) at: u32,
    /// The data is not given up at the completion: it may have to be sent again elsewhere.
    pub(super) kept: bool,
}

/// What few sockets need, apart, so that the others stay small.
#[derive(Default)]
pub(super) struct Extra {
    /// The private buffer of a bulk receive: the kernel writes to it while `ReceiveBulk` is in flight.
    pub(super) bulk: Option<Vec<u8>>,
    /// What became of the bulk receive, the connect or the wait for writability: a count or a negative errno.
    pub(super) outcome: Option<i32>,
    /// The address that the kernel reads while `Connect` is in flight.
    pub(super) address: Option<socket2::SockAddr>,
    /// Accepted connections that nobody took yet.
    pub(super) accepted: VecDeque<RawFd>,
    /// Why accepting stopped: an errno.
    pub(super) accept_error: Option<i32>,
}

/// One slot of the table.
pub(super) struct Socket {
    pub(super) fd: RawFd,
    /// Life of the slot: goes up when it is given back, so that late completions find nobody.
    pub(super) generation: u32,
    /// Operations in flight, by [`Operation::bit`].
    pub(super) in_flight: u8,
    /// The handle is gone; the slot goes when nothing is in flight.
    pub(super) closing: bool,
    /// The waker wants to know of: something received, a send completed.
    pub(super) wants_receive: bool,
    pub(super) wants_send: bool,
    /// Has received nothing yet, and may be gone after its first message: that one is received alone.
    pub(super) untried: bool,
    /// Its send is expected to complete at once, and nobody waits for that.
    pub(super) expected: bool,
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
    /// Why sending is over: an errno; 0 = it is not.
    pub(super) send_error: i32,
    pub(super) sending: Option<Sending>,
    pub(super) waker: Option<Waker>,
    pub(super) extra: Option<Box<Extra>>,
    next_free: u32,
}

impl Socket {
    fn free(next_free: u32) -> Socket {
        Socket {
            fd: -1,
            generation: 0,
            in_flight: 0,
            closing: false,
            wants_receive: false,
            wants_send: false,
            untried: false,
            expected: false,
            pausing: false,
            window: 0,
            starved: false,
            queued: 0,
            first: 0,
            last: 0,
            lent: 0,
            end: None,
            send_error: 0,
            sending: None,
            waker: None,
            extra: None,
            next_free,
        }
    }

    pub(super) fn is_in_flight(&self, operation: Operation) -> bool {
        self.in_flight & operation.bit() != 0
    }

    pub(super) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Keeps the waker of the task that waits; most of the time it is the same one again.
    pub(super) fn keep_waker(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|present| present.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
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

    /// The slot that a mark is for, unless that life of it is over.
    pub(super) fn find(&mut self, mark: Mark) -> Option<&mut Socket> {
        let socket = self.pages.get_mut((mark.slot >> PAGE_SHIFT) as usize)?;
        let socket = &mut socket[(mark.slot & (PAGE - 1)) as usize];
        (socket.generation == mark.generation && socket.fd >= 0).then_some(socket)
    }

    /// Calls `visit` on every slot in use.
    pub(super) fn for_each(&mut self, mut visit: impl FnMut(&mut Socket)) {
        for socket in self.pages.iter_mut().flatten().filter(|socket| socket.fd >= 0) {
            visit(socket);
        }
    }

    /// A slot for `fd`; `None` when there are 2^24 already.
    pub(super) fn insert(&mut self, fd: RawFd) -> Option<u32> {
        if self.first_free == NONE {
            self.grow()?;
        }
        let slot = self.first_free;
        let socket = self.get(slot);
        let (next_free, generation) = (socket.next_free, socket.generation);
        *socket = Socket { fd, generation, ..Socket::free(NONE) };
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
        debug_assert!(socket.in_flight == 0 && socket.fd >= 0 && socket.queued == 0);
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
    fn a_mark_survives_packing() {
        for operation in Operation::ALL {
            let mark = Mark { operation, slot: 0xabcdef, generation: 0xdeadbeef };
            assert_eq!(Mark::unpack(mark.pack()), Some(mark));
        }
        assert_eq!(Mark::unpack(super::super::uring::NOBODY), None);
        assert_eq!(Mark::unpack(super::super::uring::TIMEOUT), None);
    }

    #[test]
    fn a_completion_of_an_earlier_life_finds_nobody() {
        let mut table = Table::new();
        let slot = table.insert(7).unwrap();
        let mark = Mark { operation: Operation::Send, slot, generation: table.get(slot).generation };
        assert!(table.find(mark).is_some());
        assert_eq!(table.remove(slot), 7);
        assert!(table.find(mark).is_none());
        assert_eq!(table.insert(8), Some(slot), "the slot is used again");
        assert!(table.find(mark).is_none());
    }

    #[test]
    fn a_socket_that_waits_takes_little_memory() {
        assert!(size_of::<Socket>() <= 128, "{}", size_of::<Socket>());
    }

    #[test]
    fn slots_are_distinct_over_many_pages() {
        let mut table = Table::new();
        let mut slots: Vec<_> = (0..1000).map(|fd| table.insert(fd).unwrap()).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 1000);
    }
}
