//! What is asked of a supervisor that serves, and the loop that carries it out: one operation at a time.
//!
//! | file | what it is for |
//! |---|---|
//! | [`run`] | the loop |
//! | [`command`], [`admission`] | the command socket: a task for each client, which asks the loop; who may be one |
//! | [`strangers`] | those who may not use it |
//! | [`requests`] | requests that change something, each an operation |
//! | [`change`], [`reload`] | changes, made by all workers or by none; those by the file |
//! | [`certificates`], [`tickets`] | certificates that come, go and are renewed; the keys of session tickets |
//! | [`sessions`] | sessions that are closed by hand |
//! | [`settings`] | settings of the process, by the file and by hand |
//! | [`save`] | the state on disk, when asked, at a stop, and at the next start |

mod admission;
pub(crate) mod certificates;
pub(crate) mod change;
pub(crate) mod command;
pub(crate) mod reload;
pub(crate) mod requests;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod sessions;
pub(crate) mod settings;
mod strangers;
pub(crate) mod tickets;
