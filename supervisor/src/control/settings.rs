//! Settings of the process: changed by the file and by hand, and taken over by what runs, as far as that can be.
//!
//! A change of settings is a change like others ([`Change::SetSettings`]): all workers make it, it makes the next generation, it
//! is in the record. What of it a running process cannot take over is in the state all the same: the next process of a
//! worker has it.

use std::{collections::BTreeSet, path::Path};

use crate::{
    control::change::{Manner, Refused},
    fleet::worker::Worker,
    host::{listeners::Sockets, pid_file::PidFile, resources},
    logging,
    placement::scale,
    supervisor::{Supervisor, trial},
    worker_main,
};
use kakehi_ctl::{
    change::Change,
    edit::{self, Edit},
    keys::Effect,
    layers::Whose,
    order::{Changed, Order},
    state::Settings,
};

impl Supervisor {
    /// Changes settings by hand: they go before those of the file until they are given back.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn patch_settings(
        &mut self,
        keys: &[String],
        folder: &Path,
        by: &str,
    ) -> Result<Changed, Refused> {
        let by_hand = edit::patch_settings(&self.state.revision.settings, keys, folder)?;
        let wanted = edit::settings_with(&self.source.settings, &by_hand)?;
        let change = self.change_of_settings(&wanted).await?;
        let origin = self.state.revision.origin.clone();
        let manner = Manner {
            origin,
            settings: Some(by_hand),
            check: false,
            allow_empty: true,
            whose: Whose::Files,
            dry_run: false,
        };
        let mut changed = self.change(change.into_iter().collect(), manner, by).await?;
        changed.with_new_workers = self.waiting_for_new_workers(&self.state.settings);
        Ok(changed)
    }

    /// What the settings become when a file says these: with what was changed by hand.
    pub(crate) fn wanted_settings(&self, in_file: &Settings) -> Result<Settings, Refused> {
        Ok(edit::settings_with(in_file, &self.state.revision.settings)?)
    }

    /// The change that leads to the settings `wanted`, as far as it needs no new start; `None` if there is no difference.
    ///
    /// # Errors
    /// When new processes of workers could not start with them.
    pub(crate) async fn change_of_settings(&mut self, wanted: &Settings) -> Result<Option<Change>, Refused> {
        let settings = Box::new(self.state.settings.becoming(wanted));
        if *settings == self.state.settings {
            return Ok(None);
        }
        let to_check = Settings::clone(&settings);
        // Users may be looked up over the network.
        self.serve_beside(move || check(&to_check)).await?.map_err(Refused::Wrong)?;
        // What a new process needs shows when one starts: with them accepted, every one that replaces another could fail.
        if !self.state.settings.differing(&settings, Effect::Workers).is_empty() {
            self.try_worker(&settings, None).await.map_err(|failed| match failed {
                trial::Failed::Stopping => Refused::Stopping,
                trial::Failed::NotReady(reason) => Refused::Trial(reason),
            })?;
        }
        Ok(Some(Change::SetSettings { settings }))
    }

    /// Keys of which running workers have another value than `settings`, and will until they are replaced.
    pub(crate) fn waiting_for_new_workers(&self, settings: &Settings) -> Vec<String> {
        let workers = self.workers.iter().filter_map(Worker::launched_with);
        let names = workers.flat_map(|it| it.differing(settings, Effect::Workers));
        let names: BTreeSet<&str> = names.collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// After the settings have changed: this process, and what it does for the workers, takes them over.
    pub(crate) async fn take_settings(&mut self, before: &Settings) {
        let settings = self.state.settings.clone();
        self.attendance.set_liveness(settings.worker_liveness_ms);
        self.workers.iter_mut().for_each(|worker| worker.take_settings(&settings));
        if before.log_level != settings.log_level {
            logging::set_level(&settings.log_level);
        }
        if before.max_connections != settings.max_connections {
            // Workers raise their own limits; those to come inherit this one.
            let raised = resources::raise_limits(
                scale::worker_count(&settings),
                settings.max_connections,
                self.state.listeners.len(),
            );
            if let Err(error) = raised {
                tracing::warn!("{error}");
            }
        }
        if before.steering != settings.steering {
            self.steer();
        }
        self.take_settings_of_names(before);
        self.admit_guests();
        self.take_ticket_key_rotation().await;
    }

    /// Writes the pid file that these settings name, if it is another than the one that is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn write_pid_file_of(&mut self, wanted: &Settings) -> Result<Option<PidFile>, Refused> {
        let path = wanted.pid_file_path.clone().filter(|_| self.pid_file_moves(wanted));
        let Some(path) = path else { return Ok(None) };
        let present = self.pid_file.as_ref().and_then(PidFile::place);
        let written = self.serve_beside(move || PidFile::write_beside(present, &path)).await?;
        written.map_err(Refused::PidFile)
    }

    /// Whether these settings name another pid file, or none.
    pub(super) fn pid_file_moves(&self, wanted: &Settings) -> bool {
        wanted.pid_file_path != self.state.settings.pid_file_path
    }

    /// Has workers that were taken over, and may have started with other settings, take over what they can.
    pub(crate) async fn tell_settings(&mut self) {
        let revision = self.state.revision.clone();
        let change = Change::SetSettings { settings: Box::new(self.state.settings.clone()) };
        let none: Vec<Sockets> = self.workers.iter().map(|_| Sockets::new()).collect();
        let told = |_: &Worker, _: &Sockets| {
            Ok(Order::Prepare { staged: 0, changes: vec![change.clone()], revision: revision.clone() })
        };
        for answers in
            [self.order_all(told, &none).await, self.order_all(|_, _| Ok(Order::Commit), &none).await]
        {
            for (worker, reason) in answers.into_iter().filter_map(|(id, it)| Some((id, it.failure()?))) {
                tracing::warn!(worker, "was not told its settings: {reason}");
            }
        }
    }
}

impl Refused {
    /// Several kinds of things are wanted at once.
    fn mixed() -> Refused {
        Refused::Edit(edit::EditError::Usage("settings are changed alone".to_owned()))
    }
}

/// The keys of settings that `edits` are about; `None` if they are about other things.
///
/// # Errors
/// When they are about both.
pub(super) fn of_settings(edits: &[Edit]) -> Result<Option<&[String]>, Refused> {
    match edits {
        [Edit::PatchSettings { keys }] => Ok(Some(keys)),
        edits if edits.iter().any(|it| matches!(it, Edit::PatchSettings { .. })) => Err(Refused::mixed()),
        _ => Ok(None),
    }
}

/// Whether processes can start with these settings.
fn check(settings: &Settings) -> Result<(), String> {
    let become_other = worker_main::identity(settings).map_err(|error| error.to_string())?.is_some();
    if become_other && !rustix::process::geteuid().is_root() {
        return Err("only root can have workers become another user (`user`, `group`)".to_owned());
    }
    logging::check_level(&settings.log_level).map_err(|error| {
        format!("`{}` is not a filter of the log (`log_level`): {error}", settings.log_level.escape_debug())
    })
}
