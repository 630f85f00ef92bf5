//! A client connection that has become a tunnel: it ends, or moves to another process.

use std::{
    future::{Future, poll_fn},
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
};

use super::{
    Connections,
    client::ClientConnection,
    successor::{HandoverMessage, HeldPlace, Successor},
};
use crate::{
    exchange::{Event, ListenerHandle},
    observe::Counter,
    transfer::{ReadBuffer, Tunnel, TunnelEnd, TunnelOwner, come_to_rest},
    upstream::Lease,
};

/// What a tunnel asks about the worker and the configuration.
struct Owner<'a> {
    connections: &'a Connections,
    listener: &'a ListenerHandle,
    lease: &'a Lease,
}

impl TunnelOwner for Owner<'_> {
    type Place = Rc<Successor>;

    fn is_moving(&self) -> bool {
        self.connections.connections_move()
    }

    fn take_place(&self) -> Option<Rc<Successor>> {
        self.connections.place_elsewhere()
    }

    fn is_removed(&self) -> bool {
        self.listener.is_closed() || self.lease.is_retired()
    }

    fn is_dismissed(&self) -> bool {
        self.lease.is_dismissed()
    }
}

/// Runs a tunnel to a backend of `cluster` until it ends, is silent for `idle_ms`, or moves to another process.
/// `early_tunnel_data` is what the backend sent behind its 101.
pub(super) async fn run(
    connection: &mut ClientConnection,
    cluster: &str,
    idle_ms: u64,
    mut lease: Lease,
    early_tunnel_data: ReadBuffer,
) -> Event {
    let ClientConnection { connections, listener, stream, timer, read_buffer, .. } = connection;
    let counters = &connections.shared.counters;
    counters.count(Counter::TunnelsOpen);
    lease.become_tunnel();
    let owner = Owner { connections, listener, lease: &lease };
    let tunnel = Tunnel {
        ring: &connections.shared.ring,
        timer,
        client: stream,
        upstream: &lease.stream,
        idle_ms,
        drain_ms: connections.drain_timeout_ms.get(),
        owner: &owner,
    };
    let wake_slot = connections.tunnels.register();
    let end = {
        let mut run = pin!(tunnel.run(std::mem::take(read_buffer), early_tunnel_data));
        poll_fn(|context| {
            wake_slot.wait(context);
            run.as_mut().poll(context)
        })
        .await
    };
    counters.uncount(Counter::TunnelsOpen);
    let event = match end {
        TunnelEnd::Finished => Event::TunnelFinished,
        TunnelEnd::Broken => Event::TunnelBroken,
        TunnelEnd::Drained | TunnelEnd::Dismissed => Event::TunnelExpired,
        TunnelEnd::Idle => {
            counters.count(Counter::TunnelTimeouts);
            Event::TunnelExpired
        }
        TunnelEnd::AtRest(successor) => match move_away(connection, &mut lease).await {
            Some(sockets) => {
                let message = HandoverMessage::Tunnel {
                    listener: connection.listener.address(),
                    cluster: cluster.to_owned(),
                    backend: lease.endpoint().id.clone(),
                    place: HeldPlace::of(connection.place()),
                };
                successor.give(&connection.connections, message, sockets);
                return Event::Moved;
            }
            None => Event::TunnelBroken,
        },
    };
    if event != Event::TunnelFinished {
        lease.stream.reset_on_close();
    }
    event
}

/// Takes both sockets off the ring; `None` when a side has broken.
async fn move_away(connection: &mut ClientConnection, lease: &mut Lease) -> Option<Vec<OwnedFd>> {
    come_to_rest(&connection.stream, &lease.stream).await.ok()?;
    Some(vec![connection.stream.detach()?, lease.stream.detach()?])
}
