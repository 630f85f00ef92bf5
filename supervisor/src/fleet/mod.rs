//! The workers' processes, one by one: how they are started, watched, taken over and ended. Knows of no supervisor.

pub(crate) mod adoption;
pub(crate) mod attend;
pub(crate) mod backoff;
pub(crate) mod handle;
pub(crate) mod launch;
pub(crate) mod liveness;
pub(crate) mod process;
pub(crate) mod record;
pub(crate) mod worker;
