//! System calls on raw descriptors that neither the standard library nor `nix` offers in a safe form.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Closes a descriptor that the kernel handed us by number.
pub(super) fn close(fd: RawFd) {
    drop(owned(fd));
}

/// Takes ownership of a descriptor that the kernel handed us by number.
pub(super) fn owned(fd: RawFd) -> OwnedFd {
    debug_assert!(fd >= 0, "a descriptor that was handed over is not negative");
    // SAFETY: the number comes from a completion that created it, or from a slot that owned it and gives it up.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Borrows the descriptor of a slot for the length of a call.
pub(super) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    debug_assert!(fd >= 0, "only an open slot is borrowed");
    // SAFETY: a slot's descriptor stays open as long as its handle lives, and the callers use the borrow
    // within one call on that handle.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Reads an option of a socket into `value`.
///
/// # Errors
/// Those of `getsockopt(2)`.
///
/// # Safety
/// Whatever bytes the kernel writes over those of a `T` must be a value of `T`.
unsafe fn read_option<T>(socket: BorrowedFd<'_>, level: i32, option: i32, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `value`, and the new length.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut *value).cast(), &raw mut length)
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many connections wait in the queue of a listening socket of TCP (`TCP_INFO`, 2.6.26).
///
/// # Errors
/// Those of `getsockopt(2)`.
pub(super) fn connections_waiting(listener: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: integers all, for which 0 is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    // SAFETY: integers all, whatever their bytes.
    unsafe { read_option(listener, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info) }?;
    // Of a socket that listens, this is the length of its queue.
    Ok(info.tcpi_unacked)
}

/// Words that `SO_MEMINFO` fills (`SK_MEMINFO_VARS`), and those that are of interest here.
const MEMINFO_WORDS: usize = 9;
const WMEM_ALLOC: usize = 2;
const SNDBUF: usize = 3;
const WMEM_QUEUED: usize = 5;

/// How much the send buffer of a socket has room for (bytes), as far as the kernel says (`SO_MEMINFO`, 4.12).
///
/// # Errors
/// Those of `getsockopt(2)`.
pub(super) fn send_room(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut words = [0_u32; MEMINFO_WORDS];
    // SAFETY: integers all, whatever their bytes.
    unsafe { read_option(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut words) }?;
    let used = words[WMEM_ALLOC].max(words[WMEM_QUEUED]);
    Ok(words[SNDBUF].saturating_sub(used) as usize)
}
