//! A table that was patched answers as one that was compiled whole, whatever the changes.

use kakehi_ctl::{
    change::FrontendRule,
    state::{Backend, Frontend, Listener, PathRule, Predicate, Predicates},
};

use super::*;
use crate::http::Asked;

/// A generator of small numbers, the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

const HOSTS: [&str; 9] =
    ["a.test", "A.test.", "b.test", "*.test", "*", "[::1]", "[0:0::1]", "/a|b/.test", "c.test"];
const PATHS: [&str; 7] = ["", "/", "/x", "/x/y", "/caf%C3%A9", "/z", "/x/"];
const METHODS: [Option<&str>; 3] = [None, Some("GET"), Some("POST")];

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn frontend(dice: &mut Dice) -> Frontend {
    let path = (*dice.one(&PATHS)).to_owned();
    Frontend {
        address: address(80 + dice.roll(2) as u16),
        hostname: (*dice.one(&HOSTS)).to_owned(),
        path: match dice.roll(4) {
            0 if !path.is_empty() => PathRule::Equals(path),
            1 => PathRule::Regex(format!("{path}[a-z]*")),
            _ => PathRule::Prefix(path),
        },
        method: dice.one(&METHODS).map(str::to_owned),
        deny: dice.roll(6) == 0,
        redirect: if dice.roll(6) == 0 { state::Redirect::Found } else { state::Redirect::Forward },
        rewrite: (dice.roll(4) == 0).then(|| {
            let path = format!("/{}$HOST[0]$PATH[0]", dice.roll(2)).into_boxed_str();
            Box::new(state::Rewrite { path: Some(path), ..state::Rewrite::default() })
        }),
        predicates: (dice.roll(4) == 0).then(|| {
            let value = Some((*dice.one(&["1", "2"])).to_owned());
            let predicate = Predicate { name: "x".to_owned(), value, ..Predicate::default() };
            Box::new(Predicates { headers: vec![predicate], ..Predicates::default() })
        }),
        position: if dice.roll(30) == 0 { RulePosition::Pre } else { RulePosition::Tree },
        order: std::num::NonZeroU64::new(dice.roll(4) as u64),
        ..Frontend::default()
    }
}

/// A request with this value of `X`.
struct WithField(Option<&'static str>);

impl Asked for WithField {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.0.filter(|_| name == "x").map(str::as_bytes)
    }
}

fn cluster(dice: &mut Dice) -> state::Cluster {
    state::Cluster {
        protocol: if dice.roll(8) == 0 { state::ClusterProtocol::Tcp } else { state::ClusterProtocol::Http },
        https_redirect: dice.roll(5) == 0,
        frontends: (0..dice.roll(5)).map(|_| frontend(dice)).collect(),
        ..state::Cluster::default()
    }
}

fn change(dice: &mut Dice, state: &State) -> Change {
    let name = format!("c{}", dice.roll(5));
    let present = state.clusters.get(&name);
    let cluster_of_now = present.cloned().unwrap_or_default();
    match (dice.roll(6), present) {
        (0, Some(_)) => Change::RemoveCluster { name },
        (1, Some(_)) => Change::SetFrontend { cluster: name, frontend: frontend(dice) },
        (2, Some(present)) if !present.frontends.is_empty() => {
            let rule = FrontendRule::from(dice.one(&present.frontends));
            Change::RemoveFrontend { cluster: name, rule }
        }
        (3, Some(_)) => {
            let mut cluster = cluster_of_now;
            match cluster.protocol {
                state::ClusterProtocol::Tcp => cluster.protocol = state::ClusterProtocol::Http,
                state::ClusterProtocol::Http if dice.roll(3) == 0 => {
                    cluster.protocol = state::ClusterProtocol::Tcp;
                }
                state::ClusterProtocol::Http => cluster.frontends.reverse(),
            }
            Change::SetCluster { name, cluster }
        }
        (4, Some(_)) => Change::SetBackend {
            cluster: name,
            backend: Backend {
                id: "b".to_owned(),
                address: address(1).to_string().parse().unwrap(),
                weight: dice.roll(200) as u8,
                ..Backend::default()
            },
        },
        _ => Change::SetCluster { name, cluster: cluster(dice) },
    }
}

/// What a request finds: the cluster and what is done, or why nothing.
fn found(
    config: &ListenerConfig,
    host: &str,
    path: &str,
    method: &str,
    field: Option<&'static str>,
) -> String {
    match config.routes.borrow().find(host, path, method, &WithField(field)) {
        Ok(target) => {
            let made = target.rewriting.as_ref().map(|made| made.rewriter.path(host, path));
            format!("{} {:?} {made:?}", target.cluster.name, target.action)
        }
        Err(reason) => reason.code().to_owned(),
    }
}

#[test]
fn a_patched_table_answers_as_one_compiled_whole() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut patched, mut refused, mut whole) = (0, 0, 0);
    for _ in 0..60 {
        let mut state = State::default();
        for port in [80, 81] {
            state.listeners.insert(address(port), Listener::http(address(port)));
        }
        let (mut configs, mut clusters) = ListenerConfig::compile(&state, &Clusters::new(), None).unwrap();
        for _ in 0..60 {
            let changes: Vec<Change> = (0..1 + dice.roll(2)).map(|_| change(&mut dice, &state)).collect();
            let mut part = state.part(&changes);
            if changes.iter().any(|change| part.apply(change).is_err()) {
                continue;
            }
            let mut next = state.clone();
            changes.iter().for_each(|change| next.apply(change).unwrap());
            let mut new = Clusters::new();
            for (name, wanted) in part.clusters.iter().filter(|(name, _)| !clusters.contains_key(*name)) {
                new.insert(name.clone(), Rc::new(Cluster::new(name, wanted, None).unwrap()));
            }
            let compiled = ListenerConfig::compile(&next, &clusters, None);
            let told = crate::config::faults(&next);
            assert_eq!(told.is_empty(), compiled.is_ok(), "{:?} {told:?}", compiled.err());
            let prints = HostPrints::of(&state);
            let wanted = ConfigDelta::new(&state, &part, &changes, &prints);
            let patches = wanted.compile(&configs, &clusters, &new).and_then(|patches| {
                let Some(patches) = patches else { return Ok(None) };
                Ok(Some((patches, wanted.ingresses(&configs, &clusters, &new, None)?)))
            });
            match (compiled, patches) {
                (Err(_), Err(_)) => {
                    refused += 1;
                    continue;
                }
                (Ok(compiled), Ok(None)) => {
                    whole += 1;
                    (configs, clusters) = compiled;
                }
                // What a whole table would refuse, a patch leaves to it.
                (Err(_), Ok(None)) => continue,
                (Ok((wanted, _)), Ok(Some((patches, ingresses)))) => {
                    patched += 1;
                    for (address, ingress) in ingresses {
                        let config = configs[&address].behind(ingress);
                        configs.insert(address, config);
                    }
                    patches.into_iter().for_each(|(address, patch)| configs[&address].patch(patch));
                    clusters.extend(new);
                    clusters.retain(|name, cluster| {
                        let stays = next.clusters.contains_key(name);
                        if !stays {
                            configs.values().for_each(|config| config.forget(cluster));
                        }
                        stays
                    });
                    let places = configs.values().map(|config| config.routes.borrow().targets.len()).max();
                    assert!(places <= Some(30), "{places:?}");
                    for (address, wanted) in &wanted {
                        for host in ["a.test", "b.test", "c.test", "d.test", "x", "[::1]", "a.b.test"] {
                            for path in
                                ["/", "/x", "/x/y", "/xy", "/x/", "/caf%C3%A9", "/caf%c3%a9", "/z/../x"]
                            {
                                for (method, field) in [
                                    ("GET", None),
                                    ("GET", Some("1")),
                                    ("GET", Some("2")),
                                    ("POST", Some("1")),
                                    ("PUT", None),
                                ] {
                                    assert_eq!(
                                        found(&configs[address], host, path, method, field),
                                        found(wanted, host, path, method, field),
                                        "{method} {host}{path} {field:?} on {address} after {changes:#?} of {state:#?}"
                                    );
                                }
                            }
                        }
                        let (configs, wanted) = (configs[address].routes.borrow(), wanted.routes.borrow());
                        assert_eq!(configs.table.len(), wanted.table.len());
                    }
                }
                (compiled, patches) => panic!(
                    "whole: {:?}, patch: {:?}, {changes:#?} of {state:#?}",
                    compiled.err(),
                    patches.err().map(|error| error.to_string())
                ),
            }
            state = next;
        }
    }
    assert!(
        patched > 500 && refused > 20 && whole > 50,
        "{patched} patched, {refused} refused, {whole} whole"
    );
}
