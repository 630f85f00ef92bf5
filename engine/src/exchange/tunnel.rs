//! After an accepted `Upgrade`: bytes both ways, until both sides have finished or nothing has moved for long.
//!
//! Each direction ends by itself: the end of one is passed on as a half-close, and the other goes on.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    task::Poll,
};

use super::{
    Shared,
    client::{ClientConnection, Disposition},
    forward::Request,
    successor::{HandoverMessage, Successor},
};
use crate::{
    observe::Counter,
    ring::{Buf, BulkBuf, Recv, SendBuf},
    transfer::ReadBuffer,
    transport::TransportStream,
    upstream::Upstream,
};

/// So many arena buffers in a row that were filled to the brim are a stream worth private buffers.
const FULL_BEFORE_BULK: u32 = 8;
/// A private buffer that came back with less than this (bytes) was too large: back to the arena.
const BULK_LEAST: usize = 32 * 1024;

/// Opens a tunnel; `early_tunnel_data` is what the backend sent behind its 101.
pub(crate) async fn open(
    connection: &mut ClientConnection,
    request: &Request,
    upstream: Upstream,
    early_tunnel_data: ReadBuffer,
) -> Disposition {
    connection.shared.counters.count(Counter::Requests);
    connection.shared.counters.count(Counter::Tunnels);
    let idle_ms = request.config.settings.timeouts.tunnel_ms;
    run(connection, request.cluster_name(), idle_ms, upstream, early_tunnel_data).await
}

/// Runs the tunnel to a backend of `cluster` until it ends, is silent for `idle_ms`, or moves to another process.
pub(crate) async fn run(
    connection: &mut ClientConnection,
    cluster: &str,
    idle_ms: u64,
    mut upstream: Upstream,
    early_tunnel_data: ReadBuffer,
) -> Disposition {
    let ClientConnection { shared, listener, client, timer, read_buffer, .. } = connection;
    let counters = &shared.counters;
    counters.count(Counter::TunnelsOpen);
    let active = Cell::new(shared.ring.now());
    // What is over TLS has its state in this process.
    let movable = client.as_plain().is_some() && upstream.stream.as_plain().is_some();
    let inbound = Direction::new(shared, client, &upstream.stream, &active, movable);
    let outbound = Direction::new(shared, &upstream.stream, client, &active, movable);
    let end = {
        let mut up = pin!(inbound.run(std::mem::take(read_buffer)));
        let mut down = pin!(outbound.run(early_tunnel_data));
        let (mut up_done, mut down_done) = (false, false);
        let mut drained_at = None;
        timer.set(idle_ms);
        poll_fn(|context| {
            if !up_done && let Poll::Ready(outcome) = up.as_mut().poll(context) {
                up_done = true;
                if outcome.is_err() {
                    return Poll::Ready(End::Over(Disposition::Abort { reset: true }));
                }
            }
            if !down_done && let Poll::Ready(outcome) = down.as_mut().poll(context) {
                down_done = true;
                if outcome.is_err() {
                    return Poll::Ready(End::Over(Disposition::Abort { reset: true }));
                }
            }
            if up_done && down_done {
                return Poll::Ready(End::Over(Disposition::Close));
            }
            // Not one way after the other: what rests may have to move again so that the other can come to rest.
            if movable
                && (up_done || inbound.at_rest.get())
                && (down_done || outbound.at_rest.get())
                && let Some(successor) = shared.place_elsewhere()
            {
                return Poll::Ready(End::AtRest(successor));
            }
            // Its way was taken out of the configuration: it has a while to end by itself.
            if drained_at.is_none() && (listener.is_closed() || upstream.is_retired()) {
                let due = shared.ring.now() + shared.drain_timeout_ms;
                drained_at = Some(due);
                timer.set_at(due.min(active.get() + idle_ms));
            }
            while timer.poll_elapsed(context).is_ready() {
                let idle = active.get() + idle_ms;
                if drained_at.is_some_and(|due| due <= shared.ring.now()) {
                    return Poll::Ready(End::Over(Disposition::Abort { reset: false }));
                }
                if idle <= shared.ring.now() {
                    counters.count(Counter::TunnelTimeouts);
                    return Poll::Ready(End::Over(Disposition::Abort { reset: false }));
                }
                timer.set_at(drained_at.map_or(idle, |due| due.min(idle)));
            }
            Poll::Pending
        })
        .await
    };
    counters.uncount(Counter::TunnelsOpen);
    let next = match end {
        End::Over(next) => next,
        End::AtRest(successor) => match come_to_rest(client, &mut upstream.stream).await {
            Some(sockets) => {
                let message = HandoverMessage::Tunnel {
                    listener: listener.config().settings.address,
                    cluster: cluster.to_owned(),
                    backend: upstream.backend_id().to_owned(),
                };
                successor.give(shared, message, sockets);
                return Disposition::Gone;
            }
            None => Disposition::Abort { reset: true },
        },
    };
    if next != Disposition::Close {
        upstream.stream.reset_on_close();
    }
    next
}

/// How a tunnel ends in this process.
enum End {
    /// It ends altogether.
    Over(Disposition),
    /// Both ways are at rest, or one is and the other has finished: it moves.
    AtRest(Rc<Successor>),
}

/// Stops receiving on both sides, passes on what came before, and takes both sockets off the ring. What comes later,
/// the end included, stays in the kernel. `None` when a side has broken.
async fn come_to_rest(client: &mut TransportStream, upstream: &mut TransportStream) -> Option<Vec<OwnedFd>> {
    for side in [&*client, &*upstream] {
        side.pause_receive().await;
        side.stop_polls().await;
    }
    for (from, to) in [(&*client, &*upstream), (&*upstream, &*client)] {
        while let Some(buffer) = from.try_receive() {
            to.send(SendBuf::Received(buffer)).await.ok()?;
        }
        to.flush().await.ok()?;
    }
    Some(vec![client.detach()?, upstream.detach()?])
}

/// One of the two ways through a tunnel.
struct Direction<'a> {
    shared: &'a Shared,
    from: &'a TransportStream,
    to: &'a TransportStream,
    /// When something last moved, either way (ms).
    active: &'a Cell<u64>,
    /// The tunnel is to move, and this way has passed on all that came.
    at_rest: Cell<bool>,
    movable: bool,
}

impl<'a> Direction<'a> {
    fn new(
        shared: &'a Shared,
        from: &'a TransportStream,
        to: &'a TransportStream,
        active: &'a Cell<u64>,
        movable: bool,
    ) -> Direction<'a> {
        Direction { shared, from, to, active, at_rest: Cell::new(false), movable }
    }

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
                    if full >= FULL_BEFORE_BULK {
                        full = 0;
                        self.bulk().await?;
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
        self.shared.ring.count_bulk();
        loop {
            let wanted = self.to.bulk_size();
            let Some(buffer) = self.shared.ring.bulk_buffer(wanted.max(self.from.least_bulk())) else {
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

    /// Whether it is to move to another process.
    fn moves(&self) -> bool {
        self.movable && self.shared.connections_move()
    }

    async fn send(&self, data: SendBuf) -> io::Result<()> {
        self.active.set(self.shared.ring.now());
        self.to.send(data).await?;
        self.active.set(self.shared.ring.now());
        Ok(())
    }
}

fn is_full(buffer: &Buf) -> bool {
    buffer.len() >= crate::limits::BUFFER_SIZE as usize
}
