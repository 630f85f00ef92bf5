//! System calls on raw descriptors that neither the standard library nor `nix` offers in a safe form.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

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
