//! Everything that is wrong with a state, each by the table and the key of the file that says it.
//!
//! Compiling ends at the first thing that is wrong, and knows it by its text. Here each frontend is compiled by itself, and what contradicts
//! another is looked for by pairs. Nothing is decided here: what is no fault for the one who compiles is none.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::SocketAddr,
    rc::Rc,
};

use kakehi_ctl::{
    config::{Fault, FaultStep, FaultTable},
    state::{self, ClusterProtocol, PathRule, RulePosition, State},
};

use super::{
    compile::{Clusters, CompileError, Targets, rule},
    tls_ingress::IngressPlan,
};
use crate::{
    exchange::{ListenerConfig, Target},
    http::percent_decode,
    route::{Rewriter, RouteError, RouteTable, Rule, check_hostname, check_path, is_same_host, normal_host},
    tls::Contradiction,
    upstream::{Cluster, ClusterError},
};

/// As many are looked for; a file with more has enough to be mended.
const MOST: usize = 1_000;

/// What keeps a state from being compiled, without the vault: all of it, or the first of very much; empty if nothing does, or if it is of
/// no table of the file.
pub fn faults(state: &State) -> Vec<Fault> {
    if ListenerConfig::check(state).is_ok() {
        return Vec::new();
    }
    let mut finder = Finder::default();
    let mut sound = Vec::new();
    for (name, configured) in &state.clusters {
        if finder.faults.len() >= MOST {
            break;
        }
        match Cluster::checked(name, configured) {
            Ok(cluster) => drop(finder.clusters.insert(name.clone(), Rc::new(cluster))),
            Err(error) => finder.of_cluster(name, &error),
        }
        for (place, frontend) in configured.frontends.iter().enumerate() {
            let before = finder.faults.len();
            finder.of_frontend((name, place), frontend);
            if finder.faults.len() == before {
                sound.push(Placed { name, place, configured, frontend });
            }
        }
    }
    // Of what is wrong by itself nobody knows what it contradicts.
    finder.of_pairs(&sound);
    for listener in state.listeners.values() {
        finder.of_names(listener, &sound);
    }
    finder.faults
}

/// A frontend, and where it stands.
#[derive(Clone, Copy)]
struct Placed<'a> {
    name: &'a str,
    place: usize,
    configured: &'a state::Cluster,
    frontend: &'a state::Frontend,
}

impl Placed<'_> {
    fn at(&self) -> (&str, usize) {
        (self.name, self.place)
    }
}

#[derive(Default)]
struct Finder {
    faults: Vec<Fault>,
    clusters: Clusters,
}

/// Steps to a key of a table.
fn key(key: &'static str) -> Vec<FaultStep> {
    vec![FaultStep::Key(key)]
}

/// What is wrong, in one line.
fn reason(error: &RouteError) -> String {
    let RouteError::BadRegex { pattern, source } = error else { return error.to_string() };
    // Of several lines, the last one says it; the others show the expression.
    let source = source.to_string();
    let said = source.lines().last().unwrap_or_default();
    let said = said.trim_start_matches("error: ");
    format!("the regular expression `{}` is refused: {said}", pattern.escape_debug())
}

impl Finder {
    fn add(&mut self, (name, place): (&str, usize), path: Vec<FaultStep>, reason: String) {
        let table = FaultTable::Frontend(name.to_owned(), place);
        self.faults.push(Fault { table, path, reason, beside: None });
    }

    fn note(&mut self, at: (&str, usize), path: Vec<FaultStep>, checked: Result<(), RouteError>) {
        if let Err(error) = checked {
            self.add(at, path, reason(&error));
        }
    }

    fn of_cluster(&mut self, name: &str, error: &ClusterError) {
        let path = key(match error {
            ClusterError::Address(_) => "backends",
            ClusterError::Tls(_) => "backend_tls",
        });
        let table = FaultTable::Cluster(name.to_owned());
        self.faults.push(Fault { table, path, reason: error.to_string(), beside: None });
    }

    /// What a frontend says that is wrong whatever the others say.
    fn of_frontend(&mut self, at: (&str, usize), frontend: &state::Frontend) {
        let (hostname, path) = (check_hostname(&frontend.hostname), check_path(&frontend.path));
        let can_be_rewritten = hostname.is_ok() && path.is_ok();
        self.note(at, key("hostname"), hostname);
        self.note(at, key("path"), path);
        if let Some(rewrite) = frontend.rewrite.as_deref().filter(|_| can_be_rewritten) {
            let made = |host: Option<&str>, path: Option<&str>| {
                Rewriter::compile(&frontend.hostname, &frontend.path, host, path).map(drop)
            };
            self.note(at, key("rewrite_host"), made(rewrite.host.as_deref(), None));
            self.note(at, key("rewrite_path"), made(None, rewrite.path.as_deref()));
        }
        // Each condition in a rule of its own.
        let compiled = |method: Option<String>, predicates: Option<Box<state::Predicates>>| {
            let any = Rule::new("*".to_owned(), PathRule::Prefix(String::new()), method, 0);
            RouteTable::compile([Rule { predicates, ..any }]).map(drop)
        };
        self.note(at, key("method"), compiled(frontend.method.clone(), None));
        let Some(predicates) = &frontend.predicates else { return };
        let before = self.faults.len();
        for (kind, list) in predicates.kinds() {
            for (number, predicate) in list.iter().enumerate() {
                let mut asks = state::Predicates::default();
                asks.add(kind, predicate.clone());
                let one = compiled(None, Some(Box::new(asks)));
                let path = vec![FaultStep::Key(kind), FaultStep::Item(number), FaultStep::Key("value")];
                self.note(at, path, one);
            }
        }
        if self.faults.len() > before {
            return;
        }
        let together = compiled(None, Some(predicates.clone()));
        let kinds = predicates.kinds();
        let mut wrong = kinds.into_iter().map(|(kind, list)| {
            let mut some = state::Predicates::default();
            list.iter().for_each(|it| some.add(kind, it.clone()));
            (kind, compiled(None, Some(Box::new(some))).is_err())
        });
        let kind = wrong.find(|(_, is_wrong)| *is_wrong).map_or("sources", |(kind, _)| kind);
        self.note(at, key(kind), together);
    }

    /// Rules for the same requests that lead to different places.
    fn of_pairs(&mut self, frontends: &[Placed<'_>]) {
        let mut targets: BTreeMap<SocketAddr, Targets> = BTreeMap::new();
        let mut first: HashMap<String, (u32, Placed<'_>)> = HashMap::new();
        let in_tree = |it: &&Placed<'_>| {
            it.configured.protocol == ClusterProtocol::Http && it.frontend.position == RulePosition::Tree
        };
        for placed in frontends.iter().filter(in_tree) {
            if self.faults.len() >= MOST {
                return;
            }
            let Placed { name, configured, frontend, .. } = *placed;
            let Some(cluster) = self.clusters.get(name) else { continue };
            let target = Target::of(cluster, frontend, configured, |name| self.clusters.get(name));
            let place = targets.entry(frontend.address).or_default().place(target, frontend);
            let mut contradicts = None;
            for requests in requests(frontend, place) {
                match first.entry(requests) {
                    Entry::Vacant(entry) => drop(entry.insert((place, *placed))),
                    Entry::Occupied(entry) if entry.get().0 != place => contradicts = Some(entry.get().1),
                    Entry::Occupied(_) => {}
                }
            }
            let Some(other) = contradicts else { continue };
            let rules = [rule(other.frontend, 0), rule(frontend, 1)];
            if let Err(error) = RouteTable::compile(rules) {
                let table = FaultTable::Frontend(name.to_owned(), placed.place);
                let beside = Some((other.name.to_owned(), other.place));
                let reason = format!("listener {}: {}", frontend.address, reason(&error));
                self.faults.push(Fault { table, path: Vec::new(), reason, beside });
            }
        }
    }

    /// What contradicts another before the first request of a connection.
    fn of_names(&mut self, listener: &state::Listener, frontends: &[Placed<'_>]) {
        let address = listener.address;
        let mut plan = IngressPlan::default();
        let mut hosts = Vec::new();
        let of_listener: Vec<_> = frontends.iter().filter(|it| it.frontend.address == address).collect();
        for placed in &of_listener {
            let Some(cluster) = self.clusters.get(placed.name).map(Rc::clone) else { continue };
            if placed.configured.protocol == ClusterProtocol::Http {
                hosts.push(placed.frontend.hostname.as_str());
            }
            if let Err(error) = plan.add(placed.configured.protocol, placed.frontend, &cluster) {
                let at_alpn =
                    matches!(&error, CompileError::Names { error: Contradiction::Protocol { .. }, .. });
                self.add(placed.at(), key(if at_alpn { "alpn" } else { "hostname" }), error.to_string());
                return;
            }
        }
        let Err(error) = plan.compile(listener, hosts, None) else { return };
        let CompileError::Names { error: contradiction, .. } = &error else {
            let table = FaultTable::Listener(address);
            self.faults.push(Fault { table, path: Vec::new(), reason: error.to_string(), beside: None });
            return;
        };
        let (name, says) = (contradiction.name(), matches!(contradiction, Contradiction::PassedOn { .. }));
        let is_it = |it: &&&Placed<'_>| {
            is_same_host(&it.frontend.hostname, name) && (says || it.frontend.tls.is_some())
        };
        if let Some(placed) = of_listener.iter().rev().find(is_it) {
            self.add(placed.at(), key("hostname"), error.to_string());
        }
    }
}

/// The requests that a frontend takes, as texts that are the same for the same requests: as its path is written, and as it is decoded.
fn requests(frontend: &state::Frontend, place: u32) -> Vec<String> {
    let state::Frontend { address, hostname, method, predicates, .. } = frontend;
    let (kind, path) = match &frontend.path {
        PathRule::Equals(path) => ("equals", path),
        PathRule::Prefix(path) => ("prefix", path),
        PathRule::Regex(path) => ("regex", path),
    };
    let hostname = normal_host(hostname).unwrap_or_else(|| format!("?{place}"));
    let of = |path: &[u8]| format!("{address} {hostname} {kind} {path:?} {method:?} {predicates:?}");
    let sent = of(path.as_bytes());
    match kind {
        "regex" => vec![sent],
        _ => vec![format!("decoded {}", of(&percent_decode(path.as_bytes()))), sent],
    }
}
