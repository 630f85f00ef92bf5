//! Routing: the hostname, path and method rules of one listener, compiled into one immutable table.
//!
//! It knows no socket and no clock, and allocates nothing to answer (but for a path over 1 KiB with
//! odd spelling). The order in which rules are tried, which does not depend on the order in which they were
//! given except among regular expressions:
//!
//! 1. Host: exact name; names with `/regex/` labels (more literal labels first, then in order of appearance);
//!    `*.parent`; `*`.
//! 2. Path, among the rules of that host: EQUALS; REGEX, in order of appearance; PREFIX, the longest first.
//! 3. Method: of rules with the same path, one with a method before one without.
//!
//! A host none of whose rules takes the path and the method is passed over, and the next one that matches is
//! tried.
//!
//! Paths are compared as the client sent them. One that servers might read differently is looked up a second
//! time as its normal form (see `normalise.rs`); if that leads elsewhere, the answer is
//! [`Outcome::AmbiguousPath`].

mod compile;
mod error;
mod host;
mod host_index;
mod normalise;
mod path;
mod pattern;
#[cfg(test)]
mod tests;

use kakehi_ctl::state::PathRule;

pub use error::RouteError;
pub use path::check_path;

use host::{HostName, HostPattern, LabelPattern};
use path::{Form, NONE};

/// One frontend's conditions, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Exact name, `*.name`, a name with `/regex/` labels, or `*` for any host, even none.
    pub hostname: String,
    /// Which paths.
    pub path: PathRule,
    /// Which method (case-sensitive, RFC 9110 section 9.1); `None` = any.
    pub method: Option<String>,
    /// What [`RouteTable::lookup`] answers: an index of the caller's. Rules that do the same should have the same
    /// target: rules are only in each other's way if their targets differ.
    pub target: u32,
}

/// The rules of one listener.
#[derive(Debug)]
pub struct RouteTable {
    hosts: host_index::HostIndex,
    paths: path::PathStore,
    rules: usize,
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

/// Paths with odd spelling up to this length are normalised on the stack (bytes).
const STACK_PATH: usize = 1_024;

impl RouteTable {
    /// Compiles rules into a table.
    ///
    /// # Errors
    /// The first rule that is not valid, or two that contradict each other: the same host, path and method with
    /// different targets.
    pub fn compile(rules: impl IntoIterator<Item = Rule>) -> Result<RouteTable, RouteError> {
        let mut compiler = compile::Compiler::default();
        for rule in rules {
            compiler.add(&rule)?;
        }
        compiler.finish()
    }

    /// Finds where a request goes.
    ///
    /// `host_name` is without port, in any case, maybe with a final dot; an IPv6 address is in brackets; empty if
    /// the request names no host. Longer than 255 bytes it has no route. `path` is as the client sent it, without
    /// the query. `method` is compared as it is.
    pub fn lookup(&self, host_name: &str, path: &str, method: &str) -> Outcome {
        let mut room = None;
        let Some(host) = HostName::new(host_name, &mut room) else { return Outcome::NoRoute };
        let path = path.as_bytes();
        let sent = self.find(&host, path, Form::Sent, method);
        let same = if normalise::is_suspicious(path) {
            !normalise::holds_nul(path)
                && (self.is_uniform(&host) || self.reads_the_same(&host, path, method, sent))
        } else {
            // The path is its own normal form. A rule with `%` may still match it in that form only.
            !self.paths.has_decoded() || self.find(&host, path, Form::Normalised, method) == sent
        };
        if !same {
            return Outcome::AmbiguousPath;
        }
        sent.map_or(Outcome::NoRoute, Outcome::Target)
    }

    /// Rules in the table; a rule that was given twice counts once.
    pub fn len(&self) -> usize {
        self.rules
    }

    /// Whether no request can match.
    pub fn is_empty(&self) -> bool {
        self.rules == 0
    }

    #[inline]
    fn find(&self, host: &HostName<'_>, path: &[u8], form: Form, method: &str) -> Option<u32> {
        self.hosts.find(host, &self.paths.regexes, |set| match set.uniform {
            NONE => self.paths.find(set, path, form, method),
            target => Some(target),
        })
    }

    /// Whether all paths of this host lead to the same place: then nobody needs to know how they are read.
    #[cold]
    fn is_uniform(&self, host: &HostName<'_>) -> bool {
        self.hosts
            .find(host, &self.paths.regexes, |set| Some(set.uniform))
            .is_some_and(|target| target != NONE)
    }

    /// Whether the normal form of `path` leads to the same place.
    #[cold]
    fn reads_the_same(&self, host: &HostName<'_>, path: &[u8], method: &str, sent: Option<u32>) -> bool {
        let mut stack = [0; STACK_PATH];
        let mut heap = Vec::new();
        let buffer = if path.len() <= STACK_PATH {
            &mut stack[..]
        } else {
            heap.resize(path.len(), 0);
            &mut heap[..]
        };
        match normalise::normalise(path, buffer) {
            Ok(normal) => self.find(host, normal, Form::Normalised, method) == sent,
            Err(normalise::NoReading) => false,
        }
    }
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
