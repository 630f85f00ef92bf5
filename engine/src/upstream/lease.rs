//! One upstream connection, leased for one exchange.

use std::{cell::Cell, rc::Rc};

use super::{endpoint::Endpoint, load::InFlight, pool::Pooling};
use crate::{observe::Counter, transport::TransportStream};

/// A connection to an endpoint, in use by one exchange. Dropped, it closes the connection; [`Lease::release`] gives it back
/// to the pool.
pub struct Lease {
    /// The connection.
    pub stream: TransportStream,
    /// It carried an earlier request: it may have died since without our knowing.
    pub reused: bool,
    in_use: InUse,
    /// Which of the endpoints of its cluster it leads to, in their order when it was leased; the highest number: that is not known.
    index: u32,
    /// It began with the address of one client, and is for nobody else.
    private: bool,
    /// It has authenticated one client.
    bound: bool,
}

impl Lease {
    /// A connection to `endpoint`.
    pub fn new(stream: TransportStream, endpoint: Rc<Endpoint>, reused: bool) -> Lease {
        Lease::counted(stream, InUse::new(&endpoint), reused)
    }

    /// A connection that counts already.
    pub(super) fn counted(stream: TransportStream, in_use: InUse, reused: bool) -> Lease {
        let served = &in_use.endpoint.load.served;
        served.set(served.get() + 1);
        Lease { stream, reused, in_use, index: u32::MAX, private: false, bound: false }
    }

    /// This one, to the endpoint at `index` of its cluster.
    #[must_use]
    pub(super) fn at(self, index: usize) -> Lease {
        Lease { index: u32::try_from(index).unwrap_or(u32::MAX), ..self }
    }

    /// It carries no requests any more.
    pub fn become_tunnel(&self) {
        self.in_use.end_request();
    }

    /// This one, for this client only.
    #[must_use]
    pub fn private(self) -> Lease {
        Lease { private: true, ..self }
    }

    /// This one between two requests of the client connection that it is bound to: it may die meanwhile.
    #[must_use]
    pub fn bound(self) -> Lease {
        self.stream.watch();
        self.stream.forget_waker();
        self.in_use.end_request();
        Lease { private: true, bound: true, reused: true, ..self }
    }

    /// True if it is bound to a client connection already.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Which of the endpoints of its cluster that is.
    pub(super) fn index(&self) -> Option<usize> {
        (self.index != u32::MAX).then_some(self.index as usize)
    }

    /// The endpoint that it leads to.
    pub fn endpoint(&self) -> &Rc<Endpoint> {
        &self.in_use.endpoint
    }

    /// Sends the head of a request, and what of its body comes with it; keeps a copy until something else is sent. Nothing
    /// may be in flight.
    pub(crate) fn send_head(&self, head: Vec<u8>) {
        self.in_use.begin_request();
        self.stream.start_send_replayable(head);
    }

    /// What [`Lease::send_head`] sent, to be sent again elsewhere. `None` when it is no longer there.
    pub(crate) fn take_replay(&self) -> Option<Vec<u8>> {
        self.stream.take_replay()
    }

    /// True if the backend was removed from the configuration.
    pub fn is_retired(&self) -> bool {
        self.in_use.endpoint.retired.get()
    }

    /// True if no further request may be sent on this connection: the backend was removed or is maintained, or the session was closed.
    pub fn takes_nothing(&self) -> bool {
        self.is_dismissed() || self.is_retired() || self.in_use.endpoint.verdicts.is_maintained()
    }

    /// True if its session was closed by hand after it had begun: it ends with the exchange that it is in, and a tunnel at once.
    pub fn is_dismissed(&self) -> bool {
        self.in_use.dismissals != self.in_use.endpoint.dismissals.get()
    }

    /// Gives the connection back for the next exchange. Call it when the exchange is complete, both ways, and the backend
    /// keeps the connection open. One with something in flight is closed: a backend that answered without reading all of the
    /// request may never read it.
    pub fn release(self, pooling: &Pooling) {
        let at_rest = self.stream.is_quiet() && !self.stream.is_sending();
        let endpoint = &self.in_use.endpoint;
        if !self.private && at_rest && !self.takes_nothing() {
            endpoint.idle.borrow_mut().put(self.stream, pooling);
        } else {
            pooling.counters.count(Counter::UpstreamDiscarded);
        }
    }
}

/// A connection that counts as used at its endpoint, as long as this lives.
pub(super) struct InUse {
    endpoint: Rc<Endpoint>,
    /// How often sessions of the endpoint had been closed by hand when it began.
    dismissals: u32,
    /// It carries a request.
    request: Cell<bool>,
    /// That it is no more is no news: there was no room for it.
    quiet: Cell<bool>,
}

impl InUse {
    /// One more at `endpoint`, for a request.
    pub(super) fn new(endpoint: &Rc<Endpoint>) -> InUse {
        let InFlight { connections, requests } = endpoint.load.here();
        endpoint.load.set(InFlight { connections: connections + 1, requests: requests + 1 });
        let dismissals = endpoint.dismissals.get();
        InUse { endpoint: Rc::clone(endpoint), dismissals, request: Cell::new(true), quiet: Cell::new(false) }
    }

    /// There was no room for it after all.
    pub(super) fn take_back(self) {
        self.quiet.set(true);
    }

    fn begin_request(&self) {
        if !self.request.replace(true) {
            let here = self.endpoint.load.here();
            self.endpoint.load.set(InFlight { requests: here.requests + 1, ..here });
            let served = &self.endpoint.load.served;
            served.set(served.get() + 1);
        }
    }

    fn end_request(&self) {
        if self.request.replace(false) {
            let here = self.endpoint.load.here();
            self.endpoint.load.set(InFlight { requests: here.requests - 1, ..here });
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let InFlight { connections, requests } = self.endpoint.load.here();
        let requests = requests - u32::from(self.request.get());
        self.endpoint.load.set(InFlight { connections: connections - 1, requests });
        if !self.quiet.get() {
            self.endpoint.on_room();
        }
    }
}
