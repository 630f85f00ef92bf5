//! How an exchange ended, and what a phase that failed makes of it.

use std::rc::Rc;

use super::{LocalReply, Request};
use crate::{
    h1::ResponseDefect,
    http::Reason,
    transfer::ReadBuffer,
    upstream::{Cluster, Lease},
};

/// How an exchange ended.
pub(crate) enum Outcome {
    /// The response was passed on whole.
    Done {
        /// Another request may follow: the request was read to its end, and neither side wants to close.
        goes_on: bool,
        /// The client has said that it sends nothing more.
        last: bool,
        /// The rest of the request body may still be coming.
        unread: bool,
    },
    /// The client gets a reply of our own.
    LocalReply(Box<LocalReply>),
    /// The client went away.
    ClientGone,
    /// The client took nothing for too long.
    ClientStalled,
    /// The response was cut short.
    Cut {
        /// Nothing but a reset shows that.
        reset: bool,
    },
    /// The backend accepted an upgrade: a tunnel follows.
    Upgraded(Box<Upgrade>),
}

/// A tunnel that follows an exchange.
pub(crate) struct Upgrade {
    pub(crate) lease: Lease,
    pub(crate) cluster: Rc<Cluster>,
    /// How long nothing may move (ms).
    pub(crate) idle_ms: u64,
    /// What the backend sent behind the head of its 101.
    pub(crate) early_tunnel_data: ReadBuffer,
}

/// Why a phase did not come to its end.
pub(crate) enum Failure {
    /// The backend closed without a byte of a response: it may never have read the request.
    Unanswered,
    /// The client has got no final response yet: it can be told.
    Reply(Reason),
    /// So it can where the response is refused.
    Refused(ResponseDefect),
    /// The response is cut short; with `reset` nothing else would show that. `defect`: what was wrong with it, if it was.
    Cut { reset: bool, defect: Option<ResponseDefect> },
    /// The response has a status with which the request is sent again; nothing of it went to the client.
    Again,
    /// The client is gone.
    ClientGone,
    /// The client took nothing for too long.
    ClientStalled,
}

impl Failure {
    /// What was wrong with the response, if anything was.
    pub(super) fn defect(&self) -> Option<ResponseDefect> {
        match self {
            Failure::Refused(defect) => Some(*defect),
            Failure::Cut { defect, .. } => *defect,
            _ => None,
        }
    }

    /// True if a backend on a reused connection may never have read the request. What is no status line belongs to the
    /// response before (RFC 9112 section 9.2), and the connection is as good as dead.
    pub(super) fn is_unread(&self) -> bool {
        matches!(self, Failure::Unanswered | Failure::Refused(ResponseDefect::NoStatusLine))
    }

    /// Whether it is the backend's: it ended the connection or said nothing before the head of a response was complete.
    pub(super) fn is_of_backend(&self) -> bool {
        self.is_reset() || self.is_timeout()
    }

    /// Whether the backend ended the connection before the head of a response was complete.
    pub(super) fn is_reset(&self) -> bool {
        self.is_unread() || matches!(self, Failure::Refused(ResponseDefect::HeadCut))
    }

    /// Whether it said nothing for too long.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Failure::Reply(Reason::BackendTimeout))
    }

    /// The outcome of an exchange that failed so. `complete`: nothing of the request is left to be read.
    pub(super) fn outcome(self, request: &Request, complete: bool) -> Outcome {
        match self {
            // Whoever says it sends it again.
            Failure::Again | Failure::Unanswered => request.local_reply(Reason::BackendClosed, complete),
            Failure::Reply(reason) => request.local_reply(reason, complete),
            Failure::Refused(defect) => request.local_reply(defect.reason(), complete),
            Failure::Cut { reset, .. } => Outcome::Cut { reset },
            Failure::ClientGone => Outcome::ClientGone,
            Failure::ClientStalled => Outcome::ClientStalled,
        }
    }
}
