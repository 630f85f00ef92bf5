//! Lists of networks, in which an address is found in as many steps as their number has bits.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks of IPv4 and of IPv6, as ranges of addresses that do not overlap, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Networks([Vec<(u128, u128)>; 2]);

/// Which of both lists an address is in, as a number. One of IPv4 that is written as IPv6 is one of IPv4.
fn number(address: IpAddr) -> (usize, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (0, address.to_bits().into()),
        IpAddr::V6(address) => (1, address.to_bits()),
    }
}

impl Networks {
    /// Those of a list.
    pub fn new(networks: &[IpNet]) -> Networks {
        let mut lists = [Vec::new(), Vec::new()];
        for network in networks {
            let ((first_list, first), (last_list, last)) =
                (number(network.network()), number(network.broadcast()));
            // One of IPv6 with addresses in it that are of IPv4 names none of these.
            let (list, first, last) = match first_list == last_list {
                true => (first_list, first, last),
                false => (1, bits(network.network()), bits(network.broadcast())),
            };
            lists[list].push((first, last));
        }
        for ranges in &mut lists {
            ranges.sort_unstable();
            ranges.dedup_by(|next, before| {
                let joins = next.0 <= before.1.saturating_add(1);
                if joins {
                    before.1 = before.1.max(next.1);
                }
                joins
            });
        }
        Networks(lists)
    }

    /// Whether no address is in them.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Whether an address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (list, address) = number(address);
        let ranges = &self.0[list];
        let next = ranges.partition_point(|(first, _)| *first <= address);
        next.checked_sub(1).is_some_and(|at| address <= ranges[at].1)
    }
}

/// An address as it is written, as a number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
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
        assert_eq!(all.0.each_ref().map(Vec::len), [2, 1]);
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
        assert!(!networks(&["::/0"]).contains("192.0.2.1".parse().unwrap()));
        assert!(networks(&["::ffff:10.0.0.0/104"]).contains("10.2.3.4".parse().unwrap()));
    }
}
