//! Client connections, from accept to close.
//!
//! | file | what happens |
//! |---|---|
//! | `accept` | a listener takes connections, up to the limit |
//! | `preamble` | what comes before the first request: PROXY protocol, TLS; connections that are passed on as they are |
//! | `connection` | a connection waits for a request, is served, waits again; at last it lingers and closes |
//! | `handover` | connections at rest that come from the process before |
//!
//! Relies on `exchange`, `upstream`, `transport`. Promises: what a peer can make us hold is bounded; every wait has a
//! deadline.

mod accept;
mod connection;
mod handover;
mod preamble;

pub use self::{
    accept::accept,
    handover::{HandoverRegistry, inherit},
};
