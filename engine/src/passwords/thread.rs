//! The thread that computes slow hashes, and the desk over which it gets them.
//!
//! It runs only where nothing else would, on whichever core that is: so it may stand still for long, at any place. Neither side
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
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Verdict, sys};
use crate::http::{Attempt, Blocks, NoMemory};

/// Its name, by which it is told from the others of a worker.
pub const THREAD_NAME: &str = "kakehi-hash";

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
            prepare(cores);
            // Whoever made it may be gone.
            let _ = ready.send(());
            run(&its);
        })?;
        // What it does now it may not do any more behind the filter.
        is_ready.recv().map_err(io::Error::other)?;
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

/// What a thread can do for itself only. A loop beside it that it may disturb is no reason to have none.
fn prepare(cores: CpuSet) {
    if let Err(error) = sys::run_when_idle() {
        tracing::warn!("hashes of passwords are computed with the priority of requests: {error}");
    }
    if let Err(error) = sched_setaffinity(None, &cores) {
        tracing::warn!("hashes of passwords are computed on the worker's own core: {error}");
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

    #[test]
    fn it_runs_where_nothing_else_does_on_the_cores_that_it_was_given() {
        let cores = sched_getaffinity(None).unwrap();
        let beside = thread::spawn(move || {
            prepare(cores);
            let own = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // The policy is the 41st field; the name, in brackets, is the second.
            let policy = own.rsplit_once(')').unwrap().1.split_whitespace().nth(38).unwrap().to_owned();
            (policy, sched_getaffinity(None).unwrap() == cores)
        });
        assert_eq!(beside.join().unwrap(), (libc::SCHED_IDLE.to_string(), true));
    }
}
