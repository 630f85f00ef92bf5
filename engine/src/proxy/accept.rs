//! A listener takes connections, up to the limit.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll};

use super::{Front, Shared, connection, hand_over::Past};
use crate::{
    observe::Counter,
    ring::{AcceptError, Listener, Stream, Timer},
};

/// How long accepting rests when there are no descriptors, unless a connection closes before (ms).
const EXHAUSTED_PAUSE_MS: u64 = 100;

/// Accepts until the worker drains or the front closes; then takes what waits in the queue, and ends. When the worker
/// hands over, or the socket is `yielded`, the queue is left to another process.
pub async fn accept(shared: Rc<Shared>, listener: Listener, front: Rc<Front>, yielded: Rc<Cell<bool>>) {
    shared.listening.set(shared.listening.get() + 1);
    let timer = Timer::new(&shared.ring);
    let leaving = || shared.is_handing_over() || yielded.get();
    let ending = || shared.is_draining() || leaving() || front.is_closed();
    let mut stirred = front.stirred();
    while !ending() {
        if std::mem::replace(&mut stirred, front.stirred()) != stirred {
            // Accepting that begins anew looks into the queue first.
            listener.pause().await;
        }
        if shared.open.get() >= shared.max_connections {
            shared.counters.count(Counter::AcceptCapped);
            // What is over the limit waits in the socket's queue.
            listener.pause().await;
            while shared.open.get() >= shared.max_connections && !ending() {
                shared.connection_closed().await;
            }
            continue;
        }
        let accepted = poll_fn(|context| match listener.poll_accept(context) {
            Poll::Pending if ending() || front.stirred() != stirred => Poll::Ready(None),
            other => other.map(Some),
        });
        match accepted.await {
            Some(Ok(client)) => spawn(&shared, &front, client),
            Some(Err(AcceptError::Exhausted(error))) => {
                if shared.counters.get(Counter::AcceptExhausted) == 0 {
                    tracing::warn!(%error, "cannot accept more connections; raise `ulimit -n` or lower max_connections");
                }
                shared.counters.count(Counter::AcceptExhausted);
                timer.set(EXHAUSTED_PAUSE_MS);
                let _ = timer.limit(shared.connection_closed()).await;
            }
            Some(Err(AcceptError::Broken(error))) => {
                tracing::error!(%error, "a listening socket failed; the worker stops to be replaced");
                shared.drain();
            }
            None => {}
        }
    }
    let copy = listener.copy();
    let last = if leaving() { listener.leave().await } else { listener.finish().await };
    for client in last {
        spawn(&shared, &front, client);
    }
    if shared.is_handing_over() {
        match copy {
            Ok(copy) => shared.leave_queue(&front, copy),
            Err(error) => tracing::warn!(%error, "the successor is not told that a queue is its own now"),
        }
    }
    shared.listening.set(shared.listening.get() - 1);
    drop(yielded);
    shared.wake_waiting();
}

fn spawn(shared: &Rc<Shared>, front: &Rc<Front>, client: Stream) {
    shared.counters.count(Counter::Accepted);
    shared.ring.spawn(connection::serve(Rc::clone(shared), Rc::clone(front), client, Past::NONE));
}
