//! Where a body ends: the framing that its message announced, applied to one piece after the other.

use super::read_buffer::ReadBuffer;
use crate::{
    h1::{Advance, CHUNK_SUFFIX, ChunkedBody, Emit, chunk_prefix},
    http::Reason,
};

/// What is appended to a head instead of being sent by itself (bytes).
const COALESCE: usize = 16 * 1024;
/// How the end of a body is found, and what is left of it.
pub(crate) enum Decoder {
    /// This many bytes follow.
    Length(u64),
    /// Chunks follow. Boxed, so that the others stay small.
    Chunked(Box<ChunkedBody>),
    /// The end of the connection is the end.
    UntilClose {
        /// It leaves in chunks of our making.
        wrap: bool,
    },
}

/// One piece of a body, decoded.
pub(super) struct Piece {
    /// What leaves of it, in place.
    pub(super) kept: usize,
    /// What was read of it.
    pub(super) consumed: usize,
    /// The body is complete.
    pub(super) done: bool,
}

impl Decoder {
    /// Decodes the piece in place; `tail` gets what must follow it.
    pub(super) fn advance(&mut self, piece: &mut [u8], tail: &mut Vec<u8>) -> Result<(Piece, u64), Reason> {
        Ok(match self {
            Decoder::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                *left -= taken as u64;
                (Piece { kept: taken, consumed: taken, done: *left == 0 }, taken as u64)
            }
            Decoder::Chunked(body) => {
                let Advance { consumed, kept, data, done } = body.advance(piece, tail)?;
                (Piece { kept, consumed, done }, data as u64)
            }
            Decoder::UntilClose { .. } => {
                (Piece { kept: piece.len(), consumed: piece.len(), done: false }, piece.len() as u64)
            }
        })
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Decoder::Length(0))
    }

    /// For a message in chunks.
    pub(crate) fn chunked(emit: Emit, max_fields: u16) -> Decoder {
        Decoder::Chunked(Box::new(ChunkedBody::new(emit, max_fields)))
    }

    /// The body of a request in chunks; trailers with `_` in their names are passed on or dropped as its fields are.
    pub(crate) fn request_chunks(max_fields: u16, underscores: bool) -> Decoder {
        let body = ChunkedBody::new(Emit::Chunked, max_fields);
        Decoder::Chunked(Box::new(if underscores { body } else { body.without_underscores() }))
    }

    /// Appends to `head` what of the body is in `read_buffer` already, if it is not too much. `true`: that was all of it.
    pub(crate) fn coalesce(
        &mut self,
        read_buffer: &mut ReadBuffer,
        head: &mut Vec<u8>,
        moved: &mut u64,
    ) -> Result<bool, Reason> {
        if self.is_done() {
            return Ok(true);
        }
        if read_buffer.is_empty() || head.len() + read_buffer.bytes().len() > COALESCE {
            return Ok(false);
        }
        let mut tail = Vec::new();
        let (Piece { kept, consumed, done }, data) = self.advance(read_buffer.bytes_mut(), &mut tail)?;
        *moved += data;
        match self {
            Decoder::UntilClose { wrap: true } => {
                head.extend_from_slice(&chunk_prefix(kept as u64));
                head.extend_from_slice(&read_buffer.bytes()[..kept]);
                head.extend_from_slice(CHUNK_SUFFIX);
            }
            _ => head.extend_from_slice(&read_buffer.bytes()[..kept]),
        }
        head.extend_from_slice(&tail);
        read_buffer.consume(consumed);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Buf;

    fn read_buffer(bytes: &[u8]) -> ReadBuffer {
        let mut read_buffer = ReadBuffer::default();
        if !bytes.is_empty() {
            read_buffer.push(Buf::received(bytes));
        }
        read_buffer
    }

    #[test]
    fn what_of_a_body_has_arrived_leaves_with_the_head_and_what_follows_it_stays() {
        let chunked = |emit| Decoder::chunked(emit, 10);
        let until_close = |wrap| Decoder::UntilClose { wrap };
        for (case, mut decoder, arrived, complete, sent, body, rest) in [
            ("no body", Decoder::Length(0), "next", true, "", 0, "next"),
            ("nothing yet", Decoder::Length(5), "", false, "", 0, ""),
            ("all", Decoder::Length(5), "hello", true, "hello", 5, ""),
            ("all and more", Decoder::Length(5), "hellonext", true, "hello", 5, "next"),
            ("the beginning", Decoder::Length(9), "hello", false, "hello", 5, ""),
            (
                "chunks",
                chunked(Emit::Chunked),
                "5\r\nhello\r\n0\r\n\r\nnext",
                true,
                "5\r\nhello\r\n0\r\n\r\n",
                5,
                "next",
            ),
            (
                "chunks unwrapped",
                chunked(Emit::Data),
                "5\r\nhello\r\n0\r\n\r\nnext",
                true,
                "hello",
                5,
                "next",
            ),
            ("a chunk's beginning, unwrapped", chunked(Emit::Data), "5\r\nhel", false, "hel", 3, ""),
            ("until the end, wrapped", until_close(true), "hello", false, "5\r\nhello\r\n", 5, ""),
            ("until the end", until_close(false), "hello", false, "hello", 5, ""),
        ] {
            let (mut read_buffer, mut head, mut moved) =
                (read_buffer(arrived.as_bytes()), b"head:".to_vec(), 0);
            let outcome = decoder.coalesce(&mut read_buffer, &mut head, &mut moved);
            assert_eq!(outcome, Ok(complete), "{case}");
            assert_eq!(String::from_utf8(head).unwrap(), format!("head:{sent}"), "{case}");
            assert_eq!((moved, read_buffer.bytes()), (body, rest.as_bytes()), "{case}");
        }
    }

    #[test]
    fn a_length_goes_on_where_the_head_took_a_part_of_it() {
        let mut decoder = Decoder::Length(9);
        decoder.coalesce(&mut read_buffer(b"hello"), &mut Vec::new(), &mut 0).unwrap();
        assert!(matches!(decoder, Decoder::Length(4)));
    }

    #[test]
    fn more_than_fits_beside_the_head_is_left_for_a_send_of_its_own() {
        for (arrived, taken) in [(COALESCE - 4, true), (COALESCE - 3, false)] {
            let mut read_buffer = read_buffer(&vec![b'x'; arrived]);
            let (mut head, mut moved) = (b"head".to_vec(), 0);
            let complete =
                Decoder::Length(arrived as u64).coalesce(&mut read_buffer, &mut head, &mut moved).unwrap();
            assert_eq!(
                (complete, head.len() > 4, read_buffer.is_empty(), moved > 0),
                (taken, taken, taken, taken)
            );
        }
    }

    #[test]
    fn broken_chunks_are_refused_before_anything_of_them_leaves() {
        let mut head = b"head".to_vec();
        let outcome =
            Decoder::chunked(Emit::Chunked, 10).coalesce(&mut read_buffer(b"x\r\n"), &mut head, &mut 0);
        assert_eq!((outcome, head.as_slice()), (Err(Reason::BadChunk), b"head".as_slice()));
    }
}
