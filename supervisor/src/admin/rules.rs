//! Who may connect, and by which name.
//!
//! A web page may have its own name lead to the loopback, and read what answers there (DNS rebinding): the browser names the page's host
//! then. So only names that the operator has named are answered, and addresses, which no page can have as its own name.

use std::net::IpAddr;

use hyper::{Request, Uri, header::HOST};
use ipnet::IpNet;
use kakehi_ctl::state::{Admin, AdminAddress};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// `None`: the loopback.
    allow: Option<Vec<IpNet>>,
    /// In lower case.
    hostnames: Vec<String>,
    /// It is a unix socket, which no web page reaches.
    any_host: bool,
}

/// What is wrong with a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HostError {
    /// None, several, or one that is no host.
    Malformed,
    /// Not one of ours.
    Unknown,
}

impl Rules {
    pub(super) fn new(settings: &Admin) -> Rules {
        Rules {
            allow: settings.allow.clone(),
            hostnames: settings.hostnames.iter().map(|name| normal(name)).collect(),
            any_host: matches!(settings.address, Some(AdminAddress::Unix(_))),
        }
    }

    /// Whether a client of this address may connect. One of a unix socket has none: it could open the file.
    pub(super) fn admit(&self, peer: Option<IpAddr>) -> bool {
        let Some(peer) = peer.map(|it| it.to_canonical()) else { return true };
        match &self.allow {
            None => peer.is_loopback(),
            Some(networks) => networks.iter().any(|network| network.contains(&peer)),
        }
    }

    /// Whether a request names a host that is ours.
    ///
    /// # Errors
    /// See [`HostError`].
    pub(super) fn check_host<B>(&self, request: &Request<B>) -> Result<(), HostError> {
        if self.any_host {
            return Ok(());
        }
        let mut fields = request.headers().get_all(HOST).iter();
        let (field, more) = (fields.next(), fields.next());
        let host = field.filter(|_| more.is_none()).and_then(|it| it.to_str().ok());
        self.check_name(host.ok_or(HostError::Malformed)?)?;
        // RFC 9112 section 3.2.2: a target in absolute form names it as well.
        Uri::authority(request.uri()).map_or(Ok(()), |named| self.check_name(named.as_str()))
    }

    fn check_name(&self, host: &str) -> Result<(), HostError> {
        let (name, port) = split_port(host).ok_or(HostError::Malformed)?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(HostError::Malformed);
        }
        let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let is_address = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => name.parse::<std::net::Ipv4Addr>().is_ok(),
        };
        let name = normal(name);
        let is_ours = is_address || name == "localhost" || self.hostnames.contains(&name);
        if is_ours { Ok(()) } else { Err(HostError::Unknown) }
    }
}

/// Name and port, which may be empty.
fn split_port(host: &str) -> Option<(&str, &str)> {
    let end = match host.starts_with('[') {
        true => host.find(']')? + 1,
        false => host.find(':').unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at_checked(end)?;
    match rest {
        "" => Some((name, "")),
        rest => Some((name, rest.strip_prefix(':')?)),
    }
}

/// As names are compared: in lower case, without the dot of the root.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(address: &str, allow: Option<&[&str]>) -> Rules {
        Rules::new(&Admin {
            address: Some(address.parse().unwrap()),
            allow: allow.map(|allow| allow.iter().map(|it| it.parse().unwrap()).collect()),
            hostnames: vec!["Kakehi.Example.ORG".to_owned()],
        })
    }

    #[test]
    fn without_allow_the_loopback_may_connect_and_with_it_what_it_says() {
        let admits = |rules: &Rules, peer: &str| rules.admit(Some(peer.parse().unwrap()));
        let usual = rules("127.0.0.1:1", None);
        for (peer, may) in
            [("127.0.0.1", true), ("127.3.2.1", true), ("::1", true), ("::ffff:127.0.0.1", true)]
        {
            assert_eq!(admits(&usual, peer), may, "{peer}");
        }
        assert!(!admits(&usual, "10.0.0.1") && !admits(&usual, "::ffff:10.0.0.1"));
        let named = rules("0.0.0.0:1", Some(&["10.0.0.0/8"]));
        assert!(admits(&named, "10.1.2.3") && admits(&named, "::ffff:10.1.2.3"));
        assert!(!admits(&named, "127.0.0.1") && !admits(&named, "11.0.0.1"));
        assert!(!admits(&rules("127.0.0.1:1", Some(&[])), "127.0.0.1"));
        assert!(rules("unix:/a", None).admit(None));
    }

    #[test]
    fn a_host_is_an_address_localhost_or_one_that_was_named() {
        let rules_of_ip = rules("127.0.0.1:1", None);
        let ask = |rules: &Rules, uri: &str, hosts: &[&str]| {
            let mut request = Request::get(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            rules.check_host(&request.body(()).unwrap())
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:9901",
            "10.1.2.3:",
            "[::1]",
            "[::1]:80",
            "localhost",
            "LocalHost:9901",
            "localhost.",
            "kakehi.example.org",
            "KAKEHI.example.org.:9901",
        ] {
            assert_eq!(ask(&rules_of_ip, "/", &[host]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "0x7f.1",
            "2130706433",
            "example.org",
            "::1",
            "",
        ] {
            assert!(ask(&rules_of_ip, "/", &[host]).is_err(), "{host}");
        }
        assert_eq!(ask(&rules_of_ip, "/", &["evil.example:9901"]), Err(HostError::Unknown));
        for host in ["localhost:x", "[::1", "[::1]x", "localhost:1:2"] {
            assert_eq!(ask(&rules_of_ip, "/", &[host]), Err(HostError::Malformed), "{host}");
        }
        assert_eq!(ask(&rules_of_ip, "/", &[]), Err(HostError::Malformed));
        assert_eq!(ask(&rules_of_ip, "/", &["localhost", "localhost"]), Err(HostError::Malformed));
        assert_eq!(ask(&rules_of_ip, "http://evil.example/", &["localhost"]), Err(HostError::Unknown));
        assert_eq!(ask(&rules_of_ip, "http://localhost/", &["localhost"]), Ok(()));
        assert_eq!(
            ask(&rules_of_ip, "http://localhost@evil.example/", &["localhost"]),
            Err(HostError::Unknown)
        );
        assert_eq!(ask(&rules("unix:/a", None), "/", &["evil.example"]), Ok(()));
    }
}
