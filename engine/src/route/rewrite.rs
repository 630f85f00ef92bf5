//! Hosts and paths made anew: texts with the parts that a rule's patterns stood for.
//!
//! Relies on a request that the rule took. Promises: a host is made of text of the rule and of labels of the client's host, and is a name
//! or that host; a path begins with one `/`, and what of it came from the client is as it was sent, not decoded.

use kakehi_ctl::state::PathRule;
use regex::bytes::Regex;

use super::{
    RouteError,
    host::{HostPattern, LabelPattern},
    pattern::{self, Subject},
};
use crate::http::{next_byte, percent_decode};

/// Longest text of a rule (bytes).
const MAX_TEXT: usize = 1_024;
/// Most parts of it that come from the client.
const MAX_PARTS: usize = 8;

/// No host can be made of that of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHost;

/// What a rule makes of hosts and paths.
#[derive(Debug)]
pub struct Rewriter {
    /// The hostname of the rule, in the one spelling for all that are the same.
    pub hostname: String,
    host: Option<Template>,
    path: Option<Template>,
    /// The labels of a host that its pattern leaves open, from the left.
    labels: Vec<usize>,
    groups: Groups,
}

/// What of a path its pattern leaves open.
#[derive(Debug)]
enum Groups {
    None,
    /// What follows this, which is decoded.
    Prefix(Vec<u8>),
    Regex(Regex),
}

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    Host(usize),
    Path(usize),
}

/// A text with parts of hosts and paths.
#[derive(Debug)]
struct Template(Vec<Part>);

impl Rewriter {
    /// Compiles what a rule with this hostname and path makes of hosts and paths: texts in which `$HOST[n]` and `$PATH[n]` stand.
    ///
    /// # Errors
    /// A pattern that is none, a part that it has not, or text that is none of a host or path.
    pub fn compile(
        hostname: &str,
        rule: &PathRule,
        host: Option<&str>,
        path: Option<&str>,
    ) -> Result<Rewriter, RouteError> {
        let pattern = HostPattern::parse(hostname)?;
        let hostname = pattern.to_text();
        let labels = match pattern {
            HostPattern::Any | HostPattern::Exact(_) => Vec::new(),
            HostPattern::Wildcard(_) => vec![0],
            HostPattern::Labels(labels) => {
                let open =
                    labels.iter().enumerate().filter(|(_, it)| !matches!(it, LabelPattern::Literal(_)));
                open.map(|(place, _)| place).collect()
            }
        };
        let groups = match rule {
            PathRule::Equals(_) => Groups::None,
            PathRule::Prefix(prefix) => Groups::Prefix(percent_decode(prefix.as_bytes())),
            PathRule::Regex(pattern) => Groups::Regex(pattern::compile(pattern, Subject::Path)?),
        };
        let rewriter = Rewriter { hostname, host: None, path: None, labels, groups };
        let host = host.map(|text| rewriter.host_template(text)).transpose()?;
        let path = path.map(|text| rewriter.path_template(text)).transpose()?;
        Ok(Rewriter { host, path, ..rewriter })
    }

    fn host_template(&self, text: &str) -> Result<Template, RouteError> {
        let wrong = |reason: &str| Err(bad(text, reason));
        let template = self.template(text)?;
        if template.0.iter().any(|part| matches!(part, Part::Path(_))) {
            return wrong("clients choose paths, and must not choose hosts by them");
        }
        // With a label for each part.
        if is_host(&template.sample(), template.0.len()) {
            return Ok(template);
        }
        wrong(
            "a host has labels of letters, digits, `-` and `_` between single dots; for a port there is `rewrite_port`",
        )
    }

    fn path_template(&self, text: &str) -> Result<Template, RouteError> {
        let wrong = |reason: &str| Err(bad(text, reason));
        let template = self.template(text)?;
        for part in &template.0 {
            let Part::Text(text) = part else { continue };
            if text.contains(['?', '#']) {
                return wrong("the query is not part of the path, and stays as it is");
            }
            if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return wrong("bytes that are not printable ASCII are percent-encoded, as in `/caf%C3%A9`");
            }
        }
        if leads_up(&template.sample()) {
            return wrong("a segment `.` or `..`, or `%00`, would be refused in each request");
        }
        let begins = match template.0.first() {
            Some(Part::Text(text)) => text.starts_with('/'),
            Some(Part::Path(0)) => true,
            _ => false,
        };
        if begins { Ok(template) } else { wrong("a path begins with `/`") }
    }

    fn template(&self, text: &str) -> Result<Template, RouteError> {
        if text.len() > MAX_TEXT {
            let beginning: String = text.chars().take(40).collect();
            return Err(bad(&beginning, "it has 1024 bytes at most"));
        }
        let path_groups = match &self.groups {
            Groups::None => 1,
            Groups::Prefix(_) => 2,
            Groups::Regex(regex) => regex.captures_len(),
        };
        let mut parts = Vec::new();
        let mut own = String::new();
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let (is_host, after) = match (rest.strip_prefix("$HOST["), rest.strip_prefix("$PATH[")) {
                (Some(after), _) => (true, after),
                (_, Some(after)) => (false, after),
                (None, None) if ["$HOST", "$PATH"].iter().any(|name| rest.starts_with(name)) => {
                    return Err(bad(text, "`$HOST` and `$PATH` are followed by `[n]`"));
                }
                (None, None) => {
                    own.push(next);
                    rest = &rest[next.len_utf8()..];
                    continue;
                }
            };
            let number =
                after.split_once(']').filter(|(digits, _)| digits.bytes().all(|it| it.is_ascii_digit()));
            let Some((Ok(number), after)) = number.map(|(digits, after)| (digits.parse::<usize>(), after))
            else {
                return Err(bad(text, "`$HOST[` and `$PATH[` are followed by a number and `]`"));
            };
            let (known, part) = match is_host {
                true => (self.labels.len() + 1, Part::Host(number)),
                false => (path_groups, Part::Path(number)),
            };
            if number >= known {
                let what = if is_host { "hostname" } else { "path" };
                let name = if is_host { "HOST" } else { "PATH" };
                let last = known - 1;
                return Err(bad(
                    text,
                    &format!("`${name}[{number}]` is no part of the {what}, the last is `${name}[{last}]`"),
                ));
            }
            if !own.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut own).into()));
            }
            parts.push(part);
            rest = after;
        }
        if !own.is_empty() {
            parts.push(Part::Text(own.into()));
        }
        if parts.iter().filter(|part| !matches!(part, Part::Text(_))).count() > MAX_PARTS {
            return Err(bad(text, "it has 8 parts of the host and path at most"));
        }
        Ok(Template(parts))
    }

    /// The host in the place of `host_name`, which is without port; `None`: that one.
    ///
    /// # Errors
    /// When what the rule makes of that host is none.
    pub fn host(&self, host_name: &str) -> Result<Option<String>, NoHost> {
        let Some(template) = &self.host else { return Ok(None) };
        let whole = host_name.strip_suffix('.').unwrap_or(host_name);
        let mut host = String::new();
        for part in &template.0 {
            match part {
                Part::Text(text) => host.push_str(text),
                Part::Host(number) => host.push_str(self.label(whole, *number)),
                Part::Path(_) => {}
            }
        }
        if is_host(&host, template.0.len()) { Ok(Some(host)) } else { Err(NoHost) }
    }

    /// The path in the place of `path`, as it was sent, without the query; `None`: that one, as `*` always is.
    pub fn path(&self, host_name: &str, path: &str) -> Option<String> {
        let template = self.path.as_ref().filter(|_| path.starts_with('/'))?;
        let names_groups = template.0.iter().any(|part| matches!(part, Part::Path(number) if *number > 0));
        let captures = match &self.groups {
            Groups::Regex(regex) if names_groups => regex.captures(path.as_bytes()),
            _ => None,
        };
        let group = |number: usize| match &self.groups {
            _ if number == 0 => path,
            Groups::None => "",
            Groups::Prefix(prefix) => path.get(prefix_length(path.as_bytes(), prefix)..).unwrap_or_default(),
            Groups::Regex(_) => {
                let found = captures.as_ref().and_then(|captures| captures.get(number));
                // Of a group that is not between characters of UTF-8 nothing can be said.
                found.and_then(|found| path.get(found.range())).unwrap_or_default()
            }
        };
        let mut made = String::with_capacity(path.len() + 32);
        for part in &template.0 {
            let text = match part {
                Part::Text(text) => text,
                Part::Host(number) => self.label(host_name, *number),
                Part::Path(number) => group(*number),
            };
            // Where two slashes meet, one is meant.
            made.push_str(if made.ends_with('/') { text.strip_prefix('/').unwrap_or(text) } else { text });
        }
        let slashes = made.bytes().take_while(|byte| *byte == b'/').count();
        made.replace_range(..slashes, "/");
        Some(made)
    }

    fn label<'h>(&self, host_name: &'h str, number: usize) -> &'h str {
        let Some(open) = number.checked_sub(1) else { return host_name };
        self.labels.get(open).and_then(|place| host_name.split('.').nth(*place)).unwrap_or_default()
    }
}

impl Template {
    /// Its own text, with a letter for each part.
    fn sample(&self) -> String {
        self.0.iter().map(|part| if let Part::Text(text) = part { text } else { "a" }).collect()
    }
}

/// Whether a text that was made of so many parts is a name of a host; an address stands alone.
fn is_host(text: &str, parts: usize) -> bool {
    match HostPattern::parse(text) {
        Ok(HostPattern::Exact(host)) => parts == 1 || !host.starts_with('['),
        _ => false,
    }
}

/// Whether a server could take a segment of `path` for one that leads up, or cut it off.
pub fn leads_up(path: &str) -> bool {
    let decoded = percent_decode(path.as_bytes());
    let segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    let is_dots = |segment: &[u8]| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    };
    decoded.contains(&0) || segments.into_iter().any(is_dots)
}

/// How much of `path` is `prefix`, which is decoded.
fn prefix_length(path: &[u8], prefix: &[u8]) -> usize {
    let (mut rest, mut expected) = (path, prefix);
    while let [first, others @ ..] = expected {
        match next_byte(rest) {
            Some((byte, _, after)) if byte == *first => (rest, expected) = (after, others),
            _ => break,
        }
    }
    path.len() - rest.len()
}

fn bad(text: &str, reason: &str) -> RouteError {
    RouteError::BadRewrite { text: text.escape_debug().to_string(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewriter(hostname: &str, rule: &PathRule, host: &str, path: &str) -> Result<Rewriter, RouteError> {
        let given = |text: &'static str| (!text.is_empty()).then_some(text);
        let leak = |text: &str| given(Box::leak(text.to_owned().into_boxed_str()));
        Rewriter::compile(hostname, rule, leak(host), leak(path))
    }

    fn prefix(path: &str) -> PathRule {
        PathRule::Prefix(path.to_owned())
    }

    fn regex(pattern: &str) -> PathRule {
        PathRule::Regex(pattern.to_owned())
    }

    #[test]
    fn what_follows_a_prefix_is_as_it_was_sent() {
        for (rule, template, path, expected) in [
            ("/old", "/new$PATH[1]", "/old/a/b", "/new/a/b"),
            ("/old", "/new$PATH[1]", "/old", "/new"),
            ("/old", "/$PATH[1]", "/old/a", "/a"),
            ("/old/", "/new/$PATH[1]", "/old/a%2fb", "/new/a%2fb"),
            ("/old", "/$PATH[1]", "/old//evil.example/", "/evil.example/"),
            ("", "/x$PATH[0]", "/a", "/x/a"),
            ("", "$PATH[0]", "//a", "/a"),
            ("/caf%C3%A9", "/tea$PATH[1]", "/caf%c3%a9/1", "/tea/1"),
            ("/a", "/$HOST[0]$PATH[1]", "/a/b", "/x.example.org/b"),
            ("/a", "/$", "/a/b", "/$"),
        ] {
            let made = rewriter("*", &prefix(rule), "", template).unwrap().path("x.example.org", path);
            assert_eq!(made.as_deref(), Some(expected), "{template} {path}");
        }
        assert_eq!(rewriter("*", &prefix(""), "", "/x").unwrap().path("a", "*"), None);
    }

    #[test]
    fn groups_and_labels_are_numbered_from_the_left() {
        let rewriting = rewriter(
            "/[a-z]+/.*.x.org".replace(".*", "./[0-9]+/").as_str(),
            &regex("/(u|user)/([0-9]+)(/.*)?"),
            "$HOST[2]-$HOST[1].internal",
            "/by-id/$PATH[2]$PATH[3]",
        )
        .unwrap();
        assert_eq!(rewriting.host("Shop.7.X.org."), Ok(Some("7-Shop.internal".to_owned())));
        assert_eq!(rewriting.path("a", "/user/5/%0d%0a").as_deref(), Some("/by-id/5/%0d%0a"));
        assert_eq!(rewriting.path("a", "/u/5").as_deref(), Some("/by-id/5"));
        let wild = rewriter("*.x.org", &PathRule::Equals("/".into()), "$HOST[1]", "").unwrap();
        assert_eq!((wild.host("a.x.org"), wild.path("a", "/")), (Ok(Some("a".to_owned())), None));
        let address = rewriter("*", &prefix(""), "[::1]", "").unwrap();
        assert_eq!(address.host("a"), Ok(Some("[::1]".to_owned())));
        let same = rewriter("*", &prefix(""), "$HOST[0]", "").unwrap();
        assert_eq!(same.host("[::1]"), Ok(Some("[::1]".to_owned())));
    }

    #[test]
    fn what_is_no_host_is_not_made() {
        let suffixed = rewriter("*", &prefix(""), "$HOST[0].suffix", "").unwrap();
        assert_eq!(suffixed.host("a.example."), Ok(Some("a.example.suffix".to_owned())));
        let long = "a".repeat(63);
        let too_long = [&*long, &long, &long, &long].join(".");
        for host in ["", "[::1]", "evil%2ecom", "a%00", "a..b", ".", "a!b", too_long.as_str()] {
            assert_eq!(suffixed.host(host), Err(NoHost), "{host}");
        }
        let label = rewriter("*.lab.example", &prefix(""), "$HOST[1]", "").unwrap();
        assert_eq!(label.host("evil%2ecom.lab.example"), Err(NoHost));
        let fixed = rewriter("*", &prefix(""), "fixed.example", "").unwrap();
        assert_eq!(fixed.host(""), Ok(Some("fixed.example".to_owned())));
        // One spelling for all that are the same.
        let [one, other] =
            ["*.a.example", "*.A.example."].map(|it| rewriter(it, &prefix(""), "b", "").unwrap());
        assert_eq!(one.hostname, other.hostname);
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        for (host, path, said) in [
            ("$HOST[1]", "", "`$HOST[1]` is no part of the hostname, the last is `$HOST[0]`"),
            ("", "/$PATH[2]", "`$PATH[2]` is no part of the path, the last is `$PATH[1]`"),
            ("", "/$PATH[x]", "are followed by a number"),
            ("", "/$PATH[", "are followed by a number"),
            ("", "/$PATH[-1]", "are followed by a number"),
            ("", "/$PATH[99999999999999999999]", "are followed by a number"),
            ("$PATH[1].example", "", "clients choose paths"),
            ("a:80", "", "`rewrite_port`"),
            ("a/b", "", "a host has labels"),
            ("user@a", "", "a host has labels"),
            ("a b", "", "a host has labels"),
            ("..", "", "a host has labels"),
            ("a..b", "", "a host has labels"),
            ("[::1].$HOST[0]", "", "a host has labels"),
            ("$HOST.x", "", "are followed by `[n]`"),
            ("", "/$PATH", "are followed by `[n]`"),
            ("", "/a/../b", "would be refused"),
            ("", "/%00", "would be refused"),
            ("", &"/$PATH[0]".repeat(9), "8 parts"),
            ("", &format!("/{}", "a".repeat(1_024)), "1024 bytes"),
            ("", "x", "begins with `/`"),
            ("", "$PATH[1]", "begins with `/`"),
            ("", "/a?b", "the query is not part"),
            ("", "/a b", "percent-encoded"),
            ("", "/\u{fc}", "percent-encoded"),
        ] {
            let error = rewriter("*", &prefix("/a"), host, path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_segment_that_leads_up_is_found_however_it_is_written() {
        for path in
            ["/..", "/a/../b", "/%2e%2e/b", "/a%2f..", "/a\\..\\b", "/a%5c..", "/..;x/b", "/.", "/a%00b"]
        {
            assert!(leads_up(path), "{path}");
        }
        for path in ["/", "/a/..b", "/a..", "/a//b", "/...", "/%2e%2e%2e", "/a;.."] {
            assert!(!leads_up(path), "{path}");
        }
    }
}
