//! What a supervisor tells the one that comes after it of a process that it started, past that process: who it is, and on whose
//! memory it runs.
//!
//! Workers handle what strangers send. One that strangers have taken over must gain nothing from the supervisor that takes
//! workers over: memory of others, or the number of a process that is to be ended. So what counts is written down by the
//! supervisor when it knows it, in a file beside the adoption socket (`SOCKET.wN.M.record`) that only its own user can read and
//! write. What a worker hands over is compared with that.

use std::{
    fs,
    io::{self, BufReader},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use kakehi_ctl::{
    keys::Effect,
    limits,
    order::{Adopted, Program},
    state::Settings,
    store,
};
use rustix::fs::fstat;
use serde::{Deserialize, Serialize};

use crate::{
    fleet::process::{parent_of, stat_fields},
    host::own_file,
};

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

/// A process and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// When it was started (clock ticks since the boot).
    started: u64,
    boot: String,
}

impl Identity {
    /// Of the process that has this number now.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn of(pid: u32) -> io::Result<Identity> {
        Ok(Identity { pid, started: started(pid)?, boot: boot()? })
    }

    /// # Errors
    /// Unless the process of this number is still this one, and has not ended.
    pub(crate) fn check_alive(&self) -> io::Result<()> {
        match Identity::of(self.pid) {
            Ok(present) if present == *self => Ok(()),
            Ok(_) => Err(io::Error::other(format!("process {} is another than was started", self.pid))),
            Err(_) => Err(io::Error::other(format!("process {} is gone", self.pid))),
        }
    }
}

/// A process as its supervisor knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Where it counts together with the others, if it does.
    #[serde(default)]
    ledger: Option<Memory>,
    /// What it runs. An earlier program did not say it, nor the settings.
    #[serde(default)]
    program: Option<Program>,
    /// What it was started with.
    #[serde(default)]
    settings: Option<Settings>,
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
            ledger: None,
            program: None,
            settings: None,
        })
    }

    /// The same, of one that runs this program with these settings.
    #[must_use]
    pub(crate) fn with(self, program: Option<Program>, settings: &Settings) -> ProcessRecord {
        ProcessRecord { program, settings: Some(settings.clone()), ..self }
    }

    /// The same, of one that counts there together with the others.
    #[must_use]
    pub(crate) fn counting_in(self, ledger: Option<&OwnedFd>) -> ProcessRecord {
        ProcessRecord { ledger: ledger.and_then(|memory| Memory::of(memory).ok()), ..self }
    }

    /// # Errors
    /// Unless that is the memory in which the process was to count together with the others.
    pub(crate) fn check_ledger(&self, ledger: &OwnedFd) -> io::Result<()> {
        match (Memory::of(ledger)?, self.ledger) {
            (handed_over, Some(given)) if handed_over == given => Ok(()),
            _ => Err(io::Error::other(
                "it handed over memory for what workers count together that is not theirs",
            )),
        }
    }

    /// Where that of the process behind an adoption socket is.
    pub(crate) fn path(adoption: &Path) -> PathBuf {
        own_file::with_suffix(adoption, ".record")
    }

    /// Reads that of the process behind an adoption socket; `None` where there is none.
    ///
    /// # Errors
    /// When it is not what a supervisor of ours writes.
    pub(crate) fn read(adoption: &Path) -> io::Result<Option<ProcessRecord>> {
        let path = Self::path(adoption);
        let Some(file) = own_file::open(&path)? else { return Ok(None) };
        serde_json::from_reader(BufReader::new(file)).map(Some).map_err(|error| own_file::about(&path, error))
    }

    /// Writes it beside the adoption socket.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(&self, adoption: &Path) -> io::Result<()> {
        store::write_unsynced(&Self::path(adoption), &[&serde_json::to_vec(self)?], store::MODE).map(drop)
    }

    /// Removes it from beside the adoption socket, unless it is that of another process.
    pub(crate) fn remove(&self, adoption: &Path) {
        let is_it =
            |there: &ProcessRecord| (there.launch, there.identity()) == (self.launch, self.identity());
        if matches!(ProcessRecord::read(adoption), Ok(Some(there)) if is_it(&there)) {
            let _ = fs::remove_file(Self::path(adoption));
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { pid: self.pid, started: self.started, boot: self.boot.clone() }
    }

    /// # Errors
    /// Unless the process of this number is still the one that was started.
    pub(crate) fn check_alive(&self) -> io::Result<()> {
        self.identity().check_alive()
    }

    /// Has what the process says of itself be what is known of it.
    ///
    /// # Errors
    /// When it says that it is another.
    pub(crate) fn check_words(&self, about: &mut Adopted) -> io::Result<()> {
        let is_it = (about.id, about.launch, about.pid) == (self.id, self.launch, self.pid)
            && self.program.as_ref().is_none_or(|program| *program == about.program);
        if !is_it {
            let text = "it says that it is another process than the one that was started";
            return Err(io::Error::other(text));
        }
        if let Some(settings) = &self.settings {
            about.settings.take_keys(settings, Effect::Workers);
        }
        Ok(())
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

/// Of a process of which there is no record.
///
/// # Errors
/// Unless it is a child of this one, with numbers that a worker can have.
pub(crate) fn check_child(about: &Adopted) -> io::Result<()> {
    match is_child(about.pid) {
        true if about.id < limits::MAX_WORKERS && about.launch <= u64::from(u32::MAX) => Ok(()),
        true => Err(io::Error::other("it says numbers of itself that no worker has")),
        false => Err(io::Error::other(format!("process {} was not started by this one", about.pid))),
    }
}

/// Whether the process of this number is a child of this one.
pub(crate) fn is_child(pid: u32) -> bool {
    parent_of(pid) == Some(std::process::id())
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
    use kakehi_ctl::state::Revision;

    use super::*;

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
        assert!(record.check_ledger(&other).is_err(), "it was given none");
        let counting = record.counting_in(Some(&ended));
        assert!(counting.check_ledger(&ended).is_ok() && counting.check_ledger(&other).is_err());
        assert!(!is_child(own));
    }

    #[test]
    fn what_a_process_says_of_itself_counts_only_where_it_is_what_is_known() {
        let [counters, ended, vault] = [(); 3].map(|()| OwnedFd::from(tempfile::tempfile().unwrap()));
        let own = std::process::id();
        let settings = Settings { user: Some("nobody".to_owned()), ..Settings::default() };
        let program = Program { version: "1".to_owned(), file: (1, 2) };
        let record = ProcessRecord::of((0, 1, own), &counters, &ended, &vault).unwrap();
        let record = record.with(Some(program.clone()), &settings);
        let about = Adopted {
            id: 0,
            launch: 1,
            pid: own,
            core: None,
            leaving: false,
            revision: Revision::default(),
            settings: Settings::default(),
            program,
            io_uring_level: 4,
            io_uring_features: Vec::new(),
            capabilities: Vec::new(),
        };
        let mut known = about.clone();
        assert!(record.check_words(&mut known).is_ok());
        assert_eq!(known.settings.user.as_deref(), Some("nobody"));
        let other = Program { version: "1".to_owned(), file: (1, 3) };
        for mut lie in [
            Adopted { id: 1, ..about.clone() },
            Adopted { launch: u64::MAX, ..about.clone() },
            Adopted { pid: 1, ..about.clone() },
            Adopted { program: other, ..about.clone() },
        ] {
            assert!(record.check_words(&mut lie).is_err(), "{lie:?}");
        }
        assert!(check_child(&about).is_err());
    }
}
