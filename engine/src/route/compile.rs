//! From rules to tables: groups them by host, sorts them, finds contradictions, lays them out flat.
//!
//! It takes the rules once, in any order; only regular expressions keep the order in which they came.

use rustc_hash::FxHashMap;

use super::{
    RouteError, RouteTable, Rule,
    host::HostPattern,
    host_index::HostIndexBuilder,
    normalise,
    path::{self, LiteralRule, NONE, PathSet, PathStore, RegexRule},
    pattern::{Patterns, Subject},
};
use kakehi_ctl::state::PathRule;

/// A rule with everything interned. Sorting by `(group, kind)` is how the table is laid out.
#[derive(Debug, Clone, Copy)]
struct Item {
    /// Which host pattern.
    group: u32,
    kind: Kind,
    /// Number of its text, or of its regular expression.
    text: u32,
    method: u32,
    target: u32,
}

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
}

impl Compiler {
    /// Takes one rule.
    pub(super) fn add(&mut self, rule: &Rule) -> Result<(), RouteError> {
        let group = self.group(&rule.hostname)?;
        let method = self.method(rule.method.as_deref())?;
        let (kind, text) = match &rule.path {
            PathRule::Regex(pattern) => (Kind::Regex, self.patterns.add(pattern, Subject::Path)?),
            PathRule::Equals(path) => (Kind::Equals, self.literal(&rule.path, path)?),
            PathRule::Prefix(path) => (Kind::Prefix, self.literal(&rule.path, path)?),
        };
        self.items.push(Item { group, kind, text, method, target: rule.target });
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
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(RouteError::BadMethod(method.to_owned()));
        }
        self.methods.push(method.into());
        number(self.methods.len() - 1)
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
        let layout =
            Layout { literals: Vec::with_capacity(items.len()), regexes: Vec::new(), decoded: Vec::new() };
        LayingOut { compiler: self, items, next: 0, layout, hosts: HostIndexBuilder::new(exact), rules: 0 }
    }

    /// The rules of one host; returns how many there are without repetitions.
    fn lay_out(&mut self, items: &[Item], layout: &mut Layout) -> Result<(PathSet, usize), RouteError> {
        let first_regex = number(layout.regexes.len())?;
        for item in self.sorted_regexes(items)? {
            layout.regexes.push(RegexRule { regex: item.text, method: item.method, target: item.target });
        }
        let regexes = number(layout.regexes.len())? - first_regex;
        let mut literals: Vec<Item> = items.iter().filter(|item| item.kind != Kind::Regex).copied().collect();
        let mut set = self.push_literals(&mut literals, layout)?;
        (set.first_regex, set.regexes) = (first_regex, regexes);
        let count = literals.len() + regexes as usize;
        let takes_all = |item: &Item| {
            item.kind == Kind::Prefix
                && item.method == NONE
                && matches!(self.texts.get(item.text), b"" | b"/")
        };
        if items.iter().any(takes_all) && items.iter().all(|item| item.target == items[0].target) {
            set.uniform = items[0].target;
        }

        let mut changed = false;
        for item in &mut literals {
            let sent = self.texts.get(item.text);
            if sent.contains(&b'%') {
                let decoded = normalise::percent_decode(sent);
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

    /// Regular expressions in the order in which each came first; the same one with a method before without.
    fn sorted_regexes(&self, items: &[Item]) -> Result<Vec<Item>, RouteError> {
        let mut order: FxHashMap<u32, usize> = FxHashMap::default();
        let mut seen: FxHashMap<(u32, u32), u32> = FxHashMap::default();
        let mut rules = Vec::new();
        for item in items.iter().filter(|item| item.kind == Kind::Regex) {
            let next = order.len();
            order.entry(item.text).or_insert(next);
            match seen.insert((item.text, item.method), item.target) {
                None => rules.push(*item),
                Some(target) if target == item.target => {}
                Some(_) => return Err(self.duplicate(item)),
            }
        }
        // A stable sort; NONE is the highest method.
        rules.sort_by_key(|item| (order[&item.text], item.method));
        Ok(rules)
    }

    /// Sorts and appends the literal rules of one host, without repetitions, each with the rule to try after it.
    fn push_literals(&self, items: &mut Vec<Item>, layout: &mut Layout) -> Result<PathSet, RouteError> {
        // The last of equal texts is tried first: so the one for any method, NONE, must come first.
        let key = |item: &Item| (item.kind, self.texts.get(item.text), item.method.wrapping_add(1));
        items.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        for pair in items.windows(2) {
            if key(&pair[0]) == key(&pair[1]) && pair[0].target != pair[1].target {
                return Err(self.duplicate(&pair[1]));
            }
        }
        items.dedup_by(|a, b| key(a) == key(b));
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
        let (set, rules) = self.compiler.lay_out(items, &mut self.layout)?;
        self.next += count;
        self.rules += rules;
        // Each group has a rule, and they were numbered in order: this host is looked at no more.
        let host = std::mem::replace(&mut self.compiler.hosts[group], HostPattern::Any);
        self.hosts.add(host, set);
        Ok(true)
    }

    /// The table, when there is no host left.
    pub(super) fn finish(mut self) -> Result<RouteTable, RouteError> {
        let Compiler { mut patterns, texts, methods, .. } = self.compiler;
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
        };
        let decoded = paths.has_decoded();
        Ok(RouteTable { hosts, paths, rules: self.rules, decoded })
    }
}

/// What grows from host to host.
struct Layout {
    literals: Vec<LiteralRule>,
    regexes: Vec<RegexRule>,
    decoded: Vec<PathSet>,
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
