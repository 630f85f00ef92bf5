//! Statuses of responses, and what else can go wrong with one, as a file lists them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Statuses, as ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Statuses(pub Vec<StatusRange>);

/// Statuses from one to another: `503`, `502-504`, `5xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

/// Why a text is no range of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a status is a number from 100 to 599, such as 503, \"502-504\" or \"5xx\"")]
pub struct NoStatus;

impl Statuses {
    /// Whether `status` is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| (range.first..=range.last).contains(&status))
    }
}

impl StatusRange {
    /// This one alone.
    pub fn one(status: u64) -> Option<StatusRange> {
        let status = u16::try_from(status).ok().filter(|status| (100..=599).contains(status))?;
        Some(StatusRange { first: status, last: status })
    }
}

impl FromStr for StatusRange {
    type Err = NoStatus;

    fn from_str(text: &str) -> Result<Self, NoStatus> {
        let number = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| StatusRange::one(text.parse().ok()?)).flatten().ok_or(NoStatus)
        };
        if let Some(class) = text.strip_suffix("xx") {
            let first = number(&format!("{class}00"))?.first;
            return Ok(StatusRange { first, last: first + 99 });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?.first, number(last)?.last);
        if first <= last { Ok(StatusRange { first, last }) } else { Err(NoStatus) }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) if first % 100 == 0 && last == first + 99 => write!(f, "{}xx", first / 100),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// When a request is sent again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// The backend ends the connection before the head of its response.
    pub reset: bool,
    /// It says nothing for `back_timeout`.
    pub timeout: bool,
    /// It answers with one of these.
    pub statuses: Statuses,
}

impl Conditions {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        *self == Conditions::default()
    }

    /// Adds what this word says. False if it is none.
    pub fn add(&mut self, word: &str) -> bool {
        match word.to_ascii_lowercase().as_str() {
            // Always so.
            "connect" => {}
            "reset" => self.reset = true,
            "timeout" => self.timeout = true,
            other => match other.parse() {
                Ok(range) => self.statuses.0.push(range),
                Err(NoStatus) => return false,
            },
        }
        true
    }

    /// As words of a file.
    pub fn words(&self) -> impl Iterator<Item = String> {
        let named = [(self.reset, "reset"), (self.timeout, "timeout")];
        let named = named.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.to_owned());
        named.chain(self.statuses.0.iter().map(StatusRange::to_string))
    }
}

/// Of words; those that say nothing say nothing.
impl<'a> FromIterator<&'a str> for Conditions {
    fn from_iter<T: IntoIterator<Item = &'a str>>(words: T) -> Conditions {
        words.into_iter().fold(Conditions::default(), |mut conditions, word| {
            conditions.add(word);
            conditions
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written() {
        for text in ["503", "502-504", "5xx", "100", "599"] {
            assert_eq!(text.parse::<StatusRange>().unwrap().to_string(), text);
        }
        assert_eq!("500-599".parse::<StatusRange>().unwrap().to_string(), "5xx");
        for text in
            ["", "99", "600", "6xx", "504-502", "5x", "abc", "+503", "0503", "502-", "-503", "5xx-6xx"]
        {
            assert!(text.parse::<StatusRange>().is_err(), "{text}");
        }
        let statuses = Statuses(vec!["5xx".parse().unwrap(), "404".parse().unwrap()]);
        assert!(statuses.contains(500) && statuses.contains(404) && !statuses.contains(403));
    }

    #[test]
    fn conditions_are_words_and_statuses() {
        let mut conditions = Conditions::default();
        assert!(["reset", "Timeout", "connect", "502-503", "504"].iter().all(|word| conditions.add(word)));
        assert!(!conditions.add("refused"));
        assert_eq!(conditions.words().collect::<Vec<_>>(), ["reset", "timeout", "502-503", "504"]);
    }
}
