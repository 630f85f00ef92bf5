//! What of a request tells clients apart, for hashes and limits, and rules.

use std::net::IpAddr;

/// A request, as far as it tells whose it is.
pub trait Asked {
    /// The address of the client, if it is known.
    fn client(&self) -> Option<IpAddr>;
    /// The path, without the query.
    fn path(&self) -> &[u8];
    /// The query, without its `?`.
    fn query(&self) -> &[u8] {
        b""
    }
    /// The value of the first field of this name.
    fn field(&self, name: &str) -> Option<&[u8]>;
    /// The value of the first cookie of this name.
    fn cookie(&self, name: &str) -> Option<&[u8]>;
}

/// A request of which nothing is known.
impl Asked for () {
    fn client(&self) -> Option<IpAddr> {
        None
    }

    fn path(&self) -> &[u8] {
        b""
    }

    fn field(&self, _: &str) -> Option<&[u8]> {
        None
    }

    fn cookie(&self, _: &str) -> Option<&[u8]> {
        None
    }
}
