//! What this kernel's io_uring can do, found out by trying, and how much of it we may use.
//!
//! Versions are never compared: stable and distribution kernels carry newer code and lose features, and
//! seccomp hides all of them. Set-up flags are offered to `io_uring_setup`; operations that have no bit of
//! their own are carried out once on a socket pair. [`Level`] masks the result, so that the lower rungs
//! can be run, and tested, on any kernel.

use std::{
    io::{self, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use io_uring::{IoUring, cqueue, opcode, types};

use super::{
    Unusable,
    buffers::{BufferRing, Part},
    uring::limit_per_turn,
};

/// A rung of the ladder of kernel features.
///
/// | level | kernel | adds |
/// |---|---|---|
/// | 0 | 5.10 | one operation at a time, `POLL_ADD` on idle sockets, timeouts as operations |
/// | 1 | 5.11 | timeouts as an argument of the wait (`EXT_ARG`) |
/// | 2 | 5.19 | provided-buffer ring, multishot poll, `COOP_TASKRUN`, `SUBMIT_ALL` |
/// | 3 | 6.0 | multishot receive, `SINGLE_ISSUER` |
/// | 4 | 6.1 | `DEFER_TASKRUN`, and what came later (`NO_SQARRAY`, minimum wait, limited multishot) |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

impl Level {
    /// The lowest rung: what a 5.10 kernel has.
    pub const LOWEST: Level = Level(0);
    /// The highest rung.
    pub const HIGHEST: Level = Level(4);

    /// The rung of that number; `None` above the highest.
    pub fn new(level: u8) -> Option<Level> {
        (level <= Self::HIGHEST.0).then_some(Level(level))
    }

    /// Its number, 0 to 4.
    pub fn number(self) -> u8 {
        self.0
    }
}

macro_rules! features {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:literal, level $level:literal;)+) => {
        /// Features in use. Each is there because it was tried, and because the level allows it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Features { $($(#[doc = $doc])+ pub $field: bool,)+ }

        impl Features {
            /// Switches off what lies above `level`.
            fn mask(mut self, level: Level) -> Features {
                $(self.$field &= $level <= level.0;)+
                self
            }

            /// Names of those in use, as shown to operators.
            pub fn names(&self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(if self.$field { names.push($name); })+
                names
            }
        }
    };
}

features! {
    /// Timeout as an argument of the wait (5.11).
    ext_arg = "ext_arg", level 1;
    /// Successful completions of operations that nobody waits for can be left out (5.17).
    skip_cqe = "cqe_skip", level 2;
    /// A failed entry does not stop the batch (5.18).
    submit_all = "submit_all", level 2;
    /// No interrupt of the running thread for completions (5.19).
    coop_taskrun = "coop_taskrun", level 2;
    /// A wait for readiness that goes on after it was told of something (5.13).
    multishot_poll = "multishot_poll", level 2;
    /// The kernel picks the buffer when data arrives (5.19).
    provided_buffers = "provided_buffers", level 2;
    /// The kernel relies on one thread submitting (6.0).
    single_issuer = "single_issuer", level 3;
    /// One receive for the life of a connection (6.0).
    multishot_recv = "multishot_recv", level 3;
    /// A multishot receive brings one buffer per turn, not up to 32 (6.17).
    recv_limit = "multishot_recv_limit", level 4;
    /// Completions run when we ask for them (6.1).
    defer_taskrun = "defer_taskrun", level 4;
    /// One indirection less in the submission queue (6.6).
    no_sqarray = "no_sqarray", level 4;
    /// A wait for several completions that settles for one after a while (6.12).
    min_wait = "min_wait", level 4;
    /// Waiting does not count as waiting for a disk (6.15).
    no_iowait = "no_iowait", level 4;
}

impl Features {
    /// The highest rung whose core features are all in use.
    pub fn level(&self) -> Level {
        let rungs = [
            self.ext_arg,
            self.provided_buffers,
            self.multishot_recv && self.single_issuer,
            self.defer_taskrun,
        ];
        Level(rungs.iter().take_while(|held| **held).count() as u8)
    }

    /// Finds out what the kernel has, up to `level`.
    ///
    /// # Errors
    /// [`Unusable`] when there is no io_uring for us at all.
    pub fn probe(level: Level) -> Result<Features, Unusable> {
        // The plainest ring first: its failure says why there is none at all.
        let plain = plain_ring()?;
        let mut found = Features {
            ext_arg: plain.params().is_feature_ext_arg(),
            skip_cqe: plain.params().is_feature_skip_cqe_on_success(),
            min_wait: plain.params().is_feature_min_timeout(),
            no_iowait: plain.params().is_feature_no_iowait(),
            ..Features::default()
        }
        .mask(level);
        drop(plain);

        // Set-up flags, each on top of those that the kernel took so far.
        for offer in [
            Features { submit_all: true, ..found },
            Features { submit_all: true, coop_taskrun: true, ..found },
            Features { submit_all: true, coop_taskrun: true, single_issuer: true, ..found },
            Features {
                submit_all: true,
                coop_taskrun: true,
                single_issuer: true,
                defer_taskrun: true,
                ..found
            },
            Features {
                submit_all: true,
                coop_taskrun: true,
                single_issuer: true,
                defer_taskrun: true,
                no_sqarray: true,
                ..found
            },
        ] {
            let offer = offer.mask(level);
            if offer != found && builder(&offer).build(PROBE_ENTRIES).is_ok() {
                found = offer;
            }
        }

        // Operations, in the order of what builds on what.
        let try_operations = Features { provided_buffers: true, multishot_recv: true, ..found }.mask(level);
        if try_operations.provided_buffers {
            found.provided_buffers = receive_works(&found, Probe::Once).unwrap_or(false);
            found.multishot_recv = found.provided_buffers
                && try_operations.multishot_recv
                && receive_works(&found, Probe::Multishot).unwrap_or(false);
            found.recv_limit = found.multishot_recv
                && Features { recv_limit: true, ..found }.mask(level).recv_limit
                && receive_works(&found, Probe::Limited).unwrap_or(false);
        }
        found.multishot_poll = Features { multishot_poll: true, ..found }.mask(level).multishot_poll
            && multishot_poll_works(&found).unwrap_or(false);
        Ok(found)
    }
}

/// Entries of a ring that is only there to be probed.
const PROBE_ENTRIES: u32 = 8;

/// A ring that asks for nothing that not every kernel has.
pub(super) fn plain_ring() -> Result<IoUring, Unusable> {
    builder(&Features::default()).build(PROBE_ENTRIES).map_err(Unusable::from_setup)
}

/// The set-up that these features amount to.
pub(super) fn builder(features: &Features) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp();
    if features.submit_all {
        builder.setup_submit_all();
    }
    if features.single_issuer {
        builder.setup_single_issuer();
    }
    if features.defer_taskrun {
        // Excludes COOP_TASKRUN; needs SINGLE_ISSUER.
        builder.setup_defer_taskrun().setup_taskrun_flag();
    } else if features.coop_taskrun {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }
    if features.no_sqarray {
        builder.setup_no_sqarray();
    }
    builder
}

/// A kind of receive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    Once,
    Multishot,
    /// Multishot, with a limit for each time that it runs.
    Limited,
}

/// Receives eight bytes over a socket pair into a provided buffer; a multishot receive must stay armed.
fn receive_works(features: &Features, probe: Probe) -> io::Result<bool> {
    // Declared first, so dropped last: whichever way this ends, the ring goes before the buffers, and the receive with it.
    let mut buffers;
    let mut uring = builder(features).build(PROBE_ENTRIES)?;
    buffers = BufferRing::register(&uring, 2, 64)?;
    buffers.refill();
    let (near, mut far) = UnixStream::pair()?;
    let fd = types::Fd(near.as_raw_fd());
    let entry = match probe {
        Probe::Once => opcode::Recv::new(fd, std::ptr::null_mut(), 0)
            .buf_group(Part::Downstream as u16)
            .build()
            .flags(io_uring::squeue::Flags::BUFFER_SELECT),
        Probe::Multishot => opcode::RecvMulti::new(fd, Part::Downstream as u16).build(),
        Probe::Limited => limit_per_turn(opcode::RecvMulti::new(fd, Part::Downstream as u16).build(), 64),
    };
    // SAFETY: the entry points to no memory of ours but the registered buffers, which outlive the ring.
    unsafe { uring.submission().push(&entry) }.map_err(|_| io::ErrorKind::OutOfMemory)?;
    uring.submit()?;
    far.write_all(b"12345678")?;
    uring.submit_and_wait(1)?;
    let Some(completion) = uring.completion().next() else { return Ok(false) };
    let right = completion.result() == 8
        && cqueue::buffer_select(completion.flags()).is_some_and(|id| buffers.bytes(id, 8) == b"12345678")
        && cqueue::more(completion.flags()) == (probe != Probe::Once);
    Ok(right)
}

/// Waits for what a socket pair brings; the wait must go on behind it.
fn multishot_poll_works(features: &Features) -> io::Result<bool> {
    let (near, mut far) = UnixStream::pair()?;
    let mut uring = builder(features).build(PROBE_ENTRIES)?;
    let entry = opcode::PollAdd::new(types::Fd(near.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
    // SAFETY: the entry points to no memory.
    unsafe { uring.submission().push(&entry) }.map_err(|_| io::ErrorKind::OutOfMemory)?;
    uring.submit()?;
    far.write_all(b"x")?;
    uring.submit_and_wait(1)?;
    let Some(completion) = uring.completion().next() else { return Ok(false) };
    Ok(completion.result() == i32::from(libc::POLLIN) && cqueue::more(completion.flags()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_reached_when_the_kernel_has_it_and_never_exceeded() {
        let best = Features::probe(Level::HIGHEST).unwrap().level();
        for number in 0..=4 {
            let level = Level::new(number).unwrap();
            let features = Features::probe(level).unwrap();
            assert_eq!(features.level(), level.min(best), "{features:?}");
        }
    }

    #[test]
    fn the_lowest_level_uses_nothing_newer_than_5_10() {
        assert_eq!(Features::probe(Level::LOWEST).unwrap(), Features::default());
    }
}
