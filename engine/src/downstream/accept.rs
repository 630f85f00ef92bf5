//! A socket takes connections, up to the limit.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll};

use super::connection;
use crate::{
    exchange::{ConnectionOrigin, ListenerHandle, Shared},
    observe::Counter,
    ring::{AcceptError, Listener, Stream, Timer},
};

/// How long accepting rests when there are no descriptors, unless a connection closes before (ms).
const EXHAUSTED_PAUSE_MS: u64 = 100;

/// Accepts until the worker drains or the listener closes; then takes what waits in the queue, and ends. When the worker
/// hands over, or the socket is `yielded`, the queue is left to another process.
pub async fn accept(
    shared: Rc<Shared>,
    socket: Listener,
    listener: Rc<ListenerHandle>,
    yielded: Rc<Cell<bool>>,
) {
    shared.listening.set(shared.listening.get() + 1);
    let timer = Timer::new(&shared.ring);
    let leaving = || shared.is_handing_over() || yielded.get();
    let ending = || shared.is_draining() || leaving() || listener.is_closed();
    let mut rearmed = listener.rearmed();
    while !ending() {
        if std::mem::replace(&mut rearmed, listener.rearmed()) != rearmed {
            // Accepting that begins anew looks into the queue first.
            socket.pause().await;
        }
        if shared.open.get() >= shared.max_connections {
            shared.counters.count(Counter::AcceptCapped);
            // What is over the limit waits in the socket's queue.
            socket.pause().await;
            while shared.open.get() >= shared.max_connections && !ending() {
                shared.connection_closed().await;
            }
            continue;
        }
        let accepted = poll_fn(|context| match socket.poll_accept(context) {
            Poll::Pending if ending() || listener.rearmed() != rearmed => Poll::Ready(None),
            other => other.map(Some),
        });
        match accepted.await {
            Some(Ok(client)) => spawn(&shared, &listener, client),
            Some(Err(AcceptError::Exhausted(error))) => {
                if shared.counters.get(Counter::AcceptExhausted) == 0 {
                    tracing::warn!(%error, "cannot accept more connections; raise `ulimit -n` or lower max_connections");
                }
                shared.counters.count(Counter::AcceptExhausted);
                timer.set(EXHAUSTED_PAUSE_MS);
                let _ = timer.limit(shared.connection_closed()).await;
            }
            Some(Err(AcceptError::Transient(error))) => {
                tracing::debug!(%error, "cannot accept a connection now");
                shared.counters.count(Counter::AcceptErrors);
                timer.set(EXHAUSTED_PAUSE_MS);
                timer.elapsed().await;
            }
            Some(Err(AcceptError::Broken(error))) => {
                let address = listener.config().settings.address;
                tracing::error!(%error, %address, "the worker accepts no more, and ends to be replaced");
                shared.fail(format!("cannot accept connections on {address} any more: {error}"));
            }
            None => {}
        }
    }
    let copy = socket.copy();
    let last = if leaving() { socket.leave().await } else { socket.finish().await };
    for client in last {
        spawn(&shared, &listener, client);
    }
    if shared.is_handing_over() {
        match copy {
            Ok(copy) => shared.leave_queue(&listener, copy),
            Err(error) => tracing::warn!(%error, "the successor is not told that a queue is its own now"),
        }
    }
    shared.listening.set(shared.listening.get() - 1);
    drop(yielded);
    shared.wake_waiting();
}

fn spawn(shared: &Rc<Shared>, listener: &Rc<ListenerHandle>, client: Stream) {
    shared.counters.count(Counter::Accepted);
    shared.ring.spawn(connection::serve(
        Rc::clone(shared),
        Rc::clone(listener),
        client,
        ConnectionOrigin::NONE,
    ));
}
