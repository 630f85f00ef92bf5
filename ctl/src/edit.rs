//! What somebody wants of the configuration, in keys of the file: made a [`Change`] by the supervisor, of the state as it is then,
//! so that of two who edit at the same time neither undoes what the other did.
//!
//! What is there already is written as a part of a file, the keys are put into it, and the part is read again: keys mean and
//! allow the same as in a file.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    change::{Change, ChangeError, FrontendRule},
    config::{self, write},
    keys::Effect,
    state::{
        Backend, Cluster, ClusterProtocol, Frontend, Listener, ListenerProtocol, Pages, Predicates,
        RulePosition, Settings, State,
    },
};

/// One thing that is wanted. `keys` are `KEY=VALUE` as in the file: `hsts.max_age=5` is a key of the table `hsts`, `KEY=` takes a
/// key back to its default, and a value that is none of TOML is a string.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// A listener more.
    AddListener {
        /// Where it listens.
        address: SocketAddr,
        /// Its keys.
        keys: Vec<String>,
    },
    /// Other keys for a listener.
    PatchListener {
        /// Which.
        address: SocketAddr,
        /// Those that change.
        keys: Vec<String>,
    },
    /// A cluster more, without frontends and backends.
    AddCluster {
        /// Its name.
        name: String,
        /// Its keys.
        keys: Vec<String>,
    },
    /// Other keys for a cluster.
    PatchCluster {
        /// Which.
        name: String,
        /// Those that change.
        keys: Vec<String>,
    },
    /// A frontend more.
    AddFrontend {
        /// Its cluster.
        cluster: String,
        /// Which requests it takes.
        rule: FrontendRule,
        /// Its other keys.
        keys: Vec<String>,
    },
    /// Other keys for a frontend.
    PatchFrontend {
        /// Its cluster.
        cluster: String,
        /// Which.
        rule: FrontendRule,
        /// Those that change.
        keys: Vec<String>,
    },
    /// A backend more.
    AddBackend {
        /// Its cluster.
        cluster: String,
        /// The backend.
        backend: Backend,
    },
    /// Other keys for a backend.
    PatchBackend {
        /// Its cluster.
        cluster: String,
        /// Which.
        id: String,
        /// Those that change.
        keys: Vec<String>,
    },
    /// Other settings for the process.
    PatchSettings {
        /// Those that change; one without a value is again as the file says.
        keys: Vec<String>,
    },
    /// What needs no keys.
    Change(Box<Change>),
}

impl From<Change> for Edit {
    fn from(change: Change) -> Edit {
        Edit::Change(Box::new(change))
    }
}

/// Why an edit is no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// No file could say it.
    #[error("{0}")]
    Usage(String),
    /// What it names is not there.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// What it adds is there already.
    #[error("there is a {what} already; `{verb}` changes it")]
    Exists {
        /// What, with its name.
        what: String,
        /// The verb of `kakehictl` that was meant.
        verb: &'static str,
    },
}

/// What an edit comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Edited {
    /// The change.
    pub change: Change,
    /// What a file would be warned of.
    pub warnings: Vec<String>,
}

const SETTINGS_APART: &str = "settings are not changed together with other things";
const OTHER_REQUESTS: &str =
    "which requests a frontend takes cannot be changed: add another, and remove this one";

/// Tables within tables that a key can be in.
const MOST_NESTED: usize = 4;

/// A key with its value; `None`: its default.
struct Assignment {
    key: String,
    value: Option<Value>,
}

/// Whether `text` has the form `KEY=VALUE`.
///
/// # Errors
/// What it lacks.
pub fn check_assignment(text: &str) -> Result<(), &'static str> {
    assignment(text).map(drop)
}

fn assignment(text: &str) -> Result<Assignment, &'static str> {
    let (key, value) = text.split_once('=').ok_or("it has no `=`")?;
    let parsed = toml::from_str::<Table>(&format!("value = {value}")).ok();
    let value = match (value, parsed.and_then(|mut table| table.remove("value"))) {
        ("", _) => None,
        (_, Some(value)) => Some(value),
        (text, None) => Some(text.into()),
    };
    Ok(Assignment { key: key.trim().to_owned(), value })
}

impl Edit {
    /// The cluster that it is about.
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Edit::AddListener { .. } | Edit::PatchListener { .. } | Edit::PatchSettings { .. } => None,
            Edit::AddCluster { name, .. } | Edit::PatchCluster { name, .. } => Some(name),
            Edit::AddFrontend { cluster, .. }
            | Edit::PatchFrontend { cluster, .. }
            | Edit::AddBackend { cluster, .. }
            | Edit::PatchBackend { cluster, .. } => Some(cluster),
            Edit::Change(change) => change.cluster(),
        }
    }

    /// Whether it says something of own answers, which may stand in files.
    pub fn names_pages(&self) -> bool {
        let (Edit::AddListener { keys, .. }
        | Edit::PatchListener { keys, .. }
        | Edit::AddCluster { keys, .. }
        | Edit::PatchCluster { keys, .. }
        | Edit::AddFrontend { keys, .. }
        | Edit::PatchFrontend { keys, .. }) = self
        else {
            return false;
        };
        keys.iter().any(|key| key.trim_start().starts_with("answer") || key.contains("template"))
    }

    /// What it comes to, of `state`, which needs to have all listeners and its cluster. Relative paths are those of `folder`.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn change(&self, state: &State, folder: &Path) -> Result<Edited, EditError> {
        let reader = Reader { state, folder, reads_pages: self.names_pages() };
        match self {
            Edit::AddListener { address, keys } => {
                if state.listeners.contains_key(address) {
                    let what = format!("listener {address}");
                    return Err(EditError::Exists { what, verb: "listener patch" });
                }
                reader.listener(&Listener::http(*address), keys)
            }
            Edit::PatchListener { address, keys } => {
                let present = state.listeners.get(address).ok_or(ChangeError::NoListener(*address))?;
                reader.listener(present, keys)
            }
            Edit::AddCluster { name, keys } => {
                if state.clusters.contains_key(name) {
                    let what = format!("cluster `{name}`");
                    return Err(EditError::Exists { what, verb: "cluster patch" });
                }
                reader.cluster(name, &Cluster::default(), keys)
            }
            Edit::PatchCluster { name, keys } => reader.cluster(name, reader.present(name)?, keys),
            Edit::AddFrontend { cluster, rule, keys } => {
                let FrontendRule { address, hostname, path, method, position, predicates } = rule.clone();
                let frontend =
                    Frontend { address, hostname, path, method, position, predicates, ..Frontend::default() };
                let (added, warnings) = reader.frontend(cluster, &frontend, keys)?;
                let added_rule = FrontendRule::from(&added);
                if !rule.is_for(&added) {
                    return Err(usage(OTHER_REQUESTS));
                }
                if reader.present(cluster)?.frontends.iter().any(|it| added_rule.is_of(it)) {
                    let what = format!("frontend for these requests of cluster `{cluster}`");
                    return Err(EditError::Exists { what, verb: "frontend patch" });
                }
                let change = Change::SetFrontend { cluster: cluster.clone(), frontend: added };
                Ok(Edited { change, warnings })
            }
            Edit::PatchFrontend { cluster, rule, keys } => {
                let frontends = &reader.present(cluster)?.frontends;
                let missing = || rule.not_found(cluster, frontends);
                let present = rule.find(frontends).ok_or_else(missing)?;
                let (patched, warnings) = reader.frontend(cluster, present, keys)?;
                if !FrontendRule::from(present).is_of(&patched) {
                    return Err(usage(OTHER_REQUESTS));
                }
                let change = Change::SetFrontend { cluster: cluster.clone(), frontend: patched };
                Ok(Edited { change, warnings })
            }
            Edit::AddBackend { cluster, backend } => {
                if reader.present(cluster)?.backends.iter().any(|it| it.id == backend.id) {
                    let what = format!("backend `{}` of cluster `{cluster}`", backend.id);
                    return Err(EditError::Exists { what, verb: "backend patch" });
                }
                // With the checks of a file.
                reader.backend(cluster, backend, &[])
            }
            Edit::PatchBackend { cluster, id, keys } => {
                let missing = || ChangeError::NoBackend { cluster: cluster.clone(), id: id.clone() };
                let present = reader.present(cluster)?.backends.iter().find(|it| it.id == *id);
                reader.backend(cluster, present.ok_or_else(missing)?, keys)
            }
            Edit::PatchSettings { .. } => Err(usage(SETTINGS_APART)),
            Edit::Change(change) => {
                let change = match &**change {
                    Change::SetSettings { .. } => return Err(usage(SETTINGS_APART)),
                    Change::RemoveFrontend { cluster, rule } => {
                        let found = state.clusters.get(cluster).and_then(|it| rule.find(&it.frontends));
                        let rule = found.map_or_else(|| rule.clone(), FrontendRule::from);
                        Change::RemoveFrontend { cluster: cluster.clone(), rule }
                    }
                    change => change.clone(),
                };
                Ok(Edited { change, warnings: Vec::new() })
            }
        }
    }
}

/// `by_hand` with other settings, by their keys, each with its value as in a file. Relative paths are those of `folder`.
///
/// # Errors
/// When it is no key of the process, or one that other verbs or only a start can change, or has no such value.
pub fn patch_settings(
    by_hand: &BTreeMap<String, String>,
    keys: &[String],
    folder: &Path,
) -> Result<BTreeMap<String, String>, EditError> {
    let mut patched = by_hand.clone();
    for text in keys {
        let Assignment { key, value } =
            assignment(text).map_err(|lack| usage(format!("`{text}` is no KEY=VALUE: {lack}")))?;
        let Some(value) = value else {
            // Also one that this program does not take any more.
            if patched.remove(&key).is_none() {
                check_setting(&key)?;
            }
            continue;
        };
        check_setting(&key)?;
        let mut table = Table::new();
        put(&mut table, &key, Some(&value))?;
        let settings = read_settings(&table, folder)?;
        // As it is written, so that paths are absolute.
        let written = take(&mut write::settings(&settings), &key).unwrap_or(value);
        patched.insert(key, written.to_string());
    }
    Ok(patched)
}

/// `in_file` with what has been changed by hand.
///
/// # Errors
/// When a value is none that the key takes.
pub fn settings_with(in_file: &Settings, by_hand: &BTreeMap<String, String>) -> Result<Settings, EditError> {
    if by_hand.is_empty() {
        return Ok(in_file.clone());
    }
    let mut table = write::settings(in_file);
    for (key, value) in by_hand {
        check_setting(key)?;
        let value = toml::from_str::<Table>(&format!("value = {value}")).map_err(usage)?.remove("value");
        put(&mut table, key, value.as_ref())?;
    }
    let settings = read_settings(&table, Path::new("/"))?;
    settings.admin.check().map_err(usage)?;
    Ok(settings)
}

/// The same where some of it may be of another program: what of `by_hand` is none of this one's goes from there.
pub fn settings_that_fit(in_file: &Settings, by_hand: &mut BTreeMap<String, String>) -> Settings {
    // Some fit together only.
    if let Ok(settings) = settings_with(in_file, by_hand) {
        return settings;
    }
    let mut settings = in_file.clone();
    let (mut fit, mut rest) = (BTreeMap::new(), std::mem::take(by_hand));
    loop {
        let before = rest.len();
        rest.retain(|key, value| {
            fit.insert(key.clone(), value.clone());
            match settings_with(in_file, &fit) {
                Ok(with) => settings = with,
                Err(_) => drop(fit.remove(key)),
            }
            !fit.contains_key(key)
        });
        if rest.len() == before {
            break;
        }
    }
    *by_hand = fit;
    settings
}

fn read_settings(table: &Table, folder: &Path) -> Result<Settings, EditError> {
    let text = toml::to_string(table).map_err(usage)?;
    Ok(config::parse_part(&text, "the command line", folder).map_err(usage)?.state.settings)
}

/// What a frontend asks of requests beyond listener, host, path and method, by these keys, each with its value as in a file.
///
/// # Errors
/// When it is no such key, or has no such value.
pub fn read_asks(keys: &[String]) -> Result<(RulePosition, Option<Box<Predicates>>), EditError> {
    let known = ["position", "header_predicates", "query_predicates", "cookie_predicates", "sources", "alpn"];
    let key_of = |text: &String| text.split('=').next().unwrap_or_default().trim().to_owned();
    let is_known = |text: &&String| known.contains(&key_of(text).as_str());
    if let Some(other) = keys.iter().find(|text| !is_known(text)) {
        let (other, known) = (other.escape_debug(), known.join("`, `"));
        return Err(usage(format!(
            "`{other}` is not about which requests a frontend takes; these are: `{known}`"
        )));
    }
    let (address, name) = (SocketAddr::from(([127, 0, 0, 1], 1)), "any");
    // What asks for protocols is about connections that are passed on, all else about requests.
    let (listener, cluster) = match keys.iter().any(|text| key_of(text) == "alpn") {
        true => (ListenerProtocol::Tcp, ClusterProtocol::Tcp),
        false => (ListenerProtocol::Http, ClusterProtocol::Http),
    };
    let mut state = State::default();
    state.listeners.insert(address, Listener { protocol: listener, ..Listener::http(address) });
    state.clusters.insert(name.to_owned(), Cluster { protocol: cluster, ..Cluster::default() });
    let any = Frontend { address, hostname: "*".to_owned(), ..Frontend::default() };
    let (read, _) = Reader::of(&state).frontend(name, &any, keys)?;
    Ok((read.position, read.predicates))
}

/// Whether a setting can be changed by its key while kakehi runs.
fn check_setting(key: &str) -> Result<(), EditError> {
    let Some((_, known)) = Settings::keys().find(|(name, _)| name == key) else {
        return Err(usage(format!(
            "`{}` is no setting of the process (`kakehictl settings list` has them all; listeners and clusters have verbs of their own)",
            key.escape_debug()
        )));
    };
    match known.effect {
        Effect::Placement => Err(usage(format!(
            "`{key}` is not set here: `kakehictl workers scale N` sets the number of workers, `kakehictl pin` where they run"
        ))),
        Effect::Restart => {
            Err(usage(format!("`{key}` changes at a new start only: write it into the configuration file")))
        }
        _ => Ok(()),
    }
}

/// Reads what is there, with other keys.
pub(crate) struct Reader<'a> {
    state: &'a State,
    folder: &'a Path,
    /// Files with own answers are read anew, as somebody names some; those of others stay as they are.
    reads_pages: bool,
}

fn usage(text: impl ToString) -> EditError {
    EditError::Usage(text.to_string())
}

impl<'a> Reader<'a> {
    /// One for keys whose paths are absolute, as those of a state are.
    pub(crate) fn of(state: &'a State) -> Reader<'a> {
        Reader { state, folder: Path::new("/"), reads_pages: false }
    }
}

impl Reader<'_> {
    fn present(&self, cluster: &str) -> Result<&Cluster, ChangeError> {
        self.state.clusters.get(cluster).ok_or_else(|| ChangeError::NoCluster(cluster.to_owned()))
    }

    fn listener(&self, listener: &Listener, keys: &[String]) -> Result<Edited, EditError> {
        let (listener, warnings) =
            self.listener_of(listener.address, assigned(write::listener(listener), keys)?)?;
        Ok(Edited { change: Change::SetListener { listener: Box::new(listener) }, warnings })
    }

    /// The listener with these keys.
    pub(crate) fn read_listener(&self, address: SocketAddr, table: Table) -> Result<Listener, EditError> {
        self.listener_of(address, table).map(|(listener, _)| listener)
    }

    fn listener_of(&self, address: SocketAddr, table: Table) -> Result<(Listener, Vec<String>), EditError> {
        let (mut read, warnings) = self.read([("listeners", vec![table].into())])?;
        let listener = read.listeners.remove(&address);
        let refused = || usage("`address` cannot be changed, and `udp` is not supported");
        Ok((listener.ok_or_else(refused)?, warnings))
    }

    fn cluster(&self, name: &str, cluster: &Cluster, keys: &[String]) -> Result<Edited, EditError> {
        let table = assigned(write::cluster(&bare(cluster)), keys)?;
        let (read, warnings) = self.cluster_of(name, table)?;
        // Its frontends would need their listeners to be read.
        let (frontends, backends) = (cluster.frontends.clone(), cluster.backends.clone());
        let cluster = Cluster { frontends, backends, ..read };
        Ok(Edited { change: Change::SetCluster { name: name.to_owned(), cluster }, warnings })
    }

    /// The cluster with these keys, without frontends and backends.
    pub(crate) fn read_cluster(&self, name: &str, table: Table) -> Result<Cluster, EditError> {
        self.cluster_of(name, table).map(|(cluster, _)| cluster)
    }

    fn cluster_of(&self, name: &str, table: Table) -> Result<(Cluster, Vec<String>), EditError> {
        let (mut read, warnings) = self.read([("clusters", named(name, table))])?;
        let read = read.clusters.remove(name).ok_or_else(|| usage("such a cluster is not supported"))?;
        Ok((read, warnings))
    }

    fn frontend(
        &self,
        cluster: &str,
        frontend: &Frontend,
        keys: &[String],
    ) -> Result<(Frontend, Vec<String>), EditError> {
        self.frontend_of(cluster, frontend.address, assigned(write::frontend(frontend), keys)?)
    }

    /// The frontend with these keys, on the listener at `address`.
    pub(crate) fn read_frontend(
        &self,
        cluster: &str,
        address: Option<SocketAddr>,
        table: Table,
    ) -> Result<Frontend, EditError> {
        let address = address.ok_or_else(|| usage("such a frontend is not supported"))?;
        self.frontend_of(cluster, address, table).map(|(frontend, _)| frontend)
    }

    fn frontend_of(
        &self,
        cluster: &str,
        address: SocketAddr,
        table: Table,
    ) -> Result<(Frontend, Vec<String>), EditError> {
        let listener = self.state.listeners.get(&address);
        let listener = write::listener(listener.ok_or(ChangeError::NoListener(address))?);
        // The others of the cluster are on other listeners, and say nothing of this one.
        let mut of_cluster = write::cluster(&bare(self.present(cluster)?));
        of_cluster.insert("frontends".to_owned(), vec![table].into());
        let parts = [("listeners", vec![listener].into()), ("clusters", named(cluster, of_cluster))];
        let (read, warnings) = self.read(parts)?;
        let mut frontends = read.clusters.into_values().flat_map(|it| it.frontends);
        Ok((frontends.next().ok_or_else(|| usage("such a frontend is not supported"))?, warnings))
    }

    fn backend(&self, cluster: &str, backend: &Backend, keys: &[String]) -> Result<Edited, EditError> {
        let (read, warnings) = self.backend_of(cluster, assigned(write::backend(backend), keys)?)?;
        if read.id != backend.id {
            return Err(usage("`backend_id` cannot be changed: add another, and remove this one"));
        }
        Ok(Edited { change: Change::SetBackend { cluster: cluster.to_owned(), backend: read }, warnings })
    }

    /// The backend with these keys.
    pub(crate) fn read_backend(&self, cluster: &str, table: Table) -> Result<Backend, EditError> {
        self.backend_of(cluster, table).map(|(backend, _)| backend)
    }

    fn backend_of(&self, cluster: &str, table: Table) -> Result<(Backend, Vec<String>), EditError> {
        let mut of_cluster = write::cluster(&bare(self.present(cluster)?));
        of_cluster.insert("backends".to_owned(), vec![table].into());
        let (read, warnings) = self.read([("clusters", named(cluster, of_cluster))])?;
        let mut backends = read.clusters.into_values().flat_map(|it| it.backends);
        Ok((backends.next().ok_or_else(|| usage("such a backend is not supported"))?, warnings))
    }

    fn read<const N: usize>(&self, parts: [(&str, Value); N]) -> Result<(State, Vec<String>), EditError> {
        let table: Table = parts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let text = toml::to_string(&table).map_err(usage)?;
        let pages = if self.reads_pages { Pages::default() } else { self.state.pages() };
        let loaded = config::parse_part_with(pages, &text, "the command line", self.folder);
        let loaded = loaded.map_err(|errors| usage(errors.in_one_line()))?;
        Ok((loaded.state, loaded.warnings.iter().map(ToString::to_string).collect()))
    }
}

fn bare(cluster: &Cluster) -> Cluster {
    Cluster { frontends: Vec::new(), backends: Vec::new(), ..cluster.clone() }
}

fn named(name: &str, table: Table) -> Value {
    Table::from_iter([(name.to_owned(), Value::Table(table))]).into()
}

fn assigned(mut table: Table, keys: &[String]) -> Result<Table, EditError> {
    for text in keys {
        let Assignment { key, value } =
            assignment(text).map_err(|lack| usage(format!("`{text}` is no KEY=VALUE: {lack}")))?;
        if key.split('.').count() > MOST_NESTED {
            return Err(usage("no key is that deep in tables"));
        }
        match key.split('.').next().unwrap_or_default() {
            "frontends" | "backends" => {
                return Err(usage(format!("`{key}` cannot be set here; it has verbs of its own")));
            }
            "certificate" | "certificate_chain" | "key" | "certificates" => {
                return Err(usage(format!(
                    "`{key}` cannot be set here; `kakehictl certificate add ADDRESS --certificate FILE --key FILE` gives a \
                     listener a certificate"
                )));
            }
            _ => put(&mut table, &key, value.as_ref())?,
        }
    }
    Ok(table)
}

fn put(table: &mut Table, key: &str, value: Option<&Value>) -> Result<(), EditError> {
    match (key.split_once('.'), value) {
        (Some((outer, inner)), value) => {
            match table.entry(outer).or_insert_with(|| Value::Table(Table::new())) {
                Value::Table(table) => put(table, inner, value)?,
                _ => return Err(usage(format!("`{outer}` is no table, so it has no `{inner}`"))),
            }
        }
        (None, Some(value)) => drop(table.insert(key.to_owned(), value.clone())),
        (None, None) => drop(table.remove(key)),
    }
    Ok(())
}

fn take(table: &mut Table, key: &str) -> Option<Value> {
    match key.split_once('.') {
        Some((outer, inner)) => take(table.get_mut(outer)?.as_table_mut()?, inner),
        None => table.remove(key),
    }
}

#[cfg(test)]
mod tests;
