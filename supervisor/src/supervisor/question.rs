//! What is asked of a supervisor, by whom, and where the answer goes.

use std::{os::fd::OwnedFd, sync::Arc};

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
    pub(crate) answer: AnswerTo,
    /// With [`Request::Upgrade`]: what must stay open, as another program answers.
    pub(crate) asker: Option<Asker>,
    /// With [`Request::Watch`].
    pub(crate) watcher: Option<Watcher>,
}

/// What whoever asked is told.
pub(crate) enum Reply {
    Response(Box<Response>),
    /// To [`Request::State`]: the text of the state, which all who wait for it share.
    State(Arc<Vec<u8>>),
}

/// Where an answer goes. That whoever asked may have left is nobody's loss.
pub(crate) struct AnswerTo(oneshot::Sender<Reply>);

impl AnswerTo {
    /// One, and where it comes out.
    pub(crate) fn new() -> (AnswerTo, oneshot::Receiver<Reply>) {
        let (sender, receiver) = oneshot::channel();
        (AnswerTo(sender), receiver)
    }

    pub(crate) fn send(self, response: Response) {
        let _ = self.0.send(Reply::Response(Box::new(response)));
    }

    /// The text of the state.
    pub(crate) fn send_state(self, text: Arc<Vec<u8>>) {
        let _ = self.0.send(Reply::State(text));
    }
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
