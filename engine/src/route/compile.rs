//! From rules to tables: groups them by host, sorts them, finds contradictions, lays them out flat.
//!
//! It takes the rules once, in any order: where one is looked at before another, `order` of both decides, and only then which came first.

use std::cmp::Reverse;

use kakehi_ctl::state::{self, PathRule, RulePosition, is_token};
use rustc_hash::FxHashMap;

use super::{
    InTurn, RouteError, RouteTable, Rule,
    choice::{Alternative, Choice},
    host::HostPattern,
    host_index::HostIndexBuilder,
    path::{self, CHOICE, LiteralRule, NONE, PathSet, PathStore, RegexRule},
    pattern::{Patterns, Subject},
    predicate::Predicates,
};
use crate::http::percent_decode;

/// A rule with everything interned. Sorting by `(group, kind)` is how the table is laid out.
#[derive(Debug, Clone, Copy)]
struct Item {
    /// Which host pattern.
    group: u32,
    kind: Kind,
    /// Number of its text, or of its regular expression.
    text: u32,
    method: u32,
    /// Number of what else it asks, or [`NONE`].
    predicates: u32,
    target: u32,
    place: Place,
}

/// Where a rule stands among those that are otherwise equal: by its `order`, and the how manyth it came.
type Place = (u64, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Equals,
    Prefix,
    Regex,
}

/// Collects rules.
#[derive(Default)]
pub(super) struct Compiler {
    items: Vec<Item>,
    hosts: Vec<HostPattern>,
    groups: FxHashMap<String, u32>,
    /// The hostname of the rule before, as it was written: rules of one host mostly come together.
    last_host: Option<(String, u32)>,
    texts: Texts,
    patterns: Patterns,
    methods: Vec<Box<str>>,
    predicates: Vec<Predicates>,
    /// How many things each of them asks for.
    asks: Vec<usize>,
    known_predicates: FxHashMap<state::Predicates, u32>,
    before: Vec<(u64, RouteTable)>,
    behind: Vec<(u64, RouteTable)>,
}

impl Compiler {
    /// Takes one rule.
    pub(super) fn add(&mut self, rule: &Rule) -> Result<(), RouteError> {
        let tables = match rule.position {
            RulePosition::Tree => None,
            RulePosition::Pre => Some(&mut self.before),
            RulePosition::Post => Some(&mut self.behind),
        };
        if let Some(tables) = tables {
            let table = RouteTable::compile([Rule { position: RulePosition::Tree, ..rule.clone() }])?;
            tables.push((rule.rank(), table));
            return Ok(());
        }
        if rule.target & CHOICE != 0 {
            return Err(RouteError::TooLarge);
        }
        let group = self.group(&rule.hostname)?;
        let method = self.method(rule.method.as_deref())?;
        let (kind, text) = match &rule.path {
            PathRule::Regex(pattern) => (Kind::Regex, self.patterns.add(pattern, Subject::Path)?),
            PathRule::Equals(path) => (Kind::Equals, self.literal(&rule.path, path)?),
            PathRule::Prefix(path) => (Kind::Prefix, self.literal(&rule.path, path)?),
        };
        let predicates = self.predicates(rule.predicates.as_deref())?;
        let place = (rule.rank(), number(self.items.len())?);
        self.items.push(Item { group, kind, text, method, predicates, target: rule.target, place });
        Ok(())
    }

    fn group(&mut self, hostname: &str) -> Result<u32, RouteError> {
        if let Some((last, group)) = &self.last_host
            && last == hostname
        {
            return Ok(*group);
        }
        let pattern = HostPattern::parse(hostname)?;
        let next = number(self.hosts.len())?;
        let hosts = &mut self.hosts;
        let group = *self.groups.entry(pattern.to_text()).or_insert_with(|| {
            hosts.push(pattern);
            next
        });
        self.last_host = Some((hostname.to_owned(), group));
        Ok(group)
    }

    fn method(&mut self, method: Option<&str>) -> Result<u32, RouteError> {
        let Some(method) = method else { return Ok(NONE) };
        if let Some(known) = self.methods.iter().position(|known| **known == *method) {
            return number(known);
        }
        if !is_token(method) {
            return Err(RouteError::BadMethod(method.to_owned()));
        }
        self.methods.push(method.into());
        number(self.methods.len() - 1)
    }

    fn predicates(&mut self, source: Option<&state::Predicates>) -> Result<u32, RouteError> {
        let Some(source) = source.filter(|source| !source.is_empty()) else { return Ok(NONE) };
        if let Some(&known) = self.known_predicates.get(source) {
            return Ok(known);
        }
        let next = number(self.predicates.len())?;
        self.predicates.push(Predicates::compile(source, &mut self.patterns)?);
        self.asks.push(source.len());
        self.known_predicates.insert(source.clone(), next);
        Ok(next)
    }

    fn literal(&mut self, rule: &PathRule, path: &str) -> Result<u32, RouteError> {
        match self.texts.known.get(path.as_bytes()) {
            // Checked when it came first; an EQUALS rule is checked for more than a prefix is.
            Some(&text) if matches!(rule, PathRule::Prefix(_)) => Ok(text),
            _ => {
                path::check_literal(rule, path)?;
                self.texts.add(path.as_bytes())
            }
        }
    }

    /// Goes over to laying out the table, when all rules have been taken.
    pub(super) fn lay_out_all(mut self) -> LayingOut {
        let items = by_group(std::mem::take(&mut self.items), self.hosts.len());
        let exact = self.hosts.iter().filter(|host| matches!(host, HostPattern::Exact(_))).count();
        let literals = Vec::with_capacity(items.len());
        let layout = Layout { literals, ..Layout::default() };
        LayingOut { compiler: self, items, next: 0, layout, hosts: HostIndexBuilder::new(exact), rules: 0 }
    }

    /// The rules of one host; returns how many there are without repetitions.
    fn lay_out(&mut self, items: &[Item], layout: &mut Layout) -> Result<(PathSet, usize), RouteError> {
        let first_regex = number(layout.regexes.len())?;
        let mut count = self.push_regexes(items, layout)?;
        let regexes = number(layout.regexes.len())? - first_regex;
        let mut literals: Vec<Item> = items.iter().filter(|item| item.kind != Kind::Regex).copied().collect();
        let mut set = self.push_literals(&mut literals, layout)?;
        (set.first_regex, set.regexes) = (first_regex, regexes);
        count += set.rules as usize;
        set.rules = number(count)?;
        let takes_all = |item: &Item| {
            item.kind == Kind::Prefix
                && item.method == NONE
                && item.predicates == NONE
                && matches!(self.texts.get(item.text), b"" | b"/")
        };
        if items.iter().any(takes_all) && items.iter().all(|item| item.target == items[0].target) {
            set.uniform = items[0].target;
        }

        let mut changed = false;
        for item in &mut literals {
            let sent = self.texts.get(item.text);
            if sent.contains(&b'%') {
                let decoded = percent_decode(sent);
                item.text = self.texts.add(&decoded)?;
                changed = true;
            }
        }
        if changed {
            let mut decoded = self.push_literals(&mut literals, layout)?;
            (decoded.first_regex, decoded.regexes) = (first_regex, regexes);
            set.decoded = number(layout.decoded.len())?;
            layout.decoded.push(decoded);
        }
        Ok((set, count))
    }

    /// Appends the regular expressions of one host, each where the first rule with it stands; the same one with a method before without.
    /// Returns how many rules they are.
    fn push_regexes(&self, items: &[Item], layout: &mut Layout) -> Result<usize, RouteError> {
        let mut first: FxHashMap<u32, Place> = FxHashMap::default();
        let mut rules: Vec<Item> = items.iter().filter(|item| item.kind == Kind::Regex).copied().collect();
        for item in &rules {
            let first = first.entry(item.text).or_insert(item.place);
            *first = item.place.min(*first);
        }
        // NONE is the highest method.
        rules.sort_by_cached_key(|item| (first[&item.text], item.method, self.rank(item)));
        let mut count = 0;
        for same in rules.chunk_by(|a, b| (a.text, a.method) == (b.text, b.method)) {
            let (target, different) = self.merged(same, layout)?;
            count += different;
            layout.regexes.push(RegexRule { regex: same[0].text, method: same[0].method, target });
        }
        Ok(count)
    }

    /// The order among rules for the same host, path and method.
    fn rank(&self, item: &Item) -> (Reverse<usize>, Place) {
        let asks = self.asks.get(item.predicates as usize).copied().unwrap_or(0);
        (Reverse(asks), item.place)
    }

    /// Where rules lead that are for the same host, path and method, and are in their order; and how many different ones they are.
    fn merged(&self, same: &[Item], layout: &mut Layout) -> Result<(u32, usize), RouteError> {
        if let [Item { predicates: NONE, target, .. }] = same {
            return Ok((*target, 1));
        }
        let mut known: FxHashMap<u32, u32> = FxHashMap::default();
        let mut alternatives = Vec::with_capacity(same.len());
        for item in same {
            match known.insert(item.predicates, item.target) {
                None => {
                    alternatives.push(Alternative { predicates: item.predicates, target: item.target });
                }
                Some(target) if target == item.target => {}
                Some(_) => return Err(self.duplicate(item)),
            }
        }
        let different = alternatives.len();
        if let [Alternative { predicates: NONE, target }] = alternatives[..] {
            return Ok((target, different));
        }
        let place = number(layout.choices.len())?;
        layout.choices.push(Choice::new(alternatives, &self.predicates));
        // Every choice has a rule, and of these there are fewer than CHOICE.
        Ok((CHOICE | place, different))
    }

    /// Sorts and appends the literal rules of one host, without repetitions, each with the rule to try after it.
    fn push_literals(&self, items: &mut [Item], layout: &mut Layout) -> Result<PathSet, RouteError> {
        // The last of equal texts is tried first: so the one for any method, NONE, must come first.
        let key = |item: &Item| (item.kind, self.texts.get(item.text), item.method.wrapping_add(1));
        items.sort_unstable_by(|a, b| key(a).cmp(&key(b)).then_with(|| self.rank(a).cmp(&self.rank(b))));
        let (mut merged, mut count) = (Vec::with_capacity(items.len()), 0);
        for same in items.chunk_by(|a, b| key(a) == key(b)) {
            let (target, different) = self.merged(same, layout)?;
            count += different;
            merged.push(Item { target, ..same[0] });
        }
        let items = merged;
        let equals = items.partition_point(|item| item.kind == Kind::Equals);
        let first = layout.literals.len();
        for (range, is_prefix) in [(0..equals, false), (equals..items.len(), true)] {
            let rules = &items[range];
            let mut parents: Vec<u32> = Vec::with_capacity(rules.len());
            for (index, item) in rules.iter().enumerate() {
                let text = self.texts.get(item.text);
                // The chain of the rule before holds every rule that can be the next to try.
                let mut parent = number(index)?.checked_sub(1).unwrap_or(NONE);
                while let Some(candidate) = rules.get(parent as usize) {
                    let candidate = self.texts.get(candidate.text);
                    if candidate == text || (is_prefix && text.starts_with(candidate)) {
                        break;
                    }
                    parent = parents[parent as usize];
                }
                parents.push(parent);
                let (offset, length) = self.texts.spans[item.text as usize];
                let (method, target) = (item.method, item.target);
                layout.literals.push(LiteralRule { offset, length, method, parent, target });
            }
        }
        Ok(PathSet {
            first: number(first)?,
            equals: number(equals)?,
            prefixes: number(items.len() - equals)?,
            first_regex: 0,
            regexes: 0,
            decoded: NONE,
            uniform: NONE,
            rules: number(count)?,
        })
    }

    fn duplicate(&self, item: &Item) -> RouteError {
        let path = match item.kind {
            Kind::Regex => self.patterns.text(item.text).to_owned(),
            _ => String::from_utf8_lossy(self.texts.get(item.text)).into_owned(),
        };
        let method = self.methods.get(item.method as usize);
        RouteError::Duplicate {
            hostname: self.hosts[item.group as usize].to_text(),
            path,
            method: method.map_or_else(|| "any method".to_owned(), |method| format!("method {method}")),
        }
    }
}

/// A table that is laid out host by host.
pub(super) struct LayingOut {
    compiler: Compiler,
    /// By host, in the order of the hosts.
    items: Vec<Item>,
    /// The first item of the next host.
    next: usize,
    layout: Layout,
    hosts: HostIndexBuilder,
    rules: usize,
}

impl LayingOut {
    /// Lays out the rules of the next host. False when there is none left.
    pub(super) fn step(&mut self) -> Result<bool, RouteError> {
        let rest = &self.items[self.next..];
        let Some(first) = rest.first() else { return Ok(false) };
        let count = rest.iter().take_while(|item| item.group == first.group).count();
        let (group, items) = (first.group as usize, &rest[..count]);
        let first_place = items.iter().map(|item| item.place).min().unwrap_or_default();
        let (set, rules) = self.compiler.lay_out(items, &mut self.layout)?;
        self.next += count;
        self.rules += rules;
        // Each group has a rule, and they were numbered in order: this host is looked at no more.
        let host = std::mem::replace(&mut self.compiler.hosts[group], HostPattern::Any);
        self.hosts.add(host, set, first_place);
        Ok(true)
    }

    /// The table, when there is no host left.
    pub(super) fn finish(mut self) -> Result<RouteTable, RouteError> {
        let Compiler { mut patterns, texts, methods, predicates, before, behind, .. } = self.compiler;
        let [before, behind] = [before, behind].map(|mut tables| {
            // A stable sort: those of the same order stay as they came.
            tables.sort_by_key(|(order, _)| *order);
            tables.into_iter().map(|(_, table)| table).collect()
        });
        let in_turn = InTurn { before, behind };
        let hosts = self.hosts.finish(&mut patterns)?;
        let layout = &mut self.layout;
        number(layout.literals.len())?;
        let paths = PathStore {
            texts: texts.blob.into_boxed_slice(),
            literals: std::mem::take(&mut layout.literals).into_boxed_slice(),
            regex_rules: std::mem::take(&mut layout.regexes).into_boxed_slice(),
            regexes: patterns.finish(),
            methods: methods.into_boxed_slice(),
            decoded: std::mem::take(&mut layout.decoded).into_boxed_slice(),
            choices: std::mem::take(&mut layout.choices).into_boxed_slice(),
            predicates: predicates.into_boxed_slice(),
        };
        let mut others = in_turn.before.iter().chain(&in_turn.behind);
        let decoded = paths.has_decoded() || others.any(|table| table.decoded);
        let has_others = !in_turn.before.is_empty() || !in_turn.behind.is_empty();
        let in_turn = has_others.then(|| Box::new(in_turn));
        Ok(RouteTable { hosts, paths, rules: self.rules, decoded, in_turn })
    }
}

/// What grows from host to host.
#[derive(Default)]
struct Layout {
    literals: Vec<LiteralRule>,
    regexes: Vec<RegexRule>,
    decoded: Vec<PathSet>,
    choices: Vec<Choice>,
}

/// Distinct texts in one blob.
#[derive(Default)]
struct Texts {
    blob: Vec<u8>,
    /// Offset and length by number.
    spans: Vec<(u32, u32)>,
    known: FxHashMap<Box<[u8]>, u32>,
}

impl Texts {
    fn add(&mut self, text: &[u8]) -> Result<u32, RouteError> {
        if let Some(&known) = self.known.get(text) {
            return Ok(known);
        }
        let index = number(self.spans.len())?;
        self.spans.push((number(self.blob.len())?, number(text.len())?));
        self.blob.extend_from_slice(text);
        number(self.blob.len())?;
        self.known.insert(text.into(), index);
        Ok(index)
    }

    fn get(&self, number: u32) -> &[u8] {
        let (offset, length) = self.spans[number as usize];
        &self.blob[offset as usize..offset as usize + length as usize]
    }
}

/// Brings the rules of each group together; within a group they keep their order. A counting sort.
fn by_group(items: Vec<Item>, groups: usize) -> Vec<Item> {
    if items.is_sorted_by_key(|item| item.group) {
        return items;
    }
    let mut next = vec![0usize; groups + 1];
    for item in &items {
        next[item.group as usize + 1] += 1;
    }
    for group in 1..next.len() {
        next[group] += next[group - 1];
    }
    let mut sorted = items.clone();
    for item in &items {
        let place = &mut next[item.group as usize];
        sorted[*place] = *item;
        *place += 1;
    }
    sorted
}

/// An index that fits in 32 bits and is not [`NONE`].
pub(super) fn number(index: usize) -> Result<u32, RouteError> {
    u32::try_from(index).ok().filter(|&index| index != NONE).ok_or(RouteError::TooLarge)
}
