//! The levels of the file: which keys stand in the root, in a listener, in a cluster, ...
//!
//! Keys that are honoured are defined with the field that has their value (`crate::keys`); here stand those that have no
//! field: keys that are not honoured yet, keys whose reading takes more than their value, and tables.

mod cluster;
mod listener;
mod root;
mod tls;

pub(super) use self::{
    cluster::{BACKEND, CLUSTER, FRONTEND},
    listener::LISTENER,
    root::ROOT,
    tls::{FRONTEND_TLS, TLS as LISTENER_TLS},
};
#[cfg(test)]
pub(super) use self::{
    cluster::{HEADER, HEALTH_CHECK, PASSIVE, PLAIN_FRONTEND, PREDICATE, RATE_LIMIT, SPLIT, UDP, UDP_HEALTH},
    listener::{H2, PLAIN_LISTENER},
    root::{ADMIN, METRICS},
    tls::{BACKEND_TLS, CERTIFICATE, HSTS},
};
use crate::keys::{Effect, Key, Kind, Level, Support, affecting, key};
