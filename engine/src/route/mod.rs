//! Routing: the hostname, path and method rules of one listener, compiled into one immutable table.

mod error;

use kakehi_ctl::state::PathRule;

pub use error::RouteError;

/// One frontend's conditions, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Exact name, `*.name`, a name with `/regex/` labels, or `*` for any host.
    pub hostname: String,
    /// Which paths.
    pub path: PathRule,
    /// Which method (case-sensitive, RFC 9110 section 9.1); `None` = any.
    pub method: Option<String>,
    /// What [`RouteTable::lookup`] answers: an index of the caller's.
    pub target: u32,
}

/// The rules of one listener.
#[derive(Debug)]
pub struct RouteTable {
    rules: usize,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// To the target of the rule that won.
    Target(u32),
    /// No rule matches.
    NoRoute,
    /// The path can be read in two ways that lead to different places.
    AmbiguousPath,
}

impl RouteTable {
    /// Compiles rules into a table.
    ///
    /// # Errors
    /// The first rule that is not valid, or that contradicts another.
    pub fn compile(rules: impl IntoIterator<Item = Rule>) -> Result<RouteTable, RouteError> {
        Ok(RouteTable { rules: rules.into_iter().count() })
    }

    /// Finds where a request goes.
    pub fn lookup(&self, host_name: &str, path: &str, method: &str) -> Outcome {
        let _ = (host_name, path, method);
        Outcome::NoRoute
    }

    /// Rules in the table; a rule that was given twice counts once.
    pub fn len(&self) -> usize {
        self.rules
    }

    /// Whether no request can match.
    pub fn is_empty(&self) -> bool {
        self.rules == 0
    }
}

/// Checks the hostname of a rule.
///
/// # Errors
/// What is wrong with it.
pub fn check_hostname(hostname: &str) -> Result<(), RouteError> {
    let _ = hostname;
    Ok(())
}

/// Checks the path of a rule.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(rule: &PathRule) -> Result<(), RouteError> {
    let _ = rule;
    Ok(())
}
