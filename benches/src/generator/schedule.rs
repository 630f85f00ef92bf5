//! When requests are due in an open loop: at a fixed rate, whatever becomes of those before.
//!
//! Latency counts from the moment that the schedule wanted, so a server that stands still for a while is charged with every
//! request that was due meanwhile.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::{Attempt, BenchError};

/// Of the timer; no connection has it.
pub(super) const DUE: Token = Token(usize::MAX);

/// Requests at a fixed rate.
#[derive(Debug)]
pub(super) struct Schedule {
    /// epoll's own timeouts are whole milliseconds.
    timer: TimerFd,
    gap: Duration,
    /// When the next request is due.
    next: Instant,
    /// When requests were due that no connection was free for.
    waiting: VecDeque<Instant>,
    /// Connections without a request.
    free: Vec<usize>,
}

impl Schedule {
    /// `rate` requests per second, from now on.
    pub(super) fn new(rate: f64, registry: &Registry) -> Result<Self, BenchError> {
        let set_up = || {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            let descriptor = timer.as_fd().as_raw_fd();
            registry.register(&mut SourceFd(&descriptor), DUE, Interest::READABLE)?;
            std::io::Result::Ok(timer)
        };
        let timer = set_up().attempt(|| "cannot set up the schedule".into())?;
        let gap = Duration::try_from_secs_f64(1.0 / rate).ok().filter(|gap| !gap.is_zero());
        let gap =
            gap.ok_or_else(|| BenchError::Usage(format!("{rate} requests per second: no such rate")))?;
        let mut schedule =
            Self { timer, gap, next: Instant::now(), waiting: VecDeque::new(), free: Vec::new() };
        schedule.set()?;
        Ok(schedule)
    }

    /// Begins anew after a pause: nothing was due in it.
    pub(super) fn restart(&mut self) -> Result<(), BenchError> {
        self.next = Instant::now();
        self.waiting.clear();
        self.set()
    }

    /// Sets the timer to when the next request is due. An absolute time that has passed ends it at once.
    fn set(&mut self) -> Result<(), BenchError> {
        let left = self.next.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let once = Expiration::OneShot(left.into());
        self.timer
            .set(once, TimerSetTimeFlags::empty())
            .map_err(std::io::Error::from)
            .attempt(|| "cannot set the timer".into())
    }

    /// Takes note of what has become due, and waits for what comes next.
    pub(super) fn catch_up(&mut self) -> Result<(), BenchError> {
        let now = Instant::now();
        while self.next <= now {
            self.waiting.push_back(self.next);
            self.next += self.gap;
        }
        self.set()
    }

    /// A connection that is free, and when the request was due that it is to send, if there are both.
    pub(super) fn pair(&mut self) -> Option<(usize, Instant)> {
        let due = *self.waiting.front()?;
        let slot = self.free.pop()?;
        self.waiting.pop_front();
        Some((slot, due))
    }

    /// Nothing that was due waits for a connection.
    pub(super) fn waits_for_nothing(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A connection has no request any more.
    pub(super) fn free(&mut self, slot: usize) {
        self.free.push(slot);
    }

    /// A connection is no more.
    pub(super) fn forget(&mut self, slot: usize) {
        self.free.retain(|free| *free != slot);
    }
}
