//! The state of a client connection. `downstream` drives it from accept to close.

use std::{net::IpAddr, rc::Rc};

use super::{
    Shared,
    listener::{ListenerConfig, ListenerHandle},
    successor::{Age, ConnectionOrigin},
};
use crate::{
    ring::{Stream, Timer},
    tls::TlsInfo,
    transfer::ReadBuffer,
    transport::{AddressPair, TransportStream},
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
        }
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
        self.is_draining() || (self.client.is_tls() && self.shared.is_handing_over())
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
