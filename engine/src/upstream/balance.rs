//! Which backend takes the next request.
//!
//! Smooth weighted round robin: shares are exact over a full round, and evenly spread within it. A backend that
//! could not be connected to is passed over for a while that doubles with each failure; when nothing else is
//! left it is tried all the same. Backups come after all primaries, weight 0 after all other weights.

use std::cell::{Cell, RefCell};

use super::cluster::Member;

/// First time that a backend is passed over after a failed connection attempt (ms); doubles.
const FIRST_PENALTY_MS: u64 = 1_000;
/// Longest (ms).
const LONGEST_PENALTY_MS: u64 = 30_000;

/// What connecting to a backend was like lately.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: Cell<u32>,
    down_until: Cell<u64>,
}

impl Health {
    pub(super) fn connected(&self) {
        self.failures.set(0);
        self.down_until.set(0);
    }

    pub(super) fn failed(&self, now: u64) {
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        let penalty = (FIRST_PENALTY_MS << failures.min(10)).min(LONGEST_PENALTY_MS);
        self.down_until.set(now + penalty);
    }

    fn is_down(&self, now: u64) -> bool {
        self.down_until.get() > now
    }
}

/// The state of the round.
#[derive(Debug)]
pub(super) struct Balance {
    /// How far each backend is behind its share.
    credit: RefCell<Vec<i64>>,
}

/// Order of preference: healthy primaries, healthy backups, then, rather than nothing, the failing ones.
fn class(member: &Member, now: u64) -> u8 {
    u8::from(member.backend.health.is_down(now)) * 4
        + u8::from(member.backup) * 2
        + u8::from(member.weight == 0)
}

impl Balance {
    pub(super) fn new(backends: usize) -> Balance {
        Balance { credit: RefCell::new(vec![0; backends]) }
    }

    /// The backend whose turn it is, but for those in `excluded`; `None` when none is left.
    pub(super) fn choose(&self, members: &[Member], excluded: &[usize], now: u64) -> Option<usize> {
        if let [_] = members {
            return excluded.is_empty().then_some(0);
        }
        let candidates = || members.iter().enumerate().filter(|(index, _)| !excluded.contains(index));
        let best = candidates().map(|(_, member)| class(member, now)).min()?;
        let mut credit = self.credit.borrow_mut();
        let mut total = 0;
        let mut chosen = None;
        for (index, member) in candidates().filter(|(_, member)| class(member, now) == best) {
            // Among those of weight 0 all are equal.
            let weight = i64::from(member.weight.max(1));
            total += weight;
            credit[index] += weight;
            if chosen.is_none_or(|chosen: usize| credit[index] > credit[chosen]) {
                chosen = Some(index);
            }
        }
        if let Some(index) = chosen {
            credit[index] -= total;
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use kakehi_ctl::state;

    use super::super::Cluster;

    fn cluster(backends: &[(u8, bool)]) -> Cluster {
        let backends = backends
            .iter()
            .enumerate()
            .map(|(n, (weight, backup))| state::Backend {
                id: n.to_string(),
                address: "127.0.0.1:1".parse().unwrap(),
                weight: *weight,
                backup: *backup,
            })
            .collect();
        Cluster::new("test", &state::Cluster { backends, ..state::Cluster::default() }, None).unwrap()
    }

    fn round(cluster: &Cluster, count: usize, now: u64) -> Vec<usize> {
        let members = cluster.members.borrow();
        (0..count).filter_map(|_| members.balance.choose(&members.members, &[], now)).collect()
    }

    fn choose(cluster: &Cluster, excluded: &[usize]) -> Option<usize> {
        let members = cluster.members.borrow();
        members.balance.choose(&members.members, excluded, 0)
    }

    fn failed(cluster: &Cluster, index: usize, now: u64) {
        cluster.members.borrow().members[index].backend.health.failed(now);
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
    fn backups_and_weight_zero_wait_until_nothing_else_is_left() {
        let cluster = cluster(&[(0, false), (100, false), (100, true)]);
        assert_eq!(round(&cluster, 3, 0), [1, 1, 1]);
        assert_eq!(choose(&cluster, &[1]), Some(0));
        assert_eq!(choose(&cluster, &[0, 1]), Some(2));
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
}
