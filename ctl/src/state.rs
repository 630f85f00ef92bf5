//! The state: one value that says everything a worker needs to serve.
//!
//! The supervisor holds the authoritative copy; each worker gets it when it starts and compiles its tables from it.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::limits;

mod compact;
mod defaults;
mod tls;

pub use self::compact::{Names, PackedFiles};
pub use self::tls::{
    BackendTls, Certificate, CertificateFiles, CipherSuite, ClientAuth, Fingerprint, FingerprintError,
    FrontendTls, Group, Hsts, KeyKind, Material, Place, Tls, TlsVersion, UnknownName, WantedCertificate,
};

/// Version of the serialised form; a reader refuses any other.
pub const STATE_VERSION: u32 = 1;

/// The certificates of a listener.
pub type ListenerCertificates = BTreeMap<Fingerprint, Arc<Certificate>>;

/// Everything that is configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Always [`STATE_VERSION`] in what this version writes.
    pub version: u32,
    /// Which in the row of states it is, and what it came from.
    #[serde(default)]
    pub revision: Revision,
    /// What applies to the whole process.
    pub settings: Settings,
    /// By address: one listener each.
    pub listeners: BTreeMap<SocketAddr, Listener>,
    /// By name.
    pub clusters: BTreeMap<String, Cluster>,
    /// By the address of their listener.
    #[serde(default, deserialize_with = "compact::certificates")]
    pub certificates: BTreeMap<SocketAddr, ListenerCertificates>,
}

/// Which in the row of states one is, and what it came from. A supervisor that takes over workers tells by it which of
/// them is ahead, and whether the file has changed since it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Changes since the start, from 0.
    pub generation: u64,
    /// Digest of what the file said that was read last; empty where there was none.
    pub origin: String,
    /// How many workers `kakehictl` has asked for since; `None`: it is as the file says.
    #[serde(default)]
    pub workers: Option<u16>,
    /// Where it has put them since; empty: as the file says.
    #[serde(default)]
    pub worker_cores: Vec<u16>,
}

/// What applies to the whole process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Where `kakehictl` connects.
    pub command_socket: PathBuf,
    /// Written at start, removed at a clean stop.
    pub pid_file_path: Option<PathBuf>,
    /// Workers; `None` = one per core that the process may use.
    pub worker_count: Option<u16>,
    /// Core of each worker, as far as it is said.
    pub worker_cores: Vec<u16>,
    /// Which worker gets a new connection.
    pub steering: Steering,
    /// Move connections by itself when workers are too unequally busy.
    pub rebalance_auto: bool,
    /// How often it is looked for that (ms).
    pub rebalance_interval_ms: u64,
    /// How much of the average the busiest and the idlest worker may differ then (percent).
    pub rebalance_threshold: u16,
    /// Replace a worker that dies.
    pub worker_automatic_restart: bool,
    /// Pin worker `i` to the `i`-th core that the process may use (`handle_process_affinity`).
    pub pin_workers: bool,
    /// Connections that one worker serves at a time.
    pub max_connections: u32,
    /// TLS handshakes with clients that are under way at a time in all workers together; 0 = any number.
    #[serde(default = "defaults::max_handshakes")]
    pub max_handshakes: u32,
    /// What is in flight at a stop has this long to finish (ms).
    pub graceful_timeout_ms: u64,
    /// How long an idle connection waits, at a stop or when its listener was removed, for a request that is on its way (ms).
    #[serde(default = "defaults::stop_idle_grace")]
    pub stop_idle_grace_ms: u64,
    /// How long a tunnel goes on whose listener or backend was removed, and a worker's old process after an upgrade (ms).
    pub drain_timeout_ms: u64,
    /// How long a worker goes on whose supervisor has died, if no other takes it over (ms); `None` = for ever.
    pub orphan_timeout_ms: Option<u64>,
    /// A worker that does not answer an order for so long is given up and replaced (ms).
    #[serde(default = "defaults::worker_timeout")]
    pub worker_timeout_ms: u64,
    /// A worker that answers no ping for so long is killed and replaced (ms); 0 = never.
    #[serde(default = "defaults::worker_liveness")]
    pub worker_liveness_ms: u64,
    /// Users that may use the command socket, besides root and our own.
    pub command_allowed_uids: Vec<u32>,
    /// Where the state is saved.
    pub saved_state: Option<PathBuf>,
    /// Save it after each change.
    pub automatic_state_save: bool,
    /// User that workers become.
    pub user: Option<String>,
    /// Group that workers become; `None` = that of `user`.
    pub group: Option<String>,
    /// Highest rung of the ladder of kernel features to use, 0 to 4; `None` = the best that the kernel has.
    pub io_uring_level: Option<u8>,
    /// Buffers in a worker's arena.
    pub buffer_count: u16,
    /// Private memory that bodies may take in one worker (bytes).
    #[serde(default = "defaults::body_memory")]
    pub body_memory: u64,
    /// Idle upstream connections that one worker keeps per backend.
    pub upstream_max_idle: u32,
    /// How long an idle upstream connection is kept (ms).
    pub upstream_idle_timeout_ms: u64,
    /// Look at the files of certificates, and take them anew when they have changed.
    #[serde(default = "defaults::yes")]
    pub certificate_watch: bool,
    /// How often (ms).
    #[serde(default = "defaults::certificate_watch_interval")]
    pub certificate_watch_interval_ms: u64,
    /// How long a ticket key is used before there is a new one (ms).
    #[serde(default = "defaults::ticket_key_rotation")]
    pub ticket_key_rotation_ms: u64,
    /// Filter of the log: `error`, `warn`, `info`, `debug`, or directives per module.
    pub log_level: String,
}

/// Which worker gets a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Steering {
    /// By a hash of its addresses.
    Hash,
    /// The one on the core that received it.
    Cpu,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            command_socket: PathBuf::from("./kakehi.sock"),
            pid_file_path: None,
            worker_count: None,
            worker_cores: Vec::new(),
            steering: Steering::Hash,
            rebalance_auto: false,
            rebalance_interval_ms: limits::REBALANCE_INTERVAL_MS,
            rebalance_threshold: limits::REBALANCE_THRESHOLD,
            worker_automatic_restart: true,
            pin_workers: true,
            max_connections: limits::MAX_CONNECTIONS,
            max_handshakes: limits::MAX_HANDSHAKES,
            graceful_timeout_ms: limits::GRACEFUL_TIMEOUT_MS,
            stop_idle_grace_ms: limits::STOP_IDLE_GRACE_MS,
            drain_timeout_ms: limits::DRAIN_TIMEOUT_MS,
            orphan_timeout_ms: None,
            worker_timeout_ms: limits::WORKER_TIMEOUT_MS,
            worker_liveness_ms: limits::WORKER_LIVENESS_MS,
            user: None,
            group: None,
            command_allowed_uids: Vec::new(),
            saved_state: None,
            automatic_state_save: false,
            io_uring_level: None,
            buffer_count: limits::BUFFER_COUNT,
            body_memory: limits::BODY_MEMORY,
            upstream_max_idle: limits::UPSTREAM_MAX_IDLE,
            upstream_idle_timeout_ms: limits::UPSTREAM_IDLE_TIMEOUT_MS,
            certificate_watch: true,
            certificate_watch_interval_ms: limits::CERTIFICATE_WATCH_INTERVAL_MS,
            ticket_key_rotation_ms: limits::TICKET_KEY_ROTATION_MS,
            log_level: "info".to_owned(),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            version: STATE_VERSION,
            revision: Revision::default(),
            settings: Settings::default(),
            listeners: BTreeMap::new(),
            clusters: BTreeMap::new(),
            certificates: BTreeMap::new(),
        }
    }
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// HTTP/1.x in clear text.
    Http,
    /// HTTP/1.x over TLS.
    Https,
    /// Bytes, which are passed on as they are.
    Tcp,
}

/// An address that accepts connections, and how it treats them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: ListenerProtocol,
    /// It accepts connections; otherwise it is only configured.
    #[serde(default = "defaults::yes")]
    pub active: bool,
    /// The address that clients see, where that differs (NAT): told to backends.
    pub public_address: Option<SocketAddr>,
    /// Deadlines of its connections.
    pub timeouts: Timeouts,
    /// Size limits of its messages.
    pub sizes: Sizes,
    /// Fields that kakehi adds to requests.
    pub forwarding: Forwarding,
    /// Connections begin with a header of the PROXY protocol.
    #[serde(default)]
    pub expect_proxy: bool,
    /// A client that says that it sends no more is gone.
    #[serde(default)]
    pub abort_on_close: bool,
    /// Networks whose peers may send that header.
    #[serde(default)]
    pub proxy_peers: Vec<IpNet>,
    /// How it terminates TLS, if it speaks `https`.
    #[serde(default)]
    pub tls: Option<Box<Tls>>,
}

/// Deadlines (ms). All are absolute: bytes that trickle do not extend them, except where a rate is named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// Complete request head.
    pub request_ms: u64,
    /// Idle client connection, or a client that takes no bytes.
    pub front_ms: u64,
    /// Silent backend.
    pub back_ms: u64,
    /// One connection attempt to a backend.
    pub connect_ms: u64,
    /// Slack of a body.
    pub body_ms: u64,
    /// Slowest body after the slack, bytes per second; 0 = any.
    pub body_min_rate: u32,
    /// Slowest response after the slack, bytes per second; 0 = any.
    pub response_min_rate: u32,
    /// A whole response; 0 = any.
    pub response_ms: u64,
    /// A request body that is still coming when its request was answered.
    pub lingering_ms: u64,
    /// Such a body standing still.
    pub lingering_idle_ms: u64,
    /// Silent tunnel.
    pub tunnel_ms: u64,
    /// Wait for the backend's `100 Continue`.
    pub continue_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            request_ms: limits::REQUEST_TIMEOUT_MS,
            front_ms: limits::FRONT_TIMEOUT_MS,
            back_ms: limits::BACK_TIMEOUT_MS,
            connect_ms: limits::CONNECT_TIMEOUT_MS,
            body_ms: limits::BODY_TIMEOUT_MS,
            body_min_rate: limits::BODY_MIN_RATE,
            response_min_rate: limits::RESPONSE_MIN_RATE,
            response_ms: limits::MAX_RESPONSE_TIME_MS,
            lingering_ms: limits::LINGERING_TIME_MS,
            lingering_idle_ms: limits::LINGERING_TIMEOUT_MS,
            tunnel_ms: limits::TUNNEL_TIMEOUT_MS,
            continue_ms: limits::CONTINUE_TIMEOUT_MS,
        }
    }
}

/// Size limits of messages (bytes, fields).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Request head.
    pub head: u32,
    /// Fields of a head.
    pub fields: u16,
    /// Request target.
    pub target: u32,
    /// Response head.
    pub response_head: u32,
    /// Request body; 0 = no limit.
    pub body: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            head: limits::MAX_HEAD_SIZE,
            fields: limits::MAX_HEAD_FIELDS,
            target: limits::MAX_TARGET_SIZE,
            response_head: limits::MAX_RESPONSE_HEAD_SIZE,
            body: limits::MAX_BODY_SIZE,
        }
    }
}

/// Which fields kakehi adds to a request, and whose it believes.
///
/// A field that is switched off is not added. What a peer outside `trusted_peers` sends in any of
/// them never reaches a backend, switched on or off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forwarding {
    /// `X-Forwarded-For`: the peer's address, appended to what a trusted peer sent.
    pub x_forwarded_for: bool,
    /// `X-Forwarded-Proto`: `http` or `https`.
    pub x_forwarded_proto: bool,
    /// `X-Forwarded-Port`: the port that the client connected to.
    pub x_forwarded_port: bool,
    /// `X-Forwarded-Host`: the authority that the client asked for.
    pub x_forwarded_host: bool,
    /// `Forwarded` (RFC 7239), appended to what a trusted peer sent.
    pub forwarded: bool,
    /// `Via` (RFC 9110 section 7.6.3).
    pub via: bool,
    /// `X-Request-Id`: a ULID, unless a trusted peer sent one.
    pub x_request_id: bool,
    /// `X-Real-IP`: the peer's address (`send_x_real_ip`); off by default, as in sozu.
    pub x_real_ip: bool,
    /// Drop an `X-Real-IP` that a client sent (`elide_x_real_ip`).
    pub elide_x_real_ip: bool,
    /// Fields with `_` in their names are passed on (`underscores_in_headers`).
    #[serde(default)]
    pub underscores: bool,
    /// Networks whose peers may set these fields.
    pub trusted_peers: Vec<IpNet>,
}

impl Default for Forwarding {
    fn default() -> Self {
        Forwarding {
            x_forwarded_for: true,
            x_forwarded_proto: true,
            x_forwarded_port: true,
            x_forwarded_host: true,
            forwarded: true,
            via: true,
            x_request_id: true,
            x_real_ip: false,
            elide_x_real_ip: false,
            underscores: false,
            trusted_peers: Vec::new(),
        }
    }
}

impl State {
    /// What this state, which a file says, becomes when it goes on from `earlier`: with the settings of the file, and all
    /// else from there; also with as many workers in the same places, unless the file has changed since.
    #[must_use]
    pub fn going_on_from(self, earlier: State) -> State {
        let mut state = State { settings: self.settings, ..earlier };
        if state.revision.origin == self.revision.origin {
            state.settings.worker_count = state.revision.workers.or(state.settings.worker_count);
            if !state.revision.worker_cores.is_empty() {
                state.settings.worker_cores.clone_from(&state.revision.worker_cores);
            }
        } else {
            (state.revision.workers, state.revision.worker_cores) = (None, Vec::new());
        }
        state
    }

    /// Addresses that accept connections.
    pub fn active_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.listeners.iter().filter(|(_, listener)| listener.active).map(|(address, _)| *address)
    }

    /// Whether connections are accepted at `address`.
    pub fn accepts(&self, address: &SocketAddr) -> bool {
        self.listeners.get(address).is_some_and(|listener| listener.active)
    }
}

impl Listener {
    /// A listener at `address` with every default.
    pub fn http(address: SocketAddr) -> Self {
        Listener {
            address,
            protocol: ListenerProtocol::Http,
            active: true,
            public_address: None,
            timeouts: Timeouts::default(),
            sizes: Sizes::default(),
            forwarding: Forwarding::default(),
            expect_proxy: false,
            abort_on_close: false,
            proxy_peers: proxy_peers(),
            tls: None,
        }
    }
}

/// Networks whose peers may send a header of the PROXY protocol where nothing else is said: those that are not reached from
/// the internet (RFC 1918, 3927, 4193, 4291, 6598).
pub fn proxy_peers() -> Vec<IpNet> {
    [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ]
    .into_iter()
    .filter_map(|network| network.parse().ok())
    .collect()
}

/// What a cluster's backends speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterProtocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// Whatever the clients speak: connections are passed on as they are.
    Tcp,
}

/// A named group of backends with the frontends that lead to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// What its backends speak.
    #[serde(default)]
    pub protocol: ClusterProtocol,
    /// Connections to its backends begin with a header of the PROXY protocol, version 2.
    #[serde(default)]
    pub send_proxy: bool,
    /// Its backends are reached by TLS.
    #[serde(default)]
    pub tls: Option<Box<BackendTls>>,
    /// Redirect clear-text requests to `https` (301) instead of forwarding them.
    pub https_redirect: bool,
    /// Port of that redirect; `None` = 443, not written.
    pub https_redirect_port: Option<u16>,
    /// Rules that lead here.
    pub frontends: Vec<Frontend>,
    /// Servers that answer.
    pub backends: Vec<Backend>,
}

/// A rule: requests for this host, path and method on this listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frontend {
    /// The listener.
    pub address: SocketAddr,
    /// Exact name, `*.name`, `/regex/` labels, or `*` for any host.
    pub hostname: String,
    /// Which paths.
    pub path: PathRule,
    /// Which method; `None` = any.
    pub method: Option<String>,
    /// Refuse with 401 instead of forwarding.
    pub deny: bool,
    /// What is different with TLS.
    #[serde(default)]
    pub tls: Option<Box<FrontendTls>>,
}

/// Which paths a frontend takes. The query is not part of the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", tag = "type", content = "value")]
pub enum PathRule {
    /// The path starts with these bytes.
    Prefix(String),
    /// The path is exactly this.
    Equals(String),
    /// The whole path matches this regular expression.
    Regex(String),
}

/// A server behind a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Name, unique in its cluster.
    pub id: String,
    /// Where it listens.
    pub address: BackendAddress,
    /// Share of the load, 0 to 255; 0 = only when no other is left.
    pub weight: u8,
    /// Used only when no primary can be.
    pub backup: bool,
}

/// Where a backend listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BackendAddress {
    /// `ip:port` or `[v6]:port`.
    Ip(SocketAddr),
    /// `unix:/path`: a stream socket of the same host.
    Unix(PathBuf),
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendAddress::Ip(address) => address.fmt(f),
            BackendAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a text is not a backend's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendAddressError {
    /// Neither `ip:port` nor `unix:/path`.
    #[error("`{0}` is neither `ip:port`, `[v6]:port` nor `unix:/absolute/path` (names are not resolved)")]
    NotAnAddress(String),
    /// A Unix socket's path has 107 bytes at most (`sun_path`).
    #[error("the path of `{0}` is longer than the 107 bytes that a unix socket's path may have")]
    PathTooLong(String),
}

impl FromStr for BackendAddress {
    type Err = BackendAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(BackendAddressError::NotAnAddress(text.to_owned()));
            }
            if path.len() > 107 {
                return Err(BackendAddressError::PathTooLong(text.to_owned()));
            }
            return Ok(BackendAddress::Unix(PathBuf::from(path)));
        }
        text.parse().map(BackendAddress::Ip).map_err(|_| BackendAddressError::NotAnAddress(text.to_owned()))
    }
}

impl TryFrom<String> for BackendAddress {
    type Error = BackendAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BackendAddress> for String {
    fn from(address: BackendAddress) -> Self {
        address.to_string()
    }
}
