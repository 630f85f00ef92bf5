//! The window of free buffers that the kernel has: which they are, and when it may see them.
//!
//! The kernel takes buffers out of its ring whenever data arrives, on another core too. So an entry is written before a
//! tail that covers it is shown (release; the kernel loads it with acquire), and a place in the ring is written again
//! only after the completion that tells that the buffer there was taken. Knows neither the memory nor system calls: the
//! tests put a thread in the kernel's place and have a model checker go through all that the orderings allow.

use std::sync::atomic::Ordering;

/// The entries of a buffer ring and its tail, as the kernel sees them.
pub(super) trait Entries {
    /// Writes buffer `id` to `place`, which is not below the tail that was shown last, or was taken by the kernel.
    fn write(&mut self, place: u16, id: u16);

    /// Lets the kernel read the entries below `tail`: a store in this order.
    fn show(&mut self, tail: u16, order: Ordering);
}

/// Buffers published at first. Enough for the bursts of a few hundred busy connections.
pub(super) const FIRST_TARGET: u16 = 32;

/// Which buffers the kernel has, out of a ring with room for all of a part.
pub(super) struct Window<E> {
    entries: E,
    mask: u16,
    tail: u16,
    published: u16,
    target: u16,
}

impl<E: Entries> Window<E> {
    /// An empty window on a ring of `count` places, a power of two, at most 32,768.
    pub(super) fn new(entries: E, count: u16) -> Window<E> {
        debug_assert!(count.is_power_of_two());
        Window { entries, mask: count - 1, tail: 0, published: 0, target: FIRST_TARGET.min(count) }
    }

    /// Buffers that the kernel has.
    pub(super) fn published(&self) -> u16 {
        self.published
    }

    /// The kernel took a buffer out of the ring, as a completion says.
    pub(super) fn consumed(&mut self) {
        debug_assert!(self.published > 0, "the kernel can only take what was published");
        self.published = self.published.saturating_sub(1);
    }

    /// The kernel ran out: publish more from now on.
    pub(super) fn widen(&mut self) {
        self.target = self.target.saturating_mul(2).min(self.mask + 1);
    }

    /// Fills the window up with what `free` gives; returns how many buffers the kernel now has.
    pub(super) fn refill(&mut self, mut free: impl FnMut() -> Option<u16>) -> u16 {
        if self.published < self.target {
            // The first filling starts from nothing; later an almost empty window says that it is too narrow.
            if self.tail != 0 && self.published < self.target / 4 {
                self.widen();
            }
            let before = self.tail;
            while self.published < self.target {
                let Some(id) = free() else { break };
                self.publish(id);
            }
            if self.tail != before {
                // Pairs with the kernel's acquire: whoever sees this tail sees the entries below it.
                self.entries.show(self.tail, Ordering::Release);
            }
        }
        self.published
    }

    /// Puts a free buffer at the tail, which is yet to be shown.
    fn publish(&mut self, id: u16) {
        debug_assert!(self.published <= self.mask);
        self.entries.write(self.tail & self.mask, id);
        self.tail = self.tail.wrapping_add(1);
        self.published += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::array;

    use loom::{
        cell::UnsafeCell,
        sync::{Arc, atomic::AtomicU16},
        thread,
    };

    use super::*;

    /// Places in the ring of the model, and buffers: one more, so that places and buffers do not go together.
    const PLACES: u16 = 2;
    const BUFFERS: u16 = 3;
    /// How often the kernel has data for a buffer.
    const ARRIVALS: u16 = 3;
    /// What stands in a place that was never written.
    const NOTHING: u16 = u16::MAX;

    /// What the two threads of the model share. Of a buffer's bytes there is one number: of the receive that it is of.
    struct Shared {
        memory: [UnsafeCell<u16>; BUFFERS as usize],
        entries: [UnsafeCell<u16>; PLACES as usize],
        tail: AtomicU16,
        completions: [UnsafeCell<u16>; ARRIVALS as usize],
        completed: AtomicU16,
    }

    impl Shared {
        fn new() -> Arc<Shared> {
            Arc::new(Shared {
                memory: array::from_fn(|_| UnsafeCell::new(NOTHING)),
                entries: array::from_fn(|_| UnsafeCell::new(NOTHING)),
                tail: AtomicU16::new(0),
                completions: array::from_fn(|_| UnsafeCell::new(NOTHING)),
                completed: AtomicU16::new(0),
            })
        }
    }

    /// The ring, as the worker's thread writes it.
    struct Model {
        shared: Arc<Shared>,
        /// The order of the stores of the tail, in place of the one asked for.
        order: Option<Ordering>,
    }

    impl Entries for Model {
        fn write(&mut self, place: u16, id: u16) {
            // SAFETY: loom checks that no access of the other thread is concurrent: it is what these tests are about.
            self.shared.entries[usize::from(place)].with_mut(|entry| unsafe { *entry = id });
        }

        fn show(&mut self, tail: u16, order: Ordering) {
            self.shared.tail.store(tail, self.order.unwrap_or(order));
        }
    }

    /// What the kernel does where data arrives: takes the buffer at its head, if there is one, and completes the receive.
    fn kernel(shared: &Shared) {
        let mut head: u16 = 0;
        for _ in 0..ARRIVALS {
            if shared.tail.load(Ordering::Acquire) == head {
                continue;
            }
            let place = usize::from(head & (PLACES - 1));
            // SAFETY: checked by loom.
            let id = shared.entries[place].with(|entry| unsafe { *entry });
            assert!(id < BUFFERS, "the kernel took what was not published");
            // SAFETY: checked by loom.
            shared.memory[usize::from(id)].with_mut(|bytes| unsafe { *bytes = head });
            // SAFETY: checked by loom.
            shared.completions[usize::from(head)].with_mut(|completion| unsafe { *completion = id });
            head += 1;
            shared.completed.store(head, Ordering::Release);
        }
    }

    /// A worker that fills the window, looks for completions twice and fills it up each time; `early` = it takes a buffer
    /// for consumed before a completion says so.
    fn check(order: Option<Ordering>, early: bool) {
        loom::model(move || {
            let shared = Shared::new();
            let kernel = thread::spawn({
                let shared = Arc::clone(&shared);
                move || kernel(&shared)
            });
            let mut window = Window::new(Model { shared: Arc::clone(&shared), order }, PLACES);
            let mut free: Vec<u16> = (0..BUFFERS).collect();
            assert_eq!(window.refill(|| free.pop()), PLACES);
            let mut seen = 0;
            for _ in 0..2 {
                let completed = shared.completed.load(Ordering::Acquire);
                for number in seen..completed {
                    // SAFETY: checked by loom.
                    let id =
                        shared.completions[usize::from(number)].with(|completion| unsafe { *completion });
                    assert!(id < BUFFERS && !free.contains(&id), "a buffer is lent once");
                    // SAFETY: checked by loom.
                    let bytes = shared.memory[usize::from(id)].with(|bytes| unsafe { *bytes });
                    assert!(
                        early || bytes == number,
                        "what was received is there until the buffer is given back"
                    );
                    window.consumed();
                    free.push(id);
                }
                seen = completed;
                if early && window.published() > 0 {
                    window.consumed();
                }
                let published = window.refill(|| free.pop());
                assert!(early || published == PLACES);
            }
            kernel.join().unwrap();
        });
    }

    #[test]
    fn the_kernel_finds_only_whole_entries_below_the_tail_and_none_is_written_while_it_reads() {
        check(None, false);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn the_model_finds_that_a_tail_shown_without_release_is_a_race() {
        check(Some(Ordering::Relaxed), false);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn the_model_finds_that_a_place_written_again_before_its_completion_is_a_race() {
        check(None, true);
    }
}
