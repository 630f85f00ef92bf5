//! Counters: what a worker did, in memory that the supervisor owns.
//!
//! Each worker has one [`Counters`] block in a shared mapping that the supervisor made and keeps, so a
//! count survives the death of the worker that counted and goes on in its successor. Only one process
//! writes to a block at a time, so an increment is a plain load and store (`word`). Relies on `http` for the list of
//! reasons alone, by which own answers are counted.

mod counters;
mod log_limit;
mod sys;
mod word;

pub use counters::{Counter, Counters};
pub use log_limit::LogLimit;
pub(crate) use sys::SharedWords;
