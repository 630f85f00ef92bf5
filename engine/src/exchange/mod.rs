//! One request, from its head to the end of its response.
//!
//! | file | what happens |
//! |---|---|
//! | `forward` | head, route, connect, send, and the response, whatever becomes of each |
//! | `upload` | the rest of a request body, while the response is awaited |
//! | `response` | interim and final response, and whether the upstream connection can be used again |
//! | `tunnel` | after an accepted `Upgrade`: bytes both ways |
//!
//! and the state that these, and the folders above, work on:
//!
//! | file | what it holds |
//! |---|---|
//! | `shared` | what all connections of a worker share |
//! | `client` | a client connection |
//! | `listener` | the configuration of a listener, compiled |
//! | `successor` | the process that takes this one's place |
//! | `request_id` | request ids |
//!
//! Relies on `route`, `upstream`, `transfer`, `h1`. Promises: no request is answered twice or with another's answer; what
//! is cut short looks cut short; what a peer can make us hold is bounded; every wait has a deadline.

mod client;
mod forward;
mod listener;
mod request_id;
mod response;
mod shared;
mod successor;
pub(crate) mod tunnel;
mod upload;

pub(crate) use self::{
    client::{ClientConnection, Disposition},
    forward::exchange,
    listener::{Action, HstsPolicy, Passthrough, Routes, Target},
    successor::ConnectionOrigin,
};
pub use self::{
    listener::{ListenerConfig, ListenerHandle},
    shared::Shared,
    successor::{Age, HandoverMessage, Successor},
};
