//! How much may come from whom: networks that are refused, rates of requests, connections of one client.
//!
//! A client is whom the PROXY protocol or trusted proxies name, else the peer; whoever asks has found that out. Counts are those of the
//! machine: they stand in the table of the ledger, under names that are made of the place at which a limit stands, so that they
//! outlive processes and reloads.
//!
//! Relies on `ledger` and `observe`. Promises: what a client sends makes no count of another smaller; a limit costs a bounded
//! number of looks at the table, however many keys there are.
//!
//! | file | idea |
//! |---|---|
//! | `guard` | what one place says, all together |
//! | `rates` | how many requests may come in a time |
//! | `places` | how many connections one client may have |

mod guard;
mod places;
mod rates;

use kakehi_ctl::state::State;
use rustix::time::{ClockId, clock_gettime};

use crate::ledger::Ledger;

pub(crate) use self::{
    guard::Guard,
    places::{Caps, Place},
    rates::{Rates, Refused},
};

/// Tells the table how long what the limits of `state` count may matter. Before any of them is heeded: what matters to a limit that a
/// process does not know of may be forgotten by it.
pub(crate) fn expect(state: &State, table: &Ledger) {
    let listeners = state.listeners.values().map(|listener| &listener.rates);
    let limits = state.clusters.values().filter_map(|cluster| cluster.limits.as_ref());
    let frontends = state.clusters.values().flat_map(|cluster| &cluster.frontends);
    let of_frontends = frontends.filter_map(|frontend| frontend.limits.as_ref()).map(|limits| &limits.rates);
    let all = listeners.chain(limits.map(|limits| &limits.rates)).chain(of_frontends);
    all.for_each(|rates| Rates::expect(rates, table));
}

/// The monotonic clock of the host, which all processes have (ns).
fn host_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanoseconds.unwrap_or(0))
}

/// The name of a limit: the same in every process, and after every start.
fn name(parts: &[&str]) -> u64 {
    twox_hash::XxHash64::oneshot(0, parts.join("\0").as_bytes())
}
