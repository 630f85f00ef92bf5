//! The system calls that a worker may make once it serves. Everything else fails with `EPERM`.
//!
//! The list is what serving was seen to need, by the tests with the real programs at each level of features, and what the C
//! libraries need beside (glibc and musl; memory, threads that end, signals, `abort`). A call that was forgotten costs what was
//! asked for and nothing else; the kernel's audit log names it (`SECCOMP_FILTER_FLAG_LOG`).
//!
//! Rules without conditions are nearly free: the kernel keeps their outcome in a table (5.11). So those that are made per request
//! have none.

use std::{collections::BTreeMap, io};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction,
    SeccompCmpArgLen::{Dword, Qword},
    SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::sys;

/// What speculation does is left as it is (4.17): before 5.16 a filter would otherwise switch it off for the process, which costs more
/// than everything else here, and is meant for those who run strangers' code on purpose.
const SPEC_ALLOW: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
/// All threads (3.17); refusals in the audit log, where `kernel.seccomp.actions_logged` has `errno` (4.14).
const FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG | SPEC_ALLOW;

/// Allowed whatever the arguments are.
pub(super) const ALLOWED: &[c_long] = &[
    // The ring.
    libc::SYS_io_uring_enter,
    // Sockets that are there, new connections (to unix sockets not by the ring), descriptors from process to process.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Large bodies.
    libc::SYS_pipe2,
    libc::SYS_splice,
    // Descriptors that are there: the log, the vault, the state that another supervisor asks for.
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_memfd_create,
    libc::SYS_pread64,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_ppoll,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Who it is, which a supervisor that takes it over must be too unless it is root's.
    libc::SYS_geteuid,
    // Time, chance, threads that wait or end.
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    // The first of the scheduler's thread, which may come late.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    // Signals of its own.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The kernel refuses.
    #[error(transparent)]
    Refused(#[from] io::Error),
    /// Nobody has a list for this machine.
    #[error("{0}")]
    Program(#[from] seccompiler::BackendError),
}

/// Puts the filter in place, for all threads: how many instructions it has.
///
/// # Errors
/// See [`Error`].
pub(super) fn install() -> Result<usize, Error> {
    let program = program(std::process::id())?;
    sys::install(&program, FLAGS)?;
    Ok(program.len())
}

/// The filter of the process `own`.
fn program(own: u32) -> Result<BpfProgram, seccompiler::BackendError> {
    let free = ALLOWED.iter().map(|call| (*call, Vec::new()));
    let rules: BTreeMap<_, _> = free.chain(conditional(u64::from(own))?).collect();
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, denied, SeccompAction::Allow, TargetArch::try_from(std::env::consts::ARCH)?)?
        .try_into()
}

/// Allowed with some arguments only.
pub(super) fn conditional(own: u64) -> Result<Vec<(c_long, Vec<SeccompRule>)>, seccompiler::BackendError> {
    let one_of = |argument, values: &[c_long]| -> Result<Vec<_>, _> {
        let rules = values.iter().map(|value| rule([equal(argument, *value as u64)?]));
        rules.collect()
    };
    Ok(vec![
        // Streams to backends: no datagrams, nothing raw, no netlink.
        (libc::SYS_socket, {
            let stream = || masked(1, 0xf, libc::SOCK_STREAM as u64);
            let families = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX];
            let rules = families.iter().map(|family| rule([equal(0, *family as u64)?, stream()?]));
            rules.collect::<Result<_, _>>()?
        }),
        // No memory becomes code.
        (libc::SYS_mmap, vec![rule([masked(2, libc::PROT_EXEC as u64, 0)?])?]),
        (libc::SYS_mprotect, vec![rule([masked(2, libc::PROT_EXEC as u64, 0)?])?]),
        (libc::SYS_ioctl, one_of(1, &[libc::FIONBIO as c_long])?),
        (
            libc::SYS_fcntl,
            one_of(
                1,
                &[
                    libc::F_DUPFD_CLOEXEC.into(),
                    libc::F_GETFD.into(),
                    libc::F_GETFL.into(),
                    libc::F_SETPIPE_SZ.into(),
                ],
            )?,
        ),
        (libc::SYS_setsockopt, options()?),
        // `abort`: a signal to itself.
        (libc::SYS_tgkill, vec![rule([equal(0, own)?])?]),
        (libc::SYS_tkill, vec![rule([equal(0, own)?])?]),
        // For supervisors of earlier programs: the process itself.
        (libc::SYS_pidfd_open, vec![rule([equal(0, own)?])?]),
        // Limits are read; that of open files is also raised, when `max_connections` is.
        (
            libc::SYS_prlimit64,
            vec![
                rule([SeccompCondition::new(2, Qword, SeccompCmpOp::Eq, 0)?])?,
                rule([equal(0, 0)?, equal(1, libc::RLIMIT_NOFILE as u64)?])?,
            ],
        ),
    ])
}

/// Options of sockets that are set.
fn options() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_LINGER),
        (libc::SOL_SOCKET, libc::SO_OOBINLINE),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    ];
    options
        .iter()
        .map(|(level, option)| rule([equal(1, *level as u64)?, equal(2, *option as u64)?]))
        .collect()
}

type Conditions<const N: usize> = [SeccompCondition; N];

/// All of the conditions.
fn rule<const N: usize>(conditions: Conditions<N>) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions.into())
}

/// The argument of that number is `value`.
fn equal(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value)
}

/// Of the argument of that number, the bits of `mask` are those of `value`.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(mask), value)
}
