//! Where a listener's sockets are bound: an address, and maybe an interface of the network.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes of a name at most (`IFNAMSIZ` of the kernel, without the zero behind it).
const MAX_NAME: usize = 15;

/// The name of an interface of the network: 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName {
    bytes: [u8; MAX_NAME],
    length: u8,
}

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        // It was made of a string.
        self.bytes
            .get(..usize::from(self.length))
            .and_then(|it| std::str::from_utf8(it).ok())
            .unwrap_or_default()
    }
}

/// No interface can have this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of an interface: 1 to 15 bytes without `/`, `:` and white space")]
pub struct InterfaceNameError(String);

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<InterfaceName, InterfaceNameError> {
        // As the kernel's `dev_valid_name`.
        let is_other = |it: char| it.is_whitespace() || it.is_control() || it == '/' || it == ':';
        let mut bytes = [0; MAX_NAME];
        match bytes.get_mut(..text.len()) {
            Some(room) if !matches!(text, "" | "." | "..") && !text.contains(is_other) => {
                room.copy_from_slice(text.as_bytes());
                Ok(InterfaceName { bytes, length: text.len() as u8 })
            }
            _ => Err(InterfaceNameError(text.to_owned())),
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(text: String) -> Result<InterfaceName, InterfaceNameError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> String {
        name.as_str().to_owned()
    }
}

/// Where a listener's sockets are bound. A socket that is bound elsewhere is of no use to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// The address.
    pub address: SocketAddr,
    /// The interface that connections come over; `None`: any.
    pub interface: Option<InterfaceName>,
}

impl Binding {
    /// Whether who connects to `inner` may find a socket that is bound here where there is none of `inner`.
    pub fn overlaps(&self, inner: &Binding) -> bool {
        let (outer, inner_ip) = (self.address.ip(), inner.address.ip());
        let same_family = self.address.is_ipv4() == inner.address.is_ipv4();
        let same_interface = match (self.interface, inner.interface) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self != inner
            && same_family
            && same_interface
            && self.address.port() == inner.address.port()
            && (outer.is_unspecified() || outer == inner_ip)
    }
}

impl From<SocketAddr> for Binding {
    fn from(address: SocketAddr) -> Binding {
        Binding { address, interface: None }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            None => self.address.fmt(f),
            Some(interface) => write!(f, "{} on {interface}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(address: &str, interface: &str) -> Binding {
        Binding { address: address.parse().unwrap(), interface: interface.parse().ok() }
    }

    #[test]
    fn a_name_is_what_the_kernel_takes_for_one() {
        for name in ["lo", "eth0", "br-0123456789ab", "wlan0.100", "ü\"\\", "fifteen-letters"] {
            let read: InterfaceName = name.parse().unwrap();
            assert_eq!((read.as_str(), read.to_string()), (name, name.to_owned()));
            let text = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<InterfaceName>(&text).unwrap(), read);
        }
        for name in
            ["", ".", "..", "a/b", "a b", "a:b", "a\tb", "a\0", "a\u{7f}", "sixteen--letters", "\u{a0}"]
        {
            assert!(name.parse::<InterfaceName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn sockets_overlap_where_both_could_have_a_connection() {
        let (any, eth0, eth1) =
            (binding("127.0.0.1:80", ""), binding("127.0.0.1:80", "eth0"), binding("127.0.0.1:80", "eth1"));
        let all = binding("0.0.0.0:80", "");
        for (outer, inner) in [(any, eth0), (eth0, any), (all, any), (all, eth1)] {
            assert!(outer.overlaps(&inner), "{outer}, {inner}");
        }
        let other_port = binding("127.0.0.1:81", "");
        for (outer, inner) in
            [(eth0, eth1), (any, all), (any, any), (any, other_port), (binding("[::]:80", ""), any)]
        {
            assert!(!outer.overlaps(&inner), "{outer}, {inner}");
        }
        assert!(!binding("0.0.0.0:80", "eth0").overlaps(&eth1));
        assert_eq!(eth0.to_string(), "127.0.0.1:80 on eth0");
    }
}
