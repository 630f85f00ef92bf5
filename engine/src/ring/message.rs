//! What goes over a stream: bytes to send, and what a receive brought.

use std::ops::Range;

use super::{body_memory::BulkBuf, buffers::Buf};

/// Bytes to send; the ring owns them until the kernel has taken them all.
#[derive(Debug)]
pub enum SendBuf {
    /// A range of a buffer from [`super::Ring::head_buffer`] or anywhere.
    Owned(Vec<u8>, Range<u32>),
    /// A range of a private buffer.
    Bulk(BulkBuf, Range<u32>),
    /// What was received, passed on where it lies.
    Received(Buf),
    /// A constant.
    Static(&'static [u8]),
}

impl SendBuf {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            SendBuf::Owned(buffer, range) => &buffer[range.start as usize..range.end as usize],
            SendBuf::Bulk(buffer, range) => &buffer[range.start as usize..range.end as usize],
            SendBuf::Received(buffer) => buffer,
            SendBuf::Static(bytes) => bytes,
        }
    }

    /// Moves the bytes out of the arena: nobody may hold a buffer of it who waits for a peer.
    #[must_use]
    pub fn out_of_arena(self) -> SendBuf {
        match self {
            SendBuf::Received(buffer) => SendBuf::Received(buffer.into_owned()),
            other => other,
        }
    }

    /// Forgets the first `count` bytes: they have been sent. What is replayable keeps them all the same.
    pub(super) fn advance(&mut self, count: usize) {
        match self {
            // Not more than the range, which fits.
            SendBuf::Owned(_, range) | SendBuf::Bulk(_, range) => range.start += count as u32,
            SendBuf::Received(buffer) => buffer.advance(count),
            SendBuf::Static(bytes) => *bytes = &bytes[count..],
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

impl From<Vec<u8>> for SendBuf {
    fn from(buffer: Vec<u8>) -> Self {
        // Nothing of 4 GiB is ever built in memory.
        let end = buffer.len() as u32;
        SendBuf::Owned(buffer, 0..end)
    }
}

/// What a receive brought.
#[derive(Debug)]
pub enum Recv {
    /// Some bytes, at least one.
    Data(Buf),
    /// The peer will send no more.
    Finished,
}
