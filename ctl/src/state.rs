//! The state: one value that says everything a worker needs to serve.
//!
//! The supervisor holds the authoritative copy; each worker gets it when it starts and compiles its tables from it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{edit, layers::ByHand};

mod admin;
mod admission;
mod answers;
mod balancing;
mod binding;
mod cluster;
mod compact;
mod conditions;
mod factor;
mod failures;
mod file_mode;
mod header_edit;
mod health;
mod listener;
mod name;
mod password_hash;
mod predicate;
mod probe_header;
mod redirect;
mod settings;
mod sources;
mod split;
mod text;
mod tls;
mod users;

pub use self::admin::{Admin, AdminAddress, AdminAddressError, AdminError};
pub use self::admission::Admission;
pub(crate) use self::answers::read_answer;
pub use self::answers::{Answer, Answers, Pages};
pub use self::balancing::{Balancing, LoadBalancing, LoadMetric, SameSite, ShardMode};
pub use self::binding::{Binding, InterfaceName, InterfaceNameError};
pub use self::cluster::{
    Backend, BackendAddress, BackendAddressError, Cluster, ClusterMode, ClusterProtocol, Frontend, PathRule,
};
pub use self::conditions::{Conditions, Statuses};
pub use self::factor::Factor;
pub use self::failures::{Passive, Retries};
pub use self::file_mode::{FileMode, FileModeError};
pub use self::header_edit::{EditPosition, HeaderEdit, MAX_EDIT_VALUE, MAX_HEADER_EDITS};
pub use self::health::{BackendMode, HealthCheck, InitialVerdict, ProbeMode, StatusRange, StatusRangeError};
pub use self::listener::{ForwardedHeaders, Forwarding, Listener, ListenerProtocol, Sizes, Timeouts};
pub use self::name::{DnsName, DnsOnEmpty, KnownName, NameAddress, NameAnswer, Resolved};
pub use self::password_hash::{Argon2id, Bcrypt, PasswordHash};
pub use self::predicate::{
    MAX_ALPN, MAX_PREDICATE_VALUE, MAX_PREDICATES, Predicate, PredicateMatch, Predicates, RulePosition,
};
pub use self::probe_header::{MAX_PROBE_HEADERS, MAX_PROBE_VALUE, ProbeHeader, ProbeValueError};
pub use self::redirect::{Redirect, RedirectScheme, Rewrite};
pub use self::settings::{Settings, Steering};
pub use self::sources::{ClusterLimits, FrontendLimits, RateKey, RateKeyError, RateLimit, Sources};
pub use self::split::{MAX_SPLIT_PARTS, Split, SplitPart};

pub use self::compact::{Names, PackedFiles};
pub use self::tls::{
    BackendTls, Certificate, CertificateFiles, CipherSuite, ClientAuth, Fingerprint, FingerprintError,
    FrontendTls, Group, Hsts, KeyKind, Material, Place, Tls, TlsVersion, UnknownName, WantedCertificate,
};

pub use self::text::is_token;
pub use self::users::AuthorizedHash;

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
    /// What of it is by hand, and not as the file says.
    #[serde(default, skip_serializing_if = "ByHand::is_empty")]
    pub by_hand: ByHand,
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
    /// Settings that `kakehictl` has changed since, by their keys, with values as in a file. They go before those of the file,
    /// also of one that has changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
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
            by_hand: ByHand::default(),
        }
    }
}

impl State {
    /// What this state, which a file says, becomes when it goes on from `earlier`: with the settings of the file, and all
    /// else from there; also with as many workers in the same places, unless the file has changed since.
    #[must_use]
    pub fn going_on_from(self, earlier: State) -> State {
        let mut earlier = earlier;
        let settings = edit::settings_that_fit(&self.settings, &mut earlier.revision.settings);
        let mut state = State { settings, ..earlier };
        if state.revision.origin == self.revision.origin {
            state.settings.worker_count = state.revision.workers.or(state.settings.worker_count);
            if !state.revision.worker_cores.is_empty() {
                state.settings.worker_cores.clone_from(&state.revision.worker_cores);
            }
        } else {
            (state.revision.workers, state.revision.worker_cores) = (None, Vec::new());
        }
        state.settle_by_hand();
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

    /// Where sockets are bound that accept connections.
    pub fn bindings(&self) -> impl Iterator<Item = Binding> + '_ {
        self.listeners.values().filter(|listener| listener.active).map(Listener::binding)
    }

    /// Whether connections are accepted on sockets that are bound so.
    pub fn accepts_on(&self, binding: &Binding) -> bool {
        let listener = self.listeners.get(&binding.address).filter(|listener| listener.active);
        listener.is_some_and(|listener| listener.binding() == *binding)
    }
}
