//! The control vocabulary of kakehi: what the file, the supervisor, the workers and `kakehictl` say to each other.
//!
//! - [`config`] reads the TOML file into a [`state::State`], with errors that name file, line, column and key.
//! - [`state`] is everything that a worker needs to serve: listeners, clusters, frontends, backends, settings.
//! - [`change`] is what can happen to a state, one change at a time, and the difference of two states.
//! - [`layers`] is whose the entries of a state are: a file's, or by hand.
//! - [`event`] is what those hear who watch.
//! - [`store`] keeps a state in a file.
//! - [`order`] holds the typed messages: requests of `kakehictl`, orders to workers, and their answers.
//! - [`template`] reads whole responses with variables in them.
//! - [`wire`] frames those messages: a length, then JSON, bounded in size.
//! - [`keys`] are the keys of the file, each defined once.
//! - [`limits`] is the one place where every limit and deadline has its name and default.
//!
//! There is no I/O loop and no socket here; whoever links the library brings their own.

pub mod change;
pub mod config;
pub mod edit;
pub mod event;
pub mod keys;
pub mod layers;
pub mod limits;
pub mod order;
pub mod state;
pub mod store;
pub mod template;
pub mod wire;
