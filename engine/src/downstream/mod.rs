//! Client connections, from accept to close.
//!
//! | file | what happens |
//! |---|---|
//! | `accept` | a listener takes connections, up to the limit |
//! | `preamble` | what comes before the first request: PROXY protocol, TLS; connections that are passed on as they are |
//! | `connection` | a connection waits for a request, is served, waits again; at last it lingers and closes |
//! | `tunnel` | a connection has become a tunnel |
//! | `handover` | connections at rest come from the process before |
//!
//! | file | what it holds |
//! |---|---|
//! | `connections` | what the connections of a worker share: how many there are, whether the worker drains or hands over |
//! | `eviction` | those that are idle longest make room for new ones |
//! | `client` | the state of one connection |
//! | `h1` | an HTTP/1 connection as the downstream of an exchange |
//! | `successor` | the process that takes this one's place, and what it is given |
//!
//! Relies on `exchange`, `upstream`, `transfer`, `transport`. Promises: what a peer can make us hold is bounded; every wait
//! has a deadline; a connection moves to another process without losing a byte.

mod accept;
mod client;
mod connection;
mod connections;
mod eviction;
mod h1;
mod handover;
mod preamble;
mod successor;
mod tunnel;

pub use self::{
    accept::accept,
    connections::Connections,
    handover::{HandoverRegistry, inherit},
    successor::{Age, HandoverMessage, Successor},
};
