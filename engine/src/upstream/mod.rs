//! Clusters: the endpoints behind a name, which of them takes the next request, and the connections to them.
//!
//! | file | idea |
//! |---|---|
//! | `cluster` | a [`Cluster`] and its endpoints, compiled; they live on through changes |
//! | `endpoint` | an [`Endpoint`]: a configured backend with what this worker knows of it |
//! | `balance` | chooses an endpoint by the policy of the cluster, past those that failed lately |
//! | `affinity` | what a request says of the endpoint that it belongs to: a key, a session |
//! | `names` | by which names all workers count together what belongs to a cluster |
//! | `hashing` | the hashes by which a key finds its endpoint |
//! | `ejection` | endpoints that are passed over because of how they answer |
//! | `window` | how often something happened in the last seconds |
//! | `trial` | one attempt at a time at an endpoint that could not be reached |
//! | `verdicts` | operator, probes and traffic: which endpoint can be used |
//! | `load` | what an endpoint has to do, and how quick it is |
//! | `connect` | [`Cluster::connect`] brings a request to an endpoint |
//! | `lease` | a [`Lease`]: one upstream connection, for one exchange |
//! | `queue` | requests that wait until an endpoint has room |
//! | `pool` | idle upstream connections, shared by all clients of the worker |
//!
//! Relies on `ring`, `tls` and `transport`, on `observe` for counting and on the reasons of `http`. All state is the
//! worker's own, but for the verdicts of probes, which the supervisor tells; nothing is shared between workers.

mod affinity;
mod balance;
mod cluster;
mod connect;
mod ejection;
mod endpoint;
mod hashing;
mod lease;
mod load;
mod names;
mod pool;
mod queue;
mod trial;
mod verdicts;
mod window;

pub use self::{
    affinity::{Affinity, of_client},
    cluster::{Admitted, Cluster, ClusterError, Endpoints},
    connect::{AttemptedEndpoints, ConnectError, ConnectOptions},
    endpoint::Endpoint,
    lease::Lease,
    names::names_in_ledger,
    pool::Pooling,
};
pub(crate) use self::{
    affinity::{split_point, split_point_of_client},
    cluster::Maintenance,
};
