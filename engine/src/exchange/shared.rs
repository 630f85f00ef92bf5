//! What all connections of a worker share: the ring, the counters, the pool's settings, and whether the worker drains
//! or hands over.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::{
    listener::ListenerHandle,
    request_id::RequestIds,
    successor::{HandoverMessage, Successor},
};
use crate::{
    http::{DateCache, DateLine, Scratch},
    observe::Counters,
    ring::Ring,
    upstream::Pooling,
};

/// What all connections of a worker share.
pub struct Shared {
    /// The ring.
    pub ring: Ring,
    /// The counters.
    pub counters: Counters,
    /// The upstream pool's settings.
    pub pooling: Pooling,
    /// Connections that may be open at a time.
    pub max_connections: u32,
    /// How long a tunnel goes on whose listener or backend was removed (ms).
    pub drain_timeout_ms: u64,
    /// The worker is about to stop: answers close their connections, idle connections close.
    draining: Cell<bool>,
    /// Another process takes this one's place.
    leaving: Cell<bool>,
    /// Connections at rest are given to it.
    successor: RefCell<Option<Rc<Successor>>>,
    /// How many more are.
    places: Cell<u32>,
    pub(crate) open: Cell<u32>,
    /// Who waits for a connection to close: the listeners at their limit, and the stop.
    closed: RefCell<Vec<std::task::Waker>>,
    /// Listeners that still accept.
    pub(crate) listening: Cell<u32>,
    /// Why the worker cannot go on, if it cannot.
    failure: RefCell<Option<String>>,
    /// Waker of the task that ends the worker then.
    failing: Cell<Option<std::task::Waker>>,
    pub(crate) scratch: RefCell<Scratch>,
    pub(crate) request_ids: RefCell<RequestIds>,
    date: DateCache,
}

impl Shared {
    /// Shares `ring` and `counters`.
    pub fn new(pooling: Pooling, max_connections: u32, drain_timeout_ms: u64) -> Rc<Shared> {
        Rc::new(Shared {
            ring: pooling.ring.clone(),
            counters: pooling.counters.clone(),
            request_ids: RefCell::new(RequestIds::new()),
            pooling,
            max_connections,
            drain_timeout_ms,
            draining: Cell::new(false),
            leaving: Cell::new(false),
            successor: RefCell::default(),
            places: Cell::new(0),
            open: Cell::new(0),
            closed: RefCell::default(),
            listening: Cell::new(0),
            failure: RefCell::default(),
            failing: Cell::default(),
            scratch: RefCell::new(Scratch::new()),
            date: DateCache::new(),
        })
    }

    /// `Date` of the present second.
    #[inline]
    pub(crate) fn date(&self) -> DateLine {
        self.date.line(self.ring.now(), || {
            // A clock before 1970 is as good as none.
            std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
        })
    }

    /// Lets every connection end with the exchange that it is in; idle ones end now.
    pub fn drain(&self) {
        self.draining.set(true);
        self.ring.wake_all();
    }

    /// The worker cannot go on: it drains, and ends with this reason. The first one counts.
    pub fn fail(&self, reason: String) {
        self.failure.borrow_mut().get_or_insert(reason);
        self.drain();
        if let Some(waker) = self.failing.take() {
            waker.wake();
        }
    }

    /// Waits until the worker cannot go on; for one task alone.
    pub async fn failed(&self) {
        std::future::poll_fn(|context| {
            if self.failure.borrow().is_some() {
                return std::task::Poll::Ready(());
            }
            self.failing.set(Some(context.waker().clone()));
            std::task::Poll::Pending
        })
        .await;
    }

    /// Why the worker cannot go on, if it cannot. Tasks that wait on a socket are woken when that changes.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// Gives every connection to `successor` as soon as it is idle, and accepts no more; what waits in the queues of the
    /// listeners is left to it.
    pub fn hand_over(&self, successor: Rc<Successor>) {
        self.leaving.set(true);
        self.give_away(successor, u32::MAX);
        self.wake_waiting();
    }

    /// Gives the next `count` connections that are at rest to `successor`, and serves on.
    pub fn share(&self, successor: Rc<Successor>, count: u32) {
        if !self.leaving.get() && count > 0 {
            self.give_away(successor, count);
        }
    }

    pub(crate) fn give_away(&self, successor: Rc<Successor>, count: u32) {
        self.successor.replace(Some(successor));
        self.places.set(count);
        self.ring.wake_all();
    }

    /// Whether connections at rest are to move.
    pub(crate) fn connections_move(&self) -> bool {
        self.places.get() > 0
    }

    /// Where a connection at rest moves, if it is to; counted as moved.
    pub(crate) fn place_elsewhere(&self) -> Option<Rc<Successor>> {
        if self.leaving.get() {
            return self.successor.borrow().clone();
        }
        self.places.set(self.places.get().checked_sub(1)?);
        match self.places.get() {
            // The channel closes when all has been sent.
            0 => self.successor.take(),
            _ => self.successor.borrow().clone(),
        }
    }

    /// Tells the successor that this process waits for no connections any more on the socket of a listener.
    pub(crate) fn leave_queue(self: &Rc<Self>, listener: &ListenerHandle, socket: std::os::fd::OwnedFd) {
        let successor = self.successor.borrow().as_ref().map(Rc::clone);
        if let Some(successor) = successor {
            let listener = listener.config().settings.address;
            successor.give(self, HandoverMessage::Queue { listener }, vec![socket]);
        }
    }

    /// Whether [`Shared::hand_over`] was called.
    pub fn is_handing_over(&self) -> bool {
        self.leaving.get()
    }

    /// Whether, after [`Shared::drain`] or [`Shared::hand_over`], nothing is left to wait for.
    pub fn is_drained(&self) -> bool {
        let given = self.successor.borrow().as_ref().is_none_or(|successor| successor.has_everything());
        self.open.get() == 0 && self.listening.get() == 0 && given
    }

    /// Whether [`Shared::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Waits until a connection has closed, or a listener has finished.
    pub async fn connection_closed(&self) {
        let mut registered = false;
        std::future::poll_fn(|context| {
            if registered {
                return std::task::Poll::Ready(());
            }
            registered = true;
            self.closed.borrow_mut().push(context.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }

    /// Lets the connections and the listeners of a listener that was closed, or rearmed, see it.
    pub fn listeners_changed(&self) {
        self.ring.wake_all();
        self.wake_waiting();
    }

    pub(crate) fn note_open(&self) {
        self.open.set(self.open.get() + 1);
        self.counters.count(crate::observe::Counter::Connections);
    }

    pub(crate) fn note_closed(&self) {
        self.open.set(self.open.get() - 1);
        self.counters.uncount(crate::observe::Counter::Connections);
        self.wake_waiting();
    }

    /// Wakes whoever waits for a connection to close, to look at something else that has changed.
    pub fn wake_waiting(&self) {
        let mut waiting = self.closed.borrow_mut();
        if !waiting.is_empty() {
            waiting.drain(..).for_each(|waker| waker.wake());
            self.ring.note_local_work();
        }
    }
}
