//! What a ring is made from; why there may be none to be had, and what to do about it.
//!
//! The one place that turns an error of `io_uring_setup` into words: the supervisor asks before it starts anything
//! ([`check`]), and a worker says the same if the host changes its mind later. Promises: each message names what
//! refuses and the remedy, in one line.

use std::{fs, io};

use super::features::{self, Level};

/// Locked memory that one worker's ring and buffer ring may take (bytes). The kernel counts it per user.
pub const LOCKED_MEMORY_PER_WORKER: u64 = 1 << 20;

/// How the limit of locked memory is raised, to follow a colon.
pub const LOCKED_MEMORY_REMEDY: &str = "raise RLIMIT_MEMLOCK, of which a worker may take 1 MiB \
     (`ulimit -l unlimited`; systemd: `LimitMEMLOCK=infinity`; docker: `--ulimit memlock=-1`)";

const _: () = assert!(LOCKED_MEMORY_PER_WORKER == 1 << 20, "LOCKED_MEMORY_REMEDY names it");

/// What a ring is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Highest rung of features to use.
    pub level: Level,
    /// Buffers in the arena, one half for clients and one for backends; a power of two, 2 to 32,768.
    pub buffer_count: u16,
    /// Size of each (bytes, up to 65,535).
    pub buffer_size: u32,
    /// Private memory that large bodies may take (bytes).
    pub body_memory: usize,
}

/// Why a ring could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no io_uring.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// There is, but its memory could not be had.
    #[error("no memory for {count} receive buffers of {size} bytes: {error}")]
    Buffers {
        /// How many were asked for.
        count: u16,
        /// Of which size (bytes).
        size: u32,
        /// What the kernel said.
        error: io::Error,
    },
    /// It was made, and does not work.
    #[error("the ring cannot be enabled: {0}")]
    Enable(io::Error),
}

/// Why there is no io_uring to be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// `kernel.io_uring_disabled` is 1.
    #[error(
        "io_uring is forbidden on this host: kernel.io_uring_disabled is 1 (only CAP_SYS_ADMIN and the group of \
         kernel.io_uring_group may use it); allow it with `sysctl -w kernel.io_uring_disabled=0` (and in \
         /etc/sysctl.d/ to keep it), or put kakehi's user into the group that kernel.io_uring_group names"
    )]
    DisabledForMost,
    /// `kernel.io_uring_disabled` is 2.
    #[error(
        "io_uring is forbidden on this host: kernel.io_uring_disabled is 2 (nobody may use it, not even root); \
         allow it with `sysctl -w kernel.io_uring_disabled=0` (and in /etc/sysctl.d/ to keep it)"
    )]
    Disabled,
    /// A seccomp filter refuses or hides the system call, as the default profiles of container engines do.
    #[error(
        "io_uring is forbidden by the seccomp filter of this container or service ({0}): run the container with \
         `--security-opt seccomp=docs/seccomp/kakehi.json`, or take io_uring_setup, io_uring_enter and \
         io_uring_register into the filter (systemd: `SystemCallFilter=`)"
    )]
    Filtered(io::Error),
    /// Refused, by neither of these.
    #[error(
        "io_uring is not permitted to this process ({0}): a security module or a sandbox forbids it; \
         allow io_uring in its policy"
    )]
    NotPermitted(io::Error),
    /// The system call does not exist.
    #[error(
        "this kernel has no io_uring (ENOSYS): kakehi needs Linux 5.10 or later, built with CONFIG_IO_URING, \
         and no sandbox such as gVisor in between"
    )]
    Missing,
    /// The limit of locked memory is too low.
    #[error("the kernel refused the memory of a ring (ENOMEM): {LOCKED_MEMORY_REMEDY}")]
    LockedMemory,
    /// Something else.
    #[error("io_uring cannot be set up: {0}")]
    Other(io::Error),
}

/// Makes a plain ring and throws it away.
///
/// # Errors
/// One that names what forbids rings here, and the remedy.
pub fn check() -> Result<(), Unusable> {
    features::plain_ring().map(drop)
}

impl Unusable {
    /// The reason behind an error of `io_uring_setup`.
    pub(super) fn from_setup(error: io::Error) -> Unusable {
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Unusable::explain(error, disabled.as_deref(), &status)
    }

    /// `disabled`: text of the sysctl, where the kernel has it (6.6); `status`: text of `/proc/self/status`.
    fn explain(error: io::Error, disabled: Option<&str>, status: &str) -> Unusable {
        let filtered = status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]));
        match (error.raw_os_error(), disabled.map(str::trim)) {
            (Some(libc::EPERM), Some("1")) => Unusable::DisabledForMost,
            (Some(libc::EPERM), Some("2")) => Unusable::Disabled,
            (Some(libc::EPERM | libc::EACCES | libc::ENOSYS), _) if filtered => Unusable::Filtered(error),
            (Some(libc::EPERM | libc::EACCES), _) => Unusable::NotPermitted(error),
            (Some(libc::ENOSYS), _) => Unusable::Missing,
            (Some(libc::ENOMEM), _) => Unusable::LockedMemory,
            _ => Unusable::Other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_is_explained_by_what_refuses_it() {
        for (error, disabled, seccomp, remedy) in [
            (libc::EPERM, Some("2\n"), 0, "sysctl -w kernel.io_uring_disabled=0"),
            (libc::EPERM, Some("1\n"), 0, "kernel.io_uring_group"),
            (libc::EPERM, Some("1\n"), 2, "kernel.io_uring_group"),
            (libc::EPERM, Some("0\n"), 2, "--security-opt seccomp="),
            (libc::EPERM, None, 2, "--security-opt seccomp="),
            (libc::EPERM, Some("0\n"), 0, "a security module"),
            (libc::EACCES, None, 0, "a security module"),
            (libc::ENOSYS, None, 2, "seccomp"),
            (libc::ENOSYS, None, 0, "Linux 5.10"),
            (libc::ENOMEM, Some("0"), 0, "LimitMEMLOCK"),
            (libc::EINVAL, None, 0, "cannot be set up"),
        ] {
            let status = format!("Name:\tkakehi\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n");
            let why = Unusable::explain(io::Error::from_raw_os_error(error), disabled, &status).to_string();
            assert!(why.contains(remedy) && !why.contains('\n'), "{error} {disabled:?} {seccomp}: {why}");
        }
    }
}
