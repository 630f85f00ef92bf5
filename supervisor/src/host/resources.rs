//! What the workers need of the host: io_uring, locked memory, file descriptors.
//!
//! All of it is looked at before a socket is opened or a process started, so that a host that cannot run kakehi
//! says so at once, with the remedy, instead of through a worker that dies.

use kakehi_ctl::limits;
use kakehi_engine::ring::{LOCKED_MEMORY_PER_WORKER, LOCKED_MEMORY_REMEDY, Unusable};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::worker_main::level_from_environment;

/// Locked memory that the host's limit must allow: the scheduler of a worker refuses to start with less.
const MEMLOCK_MINIMUM: u64 = 512 << 10;
/// Locked memory asked for beside what the workers take (bytes).
const MEMLOCK_BASE: u64 = 8 << 20;

/// Why this host cannot run kakehi.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no io_uring for us.
    #[error(transparent)]
    Ring(#[from] Unusable),
    /// The hard limit of locked memory is too low.
    #[error(
        "the limit of locked memory is {limit} bytes, a worker needs {MEMLOCK_MINIMUM} at least: \
         {LOCKED_MEMORY_REMEDY}"
    )]
    Memlock {
        /// The hard limit (bytes).
        limit: u64,
    },
    /// The environment asks for a level that there is not.
    #[error("KAKEHI_IO_URING_LEVEL is `{0}`; it must be a number from 0 to 4, or unset")]
    Level(String),
    /// A limit cannot be set.
    #[error("the limit {resource} cannot be raised: {errno}")]
    Limit {
        /// Name of the limit.
        resource: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// Whether `KAKEHI_IO_URING_LEVEL` is one that workers can obey.
///
/// # Errors
/// When it is set to anything but 0 to 4.
pub(crate) fn check_environment() -> Result<(), Error> {
    level_from_environment().map(drop).map_err(Error::Level)
}

/// Makes a ring and looks what it can do.
///
/// # Errors
/// When this host has no io_uring for us, or no memory for it.
pub(crate) fn check_ring() -> Result<(), Error> {
    // The ring counts together with those of the user's other processes: with the soft limit as it comes, which may be far
    // below the hard one, a second kakehi of a user could find no room for it.
    raise("RLIMIT_MEMLOCK", Resource::Memlock, MEMLOCK_BASE)?;
    Ok(kakehi_engine::ring::check()?)
}

/// Raises the soft limits to what `workers` of `max_connections` and `listeners` need, as far as the hard limits
/// let. The workers inherit them. Returns the connections that a worker can serve: where the hard limits mean fewer
/// than `max_connections`, that is logged.
///
/// # Errors
/// When the hard limit of locked memory is too low for even one worker.
pub(crate) fn raise_limits(workers: usize, max_connections: u32, listeners: usize) -> Result<u32, Error> {
    let (workers, listeners) = (workers as u64, listeners as u64);

    let memlock_needed = workers * LOCKED_MEMORY_PER_WORKER;
    let memlock_wanted = MEMLOCK_BASE + memlock_needed;
    // Root is not bound by this limit, but the scheduler of a worker looks at it all the same; and the kernel's own
    // default, 64 KiB before 5.16, is below what it accepts.
    let _ = raise_hard(Resource::Memlock, memlock_wanted);
    let memlock = raise("RLIMIT_MEMLOCK", Resource::Memlock, memlock_wanted)?;
    if memlock < MEMLOCK_MINIMUM {
        return Err(Error::Memlock { limit: memlock });
    }
    if memlock < memlock_needed {
        tracing::warn!(
            "the limit of locked memory is {memlock} bytes; {workers} workers want {memlock_needed}: if rings \
             cannot be made, {LOCKED_MEMORY_REMEDY}"
        );
    }

    // A worker has each of its listeners twice, the supervisor has those of all workers. Rounded, so that a few more
    // listeners, or more workers, do not make another limit of connections, for which workers would have to be replaced.
    let fixed = limits::DESCRIPTORS_BASE + 2 * listeners.next_multiple_of(limits::LISTENERS_AT_A_TIME);
    let nofile_needed = fixed + limits::DESCRIPTORS_PER_CONNECTION * u64::from(max_connections);
    let supervisor_needs = limits::DESCRIPTORS_BASE + listeners * (workers + 1);
    let nofile = raise("RLIMIT_NOFILE", Resource::Nofile, nofile_needed.max(supervisor_needs))?;
    if nofile < nofile_needed {
        // Below `max_connections`, which is a u32; at least one, or nobody would ever be served.
        let possible = (nofile.saturating_sub(fixed) / limits::DESCRIPTORS_PER_CONNECTION).max(1) as u32;
        tracing::warn!(
            "the limit of open files is {nofile}: a worker serves {possible} connections at a time, not the \
             {max_connections} of `max_connections`; raise it to {nofile_needed} (`ulimit -n`; systemd: \
             `LimitNOFILE=`) or lower `max_connections`"
        );
        return Ok(possible);
    }
    Ok(max_connections)
}

/// Raises the hard limit to `wanted`, never lowers it. Takes `CAP_SYS_RESOURCE`.
fn raise_hard(resource: Resource, wanted: u64) -> Result<(), Errno> {
    let (soft, hard) = limits_of(resource);
    if hard >= wanted { Ok(()) } else { set_limits(resource, soft, wanted) }
}

/// Raises the soft limit to `wanted` or as far as the hard limit lets, never lowers it; returns what it is then.
fn raise(name: &'static str, resource: Resource, wanted: u64) -> Result<u64, Error> {
    let (soft, hard) = limits_of(resource);
    let target = wanted.min(hard);
    if soft >= target {
        return Ok(soft);
    }
    set_limits(resource, target, hard).map_err(|errno| Error::Limit { resource: name, errno })?;
    Ok(target)
}

/// Soft and hard. No limit is the highest number, as it is for the kernel.
fn limits_of(resource: Resource) -> (u64, u64) {
    let Rlimit { current, maximum } = getrlimit(resource);
    (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX))
}

fn set_limits(resource: Resource, soft: u64, hard: u64) -> Result<(), Errno> {
    setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_lowered() {
        let (before, _) = limits_of(Resource::Nofile);
        assert_eq!(raise("RLIMIT_NOFILE", Resource::Nofile, 1).unwrap(), before);
    }
}
