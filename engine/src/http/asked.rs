//! What of a request tells clients apart, for hashes and limits, and rules.

use std::net::IpAddr;

/// A request, as far as it tells whose it is. What it does not say is not known of it.
pub trait Asked {
    /// The address of the client, if it is known.
    fn client(&self) -> Option<IpAddr> {
        None
    }
    /// The path, without the query.
    fn path(&self) -> &[u8] {
        b""
    }
    /// The query, without its `?`.
    fn query(&self) -> &[u8] {
        b""
    }
    /// The value of the first field of this name, in any case of its letters.
    fn field(&self, _name: &str) -> Option<&[u8]> {
        None
    }
    /// The value of the first cookie of this name.
    fn cookie(&self, _name: &str) -> Option<&[u8]> {
        None
    }
}

/// A request of which nothing is known.
impl Asked for () {}
