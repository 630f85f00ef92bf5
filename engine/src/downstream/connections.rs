//! What the client connections of a worker share: how many there are, and whether the worker drains or hands over.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
};

use kakehi_ctl::state::Settings;

use super::{
    eviction::Eviction,
    successor::{HandoverMessage, Successor},
};
use crate::{
    exchange::{ListenerHandle, Shared, Wakers},
    observe::Counter,
    passwords::Passwords,
    tls::HandshakeLimit,
    upstream::Pooling,
};

/// The client connections of a worker.
pub struct Connections {
    /// What their exchanges share.
    pub shared: Shared,
    /// Connections that may be open at a time.
    max_connections: Cell<u32>,
    /// At that number those that are idle longest make room.
    evicts: Cell<bool>,
    pub(super) eviction: Eviction,
    /// Handshakes with clients that are under way.
    pub(crate) handshakes: Rc<HandshakeLimit>,
    /// How long a tunnel goes on whose listener or backend was removed (ms).
    pub drain_timeout_ms: Cell<u64>,
    /// How long an idle connection waits at a stop for a request that is on its way (ms).
    pub stop_idle_grace_ms: Cell<u64>,
    /// When connections close that are idle then (ms on the ring's clock), once the worker drains: it is about to stop, and
    /// answers close their connections.
    idle_close_due: Cell<Option<u64>>,
    /// The tunnels: their backends may be removed.
    pub(super) tunnels: Wakers,
    /// Another process takes this one's place.
    leaving: Cell<bool>,
    /// Connections at rest are given to it.
    successor: RefCell<Option<Rc<Successor>>>,
    /// How many more are.
    places: Cell<u32>,
    open: Cell<u32>,
    /// Wakers of accept loops at `max_connections` and of shutdown.
    closed: RefCell<Vec<std::task::Waker>>,
    /// Listeners that still accept.
    listening: Cell<u32>,
    /// Why the worker cannot go on, if it cannot.
    failure: RefCell<Option<String>>,
    /// Waker of the task that ends the worker then.
    failing: Cell<Option<std::task::Waker>>,
}

impl Connections {
    /// Whether nothing is accepted now that waits in the kernel: the worker has more to do than it can.
    pub(super) fn is_overloaded(&self) -> bool {
        self.shared.ring.is_overloaded()
    }

    /// Whether connections that are idle make room for new ones.
    pub(super) fn evicts(&self) -> bool {
        self.evicts.get()
    }

    /// Makes room for new connections: some that are idle end.
    pub(super) async fn make_room(&self) {
        self.eviction.run(&self.shared.ring, self.open.get() as usize).await;
    }

    /// None yet. Of their handshakes `max_handshakes` are under way at a time: this worker's share; 0 = any number.
    pub fn new(
        pooling: Pooling,
        passwords: Passwords,
        settings: &Settings,
        max_handshakes: u32,
    ) -> Rc<Connections> {
        Rc::new(Connections {
            handshakes: HandshakeLimit::new(&pooling.ring, max_handshakes),
            shared: Shared::new(pooling, passwords),
            max_connections: Cell::new(settings.max_connections),
            drain_timeout_ms: Cell::new(settings.drain_timeout_ms),
            stop_idle_grace_ms: Cell::new(settings.stop_idle_grace_ms),
            evicts: Cell::new(settings.evict_on_queue_full),
            eviction: Eviction::default(),
            idle_close_due: Cell::new(None),
            tunnels: Wakers::default(),
            leaving: Cell::new(false),
            successor: RefCell::default(),
            places: Cell::new(0),
            open: Cell::new(0),
            closed: RefCell::default(),
            listening: Cell::new(0),
            failure: RefCell::default(),
            failing: Cell::default(),
        })
    }

    /// So many connections may be open at a time from now on. Those that are open stay.
    pub fn set_max_connections(&self, most: u32) {
        self.max_connections.set(most);
        self.wake_waiting();
    }

    /// Takes over what connections heed of settings that have changed, but for their number.
    pub fn take_settings(&self, settings: &Settings) {
        self.drain_timeout_ms.set(settings.drain_timeout_ms);
        self.stop_idle_grace_ms.set(settings.stop_idle_grace_ms);
        self.evicts.set(settings.evict_on_queue_full);
        self.shared.pooling.take_settings(settings);
    }

    /// Lets every connection end with the exchange that it is in. One that is idle has `stop_idle_grace` for a request that
    /// is on its way, but no more than half of `deadline_ms`, when everything is cut.
    pub fn drain(&self, deadline_ms: u64) {
        let due = self.shared.ring.now() + self.stop_idle_grace_ms.get().min(deadline_ms / 2);
        self.idle_close_due.set(Some(self.idle_close_due.get().map_or(due, |before| before.min(due))));
        self.shared.ring.wake_all();
    }

    /// When connections close that are idle then (ms), if the worker drains.
    pub(super) fn idle_close_due(&self) -> Option<u64> {
        self.idle_close_due.get()
    }

    /// The worker cannot go on: it drains, and ends with this reason. The first one counts.
    pub fn fail(&self, reason: String) {
        self.failure.borrow_mut().get_or_insert(reason);
        self.drain(self.drain_timeout_ms.get());
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

    pub(super) fn give_away(&self, successor: Rc<Successor>, count: u32) {
        self.successor.replace(Some(successor));
        self.places.set(count);
        self.shared.ring.wake_all();
    }

    /// True if connections at rest should move.
    pub(super) fn connections_move(&self) -> bool {
        self.places.get() > 0
    }

    /// Where a connection at rest moves, if it is to; counted as moved.
    pub(super) fn place_elsewhere(&self) -> Option<Rc<Successor>> {
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
    pub(super) fn leave_queue(self: &Rc<Self>, listener: &ListenerHandle, socket: OwnedFd) {
        let successor = self.successor.borrow().as_ref().map(Rc::clone);
        if let Some(successor) = successor {
            let listener = listener.address();
            successor.give(self, HandoverMessage::Queue { listener }, vec![socket]);
        }
    }

    /// Whether [`Connections::hand_over`] was called.
    pub fn is_handing_over(&self) -> bool {
        self.leaving.get()
    }

    /// Whether, after [`Connections::drain`] or [`Connections::hand_over`], nothing is left to wait for.
    pub fn is_drained(&self) -> bool {
        let given = self.successor.borrow().as_ref().is_none_or(|successor| successor.has_everything());
        self.open.get() == 0 && self.listening.get() == 0 && given
    }

    /// Whether [`Connections::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.idle_close_due.get().is_some()
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

    /// Lets everybody see that a listener was closed: its connections are not told from others.
    pub fn listeners_closed(&self) {
        self.shared.ring.wake_all();
        self.wake_waiting();
    }

    /// Lets the accept loops of a listener see that it was closed or rearmed, or that a socket of it was yielded.
    pub fn wake_acceptors(&self, listener: &ListenerHandle) {
        listener.acceptors.wake();
        self.wake_waiting();
        self.shared.ring.note_local_work();
    }

    /// Lets the tunnels see that a backend was removed.
    pub fn wake_tunnels(&self) {
        self.tunnels.wake();
        self.shared.ring.note_local_work();
    }

    /// Lets everybody see that sessions were closed by hand.
    pub fn sessions_closed(&self) {
        self.shared.ring.wake_all();
        self.wake_tunnels();
    }

    /// True if there are as many as there may be.
    pub(super) fn is_full(&self) -> bool {
        self.open.get() >= self.max_connections.get()
    }

    /// Notes that a listener accepts.
    pub(super) fn note_listening(&self) {
        self.listening.set(self.listening.get() + 1);
    }

    /// Notes that a listener accepts no more.
    pub(super) fn note_not_listening(&self) {
        self.listening.set(self.listening.get() - 1);
        self.wake_waiting();
    }

    pub(super) fn note_open(&self) {
        self.open.set(self.open.get() + 1);
        self.shared.counters.count(Counter::Connections);
    }

    pub(super) fn note_closed(&self) {
        self.open.set(self.open.get() - 1);
        self.shared.counters.uncount(Counter::Connections);
        self.wake_waiting();
    }

    /// Wakes whoever waits for a connection to close, to look at something else that has changed.
    pub fn wake_waiting(&self) {
        let mut waiting = self.closed.borrow_mut();
        if !waiting.is_empty() {
            waiting.drain(..).for_each(|waker| waker.wake());
            self.shared.ring.note_local_work();
        }
    }
}
