//! What would become of a request: the way of one that comes, without sending anything and without counting it.

use std::{cell::RefCell, net::IpAddr, rc::Rc};

use kakehi_ctl::{
    order::{Answered, ExplainedEdits, ExplainedLimit, ExplainedShare, Found, Inquiry},
    state::ListenerProtocol,
};

use super::{
    Client, ListenerConfig, LocalReply, Nameless, Passage, Shared,
    asking::Asking,
    authentication::{Checked, Gate},
    edits::Edits,
    limits::{Refusal, look},
    request::{Routed, route_request},
};
use crate::{
    h1::{HeadProgress, RequestHead},
    http::{Asked as _, Reason, Scratch},
    quota::Guard,
    route::{RouteError, Rule, Trial, try_rules},
    tls::OfferedProtocols,
    upstream::Cluster,
};

/// What becomes of a request at a listener.
pub(crate) fn explain(config: &Rc<ListenerConfig>, shared: &Shared, inquiry: &Inquiry) -> Found {
    if config.refuses(|| Some(inquiry.from)) {
        return closed(Reason::SourceRefused, Vec::new());
    }
    let is_tls = config.settings.protocol == ListenerProtocol::Https;
    let name = inquiry.server_name.as_deref().filter(|_| is_tls).map(str::to_ascii_lowercase);
    // The head is one of HTTP/1.1.
    let offered = OfferedProtocols::new(std::iter::once(&b"http/1.1"[..]));
    let passage = config.passthrough.find(name.as_deref(), &offered);
    if let Some(passage) = passage.filter(|_| is_tls) {
        return passed_on(config, shared, passage, inquiry.from);
    }
    if config.tls.as_ref().is_some_and(|terminator| terminator.refuses(name.as_deref())) {
        let reason = Some("tls.unknown_name".to_owned());
        return Found { answer: Answered { reason, ..Answered::default() }, ..Found::default() };
    }
    let client = client(inquiry, name.as_deref(), is_tls);
    let scratch = &mut *shared.scratch.borrow_mut();
    match parse(config, inquiry, scratch) {
        Ok(head) => explain_head(config, shared, &head, &client),
        Err(reason) => refused(reason),
    }
}

/// Tries rules of a listener one after the other, in the order in which they are looked at. `None`: the request is refused before any is.
///
/// # Errors
/// See [`RouteError`].
pub(crate) fn try_each(
    config: &ListenerConfig,
    rules: &[Rule],
    inquiry: &Inquiry,
) -> Result<Option<Vec<Trial>>, RouteError> {
    let mut scratch = Scratch::new();
    let Ok(head) = parse(config, inquiry, &mut scratch) else { return Ok(None) };
    let client = client(inquiry, None, config.settings.protocol == ListenerProtocol::Https);
    let asking = Asking::new(config, &head, &client);
    try_rules(rules, head.host_name(), head.path(), head.method_text, &asking).map(Some)
}

fn client<'a>(inquiry: &Inquiry, server_name: Option<&'a str>, is_tls: bool) -> Client<'a> {
    let peer = Some(inquiry.from.to_canonical());
    Client { peer, tls: None, server_name, is_tls, is_young: false, is_last: false, is_explained: true }
}

/// The head, or why it is refused.
fn parse<'a>(
    config: &ListenerConfig,
    inquiry: &'a Inquiry,
    scratch: &'a mut Scratch,
) -> Result<RequestHead<'a>, Reason> {
    let mut progress = HeadProgress::default();
    let head = RequestHead::parse(inquiry.head.as_bytes(), &mut progress, &config.request_limits, scratch);
    // What is not complete would be waited for.
    head?.ok_or(Reason::RequestTimeout)
}

fn explain_head(
    config: &Rc<ListenerConfig>,
    shared: &Shared,
    head: &RequestHead<'_>,
    client: &Client<'_>,
) -> Found {
    let limits = RefCell::new(Vec::new());
    let judge = |guard: &Guard, asking: &Asking<'_>| -> Result<(), Refusal> {
        let seen = look(guard, shared, asking);
        limits.borrow_mut().extend(seen.limits);
        seen.refusal.map_or(Ok(()), Err)
    };
    let asking = Asking::new(config, head, client);
    let routes = config.routes.borrow();
    let target = routes.find(head.host_name(), head.path(), head.method_text, &asking).ok();
    let mut found = Found {
        rule_of: target.map(|target| target.cluster.name.to_string()),
        split: target.and_then(|target| target.split.as_ref()).map_or_else(Vec::new, |split| {
            let share = |(weight, cluster): (u64, &Rc<Cluster>)| ExplainedShare {
                cluster: cluster.name.to_string(),
                weight,
                maintained: cluster.maintenance().is_some(),
            };
            split.shares().map(share).collect()
        }),
        ..Found::default()
    };
    // A password that takes long is not computed for that.
    let checked = Checked::without_waiting();
    match route_request(config, shared, head, client, &Gate::new(&checked, shared), judge) {
        Ok(routed) => {
            let Routed { cluster, head, edits } = routed.explained();
            found.cluster = Some(cluster.name.to_string());
            found.edits = written(edits);
            let (of_cluster, refusal) = of_cluster(cluster, asking.client(), shared);
            limits.borrow_mut().extend(of_cluster);
            found.answer = match refusal {
                None => Answered {
                    forwarded: true,
                    head: Some(String::from_utf8_lossy(head).into_owned()),
                    ..Answered::default()
                },
                Some(reason) => answered(&LocalReply::malformed(reason)),
            };
        }
        Err(reply) => {
            let before = found.edits;
            found.answer = answered(&reply);
            found.edits = ExplainedEdits { response: lines(reply.edits.as_deref()), ..before };
        }
    }
    found.limits = limits.into_inner();
    found.bounded()
}

/// What the cluster has to say before a request or a connection reaches a backend, and why it does not, if so.
fn of_cluster(
    cluster: &Cluster,
    client: Option<IpAddr>,
    shared: &Shared,
) -> (Vec<ExplainedLimit>, Option<Reason>) {
    let caps = cluster.caps(&shared.pooling).zip(shared.pooling.sources.as_ref());
    let held = caps.map_or([None; 2], |(caps, table)| caps.held(&cluster.name, client, table));
    let [in_flight, waiting] = cluster.fill(&shared.pooling);
    let mut refusal = None;
    let mut limits = Vec::new();
    for (limit, fill, reason) in [
        ("max_connections_per_ip", held[0], Some(Reason::TooManyConnections)),
        ("max_connections_per_subnet", held[1], Some(Reason::TooManyConnections)),
        ("max_requests", in_flight, Some(Reason::ClusterFull)),
        // Who waits is not refused yet.
        ("queue_size", waiting, None),
    ] {
        let Some((used, most)) = fill else { continue };
        let refused = reason.filter(|_| used >= u64::from(most));
        refusal = refusal.or(refused);
        limits.push(ExplainedLimit {
            place: "cluster".to_owned(),
            limit: limit.to_owned(),
            used,
            most: Some(most.into()),
            refuses: refused.is_some(),
        });
    }
    (limits, refusal.or_else(|| cluster.is_without_backends().then_some(Reason::NoBackend)))
}

/// The connection is passed on, or closed.
fn passed_on(
    config: &ListenerConfig,
    shared: &Shared,
    Passage { cluster, guard }: &Passage,
    client: IpAddr,
) -> Found {
    let asked = Nameless(Some(client.to_canonical()));
    let of_cluster_itself = cluster.limits();
    let guards = config.guard.iter().chain(guard.as_deref());
    let mut limits = Vec::new();
    for guard in guards.chain(of_cluster_itself.as_ref().and_then(|limits| limits.guard.as_ref())) {
        let seen = look(guard, shared, &asked);
        limits.extend(seen.limits);
        if let Some(refusal) = seen.refusal {
            return closed(refusal.reason, limits);
        }
    }
    let (more, refusal) = of_cluster(cluster, asked.client(), shared);
    limits.extend(more);
    let refusal = cluster.maintenance().map(|_| Reason::Maintenance).or(refusal);
    let found = match refusal {
        Some(reason) => closed(reason, limits),
        None => {
            Found { answer: Answered { passed_on: true, ..Answered::default() }, limits, ..Found::default() }
        }
    };
    Found { cluster: Some(cluster.name.to_string()), ..found }
}

/// The connection is closed without a word.
fn closed(reason: Reason, limits: Vec<ExplainedLimit>) -> Found {
    let answer = Answered { reason: Some(reason.code().to_owned()), ..Answered::default() };
    Found { answer, limits, ..Found::default() }
}

fn refused(reason: Reason) -> Found {
    Found { answer: answered(&LocalReply::malformed(reason)), ..Found::default() }
}

fn answered(reply: &LocalReply) -> Answered {
    let silent = reply.reason == Reason::SilentClose;
    Answered {
        status: (!silent).then(|| reply.status.unwrap_or_else(|| reply.reason.status())),
        reason: Some(reply.reason.code().to_owned()),
        location: reply.location.clone(),
        ..Answered::default()
    }
}

fn written((request, response): (Option<&Edits>, Option<&Edits>)) -> ExplainedEdits {
    ExplainedEdits { request: lines(request), response: lines(response) }
}

fn lines(edits: Option<&Edits>) -> Vec<String> {
    edits.map_or_else(Vec::new, Edits::lines)
}
