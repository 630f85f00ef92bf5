//! A listener takes connections, up to the limit.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll, time::Duration};

use super::{Connections, connection, successor::ConnectionOrigin};
use crate::{
    exchange::ListenerHandle,
    observe::Counter,
    ring::{AcceptError, Listener, Source, Stream, Timer},
};

/// How long accepting rests when there are no descriptors, unless a connection closes before (ms).
const EXHAUSTED_PAUSE_MS: u64 = 100;

/// What a new client costs: to begin with, and for its first request.
const CLIENT_COST: Duration = Duration::from_micros(40);

/// Connections that are taken from the queue of a listener that closes: the most that it holds, if the host allows so many.
const MOST_LAST: usize = 4096;

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
            // What is over the limit waits in the socket's queue.
            while connections.is_full() && !ending() {
                connections.connection_closed().await;
            }
            continue;
        }
        let accepted = poll_fn(|context| {
            wake_slot.wait(context);
            match socket.poll_accept(context) {
                Poll::Pending if ending() || listener.rearmed() != rearmed => Poll::Ready(None),
                other => other.map(Some),
            }
        });
        match accepted.await {
            Some(Ok(client)) => {
                connections.shared.ring.connection_admission().reserve(Source::Clients, CLIENT_COST).await;
                spawn(&connections, &listener, client);
            }
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
        socket.finish().take(MOST_LAST).for_each(|client| spawn(&connections, &listener, client));
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

fn spawn(connections: &Rc<Connections>, listener: &Rc<ListenerHandle>, client: Stream) {
    connections.shared.counters.count(Counter::Accepted);
    connections.shared.ring.spawn(connection::serve(
        Rc::clone(connections),
        Rc::clone(listener),
        client,
        ConnectionOrigin::NONE,
    ));
}
