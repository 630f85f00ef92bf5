//! What a supervisor tells the one that comes after it of what the workers serve, past the workers.
//!
//! Workers handle what strangers send. One that strangers have taken over must gain nothing from the supervisor that takes
//! workers over, such as a state that names root's files as certificates. So the supervisor writes the state down itself, in a file
//! beside the command socket (`SOCKET.state`) that only its own user can read and write, and behind it, one to a line, the changes
//! since. There also stands how the configuration file has the settings, of which some may be by hand in the state: the next
//! supervisor may find a file that it cannot read. What it writes of each process stands in [`crate::fleet::record`].
//!
//! Nothing is synced to a disk: a restart of the machine ends the workers, too.

use std::{
    borrow::{Borrow, Cow},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
};

use kakehi_ctl::{
    change::Change,
    layers::Whose,
    state::{Revision, Settings, State},
    store,
};
use serde::{Deserialize, Serialize};

use crate::host::own_file::{self, Failure};

/// Changes are written one behind the other until they take so much (bytes), or more than the state itself.
const LEAST_TO_REWRITE: u64 = 1 << 20;

/// The state as the supervisor knows it, in a file. A file that could not be kept up to date is removed: what is there holds.
pub(crate) struct StateRecord {
    path: PathBuf,
    /// As the configuration file has them.
    in_file: Settings,
    /// `None`: it is to be written anew.
    file: Option<File>,
    state_bytes: u64,
    change_bytes: u64,
    failure: Failure,
}

/// One line behind the state.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    changes: Cow<'a, [Change]>,
    revision: Cow<'a, Revision>,
    /// An earlier program did not say it.
    #[serde(default)]
    whose: Option<Cow<'a, Whose>>,
    /// How the configuration file has the settings from here on, where that has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_file: Option<Cow<'a, Settings>>,
}

/// What a supervisor has written down.
pub(crate) struct Recorded {
    pub(crate) state: State,
    /// Settings as the configuration file had them; an earlier program did not say it.
    pub(crate) in_file: Option<Settings>,
}

impl StateRecord {
    /// Beside this command socket; not written yet.
    pub(crate) fn new(command_socket: &Path) -> StateRecord {
        let path = Self::path(command_socket);
        let in_file = Settings::default();
        StateRecord {
            path,
            in_file,
            file: None,
            state_bytes: 0,
            change_bytes: 0,
            failure: Failure::default(),
        }
    }

    pub(crate) fn path(command_socket: &Path) -> PathBuf {
        own_file::with_suffix(command_socket, ".state")
    }

    /// What the supervisor before wrote beside this command socket; `None` where there is nothing.
    ///
    /// # Errors
    /// When it is not what a supervisor of ours writes.
    pub(crate) fn load(command_socket: &Path) -> io::Result<Option<Recorded>> {
        Self::read_at(&Self::path(command_socket))
    }

    fn read_at(path: &Path) -> io::Result<Option<Recorded>> {
        let Some(file) = own_file::open(path)? else { return Ok(None) };
        read_state(file).map(Some).map_err(|error| own_file::about(path, error))
    }

    /// Writes the whole: the `text` of a state of this revision, and the settings as the configuration file has them.
    pub(crate) fn begin(&mut self, text: &[u8], revision: &Revision, in_file: &Settings) {
        self.in_file.clone_from(in_file);
        self.write(Ok(text), revision);
    }

    fn write(&mut self, text: io::Result<impl AsRef<[u8]>>, revision: &Revision) {
        let text = text.inspect_err(|_| self.withdraw());
        let written = text.and_then(|text| self.put(text.as_ref(), revision));
        match written {
            Ok(file) => {
                self.file = Some(file);
                self.failure.end(&self.path);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn put(&mut self, text: &[u8], revision: &Revision) -> io::Result<File> {
        let settings = line(&Line::of_settings(revision, &self.in_file))?;
        self.state_bytes = (text.len() + settings.len()) as u64;
        self.change_bytes = 0;
        store::write_unsynced(&self.path, &[text, b"\n", &settings], store::MODE).inspect_err(|_| {
            // What a supervisor before has left may say the same.
            let says_so = |it: Recorded| {
                it.in_file.as_ref() == Some(&self.in_file)
                    && serde_json::to_vec(&it.state).is_ok_and(|there| there == text)
            };
            let holds = Self::read_at(&self.path).is_ok_and(|there| there.is_some_and(says_so));
            if !holds {
                self.withdraw();
            }
        })
    }

    /// Why a supervisor that comes after this one would not find what is running, if that is so, and when it is to be written
    /// again. While an operation runs the state may be behind the workers: not then.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }

    /// Writes what is about to be made, before it is.
    pub(crate) fn append(&mut self, changes: &[Change], revision: &Revision, whose: &Whose) {
        let (revision, whose) = (Cow::Borrowed(revision), Some(Cow::Borrowed(whose)));
        let entry = Line { changes: changes.into(), revision, whose, in_file: None };
        self.add(&entry);
    }

    /// Writes down that the configuration file has the settings so from now on.
    pub(crate) fn note_file(&mut self, revision: &Revision, in_file: &Settings) {
        if self.in_file != *in_file {
            self.in_file.clone_from(in_file);
            self.add(&Line::of_settings(revision, in_file));
        }
    }

    fn add(&mut self, entry: &Line<'_>) {
        let Some(file) = &mut self.file else { return self.withdraw() };
        let written = line(entry).and_then(|text| {
            self.change_bytes += text.len() as u64;
            file.write_all(&text)
        });
        if let Err(error) = written {
            self.withdraw();
            self.fail(&error);
        }
    }

    /// Writes the whole again where that takes less room than the changes, or nothing is written. To be called when a change
    /// was made.
    pub(crate) fn tidy(&mut self, state: impl Borrow<State>) {
        if self.file.is_none() || self.change_bytes > self.state_bytes.max(LEAST_TO_REWRITE) {
            let text = serde_json::to_vec(state.borrow()).map_err(io::Error::from);
            let revision = state.borrow().revision.clone();
            // Others wait until nobody looks at it; not until a disk has it.
            drop(state);
            self.write(text, &revision);
        }
    }

    /// It was not kept up to date, for this reason.
    pub(crate) fn lapse(&mut self, error: &io::Error) {
        self.withdraw();
        self.fail(error);
    }

    /// There is nobody any more whom it could be of use for.
    pub(crate) fn remove(&mut self) {
        self.failure = Failure::default();
        self.withdraw();
    }

    /// What is there does not hold any more.
    fn withdraw(&mut self) {
        self.file = None;
        let _ = fs::remove_file(&self.path);
    }

    fn fail(&mut self, error: &io::Error) {
        self.file = None;
        if self.failure.note(&self.path, error) {
            tracing::warn!(
                "the state cannot be written to {}: {error}; until it can, which is tried again and again, a supervisor that has to \
                 go on after this one goes back to what the file says",
                self.path.display()
            );
        }
    }
}

impl<'a> Line<'a> {
    fn of_settings(revision: &'a Revision, in_file: &'a Settings) -> Line<'a> {
        let (revision, in_file) = (Cow::Borrowed(revision), Some(Cow::Borrowed(in_file)));
        Line { changes: Cow::Borrowed(&[]), revision, whose: Some(Cow::Owned(Whose::Files)), in_file }
    }
}

fn line(content: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(content)?;
    text.push(b'\n');
    Ok(text)
}

fn read_state(file: File) -> io::Result<Recorded> {
    let mut lines = BufReader::new(file);
    let mut text = Vec::new();
    lines.read_until(b'\n', &mut text)?;
    let (mut state, mut known) = (serde_json::from_slice::<State>(&text)?, None);
    loop {
        text.clear();
        lines.read_until(b'\n', &mut text)?;
        // The last may have been cut short: then the change was not made either.
        if text.last() != Some(&b'\n') {
            return Ok(Recorded { state, in_file: known });
        }
        let Line { changes, revision, whose, in_file } = serde_json::from_slice(&text)?;
        let whose = whose.map_or(Whose::Files, Cow::into_owned);
        state.apply_as(&whose, &changes).map_err(io::Error::other)?;
        state.revision = revision.into_owned();
        known = in_file.map(Cow::into_owned).or(known);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn change(port: u16) -> Vec<Change> {
        let listener = kakehi_ctl::state::Listener::http(([127, 0, 0, 1], port).into());
        vec![Change::SetListener { listener: Box::new(listener) }]
    }

    fn begin(record: &mut StateRecord, state: &State, in_file: &Settings) {
        record.begin(&serde_json::to_vec(state).unwrap(), &state.revision, in_file);
    }

    fn read(socket: &Path) -> Option<State> {
        StateRecord::load(socket).unwrap().map(|recorded| recorded.state)
    }

    #[test]
    fn settings_stand_there_as_the_file_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("k.sock");
        let (mut state, mut record) = (State::default(), StateRecord::new(&socket));
        let in_file = |drain_timeout_ms| Settings { drain_timeout_ms, ..Settings::default() };
        let known = || StateRecord::load(&socket).unwrap().unwrap().in_file;
        // By hand it is another.
        state.settings.drain_timeout_ms = 7;
        begin(&mut record, &state, &in_file(1));
        assert_eq!(known(), Some(in_file(1)));
        changed(&mut state, &mut record, 1);
        record.note_file(&state.revision, &in_file(2));
        assert_eq!((known(), read(&socket).as_ref()), (Some(in_file(2)), Some(&state)));
        record.change_bytes += LEAST_TO_REWRITE + record.state_bytes;
        changed(&mut state, &mut record, 2);
        assert_eq!((known(), read(&socket).as_ref()), (Some(in_file(2)), Some(&state)));
    }

    fn changed(state: &mut State, record: &mut StateRecord, port: u16) {
        let changes = change(port);
        let revision = Revision { generation: state.revision.generation + 1, ..state.revision.clone() };
        record.append(&changes, &revision, &Whose::Hand);
        state.apply_as(&Whose::Hand, &changes).unwrap();
        state.revision = revision;
        record.tidy(state);
    }

    #[test]
    fn what_was_written_and_changed_is_read_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("k.sock");
        let (mut state, mut record) = (State::default(), StateRecord::new(&socket));
        assert!(StateRecord::load(&socket).unwrap().is_none());
        begin(&mut record, &state, &Settings::default());
        for port in 1..=3 {
            changed(&mut state, &mut record, port);
            assert_eq!(read(&socket).as_ref(), Some(&state));
        }
        assert!(record.change_bytes > 0);
        // The changes take more than the state: it is written anew.
        record.change_bytes += LEAST_TO_REWRITE + record.state_bytes;
        changed(&mut state, &mut record, 4);
        assert_eq!(record.change_bytes, 0);
        assert_eq!(read(&socket), Some(state));
        record.remove();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_could_not_be_kept_up_to_date_is_removed_and_written_anew_when_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("k.sock");
        let (mut state, mut record) = (State::default(), StateRecord::new(&socket));
        begin(&mut record, &state, &Settings::default());
        // As on a disk that is full: the write fails, before the change is made.
        record.file = Some(File::options().write(true).open("/dev/full").unwrap());
        record.append(&change(1), &state.revision, &Whose::Hand);
        assert!(StateRecord::load(&socket).unwrap().is_none(), "what is there does not hold any more");
        assert!(record.failure().reason().is_some() && record.failure().due().is_some());
        changed(&mut state, &mut record, 1);
        assert_eq!((record.failure().reason(), record.failure().due()), (None, None));
        assert_eq!(read(&socket), Some(state));
    }

    #[test]
    fn what_others_can_have_written_is_no_record() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, elsewhere) = (folder.path().join("k.sock"), folder.path().join("elsewhere"));
        let path = StateRecord::path(&socket);
        begin(&mut StateRecord::new(&socket), &State::default(), &Settings::default());
        for mode in [0o604, 0o620, 0o640] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(StateRecord::load(&socket).is_err(), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(StateRecord::load(&socket).is_ok());
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(StateRecord::load(&socket).is_err(), "a link");
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(StateRecord::load(&socket).is_err(), "a FIFO");
    }
}
