//! How verdicts count when they do not agree.

use kakehi_ctl::state::{self, Balancing, HealthCheck};

use std::sync::atomic::Ordering;

use super::*;
use crate::{
    ledger::{Ledger, Word},
    upstream::{
        Cluster,
        affinity::{Affinity, Session, SessionHash},
        cluster::Endpoints,
        hashing::hash,
    },
};

/// Backends with weight, whether they are backups, and their mode.
fn cluster(
    backends: &[(u8, bool, BackendMode)],
    change: impl FnOnce(&mut Balancing),
) -> (Cluster, state::Cluster) {
    let backend = |(n, (weight, backup, mode)): (usize, &(u8, bool, BackendMode))| state::Backend {
        id: n.to_string(),
        address: format!("127.0.0.1:{}", n + 1).parse().unwrap(),
        weight: *weight,
        backup: *backup,
        mode: *mode,
        sticky_id: Some(n.to_string().into()),
        ..state::Backend::default()
    };
    let mut balancing = Balancing { sticky_session: true, ..Balancing::default() };
    change(&mut balancing);
    let wanted = state::Cluster {
        backends: backends.iter().enumerate().map(backend).collect(),
        balancing: Some(Box::new(balancing)),
        health: Some(Box::default()),
        ..state::Cluster::default()
    };
    (Cluster::new("test", &wanted, None).unwrap(), wanted)
}

const READY: (u8, bool, BackendMode) = (100, false, BackendMode::Ready);
const BACKUP: (u8, bool, BackendMode) = (100, true, BackendMode::Ready);
const DRAINED: (u8, bool, BackendMode) = (100, false, BackendMode::Drain);
const MAINTAINED: (u8, bool, BackendMode) = (100, false, BackendMode::Maintain);

fn choose(cluster: &Cluster, excluded: &[usize], session: Option<usize>, now: u64) -> Option<usize> {
    let session =
        session.map_or(Session::New, |n| Session::With(SessionHash::new(hash(n.to_string().as_bytes()))));
    let members = cluster.members.borrow();
    let present = Present { now, host: now, ledger: None };
    let chosen = members.balance.choose(&members.members, excluded, Affinity { key: 0, session }, present)?;
    members.balance.took(&members.members, chosen, present);
    Some(chosen)
}

/// Who takes new requests.
fn chosen(cluster: &Cluster) -> Vec<usize> {
    let mut chosen: Vec<usize> = (0..12).filter_map(|_| choose(cluster, &[], None, 0)).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn failed(cluster: &Cluster, index: usize) {
    cluster.members.borrow().members[index].backend.health.failed(0);
}

#[test]
fn a_drained_backend_keeps_its_sessions_and_a_maintained_one_nothing() {
    let (cluster, _) = cluster(&[READY, DRAINED, MAINTAINED], |_| ());
    assert_eq!(chosen(&cluster), [0]);
    assert_eq!(choose(&cluster, &[], Some(1), 0), Some(1));
    assert_eq!(choose(&cluster, &[], Some(2), 0), Some(0));
    // Not even when nothing else is left.
    failed(&cluster, 0);
    assert_eq!(chosen(&cluster), [0]);
    assert_eq!(choose(&cluster, &[0], None, 0), None);
}

#[test]
fn an_operator_is_obeyed_by_a_cluster_of_one() {
    for (backend, new, session) in
        [(READY, Some(0), Some(0)), (DRAINED, None, Some(0)), (MAINTAINED, None, None)]
    {
        let (cluster, _) = cluster(&[backend], |_| ());
        assert_eq!((choose(&cluster, &[], None, 0), choose(&cluster, &[], Some(0), 0)), (new, session));
        assert_eq!(choose(&cluster, &[], Some(7), 0), new);
    }
}

#[test]
fn what_probes_call_dead_is_used_only_when_nothing_else_is() {
    let (cluster, _) = cluster(&[READY, READY, BACKUP], |_| ());
    cluster.set_probe("0", false);
    assert_eq!(chosen(&cluster), [1]);
    assert_eq!(choose(&cluster, &[], Some(0), 0), Some(1));
    cluster.set_probe("1", false);
    assert_eq!(chosen(&cluster), [2]);
    cluster.set_probe("2", false);
    assert_eq!(chosen(&cluster), [0, 1]);
    assert_eq!(choose(&cluster, &[], Some(2), 0), Some(2), "sessions stay where they are");
    // What failed is not among those that only probes call dead.
    failed(&cluster, 0);
    assert_eq!(chosen(&cluster), [1]);
    cluster.set_probe("0", true);
    assert_eq!(chosen(&cluster), [1]);
}

#[test]
fn what_is_tried_for_a_request_goes_from_the_best_to_the_worst() {
    let (cluster, _) = cluster(&[READY, READY, READY, READY], |_| ());
    cluster.set_probe("0", false);
    cluster.set_probe("3", false);
    failed(&cluster, 1);
    failed(&cluster, 3);
    let mut tried = Vec::new();
    while let Some(next) = choose(&cluster, &tried, None, 0) {
        tried.push(next);
    }
    assert_eq!(tried, [2, 0, 1, 3]);
}

#[test]
fn without_fail_open_nothing_is_used_but_what_is_usable() {
    for count in [1, 3] {
        let (cluster, _) = cluster(&vec![READY; count], |it| it.fail_open = false);
        (0..count).for_each(|n| cluster.set_probe(&n.to_string(), false));
        assert!(chosen(&cluster).is_empty());
        cluster.set_probe("0", true);
        assert_eq!(chosen(&cluster), [0]);
        failed(&cluster, 0);
        assert!(chosen(&cluster).is_empty());
    }
}

#[test]
fn in_a_panic_probes_are_not_believed() {
    let (cluster, _) = cluster(&[READY, READY, READY, READY, MAINTAINED, BACKUP], |it| {
        (it.panic_threshold, it.fail_open) = (50, false);
    });
    cluster.set_probe("0", false);
    cluster.set_probe("1", false);
    // Half is not less than half.
    assert_eq!(chosen(&cluster), [2, 3]);
    cluster.set_probe("2", false);
    assert_eq!(chosen(&cluster), [0, 1, 2, 3]);
    cluster.set_probe("0", true);
    assert_eq!(chosen(&cluster), [0, 3]);
}

#[test]
fn a_panic_goes_by_weight() {
    let (cluster, _) = cluster(&[(90, false, BackendMode::Ready), (10, false, BackendMode::Ready)], |it| {
        it.panic_threshold = 20;
    });
    cluster.set_probe("1", false);
    assert_eq!(chosen(&cluster), [0]);
    cluster.set_probe("1", true);
    cluster.set_probe("0", false);
    assert_eq!(chosen(&cluster), [0, 1]);
}

#[test]
fn what_probes_found_stays_however_the_backend_is_reached_and_goes_with_the_probes() {
    let (cluster, mut wanted) = cluster(&[READY, READY], |_| ());
    cluster.set_probe("0", false);
    wanted.send_proxy = true;
    let renewed = Endpoints::new("test", &wanted, Some(&cluster), None).unwrap();
    let down = |members: &[Member]| -> Vec<bool> {
        members.iter().map(|it| it.backend.verdicts.is_probe_down()).collect()
    };
    assert_eq!(down(&renewed.members), [true, false]);
    wanted.health = None;
    let renewed = Endpoints::new("test", &wanted, Some(&cluster), None).unwrap();
    assert_eq!(down(&renewed.members), [false, false]);
}

#[test]
fn a_backend_that_is_new_begins_as_the_check_says() {
    let (_, mut wanted) = cluster(&[READY, READY], |_| ());
    let check = HealthCheck { initial: state::InitialVerdict::Down, ..HealthCheck::default() };
    wanted.health = Some(Box::new(check));
    wanted.balancing = Some(Box::new(Balancing { fail_open: false, ..Balancing::default() }));
    let cluster = Cluster::new("test", &wanted, None).unwrap();
    assert!(chosen(&cluster).is_empty());
    cluster.set_probe("1", true);
    assert_eq!(chosen(&cluster), [1]);
}

#[test]
fn what_the_ledger_says_of_ejections_counts_unless_nobody_of_ours_can_have_written_it() {
    let (cluster, _) = cluster(&[(100, false, BackendMode::Ready), (100, false, BackendMode::Ready)], |it| {
        it.sticky_session = false;
    });
    let (_supervisor, file) = Ledger::create(c"test", 64).unwrap();
    let ledger = Ledger::map(&file).unwrap();
    assert!(ledger.claim_lane(1));
    let members = cluster.members.borrow();
    let eject = |index: usize| {
        let slot = members.members[index].backend.load.slot(Some(&ledger)).unwrap();
        slot.word(Word::EjectedUntil).store(1_500_000, Ordering::Relaxed);
    };
    let chosen = || {
        let present = Present { now: 0, host: 1_400_000, ledger: Some(&ledger) };
        let choose = |_| {
            let chosen = members.balance.choose(&members.members, &[], Affinity::default(), present)?;
            members.balance.took(&members.members, chosen, present);
            Some(chosen)
        };
        let mut chosen: Vec<_> = (0..8).filter_map(choose).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    };
    assert_eq!(chosen(), [0, 1]);
    eject(0);
    assert_eq!(chosen(), [1]);
    eject(1);
    assert_eq!(chosen(), [0, 1]);
}
