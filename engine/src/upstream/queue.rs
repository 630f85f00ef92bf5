//! Requests that wait until a backend has room for them.
//!
//! The line is that of the machine: who has waited longest goes first, whichever worker it waits on. A worker hands room that it frees
//! itself on at once; that of others it sees when it looks again, [`POLL_MS`] later. Who belongs to one backend alone, by session or
//! key, waits for that one, and holds up nobody who does not.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Poll, Waker},
};

use super::{
    load::{InFlight, Load},
    names::Name,
    pool::Pooling,
};
use crate::{
    ledger::{Slot, Word},
    ring::{Ring, Timer},
};

/// How often the first of a worker looks whether there is room (ms).
const POLL_MS: u64 = 5;
/// A worker that has not looked for so long is passed over: it stands still (ms).
const STALE_MS: u64 = 40;
/// Bits of the time in what a worker says of its first.
const TIME_BITS: u32 = 24;

/// One that waits.
struct Waiter {
    ticket: u64,
    /// For one backend alone.
    bound: bool,
    /// It is to look whether there is room.
    due: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    ring: Ring,
}

impl Waiter {
    fn call(&self) {
        self.due.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            self.ring.note_local_work();
            waker.wake();
        }
    }
}

/// Those of one cluster that wait on this worker.
pub(super) struct Queue {
    /// The most that wait, on all workers.
    size: u32,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    /// How many wait.
    count: Load,
    /// Where workers say who is first.
    first: OnceCell<Slot>,
    first_name: Name,
    /// Where there is no ledger.
    tickets: Cell<u64>,
}

/// A place in the line, which is given up when it is dropped.
struct Place<'a> {
    queue: &'a Queue,
    waiter: Rc<Waiter>,
}

/// Nobody else may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Queue {
    /// That of `cluster`, for `size` at most.
    pub(super) fn new(cluster: &str, size: u32) -> Queue {
        Queue {
            size,
            waiting: RefCell::default(),
            count: Load::named(Name::waiting(cluster)),
            first: OnceCell::new(),
            first_name: Name::first(cluster),
            tickets: Cell::new(0),
        }
    }

    /// Whether anybody waits, on any worker.
    pub(super) fn is_used(&self, pooling: &Pooling) -> bool {
        self.length_everywhere(pooling) > 0
    }

    /// How many wait, on all workers.
    pub(super) fn length_everywhere(&self, pooling: &Pooling) -> u32 {
        self.count.everywhere(pooling.ledger.as_ref()).connections
    }

    /// The most that may wait.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How many wait on this worker.
    pub(super) fn length(&self) -> u32 {
        self.count.here().connections
    }

    /// There may be room now.
    pub(super) fn call(&self) {
        if let Some(first) = self.waiting.borrow().front() {
            first.call();
        }
    }

    /// Waits until `take` gives something.
    ///
    /// # Errors
    /// When too many wait already.
    pub(super) async fn wait<T>(
        &self,
        pooling: &Pooling,
        bound: bool,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<T, Full> {
        let place = self.join(pooling, bound)?;
        let timer = Timer::new(&pooling.ring);
        let waiter = &place.waiter;
        Ok(poll_fn(|context| {
            loop {
                let is_first = self.waiting.borrow().front().is_some_and(|first| Rc::ptr_eq(first, waiter));
                let elapsed = is_first && timer.poll_elapsed(context).is_ready();
                if waiter.due.replace(false) || elapsed {
                    let may = bound || self.is_my_turn(pooling, waiter);
                    if let Some(taken) = may.then(&mut take).flatten() {
                        return Poll::Ready(taken);
                    }
                    if bound {
                        // Those behind it may want something else.
                        self.call_behind(waiter);
                    }
                }
                waiter.waker.replace(Some(context.waker().clone()));
                if !is_first {
                    return Poll::Pending;
                }
                timer.set(POLL_MS);
                if timer.poll_elapsed(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await)
    }

    fn join(&self, pooling: &Pooling, bound: bool) -> Result<Place<'_>, Full> {
        let ledger = pooling.ledger.as_ref();
        self.count.slot(ledger);
        self.add(1);
        if !self.count.fits(self.size, ledger) {
            self.add(-1);
            return Err(Full);
        }
        let find = || ledger.and_then(|ledger| ledger.slot_of_configured(self.first_name.0));
        if self.first.get().is_none()
            && let Some(slot) = find()
        {
            self.first.get_or_init(|| slot);
        }
        let ticket = match self.first.get() {
            // Whatever stands there: it is compared only.
            Some(slot) => slot.word(Word::Ticket).fetch_add(1, Relaxed),
            None => self.tickets.replace(self.tickets.get() + 1),
        };
        let ring = pooling.ring.clone();
        let waiter = Rc::new(Waiter { ticket, bound, due: Cell::new(true), waker: RefCell::default(), ring });
        self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
        self.publish(pooling.host_now());
        Ok(Place { queue: self, waiter })
    }

    fn add(&self, change: i32) {
        let connections = self.count.here().connections.saturating_add_signed(change);
        self.count.set(InFlight { connections, requests: 0 });
    }

    /// Says who is first here.
    fn publish(&self, now: u64) {
        let Some(slot) = self.first.get() else { return };
        let first = self.waiting.borrow().iter().find(|waiter| !waiter.bound).map(|waiter| waiter.ticket);
        let word =
            first.map_or(0, |ticket| ticket.wrapping_add(1) << TIME_BITS | (now & ((1 << TIME_BITS) - 1)));
        slot.publish(word);
    }

    /// Whether nobody on another worker has waited longer.
    fn is_my_turn(&self, pooling: &Pooling, waiter: &Waiter) -> bool {
        let now = pooling.host_now();
        self.publish(now);
        let mask = (1_u64 << TIME_BITS) - 1;
        let mut others = self.first.get().into_iter().flat_map(Slot::others);
        !others.any(|word| {
            let (ticket, said) = (word >> TIME_BITS, word & mask);
            // Tickets that are far ahead are rubbish, or have come round.
            let is_before = ticket != 0 && ticket <= waiter.ticket & (u64::MAX >> TIME_BITS);
            is_before && (now.wrapping_sub(said) & mask) <= STALE_MS
        })
    }

    fn call_behind(&self, waiter: &Rc<Waiter>) {
        let waiting = self.waiting.borrow();
        let mut behind = waiting.iter().skip_while(|it| !Rc::ptr_eq(it, waiter)).skip(1);
        if let Some(next) = behind.next() {
            next.call();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.borrow_mut();
        let was_first = waiting.front().is_some_and(|first| Rc::ptr_eq(first, &self.waiter));
        waiting.retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        if was_first && let Some(next) = waiting.front() {
            next.call();
        }
        if waiting.is_empty()
            && let Some(slot) = self.queue.first.get()
        {
            slot.publish(0);
        }
        drop(waiting);
        self.queue.add(-1);
    }
}
