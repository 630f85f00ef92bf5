//! Client connections move to the process that takes this one's place, or come from the one before.
//!
//! What moves is the socket, with the address of its listener, whether it has had a request yet, and whom a header of the
//! PROXY protocol has named: an idle connection has no other state. A tunnel is two sockets and the name of a backend.
//! Promises: nothing that the client has sent is lost, since a connection moves only when all that was received has been
//! served and nothing is in flight; and a worker ends only when everything has been sent.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use super::{Front, Shared, connection};
use crate::{
    cluster::{Cluster, Upstream},
    observe::Counter,
    proxy_header::Ends,
    ring::{Ring, Stream, receive_descriptors, send_descriptors},
};

/// Whether a connection has had a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Age {
    /// It waits for its first.
    New,
    /// It is idle between two.
    Used,
}

/// What has been on a connection before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) age: Age,
    /// A header of the PROXY protocol has come, where one has to.
    pub(super) begun: bool,
    /// Whom it has named.
    pub(super) ends: Option<Ends>,
}

impl Past {
    /// Nothing.
    pub(super) const NONE: Past = Past { age: Age::New, begun: false, ends: None };
    /// A request at least.
    pub(super) const USED: Past = Past { age: Age::Used, begun: true, ends: None };
}

/// What moves with the sockets, as JSON.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Parcel {
    /// A connection without a request: one socket.
    Idle {
        /// Of its listener.
        listener: SocketAddr,
        age: Age,
        // Programs before these do not know them, and have no need to.
        #[serde(default)]
        begun: bool,
        #[serde(default)]
        ends: Option<Ends>,
    },
    /// The process before accepts no more: one listening socket.
    Queue {
        /// Of which listener.
        listener: SocketAddr,
    },
    /// A tunnel at rest: the client's socket, then the backend's.
    Tunnel { listener: SocketAddr, cluster: String, backend: String },
}

/// Where what comes finds its place.
pub trait Directory {
    /// The listener at an address.
    fn front(&self, address: SocketAddr) -> Option<Rc<Front>>;
    /// The cluster of this name.
    fn cluster(&self, name: &str) -> Option<Rc<Cluster>>;
}

/// The process that takes this one's place.
pub struct Successor {
    channel: OwnedFd,
    /// The same channel, to wait until it takes more.
    readiness: Stream,
    waiting: RefCell<VecDeque<(Parcel, Vec<OwnedFd>)>>,
    sending: Cell<bool>,
}

impl Successor {
    /// The process at the other end of `channel`, a `SOCK_SEQPACKET` socket.
    ///
    /// # Errors
    /// When there is no descriptor or no slot left.
    pub fn new(ring: &Ring, channel: OwnedFd) -> io::Result<Successor> {
        let readiness = Stream::adopt(ring, channel.try_clone()?)?;
        Ok(Successor { channel, readiness, waiting: RefCell::default(), sending: Cell::new(false) })
    }

    /// Whether everything has been sent.
    pub(super) fn has_everything(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Gives it the sockets of `parcel`.
    pub(super) fn give(self: Rc<Self>, shared: &Rc<Shared>, parcel: Parcel, sockets: Vec<OwnedFd>) {
        self.waiting.borrow_mut().push_back((parcel, sockets));
        if !self.sending.replace(true) {
            shared.ring.spawn(self.send(Rc::clone(shared)));
        }
    }

    async fn send(self: Rc<Self>, shared: Rc<Shared>) {
        while let Err(error) = self.send_waiting(&shared) {
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
        shared.wake_waiting();
    }

    fn send_waiting(&self, shared: &Shared) -> io::Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        while let Some((parcel, sockets)) = waiting.front() {
            let text = serde_json::to_string(parcel)?;
            match send_descriptors(&self.channel, &text, sockets) {
                Ok(()) if matches!(parcel, Parcel::Queue { .. }) => {}
                Ok(()) => shared.counters.count(Counter::HandedOver),
                // A name of a cluster that is longer than a message.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    tracing::warn!(?parcel, "a tunnel cannot be handed over, and is closed");
                }
                Err(error) => return Err(error),
            }
            waiting.pop_front();
        }
        Ok(())
    }
}

/// Takes over what the process before gives, until it has ended.
///
/// # Errors
/// When there is no descriptor or no slot left.
pub fn inherit(shared: Rc<Shared>, channel: OwnedFd, directory: impl Directory + 'static) -> io::Result<()> {
    let readiness = Stream::adopt(&shared.ring, channel.try_clone()?)?;
    let ring = shared.ring.clone();
    ring.spawn(async move {
        loop {
            match receive_descriptors(&channel) {
                Ok(Some((text, sockets))) => match resume(&shared, &text, sockets, &directory) {
                    Ok(connections) => shared.counters.add(Counter::TakenOver, connections),
                    Err(reason) => tracing::warn!(text, "what was handed over is closed: {reason}"),
                },
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if readiness.readable().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "no more connections come from the process before");
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Goes on with what was handed over; how many connections that is.
fn resume(
    shared: &Rc<Shared>,
    text: &str,
    sockets: Vec<OwnedFd>,
    directory: &impl Directory,
) -> Result<u64, String> {
    let parcel: Parcel = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let front = |address| directory.front(address).ok_or("its listener is gone");
    let adopt = |socket| Stream::adopt(&shared.ring, socket).map_err(|error| error.to_string());
    let mut sockets = sockets.into_iter();
    match (parcel, sockets.next(), sockets.next()) {
        (Parcel::Idle { listener, age, begun, ends }, Some(client), None) => {
            let past = Past { age, begun: begun || age == Age::Used, ends };
            let serve = connection::serve(Rc::clone(shared), front(listener)?, adopt(client)?, past);
            shared.ring.spawn(serve);
        }
        (Parcel::Tunnel { listener, cluster, backend }, Some(client), Some(upstream)) => {
            let found = directory.cluster(&cluster).and_then(|cluster| cluster.backend(&backend));
            let upstream = Upstream::new(adopt(upstream)?.into(), found.ok_or("its backend is gone")?, true);
            let (front, client) = (front(listener)?, adopt(client)?);
            shared.ring.spawn(connection::resume_tunnel(Rc::clone(shared), front, client, cluster, upstream));
        }
        (Parcel::Queue { listener }, Some(_), None) => {
            front(listener)?.stir();
            shared.front_closed();
            return Ok(0);
        }
        _ => return Err("it has not the sockets that it should have".to_owned()),
    }
    Ok(1)
}
