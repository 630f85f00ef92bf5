//! What somebody else finds wrong with a state that was read from a file, and where in the file that stands.
//!
//! Expressions and the like are compiled by who serves them, which knows the state and no file. It names the table of the file and the key
//! ([`Fault`]); only then the tables that are named are read again, and looked through for the place. So a file without faults, however
//! large, costs nothing for it.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use super::{
    findings::Findings,
    pieces::{Pieces, Text},
    read::{self, Section, Values},
};
use crate::{change::FrontendRule, state::State};

/// The most characters of what is said of one.
const MOST_SAID: usize = 400;

/// Something in a state that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it stands.
    pub table: FaultTable,
    /// The key there, and the keys and numbers of what stands in it; the table itself where it has none of them.
    pub path: Vec<FaultStep>,
    /// What is wrong.
    pub reason: String,
    /// A frontend that it is not compatible with: its cluster, and its place there.
    pub beside: Option<(String, usize)>,
}

impl Fault {
    /// Whether it is of two frontends whose texts say that they take the same requests: whoever reads the file tells that.
    pub(super) fn is_told_by_text(&self, state: &State) -> bool {
        let frontend = |name: &str, place: usize| state.clusters.get(name)?.frontends.get(place);
        let (FaultTable::Frontend(name, place), Some((other, at))) = (&self.table, &self.beside) else {
            return false;
        };
        let pair = frontend(name, *place).zip(frontend(other, *at));
        pair.is_some_and(|(one, other)| FrontendRule::from(other).is_of(one))
    }
}

/// A table of a file, by what the state has it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultTable {
    /// A listener.
    Listener(SocketAddr),
    /// A cluster.
    Cluster(String),
    /// A frontend: its cluster, and its place there.
    Frontend(String, usize),
}

/// One step into a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultStep {
    /// A key.
    Key(&'static str),
    /// The table with this number in a list, from 0.
    Item(usize),
}

/// Frontends of a file that the state has not, as their listener is skipped: by cluster their places in the file, ascending.
#[derive(Default)]
pub(super) struct LeftOut(HashMap<String, Vec<usize>>);

impl LeftOut {
    pub(super) fn note(&mut self, cluster: &str, place: usize) {
        self.0.entry(cluster.to_owned()).or_default().push(place);
    }

    /// The place in the file of a frontend of the state.
    fn in_file(&self, cluster: &str, mut place: usize) -> usize {
        for left_out in self.0.get(cluster).map_or(&[][..], Vec::as_slice) {
            place += usize::from(*left_out <= place);
        }
        place
    }
}

/// Tells `findings` of `faults` in a file whose `root` and `pieces` are these.
pub(super) fn tell(
    faults: &[Fault],
    (root, pieces, left_out): (&Section, &Pieces<'_>, &LeftOut),
    findings: &mut Findings<'_>,
) {
    let places = places(faults, (root, pieces, left_out), findings);
    let whole = root.offset;
    for (fault, (offset, beside)) in faults.iter().zip(places) {
        let mut said: String = fault.reason.chars().take(MOST_SAID).collect();
        said =
            said.chars().map(|it| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it }).collect();
        if let Some(beside) = beside {
            said += &format!("; the other one stands in line {}", findings.source.line(beside));
        }
        findings.unfit(offset.unwrap_or(whole), said);
    }
}

/// Of each where it stands, and where that stands which it is not compatible with (offsets).
fn places(
    faults: &[Fault],
    (root, pieces, left_out): (&Section, &Pieces<'_>, &LeftOut),
    findings: &Findings<'_>,
) -> Vec<(Option<usize>, Option<usize>)> {
    // What is asked for in each cluster: the number of the fault, and whether it is the one beside it.
    let mut asked: BTreeMap<&str, Vec<(usize, bool)>> = BTreeMap::new();
    let mut places = vec![(None, None); faults.len()];
    for (number, fault) in faults.iter().enumerate() {
        match &fault.table {
            FaultTable::Listener(address) => {
                let mut listeners = root.tables("listeners").iter();
                let listener = listeners.find(|it| it.address("address") == Some(*address));
                places[number].0 = listener.map(|listener| listener.place_of(&fault.path));
            }
            FaultTable::Cluster(name) | FaultTable::Frontend(name, _) => {
                asked.entry(name).or_default().push((number, false));
            }
        }
        if let Some((name, _)) = &fault.beside {
            asked.entry(name).or_default().push((number, true));
        }
    }
    let mut look = |section: &Section| {
        for (name, offset, cluster) in section.named_tables("clusters") {
            for (number, is_beside) in asked.get(name.as_str()).into_iter().flatten() {
                let frontend = |place: usize| cluster.tables("frontends").get(left_out.in_file(name, place));
                let fault = &faults[*number];
                if *is_beside {
                    let place = fault.beside.as_ref().and_then(|(_, place)| frontend(*place));
                    places[*number].1 = place.map(|it| it.offset);
                    continue;
                }
                places[*number].0 = match &fault.table {
                    FaultTable::Frontend(_, place) => frontend(*place).map(|it| it.place_of(&fault.path)),
                    _ if fault.path.is_empty() => Some(*offset),
                    _ => Some(cluster.place_of(&fault.path)),
                };
            }
        }
    };
    look(root);
    for (_, text) in pieces.named_clusters().filter(|(name, _)| asked.contains_key(name)) {
        // What is wrong with it as a text was told before.
        if let Some(section) = read_again(&text, findings) {
            look(&section);
        }
    }
    places
}

fn read_again(text: &Text<'_>, findings: &Findings<'_>) -> Option<Section> {
    read::root(text, &mut Findings::new(findings.source))
}

impl Section {
    /// Where that stands to which `path` leads, as far as it is there (offset).
    fn place_of(&self, path: &[FaultStep]) -> usize {
        let Some((FaultStep::Key(key), rest)) = path.split_first() else { return self.offset };
        if self.level.key(key).is_none() {
            return self.offset;
        }
        let Some(entry) = self.entry(key) else { return self.offset };
        match rest.split_first() {
            None => entry.offset,
            Some((FaultStep::Item(number), rest)) => match self.tables(key).get(*number) {
                Some(table) => table.place_of(rest),
                None => entry.offset,
            },
            Some((FaultStep::Key(_), _)) => {
                self.tables(key).first().map_or(entry.offset, |table| table.place_of(rest))
            }
        }
    }
}
