//! Which process has which lane. A process takes one that is free; the supervisor, which knows who lives, frees those of the dead.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use super::{LANES, LANES_USED_AT, Ledger, Memory, OWNERS_AT};

/// No process has a larger number (`PID_MAX_LIMIT`).
const MOST_PID: u32 = 1 << 22;

/// A lane is another one each time that it is freed; so many of its lives are told apart.
pub(super) const LIVES: u32 = (1 << 24) - 1;

impl Ledger {
    /// Takes a lane for the process `pid`, which is this one. False if there is none.
    pub fn claim_lane(&self, pid: u32) -> bool {
        let memory = &self.memory;
        let claim = |lane: &usize| {
            let owner = memory.word(OWNERS_AT + lane);
            let before = owner.load(Relaxed);
            let mine = Owner { pid, ..Owner::of(before) };
            Owner::of(before).pid == 0 && owner.compare_exchange(before, mine.word(), AcqRel, Relaxed).is_ok()
        };
        let claimed = (0..LANES).find(claim);
        if let Some(lane) = claimed {
            memory.clear(lane);
            memory.end_taking(lane);
            memory.life.set(Owner::of(memory.word(OWNERS_AT + lane).load(Relaxed)).life);
            memory.word(LANES_USED_AT).fetch_max(lane as u64 + 1, Relaxed);
        }
        memory.lane.set(claimed);
        claimed.is_some()
    }

    /// Frees the lanes of processes that are not alive: what they counted counts no more.
    pub fn release_lanes(&self, is_alive: impl Fn(u32) -> bool) {
        for lane in 0..LANES {
            let owner = self.memory.word(OWNERS_AT + lane);
            let Owner { pid, life } = Owner::of(owner.load(Acquire));
            // What is no number of a process is rubbish.
            if pid > MOST_PID || pid != 0 && !is_alive(pid) {
                self.memory.clear(lane);
                self.memory.end_taking(lane);
                owner.store(Owner { pid: 0, life: life.wrapping_add(1) & LIVES }.word(), Release);
            }
        }
        self.memory.end_epoch();
    }
}

/// Which process has a lane, and in which life of the lane; number 0: none.
#[derive(Clone, Copy)]
struct Owner {
    pid: u32,
    life: u32,
}

impl Owner {
    fn of(word: u64) -> Owner {
        Owner { pid: word as u32, life: (word >> 32) as u32 & LIVES }
    }

    fn word(self) -> u64 {
        u64::from(self.life) << 32 | u64::from(self.pid)
    }
}

impl Memory {
    /// In which life of its lane a process is that has that lane.
    pub(super) fn life_of(&self, lane: usize) -> Option<u32> {
        let owner = Owner::of(self.word(OWNERS_AT + lane % LANES).load(SeqCst));
        (owner.pid != 0).then_some(owner.life)
    }

    fn clear(&self, lane: usize) {
        for slot in 0..self.slots_used() {
            let count = self.count(lane, slot);
            // What was never written takes no memory.
            if count.load(Relaxed) != 0 {
                count.store(0, Relaxed);
            }
        }
    }
}
