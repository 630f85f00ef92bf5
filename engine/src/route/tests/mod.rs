//! What the operator's page on routing promises, one test per sentence, and the compiled table against a
//! matcher that is too simple to be wrong.

mod differential;
mod precedence;
mod spelling;

use super::{Outcome, RouteError, RouteTable, Rule};
use kakehi_ctl::state::PathRule;

/// `host path-rule [METHOD]`, where the path rule is `=/equal`, `~regex` or a prefix; the target is the
/// position in the list.
fn rule(text: &str, target: u32) -> Rule {
    let mut words = text.split(' ');
    let hostname = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default();
    let path = match path.split_at_checked(1) {
        Some(("=", path)) => PathRule::Equals(path.to_owned()),
        Some(("~", path)) => PathRule::Regex(path.to_owned()),
        _ => PathRule::Prefix(path.to_owned()),
    };
    Rule::new(hostname, path, words.next().map(str::to_owned), target)
}

fn try_table(rules: &[&str]) -> Result<RouteTable, RouteError> {
    RouteTable::compile(rules.iter().zip(0..).map(|(text, target)| rule(text, target)))
}

fn table(rules: &[&str]) -> RouteTable {
    try_table(rules).expect("valid rules")
}

/// Looks up `host path [METHOD]` and says which rule won: its text, `none` or `ambiguous`.
#[track_caller]
fn assert_routes(rules: &[&str], cases: &[(&str, &str)]) {
    let table = table(rules);
    for (request, expected) in cases {
        let words: Vec<&str> = request.split(' ').collect();
        let method = words.get(2).copied().unwrap_or("GET");
        let found = match table.lookup(words[0], words[1], method, &()) {
            Outcome::Target(target) => rules[target as usize],
            Outcome::NoRoute => "none",
            Outcome::AmbiguousPath => "ambiguous",
        };
        assert_eq!(found, *expected, "{request} among {rules:?}");
    }
}
