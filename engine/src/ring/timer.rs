//! Timeouts: a hierarchical wheel in user space.
//!
//! A timeout that is set for each request and almost never fires must cost a store, so the wheel is lazy:
//! moving a deadline later only writes it down, and the entry is put in its right place when its old one comes
//! up. Nothing fires early; a deadline fires at most one tick and one turn of the loop late.

use std::task::Waker;

use slab::Slab;

/// Length of a tick, as a power of two of milliseconds: 16 ms.
const TICK_SHIFT: u32 = 4;
/// Buckets of a level, as a power of two.
const LEVEL_SHIFT: u32 = 6;
const BUCKETS: usize = 1 << LEVEL_SHIFT;
/// Four levels reach 64^4 ticks: 74 hours; what lies beyond waits in the last level and is placed again.
const LEVELS: usize = 4;
const NONE: u32 = u32::MAX;
/// A bucket number that no bucket has: the entry is in none.
const UNPLACED: u16 = u16::MAX;

/// Number of a timer in its wheel.
pub(super) type TimerId = u32;

struct Entry {
    /// When to fire (ticks); `u64::MAX` = not set.
    deadline: u64,
    /// When its bucket comes up (ticks): at `deadline` or before.
    up_at: u64,
    /// Where in the wheel: `level * 64 + bucket`.
    place: u16,
    fired: bool,
    previous: u32,
    next: u32,
    waker: Option<Waker>,
}

/// All timers of a ring.
pub(super) struct Wheel {
    entries: Slab<Entry>,
    heads: [u32; LEVELS * BUCKETS],
    /// One bit for each bucket that is not empty.
    occupied: [u64; LEVELS],
    /// The tick up to which everything has come up.
    now: u64,
}

/// The first tick that is not before `milliseconds`.
fn tick_after(milliseconds: u64) -> u64 {
    milliseconds.div_ceil(1 << TICK_SHIFT)
}

impl Wheel {
    pub(super) fn new() -> Wheel {
        Wheel { entries: Slab::new(), heads: [NONE; LEVELS * BUCKETS], occupied: [0; LEVELS], now: 0 }
    }

    /// A timer that is not set.
    pub(super) fn insert(&mut self) -> TimerId {
        let entry = Entry {
            deadline: u64::MAX,
            up_at: 0,
            place: UNPLACED,
            fired: false,
            previous: NONE,
            next: NONE,
            waker: None,
        };
        // Bounded by the number of sockets, far below 2^32.
        self.entries.insert(entry) as TimerId
    }

    pub(super) fn remove(&mut self, id: TimerId) {
        self.unlink(id);
        self.entries.remove(id as usize);
    }

    /// Sets the deadline (ms since the ring began), instead of an earlier or later one.
    pub(super) fn set(&mut self, id: TimerId, milliseconds: u64) {
        let deadline = tick_after(milliseconds);
        let now = self.now;
        let entry = &mut self.entries[id as usize];
        entry.deadline = deadline;
        entry.fired = deadline <= now;
        // Later than before: it will be moved when its present place comes up.
        if entry.place == UNPLACED || deadline < entry.up_at {
            self.unlink(id);
            self.place(id);
        }
    }

    /// The deadline (ms since the ring began), if it is set.
    pub(super) fn due(&self, id: TimerId) -> Option<u64> {
        let ticks = self.entries[id as usize].deadline;
        (ticks != u64::MAX).then_some(ticks << TICK_SHIFT)
    }

    /// Unsets it. It stays where it is until its place comes up: it will most likely be set again before.
    pub(super) fn clear(&mut self, id: TimerId) {
        let entry = &mut self.entries[id as usize];
        entry.fired = false;
        entry.deadline = u64::MAX;
    }

    /// Whether the deadline has passed; otherwise `waker` is woken when it does.
    pub(super) fn poll(&mut self, id: TimerId, waker: &Waker) -> bool {
        let entry = &mut self.entries[id as usize];
        if entry.fired {
            return true;
        }
        if !entry.waker.as_ref().is_some_and(|present| present.will_wake(waker)) {
            entry.waker = Some(waker.clone());
        }
        false
    }

    fn place(&mut self, id: TimerId) {
        let deadline = self.entries[id as usize].deadline;
        if deadline == u64::MAX {
            return;
        }
        // At least one tick ahead: the present tick's bucket has come up already.
        let ahead = deadline.saturating_sub(self.now).max(1);
        let level = (0..LEVELS - 1)
            .find(|level| ahead < 1 << (LEVEL_SHIFT as usize * (level + 1)))
            .unwrap_or(LEVELS - 1);
        let reach = (1u64 << (LEVEL_SHIFT as usize * LEVELS)) - 1;
        let tick = self.now + ahead.min(reach - 1);
        let bucket = (tick >> (LEVEL_SHIFT as usize * level)) as usize & (BUCKETS - 1);
        let place = level * BUCKETS + bucket;
        let head = self.heads[place];
        let entry = &mut self.entries[id as usize];
        entry.place = place as u16;
        entry.up_at = tick >> (LEVEL_SHIFT as usize * level) << (LEVEL_SHIFT as usize * level);
        entry.previous = NONE;
        entry.next = head;
        if head != NONE {
            self.entries[head as usize].previous = id;
        }
        self.heads[place] = id;
        self.occupied[level] |= 1 << bucket;
    }

    fn unlink(&mut self, id: TimerId) {
        let entry = &mut self.entries[id as usize];
        let (place, previous, next) = (entry.place, entry.previous, entry.next);
        if place == UNPLACED {
            return;
        }
        entry.place = UNPLACED;
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            let place = usize::from(place);
            self.heads[place] = next;
            if next == NONE {
                self.occupied[place / BUCKETS] &= !(1 << (place % BUCKETS));
            }
        }
    }

    /// When the loop must next look (ms since the ring began); `None` = no timer is set.
    pub(super) fn next_look(&self) -> Option<u64> {
        (0..LEVELS)
            .filter_map(|level| {
                let shift = LEVEL_SHIFT as usize * level;
                let occupied = self.occupied[level];
                if occupied == 0 {
                    return None;
                }
                let present = (self.now >> shift) as u32 & (BUCKETS as u32 - 1);
                // Buckets ahead of the present one; the present one itself is a whole round ahead.
                let ahead = occupied.rotate_right(present + 1).trailing_zeros() as u64 + 1;
                Some((((self.now >> shift) + ahead) << shift) << TICK_SHIFT)
            })
            .min()
    }

    /// Fires what has come up by `milliseconds` and puts the rest of the buckets passed in their new places.
    pub(super) fn advance(&mut self, milliseconds: u64) {
        // Only whole ticks that have passed: nothing fires early.
        let target = milliseconds >> TICK_SHIFT;
        while self.now < target {
            // Empty stretches are skipped whole.
            let next = self.next_look().map_or(u64::MAX, |at| at >> TICK_SHIFT);
            if next > target {
                self.now = target;
                return;
            }
            self.now = next;
            for level in 0..LEVELS {
                let shift = LEVEL_SHIFT as usize * level;
                if level > 0 && self.now & ((1 << shift) - 1) != 0 {
                    break;
                }
                self.come_up(level * BUCKETS + ((self.now >> shift) as usize & (BUCKETS - 1)));
            }
        }
    }

    fn come_up(&mut self, place: usize) {
        let mut id = self.heads[place];
        self.heads[place] = NONE;
        self.occupied[place / BUCKETS] &= !(1 << (place % BUCKETS));
        while id != NONE {
            let now = self.now;
            let entry = &mut self.entries[id as usize];
            let next = entry.next;
            entry.place = UNPLACED;
            if entry.deadline <= now {
                entry.fired = true;
                if let Some(waker) = &entry.waker {
                    waker.wake_by_ref();
                }
            } else {
                self.place(id);
            }
            id = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(wheel: &mut Wheel, id: TimerId) -> bool {
        wheel.poll(id, Waker::noop())
    }

    #[test]
    fn a_timer_fires_at_its_deadline_rounded_up_and_never_before() {
        for deadline in [1, 15, 16, 17, 1_000, 1_024, 60_000, 3_600_000, 100_000_000] {
            let mut wheel = Wheel::new();
            let id = wheel.insert();
            wheel.set(id, deadline);
            let mut now = 0;
            while !fired(&mut wheel, id) {
                let look = wheel.next_look().unwrap();
                assert!(look > now, "the loop gets on");
                wheel.advance(look - 1);
                assert!(look > deadline || !fired(&mut wheel, id), "{deadline}");
                wheel.advance(look);
                now = look;
            }
            assert!(now >= deadline && now < deadline + 16, "{deadline} fired at {now}");
        }
    }

    #[test]
    fn a_deadline_that_is_moved_fires_at_the_last_one_set() {
        let mut wheel = Wheel::new();
        let id = wheel.insert();
        wheel.set(id, 60_000);
        wheel.set(id, 30_000);
        wheel.set(id, 60_000);
        wheel.advance(59_999);
        assert!(!fired(&mut wheel, id));
        wheel.set(id, 59_999 + 1_000);
        wheel.advance(60_990);
        assert!(!fired(&mut wheel, id));
        wheel.advance(61_016);
        assert!(fired(&mut wheel, id));
    }

    #[test]
    fn a_cleared_timer_does_not_fire_and_can_be_set_again() {
        let mut wheel = Wheel::new();
        let id = wheel.insert();
        wheel.set(id, 100);
        wheel.clear(id);
        wheel.advance(10_000);
        assert!(!fired(&mut wheel, id));
        assert_eq!(wheel.next_look(), None, "it left its place when that came up");
        wheel.set(id, 10_100);
        wheel.advance(10_200);
        assert!(fired(&mut wheel, id));
        wheel.remove(id);
    }

    #[test]
    fn a_deadline_in_the_past_has_fired() {
        let mut wheel = Wheel::new();
        wheel.advance(5_000);
        let id = wheel.insert();
        wheel.set(id, 4_000);
        assert!(fired(&mut wheel, id));
    }

    #[test]
    fn many_timers_each_fire_once_in_their_tick_whatever_the_steps() {
        let mut seed = 42u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            seed >> 33
        };
        let mut wheel = Wheel::new();
        let mut timers: Vec<(TimerId, u64)> = (0..2_000)
            .map(|_| {
                let id = wheel.insert();
                let deadline = random() % 5_000_000;
                wheel.set(id, random() % 5_000_000);
                wheel.set(id, deadline);
                (id, deadline)
            })
            .collect();
        let mut now = 0;
        while !timers.is_empty() {
            now += 1 + random() % 20_000;
            wheel.advance(now);
            timers.retain(|(id, deadline)| {
                let fired = fired(&mut wheel, *id);
                assert_eq!(fired, tick_after(*deadline) <= now >> TICK_SHIFT, "{deadline} at {now}");
                !fired
            });
        }
        assert_eq!(wheel.next_look(), None);
    }
}
