//! Lists of networks, in which an address is found in as many steps as their number has bits.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks, as ranges of addresses that do not overlap, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Networks(Vec<(u128, u128)>);

/// An address as a number: those of IPv4 as IPv6 maps them.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Networks {
    pub(super) fn new(networks: &[IpNet]) -> Networks {
        let range = |network: &IpNet| (number(network.network()), number(network.broadcast()));
        let mut ranges: Vec<_> = networks.iter().map(range).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let joins = next.0 <= before.1.saturating_add(1);
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        Networks(ranges)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let address = number(address);
        let next = self.0.partition_point(|(first, _)| *first <= address);
        next.checked_sub(1).is_some_and(|at| address <= self.0[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        Networks::new(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn an_address_is_in_the_networks_that_it_is_in() {
        let all = networks(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "10.1.0.0/16", "192.0.2.8/31"]);
        assert_eq!(all.0.len(), 3);
        for (address, inside) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.6", false),
            ("192.0.2.9", true),
            ("192.0.2.10", false),
            ("::ffff:10.2.3.4", true),
            ("2001:db8::1", true),
            ("2001:db9::", false),
            ("::", false),
        ] {
            assert_eq!(all.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(!networks(&[]).contains("::1".parse().unwrap()));
        let every = networks(&["::/0", "0.0.0.0/0"]);
        assert!(
            every.contains("255.255.255.255".parse().unwrap()) && every.contains("ffff::".parse().unwrap())
        );
        assert!(!networks(&["0.0.0.0/0"]).contains("::1".parse().unwrap()));
    }
}
