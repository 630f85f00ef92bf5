//! A body from one side to the other, with back-pressure.
//!
//! Nothing is read that cannot be sent on: at most one piece is being sent while the next one is received. Small
//! bodies travel in the arena buffers that they were received into; large ones in bulk: spliced from socket to
//! socket where nothing needs to be looked at, else through private buffers that one receive fills as far as it can.

use super::{min_rate::MinRate, read_buffer::ReadBuffer};
use crate::{
    h1::{Advance, CHUNK_SUFFIX, ChunkedBody, Emit, LAST_CHUNK, chunk_prefix},
    http::Reason,
    ring::{BULK_SIZE, Outgoing, Received, Ring, Splice, Stream, Timer},
    transport::TransportStream,
};

/// A body that has at least this much to go is moved in bulk (bytes).
const BULK_FROM: u64 = 64 * 1024;
/// Room kept before and behind the data of a bulk buffer, for a chunk's size line and its end (bytes).
const ROOM_BEFORE: usize = 32;
const ROOM_BEHIND: usize = 512;
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

/// Why a body did not get through.
#[derive(Debug)]
pub(crate) enum RelayError {
    /// The sender ended, or broke off, in the middle.
    SourceEnded,
    /// The sender was too slow.
    SourceSlow,
    /// What the sender sent is not a body.
    Malformed(Reason),
    /// The body is larger than allowed.
    TooLarge,
    /// The receiver is gone.
    SinkBroken,
    /// The receiver took nothing for too long.
    SinkStalled,
}

/// How long the sender of a body may be silent.
pub(crate) enum ReadDeadline {
    /// This long each time (ms).
    Each(u64),
    /// As long as the body keeps up its pace.
    MinRate(MinRate),
}

/// A body on its way.
pub(crate) struct Relay<'a> {
    pub(crate) ring: &'a Ring,
    pub(crate) from: &'a TransportStream,
    pub(crate) read_buffer: &'a mut ReadBuffer,
    pub(crate) to: &'a TransportStream,
    pub(crate) decoder: Decoder,
    pub(crate) timer: &'a Timer,
    pub(crate) deadline: ReadDeadline,
    /// How long the receiver may take nothing (ms).
    pub(crate) stall_ms: u64,
    /// Largest body (bytes); 0 = any.
    pub(crate) limit: u64,
    /// Bytes of the body so far.
    pub(crate) moved: u64,
}

/// Waits until a send has completed, as long as it gets on at least every `stall_ms`.
pub(crate) async fn flush(to: &TransportStream, timer: &Timer, stall_ms: u64) -> Result<(), RelayError> {
    if to.is_sending() {
        // Boxed: rare, and it would make every future that sends twice as large.
        return Box::pin(flush_slowly(to, timer, stall_ms)).await;
    }
    to.flush().await.map_err(|_| RelayError::SinkBroken)
}

async fn flush_slowly(to: &TransportStream, timer: &Timer, stall_ms: u64) -> Result<(), RelayError> {
    let mut progress = to.send_progress();
    loop {
        timer.set(stall_ms);
        match timer.limit(to.flush()).await {
            Ok(outcome) => return outcome.map_err(|_| RelayError::SinkBroken),
            Err(_) if to.send_progress() != progress => progress = to.send_progress(),
            Err(_) => return Err(RelayError::SinkStalled),
        }
    }
}

/// One piece of a body, decoded.
struct Piece {
    /// What leaves of it, in place.
    kept: usize,
    /// What was read of it.
    consumed: usize,
    /// The body is complete.
    done: bool,
}

impl Decoder {
    /// Decodes the piece in place; `tail` gets what must follow it.
    fn advance(&mut self, piece: &mut [u8], tail: &mut Vec<u8>) -> Result<(Piece, u64), Reason> {
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

    fn is_done(&self) -> bool {
        matches!(self, Decoder::Length(0))
    }

    /// For a message in chunks.
    pub(crate) fn chunked(emit: Emit, max_fields: u16) -> Decoder {
        Decoder::Chunked(Box::new(ChunkedBody::new(emit, max_fields)))
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

impl Relay<'_> {
    /// Moves the rest of the body.
    pub(crate) async fn run(&mut self) -> Result<(), RelayError> {
        while !self.decoder.is_done() {
            let large = match &self.decoder {
                Decoder::Length(left) => *left,
                // A tenth of what has come may still come: nobody knows.
                Decoder::Chunked(_) | Decoder::UntilClose { .. } => self.moved / 4,
            };
            if large >= BULK_FROM {
                return Box::pin(self.bulk()).await;
            }
            if self.read_buffer.is_empty() {
                match self.receive().await? {
                    Received::Data(buffer) => self.read_buffer.push(buffer),
                    Received::Finished => return self.finished().await,
                }
            }
            if self.pass_on().await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Receives with the deadline that the sender has.
    async fn receive(&mut self) -> Result<Received, RelayError> {
        if let Some(buffer) = self.from.try_receive() {
            return Ok(Received::Data(buffer));
        }
        self.set_patience();
        match self.timer.limit(self.from.receive()).await {
            Ok(Ok(received)) => Ok(received),
            Ok(Err(_)) => Err(RelayError::SourceEnded),
            Err(_) => Err(RelayError::SourceSlow),
        }
    }

    fn set_patience(&self) {
        match &self.deadline {
            ReadDeadline::Each(milliseconds) => self.timer.set(*milliseconds),
            ReadDeadline::MinRate(pace) => self.timer.set_at(pace.due()),
        }
    }

    fn note_moved(&mut self, received: usize, data: u64) -> Result<(), RelayError> {
        self.moved += data;
        if self.limit != 0 && self.moved > self.limit {
            return Err(RelayError::TooLarge);
        }
        if let ReadDeadline::MinRate(pace) = &mut self.deadline {
            pace.moved(received, self.ring.now());
        }
        Ok(())
    }

    async fn send(&mut self, data: Outgoing) -> Result<(), RelayError> {
        self.flush().await?;
        self.to.start_send(data);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RelayError> {
        let before = self.ring.now();
        flush(self.to, self.timer, self.stall_ms).await?;
        if let ReadDeadline::MinRate(pace) = &mut self.deadline {
            pace.excuse(self.ring.now() - before);
        }
        Ok(())
    }

    /// Passes on what is in the read_buffer. `true`: the body is complete.
    async fn pass_on(&mut self) -> Result<bool, RelayError> {
        let mut tail = Vec::new();
        let (Piece { kept, consumed, done }, data) =
            self.decoder.advance(self.read_buffer.bytes_mut(), &mut tail).map_err(RelayError::Malformed)?;
        self.note_moved(consumed, data)?;
        if matches!(self.decoder, Decoder::UntilClose { wrap: true }) {
            let mut chunk = self.ring.head_buffer();
            chunk.extend_from_slice(&chunk_prefix(kept as u64));
            chunk.extend_from_slice(&self.read_buffer.bytes()[..kept]);
            chunk.extend_from_slice(CHUNK_SUFFIX);
            self.read_buffer.consume(consumed);
            self.send(chunk.into()).await?;
        } else if kept > 0 || consumed > 0 {
            let piece = self.read_buffer.split(kept, consumed);
            self.send(piece).await?;
        }
        if !tail.is_empty() {
            self.send(tail.into()).await?;
        }
        Ok(done)
    }

    /// The sender has finished: right for one body, too early for the others.
    async fn finished(&mut self) -> Result<(), RelayError> {
        match self.decoder {
            Decoder::UntilClose { wrap: true } => self.send(Outgoing::Static(LAST_CHUNK)).await,
            Decoder::UntilClose { wrap: false } => Ok(()),
            Decoder::Length(_) | Decoder::Chunked(_) => Err(RelayError::SourceEnded),
        }
    }

    /// Moves the rest of a large body whose bytes need not be looked at from socket to socket.
    async fn splice(
        &mut self,
        (from, to): (&Stream, &Stream),
        mut splice: Splice<'_>,
    ) -> Result<(), RelayError> {
        loop {
            let left = match &self.decoder {
                Decoder::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
                Decoder::Chunked(_) | Decoder::UntilClose { .. } => usize::MAX,
            };
            if left == 0 {
                return Ok(());
            }
            match splice.take(left).map_err(|_| RelayError::SourceEnded)? {
                Some(0) => return self.finished().await,
                Some(taken) => {
                    if let Decoder::Length(left) = &mut self.decoder {
                        *left -= taken as u64;
                    }
                    self.note_moved(taken, taken as u64)?;
                }
                None => {
                    self.set_patience();
                    let readable = self.timer.limit(from.readable()).await;
                    readable.map_err(|_| RelayError::SourceSlow)?.map_err(|_| RelayError::SourceEnded)?;
                    continue;
                }
            }
            while splice.held() > 0 {
                if splice.give().map_err(|_| RelayError::SinkBroken)?.is_none() {
                    let before = self.ring.now();
                    self.timer.set(self.stall_ms);
                    let writable = self.timer.limit(to.writable()).await;
                    writable.map_err(|_| RelayError::SinkStalled)?.map_err(|_| RelayError::SinkBroken)?;
                    if let ReadDeadline::MinRate(pace) = &mut self.deadline {
                        pace.excuse(self.ring.now() - before);
                    }
                }
            }
            // Both sides may be fast for long: the others have their turn in between.
            self.ring.yield_turn().await;
        }
    }

    /// Moves the rest of a large body.
    async fn bulk(&mut self) -> Result<(), RelayError> {
        self.ring.count_bulk();
        self.from.pause_receive().await;
        // What arrived before the pause comes first.
        loop {
            if let Some(buffer) = self.from.try_receive() {
                self.read_buffer.push(buffer);
            }
            if self.read_buffer.is_empty() {
                break;
            }
            if self.pass_on().await? {
                return Ok(());
            }
        }
        if matches!(self.decoder, Decoder::Length(_) | Decoder::UntilClose { wrap: false })
            && let (Some(from), Some(to)) = (self.from.as_plain(), self.to.as_plain())
        {
            self.flush().await?;
            // Without a pipe it goes the long way round.
            if let Ok(splice) = Splice::new(self.ring, from, to) {
                return self.splice((from, to), splice).await;
            }
        }
        let mut tail = Vec::new();
        loop {
            let space = self.to.bulk_size() - ROOM_BEFORE - ROOM_BEHIND;
            let length = match &self.decoder {
                Decoder::Length(left) => usize::try_from(*left).unwrap_or(space).min(space),
                Decoder::Chunked(_) | Decoder::UntilClose { .. } => space,
            };
            self.from.start_receive_bulk(self.ring.bulk_buffer(), ROOM_BEFORE..ROOM_BEFORE + length);
            self.set_patience();
            let (mut buffer, outcome) =
                self.timer.limit(self.from.receive_bulk()).await.map_err(|_| RelayError::SourceSlow)?;
            let received = match outcome {
                Ok(0) => {
                    self.ring.recycle(buffer);
                    return self.finished().await;
                }
                Ok(received) => received,
                Err(_) => return Err(RelayError::SourceEnded),
            };
            let data = &mut buffer[ROOM_BEFORE..ROOM_BEFORE + received];
            let (Piece { kept, consumed, done }, data) =
                self.decoder.advance(data, &mut tail).map_err(RelayError::Malformed)?;
            if consumed < received {
                // The end of this message, and something behind it.
                self.read_buffer.push_copy(&buffer[ROOM_BEFORE + consumed..ROOM_BEFORE + received]);
            }
            self.note_moved(received, data)?;
            let (mut start, mut end) = (ROOM_BEFORE, ROOM_BEFORE + kept);
            if matches!(self.decoder, Decoder::UntilClose { wrap: true }) {
                let prefix = chunk_prefix(kept as u64);
                start -= prefix.len();
                buffer[start..ROOM_BEFORE].copy_from_slice(&prefix);
                buffer[end..end + CHUNK_SUFFIX.len()].copy_from_slice(CHUNK_SUFFIX);
                end += CHUNK_SUFFIX.len();
            }
            if !tail.is_empty() && end + tail.len() <= BULK_SIZE {
                buffer[end..end + tail.len()].copy_from_slice(&tail);
                end += tail.len();
                tail.clear();
            }
            self.send(Outgoing::Owned(buffer, start as u32..end as u32)).await?;
            if !tail.is_empty() {
                self.send(std::mem::take(&mut tail).into()).await?;
            }
            if done {
                return Ok(());
            }
        }
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
