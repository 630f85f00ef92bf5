//! What is known of a worker's processes, and what they have done, added up over all of them.

use std::collections::BTreeMap;

use kakehi_ctl::{
    keys::Effect,
    order::{WorkerInfo, WorkerState},
    state::State,
};
use kakehi_engine::{http::Reason, observe::Counter};

use crate::{
    fleet::{
        process::{Process, cpu_time_ms},
        record::ProcessRecord,
        worker::Worker,
    },
    worker_main,
};

impl Worker {
    /// Whether its process was started by this supervisor.
    pub(crate) fn is_fresh(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.taken_over.is_none())
    }

    /// Whether its process was started by another supervisor, and runs another program than this one, or with other
    /// settings or another state than `state`.
    pub(crate) fn is_behind(&self, state: &State) -> bool {
        let Some(about) = self.process.as_ref().and_then(|process| process.taken_over.as_ref()) else {
            return false;
        };
        about.program != worker_main::this_program()
            || about.revision.generation != state.revision.generation
            || !about.settings.differing(&state.settings, Effect::Workers).is_empty()
    }

    /// Whether a process of it finishes what it has, beside the one that serves.
    pub(crate) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether clients are served by it now: by a process that answers.
    pub(crate) fn serves(&self) -> bool {
        let state = matches!(self.state, WorkerState::Running | WorkerState::Stopping);
        state && self.process.as_ref().is_some_and(|process| !process.is_mute())
    }

    /// Why it does not take new clients as it should; `None`: it does, or is to go.
    pub(crate) fn is_missing(&self) -> Option<&'static str> {
        match self.state {
            _ if self.retired => None,
            WorkerState::Running if self.serves() => None,
            WorkerState::Running => Some("does not answer"),
            WorkerState::Starting => Some("is not ready yet"),
            WorkerState::Stopping => Some("is stopping"),
            WorkerState::Dead => Some("is dead"),
        }
    }

    /// Its processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes().map(|process| process.pid).collect()
    }

    /// What is known of them, each with the name of its adoption socket.
    pub(crate) fn records(&self) -> Vec<(String, ProcessRecord)> {
        self.processes().filter_map(|process| process.record().cloned()).collect()
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        let coming = self.coming.iter().map(|(process, _)| process);
        let leaving = self.leaving.iter().map(|it| &it.process);
        self.process.iter().chain(coming).chain(leaving)
    }

    /// Open client connections.
    pub(crate) fn connections(&self) -> u64 {
        self.total(Counter::Connections)
    }

    /// CPU time of its process until now (ms).
    pub(crate) fn cpu_ms(&self) -> u64 {
        let (user, system) =
            self.process.as_ref().and_then(|process| cpu_time_ms(process.pid)).unwrap_or_default();
        user + system
    }

    /// How often a process of it died and was replaced.
    pub(crate) fn restarts(&self) -> u64 {
        self.ended.counters.get(Counter::Restarts)
    }

    /// Counts on where `gone` has stopped for good.
    pub(crate) fn count_on(&self, gone: &Worker) {
        self.ended.counters.absorb(&gone.ended.counters);
        self.ended.counters.absorb(&gone.block.counters);
    }

    /// A counter over all its processes, a gauge over those that live: what a process that is gone had open is open no
    /// more, though nobody counted it down.
    fn total(&self, counter: Counter) -> u64 {
        let present =
            if self.process.is_some() || !counter.is_gauge() { self.block.counters.get(counter) } else { 0 };
        let leaving = self.leaving.iter().map(|it| it.counters.get(counter));
        add_up(leaving.chain([present, self.ended.counters.get(counter)]))
    }

    fn answers(&self, reason: Reason) -> u64 {
        let leaving = self.leaving.iter().map(|it| it.counters.answers(reason));
        add_up(leaving.chain([&self.block, &self.ended].map(|block| block.counters.answers(reason))))
    }

    /// What there is to know about it.
    pub(crate) fn info(&self) -> WorkerInfo {
        let process = self.process.as_ref();
        let pid = process.map_or(0, |process| process.pid);
        let (cpu_user_ms, cpu_system_ms) = cpu_time_ms(pid).unwrap_or_default();
        WorkerInfo {
            id: self.id,
            pid,
            core: self.core(),
            state: self.state,
            connections: self.total(Counter::Connections),
            requests: self.total(Counter::Requests),
            cpu_user_ms,
            cpu_system_ms,
            load_percent: None,
            io_uring_level: process.map_or(0, |process| process.io_uring_level),
            io_uring_features: process.map_or_else(Vec::new, |process| process.io_uring_features.clone()),
            ring_enters: self.total(Counter::RingEnters),
            ring_sqes: self.total(Counter::RingSqes),
            ring_cqes: self.total(Counter::RingCqes),
            ring_no_buffers: self.total(Counter::RingNoBuffers),
            ring_overflows: self.total(Counter::RingOverflows),
            ring_bulk: self.total(Counter::RingBulk),
        }
    }
}

/// The sum of what workers count: they may write any number.
pub(crate) fn add_up(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// Every counter by its name, summed over `workers`, and the answers by reason.
pub(crate) fn sum(workers: &[Worker]) -> BTreeMap<String, u64> {
    let counters = Counter::ALL.iter().map(|counter| {
        (counter.name().to_owned(), add_up(workers.iter().map(|worker| worker.total(*counter))))
    });
    let answers = Reason::ALL.iter().map(|reason| {
        let answers = add_up(workers.iter().map(|worker| worker.answers(*reason)));
        (format!("answers.{}", reason.code()), answers)
    });
    counters.chain(answers).collect()
}
