//! Reads the head of a request, finds the rule that takes it, and writes it as the backend gets it.

use std::{cell::OnceCell, net::IpAddr, num::NonZeroU32, rc::Rc};

use kakehi_ctl::{state::Retries, template::Template};

use super::{
    Client, Downstream, ListenerConfig, LocalReply, Outcome, Record, Shared,
    client_address::client_address,
    edits::{EditRules, Edits, Known},
    limits::{self, Refusal},
    listener::{Action, HstsPolicy, Target},
    local_reply::Told,
    redirect::{came_by_https, https_location, judge_rewritten, location},
};
use crate::{
    h1::{ClientCertificate, ForwardedBy, RequestBody, RequestHead, Rewritten, StrictTransport},
    http::{Asked, CHALLENGE, Method, Reason, Version},
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
    /// What the frontend changes of the fields of its response.
    pub(crate) edits: Option<Rc<Edits>>,
    /// Largest body (bytes), 0 = no limit.
    pub(super) max_body_size: u64,
    /// What the operator's own answers tell of it, where there are some.
    told: Option<Rc<Told>>,
}

impl Request {
    /// How the client is watched while the backend is waited for.
    pub(super) fn watch(&self) -> Watch {
        if self.config.settings.abort_on_close { Watch::ResetOrEnd } else { Watch::Reset }
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
            edits: self.edits.as_ref().map(Rc::clone),
            challenge: None,
            told: self.told.as_ref().map(Rc::clone),
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
    let routed =
        downstream.head(&config, |shared, head, client| route_request(&config, shared, head, client));
    let routed = routed.await?.map_err(|reply| Outcome::LocalReply(Box::new(reply)))?;
    let RoutedHead { mut routed, received, holder } = routed;
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

struct RoutedHead {
    routed: RoutedRequest,
    /// Whose connection needs a place, where that is limited.
    holder: Option<(Caps, Option<IpAddr>)>,
    /// Bytes of the head as it came.
    received: usize,
}

/// Finds the rule that takes a request, and writes its head as the backend gets it.
fn route_request(
    config: &Rc<ListenerConfig>,
    shared: &Shared,
    head: &RequestHead<'_>,
    client: &Client<'_>,
) -> Result<RoutedHead, LocalReply> {
    let id = MadeId::default();
    let tell = |cluster: Option<&Rc<Cluster>>, redirect: Option<&Rc<Template>>| {
        Rc::new(Told {
            route: [head.method_text, " ", head.host_name(), head.path()].concat(),
            request_id: String::from_utf8_lossy(request_id(config, shared, head, client, &id)).into_owned(),
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
    };
    let asking = Asking { config, head, client, address: OnceCell::new() };
    if client.is_young && shared.ring.is_overloaded() {
        // Its next request would be that of a connection that is served.
        return Err(LocalReply {
            keep_alive: false,
            retry_after: 1,
            ..reply(Reason::Overloaded, &inherited)
        });
    }
    if let Some(guard) = &config.guard {
        let refuse = |refusal: Refusal| refusal.reply(|reason| reply(reason, &inherited));
        limits::judge(guard, shared, &asking).map_err(refuse)?;
    }
    check_name(config, head, client).map_err(|misdirected| LocalReply {
        keep_alive: misdirected.keep_alive && keep_alive && ended,
        ..reply(Reason::Misdirected, &inherited)
    })?;
    let routes = config.routes.borrow();
    let target = routes.find(head.host_name(), head.path(), head.method_text, &asking);
    let target = target.map_err(|reason| reply(reason, &inherited))?;
    let hsts = match &target.hsts {
        HstsPolicy::Own(own) if client.is_tls => own.clone(),
        _ => inherited,
    };
    let made = target.edits.as_deref().map(|rules| make_edits(rules, shared, &asking, &target.cluster, &id));
    let (edits_of_request, edits) = made.unwrap_or_default();
    let is_told = target.template.is_some() || config.templates.is_some() || target.cluster.has_templates();
    let told = || is_told.then(|| tell(Some(&target.cluster), target.template.as_ref()));
    let reply = |reason: Reason, hsts: &Option<Rc<StrictTransport>>| LocalReply {
        edits: edits.as_ref().map(Rc::clone),
        challenge: (reason.status() == 401).then(|| challenge(&target.cluster)),
        told: told(),
        ..reply(reason, hsts)
    };
    let limits = target.cluster.limits();
    let of_cluster = limits.as_ref().and_then(|limits| limits.guard.as_ref());
    for guard in target.guard.as_deref().into_iter().chain(of_cluster) {
        limits::judge(guard, shared, &asking)
            .map_err(|refusal| refusal.reply(|reason| reply(reason, &hsts)))?;
    }
    let is_admitted = |target: &Target| {
        let longest = shared.pooling.max_credential_bytes.get() as usize;
        !target.required_auth || is_admitted(&target.cluster, head, longest)
    };
    // Nobody is asked for a password in clear text who is led to `https` first.
    let asks = match target.action {
        Action::Deny | Action::Close => false,
        Action::RedirectHttps(_) => is_https(config, client, head),
        Action::Forward | Action::Redirect(_) => true,
    };
    if asks && !is_admitted(target) {
        return Err(reply(Reason::Unauthorized, &hsts));
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
    if let Some(Maintenance { retry_after }) = target.cluster.maintenance() {
        return Err(LocalReply { retry_after, ..reply(Reason::Maintenance, &hsts) });
    }
    let made = target.rewriting.as_deref();
    let authority = made.map(|made| made.authority(head)).transpose();
    let authority = authority.map_err(|reason| reply(reason, &hsts))?.flatten();
    let rewritten = made.and_then(|made| made.target(head));
    if let Some(target) = &rewritten {
        let judged = judge_rewritten(&routes, head, target, &asking, is_admitted);
        judged.map_err(|reason| reply(reason, &hsts))?;
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
        RequestBody::Chunked => Body::request_chunks(sizes.fields, config.settings.forwarding.underscores),
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
        affinity: target.cluster.affinity(&asking, &config.settings.sticky_name),
        retries: target.cluster.retries(),
        attempts_at: None,
        cluster: Rc::clone(&target.cluster),
        hsts,
        told: told(),
        edits,
        max_body_size,
    };
    let session_cookie = target.cluster.has_sessions().then_some(config.settings.sticky_name.as_str());
    let rewritten = Rewritten { authority: authority.as_deref(), target: rewritten.as_deref() };
    let mut out = write_head(&asking, shared, session_cookie, rewritten, &id);
    if let Some(edits) = edits_of_request {
        edits.apply(&mut out);
    }
    let told = request.retries.as_ref().is_some_and(|retries| retries.attempts_header);
    let attempts_at = told.then(|| add_attempts(&mut out)).flatten();
    let request = Request { attempts_at, ..request };
    let holder = target.cluster.caps(&shared.pooling).map(|caps| (caps, asking.client()));
    Ok(RoutedHead { routed: RoutedRequest { request, head: out, body }, holder, received: head.len })
}

/// What a 401 of a cluster says.
fn challenge(cluster: &Cluster) -> Rc<str> {
    cluster.users().map_or_else(|| CHALLENGE.into(), |users| Rc::clone(users.challenge()))
}

/// Whether a request names one of the cluster's users with its password.
fn is_admitted(cluster: &Cluster, head: &RequestHead<'_>, longest: usize) -> bool {
    let mut credentials = head.fields().filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    // Of two, a backend may read the other one.
    let (Some((_, credentials)), None) = (credentials.next(), credentials.next()) else { return false };
    cluster.users().is_some_and(|users| users.admit(credentials, longest))
}

/// A request, as limits and clusters ask it whose it is.
struct Asking<'a> {
    config: &'a ListenerConfig,
    head: &'a RequestHead<'a>,
    client: &'a Client<'a>,
    /// The client's address, once somebody has asked for it.
    address: OnceCell<Option<IpAddr>>,
}

impl Asked for Asking<'_> {
    fn client(&self) -> Option<IpAddr> {
        let trusted = &self.config.settings.forwarding.trusted_peers;
        *self.address.get_or_init(|| client_address(self.client.peer, trusted, self.head.forwarded_hops()))
    }

    fn path(&self) -> &[u8] {
        self.head.path().as_bytes()
    }

    fn query(&self) -> &[u8] {
        self.head.query().as_bytes()
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.head.field(name)
    }

    fn cookie(&self, name: &str) -> Option<&[u8]> {
        self.head.cookie(name)
    }
}

/// The id of a request, once somebody has asked for it.
#[derive(Default)]
struct MadeId(OnceCell<[u8; ulid::ULID_LEN]>);

impl MadeId {
    fn get(&self, shared: &Shared) -> &str {
        let text = self.0.get_or_init(|| {
            let mut text = [0; ulid::ULID_LEN];
            shared.request_ids.borrow_mut().next(shared.ring.now(), &mut text);
            text
        });
        // Letters and digits.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

/// The id of a request as the backend is told it.
fn request_id<'a>(
    config: &ListenerConfig,
    shared: &Shared,
    head: &RequestHead<'a>,
    client: &Client<'_>,
    id: &'a MadeId,
) -> &'a [u8] {
    let theirs = is_trusted(config, client).then(|| head.field("x-request-id")).flatten();
    theirs.unwrap_or_else(|| id.get(shared).as_bytes())
}

/// What a frontend changes of a request and of its response.
fn make_edits(
    rules: &EditRules,
    shared: &Shared,
    asking: &Asking<'_>,
    cluster: &Cluster,
    id: &MadeId,
) -> (Option<Rc<Edits>>, Option<Rc<Edits>>) {
    let Asking { config, head, client, .. } = asking;
    let nothing = Known { client_ip: "", request_id: b"", scheme: "", sni: "", cluster: "" };
    if !rules.asks() {
        return rules.make(&nothing);
    }
    let mut text = [0; 48];
    rules.make(&Known {
        client_ip: write_ip(asking.client(), &mut text),
        request_id: request_id(config, shared, head, client, id),
        scheme: if is_https(config, client, head) { "https" } else { "http" },
        sni: client.tls.and_then(|tls| tls.name.as_deref()).unwrap_or_default(),
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
        (Some(tls), Some(terminator)) if terminator.misdirects(head.host_name(), tls) => {
            Err(Misdirected { keep_alive: true })
        }
        // Its listener has come to speak TLS since it began.
        (None, Some(_)) => Err(Misdirected { keep_alive: false }),
        _ => Ok(()),
    }
}

/// Whether what the peer says of its client is believed.
fn is_trusted(config: &ListenerConfig, client: &Client<'_>) -> bool {
    let trusted = &config.settings.forwarding.trusted_peers;
    client.peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(&peer)))
}

/// Whether the client speaks `https`, with us or with a proxy in front.
fn is_https(config: &ListenerConfig, client: &Client<'_>, head: &RequestHead<'_>) -> bool {
    client.is_tls || is_trusted(config, client) && came_by_https(head)
}

/// The head as the backend gets it.
fn write_head(
    Asking { config, head, client, .. }: &Asking<'_>,
    shared: &Shared,
    session_cookie: Option<&str>,
    rewritten: Rewritten<'_>,
    id: &MadeId,
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
        request_id: id.get(shared),
        session_cookie,
        rewritten,
        client: certificate
            .map(|client| ClientCertificate { subject: &client.subject, fingerprint: &client.fingerprint }),
    };
    head.write_forwarded(&by, &mut out);
    out
}

/// The text of an address; `unknown` (RFC 7239 section 6.2) when the client has none.
fn write_ip(peer: Option<IpAddr>, text: &mut [u8; 48]) -> &str {
    use std::io::Write;
    let length = match peer {
        None => return "unknown",
        Some(IpAddr::V4(peer)) => {
            // By hand: the formatting machinery takes as long as routing does.
            let mut length = 0;
            for (place, octet) in peer.octets().into_iter().enumerate() {
                if place > 0 {
                    text[length] = b'.';
                    length += 1;
                }
                let mut buffer = itoa::Buffer::new();
                let digits = buffer.format(octet).as_bytes();
                text[length..length + digits.len()].copy_from_slice(digits);
                length += digits.len();
            }
            length
        }
        Some(IpAddr::V6(peer)) => {
            let mut rest = &mut text[..];
            // 45 bytes at most.
            if write!(rest, "{peer}").is_err() {
                return "unknown";
            }
            48 - rest.len()
        }
    };
    std::str::from_utf8(&text[..length]).unwrap_or("unknown")
}
