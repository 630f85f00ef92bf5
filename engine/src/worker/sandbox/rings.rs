//! Rings that other code of this process has made: the three of glommio's executor, which take any operation.
//!
//! An operation of a ring is no system call, so that no filter sees it. The worker's own ring is restricted; these cannot be, once
//! they work. The scheduler enters them while it starts, and then when its timer for preemption runs out, which it never does here
//! ([`PREEMPT_NEVER`]). So their descriptors are replaced by one that is of no use. What is left of them is memory that they share
//! with the kernel: the scheduler reads there that nothing has happened. Should it enter one nevertheless, it ends the worker.

use std::{
    fs::{self, ReadDir},
    io,
    os::fd::RawFd,
    path::Path,
    time::Duration,
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::sys;
use crate::ring::Ring;

/// When the scheduler would look at its own rings again, while there is a task that can go on: after 136 years. There is always one,
/// the main future, which yields after each turn.
pub(in crate::worker) const PREEMPT_NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What the link of a ring's descriptor says.
pub(super) const RING: &str = "anon_inode:[io_uring]";

const DESCRIPTORS: &str = "/proc/self/fd";

/// The descriptors of this process, to be read later.
///
/// # Errors
/// When `/proc` is not there.
pub(super) fn open_descriptors() -> io::Result<ReadDir> {
    fs::read_dir(DESCRIPTORS)
}

/// Takes all rings away but the one of this worker: how many.
///
/// # Errors
/// When the descriptors cannot be read.
pub(super) fn take_away(descriptors: ReadDir, own: &Ring) -> io::Result<usize> {
    let mut others = Vec::new();
    for entry in descriptors {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // The descriptor of the folder itself may be gone.
        let link = fs::read_link(Path::new(DESCRIPTORS).join(name));
        if number != own.descriptor() && link.is_ok_and(|link| link == Path::new(RING)) {
            others.push(number);
        }
    }
    // The end of a pipe to which nobody writes.
    let (nothing, _) = pipe_with(PipeFlags::CLOEXEC)?;
    for other in &others {
        sys::replace(*other, &nothing)?;
    }
    Ok(others.len())
}
