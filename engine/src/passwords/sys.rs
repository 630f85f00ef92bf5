//! The scheduling policy of a thread, which neither the standard library, `nix` nor `rustix` sets.

use std::io;

/// Has the calling thread run only where nothing else would (`SCHED_IDLE`).
///
/// # Errors
/// Those of `sched_setscheduler(2)`.
pub(super) fn run_when_idle() -> io::Result<()> {
    // SAFETY: all bytes of this structure may be zero, and the kernel only reads it.
    let outcome = unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const parameters)
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
