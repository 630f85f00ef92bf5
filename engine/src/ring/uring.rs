//! The raw ring: entries in, one system call per turn, completions out.
//!
//! Knows nothing of sockets. Relies on its caller for the memory that entries point to.

use std::{collections::VecDeque, io, time::Duration};

use io_uring::{IoUring, opcode, register::Restriction, squeue, types};

use super::{
    Unusable,
    batching::LONGEST_WAIT_US,
    features::{Features, builder},
};

/// Submission entries: a batch. A full queue is submitted and filled again.
const SUBMISSION_ENTRIES: u32 = 1024;
/// Completion entries. Many more than submissions: one multishot entry completes many times.
const COMPLETION_ENTRIES: u32 = 8192;
/// Events from which on a wait for several of them pays: with fewer, the timer that bounds it costs more than the
/// wake-ups that it saves.
const LEAST_WORTH_A_TIMER: u32 = 12;
/// Longest wait for the completion of a send that was expected at once and did not come, beside which something else
/// may have come. Longer than a tick of the kernel's clock (1 to 4 ms), so that it costs no timer interrupt of its own.
const LONGEST_DOUBT: Duration = Duration::from_millis(5);
/// Most completions that are expected at once: their number must stay below the completion queue's room.
const MOST_IMMEDIATE: u32 = 256;
/// Completions handled between two submissions, so that a burst does not delay its own answers.
const BATCH: usize = 512;
/// Most calls in a row that have the kernel complete what is ready: enough for a batch, and an end whatever it says.
const MOST_ENTERS: usize = BATCH / 16;
/// The mark of completions that nobody waits for.
pub(super) const NOBODY: u64 = u64::MAX;
/// The mark of the timeout operation.
pub(super) const TIMEOUT: u64 = u64::MAX - 1;

/// `IORING_ENTER_NO_IOWAIT`, 6.15; the crate does not export it.
const ENTER_NO_IOWAIT: u32 = 1 << 7;
const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;

/// `struct io_uring_getevents_arg`, the argument of `IORING_ENTER_EXT_ARG`.
#[repr(C)]
struct WaitArgument {
    signal_mask: u64,
    signal_mask_size: u32,
    min_wait_us: u32,
    timeout: u64,
}

/// Where `optlen` stands in `struct io_uring_sqe` (bytes): for a multishot receive, how much it may bring each time
/// that it runs (6.17). The crate has no builder for it.
const OPTLEN_OFFSET: usize = 44;
const _: () = assert!(size_of::<squeue::Entry>() == 64);

/// The multishot receive `entry`, made to stop after about `bytes` each time that it runs, until the next turn.
pub(super) fn limit_per_turn(mut entry: squeue::Entry, bytes: u32) -> squeue::Entry {
    // SAFETY: an entry is the 64 bytes of `struct io_uring_sqe`, plain integers, 8-byte aligned.
    unsafe { (&raw mut entry).byte_add(OPTLEN_OFFSET).cast::<u32>().write(bytes) };
    entry
}

/// A completion, copied out of the queue.
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

/// How long to wait for a first completion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// There is other work: only submit, and take what is there.
    No,
    /// Until there is one.
    Forever,
    /// Until there is one, or the clock shows `until` (ms since the ring began; it shows `now` now).
    Until { now: u64, until: u64 },
}

/// What the ring did since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// `io_uring_enter` system calls.
    pub enters: u64,
    /// Entries submitted.
    pub sqes: u64,
    /// Completions seen.
    pub cqes: u64,
    /// Receives that found no buffer.
    pub no_buffers: u64,
    /// Turns that found completions which did not fit the queue, and which the kernel kept aside.
    pub overflows: u64,
    /// Transfers that went over to private buffers.
    pub bulk: u64,
    /// Buffers whose content was moved out of the arena, since it was scarce or a peer was slow.
    pub spilled: u64,
    /// Private memory that bodies take now (bytes).
    pub body_memory: u64,
    /// Private buffers that `body_memory` did not allow.
    pub body_memory_refused: u64,
}

/// The ring itself.
pub(super) struct Uring {
    ring: IoUring,
    ext_arg: bool,
    min_wait: bool,
    enter_flags: u32,
    /// Entries queued since the last system call that will most likely complete within the next one.
    immediate: u32,
    /// Entries for which the queue had no room.
    backlog: VecDeque<squeue::Entry>,
    /// Where waits take no timeout: when the timeout operation in flight fires (ms since the ring began).
    timeout_armed: Option<u64>,
    /// What the kernel reads when it takes the timeout operation.
    timeout: Box<types::Timespec>,
    pub(super) stats: Stats,
}

/// Takes away from the ring all that is not used here, for ever: whoever could make this process submit an entry of
/// its own would find neither files nor other operations (`IORING_REGISTER_RESTRICTIONS`, 5.10). A kernel that does not
/// know it serves without.
fn restrict(ring: &IoUring) {
    let operations = [
        opcode::AsyncCancel::CODE,
        opcode::Close::CODE,
        opcode::Connect::CODE,
        opcode::PollAdd::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::Timeout::CODE,
        opcode::TimeoutRemove::CODE,
    ];
    let flags = squeue::Flags::BUFFER_SELECT | squeue::Flags::SKIP_SUCCESS;
    let mut allowed: Vec<Restriction> = operations.into_iter().map(Restriction::sqe_op).collect();
    allowed.push(Restriction::sqe_flags_allowed(flags.bits()));
    if let Err(error) = ring.submitter().register_restrictions(&mut allowed) {
        tracing::debug!(%error, "the ring is not restricted to the operations that it needs");
    }
}

impl Uring {
    pub(super) fn new(features: &Features) -> Result<Uring, Unusable> {
        let ring = builder(features)
            .setup_cqsize(COMPLETION_ENTRIES)
            .setup_r_disabled()
            .build(SUBMISSION_ENTRIES)
            .map_err(Unusable::from_setup)?;
        restrict(&ring);
        Ok(Uring {
            ring,
            ext_arg: features.ext_arg,
            min_wait: features.min_wait && features.ext_arg,
            immediate: 0,
            enter_flags: if features.no_iowait { ENTER_NO_IOWAIT } else { 0 },
            backlog: VecDeque::new(),
            timeout_armed: None,
            timeout: Box::default(),
            stats: Stats::default(),
        })
    }

    /// Lets the ring work, when everything is registered.
    ///
    /// # Errors
    /// Those of `io_uring_register(2)`.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()
    }

    pub(super) fn raw(&self) -> &IoUring {
        &self.ring
    }

    /// Queues an entry for the next [`Uring::enter`].
    ///
    /// # Safety
    /// What the entry points to must stay valid, and untouched where the kernel writes, until its last completion.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.stats.sqes += 1;
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Notes that an entry just pushed will most likely complete within the next system call, and that nobody waits for
    /// that.
    pub(super) fn expect_immediate(&mut self) {
        self.immediate += 1;
    }

    /// Somebody waits for such an entry after all: its completion is to end the wait.
    pub(super) fn expect_less(&mut self) {
        self.immediate = self.immediate.saturating_sub(1);
    }

    /// Queues the cancellation of the operation with this mark; its own outcome interests nobody.
    pub(super) fn push_cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data).build().user_data(NOBODY);
        // SAFETY: the entry points to no memory.
        unsafe { self.push(entry) };
    }

    fn fill_from_backlog(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised when it was pushed to the backlog, and it has not completed since.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Submits what is queued and waits, for `news` events rather than one where that pays and does not take long.
    pub(super) fn enter(&mut self, wait: Wait, news: u32) -> io::Result<()> {
        if !self.backlog.is_empty() {
            self.fill_from_backlog();
        }
        // More is queued than fits, or completions lie there: do not sleep on them.
        let idle = self.backlog.is_empty() && self.ring.completion().is_empty();
        let wait = if idle { wait } else { Wait::No };
        let mut argument = WaitArgument { signal_mask: 0, signal_mask_size: 0, min_wait_us: 0, timeout: 0 };
        let timespec;
        let mut length = match wait {
            Wait::Until { now, until } => Some(Duration::from_millis(until.saturating_sub(now))),
            Wait::No | Wait::Forever => None,
        };
        if let (Wait::Until { until, .. }, Some(length), false) = (wait, length, self.ext_arg) {
            self.arm_timeout(until, length);
        }
        let submit = self.ring.submission().len() as u32;
        let immediate = std::mem::take(&mut self.immediate);
        // The sends' own completions are no news: without this every batch of them would end a wait that has not
        // begun. If one of them does not complete at once after all, the wait settles for what there is.
        let want = match wait {
            Wait::No => 0,
            _ if self.min_wait && news >= LEAST_WORTH_A_TIMER => {
                argument.min_wait_us = LONGEST_WAIT_US;
                immediate.min(MOST_IMMEDIATE) + news
            }
            _ if self.ext_arg && immediate > 0 => {
                length = Some(length.map_or(LONGEST_DOUBT, |length| length.min(LONGEST_DOUBT)));
                immediate.min(MOST_IMMEDIATE) + 1
            }
            _ => 1,
        };
        if let (Some(length), true) = (length, self.ext_arg) {
            timespec = types::Timespec::from(length);
            argument.timeout = (&raw const timespec) as u64;
        }
        let flags = ENTER_GETEVENTS | self.enter_flags | if self.ext_arg { ENTER_EXT_ARG } else { 0 };
        self.stats.enters += 1;
        // SAFETY: every queued entry keeps the promise of `push`; the argument and its timespec live over the call.
        let outcome =
            unsafe { self.ring.submitter().enter(submit, want, flags, self.ext_arg.then_some(&argument)) };
        match outcome {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The timeout, a signal, or a full completion queue: the caller looks at what there is.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Has the kernel complete all that is ready by now: an `enter` that waits for nothing stops after some 20 completions
    /// (6.13), and who stands behind them would wait for another turn for each 20.
    pub(super) fn complete_ready(&mut self) -> io::Result<()> {
        let flags = ENTER_GETEVENTS | self.enter_flags;
        for _ in 0..MOST_ENTERS {
            if !self.ring.submission().taskrun() || self.ring.completion().len() >= BATCH {
                break;
            }
            self.stats.enters += 1;
            // SAFETY: nothing is submitted, and there is no argument.
            let outcome = unsafe { self.ring.submitter().enter::<WaitArgument>(0, 0, flags, None) };
            match outcome.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) => {}
                Err((Some(libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => break,
                Err((_, error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// On 5.10 a wait takes no timeout: a timeout operation completes it instead, one at a time.
    fn arm_timeout(&mut self, until: u64, length: Duration) {
        match self.timeout_armed {
            // The one in flight ends the wait in time, if only to have the next one armed.
            Some(armed) if armed <= until => return,
            Some(_) => {
                let entry = opcode::TimeoutRemove::new(TIMEOUT).build().user_data(NOBODY);
                // SAFETY: the entry points to no memory.
                unsafe { self.push(entry) };
            }
            None => {}
        }
        *self.timeout = types::Timespec::from(length);
        let entry = opcode::Timeout::new(&raw const *self.timeout).build().user_data(TIMEOUT);
        // SAFETY: the kernel copies the timespec when it takes the entry, and it is boxed with the ring.
        unsafe { self.push(entry) };
        self.timeout_armed = Some(until);
    }

    /// The timeout operation has completed: by itself, or because it was removed in favour of another.
    pub(super) fn timeout_completed(&mut self, result: i32) {
        if result != -libc::ECANCELED {
            self.timeout_armed = None;
        }
    }

    /// Copies completions out, up to a batch.
    pub(super) fn reap(&mut self, into: &mut Vec<Completion>) {
        into.clear();
        let overflowed = self.ring.submission().cq_overflow();
        self.stats.overflows += u64::from(overflowed);
        let mut queue = self.ring.completion();
        for entry in queue.by_ref().take(BATCH) {
            into.push(Completion {
                user_data: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
            });
        }
        drop(queue);
        self.stats.cqes += into.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Level;

    #[test]
    fn an_operation_that_nothing_here_needs_is_refused_by_the_kernel() {
        let mut uring = Uring::new(&Features::probe(Level::HIGHEST).unwrap()).unwrap();
        uring.enable().unwrap();
        for entry in [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build(),
            opcode::Close::new(types::Fd(-1)).build().flags(squeue::Flags::IO_DRAIN),
        ] {
            // SAFETY: what the entries point to is static.
            unsafe { uring.push(entry) };
            uring.ring.submit_and_wait(1).unwrap();
            let completion = uring.ring.completion().next().unwrap();
            assert_eq!(completion.result(), -libc::EACCES);
        }
    }
}
