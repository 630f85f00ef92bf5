//! Client connections move to the process that takes this one's place, or come from the one before.
//!
//! What moves is the socket, with the address of its listener, whether it has had a request yet, and whom a header of the
//! PROXY protocol has named: an idle connection has no other state. A tunnel is two sockets and the name of a backend.
//! Promises: nothing that the client has sent is lost, since a connection moves only when all that was received has been
//! served and nothing is in flight; and a worker ends only when everything has been sent.

use std::{io, net::SocketAddr, os::fd::OwnedFd, rc::Rc};

use super::{
    Connections, connection,
    successor::{Age, ConnectionOrigin, HandoverMessage, HeldPlace},
};
use crate::{
    exchange::ListenerHandle,
    observe::Counter,
    ring::{Role, Share, Stream, receive_descriptors},
    upstream::{Cluster, Lease},
};

/// Where what comes finds its place.
pub trait HandoverRegistry {
    /// The listener at an address.
    fn listener(&self, address: SocketAddr) -> Option<Rc<ListenerHandle>>;
    /// The cluster of this name.
    fn cluster(&self, name: &str) -> Option<Rc<Cluster>>;
}

/// Takes over what the process before gives, until it has ended.
///
/// # Errors
/// When there is no descriptor or no slot left.
pub fn inherit(
    connections: Rc<Connections>,
    channel: OwnedFd,
    registry: impl HandoverRegistry + 'static,
) -> io::Result<()> {
    let readiness = Stream::adopt(&connections.shared.ring, channel.try_clone()?, Role::Control)?;
    let ring = connections.shared.ring.clone();
    ring.spawn(async move {
        loop {
            match receive_descriptors(&channel) {
                Ok(Some((text, sockets))) => match resume(&connections, &text, sockets, &registry) {
                    Ok(count) => connections.shared.counters.add(Counter::TakenOver, count),
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
    connections: &Rc<Connections>,
    text: &str,
    sockets: Vec<OwnedFd>,
    registry: &impl HandoverRegistry,
) -> Result<u64, String> {
    let message = HandoverMessage::read(text, sockets.len())?;
    let find = |address| registry.listener(address).ok_or("its listener is gone");
    let adopt = |socket, role| {
        Stream::adopt(&connections.shared.ring, socket, role).map_err(|error| error.to_string())
    };
    let held = |place: Option<HeldPlace>| {
        let place = place?;
        place.take(&*registry.cluster(place.cluster())?, &connections.shared.pooling)
    };
    let mut sockets = sockets.into_iter();
    match (message, sockets.next(), sockets.next()) {
        (HandoverMessage::Idle { listener, age, begun, ends, place }, Some(client), None) => {
            let origin = ConnectionOrigin { age, begun: begun || age == Age::Used, ends, peer: None };
            let serve = connection::serve(
                Rc::clone(connections),
                find(listener)?,
                adopt(client, Role::Downstream)?,
                origin,
                held(place),
            );
            connections.shared.ring.spawn(serve);
        }
        (HandoverMessage::Tunnel { listener, cluster, backend, place }, Some(client), Some(upstream)) => {
            let found = registry.cluster(&cluster).and_then(|cluster| cluster.endpoint(&backend));
            let lease = Lease::new(
                adopt(upstream, Role::Upstream(Share::of(&cluster)))?.into(),
                found.ok_or("its backend is gone")?,
                true,
            );
            let (listener, client) = (find(listener)?, adopt(client, Role::Downstream)?);
            connections.shared.ring.spawn(connection::resume_tunnel(
                Rc::clone(connections),
                listener,
                client,
                cluster,
                lease,
                held(place),
            ));
        }
        (HandoverMessage::Queue { listener }, Some(_), None) => {
            let listener = find(listener)?;
            listener.rearm();
            connections.wake_acceptors(&listener);
            return Ok(0);
        }
        _ => return Err("it has not the sockets that it should have".to_owned()),
    }
    Ok(1)
}
