//! Which slot belongs to which name, and slots that are given back.
//!
//! A name that is new takes the first slot that is free. Everybody goes through the slots in the same order and takes a free one in one
//! step, so that no name gets two. That holds as long as no slot becomes free behind somebody's back. So who takes one says so before
//! they look, and the supervisor gives slots back only while nobody does: it makes the *epoch* odd, looks whether anybody is at it, frees
//! slots, and makes the epoch even again. Who comes meanwhile gets no slot and asks again later; who comes in another epoch than
//! before looks through all slots again. Neither waits for the other: a process that is stopped while it takes a slot keeps the
//! supervisor from giving any back, and nobody from counting.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use super::{EPOCH_AT, LANES, Ledger, MARK, Memory, NAME, SHARED, SLOTS, SLOTS_USED_AT, Slot, TAKING_AT};

/// Slots that are given back at a time: whoever needs a new one meanwhile gets none.
const GIVEN_BACK_AT_ONCE: usize = 64;

/// What has become of slots that nothing configured needs any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// So many are free again.
    pub freed: usize,
    /// These names have theirs still: something is counted there, or a process was just taking a slot.
    pub kept: Vec<u64>,
}

impl Ledger {
    /// The slot of what has this hash as its name, which is never given back; `None` if there is no room, this process has no lane, or
    /// the supervisor gives slots back at this moment: a later call may find one.
    pub fn slot(&self, name: u64) -> Option<Slot> {
        self.find(name)
    }

    /// The same of something that is configured, or belongs to it: it is given back when it is not any more ([`Ledger::give_back`]).
    pub fn slot_of_configured(&self, name: u64) -> Option<Slot> {
        let slot = self.find(name)?;
        let mark = self.memory.shared(slot.index, MARK);
        if mark.load(Relaxed) != 1 {
            mark.store(1, Relaxed);
        }
        Some(slot)
    }

    fn find(&self, name: u64) -> Option<Slot> {
        let memory = &self.memory;
        let lane = memory.lane.get()?;
        // 0 says that a slot is free.
        let name = name.max(1);
        let slot = |index| Some(Slot { memory: self.memory.clone(), index, lane, name });
        if let Some(index) = memory.known(name) {
            return slot(index);
        }
        if memory.hole.get() >= SLOTS && memory.word(EPOCH_AT).load(Relaxed) == memory.epoch.get() {
            return None;
        }
        memory.begin_taking(lane);
        let index = memory.take(name);
        memory.end_taking(lane);
        slot(index?)
    }

    /// Gives slots back of what was configured and is not any more, by its name; also those in which something is counted, where
    /// that `is_rubbish`. For the supervisor alone.
    pub fn give_back(
        &self,
        is_configured: impl Fn(u64) -> bool,
        is_rubbish: impl Fn(u64) -> bool,
    ) -> GivenBack {
        let memory = &self.memory;
        let mut given_back = GivenBack::default();
        let mut unused = Vec::new();
        for index in 0..memory.slots_used() {
            let name = memory.shared(index, NAME).load(Acquire);
            if name == 0 || memory.shared(index, MARK).load(Relaxed) != 1 || is_configured(name) {
                continue;
            }
            match !memory.is_counted_in(index) || is_rubbish(name) {
                true => unused.push((index, name)),
                false => given_back.kept.push(name),
            }
        }
        for unused in unused.chunks(GIVEN_BACK_AT_ONCE) {
            // Whatever stands there: it is odd from here on.
            let before = memory.word(EPOCH_AT).load(Relaxed) & !1;
            memory.word(EPOCH_AT).store(before.wrapping_add(1), SeqCst);
            if (0..LANES).any(|lane| memory.is_taking(lane)) {
                given_back.kept.extend(unused.iter().map(|(_, name)| name));
            } else {
                unused.iter().for_each(|(index, _)| memory.free(*index));
                given_back.freed += unused.len();
                memory.forget_free_end();
            }
            memory.word(EPOCH_AT).store(before.wrapping_add(2), SeqCst);
        }
        given_back
    }
}

impl Memory {
    /// The slot that this process has seen for `name`, if it is still its slot.
    fn known(&self, name: u64) -> Option<usize> {
        let index = *self.seen.borrow().get(&name)? as usize;
        (self.shared(index, NAME).load(Acquire) == name).then_some(index)
    }

    /// Says that this process takes a slot: the epoch is looked at afterwards.
    fn begin_taking(&self, lane: usize) {
        self.word(TAKING_AT + lane / 64).fetch_or(1 << (lane % 64), SeqCst);
    }

    pub(super) fn end_taking(&self, lane: usize) {
        self.word(TAKING_AT + lane / 64).fetch_and(!(1 << (lane % 64)), SeqCst);
    }

    /// Whether the process of this lane takes a slot. A lane that no process has is no obstacle, whatever stands there.
    fn is_taking(&self, lane: usize) -> bool {
        let all = self.word(TAKING_AT + lane / 64).load(SeqCst);
        all >> (lane % 64) & 1 == 1 && self.life_of(lane).is_some()
    }

    /// An epoch that somebody left odd: nobody gives slots back now.
    pub(super) fn end_epoch(&self) {
        let epoch = self.word(EPOCH_AT).load(Relaxed);
        if epoch & 1 == 1 {
            self.word(EPOCH_AT).store(epoch.wrapping_add(1), SeqCst);
        }
    }

    /// The slot of `name`; the first free one becomes it, if there is none yet.
    fn take(&self, name: u64) -> Option<usize> {
        let epoch = self.word(EPOCH_AT).load(SeqCst);
        if epoch & 1 == 1 {
            return None;
        }
        let seen = &mut *self.seen.borrow_mut();
        if self.epoch.replace(epoch) != epoch {
            seen.clear();
            self.hole.set(0);
            for index in 0..self.slots_used() {
                let found = self.shared(index, NAME).load(Acquire);
                if let (1.., Ok(place)) = (found, u32::try_from(index)) {
                    seen.entry(found).or_insert(place);
                }
            }
        }
        let mut index = seen.get(&name).map(|index| *index as usize);
        // In this epoch others have taken none but the first that was free.
        while index.is_none() {
            let next = self.hole.get();
            if next >= SLOTS {
                return None;
            }
            let word = self.shared(next, NAME);
            let found = match word.load(Acquire) {
                0 => match word.compare_exchange(0, name, AcqRel, Acquire) {
                    Ok(_) => name,
                    Err(other) => other,
                },
                other => other,
            };
            // Also where another process has taken it, and not said so yet.
            self.word(SLOTS_USED_AT).fetch_max(next as u64 + 1, Relaxed);
            self.hole.set(next + 1);
            seen.entry(found).or_insert(u32::try_from(next).ok()?);
            index = (found == name).then_some(next);
        }
        index
    }

    /// Whether any process counts something there.
    fn is_counted_in(&self, slot: usize) -> bool {
        (0..self.lanes_used()).any(|lane| self.count(lane, slot).load(Relaxed) != 0)
    }

    fn free(&self, slot: usize) {
        for lane in 0..self.lanes_used() {
            let count = self.count(lane, slot);
            // What was never written takes no memory.
            if count.load(Relaxed) != 0 {
                count.store(0, Relaxed);
            }
        }
        (1..SHARED).for_each(|word| self.shared(slot, word).store(0, Relaxed));
        self.shared(slot, NAME).store(0, Release);
    }

    /// Free slots at the end need not be looked through.
    fn forget_free_end(&self) {
        let used = (0..self.slots_used()).rev().find(|index| self.shared(*index, NAME).load(Relaxed) != 0);
        self.word(SLOTS_USED_AT).store(used.map_or(0, |last| last as u64 + 1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers<const N: usize>() -> (Ledger, [Ledger; N]) {
        let (supervisor, file) = Ledger::create(c"test", 64).unwrap();
        let workers = std::array::from_fn(|number| {
            let ledger = Ledger::map(&file).unwrap();
            ledger.claim_lane(number as u32 + 1);
            ledger
        });
        (supervisor, workers)
    }

    #[test]
    fn names_come_and_go_without_end_and_each_has_the_same_slot_everywhere() {
        let (supervisor, [one, two]) = workers();
        let lasting = one.slot(1).unwrap();
        lasting.publish(7);
        for round in 0..100_u64 {
            let names = round * 1_000 + 10..(round + 1) * 1_000 + 10;
            for name in names.clone() {
                let (first, second) = if name % 3 == 0 { (&two, &one) } else { (&one, &two) };
                let slot = first.slot_of_configured(name).expect("there is room");
                assert_eq!(slot.index, second.slot_of_configured(name).unwrap().index, "{name}");
                assert_eq!(slot.lanes().sum::<u64>(), 0, "{name} begins with what another has left");
                slot.publish(1);
                slot.publish(0);
            }
            let kept = names.end - 1;
            one.slot_of_configured(kept).unwrap().publish(3);
            let given_back = supervisor.give_back(|name| name == kept - 1, |_| false);
            assert_eq!((given_back.freed, given_back.kept.len()), (if round == 0 { 998 } else { 1_000 }, 1));
            one.slot_of_configured(kept).unwrap().publish(0);
        }
        assert!(supervisor.memory.slots_used() < 2_100, "{}", supervisor.memory.slots_used());
        assert_eq!(two.slot(1).unwrap().lanes().sum::<u64>(), 7);
        assert_eq!(two.slot(1).unwrap().index, lasting.index);
    }

    #[test]
    fn a_full_ledger_has_room_again_when_slots_are_given_back() {
        let (supervisor, [one, two]) = workers();
        (1..=SLOTS as u64).for_each(|name| drop(one.slot_of_configured(name).unwrap()));
        assert!(one.slot(u64::MAX).is_none() && two.slot(u64::MAX).is_none());
        one.slot(9).unwrap().publish(1);
        let busy = supervisor.give_back(|name| name != 9, |_| false);
        assert_eq!(busy, GivenBack { freed: 0, kept: vec![9] });
        let given_back = supervisor.give_back(|name| name != 9, |_| true);
        assert_eq!((given_back.freed, given_back.kept.len()), (1, 0));
        let slot = two.slot(u64::MAX).unwrap();
        assert_eq!(slot.index, one.slot(u64::MAX).unwrap().index);
        assert_eq!(slot.lanes().sum::<u64>(), 0);
        assert!(one.slot(9).is_none() && one.slot(10).is_some());
    }

    #[test]
    fn nothing_is_given_back_while_a_process_takes_a_slot_and_none_is_taken_meanwhile() {
        let (supervisor, [one, two]) = workers();
        one.slot_of_configured(5).unwrap();
        one.memory.begin_taking(one.memory.lane.get().unwrap());
        let given_back = supervisor.give_back(|_| false, |_| true);
        assert_eq!((given_back.freed, given_back.kept.len()), (0, 1));
        assert!(two.slot(6).is_some(), "it stopped in the midst of it, and the others go on");
        // It was killed.
        supervisor.release_lanes(|pid| pid != 1);
        let given_back = supervisor.give_back(|_| false, |_| true);
        assert_eq!((given_back.freed, given_back.kept.len()), (1, 0));
        let epoch = supervisor.memory.word(EPOCH_AT);
        epoch.fetch_add(1, SeqCst);
        assert!(two.slot(7).is_none() && two.slot(6).is_some());
        // Whoever wrote that has ended.
        supervisor.release_lanes(|_| true);
        assert!(two.slot(7).is_some());
    }

    #[test]
    fn processes_that_take_slots_while_others_are_given_back_agree() {
        let (supervisor, file) = Ledger::create(c"test", 64).unwrap();
        let agreed: Vec<std::collections::BTreeMap<u64, usize>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..=3)
                .map(|pid| {
                    let file = file.try_clone().unwrap();
                    scope.spawn(move || {
                        let ledger = Ledger::map(&file).unwrap();
                        ledger.claim_lane(pid);
                        let mut slots = std::collections::BTreeMap::new();
                        for name in 1..20_000_u64 {
                            // Most are soon not configured any more.
                            let slot = std::iter::repeat_with(|| ledger.slot_of_configured(name))
                                .find_map(|slot| slot)
                                .unwrap();
                            if name % 100 == 0 {
                                slots.insert(name, slot.index);
                            }
                        }
                        slots
                    })
                })
                .collect();
            while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                supervisor.give_back(|name| name % 100 == 0, |_| true);
            }
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert!(agreed.iter().all(|slots| slots == &agreed[0]));
        supervisor.give_back(|name| name % 100 == 0, |_| true);
        assert_eq!(
            (0..supervisor.memory.slots_used())
                .filter(|index| supervisor.memory.shared(*index, NAME).load(Relaxed) != 0)
                .count(),
            199
        );
    }
}
