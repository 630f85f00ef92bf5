//! What a rule asks of a request beyond host, path and method: fields, parameters of the query, cookies, the client's network.

use std::borrow::Cow;

use kakehi_ctl::state::{self, PredicateMatch};
use regex::bytes::Regex;

use super::{
    RouteError,
    pattern::{Patterns, Subject},
};
use crate::http::{Asked, Networks, parameter};

/// Of which part of a request a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Header,
    Query,
    Cookie,
}

impl Part {
    /// The value of this name in a request: the first one, if there is one.
    pub(super) fn value<'r>(self, name: &str, asked: &'r dyn Asked) -> Option<Cow<'r, [u8]>> {
        match self {
            Part::Header => asked.field(name).map(Cow::Borrowed),
            Part::Query => parameter(asked.query(), name),
            Part::Cookie => asked.cookie(name).map(Cow::Borrowed),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Part::Header => "header",
            Part::Query => "query parameter",
            Part::Cookie => "cookie",
        }
    }
}

/// One thing that is asked.
#[derive(Debug)]
struct Predicate {
    part: Part,
    name: Box<str>,
    how: How,
}

#[derive(Debug)]
enum How {
    Present,
    Exact(Box<[u8]>),
    Regex(Regex),
}

/// Values of a request that were looked for: rules for the same path mostly ask for the same ones.
pub(super) struct Values<'a> {
    asked: &'a dyn Asked,
    known: Vec<Known<'a>>,
}

/// A value, if there is one, of which part and name.
type Known<'a> = (Part, &'a str, Option<Cow<'a, [u8]>>);

impl<'a> Values<'a> {
    /// How many are remembered; more are looked for each time.
    const MOST: usize = 16;

    pub(super) fn of(asked: &'a dyn Asked) -> Values<'a> {
        Values { asked, known: Vec::new() }
    }

    /// As [`Part::value`].
    pub(super) fn get(&mut self, part: Part, name: &'a str) -> Option<Cow<'_, [u8]>> {
        let is_it = |(of, known, _): &(Part, &str, _)| *of == part && *known == name;
        let at = match self.known.iter().position(is_it) {
            Some(at) => at,
            None if self.known.len() < Self::MOST => {
                self.known.push((part, name, part.value(name, self.asked)));
                self.known.len() - 1
            }
            None => return part.value(name, self.asked),
        };
        self.known[at].2.as_deref().map(Cow::Borrowed)
    }
}

impl Predicate {
    fn holds<'a>(&'a self, values: &mut Values<'a>) -> bool {
        let Some(value) = values.get(self.part, &self.name) else { return false };
        match &self.how {
            How::Present => true,
            How::Exact(exact) => **exact == *value,
            How::Regex(regex) => regex.is_match(&value),
        }
    }

    /// Whether no value fulfils both.
    fn excludes(&self, other: &Predicate) -> bool {
        let (How::Exact(value), true) = (&self.how, self.part == other.part && self.name == other.name)
        else {
            return false;
        };
        match &other.how {
            How::Present => false,
            How::Exact(other) => value != other,
            How::Regex(regex) => !regex.is_match(value),
        }
    }
}

/// All that a rule asks.
#[derive(Debug)]
pub(super) struct Predicates {
    /// The cheap ones first.
    list: Box<[Predicate]>,
    /// The client has to be in one of these, if there are any.
    sources: Option<Networks>,
}

impl Predicates {
    /// # Errors
    /// A regular expression that is none, or predicates that no request fulfils together.
    pub(super) fn compile(
        source: &state::Predicates,
        patterns: &mut Patterns,
    ) -> Result<Predicates, RouteError> {
        let parts =
            [(Part::Header, &source.headers), (Part::Query, &source.query), (Part::Cookie, &source.cookies)];
        let mut list = Vec::with_capacity(source.len());
        for (part, predicates) in parts {
            for state::Predicate { name, how, value } in predicates {
                let value = value.as_deref().unwrap_or_default();
                let how = match how {
                    PredicateMatch::Present => How::Present,
                    PredicateMatch::Exact => How::Exact(value.as_bytes().into()),
                    PredicateMatch::Regex => {
                        let number = patterns.add(value, Subject::Value)?;
                        How::Regex(patterns.regex(number))
                    }
                };
                let name = match part {
                    Part::Header => name.to_ascii_lowercase().into(),
                    Part::Query | Part::Cookie => name.as_str().into(),
                };
                list.push(Predicate { part, name, how });
            }
        }
        for one in &list {
            if list.iter().any(|other| one.excludes(other)) {
                return Err(RouteError::NeverMatches(format!(
                    "what is asked of the {} `{}` contradicts itself",
                    one.part.word(),
                    one.name
                )));
            }
        }
        list.sort_by_key(|it| matches!(it.how, How::Regex(_)));
        let sources = (!source.sources.is_empty()).then(|| Networks::new(&source.sources));
        Ok(Predicates { list: list.into(), sources })
    }

    /// Whether a request fulfils all.
    pub(super) fn hold<'a>(&'a self, values: &mut Values<'a>) -> bool {
        let client = values.asked;
        let from = |networks: &Networks| client.client().is_some_and(|client| networks.contains(client));
        self.sources.as_ref().is_none_or(from) && self.list.iter().all(|it| it.holds(values))
    }

    /// A value that a request must have for these to hold: of which part, its name, and itself.
    pub(super) fn key(&self) -> Option<(Part, &str, &[u8])> {
        self.list.iter().find_map(|it| match &it.how {
            How::Exact(value) => Some((it.part, &*it.name, &**value)),
            How::Present | How::Regex(_) => None,
        })
    }
}
