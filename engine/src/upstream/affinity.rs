//! What a request says of the backend that it belongs to: a key that is hashed, or the cookie of a sticky session.

use std::net::IpAddr;

use kakehi_ctl::state::{Balancing, SameSite};

use super::hashing::{hash, point};
use crate::http::Asked;

/// What a request says of the backend that it belongs to. It is kept for each request that is in flight: so it takes 20 bytes, not 24.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub struct Affinity {
    /// The hash of its key; 0 where nobody asks.
    pub(super) key: u64,
    pub(super) session: Session,
}

/// Whether a request belongs to a sticky session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Session {
    /// The cluster has none.
    #[default]
    None,
    /// Its first request.
    New,
    /// To the backend whose value of the cookie has this hash.
    With(SessionHash),
}

/// The hash of a value of a session's cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub(super) struct SessionHash(u64);

impl SessionHash {
    pub(super) fn new(hash: u64) -> SessionHash {
        SessionHash(hash)
    }

    pub(super) fn get(self) -> u64 {
        self.0
    }
}

/// By what the requests of a cluster are told apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum KeySource {
    /// Not at all.
    #[default]
    None,
    Address,
    Header(String),
    Cookie(String),
    Path,
}

/// What is to be read of each request of a cluster.
#[derive(Debug, Default)]
pub(super) struct AffinityRules {
    pub(super) key: KeySource,
    pub(super) sticky: bool,
    same_site: SameSite,
    max_age: u32,
}

impl AffinityRules {
    /// Those of a cluster with shards or hashes.
    pub(super) fn new(balancing: &Balancing, hashes: bool) -> AffinityRules {
        let Balancing { affinity_header, affinity_cookie, affinity_path, .. } = balancing;
        let key = match (affinity_header, affinity_cookie) {
            _ if !hashes => KeySource::None,
            (Some(name), _) => KeySource::Header(name.clone()),
            (_, Some(name)) => KeySource::Cookie(name.clone()),
            _ if *affinity_path => KeySource::Path,
            _ => KeySource::Address,
        };
        AffinityRules {
            key,
            sticky: balancing.sticky_session,
            same_site: balancing.sticky_same_site,
            max_age: balancing.sticky_max_age,
        }
    }

    /// Whether nothing is to be read.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        !self.sticky && self.key == KeySource::None
    }

    /// True if the cluster has sticky sessions.
    pub(super) fn has_sessions(&self) -> bool {
        self.sticky
    }

    /// What `request` says; `sticky_name` is the name of the cookie of sticky sessions.
    pub(super) fn read(&self, request: &impl Asked, sticky_name: &str) -> Affinity {
        let named = match &self.key {
            KeySource::None | KeySource::Address => None,
            KeySource::Header(name) => request.field(name),
            KeySource::Cookie(name) => request.cookie(name),
            KeySource::Path => Some(request.path()),
        };
        let key = match (named, &self.key) {
            (_, KeySource::None) => 0,
            (Some(value), _) => hash(value),
            (None, _) => of_client(request.client()).key,
        };
        let session = match self.sticky {
            false => Session::None,
            true => request
                .cookie(sticky_name)
                .map_or(Session::New, |value| Session::With(SessionHash::new(hash(value)))),
        };
        Affinity { key, session }
    }

    /// The `Set-Cookie` line that begins a session under `name` with the backend whose `value` this is.
    pub(super) fn set_cookie(&self, name: &str, value: &str, secure: bool) -> String {
        let max_age = match self.max_age {
            0 => String::new(),
            seconds => format!("; Max-Age={seconds}"),
        };
        let secure = if secure { "; Secure" } else { "" };
        let same_site = self.same_site.word();
        format!("Set-Cookie: {name}={value}; Path=/{max_age}; HttpOnly{secure}; SameSite={same_site}\r\n")
    }
}

/// What a connection says that is passed on as it is.
pub fn of_client(address: Option<IpAddr>) -> Affinity {
    Affinity { key: hashed(address, hash), session: Session::None }
}

/// Where a client stands that is told by a field or a cookie, among all that a split divides. It is the same on every worker and every
/// host, after every restart.
pub(crate) fn split_point(value: &[u8]) -> u64 {
    point(value)
}

/// The same of one that is told by its address.
pub(crate) fn split_point_of_client(address: Option<IpAddr>) -> u64 {
    hashed(address, point)
}

fn hashed(address: Option<IpAddr>, hash: fn(&[u8]) -> u64) -> u64 {
    // An IPv4 client is the same one on a socket of IPv6.
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => hash(&address.octets()),
        Some(IpAddr::V6(address)) => hash(&address.octets()),
        None => 0,
    }
}

/// The value that stands for a backend in the cookie where none is configured. It does not tell where it listens.
pub(super) fn opaque(cluster: &str, backend: &str) -> String {
    format!("{:016x}", hash(format!("{cluster}\n{backend}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request(&'static str, Option<&'static str>, Option<&'static str>);

    impl Asked for Request {
        fn client(&self) -> Option<IpAddr> {
            "192.0.2.1".parse().ok()
        }

        fn path(&self) -> &[u8] {
            self.0.as_bytes()
        }

        fn field(&self, name: &str) -> Option<&[u8]> {
            self.1.filter(|_| name == "X-User").map(str::as_bytes)
        }

        fn cookie(&self, name: &str) -> Option<&[u8]> {
            self.2.filter(|_| name == "user").map(str::as_bytes)
        }
    }

    fn rules(change: impl FnOnce(&mut Balancing)) -> AffinityRules {
        let mut balancing = Balancing::default();
        change(&mut balancing);
        AffinityRules::new(&balancing, true)
    }

    #[test]
    fn a_request_is_told_by_what_is_configured_and_without_that_by_its_client() {
        let client = of_client("::ffff:192.0.2.1".parse().ok());
        let request = Request("/a", Some("ann"), Some("bob"));
        let read = |rules: &AffinityRules, request: &Request| rules.read(request, "user");
        assert_eq!(read(&rules(|_| ()), &request), client);
        let by_header = rules(|it| it.affinity_header = Some("X-User".to_owned()));
        assert_eq!({ read(&by_header, &request).key }, hash(b"ann"));
        assert_eq!(read(&by_header, &Request("/a", None, None)), client);
        let by_cookie = rules(|it| it.affinity_cookie = Some("user".to_owned()));
        assert_eq!({ read(&by_cookie, &request).key }, hash(b"bob"));
        assert_eq!({ read(&rules(|it| it.affinity_path = true), &request).key }, hash(b"/a"));
        assert!(AffinityRules::new(&Balancing::default(), false).is_empty());
    }

    #[test]
    fn a_session_is_new_or_with_a_backend() {
        let sticky = rules(|it| it.sticky_session = true);
        assert_eq!({ sticky.read(&Request("/", None, None), "user").session }, Session::New);
        let with = Session::With(SessionHash::new(hash(b"bob")));
        assert_eq!({ sticky.read(&Request("/", None, Some("bob")), "user").session }, with);
        assert_eq!(sticky.set_cookie("S", "v", false), "Set-Cookie: S=v; Path=/; HttpOnly; SameSite=Lax\r\n");
        let long = rules(|it| {
            it.sticky_max_age = 60;
            it.sticky_same_site = SameSite::None;
        });
        assert_eq!(
            long.set_cookie("S", "v", true),
            "Set-Cookie: S=v; Path=/; Max-Age=60; HttpOnly; Secure; SameSite=None\r\n"
        );
    }

    #[test]
    fn a_value_that_is_made_up_does_not_tell_the_address() {
        let value = opaque("web", "10.0.0.1:80");
        assert!(value.len() == 16 && !value.contains("10.0"));
        assert_ne!(value, opaque("web", "10.0.0.2:80"));
        assert_ne!(value, opaque("other", "10.0.0.1:80"));
    }
}
