//! Waiting for a condition, with a deadline and a sentence for the case that it never comes.

use std::time::{Duration, Instant};

/// How long anything may take that should happen at once: generous, since the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Waits until `condition` gives a value; fails after `limit` with the name of what did not happen.
pub(crate) fn within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "after {limit:?} still not: {what}");
        pace(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds, for [`SOON`] at most.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(SOON, what, || condition().then_some(()));
}

/// Lets time pass where the time itself is what is tested: a slow peer, a span that is watched.
/// Never to give somebody else time to finish: that is what [`until`] is for.
#[expect(clippy::disallowed_methods, reason = "the one place where a test thread sleeps")]
pub(crate) fn pace(time: Duration) {
    std::thread::sleep(time);
}
