//! A state in a file: written whole or not at all, and read only if it is understood.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::{
    order::KeyPair,
    state::{Fingerprint, STATE_VERSION, State},
};

/// For its owner only: it may hold keys.
pub const MODE: u32 = 0o600;

/// Why a state cannot be kept or had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("it cannot be {what}: {error}")]
    Io {
        /// `read` or `written`.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// It is no state.
    #[error("it is not a state that kakehi saved: {0}")]
    Malformed(serde_json::Error),
    /// It is one of another version.
    #[error("it has version {found}, this program reads version {STATE_VERSION}")]
    Version {
        /// Its version.
        found: u64,
    },
}

impl Error {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Writes `state` to `path`. A reader finds the file as it was before or as it is now, also after a crash.
///
/// # Errors
/// See [`Error`]; the file is as it was before.
pub fn save(path: &Path, state: &State) -> Result<(), Error> {
    save_with_keys(path, state, &BTreeMap::new())
}

/// As [`save`], with the certificates that have no files, and their keys.
///
/// # Errors
/// See [`Error`]; the file is as it was before.
pub fn save_with_keys(
    path: &Path,
    state: &State,
    keys: &BTreeMap<Fingerprint, KeyPair>,
) -> Result<(), Error> {
    write(path, &text_with_keys(state, keys)?)
}

/// What [`save_with_keys`] writes.
///
/// # Errors
/// See [`Error`].
pub fn text_with_keys(state: &State, keys: &BTreeMap<Fingerprint, KeyPair>) -> Result<Vec<u8>, Error> {
    #[derive(Serialize)]
    struct Stored<'a> {
        #[serde(flatten)]
        state: &'a State,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        keys: &'a BTreeMap<Fingerprint, KeyPair>,
    }
    serde_json::to_vec(&Stored { state, keys }).map_err(Error::Malformed)
}

/// As [`save`], for a state that was serialised before.
///
/// # Errors
/// See [`Error`]; the file is as it was before.
pub fn write(path: &Path, text: &[u8]) -> Result<(), Error> {
    let written = put(path, &[text], MODE, File::sync_all);
    // The name is safe when the folder is.
    let synced = written.and_then(|_| match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    });
    synced.map_err(|error| Error::Io { what: "written", error })
}

/// As [`write()`], for what a restart of the machine makes void: nothing waits for a disk. `mode` says who else may read it.
/// `parts` are written one behind the other. The file, to be appended to.
///
/// # Errors
/// Those of the file system; the file is as it was before.
pub fn write_unsynced(path: &Path, parts: &[&[u8]], mode: u32) -> io::Result<File> {
    put(path, parts, mode, |_| Ok(()))
}

/// Puts a file in place whole or not at all, when `finish` has done with it.
fn put(
    path: &Path,
    parts: &[&[u8]],
    mode: u32,
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<File> {
    let temporary = beside(path);
    // Left by a crash, or by somebody who wants to read what is written to it, or have it written elsewhere.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // It is a new file, and no link is followed (O_EXCL).
    let mut file = File::options().append(true).create_new(true).mode(mode).open(&temporary)?;
    let written = parts.iter().try_for_each(|part| file.write_all(part)).and_then(|()| finish(&file));
    let put = written.and_then(|()| fs::rename(&temporary, path));
    put.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    Ok(file)
}

/// The number of the next file that this process writes.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// In the same folder, so that it can be renamed; each write has its own.
fn beside(path: &Path) -> PathBuf {
    numbered_beside(path, NEXT.fetch_add(1, Ordering::Relaxed))
}

fn numbered_beside(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{number}.new", std::process::id()));
    name.into()
}

/// Removes what processes that are gone were writing beside files of `folder` when they ended: of those files of which `is_of_ours`
/// holds for the name. It would never be looked at again, and may hold keys.
pub fn clear_leftovers(folder: &Path, is_of_ours: impl Fn(&[u8]) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let writer = name.as_encoded_bytes().strip_suffix(b".new").and_then(|rest| {
            let dot = rest.iter().rposition(|byte| *byte == b'.')?;
            // An earlier program had no number behind it.
            let writer = std::str::from_utf8(&rest[dot + 1..]).ok()?;
            let pid = writer.split_once('-').map_or(writer, |(pid, _)| pid).parse::<u32>().ok()?;
            is_of_ours(&rest[..dot]).then_some(pid)
        });
        let is_gone = |pid| matches!(fs::exists(format!("/proc/{pid}")), Ok(false));
        if writer.is_some_and(is_gone) {
            // Somebody else may have been quicker.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Reads the state in `path`.
///
/// # Errors
/// See [`Error`].
pub fn load(path: &Path) -> Result<State, Error> {
    load_with_keys(path).map(|(state, _)| state)
}

/// Reads the state in `path`, and the keys that were saved with it.
///
/// # Errors
/// See [`Error`].
pub fn load_with_keys(path: &Path) -> Result<(State, BTreeMap<Fingerprint, KeyPair>), Error> {
    let text = fs::read(path).map_err(|error| Error::Io { what: "read", error })?;
    // In several passes, as it may be large: of another version nothing is understood but that.
    let Version { version } = serde_json::from_slice(&text).map_err(Error::Malformed)?;
    if let Some(found) = version.filter(|found| *found != u64::from(STATE_VERSION)) {
        return Err(Error::Version { found });
    }
    let Keys { keys } = serde_json::from_slice(&text).map_err(Error::Malformed)?;
    Ok((serde_json::from_slice(&text).map_err(Error::Malformed)?, keys))
}

#[derive(Deserialize)]
struct Version {
    version: Option<u64>,
}

#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    keys: BTreeMap<Fingerprint, KeyPair>,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::state::Listener;

    #[test]
    fn a_state_comes_back_as_it_was_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut state = State::default();
        for port in [80, 81] {
            let address = ([127, 0, 0, 1], port).into();
            state.listeners.insert(address, Listener::http(address));
            save(&path, &state).unwrap();
            assert_eq!(load(&path).unwrap(), state);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn keys_come_back_and_nobody_else_can_read_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::default();
        let pem = |text: &str| crate::order::Pem(text.to_owned());
        let pair = KeyPair { chain: pem("chain"), key: pem("key") };
        let keys = BTreeMap::from([(Fingerprint([7; 32]), pair)]);
        save_with_keys(&path, &state, &keys).unwrap();
        assert_eq!(load_with_keys(&path).unwrap(), (state.clone(), keys));
        assert_eq!(load(&path).unwrap(), state);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_lies_where_the_file_is_written_first_gets_nothing_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("state"), folder.path().join("victim"));
        fs::write(&victim, "as it was").unwrap();
        // Other tests may write meanwhile.
        let next = || (0..100).map(|ahead| numbered_beside(&path, NEXT.load(Ordering::Relaxed) + ahead));
        next().for_each(|it| std::os::unix::fs::symlink(&victim, it).unwrap());
        save(&path, &State::default()).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
        // Somebody holds a file open that everybody can write to.
        let left: Vec<_> = next().map(|it| (fs::remove_file(&it), File::create(it).unwrap()).1).collect();
        save(&path, &State::default()).unwrap();
        assert!(left.iter().all(|left| left.metadata().unwrap().len() == 0));
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_was_being_written_by_who_is_gone_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        // No process has such a number.
        let gone = i32::MAX;
        let own = std::process::id();
        let left = [format!("state.{gone}.new"), format!("state.{gone}-7.new")];
        let others = [
            format!("state.{own}.new"),
            format!("state.{own}-7.new"),
            format!("other.{gone}.new"),
            format!("my-state.{gone}.new"),
            format!("state.{gone}"),
            "state.new".to_owned(),
            "state..new".to_owned(),
            "state".to_owned(),
        ];
        others.iter().chain(&left).for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        clear_leftovers(folder.path(), |name| name == b"state");
        assert!(!left.iter().any(|name| folder.path().join(name).exists()));
        assert!(others.iter().all(|name| folder.path().join(name).exists()));
        clear_leftovers(&folder.path().join("missing"), |_| true);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert!(load(&path).unwrap_err().is_missing());
        for (text, reason) in [
            ("", "not a state"),
            ("{}", "not a state"),
            ("{\"version\":1}", "not a state"),
            ("{\"version\":7,\"clusters\":[]}", "version 7"),
            ("nonsense", "not a state"),
        ] {
            fs::write(&path, text).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = save(&folder.path().join("no/state"), &State::default()).unwrap_err();
        assert!(error.is_missing(), "{error}");
    }
}
