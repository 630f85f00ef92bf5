//! Statuses of responses, and what else can go wrong with one, as a file lists them.

use serde::{Deserialize, Serialize};

use super::health::StatusRange;

/// Statuses, as ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Statuses(pub Vec<StatusRange>);

impl Statuses {
    /// Whether `status` is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(status))
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
                Ok(range) if other != "any" => self.statuses.0.push(range),
                _ => return false,
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
    fn conditions_are_words_and_statuses() {
        let mut conditions = Conditions::default();
        assert!(["reset", "Timeout", "connect", "502-503", "504"].iter().all(|word| conditions.add(word)));
        assert!(!conditions.add("refused") && !conditions.add("any") && !conditions.add("600"));
        assert!(conditions.statuses.contains(504) && !conditions.statuses.contains(500));
        assert_eq!(conditions.words().collect::<Vec<_>>(), ["reset", "timeout", "502-503", "504"]);
    }
}
