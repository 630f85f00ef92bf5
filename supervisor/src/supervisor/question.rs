//! What is asked of a supervisor, by whom, and where the answer goes.

use std::os::fd::OwnedFd;

use kakehi_ctl::{
    event::Topic,
    order::{Request, Response},
};
use tokio::sync::oneshot;

use crate::supervisor::watchers::{End, Watcher};

/// A request that waits for its answer.
pub(crate) struct Question {
    /// What is asked.
    pub(crate) request: Request,
    /// By whom: user and process, as the kernel knows them (`SO_PEERCRED`).
    pub(crate) peer: String,
    /// Which user, if it is neither root nor our own.
    pub(crate) guest: Option<u32>,
    /// It is root or our own user.
    pub(crate) privileged: bool,
    /// Where the answer goes.
    pub(crate) answer: oneshot::Sender<Response>,
    /// With [`Request::Upgrade`]: what must stay open, as another program answers.
    pub(crate) asker: Option<Asker>,
    /// With [`Request::Watch`].
    pub(crate) watcher: Option<Watcher>,
}

/// Who asked, and where.
pub(crate) struct Asker {
    /// Number of the request.
    pub(crate) request: u64,
    /// The watch that it has begun before.
    pub(crate) watch: Option<(u64, Vec<Topic>, End)>,
    /// It knows [`Response::Working`].
    pub(crate) knows_signs: bool,
    pub(crate) connection: OwnedFd,
    pub(crate) command_socket: OwnedFd,
}
