//! Three verdicts on a backend, none of which overwrites another: the operator's, which is configured; that of probes, which the
//! supervisor tells; that of its traffic ([`Traffic`]). It is usable when all agree.
//!
//! What counts when they do not: an operator is always obeyed. Probes are not believed in a panic (`panic_threshold`), nor when
//! nothing usable is left and `fail_open` allows it: then those that only probes call dead are all used, and only then those whose
//! traffic failed lately are tried. With `fail_open = false` nothing but what is usable is used.

use std::cell::Cell;

use kakehi_ctl::state::{BackendMode, Balancing};

use super::{
    balance::{Present, Traffic},
    cluster::Member,
    ejection::{self, Standing},
};

/// What is said of an endpoint beside what its traffic says.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// Probes call it dead.
    probe_down: Cell<bool>,
    /// It takes nothing any more: the operator maintains it.
    maintained: Cell<bool>,
}

impl Verdicts {
    /// Of an endpoint that probes call dead or not.
    pub(super) fn with_probe_down(down: bool) -> Verdicts {
        Verdicts { probe_down: Cell::new(down), maintained: Cell::new(false) }
    }

    /// What probes say; true if it comes back.
    pub(super) fn set_probe(&self, up: bool) -> bool {
        self.probe_down.replace(!up) && up
    }

    /// True if probes call it dead.
    pub(super) fn is_probe_down(&self) -> bool {
        self.probe_down.get()
    }

    /// What the operator says; true if it has just become maintained.
    pub(super) fn set_mode(&self, mode: BackendMode) -> bool {
        let maintained = mode == BackendMode::Maintain;
        !self.maintained.replace(maintained) && maintained
    }

    /// True if it takes nothing any more, not even on connections that there are.
    pub(super) fn is_maintained(&self) -> bool {
        self.maintained.get()
    }
}

/// How usable a member is, the best first. What is not in the list is not to be used at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Rank {
    /// All agree.
    Usable,
    /// Only probes call it dead.
    ProbeDown,
    /// It failed lately.
    Failed,
    /// Both.
    FailedAndProbeDown,
}

/// How the verdicts count for one choice.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    present: Present<'a>,
    /// Probes are believed.
    probes: bool,
    /// Ejections are believed.
    ejections: bool,
    /// Only what is usable is used.
    strict: bool,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        configured: &Balancing,
        ejections: bool,
        members: &[Member],
        present: Present<'a>,
    ) -> Judge<'a> {
        let believing = Judge { present, probes: true, ejections, strict: !configured.fail_open };
        let nothing_left = !members.iter().any(|it| believing.rank(it, false) == Some(Rank::Usable));
        let fails_open = configured.fail_open && nothing_left;
        Judge {
            probes: !fails_open && !is_panicking(configured.panic_threshold, members),
            // No worker of ours ejects all: somebody else has written that.
            ejections: ejections && !(nothing_left && are_all_ejected(members, present)),
            ..believing
        }
    }

    /// How usable `member` is for new work, or, as `session`, for one that it has already. `None`: not at all.
    pub(super) fn rank(&self, member: &Member, session: bool) -> Option<Rank> {
        match member.mode {
            BackendMode::Ready => {}
            BackendMode::Drain if session => {}
            BackendMode::Drain | BackendMode::Maintain => return None,
        }
        let probe_down = self.probes && member.backend.verdicts.is_probe_down();
        let rank = match (Traffic::of(&member.backend, self.present, self.ejections), probe_down) {
            (Traffic::Good, false) => Rank::Usable,
            (Traffic::Good, true) => Rank::ProbeDown,
            (Traffic::Failed, false) => Rank::Failed,
            (Traffic::Failed, true) => Rank::FailedAndProbeDown,
            (Traffic::Busy, _) => return None,
        };
        (rank == Rank::Usable || !self.strict).then_some(rank)
    }
}

fn are_all_ejected(members: &[Member], Present { host, ledger, .. }: Present<'_>) -> bool {
    let mut primaries = members.iter().filter(|it| it.is_primary());
    primaries.all(|it| ejection::standing(&it.backend, host, ledger) == Standing::Ejected)
}

/// Whether probes call less than `threshold` percent of the primaries well, by weight. Those that take no new work do not count.
pub(super) fn is_panicking(threshold: u8, members: &[Member]) -> bool {
    if threshold == 0 {
        return false;
    }
    let primaries = members.iter().filter(|it| it.is_primary() && it.mode == BackendMode::Ready);
    let (mut well, mut all) = (0_u64, 0_u64);
    for member in primaries {
        let weight = u64::from(member.weight);
        all += weight;
        well += if member.backend.verdicts.is_probe_down() { 0 } else { weight };
    }
    well * 100 < all * u64::from(threshold)
}

#[cfg(test)]
#[path = "verdicts_tests.rs"]
mod tests;
