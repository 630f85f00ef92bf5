//! Clusters: the endpoints behind a name, which of them takes the next request, and the connections to them.
//!
//! | file | idea |
//! |---|---|
//! | `cluster` | a [`Cluster`] and its endpoints, compiled; they live on through changes |
//! | `endpoint` | an [`Endpoint`]: a configured backend with what this worker knows of it |
//! | `balance` | chooses an endpoint: weighted round robin, past those that failed lately |
//! | `connect` | [`Cluster::connect`] brings a request to an endpoint |
//! | `lease` | a [`Lease`]: one upstream connection, for one exchange |
//! | `pool` | idle upstream connections, shared by all clients of the worker |
//!
//! Relies on `ring`, `tls` and `transport`, on `observe` for counting and on the reasons of `http`. All state is the
//! worker's own; nothing is shared between workers.

mod balance;
mod cluster;
mod connect;
mod endpoint;
mod lease;
mod pool;

pub use self::{
    cluster::{Cluster, ClusterError, Endpoints},
    connect::{AttemptedEndpoints, ConnectError, ConnectOptions},
    endpoint::Endpoint,
    lease::Lease,
    pool::Pooling,
};
