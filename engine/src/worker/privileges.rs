//! What a worker may not do any more when it serves: it handles what strangers send.

use std::io;

use nix::{
    sys::prctl::set_no_new_privs,
    unistd::{setgid, setgroups, setuid},
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities,
};

use super::setup::{Error, Identity};

/// Capabilities that a kernel can have; those that this one has not are refused.
const MOST_CAPABILITIES: u32 = 64;

/// Gives up whatever is not needed to serve: the user, where another is wanted, and every capability. It executes nothing, and
/// would gain nothing by it.
///
/// To be called after the ring was made, whose memory would count against the user's limit of locked memory on kernels before
/// 5.12, and before there is another thread: capabilities are each thread's own.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn drop_privileges(identity: Option<Identity>) -> Result<(), Error> {
    leave_bounding_set();
    if let Some(identity) = identity {
        let Identity { user, group } = identity;
        setgroups(&[group])
            .and_then(|()| setgid(group))
            .and_then(|()| setuid(user))
            .map_err(|error| Error::Identity { identity, error: error.into() })?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // The ambient ones go with the permitted; a kernel that knows none of them has none.
    let _ = clear_ambient_capability_set();
    set_capabilities(None, none).map_err(io::Error::from)?;
    Ok(set_no_new_privs().map_err(io::Error::from)?)
}

/// Nothing that it could execute would get a capability back. Only who has `CAP_SETPCAP` can see to that; for others
/// `no_new_privs` does.
fn leave_bounding_set() {
    for number in 0..MOST_CAPABILITIES {
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number));
    }
}
