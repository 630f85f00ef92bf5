//! What is compiled of a change decides as what is compiled of the whole, whatever the changes.

use kakehi_ctl::{
    change::{Change, FrontendRule},
    state::{
        ClientAuth, Cluster as Configured, Listener, Material, PathRule, Predicates, State, Tls, TlsVersion,
    },
};

use super::{super::HostPrints, *};
use crate::{
    exchange::ListenerConfig,
    tls::{OfferedProtocols, Vault},
};

const HOSTS: [&str; 6] = ["a.test", "A.test.", "b.test", "*.test", "*.a.test", "*"];
const PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];
const OFFERED: [&[&str]; 4] = [&[], &["h2"], &["http/1.1", "h2"], &["x"]];
const ASKED: [Option<&str>; 7] = [
    None,
    Some("a.test"),
    Some("b.test"),
    Some("c.test"),
    Some("x.a.test"),
    Some("y.x.a.test"),
    Some("test"),
];

/// Changes at random, the same on every run.
struct Chance {
    state: u64,
    /// Authorities of clients, in the vault.
    authorities: Vec<Material>,
}

impl Chance {
    fn roll(&mut self, sides: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 33) as usize % sides
    }

    fn client_auth(&mut self) -> Option<ClientAuth> {
        let which = self.roll(6);
        let ca = self.authorities.get(which).cloned()?;
        Some(ClientAuth { ca, required: self.roll(4) > 0, ..ClientAuth::default() })
    }

    fn versions(&mut self) -> Option<Vec<TlsVersion>> {
        [Some(vec![TlsVersion::V13]), Some(vec![TlsVersion::V12]), None, None, None][self.roll(5)].clone()
    }

    fn listener(&mut self, address: SocketAddr) -> Listener {
        let mut listener = Listener::http(address);
        if self.roll(5) > 0 {
            listener.protocol = ListenerProtocol::Https;
            let (client_auth, versions) = (self.client_auth(), self.versions());
            let default = Tls::default();
            let versions = versions.unwrap_or(default.versions.clone());
            listener.tls = Some(Box::new(Tls { client_auth, versions, ..default }));
        }
        listener
    }

    fn alpn(&mut self) -> Option<Box<Predicates>> {
        let alpn = PROTOCOLS.into_iter().filter(|_| self.roll(3) == 0).map(str::to_owned).collect();
        let asks = Predicates { alpn, ..Predicates::default() };
        (!asks.is_empty()).then(|| Box::new(asks))
    }

    fn frontend(&mut self) -> Frontend {
        let own = FrontendTls { versions: self.versions(), client_auth: self.client_auth(), hsts: None };
        Frontend {
            address: address(self.roll(2)),
            hostname: HOSTS[self.roll(HOSTS.len())].to_owned(),
            path: PathRule::Prefix(String::new()),
            method: None,
            predicates: self.alpn(),
            tls: (self.roll(3) == 0).then(|| Box::new(own)),
            ..Frontend::default()
        }
    }

    fn cluster(&mut self) -> Configured {
        Configured {
            protocol: if self.roll(3) == 0 { ClusterProtocol::Tcp } else { ClusterProtocol::Http },
            frontends: (0..self.roll(3)).map(|_| self.frontend()).collect(),
            ..Configured::default()
        }
    }

    fn change(&mut self, state: &State) -> Change {
        let name = format!("c{}", self.roll(5));
        match (self.roll(7), state.clusters.get(&name)) {
            (0, _) => {
                let address = address(self.roll(2));
                Change::SetListener { listener: Box::new(self.listener(address)) }
            }
            (1, Some(_)) => Change::RemoveCluster { name },
            (2 | 3, Some(_)) => Change::SetFrontend { cluster: name, frontend: self.frontend() },
            (4, Some(present)) if !present.frontends.is_empty() => {
                let rule = FrontendRule::from(&present.frontends[self.roll(present.frontends.len())]);
                Change::RemoveFrontend { cluster: name, rule }
            }
            (5, Some(present)) => {
                let protocol = match present.protocol {
                    ClusterProtocol::Http => ClusterProtocol::Tcp,
                    ClusterProtocol::Tcp => ClusterProtocol::Http,
                };
                Change::SetCluster { name, cluster: Configured { protocol, ..present.clone() } }
            }
            _ => Change::SetCluster { name, cluster: self.cluster() },
        }
    }
}

fn address(number: usize) -> SocketAddr {
    ([127, 0, 0, 1], 443 + number as u16).into()
}

/// A context over a vault with two authorities.
fn context() -> (Context, Vec<Material>) {
    let vault = Vault::create().unwrap();
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let place = vault.add(made.pem().as_bytes()).unwrap();
        Material { path: name.into(), digest: name.to_owned(), place }
    };
    let authorities = ["one", "two"].map(authority).into();
    (Context::new(vault, 60_000).unwrap(), authorities)
}

/// What becomes of a connection whose client asks for a name, with and without protocols.
fn decided(config: &ListenerConfig, name: Option<&str>) -> String {
    let name_of = |passage: Option<&Passage>| passage.map(|passage| passage.cluster.name.clone());
    let passed_on = OFFERED.map(|offered| {
        let offered = OfferedProtocols::new(offered.iter().map(|protocol| protocol.as_bytes()));
        name_of(config.passthrough.find(name, &offered))
    });
    let unread = name_of(config.passthrough.unread());
    let by_hello = config.passthrough.goes_by_hello();
    let policy = config.tls.as_ref().map(|terminator| terminator.policy(name).describe());
    format!("passed on {passed_on:?}, by the first message: {by_hello}, or {unread:?}, decrypted {policy:?}")
}

#[test]
fn what_is_compiled_of_a_change_decides_as_the_whole() {
    let (context, authorities) = context();
    let mut chance = Chance { state: 0x9e37_79b9_7f4a_7c15, authorities };
    let (mut same, mut concerned, mut refused) = (0, 0, 0);
    for _ in 0..80 {
        let mut state = State::default();
        for number in 0..2 {
            state.listeners.insert(address(number), chance.listener(address(number)));
        }
        let (mut configs, mut clusters) =
            ListenerConfig::compile(&state, &Clusters::new(), Some(&context)).unwrap();
        for _ in 0..40 {
            let changes: Vec<Change> = (0..1 + chance.roll(2)).map(|_| chance.change(&state)).collect();
            let (mut part, mut next) = (state.part(&changes), state.clone());
            if changes.iter().any(|change| part.apply(change).is_err()) {
                continue;
            }
            changes.iter().for_each(|change| next.apply(change).unwrap());
            let mut new = Clusters::new();
            for (name, wanted) in part.clusters.iter().filter(|(name, _)| !clusters.contains_key(*name)) {
                new.insert(name.clone(), Rc::new(Cluster::new(name, wanted, None).unwrap()));
            }
            let prints = HostPrints::of(&state);
            let wanted = ConfigDelta::new(&state, &part, &changes, &prints);
            let ingresses = wanted.ingresses(&configs, &clusters, &new, Some(&context));
            let whole = ListenerConfig::compile(&next, &clusters, Some(&context));
            let ((whole, _), ingresses) = match (whole, ingresses) {
                (Ok(whole), Ok(ingresses)) => (whole, ingresses),
                // Routes that contradict each other are found elsewhere.
                (Err(CompileError::Routes { .. }), _) => continue,
                (Err(_), Err(_)) => {
                    refused += 1;
                    continue;
                }
                (whole, ingresses) => panic!(
                    "whole: {:?}, of the change: {:?}, {changes:#?} of {state:#?}",
                    whole.err(),
                    ingresses.err()
                ),
            };
            *(if ingresses.is_empty() { &mut same } else { &mut concerned }) += 1;
            for (address, ingress) in ingresses {
                let config = configs[&address].with_settings(&next.listeners[&address]).behind(ingress);
                configs.insert(address, config);
            }
            clusters.extend(new);
            clusters.retain(|name, _| next.clusters.contains_key(name));
            for (address, whole) in &whole {
                for name in ASKED {
                    let (decided, wanted) = (decided(&configs[address], name), decided(whole, name));
                    assert_eq!(decided, wanted, "{name:?} on {address} after {changes:#?} of {state:#?}");
                }
            }
            state = next;
        }
    }
    assert!(
        same > 300 && concerned > 300 && refused > 100,
        "{same} the same, {concerned} concerned, {refused} refused"
    );
}
