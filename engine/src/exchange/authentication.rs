//! Asks for passwords (RFC 7617), and waits where checking one takes long.
//!
//! A head is routed in one go, while nothing else runs. Where a slow hash has to be computed for that, it stays where it is, and is
//! routed again, from the beginning, when that has been done: so the order of what is judged is the same for all, and the
//! configuration of the moment decides. What was found out by then is part of the question the second time.

use std::{cell::Cell, net::IpAddr, rc::Rc};

use super::{
    Downstream, Outcome, Shared,
    request::{RoutedHead, route},
};
use crate::{
    h1::RequestHead,
    http::{Attempt, AttemptId, CHALLENGE, Judged, Reason},
    limits,
    passwords::Verdict,
    transfer::{Watch, receive_watching},
    upstream::Cluster,
};

/// What is known of the passwords of a request when it is routed.
#[derive(Default)]
pub(super) struct Checked {
    /// It was routed before, and counted where requests are.
    pub(super) was_routed: bool,
    /// Whether these are right.
    verdicts: Vec<(AttemptId, bool)>,
    /// It waits no more.
    gave_up: bool,
    /// What chance has made of it where requests are divided.
    chance: Option<u64>,
}

impl Checked {
    /// Of a request that nothing is computed for.
    pub(super) fn without_waiting() -> Checked {
        Checked { gave_up: true, ..Checked::default() }
    }
}

/// Credentials that were not held against slow hashes yet.
pub(super) struct Unchecked {
    id: AttemptId,
    attempt: Attempt,
    client: Option<IpAddr>,
    chance: Option<u64>,
}

/// Where a request is asked for its password.
pub(super) struct Gate<'a> {
    pub(super) checked: &'a Checked,
    shared: &'a Shared,
    unchecked: Cell<Option<Box<Unchecked>>>,
    chance: Cell<Option<u64>>,
}

impl<'a> Gate<'a> {
    pub(super) fn new(checked: &'a Checked, shared: &'a Shared) -> Gate<'a> {
        Gate { checked, shared, unchecked: Cell::new(None), chance: Cell::new(checked.chance) }
    }

    /// What chance makes of the request: the same each time that it is routed.
    pub(super) fn chance(&self) -> u64 {
        let chance = self.chance.get().unwrap_or_else(|| self.shared.request_ids.borrow_mut().random());
        self.chance.set(Some(chance));
        chance
    }

    /// What has to be computed before the request can be answered.
    pub(super) fn into_unchecked(self) -> Option<Box<Unchecked>> {
        self.unchecked.into_inner()
    }

    /// Lets a request in that names one of the cluster's users with its password.
    ///
    /// # Errors
    /// `Unauthorized`; `AuthenticationBusy` where it is not known yet, or cannot be known.
    pub(super) fn admit(
        &self,
        cluster: &Cluster,
        head: &RequestHead<'_>,
        client: impl FnOnce() -> Option<IpAddr>,
    ) -> Result<(), Reason> {
        let mut credentials = head.fields().filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        // Of two, a backend may read the other one.
        let (Some((_, credentials)), None) = (credentials.next(), credentials.next()) else {
            return Err(Reason::Unauthorized);
        };
        let users = cluster.users().ok_or(Reason::Unauthorized)?;
        let longest = self.shared.pooling.max_credential_bytes.get() as usize;
        let attempt = match users.judge(credentials, longest) {
            Judged::Right => return Ok(()),
            Judged::Wrong => return Err(Reason::Unauthorized),
            Judged::Slow(attempt) => attempt,
        };
        let id = self.shared.passwords.id(&attempt);
        let verdict = self.checked.verdicts.iter().find(|(known, _)| *known == id);
        match verdict {
            Some((_, true)) => Ok(()),
            Some((_, false)) => Err(Reason::Unauthorized),
            None if self.shared.passwords.remembers(&id) => Ok(()),
            None => {
                if !self.checked.gave_up {
                    let (client, chance) = (client(), self.chance.get());
                    self.unchecked.set(Some(Box::new(Unchecked { id, attempt, client, chance })));
                }
                Err(Reason::AuthenticationBusy)
            }
        }
    }
}

/// What a 401 of a cluster says.
pub(super) fn challenge(cluster: &Cluster) -> Rc<str> {
    cluster.users().map_or_else(|| CHALLENGE.into(), |users| Rc::clone(users.challenge()))
}

/// Why a request is not routed.
pub(super) enum Unrouted {
    /// It is answered.
    Ended(Outcome),
    /// Its password is to be checked first, by [`route_checked`].
    Unchecked(Box<Unchecked>),
}

/// Waits until passwords are checked, and routes the request again.
///
/// # Errors
/// `ClientGone`, or a local reply.
pub(super) async fn route_checked<D: Downstream>(
    downstream: &mut D,
    mut unchecked: Box<Unchecked>,
) -> Result<RoutedHead, Outcome> {
    // It must not hold a shared buffer meanwhile.
    downstream.read_buffer().copy_out_of_pool();
    let mut checked = Checked { was_routed: true, chance: unchecked.chance, ..Checked::default() };
    let due = downstream.shared().ring.now() + limits::PASSWORD_TIMEOUT_MS;
    loop {
        match check(downstream, *unchecked, due).await? {
            Some(verdict) => checked.verdicts.push(verdict),
            None => checked.gave_up = true,
        }
        // What has changed meanwhile holds.
        let config = downstream.config();
        let routing =
            downstream.head(&config, |shared, head, client| route(&config, shared, head, client, &checked));
        match routing.await? {
            Ok(routed) => return Ok(routed),
            Err(Unrouted::Ended(outcome)) => return Err(outcome),
            // Of another cluster as well, or the user is another one now.
            Err(Unrouted::Unchecked(next)) => unchecked = next,
        }
    }
}

/// Waits until credentials are checked, until `due` (ms). `None`: they could not be.
///
/// # Errors
/// `ClientGone`.
async fn check<D: Downstream>(
    downstream: &D,
    Unchecked { id, attempt, client, .. }: Unchecked,
    due: u64,
) -> Result<Option<(AttemptId, bool)>, Outcome> {
    let shared = downstream.shared();
    let now = shared.ring.now();
    let waiting = if now < due { shared.passwords.check(id, attempt, client) } else { None };
    let Some(waiting) = waiting else { return Ok(None) };
    // Nobody knows of it yet, and who gave up would have others wait for nothing.
    let client = (downstream.body(), Watch::ResetOrEnd);
    let verdict = receive_watching(waiting, client, downstream.timer(), (now, due)).await;
    Ok(match verdict.map_err(|_| Outcome::ClientGone)? {
        Some(Verdict::Right) => Some((id, true)),
        Some(Verdict::Wrong) => Some((id, false)),
        Some(Verdict::Failed) | None => None,
    })
}
