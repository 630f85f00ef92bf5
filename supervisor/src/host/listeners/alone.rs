//! A listening socket of the supervisor's own, whose address nobody shares.

use std::os::fd::OwnedFd;

use kakehi_ctl::state::Binding;
use rustix::net::{self, sockopt};

use super::{Error, Ours, check_free, explain, socket};

/// Opens a listening socket at `binding` for this process alone. `beside` is one of it that goes when this one is served, and may be at
/// an address that contains this one.
///
/// # Errors
/// See [`Error`]; nothing stays open then.
pub(crate) async fn open_alone(
    binding: Binding,
    queue: u16,
    send_buffer: usize,
    beside: Option<&OwnedFd>,
) -> Result<OwnedFd, Error> {
    check_free(binding, &Ours::new(beside.into_iter(), Vec::new())).await?;
    let opened = socket(binding)?;
    let listen = || {
        // Accepted connections inherit both.
        sockopt::set_socket_send_buffer_size(&opened, send_buffer)?;
        sockopt::set_tcp_nodelay(&opened, true)?;
        // Two may be bound beside each other as long as both allow it.
        share(beside, &opened, true)?;
        net::bind(&opened, &binding.address)?;
        net::listen(&opened, queue.into())
    };
    let listens = listen();
    let alone = share(beside, &opened, false);
    match listens.and(alone) {
        Ok(()) => Ok(opened),
        Err(error) => Err(explain(binding, error.into()).with_holder().await),
    }
}

/// Has both sockets allow, or not, that another of this user is bound beside them.
fn share(beside: Option<&OwnedFd>, opened: &OwnedFd, allow: bool) -> rustix::io::Result<()> {
    let Some(beside) = beside else { return Ok(()) };
    sockopt::set_socket_reuseport(beside, allow)?;
    sockopt::set_socket_reuseport(opened, allow)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{SocketAddr, TcpStream},
        os::fd::OwnedFd,
    };

    use super::*;

    async fn open(address: SocketAddr, beside: Option<&OwnedFd>) -> Result<OwnedFd, Error> {
        open_alone(address.into(), 16, 64 << 10, beside).await
    }

    #[tokio::test]
    async fn an_address_of_its_own_is_shared_with_nobody_and_moves_to_one_that_contains_it() {
        let inner = open(([127, 0, 0, 1], 0).into(), None).await.unwrap();
        let address = SocketAddr::try_from(net::getsockname(&inner).unwrap()).unwrap();
        assert!(matches!(open(address, None).await, Err(Error::Taken { holder: Some(_), .. })));
        let outer = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert!(matches!(open(outer, None).await, Err(Error::Taken { .. })));
        let moved = open(outer, Some(&inner)).await.unwrap();
        // Afterwards as before, nobody else may be there.
        for socket in [&inner, &moved] {
            assert!(!sockopt::socket_reuseport(socket).unwrap());
        }
        assert!(open(address, Some(&inner)).await.is_err());
        drop(inner);
        TcpStream::connect(address).unwrap();
        // And back.
        let back = open(address, Some(&moved)).await.unwrap();
        drop(moved);
        TcpStream::connect(address).unwrap();
        drop(back);
    }
}
