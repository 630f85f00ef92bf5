//! The state of a client connection. `downstream` drives it from accept to close.

use std::{net::IpAddr, rc::Rc};

use super::{
    Shared,
    listener::{ListenerConfig, ListenerHandle},
    successor::{Age, ConnectionOrigin},
};
use crate::{
    observe::Counter,
    ring::{Stream, Timer},
    tls::TlsInfo,
    transfer::ReadBuffer,
    transport::{AddressPair, TransportStream},
    upstream::{Cluster, Upstream},
};

/// A client connection.
pub(crate) struct ClientConnection {
    pub(crate) shared: Rc<Shared>,
    /// Where it came in; the next request looks there for the configuration again.
    pub(crate) listener: Rc<ListenerHandle>,
    pub(crate) client: TransportStream,
    pub(crate) timer: Timer,
    pub(crate) read_buffer: ReadBuffer,
    /// The client's address, once a request has asked for it.
    pub(crate) peer: Option<IpAddr>,
    /// When the head of the first request is due (ms): it counts from accept. 0 = the first has come.
    pub(crate) head_due: u64,
    pub(crate) next: Disposition,
    /// What was said before the first request, on listeners where something is.
    pub(crate) info: Option<Box<ConnectionInfo>>,
    /// The upstream connection that has authenticated this client (NTLM, Negotiate), between two requests.
    bound: Option<Box<BoundUpstream>>,
}

/// An upstream connection that belongs to one client connection, and ends with it.
struct BoundUpstream {
    upstream: Upstream,
    cluster: Rc<Cluster>,
}

/// What was said before the first request.
#[derive(Default)]
pub(crate) struct ConnectionInfo {
    /// In the TLS handshake.
    pub(crate) secured: Option<TlsInfo>,
    /// In a header of the PROXY protocol.
    pub(crate) ends: Option<AddressPair>,
}

/// How a connection goes on after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
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

impl ClientConnection {
    pub(crate) fn new(
        shared: Rc<Shared>,
        listener: Rc<ListenerHandle>,
        client: Stream,
        origin: ConnectionOrigin,
    ) -> ClientConnection {
        shared.note_open();
        let timer = Timer::new(&shared.ring);
        let head_due = match origin.age {
            Age::New => (shared.ring.now() + listener.timeouts(|timeouts| timeouts.request_ms)).max(1),
            Age::Used => 0,
        };
        let info = origin
            .ends
            .map(|ends| Box::new(ConnectionInfo { ends: Some(ends), ..ConnectionInfo::default() }));
        let (read_buffer, peer, next) = (ReadBuffer::default(), None, Disposition::Request);
        ClientConnection {
            shared,
            listener,
            client: client.into(),
            timer,
            read_buffer,
            peer,
            head_due,
            next,
            info,
            bound: None,
        }
    }

    /// Takes the upstream connection that is bound to this one for a request to `cluster`. One that leads elsewhere, or
    /// has ended, is closed: a new connection is not authenticated, and the backend asks for it again.
    pub(super) fn take_bound(&mut self, cluster: &Rc<Cluster>) -> Option<Upstream> {
        let BoundUpstream { upstream, cluster: bound_to } = *self.bound.take()?;
        let usable = Rc::ptr_eq(&bound_to, cluster) && !upstream.is_retired() && upstream.stream.is_quiet();
        usable.then_some(upstream)
    }

    /// Keeps `upstream` for the next request of this client, and for nobody else.
    pub(super) fn bind(&mut self, upstream: Upstream, cluster: &Rc<Cluster>) {
        if !upstream.is_retired() && upstream.stream.is_quiet() {
            if !upstream.is_bound() {
                self.shared.counters.count(Counter::UpstreamBound);
            }
            let (upstream, cluster) = (upstream.bound(), Rc::clone(cluster));
            self.bound = Some(Box::new(BoundUpstream { upstream, cluster }));
        }
    }

    /// True if another process cannot go on with the connection.
    pub(crate) fn is_immovable(&self) -> bool {
        self.client.is_tls() || self.bound.is_some()
    }

    /// Drops a line end behind the last request (RFC 9112 section 2.2): no other request begins with it, so the connection
    /// stays idle. True if nothing is left.
    pub(crate) fn skip_line_end(&mut self) -> bool {
        if self.head_due == 0 && self.read_buffer.bytes() == b"\r\n" {
            self.read_buffer.consume(2);
        }
        self.read_buffer.is_empty()
    }

    pub(crate) fn config(&self) -> Rc<ListenerConfig> {
        self.listener.config()
    }

    /// Whether it ends now, if it is idle.
    pub(crate) fn is_draining(&self) -> bool {
        self.shared.is_draining() || self.listener.is_closed()
    }

    /// Whether it ends with the exchange that it is in: also if it should move to another process and cannot.
    pub(crate) fn is_last(&self) -> bool {
        self.is_draining() || (self.is_immovable() && self.shared.is_handing_over())
    }

    /// From now on deadlines are those of a connection that has just begun.
    pub(crate) fn begin_requests(&mut self) {
        let request_ms = self.listener.timeouts(|timeouts| timeouts.request_ms);
        self.head_due = (self.shared.ring.now() + request_ms).max(1);
    }

    /// The two ends of the connection, as far as they are known.
    pub(crate) fn addresses(&self) -> Option<AddressPair> {
        let info = self.info.as_ref().and_then(|info| info.ends);
        info.or_else(|| {
            Some(AddressPair {
                source: self.client.peer_address()?,
                destination: self.client.local_address()?,
            })
        })
    }

    pub(crate) fn info(&mut self) -> &mut ConnectionInfo {
        self.info.get_or_insert_default()
    }

    pub(crate) fn peer(&mut self) -> Option<IpAddr> {
        if self.peer.is_none() {
            let info = self.info.as_ref().and_then(|info| info.ends).map(|ends| ends.source);
            self.peer =
                info.or_else(|| self.client.peer_address()).map(|address| address.ip().to_canonical());
        }
        self.peer
    }

    /// When the head that begins now is due (ms).
    pub(crate) fn head_due(&self, config: &ListenerConfig) -> u64 {
        match self.head_due {
            0 => self.shared.ring.now() + config.settings.timeouts.request_ms,
            due => due,
        }
    }
}
