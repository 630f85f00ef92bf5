//! Regular expressions of rules: always about the whole text, always in linear time, always bounded.

use std::borrow::Cow;

use regex::bytes::{Regex, RegexBuilder};
use rustc_hash::FxHashMap;

use super::RouteError;
use crate::limits;

/// What a regular expression is matched against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// One label of a hostname: case does not matter.
    Label,
    /// A whole path: case matters.
    Path,
    /// A whole value of a field, a parameter or a cookie: case matters.
    Value,
}

/// Compiles `pattern` so that it matches whole texts only.
///
/// It works on bytes (`.` is any one byte): a path, once decoded, need not be UTF-8.
pub(super) fn compile(pattern: &str, subject: Subject) -> Result<Regex, RouteError> {
    let build = |text: Cow<'_, str>| {
        RegexBuilder::new(&text)
            .unicode(false)
            .dot_matches_new_line(true)
            .case_insensitive(subject == Subject::Label)
            .size_limit(limits::MAX_REGEX_SIZE)
            .build()
            .map_err(|source| RouteError::BadRegex { pattern: pattern.to_owned(), source })
    };
    // On its own first: in the brackets of the next line, `a)|(b` would be a valid expression, and a different one.
    build(Cow::Borrowed(pattern))?;
    // The group keeps an alternation or a flag from reaching the anchors.
    build(Cow::Owned(format!(r"\A(?:{pattern})\z")))
}

/// The compiled expressions of a table, each once.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    compiled: Vec<Regex>,
    known: FxHashMap<(Subject, String), u32>,
}

impl Patterns {
    /// Compiles `pattern`, unless it is there already, and returns its number.
    pub(super) fn add(&mut self, pattern: &str, subject: Subject) -> Result<u32, RouteError> {
        let key = (subject, pattern.to_owned());
        if let Some(&number) = self.known.get(&key) {
            return Ok(number);
        }
        let number = u32::try_from(self.compiled.len()).map_err(|_| RouteError::TooLarge)?;
        self.compiled.push(compile(pattern, subject)?);
        self.known.insert(key, number);
        Ok(number)
    }

    /// The expression of a number.
    pub(super) fn regex(&self, number: u32) -> Regex {
        self.compiled[number as usize].clone()
    }

    /// The text of a number, for a message.
    pub(super) fn text(&self, number: u32) -> &str {
        let mut known = self.known.iter();
        known.find(|(_, known)| **known == number).map_or("", |((_, text), _)| text.as_str())
    }

    /// The expressions by number; their texts are forgotten.
    pub(super) fn finish(self) -> Box<[Regex]> {
        self.compiled.into_boxed_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern, Subject::Path).expect(pattern).is_match(text.as_bytes())
    }

    #[test]
    fn an_expression_matches_the_whole_text_whatever_is_in_it() {
        assert!(matches("/a|/b", "/a") && matches("/a|/b", "/b"));
        assert!(!matches("/a|/b", "/ab") && !matches("/a|/b", "x/b") && !matches("/a|/b", "/a/secret"));
        assert!(matches("/a|/ab", "/ab"), "the longer alternative is tried as well");
        assert!(matches("^/a$", "/a") && !matches("(?m)^/a$", "/x\n/a"));
        assert!(matches("/.*", "/a\nb\u{e9}"));
        assert!(!matches("/a", "/A") && matches("(?i)/a", "/A"));
    }

    #[test]
    fn an_expression_cannot_leave_its_group() {
        for pattern in ["a)|(b", "(", "a)", "(?x)a # b", "[", "\\"] {
            assert!(compile(pattern, Subject::Path).is_err(), "{pattern}");
        }
    }

    #[test]
    fn an_expression_that_needs_too_much_memory_is_refused() {
        assert!(matches!(compile("((a{100}){100}){100}", Subject::Path), Err(RouteError::BadRegex { .. })));
    }

    #[test]
    fn the_same_expression_is_compiled_once_per_subject() {
        let mut patterns = Patterns::default();
        let numbers: Vec<u32> =
            [("a", Subject::Path), ("b", Subject::Path), ("a", Subject::Path), ("a", Subject::Label)]
                .into_iter()
                .map(|(pattern, subject)| patterns.add(pattern, subject).expect(pattern))
                .collect();
        assert_eq!(numbers, [0, 1, 0, 2]);
        assert_eq!(patterns.text(1), "b");
    }
}
