//! The listening socket of the admin address.

use std::{io, os::fd::OwnedFd};

use kakehi_ctl::{
    limits,
    state::{AdminAddress, Binding},
};

use crate::host::{
    listeners,
    own_socket::{self, SocketFile},
};

/// The key, in errors.
const KEY: &str = "admin.address";

/// Why the admin address cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Of TCP.
    #[error("`admin.address`: {0}")]
    Ip(#[from] listeners::Error),
    /// Of a unix socket.
    #[error(transparent)]
    Unix(#[from] own_socket::Error),
    /// The kernel refused something else.
    #[error("`admin.address` cannot be served: {0}")]
    Io(#[from] io::Error),
}

/// A socket that listens and is not served yet.
pub(crate) struct Opened {
    pub(super) address: AdminAddress,
    pub(super) socket: OwnedFd,
    /// Of a unix socket: removed when this is dropped.
    pub(super) file: Option<SocketFile>,
}

/// Opens the address. `beside` is the socket of the one before, which goes when this one is served.
///
/// # Errors
/// See [`Error`]; nothing stays open then.
pub(crate) async fn open(address: &AdminAddress, beside: Option<OwnedFd>) -> Result<Opened, Error> {
    let (socket, file) = match address {
        AdminAddress::Ip(ip) => {
            // Only one of TCP may share its port for a moment.
            let beside = beside.filter(|it| {
                rustix::net::sockopt::socket_protocol(it) == Ok(Some(rustix::net::ipproto::TCP))
            });
            let (queue, room) = (limits::ADMIN_QUEUE, limits::ADMIN_SEND_BUFFER);
            (listeners::open_alone(Binding::from(*ip), queue, room, beside.as_ref()).await?, None)
        }
        AdminAddress::Unix(path) => {
            let (path, place) = (path.clone(), path.clone());
            // A disk may have it wait.
            let opened =
                tokio::task::spawn_blocking(move || own_socket::open(&path, KEY, limits::MAX_UNIX_PATH));
            // It cannot fail but by a panic, which ends the program.
            let socket = OwnedFd::from(opened.await.map_err(io::Error::other)??);
            (socket, Some(SocketFile::at(&place)))
        }
    };
    Ok(Opened { address: address.clone(), socket, file })
}

impl Opened {
    /// The open socket that another supervisor left.
    pub(crate) fn inherit(address: &AdminAddress, socket: OwnedFd) -> Opened {
        let file = match address {
            AdminAddress::Ip(_) => None,
            AdminAddress::Unix(path) => Some(SocketFile::at(path)),
        };
        Opened { address: address.clone(), socket, file }
    }
}
