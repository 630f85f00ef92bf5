//! How many completions are worth waiting for.
//!
//! Under load the next event is always there already, and a loop that takes each as it comes spends a system call
//! on every one or two. Where many sockets are busy and events are known to come fast, it pays to sleep until
//! several are there. The wait is bounded in time, and asks for a share of what is on its way, so that the others
//! never run out of work because we hold everything: with few busy sockets, or few events, there is no wait at all.

/// Longest wait for more than one event (us). A wait asks for no more than what came in so long a time lately.
pub(super) const LONGEST_WAIT_US: u32 = 250;
/// Length of the window in which events are counted (ms).
const WINDOW_MS: u64 = 4;
/// A wait asks for one event per so many busy sockets: half of these are clients', half upstream.
const BUSY_PER_EVENT: u32 = 5;
/// Most events that a wait asks for.
const MOST: u32 = 32;

/// Counts receives, and derives from the last window how many to wait for in this one.
#[derive(Debug, Default)]
pub(super) struct Batching {
    window: u8,
    began: u64,
    events: u32,
    busy: u32,
    wanted: u32,
}

impl Batching {
    /// A socket has received something; `seen` is where the socket keeps the window in which it last had.
    pub(super) fn received(&mut self, seen: &mut u8) {
        self.events += 1;
        if *seen != self.window {
            *seen = self.window;
            self.busy += 1;
        }
    }

    /// Events to wait for at `now` (ms); less than 2 = take each as it comes.
    pub(super) fn wanted(&mut self, now: u64) -> u32 {
        let elapsed = now - self.began;
        if elapsed >= WINDOW_MS {
            let soon = u64::from(self.events) * u64::from(LONGEST_WAIT_US) / (elapsed * 1_000);
            self.wanted = (self.busy / BUSY_PER_EVENT).min(MOST).min(soon as u32);
            // Never 0, which is what a new socket has seen.
            self.window = self.window % u8::MAX + 1;
            (self.began, self.events, self.busy) = (now, 0, 0);
        }
        self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wanted after windows in which each of `sockets` received `each` times in `milliseconds`.
    fn wanted(sockets: usize, each: usize, milliseconds: u64) -> u32 {
        let mut batching = Batching::default();
        let mut seen = vec![0; sockets];
        batching.wanted(WINDOW_MS);
        for _ in 0..each {
            seen.iter_mut().for_each(|seen| batching.received(seen));
        }
        batching.wanted(WINDOW_MS + milliseconds)
    }

    #[test]
    fn many_busy_sockets_are_worth_waiting_for() {
        // 64 connections with their upstreams, 64,000 requests a second.
        assert_eq!(wanted(128, 4, 4), 25);
        assert_eq!(wanted(2_000, 1, 4), MOST);
    }

    #[test]
    fn few_sockets_however_fast_and_many_slow_ones_are_not() {
        assert!(wanted(2, 100, 4) < 2, "one connection");
        assert!(wanted(16, 1, 4) < 2, "2,000 requests a second");
        assert!(wanted(2_000, 1, 1_000) < 2, "1,000 requests a second over 1,000 connections");
    }

    #[test]
    fn a_burst_is_forgotten_when_the_next_window_is_quiet() {
        let mut batching = Batching::default();
        batching.wanted(WINDOW_MS);
        let mut seen = [0; 200];
        (0..5).for_each(|_| seen.iter_mut().for_each(|seen| batching.received(seen)));
        assert!(batching.wanted(2 * WINDOW_MS) > 2);
        assert_eq!(batching.wanted(3 * WINDOW_MS), 0);
    }
}
