//! One word of a block of counters: what its one writer does to it while others read.
//!
//! The writer is a process, the readers are in another, and no lock holds either up. A word has one writer at a time: the
//! worker's process, and after its end the process that takes its place. So an addition need not be one indivisible step,
//! and readers still see a counter that never goes backwards. The tests have a model checker show both, and what would
//! happen with two writers.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{self, Relaxed},
};

/// A 64-bit word that is read and written whole.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
}

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }

    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }
}

/// The present value. The words of a block are read one by one: there is no moment for which all of them hold.
pub(super) fn get(word: &impl Word) -> u64 {
    word.load(Relaxed)
}

/// Sets it.
pub(super) fn set(word: &impl Word, value: u64) {
    word.store(value, Relaxed);
}

/// Adds to it.
pub(super) fn add(word: &impl Word, amount: u64) {
    // One writer: no need of a locked read-modify-write.
    word.store(word.load(Relaxed).wrapping_add(amount), Relaxed);
}

/// Takes off it, down to 0.
pub(super) fn subtract(word: &impl Word, amount: u64) {
    word.store(word.load(Relaxed).saturating_sub(amount), Relaxed);
}

#[cfg(test)]
mod tests {
    use loom::{
        sync::{Arc, atomic::AtomicU64 as Modelled},
        thread,
    };

    use super::*;

    impl Word for Modelled {
        fn load(&self, order: Ordering) -> u64 {
            Modelled::load(self, order)
        }

        fn store(&self, value: u64, order: Ordering) {
            Modelled::store(self, value, order);
        }
    }

    /// A process that does `work` to a word.
    fn process(
        word: &Arc<Modelled>,
        work: impl FnOnce(&Modelled) + Send + 'static,
    ) -> thread::JoinHandle<()> {
        let word = Arc::clone(word);
        thread::spawn(move || work(&word))
    }

    #[test]
    fn a_counter_never_goes_backwards_for_a_reader_beside_the_writer_and_its_successor() {
        loom::model(|| {
            let word = Arc::new(Modelled::new(0));
            let mut last = 0;
            let mut read = || {
                let now = get(&*word);
                assert!(now >= last, "{now} after {last}");
                last = now;
                now
            };
            let worker = process(&word, |word| (1..=2).for_each(|amount| add(word, amount)));
            assert!([0, 1, 3].contains(&read()));
            read();
            // The supervisor starts a successor when it has collected the end of the predecessor, not before.
            worker.join().unwrap();
            assert_eq!(read(), 3);
            let successor = process(&word, |word| add(word, 4));
            assert!([3, 7].contains(&read()));
            successor.join().unwrap();
            assert_eq!(read(), 7);
        });
    }

    #[test]
    fn a_gauge_shows_a_value_that_it_had_and_starts_at_zero_in_the_successor() {
        loom::model(|| {
            let word = Arc::new(Modelled::new(0));
            let worker = process(&word, |word| {
                add(word, 2);
                subtract(word, 1);
            });
            assert!([0, 1, 2].contains(&get(&*word)));
            worker.join().unwrap();
            let successor = process(&word, |word| {
                set(word, 0);
                // More goes than came: it stays at 0, and does not become the largest number.
                subtract(word, 1);
                add(word, 5);
            });
            assert!([0, 1, 5].contains(&get(&*word)));
            successor.join().unwrap();
            assert_eq!(get(&*word), 5);
        });
    }

    #[test]
    #[should_panic(expected = "a count was lost")]
    fn the_model_finds_that_two_writers_at_once_lose_counts() {
        loom::model(|| {
            let word = Arc::new(Modelled::new(0));
            let other = process(&word, |word| add(word, 1));
            add(&*word, 1);
            other.join().unwrap();
            assert_eq!(get(&*word), 2, "a count was lost");
        });
    }
}
