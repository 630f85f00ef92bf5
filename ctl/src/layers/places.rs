//! Which number (`order`) the rules of the file's layer have.

use std::{collections::HashMap, num::NonZeroU64};

use super::{InFile, by_rule, rule};
use crate::{
    change::{Change, FrontendRule},
    state::{Frontend, State},
};

/// The numbers of the rules of a file, found cluster by cluster.
pub(crate) struct PlacesInFile<'a> {
    state: &'a State,
    /// Those of the cluster that was looked at last, by its name.
    last: Option<(&'a str, HashMap<String, Option<NonZeroU64>>)>,
}

impl State {
    /// The numbers of the rules of the file's layer.
    pub(crate) fn places_in_file(&self) -> PlacesInFile<'_> {
        PlacesInFile { state: self, last: None }
    }

    /// Takes the numbers that rules have in `file` where those here have none, as what was saved by an earlier program.
    pub fn take_places(&mut self, file: &State) {
        for (name, cluster) in &mut self.clusters {
            let mut lacking = cluster.frontends.iter_mut().filter(|it| it.order.is_none() && it.can_tie());
            let Some(first) = lacking.next() else { continue };
            let known = by_rule(file.clusters.get(name));
            for frontend in std::iter::once(first).chain(lacking) {
                frontend.order = known.get(&rule(frontend)).and_then(|it| it.order);
            }
        }
    }

    /// Gives a rule that a change by hand adds to `part` the number that it had before it was removed by hand.
    pub fn in_its_place(&self, part: &State, change: &mut Change) {
        let Change::SetFrontend { cluster, frontend } = change else { return };
        if frontend.order.is_some() || !frontend.can_tie() {
            return;
        }
        let wanted = FrontendRule::from(&*frontend);
        let present = |state: &State| {
            let frontends = state.clusters.get(cluster.as_str()).map_or(&[][..], |it| &it.frontends);
            frontends.iter().find(|it| wanted.is_of(it)).cloned()
        };
        if present(part).is_some() {
            return;
        }
        let marks = self.by_hand.clusters.get(cluster.as_str());
        let marked = marks.and_then(|marks| marks.frontends.get(&rule(frontend)));
        let removed = match marked {
            Some(InFile::This(in_file)) => Some(in_file.clone()),
            Some(InFile::Nothing) => None,
            // Together with this change.
            None => present(self),
        };
        frontend.order = removed.and_then(|it| it.order);
    }
}

impl<'a> PlacesInFile<'a> {
    /// The number of the rule of `frontend`, which may be the one with this `index` in the cluster.
    pub(crate) fn order_of(&mut self, name: &str, index: usize, frontend: &Frontend) -> Option<NonZeroU64> {
        let marks = self.state.by_hand.clusters.get(name);
        let cluster = self.state.clusters.get_key_value(name);
        if marks.is_none() {
            let there = cluster?.1.frontends.get(index);
            if let Some(there) = there.filter(|there| FrontendRule::from(frontend).is_of(there)) {
                return there.order;
            }
        }
        let marked = self.state.by_hand.clusters.get_key_value(name).map(|(name, _)| name);
        let name = cluster.map(|(name, _)| name).or(marked)?.as_str();
        if self.last.as_ref().is_none_or(|(last, _)| *last != name) {
            let here = by_rule(cluster.map(|(_, cluster)| cluster)).into_iter();
            let mut orders: HashMap<String, Option<NonZeroU64>> =
                here.map(|(rule, frontend)| (rule, frontend.order)).collect();
            for (rule, in_file) in marks.into_iter().flat_map(|marks| &marks.frontends) {
                orders.insert(rule.clone(), in_file.as_ref().and_then(|it| it.order));
            }
            self.last = Some((name, orders));
        }
        self.last.as_ref().and_then(|(_, orders)| orders.get(&rule(frontend)).copied().flatten())
    }
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
