//! The order of the file among rules that are otherwise equal: a rule that says nothing of it gets the number of its place as its `order`.
//!
//! So a state, whose clusters stand by name, keeps the order of the file wherever it goes: to workers, into a saved state, into the text of a
//! file. Only rules that can tie have one ([`Frontend::can_tie`](crate::state::Frontend::can_tie)).
//!
//! Promises: the numbers of a file that is read for the first time depend on nothing but the file. Of a file that is read again, each rule keeps
//! the number that it has if that is still in order, and what is new gets one between its neighbours: a cluster that is inserted into very many
//! changes that cluster alone. Where there is no room between two numbers, some of those around get others.

use std::num::NonZeroU64;

use crate::{limits, state::State};

/// The number of the first rule. Smaller ones are left to those who write them.
const FIRST: u64 = 1_000_000;
/// From one rule to the next.
const STEP: u64 = 1_000;
/// From one rule to the next at least, where some get other numbers for want of room.
const LEAST_STEP: u64 = 16;

/// The rules of a file that have no `order` there and can tie, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Places {
    /// Each by its cluster, and its place among the frontends there.
    rules: Vec<(String, usize)>,
    /// The highest number that is written in the file.
    written: u64,
}

impl Places {
    /// `rules` each with where it begins (offset).
    pub(super) fn new(mut rules: Vec<(usize, String, usize)>, written: u64) -> Places {
        rules.sort_unstable();
        Places { rules: rules.into_iter().map(|(_, cluster, index)| (cluster, index)).collect(), written }
    }

    /// The rules where their order is another one than that of the names of their clusters, which every program knows.
    pub(super) fn unlike_names(&self) -> Option<&[(String, usize)]> {
        (!self.rules.is_sorted()).then_some(&self.rules)
    }

    /// Gives the rules of `file`, the state that it was read to, numbers that depend on nothing else.
    pub(super) fn number(&self, file: &mut State) {
        self.set(file, &numbers(&vec![None; self.rules.len()], self.written));
    }

    /// Gives the rules of `file` the numbers that they have in `present`, which serves an earlier file, as far as these are in order.
    pub fn keep(&self, file: &mut State, present: &State) {
        let mut known = present.places_in_file();
        let rule = |(cluster, index): &(String, usize)| {
            let frontend = file.clusters.get(cluster)?.frontends.get(*index)?;
            known.order_of(cluster, *index, frontend)
        };
        let before: Vec<Option<u64>> =
            self.rules.iter().map(rule).map(|order| order.map(NonZeroU64::get)).collect();
        self.set(file, &numbers(&before, self.written));
    }

    fn set(&self, file: &mut State, numbers: &[u64]) {
        for ((cluster, index), number) in self.rules.iter().zip(numbers) {
            let cluster = file.clusters.get_mut(cluster);
            if let Some(frontend) = cluster.and_then(|cluster| cluster.frontends.get_mut(*index)) {
                frontend.order = NonZeroU64::new((*number).min(limits::MAX_ORDER));
            }
        }
    }
}

/// Ascending numbers above `floor`, of those that there were `before` as many as can stay.
fn numbers(before: &[Option<u64>], floor: u64) -> Vec<u64> {
    let mut numbers = longest_ascent(before, floor);
    let mut at = 0;
    while let Some(begin) = numbers[at..].iter().position(Option::is_none).map(|it| at + it) {
        let end = numbers[begin..].iter().position(Option::is_some).map_or(numbers.len(), |it| begin + it);
        let (begin, end) = with_room(&numbers, begin, end, floor);
        fill(&mut numbers, begin, end, floor);
        at = end;
    }
    numbers.into_iter().map(Option::unwrap_or_default).collect()
}

/// The numbers before and behind those from `begin` to `end`; `None`: there is no end.
fn bounds(numbers: &[Option<u64>], begin: usize, end: usize, floor: u64) -> (u64, Option<u64>) {
    let low = begin.checked_sub(1).and_then(|it| numbers[it]).unwrap_or(floor);
    (low, numbers.get(end).copied().flatten())
}

/// What has to get new numbers so that those from `begin` to `end` get some: those, or some around, too.
fn with_room(numbers: &[Option<u64>], mut begin: usize, mut end: usize, floor: u64) -> (usize, usize) {
    let step = |begin, end| match bounds(numbers, begin, end, floor) {
        (low, Some(high)) => (high - low) / ((end - begin) as u64 + 1),
        (_, None) => STEP,
    };
    let mut least = 1;
    while step(begin, end) < least {
        let more = (end - begin).max(1);
        least = LEAST_STEP;
        begin = begin.saturating_sub(more);
        end = (end + more).min(numbers.len());
        // What has none yet gets one, too.
        while numbers.get(end).is_some_and(Option::is_none) {
            end += 1;
        }
    }
    (begin, end)
}

fn fill(numbers: &mut [Option<u64>], begin: usize, end: usize, floor: u64) {
    let count = (end - begin) as u64;
    let (low, high) = bounds(numbers, begin, end, floor);
    let (low, step) = match high {
        // As if what comes before the first had been there from the beginning.
        Some(high) if begin == 0 && high - low > STEP * (count + 1) => (high - STEP * (count + 1), STEP),
        Some(high) => (low, (high - low) / (count + 1)),
        None if begin == 0 => ((low / STEP * STEP).max(FIRST - STEP), STEP),
        None => (low, STEP),
    };
    for (number, place) in numbers[begin..end].iter_mut().zip(1..) {
        *number = Some(low + step * place);
    }
}

/// The most of `numbers` that are above `floor` and ascend; `None` in the place of the others.
fn longest_ascent(numbers: &[Option<u64>], floor: u64) -> Vec<Option<u64>> {
    // Of the ascents of each length the one with the lowest end, by that end; and of each number the one before it.
    let mut ends: Vec<(u64, usize)> = Vec::new();
    let mut before = vec![None; numbers.len()];
    for (index, number) in numbers.iter().enumerate() {
        let Some(number) = number.filter(|number| *number > floor) else { continue };
        let length = ends.partition_point(|(end, _)| *end < number);
        before[index] = length.checked_sub(1).map(|it| ends[it].1);
        match ends.get_mut(length) {
            Some(end) => *end = (number, index),
            None => ends.push((number, index)),
        }
    }
    let mut kept = vec![None; numbers.len()];
    let mut last = ends.last().map(|(_, index)| *index);
    while let Some(index) = last {
        kept[index] = numbers[index];
        last = before[index];
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ascends(numbers: &[u64], above: u64) -> bool {
        numbers.is_sorted_by(|one, other| one < other) && numbers.first().is_none_or(|it| *it > above)
    }

    #[test]
    fn a_file_that_is_new_has_round_numbers_behind_those_that_are_written() {
        assert_eq!(numbers(&[None; 3], 0), [1_000_000, 1_001_000, 1_002_000]);
        assert_eq!(numbers(&[None; 2], 1_000_000), [1_001_000, 1_002_000]);
        assert_eq!(numbers(&[None; 2], 5_000_300), [5_001_000, 5_002_000]);
        assert_eq!(numbers(&[], 7), [0; 0]);
    }

    #[test]
    fn what_is_inserted_changes_no_other_number() {
        let some = |it: &[u64]| it.iter().map(|it| (*it != 0).then_some(*it)).collect::<Vec<_>>();
        for (before, expected) in [
            (&[1_000_000, 0, 1_001_000][..], &[1_000_000, 1_000_500, 1_001_000][..]),
            (&[1_000_000, 0, 0, 1_001_000], &[1_000_000, 1_000_333, 1_000_666, 1_001_000]),
            (&[0, 1_000_000], &[999_000, 1_000_000]),
            (&[0, 300], &[150, 300]),
            (&[1_000_000, 0], &[1_000_000, 1_001_000]),
            // One that has moved gets another.
            (&[1_001_000, 1_002_000, 1_000_000], &[1_001_000, 1_002_000, 1_003_000]),
            (&[1_003_000, 1_000_000, 1_001_000, 1_002_000], &[999_000, 1_000_000, 1_001_000, 1_002_000]),
        ] {
            assert_eq!(numbers(&some(before), 0), expected, "{before:?}");
        }
    }

    #[test]
    fn where_there_is_no_room_a_few_around_get_other_numbers() {
        let mut rules = numbers(&[None; 2_000], 0);
        let (mut most, mut changed) = (0, 0);
        for place in 0..2_000 {
            // Always behind the same one, always before the same one, and always the first.
            let at = [1_000, 1_000 + place, 0][place % 3];
            let mut before: Vec<Option<u64>> = rules.iter().copied().map(Some).collect();
            before.insert(at, None);
            rules = numbers(&before, 100);
            assert!(ascends(&rules, 100));
            let differ = before.iter().zip(&rules).filter(|(old, new)| old.is_some_and(|old| old != **new));
            let differ = differ.count();
            (most, changed) = (most.max(differ), changed + differ);
        }
        assert!(most < 4_000 && changed < 120_000, "{most} at once, {changed} in all");
    }

    #[test]
    fn any_numbers_become_ascending_ones() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut roll = |sides: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 33) % sides
        };
        for round in 0..2_000 {
            let (count, floor) = (roll(40), roll(30));
            let spread = [5, 50, 5_000][round % 3];
            let before: Vec<Option<u64>> =
                (0..count).map(|_| (roll(3) > 0).then_some(0).map(|_: u64| 1 + roll(spread))).collect();
            let after = numbers(&before, floor);
            assert!(
                ascends(&after, floor) && after.len() == before.len(),
                "{before:?} above {floor}: {after:?}"
            );
        }
    }
}
