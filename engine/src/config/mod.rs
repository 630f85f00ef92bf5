//! A state compiled for traffic, whole or in part.
//!
//! | file | idea |
//! |---|---|
//! | `compile` | the whole state: a [`ListenerConfig`](crate::exchange::ListenerConfig) for each listener, and the clusters |
//! | `delta` | new rules for a few hosts of a table that is in use |
//! | `faults` | everything that is wrong with a state, by the tables and keys of the file |
//! | `tls_ingress` | what is decided before the first request: passthrough, and how TLS is terminated |
//! | `trial` | why a rule does not take a request |
//!
//! Relies on `route`, `upstream` and `tls` for what they compile, and on the data types that `exchange` reads. Promises:
//! what is wrong is found before anything changes; what is compiled in part decides as what is compiled whole.

mod compile;
mod delta;
mod faults;
mod tls_ingress;
mod trial;

pub use self::{
    compile::{Clusters, CompileError, ListenerConfigs},
    delta::{ConfigDelta, HostPrints, RoutesPatch},
    faults::faults,
    tls_ingress::TlsIngress,
    trial::{FrontendTrial, try_frontends},
};
