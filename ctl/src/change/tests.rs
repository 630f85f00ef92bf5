//! Differences of states, and what becomes of a state by them.

use super::*;
use crate::state::{KeyKind, PathRule, Place};

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn backend(id: &str, port: u16, weight: u8) -> Backend {
    let address = address(port).to_string().parse().unwrap();
    Backend { id: id.to_owned(), address, weight, ..Backend::default() }
}

fn cluster(hosts: &[&str], backends: &[Backend]) -> Cluster {
    let frontend = |host: &&str| Frontend {
        address: address(80),
        hostname: (*host).to_owned(),
        path: PathRule::Prefix(String::new()),
        ..Frontend::default()
    };
    Cluster {
        frontends: hosts.iter().map(frontend).collect(),
        backends: backends.to_vec(),
        ..Cluster::default()
    }
}

fn state(listeners: &[u16], clusters: &[(&str, Cluster)]) -> State {
    State {
        listeners: listeners.iter().map(|port| (address(*port), Listener::http(address(*port)))).collect(),
        clusters: clusters.iter().map(|(name, cluster)| ((*name).to_owned(), cluster.clone())).collect(),
        ..State::default()
    }
}

/// A state with a listener on port 80 that terminates TLS and has these certificates.
fn secure(certificates: &[u8], default: u8) -> State {
    let mut state = state(&[80, 81], &[("web", cluster(&["x"], &[]))]);
    for listener in state.listeners.values_mut().filter(|it| it.address == address(80)) {
        listener.tls = Some(Box::default());
    }
    for n in certificates {
        let certificate = Certificate {
            names: [format!("{n}.example")].into_iter().collect(),
            key: KeyKind::Ecdsa,
            not_after: 0,
            default: *n == default,
            named: false,
            place: Place { offset: 5_000, length: u32::from(*n) },
            files: None,
        };
        state.certificates.entry(address(80)).or_default().insert(Fingerprint([*n; 32]), certificate.into());
    }
    state
}

fn various() -> Vec<State> {
    let (a, b, c) = (backend("a", 1, 100), backend("b", 2, 100), backend("c", 3, 1));
    let mut patched = state(&[80], &[("web", cluster(&["x"], std::slice::from_ref(&a)))]);
    patched.listeners.values_mut().for_each(|listener| listener.timeouts.request_ms += 1);
    vec![
        state(&[], &[]),
        state(&[80], &[]),
        state(&[80, 81], &[("web", cluster(&["x"], &[a.clone(), b.clone()]))]),
        state(&[80], &[("web", cluster(&["x"], &[b.clone(), a.clone()]))]),
        state(&[80], &[("web", cluster(&["x", "y"], &[a.clone(), c.clone()]))]),
        state(&[80], &[("web", cluster(&["x"], &[backend("a", 9, 7), c])), ("other", cluster(&["z"], &[b]))]),
        patched,
        secure(&[], 0),
        secure(&[1, 2], 1),
        secure(&[2, 3], 3),
    ]
}

#[test]
fn the_difference_of_any_two_states_leads_from_one_to_the_other() {
    for from in various() {
        for to in various() {
            let mut state = from.clone();
            for change in from.difference(&to) {
                assert!(!state.describe(&change).is_empty());
                state.apply(&change).unwrap();
            }
            assert_eq!(state, to);
            assert_eq!(state.check(), Ok(()));
            assert!(state.difference(&to).is_empty());
        }
    }
}

#[test]
fn a_backend_that_comes_or_goes_leaves_the_routes_alone() {
    let (a, b) = (backend("a", 1, 100), backend("b", 2, 100));
    let one = state(&[80], &[("web", cluster(&["x"], std::slice::from_ref(&a)))]);
    let two = state(&[80], &[("web", cluster(&["x"], &[a, b]))]);
    for (from, to) in [(&one, &two), (&two, &one)] {
        let changes = from.difference(to);
        assert!(changes.len() == 1 && !changes[0].concerns_routes(), "{changes:?}");
    }
}

#[test]
fn certificates_go_with_the_tls_of_their_listener() {
    let (from, to) = (secure(&[1, 2], 1), state(&[80, 81], &[("web", cluster(&["x"], &[]))]));
    let changes = from.difference(&to);
    assert!(matches!(&changes[..], [Change::SetListener { .. }]), "{changes:?}");
    let mut part = from.part(&changes);
    assert_eq!(part.describe(&changes[0])[1..], ["  - its 2 certificates, as it is without TLS"]);
    part.apply(&changes[0]).unwrap();
    assert_eq!((from.check_part(&part, &changes), part.certificates.len()), (Ok(()), 0));
}

#[test]
fn what_is_not_there_cannot_be_removed_and_nothing_happens() {
    let mut present = various().remove(2);
    let before = present.clone();
    let web = || "web".to_owned();
    for (change, error) in [
        (Change::RemoveCluster { name: "no".to_owned() }, ChangeError::NoCluster("no".to_owned())),
        (Change::RemoveListener { address: address(9) }, ChangeError::NoListener(address(9))),
        (
            Change::RemoveBackend { cluster: web(), id: "no".to_owned() },
            ChangeError::NoBackend { cluster: web(), id: "no".to_owned() },
        ),
    ] {
        assert_eq!(present.apply(&change), Err(error));
    }
    assert_eq!(present, before);
}

#[test]
fn a_frontend_without_its_listener_and_two_backends_of_one_name_are_found() {
    let lone = state(&[81], &[("web", cluster(&["x"], &[]))]);
    assert!(matches!(lone.check(), Err(ChangeError::NoListenerFor { .. })));
    let twins = state(&[80], &[("web", cluster(&["x"], &[backend("a", 1, 1), backend("a", 2, 1)]))]);
    assert!(matches!(twins.check(), Err(ChangeError::TwoBackends { .. })));
    assert_eq!(various()[2].check(), Ok(()));
}
