//! A client connection waits for a request, is served, waits again; at last it lingers and closes.
//!
//! Most connections are idle most of the time, so what a waiting connection keeps is small: everything that a
//! request needs is boxed in `exchange` and gone when it ends.

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    rc::Rc,
    task::Poll,
};

use super::{
    Front, Shared, Site,
    exchange::exchange,
    hand_over::{Age, Parcel, Past},
    inbox::Inbox,
    prologue, tunnel,
};
use crate::{
    cluster::Upstream,
    limits,
    observe::Counter,
    proxy_header::Ends,
    ring::{Received, Stream, Timer},
    tls::{Secured, Wire},
};

/// A client connection.
pub(super) struct Connection {
    pub(super) shared: Rc<Shared>,
    /// Where it came in; the next request looks there for the configuration again.
    pub(super) front: Rc<Front>,
    pub(super) client: Wire,
    pub(super) timer: Timer,
    pub(super) inbox: Inbox,
    /// The client's address, once a request has asked for it.
    peer: Option<IpAddr>,
    /// When the head of the first request is due (ms): it counts from accept. 0 = the first has come.
    head_due: u64,
    next: Next,
    /// What was said before the first request, on listeners where something is.
    pub(super) told: Option<Box<Told>>,
}

/// What was said before the first request.
#[derive(Default)]
pub(super) struct Told {
    /// In the TLS handshake.
    pub(super) secured: Option<Secured>,
    /// In a header of the PROXY protocol.
    pub(super) ends: Option<Ends>,
}

/// How a connection goes on after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// With another request.
    Request,
    /// It ends; the client gets everything that was sent.
    Close,
    /// As `Close`, and the client has said that this was its last request.
    Finish,
    /// It has gone to another process already.
    Gone,
    /// It ends at once: the client has gone, or must see that what it got is not the whole.
    Abort {
        /// Nothing but a reset shows that.
        reset: bool,
    },
}

/// What waiting for a request has brought.
enum Waited {
    /// Its first bytes.
    Bytes,
    /// There will be none.
    Nothing,
    /// None yet, and there is a process that goes on from here.
    Successor,
}

impl Connection {
    fn new(shared: Rc<Shared>, front: Rc<Front>, client: Stream, past: Past) -> Connection {
        shared.note_open();
        let timer = Timer::new(&shared.ring);
        let head_due = match past.age {
            Age::New => (shared.ring.now() + front.timeouts(|timeouts| timeouts.request_ms)).max(1),
            Age::Used => 0,
        };
        let told = past.ends.map(|ends| Box::new(Told { ends: Some(ends), ..Told::default() }));
        let (inbox, peer, next) = (Inbox::default(), None, Next::Request);
        Connection { shared, front, client: client.into(), timer, inbox, peer, head_due, next, told }
    }

    pub(super) fn site(&self) -> Rc<Site> {
        self.front.site()
    }

    /// Whether it ends now, if it is idle.
    fn is_draining(&self) -> bool {
        self.shared.is_draining() || self.front.is_closed()
    }

    /// Whether it ends with the exchange that it is in: also if it should move to another process and cannot.
    pub(super) fn is_last(&self) -> bool {
        self.is_draining() || (self.client.is_tls() && self.shared.is_handing_over())
    }

    /// From now on deadlines are those of a connection that has just begun.
    pub(super) fn begin_requests(&mut self) {
        let request_ms = self.front.timeouts(|timeouts| timeouts.request_ms);
        self.head_due = (self.shared.ring.now() + request_ms).max(1);
    }

    /// The two ends of the connection, as far as they are known.
    pub(super) fn ends(&self) -> Option<Ends> {
        let told = self.told.as_ref().and_then(|told| told.ends);
        told.or_else(|| {
            Some(Ends { source: self.client.peer_address()?, destination: self.client.local_address()? })
        })
    }

    pub(super) fn told(&mut self) -> &mut Told {
        self.told.get_or_insert_default()
    }

    pub(super) fn peer(&mut self) -> Option<IpAddr> {
        if self.peer.is_none() {
            let told = self.told.as_ref().and_then(|told| told.ends).map(|ends| ends.source);
            self.peer =
                told.or_else(|| self.client.peer_address()).map(|address| address.ip().to_canonical());
        }
        self.peer
    }

    /// When the head that begins now is due (ms).
    pub(super) fn head_due(&self, site: &Site) -> u64 {
        match self.head_due {
            0 => self.shared.ring.now() + site.settings.timeouts.request_ms,
            due => due,
        }
    }

    /// Waits for the first bytes of a request, unless there will be none.
    async fn wait(&mut self) -> Waited {
        if let Some(buffer) = self.client.try_receive() {
            self.inbox.push(buffer);
            return Waited::Bytes;
        }
        match self.head_due {
            0 => self.timer.set(self.front.timeouts(|timeouts| timeouts.front_ms)),
            due => self.timer.set_at(due),
        }
        poll_fn(|context| match self.client.poll_receive(context) {
            Poll::Ready(Ok(Received::Data(buffer))) => {
                self.inbox.push(buffer);
                Poll::Ready(Waited::Bytes)
            }
            Poll::Ready(Ok(Received::Finished) | Err(_)) => Poll::Ready(Waited::Nothing),
            Poll::Pending if self.is_draining() => Poll::Ready(Waited::Nothing),
            Poll::Pending if self.shared.connections_move() && !self.client.is_tls() => {
                Poll::Ready(Waited::Successor)
            }
            Poll::Pending => self.timer.poll_elapsed(context).map(|_| {
                self.shared.counters.count(Counter::IdleTimeouts);
                Waited::Nothing
            }),
        })
        .await
    }

    /// Sees to it that nothing is in flight, and gives the connection to the process that goes on with it. Whatever comes
    /// from the client meanwhile is served here first; what comes later stays in the kernel.
    async fn move_away(&mut self) -> Next {
        let Some(successor) = self.shared.place_elsewhere() else { return Next::Request };
        self.client.pause_receive().await;
        if let Some(buffer) = self.client.try_receive() {
            self.inbox.push(buffer);
            return Next::Request;
        }
        let front_ms = self.front.timeouts(|timeouts| timeouts.front_ms);
        let flushed = super::relay::flush(&self.client, &self.timer, front_ms).await;
        if flushed.is_err() || !self.client.is_quiet() {
            return Next::Abort { reset: false };
        }
        let Some(client) = self.client.detach() else { return Next::Abort { reset: false } };
        let age = if self.head_due == 0 { Age::Used } else { Age::New };
        // One that is handed over waits for a request: whatever comes before has come.
        let ends = self.told.as_ref().and_then(|told| told.ends);
        let parcel = Parcel::Idle { listener: self.front.site().settings.address, age, begun: true, ends };
        successor.give(&self.shared, parcel, vec![client]);
        Next::Gone
    }

    /// Ends the connection as `next` says.
    async fn end(&self) {
        match self.next {
            Next::Abort { reset: true } => self.client.reset_on_close(),
            Next::Close | Next::Finish => self.finish().await,
            Next::Abort { reset: false } | Next::Gone | Next::Request => {}
        }
    }

    /// Everything has been said: lets the client have it all before the connection closes.
    async fn finish(&self) {
        let front_ms = self.front.timeouts(|timeouts| timeouts.front_ms);
        if super::relay::flush(&self.client, &self.timer, front_ms).await.is_err() {
            return;
        }
        // RFC 9112 section 9.6 asks for a close in stages because of what a client may still send; one that has said
        // that it sends no more must not (same section).
        if self.next == Next::Finish && self.inbox.is_empty() {
            if self.client.is_tls() {
                self.timer.set(limits::LINGER_TIMEOUT_MS);
                let _ = self.timer.limit(self.client.shutdown_write()).await;
            }
            return;
        }
        // Closing with unread bytes would reset the connection, and the client might lose the answer.
        self.timer.set(limits::LINGER_TIMEOUT_MS);
        let goodbye = async {
            self.client.shutdown_write().await;
            while let Ok(Received::Data(_)) = self.client.receive().await {}
        };
        let _ = self.timer.limit(goodbye).await;
    }
}

/// Serves a connection until it ends.
pub(super) fn serve(
    shared: Rc<Shared>,
    front: Rc<Front>,
    client: Stream,
    past: Past,
) -> impl Future<Output = ()> {
    let mut connection = Connection::new(shared, front, client, past);
    // A block, not a function: its arguments would stay in the future beside the connection made from them.
    let begins = !past.begun && connection.front.site().has_prologue();
    async move {
        if begins {
            connection.next = Box::pin(prologue::begin(&mut connection)).await;
        }
        while connection.next == Next::Request {
            let waited = if connection.inbox.is_empty() { connection.wait().await } else { Waited::Bytes };
            connection.next = match waited {
                Waited::Bytes => {
                    let next = Box::pin(exchange(&mut connection)).await;
                    // From now on it is idle between requests.
                    connection.head_due = 0;
                    next
                }
                // Idle, and nothing on its way out that a close could cut, unless the last answer still is.
                Waited::Nothing if connection.client.is_sending() => Next::Close,
                // Over TLS it ends with a word; and a client that was not asked may just be saying something.
                Waited::Nothing if connection.client.is_tls() && connection.is_draining() => Next::Close,
                Waited::Nothing if connection.client.is_tls() => Next::Finish,
                Waited::Nothing => Next::Abort { reset: false },
                Waited::Successor => Box::pin(connection.move_away()).await,
            };
        }
        match connection.next {
            Next::Abort { reset: true } | Next::Close | Next::Finish => Box::pin(connection.end()).await,
            Next::Abort { reset: false } | Next::Gone | Next::Request => {}
        }
        let shared = Rc::clone(&connection.shared);
        // The descriptor is given up before the count goes down: who waits for it can have it.
        drop(connection);
        shared.note_closed();
    }
}

/// Goes on with a tunnel that another process began.
pub(super) fn resume_tunnel(
    shared: Rc<Shared>,
    front: Rc<Front>,
    client: Stream,
    cluster: String,
    upstream: Upstream,
) -> impl Future<Output = ()> {
    let mut connection = Connection::new(shared, front, client, Past::USED);
    async move {
        let idle_ms = connection.front.timeouts(|timeouts| timeouts.tunnel_ms);
        let tunnel = tunnel::run(&mut connection, &cluster, idle_ms, upstream, Inbox::default());
        connection.next = Box::pin(tunnel).await;
        connection.end().await;
        let shared = Rc::clone(&connection.shared);
        drop(connection);
        shared.note_closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes of the futures that a function of one or of four arguments returns.
    fn size_of_one<'a, F>(_: impl FnOnce(&'a mut Connection) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_four<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_takes_little_memory() {
        let size = size_of_four(serve);
        assert!(size <= 160, "{size} bytes");
    }

    #[test]
    fn what_a_request_takes_fits_the_allocators_fast_path() {
        // The largest that glibc keeps in its per-thread cache is 1,032 bytes.
        let size = size_of_one(exchange);
        assert!(size <= 1_032, "{size} bytes");
    }
}
