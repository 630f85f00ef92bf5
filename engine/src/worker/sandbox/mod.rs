//! The sandbox of a worker: what its process cannot do any more, whoever's code it runs.
//!
//! | file | what is closed |
//! |---|---|
//! | `domain` | files, listening on TCP, signals to other processes (landlock) |
//! | `rings` | rings that other code of this process has made |
//! | `filter` | every system call that serving does not need (seccomp) |
//! | `sys` | the system calls behind these |
//!
//! Relies on `no_new_privs`, which `privileges` has set. Promises: nothing of it keeps a worker from serving. What a host does not
//! have is said in the log, by the first worker, and the rest of the sandbox holds. A call that is forbidden fails, with `EPERM` or
//! `EACCES`, and costs what was asked for and nothing else.

mod domain;
mod filter;
mod rings;
mod sys;
#[cfg(test)]
mod tests;

use std::{fs::ReadDir, io};

pub(super) use self::rings::PREEMPT_NEVER;
use crate::ring::Ring;

/// A sandbox of which the first half is closed: the one that each thread has to itself, and that later threads inherit.
pub(super) struct Sandbox {
    voice: Voice,
    /// Opened before files were closed.
    descriptors: io::Result<ReadDir>,
}

impl Sandbox {
    /// Closes files, to be called before there is another thread and behind everything that opens one. With
    /// `backends_without_files`, abstract unix sockets stay open.
    pub(super) fn enter(worker: u32, backends_without_files: bool) -> Sandbox {
        let voice = Voice { is_first: worker == 0 };
        let descriptors = rings::open_descriptors();
        match domain::enter(backends_without_files) {
            Ok(domain::Extent::Whole) => tracing::debug!("landlock is in force"),
            Ok(extent) => voice.inform(&format!("landlock: {extent}")),
            Err(error) => voice.warn(&format!("landlock is not in force: {error}")),
        }
        Sandbox { voice, descriptors }
    }

    /// Closes the rest, for all threads. To be called when all rings have been made, and before the first byte of a client.
    pub(super) fn close(self, ring: &Ring) {
        let Sandbox { voice, descriptors } = self;
        match descriptors.and_then(|descriptors| rings::take_away(descriptors, ring)) {
            Ok(count) => tracing::debug!(count, "rings of the scheduler are taken away"),
            Err(error) => tracing::warn!("rings of the scheduler stay open: {error}"),
        }
        match filter::install() {
            Ok(instructions) => tracing::debug!(instructions, "the seccomp filter is in force"),
            Err(error) => voice.warn(&format!("no seccomp filter is in force: {error}")),
        }
    }
}

/// What a host does not have is the same for all workers: the first one says it.
struct Voice {
    is_first: bool,
}

impl Voice {
    fn inform(&self, what: &str) {
        if self.is_first { tracing::info!("{what}") } else { tracing::debug!("{what}") }
    }

    fn warn(&self, what: &str) {
        if self.is_first { tracing::warn!("{what}") } else { tracing::debug!("{what}") }
    }
}
