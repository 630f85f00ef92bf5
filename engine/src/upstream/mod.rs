//! Clusters: the endpoints behind a name, which of them takes the next request, and the connections to them.
//!
//! | file | idea |
//! |---|---|
//! | `cluster` | [`Cluster`] and its [`Endpoint`]s; [`Cluster::connect`] brings a request to one of them |
//! | `balance` | chooses an endpoint: weighted round robin, past those that failed lately |
//! | `pool` | idle upstream connections, shared by all clients of the worker |
//!
//! Relies on `ring`, `tls` and `transport`, on `observe` for counting and on the reasons of `http`. All state is the
//! worker's own; nothing is shared between workers.

mod balance;
mod cluster;
mod pool;

pub use self::{
    cluster::{AttemptedEndpoints, Cluster, ClusterError, ConnectOptions, Endpoint, Endpoints},
    pool::{Pooling, Upstream},
};
