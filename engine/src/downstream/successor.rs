//! The process that takes this one's place, and what it is given: sockets, each with what has to be known of it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use super::Connections;
use crate::{
    observe::Counter,
    quota::Place,
    ring::{Ring, Role, Stream, send_descriptors},
    transport::AddressPair,
    upstream::{Cluster, Pooling},
};

/// Whether a connection has had a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Age {
    /// It waits for its first.
    New,
    /// It is idle between two.
    Used,
}

/// What has been on a connection before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectionOrigin {
    pub(super) age: Age,
    /// A header of the PROXY protocol has come, where one has to.
    pub(super) begun: bool,
    /// Whom it has named.
    pub(super) ends: Option<AddressPair>,
    /// Who has connected, if that is known without asking.
    pub(super) peer: Option<SocketAddr>,
}

impl ConnectionOrigin {
    /// Nothing.
    pub(super) const NONE: ConnectionOrigin =
        ConnectionOrigin { age: Age::New, begun: false, ends: None, peer: None };
    /// A request at least.
    pub(super) const USED: ConnectionOrigin =
        ConnectionOrigin { age: Age::Used, begun: true, ends: None, peer: None };
}

/// What moves with the sockets, as JSON.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverMessage {
    /// A connection without a request: one socket.
    Idle {
        /// Of its listener.
        listener: SocketAddr,
        /// Whether it has had a request.
        age: Age,
        // Programs before these do not know the next two, and have no need to.
        /// A header of the PROXY protocol has come, where one has to.
        #[serde(default)]
        begun: bool,
        /// Whom it has named.
        #[serde(default)]
        ends: Option<AddressPair>,
        /// Where it counts against a limit of its client.
        #[serde(default)]
        place: Option<HeldPlace>,
    },
    /// The process before accepts no more: one listening socket.
    Queue {
        /// Of which listener.
        listener: SocketAddr,
    },
    /// A tunnel at rest: the client's socket, then the backend's.
    Tunnel {
        /// Of its listener.
        listener: SocketAddr,
        /// Where the backend belongs.
        cluster: String,
        /// Its name there.
        backend: String,
        /// Where it counts against a limit of its client.
        #[serde(default)]
        place: Option<HeldPlace>,
    },
}

/// A place of [`Place`], as it is told to the process that takes it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPlace {
    cluster: String,
    client: Option<IpAddr>,
}

impl HeldPlace {
    /// Longest name of a cluster that is told: it has to go into a message (bytes).
    const LONGEST_NAME: usize = 256;

    /// That of a connection which has one.
    pub(super) fn of(place: Option<&Place>) -> Option<HeldPlace> {
        let Place { cluster, client, .. } = place.filter(|it| it.cluster.len() <= HeldPlace::LONGEST_NAME)?;
        Some(HeldPlace { cluster: cluster.clone(), client: *client })
    }

    /// The same in this process, where the cluster still has limits. There is one in any case: the client had it before.
    pub(super) fn take(&self, cluster: &Cluster, pooling: &Pooling) -> Option<Place> {
        let caps = cluster.caps(pooling)?.without_end();
        caps.take(&self.cluster, self.client, pooling.sources.as_ref()?)
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }
}

impl HandoverMessage {
    /// Reads the message `text`, which came with this many sockets.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str, sockets: usize) -> Result<HandoverMessage, String> {
        let message: HandoverMessage = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let wanted = match message {
            HandoverMessage::Idle { .. } | HandoverMessage::Queue { .. } => 1,
            HandoverMessage::Tunnel { .. } => 2,
        };
        if sockets == wanted {
            Ok(message)
        } else {
            Err("it has not the sockets that it should have".to_owned())
        }
    }

    /// Its text.
    ///
    /// # Errors
    /// Never, as all that it holds can be written.
    pub fn text(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// The process that takes this one's place.
pub struct Successor {
    channel: OwnedFd,
    /// The same channel, to wait until it takes more.
    readiness: Stream,
    waiting: RefCell<VecDeque<(HandoverMessage, Vec<OwnedFd>)>>,
    sending: Cell<bool>,
}

impl Successor {
    /// The process at the other end of `channel`, a `SOCK_SEQPACKET` socket.
    ///
    /// # Errors
    /// When there is no descriptor or no slot left.
    pub fn new(ring: &Ring, channel: OwnedFd) -> io::Result<Successor> {
        let readiness = Stream::adopt(ring, channel.try_clone()?, Role::Control)?;
        Ok(Successor { channel, readiness, waiting: RefCell::default(), sending: Cell::new(false) })
    }

    /// Whether everything has been sent.
    pub(super) fn has_everything(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Gives it the sockets of `message`.
    pub(super) fn give(
        self: Rc<Self>,
        connections: &Rc<Connections>,
        message: HandoverMessage,
        sockets: Vec<OwnedFd>,
    ) {
        self.waiting.borrow_mut().push_back((message, sockets));
        if !self.sending.replace(true) {
            connections.shared.ring.spawn(self.send(Rc::clone(connections)));
        }
    }

    async fn send(self: Rc<Self>, connections: Rc<Connections>) {
        while let Err(error) = self.send_waiting(&connections) {
            let gone = match error.kind() {
                io::ErrorKind::WouldBlock => self.readiness.writable().await.err(),
                _ => Some(error),
            };
            if let Some(error) = gone {
                let lost = std::mem::take(&mut *self.waiting.borrow_mut()).len();
                tracing::warn!(%error, connections = lost, "the successor takes no connections: they are closed");
                break;
            }
        }
        self.sending.set(false);
        connections.wake_waiting();
    }

    fn send_waiting(&self, connections: &Connections) -> io::Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        while let Some((message, sockets)) = waiting.front() {
            let text = message.text()?;
            match send_descriptors(&self.channel, &text, sockets) {
                Ok(()) if matches!(message, HandoverMessage::Queue { .. }) => {}
                Ok(()) => connections.shared.counters.count(Counter::HandedOver),
                // A name of a cluster that is longer than a message.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    tracing::warn!(?message, "a tunnel cannot be handed over, and is closed");
                }
                Err(error) => return Err(error),
            }
            waiting.pop_front();
        }
        Ok(())
    }
}
