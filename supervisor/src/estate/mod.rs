//! What moves from one supervisor to the next: through `execve` when its program is replaced ([`Estate`]), and by a file when it
//! dies ([`record`], [`names_record`]). Knows of no supervisor that runs.

pub(crate) mod names_record;
pub(crate) mod record;

use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use command_fds::{CommandFdExt as _, inherited::take_fd_ownership};
use kakehi_ctl::{
    event::Topic,
    order::{ListenerSocket, Verdict},
    state::{KnownName, Settings, State},
};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::{
    fleet::{dismissed::Ending, record::ProcessRecord},
    host::{init_system, signals},
};

/// What a supervisor leaves to the one that takes its place: descriptors, and what only it knows.
pub(crate) struct Estate {
    pub(crate) will: Will,
    pub(crate) command_socket: OwnedFd,
    /// The connection of whoever asked.
    pub(crate) client: OwnedFd,
    /// By worker.
    pub(crate) sockets: Vec<(u32, ListenerSocket, OwnedFd)>,
    /// Certificates and ticket keys. A program from before there were any leaves none.
    pub(crate) vault: Option<OwnedFd>,
    /// Where the admin address is accepted on, if there is one. A program from before there was any leaves none.
    pub(crate) admin: Option<OwnedFd>,
    /// The program that ran before.
    pub(crate) before: OwnedFd,
}

/// The part of an [`Estate`] that is not descriptors.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Will {
    pub(crate) state: State,
    /// As the file had them.
    pub(crate) settings: Settings,
    /// How many workers there are.
    pub(crate) workers: usize,
    /// Where the program lies that an upgrade runs.
    pub(crate) program: Option<PathBuf>,
    /// Number of the request that asked for it.
    pub(crate) request: u64,
    /// Under which number whoever asked is told what happens, and about which topics.
    #[serde(default)]
    pub(crate) watch: Option<(u64, Vec<Topic>)>,
    /// The processes of workers, of each of which there is a record. A program from before there were any does not say it.
    #[serde(default)]
    pub(crate) processes: Option<Vec<u32>>,
    /// What is known of each of them, by the name of its adoption socket: there may be no room for a file. An earlier program does not
    /// say it.
    #[serde(default)]
    pub(crate) records: Vec<(String, ProcessRecord)>,
    /// Processes that are no workers any more, and were told to end. An earlier program does not say it.
    #[serde(default)]
    pub(crate) ending: Vec<Ending>,
    /// Whoever asked knows signs of life.
    #[serde(default)]
    pub(crate) knows_signs: bool,
    /// What probes found of backends. An earlier program does not say it.
    #[serde(default)]
    pub(crate) verdicts: Vec<Verdict>,
    /// What is known of names of backends. An earlier program does not say it.
    #[serde(default)]
    pub(crate) names: Vec<KnownName>,
    /// Why the new program did not come up; then the one that reads this is the one before.
    pub(crate) failed: Option<String>,
}

/// An [`Estate`] on its way through `execve`.
#[derive(Deserialize)]
struct Inventory {
    will: Will,
    #[serde(flatten)]
    descriptors: Descriptors,
}

/// The descriptors of an [`Inventory`], by their numbers.
#[derive(Serialize, Deserialize)]
struct Descriptors {
    command_socket: RawFd,
    client: RawFd,
    sockets: Vec<(u32, ListenerSocket, RawFd)>,
    #[serde(default)]
    vault: Option<RawFd>,
    #[serde(default)]
    admin: Option<RawFd>,
    before: RawFd,
}

impl Estate {
    /// Takes what the supervisor before left, whose inventory is in the memory behind `number`.
    pub(crate) fn receive(number: RawFd) -> io::Result<Estate> {
        let take = |number| take_fd_ownership(number).map_err(io::Error::other);
        let mut memory = File::from(take(number)?);
        memory.rewind()?;
        let inventory: Inventory = serde_json::from_reader(io::BufReader::new(memory))?;
        let Inventory { will, descriptors } = inventory;
        let sockets = descriptors.sockets.into_iter();
        Ok(Estate {
            will,
            command_socket: take(descriptors.command_socket)?,
            client: take(descriptors.client)?,
            sockets: sockets
                .map(|(id, address, fd)| Ok((id, address, take(fd)?)))
                .collect::<io::Result<_>>()?,
            vault: descriptors.vault.map(take).transpose()?,
            admin: descriptors.admin.map(take).transpose()?,
            before: take(descriptors.before)?,
        })
    }

    /// Executes `program` in the place of this one; returns only when that fails. `will` is the text of [`Estate::will`].
    pub(crate) fn leave_to(
        &self,
        will: &[u8],
        program: &Path,
        file: &Path,
    ) -> io::Result<std::convert::Infallible> {
        let mut open = Vec::new();
        let mut keep = |descriptor: &OwnedFd| -> io::Result<RawFd> {
            let copy = descriptor.try_clone()?;
            let number = copy.as_raw_fd();
            open.push(copy);
            Ok(number)
        };
        let descriptors = Descriptors {
            command_socket: keep(&self.command_socket)?,
            client: keep(&self.client)?,
            sockets: self
                .sockets
                .iter()
                .map(|(id, which, socket)| Ok((*id, *which, keep(socket)?)))
                .collect::<io::Result<_>>()?,
            vault: self.vault.as_ref().map(&mut keep).transpose()?,
            admin: self.admin.as_ref().map(&mut keep).transpose()?,
            before: keep(&self.before)?,
        };
        // The will is large, and was written while others were served.
        let descriptors = serde_json::to_vec(&descriptors)?;
        let inventory = [b"{\"will\":", will, b",", descriptors.get(1..).unwrap_or_default()].concat();
        let memory = keep(&memory_with(&inventory)?)?;
        let mut command = Command::new(program);
        command.arg0("kakehi").arg("start").arg("--config").arg(file);
        command.arg("--resume").arg(memory.to_string());
        command.preserved_fds(open);
        // What waits would be gone.
        init_system::flush();
        crate::logging::flush();
        // What comes in between is kept until the new program listens to it.
        signals::hold_back()?;
        Err(command.exec())
    }
}

/// Memory with `content`.
pub(crate) fn memory_with(content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"kakehi", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}
