//! The supervisor: opens the sockets, launches the workers, replaces those that die, stops them all.
//!
//! One thread, one loop ([`Supervisor::run`](crate::control::run)), which alone owns the workers and what is known about them.
//! Everything that waits elsewhere is a task that sends it events: one per worker process ([`attend`](crate::fleet::attend)), one
//! per client of the command socket ([`command`](crate::control::command)). The supervisor itself waits in one place ([`turn`]),
//! and so does every operation that it carries out: signals, deaths, what is due and questions are attended to in each turn.
//! Nothing here touches a connection.
//!
//! Here stands what holds whatever operation runs. The operations are methods of [`Supervisor`] in the folders above:
//! [`begin`](crate::begin), [`control`](crate::control), [`placement`](crate::placement), [`upgrade`](crate::upgrade).
//!
//! | file | what it is for |
//! |---|---|
//! | [`turn`] | waiting, for whatever an operation needs, while everything else goes on |
//! | [`orders`] | orders to workers, and the wait for their answers |
//! | [`door`] | who may use the command socket |
//! | [`question`], [`answers`] | what is asked; answers that are given at any moment |
//! | [`events`] | what happens to workers |
//! | [`due`] | what is due at some time: replacements, kills, the watchdog, certificates |
//! | [`saving`] | the state on disk, after each change |
//! | [`watchers`] | clients that are told what happens |
//! | [`stop`] | a stop |
//! | [`trial`] | a worker that only shows that it comes up |

mod answers;
pub(crate) mod door;
mod due;
mod events;
pub(crate) mod orders;
pub(crate) mod question;
mod saving;
mod stop;
pub(crate) mod trial;
pub(crate) mod turn;
pub(crate) mod watchers;

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use kakehi_ctl::state::{Settings, State};
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

use crate::{
    certificates::{self, Keeper},
    estate::record::StateRecord,
    fleet::{
        attend::{Attendance, Event},
        launch::Provisions,
        load::Load,
        roster::Roster,
        socket_record::SocketRecord,
        worker::Worker,
    },
    host::{init_system, listeners::Sockets, pid_file::PidFile, signals::Signals},
    supervisor::{door::Door, question::Question, saving::Saving, watchers::Watchers},
};

/// A larger text of the state is made anew each time: to keep it costs more than that.
const LARGEST_KEPT: usize = 4 << 20;
/// Events and requests that wait for the loop; who sends more waits.
pub(crate) const QUEUE: usize = 64;

/// How a supervisor that was asked to stop has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Every worker finished what it had.
    Clean,
    /// A worker cut what was still in flight, had to be killed, or died.
    Cut,
    /// The state could not be saved.
    Unsaved,
}

/// Everything that is running.
pub(crate) struct Supervisor {
    pub(crate) state: State,
    pub(crate) source: Source,
    /// `state` as the workers get it, once one has got it.
    state_text: Option<Rc<Vec<u8>>>,
    pub(crate) workers: Vec<Worker>,
    signals: Signals,
    pub(crate) asked: Receiver<Question>,
    events: Receiver<Event>,
    /// For the tasks beside processes to come.
    pub(crate) attendance: Attendance,
    started: Instant,
    /// Orders are numbered from 1.
    orders_given: u64,
    pub(crate) load: Load,
    pub(crate) saving: Saving,
    pub(crate) record: StateRecord,
    socket_record: SocketRecord,
    pub(crate) certificates: Keeper,
    /// How often the init system's watchdog is to be fed, and when next.
    watchdog: Option<(Duration, Instant)>,
    /// When the keys of session tickets are to be renewed.
    pub(crate) ticket_keys_due: Instant,
    /// Workers that were taken over and serve, or may serve, something else than the state: until they are replaced.
    pub(crate) unlike_state: BTreeSet<u32>,
    /// The start is complete.
    pub(crate) started_up: bool,
    /// An operation is under way; the start is one.
    pub(crate) operating: bool,
    /// Processes that are not workers and that operations wait for.
    pub(crate) helpers: Vec<u32>,
    /// Workers that were on trial.
    trials: u64,
    /// A SIGHUP came while something else was under way.
    pub(crate) reload_due: bool,
    /// Questions that wait until the operation that runs has ended.
    pub(crate) line: VecDeque<Question>,
    pub(crate) watchers: Watchers,
    /// That of the command socket, once there is one.
    pub(crate) door: Option<Door>,
    /// Once it was written.
    pub(crate) pid_file: Option<PidFile>,
    /// Files of certificates that were found not to be as they were.
    pub(crate) changed_files: Vec<certificates::Changed>,
    /// The state is about to be another: a process that started now would start from the one before.
    pub(crate) launches_held: bool,
    pub(crate) stopping: Option<Stopping>,
}

/// Where the configuration came from.
pub(crate) struct Source {
    /// `None`: no file to read again.
    pub(crate) file: Option<PathBuf>,
    /// As the file has them.
    pub(crate) settings: Settings,
    /// Where the program lies that an upgrade runs.
    pub(crate) program: Option<PathBuf>,
}

/// A stop that is under way.
pub(crate) struct Stopping {
    /// Who has not ended by then is killed.
    pub(crate) kill_at: Option<Instant>,
    pub(crate) end: End,
}

impl Supervisor {
    /// One without workers.
    pub(crate) fn new(
        state: State,
        source: Source,
        certificates: Keeper,
        signals: Signals,
        asked: Receiver<Question>,
        roster: Roster,
    ) -> Self {
        let (event_sender, events) = channel(QUEUE);
        let attendance = Attendance::new(event_sender, state.settings.worker_liveness_ms, roster);
        let record = StateRecord::new(&state.settings.command_socket);
        let socket_record = SocketRecord::new(&state.settings.command_socket);
        Supervisor {
            state,
            source,
            state_text: None,
            workers: Vec::new(),
            signals,
            asked,
            events,
            attendance,
            started: Instant::now(),
            orders_given: 0,
            load: Load::new(),
            saving: Saving::default(),
            record,
            socket_record,
            certificates,
            watchdog: init_system::watchdog_period().map(|period| (period, Instant::now())),
            ticket_keys_due: Instant::now(),
            unlike_state: BTreeSet::new(),
            started_up: false,
            operating: true,
            helpers: Vec::new(),
            trials: 0,
            reload_due: false,
            line: VecDeque::new(),
            watchers: Watchers::default(),
            door: None,
            pid_file: None,
            changed_files: Vec::new(),
            launches_held: false,
            stopping: None,
        }
    }

    /// The state is another than before.
    pub(crate) fn note_changed(&mut self) {
        self.state_text = None;
        self.record.tidy(&self.state);
        self.save_automatically();
    }

    /// Writes down which listening sockets there are, before workers get those that `come`.
    pub(crate) fn note_sockets(&mut self, come: &[Sockets]) {
        let sockets = self.workers.iter().map(Worker::sockets).chain(come).flatten();
        self.socket_record.write(sockets.map(|(which, socket)| (*which, socket)));
    }

    /// What was written down is of no use any more: there are no workers.
    pub(crate) fn remove_records(&mut self) {
        self.record.remove();
        self.socket_record.remove();
    }

    /// Has the state take as little memory as it can.
    pub(crate) fn compact(&mut self) {
        self.state = crate::sys::compacted(std::mem::take(&mut self.state), State::detached);
    }

    /// The state as a worker gets it.
    fn state_text(&mut self) -> io::Result<Rc<Vec<u8>>> {
        if let Some(text) = &self.state_text {
            return Ok(Rc::clone(text));
        }
        let text = Rc::new(serde_json::to_vec(&self.state)?);
        if text.len() <= LARGEST_KEPT {
            self.state_text = Some(Rc::clone(&text));
        }
        Ok(text)
    }

    /// What every process of a worker starts from.
    pub(crate) fn provisions(&mut self) -> io::Result<Provisions> {
        Ok(Provisions { state: self.state_text()?, vault: Rc::clone(self.certificates.vault()) })
    }
}
