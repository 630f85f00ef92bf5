//! What a frontend asks of a request beyond host, path and method.

use ipnet::IpNet;

use super::is_token;
use crate::keys::{keyed, words};

/// Predicates of one kind in a frontend at most.
pub const MAX_PREDICATES: usize = 64;
/// Protocols of `alpn` in a frontend at most.
pub const MAX_ALPN: usize = 32;
/// The longest value of one (bytes).
pub const MAX_PREDICATE_VALUE: usize = 4_096;

words! {
    /// When a rule is looked at.
    #[derive(Default, Hash)]
    pub enum RulePosition {
        /// Before all of [`RulePosition::Tree`], in their order.
        Pre = "PRE",
        /// By what it asks for: the more exactly, the earlier.
        #[default]
        Tree = "TREE",
        /// After all of [`RulePosition::Tree`], in their order.
        Post = "POST",
    }
}

words! {
    /// How a value is compared.
    #[derive(Default, Hash)]
    pub enum PredicateMatch {
        /// It is exactly this.
        #[default]
        Exact = "exact",
        /// All of it matches this regular expression.
        Regex = "regex",
        /// It is there, whatever it is.
        Present = "present",
    }
}

keyed! {
    /// What a frontend asks of one field, one parameter of the query, or one cookie.
    #[derive(Eq, Hash)]
    pub struct Predicate;
    required {
        /// Its name; required. Names of fields have no case; `Host` and `Cookie` have keys of their own.
        "name" => name: String = String::new(), Text, Yes, Routes;
    }
    own {
        /// How its value is compared: `exact`, `regex` (all of it must match), or `present`, whatever it is. Of several of one name the first
        /// counts.
        "match" => how: PredicateMatch = PredicateMatch::Exact, Choice(PredicateMatch::WORDS), Yes, Routes;
        /// What it is compared with; required but for `present`.
        "value" => value: Option<String> = None, AnyText, Yes, Routes;
    }
}

keyed! {
    /// All that a frontend asks of a request, or of a connection that is passed on, beyond host, path and method. All must hold.
    #[derive(Eq, Hash)]
    pub struct Predicates;
    own {
        /// Networks of clients; the rule is for no others. The client is the one that `allow` is about.
        "sources" => sources: Vec<IpNet> = Vec::new(), Networks, Own, Routes;
        /// In a cluster of `tcp`: protocols (ALPN) of which a client of TLS offers at least one, 32 at most; the frontend is for no others. Without
        /// it: for all that no frontend of this host name with `alpn` takes.
        "alpn" => alpn: Vec<String> = Vec::new(), Protocols, Yes, Routes;
    }
    beside {
        /// Of fields; their names are in lower case.
        headers: Vec<Predicate> = Vec::new();
        /// Of parameters of the query.
        query: Vec<Predicate> = Vec::new();
        /// Of cookies.
        cookies: Vec<Predicate> = Vec::new();
    }
}

impl Predicate {
    /// Why nothing can be asked so, with the key that is wrong; `None`: it can.
    pub fn unfit(&self) -> Option<(&'static str, &'static str)> {
        match (self.how, &self.value) {
            (PredicateMatch::Present, Some(_)) => {
                return Some(("value", "`value` beside `match = \"present\"`, which takes any"));
            }
            (PredicateMatch::Exact | PredicateMatch::Regex, None) => {
                return Some((
                    "match",
                    "the key `value` is missing: what is compared; `match = \"present\"` takes any",
                ));
            }
            _ => {}
        }
        if self.name.is_empty() || self.name.len() > 256 {
            return Some(("name", "a name has 1 to 256 bytes"));
        }
        let value = self.value.as_deref().unwrap_or_default();
        (value.len() > MAX_PREDICATE_VALUE).then_some(("value", "`value` has 4096 bytes at most"))
    }

    /// Why no field can be asked for so, with the key that is wrong; `None`: it can.
    pub fn unfit_header(&self) -> Option<(&'static str, &'static str)> {
        if self.name.eq_ignore_ascii_case("host") {
            return Some(("name", "`Host` is what `hostname` is about"));
        }
        if self.name.eq_ignore_ascii_case("cookie") {
            return Some(("name", "`Cookie` is what `cookie_predicates` are about"));
        }
        if !is_token(&self.name) {
            return Some(("name", "`name` is no name of a field"));
        }
        let value = self.value.as_deref().filter(|_| self.how == PredicateMatch::Exact).unwrap_or_default();
        if value.trim() != value || value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Some((
                "value",
                "no field has a value with control characters, or with white space at an end",
            ));
        }
        None
    }
}

impl Predicates {
    /// Brings them into an order that tells nothing, each once: two that ask for the same are the same.
    pub(crate) fn tidy(&mut self) {
        for kind in [&mut self.headers, &mut self.query, &mut self.cookies] {
            let key = |it: &Predicate| (it.name.clone(), it.how.word(), it.value.clone());
            kind.sort_by_cached_key(key);
            kind.dedup();
        }
        self.sources.sort_unstable();
        self.sources.dedup();
        self.alpn.sort_unstable();
        self.alpn.dedup();
    }

    /// How many things it asks for: of rules for the same host, path and method, those that ask for more are looked at first.
    pub fn len(&self) -> usize {
        let lists = [self.sources.is_empty(), self.alpn.is_empty()];
        self.headers.len()
            + self.query.len()
            + self.cookies.len()
            + lists.into_iter().filter(|is_empty| !is_empty).count()
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each kind, with the key that it has.
    pub fn kinds(&self) -> [(&'static str, &[Predicate]); 3] {
        [
            ("header_predicates", &self.headers),
            ("query_predicates", &self.query),
            ("cookie_predicates", &self.cookies),
        ]
    }

    /// Asks for one thing more, of the kind with this key.
    pub fn add(&mut self, key: &str, predicate: Predicate) {
        let list = match key {
            "header_predicates" => &mut self.headers,
            "query_predicates" => &mut self.query,
            _ => &mut self.cookies,
        };
        list.push(predicate);
    }

    /// Two predicates that no request can fulfil together: two exact values of one name. The key of the kind, and its name.
    pub fn contradiction(&self) -> Option<(&'static str, &str)> {
        self.kinds().into_iter().find_map(|(key, kind)| {
            let exact = |it: &&Predicate| it.how == PredicateMatch::Exact;
            let differs = |one: &&Predicate| {
                kind.iter().filter(exact).any(|it| it.name == one.name && it.value != one.value)
            };
            kind.iter().filter(exact).find(differs).map(|it| (key, it.name.as_str()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicate(name: &str, how: PredicateMatch, value: Option<&str>) -> Predicate {
        Predicate { name: name.to_owned(), how, value: value.map(str::to_owned) }
    }

    #[test]
    fn what_cannot_be_asked_is_told_with_its_key() {
        use PredicateMatch::{Exact, Present, Regex};
        let key = |it: Predicate| it.unfit().or(it.unfit_header()).map(|(key, _)| key);
        assert_eq!(key(predicate("x-a", Exact, Some(""))), None);
        assert_eq!(key(predicate("x-a", Regex, Some(" a|b"))), None);
        assert_eq!(key(predicate("x-a", Present, None)), None);
        assert_eq!(key(predicate("x-a", Present, Some("a"))), Some("value"));
        assert_eq!(key(predicate("x-a", Exact, None)), Some("match"));
        assert_eq!(key(predicate("x-a", Exact, Some(" a"))), Some("value"));
        assert_eq!(key(predicate("x-a", Exact, Some("a\0"))), Some("value"));
        for name in ["", "HOST", "cookie", "a b", "a:"] {
            assert_eq!(key(predicate(name, Present, None)), Some("name"), "{name}");
        }
    }

    #[test]
    fn two_values_of_one_name_contradict_each_other() {
        use PredicateMatch::{Exact, Regex};
        let of = |query: &[(&str, PredicateMatch, &str)]| Predicates {
            query: query.iter().map(|(name, how, value)| predicate(name, *how, Some(value))).collect(),
            ..Predicates::default()
        };
        assert_eq!(of(&[("a", Exact, "1"), ("A", Exact, "2"), ("a", Regex, "2")]).contradiction(), None);
        assert_eq!(of(&[("a", Exact, "1"), ("a", Exact, "1")]).contradiction(), None);
        let contradicts = of(&[("a", Exact, "1"), ("a", Exact, "2")]);
        assert_eq!(contradicts.contradiction(), Some(("query_predicates", "a")));
    }
}
