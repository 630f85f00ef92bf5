//! The thread that computes slow hashes, and the desk over which it gets them.
//!
//! It has a small share of whichever core has room ([`NICER`]): so it may stand still for a while, at any place. Neither side
//! therefore waits for a lock of the other: an attempt lies on the desk, a number says whose turn it is. What an attempt is made of comes
//! from the loop's part of the heap, whose lock the loop would have to wait for, and is given back by the loop only. The blocks of
//! argon2id are in nobody's part: each lot is a mapping of its own.
//!
//! While there is work the blocks stay, as each page of new ones is a fault, in which the thread holds what the loop needs for
//! mappings of its own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use rustix::{
    process::{getpriority_process, setpriority_process},
    thread::{CpuSet, gettid, sched_setaffinity},
};

use super::Verdict;
use crate::http::{Attempt, Blocks, NoMemory};

/// Its name, by which it is told from the others of a worker.
pub const THREAD_NAME: &str = "kakehi-hash";

/// By so much is it nicer than its worker: beside one that has enough to do it gets a tenth of a core. Less would refuse people where the host
/// is busy, and let the thread stand still, with whatever it holds of the kernel's, for as long as the host is.
const NICER: i32 = 10;

/// Its stack (bytes): hashes have their memory elsewhere.
const STACK: usize = 256 << 10;

/// For how long it keeps the memory of hashes after the last of them.
const KEEP_BLOCKS: Duration = Duration::from_secs(1);

/// Whose turn it is, and what became of an attempt.
mod turn {
    /// The loop's, which may put an attempt on the desk.
    pub(super) const FREE: u8 = 0;
    /// The thread's, which computes it.
    pub(super) const TAKEN: u8 = 1;
    /// The loop's again, to learn what became of it.
    pub(super) const RIGHT: u8 = 2;
    pub(super) const WRONG: u8 = 3;
    pub(super) const FAILED: u8 = 4;
}

struct Desk {
    turn: AtomicU8,
    attempt: ArcSwapOption<Attempt>,
}

/// The thread, as the loop sees it. It ends with the process.
pub struct HashingThread {
    desk: Arc<Desk>,
    thread: Thread,
}

impl HashingThread {
    /// Begins it, on all of `cores`. To be called behind landlock, which it inherits, and before seccomp, which allows no more threads.
    ///
    /// # Errors
    /// When there can be no other thread.
    pub fn start(cores: CpuSet) -> io::Result<HashingThread> {
        let desk = Arc::new(Desk { turn: AtomicU8::new(turn::FREE), attempt: ArcSwapOption::empty() });
        let its = Arc::clone(&desk);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name(THREAD_NAME.into()).stack_size(STACK).spawn(move || {
            if let Err(error) = sched_setaffinity(None, &cores) {
                tracing::warn!("hashes of passwords are computed on the worker's own core: {error}");
            }
            // Whoever made it may be gone.
            let _ = ready.send(gettid());
            run(&its);
        })?;
        // What it does now it may not do any more behind the filter. It is as quick in that as its worker: who starts waits for it.
        let its = is_ready.recv().map_err(io::Error::other)?;
        // Of a thread, on Linux.
        let nice = getpriority_process(None).map(|own| (own + NICER).min(19));
        if let Err(error) = nice.and_then(|nice| setpriority_process(Some(its), nice)) {
            tracing::warn!("hashes of passwords are computed with the priority of requests: {error}");
        }
        Ok(HashingThread { desk, thread: thread.thread().clone() })
    }

    /// Has an attempt computed; to be called when none is.
    pub(super) fn begin(&self, attempt: Arc<Attempt>) {
        debug_assert_eq!(self.desk.turn.load(Ordering::Relaxed), turn::FREE, "one at a time");
        self.desk.attempt.store(Some(attempt));
        self.desk.turn.store(turn::TAKEN, Ordering::Release);
        self.thread.unpark();
    }

    /// What became of it, once, when it is done.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let verdict = match self.desk.turn.load(Ordering::Acquire) {
            turn::RIGHT => Verdict::Right,
            turn::WRONG => Verdict::Wrong,
            turn::FAILED => Verdict::Failed,
            _ => return None,
        };
        self.desk.attempt.store(None);
        self.desk.turn.store(turn::FREE, Ordering::Relaxed);
        Some(verdict)
    }
}

fn run(desk: &Desk) -> ! {
    let mut blocks = Blocks::default();
    loop {
        if desk.turn.load(Ordering::Acquire) == turn::TAKEN {
            let outcome = compute(desk, &mut blocks);
            desk.turn.store(outcome, Ordering::Release);
        } else if blocks.is_released() {
            thread::park();
        } else {
            thread::park_timeout(KEEP_BLOCKS);
            if desk.turn.load(Ordering::Acquire) != turn::TAKEN {
                blocks.release();
            }
        }
    }
}

fn compute(desk: &Desk, blocks: &mut Blocks) -> u8 {
    // Of this one, the loop has another, which goes later.
    let attempt = desk.attempt.load_full();
    match attempt.map(|attempt| attempt.compute(blocks)) {
        Some(Ok(true)) => turn::RIGHT,
        Some(Ok(false)) => turn::WRONG,
        Some(Err(NoMemory)) | None => turn::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::thread::sched_getaffinity;

    use super::*;
    use crate::http::authentication_tests::{attempt, right};

    fn computed(thread: &HashingThread, attempt: Attempt) -> Verdict {
        let attempt = Arc::new(attempt);
        thread.begin(Arc::clone(&attempt));
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(verdict) = thread.verdict() {
                // What it is made of goes where it came from.
                assert_eq!(Arc::strong_count(&attempt), 1);
                return verdict;
            }
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn one_attempt_after_the_other_is_computed() {
        let thread = HashingThread::start(sched_getaffinity(None).unwrap()).unwrap();
        assert_eq!(thread.verdict(), None);
        for user in ["ann", "bob", "carl"] {
            assert_eq!(computed(&thread, right(user)), Verdict::Right, "{user}");
            let bcrypt = format!("{user}:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW");
            let wrong = attempt(&[&bcrypt], user, "wrong").unwrap();
            assert_eq!(computed(&thread, wrong), Verdict::Wrong, "{user}");
        }
        assert_eq!(thread.verdict(), None);
    }
}
