//! Whose request it is: for hashes and limits.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The address of the client: the peer, or, where that one is trusted, the last hop in the lists of `X-Forwarded-For` that is not.
/// `hops` come from the last to the first. What is no address ends the walk: who wrote it cannot be believed in what stands before.
pub(super) fn client_address<'a>(
    peer: Option<IpAddr>,
    trusted: &[IpNet],
    hops: impl Iterator<Item = &'a [u8]>,
) -> Option<IpAddr> {
    let mut client = peer?.to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    // Most have none, and need not be walked.
    if !is_trusted(client) {
        return Some(client);
    }
    for hop in hops {
        let Some(address) = read(hop) else { break };
        client = address;
        if !is_trusted(client) {
            break;
        }
    }
    Some(client)
}

/// An address, maybe with a port, as some proxies write it.
fn read(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address =
        text.parse().ok().or_else(|| text.parse().ok().map(|it: SocketAddr| it.ip())).or_else(bare)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, hops: &[&str]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let hops = hops.iter().rev().map(|hop| hop.as_bytes());
        client_address(peer.parse().ok(), &trusted, hops).map_or_else(String::new, |it| it.to_string())
    }

    #[test]
    fn the_last_hop_that_is_not_trusted_is_the_client() {
        for (peer, hops, expected) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["6.6.6.6", "198.51.100.7", "10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6", "unknown", "10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["6.6.6.6", "evil"], "10.0.0.1"),
            ("::1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("::1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("::1", &["[2001:db8::1]"], "2001:db8::1"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
        ] {
            assert_eq!(client(peer, hops), expected, "{peer} {hops:?}");
        }
        assert_eq!(client("", &["198.51.100.7"]), "");
    }
}
