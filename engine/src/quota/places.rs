//! How many connections one client, or the clients of one network, may have at a cluster.

use std::net::IpAddr;

use kakehi_ctl::state::{ClusterLimits, Settings};

use super::{host_ns, name, rates::source};
use crate::ledger::{Held, Key, Ledger};

/// How many connections one client may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caps {
    per_ip: u32,
    per_subnet: u32,
    ipv4_prefix: u8,
    ipv6_prefix: u8,
    /// `Retry-After` of what is refused, in seconds; 0 = without.
    pub(crate) retry_after: u32,
}

/// The place that a connection has at a cluster.
#[derive(Debug)]
pub(crate) struct Place {
    /// The cluster that it asked last.
    pub(crate) cluster: String,
    /// Whose connection it is.
    pub(crate) client: Option<IpAddr>,
    /// The limits under which it was taken.
    caps: Caps,
    _held: [Option<Held>; 2],
}

impl Place {
    /// Whether it is at this cluster, and of this client.
    pub(crate) fn is_of(&self, cluster: &str, client: Option<IpAddr>) -> bool {
        self.cluster == cluster && self.client == client
    }

    /// Whether it counts wherever these limits count.
    pub(crate) fn counts_under(&self, caps: Caps) -> bool {
        let counts = |caps: Caps| (caps.per_ip > 0, caps.per_subnet > 0, caps.ipv4_prefix, caps.ipv6_prefix);
        counts(self.caps) == counts(caps)
    }
}

impl Caps {
    /// Those of all clusters that say nothing else.
    pub(crate) fn new(settings: &Settings) -> Caps {
        Caps {
            per_ip: settings.per_ip,
            per_subnet: settings.per_subnet,
            ipv4_prefix: settings.subnet_ipv4_prefix,
            ipv6_prefix: settings.subnet_ipv6_prefix,
            retry_after: settings.retry_after,
        }
    }

    /// Those of a cluster; `None` if its clients may have any number.
    pub(crate) fn of(self, limits: Option<&ClusterLimits>) -> Option<Caps> {
        let own = |of: fn(&ClusterLimits) -> Option<u32>, usual| limits.and_then(of).unwrap_or(usual);
        let caps = Caps {
            per_ip: own(|limits| limits.per_ip, self.per_ip),
            per_subnet: own(|limits| limits.per_subnet, self.per_subnet),
            retry_after: own(|limits| limits.retry_after, self.retry_after),
            ..self
        };
        (caps.per_ip > 0 || caps.per_subnet > 0).then_some(caps)
    }

    /// The same without a limit: for connections that have a place already, in another process.
    pub(crate) fn without_end(self) -> Caps {
        let any = |most| if most == 0 { 0 } else { u32::MAX };
        Caps { per_ip: any(self.per_ip), per_subnet: any(self.per_subnet), ..self }
    }

    /// Places that connections of `client` hold at a cluster, and the most that they may: of its address, and of its network. Those that
    /// are not limited are left out.
    pub(crate) fn held(
        self,
        cluster: &str,
        client: Option<IpAddr>,
        table: &Ledger,
    ) -> [Option<(u64, u32)>; 2] {
        let [of_ip, of_subnet] = self.keys(cluster, client, table);
        let held = |key, most| (most > 0).then(|| (table.places(key), most));
        [held(of_ip, self.per_ip), held(of_subnet, self.per_subnet)]
    }

    /// What counts the connections of a client, and those of its network.
    fn keys(self, cluster: &str, client: Option<IpAddr>, table: &Ledger) -> [Key; 2] {
        let of_ip = table.key(name(&["connections", cluster]), &[source(client).bytes()]);
        let network = self.network(client).to_be_bytes();
        [of_ip, table.key(name(&["network", cluster]), &[&network])]
    }

    /// A place at a cluster for a connection of `client`, if there is one.
    pub(crate) fn take(self, cluster: &str, client: Option<IpAddr>, table: &Ledger) -> Option<Place> {
        let now = host_ns();
        let [of_ip, of_subnet] = self.keys(cluster, client, table);
        let of_ip = match self.per_ip {
            0 => None,
            most => Some(table.hold(of_ip, most, now)?),
        };
        let of_subnet = match self.per_subnet {
            0 => None,
            most => Some(table.hold(of_subnet, most, now)?),
        };
        Some(Place { cluster: cluster.to_owned(), client, caps: self, _held: [of_ip, of_subnet] })
    }

    /// The network of a client, as a number that no other one has.
    fn network(self, client: Option<IpAddr>) -> u128 {
        let masked = |bits: u128, of: u32, prefix: u8| {
            let cut = of.saturating_sub(prefix.into());
            bits.checked_shr(cut).unwrap_or(0).checked_shl(cut).unwrap_or(0)
        };
        match client.map(|client| client.to_canonical()) {
            None => u128::MAX,
            // Among the addresses of IPv6 that stand for those of IPv4.
            Some(IpAddr::V4(address)) => {
                0xFFFF << 32 | masked(address.to_bits().into(), 32, self.ipv4_prefix)
            }
            Some(IpAddr::V6(address)) => masked(address.to_bits(), 128, self.ipv6_prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(per_ip: u32, per_subnet: u32) -> Caps {
        let settings = Settings {
            per_ip,
            per_subnet,
            subnet_ipv4_prefix: 24,
            subnet_ipv6_prefix: 48,
            ..Settings::default()
        };
        Caps::new(&settings)
    }

    #[test]
    fn both_caps_have_to_admit_and_a_refusal_holds_nothing() {
        let (table, _file) = Ledger::create(c"test", 1024).unwrap();
        let take = |caps: Caps, cluster: &str, client: &str| caps.take(cluster, client.parse().ok(), &table);
        let both = caps(2, 3);
        let mut places = vec![take(both, "web", "192.0.2.1"), take(both, "web", "192.0.2.1")];
        assert!(places.iter().all(Option::is_some));
        assert!(take(both, "web", "192.0.2.1").is_none(), "two of one address");
        places.push(take(both, "web", "192.0.2.2"));
        assert!(places[2].is_some() && take(both, "web", "192.0.2.3").is_none(), "three of one network");
        assert!(take(both, "web", "192.0.3.1").is_some() && take(both, "other", "192.0.2.1").is_some());
        // What was refused by the second did not stay with the first.
        places.clear();
        let again: Vec<_> = (0..4).filter_map(|_| take(both, "web", "192.0.2.3")).collect();
        assert_eq!(again.len(), 2);
        assert!(take(both.without_end(), "web", "192.0.2.3").is_some());
    }

    #[test]
    fn addresses_of_ipv6_are_counted_by_what_one_subscriber_has() {
        let (table, _file) = Ledger::create(c"test", 1024).unwrap();
        let take = |caps: Caps, client: &str| caps.take("web", client.parse().ok(), &table);
        let _one = take(caps(1, 0), "2001:db8::1").unwrap();
        assert!(take(caps(1, 0), "2001:db8::2").is_none() && take(caps(1, 0), "2001:db8:0:1::").is_some());
        let _two = take(caps(0, 1), "2001:db8:0:1::1").unwrap();
        assert!(
            take(caps(0, 1), "2001:db8:0:ffff::").is_none() && take(caps(0, 1), "2001:db8:1::").is_some()
        );
    }

    #[test]
    fn a_cluster_goes_before_the_root() {
        let root = caps(5, 0);
        assert_eq!(root.of(None).map(|caps| caps.per_ip), Some(5));
        let none = ClusterLimits { per_ip: Some(0), ..ClusterLimits::default() };
        assert_eq!(root.of(Some(&none)), None);
        let other = ClusterLimits { per_subnet: Some(7), retry_after: Some(0), ..ClusterLimits::default() };
        let caps = root.of(Some(&other)).unwrap();
        assert_eq!((caps.per_ip, caps.per_subnet, caps.retry_after), (5, 7, 0));
    }
}
