//! A body on its way from one side to the other: how its end is found, and what is left of it.

use kakehi_ctl::state::Forwarding;

use super::read_buffer::ReadBuffer;
use crate::{
    h1::{Advance, CHUNK_SUFFIX, ChunkedBody, Emit, chunk_prefix},
    http::Reason,
    ring::Buf,
};

/// What is appended to a head instead of being sent by itself (bytes).
const COALESCE: usize = 16 * 1024;

/// What is copied behind a head all the same (bytes): less than it takes to keep a buffer of the arena for so long.
const COPIED: usize = 1024;

/// A body: its data, its trailers, and where it ends.
pub(crate) struct Body {
    framing: Framing,
    /// Bytes of data so far.
    moved: u64,
}

/// How the end of a body is found, and what is left of it.
enum Framing {
    /// This many bytes follow.
    Length(u64),
    /// Chunks follow, and trailers behind them. Boxed, so that the others stay small.
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

impl Body {
    /// A body of `length` bytes; 0 for a message without one.
    pub(crate) fn length(length: u64) -> Body {
        Body { framing: Framing::Length(length), moved: 0 }
    }

    /// A body in chunks, without trailers of the name `own`.
    pub(crate) fn chunked(emit: Emit, max_fields: u16, own: &str) -> Body {
        let body = ChunkedBody::new(emit, max_fields).without_own(own);
        Body { framing: Framing::Chunked(Box::new(body)), moved: 0 }
    }

    /// The body of a request in chunks; trailers are passed on or dropped as its fields are.
    pub(crate) fn request_chunks(max_fields: u16, forwarding: &Forwarding) -> Body {
        let body = ChunkedBody::new(Emit::Chunked, max_fields).without_own(&forwarding.id_field);
        let body = if forwarding.underscores { body } else { body.without_underscores() };
        Body { framing: Framing::Chunked(Box::new(body)), moved: 0 }
    }

    /// A body that ends with its connection; `wrap`: it leaves in chunks.
    pub(crate) fn until_close(wrap: bool) -> Body {
        Body { framing: Framing::UntilClose { wrap }, moved: 0 }
    }

    /// Bytes of data that have been taken from the sender.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// True if nothing of it is to come.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.framing, Framing::Length(0))
    }

    /// Bytes that are still to come, if that is known.
    pub(crate) fn known_length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::UntilClose { .. } => None,
        }
    }

    /// True if its bytes leave as they come, so that nobody has to look at them.
    pub(super) fn is_verbatim(&self) -> bool {
        matches!(self.framing, Framing::Length(_) | Framing::UntilClose { wrap: false })
    }

    /// True if each piece leaves as a chunk of our making.
    pub(super) fn is_wrapped(&self) -> bool {
        matches!(self.framing, Framing::UntilClose { wrap: true })
    }

    /// True if the end of the connection is the end of the body.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.framing, Framing::UntilClose { .. })
    }

    /// Notes that `count` bytes have moved without being looked at.
    pub(super) fn skip(&mut self, count: usize) {
        if let Framing::Length(left) = &mut self.framing {
            *left -= count as u64;
        }
        self.moved += count as u64;
    }

    /// Decodes the piece in place; `tail` gets what must follow it.
    pub(super) fn advance(&mut self, piece: &mut [u8], tail: &mut Vec<u8>) -> Result<Piece, Reason> {
        let (piece, data) = match &mut self.framing {
            Framing::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                *left -= taken as u64;
                (Piece { kept: taken, consumed: taken, done: *left == 0 }, taken as u64)
            }
            Framing::Chunked(body) => {
                let Advance { consumed, kept, data, done } = body.advance(piece, tail)?;
                (Piece { kept, consumed, done }, data as u64)
            }
            Framing::UntilClose { .. } => {
                (Piece { kept: piece.len(), consumed: piece.len(), done: false }, piece.len() as u64)
            }
        };
        if piece.done {
            self.framing = Framing::Length(0);
        }
        self.moved += data;
        Ok(piece)
    }

    /// Puts what of the body is in `read_buffer` behind `head`, to be sent with it: where it lies, if there is room in front, which
    /// gives both in one buffer; otherwise it is appended to `head`, as by [`Body::coalesce`].
    ///
    /// # Errors
    /// When it is malformed: nothing may be sent then.
    pub(crate) fn behind(
        &mut self,
        read_buffer: &mut ReadBuffer,
        head: &mut Vec<u8>,
    ) -> Result<Option<Buf>, Reason> {
        let come = read_buffer.bytes().len();
        if self.is_done() || self.is_wrapped() || come <= COPIED {
            return self.coalesce(read_buffer, head).map(|()| None);
        }
        let mut tail = Vec::new();
        let Piece { mut kept, consumed, .. } = self.advance(read_buffer.bytes_mut(), &mut tail)?;
        // The end of chunks takes no more room than it took when it came.
        if let Some(place) = read_buffer.bytes_mut()[..consumed].get_mut(kept..kept + tail.len()) {
            place.copy_from_slice(&tail);
            kept += tail.len();
            tail.clear();
        }
        if consumed == come
            && tail.is_empty()
            && let Some(together) = read_buffer.take_behind(head, kept)
        {
            return Ok(Some(together));
        }
        head.extend_from_slice(&read_buffer.bytes()[..kept]);
        head.extend_from_slice(&tail);
        read_buffer.consume(consumed);
        Ok(None)
    }

    /// Appends to `head` what of the body is in `read_buffer` already, if it is not too much.
    ///
    /// # Errors
    /// When it is malformed: nothing has been appended then.
    pub(crate) fn coalesce(
        &mut self,
        read_buffer: &mut ReadBuffer,
        head: &mut Vec<u8>,
    ) -> Result<(), Reason> {
        if head.len() + read_buffer.bytes().len() > COALESCE {
            return Ok(());
        }
        self.append(read_buffer, head)
    }

    /// Appends to `head` what of the body is in `read_buffer`, however much that is.
    ///
    /// # Errors
    /// When it is malformed: nothing has been appended then.
    pub(crate) fn append(&mut self, read_buffer: &mut ReadBuffer, head: &mut Vec<u8>) -> Result<(), Reason> {
        if self.is_done() || read_buffer.is_empty() {
            return Ok(());
        }
        let mut tail = Vec::new();
        let Piece { kept, consumed, .. } = self.advance(read_buffer.bytes_mut(), &mut tail)?;
        if self.is_wrapped() {
            head.extend_from_slice(&chunk_prefix(kept as u64));
            head.extend_from_slice(&read_buffer.bytes()[..kept]);
            head.extend_from_slice(CHUNK_SUFFIX);
        } else {
            head.extend_from_slice(&read_buffer.bytes()[..kept]);
        }
        head.extend_from_slice(&tail);
        read_buffer.consume(consumed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_buffer(bytes: &[u8]) -> ReadBuffer {
        let mut read_buffer = ReadBuffer::default();
        if !bytes.is_empty() {
            read_buffer.push(Buf::received(bytes));
        }
        read_buffer
    }

    #[test]
    fn what_of_a_body_has_arrived_leaves_with_the_head_and_what_follows_it_stays() {
        let (chunked, until_close) = (|emit| Body::chunked(emit, 10, ""), Body::until_close);
        for (case, mut body, arrived, complete, sent, moved, rest) in [
            ("no body", Body::length(0), "next", true, "", 0, "next"),
            ("nothing yet", Body::length(5), "", false, "", 0, ""),
            ("all", Body::length(5), "hello", true, "hello", 5, ""),
            ("all and more", Body::length(5), "hellonext", true, "hello", 5, "next"),
            ("the beginning", Body::length(9), "hello", false, "hello", 5, ""),
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
            let (mut read_buffer, mut head) = (read_buffer(arrived.as_bytes()), b"head:".to_vec());
            body.coalesce(&mut read_buffer, &mut head).unwrap();
            assert_eq!(body.is_done(), complete, "{case}");
            assert_eq!(String::from_utf8(head).unwrap(), format!("head:{sent}"), "{case}");
            assert_eq!((body.moved(), read_buffer.bytes()), (moved, rest.as_bytes()), "{case}");
        }
    }

    #[test]
    fn a_body_in_the_arena_leaves_where_it_lies_with_its_head_in_front() {
        let data = "x".repeat(2 * COPIED);
        let chunk = format!("{:x}\r\n{data}\r\n", data.len());
        let ended = format!("{chunk}0\r\n\r\n");
        let with_trailer = format!("{chunk}0\r\na: b\r\n\r\n");
        let (chunked, length) =
            (|emit| Body::chunked(emit, 10, ""), |length: usize| Body::length(length as u64));
        for (case, mut body, arrived, in_place, sent, rest) in [
            ("all", length(data.len()), data.clone(), true, data.clone(), ""),
            ("the beginning", length(9_999), data.clone(), true, data.clone(), ""),
            ("all and more", length(data.len()), format!("{data}next"), false, data.clone(), "next"),
            ("a chunk", chunked(Emit::Chunked), chunk.clone(), true, chunk.clone(), ""),
            ("the last chunk too", chunked(Emit::Chunked), ended.clone(), true, ended.clone(), ""),
            ("trailers too", chunked(Emit::Chunked), with_trailer.clone(), true, with_trailer.clone(), ""),
            ("chunks and more", chunked(Emit::Chunked), format!("{ended}next"), false, ended.clone(), "next"),
            ("unwrapped", chunked(Emit::Data), ended.clone(), true, data.clone(), ""),
            ("until the end", Body::until_close(false), data.clone(), true, data.clone(), ""),
            ("wrapped", Body::until_close(true), data.clone(), false, chunk.clone(), ""),
        ] {
            let (mut read_buffer, mut head) = (read_buffer(arrived.as_bytes()), b"head:".to_vec());
            let together = body.behind(&mut read_buffer, &mut head).unwrap();
            assert_eq!(together.is_some(), in_place, "{case}");
            let bytes = together.map_or(head, |together| together.to_vec());
            assert_eq!(String::from_utf8(bytes).unwrap(), format!("head:{sent}"), "{case}");
            assert_eq!(read_buffer.bytes(), rest.as_bytes(), "{case}");
        }
    }

    #[test]
    fn where_there_is_no_room_in_front_or_little_has_come_it_is_copied_behind_the_head() {
        for (arrived, head) in [(2 * COPIED, 9_999), (COPIED, 4)] {
            let (mut read_buffer, mut head) = (read_buffer(&vec![b'x'; arrived]), vec![b'h'; head]);
            let before = head.len();
            let mut body = Body::length(arrived as u64);
            assert!(body.behind(&mut read_buffer, &mut head).unwrap().is_none());
            assert_eq!((head.len(), body.is_done(), read_buffer.is_empty()), (before + arrived, true, true));
        }
    }

    #[test]
    fn a_length_goes_on_where_the_head_took_a_part_of_it() {
        let mut body = Body::length(9);
        body.coalesce(&mut read_buffer(b"hello"), &mut Vec::new()).unwrap();
        assert_eq!(body.known_length(), Some(4));
    }

    #[test]
    fn more_than_fits_beside_the_head_is_left_for_a_send_of_its_own() {
        for (arrived, taken) in [(COALESCE - 4, true), (COALESCE - 3, false)] {
            let (mut read_buffer, mut head) = (read_buffer(&vec![b'x'; arrived]), b"head".to_vec());
            let mut body = Body::length(arrived as u64);
            body.coalesce(&mut read_buffer, &mut head).unwrap();
            let all = (body.is_done(), head.len() > 4, read_buffer.is_empty(), body.moved() > 0);
            assert_eq!(all, (taken, taken, taken, taken));
        }
    }

    #[test]
    fn broken_chunks_are_refused_before_anything_of_them_leaves() {
        let mut head = b"head".to_vec();
        let outcome = Body::chunked(Emit::Chunked, 10, "").coalesce(&mut read_buffer(b"x\r\n"), &mut head);
        assert_eq!((outcome, head.as_slice()), (Err(Reason::BadChunk), b"head".as_slice()));
    }
}
