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
//! | [`names`] | what the DNS says of names of backends reaches workers |
//! | [`health`] | what probes find reaches workers, and whoever asks how backends are |
//! | [`admin`] | what the admin address asks, and how it follows the settings |
//! | [`events`] | what happens to workers |
//! | [`due`] | what is due at some time: replacements, kills, the watchdog, certificates |
//! | [`recording`] | the state and the listening sockets, written down beside the command socket |
//! | [`saving`] | the state on disk, after each change |
//! | [`watchers`] | clients that are told what happens |
//! | [`text`] | the state as workers get it |
//! | [`stop`] | a stop |
//! | [`trial`] | a worker that only shows that it comes up |

mod admin;
mod answers;
pub(crate) mod door;
mod due;
mod events;
mod explain;
mod health;
mod names;
pub(crate) mod orders;
pub(crate) mod question;
mod recording;
mod saving;
mod stop;
mod text;
pub(crate) mod trial;
pub(crate) mod turn;
pub(crate) mod watchers;

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use kakehi_ctl::state::{Settings, State};
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

use crate::{
    admin::Admin,
    certificates::{self, Keeper},
    fleet::{
        attend::{Attendance, Event},
        dismissed::Dismissed,
        ledger::SharedLedger,
        load::Load,
        roster::Roster,
        worker::Worker,
    },
    health::{Asking, Health},
    host::{init_system, pid_file::PidFile, signals::Signals},
    names::Names,
    supervisor::{
        answers::TellingState, door::Door, explain::Explaining, health::Purpose, question::Question,
        recording::Recording, saving::Saving, text::StateText, turn::Happened, watchers::Watchers,
    },
};

/// It is looked so often whether a thread still looks at the state.
const PAUSE: Duration = Duration::from_millis(2);
/// A change waits so long for threads that look at the state; then it goes on with a copy.
const OTHERS_PATIENCE: Duration = Duration::from_millis(100);
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
    /// Threads may look at it while this one serves; it is changed by [`Supervisor::own_state`].
    pub(crate) state: Arc<State>,
    pub(crate) source: Source,
    state_text: StateText,
    telling_state: TellingState,
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
    recording: Recording,
    pub(crate) certificates: Keeper,
    /// Where all workers count together.
    pub(crate) ledger: SharedLedger,
    health: Health,
    pub(crate) names: Names,
    /// What workers are asked about backends.
    asking: Asking<Purpose>,
    /// What workers are asked about requests.
    explaining: Explaining,
    /// How often the init system's watchdog is to be fed, and when next.
    watchdog: Option<(Duration, Instant)>,
    /// When the keys of session tickets are to be renewed.
    pub(crate) ticket_keys_due: Instant,
    /// Workers that were taken over and serve, or may serve, something else than the state: until they are replaced.
    pub(crate) unlike_state: BTreeSet<u32>,
    /// What was left of the supervisor before, and is no worker of this one.
    pub(crate) dismissed: Dismissed,
    /// It is known what is to be served: `state` is that.
    pub(crate) settled: bool,
    /// The start is complete.
    pub(crate) started_up: bool,
    /// Processes that are not workers and that operations wait for.
    pub(crate) helpers: Vec<u32>,
    /// Workers that were on trial.
    trials: u64,
    /// A SIGHUP came while something else was under way.
    pub(crate) reload_due: bool,
    /// Questions that wait until the operation that runs has ended.
    pub(crate) line: VecDeque<Question>,
    pub(crate) watchers: Watchers,
    /// Serves nothing before there are workers.
    pub(crate) admin: Admin,
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
    /// Not as many workers run as the file says, as that could not be done: the next reload tries it again.
    pub(crate) is_unscaled: bool,
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
    /// One without workers, of which is not known yet what it is to serve: [`Supervisor::settle`] says it.
    ///
    /// # Errors
    /// When the kernel refuses memory.
    pub(crate) fn new(
        settings: Settings,
        source: Source,
        signals: Signals,
        asked: Receiver<Question>,
        roster: Roster,
    ) -> io::Result<Self> {
        let (event_sender, events) = channel(QUEUE);
        let attendance = Attendance::new(event_sender, settings.worker_liveness_ms, roster);
        let recording = Recording::beside(&settings.command_socket);
        Ok(Supervisor {
            state: Arc::new(State { settings, ..State::default() }),
            source,
            state_text: StateText::default(),
            telling_state: TellingState::default(),
            workers: Vec::new(),
            signals,
            asked,
            events,
            attendance,
            started: Instant::now(),
            orders_given: 0,
            load: Load::new(),
            saving: Saving::default(),
            recording,
            certificates: Keeper::new(None)?,
            ledger: SharedLedger::default(),
            health: Health::default(),
            names: Names::default(),
            asking: Asking::default(),
            explaining: Explaining::default(),
            watchdog: init_system::watchdog_period().map(|period| (period, Instant::now())),
            ticket_keys_due: Instant::now(),
            unlike_state: BTreeSet::new(),
            dismissed: Dismissed::new(),
            settled: false,
            started_up: false,
            helpers: Vec::new(),
            trials: 0,
            reload_due: false,
            line: VecDeque::new(),
            watchers: Watchers::default(),
            admin: Admin::new(),
            door: None,
            pid_file: None,
            changed_files: Vec::new(),
            launches_held: false,
            stopping: None,
        })
    }

    /// From now on it is known what is to be served: `state`, whose certificates `certificates` has.
    pub(crate) fn settle(&mut self, state: State, certificates: Keeper) {
        self.attendance.set_liveness(state.settings.worker_liveness_ms);
        self.recording = Recording::beside(&state.settings.command_socket);
        self.state = Arc::new(state);
        self.certificates = certificates;
        self.names.begin(&self.state);
        let (names, settings) = (&self.names, &self.state.settings);
        let vault = self.certificates.vault();
        self.health.begin(&self.state, |cluster| names.expanded(cluster, settings), vault);
        self.state_text.forget();
        self.settled = true;
    }

    /// The state, to be changed: as soon as no thread looks at it any more, or a copy of it, where that takes long.
    pub(crate) async fn own_state(&mut self) -> &mut State {
        let late = Instant::now() + OTHERS_PATIENCE;
        while Arc::strong_count(&self.state) > 1 && Instant::now() < late && !self.is_stopping() {
            if let Happened::Event(event) = self.turn(Some(Instant::now() + PAUSE)).await {
                self.on_event(event);
            }
        }
        if Arc::strong_count(&self.state) > 1 {
            let state = Arc::clone(&self.state);
            let copy = move || Arc::new(State::clone(&state));
            self.state = self.serve_to_end(copy).await;
        }
        self.state_text.forget();
        // Nobody else has this one.
        Arc::make_mut(&mut self.state)
    }

    /// The state is another than before.
    pub(crate) async fn note_changed(&mut self) {
        self.state_text.forget();
        self.tidy_record().await;
        self.save_automatically();
    }

    /// Has the state take as little memory as it can.
    pub(crate) async fn compact(&mut self) {
        if cfg!(not(target_env = "gnu")) {
            return;
        }
        let state = Arc::clone(&self.state);
        // In memory of its own: that of the thread.
        let Ok(compact) = self.serve_beside(move || Arc::new(state.detached())).await else { return };
        let before = std::mem::replace(&mut self.state, compact);
        tokio::task::spawn_blocking(move || {
            drop(before);
            crate::sys::give_memory_back();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_looks_at_the_state_for_ever_holds_no_change_up() {
        let (_questions, asked) = channel(QUEUE);
        let source = Source { file: None, settings: Settings::default(), is_unscaled: false, program: None };
        let signals = Signals::new().unwrap();
        let mut supervisor =
            Supervisor::new(Settings::default(), source, signals, asked, Roster::default()).unwrap();
        let seen = Arc::clone(&supervisor.state);
        let change = async { supervisor.own_state().await.settings.worker_count = Some(7) };
        assert!(tokio::time::timeout(Duration::from_secs(5), change).await.is_ok());
        assert_eq!((seen.settings.worker_count, supervisor.state.settings.worker_count), (None, Some(7)));
    }
}
