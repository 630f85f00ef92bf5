//! The few calls of this program that the compiler cannot check: descriptors, and signals.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::signal::{SigHandler, Signal, signal};
use tokio::io::{Interest, unix::AsyncFd};

/// Takes note of every descriptor that this process was started with and marks it close-on-exec.
///
/// Those that are meant for us are then had by [`command_fds::inherited::take_fd_ownership`].
///
/// # Errors
/// When `/proc/self/fd` cannot be read, or on a second call.
pub(crate) fn adopt_inherited_descriptors() -> io::Result<()> {
    // SAFETY: `main` calls this before anything else, so nobody owns a descriptor above 2 yet.
    unsafe { command_fds::inherited::init_inherited_fds() }
}

/// Watches a descriptor for being readable.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same for as long as the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Ignores SIGHUP: the hang-up of a terminal concerns the supervisor, and a worker outlives even that.
pub(crate) fn ignore_hangup() -> io::Result<()> {
    // SAFETY: ignoring a signal installs no handler, so no code of ours runs in a signal's context.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
    Ok(())
}

/// Gives memory back to the kernel that was needed to read something large, and would be kept for the next time.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes any number, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has a classic BPF program say which packets reach a socket: what it answers is how much of one does.
pub(crate) fn attach_filter(socket: &OwnedFd, program: &[libc::sock_filter]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER, program)
}

/// Takes away what [`attach_filter`] has brought, if there is anything.
pub(crate) fn detach_filter(socket: &OwnedFd) -> io::Result<()> {
    detach(socket, libc::SO_DETACH_FILTER)
}

/// Has a classic BPF program choose among the sockets of the group (`SO_REUSEPORT`) that `socket` is in.
pub(crate) fn attach_reuseport_filter(socket: &OwnedFd, program: &[libc::sock_filter]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

fn attach(socket: &OwnedFd, option: libc::c_int, program: &[libc::sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    set_option(socket, option, &filter)
}

/// Takes away what [`attach_reuseport_filter`] has brought, if there is anything.
pub(crate) fn detach_reuseport_filter(socket: &OwnedFd) -> io::Result<()> {
    detach(socket, libc::SO_DETACH_REUSEPORT_BPF)
}

fn detach(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    match set_option(socket, option, &0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

/// `T` is the type that the kernel expects of this option of `SOL_SOCKET`.
fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes at `value`, and what it points to, during the call only. The callers are
    // above, and pass the types of their options.
    let outcome = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const *value).cast(), length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
