//! After an accepted `Upgrade`: bytes both ways, until both sides have finished or nothing has moved for long.
//!
//! Each direction ends by itself: the end of one is passed on as a half-close, and the other goes on.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
};

use super::{
    connection::{Connection, Next},
    exchange::{Leftover, Request},
    inbox::Inbox,
};
use crate::{
    cluster::Upstream,
    observe::Counter,
    ring::{BULK_SIZE, Buf, Outgoing, Received, Ring, Stream},
};

/// So many arena buffers in a row that were filled to the brim are a stream worth private buffers.
const FULL_BEFORE_BULK: u32 = 8;
/// A private buffer that came back with less than this (bytes) was too large: back to the arena.
const BULK_LEAST: usize = 32 * 1024;

/// Runs the tunnel; `leftover` is what the backend sent behind its 101.
pub(super) async fn run(
    connection: &mut Connection,
    request: &Request,
    upstream: Upstream,
    leftover: Leftover,
) -> Next {
    let Connection { shared, front, client, timer, inbox, .. } = connection;
    let counters = &shared.counters;
    counters.count(Counter::Requests);
    counters.count(Counter::Tunnels);
    counters.count(Counter::TunnelsOpen);
    let idle_ms = request.site.settings.timeouts.tunnel_ms;
    let active = Cell::new(shared.ring.now());
    let inbound = Direction {
        ring: &shared.ring,
        from: client,
        to: &upstream.stream,
        active: &active,
        counted: Cell::new(0),
    };
    let outbound = Direction {
        ring: &shared.ring,
        from: &upstream.stream,
        to: client,
        active: &active,
        counted: Cell::new(0),
    };
    let outcome = {
        let mut up = pin!(inbound.run(std::mem::take(inbox)));
        let mut down = pin!(outbound.run(leftover));
        let (mut up_done, mut down_done) = (false, false);
        let mut drained_at = None;
        timer.set(idle_ms);
        poll_fn(|context| {
            if !up_done && let Poll::Ready(outcome) = up.as_mut().poll(context) {
                up_done = true;
                if outcome.is_err() {
                    return Poll::Ready(Next::Abort { reset: true });
                }
            }
            if !down_done && let Poll::Ready(outcome) = down.as_mut().poll(context) {
                down_done = true;
                if outcome.is_err() {
                    return Poll::Ready(Next::Abort { reset: true });
                }
            }
            if up_done && down_done {
                return Poll::Ready(Next::Close);
            }
            // Its way was taken out of the configuration: it has a while to end by itself.
            if drained_at.is_none() && (front.is_closed() || upstream.is_retired()) {
                let due = shared.ring.now() + shared.drain_timeout_ms;
                drained_at = Some(due);
                timer.set_at(due.min(active.get() + idle_ms));
            }
            while timer.poll_elapsed(context).is_ready() {
                let idle = active.get() + idle_ms;
                if drained_at.is_some_and(|due| due <= shared.ring.now()) {
                    return Poll::Ready(Next::Abort { reset: false });
                }
                if idle <= shared.ring.now() {
                    counters.count(Counter::TunnelTimeouts);
                    return Poll::Ready(Next::Abort { reset: false });
                }
                timer.set_at(drained_at.map_or(idle, |due| due.min(idle)));
            }
            Poll::Pending
        })
        .await
    };
    counters.add(Counter::BytesIn, inbound.counted.get());
    counters.add(Counter::BytesOut, outbound.counted.get());
    counters.uncount(Counter::TunnelsOpen);
    if outcome != Next::Close {
        upstream.stream.reset_on_close();
    }
    outcome
}

/// One of the two ways through a tunnel.
struct Direction<'a> {
    ring: &'a Ring,
    from: &'a Stream,
    to: &'a Stream,
    /// When something last moved, either way (ms).
    active: &'a Cell<u64>,
    counted: Cell<u64>,
}

impl Direction<'_> {
    async fn run(&self, mut first: Inbox) -> io::Result<()> {
        let waiting = first.bytes().len();
        if waiting > 0 {
            self.send(first.split(waiting, waiting)).await?;
        }
        let mut full = 0;
        loop {
            match self.from.receive().await? {
                Received::Data(buffer) => {
                    full = if is_full(&buffer) { full + 1 } else { 0 };
                    self.send(Outgoing::Received(buffer)).await?;
                    if full >= FULL_BEFORE_BULK {
                        full = 0;
                        self.bulk().await?;
                    }
                }
                Received::Finished => {
                    self.to.flush().await?;
                    self.to.shutdown_write();
                    return Ok(());
                }
            }
        }
    }

    /// Through private buffers, as long as the stream fills them.
    async fn bulk(&self) -> io::Result<()> {
        self.from.pause_receive().await;
        while let Some(buffer) = self.from.try_receive() {
            self.send(Outgoing::Received(buffer)).await?;
        }
        if !self.from.is_quiet() {
            // It has ended: the ordinary way finds out how.
            return Ok(());
        }
        self.ring.count_bulk();
        loop {
            self.from.start_receive_bulk(self.ring.bulk_buffer(), 0..BULK_SIZE);
            let (buffer, outcome) = self.from.receive_bulk().await;
            let received = outcome?;
            if received == 0 {
                self.ring.recycle(buffer);
                return Ok(());
            }
            self.send(Outgoing::Owned(buffer, 0..received as u32)).await?;
            if received < BULK_LEAST {
                return Ok(());
            }
        }
    }

    async fn send(&self, data: Outgoing) -> io::Result<()> {
        self.active.set(self.ring.now());
        self.counted.set(self.counted.get() + data.len() as u64);
        self.to.send(data).await?;
        self.active.set(self.ring.now());
        Ok(())
    }
}

fn is_full(buffer: &Buf) -> bool {
    buffer.len() >= crate::limits::BUFFER_SIZE as usize
}
