//! What a worker starts from, and how it ends.

use std::{io, net::SocketAddr, os::fd::OwnedFd, rc::Rc};

use kakehi_ctl::{
    order::{ListenerSocket, Program, Verdict},
    state::{NameAnswer, State},
    wire::WireError,
};
use nix::unistd::{Gid, Uid};

use super::DescriptorChannel;
use crate::{
    config::CompileError,
    ledger::Ledger,
    observe::Counters,
    ring::{Level, SetupError},
    tls::Vault,
};

/// What a worker starts from.
pub struct Setup {
    /// Its place in the row of workers, from 0.
    pub id: u32,
    /// The core to run on; `None` = wherever the scheduler puts it.
    pub core: Option<usize>,
    /// What to serve.
    pub state: State,
    /// The highest rung of the ladder of kernel features to use.
    pub level: Level,
    /// Has the log show what this `log_level` says.
    pub set_log_level: fn(&str),
    /// Its own listening sockets, one per address of `state.listeners`.
    pub listeners: Vec<(ListenerSocket, OwnedFd)>,
    /// The order channel: a stream socket that carries `Envelope<Order>` in and `Envelope<Report>` out.
    pub orders: OwnedFd,
    /// Its counters, in memory of the supervisor.
    pub counters: Counters,
    /// Where idle connections go when it is told to hand over.
    pub successor: OwnedFd,
    /// Where the connections of the process before come from, if there is one.
    pub predecessor: Option<OwnedFd>,
    /// Whom the process becomes before it serves.
    pub identity: Option<Identity>,
    /// Over which descriptors come that an order speaks of.
    pub channel: Rc<dyn DescriptorChannel>,
    /// A unix socket that listens, does not block, and keeps message boundaries: over it another supervisor takes the
    /// worker over when this one has died.
    pub adoption: OwnedFd,
    /// The memory behind `counters`.
    pub counters_memory: OwnedFd,
    /// The memory of what processes before this one counted, kept for a supervisor to come.
    pub ended_memory: OwnedFd,
    /// Where all workers count together, with its memory; without it this one counts for itself.
    pub ledger: Option<(Ledger, OwnedFd)>,
    /// Where certificates, keys and ticket keys lie.
    pub vault: Vault,
    /// What probes found of backends.
    pub verdicts: Vec<Verdict>,
    /// What the DNS says of names of backends.
    pub names: Vec<NameAnswer>,
    /// Which of the worker's processes this is, counted from 1.
    pub launch: u64,
    /// Which program this is.
    pub program: Program,
}

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub user: Uid,
    /// Group.
    pub group: Gid,
}

/// Why a worker could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ring could not be made.
    #[error(transparent)]
    Ring(#[from] SetupError),
    /// The executor around it could not be made.
    #[error("the executor cannot start: {0}")]
    Executor(String),
    /// The state cannot be compiled.
    #[error(transparent)]
    ListenerConfig(#[from] CompileError),
    /// A listening socket is missing.
    #[error("no listening socket was handed over for {0}")]
    Listener(SocketAddr),
    /// The worker cannot be pinned.
    #[error("cannot run on core {core}: {error}")]
    Pin {
        /// The core.
        core: usize,
        /// What the kernel said.
        error: io::Error,
    },
    /// The worker cannot become what it should be.
    #[error("cannot become uid {uid}, gid {gid}: {error}; only root can (`user` and `group`)", uid = .identity.user, gid = .identity.group)]
    Identity {
        /// Whom.
        identity: Identity,
        /// What the kernel said.
        error: io::Error,
    },
    /// A system call failed.
    #[error("{0}")]
    System(#[from] io::Error),
    /// The order channel failed.
    #[error("the order channel failed: {0}")]
    Orders(#[from] WireError),
    /// The worker cannot go on, and has finished what it could.
    #[error("{0}")]
    Failed(String),
}

/// How a worker that was told to stop has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All that it served had come to its end.
    Drained,
    /// The deadline came first: connections were cut.
    Cut,
}
