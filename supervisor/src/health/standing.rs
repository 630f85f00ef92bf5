//! What probes have found of one backend so far.

use kakehi_ctl::{
    order::{LastProbe, ProbeVerdict},
    state::HealthCheck,
};

use super::Outcome;

/// What probes have found of a backend.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// It is well; `None`: there was no verdict yet.
    pub(super) up: Option<bool>,
    reason: String,
    since_ms: Option<u64>,
    good: u32,
    bad: u32,
    last: Option<LastProbe>,
}

impl Standing {
    /// Takes note of a probe that ended at `time_ms` and took `took_ms`. True if that makes another verdict.
    pub(super) fn note(
        &mut self,
        outcome: &Outcome,
        check: &HealthCheck,
        (time_ms, took_ms): (u64, u64),
    ) -> bool {
        let (good, text) = match outcome {
            Outcome::Good(text) => (true, text),
            Outcome::Bad(text) => (false, text),
            // It says nothing of the backend.
            Outcome::Void(_) => return false,
        };
        self.last = Some(LastProbe { time_ms, good, outcome: text.clone().into_owned(), took_ms });
        (self.good, self.bad) = match good {
            true => (self.good.saturating_add(1), 0),
            false => (0, self.bad.saturating_add(1)),
        };
        let (count, wanted) = match good {
            true => (self.good, check.healthy_threshold),
            false => (self.bad, check.unhealthy_threshold),
        };
        if self.up == Some(good) || count < wanted {
            return false;
        }
        self.up = Some(good);
        self.reason = text.clone().into_owned();
        self.since_ms = Some(time_ms);
        true
    }

    /// What the program before had found.
    pub(super) fn inherited(up: bool) -> Standing {
        Standing { up: Some(up), reason: "as the program before had found".to_owned(), ..Standing::default() }
    }

    /// The check is another one: its probes are counted anew, and the verdict stays until they have made another.
    pub(super) fn count_anew(&mut self) {
        (self.good, self.bad) = (0, 0);
    }

    /// Why the verdict is what it is.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// As it is shown.
    pub(super) fn shown(&self) -> ProbeVerdict {
        ProbeVerdict {
            up: self.up,
            reason: self.reason.clone(),
            since_ms: self.since_ms,
            good: self.good,
            bad: self.bad,
            last: self.last.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_takes_as_many_probes_in_a_row_as_the_thresholds_say() {
        let check = HealthCheck { healthy_threshold: 2, unhealthy_threshold: 3, ..HealthCheck::default() };
        let mut standing = Standing::default();
        let mut note = |outcome: &Outcome| (standing.note(outcome, &check, (7, 1)), standing.up);
        let (good, bad) = (Outcome::good("status 200"), Outcome::bad("status 500"));
        assert_eq!(note(&good), (false, None));
        assert_eq!(note(&good), (true, Some(true)));
        assert_eq!(note(&good), (false, Some(true)));
        assert_eq!(note(&bad), (false, Some(true)));
        assert_eq!(note(&bad), (false, Some(true)));
        assert_eq!(note(&good), (false, Some(true)), "not in a row");
        assert_eq!(note(&bad), (false, Some(true)));
        assert_eq!(note(&Outcome::Void("nothing".into())), (false, Some(true)));
        assert_eq!(note(&bad), (false, Some(true)));
        assert_eq!(note(&bad), (true, Some(false)));
        assert_eq!(note(&good), (false, Some(false)));
        assert_eq!(note(&good), (true, Some(true)));
        let shown = standing.shown();
        assert_eq!((shown.reason.as_str(), shown.since_ms), ("status 200", Some(7)));
    }
}
