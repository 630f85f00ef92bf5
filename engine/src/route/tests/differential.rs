//! The compiled table against a matcher that tries every rule, over rules and requests from a seeded generator.

use std::{net::IpAddr, num::NonZeroU64};

use kakehi_ctl::state::{Predicate, PredicateMatch, Predicates, RulePosition};

use super::*;
use crate::http::{Asked, percent_decode};
use crate::route::normalise::normalise;
use crate::route::try_rules;
use regex::bytes::RegexBuilder;

/// SplitMix64: deterministic, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn join(&mut self, from: &[&str], between: &str, most: usize) -> String {
        let count = 1 + self.below(most);
        (0..count).map(|_| self.pick(from)).collect::<Vec<_>>().join(between)
    }
}

fn whole(pattern: &str, text: &[u8]) -> bool {
    let mut builder = RegexBuilder::new(&format!("^(?:{pattern})$"));
    let regex = builder.unicode(false).dot_matches_new_line(true).build().expect(pattern);
    regex.is_match(text)
}

/// How well a rule's host fits a name in lower case without final dot; lower is better.
fn host_rank(pattern: &str, name: &str) -> Option<(u8, usize)> {
    let valid = !name.split('.').any(str::is_empty);
    if pattern == "*" {
        return Some((3, 0));
    }
    if pattern.contains('/') {
        // The generator's expressions hold no dots.
        let (labels, names): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), name.split('.').collect());
        let fits = labels.len() == names.len()
            && labels.iter().zip(&names).all(|(label, name)| {
                let regex = label.strip_prefix('/').and_then(|label| label.strip_suffix('/'));
                *label == "*" || regex.map_or(label == name, |regex| whole(regex, name.as_bytes()))
            });
        let not_literal = labels.iter().filter(|label| label.starts_with(['/', '*'])).count();
        return (fits && valid).then_some((1, 100 - (labels.len() - not_literal)));
    }
    if let Some(parent) = pattern.strip_prefix("*.") {
        return (valid && name.split_once('.').is_some_and(|(_, rest)| rest == parent)).then_some((2, 0));
    }
    (pattern == name).then_some((0, 0))
}

/// Whether everything holds that a rule asks beyond host, path and method.
fn naive_holds(rule: &Rule, asked: &Sent) -> bool {
    let Some(predicates) = &rule.predicates else { return true };
    let holds = |of: &[(&str, &str)], predicate: &Predicate| {
        let value = of.iter().find(|(name, _)| *name == predicate.name).map(|(_, value)| *value);
        let wanted = predicate.value.as_deref().unwrap_or_default();
        match predicate.how {
            PredicateMatch::Present => value.is_some(),
            PredicateMatch::Exact => value == Some(wanted),
            PredicateMatch::Regex => value.is_some_and(|value| whole(wanted, value.as_bytes())),
        }
    };
    let kinds = [(&predicates.headers, &asked.fields), (&predicates.query, &asked.parameters)];
    let all = kinds.into_iter().all(|(wanted, there)| wanted.iter().all(|it| holds(there, it)));
    let cookies = predicates.cookies.iter().all(|it| holds(&asked.cookies, it));
    let from = |client| predicates.sources.iter().any(|network| network.contains(&client));
    all && cookies && (predicates.sources.is_empty() || asked.client.is_some_and(from))
}

/// Where a rule stands among those that are otherwise equal.
fn in_turn(rule: &Rule, place: usize) -> (u64, usize) {
    (rule.order.map_or(u64::MAX, NonZeroU64::get), place)
}

/// The best rule, by trying them all.
fn naive_find(
    rules: &[Rule],
    name: &str,
    path: &[u8],
    decoded: bool,
    method: &str,
    asked: &Sent,
) -> Option<u32> {
    let text = |text: &str| if decoded { percent_decode(text.as_bytes()) } else { text.as_bytes().to_vec() };
    let mut best = None;
    for (place, rule) in rules.iter().enumerate() {
        let Some(host) = host_rank(&rule.hostname, name) else { continue };
        let first = |is_same: &dyn Fn(&Rule) -> bool| {
            let of_host = |other: &Rule| {
                other.position == RulePosition::Tree && other.hostname == rule.hostname && is_same(other)
            };
            let places = rules.iter().enumerate().filter(|(_, other)| of_host(other));
            places.map(|(place, other)| in_turn(other, place)).min()
        };
        let place = in_turn(rule, place);
        let first_with_host = first(&|_| true);
        let first_with_path = first(&|other| other.path == rule.path);
        let path_rank = match &rule.path {
            PathRule::Equals(equal) if text(equal) == path => (0, (0, 0)),
            PathRule::Regex(pattern) if whole(pattern, path) => (1, first_with_path.unwrap_or_default()),
            PathRule::Prefix(prefix) if path.starts_with(&text(prefix)) => {
                (2, (0, usize::MAX - text(prefix).len()))
            }
            _ => continue,
        };
        if rule.method.as_deref().is_some_and(|wanted| wanted != method) {
            continue;
        }
        if !naive_holds(rule, asked) {
            continue;
        }
        let tree = (host, first_with_host, path_rank, rule.method.is_none());
        let asks = rule.predicates.as_ref().map_or(0, |it| it.len());
        let key = match rule.position {
            RulePosition::Pre => (0, None, 0, place),
            RulePosition::Tree => (1, Some(tree), usize::MAX - asks, place),
            RulePosition::Post => (2, None, 0, place),
        };
        if best.is_none_or(|(best, _)| key < best) {
            best = Some((key, rule.target));
        }
    }
    best.map(|(_, target)| target)
}

fn naive_lookup(rules: &[Rule], host: &str, path: &str, method: &str, asked: &Sent) -> Outcome {
    let name = host.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let sent = naive_find(rules, name, path.as_bytes(), false, method, asked);
    let mut buffer = vec![0; path.len()];
    match normalise(path.as_bytes(), &mut buffer) {
        Ok(normal) if naive_find(rules, name, normal, true, method, asked) == sent => {
            sent.map_or(Outcome::NoRoute, Outcome::Target)
        }
        // Where all paths lead to the same place, no spelling leads elsewhere.
        _ if !path.contains("%00") && naive_is_uniform(rules, name) => {
            sent.map_or(Outcome::NoRoute, Outcome::Target)
        }
        _ => Outcome::AmbiguousPath,
    }
}

fn naive_is_uniform(rules: &[Rule], name: &str) -> bool {
    let rank = |rule: &&Rule| {
        let same = rules.iter().enumerate().filter(|(_, other)| other.hostname == rule.hostname);
        let first = same.map(|(place, other)| in_turn(other, place)).min();
        host_rank(&rule.hostname, name).map(|rank| (rank, first))
    };
    let Some(best) = rules.iter().filter(|rule| rank(rule).is_some()).min_by_key(rank) else { return false };
    let mut of_host = rules.iter().filter(|rule| rule.hostname == best.hostname);
    let takes_all = |rule: &Rule| {
        rule.method.is_none()
            && rule.predicates.is_none()
            && matches!(&rule.path, PathRule::Prefix(prefix) if prefix.is_empty() || prefix == "/")
    };
    let in_tree = rules.iter().all(|rule| rule.position == RulePosition::Tree);
    in_tree && of_host.clone().any(takes_all) && of_host.all(|rule| rule.target == best.target)
}

/// What a request has beyond host, path and method.
struct Sent {
    fields: Vec<(&'static str, &'static str)>,
    parameters: Vec<(&'static str, &'static str)>,
    query: String,
    cookies: Vec<(&'static str, &'static str)>,
    client: Option<IpAddr>,
}

const NAMES: [&str; 2] = ["x", "y"];
const VALUES: [&str; 4] = ["", "1", "2", "12"];

impl Sent {
    fn random(random: &mut Random) -> Sent {
        let mut pairs = || -> Vec<_> {
            (0..random.below(3)).map(|_| (random.pick(&NAMES), random.pick(&VALUES))).collect()
        };
        let (fields, parameters, cookies) = (pairs(), pairs(), pairs());
        let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let client = [None, Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([192, 0, 2, 1]))];
        Sent { fields, parameters, query: query.join("&"), cookies, client: client[random.below(3)] }
    }
}

impl Asked for Sent {
    fn client(&self) -> Option<IpAddr> {
        self.client
    }

    fn query(&self) -> &[u8] {
        self.query.as_bytes()
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(it, _)| *it == name).map(|(_, value)| value.as_bytes())
    }

    fn cookie(&self, name: &str) -> Option<&[u8]> {
        self.cookies.iter().find(|(it, _)| *it == name).map(|(_, value)| value.as_bytes())
    }
}

fn random_predicates(random: &mut Random) -> Option<Box<Predicates>> {
    let mut list = || -> Vec<Predicate> {
        let mut list = Vec::new();
        for name in NAMES {
            let (how, value) = match random.below(12) {
                0 => (PredicateMatch::Present, None),
                1 => (PredicateMatch::Regex, Some(random.pick(&["1|2", "1.*", ".+"]))),
                2 | 3 => (PredicateMatch::Exact, Some(random.pick(&VALUES))),
                _ => continue,
            };
            list.push(Predicate { name: name.to_owned(), how, value: value.map(str::to_owned) });
        }
        list
    };
    let (headers, query, cookies) = (list(), list(), list());
    let sources = if random.below(8) == 0 { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() };
    let predicates = Predicates { sources, headers, query, cookies, alpn: Vec::new() };
    (!predicates.is_empty()).then(|| Box::new(predicates))
}

fn random_rules(random: &mut Random, asks: bool) -> Vec<Rule> {
    let count = random.below(40);
    let rules = (0..count).map(|_| {
        let name = random.join(&["a", "b", "c"], ".", 3);
        let hostname = match random.below(8) {
            0 => "*".to_owned(),
            1 | 2 => format!("*.{name}"),
            3 => format!("/{}/.{name}", random.pick(&["a|b", "[a-c]", "[^x]*", "a"])),
            4 => format!("{name}./{}/", random.pick(&["a|b", "[bc]"])),
            5 => format!("/{}/.{}./a|c/", random.pick(&["b|c", "[a-z]+"]), random.pick(&["a", "b"])),
            _ => name,
        };
        let path = format!("/{}", random.join(&["a", "b", "ab", "%61", "%20", "/", "a/"], "", 4));
        let path = match random.below(5) {
            0 => PathRule::Equals(path),
            1 => PathRule::Regex(random.pick(&["/a.*", "/(a|b)*", "/.*b", "/a|/ab", ".*/.*/.*"]).to_owned()),
            2 => PathRule::Prefix(String::new()),
            _ => PathRule::Prefix(path),
        };
        let method = [None, None, Some("GET"), Some("POST")][random.below(4)].map(str::to_owned);
        let rule = Rule::new(hostname, path, method, random.below(12) as u32);
        if !asks {
            return rule;
        }
        let position = match random.below(20) {
            0 => RulePosition::Pre,
            1 => RulePosition::Post,
            _ => RulePosition::Tree,
        };
        let order = NonZeroU64::new(random.below(6) as u64);
        Rule { predicates: random_predicates(random), position, order, ..rule }
    });
    let rules: Vec<Rule> = rules.filter(|rule| crate::route::check_path(&rule.path).is_ok()).collect();
    // Keep what does not contradict the rules before it.
    let mut kept: Vec<Rule> = Vec::new();
    for rule in rules {
        let spelled = |path: &PathRule| match path {
            PathRule::Equals(text) => (0, percent_decode(text.as_bytes())),
            PathRule::Prefix(text) => (1, percent_decode(text.as_bytes())),
            PathRule::Regex(text) => (2, text.as_bytes().to_vec()),
        };
        let contradicts = kept.iter().any(|other| {
            other.hostname == rule.hostname
                && spelled(&other.path) == spelled(&rule.path)
                && other.method == rule.method
                && other.predicates == rule.predicates
                && other.target != rule.target
        });
        if !contradicts {
            kept.push(rule);
        }
    }
    kept
}

#[test]
fn the_compiled_table_answers_as_a_matcher_that_tries_every_rule() {
    let mut random = Random(0x6b61_6b65_6869);
    let mut seen = [0usize; 3];
    for round in 0..400 {
        let rules = random_rules(&mut random, round % 2 == 1);
        let table = RouteTable::compile(rules.iter().cloned()).expect("rules that were checked");
        for _ in 0..40 {
            let mut host = random.join(&["a", "b", "c", "A", "ab", ""], ".", 4);
            if random.below(4) == 0 {
                host.push('.');
            }
            let pieces =
                ["a", "b", "ab", "/", "/", "%61", "%20", "//", "/.", "/../", "a/", ";a", "\\", "%2F"];
            let plain = random.below(3);
            let path = format!("/{}", random.join(if plain > 0 { &pieces[..5] } else { &pieces }, "", 5));
            let method = random.pick(&["GET", "POST", "PUT"]);
            let asked = Sent::random(&mut random);
            let found = table.lookup(&host, &path, method, &asked);
            assert_eq!(
                found,
                naive_lookup(&rules, &host, &path, method, &asked),
                "{method} {host} {path} among {rules:?}"
            );
            // Who explains goes by the path as it was sent.
            let trials = try_rules(&rules, &host, &path, method, &asked).expect("rules that were checked");
            let first =
                trials.iter().find(|trial| trial.failed.is_none()).map(|trial| rules[trial.place].target);
            if found != Outcome::AmbiguousPath {
                let expected = first.map_or(Outcome::NoRoute, Outcome::Target);
                assert_eq!(found, expected, "{method} {host} {path} among {rules:?}");
            }
            seen[match found {
                Outcome::Target(_) => 0,
                Outcome::NoRoute => 1,
                Outcome::AmbiguousPath => 2,
            }] += 1;
        }
    }
    assert!(seen.iter().all(|&count| count > 200), "every outcome is tried: {seen:?}");
}

#[test]
fn a_host_with_hundreds_of_nested_prefixes_answers_as_a_matcher_that_tries_every_rule() {
    let mut random = Random(0x6669_7265);
    for size in [1, 2, 15, 16, 17, 18, 60, 300] {
        let mut rules: Vec<Rule> = Vec::new();
        while rules.len() < size {
            let path = format!("/{}", random.join(&["a", "b", "c"], "", 10));
            let path = if random.below(4) == 0 { PathRule::Equals(path) } else { PathRule::Prefix(path) };
            let method = [None, Some("GET"), Some("POST")][random.below(3)].map(str::to_owned);
            if !rules.iter().any(|rule| rule.path == path && rule.method == method) {
                rules.push(Rule::new("h".to_owned(), path, method, rules.len() as u32));
            }
        }
        let table = RouteTable::compile(rules.iter().cloned()).expect("rules that differ");
        assert_eq!(table.len(), size);
        for _ in 0..300 {
            let path = format!("/{}", random.join(&["a", "b", "c"], "", 12));
            let method = random.pick(&["GET", "POST", "PUT"]);
            let asked = Sent::random(&mut random);
            let expected = naive_find(&rules, "h", path.as_bytes(), false, method, &asked);
            let expected = expected.map_or(Outcome::NoRoute, Outcome::Target);
            assert_eq!(table.lookup("h", &path, method, &()), expected, "{method} {path} among {size} rules");
        }
    }
}

#[test]
fn of_many_rules_for_one_path_that_takes_a_request_which_would_be_tried_first() {
    let mut random = Random(0x6d61_6e79);
    for size in [1, 15, 16, 17, 60] {
        let mut rules: Vec<Rule> = Vec::new();
        while rules.len() < size {
            let rule = Rule::new("h".to_owned(), PathRule::Prefix("/".to_owned()), None, rules.len() as u32);
            let order = NonZeroU64::new(random.below(6) as u64);
            let rule = Rule { predicates: random_predicates(&mut random), order, ..rule };
            if !rules.iter().any(|other| other.predicates == rule.predicates) {
                rules.push(rule);
            }
        }
        let table = RouteTable::compile(rules.iter().cloned()).expect("rules that differ");
        assert_eq!(table.len(), size);
        for _ in 0..400 {
            let asked = Sent::random(&mut random);
            let expected = naive_find(&rules, "h", b"/", false, "GET", &asked);
            let expected = expected.map_or(Outcome::NoRoute, Outcome::Target);
            assert_eq!(table.lookup("h", "/", "GET", &asked), expected, "among {size} rules");
        }
    }
}
