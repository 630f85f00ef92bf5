//! What would become of a request: a worker says what its tables make of it, and a thread which rules were tried before.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use kakehi_ctl::{
    change::FrontendRule,
    order::{
        ClusterRule, Explanation, Found, Inquiry, MOST_EXPLAINED, Order, Response, TriedRule, WorkerState,
    },
    state::{ClusterProtocol, Frontend, ListenerProtocol, State},
};
use kakehi_engine::config::{FrontendTrial, try_frontends};

use crate::{
    fleet::worker::Worker,
    supervisor::{Supervisor, question::AnswerTo},
};

/// Requests that are explained at a time.
const MOST: usize = 8;
/// Of which so many may be those of guests.
const MOST_GUESTS: usize = 4;
/// A worker that has not answered for so long is no longer waited for.
const PATIENCE: Duration = Duration::from_secs(4);
/// Rules of other hosts that are shown where none takes the request.
const MOST_OTHER_HOSTS: usize = 8;

/// Requests that workers are asked about.
#[derive(Default)]
pub(super) struct Explaining {
    asked: Vec<Asked>,
    /// Each thread that compares rules has one of these.
    comparing: Arc<()>,
}

struct Asked {
    order: u64,
    worker: u32,
    since: Instant,
    listener: SocketAddr,
    inquiry: Inquiry,
    answer: AnswerTo,
}

impl Supervisor {
    /// Asks a worker what would become of a request; the answer follows.
    pub(super) fn explain(
        &mut self,
        listener: Option<SocketAddr>,
        (tls, port): (bool, u16),
        inquiry: Inquiry,
        (is_guest, answer): (bool, AnswerTo),
    ) {
        let now = Instant::now();
        let refuse = |answer: AnswerTo, reason: String| answer.send(Response::Refused { reason });
        let (late, asked) = std::mem::take(&mut self.explaining.asked)
            .into_iter()
            .partition::<Vec<_>, _>(|asked| now.duration_since(asked.since) > PATIENCE);
        self.explaining.asked = asked;
        late.into_iter().for_each(|asked| refuse(asked.answer, "the worker did not answer".to_owned()));
        let most = if is_guest { MOST_GUESTS } else { MOST };
        // One is kept here.
        let comparing = Arc::strong_count(&self.explaining.comparing) - 1;
        if self.explaining.asked.len() + comparing >= most {
            return refuse(answer, "too many requests are being explained; try again".to_owned());
        }
        let listener = match choose(&self.state, listener, tls, port) {
            Ok(listener) => listener,
            Err(reason) => return refuse(answer, reason),
        };
        let order = self.next_order();
        let ask = |worker: &&Worker| {
            let question = Order::Explain { listener, inquiry: inquiry.clone() };
            worker.takes_orders()
                && worker.state() == WorkerState::Running
                && worker.order(order, question).is_ok()
        };
        // Another one each time: who is not answered may ask again.
        let first = order as usize % self.workers.len().max(1);
        let (before, from) = self.workers.split_at(first);
        match from.iter().chain(before).find(ask).map(Worker::id) {
            Some(worker) => {
                self.explaining.asked.push(Asked { order, worker, since: now, listener, inquiry, answer });
            }
            None => refuse(answer, "no worker can say it now; try again".to_owned()),
        }
    }

    /// A worker has said what becomes of a request. Which rules were tried before is found out beside.
    pub(super) fn note_explained(&mut self, worker: u32, order: u64, found: Found) {
        let Some(Asked { listener, inquiry, answer, .. }) = self.explaining.take(worker, order) else {
            return;
        };
        let (state, comparing) = (Arc::clone(&self.state), Arc::clone(&self.explaining.comparing));
        tokio::task::spawn_blocking(move || {
            let response = explanation(&state, listener, &inquiry, found);
            drop((state, comparing));
            answer.send(response);
        });
    }
}

impl Explaining {
    fn take(&mut self, worker: u32, order: u64) -> Option<Asked> {
        let at = self.asked.iter().position(|it| (it.worker, it.order) == (worker, order))?;
        Some(self.asked.swap_remove(at))
    }

    /// A worker does not say it. False if it was not asked.
    pub(super) fn note_refused(&mut self, worker: u32, order: u64, reason: &str) -> bool {
        let Some(asked) = self.take(worker, order) else { return false };
        asked.answer.send(Response::Refused { reason: reason.to_owned() });
        true
    }

    /// A worker has ended.
    pub(super) fn forget(&mut self, worker: u32) {
        let orders: Vec<u64> =
            self.asked.iter().filter(|it| it.worker == worker).map(|it| it.order).collect();
        for order in orders {
            self.note_refused(worker, order, "the worker has ended; try again");
        }
    }
}

/// The listener of a request.
///
/// # Errors
/// Why there is none, or which to choose from.
fn choose(state: &State, named: Option<SocketAddr>, tls: bool, port: u16) -> Result<SocketAddr, String> {
    let scheme = if tls { "https" } else { "http" };
    if let Some(address) = named {
        let listener = state.listeners.get(&address);
        let protocol = listener.ok_or_else(|| format!("there is no listener at {address}"))?.protocol;
        if !state.accepts(&address) {
            return Err(format!("the listener at {address} accepts nothing (`active`)"));
        }
        return match (protocol, tls) {
            (ListenerProtocol::Http, false) | (ListenerProtocol::Https, true) => Ok(address),
            _ => Err(format!(
                "the listener at {address} is of `{}`, and the URL of `{scheme}`",
                protocol.word()
            )),
        };
    }
    let wanted = if tls { ListenerProtocol::Https } else { ListenerProtocol::Http };
    let of_port = |address: &SocketAddr| address.port() == port;
    let fits = state.listeners.values().filter(|it| {
        it.active
            && it.protocol == wanted
            && (of_port(&it.address) || it.public_address.as_ref().is_some_and(of_port))
    });
    let found: Vec<SocketAddr> = fits.map(|it| it.address).collect();
    match found[..] {
        [address] => Ok(address),
        [] => Err(format!("no listener of `{scheme}` has the port {port}; name one with `--listener`")),
        _ => {
            let names: Vec<String> = found.iter().map(SocketAddr::to_string).collect();
            Err(format!(
                "the port {port} is that of several listeners: name one of {} with `--listener`",
                names.join(", ")
            ))
        }
    }
}

fn explanation(state: &State, listener: SocketAddr, inquiry: &Inquiry, mut found: Found) -> Response {
    // A worker may say anything.
    found.cluster = found.cluster.filter(|name| state.clusters.contains_key(name));
    let Some(configured) = state.listeners.get(&listener) else {
        return Response::Refused { reason: format!("there is no listener at {listener}") };
    };
    let rules: Vec<(&str, &Frontend)> = state
        .clusters
        .iter()
        .filter(|(_, cluster)| cluster.protocol == ClusterProtocol::Http)
        .flat_map(|(name, cluster)| cluster.frontends.iter().map(move |frontend| (name.as_str(), frontend)))
        .filter(|(_, frontend)| frontend.address == listener)
        .collect();
    let trials = match found.answer.passed_on {
        true => Ok(Vec::new()),
        false => try_frontends(configured, rules.iter().map(|(_, frontend)| *frontend), inquiry),
    };
    let trials = match trials {
        Ok(trials) => trials,
        Err(error) => return Response::Refused { reason: error.to_string() },
    };
    let named = |trial: &FrontendTrial| {
        let (cluster, frontend) = rules[trial.place];
        ClusterRule { cluster: cluster.to_owned(), rule: FrontendRule::from(frontend) }
    };
    let takes = |trial: &FrontendTrial| {
        trial.failed.is_none() && found.rule_of.as_deref() == Some(rules[trial.place].0)
    };
    let winner = trials.iter().position(takes);
    let rule = winner.map(|at| named(&trials[at]));
    let (shown, more_tried) = shown(&trials, winner);
    let tried = shown
        .into_iter()
        .filter_map(|trial| Some(TriedRule { rule: named(trial), failed: trial.failed.clone()? }))
        .collect();
    Response::Explained(Box::new(Explanation { listener, tried, more_tried, rule, found }))
}

/// The rules that did not take the request and are shown, and how many are not.
fn shown(trials: &[FrontendTrial], winner: Option<usize>) -> (Vec<&FrontendTrial>, usize) {
    let of_host = |trial: &&FrontendTrial| trial.failed.as_deref().is_some_and(|it| it != "hostname");
    let before = &trials[..winner.unwrap_or(trials.len())];
    let mut shown: Vec<&FrontendTrial> = before.iter().filter(of_host).collect();
    if winner.is_none() {
        // The nearest first: those that failed last.
        shown.sort_by_key(|trial| match trial.failed.as_deref() {
            Some("path") => 2,
            Some("method") => 1,
            _ => 0,
        });
        let others = before.iter().filter(|trial| trial.failed.as_deref() == Some("hostname"));
        shown.extend(others.take(MOST_OTHER_HOSTS));
    }
    let more = shown.len().saturating_sub(MOST_EXPLAINED);
    shown.truncate(MOST_EXPLAINED);
    (shown, more)
}
