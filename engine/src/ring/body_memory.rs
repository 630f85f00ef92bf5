//! Private memory for bodies: buffers for large ones, lent within a budget, and what had to leave the arena since a peer is
//! slow.

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::{Deref, DerefMut},
    rc::Rc,
};

/// Size of a large private buffer (bytes).
pub const BULK_SIZE: usize = 256 * 1024;
/// Size of a small private buffer (bytes): what a slow peer may cost, once while it is sent and once while the next one is
/// received.
pub const BULK_SMALL: usize = 32 * 1024;
/// Size of a private buffer between the two (bytes): a body of 64 KiB, with all that goes with it.
const BULK_MIDDLE: usize = 96 * 1024;
/// All sizes.
const SIZES: [usize; 3] = [BULK_SMALL, BULK_MIDDLE, BULK_SIZE];
/// Private buffers of each size that are kept for the next user, within the budget (bytes). What nobody has used for a while is given
/// back.
const KEPT_BYTES: usize = 16 << 20;

/// What is given back at a time of the buffers of a size (bytes): a large one takes the kernel some microseconds.
const MOST_AT_ONCE: usize = 2 << 20;

/// A private buffer for a large body, lent within the worker's `body_memory`; it comes back by itself.
pub struct BulkBuf {
    /// `None` only while it is dropped.
    bulk: Option<Box<Bulk>>,
    memory: Rc<BodyMemory>,
}

/// Buffers of one size that are kept.
#[derive(Default)]
struct Kept {
    #[expect(
        clippy::vec_box,
        reason = "what is sent takes little room in a socket, and lending allocates nothing"
    )]
    buffers: RefCell<Vec<Box<Bulk>>>,
    /// The least that there were since the last [`BodyMemory::trim`]: so many were not needed.
    unused: Cell<usize>,
}

struct Bulk {
    /// All of its bytes count as initialised; those of the one before are written over.
    bytes: Vec<u8>,
    size: usize,
}

/// What of the worker's memory large bodies, and what waits for slow peers, may take.
pub(super) struct BodyMemory {
    budget: Cell<usize>,
    in_use: Cell<usize>,
    refused: Cell<u64>,
    /// By size.
    kept: [Kept; SIZES.len()],
}

impl BodyMemory {
    /// `budget` bytes.
    pub(super) fn new(budget: usize) -> Rc<BodyMemory> {
        Rc::new(BodyMemory {
            budget: Cell::new(budget),
            in_use: Cell::new(0),
            refused: Cell::new(0),
            kept: Default::default(),
        })
    }

    /// A buffer for `wanted` bytes or as many as it takes, from [`BULK_SMALL`] to [`BULK_SIZE`]. `None` when the budget does
    /// not allow it: the body then goes on in buffers of the arena.
    pub(super) fn lend(self: &Rc<Self>, wanted: usize) -> Option<BulkBuf> {
        let largest = class(wanted);
        let fits = |class: &usize| self.in_use.get() + SIZES[*class] <= self.budget.get();
        let Some(class) = (0..=largest).rev().find(fits) else {
            self.refused.set(self.refused.get() + 1);
            return None;
        };
        let size = SIZES[class];
        self.take(size);
        let Kept { buffers, unused } = &self.kept[class];
        let kept = buffers.borrow_mut().pop();
        unused.set(unused.get().min(buffers.borrow().len()));
        let bulk = kept.unwrap_or_else(|| {
            self.keep_at_most(self.budget.get().saturating_sub(self.in_use.get()));
            Box::new(Bulk { bytes: vec![0; size], size })
        });
        Some(BulkBuf { bulk: Some(bulk), memory: Rc::clone(self) })
    }

    /// Gives back what nobody has needed since the last time.
    pub(super) fn trim(&self) {
        for (Kept { buffers, unused }, size) in self.kept.iter().zip(SIZES) {
            let mut buffers = buffers.borrow_mut();
            let given_back = unused.get().min(MOST_AT_ONCE / size);
            let needed = buffers.len().saturating_sub(given_back);
            buffers.truncate(needed);
            unused.set(needed);
            if needed == 0 {
                buffers.shrink_to_fit();
            }
        }
    }

    /// Sets the budget (bytes). What is lent beyond it comes back by itself.
    pub(super) fn set_budget(&self, budget: usize) {
        self.budget.set(budget);
        self.keep_at_most(budget.saturating_sub(self.in_use.get()));
    }

    /// What is kept (bytes).
    fn kept_bytes(&self) -> usize {
        self.kept.iter().zip(SIZES).map(|(kept, size)| kept.buffers.borrow().len() * size).sum()
    }

    /// Gives back kept buffers, the largest first, until no more than `bytes` of them are left.
    fn keep_at_most(&self, bytes: usize) {
        for Kept { buffers, unused } in self.kept.iter().rev() {
            while self.kept_bytes() > bytes && buffers.borrow_mut().pop().is_some() {}
            unused.set(unused.get().min(buffers.borrow().len()));
        }
    }

    /// Counts memory that has to be had, whatever the budget says.
    pub(super) fn take(&self, bytes: usize) {
        self.in_use.set(self.in_use.get() + bytes);
    }

    /// The end of [`BodyMemory::take`].
    pub(super) fn release(&self, bytes: usize) {
        debug_assert!(bytes <= self.in_use.get(), "memory is released once");
        self.in_use.set(self.in_use.get().saturating_sub(bytes));
    }

    /// Bytes in use.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// How often the budget did not allow a buffer.
    pub(super) fn refused(&self) -> u64 {
        self.refused.get()
    }
}

/// The size of the smallest buffer that has room for `wanted` bytes (bytes).
pub(super) fn size_for(wanted: usize) -> usize {
    SIZES[class(wanted)]
}

/// The place in [`SIZES`] of the smallest that has room for `wanted` bytes; of the largest, if none has.
fn class(wanted: usize) -> usize {
    SIZES.iter().position(|size| *size >= wanted).unwrap_or(SIZES.len() - 1)
}

impl BulkBuf {
    /// As a vector, for what writes into one. It must not be made longer than it is, or it is not used again.
    pub fn as_vec(&mut self) -> &mut Vec<u8> {
        // Invariant: it is there until the drop.
        #[expect(clippy::expect_used, reason = "only `drop` takes it")]
        &mut self.bulk.as_mut().expect("only `drop` takes it").bytes
    }
}

impl Deref for BulkBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bulk.as_ref().map_or(&[], |bulk| &bulk.bytes)
    }
}

impl DerefMut for BulkBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bulk.as_mut().map_or(&mut [], |bulk| &mut bulk.bytes)
    }
}

impl Drop for BulkBuf {
    fn drop(&mut self) {
        let Some(bulk) = self.bulk.take() else { return };
        self.memory.release(bulk.size);
        let in_all = self.memory.in_use.get() + self.memory.kept_bytes() + bulk.size;
        let mut kept = self.memory.kept[class(bulk.size)].buffers.borrow_mut();
        let has_room = kept.len() < KEPT_BYTES / bulk.size && in_all <= self.memory.budget.get();
        if has_room && bulk.bytes.len() == bulk.size {
            kept.push(bulk);
        }
    }
}

impl fmt::Debug for BulkBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkBuf").field("size", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_buffers_are_lent_within_the_budget_and_come_back_by_themselves() {
        let memory = BodyMemory::new(BULK_SIZE + BULK_SMALL);
        let large = memory.lend(BULK_SIZE).unwrap();
        assert_eq!(large.len(), BULK_SIZE);
        let small = memory.lend(BULK_SIZE).unwrap();
        assert_eq!(small.len(), BULK_SMALL, "a smaller one where the larger is too much");
        assert!(memory.lend(1).is_none());
        assert_eq!((memory.refused(), memory.in_use()), (1, BULK_SIZE + BULK_SMALL));
        drop((large, small));
        assert_eq!(memory.in_use(), 0);
        assert_eq!(memory.lend(BULK_SMALL).unwrap().len(), BULK_SMALL);
    }

    #[test]
    fn the_smallest_that_has_room_is_lent() {
        let memory = BodyMemory::new(1 << 30);
        for (wanted, size) in [
            (1, BULK_SMALL),
            (BULK_SMALL + 1, BULK_MIDDLE),
            (BULK_MIDDLE + 1, BULK_SIZE),
            (1 << 20, BULK_SIZE),
        ] {
            assert_eq!(memory.lend(wanted).unwrap().len(), size, "{wanted}");
        }
    }

    #[test]
    fn what_is_kept_has_its_place_in_the_budget() {
        let memory = BodyMemory::new(2 * BULK_SIZE);
        drop((memory.lend(BULK_SIZE), memory.lend(BULK_SIZE)));
        assert_eq!(memory.kept_bytes(), 2 * BULK_SIZE);
        let small = memory.lend(1).unwrap();
        assert_eq!(memory.kept_bytes(), BULK_SIZE, "one made room");
        let large = memory.lend(BULK_SIZE).unwrap();
        assert_eq!(memory.kept_bytes(), 0);
        drop((small, large));
        assert_eq!(memory.kept_bytes(), BULK_SIZE + BULK_SMALL);
        memory.set_budget(BULK_SIZE);
        assert_eq!(memory.kept_bytes(), BULK_SMALL);
        memory.set_budget(0);
        assert_eq!(memory.kept_bytes(), 0);
        memory.take(BULK_SIZE);
        assert!(memory.lend(1).is_none());
    }

    #[test]
    fn what_was_not_needed_for_a_while_is_given_back() {
        let memory = BodyMemory::new(1 << 30);
        let kept = || memory.kept[0].buffers.borrow().len();
        let lent: Vec<_> = (0..10).filter_map(|_| memory.lend(1)).collect();
        drop(lent);
        memory.trim();
        assert_eq!(kept(), 10, "they were needed just now");
        let lent: Vec<_> = (0..4).filter_map(|_| memory.lend(1)).collect();
        drop(lent);
        memory.trim();
        assert_eq!(kept(), 4);
        memory.trim();
        assert_eq!(kept(), 0);
        let lent: Vec<_> = (0..MOST_AT_ONCE / BULK_SMALL + 1).filter_map(|_| memory.lend(1)).collect();
        drop(lent);
        (0..2).for_each(|_| memory.trim());
        assert_eq!(kept(), 1, "a few at a time");
    }
}
