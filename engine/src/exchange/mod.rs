//! One request, from its head to the end of its response.
//!
//! `exchange` reads downwards: `phases` lists what happens to a request, and `end` is where every exchange ends, with one
//! [`Record`] and one `Outcome`.
//!
//! | file | phase |
//! |---|---|
//! | `request` | reads the head, finds the rule that takes it, writes it as the backend gets it |
//! | `connect` | leases an upstream connection |
//! | `upload` | sends the rest of the request body while the response is awaited |
//! | `response` | passes interim and final response on |
//! | `local_reply` | answers in place of a backend |
//! | `disposition` | decides how the client's connection goes on |
//!
//! and what the phases, and the folders above, work on:
//!
//! | file | what it holds |
//! |---|---|
//! | `downstream` | `Downstream`: what an exchange needs of its client, whichever version it speaks |
//! | `outcome` | how an exchange ended |
//! | `record` | what is known of an exchange when it has ended |
//! | `asking` | a request as rules, limits and clusters ask it |
//! | `authentication` | whether a request has the password of a user; waits where that takes long |
//! | `client_address` | whose request it is |
//! | `limits` | whether a request is more than may come from its client |
//! | `listener` | the configuration of a listener, compiled |
//! | `explain` | what would become of a request |
//! | `split` | clusters among which a rule divides its requests |
//! | `passthrough` | where connections lead that are passed on as they are |
//! | `shared` | what all exchanges of a worker share |
//! | `request_id` | request ids |
//! | `wakers` | tasks that are woken when the configuration changes |
//!
//! Relies on `route`, `upstream`, `transfer`, `h1`. Promises: no request is answered twice or with another's answer; what
//! is cut short looks cut short; what a peer can make us hold is bounded; every wait has a deadline.

mod asking;
mod authentication;
mod client_address;
mod connect;
mod disposition;
mod downstream;
mod edits;
mod explain;
mod limits;
mod listener;
mod local_reply;
mod outcome;
mod passthrough;
mod record;
mod redirect;
mod request;
mod request_id;
mod response;
mod shared;
mod split;
mod upload;
mod wakers;

pub(crate) use self::{
    disposition::{Disposition, Event},
    downstream::{Client, Downstream, Encoded, Taken},
    edits::EditRules,
    explain::{explain, try_each},
    limits::judge,
    listener::{Action, HstsPolicy, Rewriting, Routes, Target},
    local_reply::LocalReply,
    outcome::{Failure, Outcome, Upgrade},
    passthrough::{Nameless, Passage, Passthrough},
    request::Request,
    split::Split,
    wakers::Wakers,
};
pub use self::{
    listener::{ListenerConfig, ListenerHandle},
    record::Record,
    shared::Shared,
};
use crate::{http::Reason, observe::Counter};

/// Serves one request, whose first bytes are there.
pub(crate) async fn exchange<D: Downstream>(downstream: &mut D) -> Ended {
    let record = Record::new(downstream.shared().ring.now());
    let (Ok(outcome) | Err(outcome)) = phases(downstream, &record).await;
    end(downstream, outcome, record).await
}

/// The phases of an exchange. Each may end it early.
async fn phases<D: Downstream>(downstream: &mut D, record: &Record) -> Result<Outcome, Outcome> {
    // Read the head of the request, find the rule that takes it, and write the head as the backend gets it.
    // Let what has come of a body leave with the head, all of it if the request may be sent again and the body is small; refuse one that
    // is malformed or too large already.
    let request::RoutedRequest { request, mut head, mut body } = request::receive(downstream, record).await?;
    record.add_request_bytes(body.moved());
    let admitted = request.cluster.admit(&downstream.shared().pooling);
    let _admitted = admitted.ok_or_else(|| request.local_reply(Reason::ClusterFull, body.is_done()))?;
    request.cluster.count_request(&downstream.shared().pooling);
    let mut attempts = connect::Attempts::new(downstream.take_bound(&request.cluster));
    loop {
        // Lease a connection to an endpoint of the cluster: an idle one, or a new one.
        let lease = connect::lease(downstream, &request, &body, &mut attempts, record).await?;
        // What is kept of the head is gone when more of the request is sent.
        let request_line = if body.is_done() { Vec::new() } else { connect::first_line(&head).to_vec() };
        connect::write_attempts(&request, &mut head, record);
        lease.send_head(head);
        // Pass the response on, and the rest of the body beside it.
        let complete = body.is_done();
        let answered = if complete {
            // Not like an upload before it.
            downstream.body().expect_bulk(None);
            let context = response::ResponseContext::new(downstream, &request, &lease, record, &attempts);
            response::forward(&context).await.map(|answered| (answered, true))
        } else {
            Box::pin(upload::run(downstream, &request, &lease, &mut body, record, &attempts)).await
        };
        match answered {
            // Give the connection back, or let it become a tunnel.
            Ok((answered, sent)) => {
                return Ok(answered.complete(downstream, &request, lease, attempts.was_bound, sent));
            }
            // Repeat once what the backend may never have read (RFC 9110 section 9.2.2).
            Err(failure)
                if failure.is_unread() && complete && lease.reused && attempts.may_repeat(&request) =>
            {
                head = lease.take_replay().ok_or_else(|| Failure::Unanswered.outcome(&request, complete))?;
                attempts.repeat(downstream.shared());
            }
            // Send it again, elsewhere if that can be.
            Err(Failure::Again) => {
                head = lease.take_replay().ok_or_else(|| Failure::Unanswered.outcome(&request, complete))?;
                attempts.retry(downstream.shared(), &lease);
                // What waits needs no place at the backend that has answered badly.
                drop(lease);
                Box::pin(connect::pause(downstream, &request)).await?;
            }
            Err(failure) => {
                let shared = downstream.shared();
                // What died in the pool unasked is no failure.
                if failure.is_of_backend() && !(lease.reused && failure.is_unread()) {
                    let elapsed =
                        record.since_start(shared.ring.now()).saturating_sub(record.leased_ms.get());
                    attempts.note_answer(shared, &lease, None, elapsed);
                }
                let wanted = request.retries.as_ref().is_some_and(|retries| {
                    retries.on.reset && failure.is_reset() || retries.on.timeout && failure.is_timeout()
                });
                let again = wanted
                    && attempts.may_retry(&request, complete, record, shared.ring.now())
                    && request.cluster.spend_retry(&shared.pooling);
                if let Some(replay) = again.then(|| lease.take_replay()).flatten() {
                    head = replay;
                    attempts.retry(shared, &lease);
                    drop(lease);
                    if failure.is_timeout() {
                        Box::pin(connect::pause(downstream, &request)).await?;
                    }
                    continue;
                }
                connect::log_defect(shared, &request, &lease, &request_line, &failure);
                return Err(failure.outcome(&request, complete));
            }
        }
    }
}

/// Ends an exchange, whatever became of it: sends the local reply if there is one, counts, and decides how the client's
/// connection goes on.
async fn end<D: Downstream>(downstream: &mut D, outcome: Outcome, record: Record) -> Ended {
    let event = match outcome {
        Outcome::LocalReply(reply) => local_reply::send_local_reply(downstream, *reply, &record).await,
        Outcome::Done { goes_on, last, unread } => Event::Answered { goes_on, last, unread },
        Outcome::ClientGone => Event::PeerGone,
        Outcome::ClientStalled => Event::ClientStalled,
        Outcome::Cut { reset } => Event::Cut { reset },
        Outcome::Upgraded(upgrade) => {
            let counted = [Counter::Requests, Counter::Tunnels];
            counted.iter().for_each(|counter| downstream.shared().counters.count(*counter));
            return Ended::Upgraded(upgrade);
        }
    };
    event.counters().iter().for_each(|counter| downstream.shared().counters.count(*counter));
    Ended::Goes(Disposition::after(event))
}

/// What follows an exchange on the client's connection.
pub(crate) enum Ended {
    /// The connection goes on, or ends, as this says.
    Goes(Disposition),
    /// A tunnel follows.
    Upgraded(Box<Upgrade>),
}
