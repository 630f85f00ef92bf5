//! A client connection waits for a request, is served, waits again; at last it lingers and closes.
//!
//! Most connections are idle most of the time, so what a waiting connection keeps is small: everything that a
//! request needs is boxed in `exchange` and gone when it ends.

use std::{
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Poll},
};

use super::{
    Connections,
    client::ClientConnection,
    preamble,
    successor::{Age, ConnectionOrigin, HandoverMessage, HeldPlace},
    tunnel,
};
use crate::{
    exchange::{Disposition, Ended, Event, ListenerHandle, Upgrade, exchange},
    limits,
    observe::Counter,
    quota::Place,
    ring::{Recv, Stream},
    transfer::{ReadBuffer, flush},
    upstream::Lease,
};

/// What waiting for a request has brought.
enum Waited {
    /// Its first bytes.
    Bytes,
    /// There will be none.
    Nothing,
    /// None yet, and there is a process that goes on from here.
    Successor,
}

impl ClientConnection {
    /// Waits for the first bytes of a request, unless there will be none.
    async fn wait(&mut self) -> Waited {
        if let Some(buffer) = self.stream.try_receive() {
            self.read_buffer.push(buffer);
            if !self.skip_line_end() {
                return Waited::Bytes;
            }
        }
        match self.head_due {
            0 => self.timer.set(self.listener.timeouts(|timeouts| timeouts.front_ms)),
            due => self.timer.set_at(due),
        }
        poll_fn(|context| {
            loop {
                return match self.stream.poll_receive(context) {
                    Poll::Ready(Ok(Recv::Data(buffer))) => {
                        self.read_buffer.push(buffer);
                        if self.skip_line_end() {
                            continue;
                        }
                        Poll::Ready(Waited::Bytes)
                    }
                    Poll::Ready(Ok(Recv::Finished) | Err(_)) => Poll::Ready(Waited::Nothing),
                    Poll::Pending if self.is_draining() => {
                        self.poll_idle_close(context).map(|()| Waited::Nothing)
                    }
                    Poll::Pending if self.is_dismissed() => Poll::Ready(Waited::Nothing),
                    Poll::Pending if self.connections.connections_move() && !self.is_immovable() => {
                        Poll::Ready(Waited::Successor)
                    }
                    Poll::Pending
                        if self.connections.eviction.asks()
                            && self.connections.eviction.answer(self.idle_since()) =>
                    {
                        self.connections.shared.counters.count(Counter::Evicted);
                        Poll::Ready(Waited::Nothing)
                    }
                    Poll::Pending => self.timer.poll_elapsed(context).map(|_| {
                        self.connections.shared.counters.count(Counter::IdleTimeouts);
                        Waited::Nothing
                    }),
                };
            }
        })
        .await
    }

    /// Since when it waits (ms).
    fn idle_since(&self) -> u64 {
        let (front_ms, request_ms) = self.listener.timeouts(|it| (it.front_ms, it.request_ms));
        match self.head_due {
            0 => self.timer.due().unwrap_or(0).saturating_sub(front_ms),
            due => due.saturating_sub(request_ms),
        }
    }

    /// Ready when an idle connection that drains has waited long enough for a request that is on its way.
    fn poll_idle_close(&self, context: &Context<'_>) -> Poll<()> {
        let due = self.idle_close_due().unwrap_or_default();
        let due = if self.head_due == 0 { due } else { due.min(self.head_due) };
        if due <= self.connections.shared.ring.now() {
            return Poll::Ready(());
        }
        self.timer.set_at(due);
        self.timer.poll_elapsed(context).map(|_| ())
    }

    /// Sees to it that nothing is in flight, and gives the connection to the process that goes on with it. Whatever comes
    /// from the client meanwhile is served here first; what comes later stays in the kernel.
    async fn move_away(&mut self) -> Event {
        let Some(successor) = self.connections.place_elsewhere() else { return Event::StaysHere };
        self.stream.pause_receive().await;
        self.stream.stop_polls().await;
        if let Some(buffer) = self.stream.try_receive() {
            self.read_buffer.push(buffer);
            return Event::StaysHere;
        }
        let front_ms = self.listener.timeouts(|timeouts| timeouts.front_ms);
        let flushed = flush(&self.stream, &self.timer, front_ms).await;
        if flushed.is_err() || !self.stream.is_quiet() {
            return Event::PeerGone;
        }
        let Some(client) = self.stream.detach() else { return Event::PeerGone };
        let age = if self.head_due == 0 { Age::Used } else { Age::New };
        // One that is handed over waits for a request: whatever comes before has come.
        let ends = self.info.as_ref().and_then(|info| info.addresses);
        let (listener, place) = (self.listener.address(), HeldPlace::of(self.place()));
        let message = HandoverMessage::Idle { listener, age, begun: true, ends, place };
        successor.give(&self.connections, message, vec![client]);
        Event::Moved
    }

    /// Ends the connection as `next` says.
    async fn end(&self) {
        match self.next {
            Disposition::Abort { reset: true } => self.stream.reset_on_close(),
            Disposition::Close | Disposition::Linger | Disposition::Finish => self.finish().await,
            Disposition::Abort { reset: false } | Disposition::Gone | Disposition::Request => {}
        }
    }

    /// Everything has been said: lets the client have it all before the connection closes.
    async fn finish(&self) {
        let front_ms = self.listener.timeouts(|timeouts| timeouts.front_ms);
        if flush(&self.stream, &self.timer, front_ms).await.is_err() {
            return;
        }
        // RFC 9112 section 9.6 asks for a close in stages because of what a client may still send; one that has said
        // that it sends no more must not (same section).
        if self.next == Disposition::Finish && self.read_buffer.is_empty() {
            // RFC 9112 section 9.8: closure is announced to TLS.
            if self.stream.is_tls() {
                self.timer.set(limits::LINGER_TIMEOUT_MS);
                let _ = self.timer.limit(self.stream.shutdown_write()).await;
            }
            return;
        }
        // Closing with unread bytes would reset the connection, and the client might lose the answer.
        let (time_ms, idle_ms) = match self.next {
            Disposition::Linger => self.listener.timeouts(|it| (it.lingering_ms, it.lingering_idle_ms)),
            _ => (limits::LINGER_TIMEOUT_MS, limits::LINGER_TIMEOUT_MS),
        };
        let ring = &self.connections.shared.ring;
        let mut due = ring.now() + time_ms;
        self.timer.set(limits::LINGER_TIMEOUT_MS);
        if self.timer.limit(self.stream.shutdown_write()).await.is_err() {
            return;
        }
        loop {
            if self.is_draining() {
                // A stop does not wait for an upload that nobody reads.
                due = due.min(ring.now() + limits::LINGER_TIMEOUT_MS);
            }
            self.timer.set_at(due.min(ring.now() + idle_ms));
            let more = self.timer.limit(self.stream.discard()).await;
            if more != Ok(true) || ring.now() >= due {
                return;
            }
        }
    }
}

/// Serves a connection until it ends.
pub(super) fn serve(
    connections: Rc<Connections>,
    listener: Rc<ListenerHandle>,
    client: Stream,
    origin: ConnectionOrigin,
    place: Option<Place>,
) -> impl Future<Output = ()> {
    let mut connection = ClientConnection::new(connections, listener, client, origin);
    connection.set_place(place);
    // A block, not a function: its arguments would stay in the future beside the connection made from them.
    let begins = !origin.begun && connection.listener.config().has_preamble();
    async move {
        if begins {
            connection.next = Disposition::after(Box::pin(preamble::begin(&mut connection)).await);
        }
        // RFC 9112 section 9.3.2: requests are served one after the other, so responses leave in their order.
        while connection.next == Disposition::Request {
            let waited = if connection.skip_line_end() { connection.wait().await } else { Waited::Bytes };
            connection.next = match waited {
                Waited::Bytes => Box::pin(serve_request(&mut connection)).await,
                Waited::Nothing => Disposition::after(Event::IdleEnd {
                    sending: connection.stream.is_sending(),
                    tls: connection.stream.is_tls(),
                    draining: connection.is_draining() || connection.is_dismissed(),
                }),
                Waited::Successor => Disposition::after(Box::pin(connection.move_away()).await),
            };
        }
        match connection.next {
            Disposition::Abort { reset: true }
            | Disposition::Close
            | Disposition::Linger
            | Disposition::Finish => {
                Box::pin(connection.end()).await;
            }
            Disposition::Abort { reset: false } | Disposition::Gone | Disposition::Request => {}
        }
        close(connection);
    }
}

/// Serves one request, and the tunnel that may follow it.
async fn serve_request(connection: &mut ClientConnection) -> Disposition {
    let ended = exchange(connection).await;
    // From now on it is idle between requests.
    connection.head_due = 0;
    match ended {
        Ended::Goes(disposition) => disposition,
        Ended::Upgraded(upgrade) => Disposition::after(Box::pin(serve_tunnel(connection, upgrade)).await),
    }
}

async fn serve_tunnel(connection: &mut ClientConnection, upgrade: Box<Upgrade>) -> Event {
    let Upgrade { lease, cluster, idle_ms, early_tunnel_data } = *upgrade;
    tunnel::run(connection, &cluster.name, idle_ms, lease, early_tunnel_data).await
}

/// Goes on with a tunnel that another process began.
pub(super) fn resume_tunnel(
    connections: Rc<Connections>,
    listener: Rc<ListenerHandle>,
    client: Stream,
    cluster: String,
    lease: Lease,
    place: Option<Place>,
) -> impl Future<Output = ()> {
    let mut connection = ClientConnection::new(connections, listener, client, ConnectionOrigin::USED);
    connection.set_place(place);
    async move {
        let idle_ms = connection.listener.timeouts(|timeouts| timeouts.tunnel_ms);
        let tunnel = tunnel::run(&mut connection, &cluster, idle_ms, lease, ReadBuffer::default());
        connection.next = Disposition::after(Box::pin(tunnel).await);
        connection.end().await;
        close(connection);
    }
}

fn close(connection: ClientConnection) {
    let connections = Rc::clone(&connection.connections);
    // The descriptor is given up before the count goes down: who waits for it can have it.
    drop(connection);
    connections.note_closed();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes of the futures that a function of one or of five arguments returns.
    fn size_of_one<'a, F>(_: impl FnOnce(&'a mut ClientConnection) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_five<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_takes_little_memory() {
        let size = size_of_five(serve);
        assert!(size <= 152, "{size} bytes");
    }

    #[test]
    fn what_a_request_takes_fits_the_allocators_fast_path() {
        // The largest that glibc keeps in its per-thread cache is 1,032 bytes.
        let size = size_of_one(serve_request);

        assert!(size <= 1_032, "{size} bytes");
    }
}
