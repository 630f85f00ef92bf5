//! What arrived on a connection and was not read yet.

use crate::ring::{Buf, Outgoing};

/// Bytes in front of a reader, in order.
#[derive(Default)]
pub(super) struct Inbox {
    held: Held,
}

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// In the arena, where they were received.
    Lent(Buf),
    /// Copied together, from `start` on.
    Joined(Box<Joined>),
}

struct Joined {
    bytes: Vec<u8>,
    start: usize,
}

impl Held {
    fn joined(bytes: &[u8]) -> Held {
        Held::Joined(Box::new(Joined { bytes: bytes.to_vec(), start: 0 }))
    }
}

impl Inbox {
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Nothing => &[],
            Held::Lent(buffer) => buffer,
            Held::Joined(joined) => &joined.bytes[joined.start..],
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.held {
            Held::Nothing => &mut [],
            Held::Lent(buffer) => buffer,
            Held::Joined(joined) => &mut joined.bytes[joined.start..],
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// Adds what was received behind what is there.
    pub(super) fn push(&mut self, buffer: Buf) {
        if self.is_empty() {
            self.held = Held::Lent(buffer);
            return;
        }
        self.settle();
        if let Held::Joined(joined) = &mut self.held {
            joined.bytes.extend_from_slice(&buffer);
        }
    }

    /// Adds a copy of `bytes` behind what is there.
    pub(super) fn push_copy(&mut self, more: &[u8]) {
        self.settle();
        match &mut self.held {
            Held::Joined(joined) => joined.bytes.extend_from_slice(more),
            held => *held = Held::joined(more),
        }
    }

    /// Copies out of the arena: who waits for a peer, maybe for long, must not hold a buffer that all share.
    pub(super) fn settle(&mut self) {
        match &self.held {
            Held::Lent(buffer) if buffer.is_empty() => self.held = Held::Nothing,
            Held::Lent(buffer) => self.held = Held::joined(buffer),
            Held::Joined(joined) if joined.start == joined.bytes.len() => self.held = Held::Nothing,
            Held::Nothing | Held::Joined(_) => {}
        }
    }

    /// Forgets the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        match &mut self.held {
            Held::Nothing => debug_assert!(count == 0),
            Held::Lent(buffer) => {
                buffer.advance(count);
                if buffer.is_empty() {
                    self.held = Held::Nothing;
                }
            }
            Held::Joined(joined) => {
                joined.start += count;
                debug_assert!(joined.start <= joined.bytes.len());
                if joined.start >= joined.bytes.len() {
                    self.held = Held::Nothing;
                }
            }
        }
    }

    /// Splits off the first `kept` bytes to be sent as they lie, and forgets the first `consumed` (at least as many).
    pub(super) fn split(&mut self, kept: usize, consumed: usize) -> Outgoing {
        if consumed < self.bytes().len() {
            let outgoing = self.bytes()[..kept].to_vec();
            self.consume(consumed);
            return outgoing.into();
        }
        match std::mem::take(&mut self.held) {
            Held::Nothing => Outgoing::Static(&[]),
            Held::Lent(mut buffer) => {
                buffer.truncate(kept);
                Outgoing::Received(buffer)
            }
            // Built from receives: far below 4 GiB.
            Held::Joined(joined) => {
                let Joined { bytes, start } = *joined;
                Outgoing::Owned(bytes, start as u32..(start + kept) as u32)
            }
        }
    }
}
