//! One lookup: from a name to addresses, whatever servers of the DNS say.
//!
//! A name with a port has the addresses of both families (A and AAAA). A service (SRV) has hosts, each with such addresses, a port, a
//! priority and a weight. A family or a host of which nobody says anything keeps the addresses that it had.
//!
//! Promises: a lookup ends at its deadline; at most [`limits::ADDRESSES_PER_NAME`] addresses come out of it, in an order that does not
//! depend on that of the answers.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_resolver::proto::rr::{RData, Record, RecordType};
use kakehi_ctl::{
    limits,
    state::{DnsName, NameAddress},
};
use tokio::{task::JoinSet, time::Instant};

use super::resolver::{Lack, Resolver};

/// How long one host of a service has.
const HOST_TIMEOUT: Duration = Duration::from_millis(2_500);
/// When one family has answered, the other has so long.
const OTHER_FAMILY: Duration = Duration::from_millis(1_000);
/// Hosts of a service that are asked for at a time.
const HOSTS_AT_A_TIME: usize = 8;

/// Addresses of hosts, as they were found last.
pub(super) type Memory = BTreeMap<Box<str>, Families>;

/// The addresses of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Families {
    v4: Family,
    v6: Family,
}

/// Those of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Family {
    /// Sorted, and not more than a name can have.
    addresses: Vec<IpAddr>,
    /// So many are not among them.
    left_out: usize,
}

/// The addresses in `memory`, by host.
pub(super) fn hosts(memory: &Memory) -> Vec<(Box<str>, Vec<IpAddr>)> {
    memory.iter().map(|(host, families)| (host.clone(), families.all().collect())).collect()
}

/// What [`hosts`] gave.
pub(super) fn remembered(hosts: &[(Box<str>, Vec<IpAddr>)]) -> Memory {
    let families = |addresses: &[IpAddr]| {
        let of = |is_v4: bool| {
            let addresses: BTreeSet<IpAddr> =
                addresses.iter().filter(|it| it.is_ipv4() == is_v4).copied().collect();
            let addresses = addresses.into_iter().take(limits::ADDRESSES_PER_NAME).collect();
            Family { addresses, left_out: 0 }
        };
        Families { v4: of(true), v6: of(false) }
    };
    hosts.iter().map(|(host, addresses)| (host.clone(), families(addresses))).collect()
}

/// What came of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There are addresses.
    Found(Found),
    /// There are none, for certain; why.
    Empty(Cow<'static, str>),
    /// Nobody says; why.
    Failed(Cow<'static, str>),
}

/// Addresses that were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// At least one, sorted.
    pub(super) addresses: Vec<NameAddress>,
    /// Addresses beyond the limit.
    pub(super) left_out: usize,
    /// For so long they are good.
    pub(super) ttl: Duration,
    pub(super) memory: Arc<Memory>,
}

/// What came of one host.
struct Host {
    families: Families,
    /// Of what was answered now; `None`: nothing was.
    ttl: Option<u32>,
    lack: Option<Lack>,
}

/// Looks `name` up; `memory` is of the last time.
pub(super) async fn look_up(resolver: Arc<Resolver>, name: &DnsName, memory: Arc<Memory>) -> Outcome {
    let deadline = Instant::now() + Duration::from_millis(limits::DNS_TIMEOUT_MS);
    match name {
        DnsName::Host { host, port } => {
            let before = memory.get(host).cloned().unwrap_or_default();
            let found = look_up_host(&resolver, host, before, deadline).await;
            let Some(ttl) = found.ttl else { return of_lack(found.lack.unwrap_or(Lack::NoRecord)) };
            let addresses = found.families.all().map(|ip| NameAddress {
                address: SocketAddr::new(ip, *port),
                backup: false,
                weight: None,
            });
            let addresses = addresses.collect();
            let left_out = found.families.left_out();
            conclude(addresses, left_out, ttl, Memory::from([(host.clone(), found.families)]))
        }
        DnsName::Service(service) => look_up_service(resolver, service, &memory, deadline).await,
    }
}

fn of_lack(lack: Lack) -> Outcome {
    match lack {
        Lack::NoName => Outcome::Empty("there is no such name (NXDOMAIN)".into()),
        Lack::NoRecord => Outcome::Empty("the name has no address".into()),
        Lack::Failed(reason) => Outcome::Failed(reason),
    }
}

/// Sorts addresses and leaves out what is too much.
fn conclude(mut addresses: Vec<NameAddress>, left_out: usize, ttl: u32, memory: Memory) -> Outcome {
    addresses.sort_unstable_by_key(|it| (it.backup, it.address));
    let mut seen = BTreeSet::new();
    addresses.retain(|it| seen.insert(it.address));
    if addresses.is_empty() {
        return Outcome::Empty("the name has no address that a backend can have".into());
    }
    let left_out = left_out + addresses.len().saturating_sub(limits::ADDRESSES_PER_NAME);
    addresses.truncate(limits::ADDRESSES_PER_NAME);
    let ttl = Duration::from_secs(ttl.into());
    Outcome::Found(Found { addresses, left_out, ttl, memory: Arc::new(memory) })
}

/// A host that a service names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    priority: u16,
    host: Box<str>,
    port: u16,
    weight: u16,
}

/// The hosts that records name, in an order of their own, and how many are left out.
fn targets(records: &[Record]) -> (Vec<Target>, usize) {
    let mut targets: Vec<Target> = Vec::new();
    for record in records {
        let RData::SRV(srv) = &record.data else { continue };
        // RFC 2782: a target that is the root says that there is no such service.
        if srv.target.is_root() || srv.port == 0 {
            continue;
        }
        let host = srv.target.to_ascii().to_ascii_lowercase().into_boxed_str();
        targets.push(Target { priority: srv.priority, host, port: srv.port, weight: srv.weight });
    }
    targets.sort_unstable();
    targets.dedup();
    let left_out = targets.len().saturating_sub(limits::ADDRESSES_PER_NAME);
    targets.truncate(limits::ADDRESSES_PER_NAME);
    (targets, left_out)
}

async fn look_up_service(
    resolver: Arc<Resolver>,
    service: &str,
    memory: &Memory,
    deadline: Instant,
) -> Outcome {
    let records = match resolver.ask(service, RecordType::SRV, deadline).await {
        Ok(records) => records,
        Err(Lack::NoRecord) => return Outcome::Empty("there is no such service".into()),
        Err(lack) => return of_lack(lack),
    };
    let (targets, left_out) = targets(&records);
    if targets.is_empty() {
        return Outcome::Empty("there is no such service".into());
    }
    let mut ttl = shortest(&records).unwrap_or(0);
    let hosts: BTreeSet<&str> = targets.iter().map(|it| &*it.host).collect();
    let mut waiting = hosts.into_iter().map(|host| {
        let host = host.to_owned();
        let before = memory.get(&*host).cloned().unwrap_or_default();
        (host, before)
    });
    let mut found: BTreeMap<Box<str>, Host> = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        while running.len() < HOSTS_AT_A_TIME
            && let Some((host, before)) = waiting.next()
        {
            let (resolver, until) = (Arc::clone(&resolver), deadline.min(Instant::now() + HOST_TIMEOUT));
            running.spawn(async move {
                let found = look_up_host(&resolver, &host, before, until).await;
                (host.into_boxed_str(), found)
            });
        }
        let Some(done) = running.join_next().await else { break };
        // It cannot fail but by a panic, which ends the program.
        found.extend(done.ok());
    }
    let mut failure = None;
    for host in found.values() {
        ttl = host.ttl.map_or(ttl, |of_host| ttl.min(of_host));
        if let (None, Some(lack @ Lack::Failed(_))) = (host.ttl, &host.lack) {
            failure = Some(lack.clone());
        }
    }
    let left_out = left_out + found.values().map(|it| it.families.left_out()).sum::<usize>();
    let of = |host: &str| found.get(host).map(|it| &it.families);
    let addresses = addresses_of(&targets, of);
    match failure {
        Some(lack) if addresses.is_empty() => of_lack(lack),
        failure => {
            // Those of whom nobody says anything are asked for again soon.
            let ttl = if failure.is_some() { 0 } else { ttl };
            let memory = found.into_iter().map(|(host, found)| (host, found.families)).collect();
            conclude(addresses, left_out, ttl, memory)
        }
    }
}

/// The addresses of all hosts of a service: what has not the first priority is a backup.
fn addresses_of<'f>(targets: &[Target], of: impl Fn(&str) -> Option<&'f Families>) -> Vec<NameAddress> {
    let first = targets.first().map_or(0, |it| it.priority);
    // Those of the first priority share with each other, all others with each other.
    let heaviest = |is_first: bool| {
        let of_class = targets.iter().filter(|it| (it.priority == first) == is_first);
        of_class.map(|it| it.weight).max().unwrap_or(0)
    };
    let heaviest = [heaviest(false), heaviest(true)];
    let weight = |target: &Target| {
        // Our weights end at 255. One of 0 is small, not none (RFC 2782).
        let scaled = match heaviest[usize::from(target.priority == first)] {
            0..=255 => u32::from(target.weight),
            heaviest => u32::from(target.weight) * 255 / u32::from(heaviest),
        };
        u8::try_from(scaled).unwrap_or(u8::MAX).max(1)
    };
    let mut addresses = Vec::new();
    for target in targets {
        for ip in of(&target.host).into_iter().flat_map(Families::all) {
            addresses.push(NameAddress {
                address: SocketAddr::new(ip, target.port),
                backup: target.priority != first,
                weight: Some(weight(target)),
            });
        }
    }
    addresses
}

impl Families {
    fn all(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.v4.addresses.iter().chain(&self.v6.addresses).copied()
    }

    fn left_out(&self) -> usize {
        self.v4.left_out + self.v6.left_out
    }
}

/// The addresses of a host, in both families; in one of which nobody says anything those that it had `before`.
async fn look_up_host(resolver: &Resolver, host: &str, before: Families, deadline: Instant) -> Host {
    let mut v4 = std::pin::pin!(resolver.ask(host, RecordType::A, deadline));
    let mut v6 = std::pin::pin!(resolver.ask(host, RecordType::AAAA, deadline));
    let late = || Err(Lack::Failed("no server answers".into()));
    let patience = |known: &Result<Vec<Record>, Lack>| match known {
        Ok(_) | Err(Lack::NoName) => deadline.min(Instant::now() + OTHER_FAMILY),
        Err(_) => deadline,
    };
    let (v4, v6) = tokio::select! {
        found = &mut v4 => {
            let other = tokio::time::timeout_at(patience(&found), v6).await;
            (found, other.unwrap_or_else(|_| late()))
        }
        found = &mut v6 => {
            let other = tokio::time::timeout_at(patience(&found), v4).await;
            (other.unwrap_or_else(|_| late()), found)
        }
    };
    join(v4, v6, before)
}

/// What both families come to.
fn join(v4: Result<Vec<Record>, Lack>, v6: Result<Vec<Record>, Lack>, before: Families) -> Host {
    let ttl = [&v4, &v6].into_iter().filter_map(|it| it.as_ref().ok().and_then(|it| shortest(it))).min();
    let lack = match (&v4, &v6) {
        (Ok(_), _) | (_, Ok(_)) => None,
        // It is the name that is not there, whatever it is asked for.
        (Err(Lack::NoName), _) | (_, Err(Lack::NoName)) => Some(Lack::NoName),
        (Err(failed @ Lack::Failed(_)), _) | (_, Err(failed)) => Some(failed.clone()),
    };
    let gone = matches!(lack, Some(Lack::NoName | Lack::NoRecord));
    let family = |found: Result<Vec<Record>, Lack>, before: Family| match found {
        Ok(records) => usable(&records),
        Err(Lack::Failed(_)) if !gone => before,
        Err(_) => Family::default(),
    };
    let families = Families { v4: family(v4, before.v4), v6: family(v6, before.v6) };
    Host { families, ttl, lack }
}

/// Of records (seconds).
fn shortest(records: &[Record]) -> Option<u32> {
    records.iter().map(|it| it.ttl).min()
}

/// The addresses in records that a backend can have.
fn usable(records: &[Record]) -> Family {
    let address = |record: &Record| match &record.data {
        RData::A(it) => Some(IpAddr::V4(it.0)),
        RData::AAAA(it) => Some(IpAddr::V6(it.0).to_canonical()),
        _ => None,
    };
    let can_be = |it: &IpAddr| match it {
        IpAddr::V4(it) => !it.is_unspecified() && !it.is_multicast() && !it.is_broadcast(),
        // One of a link means nothing without the name of the link.
        IpAddr::V6(it) => !it.is_unspecified() && !it.is_multicast() && !it.is_unicast_link_local(),
    };
    let addresses: BTreeSet<IpAddr> = records.iter().filter_map(address).filter(can_be).collect();
    let left_out = addresses.len().saturating_sub(limits::ADDRESSES_PER_NAME);
    Family { addresses: addresses.into_iter().take(limits::ADDRESSES_PER_NAME).collect(), left_out }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
