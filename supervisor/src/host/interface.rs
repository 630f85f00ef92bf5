//! Sockets on an interface of the network (`SO_BINDTODEVICE`).

use std::{ffi::OsString, io, os::fd::OwnedFd};

use kakehi_ctl::state::InterfaceName;
use nix::{
    errno::Errno,
    sys::socket::{getsockopt, setsockopt, sockopt::BindToDevice},
};

/// Has a socket that is on no interface yet hear those only who come over this one.
///
/// # Errors
/// Those of `setsockopt(2)`: `ENODEV` where there is no such interface.
pub(super) fn bind(socket: &OwnedFd, interface: InterfaceName) -> Result<(), Errno> {
    setsockopt(socket, BindToDevice, &OsString::from(interface.as_str()))
}

/// The interface that a socket is on; `None`: it hears everybody.
///
/// # Errors
/// Those of `getsockopt(2)`, and where it has a name that no file could have.
pub(super) fn of(socket: &OwnedFd) -> io::Result<Option<InterfaceName>> {
    let name = getsockopt(socket, BindToDevice)?;
    match name.to_str().map(|name| name.trim_end_matches('\0')) {
        Some("") => Ok(None),
        name => name.unwrap_or_default().parse().map(Some).map_err(io::Error::other),
    }
}
