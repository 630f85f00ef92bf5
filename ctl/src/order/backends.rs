//! How backends are, as `kakehictl backends` shows it: three verdicts, none of which overwrites another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::state::{BackendAddress, BackendMode, DnsName};

/// Backends, and the clusters that are not as they should be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Backends {
    /// By cluster, and in the order of the configuration.
    pub backends: Vec<BackendInfo>,
    /// By name; those that are as they should be are not in it.
    pub clusters: BTreeMap<String, ClusterCondition>,
    /// Backends that are not shown, as there are too many.
    #[serde(default)]
    pub left_out: usize,
    /// Backends that have a name in the place of an address, by cluster; a program from before there were any does not say it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<NameInfo>,
}

/// A backend that has a name in the place of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameInfo {
    /// Its cluster.
    pub cluster: String,
    /// Its name in the cluster.
    pub id: String,
    /// What is asked of the DNS.
    pub name: DnsName,
    /// Addresses that are used, each a backend `ID-ADDRESS`.
    pub addresses: usize,
    /// Addresses that are not used, as there are too many.
    pub left_out: usize,
    /// When the DNS last gave addresses (milliseconds since 1970); `None`: it has not yet.
    pub resolved_ms: Option<u64>,
    /// Why it does not now, and since when; `None`: it does, or was not asked yet.
    pub failing: Option<NameFailure>,
}

/// Why the DNS gives no addresses for a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameFailure {
    /// Why.
    pub reason: String,
    /// Since when (milliseconds since 1970).
    pub since_ms: u64,
}

/// What is the matter with a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterCondition {
    /// Operator and probes leave no backend that can be used.
    Down,
    /// Probes call too few primaries well: they are not believed (`panic_threshold`).
    Panic,
    /// The operator has it maintained: it takes nothing.
    Maintained,
    /// Something that this program does not know: it is from a later one.
    #[serde(other)]
    Other,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Its cluster.
    pub cluster: String,
    /// Its name in the cluster.
    pub id: String,
    /// Where it listens.
    pub address: BackendAddress,
    /// Its share of the load.
    pub weight: u8,
    /// It is used only when no backend without `backup` can be.
    pub backup: bool,
    /// What the operator says.
    pub operator: OperatorVerdict,
    /// What probes say; `None`: it is not probed.
    pub probe: Option<ProbeVerdict>,
    /// What its traffic says.
    pub traffic: TrafficVerdict,
    /// All three agree that it can be used.
    pub usable: bool,
    /// Connections in use, of all workers; `None`: a worker did not say it.
    pub in_flight: Option<u64>,
    /// Requests of its cluster that wait for room in one of its backends, on all workers; `None`: a worker did not say it.
    #[serde(default)]
    pub waiting: Option<u64>,
    /// Part of what the cluster served since its workers started (percent); `None`: nothing was, or a worker did not say it.
    pub share_percent: Option<f64>,
    /// It is drained or maintained, and has nothing in flight any more.
    pub drained: bool,
}

/// What the operator says of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorVerdict {
    /// In one word.
    pub mode: BackendMode,
    /// Since when (milliseconds since 1970); `None`: it is as it was when the supervisor started.
    pub since_ms: Option<u64>,
}

/// What probes say of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeVerdict {
    /// It is well; `None`: workers go by what the supervisor before found, or by `initial`, as there was no verdict yet.
    pub up: Option<bool>,
    /// Why.
    pub reason: String,
    /// Since when (milliseconds since 1970).
    pub since_ms: Option<u64>,
    /// Good ones in a row.
    pub good: u32,
    /// Bad ones in a row.
    pub bad: u32,
    /// The last one.
    pub last: Option<LastProbe>,
}

/// A probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastProbe {
    /// When it ended (milliseconds since 1970).
    pub time_ms: u64,
    /// It was good.
    pub good: bool,
    /// What came of it.
    pub outcome: String,
    /// How long it took (ms).
    pub took_ms: u64,
}

/// What its traffic says of a backend: connection attempts that fail have it passed over for a while, on each worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficVerdict {
    /// It is used.
    pub up: bool,
    /// Why not.
    pub reason: String,
    /// Workers that pass it over.
    pub passed_over_by: Vec<u32>,
    /// Since when (milliseconds since 1970); `None`: it is used.
    #[serde(default)]
    pub since_ms: Option<u64>,
}
