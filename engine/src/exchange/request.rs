//! Reads the head of a request, finds the rule that takes it, and writes it as the backend gets it.

use std::{net::IpAddr, num::NonZeroU32, rc::Rc};

use kakehi_ctl::{state::Retries, template::Template};

use super::{
    Client, Downstream, ListenerConfig, LocalReply, Outcome, Record, Shared,
    asking::{Asking, is_https, is_trusted, write_ip},
    authentication::{Checked, Gate, Unrouted, challenge, route_checked},
    downstream::Taken,
    edits::{EditRules, Edits, Known},
    limits::{self, Refusal},
    listener::{Action, HstsPolicy, Target},
    local_reply::Told,
    redirect::{https_location, judge_rewritten, location},
    request_id::RequestId,
};
use crate::{
    h1::{ClientCertificate, ForwardedBy, RequestBody, RequestHead, Rewritten, StrictTransport},
    http::{Asked as _, Method, Reason, Version},
    quota::{Caps, Guard},
    ring::Recv,
    transfer::{Body, ReadBuffer, Watch},
    upstream::{Affinity, Cluster, Maintenance},
};

/// What of a request is still needed when its head has gone.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) version: Version,
    /// Another request may follow, as far as this one goes.
    pub(crate) keep_alive: bool,
    /// The client has said that it will send no other, nor has this one a body, behind which some send a line end.
    pub(super) last: bool,
    pub(super) expect_continue: bool,
    pub(super) upgrade: bool,
    /// Its credentials are of NTLM or Negotiate.
    pub(super) authenticates_connection: bool,
    pub(super) config: Rc<ListenerConfig>,
    /// The cluster that it goes to.
    pub(super) cluster: Rc<Cluster>,
    /// Which of its backends it belongs to.
    pub(super) affinity: Affinity,
    /// When it is sent again, if it ever is.
    pub(super) retries: Option<Rc<Retries>>,
    /// Where in the head the backend is told how often it was sent.
    pub(super) attempts_at: Option<NonZeroU32>,
    /// The `Strict-Transport-Security` that its response gets.
    pub(crate) hsts: Option<Rc<StrictTransport>>,
    /// Largest body (bytes), 0 = no limit.
    pub(super) max_body_size: u64,
    /// What only some requests have.
    extras: Option<Box<Extras>>,
    id: RequestId,
}

/// What only some requests have.
struct Extras {
    /// What the frontend changes of the fields of the response.
    edits: Option<Rc<Edits>>,
    /// What the operator's own answers tell of the request, where there are some.
    told: Option<Rc<Told>>,
}

impl Extras {
    fn new(edits: Option<Rc<Edits>>, told: Option<Rc<Told>>) -> Option<Box<Extras>> {
        (edits.is_some() || told.is_some()).then(|| Box::new(Extras { edits, told }))
    }
}

impl Request {
    /// How the client is watched while the backend is waited for.
    pub(super) fn watch(&self) -> Watch {
        if self.config.settings.abort_on_close { Watch::ResetOrEnd } else { Watch::Reset }
    }

    /// What the frontend changes of the fields of its response.
    pub(crate) fn edits(&self) -> Option<&Rc<Edits>> {
        self.extras.as_ref()?.edits.as_ref()
    }

    /// The name and the value of the field in which its client is told its id, where it is.
    pub(crate) fn id_line<'a>(
        &'a self,
        shared: &Shared,
        text: &'a mut [u8; ulid::ULID_LEN],
    ) -> Option<(&'a str, &'a str)> {
        let name = &self.config.settings.forwarding.id_field;
        (!name.is_empty()).then(|| (name.as_str(), shared.request_ids.borrow().text(self.id, text)))
    }

    /// Ends the exchange with a reply of our own. The connection may go on if the request is `complete`: nothing of it is
    /// left to be read.
    pub(super) fn local_reply(&self, reason: Reason, complete: bool) -> Outcome {
        Outcome::LocalReply(Box::new(self.own_reply(reason, complete)))
    }

    fn own_reply(&self, reason: Reason, complete: bool) -> LocalReply {
        LocalReply {
            reason,
            head_only: self.method == Method::Head,
            keep_alive: self.keep_alive && complete,
            unread: !complete,
            version: self.version,
            status: None,
            retry_after: 0,
            location: None,
            hsts: self.hsts.as_ref().map(Rc::clone),
            edits: self.edits().map(Rc::clone),
            challenge: None,
            told: self.extras.as_ref().and_then(|extras| extras.told.clone()),
            id: Some(self.id),
        }
    }
}

/// A request that goes to a backend.
pub(super) struct RoutedRequest {
    pub(super) request: Request,
    /// The head as the backend gets it.
    pub(super) head: Vec<u8>,
    pub(super) body: Body,
}

impl RoutedRequest {
    /// Whether it may be sent again, and its body is small enough to be awaited for that, and not all there.
    pub(super) fn is_to_be_completed(&self) -> bool {
        let Some(retries) = self.request.retries.as_ref().filter(|retries| !retries.on.is_empty()) else {
            return false;
        };
        let most = u64::from(retries.body_size);
        let is_small = self.body.known_length().is_none_or(|left| left + self.body.moved() <= most);
        is_small
            && !self.body.is_done()
            && !self.request.expect_continue
            && self.request.method.is_idempotent()
    }

    /// Waits for the rest of such a body.
    ///
    /// # Errors
    /// As [`RoutedRequest::add_body`]; `ClientGone` and `BodyTimeout`.
    pub(super) async fn complete<D: Downstream>(&mut self, downstream: &mut D) -> Result<(), Outcome> {
        let most = self.request.retries.as_ref().map_or(0, |retries| u64::from(retries.body_size));
        let timeouts = &self.request.config.settings.timeouts;
        let due = downstream.shared().ring.now() + timeouts.body_ms.min(timeouts.front_ms);
        loop {
            // First what has come with the head, which may have been too much to be sent in one piece with it.
            let RoutedRequest { request, head, body } = self;
            let appended = body.append(downstream.read_buffer(), head);
            appended.map_err(|reason| request.local_reply(reason, false))?;
            // With the checks of what came with the head.
            self.add_body(downstream.read_buffer())?;
            // Of a body that is just as long as may be its end is still to come, if it is in chunks.
            if self.body.is_done() || self.body.moved() > most {
                return Ok(());
            }
            downstream.timer().set_at(due);
            let received = {
                let (body, timer) = (downstream.body(), downstream.timer());
                timer.limit(body.receive()).await
            };
            match received {
                Ok(Ok(Recv::Data(buffer))) => downstream.read_buffer().push(buffer),
                Ok(Ok(Recv::Finished) | Err(_)) => return Err(Outcome::ClientGone),
                Err(_) => return Err(self.request.local_reply(Reason::BodyTimeout, false)),
            }
        }
    }

    /// Appends what of the body has come to the head. What is left in `read_buffer` may wait for long.
    ///
    /// # Errors
    /// A local reply when the body is malformed, or larger than allowed.
    pub(super) fn add_body(&mut self, read_buffer: &mut ReadBuffer) -> Result<(), Outcome> {
        let RoutedRequest { request, head, body } = self;
        body.coalesce(read_buffer, head).map_err(|reason| request.local_reply(reason, false))?;
        let largest = request.max_body_size;
        if largest != 0 && body.moved() > largest {
            return Err(request.local_reply(Reason::BodyTooLarge, false));
        }
        // It must not hold a shared buffer meanwhile.
        read_buffer.copy_out_of_pool();
        Ok(())
    }
}

/// Receives the head of a request with what has come of its body, and routes it.
///
/// # Errors
/// `ClientGone`, or a local reply.
pub(super) async fn receive<D: Downstream>(
    downstream: &mut D,
    record: &Record,
) -> Result<RoutedRequest, Outcome> {
    let config = downstream.config();
    let first = |shared: &Shared, head: &RequestHead<'_>, client: &Client<'_>| {
        route(&config, shared, head, client, &Checked::default())
    };
    let routing = downstream.head(&config, first).await?;
    let RoutedHead { mut routed, received, holder, edits: _ } = match routing {
        Ok(routed) => routed,
        Err(Unrouted::Ended(outcome)) => return Err(outcome),
        // Boxed: rare, and large beside what an ordinary request takes.
        Err(Unrouted::Unchecked(unchecked)) => Box::pin(route_checked(downstream, unchecked)).await?,
    };
    if let Some((caps, client)) = holder {
        let complete = routed.body.is_done();
        let reply = |reason| routed.request.own_reply(reason, complete);
        limits::hold_place(downstream, &routed.request.cluster.name, caps, client, reply)?;
    } else if downstream.place().is_some() {
        // It counts at the cluster that it asked last.
        downstream.set_place(None);
    }
    record.add_request_bytes(received as u64);
    record.routed_ms.set(record.since_start(downstream.shared().ring.now()));
    routed.add_body(downstream.read_buffer())?;
    if routed.is_to_be_completed() {
        // Boxed: rare, and large beside what an ordinary request takes.
        Box::pin(routed.complete(downstream)).await?;
    }
    Ok(routed)
}

/// A request whose place is not held yet.
pub(super) struct RoutedHead {
    routed: RoutedRequest,
    /// Whose connection needs a place, where that is limited.
    holder: Option<(Caps, Option<IpAddr>)>,
    /// Bytes of the head as it came.
    received: usize,
    /// What was changed of its fields.
    edits: Option<Rc<Edits>>,
}

/// What of a request that goes to a backend is told to operators.
pub(super) struct Routed<'a> {
    pub(super) cluster: &'a Rc<Cluster>,
    /// The head as the backend gets it.
    pub(super) head: &'a [u8],
    /// What is changed of the fields of the request, and of the response.
    pub(super) edits: (Option<&'a Edits>, Option<&'a Edits>),
}

impl RoutedHead {
    pub(super) fn explained(&self) -> Routed<'_> {
        let RoutedRequest { request, head, .. } = &self.routed;
        let edits = (self.edits.as_deref(), request.edits().map(Rc::as_ref));
        Routed { cluster: &request.cluster, head, edits }
    }
}

/// Routes a request of which this is known. Where its password must be checked first, its head stays.
pub(super) fn route(
    config: &Rc<ListenerConfig>,
    shared: &Shared,
    head: &RequestHead<'_>,
    client: &Client<'_>,
    checked: &Checked,
) -> Taken<Result<RoutedHead, Unrouted>> {
    let gate = Gate::new(checked, shared);
    let judge = |guard: &Guard, asking: &Asking<'_>| {
        limits::judge_request(guard, shared, asking, !checked.was_routed)
    };
    let routed = route_request(config, shared, head, client, &gate, judge);
    match gate.into_unchecked() {
        Some(unchecked) => Taken::Left(Err(Unrouted::Unchecked(unchecked))),
        None => Taken::Whole(routed.map_err(|reply| Unrouted::Ended(Outcome::LocalReply(Box::new(reply))))),
    }
}

/// Finds the rule that takes a request, and writes its head as the backend gets it. `judge` holds it against limits, `gate` asks for its
/// password.
pub(super) fn route_request(
    config: &Rc<ListenerConfig>,
    shared: &Shared,
    head: &RequestHead<'_>,
    client: &Client<'_>,
    gate: &Gate<'_>,
    judge: impl Fn(&Guard, &Asking<'_>) -> Result<(), Refusal>,
) -> Result<RoutedHead, LocalReply> {
    let id = shared.request_ids.borrow_mut().next(shared.ring.now());
    let mut id_text = [0; ulid::ULID_LEN];
    let id_text = shared.request_ids.borrow().text(id, &mut id_text);
    let tell = |cluster: Option<&Rc<Cluster>>, redirect: Option<&Rc<Template>>| {
        Rc::new(Told {
            route: [head.method_text, " ", head.host_name(), head.path()].concat(),
            request_id: String::from_utf8_lossy(request_id(config, head, client, id_text)).into_owned(),
            cluster: cluster.map(Rc::clone),
            redirect: redirect.map(Rc::clone),
        })
    };
    let ended = matches!(head.body, RequestBody::None | RequestBody::Length(0));
    let keep_alive = head.keep_alive && !client.is_last;
    let inherited = config.hsts.as_ref().filter(|_| client.is_tls).map(Rc::clone);
    let reply = |reason, hsts: &Option<Rc<StrictTransport>>| LocalReply {
        reason,
        head_only: head.method == Method::Head,
        keep_alive: keep_alive && ended,
        unread: !ended,
        version: head.version,
        status: None,
        retry_after: 0,
        location: None,
        hsts: hsts.clone(),
        edits: None,
        challenge: None,
        told: config.templates.is_some().then(|| tell(None, None)),
        id: Some(id),
    };
    let asking = Asking::new(config, head, client);
    if !gate.checked.was_routed && client.is_young && shared.ring.is_overloaded() {
        // Its next request would be that of a connection that is served.
        return Err(LocalReply {
            keep_alive: false,
            retry_after: 1,
            ..reply(Reason::Overloaded, &inherited)
        });
    }
    if let Some(guard) = &config.guard {
        let refuse = |refusal: Refusal| refusal.reply(|reason| reply(reason, &inherited));
        judge(guard, &asking).map_err(refuse)?;
    }
    check_name(config, head, client).map_err(|misdirected| LocalReply {
        keep_alive: misdirected.keep_alive && keep_alive && ended,
        ..reply(Reason::Misdirected, &inherited)
    })?;
    let routes = config.routes.borrow();
    let target = routes.find(head.host_name(), head.path(), head.method_text, &asking);
    let target = target.map_err(|reason| reply(reason, &inherited))?;
    // The rule's own one remains that of its users.
    let cluster = target.cluster_for(&asking, || gate.chance());
    let hsts = match &target.hsts {
        HstsPolicy::Own(own) if client.is_tls => own.clone(),
        _ => inherited,
    };
    let made = target.edits.as_deref().map(|rules| make_edits(rules, &asking, cluster, id_text));
    let (edits_of_request, edits) = made.unwrap_or_default();
    let is_told = target.template.is_some() || config.templates.is_some() || cluster.has_templates();
    let told = || is_told.then(|| tell(Some(cluster), target.template.as_ref()));
    let reply = |reason: Reason, hsts: &Option<Rc<StrictTransport>>| LocalReply {
        edits: edits.as_ref().map(Rc::clone),
        challenge: (reason.status() == 401).then(|| challenge(&target.cluster)),
        told: told(),
        ..reply(reason, hsts)
    };
    let limits = cluster.limits();
    let of_cluster = limits.as_ref().and_then(|limits| limits.guard.as_ref());
    for guard in target.guard.as_deref().into_iter().chain(of_cluster) {
        judge(guard, &asking).map_err(|refusal| refusal.reply(|reason| reply(reason, &hsts)))?;
    }
    let admit = |target: &Target| match target.required_auth {
        true => gate.admit(&target.cluster, head, || asking.client()),
        false => Ok(()),
    };
    let refuse = |reason| LocalReply {
        retry_after: u32::from(reason == Reason::AuthenticationBusy),
        ..reply(reason, &hsts)
    };
    // Nobody is asked for a password in clear text who is led to `https` first.
    let asks = match target.action {
        Action::Deny | Action::Close => false,
        Action::RedirectHttps(_) => is_https(config, client, head),
        Action::Forward | Action::Redirect(_) => true,
    };
    if asks {
        admit(target).map_err(refuse)?;
    }
    match target.action {
        Action::Deny => return Err(reply(Reason::Denied, &hsts)),
        Action::Close => return Err(reply(Reason::SilentClose, &hsts)),
        Action::Redirect(status) => {
            let location = location(head, is_https(config, client, head), target.rewriting.as_deref());
            return Err(match location {
                Ok(location) => LocalReply {
                    location: Some(location),
                    status: Some(status),
                    ..reply(Reason::Redirect, &hsts)
                },
                Err(reason) => reply(reason, &hsts),
            });
        }
        Action::RedirectHttps(port) if !is_https(config, client, head) => {
            return Err(match https_location(head, port) {
                Some(location) => {
                    LocalReply { location: Some(location), ..reply(Reason::HttpsRedirect, &hsts) }
                }
                None => reply(Reason::MissingHost, &hsts),
            });
        }
        Action::Forward | Action::RedirectHttps(_) => {}
    }
    if let Some(Maintenance { retry_after }) = cluster.maintenance() {
        return Err(LocalReply { retry_after, ..reply(Reason::Maintenance, &hsts) });
    }
    let made = target.rewriting.as_deref();
    let authority = made.map(|made| made.authority(head)).transpose();
    let authority = authority.map_err(|reason| reply(reason, &hsts))?.flatten();
    let rewritten = made.and_then(|made| made.target(head));
    if let Some(target) = &rewritten {
        judge_rewritten(&routes, head, target, &asking, admit).map_err(refuse)?;
    }
    let sizes = &config.settings.sizes;
    let max_body_size = |guard: Option<&Guard>| guard.and_then(|guard| guard.max_body_size);
    let max_body_size =
        max_body_size(target.guard.as_deref()).or(max_body_size(of_cluster)).unwrap_or(sizes.body);
    let body = match head.body {
        RequestBody::None => Body::length(0),
        RequestBody::Length(length) if max_body_size != 0 && length > max_body_size => {
            return Err(reply(Reason::BodyTooLarge, &hsts));
        }
        RequestBody::Length(length) => Body::length(length),
        RequestBody::Chunked => Body::request_chunks(sizes.fields, &config.settings.forwarding),
    };
    // RFC 9110 section 7.6.2: who receives 0 answers as the last recipient.
    if head.max_forwards == Some(0) {
        let is_trace = head.method == Method::Trace;
        return Err(reply(if is_trace { Reason::TraceEnded } else { Reason::OptionsEnded }, &hsts));
    }
    let request = Request {
        method: head.method,
        version: head.version,
        keep_alive,
        last: !head.keep_alive && head.body == RequestBody::None,
        expect_continue: head.expect_continue && !ended,
        upgrade: head.upgrade,
        authenticates_connection: head.authenticates_connection,
        config: Rc::clone(config),
        affinity: cluster.affinity(&asking, &config.settings.sticky_name),
        retries: cluster.retries(),
        attempts_at: None,
        cluster: Rc::clone(cluster),
        hsts,
        extras: Extras::new(edits.clone(), told()),
        max_body_size,
        id,
    };
    let session_cookie = cluster.has_sessions().then_some(config.settings.sticky_name.as_str());
    let rewritten = Rewritten { authority: authority.as_deref(), target: rewritten.as_deref() };
    let mut out = write_head(&asking, shared, session_cookie, rewritten, id_text);
    if let Some(edits) = &edits_of_request {
        edits.apply(&mut out);
    }
    let told = request.retries.as_ref().is_some_and(|retries| retries.attempts_header);
    let attempts_at = told.then(|| add_attempts(&mut out)).flatten();
    let request = Request { attempts_at, ..request };
    let holder = cluster.caps(&shared.pooling).map(|caps| (caps, asking.client()));
    let routed = RoutedRequest { request, head: out, body };
    Ok(RoutedHead { routed, holder, received: head.len, edits: edits_of_request })
}

/// The id of a request as the backend is told it: `made`, unless a proxy in front that is believed has made one.
fn request_id<'a>(
    config: &ListenerConfig,
    head: &RequestHead<'a>,
    client: &Client<'_>,
    made: &'a str,
) -> &'a [u8] {
    // Where it has no field of its own, nobody else's is passed on.
    let is_own = config.settings.forwarding.id_field.eq_ignore_ascii_case("x-request-id");
    let theirs = (!is_own && is_trusted(config, client)).then(|| head.field("x-request-id")).flatten();
    theirs.unwrap_or(made.as_bytes())
}

/// What a frontend changes of a request and of its response.
fn make_edits(
    rules: &EditRules,
    asking: &Asking<'_>,
    cluster: &Cluster,
    id: &str,
) -> (Option<Rc<Edits>>, Option<Rc<Edits>>) {
    let Asking { config, head, client, .. } = asking;
    let nothing = Known { client_ip: "", request_id: b"", scheme: "", sni: "", cluster: "" };
    if !rules.asks() {
        return rules.make(&nothing);
    }
    let mut text = [0; 48];
    rules.make(&Known {
        client_ip: write_ip(asking.client(), &mut text),
        request_id: request_id(config, head, client, id),
        scheme: if is_https(config, client, head) { "https" } else { "http" },
        sni: client.server_name.unwrap_or_default(),
        cluster: &cluster.name,
    })
}

/// Adds a field that says how often the request was sent; where its number stands.
fn add_attempts(head: &mut Vec<u8>) -> Option<NonZeroU32> {
    // Before the empty line.
    head.truncate(head.len() - 2);
    head.extend_from_slice(b"X-Kakehi-Attempts: ");
    let at = u32::try_from(head.len()).ok().and_then(NonZeroU32::new);
    head.extend_from_slice(b"  1\r\n\r\n");
    at
}

/// Why a request is answered with 421.
struct Misdirected {
    keep_alive: bool,
}

/// Checks that the name of a request is one that its connection is for (RFC 9110 section 7.4).
fn check_name(
    config: &ListenerConfig,
    head: &RequestHead<'_>,
    client: &Client<'_>,
) -> Result<(), Misdirected> {
    match (client.tls, &config.tls) {
        _ if client.is_explained => Ok(()),
        (Some(tls), Some(terminator)) if terminator.misdirects(head.host_name(), tls) => {
            Err(Misdirected { keep_alive: true })
        }
        // Its listener has come to speak TLS since it began.
        (None, Some(_)) => Err(Misdirected { keep_alive: false }),
        _ => Ok(()),
    }
}

/// The head as the backend gets it.
fn write_head(
    Asking { config, head, client, .. }: &Asking<'_>,
    shared: &Shared,
    session_cookie: Option<&str>,
    rewritten: Rewritten<'_>,
    request_id: &str,
) -> Vec<u8> {
    let mut out = shared.ring.head_buffer();
    let mut peer_text = [0; 48];
    let forwarding = &config.settings.forwarding;
    let certificate = client.tls.and_then(|tls| tls.client.as_ref());
    let by = ForwardedBy {
        peer_ip: write_ip(client.peer, &mut peer_text),
        local_port: &config.local_port,
        proto: if client.is_tls { "https" } else { "http" },
        trusted: is_trusted(config, client),
        switches: forwarding,
        request_id,
        session_cookie,
        rewritten,
        client: certificate
            .map(|client| ClientCertificate { subject: &client.subject, fingerprint: &client.fingerprint }),
    };
    head.write_forwarded(&by, &mut out);
    out
}
