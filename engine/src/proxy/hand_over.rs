//! Client connections move to the process that takes this one's place, or come from the one before.
//!
//! What moves is the socket, with the address of its listener and whether it has had a request yet: an idle connection
//! has no other state. Promises: nothing that the client has sent is lost, since a connection moves only when all that
//! was received has been served and nothing is in flight; and a worker ends only when everything has been sent.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
};

use super::{Front, Shared, connection};
use crate::{
    observe::Counter,
    ring::{Ring, Stream, receive_descriptor, send_descriptor},
};

/// Whether a connection has had a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// It waits for its first.
    New,
    /// It is idle between two.
    Used,
}

/// The process that takes this one's place.
pub struct Successor {
    channel: OwnedFd,
    /// The same channel, to wait until it takes more.
    readiness: Stream,
    waiting: RefCell<VecDeque<(String, OwnedFd)>>,
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

    /// Gives it a connection of the listener at `address`.
    pub(super) fn give(self: Rc<Self>, shared: &Rc<Shared>, address: SocketAddr, age: Age, client: OwnedFd) {
        let age = if age == Age::New { "new" } else { "used" };
        self.waiting.borrow_mut().push_back((format!("{age} {address}"), client));
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
        while let Some((text, client)) = waiting.front() {
            send_descriptor(&self.channel, text, client)?;
            shared.counters.count(Counter::HandedOver);
            waiting.pop_front();
        }
        Ok(())
    }
}

/// Takes over what the process before gives, until it has ended; `front` finds the listener of an address.
///
/// # Errors
/// When there is no descriptor or no slot left.
pub fn inherit(
    shared: Rc<Shared>,
    channel: OwnedFd,
    front: impl Fn(SocketAddr) -> Option<Rc<Front>> + 'static,
) -> io::Result<()> {
    let readiness = Stream::adopt(&shared.ring, channel.try_clone()?)?;
    let ring = shared.ring.clone();
    ring.spawn(async move {
        loop {
            match receive_descriptor(&channel) {
                Ok(Some((text, client))) => resume(&shared, &text, client, &front),
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

fn resume(
    shared: &Rc<Shared>,
    text: &str,
    client: OwnedFd,
    front: &impl Fn(SocketAddr) -> Option<Rc<Front>>,
) {
    let Some((age, address)) = parse(text) else {
        tracing::warn!(text, "a connection that was handed over is not understood, and closed");
        return;
    };
    // Its listener was removed meanwhile: it would have been closed there too.
    let Some(front) = front(address) else { return };
    match Stream::adopt(&shared.ring, client) {
        Ok(client) => {
            shared.counters.count(Counter::TakenOver);
            shared.ring.spawn(connection::serve(Rc::clone(shared), front, client, age));
        }
        Err(error) => tracing::warn!(%error, "a connection that was handed over has no place, and is closed"),
    }
}

fn parse(text: &str) -> Option<(Age, SocketAddr)> {
    let (age, address) = text.split_once(' ')?;
    let age = match age {
        "new" => Age::New,
        "used" => Age::Used,
        _ => return None,
    };
    Some((age, address.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_a_connection_is_understood_or_refused() {
        let address: SocketAddr = "[2001:db8::1]:443".parse().unwrap();
        assert_eq!(parse(&format!("new {address}")), Some((Age::New, address)));
        assert_eq!(parse(&format!("used {address}")), Some((Age::Used, address)));
        for wrong in ["", "new", "old 127.0.0.1:80", "used 127.0.0.1", "used  127.0.0.1:80"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
