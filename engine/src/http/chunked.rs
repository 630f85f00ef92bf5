//! Bodies in chunks (RFC 9112 section 7.1).
use super::Reason;

/// What ends a chunk of [`chunk_prefix`].
pub const CHUNK_SUFFIX: &[u8] = b"\r\n";
/// What ends a body in chunks, without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The line before the data of a chunk.
#[derive(Debug, Clone, Copy)]
pub struct ChunkPrefix {
    bytes: [u8; 18],
    start: u8,
}

impl std::ops::Deref for ChunkPrefix {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..]
    }
}

/// The line before `length` bytes of data, such as `"4000\r\n"`. `length` is not 0: that would end the body.
pub fn chunk_prefix(length: u64) -> ChunkPrefix {
    debug_assert!(length > 0, "an empty chunk ends the body");
    let mut bytes = *b"0000000000000000\r\n";
    let mut start = 16;
    let mut rest = length;
    while rest > 0 && start > 0 {
        start -= 1;
        bytes[start] = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
    ChunkPrefix { bytes, start: start as u8 }
}

/// What [`ChunkedBody::advance`] leaves in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// Chunk framing, in our own form.
    Chunked,
    /// The data alone; trailers are dropped.
    Data,
}

/// What one call of [`ChunkedBody::advance`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// Bytes of the input that were read; what follows belongs to the next message.
    pub consumed: usize,
    /// Bytes at the start of the input that are to be sent, before the tail.
    pub kept: usize,
    /// Bytes of body data among what was read.
    pub data: usize,
    /// Whether the body is complete.
    pub done: bool,
}

/// Reads a body in chunks and leaves in place what is to be forwarded.
#[derive(Debug)]
pub struct ChunkedBody {
    emit: Emit,
    max_fields: u16,
}

impl ChunkedBody {
    /// A body of which nothing was read; at most `max_fields` trailer fields are put up with.
    pub fn new(emit: Emit, max_fields: u16) -> ChunkedBody {
        ChunkedBody { emit, max_fields }
    }

    /// Reads on in `input`. Afterwards `input[..kept]` and then `tail` are to be sent.
    pub fn advance(&mut self, input: &mut [u8], tail: &mut Vec<u8>) -> Result<Advance, Reason> {
        let _ = (input, tail, self.emit, self.max_fields);
        Err(Reason::BadChunk)
    }

    /// Bytes of data that the current chunk still has; 0 outside of data.
    pub fn remaining_in_chunk(&self) -> u64 {
        0
    }
}
