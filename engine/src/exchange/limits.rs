//! Holds a request against what is said of how much may come from whom.

use std::net::IpAddr;

use kakehi_ctl::order::ExplainedLimit;

use super::{Downstream, LocalReply, Outcome, Shared};
use crate::{
    http::{Asked, Reason},
    quota::{Caps, Guard, Refused},
};

/// Why a request, or a connection that is passed on, is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// Status of the answer, where it is not that of the reason.
    pub(crate) status: Option<u16>,
    /// `Retry-After`, in seconds; 0 = without.
    pub(crate) retry_after: u32,
}

impl Refusal {
    fn of(reason: Reason) -> Refusal {
        Refusal { reason, status: None, retry_after: 0 }
    }

    fn of_rate(Refused { status, retry_after }: Refused) -> Refusal {
        Refusal { reason: Reason::RateLimited, status: Some(status), retry_after }
    }

    /// The answer, of one for its reason.
    pub(super) fn reply(self, reply: impl FnOnce(Reason) -> LocalReply) -> LocalReply {
        LocalReply { status: self.status, retry_after: self.retry_after, ..reply(self.reason) }
    }
}

/// Holds a request against what one place says, and counts it there.
///
/// # Errors
/// Why it is refused.
pub(crate) fn judge(guard: &Guard, shared: &Shared, asked: &impl Asked) -> Result<(), Refusal> {
    judge_request(guard, shared, asked, true)
}

/// As [`judge`]. One that is not `new` is routed again: it was counted.
///
/// # Errors
/// Why it is refused.
pub(super) fn judge_request(
    guard: &Guard,
    shared: &Shared,
    asked: &impl Asked,
    new: bool,
) -> Result<(), Refusal> {
    if guard.has_sources() && !guard.admits(asked.client()) {
        return Err(Refusal::of(Reason::SourceRefused));
    }
    if !new {
        return Ok(());
    }
    let (Some(rates), Some(table)) = (&guard.rates, &shared.pooling.sources) else { return Ok(()) };
    rates.judge(asked, table, &shared.counters).map_err(Refusal::of_rate)
}

/// What one place would say of a request that is not counted.
pub(super) struct Seen {
    pub(super) limits: Vec<ExplainedLimit>,
    /// The first of them that refuses it.
    pub(super) refusal: Option<Refusal>,
}

/// Holds a request against what one place says, as [`judge`] does, and counts nothing.
pub(super) fn look(guard: &Guard, shared: &Shared, asked: &impl Asked) -> Seen {
    let mut seen = Seen { limits: Vec::new(), refusal: None };
    let place = guard.kind();
    if guard.has_sources() {
        let refuses = !guard.admits(asked.client());
        let (place, limit) = (place.to_owned(), "allow, deny".to_owned());
        seen.limits.push(ExplainedLimit { place, limit, refuses, ..ExplainedLimit::default() });
        seen.refusal = refuses.then(|| Refusal::of(Reason::SourceRefused));
    }
    let (Some(rates), Some(table), None) = (&guard.rates, &shared.pooling.sources, seen.refusal) else {
        return seen;
    };
    for rate in rates.look(asked, table) {
        let refused = rate.refused.filter(|_| !rate.dry_run);
        let dry_run = if rate.dry_run { " (dry run)" } else { "" };
        seen.limits.push(ExplainedLimit {
            place: place.to_owned(),
            limit: format!("rate_limits {}{dry_run}", rate.key),
            used: rate.used,
            most: Some(rate.most),
            refuses: refused.is_some(),
        });
        if let Some(refused) = refused {
            seen.refusal = Some(Refusal::of_rate(refused));
            break;
        }
    }
    seen
}

/// Sees to it that the connection of `client` has a place at the cluster that it asks. Where there is none, it keeps the one that it has.
///
/// # Errors
/// A local reply where there is none.
pub(super) fn hold_place<D: Downstream>(
    downstream: &mut D,
    cluster: &str,
    caps: Caps,
    client: Option<IpAddr>,
    reply: impl FnOnce(Reason) -> LocalReply,
) -> Result<(), Outcome> {
    let mut caps = caps;
    if let Some(place) = downstream.place().filter(|place| place.is_of(cluster, client)) {
        if place.counts_under(caps) {
            return Ok(());
        }
        // It has its place, whatever counts from now on.
        caps = caps.without_end();
    }
    let Some(table) = &downstream.shared().pooling.sources else { return Ok(()) };
    match caps.take(cluster, client, table) {
        Some(place) => {
            downstream.set_place(Some(place));
            Ok(())
        }
        None => {
            let reply = LocalReply { retry_after: caps.retry_after, ..reply(Reason::TooManyConnections) };
            Err(Outcome::LocalReply(Box::new(reply)))
        }
    }
}
