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

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
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
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use socket2::SockRef;

/// A record of a process is far smaller (bytes).
const MAX_PROCESS: u64 = 64 << 10;
/// Changes are written one behind the other until they take so much more than the state itself (bytes).
const LEAST_TO_REWRITE: u64 = 1 << 20;

/// Why a file or a process is not what was written down.
#[derive(Debug, thiserror::Error)]
pub(super) enum Mismatch {
    /// The file.
    #[error("its record {path} {what}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// What was handed over.
    #[error("{0}")]
    Other(String),
}

/// Memory without a name, by what the kernel knows it as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    device: u64,
    inode: u64,
}

impl Memory {
    /// That behind a descriptor.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub(super) fn of(descriptor: impl AsFd) -> io::Result<Memory> {
        let status = File::from(descriptor.as_fd().try_clone_to_owned()?).metadata()?;
        Ok(Memory { device: status.dev(), inode: status.ino() })
    }
}

/// A process as its supervisor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    /// Its worker, and which of the worker's processes it is.
    pub(super) id: u32,
    pub(super) launch: u64,
    pub(super) pid: u32,
    /// When it was started (clock ticks since the boot): with its number, that is it and no other.
    started: u64,
    boot: String,
    counters: Memory,
    ended: Memory,
    vault: Memory,
}

impl ProcessRecord {
    /// Of a process that has just been started, or that is known to be this worker.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn of(
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
    pub(super) fn path(adoption: &Path) -> PathBuf {
        with_suffix(adoption, ".record")
    }

    /// Reads that of the process behind an adoption socket; `None` where there is none.
    ///
    /// # Errors
    /// When it is not what a supervisor of ours writes.
    pub(super) fn read(adoption: &Path) -> Result<Option<ProcessRecord>, Mismatch> {
        let path = Self::path(adoption);
        let wrong = |what: String| Mismatch::File { path: path.clone(), what };
        match open_own(&path) {
            Ok(file) => parse(file.take(MAX_PROCESS)).map(Some).map_err(|error| wrong(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// Writes it beside the adoption socket.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn write(&self, adoption: &Path) -> io::Result<()> {
        write_own(&Self::path(adoption), &serde_json::to_vec(self)?).map(drop)
    }

    /// Fails unless the process of this number is still the one that was started.
    pub(super) fn check_alive(&self) -> Result<(), Mismatch> {
        let other = |what: &str| Err(Mismatch::Other(format!("process {} {what}", self.pid)));
        match (boot(), started(self.pid)) {
            (Ok(boot), Ok(started)) if boot == self.boot && started == self.started => Ok(()),
            (_, Err(_)) => other("is gone"),
            _ => other("is another than the one that was started"),
        }
    }

    /// Fails unless that is the memory that the process was given.
    pub(super) fn check_memory(
        &self,
        counters: &OwnedFd,
        ended: &OwnedFd,
        vault: Option<&OwnedFd>,
    ) -> Result<(), Mismatch> {
        let vault = vault.map(|vault| (vault, self.vault, "certificates"));
        let all = [(counters, self.counters, "counters"), (ended, self.ended, "earlier counters")];
        for (descriptor, wanted, what) in all.into_iter().chain(vault) {
            if Memory::of(descriptor).ok() != Some(wanted) {
                return Err(Mismatch::Other(format!(
                    "it handed over memory for its {what} that is not its own"
                )));
            }
        }
        Ok(())
    }
}

/// Fails unless that is a socket which listens at the address.
pub(super) fn check_listener(socket: &OwnedFd, address: SocketAddr) -> Result<(), Mismatch> {
    let socket = SockRef::from(socket);
    let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
    match (socket.is_listener(), socket.r#type(), bound) {
        (Ok(true), Ok(socket2::Type::STREAM), Some(bound)) if bound == address => Ok(()),
        _ => Err(Mismatch::Other(format!(
            "it handed over something else than a socket that listens on {address}"
        ))),
    }
}

/// Whether the process of this number is a child of this one.
pub(super) fn is_child(pid: u32) -> bool {
    let own = std::process::id().to_string();
    status_fields(pid).is_ok_and(|fields| fields.get(1) == Some(&own))
}

/// The state as the supervisor knows it, in a file. A file that could not be kept up to date is removed: what is there holds.
pub(super) struct StateRecord {
    path: PathBuf,
    /// `None`: it is to be written anew.
    file: Option<File>,
    state_bytes: u64,
    change_bytes: u64,
    warned: bool,
}

/// One line behind the state.
#[derive(Serialize, Deserialize)]
struct Line {
    changes: Vec<Change>,
    revision: Revision,
}

impl StateRecord {
    /// Beside this command socket; not written yet.
    pub(super) fn new(command_socket: &Path) -> StateRecord {
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
    pub(super) fn load(command_socket: &Path) -> Result<Option<State>, Mismatch> {
        let path = Self::path(command_socket);
        let wrong = |error: io::Error| Mismatch::File { path: path.clone(), what: error.to_string() };
        let file = match open_own(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error)),
        };
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).map_err(wrong)?;
        let mut state: State = serde_json::from_slice(&line).map_err(|error| wrong(error.into()))?;
        loop {
            line.clear();
            lines.read_until(b'\n', &mut line).map_err(wrong)?;
            // The last may have been cut short: then the change was not made either.
            if line.last() != Some(&b'\n') {
                return Ok(Some(state));
            }
            let Line { changes, revision } =
                serde_json::from_slice(&line).map_err(|error| wrong(error.into()))?;
            for change in &changes {
                let refused =
                    |error: kakehi_ctl::change::ChangeError| wrong(io::Error::other(error.to_string()));
                state.apply(change).map_err(refused)?;
            }
            state.revision = revision;
        }
    }

    /// Writes the whole.
    pub(super) fn begin(&mut self, state: &State) {
        self.file = None;
        let written = serde_json::to_vec(state).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            self.state_bytes = text.len() as u64;
            self.change_bytes = 0;
            write_own(&self.path, &text)
        });
        match written {
            Ok(file) => self.file = Some(file),
            Err(error) => self.fail(&error),
        }
    }

    /// Writes what is about to be made, before it is.
    pub(super) fn append(&mut self, changes: &[Change], revision: &Revision) {
        let Some(file) = &mut self.file else { return };
        let line = Line { changes: changes.to_vec(), revision: revision.clone() };
        let written = serde_json::to_vec(&line).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            self.change_bytes += text.len() as u64;
            file.write_all(&text)
        });
        if let Err(error) = written {
            self.fail(&error);
        }
    }

    /// Writes the whole again where that takes less room than the changes, or nothing is written. To be called when a change
    /// was made.
    pub(super) fn tidy(&mut self, state: &State) {
        if self.file.is_none() || self.change_bytes > self.state_bytes.max(LEAST_TO_REWRITE) {
            self.begin(state);
        }
    }

    /// There is nobody any more whom it could be of use for.
    pub(super) fn remove(&mut self) {
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

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens a file that only its owner can have written, which is us.
fn open_own(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let status = file.metadata()?;
    let own =
        status.is_file() && status.uid() == nix::unistd::geteuid().as_raw() && status.mode() & 0o077 == 0;
    if own { Ok(file) } else { Err(io::Error::other("is not a file that only this user can write")) }
}

/// Writes a file for its owner only, whole or not at all; open to be written on.
fn write_own(path: &Path, content: &[u8]) -> io::Result<File> {
    let new = with_suffix(path, ".new");
    // Of a supervisor that was killed.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(content).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| drop(fs::remove_file(&new)))?;
    Ok(file)
}

fn parse<T: DeserializeOwned>(mut file: impl io::Read) -> io::Result<T> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Those of `/proc/PID/stat` from the third, the state, on: what comes before may hold anything.
fn status_fields(pid: u32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// Field 22 of `/proc/PID/stat`, of a process that has not ended.
fn started(pid: u32) -> io::Result<u64> {
    let fields = status_fields(pid)?;
    if fields.first().is_none_or(|state| state == "Z" || state == "X") {
        return Err(io::ErrorKind::NotFound.into());
    }
    let started = fields.get(19).and_then(|field| field.parse().ok());
    started.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
