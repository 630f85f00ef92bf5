//! Shares, keys, shards, sessions and slow starts, with backends that are only looked at.

use kakehi_ctl::state::{self, Balancing, LoadBalancing, LoadMetric, ShardMode};

use super::super::{
    Cluster,
    affinity::{Affinity, SessionHash},
    hashing::hash,
    load::InFlight,
};
use super::*;

const ROUNDS: usize = 100_000;

/// Backends with weight, and whether they are backups.
fn cluster_with(backends: &[(u8, bool)], change: impl FnOnce(&mut Balancing)) -> Cluster {
    let backends = backends
        .iter()
        .enumerate()
        .map(|(n, (weight, backup))| state::Backend {
            id: n.to_string(),
            address: "127.0.0.1:1".parse().unwrap(),
            weight: *weight,
            backup: *backup,
            ..state::Backend::default()
        })
        .collect();
    let mut balancing = Balancing::default();
    change(&mut balancing);
    let wanted =
        state::Cluster { backends, balancing: Some(Box::new(balancing)), ..state::Cluster::default() };
    Cluster::new("test", &wanted, None).unwrap()
}

fn cluster(backends: &[(u8, bool)]) -> Cluster {
    cluster_with(backends, |_| ())
}

fn by(policy: LoadBalancing, weights: &[u8]) -> Cluster {
    let backends: Vec<_> = weights.iter().map(|weight| (*weight, false)).collect();
    cluster_with(&backends, |it| it.policy = policy)
}

fn choose_for(cluster: &Cluster, excluded: &[usize], affinity: Affinity, now: u64) -> Option<usize> {
    let members = cluster.members.borrow();
    let present = Present { now, host: now, ledger: None };
    let chosen = members.balance.choose(&members.members, excluded, affinity, present)?;
    members.balance.took(&members.members, chosen, present);
    Some(chosen)
}

fn choose(cluster: &Cluster, excluded: &[usize]) -> Option<usize> {
    choose_for(cluster, excluded, Affinity::default(), 0)
}

fn round(cluster: &Cluster, count: usize, now: u64) -> Vec<usize> {
    (0..count).filter_map(|_| choose_for(cluster, &[], Affinity::default(), now)).collect()
}

fn key(number: usize) -> Affinity {
    Affinity { key: hash(&number.to_le_bytes()), session: Session::None }
}

/// Who takes each of the keys.
fn by_key(cluster: &Cluster, excluded: &[usize]) -> Vec<usize> {
    (0..ROUNDS / 10).filter_map(|number| choose_for(cluster, excluded, key(number), 0)).collect()
}

fn shares(chosen: &[usize], backends: usize) -> Vec<usize> {
    (0..backends).map(|index| chosen.iter().filter(|it| **it == index).count()).collect()
}

fn failed(cluster: &Cluster, index: usize, now: u64) {
    cluster.members.borrow().members[index].backend.health.failed(now);
}

fn set_load(cluster: &Cluster, index: usize, connections: u32) {
    let members = cluster.members.borrow();
    let load = &members.members[index].backend.load;
    load.set(InFlight { connections, requests: connections });
}

/// Below it is the chi-squared statistic of 999 in 1,000 honest samples.
fn chi_squared_limit(degrees: usize) -> f64 {
    [10.83, 13.82, 16.27, 18.47, 20.52][degrees - 1]
}

/// Fails where the shares are not those of the weights.
fn assert_shares(chosen: &[usize], weights: &[u8], what: &str) {
    let total: f64 = weights.iter().map(|it| f64::from(*it)).sum();
    let statistic: f64 = shares(chosen, weights.len())
        .iter()
        .zip(weights)
        .map(|(share, weight)| {
            let expected = chosen.len() as f64 * f64::from(*weight) / total;
            (*share as f64 - expected).powi(2) / expected
        })
        .sum();
    assert!(
        statistic < chi_squared_limit(weights.len() - 1),
        "{what}: {statistic} {:?}",
        shares(chosen, weights.len())
    );
}

#[test]
fn equal_backends_take_turns() {
    assert_eq!(round(&cluster(&[(100, false), (100, false), (100, false)]), 6, 0), [0, 1, 2, 0, 1, 2]);
}

#[test]
fn shares_follow_the_weights_and_are_spread() {
    assert_eq!(round(&cluster(&[(3, false), (1, false)]), 8, 0), [0, 0, 1, 0, 0, 0, 1, 0]);
}

#[test]
fn backups_wait_for_primaries_and_weight_zero_for_all() {
    let cluster = cluster(&[(0, false), (100, false), (100, true)]);
    assert_eq!(round(&cluster, 3, 0), [1, 1, 1]);
    assert_eq!(choose(&cluster, &[1]), Some(2));
    assert_eq!(choose(&cluster, &[1, 2]), Some(0));
    assert_eq!(choose(&cluster, &[0, 1, 2]), None);
}

#[test]
fn a_backend_that_failed_is_passed_over_for_a_while_that_doubles_and_ends() {
    let cluster = cluster(&[(100, false), (100, false)]);
    failed(&cluster, 0, 0);
    assert_eq!(round(&cluster, 2, 999), [1, 1]);
    assert!(round(&cluster, 2, 1_001).contains(&0));
    failed(&cluster, 0, 1_001);
    assert_eq!(round(&cluster, 2, 3_000), [1, 1]);
    assert!(round(&cluster, 2, 3_002).contains(&0));
}

#[test]
fn when_all_have_failed_they_are_tried_all_the_same() {
    let cluster = cluster(&[(100, false), (100, false)]);
    failed(&cluster, 0, 0);
    failed(&cluster, 1, 0);
    let mut chosen = round(&cluster, 2, 10);
    chosen.sort_unstable();
    assert_eq!(chosen, [0, 1]);
}

#[test]
fn every_policy_gives_each_backend_its_share() {
    // The draws are the same in each run: one in a thousand would fail otherwise.
    fastrand::seed(7);
    let weights = [50, 100, 200];
    for policy in [
        LoadBalancing::RoundRobin,
        LoadBalancing::Random,
        LoadBalancing::LeastLoaded,
        LoadBalancing::PowerOfTwo,
        LoadBalancing::PeakEwma,
    ] {
        assert_shares(&round(&by(policy, &weights), ROUNDS, 0), &weights, policy.word());
    }
    let hrw = by(LoadBalancing::Hrw, &weights);
    assert_shares(&by_key(&hrw, &[]), &weights, "HRW");
    // A table has places, so that shares are not exact.
    let maglev = shares(&by_key(&by(LoadBalancing::Maglev, &weights), &[]), 3);
    let expected = weights.map(|weight| ROUNDS / 10 * usize::from(weight) / 350);
    assert!(maglev.iter().zip(expected).all(|(it, wanted)| it.abs_diff(wanted) < wanted / 15), "{maglev:?}");
}

#[test]
fn no_policy_takes_what_cannot_be_used_while_there_is_another() {
    for word in LoadBalancing::WORDS {
        let policy = LoadBalancing::from_word(word).unwrap();
        let cluster =
            cluster_with(&[(100, false), (100, false), (0, false), (100, true)], |it| it.policy = policy);
        failed(&cluster, 1, 0);
        assert!(by_key(&cluster, &[]).iter().all(|it| *it == 0), "{word}");
        assert!(by_key(&cluster, &[0]).iter().all(|it| *it == 3), "{word}");
        assert!(by_key(&cluster, &[0, 3]).iter().all(|it| *it == 2), "{word}");
        assert!(by_key(&cluster, &[0, 2, 3]).iter().all(|it| *it == 1), "{word}");
        assert_eq!(choose(&cluster, &[0, 1, 2, 3]), None, "{word}");
    }
}

#[test]
fn the_least_loaded_backend_is_the_one_with_the_least_load_for_its_weight() {
    let cluster = by(LoadBalancing::LeastLoaded, &[100, 100, 200]);
    for (loads, expected) in [([3, 2, 6], 1), ([3, 2, 3], 2), ([0, 1, 2], 0)] {
        loads.iter().enumerate().for_each(|(index, load)| set_load(&cluster, index, *load));
        assert_eq!(choose(&cluster, &[]), Some(expected), "{loads:?}");
    }
}

#[test]
fn loads_give_each_backend_its_share_however_much_is_in_flight() {
    fastrand::seed(5);
    let policies = [LoadBalancing::LeastLoaded, LoadBalancing::PowerOfTwo, LoadBalancing::PeakEwma];
    for policy in policies {
        loads_give_shares(policy);
    }
}

fn loads_give_shares(policy: LoadBalancing) {
    for weights in [&[50, 100, 200][..], &[1, 2, 3, 4], &[1, 10], &[1, 1, 100], &[100, 100, 100]] {
        for in_flight in [1, 2, 3, 8, 64] {
            let cluster = by(policy, weights);
            let mut loads = vec![0; weights.len()];
            let mut running = Vec::new();
            let mut chosen = Vec::new();
            while chosen.len() < ROUNDS {
                if running.len() == in_flight {
                    // All take as long.
                    let index: usize = running.swap_remove(fastrand::usize(..in_flight));
                    loads[index] -= 1;
                    set_load(&cluster, index, loads[index]);
                }
                let index = choose(&cluster, &[]).unwrap();
                loads[index] += 1;
                set_load(&cluster, index, loads[index]);
                running.push(index);
                chosen.push(index);
            }
            assert_shares(
                &chosen,
                weights,
                &format!("{}, {weights:?}, {in_flight} in flight", policy.word()),
            );
        }
    }
}

#[test]
fn of_two_the_more_loaded_is_not_taken() {
    fastrand::seed(1);
    for policy in [LoadBalancing::PowerOfTwo, LoadBalancing::PeakEwma] {
        let cluster = by(policy, &[100, 100, 100]);
        set_load(&cluster, 1, 50);
        assert!(!round(&cluster, 1_000, 0).contains(&1), "{}", policy.word());
    }
}

#[test]
fn who_answers_late_or_connects_late_is_asked_less() {
    fastrand::seed(1);
    let cluster = by(LoadBalancing::PeakEwma, &[100, 100]);
    cluster.members.borrow().members[0].backend.load.answering.observe_peak(500, 1_000);
    assert!(!round(&cluster, 100, 1_000).contains(&0));
    assert!(round(&cluster, 100, 200_000).contains(&0), "it is forgotten");
    let cluster = cluster_with(&[(100, false), (100, false)], |it| {
        it.policy = LoadBalancing::LeastLoaded;
        it.metric = LoadMetric::ConnectionTime;
    });
    cluster.members.borrow().members[1].backend.load.connecting.observe(50, 1_000);
    assert!(!round(&cluster, 100, 1_000).contains(&1));
}

#[test]
fn answers_that_differ_little_make_no_difference() {
    fastrand::seed(2);
    let choices = |other: u64| {
        let cluster = by(LoadBalancing::PeakEwma, &[100, 100]);
        for (index, time) in [(0, 100), (1, other)] {
            cluster.members.borrow().members[index].backend.load.answering.observe_peak(time, 0);
        }
        shares(&round(&cluster, 1_000, 0), 2)
    };
    assert_eq!(choices(115), [500, 500]);
    assert_eq!(choices(140), [1_000, 0]);
}

#[test]
fn who_is_asked_about_or_has_no_room_keeps_its_turn() {
    let cluster = by(LoadBalancing::RoundRobin, &[100, 100, 100]);
    let members = cluster.members.borrow();
    let present = Present { now: 0, host: 0, ledger: None };
    let look =
        |excluded: &[usize]| members.balance.choose(&members.members, excluded, Affinity::default(), present);
    assert_eq!([look(&[]), look(&[]), look(&[0])], [Some(0), Some(0), Some(1)]);
    // The first was full, the second has taken it.
    members.balance.took(&members.members, 1, present);
    assert_eq!(round(&cluster, 4, 0), [2, 0, 1, 2]);
}

#[test]
fn what_was_passed_over_for_long_makes_up_for_a_part_of_it_only() {
    let cluster = by(LoadBalancing::LeastLoaded, &[100, 100]);
    set_load(&cluster, 0, 10);
    assert_eq!(shares(&round(&cluster, 10_000, 0), 2), [0, 10_000]);
    set_load(&cluster, 0, 0);
    let chosen = round(&cluster, 1_000, 0);
    let alone = chosen.iter().take_while(|index| **index == 0).count();
    assert!((100..=130).contains(&alone), "{alone}");
    assert!(shares(&chosen[alone..], 2).iter().all(|share| *share > 400), "{:?}", shares(&chosen, 2));
}

#[test]
fn a_key_stays_where_it_is_and_only_those_of_a_backend_that_goes_move() {
    for policy in [LoadBalancing::Hrw, LoadBalancing::Maglev] {
        let cluster = by(policy, &[100; 5]);
        let before = by_key(&cluster, &[]);
        assert_eq!(before, by_key(&by(policy, &[100; 5]), &[]), "another worker");
        failed(&cluster, 2, 0);
        let after = by_key(&cluster, &[]);
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new);
        assert!(moved.clone().all(|(old, _)| *old == 2), "{}", policy.word());
        let to: Vec<_> = moved.map(|(_, new)| *new).collect();
        assert!(shares(&to, 5).iter().filter(|share| **share > to.len() / 8).count() == 4, "{to:?}");
    }
}

#[test]
fn a_key_goes_to_its_next_choice_while_its_backend_has_too_much() {
    for policy in [LoadBalancing::Hrw, LoadBalancing::Maglev] {
        let bounded = |factor| {
            cluster_with(&[(100, false); 3], |it| {
                it.policy = policy;
                it.hash_balance_factor = factor;
            })
        };
        let (free, cluster) = (bounded(0), bounded(125));
        for cluster in [&free, &cluster] {
            [30, 3, 3].into_iter().enumerate().for_each(|(index, load)| set_load(cluster, index, load));
        }
        let (before, after) = (by_key(&free, &[]), by_key(&cluster, &[]));
        assert!(before.contains(&0) && !after.contains(&0), "{}", policy.word());
        assert!(before.iter().zip(&after).all(|(old, new)| *old == 0 || old == new));
    }
}

#[test]
fn a_client_is_served_by_its_shard_and_others_only_where_that_is_allowed() {
    let sharded = |mode| {
        cluster_with(&[(100, false); 10], |it| {
            it.shard_percent = Some(25);
            it.shard_mode = mode;
        })
    };
    let cluster = sharded(ShardMode::Fallback);
    let shard = |cluster: &Cluster, number| {
        let mut chosen: Vec<_> = (0..40).filter_map(|_| choose_for(cluster, &[], key(number), 0)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    };
    let of_one = shard(&cluster, 1);
    assert_eq!(of_one.len(), 3, "25 % of 10, rounded up");
    assert_eq!(of_one, shard(&sharded(ShardMode::Strict), 1));
    assert!((2..50).any(|number| shard(&cluster, number) != of_one));
    let strict = sharded(ShardMode::Strict);
    for cluster in [&cluster, &strict] {
        of_one.iter().for_each(|index| failed(cluster, *index, 0));
    }
    assert_eq!(shard(&cluster, 1).len(), 7);
    assert_eq!(shard(&strict, 1), of_one);
    // With few backends there are none.
    let few = cluster_with(&[(100, false); 7], |it| it.shard_percent = Some(10));
    assert_eq!(shard(&few, 1).len(), 7);
}

#[test]
fn a_session_stays_with_its_backend_while_that_can_be_used() {
    let cluster = cluster_with(&[(100, false), (0, false), (100, true)], |it| it.sticky_session = true);
    for index in 0..3 {
        let value = cluster.members.borrow().members[index].session;
        let with = Affinity { key: 0, session: Session::With(SessionHash::new(value)) };
        assert_eq!(choose_for(&cluster, &[], with, 0), Some(index));
        assert_ne!(choose_for(&cluster, &[index], with, 0), Some(index));
        failed(&cluster, index, 0);
        assert_ne!(choose_for(&cluster, &[], with, 0), Some(index));
    }
    let unknown = Affinity { key: 0, session: Session::With(SessionHash::new(1)) };
    assert!(choose_for(&cluster, &[], unknown, 50_000).is_some());
}

#[test]
fn a_backend_that_begins_slowly_gets_more_and_more() {
    let slow = |policy| {
        cluster_with(&[(100, false), (100, false)], |it| {
            it.policy = policy;
            it.slow_start_ms = 10_000;
        })
    };
    for policy in
        [LoadBalancing::RoundRobin, LoadBalancing::Random, LoadBalancing::Hrw, LoadBalancing::Maglev]
    {
        fastrand::seed(3);
        let cluster = slow(policy);
        assert!(shares(&by_key(&cluster, &[]), 2)[1] > 4_500, "both are new");
        cluster.members.borrow().members[1].backend.start.begin();
        let share = |now| {
            let chosen: Vec<_> =
                (0..ROUNDS / 10).filter_map(|it| choose_for(&cluster, &[], key(it), now)).collect();
            shares(&chosen, 2)[1]
        };
        let (first, middle, last) = (share(1_000), share(6_000), share(11_000));
        assert!((500..1_300).contains(&first), "{}: {first}", policy.word());
        assert!((2_500..4_300).contains(&middle), "{}: {middle}", policy.word());
        assert!(last > 4_700, "{}: {last}", policy.word());
    }
    let cluster = slow(LoadBalancing::RoundRobin);
    cluster.members.borrow().members[1].backend.start.begin();
    assert!(round(&cluster, 11, 0).contains(&1), "once in a round at least");
}
