//! Groups of backends, and the frontends that lead to them.

use std::{
    borrow::Cow,
    ffi::OsString,
    fmt,
    net::SocketAddr,
    num::NonZeroU64,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{
    Admission, Answer, Answers, AuthorizedHash, BackendMode, BackendTls, Balancing, ClusterLimits, DnsName,
    DnsOnEmpty, FrontendLimits, FrontendTls, HeaderEdit, HealthCheck, Passive, Predicates, Redirect,
    Resolved, Retries, Rewrite, RulePosition, Split, listener::NOWHERE,
};
use crate::{
    keys::{keyed, words},
    limits,
};

words! {
    /// What a cluster's backends speak.
    #[derive(Default)]
    pub enum ClusterProtocol {
        /// HTTP/1.1.
        #[default]
        Http = "http",
        /// Whatever the clients speak: connections are passed on as they are.
        Tcp = "tcp",
    }
}

words! {
    /// What the operator says of a cluster.
    #[derive(Default)]
    pub enum ClusterMode {
        /// It takes requests.
        #[default]
        Ready = "ready",
        /// It finishes what it has, and takes nothing.
        Maintain = "maintain",
    }
}

keyed! {
    /// A named group of backends with the frontends that lead to it.
    pub struct Cluster;
    required {
        /// What its backends speak; required. To those of `tcp`, connections are passed on as they are.
        "protocol" => protocol: ClusterProtocol = ClusterProtocol::Http, Choice(&["http", "tcp", "udp"]), Partly("a cluster of `udp` is skipped"), Routes;
    }
    own {
        /// Send clear-text requests to `https` (301) instead of forwarding them, but those that one of `trusted_peers` says came by `https`.
        "https_redirect" => https_redirect: bool = false, Bool, Yes, Routes;
        /// Port of that redirect. Without it: 443, which is not written.
        "https_redirect_port" => https_redirect_port: Option<u16> = None, Integer(1, 65_535), Yes, Routes;
        /// Begin each connection to a backend with a PROXY protocol header (version 2), which names the client.
        "send_proxy" => send_proxy: bool = false, Bool, Yes, Backends;
        /// Users of basic authentication, each as `name:` and the hash of its password: SHA-256 (64 hexadecimal digits), argon2id
        /// (`$argon2id$...`) or bcrypt (`$2b$...`). `required_auth` of a frontend asks for one of them.
        "authorized_hashes" => users: Vec<AuthorizedHash> = Vec::new(), Texts, Yes, Backends;
        /// What the 401 of its frontends says in `WWW-Authenticate`: a challenge (`Basic realm="staff"`), or just the realm.
        "www_authenticate" => www_authenticate: Option<Box<str>> = None, Text, Yes, Backends;
        /// What the operator says of it: `ready`; `maintain`: requests that rules lead here get 503 (`maintenance`), what it has goes on.
        "mode" => mode: ClusterMode = ClusterMode::Ready, Choice(ClusterMode::WORDS), Own, Backends;
        /// `Retry-After` of those answers, in seconds. Without it they have none.
        "maintenance_retry_after" => maintenance_retry_after: Option<u32> = None, Integer(1, 86_400), Own, Backends;
        /// As at the root, for this cluster. Without it: as the root says.
        "dns_on_empty" => dns_on_empty: Option<DnsOnEmpty> = None, Choice(DnsOnEmpty::WORDS), Own, Backends;
    }
    beside {
        /// Its backends are reached by TLS.
        tls: Option<Box<BackendTls>> = None;
        /// How a backend is chosen, where that is not as it would be without keys.
        balancing: Option<Box<Balancing>> = None;
        /// How much it takes at a time, where that is limited.
        admission: Option<Box<Admission>> = None;
        /// When a request is sent again, where that is not as it would be without keys.
        retries: Option<Box<Retries>> = None;
        /// When a backend is passed over because of how it answers, where that is not as it would be without keys.
        passive: Option<Box<Passive>> = None;
        /// How much may come from whom, where that is limited.
        limits: Option<Box<ClusterLimits>> = None;
        /// How its backends are probed; `None`: they are not.
        health: Option<Box<HealthCheck>> = None;
        /// Responses of kakehi's own to its requests.
        answers: Answers = Answers::default();
        /// Rules that lead here.
        frontends: Vec<Frontend> = Vec::new();
        /// Servers that answer.
        backends: Vec<Backend> = Vec::new();
    }
}

keyed! {
    /// A rule: requests for this host, path and method on this listener.
    pub struct Frontend;
    required {
        /// Address of its listener; required.
        "address" => address: SocketAddr = NOWHERE, Address, Yes, Routes;
        /// Host name: `example.org`, `*.example.org` (one label), labels between slashes that are regular expressions
        /// (`/api[0-9]+/.example.org`), or `*` for any; required, but for a cluster of `tcp` on a listener of `tcp`.
        "hostname" => hostname: String = String::new(), Text, Yes, Routes;
    }
    own {
        /// Which method; without it: any.
        "method" => method: Option<String> = None, Method, Yes, Routes;
        /// Answer 401 to who does not name one of the cluster's `authorized_hashes` with its password. Where there are none: to all.
        "required_auth" => required_auth: bool = false, Bool, Yes, Routes;
        /// When the rule is looked at: `TREE`, by what it asks for; `PRE`, before all of these; `POST`, after them. Those of `PRE`, and those of
        /// `POST`, in turn (`order`).
        "position" => position: RulePosition = RulePosition::Tree, Choice(RulePosition::WORDS), Yes, Routes;
        /// Which of rules that are otherwise equal is looked at first: the one with the lower number. Without it: in the order of the file, behind
        /// those that have it.
        "order" => order: Option<NonZeroU64> = None, Integer(1, limits::MAX_ORDER), Own, Routes;
    }
    beside {
        /// Which paths (`path` and `path_type`).
        path: PathRule = PathRule::Prefix(String::new());
        /// What else requests must have, where that is anything.
        predicates: Option<Box<Predicates>> = None;
        /// Refuse with 401 instead of forwarding.
        deny: bool = false;
        /// What else it does instead of forwarding.
        redirect: Redirect = Redirect::Forward;
        /// What it makes of hosts and paths, where it makes anything of them.
        rewrite: Option<Box<Rewrite>> = None;
        /// How its requests are divided among clusters, where they are.
        split: Option<Box<Split>> = None;
        /// The whole response of a redirect.
        redirect_template: Option<Box<Answer>> = None;
        /// What is different with TLS.
        tls: Option<Box<FrontendTls>> = None;
        /// How much may come from whom, where that is limited.
        limits: Option<Box<FrontendLimits>> = None;
        /// What it changes of the fields of requests and responses.
        headers: Vec<HeaderEdit> = Vec::new();
    }
}

impl Frontend {
    /// Whether another rule may be equal to it in all that decides which is looked at first, and take the same request all the same.
    pub fn can_tie(&self) -> bool {
        let is_named_by_expression = || self.hostname.contains('/');
        self.position != RulePosition::Tree
            || self.predicates.as_ref().is_some_and(|it| it.alpn.is_empty())
            || matches!(self.path, PathRule::Regex(_))
            || is_named_by_expression()
    }
}

/// Which paths a frontend takes. The query is not part of the path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", tag = "type", content = "value")]
pub enum PathRule {
    /// The path starts with these bytes.
    Prefix(String),
    /// The path is exactly this.
    Equals(String),
    /// The whole path matches this regular expression.
    Regex(String),
}

keyed! {
    /// A server behind a cluster.
    pub struct Backend;
    required {
        /// Where it listens: `ip:port`, or, of kakehi's own, `unix:/path` for a unix socket (`unix:@name` for one without a file), `host:port` for all addresses that a name has,
        /// `srv:NAME` for all that a service has; required.
        "address" => address: BackendAddress = BackendAddress::Ip(NOWHERE), BackendAddress, Yes, Backends;
        /// Its name, unique in the cluster. Without it: its address.
        "backend_id" => id: String = String::new(), Text, Yes, Backends;
    }
    own {
        /// Its share of the load; 0 = only when no other is left.
        "weight" => weight: u8 = limits::BACKEND_WEIGHT, Integer(0, 255), Yes, Backends;
        /// Used only when no backend without `backup` can be.
        "backup" => backup: bool = false, Bool, Yes, Backends;
        /// Requests, tunnels and connections that it is given at a time, by all workers together; 0 = no limit.
        "max_connections" => max_connections: u32 = 0, Integer(0, u32::MAX as u64), Own, Backends;
        /// Its value in the cookie of sticky sessions. Without it: a hash of its name.
        "sticky_id" => sticky_id: Option<Box<str>> = None, CookieValue, Yes, Backends;
        /// What the operator says of it: `ready`; `drain`: it keeps its sticky sessions and what it has, and takes nothing else;
        /// `maintain`: it finishes what it has, and takes nothing.
        "mode" => mode: BackendMode = BackendMode::Ready, Choice(BackendMode::WORDS), Own, Backends;
    }
}

/// Where a backend listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BackendAddress {
    /// `ip:port` or `[v6]:port`.
    Ip(SocketAddr),
    /// `unix:/path`, or `unix:@name` without a file: a stream socket of the same host.
    Unix(PathBuf),
    /// `host:port` or `srv:NAME`: wherever the DNS says. Nothing can be connected to it before it is [expanded](Cluster::expanded).
    Name(DnsName),
    /// An address of a name. It is written as [`BackendAddress::Ip`], and in no state.
    Resolved(Box<Resolved>),
}

impl BackendAddress {
    /// Whether it is a unix socket without a file.
    pub fn is_abstract(&self) -> bool {
        matches!(self, BackendAddress::Unix(path) if path.as_os_str().as_bytes().starts_with(b"@"))
    }

    /// The path of a unix socket as `connect(2)` takes it: the name of one without a file begins with a zero byte.
    pub fn socket_path(path: &Path) -> Cow<'_, Path> {
        match path.as_os_str().as_bytes() {
            [b'@', name @ ..] => PathBuf::from(OsString::from_vec([b"\0", name].concat())).into(),
            _ => path.into(),
        }
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendAddress::Ip(address) => address.fmt(f),
            BackendAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            BackendAddress::Name(name) => name.fmt(f),
            BackendAddress::Resolved(resolved) => resolved.address.fmt(f),
        }
    }
}

/// Why a text is not a backend's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendAddressError {
    /// Neither an address nor a name.
    #[error(
        "`{0}` is neither `ip:port`, `[v6]:port`, `host:port`, `srv:NAME`, `unix:/absolute/path` nor `unix:@name`"
    )]
    NotAnAddress(String),
    /// It looks like a name, and is none.
    #[error("`{text}` is neither `ip:port` nor a name with a port: {reason}")]
    Name {
        /// As it was written.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A Unix socket's path has 107 bytes at most (`sun_path`).
    #[error("the path of `{0}` is longer than the 107 bytes that a unix socket's path may have")]
    PathTooLong(String),
}

impl FromStr for BackendAddress {
    type Err = BackendAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let is_one = path.starts_with('/') || path.strip_prefix('@').is_some_and(|name| !name.is_empty());
            if !is_one || path.contains('\0') {
                return Err(BackendAddressError::NotAnAddress(text.to_owned()));
            }
            if path.len() > 107 {
                return Err(BackendAddressError::PathTooLong(text.to_owned()));
            }
            return Ok(BackendAddress::Unix(PathBuf::from(path)));
        }
        match text.parse() {
            Ok(address) => Ok(BackendAddress::Ip(address)),
            Err(_) => text.parse().map(BackendAddress::Name),
        }
    }
}
