//! Replies of our own, in place of a backend's.

use std::rc::Rc;

use kakehi_ctl::template::{Template, Values};

use super::{Downstream, Event, Record, edits::Edits, request_id::RequestId};
use crate::{
    h1::{StrictTransport, write_answer, write_template},
    http::{CHALLENGE, Reason, Templates, Version},
    upstream::Cluster,
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
    /// Its status, where that is another one than the reason's.
    pub(crate) status: Option<u16>,
    /// `Retry-After`, in seconds; 0 = without.
    pub(crate) retry_after: u32,
    /// `Location` of a redirect.
    pub(crate) location: Option<String>,
    /// `Strict-Transport-Security`.
    pub(crate) hsts: Option<Rc<StrictTransport>>,
    /// What the frontend changes of its fields.
    pub(crate) edits: Option<Rc<Edits>>,
    /// `WWW-Authenticate` of a 401, where that is not the usual one.
    pub(crate) challenge: Option<Rc<str>>,
    /// What the operator's own answers tell of the request, where there are some.
    pub(crate) told: Option<Rc<Told>>,
    /// Its id, where it got one.
    pub(crate) id: Option<RequestId>,
}

/// What a template is filled in with.
pub(crate) struct Told {
    /// Method, host and path.
    pub(crate) route: String,
    pub(crate) request_id: String,
    /// The cluster of the rule that took it.
    pub(crate) cluster: Option<Rc<Cluster>>,
    /// The response of the rule's redirect.
    pub(crate) redirect: Option<Rc<Template>>,
}

impl LocalReply {
    /// To a request of which nothing is known but that it is wrong.
    pub(crate) fn malformed(reason: Reason) -> LocalReply {
        let (version, location, hsts) = (Version::Http11, None, None);
        let (head_only, keep_alive, unread) = (false, false, false);
        let (status, retry_after) = (None, 0);
        let (edits, challenge, told, id) = (None, None, None, None);
        LocalReply {
            reason,
            head_only,
            keep_alive,
            unread,
            version,
            status,
            retry_after,
            location,
            hsts,
            edits,
            challenge,
            told,
            id,
        }
    }

    /// What the operator wants in its place.
    fn template(&self, status: u16, of_listener: Option<&Templates>) -> Option<Rc<Template>> {
        let told = self.told.as_deref();
        if let Some(redirect) = told.and_then(|told| told.redirect.as_ref())
            && self.reason == Reason::Redirect
        {
            return Some(Rc::clone(redirect));
        }
        let of_cluster = told.and_then(|told| told.cluster.as_ref()).and_then(|cluster| cluster.templates());
        let found = of_cluster.as_ref().and_then(|templates| templates.get(status));
        found.or_else(|| of_listener?.get(status)).map(Rc::clone)
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
    let status = reply.status.unwrap_or_else(|| reply.reason.status());
    record.status.set(status);
    if reply.reason == Reason::SilentClose {
        return Event::FarewellSent;
    }
    let goes_on = reply.keep_alive && !downstream.is_last() && reply.version == Version::Http11;
    let mut out = shared.ring.head_buffer();
    let config = downstream.config();
    // A head that is not one came over TLS all the same.
    let inherited = config.hsts.as_ref().filter(|_| downstream.is_tls());
    let hsts = reply.hsts.as_ref().or(inherited);
    let mut seconds = itoa::Buffer::new();
    let retry_after = (reply.retry_after > 0).then(|| seconds.format(reply.retry_after));
    let challenge = (status == 401).then(|| reply.challenge.as_deref().unwrap_or(CHALLENGE));
    let id_field = config.settings.forwarding.id_field.as_str();
    let mut id_text = [0; ulid::ULID_LEN];
    let id = (!id_field.is_empty()).then(|| {
        let ids = &mut *shared.request_ids.borrow_mut();
        let id = reply.id.unwrap_or_else(|| ids.next(shared.ring.now()));
        ids.text(id, &mut id_text)
    });
    let extra: Vec<(&str, &str)> = [
        retry_after.map(|seconds| ("retry-after", seconds)),
        reply.location.as_deref().map(|location| ("location", location)),
        challenge.map(|challenge| ("www-authenticate", challenge)),
        hsts.map(|hsts| ("strict-transport-security", hsts.value.as_str())),
        id.map(|id| (id_field, id)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let date = shared.date();
    match reply.template(status, config.templates.as_deref()) {
        None => write_answer(reply.reason, status, !goes_on, reply.head_only, &extra, &date, &mut out),
        Some(template) => {
            let told = reply.told.as_deref();
            let endpoint = record.backend();
            let duration = format!("{}ms", record.since_start(shared.ring.now()));
            let capacity = config.settings.sizes.head.to_string();
            let values = Values {
                request_id: told.map_or("", |told| &told.request_id),
                route: told.map_or("", |told| &told.route),
                cluster_id: told.and_then(|told| told.cluster.as_ref()).map_or("", |cluster| &cluster.name),
                backend_id: endpoint.as_ref().map_or("", |endpoint| &endpoint.id),
                redirect_location: reply.location.as_deref().unwrap_or_default(),
                www_authenticate: challenge.unwrap_or_default(),
                retry_after: retry_after.unwrap_or_default(),
                duration: &duration,
                message: reply.reason.code(),
                capacity: &capacity,
                ..Values::default()
            };
            write_template(&template, &values, !goes_on, reply.head_only, &extra, &date, &mut out);
        }
    }
    if let Some(edits) = &reply.edits {
        edits.apply(&mut out);
    }
    record.add_response_bytes(out.len() as u64);
    match downstream.respond(out.into(), config.settings.timeouts.front_ms).await {
        Ok(()) => Event::Replied { goes_on, unread: reply.unread },
        Err(_) => Event::ReplyLost,
    }
}
