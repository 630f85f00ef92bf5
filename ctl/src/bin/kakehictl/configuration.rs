//! The verbs about all that is configured together: the file and the state.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Subcommand;
use kakehi_ctl::{
    config::write,
    order::{Request, Response},
    state::State,
    store,
};
use serde_json::json;

use crate::{
    client::Failure,
    routing::{Ask, Shown, state},
};

/// What can be done with the file.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Show what a reload would change
    Diff,
    /// Print what is configured now as a configuration file, which loads again
    Dump {
        /// With the digests of the passwords of `authorized_hashes`, which are left out otherwise
        #[arg(long)]
        with_keys: bool,
    },
}

/// What can be done with the state.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum StateVerb {
    /// Save it to a file; by default `saved_state`, from which the next start has it
    Save {
        /// The file
        file: Option<PathBuf>,
        /// With the keys of certificates that are in no file, and, in a file that is named, the digests of passwords; without, such
        /// certificates are left out, and the file cannot be loaded where there are `authorized_hashes`
        #[arg(long)]
        with_keys: bool,
    },
    /// Make listeners, clusters, frontends and backends what they are in a file that was saved
    Load {
        /// The file
        file: PathBuf,
        /// Also where it has no listener that accepts connections: nothing is served any more then
        #[arg(long)]
        allow_empty: bool,
    },
    /// Show what `load` would change
    Diff {
        /// The file
        file: PathBuf,
    },
}

/// The state with the digests of passwords.
fn with_users(ask: Ask<'_>, state: State) -> Result<State, Failure> {
    match ask(Request::Users)? {
        Response::Users(users) => Ok(state.with_users(users)),
        _ => Err(Failure::Refused("it does not tell the digests of passwords".to_owned())),
    }
}

impl ConfigVerb {
    pub(crate) fn run(self, ask: Ask<'_>) -> Result<Shown, Failure> {
        match self {
            ConfigVerb::Diff => {
                let request = Request::Reload {
                    dry_run: true,
                    workers: false,
                    allow_empty: false,
                    discard_live: false,
                };
                ask(request).map(Shown::Response)
            }
            ConfigVerb::Dump { with_keys } => {
                let state = if with_keys { with_users(ask, state(ask)?)? } else { state(ask)? };
                let text = write::write(&state);
                Ok(Shown::Made { json: json!({ "toml": text }), text })
            }
        }
    }
}

impl StateVerb {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        let load = |file: &PathBuf, dry_run, allow_empty| {
            let (state, keys) = store::load_with_keys(file).map_err(|error| {
                Failure::Refused(format!("{}: {error}; nothing was changed", file.display()))
            })?;
            let state = Box::new(state);
            ask(Request::LoadState { state, keys, dry_run, allow_empty }).map(Shown::Response)
        };
        match self {
            StateVerb::Save { file: None, with_keys } => {
                ask(Request::SaveState { with_keys: *with_keys }).map(Shown::Response)
            }
            StateVerb::Save { file: Some(file), with_keys } => {
                let state = state(ask)?;
                let state = if *with_keys { with_users(ask, state)? } else { state };
                let keys = match with_keys.then(|| ask(Request::Keys)).transpose()? {
                    Some(Response::Keys(keys)) => keys,
                    _ => BTreeMap::new(),
                };
                let certificates = state.certificates.values().flatten();
                let left_out = certificates
                    .filter(|(it, known)| known.files.is_none() && !keys.contains_key(*it))
                    .count();
                store::save_with_keys(file, &state, &keys)
                    .map_err(|error| Failure::Refused(format!("{}: {error}", file.display())))?;
                Ok(Shown::Response(Response::Saved { path: file.clone(), left_out }))
            }
            StateVerb::Load { file, allow_empty } => load(file, false, *allow_empty),
            StateVerb::Diff { file } => load(file, true, false),
        }
    }
}
