//! Paths and methods within one host: which rule wins, and where all the rules of a table are kept.
//!
//! A table may have a million rules, so they stand in a few flat arrays: one blob with every distinct text
//! once, one array of literal rules in which each host owns a range, one array of regular expressions likewise.
//! A lookup touches the host's range and the texts that it points to, and allocates nothing.

use std::ops::Range;

use kakehi_ctl::state::PathRule;
use regex::bytes::Regex;

use super::{RouteError, choice::Choice, pattern, predicate::Predicates};
use crate::http::{Asked, percent_decode};

/// No method, no parent, no second form.
pub(super) const NONE: u32 = u32::MAX;

/// The highest bit of what tells where a rule leads: it depends on more than host, path and method.
pub(super) const CHOICE: u32 = 1 << 31;

/// Up to this many rules are scanned instead of bisected: in a table that does not fit in the cache, the memory
/// that a scan needs is fetched at once, that of a bisection step by step.
const SCANNED_RULES: usize = 16;

/// A rule whose path is compared literally.
#[derive(Debug, Clone, Copy)]
pub(super) struct LiteralRule {
    /// Its text in [`PathStore::texts`].
    pub(super) offset: u32,
    /// Length of the text (bytes).
    pub(super) length: u32,
    /// Index into [`PathStore::methods`], or [`NONE`] for any.
    pub(super) method: u32,
    /// The next rule to try if this one does not match, from the start of its range, or [`NONE`].
    ///
    /// It has the same text and sorts lower, or (among prefixes) has the longest text that this one begins with.
    pub(super) parent: u32,
    /// Where it leads: a target, or [`CHOICE`] and an index into [`PathStore::choices`].
    pub(super) target: u32,
}

/// A rule whose path is a regular expression.
#[derive(Debug, Clone, Copy)]
pub(super) struct RegexRule {
    /// Index into [`PathStore::regexes`].
    pub(super) regex: u32,
    /// Index into [`PathStore::methods`], or [`NONE`] for any.
    pub(super) method: u32,
    /// As [`LiteralRule::target`].
    pub(super) target: u32,
}

/// The rules of one host.
#[derive(Debug, Clone, Copy)]
pub(super) struct PathSet {
    /// Its first literal rule: EQUALS rules first, then prefixes, both sorted by text.
    pub(super) first: u32,
    /// EQUALS rules.
    pub(super) equals: u32,
    /// PREFIX rules.
    pub(super) prefixes: u32,
    /// Its first regular expression; they stand in the order in which they are tried.
    pub(super) first_regex: u32,
    /// Regular expressions.
    pub(super) regexes: u32,
    /// Index into [`PathStore::decoded`] of the same rules with their texts percent-decoded, or [`NONE`] if
    /// that changes none of them.
    pub(super) decoded: u32,
    /// The target that every path and method leads to, or [`NONE`] if there are several, or paths that have none.
    pub(super) uniform: u32,
    /// How many rules it was made of, each once.
    pub(super) rules: u32,
}

/// What is looked for, beyond host and path.
#[derive(Clone, Copy)]
pub(super) struct Sought<'r> {
    pub(super) method: &'r str,
    /// The request, for rules that ask for more.
    pub(super) asked: &'r dyn Asked,
}

/// In which form the path of a lookup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As the client sent it.
    Sent,
    /// As the normaliser left it.
    Normalised,
}

/// Every path and method of a table.
#[derive(Debug)]
pub(super) struct PathStore {
    pub(super) texts: Box<[u8]>,
    pub(super) literals: Box<[LiteralRule]>,
    pub(super) regex_rules: Box<[RegexRule]>,
    pub(super) regexes: Box<[Regex]>,
    pub(super) methods: Box<[Box<str>]>,
    pub(super) decoded: Box<[PathSet]>,
    pub(super) choices: Box<[Choice]>,
    pub(super) predicates: Box<[Predicates]>,
}

impl PathStore {
    /// Whether some rule has a text with `%`.
    #[inline]
    pub(super) fn has_decoded(&self) -> bool {
        !self.decoded.is_empty()
    }

    /// The target of the rule of `set` that wins: EQUALS, then REGEX, then the longest PREFIX.
    #[inline]
    pub(super) fn find(&self, set: &PathSet, path: &[u8], form: Form, sought: &Sought<'_>) -> Option<u32> {
        let set = match form {
            Form::Normalised if set.decoded != NONE => &self.decoded[set.decoded as usize],
            _ => set,
        };
        let equals = &self.literals[range(set.first, set.equals)];
        if let Some(target) = self.find_literal(equals, path, sought, |text| text == path) {
            return Some(target);
        }
        for rule in &self.regex_rules[range(set.first_regex, set.regexes)] {
            if self.takes(rule.method, sought.method)
                && self.regexes[rule.regex as usize].is_match(path)
                && let Some(target) = self.choose(rule.target, sought.asked)
            {
                return Some(target);
            }
        }
        let prefixes = &self.literals[range(set.first + set.equals, set.prefixes)];
        self.find_literal(prefixes, path, sought, |text| path.starts_with(text))
    }

    /// Starts at the last rule whose text does not sort behind `path` and climbs.
    ///
    /// Every text that `path` begins with is that rule's text or a beginning of it: it sorts between the two.
    #[inline]
    fn find_literal(
        &self,
        rules: &[LiteralRule],
        path: &[u8],
        sought: &Sought<'_>,
        matches: impl Fn(&[u8]) -> bool,
    ) -> Option<u32> {
        let below = |rule: &LiteralRule| self.text(rule) <= path;
        let last = if rules.len() <= SCANNED_RULES {
            rules.iter().rposition(below)
        } else {
            rules.partition_point(below).checked_sub(1)
        };
        let mut rule = &rules[last?];
        loop {
            if matches(self.text(rule))
                && self.takes(rule.method, sought.method)
                && let Some(target) = self.choose(rule.target, sought.asked)
            {
                return Some(target);
            }
            rule = rules.get(rule.parent as usize)?;
        }
    }

    /// The target of rules whose host, path and method fit; `None` when all of them ask for more than the request has.
    #[inline]
    fn choose(&self, target: u32, asked: &dyn Asked) -> Option<u32> {
        if target & CHOICE == 0 {
            return Some(target);
        }
        self.choices[(target & !CHOICE) as usize].find(&self.predicates, asked)
    }

    #[inline]
    fn text(&self, rule: &LiteralRule) -> &[u8] {
        &self.texts[range(rule.offset, rule.length)]
    }

    #[inline]
    fn takes(&self, rule: u32, method: &str) -> bool {
        rule == NONE || *self.methods[rule as usize] == *method
    }
}

#[inline]
fn range(first: u32, count: u32) -> Range<usize> {
    first as usize..first as usize + count as usize
}

/// Checks the path of a rule: that it compiles, and that some request can have it.
///
/// # Errors
/// [`RouteError::BadRegex`], or [`RouteError::BadPath`] with the reason.
pub fn check_path(rule: &PathRule) -> Result<(), RouteError> {
    match rule {
        PathRule::Prefix(path) | PathRule::Equals(path) => check_literal(rule, path),
        PathRule::Regex(pattern) => pattern::compile(pattern, pattern::Subject::Path).map(drop),
    }
}

/// A literal path must be its own normal form once it is decoded, or each request for it would be ambiguous.
pub(super) fn check_literal(rule: &PathRule, path: &str) -> Result<(), RouteError> {
    let is_prefix = matches!(rule, PathRule::Prefix(_));
    if (is_prefix && path.is_empty()) || path == "*" {
        return Ok(());
    }
    let reason = if !path.starts_with('/') {
        Some("a path begins with `/`")
    } else if path.contains(['?', '#']) {
        Some("the query is not part of the path")
    } else if !path.bytes().all(|b| b.is_ascii_graphic()) {
        Some("bytes that are not printable ASCII come percent-encoded, as in `/caf%C3%A9`")
    } else if path.contains(['%', '\\', ';']) || path.contains("//") || path.contains("/.") {
        odd_literal(is_prefix, path)
    } else {
        None
    };
    match reason {
        Some(reason) => Err(RouteError::BadPath { path: path.to_owned(), reason }),
        None => Ok(()),
    }
}

fn odd_literal(is_prefix: bool, path: &str) -> Option<&'static str> {
    let decoded = percent_decode(path.as_bytes());
    let escapes = path.bytes().filter(|&b| b == b'%').count();
    if path.len() - decoded.len() != 2 * escapes {
        return Some("a `%` has two hexadecimal digits behind it; the character itself is `%25`");
    }
    let mut segments = decoded[1..].split(|&b| b == b'/');
    let last = segments.next_back().unwrap_or_default();
    // The last segment of a prefix goes on: `/.` is the beginning of `/.git`.
    let last_is_dots = !is_prefix && matches!(last, b"." | b"..");
    let odd = |segment: &[u8]| segment.iter().any(|b| matches!(b, 0 | b'\\' | b';'));
    if last_is_dots
        || odd(last)
        || segments.any(|segment| matches!(segment, b"" | b"." | b"..") || odd(segment))
    {
        return Some(
            "a request with `//`, `\\`, `;` or `.` and `..` segments goes where its plain spelling goes, or is refused",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_request_can_have_is_refused() {
        let prefix = |path: &str| check_path(&PathRule::Prefix(path.to_owned()));
        let equals = |path: &str| check_path(&PathRule::Equals(path.to_owned()));
        for path in [
            "/",
            "/a/b",
            "/a.b",
            "/.well-known/acme",
            "/caf%C3%A9",
            "/a%20b",
            "/a%2Fb",
            "/100%25",
            "/a..b",
            "*",
        ] {
            assert_eq!(prefix(path), Ok(()), "{path}");
            assert_eq!(equals(path), Ok(()), "{path}");
        }
        let long = format!("/{}", "a".repeat(100_000));
        assert_eq!(prefix(&long), Ok(()));
        for path in ["", "/.", "/a/..", "/a/."] {
            assert_eq!(prefix(path), Ok(()), "{path}");
            assert!(matches!(equals(path), Err(RouteError::BadPath { .. })), "{path}");
        }
        for path in [
            "api", "/a?b=c", "/a#b", "/a b", "/café", "/a\n", "//", "/a//b", "/a/../b", "/./a", "/%2e/a",
            "/a;v", "/a\\b", "/a%5Cb", "/a%3Bb", "/a%00", "/a%", "/a%4", "/a%zz", "/a%2F/b",
        ] {
            assert!(matches!(prefix(path), Err(RouteError::BadPath { .. })), "{path}");
            assert!(matches!(equals(path), Err(RouteError::BadPath { .. })), "{path}");
        }
    }

    #[test]
    fn a_regular_expression_is_checked_by_compiling_it() {
        let regex = |pattern: &str| check_path(&PathRule::Regex(pattern.to_owned()));
        assert_eq!(regex("/api/v[0-9]+/.*"), Ok(()));
        assert!(matches!(regex("/a)|(/b"), Err(RouteError::BadRegex { .. })));
    }
}
