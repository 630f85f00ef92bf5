//! Puts one worker together and obeys the supervisor's orders.

use std::{net::SocketAddr, os::fd::OwnedFd};

use kakehi_ctl::state::State;

use crate::observe::Counters;

/// What a worker starts from.
pub struct Setup {
    /// Its place in the row of workers, from 0.
    pub id: u32,
    /// The core to run on; `None` = wherever the scheduler puts it.
    pub core: Option<usize>,
    /// What to serve.
    pub state: State,
    /// Its own listening sockets, one per address of `state.listeners`.
    pub listeners: Vec<(SocketAddr, OwnedFd)>,
    /// The order channel: a stream socket that carries `Envelope<Order>` in and `Envelope<Report>` out.
    pub orders: OwnedFd,
    /// Its counters, in memory of the supervisor.
    pub counters: Counters,
}

/// Why a worker could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Placeholder.
    #[error("not implemented")]
    Unsupported,
}

/// Serves until it is ordered to stop. Sends `Report::Ready` when the listeners accept; when it cannot
/// get that far it sends `Report::Failed` and returns the error. When the order channel ends (the
/// supervisor died) it goes on serving; SIGTERM then makes it drain and end.
///
/// # Errors
/// See [`Error`].
pub fn run(setup: Setup) -> Result<(), Error> {
    let _ = setup;
    Err(Error::Unsupported)
}
