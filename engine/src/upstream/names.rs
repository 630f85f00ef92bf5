//! What is counted together of a cluster and its backends goes by these names in the ledger.
//!
//! Whatever is counted of something that is configured has its name here: the supervisor gives the slots of all other such names back.

use kakehi_ctl::state;

use super::hashing::hash;

/// A name in the ledger, of something that is configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Name(pub(super) u64);

impl Name {
    fn of_cluster(what: &str, cluster: &str) -> Name {
        Name(hash(format!("{what}\0{cluster}").as_bytes()))
    }

    fn of_backend(what: &str, cluster: &str, id: &str) -> Name {
        Name(hash(format!("{what}\0{cluster}\0{id}").as_bytes()))
    }

    /// What a cluster has in flight.
    pub(super) fn cluster(cluster: &str) -> Name {
        Name::of_cluster("cluster", cluster)
    }

    /// How many requests wait in a cluster.
    pub(super) fn waiting(cluster: &str) -> Name {
        Name::of_cluster("waiting", cluster)
    }

    /// Which of them has waited longest.
    pub(super) fn first(cluster: &str) -> Name {
        Name::of_cluster("first", cluster)
    }

    /// Requests of a cluster, and those that were sent again.
    pub(super) fn repetitions(cluster: &str) -> Name {
        Name::of_cluster("repetitions", cluster)
    }

    /// What a backend has to do.
    pub(super) fn backend(cluster: &str, id: &str) -> Name {
        Name::of_backend("backend", cluster, id)
    }

    /// How a backend has answered.
    pub(super) fn answers(cluster: &str, id: &str) -> Name {
        Name::of_backend("answers", cluster, id)
    }
}

/// The hashes of all names that `cluster`, which has this `name`, and its backends may have in the ledger; of one that has addresses in
/// the place of names.
pub fn names_in_ledger(name: &str, cluster: &state::Cluster) -> impl Iterator<Item = u64> + use<> {
    let of_cluster = [Name::cluster, Name::waiting, Name::first, Name::repetitions].map(|of| of(name));
    let of_backends =
        cluster.backends.iter().flat_map(|it| [Name::backend(name, &it.id), Name::answers(name, &it.id)]);
    let of_backends: Vec<Name> = of_backends.collect();
    of_cluster.into_iter().chain(of_backends).map(|Name(hash)| hash)
}
