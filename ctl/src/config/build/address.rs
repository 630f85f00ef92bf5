//! Addresses of listeners: those at which nobody can listen, those that say less than they seem to, and those that nobody has
//! written down.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    super::{
        levels::LISTENER,
        read::{Section, Values},
    },
    Builder,
};
use crate::state::{ClusterProtocol, Listener, ListenerProtocol};

/// Why no listener can ever have this address, and what to write.
pub(super) fn impossible(address: SocketAddr) -> Option<String> {
    let reason = match address.ip() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            let mapped = SocketAddr::new(ip.to_canonical(), address.port());
            return Some(format!(
                "nothing can listen at `{address}`, an IPv4 address in the form of IPv6: write `{mapped}`"
            ));
        }
        ip if ip.is_multicast() => "it is a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "it is the broadcast address",
        IpAddr::V6(ip) if ip.is_unicast_link_local() && scope(address) == 0 => {
            "a link-local address needs the number of its interface (`[fe80::1%2]:80`)"
        }
        _ => return None,
    };
    Some(format!("nothing can listen at `{address}`: {reason}"))
}

fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

impl Builder<'_, '_> {
    /// `[::]` is IPv6 only here; elsewhere it often is both.
    pub(super) fn warn_of_ipv6_only(&mut self, root: &Section, listeners: &BTreeMap<SocketAddr, Listener>) {
        for section in root.tables("listeners") {
            let Some(address) = section.address("address").filter(|it| it.ip() == Ipv6Addr::UNSPECIFIED)
            else {
                continue;
            };
            let other = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            if listeners.contains_key(&address) && !listeners.contains_key(&other) {
                self.warn_at(
                    section,
                    "address",
                    format!("`{address}` is for IPv6 only: clients of IPv4 need a listener at `{other}` too"),
                );
            }
        }
    }

    /// The listener of a frontend that has none, as sozu makes one up: of `tcp` for a cluster of `tcp`, of `https` where the frontend
    /// has a certificate, of `http` otherwise. `None` if there can be none.
    pub(super) fn made_up_listener(
        &mut self,
        address: SocketAddr,
        offset: usize,
        protocol: ClusterProtocol,
        frontend: &Section,
        root: &Section,
    ) -> Option<Listener> {
        if let Some(reason) = impossible(address) {
            self.findings.unfit(offset, reason);
            return None;
        }
        let protocol = match protocol {
            ClusterProtocol::Tcp => "tcp",
            ClusterProtocol::Http if frontend.says("certificate") => "https",
            ClusterProtocol::Http => "http",
        };
        let section = Section::empty(&LISTENER, offset);
        self.findings.warn(
            offset,
            format!(
                "no listener has the address `{address}` of this frontend: one with `protocol = \"{protocol}\"` is made up; write \
                 `[[listeners]]` with that address"
            ),
        );
        let line = self.findings.source.line(offset);
        self.made_up.insert(address, line);
        self.listener(address, protocol, &section, root)
    }

    /// A certificate of a frontend whose listener was made up for another, without one.
    pub(super) fn refuse_clear_text(&mut self, section: &Section, listener: &Listener) {
        let of = self.made_up.get(&listener.address).filter(|_| listener.protocol == ListenerProtocol::Http);
        if let Some(line) = of.filter(|_| section.says("certificate")) {
            let address = listener.address;
            let reason = format!(
                "no listener has the address `{address}`, and the frontend in line {line} has no certificate, so that it speaks \
                 `http`: write `[[listeners]]` with that address and `protocol = \"https\"`"
            );
            self.findings.unfit(section.offset_of("certificate"), reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_listens_where_nobody_can() {
        for text in [
            "[::ffff:127.0.0.1]:80",
            "[::ffff:0.0.0.0]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "[fe80::1]:80",
        ] {
            assert!(impossible(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in
            ["127.0.0.1:80", "0.0.0.0:80", "[::]:80", "[::1]:80", "[fe80::1%2]:80", "[2001:db8::1]:80"]
        {
            assert_eq!(impossible(text.parse().unwrap()), None, "{text}");
        }
        let said = impossible("[::ffff:10.0.0.1]:80".parse().unwrap()).unwrap();
        assert!(said.ends_with("write `10.0.0.1:80`"), "{said}");
    }
}
