//! Settings of the process: what they are, where they come from, and what a change of each needs.

use clap::Subcommand;
use kakehi_ctl::{config::write, edit::Edit, state::Settings};
use serde_json::json;
use toml::{Table, Value};

use crate::{
    client::Failure,
    print,
    routing::{Ask, Shown, edit, key_value, made, state},
};

/// What can be done to settings.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SettingsVerb {
    /// List them, with where each value comes from (default, file, hand) and when a change of it holds
    ///
    /// With --json: an array with one object per setting.
    List,
    /// Change some; what is not named stays
    ///
    /// A value that is set here goes before that of the file, also after a reload, a restart with `saved_state`, or an upgrade,
    /// until it is given back with KEY= (no value). What needs new workers is tried on one first: a value with which it does not
    /// come up is refused. With --json: an object.
    Patch {
        /// Keys as in the file: max_connections=20000 drain_timeout=60 log_level=debug; without a value (KEY=) as the file says
        #[arg(value_name = "KEY=VALUE", value_parser = key_value, required = true)]
        keys: Vec<String>,
    },
}

impl SettingsVerb {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        match self {
            SettingsVerb::List => {
                let state = state(ask)?;
                let written = write::settings(&state.settings);
                let mut rows = vec![["SETTING", "VALUE", "FROM", "CHANGES"].map(str::to_owned)];
                let mut objects = Vec::new();
                for (name, key) in Settings::keys() {
                    let value = at(&written, &name);
                    let from = match (state.revision.settings.contains_key(&name), value) {
                        (true, _) => "hand",
                        (false, Some(_)) => "file",
                        (false, None) => "default",
                    };
                    let text = value.map_or_else(|| key.default(), ToString::to_string);
                    let shown = if text.is_empty() { "-".to_owned() } else { text };
                    rows.push([name.clone(), shown, from.to_owned(), key.effect.words().to_owned()]);
                    let value = value.map_or(json!(null), |value| json!(value));
                    objects
                        .push(json!({ "name": name, "value": value, "default": key.default(), "from": from,
                        "changes": key.effect.words(), "about": key.doc() }));
                }
                Ok(made(objects, print::table(&rows)))
            }
            SettingsVerb::Patch { keys } => edit(ask, Edit::PatchSettings { keys: keys.clone() }),
        }
    }
}

/// The value of a key, which may be `TABLE.KEY`.
fn at<'a>(table: &'a Table, name: &str) -> Option<&'a Value> {
    match name.split_once('.') {
        Some((outer, inner)) => at(table.get(outer)?.as_table()?, inner),
        None => table.get(name),
    }
}
