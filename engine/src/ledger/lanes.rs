//! Which process has which lane. A process takes one that is free; the supervisor, which knows who lives, frees those of the dead.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::{LANES, LANES_USED_AT, Ledger, Memory, OWNERS_AT};

impl Ledger {
    /// Takes a lane for the process `pid`, which is this one. False if there is none.
    pub fn claim_lane(&self, pid: u32) -> bool {
        let memory = &self.memory;
        let is_free = |lane: &usize| {
            let owner = memory.word(OWNERS_AT + lane);
            owner.compare_exchange(0, u64::from(pid), AcqRel, Relaxed).is_ok()
        };
        let claimed = (0..LANES).find(is_free);
        if let Some(lane) = claimed {
            memory.clear(lane);
            memory.end_taking(lane);
            memory.word(LANES_USED_AT).fetch_max(lane as u64 + 1, Relaxed);
        }
        memory.lane.set(claimed);
        claimed.is_some()
    }

    /// Frees the lanes of processes that are not alive: what they counted counts no more.
    pub fn release_lanes(&self, is_alive: impl Fn(u32) -> bool) {
        for lane in 0..LANES {
            let owner = self.memory.word(OWNERS_AT + lane);
            let pid = owner.load(Acquire);
            // What is no number of a process is rubbish.
            let alive = u32::try_from(pid).is_ok_and(|pid| pid == 0 || is_alive(pid));
            if !alive {
                self.memory.clear(lane);
                self.memory.end_taking(lane);
                owner.store(0, Release);
            }
        }
        self.memory.end_epoch();
    }
}

impl Memory {
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
