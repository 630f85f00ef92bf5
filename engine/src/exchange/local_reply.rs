//! Replies of our own, in place of a backend's.

use std::rc::Rc;

use super::{Downstream, Event, Record};
use crate::{
    h1::{StrictTransport, write_answer},
    http::{Reason, Version},
};

/// A reply of our own.
pub(crate) struct LocalReply {
    pub(crate) reason: Reason,
    pub(crate) head_only: bool,
    /// The connection may go on: the request has ended, and where is beyond doubt.
    pub(crate) keep_alive: bool,
    /// The rest of a request body may still be coming: it is read and thrown away, so that the client gets the reply.
    pub(crate) unread: bool,
    pub(crate) version: Version,
    /// `Location` of a redirect.
    pub(crate) location: Option<String>,
    /// `Strict-Transport-Security`.
    pub(crate) hsts: Option<Rc<StrictTransport>>,
}

impl LocalReply {
    /// To a request of which nothing is known but that it is wrong.
    pub(crate) fn malformed(reason: Reason) -> LocalReply {
        let (version, location, hsts) = (Version::Http11, None, None);
        LocalReply { reason, head_only: false, keep_alive: false, unread: false, version, location, hsts }
    }
}

/// Sends a local reply, and counts its reason.
pub(super) async fn send_local_reply<D: Downstream>(
    downstream: &D,
    reply: LocalReply,
    record: &Record,
) -> Event {
    let shared = downstream.shared();
    shared.counters.count_answer(reply.reason);
    record.status.set(reply.reason.status());
    let goes_on = reply.keep_alive && !downstream.is_last() && reply.version == Version::Http11;
    let mut out = shared.ring.head_buffer();
    let config = downstream.config();
    // A head that is not one came over TLS all the same.
    let inherited = config.hsts.as_ref().filter(|_| downstream.is_tls());
    let hsts = reply.hsts.as_ref().or(inherited);
    let extra: Vec<(&str, &str)> = [
        reply.location.as_deref().map(|location| ("location", location)),
        hsts.map(|hsts| ("strict-transport-security", hsts.value.as_str())),
    ]
    .into_iter()
    .flatten()
    .collect();
    write_answer(reply.reason, !goes_on, reply.head_only, &extra, &shared.date(), &mut out);
    record.add_response_bytes(out.len() as u64);
    match downstream.respond(out.into(), config.settings.timeouts.front_ms).await {
        Ok(()) => Event::Replied { goes_on, unread: reply.unread },
        Err(_) => Event::ReplyLost,
    }
}
