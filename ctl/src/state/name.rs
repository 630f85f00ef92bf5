//! Backends by name: `host:port` and `srv:NAME`, and the addresses that the DNS gives for them.
//!
//! A state has names only. What they stand for is a fact of the outside, which is found out by the supervisor and told to workers;
//! both put it in the place of the name with [`Cluster::expanded`].

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{Backend, BackendAddress, BackendAddressError, Cluster};
use crate::keys::words;

/// Longest name without the dot of the root (bytes; RFC 1035 section 2.3.4 in its textual form).
const LONGEST_NAME: usize = 253;
/// Longest label (bytes).
const LONGEST_LABEL: usize = 63;
/// How a name of a service begins.
const SERVICE: &str = "srv:";

words! {
    /// What becomes of the addresses of a name that has none any more.
    #[derive(Default)]
    pub enum DnsOnEmpty {
        /// The last ones stay.
        #[default]
        Keep = "keep",
        /// They go.
        Drop = "drop",
    }
}

/// What is asked of the DNS for a backend. In lower case; with a dot at the end it is never looked for in the system's search
/// domains.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DnsName {
    /// `host:port`: the addresses of a host (A and AAAA).
    Host {
        /// The host.
        host: Box<str>,
        /// Port of all of them, from 1.
        port: u16,
    },
    /// `srv:NAME`: hosts with their ports, priorities and weights (SRV).
    Service(Box<str>),
}

impl DnsName {
    /// The name that a certificate of such a backend must have, and that a probe asks for: of a service it is the domain, without the labels
    /// that begin with `_` (RFC 6125 section 6.2.1: what hosts the DNS names proves nothing).
    pub fn server_name(&self) -> &str {
        match self {
            DnsName::Host { host, .. } => host.strip_suffix('.').unwrap_or(host),
            DnsName::Service(name) => {
                let mut rest = name.strip_suffix('.').unwrap_or(name);
                while let Some((_, parent)) = rest.split_once('.').filter(|(label, _)| label.starts_with('_'))
                {
                    rest = parent;
                }
                rest
            }
        }
    }

    /// What is looked up.
    pub fn question(&self) -> &str {
        match self {
            DnsName::Host { host, .. } => host,
            DnsName::Service(name) => name,
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DnsName::Host { host, port } => write!(f, "{host}:{port}"),
            DnsName::Service(name) => write!(f, "{SERVICE}{name}"),
        }
    }
}

impl FromStr for DnsName {
    type Err = BackendAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason| BackendAddressError::Name { text: text.to_owned(), reason };
        if let Some(name) = text.strip_prefix(SERVICE) {
            return host(name).map(DnsName::Service).map_err(wrong);
        }
        let no_address = || BackendAddressError::NotAnAddress(text.to_owned());
        let (name, port) = text.rsplit_once(':').ok_or_else(no_address)?;
        if name.contains([':', '/', '[', ']', '@']) || name.is_empty() {
            return Err(no_address());
        }
        let is_number = !port.starts_with('0') && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| is_number);
        let port = port.ok_or_else(|| wrong("its port is no number from 1 to 65535"))?;
        Ok(DnsName::Host { host: host(name).map_err(wrong)?, port })
    }
}

/// A name that can be looked up, in lower case; otherwise what is wrong with it.
fn host(name: &str) -> Result<Box<str>, &'static str> {
    if !name.is_ascii() {
        return Err(
            "a name in other letters than ASCII is written in its form for the DNS, which begins with `xn--`",
        );
    }
    let bare = name.strip_suffix('.').unwrap_or(name);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if bare.split('.').any(str::is_empty) {
        return Err("it has an empty label");
    }
    if !bare.split('.').flat_map(str::bytes).all(fits) {
        return Err("a name has letters, digits, `-`, `_` and dots only");
    }
    if bare.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
        return Err("no label begins or ends with `-`");
    }
    if bare.len() > LONGEST_NAME || bare.split('.').any(|label| label.len() > LONGEST_LABEL) {
        return Err("it is longer than a name of the DNS can be (253 bytes, 63 between dots)");
    }
    // Such as `10.0.0.256` and `127.1`, which others take for an address.
    let last = bare.rsplit('.').next().unwrap_or(bare);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    if last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err("no name ends in a number, and it is no ip address");
    }
    Ok(name.to_ascii_lowercase().into_boxed_str())
}

/// An address of a backend that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resolved {
    /// The address.
    pub address: SocketAddr,
    /// [`DnsName::server_name`].
    pub server_name: Box<str>,
}

/// One of the addresses of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameAddress {
    /// With its port.
    pub address: SocketAddr,
    /// It has another priority than the first.
    #[serde(default)]
    pub backup: bool,
    /// Of a service: its weight, from 1.
    #[serde(default)]
    pub weight: Option<u8>,
}

/// What the DNS says of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameAnswer {
    /// Of which.
    pub name: DnsName,
    /// The last addresses that it had, in their order; `None`: whoever says this knows of none, and those that are known stay.
    pub addresses: Option<Vec<NameAddress>>,
    /// It has none any more, for certain.
    #[serde(default)]
    pub empty: bool,
}

/// What a supervisor knows of a name, for the one that comes after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownName {
    /// What workers were told.
    #[serde(flatten)]
    pub answer: NameAnswer,
    /// When the DNS last gave addresses (milliseconds since 1970).
    #[serde(default)]
    pub resolved_ms: Option<u64>,
    /// The addresses of the hosts that it stands for: one of them, or one family, may be silent when it is asked for next.
    #[serde(default)]
    pub hosts: Vec<(Box<str>, Vec<IpAddr>)>,
}

impl NameAnswer {
    /// The addresses that are used.
    fn used(&self, on_empty: DnsOnEmpty) -> &[NameAddress] {
        match &self.addresses {
            Some(addresses) if !(self.empty && on_empty == DnsOnEmpty::Drop) => addresses,
            _ => &[],
        }
    }
}

impl Backend {
    /// Its name, if it has one in the place of an address.
    pub fn dns_name(&self) -> Option<&DnsName> {
        match &self.address {
            BackendAddress::Name(name) => Some(name),
            _ => None,
        }
    }

    /// The backend at one of the addresses of this one, which has the name `name`.
    fn at(&self, name: &DnsName, it: &NameAddress) -> Backend {
        let address = it.address;
        // A value that is given stands for all addresses: each needs one of its own, which must not tell the address.
        let sticky_id =
            self.sticky_id.as_ref().map(|id| format!("{id}-{:016x}", fingerprint(address)).into());
        Backend {
            id: format!("{}-{address}", self.id),
            address: BackendAddress::Resolved(Box::new(Resolved {
                address,
                server_name: name.server_name().into(),
            })),
            // Who gives it none wants it for nothing else.
            weight: it.weight.filter(|_| self.weight > 0).unwrap_or(self.weight),
            backup: self.backup || it.backup,
            sticky_id,
            ..self.clone()
        }
    }
}

/// FNV-1a (64 bits) of the text of an address, the same in every process and version.
fn fingerprint(address: SocketAddr) -> u64 {
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    address.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

impl Cluster {
    /// The names of its backends that have one, in their order.
    pub fn dns_names(&self) -> impl Iterator<Item = &DnsName> {
        self.backends.iter().filter_map(Backend::dns_name)
    }

    /// The cluster with the addresses of names in the place of these: each is a backend `ID-ADDRESS`. `answer` says what is known of a
    /// name, `on_empty` what holds where the cluster does not say it. An address whose name another backend has is left out.
    pub fn expanded<'c, 'a>(
        &'c self,
        on_empty: DnsOnEmpty,
        answer: impl Fn(&DnsName) -> Option<&'a NameAnswer>,
    ) -> Cow<'c, Cluster> {
        if self.dns_names().next().is_none() {
            return Cow::Borrowed(self);
        }
        let on_empty = self.dns_on_empty.unwrap_or(on_empty);
        let mut taken: BTreeSet<String> =
            self.backends.iter().filter(|it| it.dns_name().is_none()).map(|it| it.id.clone()).collect();
        let mut backends = Vec::new();
        for backend in &self.backends {
            let Some(name) = backend.dns_name() else {
                backends.push(backend.clone());
                continue;
            };
            let addresses = answer(name).map_or(&[][..], |answer| answer.used(on_empty));
            let at = addresses.iter().map(|it| backend.at(name, it));
            backends.extend(at.filter(|it| taken.insert(it.id.clone())));
        }
        Cow::Owned(Cluster { backends, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_read_as_it_is_written_in_lower_case() {
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        for (text, expected) in [
            ("app:80", "app:80"),
            ("App.Internal.:65535", "app.internal.:65535"),
            ("my_app.default:1", "my_app.default:1"),
            ("xn--bcher-kva.example:8080", "xn--bcher-kva.example:8080"),
            ("1and1.example.4u:80", "1and1.example.4u:80"),
            ("srv:_http._tcp.Example.org", "srv:_http._tcp.example.org"),
            ("srv:web.service.consul.", "srv:web.service.consul."),
            (&format!("{long}:80"), &format!("{long}:80")),
            (&format!("{long}.:80"), &format!("{long}.:80")),
        ] {
            assert_eq!(name(text).to_string(), expected);
            assert_eq!(name(&name(text).to_string()), name(text));
        }
    }

    #[test]
    fn what_is_no_name_with_a_port_is_refused_and_never_looked_up() {
        let (label, long) = ("a".repeat(64), vec!["a".repeat(63); 4].join("."));
        for text in [
            "",
            ":",
            ":80",
            "app",
            "app:",
            "app:0",
            "app:65536",
            "app:+80",
            "app:-1",
            "app:8 0",
            "app:000080",
            ".:80",
            "..:80",
            ".app:80",
            "app..internal:80",
            "app.internal..:80",
            "bücher.example:80",
            "a b:80",
            "-app:80",
            "app-:80",
            "a.-b.c:80",
            "::1:80",
            "[::1]",
            "[app]:80",
            "http://app:80",
            "app/:80",
            "u@app:80",
            "10.0.0.256:80",
            "127.1:80",
            "1.2.3.4.:80",
            "0x7f.0x1:80",
            "80:80",
            "*.app:80",
            "app\0:80",
            "srv:",
            "srv:.",
            "srv:80",
            "srv:app:80",
            "srv:a..b",
            "srv:ü.example",
            "unix:80",
            "unix:relative",
            &format!("{label}:80"),
            &format!("{long}:80"),
            &format!("srv:{long}"),
        ] {
            assert!(text.parse::<BackendAddress>().is_err(), "{text}");
        }
        // An address is one, also in brackets.
        for text in ["[::1]:80", "10.0.0.1:80"] {
            assert!(matches!(text.parse(), Ok(BackendAddress::Ip(_))), "{text}");
        }
    }

    #[test]
    fn whatever_bytes_are_read_as_a_name_are_written_as_the_same_name() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut draw = |n: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (seed >> 33) % n
        };
        let alphabet: Vec<char> = "aZ09-_.:[]/@ srvunix\0é".chars().collect();
        let mut read = 0;
        for _ in 0..200_000 {
            let length = draw(24);
            let text: String = (0..length).map(|_| alphabet[draw(alphabet.len() as u64) as usize]).collect();
            let text = if draw(2) == 0 { format!("{text}:{}", draw(70_000)) } else { text };
            let Ok(BackendAddress::Name(name)) = text.parse::<BackendAddress>() else { continue };
            read += 1;
            assert_eq!(name.to_string(), text.to_ascii_lowercase(), "{text:?}");
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert!(read > 100, "{read}");
    }

    #[test]
    fn a_certificate_is_asked_for_by_the_name_and_not_by_what_the_dns_says() {
        for (text, expected) in [
            ("app.internal:80", "app.internal"),
            ("app.internal.:80", "app.internal"),
            ("srv:_https._tcp.example.org.", "example.org"),
            ("srv:web.service.consul", "web.service.consul"),
            ("srv:_a._b", "_b"),
        ] {
            assert_eq!(name(text).server_name(), expected);
        }
    }

    fn answer(text: &str, ports: &[u16]) -> NameAnswer {
        let address = |port: &u16| ([10, 0, 0, 1], *port).into();
        let addresses =
            ports.iter().map(|it| NameAddress { address: address(it), backup: *it > 100, weight: None });
        NameAnswer { name: name(text), addresses: Some(addresses.collect()), empty: false }
    }

    fn ids(cluster: &Cluster) -> Vec<&str> {
        cluster.backends.iter().map(|it| it.id.as_str()).collect()
    }

    #[test]
    fn each_address_is_a_backend_with_the_keys_of_the_name() {
        let by_name = Backend {
            id: "app".to_owned(),
            address: "app:80".parse().unwrap(),
            weight: 7,
            max_connections: 3,
            sticky_id: Some("s".into()),
            ..Backend::default()
        };
        let fixed = |id: &str| Backend {
            id: id.to_owned(),
            address: "10.0.0.9:9".parse().unwrap(),
            ..Backend::default()
        };
        let backends = vec![fixed("first"), by_name.clone(), fixed("app-10.0.0.1:82")];
        let mut cluster = Cluster { backends, ..Cluster::default() };
        let known = answer("app:80", &[80, 82, 101]);
        let expanded = cluster.expanded(DnsOnEmpty::Keep, |_| Some(&known));
        assert_eq!(ids(&expanded), ["first", "app-10.0.0.1:80", "app-10.0.0.1:101", "app-10.0.0.1:82"]);
        let (one, other) = (&expanded.backends[1], &expanded.backends[2]);
        assert_eq!((one.weight, one.max_connections, one.backup, other.backup), (7, 3, false, true));
        let sticky = |it: &Backend| it.sticky_id.clone().unwrap();
        assert!(sticky(one).starts_with("s-") && sticky(one) != sticky(other));
        assert!(!sticky(one).contains("10.0.0.1"));
        assert!(matches!(&one.address, BackendAddress::Resolved(it) if &*it.server_name == "app"));
        assert_eq!(ids(&cluster.expanded(DnsOnEmpty::Keep, |_| None)), ["first", "app-10.0.0.1:82"]);
        let empty = NameAnswer { empty: true, ..known };
        let count = |cluster: &Cluster, on_empty| cluster.expanded(on_empty, |_| Some(&empty)).backends.len();
        assert_eq!((count(&cluster, DnsOnEmpty::Keep), count(&cluster, DnsOnEmpty::Drop)), (4, 2));
        cluster.dns_on_empty = Some(DnsOnEmpty::Drop);
        assert_eq!(count(&cluster, DnsOnEmpty::Keep), 2, "that of the cluster goes before");
        cluster.backends = vec![fixed("first")];
        assert!(matches!(cluster.expanded(DnsOnEmpty::Keep, |_| None), Cow::Borrowed(_)));
    }

    #[test]
    fn weights_of_a_service_hold_unless_the_backend_is_to_get_nothing() {
        let backend = |weight| Backend {
            id: "s".to_owned(),
            address: "srv:_http._tcp.app".parse().unwrap(),
            weight,
            ..Backend::default()
        };
        let address = NameAddress { address: ([10, 0, 0, 1], 80).into(), backup: false, weight: Some(9) };
        let of = |weight| {
            let cluster = Cluster { backends: vec![backend(weight)], ..Cluster::default() };
            let name = cluster.dns_names().next().unwrap().clone();
            let known = NameAnswer { name, addresses: Some(vec![address]), empty: false };
            cluster.expanded(DnsOnEmpty::Keep, |_| Some(&known)).backends[0].weight
        };
        assert_eq!((of(100), of(0)), (9, 0));
    }
}
