//! How much came from whom: a table of fixed size, with an entry for each key that a limit counts by. What is known of a key is forgotten
//! when there is no room, but only while there is nothing to know: its bucket is empty, and it holds no place.
//!
//! An entry has a tag, the hash of its key under a secret, and seven words: until when its bucket is full, and how many places each
//! process holds. Eight entries are a set, with their tags side by side; a key may stand in two of them. Where both are full of
//! keys that are busy, all further keys of a limit share one entry: they are held to it together, and free no other.
//!
//! A count of places belongs to a process in a certain life of its lane: what a dead one held counts no more at once, and its word is
//! free. Each process knows what it holds, and writes that anew with each change, so that rubbish in its words does not last.

use std::{
    hash::Hasher as _,
    rc::Rc,
    sync::atomic::{
        Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
        fence,
    },
};

use siphasher::sip::SipHasher13;

use super::{CROWD_AT, Ledger, Memory, SETS_AT, lanes::LIVES};

/// Entries of a set.
const WAYS: usize = 8;
/// Words of an entry beside its tag: when, and holders.
const ENTRY: usize = 1 + HOLDERS;
/// Processes whose places one entry counts; those of more have another one.
const HOLDERS: usize = 6;
/// Words of a set.
pub(super) const SET: usize = WAYS * (1 + ENTRY);
/// Entries that the keys of a limit share for which there is no room.
const CROWD: usize = 1 << 10;
/// Their words.
pub(super) const CROWD_WORDS: usize = CROWD * ENTRY;

/// Tags of keys have this bit; those below are places of [`CROWD`].
const IS_KEY: u64 = 1 << 63;
/// And those of keys that clients choose as they like this one.
const IS_CHOSEN: u64 = 1 << 62;
/// Such keys have only so many entries of a set: clients and networks find room beside any number of them.
const CHOSEN_WAYS: usize = 6;
/// An odd number whose multiples are far apart.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
/// How often an entry is tried to be had, and a bucket to be changed, while others change it too.
const TRIES: usize = 16;

/// What a limit counts by: one of its keys, in all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    tag: u64,
    /// Which limit it is of.
    limit: u64,
}

/// The capacity of a bucket, by the time that it takes to run empty: each request fills it by `interval`, and it is full with more than
/// `tolerance` in it (ns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Time between two requests that come as fast as they may for ever.
    pub interval: u64,
    /// How much earlier than that one may come.
    pub tolerance: u64,
}

/// A place that a key holds as long as this lives.
pub struct Held {
    memory: Rc<Memory>,
    tag: u64,
    limit: u64,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.memory.held.borrow_mut();
        let left = held.get(&self.tag).map_or(0, |count| count.saturating_sub(1));
        match left {
            0 => drop(held.remove(&self.tag)),
            left => drop(held.insert(self.tag, left)),
        }
        drop(held);
        if let Some(entry) = self.memory.present(self.tag) {
            self.memory.publish(Found { entry, tag: self.tag }, self.limit, left);
        }
    }
}

/// Where the seven words of an entry begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(usize);

/// An entry, with its tag.
#[derive(Clone, Copy)]
struct Found {
    entry: Entry,
    tag: u64,
}

impl Ledger {
    /// What stands for a value under the limit of this name that clients choose as they like.
    pub fn chosen_key(&self, limit: u64, parts: &[&[u8]]) -> Key {
        let Key { tag, limit } = self.key(limit, parts);
        Key { tag: tag | IS_CHOSEN, limit }
    }

    /// What stands for `parts` under the limit of this name.
    pub fn key(&self, limit: u64, parts: &[&[u8]]) -> Key {
        let [one, other] = self.memory.secret;
        let mut hasher = SipHasher13::new_with_keys(one, other);
        hasher.write_u64(limit);
        parts.iter().for_each(|part| hasher.write(part));
        Key { tag: hasher.finish() & !IS_CHOSEN | IS_KEY, limit }
    }

    /// Limits that forget nothing for so long are in use (ns): what claims to be busy for longer is rubbish.
    pub fn expect(&self, capacity: Capacity) {
        let longest = capacity.tolerance.saturating_add(capacity.interval);
        self.memory.horizon.set(self.memory.horizon.get().max(longest));
    }

    /// Puts one request more into the bucket of `key`, `now` (ns, the clock of the host).
    ///
    /// # Errors
    /// When it is full: how long it takes until there is room (ns).
    pub fn fill(&self, key: Key, capacity: Capacity, now: u64) -> Result<(), u64> {
        let memory = &*self.memory;
        memory.now.set(now);
        let word = memory.word(memory.find(key.tag, key.limit).entry.0);
        let Capacity { interval, tolerance } = capacity;
        let fullest = now.saturating_add(tolerance).saturating_add(interval);
        let mut empty_at = word.load(Relaxed);
        for _ in 0..TRIES {
            // More than fits is rubbish, or of a capacity that is no more: from now on it is full, and runs empty.
            let from = empty_at.clamp(now, fullest);
            if from - now > tolerance {
                if from < empty_at {
                    let _ = word.compare_exchange(empty_at, from, Relaxed, Relaxed);
                }
                return Err(from - now - tolerance);
            }
            match word.compare_exchange_weak(empty_at, from.saturating_add(interval), Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => empty_at = other,
            }
        }
        // Nobody writes so often who means it.
        word.store(fullest, Relaxed);
        Err(interval)
    }

    /// How long the bucket of `key` takes to run empty (ns), without putting anything into it.
    pub fn level(&self, key: Key, capacity: Capacity, now: u64) -> u64 {
        let Capacity { interval, tolerance } = capacity;
        let empty_at = self.memory.look(key).map_or(now, |entry| self.memory.word(entry.0).load(Relaxed));
        empty_at.clamp(now, now.saturating_add(tolerance).saturating_add(interval)) - now
    }

    /// How many places `key` holds in all processes.
    pub fn places(&self, key: Key) -> u64 {
        let memory = &self.memory;
        let tag = key.tag;
        let Some(entry) = memory.look(key) else { return 0 };
        let here = memory.held.borrow().get(&tag).copied().unwrap_or(0);
        u64::from(here) + memory.held_by_others(Found { entry, tag }, key.limit)
    }

    /// A place for `key`, if it holds less than `most` in all processes. Others do not see those of a process without a lane.
    pub fn hold(&self, key: Key, most: u32, now: u64) -> Option<Held> {
        let memory = &self.memory;
        memory.now.set(now);
        let found = memory.find(key.tag, key.limit);
        let here = {
            let mut held = memory.held.borrow_mut();
            let count = held.entry(found.tag).or_default();
            *count = count.saturating_add(1);
            *count
        };
        let taken = Held { memory: Rc::clone(memory), tag: found.tag, limit: key.limit };
        // That of a crowd may be a bucket.
        if found.tag & IS_KEY != 0 {
            memory.word(found.entry.0).store(now, Relaxed);
        }
        memory.publish(found, key.limit, here);
        memory.heal();
        // Of two that come at the same time at least one sees the other.
        fence(SeqCst);
        let all = u64::from(here) + memory.held_by_others(found, key.limit);
        (all <= u64::from(most)).then_some(taken)
    }
}

impl Memory {
    /// Where tag and entry of a way are.
    fn way(&self, (set, way): (usize, usize)) -> (usize, Entry) {
        let set = SETS_AT + set * SET;
        (set + way, Entry(set + WAYS + way * ENTRY))
    }

    /// Where the tags and entries are that may be of `tag`.
    fn ways(&self, tag: u64) -> impl Iterator<Item = (usize, Entry)> {
        // As good as a remainder, and quicker.
        let set = |bits: u64| ((u128::from(bits) * self.sets as u128) >> 64) as usize;
        let bits = tag << 2;
        let sets = [set(bits), set(bits.rotate_left(31).wrapping_mul(SPREAD))];
        let ways = if tag & IS_CHOSEN == 0 { WAYS } else { CHOSEN_WAYS };
        sets.into_iter().flat_map(move |set| (0..ways).map(move |way| (set, way))).map(|at| self.way(at))
    }

    /// The entry of a tag, if it has one.
    fn present(&self, tag: u64) -> Option<Entry> {
        if tag & IS_KEY == 0 {
            return Some(Memory::crowd(tag).entry);
        }
        self.ways(tag).find(|(at, _)| self.word(*at).load(Acquire) == tag).map(|(_, entry)| entry)
    }

    /// The entry where a key is counted; `None`: it would get a new one.
    fn look(&self, key: Key) -> Option<Entry> {
        let has_room = || self.vacant(key.tag).or_else(|| self.idlest(key.tag)).is_some();
        self.present(key.tag).or_else(|| (!has_room()).then(|| Memory::crowd(key.limit).entry))
    }

    /// The entry of all keys of a limit for which there is no room.
    fn crowd(limit: u64) -> Found {
        let place = limit as usize % CROWD;
        Found { entry: Entry(CROWD_AT + place * ENTRY), tag: place as u64 }
    }

    /// The entry of a tag: the one that it has, a free one, the one that was used last the longest ago of those that are not busy, or
    /// that of the crowd.
    fn find(&self, tag: u64, limit: u64) -> Found {
        for _ in 0..TRIES {
            if let Some(entry) = self.present(tag) {
                return Found { entry, tag };
            }
            let Some((at, entry, before)) = self.vacant(tag).or_else(|| self.idlest(tag)) else { break };
            if self.word(at).compare_exchange(before, tag, AcqRel, Relaxed).is_err() {
                continue;
            }
            // Two that make an entry for the same tag: each who sees the other gives up his own.
            fence(SeqCst);
            if !self.ways(tag).any(|(other, _)| other != at && self.word(other).load(Relaxed) == tag) {
                return Found { entry, tag };
            }
            let _ = self.word(at).compare_exchange(tag, 0, AcqRel, Relaxed);
        }
        Memory::crowd(limit)
    }

    /// A free entry for a tag, in the set that has more of them.
    fn vacant(&self, tag: u64) -> Option<(usize, Entry, u64)> {
        let (mut first, mut count) = ([None; 2], [0; 2]);
        let ways = if tag & IS_CHOSEN == 0 { WAYS } else { CHOSEN_WAYS };
        for (place, (at, entry)) in self.ways(tag).enumerate() {
            if self.word(at).load(Relaxed) == 0 {
                first[place / ways].get_or_insert((at, entry, 0));
                count[place / ways] += 1;
            }
        }
        first[usize::from(count[1] > count[0])]
    }

    /// Of the entries that may be of a tag and are not busy, the one that was used last the longest ago, with the tag that it has.
    fn idlest(&self, tag: u64) -> Option<(usize, Entry, u64)> {
        let now = self.now.get();
        let idle = self.ways(tag).filter_map(|(at, entry)| {
            let used = self.word(entry.0).load(Relaxed);
            let is_filled = used > now && used - now <= self.horizon.get();
            let is_idle = !is_filled && self.holders(entry).next().is_none();
            is_idle.then(|| (used, at, entry, self.word(at).load(Relaxed)))
        });
        idle.min_by_key(|(used, ..)| *used).map(|(_, at, entry, before)| (at, entry, before))
    }

    /// The words of an entry that count the places of living processes: which one, and whose.
    fn holders(&self, entry: Entry) -> impl Iterator<Item = (usize, Holder)> {
        entry.holders().filter_map(|at| self.holder(at).map(|holder| (at, holder)))
    }

    /// The living process whose places a word counts.
    fn holder(&self, at: usize) -> Option<Holder> {
        Some(Holder::of(self.word(at).load(Relaxed))).filter(|holder| self.lives(*holder))
    }

    /// Whether it is a count of a living process.
    fn lives(&self, holder: Holder) -> bool {
        holder.count > 0 && self.life_of(holder.lane) == Some(holder.life)
    }

    /// Says that this process holds `count` places under a tag.
    fn publish(&self, found: Found, limit: u64, count: u32) {
        let Some(lane) = self.lane.get() else { return };
        let me = Holder { lane, life: self.life.get(), count };
        let entries = |make: bool| {
            (0..self.most_entries())
                .map_while(move |more| self.further(found, limit, more, make).map(|it| (more, it)))
        };
        // Wherever it said so before.
        let mine = entries(false).find_map(|(more, Found { entry, tag })| {
            let mut words = entry.holders();
            let at = words.find(|at| Holder::of(self.word(*at).load(Relaxed)).is_same(me))?;
            Some((more, tag, at))
        });
        if let Some((more, tag, at)) = mine {
            self.word(at).store(if count == 0 { 0 } else { me.word() }, Relaxed);
            self.note_further(more, tag, count);
            return;
        }
        if count == 0 {
            return;
        }
        let claimed = entries(true).find_map(|(more, Found { entry, tag })| {
            let mut words = entry.holders();
            let claims = |at: usize| {
                let before = self.word(at).load(Relaxed);
                !self.lives(Holder::of(before))
                    && self.word(at).compare_exchange(before, me.word(), Relaxed, Relaxed).is_ok()
            };
            words.any(claims).then_some((more, tag))
        });
        if let Some((more, tag)) = claimed {
            self.note_further(more, tag, count);
        }
    }

    /// What is held under the tag of a further entry is known as what is held under the first.
    fn note_further(&self, more: usize, tag: u64, count: u32) {
        let mut held = self.held.borrow_mut();
        match (more, count) {
            (0, _) => {}
            (_, 0) => drop(held.remove(&tag)),
            (_, count) => drop(held.insert(tag, count)),
        }
    }

    /// What other processes hold under a tag.
    fn held_by_others(&self, found: Found, limit: u64) -> u64 {
        let lane = self.lane.get();
        let entries = (0..self.most_entries()).filter_map(|more| self.further(found, limit, more, false));
        let holders = entries.flat_map(|found| self.holders(found.entry));
        let others = holders.filter(|(_, holder)| Some(holder.lane) != lane);
        others.map(|(_, holder)| u64::from(holder.count)).sum()
    }

    /// Entries that one tag may have, because there are more processes than one entry has room for.
    fn most_entries(&self) -> usize {
        self.lanes_used().div_ceil(HOLDERS).max(1)
    }

    /// The entry of that number of a tag whose first one was found.
    fn further(&self, found: Found, limit: u64, more: usize, make: bool) -> Option<Found> {
        if more == 0 {
            return Some(found);
        }
        let step = (more as u64).wrapping_mul(SPREAD);
        if found.tag & IS_KEY == 0 {
            return Some(Memory::crowd(found.tag.wrapping_add(step)));
        }
        let tag = found.tag.wrapping_add(step) & !IS_CHOSEN | IS_KEY;
        match self.present(tag) {
            Some(entry) => Some(Found { entry, tag }),
            // Where there is no room for it, this process is not counted.
            None if make => Some(self.find(tag, limit)).filter(|found| found.tag & IS_KEY != 0),
            None => None,
        }
    }

    /// Looks at a few entries more, and takes away what rubbish says of this process there.
    fn heal(&self) {
        let (Some(lane), place) = (self.lane.get(), self.swept.get()) else { return };
        self.swept.set((place + 1) % (self.sets + CROWD));
        let set = place.checked_sub(CROWD);
        let of_set = set.into_iter().flat_map(|set| (0..WAYS).map(move |way| (set, way))).map(|at| {
            let (at, entry) = self.way(at);
            Found { entry, tag: self.word(at).load(Relaxed) }
        });
        let of_crowd = set.is_none().then(|| Memory::crowd(place as u64));
        for Found { entry, tag } in of_crowd.into_iter().chain(of_set) {
            for (at, holder) in self.holders(entry).filter(|(_, holder)| holder.lane == lane) {
                if !self.held.borrow().contains_key(&tag) {
                    let _ = self.word(at).compare_exchange(holder.word(), 0, Relaxed, Relaxed);
                }
            }
        }
    }
}

impl Entry {
    /// Its words that count places.
    fn holders(self) -> std::ops::Range<usize> {
        self.0 + 1..self.0 + ENTRY
    }
}

/// How many places a process holds, in one word of which all zeros are nobody's.
#[derive(Clone, Copy)]
struct Holder {
    lane: usize,
    life: u32,
    count: u32,
}

impl Holder {
    fn of(word: u64) -> Holder {
        Holder { lane: (word >> 56) as usize, life: (word >> 32) as u32 & LIVES, count: word as u32 }
    }

    fn word(self) -> u64 {
        (self.lane as u64) << 56 | u64::from(self.life & LIVES) << 32 | u64::from(self.count)
    }

    /// Whether it is a word of the same process.
    fn is_same(self, other: Holder) -> bool {
        self.count > 0 && self.lane == other.lane && self.life == other.life
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
