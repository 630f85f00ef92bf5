//! What is asked of a supervisor that runs: requests, changes, saves.

pub(crate) mod change;
pub(crate) mod command;
pub(crate) mod save;
