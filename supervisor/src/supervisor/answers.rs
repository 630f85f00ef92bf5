//! Questions that change nothing, which are answered at any moment; and the stop.

use std::{
    path::Path,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use kakehi_ctl::{
    order::{Hello, Phase, Request, Response, Status, Topology, WATCH, WORKING, WorkerInfo},
    state::State,
};
use tokio::task::JoinHandle;

use crate::{
    certificates,
    fleet::{
        process::cpu_time_ms,
        worker::{self, Worker},
    },
    host::topology,
    supervisor::{
        Supervisor,
        question::{AnswerTo, Question},
    },
};

/// How long the load of workers is measured.
const MEASURED: Duration = Duration::from_millis(500);

/// The state is told, which may be large: its text is written on another thread, one at a time, for all who wait for it.
#[derive(Default)]
pub(super) struct TellingState {
    waiting: Vec<AnswerTo>,
    running: Option<JoinHandle<Told>>,
    /// The last, as long as anybody is being told it.
    told: Option<Told>,
}

/// Of which state, and the text. A state that changes is another value.
type Told = (Weak<State>, Weak<Vec<u8>>);

impl TellingState {
    /// Waits until a text is written: [`Supervisor::tell_state`] is to be called then. For ever when there is none. May be given up at
    /// any time without loss.
    pub(super) async fn is_to_go_on(&mut self) {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        // It cannot fail but by a panic, which ends the program.
        self.told = running.await.ok();
        self.running = None;
    }
}

impl Supervisor {
    /// Tells the state to those who wait for it, when nobody is being told another.
    pub(super) fn tell_state(&mut self) {
        let telling = &mut self.telling_state;
        if telling.running.is_some() || telling.waiting.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut telling.waiting);
        let which = Arc::downgrade(&self.state);
        let told = telling.told.as_ref().filter(|(of, _)| Weak::ptr_eq(of, &which));
        if let Some(text) = told.and_then(|(_, text)| text.upgrade()) {
            waiting.into_iter().for_each(|answer| answer.send_state(Arc::clone(&text)));
            return;
        }
        let state = Arc::clone(&self.state);
        telling.running = Some(tokio::task::spawn_blocking(move || {
            // Digests of passwords are for who may have keys.
            let text = match state.has_users() {
                false => serde_json::to_vec(&*state),
                true => serde_json::to_vec(&State::clone(&state).masked()),
            };
            drop(state);
            match text.map(Arc::new) {
                Ok(text) => {
                    let told = (which, Arc::downgrade(&text));
                    waiting.into_iter().for_each(|answer| answer.send_state(Arc::clone(&text)));
                    told
                }
                Err(error) => {
                    let refused = || Response::Refused { reason: error.to_string() };
                    waiting.into_iter().for_each(|answer| answer.send(refused()));
                    (which, Weak::new())
                }
            }
        }));
    }

    /// Answers what can be answered at any moment; gives back what must wait for its turn.
    pub(crate) fn answer_now(&mut self, question: Question) -> Option<Question> {
        if self.is_shut_out(&question) {
            let reason = "this user may not use the command socket any more".to_owned();
            question.answer.send(Response::Refused { reason });
            return None;
        }
        let about_state = matches!(
            question.request,
            Request::State
                | Request::Backends { .. }
                | Request::Explain { .. }
                | Request::Certificates { .. }
                | Request::Keys
                | Request::Users
        );
        if about_state && !self.settled && !self.is_stopping() {
            return Some(question);
        }
        let Question { request, peer, guest, privileged, asker, watcher, answer } = question;
        let response = match request {
            Request::Hello(_) => Response::Hello(Hello::new(&[WATCH, WORKING])),
            Request::Watch { .. } => match watcher.map(|watcher| self.watchers.add(watcher)) {
                Some(Ok(())) => Response::Watching,
                Some(Err(reason)) => Response::Refused { reason },
                None => return None,
            },
            Request::Status => Response::Status(self.status()),
            Request::Workers => Response::Workers(self.workers.iter().map(Worker::info).collect()),
            Request::State => {
                self.telling_state.waiting.push(answer);
                self.tell_state();
                return None;
            }
            Request::Backends { cluster } => {
                self.tell_backends(cluster.as_deref(), answer);
                return None;
            }
            Request::Explain { listener, tls, port, inquiry } => {
                self.explain(listener, (tls, port), inquiry, (guest.is_some(), answer));
                return None;
            }
            Request::Topology => {
                self.tell_topology(answer);
                return None;
            }
            Request::Certificates { which } => {
                let answer = |response| answer.send(response);
                self.certificates.tell(&self.state, which.as_deref(), answer);
                return None;
            }
            Request::Keys => self.tell_keys(privileged, &peer),
            Request::Users => self.tell_users(privileged, &peer),
            Request::Stop { now } => {
                tracing::info!("stop ordered by {peer}");
                if !self.is_stopping() {
                    self.on_stop("kakehictl");
                }
                if now {
                    self.on_stop("kakehictl");
                }
                Response::Stopping
            }
            request => return Some(Question { request, peer, guest, privileged, asker, watcher, answer }),
        };
        answer.send(response);
        None
    }

    fn status(&self) -> Status {
        let workers: Vec<_> = self.workers.iter().map(Worker::info).collect();
        let clusters = self.state.clusters.values();
        let figures = certificates::figures(&self.state);
        let phase = match (self.is_stopping(), self.started_up) {
            (true, _) => Phase::Stopping,
            (false, true) => Phase::Running,
            (false, false) => Phase::Starting,
        };
        Status {
            phase,
            generation: self.state.revision.generation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            listeners: self.state.active_addresses().collect(),
            clusters: clusters.len(),
            frontends: clusters.clone().map(|cluster| cluster.frontends.len()).sum(),
            backends: clusters.map(|cluster| cluster.backends.len()).sum(),
            by_hand: self.state.by_hand.len() + self.state.revision.settings.len(),
            connections: worker::add_up(workers.iter().map(|worker| worker.connections)),
            requests: worker::add_up(workers.iter().map(|worker| worker.requests)),
            restarts: worker::add_up(self.workers.iter().map(Worker::restarts)),
            save_failed: self.saving.failure().map(str::to_owned),
            record_failed: self.recording.failure(),
            admin: self.admin.address().map(ToString::to_string),
            counters: worker::sum(&self.workers)
                .into_iter()
                .chain(figures)
                .chain(self.admin.figures())
                .collect(),
            workers,
        }
    }

    /// Tells what cores the host has, where the workers are, and how busy each is: which shows only over a while, so that
    /// the answer comes later, and nobody waits for it but who asked.
    fn tell_topology(&self, answer: AnswerTo) {
        let mut workers: Vec<WorkerInfo> = self.workers.iter().map(Worker::info).collect();
        let since = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(MEASURED).await;
            let time_ms = since.elapsed().as_millis().max(1) as u64;
            for worker in &mut workers {
                let now = cpu_time_ms(worker.pid).map(|(user, system)| user + system);
                let before = worker.cpu_user_ms + worker.cpu_system_ms;
                worker.load_percent = now.map(|now| now.saturating_sub(before) * 100 / time_ms);
            }
            let (cores, interfaces) = topology::read(Path::new("/"));
            answer.send(Response::Topology(Topology { cores, interfaces, workers }));
        });
    }

    /// The users of the state with the digests of their passwords, for who may have keys.
    fn tell_users(&self, privileged: bool, by: &str) -> Response {
        if !privileged {
            let reason =
                "only root, and the user that kakehi runs as, may have digests of passwords".to_owned();
            return Response::Refused { reason };
        }
        tracing::info!("digests of passwords were given to {by}");
        Response::Users(self.state.users())
    }

    /// The keys that are in no file, for who may have them. That somebody may connect does not mean that: it takes the
    /// rights of whoever could read them in memory anyway.
    fn tell_keys(&self, privileged: bool, by: &str) -> Response {
        if !privileged {
            let reason = "only root, and the user that kakehi runs as, may have keys".to_owned();
            return Response::Refused { reason };
        }
        match self.certificates.keys(&self.state) {
            Ok(keys) => {
                tracing::info!("{} keys were given to {by}", keys.len());
                Response::Keys(keys)
            }
            Err(error) => Response::Refused { reason: error.to_string() },
        }
    }
}
