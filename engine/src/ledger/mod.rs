//! What all workers of a machine count together: numbers that an operator writes hold for the machine, not for each worker.
//!
//! The ledger is memory that the supervisor makes and all workers map. It outlives workers and supervisors: it is handed on as the
//! counters are. What is counted has a slot, found by a hash of its name. Each worker process has a lane: a column with one word per
//! slot that it alone writes, so that counting is a plain store, the total is the sum of the lanes, and what a dead process counted goes
//! with its lane, whatever it was in the middle of. Beside the lanes a slot has a few words that all of them write.
//!
//! Relies on `observe` for the mapping. Promises: a process that writes rubbish, or dies, costs the others wrong numbers as long as it
//! lives, and never a crash, a wait or a leak; without a ledger, a lane or a slot a worker counts for itself alone.
//!
//! | file | idea |
//! |---|---|
//! | `lanes` | which process has which lane, and what becomes of that of a dead one |
//! | `slots` | which slot belongs to which name, and slots that are given back |
//! | `table` | how much came from whom, for limits |

mod lanes;
mod slots;
mod table;

pub use self::table::{Capacity, Held, Key};

use std::{
    cell::{Cell, RefCell},
    ffi::CStr,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, SeqCst},
        fence,
    },
};

use rustc_hash::FxHashMap;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create},
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

pub use self::slots::GivenBack;
use crate::observe::SharedWords;

/// Processes that can count at a time.
const LANES: usize = 256;
/// Names that can be counted at a time.
const SLOTS: usize = 1 << 15;
/// Words of a slot beside the lanes.
const SHARED: usize = 8;

/// Says that the memory is a ledger of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"kakehi-2");
const MAGIC_AT: usize = 0;
const SLOTS_USED_AT: usize = 1;
const LANES_USED_AT: usize = 2;
/// How often slots were given back, times two; odd while some are.
const EPOCH_AT: usize = 3;
/// Which processes take a slot at this moment: a bit for each lane.
const TAKING_AT: usize = 4;
/// Two words that clients do not know: what they choose to send is hashed under them.
const SECRET_AT: usize = 8;
const OWNERS_AT: usize = 64;
const SHARED_AT: usize = 512;
const LANES_AT: usize = SHARED_AT + SLOTS * SHARED;
const CROWD_AT: usize = LANES_AT + LANES * SLOTS;
/// The sets of the table, as many as the configuration asks for.
const SETS_AT: usize = CROWD_AT + table::CROWD_WORDS;
/// Of which only what is used takes memory. A worker in the hands of a stranger can use all of it: 66 MiB, and the table.
const BYTES: u64 = (SETS_AT * size_of::<u64>()) as u64;
const SET_BYTES: u64 = (table::SET * size_of::<u64>()) as u64;
/// Sets of the largest table.
const MOST_SETS: u64 = (1 << 24) / 8;
const _: () = assert!(OWNERS_AT + LANES <= SHARED_AT && TAKING_AT + LANES / 64 <= SECRET_AT);

/// The first of the shared words of a slot: the hash of its name; 0 = it is free.
const NAME: usize = 0;
/// The last: 1 = the slot is of something that is configured, and is given back when that is not any more.
const MARK: usize = SHARED - 1;

struct Memory {
    words: SharedWords,
    /// The lane of this process.
    lane: Cell<Option<usize>>,
    /// The slots that were seen in this epoch, by name.
    seen: RefCell<FxHashMap<u64, u32>>,
    /// The epoch in which they were.
    epoch: Cell<u64>,
    /// All before it are taken.
    hole: Cell<usize>,
    /// Which life of its lane is this process's.
    life: Cell<u32>,
    /// Sets of the table.
    sets: usize,
    secret: [u64; 2],
    /// The places that this process holds, by the tags of their entries.
    held: RefCell<FxHashMap<u64, u32>>,
    /// How far the table was looked through for rubbish.
    swept: Cell<usize>,
    /// How long an entry can be busy (ns).
    horizon: Cell<u64>,
    /// The time of the last use of the table (ns, the clock of the host).
    now: Cell<u64>,
}

/// The ledger, mapped.
#[derive(Clone)]
pub struct Ledger {
    memory: Rc<Memory>,
}

/// Where one thing is counted by all workers.
#[derive(Clone)]
pub struct Slot {
    memory: Rc<Memory>,
    index: usize,
    lane: usize,
    /// Whose it was when it was found.
    name: u64,
}

/// A word of a slot that all workers write. Whoever reads it takes any value for possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Failures since the last success.
    Failures = 1,
    /// Until when nobody is to use it (ms, the clock of the host).
    EjectedUntil = 2,
    /// How often it was ejected lately.
    Ejections = 3,
    /// The last ticket that was given to somebody who waits.
    Ticket = 4,
    /// When it was ejected last (ms, the clock of the host).
    EjectedAt = 5,
    /// Until when one process tries whether it can be connected to again, and no other does (ms, the clock of the host).
    TrialUntil = 6,
}

const _: () = assert!((Word::TrialUntil as usize) < MARK);

impl Ledger {
    /// A new one with room for `keys` keys of limits, from 1 to 16,777,216, and the descriptor by which others map it, and can write to
    /// it, but not change its size.
    ///
    /// # Errors
    /// Those of `memfd_create`, `ftruncate`, `fcntl`, `getrandom` and `mmap`.
    pub fn create(name: &CStr, keys: u32) -> io::Result<(Ledger, OwnedFd)> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let sets = u64::from(keys.div_ceil(8)).clamp(1, MOST_SETS);
        ftruncate(&file, BYTES + sets * SET_BYTES)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let words = SharedWords::map(&file, words(sets))?;
        let mut secret = [0; 16];
        getrandom(&mut secret, GetRandomFlags::empty())?;
        for (at, half) in (SECRET_AT..).zip(secret.chunks_exact(8)) {
            let half = half.try_into().map_or(0, u64::from_ne_bytes);
            words.words()[at].store(half, Relaxed);
        }
        words.words()[MAGIC_AT].store(MAGIC, Relaxed);
        Ok((Ledger::of(words, sets), file))
    }

    /// The one behind a descriptor of [`Ledger::create`].
    ///
    /// # Errors
    /// Those of `mmap`; `EINVAL` when `file` is no ledger of this layout.
    pub fn map(file: &OwnedFd) -> io::Result<Ledger> {
        let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        let of_sets = size.checked_sub(BYTES).filter(|bytes| bytes.is_multiple_of(SET_BYTES));
        let sets = of_sets.map(|bytes| bytes / SET_BYTES).filter(|sets| (1..=MOST_SETS).contains(sets));
        let sets = sets.ok_or(Errno::INVAL)?;
        let words = SharedWords::map(file, words(sets))?;
        if words.words()[MAGIC_AT].load(Relaxed) != MAGIC {
            return Err(Errno::INVAL.into());
        }
        Ok(Ledger::of(words, sets))
    }

    fn of(words: SharedWords, sets: u64) -> Ledger {
        let secret = [SECRET_AT, SECRET_AT + 1].map(|at| words.words()[at].load(Relaxed));
        let memory = Memory {
            words,
            lane: Cell::default(),
            seen: RefCell::default(),
            // None is odd.
            epoch: Cell::new(1),
            hole: Cell::default(),
            life: Cell::default(),
            sets: sets as usize,
            secret,
            held: RefCell::default(),
            swept: Cell::default(),
            horizon: Cell::default(),
            now: Cell::default(),
        };
        Ledger { memory: Rc::new(memory) }
    }
}

/// Words of a ledger with so many sets.
fn words(sets: u64) -> usize {
    // `MOST_SETS` at most.
    SETS_AT + sets as usize * table::SET
}

impl Memory {
    fn word(&self, at: usize) -> &AtomicU64 {
        &self.words.words()[at]
    }

    fn shared(&self, slot: usize, word: usize) -> &AtomicU64 {
        self.word(SHARED_AT + slot * SHARED + word)
    }

    fn count(&self, lane: usize, slot: usize) -> &AtomicU64 {
        self.word(LANES_AT + lane * SLOTS + slot)
    }

    /// Lanes that have ever been taken.
    fn lanes_used(&self) -> usize {
        usize::try_from(self.word(LANES_USED_AT).load(Relaxed)).map_or(LANES, |used| used.min(LANES))
    }

    fn slots_used(&self) -> usize {
        usize::try_from(self.word(SLOTS_USED_AT).load(Relaxed)).map_or(SLOTS, |used| used.min(SLOTS))
    }
}

impl Slot {
    /// Makes `value` what this process counts here, unless the slot was given back meanwhile.
    #[inline]
    pub fn publish(&self, value: u64) {
        if self.is_valid() {
            self.memory.count(self.lane, self.index).store(value, Relaxed);
        }
    }

    /// Whether it was not given back since it was found: then it may be that of another name.
    #[inline]
    pub fn is_valid(&self) -> bool {
        self.memory.shared(self.index, NAME).load(Relaxed) == self.name
    }

    /// What each process counts here.
    #[inline]
    pub fn lanes(&self) -> impl Iterator<Item = u64> {
        (0..self.memory.lanes_used()).map(|lane| self.memory.count(lane, self.index).load(Relaxed))
    }

    /// What the others count here.
    pub fn others(&self) -> impl Iterator<Item = u64> {
        let lanes = (0..self.memory.lanes_used()).filter(|lane| *lane != self.lane);
        lanes.map(|lane| self.memory.count(lane, self.index).load(Relaxed))
    }

    /// From here on whoever publishes and then looks sees what others published before they looked, or they see him.
    pub fn settle() {
        fence(SeqCst);
    }

    /// A word that all workers write.
    #[inline]
    pub fn word(&self, word: Word) -> &AtomicU64 {
        self.memory.shared(self.index, word as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Ledger, Ledger, OwnedFd) {
        let (supervisor, file) = Ledger::create(c"test", 64).unwrap();
        (supervisor, Ledger::map(&file).unwrap(), file)
    }

    #[test]
    fn the_sum_is_that_of_all_processes_and_what_a_dead_one_counted_goes_with_it() {
        let (supervisor, first, file) = two();
        let second = Ledger::map(&file).unwrap();
        first.claim_lane(101);
        second.claim_lane(102);
        let (of_first, of_second) = (first.slot(7).unwrap(), second.slot(7).unwrap());
        of_first.publish(3);
        of_second.publish(4);
        assert_eq!(of_first.lanes().sum::<u64>(), 7);
        assert_eq!(of_first.others().sum::<u64>(), 4);
        supervisor.release_lanes(|pid| pid != 102);
        assert_eq!(of_first.lanes().sum::<u64>(), 3);
        // The next process gets the lane, with nothing in it.
        let third = Ledger::map(&file).unwrap();
        third.claim_lane(103);
        assert_eq!(third.slot(7).unwrap().lane, of_second.lane);
        assert_eq!(third.slot(7).unwrap().lanes().sum::<u64>(), 3);
    }

    #[test]
    fn a_name_has_the_same_slot_in_every_process_whoever_asks_first() {
        let (_, first, file) = two();
        let second = Ledger::map(&file).unwrap();
        first.claim_lane(1);
        second.claim_lane(2);
        for name in 1..200_u64 {
            let (one, other) = if name % 2 == 0 { (&first, &second) } else { (&second, &first) };
            assert_eq!(one.slot(name).unwrap().index, other.slot(name).unwrap().index, "{name}");
        }
        assert_eq!(Ledger::map(&file).unwrap().memory.slots_used(), 199);
    }

    #[test]
    fn rubbish_in_it_hurts_nobody() {
        let (supervisor, worker, file) = two();
        worker.claim_lane(1);
        for at in 1..SHARED_AT + 64 * SHARED {
            supervisor.memory.word(at).store(u64::MAX - at as u64, Relaxed);
        }
        let slot = worker.slot(3).expect("there is room behind the rubbish");
        slot.publish(7);
        assert!(slot.lanes().sum::<u64>() >= 7);
        supervisor.release_lanes(|_| true);
        let late = Ledger::map(&file).unwrap();
        assert!(late.claim_lane(2), "who has a lane that no process has has none");
        assert_eq!(late.slot(3).unwrap().index, slot.index);
        (0..64).for_each(|name| drop(late.slot(u64::MAX - name)));
        supervisor.memory.word(MAGIC_AT).store(0, Relaxed);
        assert!(Ledger::map(&file).is_err());
    }

    #[test]
    fn other_memory_is_no_ledger() {
        let memory = memfd_create(c"test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&memory, BYTES + SET_BYTES).unwrap();
        assert!(Ledger::map(&memory).is_err(), "it can be cut off");
        fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
        assert!(Ledger::map(&memory).is_err(), "nothing says what it is");
        assert!(Ledger::map(&std::fs::File::open("/dev/null").unwrap().into()).is_err());
    }

    #[test]
    fn without_a_lane_there_are_no_slots() {
        let (supervisor, worker, _file) = two();
        for pid in 1..=LANES as u32 {
            assert!(Ledger { memory: Rc::clone(&supervisor.memory) }.claim_lane(pid));
        }
        assert!(!worker.claim_lane(9_999));
        assert!(worker.slot(1).is_none());
        supervisor.release_lanes(|pid| pid != 5);
        assert!(worker.claim_lane(9_999) && worker.slot(1).is_some());
    }
}
