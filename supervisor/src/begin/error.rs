//! Why kakehi does not start, or cannot go on.

use std::{io, path::PathBuf};

use crate::{
    admin, certificates,
    control::{command, run::NoWorkerLeft, save},
    host::{listeners, resources},
};

/// Why kakehi does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The host does not allow what kakehi needs.
    #[error(transparent)]
    Resources(#[from] resources::Error),
    /// A rule or an address of the configuration cannot be used.
    #[error(transparent)]
    State(#[from] kakehi_engine::config::CompileError),
    /// A certificate, or another file that TLS needs, cannot be used.
    #[error(transparent)]
    Certificate(#[from] certificates::Error),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listener(#[from] listeners::Error),
    /// The command socket cannot be opened.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The admin address cannot be had.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The pid file cannot be written.
    #[error("`pid_file_path` {path} cannot be written: {error}", path = path.display())]
    PidFile {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The kernel refused something that every program needs.
    #[error("the supervisor cannot run: {0}")]
    Runtime(io::Error),
    /// Another version has put certificates into memory.
    #[error(
        "the certificates of the workers that run cannot be read in memory: {0}; start the program that started these \
         workers, or end them (SIGTERM) and start anew"
    )]
    Vault(io::Error),
    /// The state that was saved cannot be used.
    #[error(transparent)]
    SavedState(#[from] save::LoadError),
    /// A worker could not be started for the first time.
    #[error("worker {id} could not start: {reason}")]
    FirstStart {
        /// Which worker.
        id: u32,
        /// What it said, or how it ended.
        reason: String,
    },
    /// The file is wrong, and no worker could be taken over.
    #[error("{0}; no worker could be taken over")]
    NobodyGoesOn(String),
    /// All workers are gone and none is to be replaced.
    #[error(transparent)]
    NoWorkerLeft(#[from] NoWorkerLeft),
}
