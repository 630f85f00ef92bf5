//! A request as rules, limits and clusters ask it: whose it is, and how it came.

use std::{cell::OnceCell, net::IpAddr};

use super::{Client, ListenerConfig, client_address::client_address, redirect::came_by_https};
use crate::{h1::RequestHead, http::Asked};

/// A request, as limits and clusters ask it whose it is.
pub(super) struct Asking<'a> {
    pub(super) config: &'a ListenerConfig,
    pub(super) head: &'a RequestHead<'a>,
    pub(super) client: &'a Client<'a>,
    /// The client's address, once somebody has asked for it.
    address: OnceCell<Option<IpAddr>>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(
        config: &'a ListenerConfig,
        head: &'a RequestHead<'a>,
        client: &'a Client<'a>,
    ) -> Asking<'a> {
        Asking { config, head, client, address: OnceCell::new() }
    }
}

impl Asked for Asking<'_> {
    fn client(&self) -> Option<IpAddr> {
        let trusted = &self.config.settings.forwarding.trusted_peers;
        *self.address.get_or_init(|| client_address(self.client.peer, trusted, self.head.forwarded_hops()))
    }

    fn path(&self) -> &[u8] {
        self.head.path().as_bytes()
    }

    fn query(&self) -> &[u8] {
        self.head.query().as_bytes()
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.head.field(name)
    }

    fn cookie(&self, name: &str) -> Option<&[u8]> {
        self.head.cookie(name)
    }
}

/// Whether what the peer says of its client is believed.
pub(super) fn is_trusted(config: &ListenerConfig, client: &Client<'_>) -> bool {
    let trusted = &config.settings.forwarding.trusted_peers;
    client.peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(&peer)))
}

/// Whether the client speaks `https`, with us or with a proxy in front.
pub(super) fn is_https(config: &ListenerConfig, client: &Client<'_>, head: &RequestHead<'_>) -> bool {
    client.is_tls || is_trusted(config, client) && came_by_https(head)
}

/// The text of an address; `unknown` (RFC 7239 section 6.2) when the client has none.
pub(super) fn write_ip(peer: Option<IpAddr>, text: &mut [u8; 48]) -> &str {
    use std::io::Write;
    let length = match peer {
        None => return "unknown",
        Some(IpAddr::V4(peer)) => {
            // By hand: the formatting machinery takes as long as routing does.
            let mut length = 0;
            for (place, octet) in peer.octets().into_iter().enumerate() {
                if place > 0 {
                    text[length] = b'.';
                    length += 1;
                }
                let mut buffer = itoa::Buffer::new();
                let digits = buffer.format(octet).as_bytes();
                text[length..length + digits.len()].copy_from_slice(digits);
                length += digits.len();
            }
            length
        }
        Some(IpAddr::V6(peer)) => {
            let mut rest = &mut text[..];
            // 45 bytes at most.
            if write!(rest, "{peer}").is_err() {
                return "unknown";
            }
            48 - rest.len()
        }
    };
    std::str::from_utf8(&text[..length]).unwrap_or("unknown")
}
