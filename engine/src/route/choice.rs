//! Rules for the same host, path and method: which of them takes a request, by what else they ask.

use rustc_hash::FxHashMap;

use super::{
    path::NONE,
    predicate::{Part, Predicates, Values},
};
use crate::http::Asked;

/// Up to this many are tried one after the other; of more, those that ask for one exact value are found by it.
const TRIED_IN_TURN: usize = 16;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Alternative {
    /// Index of what it asks, or [`NONE`] for nothing.
    pub(super) predicates: u32,
    /// Where it leads.
    pub(super) target: u32,
}

/// All of them, in the order in which they are tried.
#[derive(Debug)]
pub(super) struct Choice {
    alternatives: Box<[Alternative]>,
    index: Option<Box<Index>>,
}

/// Places in [`Choice::alternatives`], in their order.
#[derive(Debug, Default)]
struct Index {
    /// Of those that ask for an exact value.
    by_value: Vec<ByValue>,
    /// Of all others.
    others: Vec<u32>,
}

/// Places of those that ask for an exact value of one name.
#[derive(Debug)]
struct ByValue {
    part: Part,
    name: Box<str>,
    places: FxHashMap<Box<[u8]>, Vec<u32>>,
}

impl Choice {
    /// Between alternatives in their order; `predicates` are what they ask.
    pub(super) fn new(alternatives: Vec<Alternative>, predicates: &[Predicates]) -> Choice {
        let index = (alternatives.len() > TRIED_IN_TURN).then(|| Index::of(&alternatives, predicates));
        Choice { alternatives: alternatives.into(), index: index.map(Box::new) }
    }

    /// Where the first one leads that takes the request.
    pub(super) fn find(&self, predicates: &[Predicates], asked: &dyn Asked) -> Option<u32> {
        let mut values = Values::of(asked);
        let mut takes =
            |it: &Alternative| it.predicates == NONE || predicates[it.predicates as usize].hold(&mut values);
        let Some(index) = &self.index else {
            return self.alternatives.iter().find(|it| takes(it)).map(|it| it.target);
        };
        let mut best: Option<u32> = None;
        let mut look = |places: &[u32]| {
            let earlier = places.iter().take_while(|place| best.is_none_or(|best| **place < best));
            let found = earlier.copied().find(|place| takes(&self.alternatives[*place as usize]));
            best = found.or(best);
        };
        for ByValue { part, name, places } in &index.by_value {
            if let Some(value) = part.value(name, asked)
                && let Some(places) = places.get(&*value)
            {
                look(places);
            }
        }
        look(&index.others);
        best.map(|place| self.alternatives[place as usize].target)
    }
}

impl Index {
    fn of(alternatives: &[Alternative], predicates: &[Predicates]) -> Index {
        let mut index = Index::default();
        // There are no more than rules, which are numbered with 32 bits.
        for (place, alternative) in (0..).zip(alternatives) {
            let asks = predicates.get(alternative.predicates as usize);
            let Some((part, name, value)) = asks.and_then(Predicates::key) else {
                index.others.push(place);
                continue;
            };
            let known = index.by_value.iter().position(|it| it.part == part && *it.name == *name);
            let at = known.unwrap_or_else(|| {
                index.by_value.push(ByValue { part, name: name.into(), places: FxHashMap::default() });
                index.by_value.len() - 1
            });
            index.by_value[at].places.entry(value.into()).or_default().push(place);
        }
        index
    }
}
