//! The verbs about what is configured: listeners, clusters, frontends, backends.
//!
//! Keys of listeners and clusters are those of the file and read by the same code, so they mean and allow the same.

use std::{env, net::SocketAddr};

use clap::{Args, Subcommand, ValueEnum};
use kakehi_ctl::{
    change::{Change, FrontendRule},
    edit::{self, Edit},
    order::{Request, Response},
    state::{
        Backend, BackendAddress, BackendMode, Cluster, ClusterMode, ClusterProtocol, Frontend,
        ListenerProtocol, PathRule, State,
    },
};
use serde::Serialize;
use serde_json::json;

use crate::{client::Failure, print};

/// What can be done to listeners.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ListenerVerb {
    /// List them
    ///
    /// With --json: an array with one object per listener.
    List,
    /// Add a listener
    Add {
        /// Where it listens: ip:port, with IPv6 in brackets
        address: SocketAddr,
        /// Keys of a listener as in the file: protocol=https front_timeout=30 hsts.enabled=true
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        keys: Vec<String>,
    },
    /// Change some keys of a listener; what is not named stays. Connections go on
    Patch {
        /// Which
        address: SocketAddr,
        /// Keys of a listener as in the file; without a value (KEY=) its default
        #[arg(value_name = "KEY=VALUE", value_parser = key_value, required = true)]
        keys: Vec<String>,
    },
    /// Accept connections on a listener that does not
    Activate {
        /// Which
        address: SocketAddr,
    },
    /// Accept no more on a listener, which stays configured; its connections end after the exchange that they are in
    Deactivate {
        /// Which
        address: SocketAddr,
    },
    /// Remove a listener that no frontend names
    Remove {
        /// Which
        address: SocketAddr,
    },
}

/// What can be done to clusters.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ClusterVerb {
    /// List them
    ///
    /// With --json: an array with one object per cluster.
    List,
    /// Add a cluster, without frontends and backends
    Add {
        /// Its name
        name: String,
        /// Keys of a cluster as in the file: protocol=tcp send_proxy=true
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        keys: Vec<String>,
    },
    /// Change some keys of a cluster; what is not named stays
    Patch {
        /// Which
        name: String,
        /// Keys of a cluster as in the file; without a value (KEY=) its default
        #[arg(value_name = "KEY=VALUE", value_parser = key_value, required = true)]
        keys: Vec<String>,
    },
    /// Answer requests for a cluster with 503 and refuse connections that would be passed on to it; what it has goes on
    Maintain {
        /// Which
        name: String,
        /// Tell clients to come again after so many seconds (Retry-After); without it: as its key `maintenance_retry_after` says
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
        retry_after: Option<u32>,
    },
    /// Lead requests to a cluster again, after `maintain`
    Ready {
        /// Which
        name: String,
    },
    /// Remove a cluster with its frontends and backends
    Remove {
        /// Which
        name: String,
    },
    /// Close sessions of a cluster on all workers: idle connections to its backends, tunnels and connections that are passed on at
    /// once; requests in flight get their answer, and their connection to the backend is closed then
    ///
    /// With --json: an object.
    CloseSessions {
        /// Which
        name: String,
        /// Only those of this backend
        #[arg(long, value_name = "ID")]
        backend: Option<String>,
    },
}

/// What can be done to frontends.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum FrontendVerb {
    /// List them
    ///
    /// With --json: an array with one object per frontend.
    List {
        /// Only those of this cluster
        cluster: Option<String>,
    },
    /// Add a frontend
    Add {
        #[command(flatten)]
        rule: RuleArguments,
        /// Keys of TLS as in the file: client_ca=/etc/ca.pem hsts.enabled=true
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        keys: Vec<String>,
        /// Refuse such requests (401) instead of forwarding them
        #[arg(long)]
        deny: bool,
    },
    /// Change some keys of a frontend; what is not named stays. Which requests it takes cannot be changed
    Patch {
        #[command(flatten)]
        rule: RuleArguments,
        /// Keys of a frontend as in the file: client_ca=/etc/ca.pem redirect=unauthorized; without a value (KEY=) its default
        #[arg(value_name = "KEY=VALUE", value_parser = key_value, required = true)]
        keys: Vec<String>,
    },
    /// Remove a frontend; requests that it led somewhere are finished
    Remove {
        #[command(flatten)]
        rule: RuleArguments,
    },
}

/// Which requests a frontend takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct RuleArguments {
    /// Cluster that it leads to
    cluster: String,
    /// Its listener
    address: SocketAddr,
    /// Exact name, `*.name`, `/regex/` labels, or `*` for any host
    hostname: String,
    /// Which paths
    #[arg(long, default_value = "")]
    path: String,
    /// How the path is compared
    #[arg(long, default_value = "prefix", ignore_case = true)]
    path_type: PathType,
    /// Which method; by default any
    #[arg(long)]
    method: Option<String>,
    /// What else it asks for, as in a file: position, header_predicates, query_predicates, cookie_predicates, sources or alpn; may be given again.
    /// For patch and remove it tells frontends apart that differ in nothing else
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    when: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PathType {
    Prefix,
    Equals,
    Regex,
}

/// What can be done to backends.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BackendVerb {
    /// List them
    ///
    /// With --json: an array with one object per backend.
    List {
        /// Only those of this cluster
        cluster: Option<String>,
    },
    /// Add a backend
    Add {
        /// Cluster that it belongs to
        cluster: String,
        /// Where it listens: ip:port, with IPv6 in brackets, unix:/path, or a name of the DNS, host:port or srv:NAME, each address of
        /// which is a backend ID-ADDRESS
        address: BackendAddress,
        /// Its name in the cluster; by default its address
        #[arg(long)]
        id: Option<String>,
        /// Its share of the load
        #[arg(long, default_value_t = 100)]
        weight: u8,
        /// Use it only when no other can be used
        #[arg(long)]
        backup: bool,
        /// Its value in the cookie of sticky sessions; by default a hash of its name
        #[arg(long)]
        sticky_id: Option<String>,
    },
    /// Change some keys of a backend; what is not named stays
    Patch {
        /// Cluster that it belongs to
        cluster: String,
        /// Its name in the cluster
        id: String,
        /// Keys of a backend as in the file: weight=50 backup=true address=10.0.0.2:80; without a value (KEY=) its default
        #[arg(value_name = "KEY=VALUE", value_parser = key_value, required = true)]
        keys: Vec<String>,
    },
    /// Give a backend no new work but that of its sticky sessions; what it has goes on
    Drain {
        /// Cluster that it belongs to
        cluster: String,
        /// Its name in the cluster
        id: String,
    },
    /// Give a backend nothing any more; what it has goes on
    Maintain {
        /// Cluster that it belongs to
        cluster: String,
        /// Its name in the cluster
        id: String,
    },
    /// Give a backend work again, after `drain` or `maintain`
    Ready {
        /// Cluster that it belongs to
        cluster: String,
        /// Its name in the cluster
        id: String,
    },
    /// Remove a backend; it finishes the requests that it has
    Remove {
        /// Cluster that it belongs to
        cluster: String,
        /// Its name in the cluster
        id: String,
    },
}

/// What is to be shown.
pub(crate) enum Shown {
    /// An answer.
    Response(Response),
    /// Something made of an answer.
    Made {
        /// For programs.
        json: serde_json::Value,
        /// For people.
        text: String,
    },
}

/// How the supervisor is asked.
pub(crate) type Ask<'a> = &'a dyn Fn(Request) -> Result<Response, Failure>;

/// `KEY=VALUE`, as it is passed on.
pub(crate) fn key_value(text: &str) -> Result<String, &'static str> {
    edit::check_assignment(text).map(|()| text.to_owned())
}

/// Asks for an edit; relative paths are those of the working directory.
pub(crate) fn edit(ask: Ask<'_>, edit: Edit) -> Result<Shown, Failure> {
    let folder = env::current_dir().map_err(|error| Failure::Usage(error.to_string()))?;
    ask(Request::Edit { edits: vec![edit], folder, if_generation: None }).map(Shown::Response)
}

pub(crate) fn state(ask: Ask<'_>) -> Result<State, Failure> {
    match ask(Request::State)? {
        Response::State(state) => Ok(*state),
        _ => Err(Failure::Refused("it does not tell its state".to_owned())),
    }
}

pub(crate) fn made(rows: Vec<serde_json::Value>, text: String) -> Shown {
    let text = if rows.is_empty() { "none\n".to_owned() } else { text };
    Shown::Made { json: rows.into(), text }
}

impl ListenerVerb {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        match self {
            ListenerVerb::List => {
                let state = state(ask)?;
                let mut rows = vec![
                    ["ADDRESS", "ACCEPTS", "PROTOCOL", "PUBLIC ADDRESS", "INTERFACE"].map(str::to_owned),
                ];
                rows.extend(state.listeners.values().map(|it| {
                    let public = it.public_address.map_or_else(|| "-".to_owned(), |it| it.to_string());
                    let accepts = if it.active { "yes" } else { "no" };
                    let protocol = match it.protocol {
                        ListenerProtocol::Http => "http",
                        ListenerProtocol::Https => "https",
                        ListenerProtocol::Tcp => "tcp",
                    };
                    let interface = it.interface.map_or_else(|| "any".to_owned(), |it| it.to_string());
                    [it.address.to_string(), accepts.to_owned(), protocol.to_owned(), public, interface]
                }));
                Ok(made(values(state.listeners.values()), print::table(&rows)))
            }
            ListenerVerb::Add { address, keys } => {
                edit(ask, Edit::AddListener { address: *address, keys: keys.clone() })
            }
            ListenerVerb::Patch { address, keys } => {
                edit(ask, Edit::PatchListener { address: *address, keys: keys.clone() })
            }
            ListenerVerb::Activate { address } => {
                edit(ask, Edit::PatchListener { address: *address, keys: vec!["active=true".to_owned()] })
            }
            ListenerVerb::Deactivate { address } => {
                edit(ask, Edit::PatchListener { address: *address, keys: vec!["active=false".to_owned()] })
            }
            ListenerVerb::Remove { address } => {
                edit(ask, Edit::from(Change::RemoveListener { address: *address }))
            }
        }
    }
}

impl ClusterVerb {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        match self {
            ClusterVerb::List => {
                let state = state(ask)?;
                let mut rows =
                    vec![["CLUSTER", "PROTOCOL", "FRONTENDS", "BACKENDS", "MODE"].map(str::to_owned)];
                rows.extend(state.clusters.iter().map(|(name, it)| {
                    let (frontends, backends) = (it.frontends.len(), it.backends.len());
                    let mode = it.mode.word().to_owned();
                    [name.clone(), protocol(it).to_owned(), frontends.to_string(), backends.to_string(), mode]
                }));
                let objects = state.clusters.iter().map(|(name, it)| {
                    json!({ "name": name, "protocol": protocol(it), "frontends": it.frontends.len(), "backends": it.backends.len(),
                            "https_redirect": it.https_redirect, "mode": it.mode,
                            "maintenance_retry_after": it.maintenance_retry_after })
                });
                Ok(made(objects.collect(), print::table(&rows)))
            }
            ClusterVerb::Add { name, keys } => {
                edit(ask, Edit::AddCluster { name: name.clone(), keys: keys.clone() })
            }
            ClusterVerb::Patch { name, keys } => {
                edit(ask, Edit::PatchCluster { name: name.clone(), keys: keys.clone() })
            }
            ClusterVerb::Maintain { name, retry_after } => {
                let mut keys = vec![mode_key(ClusterMode::Maintain)];
                keys.extend(retry_after.map(|seconds| retry_after_key(Some(seconds))));
                edit(ask, Edit::PatchCluster { name: name.clone(), keys })
            }
            ClusterVerb::Ready { name } => {
                // What clients were told meanwhile is again as the file says.
                let file = state(ask)?.file_layer();
                let retry_after = file.clusters.get(name).and_then(|it| it.maintenance_retry_after);
                let keys = vec![mode_key(ClusterMode::Ready), retry_after_key(retry_after)];
                edit(ask, Edit::PatchCluster { name: name.clone(), keys })
            }
            ClusterVerb::Remove { name } => {
                edit(ask, Edit::from(Change::RemoveCluster { name: name.clone() }))
            }
            ClusterVerb::CloseSessions { name, backend } => {
                let request = Request::CloseSessions { cluster: name.clone(), backend: backend.clone() };
                ask(request).map(Shown::Response)
            }
        }
    }
}

fn mode_key(mode: ClusterMode) -> String {
    format!("mode={}", mode.word())
}

fn retry_after_key(seconds: Option<u32>) -> String {
    format!("maintenance_retry_after={}", seconds.map_or_else(String::new, |it| it.to_string()))
}

fn protocol(cluster: &Cluster) -> &'static str {
    match cluster.protocol {
        ClusterProtocol::Http => "http",
        ClusterProtocol::Tcp => "tcp",
    }
}

impl RuleArguments {
    fn rule(&self) -> Result<FrontendRule, Failure> {
        let path = self.path.clone();
        let asks = edit::read_asks(&self.when);
        let (position, predicates) = asks.map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(FrontendRule {
            address: self.address,
            hostname: self.hostname.clone(),
            path: match self.path_type {
                PathType::Prefix => PathRule::Prefix(path),
                PathType::Equals => PathRule::Equals(path),
                PathType::Regex => PathRule::Regex(path),
            },
            method: self.method.clone(),
            position,
            predicates,
        })
    }
}

impl FrontendVerb {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        match self {
            FrontendVerb::List { cluster } => {
                let state = state(ask)?;
                let mut rows = vec![
                    [
                        "CLUSTER", "LISTENER", "HOSTNAME", "PATH", "METHOD", "REFUSES", "REDIRECT", "ASKS",
                        "SPLIT",
                    ]
                    .map(str::to_owned),
                ];
                let mut objects = Vec::new();
                for (name, it) in chosen(&state, cluster.as_deref())? {
                    for frontend in &it.frontends {
                        let (kind, path) = match &frontend.path {
                            PathRule::Prefix(path) => ("", path),
                            PathRule::Equals(path) => ("=", path),
                            PathRule::Regex(path) => ("~", path),
                        };
                        let method = frontend.method.clone().unwrap_or_else(|| "any".to_owned());
                        rows.push([
                            name.to_owned(),
                            frontend.address.to_string(),
                            frontend.hostname.clone(),
                            format!("{kind}{path}"),
                            method,
                            if frontend.deny { "yes" } else { "" }.to_owned(),
                            frontend.redirect.unless_forward().unwrap_or_default().to_owned(),
                            asks(frontend),
                            split(frontend),
                        ]);
                        objects.push(in_cluster(name, frontend));
                    }
                }
                Ok(made(objects, print::table(&rows)))
            }
            FrontendVerb::Add { rule, keys, deny } => {
                let mut keys = keys.clone();
                keys.extend(deny.then(|| "redirect=unauthorized".to_owned()));
                edit(ask, Edit::AddFrontend { cluster: rule.cluster.clone(), rule: rule.rule()?, keys })
            }
            FrontendVerb::Patch { rule, keys } => {
                let (cluster, keys) = (rule.cluster.clone(), keys.clone());
                edit(ask, Edit::PatchFrontend { cluster, rule: rule.rule()?, keys })
            }
            FrontendVerb::Remove { rule } => {
                let (cluster, rule) = (rule.cluster.clone(), rule.rule()?);
                edit(ask, Edit::from(Change::RemoveFrontend { cluster, rule }))
            }
        }
    }
}

/// The clusters among which a frontend divides its requests, with their weights.
fn split(frontend: &Frontend) -> String {
    let parts = frontend.split.iter().flat_map(|split| &split.parts);
    parts.map(|part| format!("{}:{}", part.cluster, part.weight)).collect::<Vec<_>>().join(" ")
}

/// What a frontend asks for beyond host, path and method.
fn asks(frontend: &Frontend) -> String {
    let mut text = FrontendRule::from(frontend).asks();
    if frontend.required_auth {
        text.push_str(if text.is_empty() { "password" } else { " password" });
    }
    text
}

/// Has the operator say something else of a backend.
fn set_mode(ask: Ask<'_>, cluster: String, id: String, mode: BackendMode) -> Result<Shown, Failure> {
    let keys = vec![format!("mode={}", mode.word())];
    edit(ask, Edit::PatchBackend { cluster, id, keys })
}

impl BackendVerb {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        match self.clone() {
            BackendVerb::List { cluster } => {
                let state = state(ask)?;
                let mut rows = vec![["CLUSTER", "BACKEND", "ADDRESS", "WEIGHT", "ROLE"].map(str::to_owned)];
                let mut objects = Vec::new();
                for (name, it) in chosen(&state, cluster.as_deref())? {
                    for backend in &it.backends {
                        rows.push([
                            name.to_owned(),
                            backend.id.clone(),
                            backend.address.to_string(),
                            backend.weight.to_string(),
                            if backend.backup { "backup" } else { "primary" }.to_owned(),
                        ]);
                        objects.push(in_cluster(name, backend));
                    }
                }
                Ok(made(objects, print::table(&rows)))
            }
            BackendVerb::Add { cluster, address, id, weight, backup, sticky_id } => {
                let id = id.unwrap_or_else(|| address.to_string());
                let sticky_id = sticky_id.map(String::into_boxed_str);
                let backend = Backend { id, address, weight, backup, sticky_id, ..Backend::default() };
                edit(ask, Edit::AddBackend { cluster, backend })
            }
            BackendVerb::Drain { cluster, id } => set_mode(ask, cluster, id, BackendMode::Drain),
            BackendVerb::Maintain { cluster, id } => set_mode(ask, cluster, id, BackendMode::Maintain),
            BackendVerb::Ready { cluster, id } => set_mode(ask, cluster, id, BackendMode::Ready),
            BackendVerb::Patch { cluster, id, keys } => edit(ask, Edit::PatchBackend { cluster, id, keys }),
            BackendVerb::Remove { cluster, id } => {
                edit(ask, Edit::from(Change::RemoveBackend { cluster, id }))
            }
        }
    }
}

/// The clusters, or the one of this name.
fn chosen<'a>(state: &'a State, name: Option<&str>) -> Result<Vec<(&'a str, &'a Cluster)>, Failure> {
    let all = state.clusters.iter().map(|(name, cluster)| (name.as_str(), cluster));
    let chosen: Vec<_> = all.filter(|(it, _)| name.is_none_or(|name| name == *it)).collect();
    match name {
        Some(name) if chosen.is_empty() => Err(Failure::Refused(format!("there is no cluster `{name}`"))),
        _ => Ok(chosen),
    }
}

pub(crate) fn values<'a, T: Serialize + 'a>(items: impl Iterator<Item = &'a T>) -> Vec<serde_json::Value> {
    items.filter_map(|item| serde_json::to_value(item).ok()).collect()
}

/// An object with the name of its cluster.
fn in_cluster(cluster: &str, item: &impl Serialize) -> serde_json::Value {
    let mut value = serde_json::to_value(item).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("cluster".to_owned(), cluster.into());
    }
    value
}
