//! The processes of one worker: how they are started, watched, taken over and ended. Knows of no supervisor: what happens comes out
//! as events, and who wants something of a worker calls its methods.
//!
//! | file | what it is for |
//! |---|---|
//! | [`worker`] | one worker, through all its processes: state, sockets, figures |
//! | [`process`], [`handle`] | one process: orders to it, its pidfd |
//! | [`launch`] | fork and exec, with descriptors in known places |
//! | [`attend`], [`liveness`] | the task beside a process: reports, pings, its end; where it stands if it does not answer |
//! | [`reports`] | what they report, cut to what may be kept |
//! | [`adoption`] | processes that another supervisor left |
//! | [`adoption_file`] | the files by which they are found |
//! | [`record`], [`socket_record`] | what it wrote down of them, and of their listening sockets |
//! | [`dismissed`] | those of them that are no workers of this one, until they have ended |
//! | [`roster`] | which processes are workers |
//! | [`backoff`] | how long to wait before one that died is replaced |
//! | [`ledger`] | the memory in which they count together |
//! | [`load`] | how busy workers are |

pub(crate) mod adoption;
pub(crate) mod adoption_file;
pub(crate) mod attend;
pub(crate) mod backoff;
pub(crate) mod dismissed;
pub(crate) mod handle;
pub(crate) mod launch;
pub(crate) mod ledger;
pub(crate) mod liveness;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod record;
mod reports;
pub(crate) mod roster;
pub(crate) mod socket_record;
pub(crate) mod worker;
