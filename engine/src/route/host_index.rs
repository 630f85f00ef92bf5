//! Which host patterns a name matches, best first.
//!
//! Exact names and the parents of wildcards stand in hash maps. Names with regular expressions stand under
//! their literal tail (`/a|b/.example.org` under `example.org`), so that a lookup only runs the expressions
//! of names that end like its own.
//!
//! FxHash is quick and not keyed. That is safe here: peers choose what is looked up, never what is stored.

use regex::bytes::Regex;
use rustc_hash::FxHashMap;

use super::{
    RouteError,
    compile::number,
    host::{HostName, HostPattern, LabelPattern},
    path::{PathSet, PathStore},
    pattern::{Patterns, Subject},
};

/// A name with regular expressions.
#[derive(Debug)]
struct LabelHost {
    /// Labels in all; the name must have as many.
    labels: usize,
    /// Those before the literal tail.
    head: Box<[Label]>,
    entry: HostEntry,
}

#[derive(Debug)]
enum Label {
    Literal(Box<[u8]>),
    Any,
    Regex(u32),
}

/// The host patterns of a table.
#[derive(Debug)]
pub(super) struct HostIndex {
    exact: FxHashMap<Box<[u8]>, HostEntry>,
    /// By rank: more literal labels first, then by the place of the first rule.
    label_hosts: Box<[LabelHost]>,
    /// Literal tail to indexes into `label_hosts`, ascending.
    tails: FxHashMap<Box<[u8]>, Vec<u32>>,
    /// Labels of the longest tail.
    longest_tail: usize,
    /// By what follows `*.`.
    wildcards: FxHashMap<Box<[u8]>, HostEntry>,
    any: Option<HostEntry>,
}

/// A [`HostIndex`] that patterns are put into one by one.
pub(super) struct HostIndexBuilder {
    index: HostIndex,
    with_regex: Vec<(Vec<LabelPattern>, PathSet, (u64, u32))>,
}

impl HostIndexBuilder {
    /// For so many exact names.
    pub(super) fn new(exact: usize) -> HostIndexBuilder {
        let mut index = HostIndex {
            exact: FxHashMap::default(),
            label_hosts: Box::default(),
            tails: FxHashMap::default(),
            longest_tail: 0,
            wildcards: FxHashMap::default(),
            any: None,
        };
        index.exact.reserve(exact);
        HostIndexBuilder { index, with_regex: Vec::new() }
    }

    /// Puts in a pattern, whose first rule has that place. All are different.
    pub(super) fn add(&mut self, host: HostPattern, set: PathSet, place: (u64, u32)) {
        match host {
            HostPattern::Any => self.index.any = Some(set.into()),
            HostPattern::Exact(name) => {
                self.index.exact.insert(name.into_bytes().into(), set.into());
            }
            HostPattern::Wildcard(parent) => {
                self.index.wildcards.insert(parent.into_bytes().into(), set.into());
            }
            HostPattern::Labels(labels) => self.with_regex.push((labels, set, place)),
        }
    }

    /// The index, when all are in.
    pub(super) fn finish(self, patterns: &mut Patterns) -> Result<HostIndex, RouteError> {
        let HostIndexBuilder { mut index, mut with_regex } = self;
        let literals = |labels: &[LabelPattern]| labels.iter().filter(|label| is_literal(label)).count();
        with_regex.sort_by_key(|(labels, _, place)| (std::cmp::Reverse(literals(labels)), *place));
        let mut label_hosts = Vec::with_capacity(with_regex.len());
        for (rank, (labels, set, _)) in with_regex.into_iter().enumerate() {
            let head = labels.len() - labels.iter().rev().take_while(|label| is_literal(label)).count();
            let tail = tail_text(&labels[head..]);
            index.longest_tail = index.longest_tail.max(labels.len() - head);
            index.tails.entry(tail).or_default().push(number(rank)?);
            let count = labels.len();
            let head: Result<Box<[Label]>, RouteError> = labels
                .into_iter()
                .take(head)
                .map(|label| {
                    Ok(match label {
                        LabelPattern::Literal(text) => Label::Literal(text.into_bytes().into()),
                        LabelPattern::Any => Label::Any,
                        LabelPattern::Regex(pattern) => Label::Regex(patterns.add(&pattern, Subject::Label)?),
                    })
                })
                .collect();
            label_hosts.push(LabelHost { labels: count, head: head?, entry: set.into() });
        }
        index.label_hosts = label_hosts.into_boxed_slice();
        Ok(index)
    }
}

impl HostIndex {
    /// Offers the rules of every pattern that matches, best pattern first, until `find` answers.
    /// Puts the rules of one host in the place of those that it had, and gives those back.
    pub(super) fn replace(&mut self, host: &HostPattern, entry: Option<HostEntry>) -> Option<HostEntry> {
        let (map, name) = match host {
            HostPattern::Any => return std::mem::replace(&mut self.any, entry),
            HostPattern::Exact(name) => (&mut self.exact, name),
            HostPattern::Wildcard(parent) => (&mut self.wildcards, parent),
            HostPattern::Labels(_) => return None,
        };
        match entry {
            Some(entry) => map.insert(name.as_bytes().into(), entry),
            None => map.remove(name.as_bytes()),
        }
    }

    /// The only host of a table that has no other.
    pub(super) fn into_only(self) -> Option<HostEntry> {
        self.exact.into_values().chain(self.wildcards.into_values()).chain(self.any).next()
    }

    #[inline]
    pub(super) fn find(
        &self,
        host: &HostName<'_>,
        regexes: &[Regex],
        find: impl Fn(&HostEntry) -> Option<u32>,
    ) -> Option<u32> {
        if let Some(target) = self.exact.get(host.as_bytes()).and_then(&find) {
            return Some(target);
        }
        if !self.label_hosts.is_empty()
            && let Some(target) = self.find_by_labels(host, regexes, &find)
        {
            return Some(target);
        }
        if !self.wildcards.is_empty()
            && let Some(set) = host.parent().and_then(|parent| self.wildcards.get(parent))
            && let Some(target) = find(set)
        {
            return Some(target);
        }
        self.any.as_ref().and_then(find)
    }

    /// The lowest rank, over all tails of the name, whose labels match and whose rules answer.
    fn find_by_labels(
        &self,
        host: &HostName<'_>,
        regexes: &[Regex],
        find: &impl Fn(&HostEntry) -> Option<u32>,
    ) -> Option<u32> {
        let labels = host.labels()?;
        let name = host.as_bytes();
        let mut best: Option<(u32, u32)> = None;
        // The empty tail, then one more label at a time.
        let mut tail = name.len();
        for _ in 0..=self.longest_tail {
            for &rank in self.tails.get(&name[tail..]).into_iter().flatten() {
                if best.is_some_and(|(best, _)| best <= rank) {
                    break;
                }
                let candidate = &self.label_hosts[rank as usize];
                if candidate.labels == labels
                    && candidate.matches(name, regexes)
                    && let Some(target) = find(&candidate.entry)
                {
                    best = Some((rank, target));
                    break;
                }
            }
            if tail == 0 {
                break;
            }
            let before = if tail == name.len() { tail } else { tail - 1 };
            tail = memchr::memrchr(b'.', &name[..before]).map_or(0, |dot| dot + 1);
        }
        best.map(|(_, target)| target)
    }
}

/// Where the rules of one host are.
#[derive(Debug)]
pub(super) struct HostEntry {
    pub(super) set: PathSet,
    /// Their texts, where they came after the table was compiled; otherwise they are in that of all.
    pub(super) own: Option<Box<PathStore>>,
}

impl From<PathSet> for HostEntry {
    fn from(set: PathSet) -> HostEntry {
        HostEntry { set, own: None }
    }
}

impl LabelHost {
    /// Whether the labels before the tail match; there are enough of them.
    fn matches(&self, name: &[u8], regexes: &[Regex]) -> bool {
        self.head.iter().zip(name.split(|&b| b == b'.')).all(|(label, text)| match label {
            Label::Literal(literal) => **literal == *text,
            Label::Any => true,
            Label::Regex(number) => regexes[*number as usize].is_match(text),
        })
    }
}

fn is_literal(label: &LabelPattern) -> bool {
    matches!(label, LabelPattern::Literal(_))
}

fn tail_text(labels: &[LabelPattern]) -> Box<[u8]> {
    let texts: Vec<&str> = labels
        .iter()
        .filter_map(|label| if let LabelPattern::Literal(text) = label { Some(text.as_str()) } else { None })
        .collect();
    texts.join(".").into_bytes().into()
}
