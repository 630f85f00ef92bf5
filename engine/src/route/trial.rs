//! Rules one after the other, for whoever wants to know why one does not take a request.
//!
//! Nothing is decided here: each rule is compiled by itself, as the table does it, and so is each of its conditions. What is added is
//! the order, which `tests/differential.rs` holds against the table.

use kakehi_ctl::state::{PathRule, Predicates, RulePosition};
use rustc_hash::FxHashMap;

use super::{
    RouteError, RouteTable, Rule,
    host::{HostName, HostPattern, LabelPattern},
    path::{Form, Sought},
};
use crate::http::Asked;

/// What a rule asks for that a request has not, by the key of the configuration that says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// Its host is another one.
    Host,
    /// Its path.
    Path,
    /// Its method.
    Method,
    /// Something that it has, or has not; with its name.
    Predicate(&'static str, String),
    /// Its client is in none of the networks.
    Sources,
}

/// How a rule fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Its place among the rules that were given.
    pub place: usize,
    /// The first condition that failed; `None`: it takes the request.
    pub failed: Option<Failed>,
}

/// Where a rule stands among those that are otherwise equal: by its `order`, and its place among the rules that were given.
type Place = (u64, usize);

/// Where a rule stands among others. The order of its fields is that of the comparison.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    position: u8,
    /// Of the position `TREE` only: how well its host fits; host and path by their first rule; how well the path fits.
    host: (u8, usize, Place),
    path: (u8, Place),
    any_method: bool,
    /// The more it asks, the smaller.
    asks: usize,
    place: Place,
}

/// Tries all rules, in the order in which a table looks at them. `host_name`, `path` and `method` are those of [`RouteTable::lookup`]; the
/// path is looked for as it was sent.
///
/// # Errors
/// See [`RouteError`].
pub fn try_rules(
    rules: &[Rule],
    host_name: &str,
    path: &str,
    method: &str,
    asked: &dyn Asked,
) -> Result<Vec<Trial>, RouteError> {
    let mut room = None;
    let Some(host) = HostName::new(host_name, &mut room) else { return Ok(Vec::new()) };
    let takes = |rule: Rule| -> Result<bool, RouteError> {
        let table = RouteTable::compile([Rule { position: RulePosition::Tree, target: 0, ..rule }])?;
        let sought = Sought { method, asked };
        Ok(table.find_in_tree(&host, path.as_bytes(), Form::Sent, &sought).is_some())
    };
    let first = First::of(rules)?;
    let mut trials = Vec::with_capacity(rules.len());
    for (place, rule) in rules.iter().enumerate() {
        let failed = match is_other_name(&rule.hostname, &host) {
            true => Some(Failed::Host),
            false => failed(rule, &takes)?,
        };
        trials.push((first.rank(rule, (rule.rank(), place))?, Trial { place, failed }));
    }
    trials.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(trials.into_iter().map(|(_, trial)| trial).collect())
}

/// Whether a hostname without regular expressions is not that of a request: there may be very many.
fn is_other_name(hostname: &str, host: &HostName<'_>) -> bool {
    let name = hostname.strip_suffix('.').unwrap_or(hostname);
    if name.contains('/') || name.starts_with('[') || name == "*" {
        return false;
    }
    match name.strip_prefix("*.") {
        Some(parent) => !host.parent().is_some_and(|it| it.eq_ignore_ascii_case(parent.as_bytes())),
        None => !host.as_bytes().eq_ignore_ascii_case(name.as_bytes()),
    }
}

/// The first condition of a rule that does not hold.
fn failed(
    rule: &Rule,
    takes: &impl Fn(Rule) -> Result<bool, RouteError>,
) -> Result<Option<Failed>, RouteError> {
    let any = |hostname: &str, path: PathRule, method: Option<String>| {
        Rule::new(hostname.to_owned(), path, method, 0)
    };
    let everywhere = || PathRule::Prefix(String::new());
    if !takes(any(&rule.hostname, everywhere(), None))? {
        return Ok(Some(Failed::Host));
    }
    if !takes(any("*", rule.path.clone(), None))? {
        return Ok(Some(Failed::Path));
    }
    if !takes(any("*", everywhere(), rule.method.clone()))? {
        return Ok(Some(Failed::Method));
    }
    let Some(predicates) = &rule.predicates else { return Ok(None) };
    let holds =
        |asks: Predicates| takes(Rule { predicates: Some(Box::new(asks)), ..any("*", everywhere(), None) });
    let sources = Predicates { sources: predicates.sources.clone(), ..Predicates::default() };
    if !sources.is_empty() && !holds(sources)? {
        return Ok(Some(Failed::Sources));
    }
    for (key, kind) in predicates.kinds() {
        for predicate in kind {
            let mut one = Predicates::default();
            one.add(key, predicate.clone());
            if !holds(one)? {
                return Ok(Some(Failed::Predicate(key, predicate.name.clone())));
            }
        }
    }
    Ok(None)
}

/// Places of the first rule of each host, and of each path of a host.
#[derive(Default)]
struct First {
    hosts: FxHashMap<String, Place>,
    paths: FxHashMap<(String, PathRule), Place>,
}

impl First {
    /// Those of rules of the position `TREE`.
    fn of(rules: &[Rule]) -> Result<First, RouteError> {
        let mut all = First::default();
        for (place, rule) in rules.iter().enumerate().filter(|(_, it)| it.position == RulePosition::Tree) {
            let (name, place) = (HostPattern::parse(&rule.hostname)?.to_text(), (rule.rank(), place));
            if let PathRule::Regex(_) = &rule.path {
                let first = all.paths.entry((name.clone(), rule.path.clone())).or_insert(place);
                *first = place.min(*first);
            }
            let first = all.hosts.entry(name).or_insert(place);
            *first = place.min(*first);
        }
        Ok(all)
    }

    fn rank(&self, rule: &Rule, place: Place) -> Result<Rank, RouteError> {
        let nowhere =
            Rank { position: 0, host: (0, 0, (0, 0)), path: (0, (0, 0)), any_method: false, asks: 0, place };
        match rule.position {
            RulePosition::Pre => return Ok(nowhere),
            RulePosition::Post => return Ok(Rank { position: 2, ..nowhere }),
            RulePosition::Tree => {}
        }
        let pattern = HostPattern::parse(&rule.hostname)?;
        let (kind, literal) = match &pattern {
            HostPattern::Exact(_) => (0, 0),
            HostPattern::Labels(labels) => {
                (1, labels.iter().filter(|label| matches!(label, LabelPattern::Literal(_))).count())
            }
            HostPattern::Wildcard(_) => (2, 0),
            HostPattern::Any => (3, 0),
        };
        let name = pattern.to_text();
        let first = self.hosts.get(&name).copied().unwrap_or(place);
        let path = match &rule.path {
            PathRule::Equals(_) => (0, (0, 0)),
            PathRule::Regex(_) => (1, self.paths.get(&(name, rule.path.clone())).copied().unwrap_or(place)),
            PathRule::Prefix(prefix) => (2, (0, usize::MAX - prefix.len())),
        };
        let asks = usize::MAX - rule.predicates.as_ref().map_or(0, |it| it.len());
        let host = (kind, usize::MAX - literal, first);
        Ok(Rank { position: 1, host, path, any_method: rule.method.is_none(), asks, place })
    }
}
