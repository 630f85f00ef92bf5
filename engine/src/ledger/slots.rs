//! Which slot belongs to which name. A name that is new takes the first slot that is free. Everybody goes through the slots in the
//! same order and takes a free one in one step, so that no name gets two.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::{Ledger, NAME, SLOTS, SLOTS_USED_AT, Slot};

impl Ledger {
    /// The slot of what has this hash as its name; `None` if there is no room, or this process has no lane.
    pub fn slot(&self, name: u64) -> Option<Slot> {
        let memory = &self.memory;
        let lane = memory.lane.get()?;
        // 0 says that a slot is free.
        let name = name.max(1);
        let mut seen = memory.seen.borrow_mut();
        let mut index = seen.get(&name).map(|index| *index as usize);
        while index.is_none() {
            let next = memory.scanned.get();
            if next >= SLOTS {
                return None;
            }
            let word = memory.shared(next, NAME);
            let is_end = next >= memory.slots_used() || word.load(Acquire) == 0;
            let found = match is_end {
                true => match word.compare_exchange(0, name, AcqRel, Acquire) {
                    Ok(_) => {
                        memory.word(SLOTS_USED_AT).fetch_max(next as u64 + 1, Relaxed);
                        name
                    }
                    Err(other) => other,
                },
                false => word.load(Acquire),
            };
            memory.scanned.set(next + 1);
            let place = u32::try_from(next).ok()?;
            seen.entry(found).or_insert(place);
            index = (found == name).then_some(next);
        }
        Some(Slot { memory: self.memory.clone(), index: index?, lane })
    }
}
