//! What a client of the admin address is at, and since when: its deadlines follow from that, and whether it has to go for another.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use kakehi_ctl::limits;
use tokio::{sync::Notify, time::Instant};

/// How long a client may take for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) head: Duration,
    pub(super) idle: Duration,
    pub(super) stall: Duration,
    pub(super) response: Duration,
    /// After so long without progress it goes for another.
    pub(super) eviction: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let ms = Duration::from_millis;
        Patience {
            head: ms(limits::ADMIN_HEAD_TIMEOUT_MS),
            idle: ms(limits::ADMIN_IDLE_TIMEOUT_MS),
            stall: ms(limits::ADMIN_STALL_TIMEOUT_MS),
            response: ms(limits::ADMIN_RESPONSE_TIMEOUT_MS),
            eviction: ms(limits::ADMIN_EVICTION_MS),
        }
    }
}

/// It has connected, and some of its first head may have come.
const FRESH: u8 = 0;
/// It has its response.
const IDLE: u8 = 1;
/// Some of a further head has come.
const HEAD: u8 = 2;
/// Its response is being made, or sent.
const ANSWERED: u8 = 3;

/// One client. Shared between its task and the one that accepts, on one thread: the atomics are for the compiler.
pub(super) struct Activity {
    patience: Patience,
    begun: Instant,
    phase: AtomicU8,
    /// When the phase began (ms after `begun`).
    since: AtomicU64,
    /// Since when it takes no byte (ms after `begun`, and 1 more); 0: it does.
    stalled: AtomicU64,
    /// Number of the text that it is being sent; 0: none.
    pub(super) text: AtomicU64,
    /// It has to go.
    pub(super) leave: Notify,
    /// What it was not sent is to be forgotten.
    pub(super) cut: AtomicBool,
}

impl Activity {
    pub(super) fn new(patience: Patience) -> Activity {
        Activity {
            patience,
            begun: Instant::now(),
            phase: AtomicU8::new(FRESH),
            since: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            text: AtomicU64::new(0),
            leave: Notify::new(),
            cut: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn enter(&self, phase: u8) {
        self.phase.store(phase, Ordering::Relaxed);
        self.since.store(self.now(), Ordering::Relaxed);
    }

    fn is_in(&self, phase: u8) -> bool {
        self.phase.load(Ordering::Relaxed) == phase
    }

    /// It has not asked for anything yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_in(FRESH)
    }

    /// Bytes have come.
    pub(super) fn on_read(&self) {
        if self.is_in(IDLE) {
            self.enter(HEAD);
        }
    }

    /// A request is whole.
    pub(super) fn on_request(&self) {
        self.enter(ANSWERED);
    }

    /// All of its response has gone to the kernel, or was given up.
    pub(super) fn on_answered(&self) {
        self.text.store(0, Ordering::Relaxed);
        self.enter(IDLE);
    }

    /// It was tried to send something: whether any of it went.
    pub(super) fn on_write(&self, went: bool) {
        if went {
            self.stalled.store(0, Ordering::Relaxed);
        } else if self.stalled.load(Ordering::Relaxed) == 0 {
            self.stalled.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.begun + Duration::from_millis(ms)
    }

    fn stalled_since(&self) -> Option<Instant> {
        self.stalled.load(Ordering::Relaxed).checked_sub(1).map(|ms| self.at(ms))
    }

    /// When it is too late for what it is at.
    pub(super) fn deadline(&self) -> Instant {
        let patience = match self.phase.load(Ordering::Relaxed) {
            IDLE => self.patience.idle,
            ANSWERED => self.patience.response,
            _ => self.patience.head,
        };
        let late = self.at(self.since.load(Ordering::Relaxed)) + patience;
        self.stalled_since().map_or(late, |since| late.min(since + self.patience.stall))
    }

    /// Since when it has done nothing, where it may go for another: at once when it is between requests, and after a while of
    /// standing still in the midst of one.
    pub(super) fn may_go_since(&self, now: Instant) -> Option<Instant> {
        let since = self.at(self.since.load(Ordering::Relaxed));
        match (self.stalled_since(), self.phase.load(Ordering::Relaxed)) {
            (None, IDLE) => Some(since),
            (None, ANSWERED) => None,
            (stalled, _) => Some(stalled.unwrap_or(since)).filter(|it| now >= *it + self.patience.eviction),
        }
    }
}
