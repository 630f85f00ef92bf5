//! The admin address: where kakehi tells over HTTP how it is, and whom.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{keys::keyed, limits};

keyed! {
    /// Where kakehi tells over HTTP how it is, and whom.
    pub struct Admin;
    own {
        /// Where `/metrics`, `/healthz` and `/readyz` are served over HTTP. Without it: nowhere. An address that is not of the loopback
        /// needs `allow`.
        "address" => address: Option<AdminAddress> = None, IpOrUnix, Own, Live;
        /// Networks whose clients may connect to `address`; others are closed at once. Without it: the loopback alone. Who may open a
        /// unix socket, its file says.
        "allow" => allow: Option<Vec<IpNet>> = None, Networks, Own, Live;
        /// Names that `Host` may have besides IP addresses and `localhost`; others get 421, so that no web page reads it by a name of
        /// its own (DNS rebinding). A unix socket takes any.
        "hostnames" => hostnames: Vec<String> = Vec::new(), Hostnames, Own, Live;
    }
}

impl Admin {
    /// What is wrong with these keys together, with the name of the one to blame; a file says no such thing.
    ///
    /// # Errors
    /// See there.
    pub fn check(&self) -> Result<(), AdminError> {
        match &self.address {
            Some(AdminAddress::Ip(address))
                if !address.ip().to_canonical().is_loopback() && self.allow.is_none() =>
            {
                Err(AdminError::Open(*address))
            }
            _ => Ok(()),
        }
    }
}

/// Who could connect is not said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// Everybody who reaches the address.
    #[error(
        "the admin address `{0}` is not one of the loopback, so it needs `allow`, the networks that may connect (`allow = [\"10.0.0.0/8\"]`)"
    )]
    Open(SocketAddr),
}

/// Where the admin address is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AdminAddress {
    /// An address and port of TCP.
    Ip(SocketAddr),
    /// The absolute path of a unix socket.
    Unix(PathBuf),
}

/// No such address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither `ip:port` nor `unix:` and an absolute path")]
pub struct AdminAddressError;

impl FromStr for AdminAddress {
    type Err = AdminAddressError;

    fn from_str(text: &str) -> Result<AdminAddress, AdminAddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = Path::new(path).is_absolute()
                && path.len() <= limits::MAX_UNIX_PATH
                && !path.contains('\0')
                && !path.ends_with('/');
            return fits.then(|| AdminAddress::Unix(path.into())).ok_or(AdminAddressError);
        }
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        address.map(AdminAddress::Ip).ok_or(AdminAddressError)
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Ip(address) => address.fmt(f),
            // It was made of a string.
            AdminAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl TryFrom<String> for AdminAddress {
    type Error = AdminAddressError;

    fn try_from(text: String) -> Result<AdminAddress, AdminAddressError> {
        text.parse()
    }
}

impl From<AdminAddress> for String {
    fn from(address: AdminAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_ip_with_a_port_or_an_absolute_path() {
        for text in ["127.0.0.1:9901", "[::1]:9901", "0.0.0.0:1", "unix:/run/kakehi/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        let long = format!("unix:/{}", "a".repeat(limits::MAX_UNIX_PATH));
        for text in [
            "",
            "9901",
            "localhost:9901",
            "127.0.0.1",
            "127.0.0.1:0",
            "unix:admin.sock",
            "unix:@a",
            "unix:/a/",
            &long,
        ] {
            assert_eq!(text.parse::<AdminAddress>(), Err(AdminAddressError), "{text}");
        }
    }

    #[test]
    fn what_is_not_of_the_loopback_needs_allow() {
        let of = |address: &str, allow: &[&str]| Admin {
            address: Some(address.parse().unwrap()),
            allow: (!allow.is_empty()).then(|| allow.iter().map(|it| it.parse().unwrap()).collect()),
            ..Admin::default()
        };
        for address in ["127.0.0.1:9901", "127.9.9.9:9901", "[::1]:9901", "unix:/run/a"] {
            assert_eq!(of(address, &[]).check(), Ok(()), "{address}");
        }
        for address in ["0.0.0.0:9901", "[::]:9901", "10.0.0.1:9901"] {
            assert!(of(address, &[]).check().is_err(), "{address}");
            assert_eq!(of(address, &["10.0.0.0/8"]).check(), Ok(()), "{address}");
        }
        assert_eq!(Admin::default().check(), Ok(()));
    }
}
