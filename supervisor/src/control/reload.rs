//! The file is read again, under what is by hand, and what is different is made.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use kakehi_ctl::{
    change::Change,
    config::{self, ConfigErrors},
    event::Happening,
    keys::Effect,
    layers::Whose,
    order::Changed,
    state::{Settings, State, WantedCertificate},
};

use crate::{
    control::change::{Manner, Refused},
    host::init_system,
    placement::scale,
    supervisor::Supervisor,
};

/// What somebody wants of a reload, or of a state that is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    /// It is only said what would change.
    pub(crate) dry_run: bool,
    /// It may leave nothing that accepts connections.
    pub(crate) allow_empty: bool,
    /// What is by hand is dropped.
    pub(crate) discard_live: bool,
}

impl Supervisor {
    /// Reads the file again and makes what has changed.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn reload(&mut self, wish: Wish, by: &str) -> Result<Changed, Refused> {
        let file = self.source.file.clone().ok_or(Refused::NoFile)?;
        if wish.dry_run {
            return self.reload_from(&file, wish, by).await;
        }
        init_system::reloading();
        let outcome = self.reload_from(&file, wish, by).await;
        if !self.is_stopping() {
            init_system::ready(self.count());
        }
        self.compact().await;
        outcome
    }

    async fn reload_from(&mut self, file: &Path, wish: Wish, by: &str) -> Result<Changed, Refused> {
        let outcome = self.try_reload_from(file, wish, by).await;
        let outcome = match outcome {
            Err(refused) => Err(self.with_places(file, refused).await),
            outcome => outcome,
        };
        self.certificates.settle(outcome.is_ok() && !wish.dry_run);
        outcome
    }

    /// Why the file was refused, with all places in it where that is what it says by itself.
    pub(crate) async fn with_places(&mut self, file: &Path, refused: Refused) -> Refused {
        if !matches!(refused, Refused::State(_) | Refused::Workers(_) | Refused::File(_)) {
            return refused;
        }
        let file = file.to_owned();
        let judge = move || config::load_judged(&file, &kakehi_engine::config::faults).err();
        match self.serve_beside(judge).await {
            Ok(Some(errors)) => Refused::File(errors),
            _ => refused,
        }
    }

    async fn try_reload_from(&mut self, file: &Path, wish: Wish, by: &str) -> Result<Changed, Refused> {
        let file = file.to_owned();
        let state = Arc::clone(&self.state);
        let load = move || {
            let mut loaded = config::load(&file)?;
            // Of rules that are as they were nothing changes.
            loaded.places.keep(&mut loaded.state, &state);
            Ok::<_, ConfigErrors>(loaded)
        };
        let mut loaded = self.serve_beside(load).await??;
        let wanted = std::mem::take(&mut loaded.certificates);
        let file = std::mem::take(&mut loaded.state);
        let warnings;
        (loaded.state, warnings) = self.furnish_file(file, wanted, wish.discard_live).await?;
        let settings = match wish.discard_live {
            true => loaded.state.settings.clone(),
            false => self.wanted_settings(&loaded.state.settings)?,
        };
        let at_next_start = self.state.settings.differing(&settings, Effect::Restart);
        let in_file = loaded.state.settings.clone();
        let mut changed = self.change_into(loaded.state, wish, by).await?;
        let before = self.source.settings.clone();
        changed.changes.extend(placement_in_words(&before, &in_file));
        changed.at_next_start = at_next_start.into_iter().map(str::to_owned).collect();
        changed.with_new_workers = self.waiting_for_new_workers(&self.state.settings.becoming(&settings));
        changed.warnings = loaded.warnings.iter().map(ToString::to_string).chain(warnings).collect();
        if !wish.dry_run {
            self.source.settings = in_file;
            self.note_file_in_record().await;
            let wanted = self.source.settings.clone();
            changed.warnings.extend(self.change_placement(&before, &wanted, by).await);
        }
        Ok(changed)
    }

    /// Number and place of the workers become what the file says, where it has changed in that; otherwise what was said by
    /// `kakehictl` stays. What could not be done comes back as warnings, and is tried again by the next
    /// reload.
    async fn change_placement(&mut self, before: &Settings, wanted: &Settings, by: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        if before.worker_cores != wanted.worker_cores {
            self.own_state().await.settings.worker_cores.clone_from(&wanted.worker_cores);
            warnings.extend(self.pin_as_configured(by).await);
        }
        if before.worker_count != wanted.worker_count || self.source.is_unscaled {
            let count = scale::worker_count(wanted);
            let scaled = self.scale(count as u32, by).await;
            self.source.is_unscaled = scaled.is_err();
            warnings.extend(scaled.err().map(|refused| refused.to_string()));
        }
        warnings
    }

    /// Reads what a file names, and lays what is by hand over what it says, unless that is to be dropped; what it says then, and of what
    /// to be aware.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn furnish_file(
        &mut self,
        mut file: State,
        certificates: Vec<WantedCertificate>,
        discard_live: bool,
    ) -> Result<(State, Vec<String>), Refused> {
        if discard_live {
            return self.furnish(file, certificates).await;
        }
        let state = Arc::clone(&self.state);
        let lay = move || state.lay_by_hand_over(&mut file).map(|warnings| (file, warnings));
        let (file, mut warnings) = self.serve_beside(lay).await??;
        let (mut file, more) = self.furnish(file, certificates).await?;
        warnings.extend(more);
        self.state.lay_certificates_over(&mut file);
        Ok((file, warnings))
    }

    /// Makes the state what the file says, with what is by hand.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn change_to(&mut self, in_file: State, by: &str) -> Result<Changed, Refused> {
        self.change_into(in_file, Wish::default(), by).await
    }

    async fn change_into(&mut self, in_file: State, wish: Wish, by: &str) -> Result<Changed, Refused> {
        let Wish { dry_run, allow_empty, discard_live } = wish;
        let (settings, given_back) = match discard_live {
            true => (in_file.settings.clone(), Some(BTreeMap::new())),
            false => (self.wanted_settings(&in_file.settings)?, None),
        };
        let mut changes: Vec<Change> = self.change_of_settings(&settings).await?.into_iter().collect();
        let state = Arc::clone(&self.state);
        let compare = move || (state.difference(&in_file), in_file);
        let (differences, in_file) = self.serve_beside(compare).await?;
        changes.extend(differences);
        // The reader of the file has checked it, but not with what is by hand.
        let check = !in_file.by_hand.is_empty();
        let (origin, whose) = (in_file.revision.origin.clone(), Whose::Layers(in_file.by_hand.clone()));
        let manner = Manner { origin, settings: given_back, check, allow_empty, whose, dry_run };
        let mut changed = self.change(changes, manner, by).await?;
        changed.by_hand = if discard_live { Vec::new() } else { self.state.describe_settings_by_hand() };
        changed.by_hand.extend(in_file.describe_by_hand());
        Ok(changed)
    }

    /// SIGHUP: a reload whose outcome stands in the log.
    pub(crate) async fn reload_on_signal(&mut self) {
        match self.reload(Wish::default(), "SIGHUP").await {
            Ok(Changed { changes, at_next_start, with_new_workers, warnings, .. }) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                if !at_next_start.is_empty() {
                    tracing::warn!("changes at the next start only: {}", at_next_start.join(", "));
                }
                if !with_new_workers.is_empty() {
                    tracing::warn!(
                        "with new workers only (`kakehictl reload --workers`): {}",
                        with_new_workers.join(", ")
                    );
                }
                if changes.is_empty() {
                    tracing::info!("SIGHUP: the file says what is running already");
                }
            }
            Err(refused) => {
                match &refused {
                    Refused::File(errors) => {
                        errors.lines().for_each(|line| tracing::error!("SIGHUP: {line}"));
                        tracing::error!("SIGHUP: the file is wrong; nothing was changed");
                    }
                    refused => tracing::error!("SIGHUP: {refused}"),
                }
                self.tell(Happening::refused("SIGHUP", &refused.to_string()));
            }
        }
    }
}

/// In which number and place of the workers differ, in words.
fn placement_in_words(before: &Settings, wanted: &Settings) -> Vec<String> {
    let mut settings = Box::new(before.clone());
    settings.take_keys(wanted, Effect::Placement);
    let before = State { settings: before.clone(), ..State::default() };
    before.describe(&Change::SetSettings { settings })
}
