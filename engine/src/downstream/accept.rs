//! A listener takes connections, up to the limit.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll, time::Duration};

use super::{Connections, connection, successor::ConnectionOrigin};
use crate::{
    exchange::ListenerHandle,
    limits,
    observe::Counter,
    ring::{AcceptError, Accepted, Listener, Source, Timer},
};

/// How long accepting rests when there are no descriptors, unless a connection closes before (ms).
const EXHAUSTED_PAUSE_MS: u64 = 100;

/// How often it is looked whether others have to make room, where they do (ms), and, where they do not, whether that has changed.
const EVICTION_PAUSE_MS: u64 = 10;
const FULL_PAUSE_MS: u64 = 1_000;
/// How long accepting rests in an overload, before it is looked whether there still is one (ms).
const OVERLOAD_PAUSE_MS: u64 = 10;

/// What a new client costs: to begin with, and for its first request.
const CLIENT_COST: Duration = Duration::from_micros(40);

/// Connections that are taken from the queue of a listener that closes: as many as it can hold. Those that come meanwhile do not
/// keep it open for ever.
const MOST_LAST: usize = limits::ACCEPT_QUEUE as usize;

/// Accepts until the worker drains or the listener closes; then takes what waits in the queue, and ends. When the worker
/// hands over, or the socket is `yielded`, the queue is left to another process.
pub async fn accept(
    connections: Rc<Connections>,
    socket: Listener,
    listener: Rc<ListenerHandle>,
    yielded: Rc<Cell<bool>>,
) {
    connections.note_listening();
    let timer = Timer::new(&connections.shared.ring);
    let leaving = || connections.is_handing_over() || yielded.get();
    let ending = || connections.is_draining() || leaving() || listener.is_closed();
    let wake_slot = listener.acceptors.register();
    let mut rearmed = listener.rearmed();
    while !ending() {
        if std::mem::replace(&mut rearmed, listener.rearmed()) != rearmed {
            socket.look_again();
        }
        if connections.is_full() {
            connections.shared.counters.count(Counter::AcceptCapped);
            // What is over the limit waits in the socket's queue, but for those that others make room for.
            while connections.is_full() && !ending() {
                if connections.evicts() && socket.has_waiting() {
                    connections.make_room().await;
                }
                if connections.is_full() {
                    timer.set(if connections.evicts() { EVICTION_PAUSE_MS } else { FULL_PAUSE_MS });
                    let _ = timer.limit(connections.connection_closed()).await;
                }
            }
            continue;
        }
        if connections.is_overloaded() {
            connections.shared.counters.count(Counter::AcceptOverloaded);
            while connections.is_overloaded() && !ending() {
                timer.set(OVERLOAD_PAUSE_MS);
                let _ = timer.limit(connections.connection_closed()).await;
            }
            continue;
        }
        let accepted = poll_fn(|context| {
            wake_slot.wait(context);
            // Other listeners accept too.
            let is_held = connections.is_full() || connections.is_overloaded();
            if ending() || listener.rearmed() != rearmed || is_held {
                return Poll::Ready(None);
            }
            socket.poll_accept(context).map(Some)
        });
        match accepted.await {
            Some(Ok(client)) => begin(&connections, &listener, client).await,
            Some(Err(AcceptError::Exhausted(error))) => {
                if connections.shared.counters.get(Counter::AcceptExhausted) == 0 {
                    tracing::warn!(%error, "cannot accept more connections; raise `ulimit -n` or lower max_connections");
                }
                connections.shared.counters.count(Counter::AcceptExhausted);
                timer.set(EXHAUSTED_PAUSE_MS);
                let _ = timer.limit(connections.connection_closed()).await;
            }
            Some(Err(AcceptError::Transient(error))) => {
                tracing::debug!(%error, "cannot accept a connection now");
                connections.shared.counters.count(Counter::AcceptErrors);
                timer.set(EXHAUSTED_PAUSE_MS);
                timer.elapsed().await;
            }
            Some(Err(AcceptError::Broken(error))) => {
                let address = listener.address();
                tracing::error!(%error, %address, "the worker accepts no more, and ends to be replaced");
                connections.fail(format!("cannot accept connections on {address} any more: {error}"));
            }
            None => {}
        }
    }
    let copy = socket.copy();
    if leaving() {
        drop(socket);
    } else {
        for client in socket.finish().take(MOST_LAST) {
            begin(&connections, &listener, client).await;
        }
    }
    if connections.is_handing_over() {
        match copy {
            Ok(copy) => connections.leave_queue(&listener, copy),
            Err(error) => tracing::warn!(%error, "the successor is not told that a queue is its own now"),
        }
    }
    drop(yielded);
    connections.note_not_listening();
}

/// Begins to serve a client, when it is its turn. It counts at once, so that there are never more than may be served.
async fn begin(connections: &Rc<Connections>, listener: &Rc<ListenerHandle>, client: Accepted) {
    let Connections { shared, .. } = &**connections;
    shared.counters.count(Counter::Accepted);
    if listener.refuses(|| client.peer.or_else(|| client.stream.peer_address())) {
        return shared.counters.count(Counter::SourcesRefused);
    }
    let origin = ConnectionOrigin { peer: client.peer, ..ConnectionOrigin::NONE };
    let serve = connection::serve(Rc::clone(connections), Rc::clone(listener), client.stream, origin, None);
    shared.ring.connection_admission().reserve(Source::Clients, CLIENT_COST).await;
    shared.ring.spawn(serve);
}
