//! A change of a few hosts' rules in a table that is in use, instead of a whole new table.
//!
//! Compiling 100,000 rules takes some tenths of a second, in which a worker serves nobody. So only the hosts are compiled
//! that a change names, each with all of its rules, whichever cluster they are of; the others stay where they are.
//! What comes out is the same as if the whole were compiled.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher as _,
    net::SocketAddr,
    rc::Rc,
};

use kakehi_ctl::{
    change::Change,
    keys::Effect,
    state::{self, RulePosition, State},
};
use rustc_hash::{FxHashSet, FxHasher};

use super::compile::{Clusters, CompileError, check, rule};
use crate::{
    exchange::{ListenerConfig, Routes, Target},
    route::{HostPatch, is_same_host},
    upstream::Cluster,
};

/// With more hosts than this a new table is made.
const MOST_HOSTS: usize = 256;
/// Targets that no rule leads to any more (the action of a cluster has changed) which a table may have before it is
/// made anew.
const MOST_GARBAGE: usize = 4_096;

/// A state as it will be: one that is, but for the clusters that changes name.
pub struct ConfigDelta<'a> {
    /// As it is.
    pub present: &'a State,
    /// The clusters that the changes name as they will be, and all listeners.
    pub part: &'a State,
    pub(super) named: BTreeSet<&'a str>,
    prints: &'a HostPrints,
}

/// Which hosts the frontends of each cluster name, as hashes: so that those of one host are found without reading all.
#[derive(Debug, Default)]
pub struct HostPrints(BTreeMap<String, Box<[u32]>>);

impl HostPrints {
    /// Those of all clusters.
    pub fn of(state: &State) -> HostPrints {
        HostPrints(state.clusters.iter().map(|(name, cluster)| (name.clone(), prints(cluster))).collect())
    }

    /// Brings those of a cluster in line with `state`.
    pub fn update(&mut self, name: &str, state: &State) {
        match state.clusters.get(name) {
            Some(cluster) => drop(self.0.insert(name.to_owned(), prints(cluster))),
            None => drop(self.0.remove(name)),
        }
    }
}

fn prints(cluster: &state::Cluster) -> Box<[u32]> {
    cluster.frontends.iter().map(|frontend| print(&frontend.hostname)).collect()
}

/// Equal for hostnames that are the same host.
fn print(hostname: &str) -> u32 {
    let mut hasher = FxHasher::default();
    // Addresses have several spellings.
    if !hostname.starts_with('[') {
        hostname.trim_end_matches('.').bytes().for_each(|byte| hasher.write_u8(byte.to_ascii_lowercase()));
    }
    // Those that differ are told apart when they are looked at.
    hasher.finish() as u32
}

/// New rules for the hosts of a listener.
pub struct RoutesPatch {
    hosts: Vec<HostPatch>,
    /// Each with its place.
    targets: Vec<(usize, Target)>,
}

impl<'a> ConfigDelta<'a> {
    /// `part` is what `changes` make of `present.part(changes)`; `prints` are those of `present`.
    pub fn new(
        present: &'a State,
        part: &'a State,
        changes: &'a [Change],
        prints: &'a HostPrints,
    ) -> ConfigDelta<'a> {
        ConfigDelta { present, part, named: changes.iter().filter_map(Change::cluster).collect(), prints }
    }

    /// The clusters that have a frontend for one of `hosts`, and maybe others, in the order of their names.
    fn clusters(&self, hosts: &[&str]) -> Vec<(&'a str, &'a state::Cluster)> {
        let wanted: FxHashSet<u32> = hosts.iter().map(|host| print(host)).collect();
        let concerned = self.prints.0.iter().filter(|(name, prints)| {
            prints.iter().any(|print| wanted.contains(print)) && !self.named.contains(name.as_str())
        });
        let present = concerned.filter_map(|(name, _)| self.present.clusters.get_key_value(name));
        let all = present.chain(&self.part.clusters).map(|(name, cluster)| (name.as_str(), cluster));
        let mut all: Vec<_> = all.collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    /// The hosts whose rules change, by listener; `None` when they are too many.
    fn hosts(&self) -> Option<BTreeMap<SocketAddr, Vec<&'a str>>> {
        let mut hosts: BTreeMap<SocketAddr, Vec<&str>> = BTreeMap::new();
        for name in &self.named {
            let (now, then) = (self.present.clusters.get(*name), self.part.clusters.get(*name));
            for frontend in differing(now, then) {
                // Those stand in no host's table.
                if frontend.position != RulePosition::Tree {
                    return None;
                }
                let hosts = hosts.entry(frontend.address).or_default();
                if !hosts.iter().rev().any(|host| is_same_host(host, &frontend.hostname)) {
                    hosts.push(&frontend.hostname);
                }
                if hosts.len() > MOST_HOSTS {
                    return None;
                }
            }
        }
        Some(hosts)
    }

    /// Compiles what changes in the routes of `configs`. `None` when a whole table has to be made instead.
    ///
    /// # Errors
    /// See [`CompileError`].
    pub fn compile(
        &self,
        configs: &BTreeMap<SocketAddr, Rc<ListenerConfig>>,
        clusters: &Clusters,
        new: &Clusters,
    ) -> Result<Option<Vec<(SocketAddr, RoutesPatch)>>, CompileError> {
        let Some(hosts) = self.hosts() else { return Ok(None) };
        let mut patches = Vec::new();
        for (address, hosts) in hosts {
            // Frontends of a listener that goes.
            if !self.part.listeners.contains_key(&address) {
                continue;
            }
            let find = |name: &str| new.get(name).or_else(|| clusters.get(name));
            let Some(config) = configs.get(&address) else { continue };
            let routes = config.routes.borrow();
            if routes.targets.len() > 2 * clusters.len() + MOST_GARBAGE {
                return Ok(None);
            }
            let free = (0..).zip(&routes.targets).filter(|(_, target)| target.is_none());
            let free = free.map(|(place, _)| place).collect();
            let mut compiling = Compiling { routes: &routes, free, targets: Vec::new() };
            let mut patch = Vec::new();
            for (host, rules) in self.rules(address, &hosts) {
                match compiling.host(host, rules, address, find)? {
                    Some(host) => patch.push(host),
                    None => return Ok(None),
                }
            }
            patches.push((address, RoutesPatch { hosts: patch, targets: compiling.targets }));
        }
        Ok(Some(patches))
    }

    /// All rules of `hosts` on a listener, as they will be.
    fn rules<'h>(&self, address: SocketAddr, hosts: &[&'h str]) -> Vec<(&'h str, Vec<RuleOf<'a>>)> {
        let mut rules: Vec<(&str, Vec<RuleOf<'_>>)> = hosts.iter().map(|host| (*host, Vec::new())).collect();
        let routed = |cluster: &state::Cluster| cluster.protocol == state::ClusterProtocol::Http;
        for (name, cluster) in self.clusters(hosts).into_iter().filter(|(_, cluster)| routed(cluster)) {
            let in_tree = |frontend: &&state::Frontend| {
                frontend.address == address && frontend.position == RulePosition::Tree
            };
            for frontend in cluster.frontends.iter().filter(in_tree) {
                let same = |(host, _): &&mut (&str, _)| is_same_host(host, &frontend.hostname);
                if let Some((_, rules)) = rules.iter_mut().find(same) {
                    rules.push(RuleOf { name, cluster, frontend });
                }
            }
        }
        rules
    }
}

/// A frontend with its cluster.
struct RuleOf<'a> {
    name: &'a str,
    cluster: &'a state::Cluster,
    frontend: &'a state::Frontend,
}

struct Compiling<'a> {
    routes: &'a Routes,
    /// Places that are empty; behind the last, all are.
    free: Vec<usize>,
    /// Those that come, with their places.
    targets: Vec<(usize, Target)>,
}

impl Compiling<'_> {
    fn host<'c>(
        &mut self,
        hostname: &str,
        rules: Vec<RuleOf<'_>>,
        address: SocketAddr,
        find: impl Fn(&str) -> Option<&'c Rc<Cluster>> + Copy,
    ) -> Result<Option<HostPatch>, CompileError> {
        let mut compiled = Vec::with_capacity(rules.len());
        for RuleOf { name, cluster, frontend } in rules {
            check(name, frontend)?;
            // Every cluster of the state has been made.
            let Some(made) = find(name) else { continue };
            compiled.push(rule(frontend, self.target(made, frontend, cluster, find)));
        }
        HostPatch::compile(hostname, compiled).map_err(|error| CompileError::Routes { address, error })
    }

    fn target<'c>(
        &mut self,
        cluster: &Rc<Cluster>,
        frontend: &state::Frontend,
        of: &state::Cluster,
        find: impl Fn(&str) -> Option<&'c Rc<Cluster>> + Copy,
    ) -> u32 {
        let wanted = Target::of(cluster, frontend, of, find);
        let same = |target: &Target| target.is_same(&wanted);
        let present = self.routes.targets.iter().position(|target| target.as_ref().is_some_and(same));
        let coming = || self.targets.iter().find(|(_, target)| same(target)).map(|(place, _)| *place);
        let place = present.or_else(coming).unwrap_or_else(|| {
            let behind = self.targets.iter().map(|(place, _)| place + 1).max().unwrap_or(0);
            let place = self.free.pop().unwrap_or(behind.max(self.routes.targets.len()));
            self.targets.push((place, Target::of(cluster, frontend, of, find)));
            place
        });
        // Bounded by the size of the control frames.
        place as u32
    }
}

impl ListenerConfig {
    /// Makes what was compiled.
    pub fn patch(&self, patch: RoutesPatch) {
        let routes = &mut *self.routes.borrow_mut();
        for (place, target) in patch.targets {
            if routes.targets.len() <= place {
                routes.targets.resize_with(place + 1, || None);
            }
            routes.targets[place] = Some(target);
        }
        routes.table.patch(patch.hosts);
    }

    /// Lets go of a cluster that no rule leads to any more.
    pub fn forget(&self, cluster: &Rc<Cluster>) {
        for target in &mut self.routes.borrow_mut().targets {
            if target.as_ref().is_some_and(|target| target.names(cluster)) {
                *target = None;
            }
        }
    }
}

/// The frontends of two clusters between their common beginning and their common end; all of both where requests meet
/// another treatment.
fn differing<'a>(
    now: Option<&'a state::Cluster>,
    then: Option<&'a state::Cluster>,
) -> impl Iterator<Item = &'a state::Frontend> {
    // That is what keys say that affect routes.
    let same_treatment = match (now, then) {
        (Some(now), Some(then)) => now.keys_that_differ(then).iter().all(|key| key.effect != Effect::Routes),
        (now, then) => now.is_none() && then.is_none(),
    };
    let frontends =
        |cluster: Option<&'a state::Cluster>| cluster.map_or(&[][..], |cluster| &cluster.frontends);
    let (mut a, mut b) = (frontends(now), frontends(then));
    if same_treatment {
        while let (Some((x, after_x)), Some((y, after_y))) = (a.split_first(), b.split_first()) {
            if x != y {
                break;
            }
            (a, b) = (after_x, after_y);
        }
        while let (Some((x, before_x)), Some((y, before_y))) = (a.split_last(), b.split_last()) {
            if x != y {
                break;
            }
            (a, b) = (before_x, before_y);
        }
    }
    a.iter().chain(b)
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
