//! A body from one side to the other, with back-pressure.
//!
//! Nothing is read that cannot be sent on: at most one piece is being sent while the next one is received. Small
//! bodies travel in the arena buffers that they were received into; large ones in bulk: spliced from socket to
//! socket where nothing needs to be looked at, else through private buffers that one receive fills as far as it can.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
    time::Duration,
};

use super::{
    body::{Body, Piece},
    min_rate::MinRate,
    read_buffer::ReadBuffer,
};
use crate::{
    h1::{CHUNK_SUFFIX, LAST_CHUNK, chunk_prefix},
    http::Reason,
    ring::{LEAST_ROOM, PassError, Passed, Recv, Ring, SendBuf, Source, Splice, Stream, Timer},
    transport::TransportStream,
};

/// A body that has at least this much to go is moved in bulk (bytes).
const BULK_FROM: u64 = 16 * 1024;
/// Room kept before and behind the data of a bulk buffer, for a chunk's size line and its end (bytes).
const ROOM_BEFORE: usize = 32;
const ROOM_BEHIND: usize = 512;
/// A receiver that takes nothing for this long is slow: what waits for it is moved out of the arena (ms).
const SLOW_AFTER_MS: u64 = 5;
/// A sender that sends nothing for this long is waited for with an eye on the receiver, which may be gone (ms).
const WATCH_AFTER_MS: u64 = 10;
/// Pieces that go through the arena before private buffers are asked for again.
const PIECES_BEFORE_BULK: u32 = 16;

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

/// Whether the receiver of a body is watched while the sender is silent: a client that is gone ends the exchange, a
/// backend that is shows that in its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It is not.
    Nothing,
    /// Until its connection is broken.
    Reset,
    /// Until its connection is broken, or it has said that it sends no more.
    ResetOrEnd,
}

/// A body on its way.
pub(crate) struct Relay<'a> {
    pub(crate) ring: &'a Ring,
    pub(crate) from: &'a TransportStream,
    pub(crate) read_buffer: &'a mut ReadBuffer,
    pub(crate) to: &'a TransportStream,
    pub(crate) body: &'a mut Body,
    pub(crate) timer: &'a Timer,
    /// When the sender is too slow.
    pub(crate) source: MinRate,
    /// When the receiver is too slow.
    pub(crate) sink: MinRate,
    /// When the body must be through, whoever is slow (ms, the ring's clock); `u64::MAX` = any time.
    pub(crate) due: u64,
    pub(crate) watch: Watch,
    /// Largest body (bytes); 0 = any.
    pub(crate) limit: u64,
}

/// Says of a stream that a body of so many bytes came over it, and has left: the next one may be like it, and go to one who takes it
/// faster.
pub(crate) fn note_length(from: &TransportStream, moved: u64) {
    from.speed_up();
    from.expect_bulk((moved >= BULK_FROM + 4 * 1024).then_some(moved));
}

/// Waits until a send has completed, as long as it gets on at least every `stall_ms`.
pub(crate) async fn flush(to: &TransportStream, timer: &Timer, stall_ms: u64) -> Result<(), RelayError> {
    if to.is_sending() {
        // Boxed: rare, and it would make every future that sends twice as large.
        return Box::pin(flush_slowly(to, timer, stall_ms)).await;
    }
    to.flush().await.map_err(|_| RelayError::SinkBroken)
}

/// What it takes to receive a piece from one of the two and to send it to the other, roughly. The kernel does the most of it,
/// when the ring is entered.
pub(super) fn copy_cost(bytes: usize, sides: [&TransportStream; 2]) -> Duration {
    let secured = sides.into_iter().filter(|side| side.is_tls()).count() as u64;
    Duration::from_nanos(bytes as u64 / 2 * (1 + secured))
}

async fn flush_slowly(to: &TransportStream, timer: &Timer, stall_ms: u64) -> Result<(), RelayError> {
    let mut unsent = to.unsent();
    loop {
        timer.set(stall_ms);
        match timer.limit(to.flush()).await {
            Ok(outcome) => return outcome.map_err(|_| RelayError::SinkBroken),
            Err(_) if to.unsent() != unsent => unsent = to.unsent(),
            Err(_) => return Err(RelayError::SinkStalled),
        }
    }
}

/// `receive`, which waits for a sender until `due` (ms, the ring's clock); and, if that takes long, with an eye on the
/// receiver. `None` = the time is over.
///
/// # Errors
/// `SinkBroken` when the receiver is gone.
pub(crate) async fn receive_watching<T>(
    receive: impl Future<Output = T>,
    (to, watch): (&TransportStream, Watch),
    timer: &Timer,
    (now, due): (u64, u64),
) -> Result<Option<T>, RelayError> {
    let mut receive = pin!(receive);
    let mut watching = false;
    timer.set_at(if watch == Watch::Nothing { due } else { due.min(now + WATCH_AFTER_MS) });
    let outcome = poll_fn(|context| {
        if let Poll::Ready(received) = receive.as_mut().poll(context) {
            return Poll::Ready(Ok(Some(received)));
        }
        while timer.poll_elapsed(context).is_ready() {
            if watching || watch == Watch::Nothing || due <= now + WATCH_AFTER_MS {
                return Poll::Ready(Ok(None));
            }
            watching = true;
            timer.set_at(due);
        }
        if watching && to.poll_hangup(watch == Watch::ResetOrEnd, context).is_ready() {
            return Poll::Ready(Err(RelayError::SinkBroken));
        }
        Poll::Pending
    })
    .await;
    if watching {
        to.stop_watching();
    }
    outcome
}

/// How a body goes on after a part of it was moved one way.
enum Moved {
    /// It is complete.
    All,
    /// It has to go on through the arena, for a while: there is no memory, or what comes next can only be received.
    Part,
    /// There is no pipe.
    NoPipe,
}

impl Relay<'_> {
    /// Moves the rest of the body.
    pub(crate) async fn run(&mut self) -> Result<(), RelayError> {
        let mut pieces = PIECES_BEFORE_BULK;
        // Where the length is not known, it may be like that of the body before.
        let like_before = self.from.expects_bulk();
        let guessed = like_before.map_or(0, |_| BULK_FROM);
        while !self.body.is_done() {
            // Or a quarter of what has come may still come.
            let expected = self.body.known_length().unwrap_or(guessed.max(self.body.moved() / 4));
            if expected >= BULK_FROM && pieces >= PIECES_BEFORE_BULK {
                match Box::pin(self.bulk(like_before)).await? {
                    Moved::All => return Ok(()),
                    Moved::Part | Moved::NoPipe => pieces = 0,
                }
            }
            self.from.expect_bulk(None);
            if self.read_buffer.is_empty() {
                match self.receive().await? {
                    Recv::Data(buffer) => self.read_buffer.push(buffer),
                    Recv::Finished => return self.finished().await,
                }
            }
            pieces += 1;
            if self.pass_on().await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Receives with the patience that the sender has.
    async fn receive(&mut self) -> Result<Recv, RelayError> {
        if let Some(buffer) = self.from.try_receive() {
            return Ok(Recv::Data(buffer));
        }
        let from = self.from;
        self.wait_for_source(from.receive()).await
    }

    /// Waits for the sender. What it takes is not the receiver's fault.
    async fn wait_for_source<T>(
        &mut self,
        receive: impl Future<Output = io::Result<T>>,
    ) -> Result<T, RelayError> {
        let before = self.ring.now();
        let due = self.due.min(self.source.due());
        let received = receive_watching(receive, (self.to, self.watch), self.timer, (before, due)).await?;
        self.sink.excuse(self.ring.now() - before);
        match received {
            Some(received) => received.map_err(|_| RelayError::SourceEnded),
            None => Err(RelayError::SourceSlow),
        }
    }

    fn note_moved(&mut self, received: usize) -> Result<(), RelayError> {
        if self.limit != 0 && self.body.moved() > self.limit {
            return Err(RelayError::TooLarge);
        }
        self.source.moved(received, self.ring.now());
        Ok(())
    }

    async fn send(&mut self, data: SendBuf) -> Result<(), RelayError> {
        let data = if self.to.is_sending() {
            Box::pin(self.wait_for_sink(data)).await?
        } else {
            // What was sent before has been taken.
            self.sink.moved(data.len(), self.ring.now());
            data
        };
        self.to.flush().await.map_err(|_| RelayError::SinkBroken)?;
        self.to.start_send(data);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RelayError> {
        if self.to.is_sending() {
            Box::pin(self.wait_for_sink(SendBuf::Static(&[]))).await?;
        }
        self.to.flush().await.map_err(|_| RelayError::SinkBroken)
    }

    /// Waits until the receiver has taken what is being sent. Whatever waits with it, `data` and what the sender sends on,
    /// leaves the arena if that takes long. What it takes is not the sender's fault.
    async fn wait_for_sink(&mut self, mut data: SendBuf) -> Result<SendBuf, RelayError> {
        let before = self.ring.now();
        let mut unsent = self.to.unsent();
        self.timer.set(SLOW_AFTER_MS);
        let mut outcome = self.timer.limit(self.to.flush()).await;
        if outcome.is_err() {
            self.from.slow_down();
            data = data.out_of_arena();
        }
        while outcome.is_err() {
            let left = self.to.unsent();
            self.sink.moved(unsent.saturating_sub(left), self.ring.now());
            unsent = left;
            let due = self.due.min(self.sink.due());
            if due <= self.ring.now() {
                return Err(RelayError::SinkStalled);
            }
            self.timer.set_at(due);
            outcome = self.timer.limit(self.to.flush()).await;
        }
        self.source.excuse(self.ring.now() - before);
        match outcome {
            Ok(Ok(())) => {
                self.sink.moved(unsent, self.ring.now());
                Ok(data)
            }
            Ok(Err(_)) => Err(RelayError::SinkBroken),
            Err(_) => Err(RelayError::SinkStalled),
        }
    }

    /// Passes on what is in the read_buffer. `true`: the body is complete.
    async fn pass_on(&mut self) -> Result<bool, RelayError> {
        let mut tail = Vec::new();
        let Piece { kept, consumed, done } =
            self.body.advance(self.read_buffer.bytes_mut(), &mut tail).map_err(RelayError::Malformed)?;
        self.note_moved(consumed)?;
        if self.body.is_wrapped() {
            let mut chunk = self.ring.head_buffer();
            chunk.extend_from_slice(&chunk_prefix(kept as u64));
            chunk.extend_from_slice(&self.read_buffer.bytes()[..kept]);
            chunk.extend_from_slice(CHUNK_SUFFIX);
            self.read_buffer.consume(consumed);
            self.send(chunk.into()).await?;
        } else if kept > 0 || consumed > 0 {
            let piece = self.read_buffer.split(kept, consumed);
            // What is left is the next message: it waits for this one, and must not hold a shared buffer meanwhile.
            self.read_buffer.copy_out_of_pool();
            self.send(piece).await?;
        }
        if !tail.is_empty() {
            self.send(tail.into()).await?;
        }
        Ok(done)
    }

    /// The sender has finished: right for one body, too early for the others.
    async fn finished(&mut self) -> Result<(), RelayError> {
        if self.body.is_wrapped() {
            return self.send(SendBuf::Static(LAST_CHUNK)).await;
        }
        if self.body.ends_with_connection() { Ok(()) } else { Err(RelayError::SourceEnded) }
    }

    /// Moves the rest of a large body whose bytes need not be looked at from socket to socket.
    async fn splice(&mut self, (from, to): (&Stream, &Stream)) -> Result<Moved, RelayError> {
        let mut splice = Splice::new(self.ring, from, to);
        let mut told_readable = false;
        loop {
            let left = self.body.known_length();
            let left = left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
            if left == 0 {
                return Ok(Moved::All);
            }
            let mut room = to.send_room();
            if room < LEAST_ROOM {
                // Nothing is taken for a receiver that would not have it, so that nothing waits here.
                splice.rest();
                self.wait_writable(to).await?;
                room = LEAST_ROOM;
            }
            let passed = splice.pass(left.min(room)).await.map_err(|error| match error {
                PassError::Sender(_) => RelayError::SourceEnded,
                PassError::Receiver(_) => RelayError::SinkBroken,
            });
            match passed? {
                Passed::Bytes { taken, rest } => {
                    told_readable = false;
                    self.body.skip(taken);
                    self.note_moved(taken)?;
                    self.sink.moved(taken - rest.len(), self.ring.now());
                    if !rest.is_empty() {
                        self.send(rest.into()).await?;
                        self.flush().await?;
                    }
                }
                Passed::Finished => return self.finished().await.map(|()| Moved::All),
                // A splice stops for ever before a byte of urgent data.
                Passed::Nothing if told_readable => return Ok(Moved::Part),
                Passed::Nothing => {
                    splice.rest();
                    self.wait_for_source(from.readable()).await?;
                    told_readable = true;
                    continue;
                }
                Passed::NoPipe => return Ok(Moved::NoPipe),
            }
            // Both sides may be fast for long: the others have their turn in between.
            self.ring.yield_turn().await;
        }
    }

    /// Waits until the receiver takes more. What that takes is not the sender's fault.
    async fn wait_writable(&mut self, to: &Stream) -> Result<(), RelayError> {
        let before = self.ring.now();
        self.timer.set_at(self.due.min(self.sink.due()));
        let writable = self.timer.limit(to.writable()).await;
        writable.map_err(|_| RelayError::SinkStalled)?.map_err(|_| RelayError::SinkBroken)?;
        self.source.excuse(self.ring.now() - before);
        Ok(())
    }

    /// Moves the rest of a large body, as long as there is memory for that.
    async fn bulk(&mut self, like_before: Option<u64>) -> Result<Moved, RelayError> {
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
                return Ok(Moved::All);
            }
        }
        if self.body.is_verbatim()
            && let (Some(from), Some(to)) = (self.from.as_plain(), self.to.as_plain())
        {
            self.flush().await?;
            if from.is_paused() {
                self.ring.count_bulk();
                match self.splice((from, to)).await? {
                    Moved::NoPipe => {}
                    moved => return Ok(moved),
                }
            }
        }
        self.copy(like_before).await
    }

    /// Moves the rest through private buffers, as large as the receiver takes at once, and no larger than it needs, which without
    /// a length is what the body before had. `Part`: `body_memory` is used up, or the receiver takes too little for that.
    async fn copy(&mut self, like_before: Option<u64>) -> Result<Moved, RelayError> {
        let mut tail = Vec::new();
        let mut counted = false;
        let mut expected = BULK_FROM as usize;
        let mut more_is_there = false;
        loop {
            if !more_is_there {
                let from = self.from;
                self.wait_for_source(from.readable()).await?;
            }
            // Before there is a buffer: who waits holds none.
            let cost = copy_cost(expected, [self.from, self.to]);
            self.ring.bulk_admission().reserve(Source::Bulk, cost).await;
            let room = self.to.bulk_size();
            if room < self.from.least_bulk() / 2 || !self.from.is_paused() {
                return Ok(Moved::Part);
            }
            let length = self.body.known_length().and_then(|left| usize::try_from(left).ok());
            // What is left of one like the one before, with the size lines of its chunks.
            let guessed = || {
                let left = like_before?.checked_sub(self.body.moved())?;
                usize::try_from(left + left / 64).ok()
            };
            let rest = length.or_else(guessed).unwrap_or(usize::MAX);
            let wanted = room.min(rest.saturating_add(ROOM_BEFORE + ROOM_BEHIND));
            let Some(buffer) = self.ring.bulk_buffer(wanted.max(self.from.least_bulk())) else {
                return Ok(Moved::Part);
            };
            if buffer.len() < self.from.least_bulk() {
                return Ok(Moved::Part);
            }
            if !std::mem::replace(&mut counted, true) {
                self.ring.count_bulk();
            }
            let space = buffer.len().min(room) - ROOM_BEFORE - ROOM_BEHIND;
            let length = length.map_or(space, |left| left.min(space));
            self.from.start_receive_bulk(buffer, ROOM_BEFORE..ROOM_BEFORE + length);
            let from = self.from;
            let (mut buffer, received) = self.wait_for_source(from.receive_bulk()).await?;
            if received == 0 {
                return self.finished().await.map(|()| Moved::All);
            }
            expected = received;
            more_is_there = received >= length;
            let data = &mut buffer[ROOM_BEFORE..ROOM_BEFORE + received];
            let Piece { kept, consumed, done } =
                self.body.advance(data, &mut tail).map_err(RelayError::Malformed)?;
            if consumed < received {
                // The end of this message, and something behind it.
                self.read_buffer.push_copy(&buffer[ROOM_BEFORE + consumed..ROOM_BEFORE + received]);
            }
            self.note_moved(received)?;
            let (mut start, mut end) = (ROOM_BEFORE, ROOM_BEFORE + kept);
            if self.body.is_wrapped() {
                let prefix = chunk_prefix(kept as u64);
                start -= prefix.len();
                buffer[start..ROOM_BEFORE].copy_from_slice(&prefix);
                buffer[end..end + CHUNK_SUFFIX.len()].copy_from_slice(CHUNK_SUFFIX);
                end += CHUNK_SUFFIX.len();
            }
            if !tail.is_empty() && end + tail.len() <= buffer.len() {
                buffer[end..end + tail.len()].copy_from_slice(&tail);
                end += tail.len();
                tail.clear();
            }
            self.send(SendBuf::Bulk(buffer, start as u32..end as u32)).await?;
            if !tail.is_empty() {
                self.send(std::mem::take(&mut tail).into()).await?;
            }
            if done {
                return Ok(Moved::All);
            }
        }
    }
}
