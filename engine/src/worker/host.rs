//! What a worker has of its host: a core, descriptors.

use std::os::fd::AsFd;

use kakehi_ctl::state::State;
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};

use super::Error;
use crate::limits;

/// What the host allows at the start.
#[derive(Clone, Copy)]
pub(super) struct Host {
    /// Workers that there are where neither the file nor anybody has said how many.
    pub(super) default_workers: u32,
    /// Connections that there are descriptors for.
    pub(super) max_connections: u32,
}

/// `max_connections`, as far as the limit of open files allows, which is raised as far as it goes.
pub(super) fn within_limits(state: &State) -> u32 {
    let wanted = state.settings.max_connections;
    let listeners = state.listeners.len() as u64;
    // A worker has each of its listeners twice.
    let fixed = limits::DESCRIPTORS_BASE + 2 * listeners.next_multiple_of(limits::LISTENERS_AT_A_TIME);
    let needed = fixed + limits::DESCRIPTORS_PER_CONNECTION * u64::from(wanted);
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        let raised = Rlimit { current: Some(limit.maximum.map_or(needed, |most| most.min(needed))), ..limit };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit = raised;
        }
    }
    let possible =
        limit.current.unwrap_or(u64::MAX).saturating_sub(fixed) / limits::DESCRIPTORS_PER_CONNECTION;
    // At least one, or nobody would ever be served.
    wanted.min(u32::try_from(possible).unwrap_or(u32::MAX)).max(1)
}

/// Ties this process to one core.
pub(super) fn pin(core: usize) -> Result<(), Error> {
    let pinned = || {
        if core >= CpuSet::MAX_CPU {
            return Err(Errno::INVAL);
        }
        let mut cores = CpuSet::new();
        cores.set(core);
        sched_setaffinity(None, &cores)
    };
    pinned().map_err(|error| Error::Pin { core, error: error.into() })
}

/// Has the kernel make the table of descriptors as large as the connections need it. In a process that has threads each doubling
/// of it, from 64 on, is a wait for the kernel's readers (RCU): 10 to 20 ms in which this worker serves nobody.
pub(super) fn grow_descriptor_table(any: &impl AsFd, max_connections: u32) {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let wanted = limits::DESCRIPTORS_BASE + limits::DESCRIPTORS_PER_CONNECTION * u64::from(max_connections);
    let last = i32::try_from(wanted.min(limit).saturating_sub(1)).unwrap_or(i32::MAX);
    // Closed at once. If there is no memory for it now, the table grows later, with those waits.
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(any, last) {
        tracing::debug!(%error, last, "the table of descriptors was not made larger");
    }
}
