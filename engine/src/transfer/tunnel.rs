//! Bytes both ways, until both sides have finished, nothing has moved for long, or the tunnel moves to another process.
//!
//! Each direction ends by itself: the end of one is passed on as a half-close, and the other goes on.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
};

use super::{read_buffer::ReadBuffer, relay::copy_cost};
use crate::{
    ring::{Buf, BulkBuf, LEAST_ROOM, Passed, Recv, Ring, SendBuf, Source, Splice, Stream, Timer},
    transport::TransportStream,
};

/// So many arena buffers in a row that were filled to the brim are a stream worth private buffers.
const FULL_BEFORE_BULK: u32 = 8;
/// And so many are one worth splicing, which needs none.
const FULL_BEFORE_SPLICE: u32 = 1;
/// A splice that finds less than this (bytes) is worth less than a receive: back to the arena.
const SPLICE_LEAST: usize = 8 * 1024;
/// A private buffer that came back with less than this (bytes) was too large: back to the arena.
const BULK_LEAST: usize = 32 * 1024;

/// What a tunnel asks its owner whenever it is woken.
pub(crate) trait TunnelOwner {
    /// Where a tunnel moves to.
    type Place;

    /// True if tunnels at rest should move to another process.
    fn is_moving(&self) -> bool;

    /// A place in another process, if there is one left; it is taken then.
    fn take_place(&self) -> Option<Self::Place>;

    /// True if its listener or its backend was removed: it has a while to end by itself.
    fn is_removed(&self) -> bool;

    /// True if it has to end at once.
    fn is_dismissed(&self) -> bool;
}

/// A tunnel between a client and a backend.
pub(crate) struct Tunnel<'a, O> {
    pub(crate) ring: &'a Ring,
    pub(crate) timer: &'a Timer,
    pub(crate) client: &'a TransportStream,
    pub(crate) upstream: &'a TransportStream,
    /// How long nothing may move (ms).
    pub(crate) idle_ms: u64,
    /// How long it goes on when its listener or its backend was removed (ms).
    pub(crate) drain_ms: u64,
    pub(crate) owner: &'a O,
}

/// How a tunnel ended.
pub(crate) enum TunnelEnd<P> {
    /// Both sides have finished.
    Finished,
    /// One side broke.
    Broken,
    /// Nothing moved for too long.
    Idle,
    /// Its listener or its backend was removed, and the time to end by itself has passed.
    Drained,
    /// It had to end at once.
    Dismissed,
    /// Each direction is at rest or has finished, and a place elsewhere was taken: move it, after [`come_to_rest`].
    AtRest(P),
}

impl<O: TunnelOwner> Tunnel<'_, O> {
    /// Runs the tunnel. What came from the two sides before goes first.
    pub(crate) async fn run(self, from_client: ReadBuffer, from_upstream: ReadBuffer) -> TunnelEnd<O::Place> {
        let Tunnel { ring, timer, client, upstream, idle_ms, drain_ms, owner } = self;
        let active = Cell::new(ring.now());
        // What came over the connection before says nothing of what comes now.
        [client, upstream].iter().for_each(|side| side.expect_bulk(None));
        // What is over TLS has its state in this process.
        let movable = client.as_plain().is_some() && upstream.as_plain().is_some();
        let direction = |from, to| Direction {
            ring,
            owner,
            from,
            to,
            active: &active,
            at_rest: Cell::new(false),
            movable,
        };
        let (inbound, outbound) = (direction(client, upstream), direction(upstream, client));
        let mut up = pin!(inbound.run(from_client));
        let mut down = pin!(outbound.run(from_upstream));
        let (mut up_done, mut down_done) = (false, false);
        let mut drained_at = None;
        timer.set(idle_ms);
        poll_fn(|context| {
            if owner.is_dismissed() {
                return Poll::Ready(TunnelEnd::Dismissed);
            }
            if !up_done && let Poll::Ready(outcome) = up.as_mut().poll(context) {
                up_done = true;
                if outcome.is_err() {
                    return Poll::Ready(TunnelEnd::Broken);
                }
            }
            if !down_done && let Poll::Ready(outcome) = down.as_mut().poll(context) {
                down_done = true;
                if outcome.is_err() {
                    return Poll::Ready(TunnelEnd::Broken);
                }
            }
            if up_done && down_done {
                return Poll::Ready(TunnelEnd::Finished);
            }
            // Nothing is received any more from a side that has finished: that it is gone shows nowhere else.
            let gone = |done, side: &TransportStream| done && side.poll_hangup(false, context).is_ready();
            if gone(up_done, client) || gone(down_done, upstream) {
                return Poll::Ready(TunnelEnd::Broken);
            }
            // Not one way after the other: what rests may have to move again so that the other can come to rest.
            if movable
                && (up_done || inbound.at_rest.get())
                && (down_done || outbound.at_rest.get())
                && let Some(place) = owner.take_place()
            {
                return Poll::Ready(TunnelEnd::AtRest(place));
            }
            if drained_at.is_none() && owner.is_removed() {
                let due = ring.now() + drain_ms;
                drained_at = Some(due);
                timer.set_at(due.min(active.get() + idle_ms));
            }
            while timer.poll_elapsed(context).is_ready() {
                let idle = active.get() + idle_ms;
                if drained_at.is_some_and(|due| due <= ring.now()) {
                    return Poll::Ready(TunnelEnd::Drained);
                }
                if idle <= ring.now() {
                    return Poll::Ready(TunnelEnd::Idle);
                }
                timer.set_at(drained_at.map_or(idle, |due| due.min(idle)));
            }
            Poll::Pending
        })
        .await
    }
}

/// Stops receiving on both sides, and passes on what came before. What comes later, the end included, stays in the kernel.
///
/// # Errors
/// When a side has broken.
pub(crate) async fn come_to_rest(client: &TransportStream, upstream: &TransportStream) -> io::Result<()> {
    for side in [client, upstream] {
        side.pause_receive().await;
        side.stop_polls().await;
    }
    for (from, to) in [(client, upstream), (upstream, client)] {
        while let Some(buffer) = from.try_receive() {
            to.send(SendBuf::Received(buffer)).await?;
        }
        to.flush().await?;
    }
    Ok(())
}

/// One of the two ways through a tunnel.
struct Direction<'a, O> {
    ring: &'a Ring,
    owner: &'a O,
    from: &'a TransportStream,
    to: &'a TransportStream,
    /// When something last moved, either way (ms).
    active: &'a Cell<u64>,
    /// The tunnel is to move, and this way has passed on all that came.
    at_rest: Cell<bool>,
    movable: bool,
}

impl<O: TunnelOwner> Direction<'_, O> {
    async fn run(&self, mut first: ReadBuffer) -> io::Result<()> {
        let waiting = first.bytes().len();
        if waiting > 0 {
            self.send(first.split(waiting, waiting)).await?;
        }
        let mut full = 0;
        loop {
            match self.receive().await? {
                Recv::Data(buffer) => {
                    full = if is_full(&buffer) { full + 1 } else { 0 };
                    self.send(SendBuf::Received(buffer)).await?;
                    match (self.from.as_plain(), self.to.as_plain()) {
                        (Some(from), Some(to)) if full >= FULL_BEFORE_SPLICE => {
                            full = 0;
                            if !Box::pin(self.splice(from, to)).await? {
                                self.bulk().await?;
                            }
                        }
                        _ if full >= FULL_BEFORE_BULK => {
                            full = 0;
                            self.bulk().await?;
                        }
                        _ => {}
                    }
                }
                Recv::Finished => {
                    self.to.flush().await?;
                    self.to.shutdown_write().await;
                    return Ok(());
                }
            }
        }
    }

    /// Receives what comes next. When the tunnel is to move, notes whether the way is at rest: it then waits here, and may
    /// be dropped without loss.
    fn receive(&self) -> impl Future<Output = io::Result<Recv>> + '_ {
        poll_fn(move |context| {
            let received = self.from.poll_receive(context);
            let waits = received.is_pending() && self.moves();
            self.at_rest.set(waits && self.to.poll_flush(context).is_ready());
            received
        })
    }

    /// From socket to socket, as long as much comes at a time. False: there is no pipe to be had.
    async fn splice(&self, from: &Stream, to: &Stream) -> io::Result<bool> {
        from.pause_receive().await;
        while let Some(buffer) = from.try_receive() {
            self.send(SendBuf::Received(buffer)).await?;
        }
        self.to.flush().await?;
        if !self.from.is_open() || !from.is_paused() {
            // It has ended: the ordinary way finds out how.
            return Ok(true);
        }
        self.ring.count_bulk();
        let mut splice = Splice::new(self.ring, from, to).of_tunnel();
        let mut told_readable = false;
        loop {
            let mut room = to.send_room();
            if room < LEAST_ROOM {
                splice.rest();
                to.writable().await?;
                room = LEAST_ROOM;
            }
            match splice.pass(room).await? {
                Passed::Bytes { taken, rest } => {
                    self.active.set(self.ring.now());
                    if !rest.is_empty() {
                        self.send(rest.into()).await?;
                        self.to.flush().await?;
                    }
                    if (told_readable && taken < SPLICE_LEAST) || self.moves() {
                        return Ok(true);
                    }
                    told_readable = false;
                }
                Passed::Finished => return Ok(true),
                // A splice stops for ever before a byte of urgent data.
                Passed::Nothing if told_readable => return Ok(true),
                Passed::Nothing => {
                    splice.rest();
                    if !self.readable(from).await? {
                        return Ok(true);
                    }
                    told_readable = true;
                    continue;
                }
                Passed::NoPipe => return Ok(false),
            }
            // Both sides may be fast for long: the others have their turn in between.
            self.ring.yield_turn().await;
        }
    }

    /// Waits until something has come. False: the tunnel is to move.
    async fn readable(&self, from: &Stream) -> io::Result<bool> {
        let mut readable = pin!(from.readable());
        poll_fn(|context| match readable.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(outcome.map(|()| true)),
            Poll::Pending if self.moves() => Poll::Ready(Ok(false)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Through private buffers, as long as the stream fills them.
    async fn bulk(&self) -> io::Result<()> {
        self.from.pause_receive().await;
        while let Some(buffer) = self.from.try_receive() {
            self.send(SendBuf::Received(buffer)).await?;
        }
        if !self.from.is_open() {
            // It has ended: the ordinary way finds out how.
            return Ok(());
        }
        self.ring.count_bulk();
        let mut expected = FULL_BEFORE_BULK as usize * crate::limits::BUFFER_SIZE as usize;
        loop {
            // Before there is a buffer: who waits holds none.
            let cost = copy_cost(expected, [self.from, self.to]);
            self.ring.bulk_admission().reserve(Source::Bulk, cost).await;
            let wanted = self.to.bulk_size();
            let Some(buffer) = self.ring.bulk_buffer(wanted.max(self.from.least_bulk())) else {
                return Ok(());
            };
            // One that takes little at a time is served from the arena; so is one for which there is no memory.
            if wanted < self.from.least_bulk() / 2 || buffer.len() < self.from.least_bulk() {
                return Ok(());
            }
            let size = wanted.min(buffer.len());
            self.from.start_receive_bulk(buffer, 0..size);
            let (buffer, received) = match self.receive_bulk().await {
                Ok(received) => received,
                // Given up so that the tunnel can move: the ordinary way waits on.
                Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => return Ok(()),
                Err(error) => return Err(error),
            };
            if received == 0 {
                return Ok(());
            }
            expected = received;
            self.send(SendBuf::Bulk(buffer, 0..received as u32)).await?;
            if received < BULK_LEAST.min(size) || self.moves() {
                return Ok(());
            }
        }
    }

    /// Waits for the private buffer to be filled, unless the tunnel is to move and nothing comes.
    fn receive_bulk(&self) -> impl Future<Output = io::Result<(BulkBuf, usize)>> + '_ {
        let mut stopped = false;
        poll_fn(move |context| {
            if !stopped && self.moves() {
                stopped = true;
                self.from.stop_receive_bulk();
            }
            self.from.poll_receive_bulk(context)
        })
    }

    /// True if it should move to another process.
    fn moves(&self) -> bool {
        self.movable && self.owner.is_moving()
    }

    async fn send(&self, data: SendBuf) -> io::Result<()> {
        self.active.set(self.ring.now());
        self.to.send(data).await?;
        self.active.set(self.ring.now());
        Ok(())
    }
}

fn is_full(buffer: &Buf) -> bool {
    buffer.len() >= crate::limits::BUFFER_SIZE as usize
}
