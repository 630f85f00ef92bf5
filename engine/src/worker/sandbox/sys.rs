//! System calls of the sandbox that neither the standard library, `nix` nor `rustix` offers in a safe form.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, RawFd},
};

use seccompiler::BpfProgram;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    instructions: *const seccompiler::sock_filter,
}

/// Puts a filter before the system calls of all threads of this process.
///
/// # Errors
/// Those of `seccomp(2)`.
pub(super) fn install(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<()> {
    let length = program.len().try_into().map_err(io::Error::other)?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: the kernel reads `length` instructions, which `program` has, and keeps a copy of them.
    let outcome =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match outcome {
        0 => Ok(()),
        // TSYNC: the number of a thread that has other filters.
        1.. => Err(io::Error::other(format!("thread {outcome} has a filter of its own"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the descriptor `number`, which others of this process own and use, be a duplicate of `other` from now on, close-on-exec.
///
/// # Errors
/// Those of `dup3(2)`.
pub(super) fn replace(number: RawFd, other: &impl AsFd) -> io::Result<()> {
    // SAFETY: the number stays open, so that its owner closes nobody else's. What the owner does with it fails as with any
    // descriptor of the wrong kind: `rings` says why it does nothing.
    let outcome = unsafe { libc::dup3(other.as_fd().as_raw_fd(), number, libc::O_CLOEXEC) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes any system call; the error number, or 0.
#[cfg(test)]
pub(super) fn call(number: libc::c_long, arguments: [libc::c_long; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: for tests, which give no address that is mapped but where the kernel only reads.
    let outcome = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if outcome < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}
