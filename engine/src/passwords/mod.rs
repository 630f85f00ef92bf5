//! Passwords with slow hashes: computed beside the loop, one at a time, and remembered for a minute.
//!
//! | file | idea |
//! |---|---|
//! | `line` | who waits: so many in all, so many of one client; those with the same credentials together |
//! | `remembered` | credentials that were right |
//! | `thread` | the thread that computes |
//!
//! Relies on `ring` for the time and on `http` for the hashes. Promises: the loop computes none of them and waits for no lock that the
//! thread may hold; memory is that of one hash; no password is kept in clear for longer than it waits.
//!
//! The scheduler of the loop must not be woken by another thread ([decision 31](../../../docs/decisions/0031-worker-sandbox.md)): while
//! somebody waits, a task looks whether the thread is done.

mod line;
mod remembered;
mod thread;

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use aws_lc_rs::{error::Unspecified, hmac, rand::SystemRandom};

pub use self::thread::{HashingThread, THREAD_NAME};
use self::{
    line::{Entry, Line},
    remembered::Remembered,
};
use crate::{
    http::{Attempt, AttemptId},
    limits,
    observe::{Counter, Counters},
    ring::{Ring, Timer},
};

/// How often it is looked whether the thread is done, while somebody waits (ms).
const POLL_MS: u64 = 2;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A user with its password.
    Right,
    /// None.
    Wrong,
    /// There was no memory to compute it.
    Failed,
}

/// The passwords that a worker checks.
pub struct Passwords {
    inner: Rc<Inner>,
}

struct Inner {
    ring: Ring,
    counters: Counters,
    /// What ids are made with: nobody else has it.
    key: hmac::Key,
    /// `None`: it could not be made.
    thread: Option<HashingThread>,
    line: RefCell<Line>,
    remembered: RefCell<Remembered>,
    /// A task looks after the thread.
    is_attended: Cell<bool>,
}

impl Passwords {
    /// None are waiting. Without a thread, none is computed.
    ///
    /// # Errors
    /// When there is no randomness for a key.
    pub fn new(
        ring: Ring,
        counters: Counters,
        thread: Option<HashingThread>,
    ) -> Result<Passwords, Unspecified> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?;
        let (line, remembered) = Default::default();
        let is_attended = Cell::new(false);
        Ok(Passwords { inner: Rc::new(Inner { ring, counters, key, thread, line, remembered, is_attended }) })
    }

    pub(crate) fn id(&self, attempt: &Attempt) -> AttemptId {
        attempt.id(&self.inner.key)
    }

    /// Whether this was right not long ago.
    pub(crate) fn remembers(&self, id: &AttemptId) -> bool {
        let is_known = self.inner.remembered.borrow().contains(id, self.inner.ring.now());
        if is_known {
            self.inner.counters.count(Counter::AuthenticationRemembered);
        }
        is_known
    }

    /// Has an attempt of `client` computed, once for all who wait for the same. `None`: too many wait, or nobody computes.
    pub(crate) fn check(&self, id: AttemptId, attempt: Attempt, client: Option<IpAddr>) -> Option<Waiting> {
        self.inner.thread.as_ref()?;
        let entry = self.inner.line.borrow_mut().join(id, attempt, client)?;
        self.inner.counters.count(Counter::AuthenticationWaiting);
        let waiting = Waiting { inner: Rc::clone(&self.inner), entry, waker: Cell::new(None) };
        if !self.inner.is_attended.replace(true) {
            self.inner.ring.spawn(attend(Rc::clone(&self.inner)));
        }
        Some(waiting)
    }
}

/// Gives the thread what waits, and tells those who wait, until nobody does.
async fn attend(inner: Rc<Inner>) {
    let Some(thread) = &inner.thread else { return };
    let timer = Timer::new(&inner.ring);
    loop {
        if let Some(verdict) = thread.verdict() {
            inner.settle(verdict);
        }
        let next = inner.line.borrow_mut().next();
        if let Some(attempt) = next {
            thread.begin(attempt);
        }
        if inner.line.borrow().is_empty() {
            inner.is_attended.set(false);
            return;
        }
        timer.set(POLL_MS);
        timer.elapsed().await;
    }
}

impl Inner {
    fn settle(&self, verdict: Verdict) {
        let Some(entry) = self.line.borrow_mut().settle(verdict) else { return };
        if verdict != Verdict::Failed {
            self.counters.count(Counter::AuthenticationComputed);
        }
        if verdict == Verdict::Right {
            let due = self.ring.now() + limits::PASSWORD_REMEMBERED_MS;
            self.remembered.borrow_mut().insert(entry.id, due);
        }
        self.ring.note_local_work();
        entry.wake();
    }
}

/// A place in the line; who drops it waits no more.
pub(crate) struct Waiting {
    inner: Rc<Inner>,
    entry: Rc<Entry>,
    /// Where its waker is kept.
    waker: Cell<Option<usize>>,
}

impl Future for Waiting {
    type Output = Verdict;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Verdict> {
        self.entry.poll(&self.waker, context)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inner.counters.uncount(Counter::AuthenticationWaiting);
        self.inner.line.borrow_mut().leave(&self.entry, self.waker.get());
    }
}
