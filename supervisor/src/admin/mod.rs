//! The admin address: `/metrics`, `/healthz` and `/readyz` over HTTP, for reading only.
//!
//! A task of its own serves it on the supervisor's thread. What it tells is asked of the supervisor's loop ([`Ask`]), which gives a value
//! that another thread writes and compresses: the loop waits for no client, and no client for another. What clients can take is
//! bounded: places, time, heads, and the texts that are in memory.
//!
//! | file | what it is for |
//! |---|---|
//! | [`open`](self::open()) | the listening socket |
//! | `server` | the task: who connects, who goes for whom, whom it hands texts |
//! | `connection`, `activity` | one client, and how long it has been at what |
//! | `respond` | what is answered |
//! | `negotiate` | `Accept` and `Accept-Encoding` |
//! | `rules` | who may connect, and by which name |
//! | `bodies` | texts of metrics, each written once for all who ask at the same time |
//! | `figures` | what is counted |
//!
//! Promises: nothing of a client's is read but heads of requests; nothing changes by a request; the descriptor of the listening socket
//! can be left to the next program ([`Admin::left`]), which refuses nobody.

mod activity;
mod bodies;
mod connection;
mod figures;
mod negotiate;
mod open;
mod respond;
mod rules;
mod server;
#[cfg(test)]
mod tests;

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use kakehi_ctl::{
    limits,
    state::{self, AdminAddress},
};
use tokio::{
    sync::{
        mpsc::{Receiver, Sender, channel},
        oneshot, watch,
    },
    task::AbortHandle,
};

pub(crate) use self::open::{Error, Opened, open};
use self::{
    figures::Figures,
    rules::Rules,
    server::{Mode, Server},
};
use crate::{host::own_socket::SocketFile, metrics::Snapshot};

/// Something that only the supervisor's loop can say.
pub(crate) enum Ask {
    /// All figures.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Whether it serves.
    Standing(oneshot::Sender<Standing>),
}

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// At least one worker serves.
    pub(crate) serves: bool,
    /// Why it is not all that it should be; `None`: it is.
    pub(crate) lacks: Option<String>,
}

/// The admin address of a supervisor, which may have none.
pub(crate) struct Admin {
    serving: Option<Serving>,
    asks: Sender<Ask>,
    /// What the loop is to say.
    pub(crate) asked: Receiver<Ask>,
    figures: Arc<Figures>,
}

/// A task that serves, which ends with this.
struct Serving {
    address: AdminAddress,
    /// The one that is accepted on; `None`: it is about to be closed.
    socket: Option<OwnedFd>,
    /// Of a unix socket: removed when this is dropped.
    file: Option<SocketFile>,
    rules: watch::Sender<Arc<Rules>>,
    mode: watch::Sender<Mode>,
    clients: watch::Receiver<usize>,
    task: AbortHandle,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Admin {
    /// One that serves nothing yet.
    pub(crate) fn new() -> Admin {
        let (asks, asked) = channel(limits::ADMIN_QUESTIONS);
        Admin { serving: None, asks, asked, figures: Arc::default() }
    }

    /// Serves what was opened by these settings, in the place of what is served now: that takes no new clients, and ends when
    /// its own have their answers.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub(crate) fn serve(&mut self, opened: Opened, settings: &state::Admin) -> io::Result<()> {
        let Opened { address, socket, file } = opened;
        let (rules, rules_seen) = watch::channel(Arc::new(Rules::new(settings)));
        let (mode, mode_seen) = watch::channel(Mode::Serve);
        let (counted, clients) = watch::channel(0);
        let server = Server::new(
            socket.try_clone()?,
            &address,
            (rules_seen, mode_seen, counted),
            self.asks.clone(),
            Arc::clone(&self.figures),
        )?;
        let task = tokio::spawn(server.serve()).abort_handle();
        let serving = Serving { address, socket: Some(socket), file, rules, mode, clients, task };
        self.replace(Some(serving));
        Ok(())
    }

    /// Has other settings hold for those who connect, and for what is asked from now on. Without an address, nothing is served.
    pub(crate) fn take(&mut self, settings: &state::Admin) {
        if settings.address.is_none() {
            return self.replace(None);
        }
        if let Some(serving) = &self.serving {
            serving.rules.send_replace(Arc::new(Rules::new(settings)));
        }
    }

    fn replace(&mut self, serving: Option<Serving>) {
        let Some(mut before) = std::mem::replace(&mut self.serving, serving) else { return };
        // Nobody finds it any more, and no queue stays open that nobody takes from.
        (before.file, before.socket) = (None, None);
        before.mode.send_replace(Mode::Close);
        let drained = drained(before.clients.clone());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(DRAIN, drained).await;
            drop(before);
        });
    }

    /// Takes no new clients, which wait in the kernel; what comes back ends when those that are there have their answers, or after a
    /// short time.
    pub(crate) fn pause(&self) -> impl Future<Output = ()> + use<> {
        let clients = self.serving.as_ref().map(|serving| {
            serving.mode.send_replace(Mode::Pause);
            serving.clients.clone()
        });
        async move {
            if let Some(clients) = clients {
                let _ = tokio::time::timeout(DRAIN, drained(clients)).await;
            }
        }
    }

    /// Ends a [`Admin::pause`].
    pub(crate) fn go_on(&self) {
        if let Some(serving) = &self.serving {
            serving.mode.send_replace(Mode::Serve);
        }
    }

    /// The listening socket, for the program that comes.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn left(&self) -> io::Result<Option<OwnedFd>> {
        self.socket().map(OwnedFd::try_clone).transpose()
    }

    /// Stops, and leaves the file of a unix socket where it is: another program answers there.
    pub(crate) fn leave(&mut self) {
        if let Some(file) = self.serving.take().and_then(|mut serving| serving.file.take()) {
            file.leave();
        }
    }

    /// The socket that is served.
    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.serving.as_ref()?.socket.as_ref()
    }

    /// The address that is served.
    pub(crate) fn address(&self) -> Option<&AdminAddress> {
        self.serving.as_ref().map(|serving| &serving.address)
    }

    /// What is counted, by name.
    pub(crate) fn figures(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        self.figures.all()
    }
}

/// Responses that are under way have so long to end.
const DRAIN: Duration = Duration::from_millis(limits::ADMIN_DRAIN_MS);

/// Ends when there are no clients any more.
async fn drained(mut clients: watch::Receiver<usize>) {
    // The task that counts them may have ended.
    let _ = clients.wait_for(|count| *count == 0).await;
}
