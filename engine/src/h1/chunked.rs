//! Bodies in chunks, both ways (RFC 9112 section 7.1).
//!
//! Promises: what leaves is our own framing. Sizes have no leading zeros, extensions are dropped
//! (RFC 9112 section 7.1.1 lets a recipient ignore them), trailers are filtered. The same bytes give the same
//! result however they arrive. Memory: a trailer section, at most [`limits::MAX_TRAILER_SIZE`].

use crate::limits;

use super::Reason;
use super::field::is_value_byte;
use super::trailer::Trailers;

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

/// Where in the framing the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the digits of a size.
    Size { size: u64, digits: u8 },
    /// In white space before an extension.
    BeforeExtension { size: u64 },
    /// In an extension.
    Extension { size: u64 },
    /// At the LF of a size line.
    SizeLineFeed { size: u64 },
    /// In data, of which this much is left (never 0).
    Data { left: u64 },
    /// At the CR after data.
    DataReturn,
    /// At the LF after data.
    DataLineFeed,
    /// In the trailer section.
    Trailer,
    /// Behind the body.
    Done,
}

/// Reads a body in chunks and leaves in place what is to be forwarded.
#[derive(Debug)]
pub struct ChunkedBody {
    emit: Emit,
    state: State,
    /// Bytes of the current size line.
    line_len: usize,
    trailers: Trailers,
}

impl ChunkedBody {
    /// A body of which nothing was read; at most `max_fields` trailer fields are put up with.
    pub fn new(emit: Emit, max_fields: u16) -> ChunkedBody {
        ChunkedBody {
            emit,
            state: State::Size { size: 0, digits: 0 },
            line_len: 0,
            trailers: Trailers::new(max_fields),
        }
    }

    /// The same, of whose trailers those with `_` in their names are dropped, as in the head of a request.
    #[must_use]
    pub fn without_underscores(mut self) -> ChunkedBody {
        self.trailers.drop_underscores();
        self
    }

    /// The same, of whose trailers those of this name are dropped, as it is kakehi's own; none if it is empty.
    #[must_use]
    pub fn without_own(mut self, name: &str) -> ChunkedBody {
        self.trailers.drop_own(name);
        self
    }

    /// Reads on in `input`, which is what arrived since the bytes that the last call consumed.
    ///
    /// Afterwards `input[..kept]` holds what is to be sent, moved together in place: data in framing that is
    /// already ours is not touched. When the body is complete, its last chunk, trailers and empty line are
    /// appended to `tail`, to be sent after it. Everything is consumed unless the body is complete.
    ///
    /// # Errors
    /// [`Reason::BadChunk`] or [`Reason::BadTrailer`]: where the body ends is not known, so both connections
    /// have to be closed; nothing more may be read or sent.
    pub fn advance(&mut self, input: &mut [u8], tail: &mut Vec<u8>) -> Result<Advance, Reason> {
        let mut at = Cursor { read: 0, kept: 0 };
        let mut data = 0;
        while at.read < input.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let available = (input.len() - at.read) as u64;
                let taken = left.min(available) as usize;
                at.keep(input, taken);
                data += taken;
                self.state = match left - taken as u64 {
                    0 => State::DataReturn,
                    left => State::Data { left },
                };
            } else if self.state == State::Trailer {
                let (consumed, done) = self.trailers.read(&input[at.read..])?;
                at.read += consumed;
                if done {
                    self.state = State::Done;
                    if self.emit == Emit::Chunked {
                        tail.extend_from_slice(b"0\r\n");
                        tail.extend_from_slice(self.trailers.kept());
                        tail.extend_from_slice(b"\r\n");
                    }
                }
            } else {
                let byte = input[at.read];
                let (next, keep) = self.step(byte)?;
                self.state = next;
                if keep && self.emit == Emit::Chunked {
                    at.keep(input, 1);
                } else {
                    at.read += 1;
                }
            }
        }
        Ok(Advance { consumed: at.read, kept: at.kept, data, done: self.state == State::Done })
    }

    /// Bytes of data that the current chunk still has; 0 outside of data.
    pub fn remaining_in_chunk(&self) -> u64 {
        match self.state {
            State::Data { left } => left,
            _ => 0,
        }
    }

    /// Takes one byte of framing: the state after it, and whether it is part of our own framing too.
    #[inline]
    fn step(&mut self, byte: u8) -> Result<(State, bool), Reason> {
        let next = match (self.state, byte) {
            (State::Size { size, digits }, _) => return self.step_in_size(size, digits, byte),
            // RFC 9112 section 7.1.1: white space before ";" is bad, and to be put up with.
            (State::BeforeExtension { size }, b' ' | b'\t') => {
                self.count_line_byte()?;
                (State::BeforeExtension { size }, false)
            }
            (State::BeforeExtension { size }, b';') => (State::Extension { size }, false),
            (State::Extension { size }, b'\r') => (State::SizeLineFeed { size }, size > 0),
            // RFC 9112 section 7.1.1: an extension is not understood, and ignored.
            // A CR or LF is refused inside of quotes too: who reads them otherwise sees another line.
            (State::Extension { size }, _) if is_value_byte(byte) => {
                self.count_line_byte()?;
                (State::Extension { size }, false)
            }
            (State::SizeLineFeed { size: 0 }, b'\n') => (State::Trailer, false),
            (State::SizeLineFeed { size }, b'\n') => (State::Data { left: size }, true),
            (State::DataReturn, b'\r') => (State::DataLineFeed, true),
            (State::DataLineFeed, b'\n') => {
                self.line_len = 0;
                (State::Size { size: 0, digits: 0 }, true)
            }
            _ => return Err(Reason::BadChunk),
        };
        Ok(next)
    }

    /// Takes one byte where a digit of the size may stand: 1 to 16 hexadecimal digits (RFC 9112 section 7.1: no overflow).
    #[inline]
    fn step_in_size(&mut self, size: u64, digits: u8, byte: u8) -> Result<(State, bool), Reason> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if digits == 0 => return Err(Reason::BadChunk),
            b'\r' => return Ok((State::SizeLineFeed { size }, size > 0)),
            b';' => return Ok((State::Extension { size }, false)),
            b' ' | b'\t' => return Ok((State::BeforeExtension { size }, false)),
            _ => return Err(Reason::BadChunk),
        };
        if digits == 16 {
            return Err(Reason::BadChunk);
        }
        self.line_len += 1;
        let size = size << 4 | u64::from(digit);
        // Leading zeros go; the last chunk is written by `advance`.
        Ok((State::Size { size, digits: digits + 1 }, size > 0))
    }

    fn count_line_byte(&mut self) -> Result<(), Reason> {
        self.line_len += 1;
        if self.line_len > limits::MAX_CHUNK_LINE { Err(Reason::BadChunk) } else { Ok(()) }
    }
}

/// Reads ahead of what it keeps.
struct Cursor {
    read: usize,
    kept: usize,
}

impl Cursor {
    fn keep(&mut self, input: &mut [u8], len: usize) {
        if self.kept != self.read {
            input.copy_within(self.read..self.read + len, self.kept);
        }
        self.read += len;
        self.kept += len;
    }
}

#[cfg(test)]
#[path = "chunked_tests.rs"]
mod tests;
