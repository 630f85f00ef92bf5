//! Changes while everything runs, made by all workers or by none.
//!
//! First everything is tried: on a copy of the state, by compiling it, by opening the sockets of new listeners, and by
//! having each worker get ready. Only when all of that has gone well is each worker told to make the change, which
//! cannot fail any more. A worker that does not answer within `worker_timeout` vetoes nothing: it is replaced by one that starts
//! with the change in it. No worker is started between the two steps.

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use kakehi_ctl::{
    change::{Change, ChangeError},
    config::{self, ConfigErrors},
    edit::{Edit, EditError},
    event::Happening,
    layers::{ByHand, LayersError, Whose},
    order::{Changed, KeyPair, Order, WorkerOutcome},
    state::{Binding, Fingerprint, Revision, STATE_VERSION, State},
};
use kakehi_engine::config::CompileError;
use tokio::time::Instant;

use crate::{
    admin, certificates,
    control::{reload::Wish, settings::of_settings},
    fleet::{process::Written, worker::Worker},
    host::listeners::{self, Beside, Ours, Sockets},
    supervisor::{
        Supervisor,
        orders::Answer,
        turn::{Happened, Stopped},
    },
};

/// So few changes are made at once; more, on another thread.
const FEW: usize = 1_000;
/// Lines of the log between two turns.
const LINES: usize = 64;
/// Edits that can be made in one step.
const MOST_EDITS: usize = 1_000;
/// Clients whose handshake has begun with a listener that goes have this long to finish it, where another takes those that
/// come after them.
const HANDSHAKES_PATIENCE: Duration = Duration::from_millis(250);

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no file.
    #[error("kakehi was started without a configuration file, so there is none to read again")]
    NoFile,
    /// The file is wrong: several lines.
    #[error("{0}\nnothing was changed")]
    File(#[from] ConfigErrors),
    /// The change does not fit what is configured.
    #[error("{0}; nothing was changed")]
    Change(#[from] ChangeError),
    /// What is wanted is no change of what is configured.
    #[error("{0}; nothing was changed")]
    Edit(#[from] EditError),
    /// Somebody else has changed something.
    #[error(
        "the configuration is of generation {found}, not {wanted}: it has been changed; nothing was changed now"
    )]
    Generation {
        /// What was expected.
        wanted: u64,
        /// What it is.
        found: u64,
    },
    /// What is by hand does not go with the file.
    #[error("{0}; nothing was changed")]
    Layers(#[from] LayersError),
    /// What it leads to cannot be served.
    #[error("{0}; nothing was changed")]
    State(#[from] CompileError),
    /// A certificate, or another file that TLS needs, cannot be used.
    #[error("{0}; nothing was changed")]
    Certificate(#[from] certificates::Error),
    /// A new listener's address cannot be listened on.
    #[error("{0}; nothing was changed")]
    Listener(#[from] listeners::Error),
    /// No file could say it.
    #[error("{0}; nothing was changed")]
    Wrong(String),
    /// It is a state of another version.
    #[error("the state has version {found}, this program reads version {STATE_VERSION}; nothing was changed")]
    StateVersion {
        /// Its version.
        found: u32,
    },
    /// Nothing would be served any more.
    #[error(
        "it has no listener that accepts connections, and {0} do now: nothing would be served any more; say `--allow-empty` if \
         that is wanted; nothing was changed"
    )]
    Empty(usize),
    /// The new admin address cannot be had.
    #[error("{0}; nothing was changed")]
    Admin(#[from] admin::Error),
    /// The pid file cannot be written.
    #[error("`pid_file_path` cannot be written: {0}; nothing was changed")]
    PidFile(io::Error),
    /// A worker with the new settings does not come up.
    #[error("a worker that starts with these settings does not come up: {0}; nothing was changed")]
    Trial(String),
    /// A worker refused.
    #[error("{0}; nothing was changed")]
    Workers(String),
    /// A guest of the command socket asks for what only root and kakehi's own user may.
    #[error("only root and the user that kakehi runs as may change settings; nothing was changed")]
    Guest,
    /// A guest of the command socket asks for what would have kakehi send the content of a file to a backend.
    #[error(
        "only root and the user that kakehi runs as may name files for `health_check.headers`, and change whom they are sent to; nothing was changed"
    )]
    GuestFiles,
    /// A guest of the command socket asks for what may have kakehi read a file.
    #[error(
        "only root and the user that kakehi runs as may change own answers, which may stand in files; nothing was changed"
    )]
    GuestPages,
    /// It is too late for changes.
    #[error("kakehi is stopping; nothing was changed")]
    Stopping,
}

impl From<Stopped> for Refused {
    fn from(_: Stopped) -> Refused {
        Refused::Stopping
    }
}

/// How changes are made.
pub(super) struct Manner {
    /// Digest of the file that the state stems from then.
    pub(super) origin: String,
    /// Settings that are changed by hand then; `None`: those that were.
    pub(super) settings: Option<BTreeMap<String, String>>,
    /// They come from somebody who may have written anything.
    pub(super) check: bool,
    /// They may leave nothing that accepts connections.
    pub(super) allow_empty: bool,
    pub(super) whose: Whose,
    /// They are only described.
    pub(super) dry_run: bool,
}

/// A state with changes that were tried on a copy of what they concern.
fn applied(mut state: State, whose: &Whose, changes: &[Change], revision: Revision) -> State {
    let applied = state.apply_as(whose, changes);
    debug_assert!(applied.is_ok(), "{applied:?}");
    State { revision, ..state }
}

/// The changes that `edits` come to, one after the other, and of what to be aware.
fn edited(state: &State, edits: &[Edit], folder: &Path) -> Result<(Vec<Change>, Vec<String>), Refused> {
    let mut part = state.without_clusters();
    for name in edits.iter().filter_map(Edit::cluster) {
        if let Some((name, cluster)) = state.clusters.get_key_value(name) {
            part.clusters.insert(name.clone(), cluster.clone());
        }
    }
    let (mut changes, mut warnings) = (Vec::new(), Vec::new());
    for edit in edits {
        let mut edited = edit.change(&part, folder)?;
        state.in_its_place(&part, &mut edited.change);
        let before = part.clone();
        part.apply(&edited.change)?;
        // What is so already is no change.
        if part != before {
            changes.push(edited.change);
        }
        warnings.extend(edited.warnings);
    }
    Ok((changes, warnings))
}

fn with_warnings(mut changed: Changed, warnings: Vec<String>) -> Changed {
    changed.warnings.extend(warnings);
    changed
}

impl Supervisor {
    /// Makes listeners, clusters, frontends and backends what they are in a state that was saved.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn load_state(
        &mut self,
        mut saved: State,
        keys: BTreeMap<Fingerprint, KeyPair>,
        Wish { dry_run, allow_empty, .. }: Wish,
        by: &str,
    ) -> Result<Changed, Refused> {
        if saved.version != STATE_VERSION {
            return Err(Refused::StateVersion { found: saved.version });
        }
        let state = Arc::clone(&self.state);
        let restored = self.with_keeper(move |keeper| {
            let warnings = keeper.restore(&mut saved, &keys, &state)?;
            let file = state.file_layer();
            saved.take_places(&file);
            let by_hand = ByHand::between(&file, &saved);
            Ok::<_, certificates::Error>((state.difference(&saved), by_hand, warnings))
        });
        let outcome = match restored.await? {
            Ok((changes, by_hand, warnings)) => {
                let origin = self.state.revision.origin.clone();
                let whose = Whose::Layers(by_hand);
                let manner = Manner { origin, settings: None, check: true, allow_empty, whose, dry_run };
                let changed = self.change(changes, manner, by).await;
                changed.map(|changed| with_warnings(changed, warnings))
            }
            Err(error) => Err(error.into()),
        };
        self.certificates.settle(outcome.is_ok() && !dry_run);
        outcome
    }

    /// Makes what somebody wants of the state as it is now; with `if_generation`, only if it is of that one.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn edit(
        &mut self,
        edits: &[Edit],
        folder: &Path,
        if_generation: Option<u64>,
        (by, privileged): (&str, bool),
    ) -> Result<Changed, Refused> {
        let found = self.state.revision.generation;
        if let Some(wanted) = if_generation.filter(|wanted| *wanted != found) {
            return Err(Refused::Generation { wanted, found });
        }
        if let Some(keys) = of_settings(edits)? {
            if !privileged {
                // They say where root writes, and as whom workers run.
                return Err(Refused::Guest);
            }
            return self.patch_settings(keys, folder, by).await;
        }
        if edits.len() > MOST_EDITS {
            return Err(Refused::Wrong(format!("more than {MOST_EDITS} edits cannot be made at once")));
        }
        let (state, edits, folder) = (Arc::clone(&self.state), edits.to_vec(), folder.to_owned());
        let (changes, warnings) = self.serve_beside(move || edited(&state, &edits, &folder)).await??;
        if !privileged && self.send_files_elsewhere(&changes) {
            return Err(Refused::GuestFiles);
        }
        self.apply(changes, by).await.map(|changed| with_warnings(changed, warnings))
    }

    /// Makes changes that somebody asked for.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn apply(&mut self, mut changes: Vec<Change>, by: &str) -> Result<Changed, Refused> {
        if changes.iter().any(|change| matches!(change, Change::SetSettings { .. })) {
            return Err(Refused::Wrong(
                "settings are changed by their keys (`kakehictl settings`)".to_owned(),
            ));
        }
        let furnished = self.with_keeper(move |keeper| {
            let warnings = keeper.furnish_changes(&mut changes)?;
            Ok::<_, certificates::Error>((changes, warnings))
        });
        let outcome = match furnished.await? {
            Ok((changes, warnings)) => {
                let origin = self.state.revision.origin.clone();
                let manner = Manner {
                    origin,
                    settings: None,
                    check: true,
                    allow_empty: true,
                    whose: Whose::Hand,
                    dry_run: false,
                };
                self.change(changes, manner, by).await.map(|changed| with_warnings(changed, warnings))
            }
            Err(error) => Err(error.into()),
        };
        self.certificates.settle(outcome.is_ok());
        outcome
    }

    /// Makes changes that follow from files other than that of the configuration.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn change_by_file(
        &mut self,
        changes: Vec<Change>,
        by: &str,
    ) -> Result<Changed, Refused> {
        let origin = self.state.revision.origin.clone();
        let manner = Manner {
            origin,
            settings: None,
            check: false,
            allow_empty: true,
            whose: Whose::Files,
            dry_run: false,
        };
        self.change(changes, manner, by).await
    }

    /// Makes `changes`, after which the state stems from the file with the digest `origin`.
    pub(super) async fn change(
        &mut self,
        changes: Vec<Change>,
        Manner { origin, settings, check, allow_empty, whose, dry_run }: Manner,
        by: &str,
    ) -> Result<Changed, Refused> {
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        // Only what the changes name is copied and looked at: the whole may be large. They may be many, too.
        let (state, changes) = (Arc::clone(&self.state), Arc::new(changes));
        let named = Arc::clone(&changes);
        let tried = move || {
            let mut part = state.part(&named);
            let mut words = Vec::new();
            for change in &*named {
                words.extend(part.describe(change));
                part.apply(change)?;
            }
            state.check_part(&part, &named)?;
            Ok::<_, Refused>((part, words))
        };
        let (mut part, words) = self.serve_beside(tried).await??;
        let accepting = self.state.active_addresses().count();
        if !allow_empty && accepting > 0 && part.active_addresses().next().is_none() {
            return Err(Refused::Empty(accepting));
        }
        // A certificate is not said in a file but named there, and was looked at when it was read.
        let of_a_certificate =
            |it: &Change| matches!(it, Change::SetCertificate { .. } | Change::RemoveCertificate { .. });
        let of_certificates = changes.iter().all(of_a_certificate);
        let check = check && !of_certificates;
        let compile = changes.iter().any(Change::concerns_routes);
        if check || compile {
            let checked = move || {
                if check {
                    config::check(&part).map_err(Refused::Wrong)?;
                }
                if compile {
                    kakehi_engine::worker::check(&part)?;
                }
                Ok::<_, Refused>(part)
            };
            part = self.serve_beside(checked).await??;
        }
        // Otherwise the workers find what contradicts other clusters.
        if compile && !self.workers.iter().any(Worker::takes_orders) {
            self.check_whole(&changes).await?;
        }
        let mut changed = Changed {
            applied: !dry_run,
            changes: words,
            at_next_start: Vec::new(),
            with_new_workers: Vec::new(),
            warnings: Vec::new(),
            by_hand: Vec::new(),
            workers: Vec::new(),
        };
        // Workers are told of another origin even where nothing differs: for a supervisor to come.
        let settings_stay = settings.as_ref().is_none_or(|it| *it == self.state.revision.settings);
        let same_layers = match &whose {
            Whose::Layers(by_hand) => *by_hand == self.state.by_hand,
            Whose::Hand | Whose::Files => true,
        };
        if dry_run
            || (changes.is_empty() && settings_stay && same_layers && origin == self.state.revision.origin)
        {
            return Ok(changed);
        }
        let by_hand = settings.unwrap_or_else(|| self.state.revision.settings.clone());
        let revision = Revision {
            generation: self.state.revision.generation + 1,
            origin,
            settings: by_hand,
            ..self.state.revision.clone()
        };
        // Before the one that is there goes. Where the change is refused, it goes itself.
        let (moves, pid_file) =
            (self.pid_file_moves(&part.settings), self.write_pid_file_of(&part.settings).await?);
        let admin = self.open_admin(&part.settings).await??;
        let made = self.change_everywhere(changes, &part, revision, whose).await;
        changed.workers = made.inspect_err(|refused| {
            self.names.forget_unused();
            tracing::error!("a change by {by} was refused: {refused}");
        })?;
        if let Err(error) = self.take_admin(admin) {
            tracing::error!("{error}");
        }
        // Two paths may lead to one file, which stays.
        if moves && (pid_file.is_some() || part.settings.pid_file_path.is_none()) {
            let before = std::mem::replace(&mut self.pid_file, pid_file);
            // A disk may have it wait.
            tokio::task::spawn_blocking(move || drop(before));
        }
        // What follows from it, such as a save that fails, is told behind it.
        if !changed.changes.is_empty() {
            self.tell(Happening::changed(by, &changed.changes, of_certificates));
        }
        for lines in changed.changes.chunks(LINES) {
            for line in lines {
                tracing::info!("changed by {by}: {line}");
            }
            if lines.len() == LINES {
                self.serve_waiting().await;
            }
        }
        Ok(changed)
    }

    /// Has all workers make the changes, or none, which make `part` of what they name; then the state has them.
    async fn change_everywhere(
        &mut self,
        changes: Arc<Vec<Change>>,
        part: &State,
        revision: Revision,
        whose: Whose,
    ) -> Result<Vec<WorkerOutcome>, Refused> {
        let new: Vec<Binding> = part.bindings().filter(|it| !self.state.accepts_on(it)).collect();
        let count = self.count();
        let beside = match new.is_empty() {
            true => Beside::Nobody,
            false => Beside::Ours(self.our_sockets()),
        };
        let sockets = self.serve_until(listeners::open(&new, count, Vec::new(), beside)).await??;
        if !new.is_empty() {
            self.note_sockets(&sockets).await?;
        }
        self.tell_coming_names(part).await;
        // Until the state is the new one.
        self.launches_held = true;
        let told = self.tell_change((&changes, &whose), &revision, &sockets, part).await;
        let committed = told.inspect_err(|_| self.launches_held = false)?;
        for (worker, sockets) in self.workers.iter_mut().zip(sockets) {
            worker.change_sockets(sockets, |binding| part.accepts_on(binding));
        }
        let settings = self.state.settings.clone();
        if changes.len() > FEW {
            let (state, many) = (Arc::clone(&self.state), Arc::clone(&changes));
            // The workers have them: also at a stop.
            let apply = move || applied(State::clone(&state), &whose, &many, revision);
            self.state = Arc::new(self.serve_to_end(apply).await);
        } else {
            let state = self.own_state().await;
            *state = applied(std::mem::take(state), &whose, &changes, revision);
        }
        self.launches_held = false;
        self.follow_health(&changes);
        self.note_changed().await;
        if settings != self.state.settings {
            self.take_settings(&settings).await;
        }
        if changes
            .iter()
            .any(|change| !matches!(change, Change::SetBackend { .. } | Change::RemoveBackend { .. }))
        {
            self.certificates.tidy_later();
        }
        if !new.is_empty() {
            self.steer();
        }
        Ok(committed)
    }

    /// Has all workers make the changes, or none. Those that do not answer are not waited for again: what takes their place
    /// starts with the changes, if the others make them.
    async fn tell_change(
        &mut self,
        (changes, whose): (&Arc<Vec<Change>>, &Whose),
        revision: &Revision,
        sockets: &[Sockets],
        part: &State,
    ) -> Result<Vec<WorkerOutcome>, Refused> {
        let number = self.next_order();
        let (prepared, made) = (Arc::clone(changes), revision.clone());
        let write = move || {
            Written::new(number, Order::Prepare { staged: 0, changes: prepared.to_vec(), revision: made })
        };
        let written = self.serve_beside(write).await?;
        let written = written.map_err(|error| Refused::Workers(error.to_string()))?;
        let prepare = |worker: &Worker, sockets: &Sockets| {
            if !sockets.is_empty() {
                worker.pass(sockets).map_err(|error| error.to_string())?;
            }
            Ok(written.clone())
        };
        let prepared = self.give_all(number, prepare, sockets).await;
        let none_is_ready = !prepared.values().any(|answer| matches!(answer, Answer::Done));
        let mut silent = Vec::new();
        let mut refusals = Vec::new();
        for (id, answer) in prepared {
            match answer {
                Answer::Done | Answer::Closed(_) => {}
                Answer::Refused(reason) => refusals.push(format!("worker {id}: {reason}")),
                Answer::Silence => silent.push(id),
            }
        }
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if !refusals.is_empty() {
            self.order_all(|_, _| Ok(Order::Abort), sockets).await;
            return Err(Refused::Workers(refusals.join("; ")));
        }
        if none_is_ready {
            // Nobody has looked whether it contradicts other clusters.
            self.check_whole(changes).await?;
        }
        // From here on it holds, whoever is there to say so.
        self.append_to_record(Arc::clone(changes), revision.clone(), whose.clone()).await;
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        // Behind what waits for a disk: meanwhile nobody hears those who go.
        self.lead_clients_over(part).await;
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        let committed = self.order_all(|_, _| Ok(Order::Commit), sockets).await;
        let mut outcomes: Vec<_> = silent
            .into_iter()
            .map(|id| (id, "did not answer within `worker_timeout`; replaced".to_owned()))
            .collect();
        for (id, answer) in committed {
            let outcome = match answer {
                Answer::Done | Answer::Closed(_) => "changed".to_owned(),
                Answer::Silence => "did not answer within `worker_timeout`; replaced".to_owned(),
                Answer::Refused(reason) => {
                    let reason = format!("did not make a change that all others made ({reason})");
                    self.give_up(id, reason.clone());
                    format!("{reason}; replaced")
                }
            };
            outcomes.push((id, outcome));
        }
        outcomes.sort();
        Ok(outcomes.into_iter().map(|(id, outcome)| WorkerOutcome { id, outcome }).collect())
    }

    /// Looks whether the whole state contradicts itself with these changes.
    async fn check_whole(&mut self, changes: &Arc<Vec<Change>>) -> Result<(), Refused> {
        let (state, changes) = (Arc::clone(&self.state), Arc::clone(changes));
        let check = move || {
            let mut whole = State::clone(&state);
            drop(state);
            changes.iter().try_for_each(|change| whole.apply(change))?;
            Ok::<_, Refused>(kakehi_engine::worker::check(&whole)?)
        };
        self.serve_beside(check).await?
    }

    /// The listening sockets that are no obstacle to another one.
    fn our_sockets(&self) -> Ours {
        let sockets = self.workers.iter().flat_map(Worker::sockets).map(|(_, socket)| socket);
        let processes = self.workers.iter().flat_map(Worker::pids).chain([std::process::id()]);
        Ours::new(sockets, processes.collect())
    }

    /// Has clients of listeners that are about to go find those of `part` that overlap with them: no handshake is under
    /// way any more where they go.
    async fn lead_clients_over(&mut self, part: &State) {
        let goes =
            |binding: &Binding| !part.accepts_on(binding) && part.bindings().any(|it| it.overlaps(binding));
        let sockets = self.workers.iter().flat_map(Worker::sockets);
        let going: Vec<_> = sockets.filter(|(which, _)| goes(&which.binding())).collect();
        for (which, socket) in &going {
            if let Err(error) = listeners::turn_away(socket) {
                tracing::warn!("clients that connect to {} now may be reset: {error}", which.address);
            }
        }
        if going.is_empty() {
            return;
        }
        let done = Instant::now() + HANDSHAKES_PATIENCE;
        while !self.is_stopping() {
            match self.turn(Some(done)).await {
                Happened::Late => return,
                Happened::Event(event) => drop(self.on_event(event)),
                Happened::Other => {}
            }
        }
    }
}
