//! Everything that is wrong with a file, as it is shown: each error with its line, and a mark under what it is about.
//!
//! ```text
//! kakehi.toml:12:1: unknown key `hostnme` in a frontend; did you mean `hostname`?
//!    |
//! 12 | hostnme = "example.org"
//!    | ^^^^^^^
//! ```
//!
//! Promises: the first line of each error says all that is needed, and begins with `FILE:LINE:COLUMN: `. What is shown of the
//! file is bounded, and its control characters are replaced, so that it cannot garble a terminal.

use std::{fmt, io, ops::Range, path::PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::error::ConfigError;

/// Columns of what is shown of a line.
const WIDTH: usize = 120;
/// What is looked at of a line before and after the place of an error (bytes).
const MOST_AROUND: usize = 400;
/// Longest mark (bytes).
const MOST_MARKED: usize = 80;

/// Why a file is refused: everything that is wrong with it, in its order. Nothing of the file is used.
#[derive(Debug)]
pub struct ConfigErrors {
    shown: Vec<Shown>,
    more: usize,
}

impl ConfigErrors {
    /// The first ones, and how many there are besides.
    pub(super) fn new(shown: Vec<Shown>, more: usize) -> ConfigErrors {
        ConfigErrors { shown, more }
    }

    /// The file at `path` cannot be read.
    pub(super) fn unreadable(path: PathBuf, error: io::Error) -> ConfigErrors {
        let error = ConfigError::Unreadable { path, error };
        ConfigErrors { shown: vec![Shown { error, snippet: String::new() }], more: 0 }
    }

    /// Each of them, in the order of the file; not those after the fiftieth.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.shown.iter().map(|it| &it.error)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shown.len() + self.more
    }

    /// One line for each, without the line of the file: for a log.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.iter().map(ToString::to_string).chain(self.rest())
    }

    /// All in one line.
    pub fn in_one_line(&self) -> String {
        self.lines().collect::<Vec<_>>().join("; ")
    }

    /// What is said of those that are not shown.
    fn rest(&self) -> Option<String> {
        match self.more {
            0 => None,
            1 => Some("and 1 more error".to_owned()),
            more => Some(format!("and {more} more errors")),
        }
    }
}

/// Several lines: each error is followed by the line that it is about.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Shown { error, snippet }) in self.shown.iter().enumerate() {
            let end = if place == 0 { "" } else { "\n" };
            write!(f, "{end}{error}")?;
            if !snippet.is_empty() {
                write!(f, "\n{snippet}")?;
            }
        }
        self.rest().map_or(Ok(()), |rest| write!(f, "\n{rest}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// An error, and the line that it is about.
#[derive(Debug)]
pub(super) struct Shown {
    error: ConfigError,
    snippet: String,
}

impl Shown {
    /// `text` is the line with this number, and what is wrong with it stands `at` its byte.
    pub(super) fn new(error: ConfigError, line: usize, text: &str, at: usize) -> Shown {
        // The whole of it: of a part, nobody knows what it is a part of.
        let text = &masked(text);
        let at = boundary(text, at);
        let (start, end) = (boundary(text, at.saturating_sub(MOST_AROUND)), boundary(text, at + MOST_AROUND));
        let (text, at) = (&text[start..end], at - start);
        // Where the line ends too early, the mark stands behind it.
        let source = if at == text.len() { format!("{text} ") } else { text.to_owned() };
        let mark = AnnotationKind::Primary.span(marked(&source, at));
        let snippet = Snippet::source(&source).line_start(line).annotation(mark);
        let report = [Group::with_level(Level::ERROR).element(snippet)];
        let snippet = Renderer::plain().term_width(WIDTH).render(&report);
        // The renderer replaces those of ASCII, and those that turn the direction of text.
        let printable =
            |it: char| if it != '\n' && it.is_control() { char::REPLACEMENT_CHARACTER } else { it };
        Shown { error, snippet: snippet.chars().map(printable).collect() }
    }
}

/// A text with stars in the place of what may be the digest of a password: many hexadecimal digits, or what begins with a `$`. It is as
/// long.
pub(super) fn masked(text: &str) -> String {
    const LONG: usize = 32;
    let mut bytes = text.as_bytes().to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let is_modular = rest.starts_with(b":$") || is_modular(rest);
        let length = if is_modular {
            rest.iter().position(|byte| b"\"' ".contains(byte)).unwrap_or(rest.len())
        } else {
            rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count()
        };
        if is_modular || length >= LONG {
            // A character of several bytes stays whole.
            bytes[at..at + length].iter_mut().filter(|byte| byte.is_ascii()).for_each(|byte| *byte = b'*');
        }
        at += length.max(1);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a part of a hash with `$` begins there: `$2b$`, `$v=19$`. Variables of kakehi have capital letters.
fn is_modular(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"$") else { return false };
    let part = |byte: &&u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"=,".contains(byte);
    let length = rest.iter().take_while(part).count();
    length > 0 && rest.get(length) == Some(&b'$')
}

/// The byte at which a character begins, at `at` or before.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// What is to be marked: the key, value or header that begins there.
fn marked(text: &str, at: usize) -> Range<usize> {
    let rest = &text[at..];
    let length = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => rest[1..].find(quote).map(|end| end + 2),
        Some('[') => rest.find(']').map(|end| end + rest[end..].bytes().take_while(|it| *it == b']').count()),
        _ => rest.find([' ', '\t', '=', ',', ']', '}', '#']),
    };
    let first = rest.chars().next().map_or(0, char::len_utf8);
    let length = length.unwrap_or(rest.trim_end().len()).min(MOST_MARKED);
    at..at + boundary(rest, length).max(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_under_the_whole_word() {
        for (text, at, expected) in [
            ("hostnme = 1", 0, "hostnme"),
            ("a = \"b c\" # d", 4, "\"b c\""),
            ("a = 'b'", 4, "'b'"),
            ("[[listeners]] # x", 0, "[[listeners]]"),
            ("a = [12, 3]", 5, "12"),
            ("a = \"open", 4, "\"open"),
            ("ü = 1", 0, "ü"),
            ("=", 0, "="),
            ("a  ", 2, " "),
        ] {
            assert_eq!(&text[marked(text, at)], expected, "{text}");
        }
    }

    #[test]
    fn no_digest_is_shown() {
        let digest = "0aF9".repeat(16);
        let stars = |count| "*".repeat(count);
        for (text, shown) in [
            (format!("a = [\"ann:{digest}\", 5]"), format!("a = [\"ann:{}\", 5]", stars(64))),
            (format!("ann:{}", &digest[1..]), format!("ann:{}", stars(63))),
            ("\"b:$2b$12$abc\" x".to_owned(), format!("\"b{}\" x", stars(11))),
            ("b:$\u{fc}$".to_owned(), "b**\u{fc}*".to_owned()),
            ("'b:$argon2id$v=19$m=8,t=1,p=1$c2FsdA$k+/k' x".to_owned(), format!("'b{}' x", stars(39))),
            ("b $2y$04$abc".to_owned(), format!("b {}", stars(10))),
            ("argon2id$v=19$m=8$c$d".to_owned(), format!("argon2id{}", stars(13))),
            ("$HOST[1]$PATH[1] $2 $A$B$".to_owned(), "$HOST[1]$PATH[1] $2 $A$B$".to_owned()),
            ("deadbeef \u{fc}".to_owned(), "deadbeef \u{fc}".to_owned()),
        ] {
            assert_eq!(masked(&text), shown, "{text}");
        }
    }

    #[test]
    fn no_part_of_a_long_digest_is_shown() {
        let line = format!("\"b:$argon2id$v=19$m=8,t=1,p=1${}\", x", "k+".repeat(4 * MOST_AROUND));
        for at in 0..line.len() {
            let error = ConfigError::Unreadable { path: "f".into(), error: io::Error::other("x") };
            let snippet = Shown::new(error, 7, &line, at).snippet;
            assert!(!snippet.contains("k+") && !snippet.contains("v=19"), "{at}: {snippet}");
        }
    }

    #[test]
    fn no_control_character_of_a_line_is_shown_as_it_is() {
        for character in ('\u{0}'..='\u{9f}').chain(['\u{202e}', '\u{2066}']).filter(|it| *it != '\n') {
            let error = ConfigError::Unreadable { path: "f".into(), error: io::Error::other("x") };
            let snippet = Shown::new(error, 7, &format!("a{character}b = 1"), 0).snippet;
            let is_shown = |it: char| it == character && !(' '..='~').contains(&it);
            assert!(!snippet.contains(is_shown), "{snippet:?}");
        }
    }

    #[test]
    fn lines_of_any_length_and_content_are_shown() {
        let long = format!("{} = \u{1b}[31m{}", "ü".repeat(5000), "x".repeat(5000));
        for (line, at) in
            [("", 0), ("a", 1), ("a", 9), (&long, 0), (&long, 5001), (&long, 10_003), (&long, 15_011)]
        {
            let error = ConfigError::Unreadable { path: "f".into(), error: io::Error::other("x") };
            let snippet = Shown::new(error, 7, line, at).snippet;
            assert!(snippet.contains('^') && snippet.contains("7 |"), "{snippet}");
            assert!(
                !snippet.contains('\u{1b}') && snippet.lines().all(|it| it.chars().count() < 150),
                "{snippet}"
            );
        }
    }
}
