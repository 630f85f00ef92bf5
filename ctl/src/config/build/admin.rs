//! The admin address: whom it is open to is said, and it is nobody else's.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use super::{
    super::{
        findings::Findings,
        read::{Section, Values as _},
    },
    Extent, address,
};
use crate::state::{Admin, AdminAddress, Binding, Listener};

/// What the table of the admin address says. Of some of a file, nothing is said of what else that lacks.
pub(super) fn admin(root: &Section, folder: &Path, extent: Extent, findings: &mut Findings<'_>) -> Admin {
    let mut admin = Admin::default();
    let Some(section) = root.tables("admin").first() else { return admin };
    admin.read_keys(section, section, folder);
    let at = |key: &str| section.entry(key).map_or(section.offset, |entry| entry.offset);
    if let Some(AdminAddress::Ip(address)) = admin.address
        && let Some(reason) = address::impossible(address)
    {
        findings.unfit(at("address"), reason);
    }
    if extent == Extent::Part {
        return admin;
    }
    // A value of `allow` that is wrong was reported.
    if let Err(error) = admin.check()
        && !section.says("allow")
    {
        findings.unfit(at("address"), error.to_string());
    }
    if !section.says("address") {
        findings.warn(section.offset, "`admin` has no effect without `address`");
    }
    if matches!(admin.address, Some(AdminAddress::Unix(_))) && admin.allow.is_some() {
        findings.warn(at("allow"), "`allow` has no effect on a unix socket: only its owner can open it");
    } else if admin.allow.as_ref().is_some_and(Vec::is_empty) {
        findings.warn(at("allow"), "with an empty `allow` nobody can connect to the admin address");
    }
    admin
}

/// Nobody else listens where the admin address is.
pub(super) fn check_listeners(
    root: &Section,
    admin: &Admin,
    listeners: &BTreeMap<SocketAddr, Listener>,
    findings: &mut Findings<'_>,
) {
    let Some(AdminAddress::Ip(address)) = admin.address else { return };
    let own = Binding::from(address);
    let is_same = |it: &Binding| it.address == address || it.overlaps(&own) || own.overlaps(it);
    let Some(other) = listeners.values().map(Listener::binding).find(is_same) else { return };
    let offset = root.tables("admin").first().and_then(|it| it.entry("address")).map_or(0, |it| it.offset);
    findings.unfit(offset, format!("the listener `{}` is there already", other.address));
}
