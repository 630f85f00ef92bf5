//! Routing: the hostname, path and method rules of one listener, compiled into one immutable table.
//!
//! It knows no socket and no clock, and allocates nothing to answer (but for a path over 1 KiB with
//! odd spelling). The order in which rules are tried, in which *in turn* means by [`Rule::order`], those without one last, and then as
//! they were given:
//!
//! 1. Host: exact name; names with `/regex/` labels (more literal labels first, then in turn, each by its first rule);
//!    `*.parent`; `*`.
//! 2. Path, among the rules of that host: EQUALS; REGEX, in turn, each by its first rule; PREFIX, the longest first.
//! 3. Method: of rules with the same path, one with a method before one without.
//! 4. Predicates, what rules ask of fields, query, cookies and the client's network: of rules with the same method, those that ask for
//!    more things first, then in turn.
//!
//! A rule one of whose predicates does not hold is passed over, and the next one that matches is tried; so is a host none of whose rules
//! takes the request. Rules of the position `PRE` stand before all this, those of `POST` behind it, each in turn.
//!
//! Paths are compared as the client sent them. One that servers might read differently is looked up a second
//! time as its normal form (see `normalise.rs`); if that leads elsewhere, the answer is
//! [`Outcome::AmbiguousPath`].

mod choice;
mod compile;
mod error;
mod host;
mod host_index;
mod normalise;
mod path;
mod pattern;
mod predicate;
mod rewrite;
#[cfg(test)]
mod tests;
mod trial;

use std::num::NonZeroU64;

use kakehi_ctl::state::{PathRule, Predicates, RulePosition};

pub use error::RouteError;
pub use path::check_path;
pub use rewrite::{NoHost, Rewriter, leads_up};
pub use trial::{Failed, Trial, try_rules};

use host::{HostName, HostPattern, LabelPattern};
use host_index::HostEntry;
use path::{Form, NONE, Sought};

use crate::http::Asked;

/// One frontend's conditions, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Exact name, `*.name`, a name with `/regex/` labels, or `*` for any host, even none.
    pub hostname: String,
    /// Which paths.
    pub path: PathRule,
    /// Which method (case-sensitive, RFC 9110 section 9.1); `None` = any.
    pub method: Option<String>,
    /// What else a request must have.
    pub predicates: Option<Box<Predicates>>,
    /// When it is looked at.
    pub position: RulePosition,
    /// Where it stands among those that are otherwise equal: lower first, `None` last.
    pub order: Option<NonZeroU64>,
    /// What [`RouteTable::lookup`] answers: an index of the caller's. Rules that do the same should have the same
    /// target: rules are only in each other's way if their targets differ.
    pub target: u32,
}

impl Rule {
    /// One that asks for nothing but host, path and method.
    pub fn new(hostname: String, path: PathRule, method: Option<String>, target: u32) -> Rule {
        let position = RulePosition::Tree;
        Rule { hostname, path, method, predicates: None, position, order: None, target }
    }

    /// The smaller, the earlier.
    fn rank(&self) -> u64 {
        self.order.map_or(u64::MAX, NonZeroU64::get)
    }
}

/// The rules of one listener.
#[derive(Debug)]
pub struct RouteTable {
    hosts: host_index::HostIndex,
    paths: path::PathStore,
    rules: usize,
    /// Some rule has a `%`.
    decoded: bool,
    /// The rules before and behind all others, if there are any.
    in_turn: Option<Box<InTurn>>,
}

/// Rules that are tried one after the other, each in a table of its own.
#[derive(Debug, Default)]
struct InTurn {
    before: Vec<RouteTable>,
    behind: Vec<RouteTable>,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// To the target of the rule that won.
    Target(u32),
    /// No rule matches.
    NoRoute,
    /// Servers may read the path in ways that lead to different places: to be refused as malformed.
    AmbiguousPath,
}

/// The rules of one host, compiled by themselves, to be put into a table; see [`RouteTable::patch`].
#[derive(Debug)]
pub struct HostPatch {
    host: HostPattern,
    /// `None`: it has none any more.
    rules: Option<Box<RouteTable>>,
}

impl HostPatch {
    /// Compiles the rules of the host that is written `hostname` in one of them. `None` for a host with regular expressions:
    /// its place among others counts, and the whole table has to be compiled.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub fn compile(hostname: &str, rules: Vec<Rule>) -> Result<Option<HostPatch>, RouteError> {
        let host = HostPattern::parse(hostname)?;
        if matches!(host, HostPattern::Labels(_)) {
            return Ok(None);
        }
        let rules = match rules.is_empty() {
            true => None,
            false => Some(Box::new(RouteTable::compile(rules)?)),
        };
        Ok(Some(HostPatch { host, rules }))
    }
}

/// Whether two hostnames of rules are the same host.
pub fn is_same_host(one: &str, other: &str) -> bool {
    // Nearly all are told apart, or found equal, without a look at their labels.
    if one == other {
        return true;
    }
    let plain = |name: &str| !name.starts_with('[') && !name.contains('/');
    if plain(one) && plain(other) {
        let end = |name: &'_ str| name.len() - usize::from(name.ends_with('.'));
        return one[..end(one)].eq_ignore_ascii_case(&other[..end(other)]);
    }
    match (HostPattern::parse(one), HostPattern::parse(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Paths with odd spelling up to this length are normalised on the stack (bytes).
const STACK_PATH: usize = 1_024;

impl InTurn {
    /// The target of the first rule that takes a request, with those of `tree` between.
    #[cold]
    fn find(
        &self,
        tree: &RouteTable,
        host: &HostName<'_>,
        path: &[u8],
        form: Form,
        sought: &Sought<'_>,
    ) -> Option<u32> {
        let mut tables = self.before.iter().chain([tree]).chain(&self.behind);
        tables.find_map(|table| table.find_in_tree(host, path, form, sought))
    }
}

/// Compiles a table in small steps, for those who have other things to do in between: all rules are added, then laid out.
#[derive(Default)]
pub struct RouteTableBuilder(compile::Compiler);

impl RouteTableBuilder {
    /// Takes one rule.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub fn add(&mut self, rule: &Rule) -> Result<(), RouteError> {
        self.0.add(rule)
    }

    /// Goes over to the layout, when all rules have been added.
    pub fn lay_out(self) -> RouteTableLayout {
        RouteTableLayout(self.0.lay_out_all())
    }
}

/// A table whose rules are known.
pub struct RouteTableLayout(compile::LayingOut);

impl RouteTableLayout {
    /// Lays out one host. False when there is none left.
    ///
    /// # Errors
    /// Two rules that contradict each other: the same host, path and method with different targets.
    pub fn step(&mut self) -> Result<bool, RouteError> {
        self.0.step()
    }

    /// The table, when there is no host left.
    ///
    /// # Errors
    /// When it is too large.
    pub fn finish(self) -> Result<RouteTable, RouteError> {
        self.0.finish()
    }
}

impl RouteTable {
    /// Compiles rules into a table.
    ///
    /// # Errors
    /// The first rule that is not valid, or two that contradict each other: the same host, path and method with
    /// different targets.
    pub fn compile(rules: impl IntoIterator<Item = Rule>) -> Result<RouteTable, RouteError> {
        let mut builder = RouteTableBuilder::default();
        for rule in rules {
            builder.add(&rule)?;
        }
        let mut layout = builder.lay_out();
        while layout.step()? {}
        layout.finish()
    }

    /// Finds where a request goes.
    ///
    /// `host_name` is without port, in any case, maybe with a final dot; an IPv6 address is in brackets; empty if
    /// the request names no host. Longer than 255 bytes it has no route. `path` is as the client sent it, without
    /// the query. `method` is compared as it is. `asked` is the request, for rules that ask for more.
    pub fn lookup(&self, host_name: &str, path: &str, method: &str, asked: &dyn Asked) -> Outcome {
        let mut room = None;
        let Some(host) = HostName::new(host_name, &mut room) else { return Outcome::NoRoute };
        let (path, sought) = (path.as_bytes(), &Sought { method, asked });
        let sent = self.find(&host, path, Form::Sent, sought);
        let same = if normalise::is_suspicious(path) {
            !normalise::holds_nul(path)
                && (self.is_uniform(&host) || self.reads_the_same(&host, path, sought, sent))
        } else {
            // The path is its own normal form. A rule with `%` may still match it in that form only.
            !self.decoded || self.find(&host, path, Form::Normalised, sought) == sent
        };
        if !same {
            return Outcome::AmbiguousPath;
        }
        sent.map_or(Outcome::NoRoute, Outcome::Target)
    }

    /// Puts the rules of some hosts in the place of those that they had. Everything else stays as it is, rules of the positions `PRE` and
    /// `POST` too.
    pub fn patch(&mut self, patch: Vec<HostPatch>) {
        for HostPatch { host, rules } in patch {
            let (entry, count) = match rules {
                Some(table) => {
                    let RouteTable { hosts, paths, rules, decoded, in_turn: _ } = *table;
                    self.decoded |= decoded;
                    let entry =
                        hosts.into_only().map(|entry| HostEntry { own: Some(Box::new(paths)), ..entry });
                    (entry, rules)
                }
                None => (None, 0),
            };
            let before = self.hosts.replace(&host, entry);
            self.rules = self.rules + count - before.map_or(0, |entry| entry.set.rules as usize);
        }
    }

    /// Rules in the table; a rule that was given twice counts once.
    pub fn len(&self) -> usize {
        let in_turn = self.in_turn.as_ref().map_or(0, |it| it.before.len() + it.behind.len());
        self.rules + in_turn
    }

    /// Whether no request can match.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn find(&self, host: &HostName<'_>, path: &[u8], form: Form, sought: &Sought<'_>) -> Option<u32> {
        match &self.in_turn {
            None => self.find_in_tree(host, path, form, sought),
            Some(in_turn) => in_turn.find(self, host, path, form, sought),
        }
    }

    #[inline]
    fn find_in_tree(&self, host: &HostName<'_>, path: &[u8], form: Form, sought: &Sought<'_>) -> Option<u32> {
        self.hosts.find(host, &self.paths.regexes, |entry| match entry.set.uniform {
            NONE => {
                let paths = entry.own.as_deref().unwrap_or(&self.paths);
                paths.find(&entry.set, path, form, sought)
            }
            target => Some(target),
        })
    }

    /// Whether all paths of this host lead to the same place: then nobody needs to know how they are read.
    #[cold]
    fn is_uniform(&self, host: &HostName<'_>) -> bool {
        let uniform = self.hosts.find(host, &self.paths.regexes, |entry| Some(entry.set.uniform));
        self.in_turn.is_none() && uniform.is_some_and(|target| target != NONE)
    }

    /// Whether the normal form of `path` leads to the same place.
    #[cold]
    fn reads_the_same(
        &self,
        host: &HostName<'_>,
        path: &[u8],
        sought: &Sought<'_>,
        sent: Option<u32>,
    ) -> bool {
        let mut stack = [0; STACK_PATH];
        let mut heap = Vec::new();
        let buffer = if path.len() <= STACK_PATH {
            &mut stack[..]
        } else {
            heap.resize(path.len(), 0);
            &mut heap[..]
        };
        match normalise::normalise(path, buffer) {
            Ok(normal) => self.find(host, normal, Form::Normalised, sought) == sent,
            Err(normalise::NoReading) => false,
        }
    }
}

/// A hostname as it is written whatever spelling a rule has of it; `None`: it is none.
pub fn normal_host(hostname: &str) -> Option<String> {
    HostPattern::parse(hostname).ok().map(|pattern| pattern.to_text())
}

/// Checks the hostname of a rule: that it is one, and that its regular expressions compile.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn check_hostname(hostname: &str) -> Result<(), RouteError> {
    if let HostPattern::Labels(labels) = HostPattern::parse(hostname)? {
        for label in labels {
            if let LabelPattern::Regex(pattern) = label {
                pattern::compile(&pattern, pattern::Subject::Label)?;
            }
        }
    }
    Ok(())
}
