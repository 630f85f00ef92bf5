//! The state of a client connection; `connection` drives it from accept to close.

use std::{net::IpAddr, rc::Rc};

use super::{
    Connections,
    successor::{Age, ConnectionOrigin},
};
use crate::{
    exchange::{Disposition, ListenerConfig, ListenerHandle},
    observe::Counter,
    quota::Place,
    ring::{Stream, Timer},
    tls::TlsInfo,
    transfer::ReadBuffer,
    transport::{AddressPair, TransportStream},
    upstream::{Cluster, Lease},
};

/// A client connection.
pub(super) struct ClientConnection {
    pub(super) connections: Rc<Connections>,
    /// Where it came in; the next request looks there for the configuration again.
    pub(super) listener: Rc<ListenerHandle>,
    pub(super) stream: TransportStream,
    pub(super) timer: Timer,
    pub(super) read_buffer: ReadBuffer,
    /// The client's address, once a request has asked for it.
    pub(super) peer: Option<IpAddr>,
    /// When the head of the first request is due (ms): it counts from accept. 0 = the first has come.
    pub(super) head_due: u64,
    pub(super) next: Disposition,
    /// What few connections have to remember, apart, so that the others stay small.
    pub(super) info: Option<Box<ConnectionInfo>>,
}

/// An upstream connection that belongs to one client connection, and ends with it.
struct BoundLease {
    lease: Lease,
    cluster: Rc<Cluster>,
}

/// TLS and PROXY-protocol metadata learned before the first request, on listeners that have a preamble; and what was
/// authenticated.
#[derive(Default)]
pub(super) struct ConnectionInfo {
    /// In the TLS handshake.
    pub(super) tls: Option<TlsInfo>,
    /// In a header of the PROXY protocol.
    pub(super) addresses: Option<AddressPair>,
    /// The upstream connection that has authenticated this client (NTLM, Negotiate), between two requests.
    bound: Option<BoundLease>,
    /// The place that it has at the cluster that it asked last, where clients have a limit.
    place: Option<Place>,
}

impl ClientConnection {
    pub(super) fn new(
        connections: Rc<Connections>,
        listener: Rc<ListenerHandle>,
        client: Stream,
        origin: ConnectionOrigin,
    ) -> ClientConnection {
        connections.note_open();
        let timer = Timer::new(&connections.shared.ring);
        let head_due = match origin.age {
            Age::New => {
                (connections.shared.ring.now() + listener.timeouts(|timeouts| timeouts.request_ms)).max(1)
            }
            Age::Used => 0,
        };
        let info = origin.ends.map(|addresses| {
            Box::new(ConnectionInfo { addresses: Some(addresses), ..ConnectionInfo::default() })
        });
        // Where a header of the PROXY protocol comes first, that says who it is.
        let peer = origin.peer.filter(|_| !listener.config().settings.expect_proxy);
        let peer = peer.map(|address| address.ip().to_canonical());
        let (read_buffer, next) = (ReadBuffer::default(), Disposition::Request);
        ClientConnection {
            connections,
            listener,
            stream: client.into(),
            timer,
            read_buffer,
            peer,
            head_due,
            next,
            info,
        }
    }

    /// Takes the upstream connection that is bound to this one for a request to `cluster`. One that leads elsewhere, or
    /// has ended, is closed: a new connection is not authenticated, and the backend asks for it again.
    pub(super) fn take_bound(&mut self, cluster: &Rc<Cluster>) -> Option<Lease> {
        let BoundLease { lease, cluster: bound_to } = self.info.as_mut()?.bound.take()?;
        let usable = Rc::ptr_eq(&bound_to, cluster) && !lease.takes_nothing() && lease.stream.is_quiet();
        usable.then_some(lease)
    }

    /// Keeps `lease` for the next request of this client, and for nobody else.
    pub(super) fn bind(&mut self, lease: Lease, cluster: &Rc<Cluster>) {
        if !lease.takes_nothing() && lease.stream.is_quiet() {
            if !lease.is_bound() {
                self.connections.shared.counters.count(Counter::UpstreamBound);
            }
            let (lease, cluster) = (lease.bound(), Rc::clone(cluster));
            self.info().bound = Some(BoundLease { lease, cluster });
        }
    }

    /// The place that it has at the cluster that it asked last, where clients have a limit.
    pub(super) fn place(&self) -> Option<&Place> {
        self.info.as_ref().and_then(|info| info.place.as_ref())
    }

    /// Gives it another place, or none.
    pub(super) fn set_place(&mut self, place: Option<Place>) {
        if place.is_some() || self.info.is_some() {
            self.info().place = place;
        }
    }

    /// True if another process cannot go on with the connection.
    pub(super) fn is_immovable(&self) -> bool {
        self.stream.is_tls() || self.info.as_ref().is_some_and(|info| info.bound.is_some())
    }

    /// True if the session of the upstream connection that is bound to this one was closed by hand: this one ends, too.
    pub(super) fn is_dismissed(&self) -> bool {
        let bound = self.info.as_ref().and_then(|info| info.bound.as_ref());
        bound.is_some_and(|bound| bound.lease.is_dismissed())
    }

    /// Drops a line end behind the last request (RFC 9112 section 2.2): no other request begins with it, so the connection
    /// stays idle. True if nothing is left.
    pub(super) fn skip_line_end(&mut self) -> bool {
        if self.head_due == 0 && self.read_buffer.bytes() == b"\r\n" {
            self.read_buffer.consume(2);
        }
        self.read_buffer.is_empty()
    }

    /// When the connection closes if it is idle then (ms): the worker drains, or its listener was removed.
    pub(super) fn idle_close_due(&self) -> Option<u64> {
        match (self.connections.idle_close_due(), self.listener.idle_close_due()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// True if the connection serves at most the exchange that it is in, or one more whose request is on its way: the worker
    /// drains or its listener was removed.
    pub(super) fn is_draining(&self) -> bool {
        self.idle_close_due().is_some()
    }

    /// True if the connection ends with the exchange that it is in: also if it should move to another process and cannot.
    pub(super) fn is_last(&self) -> bool {
        self.is_draining() || (self.is_immovable() && self.connections.is_handing_over())
    }

    /// From now on deadlines are those of a connection that has just begun.
    pub(super) fn begin_requests(&mut self) {
        let request_ms = self.listener.timeouts(|timeouts| timeouts.request_ms);
        self.head_due = (self.connections.shared.ring.now() + request_ms).max(1);
    }

    /// The two ends of the connection, as far as they are known.
    pub(super) fn addresses(&self) -> Option<AddressPair> {
        let info = self.info.as_ref().and_then(|info| info.addresses);
        info.or_else(|| {
            Some(AddressPair {
                source: self.stream.peer_address()?,
                destination: self.stream.local_address()?,
            })
        })
    }

    pub(super) fn info(&mut self) -> &mut ConnectionInfo {
        self.info.get_or_insert_default()
    }

    pub(super) fn peer(&mut self) -> Option<IpAddr> {
        if self.peer.is_none() {
            let info = self.info.as_ref().and_then(|info| info.addresses).map(|pair| pair.source);
            self.peer =
                info.or_else(|| self.stream.peer_address()).map(|address| address.ip().to_canonical());
        }
        self.peer
    }

    /// When the head that begins now is due (ms).
    pub(super) fn head_due(&self, config: &ListenerConfig) -> u64 {
        match self.head_due {
            0 => self.connections.shared.ring.now() + config.settings.timeouts.request_ms,
            due => due,
        }
    }
}
