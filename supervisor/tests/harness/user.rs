//! What another user does: on a thread of its own, which is that user. Wants [`super::Need::Root`].

use std::thread::{self, JoinHandle};

use super::sys;

/// Whom workers are made where it matters: owns nothing.
pub(crate) const NOBODY: u32 = 65_534;

/// Does `work` on a thread that is this user, without any privilege.
pub(crate) fn start<T: Send + 'static>(uid: u32, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(move || {
        sys::become_user(uid).expect("root, who may become anybody");
        work()
    })
}

/// As [`start`], and waits for it.
pub(crate) fn run<T: Send + 'static>(uid: u32, work: impl FnOnce() -> T + Send + 'static) -> T {
    start(uid, work).join().expect("what another user does")
}
