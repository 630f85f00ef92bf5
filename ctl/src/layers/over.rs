//! The layer by hand over that of another file.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{ByHand, ClusterByHand, InFile, Said, as_in_file, bare, by_id, by_rule, rule};
use crate::{
    edit::Reader,
    state::{Backend, Cluster, State},
};

/// What is by hand does not go together with what the file says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "what was changed by hand does not go together with the file: {what}: {reason}; undo it, or drop all that is by hand \
     (`kakehictl reload --discard-live`)"
)]
pub struct LayersError {
    what: String,
    reason: String,
}

/// What becomes of one entry.
enum Outcome<T> {
    /// As the file says.
    File,
    /// This, by hand.
    Hand(T),
    /// By hand it is not there.
    Gone,
    /// The file does not have it any more, and so what was changed of it is void.
    Void,
}

/// `base` is what the file said of it before, `present` how it is, `file` what the file says now. `read` makes a value of keys.
fn one<T: Said + Clone + PartialEq>(
    base: &InFile<T>,
    present: Option<&T>,
    file: Option<&T>,
    read: impl FnOnce(Table) -> Result<T, String>,
) -> Result<Outcome<T>, String> {
    Ok(match (base, present, file) {
        (InFile::Nothing, None, _) | (InFile::This(_), None, None) => Outcome::File,
        (InFile::Nothing, Some(present), None) => Outcome::Hand(present.clone()),
        (InFile::Nothing, Some(present), Some(file)) => Outcome::Hand(present.beside(file)),
        (InFile::This(_), None, Some(_)) => Outcome::Gone,
        (InFile::This(_), Some(_), None) => Outcome::Void,
        (InFile::This(base), Some(present), Some(file)) if base.says_the_same(file) => {
            Outcome::Hand(present.clone())
        }
        (InFile::This(base), Some(present), Some(file)) => {
            Outcome::Hand(read(merged(&base.said(), &present.said(), file.said()))?)
        }
    })
}

/// [`one`] for each entry of `bases`, which are here and in the file as `sides` give them; what is by hand of them goes to
/// `marks`, what the file has dropped to `void`. `words` name an entry, and make a value of keys.
fn each<'a, T: Said + Clone + PartialEq + 'a>(
    bases: &BTreeMap<String, InFile<T>>,
    marks: &mut BTreeMap<String, InFile<T>>,
    (here, there): (impl Fn(&str) -> Option<&'a T>, impl Fn(&str) -> Option<&'a T>),
    (what, read): (impl Fn(&str) -> String, impl Fn(&str, Table) -> Result<T, String>),
    void: &mut Vec<String>,
) -> Result<BTreeMap<String, Outcome<T>>, LayersError> {
    let mut outcomes = BTreeMap::new();
    for (name, base) in bases {
        let (present, in_file) = (here(name), there(name));
        let outcome = one(base, present, in_file, |table| read(name, table));
        let outcome = outcome.map_err(|reason| LayersError { what: what(name), reason })?;
        match &outcome {
            Outcome::Void => void.push(what(name)),
            Outcome::Hand(made) if as_in_file(Some(made), &InFile::of(in_file.cloned())) => {}
            Outcome::Hand(_) | Outcome::Gone => {
                marks.insert(name.clone(), InFile::of(in_file.cloned()));
            }
            Outcome::File => {}
        }
        outcomes.insert(name.clone(), outcome);
    }
    Ok(outcomes)
}

/// The keys of `file`, and of those in which `present` differs from `base`, those of `present`.
fn merged(base: &Table, present: &Table, mut file: Table) -> Table {
    for key in base.keys().chain(present.keys()) {
        match (base.get(key), present.get(key)) {
            (old, new) if old == new => {}
            (old, Some(Value::Table(new))) => {
                let empty = Table::new();
                let old = old.and_then(Value::as_table).unwrap_or(&empty);
                let of_file = file.remove(key).and_then(|it| it.try_into().ok()).unwrap_or_default();
                file.insert(key.clone(), merged(old, new, of_file).into());
            }
            (_, Some(new)) => drop(file.insert(key.clone(), new.clone())),
            (_, None) => drop(file.remove(key)),
        }
    }
    file
}

impl State {
    /// Makes of `file`, which a file says, that with what is by hand here. Certificates are another step
    /// ([`State::lay_certificates_over`]). What was changed by hand and is not in the file any more goes, and is named.
    ///
    /// # Errors
    /// When keys contradict each other.
    pub fn lay_by_hand_over(&self, file: &mut State) -> Result<Vec<String>, LayersError> {
        let mut void = Vec::new();
        let pages = file.pages();
        let mut by_hand = ByHand::default();
        for (address, base) in &self.by_hand.listeners {
            let (present, in_file) = (self.listeners.get(address), file.listeners.get(address).cloned());
            let what = || format!("listener {address}");
            let read =
                |table| Reader::of(file).read_listener(*address, table).map_err(|error| error.to_string());
            let outcome = one(base, present, in_file.as_ref(), read)
                .map_err(|reason| LayersError { what: what(), reason })?;
            match outcome {
                Outcome::File => continue,
                Outcome::Hand(listener) => drop(file.listeners.insert(*address, listener)),
                Outcome::Gone => drop(file.listeners.remove(address)),
                Outcome::Void => {
                    void.push(what());
                    continue;
                }
            }
            by_hand.listeners.insert(*address, InFile::of(in_file));
        }
        for (name, base) in &self.by_hand.clusters {
            let marks = self.lay_cluster_over(name, base, file, &mut void)?;
            by_hand.clusters.insert(name.clone(), marks);
        }
        by_hand.tidy();
        by_hand.listeners.retain(|address, it| !as_in_file(file.listeners.get(address), it));
        file.by_hand = by_hand;
        // What is by hand has them as they were.
        file.take_pages(&pages);
        Ok(void
            .into_iter()
            .map(|what| format!("{what}, changed by hand, is not in the file any more: it goes"))
            .collect())
    }

    fn lay_cluster_over(
        &self,
        name: &str,
        base: &ClusterByHand,
        file: &mut State,
        void: &mut Vec<String>,
    ) -> Result<ClusterByHand, LayersError> {
        let present = self.clusters.get(name);
        let in_file = file.clusters.get(name).cloned();
        let mut marks = ClusterByHand::default();
        let what = || format!("cluster {name}");
        if let Some(own) = &base.own {
            let (bare_present, bare_file) = (present.map(bare), in_file.as_ref().map(bare));
            let read = |table| Reader::of(file).read_cluster(name, table).map_err(|error| error.to_string());
            let outcome = one(own, bare_present.as_ref(), bare_file.as_ref(), read)
                .map_err(|reason| LayersError { what: what(), reason })?;
            match outcome {
                Outcome::File => {}
                Outcome::Hand(own) => {
                    let (frontends, backends) =
                        in_file.clone().map(|it| (it.frontends, it.backends)).unwrap_or_default();
                    file.clusters.insert(name.to_owned(), Cluster { frontends, backends, ..own });
                    marks.own = Some(InFile::of(bare_file));
                }
                Outcome::Gone => {
                    file.clusters.remove(name);
                    // All of it is removed by hand, what the file has added as well.
                    let all = in_file.unwrap_or_default();
                    marks.own = Some(InFile::of(bare_file));
                    marks.frontends =
                        all.frontends.into_iter().map(|it| (rule(&it), InFile::This(it))).collect();
                    marks.backends =
                        all.backends.into_iter().map(|it| (it.id.clone(), InFile::This(it))).collect();
                    return Ok(marks);
                }
                Outcome::Void => {}
            }
        }
        let Some(cluster) = file.clusters.get(name).cloned() else {
            // With it goes what was added to it.
            if present.is_some() {
                void.push(what());
            }
            return Ok(ClusterByHand::default());
        };
        let cluster = self.lay_entries_over(name, (base, &mut marks), cluster, file, void)?;
        marks.own = marks.own.filter(|own| !as_in_file(Some(&cluster), own));
        file.clusters.insert(name.to_owned(), cluster);
        Ok(marks)
    }

    /// The frontends and backends that are by hand over those of the file, `cluster`.
    fn lay_entries_over(
        &self,
        name: &str,
        (base, marks): (&ClusterByHand, &mut ClusterByHand),
        mut cluster: Cluster,
        file: &State,
        void: &mut Vec<String>,
    ) -> Result<Cluster, LayersError> {
        let present = self.clusters.get(name);
        let (here, there) = (by_rule(present), by_rule(Some(&cluster)));
        let read = |rule: &str, table| {
            let address = there.get(rule).or(here.get(rule)).map(|it| it.address);
            Reader::of(file).read_frontend(name, address, table).map_err(|error| error.to_string())
        };
        let what = |rule: &str| format!("frontend {rule} of cluster {name}");
        let sides = (|rule: &str| here.get(rule).copied(), |rule: &str| there.get(rule).copied());
        let outcomes = each(&base.frontends, &mut marks.frontends, sides, (what, read), void)?;
        cluster.frontends = match outcomes.is_empty() {
            true => cluster.frontends,
            false => entries(cluster.frontends, rule, outcomes, present.map_or(&[], |it| &it.frontends)),
        };
        let (here, there) = (by_id(present), by_id(Some(&cluster)));
        let read =
            |_: &str, table| Reader::of(file).read_backend(name, table).map_err(|error| error.to_string());
        let what = |id: &str| format!("backend {id} of cluster {name}");
        let sides = (|id: &str| here.get(id).copied(), |id: &str| there.get(id).copied());
        let outcomes = each(&base.backends, &mut marks.backends, sides, (what, read), void)?;
        let id = |it: &Backend| it.id.clone();
        cluster.backends = entries(cluster.backends, id, outcomes, present.map_or(&[], |it| &it.backends));
        Ok(cluster)
    }
}

/// The entries of a file with those that are by hand: in the order of the file, those that it does not have in that of `present`.
fn entries<T: Clone>(
    file: Vec<T>,
    key: impl Fn(&T) -> String,
    mut outcomes: BTreeMap<String, Outcome<T>>,
    present: &[T],
) -> Vec<T> {
    let mut all = Vec::with_capacity(file.len());
    for entry in file {
        match outcomes.remove(&key(&entry)) {
            None | Some(Outcome::File) => all.push(entry),
            Some(Outcome::Hand(made)) => all.push(made),
            Some(Outcome::Gone | Outcome::Void) => {}
        }
    }
    if outcomes.is_empty() {
        return all;
    }
    for entry in present {
        if let Some(Outcome::Hand(made)) = outcomes.remove(&key(entry)) {
            all.push(made);
        }
    }
    all
}
