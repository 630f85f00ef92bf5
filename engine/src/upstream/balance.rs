//! Which backend takes the next request.
//!
//! First the session, if the request belongs to one and its backend can be used. Then the class: primaries, backups, those of weight
//! 0; the first class with one that can be used, as the verdicts say ([`verdicts`](super::verdicts)). Within it the policy of the
//! cluster chooses, in a shard if there are shards. When nothing can be used, what failed lately is tried all the same, unless
//! `fail_open` is false.
//!
//! Rounds are smooth and weighted: shares are exact over a full one, and evenly spread within it.

use std::{
    cell::{Cell, OnceCell, RefCell},
    cmp::Ordering,
};

use kakehi_ctl::state::{Balancing, LoadBalancing, LoadMetric, ShardMode};

use super::{
    affinity::{Affinity, Session},
    cluster::Member,
    ejection::{self, Standing},
    endpoint::Endpoint,
    hashing::{self, Maglev},
    trial,
    verdicts::{Judge, Rank},
};
use crate::{ledger::Ledger, limits};

/// First time that a backend is passed over after a failed connection attempt (ms); doubles.
const FIRST_PENALTY_MS: u64 = 1_000;
/// Longest (ms).
const LONGEST_PENALTY_MS: u64 = 30_000;
/// Below it times of answers are alike (ms): one that the scheduler has delayed says nothing of its backend, and what is in flight
/// tells more.
const ALIKE_MS: f64 = 10.0;
/// As are those of which neither takes so many times as long as the other.
const ALIKE_RATIO: f64 = 1.25;
/// A weight in these units, so that a tenth of the smallest is one, too.
const WEIGHT_UNITS: u64 = 100;
/// So many requests a backend can be behind its share, or before it, and still make up for it.
const MOST_CREDIT: i64 = 64;
/// Share of its weight with which a backend begins that starts slowly, in [`WEIGHT_UNITS`].
const FIRST_SHARE: u64 = 10;

/// What connecting to a backend was like lately.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: Cell<u32>,
    down_until: Cell<u64>,
    /// When the first of these failures was.
    since: Cell<u64>,
}

impl Health {
    /// True if it had failed before.
    pub(super) fn connected(&self) -> bool {
        self.down_until.set(0);
        self.failures.replace(0) > 0
    }

    pub(super) fn failed(&self, now: u64) {
        // Many that have failed at the same time say no more than one.
        if self.is_down(now) {
            return;
        }
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        if failures == 0 {
            self.since.set(now);
        }
        let penalty = (FIRST_PENALTY_MS << failures.min(10)).min(LONGEST_PENALTY_MS);
        self.down_until.set(now + penalty);
    }

    /// Whether the last attempt failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failures.get() > 0
    }

    pub(super) fn is_down(&self, now: u64) -> bool {
        self.down_until.get() > now
    }

    /// Connection attempts in a row that failed, how long ago the first was (ms), and how long it is passed over for that (ms from `now`).
    pub(super) fn seen(&self, now: u64) -> (u32, u64, u64) {
        let ago = now.saturating_sub(self.since.get());
        (self.failures.get(), ago, self.down_until.get().saturating_sub(now))
    }
}

/// How the backends of a cluster are chosen, and the state of the round.
#[derive(Debug, Default)]
pub(super) struct Balance {
    configured: Balancing,
    /// Ejections count (`passive`).
    heeds_ejections: bool,
    /// How far each backend is behind its share.
    credit: RefCell<Vec<i64>>,
    /// Those that the choice that is being made may fall on; kept for its memory.
    usable: RefCell<Vec<Usable>>,
    /// Made when it is asked for first.
    table: OnceCell<Maglev>,
    /// Of shards: how many primaries are in one.
    shard: Option<usize>,
}

/// A member that may be chosen.
#[derive(Debug, Clone, Copy)]
struct Usable {
    index: usize,
    /// See [`class`].
    class: u8,
    is_in_shard: bool,
}

/// The time, and where all workers count.
#[derive(Clone, Copy)]
pub(super) struct Present<'a> {
    /// By the clock of the ring (ms).
    pub(super) now: u64,
    /// By that of the host (ms).
    pub(super) host: u64,
    pub(super) ledger: Option<&'a Ledger>,
}

/// What its traffic says of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Good,
    /// It failed lately: it is used where nothing else is left, for one request at a time.
    Failed,
    /// The same, and there is one.
    Busy,
}

impl Traffic {
    /// With `ejections`, also how it answered counts.
    pub(super) fn of(backend: &Endpoint, present: Present<'_>, ejections: bool) -> Traffic {
        let (load, ledger) = (&backend.load, present.ledger);
        let one_at_a_time = |busy: bool, otherwise| if busy { Traffic::Busy } else { otherwise };
        let standing =
            if ejections { ejection::standing(backend, present.host, ledger) } else { Standing::Good };
        match standing {
            Standing::Good if !backend.health.has_failed() => Traffic::Good,
            // Until one has succeeded.
            Standing::Good if backend.opening.get() > 0 || trial::is_tried(backend, present.host, ledger) => {
                Traffic::Busy
            }
            Standing::Good if backend.health.is_down(present.now) => Traffic::Failed,
            Standing::Good => Traffic::Good,
            Standing::OnTrial => one_at_a_time(load.everywhere(ledger).requests > 0, Traffic::Good),
            Standing::Ejected => one_at_a_time(load.everywhere(ledger).requests > 0, Traffic::Failed),
        }
    }
}

/// Order of preference; see the module. `None`: it takes no new work.
pub(super) fn class(member: &Member, judge: Judge<'_>) -> Option<u8> {
    let rank = judge.rank(member, false)?;
    Some(rank as u8 * 4 + u8::from(member.weight == 0) * 2 + u8::from(member.backup))
}

impl Balance {
    pub(super) fn new(configured: &Balancing, heeds_ejections: bool, members: &[Member]) -> Balance {
        let primaries = members.iter().filter(|member| member.is_primary()).count();
        let shard = configured.shard_percent.and_then(|percent| {
            let size = (primaries * usize::from(percent)).div_ceil(100).max(2);
            (primaries >= usize::from(configured.shard_min_backends) && size < primaries).then_some(size)
        });
        Balance {
            configured: configured.clone(),
            heeds_ejections,
            credit: RefCell::new(vec![0; members.len()]),
            usable: RefCell::default(),
            table: OnceCell::new(),
            shard,
        }
    }

    /// Whether the choice depends on who asks.
    pub(super) fn hashes(balancing: &Balancing) -> bool {
        let by_policy = matches!(balancing.policy, LoadBalancing::Hrw | LoadBalancing::Maglev);
        by_policy || balancing.shard_percent.is_some()
    }

    /// Whether a request with this affinity is for one backend alone.
    pub(super) fn is_bound(&self, affinity: Affinity) -> bool {
        let by_policy = matches!(self.configured.policy, LoadBalancing::Hrw | LoadBalancing::Maglev);
        by_policy || matches!(affinity.session, Session::With(_))
    }

    /// Whether it matters how long answers take.
    pub(super) fn is_timed(&self) -> bool {
        self.configured.policy == LoadBalancing::PeakEwma
    }

    /// The backend that takes a request with this affinity, but for those in `excluded`; `None` when none is left. Where it does take it,
    /// that is to be said to [`Balance::took`] before anything else is chosen.
    pub(super) fn choose(
        &self,
        members: &[Member],
        excluded: &[usize],
        affinity: Affinity,
        present: Present<'_>,
    ) -> Option<usize> {
        let judge = self.judge(members, present);
        let mut usable = self.usable.borrow_mut();
        usable.clear();
        let is_session = |member: &Member| matches!(affinity.session, Session::With(value) if member.session == value.get());
        if let [only] = members {
            return (excluded.is_empty() && judge.rank(only, is_session(only)).is_some()).then_some(0);
        }
        let candidates = || members.iter().enumerate().filter(|(index, _)| !excluded.contains(index));
        if let Session::With(_) = affinity.session {
            let is_it =
                |member: &Member| is_session(member) && judge.rank(member, true) == Some(Rank::Usable);
            if let Some((index, _)) = candidates().find(|(_, member)| is_it(member)) {
                return Some(index);
            }
        }
        let within = self.shard.map(|size| self.least_score(members, affinity.key, size));
        let is_in_shard = |member: &Member| {
            within.is_none_or(|least| !member.is_primary() || primary_score(affinity, member) >= least)
        };
        // Whether a member can be used is looked at once, not for each comparison: it takes longer than all that follows.
        usable.extend(candidates().filter_map(|(index, member)| {
            class(member, judge).map(|class| Usable { index, class, is_in_shard: is_in_shard(member) })
        }));
        let inside = usable.iter().filter(|it| it.is_in_shard).map(|it| it.class).min();
        let strict = self.configured.shard_mode == ShardMode::Strict;
        // Another backend's shard goes before backups, and before what failed lately.
        let outside =
            if within.is_some() && !strict { usable.iter().map(|it| it.class).min() } else { inside };
        let class_of_choice = outside?;
        let narrow = inside == outside;
        usable.retain(|it| it.class == class_of_choice && (!narrow || it.is_in_shard));
        Choice { balance: self, members, present, key: affinity.key, eligible: &usable }.make()
    }

    /// The request that was chosen for last is with `chosen`. Each that could have had it earns its share of it, and `chosen` pays. So who
    /// is passed over catches up as soon as it may.
    pub(super) fn took(&self, members: &[Member], chosen: usize, present: Present<'_>) {
        let usable = self.usable.borrow();
        let in_turns = !matches!(
            self.configured.policy,
            LoadBalancing::Random | LoadBalancing::Hrw | LoadBalancing::Maglev
        );
        // A session takes no turn, nor does who is alone.
        if in_turns && usable.len() > 1 {
            Choice { balance: self, members, present, key: 0, eligible: &usable }.take_turn(chosen);
        }
    }

    /// How the verdicts count now.
    pub(super) fn judge<'a>(&self, members: &[Member], present: Present<'a>) -> Judge<'a> {
        Judge::new(&self.configured, self.heeds_ejections, members, present)
    }

    /// The score that the last of the `size` primaries has that `key` prefers.
    fn least_score(&self, members: &[Member], key: u64, size: usize) -> f64 {
        let affinity = Affinity { key, session: Session::None };
        let primaries = members.iter().filter(|member| member.is_primary());
        let mut scores: Vec<f64> = primaries.map(|member| primary_score(affinity, member)).collect();
        match scores.len().checked_sub(size) {
            None => 0.0,
            Some(place) => *scores.select_nth_unstable_by(place, f64::total_cmp).1,
        }
    }
}

/// By it a key has the same shard whatever the weights are.
fn primary_score(affinity: Affinity, member: &Member) -> f64 {
    hashing::score(affinity.key, member.backend.hash, 1)
}

/// A choice among those that are eligible.
struct Choice<'a> {
    balance: &'a Balance,
    members: &'a [Member],
    present: Present<'a>,
    key: u64,
    /// In the order of the members.
    eligible: &'a [Usable],
}

impl Choice<'_> {
    fn make(&self) -> Option<usize> {
        match self.balance.configured.policy {
            LoadBalancing::RoundRobin => self.next_in_round(|_| true),
            LoadBalancing::Random => self.random(None),
            LoadBalancing::LeastLoaded => self.least_loaded(),
            LoadBalancing::PowerOfTwo => self.better_of_two(|a, b| self.by_load(a, b)),
            LoadBalancing::PeakEwma => self.better_of_two(|a, b| self.by_peak(a, b)),
            LoadBalancing::Hrw => self.by_score(),
            LoadBalancing::Maglev => self.by_table(),
        }
    }

    fn eligible(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.eligible.iter().map(|it| (it.index, &self.members[it.index]))
    }

    fn is_eligible(&self, index: usize) -> bool {
        self.eligible.binary_search_by_key(&index, |it| it.index).is_ok()
    }

    /// The share of `member`, with its slow start. Among those of weight 0 all are equal.
    fn weight(&self, member: &Member) -> u64 {
        let share = match self.balance.configured.slow_start_ms {
            0 => WEIGHT_UNITS,
            duration => member.backend.start.share(self.present.now, duration),
        };
        (u64::from(member.weight.max(1)) * share).max(1)
    }

    /// Whose turn it is `among` those that are eligible.
    fn next_in_round(&self, among: impl Fn(&Member) -> bool) -> Option<usize> {
        let turn = |index: &usize| self.turn(*index);
        let all = self.eligible().filter(|(_, member)| among(member)).map(|(index, _)| index);
        // Of several that are equal the first.
        all.reduce(|best, index| if turn(&index) > turn(&best) { index } else { best })
    }

    /// How far this one is behind its share, with what it earns of this request.
    fn turn(&self, index: usize) -> i64 {
        self.balance.credit.borrow()[index] + self.weight(&self.members[index]) as i64
    }

    fn take_turn(&self, chosen: usize) {
        let mut credit = self.balance.credit.borrow_mut();
        let mut total = 0;
        for (index, member) in self.eligible() {
            let weight = self.weight(member) as i64;
            total += weight;
            credit[index] += weight;
        }
        credit[chosen] -= total;
        let most = MOST_CREDIT * total;
        for (index, _) in self.eligible() {
            credit[index] = credit[index].clamp(-most, most);
        }
    }

    fn random(&self, but: Option<usize>) -> Option<usize> {
        let all = || self.eligible().filter(|(index, _)| Some(*index) != but);
        let total: u64 = all().map(|(_, member)| self.weight(member)).sum();
        let mut left = if total == 0 { return None } else { fastrand::u64(..total) };
        let chosen = all().find(|(_, member)| {
            let weight = self.weight(member);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        });
        chosen.map(|(index, _)| index)
    }

    /// Connections in use, on all workers.
    fn connections(&self, member: &Member) -> f64 {
        f64::from(member.backend.load.everywhere(self.present.ledger).connections)
    }

    /// What is compared.
    fn metric(&self) -> LoadMetric {
        match self.balance.configured.policy {
            LoadBalancing::PeakEwma => LoadMetric::Connections,
            _ => self.balance.configured.metric,
        }
    }

    fn load(&self, member: &Member) -> f64 {
        let load = &member.backend.load;
        match self.metric() {
            LoadMetric::Connections => self.connections(member),
            LoadMetric::Requests => f64::from(load.everywhere(self.present.ledger).requests),
            LoadMetric::ConnectionTime => load.connecting.get(self.present.now),
        }
    }

    /// What one request adds to the load.
    fn one_request(&self) -> f64 {
        if self.metric() == LoadMetric::ConnectionTime { 0.0 } else { 1.0 }
    }

    /// The load for its weight, as it is, and with one request more.
    fn relative_load(&self, member: &Member) -> (f64, f64) {
        let (load, weight) = (self.load(member), self.weight(member) as f64);
        (load / weight, (load + self.one_request()) / weight)
    }

    /// Whether a load is not below `next`, which is another load with one request more. Where times are compared, which one request
    /// does not change: whether it is above.
    fn exceeds(&self, load: f64, next: f64) -> bool {
        load > next || (load == next && self.one_request() > 0.0)
    }

    /// Whether one has more to do than the other.
    ///
    /// Loads are whole requests, and weights are not: of two with weights 1 and 4, the light one with nothing in flight is due
    /// neither before the other's first request nor only after its fourth. Between the two they are equal, so that turns decide;
    /// else who is light would get more than its share, by far where little is in flight.
    fn by_load(&self, a: &Member, b: &Member) -> Ordering {
        let ((load, with_one), (other, other_with_one)) = (self.relative_load(a), self.relative_load(b));
        if self.exceeds(load, other_with_one) {
            Ordering::Greater
        } else if self.exceeds(other, with_one) {
            Ordering::Less
        } else {
            Ordering::Equal
        }
    }

    /// Whether one will take longer for an answer than the other, about.
    fn by_peak(&self, a: &Member, b: &Member) -> Ordering {
        let usual = (WEIGHT_UNITS * u64::from(limits::BACKEND_WEIGHT)) as f64;
        let [time, other] =
            [a, b].map(|member| member.backend.load.answering.get(self.present.now).max(ALIKE_MS));
        if time.max(other) <= time.min(other) * ALIKE_RATIO {
            return self.by_load(a, b);
        }
        let queue = |member: &Member| self.connections(member) * usual / self.weight(member) as f64;
        (time * (queue(a) + 1.0)).total_cmp(&(other * (queue(b) + 1.0)))
    }

    /// Whose turn it is among those that may be called the least loaded; see [`by_load`](Self::by_load).
    fn least_loaded(&self) -> Option<usize> {
        let loads = self.eligible().map(|(index, member)| (index, self.relative_load(member).1));
        let (first, least) = loads.min_by(|a, b| a.1.total_cmp(&b.1))?;
        // Those of other workers may have changed meanwhile.
        self.next_in_round(|member| !self.exceeds(self.relative_load(member).0, least)).or(Some(first))
    }

    /// Of two that are drawn by their weights, the lesser; whose turn it is, if both are alike.
    fn better_of_two(&self, order: impl Fn(&Member, &Member) -> Ordering) -> Option<usize> {
        let first = self.random(None)?;
        let Some(second) = self.random(Some(first)) else { return Some(first) };
        let is_second = match order(&self.members[first], &self.members[second]) {
            Ordering::Less => false,
            Ordering::Equal => self.turn(second) > self.turn(first),
            Ordering::Greater => true,
        };
        Some(if is_second { second } else { first })
    }

    /// True if it has more to do than `hash_balance_factor` allows.
    fn is_overloaded(&self, member: &Member, (load, weight): (f64, f64)) -> bool {
        let factor = f64::from(self.balance.configured.hash_balance_factor) / 100.0;
        // With the request that is to be placed.
        let fair = (load + 1.0) * self.weight(member) as f64 / weight;
        self.connections(member) + 1.0 > (fair * factor).ceil()
    }

    /// Load and weight of all that are eligible, if that matters.
    fn sums(&self) -> Option<(f64, f64)> {
        (self.balance.configured.hash_balance_factor > 0).then(|| {
            self.eligible().fold((0.0, 0.0), |(load, weight), (_, member)| {
                (load + self.connections(member), weight + self.weight(member) as f64)
            })
        })
    }

    fn by_score(&self) -> Option<usize> {
        let sums = self.sums();
        let score = |member: &Member| hashing::score(self.key, member.backend.hash, self.weight(member));
        let best = |accept: &dyn Fn(&Member) -> bool| {
            let accepted = self.eligible().filter(|(_, member)| accept(member));
            accepted.max_by(|a, b| score(a.1).total_cmp(&score(b.1))).map(|(index, _)| index)
        };
        let fitting = sums.and_then(|sums| best(&|member| !self.is_overloaded(member, sums)));
        fitting.or_else(|| best(&|_| true))
    }

    fn by_table(&self) -> Option<usize> {
        // Backups and those of weight 0 have no part in the table.
        let primaries = || self.members.iter().zip(0..).filter(|(member, _)| member.is_primary());
        let table = self.balance.table.get_or_init(|| {
            let entries = primaries();
            Maglev::new(entries.map(|(member, at)| (at, member.backend.hash, u64::from(member.weight))))
        });
        let sums = self.sums();
        // With a slow start, some of the keys that belong here wait.
        let starts = |member: &Member| {
            let duration = self.balance.configured.slow_start_ms;
            duration > 0
                && hashing::percentile(self.key, member.backend.hash)
                    >= member.backend.start.share(self.present.now, duration)
        };
        let find = |accept: &dyn Fn(&Member) -> bool| {
            table.order(self.key).map(|at| at as usize).find(|&at| {
                let member = &self.members[at];
                self.is_eligible(at) && accept(member)
            })
        };
        if !primaries().any(|(_, at)| self.is_eligible(at as usize)) {
            return self.by_score();
        }
        find(&|member| !starts(member) && !sums.is_some_and(|sums| self.is_overloaded(member, sums)))
            .or_else(|| find(&|_| true))
    }
}

/// When a backend has begun, if it begins slowly.
#[derive(Debug, Default)]
pub(super) struct Start(Cell<Begun>);

#[derive(Debug, Default, Clone, Copy)]
enum Begun {
    /// It has its whole share.
    #[default]
    Whole,
    /// With the next request.
    Next,
    /// At this time (ms).
    At(u64),
}

impl Start {
    /// It begins with the next choice.
    pub(super) fn begin(&self) {
        self.0.set(Begun::Next);
    }

    /// Its share `now`, in [`WEIGHT_UNITS`], when the start takes `duration` (ms).
    fn share(&self, now: u64, duration: u64) -> u64 {
        let at = match self.0.get() {
            Begun::Whole => return WEIGHT_UNITS,
            Begun::Next => {
                self.0.set(Begun::At(now));
                now
            }
            Begun::At(at) => at,
        };
        let elapsed = now.saturating_sub(at);
        if elapsed >= duration {
            self.0.set(Begun::Whole);
            return WEIGHT_UNITS;
        }
        FIRST_SHARE + (WEIGHT_UNITS - FIRST_SHARE) * elapsed / duration
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
