//! What a supervisor tells the one that comes after it, past the workers: which processes it started, on whose memory, and
//! what they serve.
//!
//! Workers handle what strangers send. One that strangers have taken over must gain nothing from the supervisor that takes
//! workers over: a state that names root's files as certificates, or the number of a process that is to be ended. So what
//! counts is written down by the supervisor when it knows it, in files beside the command socket that only its own user can
//! read and write. What a worker hands over is compared with that.
//!
//! | file | content |
//! |---|---|
//! | `SOCKET.wN.M.record` | one process of worker N |
//! | `SOCKET.state` | the state, and behind it, one to a line, the changes since |
//!
//! Nothing is synced to a disk: a restart of the machine ends the workers, too.

use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use kakehi_ctl::{
    change::Change,
    state::{Revision, State},
    store,
};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::fleet::process::stat_fields;

/// Changes are written one behind the other until they take so much (bytes), or more than the state itself.
const LEAST_TO_REWRITE: u64 = 1 << 20;

/// Memory without a name, by what the kernel knows it as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    device: u64,
    inode: u64,
}

impl Memory {
    fn of(descriptor: impl AsFd) -> io::Result<Memory> {
        let status = fstat(descriptor)?;
        Ok(Memory { device: status.st_dev, inode: status.st_ino })
    }
}

/// A process as its supervisor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    /// Its worker, and which of the worker's processes it is.
    pub(crate) id: u32,
    pub(crate) launch: u64,
    pub(crate) pid: u32,
    /// When it was started (clock ticks since the boot): with its number, that is it and no other.
    started: u64,
    boot: String,
    counters: Memory,
    ended: Memory,
    vault: Memory,
}

impl ProcessRecord {
    /// Of a process that has just been started.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn of(
        (id, launch, pid): (u32, u64, u32),
        counters: impl AsFd,
        ended: impl AsFd,
        vault: impl AsFd,
    ) -> io::Result<ProcessRecord> {
        Ok(ProcessRecord {
            id,
            launch,
            pid,
            started: started(pid)?,
            boot: boot()?,
            counters: Memory::of(counters)?,
            ended: Memory::of(ended)?,
            vault: Memory::of(vault)?,
        })
    }

    /// Where that of the process behind an adoption socket is.
    pub(crate) fn path(adoption: &Path) -> PathBuf {
        with_suffix(adoption, ".record")
    }

    /// Reads that of the process behind an adoption socket; `None` where there is none.
    ///
    /// # Errors
    /// When it is not what a supervisor of ours writes.
    pub(crate) fn read(adoption: &Path) -> io::Result<Option<ProcessRecord>> {
        let path = Self::path(adoption);
        let Some(file) = open_own(&path)? else { return Ok(None) };
        serde_json::from_reader(BufReader::new(file)).map(Some).map_err(|error| about(&path, error))
    }

    /// Writes it beside the adoption socket.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(&self, adoption: &Path) -> io::Result<()> {
        store::write_unsynced(&Self::path(adoption), &serde_json::to_vec(self)?, store::MODE).map(drop)
    }

    /// # Errors
    /// Unless the process of this number is still the one that was started.
    pub(crate) fn check_alive(&self) -> io::Result<()> {
        match (boot(), started(self.pid)) {
            (Ok(boot), Ok(started)) if boot == self.boot && started == self.started => Ok(()),
            (_, Err(_)) => Err(io::Error::other(format!("process {} is gone", self.pid))),
            _ => Err(io::Error::other(format!("process {} is another than was started", self.pid))),
        }
    }

    /// # Errors
    /// Unless that is the memory that the process was given.
    pub(crate) fn check_memory(
        &self,
        counters: &OwnedFd,
        ended: &OwnedFd,
        vault: Option<&OwnedFd>,
    ) -> io::Result<()> {
        for (handed_over, given, what) in [
            (Some(counters), self.counters, "counters"),
            (Some(ended), self.ended, "earlier counters"),
            (vault, self.vault, "certificates"),
        ] {
            if handed_over.and_then(|memory| Memory::of(memory).ok()) != Some(given) {
                let text = format!("it handed over memory for its {what} that is not its own");
                return Err(io::Error::other(text));
            }
        }
        Ok(())
    }
}

/// # Errors
/// Unless that is a socket which listens at the address.
pub(crate) fn check_listener(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
    match (socket.is_listener(), socket.r#type(), bound) {
        (Ok(true), Ok(socket2::Type::STREAM), Some(bound)) if bound == address => Ok(()),
        _ => Err(io::Error::other(format!("it handed over no socket that listens on {address}"))),
    }
}

/// Whether the process of this number is a child of this one.
pub(crate) fn is_child(pid: u32) -> bool {
    let own = std::process::id().to_string();
    let stat = stat(pid).unwrap_or_default();
    stat_fields(&stat).and_then(|mut fields| fields.nth(1)) == Some(&*own)
}

/// The state as the supervisor knows it, in a file. A file that could not be kept up to date is removed: what is there holds.
pub(crate) struct StateRecord {
    path: PathBuf,
    /// `None`: it is to be written anew.
    file: Option<File>,
    state_bytes: u64,
    change_bytes: u64,
    warned: bool,
}

/// One line behind the state.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    changes: Cow<'a, [Change]>,
    revision: Cow<'a, Revision>,
}

impl StateRecord {
    /// Beside this command socket; not written yet.
    pub(crate) fn new(command_socket: &Path) -> StateRecord {
        let path = Self::path(command_socket);
        StateRecord { path, file: None, state_bytes: 0, change_bytes: 0, warned: false }
    }

    fn path(command_socket: &Path) -> PathBuf {
        with_suffix(command_socket, ".state")
    }

    /// What the supervisor before wrote beside this command socket; `None` where there is nothing.
    ///
    /// # Errors
    /// When it is not what a supervisor of ours writes.
    pub(crate) fn load(command_socket: &Path) -> io::Result<Option<State>> {
        let path = Self::path(command_socket);
        let Some(file) = open_own(&path)? else { return Ok(None) };
        read_state(file).map(Some).map_err(|error| about(&path, error))
    }

    /// Writes the whole.
    pub(crate) fn begin(&mut self, state: &State) {
        let written = line(state).and_then(|text| {
            self.state_bytes = text.len() as u64;
            self.change_bytes = 0;
            store::write_unsynced(&self.path, &text, store::MODE)
        });
        match written {
            Ok(file) => self.file = Some(file),
            Err(error) => self.fail(&error),
        }
    }

    /// Writes what is about to be made, before it is.
    pub(crate) fn append(&mut self, changes: &[Change], revision: &Revision) {
        let Some(file) = &mut self.file else { return };
        let entry = Line { changes: changes.into(), revision: Cow::Borrowed(revision) };
        let written = line(&entry).and_then(|text| {
            self.change_bytes += text.len() as u64;
            file.write_all(&text)
        });
        if let Err(error) = written {
            self.fail(&error);
        }
    }

    /// Writes the whole again where that takes less room than the changes, or nothing is written. To be called when a change
    /// was made.
    pub(crate) fn tidy(&mut self, state: &State) {
        if self.file.is_none() || self.change_bytes > self.state_bytes.max(LEAST_TO_REWRITE) {
            self.begin(state);
        }
    }

    /// There is nobody any more whom it could be of use for.
    pub(crate) fn remove(&mut self) {
        self.file = None;
        let _ = fs::remove_file(&self.path);
    }

    fn fail(&mut self, error: &io::Error) {
        self.remove();
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                "the state cannot be written to {}: {error}; until it can, a supervisor that has to go on after this one \
                 goes back to what the file says",
                self.path.display()
            );
        }
    }
}

fn line(content: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(content)?;
    text.push(b'\n');
    Ok(text)
}

fn read_state(file: File) -> io::Result<State> {
    let mut lines = BufReader::new(file);
    let mut text = Vec::new();
    lines.read_until(b'\n', &mut text)?;
    let mut state: State = serde_json::from_slice(&text)?;
    loop {
        text.clear();
        lines.read_until(b'\n', &mut text)?;
        // The last may have been cut short: then the change was not made either.
        if text.last() != Some(&b'\n') {
            return Ok(state);
        }
        let Line { changes, revision } = serde_json::from_slice(&text)?;
        changes.iter().try_for_each(|change| state.apply(change)).map_err(io::Error::other)?;
        state.revision = revision.into_owned();
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn about(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("its record {} cannot be believed: {error}", path.display()))
}

/// Opens a file that only its owner can have written, which is us; `None` where there is none.
fn open_own(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(about(path, error)),
    };
    let status = file.metadata()?;
    let is_own = status.uid() == nix::unistd::geteuid().as_raw() && status.mode() & 0o077 == 0;
    match status.is_file() && is_own {
        true => Ok(Some(file)),
        false => Err(about(path, "it is not a file that only this user can write")),
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn stat(pid: u32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/stat"))
}

/// Field 22 of `/proc/PID/stat`, of a process that has not ended.
fn started(pid: u32) -> io::Result<u64> {
    let stat = stat(pid)?;
    let mut fields = stat_fields(&stat).ok_or(io::ErrorKind::InvalidData)?;
    if fields.next().is_none_or(|state| matches!(state, "Z" | "X")) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let started = fields.nth(18).and_then(|field| field.parse().ok());
    started.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn change(port: u16) -> Vec<Change> {
        let listener = kakehi_ctl::state::Listener::http(([127, 0, 0, 1], port).into());
        vec![Change::SetListener { listener }]
    }

    fn changed(state: &mut State, record: &mut StateRecord, port: u16) {
        let changes = change(port);
        let revision = Revision { generation: state.revision.generation + 1, ..state.revision.clone() };
        record.append(&changes, &revision);
        state.apply(&changes[0]).unwrap();
        state.revision = revision;
        record.tidy(state);
    }

    #[test]
    fn what_was_written_and_changed_is_read_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("k.sock");
        let (mut state, mut record) = (State::default(), StateRecord::new(&socket));
        assert!(StateRecord::load(&socket).unwrap().is_none());
        record.begin(&state);
        for port in 1..=3 {
            changed(&mut state, &mut record, port);
            assert_eq!(StateRecord::load(&socket).unwrap().as_ref(), Some(&state));
        }
        assert!(record.change_bytes > 0);
        // The changes take more than the state: it is written anew.
        record.change_bytes += LEAST_TO_REWRITE + record.state_bytes;
        changed(&mut state, &mut record, 4);
        assert_eq!(record.change_bytes, 0);
        assert_eq!(StateRecord::load(&socket).unwrap(), Some(state));
        record.remove();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_could_not_be_kept_up_to_date_is_removed_and_written_anew_when_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("k.sock");
        let (mut state, mut record) = (State::default(), StateRecord::new(&socket));
        record.begin(&state);
        // As on a disk that is full: the write fails, before the change is made.
        record.file = Some(File::options().write(true).open("/dev/full").unwrap());
        record.append(&change(1), &state.revision);
        assert!(StateRecord::load(&socket).unwrap().is_none(), "what is there does not hold any more");
        changed(&mut state, &mut record, 1);
        assert_eq!(StateRecord::load(&socket).unwrap(), Some(state));
    }

    #[test]
    fn what_others_can_have_written_is_no_record() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, elsewhere) = (folder.path().join("k.sock"), folder.path().join("elsewhere"));
        let path = StateRecord::path(&socket);
        StateRecord::new(&socket).begin(&State::default());
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
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(StateRecord::load(&socket).is_err(), "a FIFO");
    }

    #[test]
    fn a_process_is_known_by_its_number_and_its_time_and_its_memory() {
        let [counters, ended, vault, other] = [(); 4].map(|()| OwnedFd::from(tempfile::tempfile().unwrap()));
        let own = std::process::id();
        let record = ProcessRecord::of((0, 1, own), &counters, &ended, &vault).unwrap();
        assert!(record.check_alive().is_ok());
        assert!(ProcessRecord { started: record.started + 1, ..record.clone() }.check_alive().is_err());
        assert!(ProcessRecord { boot: "another".to_owned(), ..record.clone() }.check_alive().is_err());
        assert!(record.check_memory(&counters, &ended, Some(&vault)).is_ok());
        assert!(record.check_memory(&other, &ended, Some(&vault)).is_err());
        assert!(record.check_memory(&counters, &other, Some(&vault)).is_err());
        assert!(record.check_memory(&counters, &ended, Some(&other)).is_err());
        assert!(record.check_memory(&counters, &ended, None).is_err(), "it keeps the certificates to itself");
        assert!(!is_child(own));
    }

    #[test]
    fn only_a_socket_that_listens_at_the_address_is_a_listener() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(check_listener(&listener.into(), address).is_ok());
        assert!(check_listener(&other.into(), address).is_err());
        assert!(check_listener(&client.into(), address).is_err());
        assert!(check_listener(&tempfile::tempfile().unwrap().into(), address).is_err());
    }
}
