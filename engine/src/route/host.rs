//! Hostnames on both sides of a lookup: the pattern of a rule, and the name in a request.
//!
//! Both are brought into one form first (ASCII lower case, no final dot, IPv6 addresses in their shortest
//! spelling), so that the table compares bytes and nothing else.

use std::{io::Write as _, net::Ipv6Addr};

use super::RouteError;
use crate::limits;

/// Longest name that a lookup takes (bytes): RFC 1035 allows 253, and a final dot.
pub(super) const MAX_NAME: usize = 255;

/// Longest label of a rule (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// The hostname of a rule, in its compared form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostPattern {
    /// `*`: any host, and none.
    Any,
    /// A name or an address.
    Exact(String),
    /// `*.parent`: exactly one label in front of the parent, which this holds.
    Wildcard(String),
    /// A name with at least one `/regex/` label.
    Labels(Vec<LabelPattern>),
}

/// One label of a name with regular expressions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LabelPattern {
    /// Exactly this.
    Literal(String),
    /// `*`, leftmost: whatever it is.
    Any,
    /// The whole label matches this regular expression, which has not been compiled yet.
    Regex(String),
}

impl HostPattern {
    /// Reads the hostname of a rule.
    pub(super) fn parse(hostname: &str) -> Result<HostPattern, RouteError> {
        if hostname.is_empty() {
            return Err(RouteError::EmptyHostname);
        }
        let is_pattern = hostname.contains('/');
        let limit = if is_pattern { limits::MAX_HOSTNAME_RULE } else { MAX_NAME - 1 };
        if hostname.len() > limit {
            return Err(RouteError::HostnameTooLong { hostname: hostname.chars().take(40).collect(), limit });
        }
        if !hostname.is_ascii() {
            return Err(RouteError::NotAscii(hostname.to_owned()));
        }
        if hostname == "*" {
            return Ok(HostPattern::Any);
        }
        if hostname.starts_with('[') {
            return match hostname.split_once(']') {
                Some((_, port)) if port.starts_with(':') => {
                    Err(RouteError::HostnameWithPort(hostname.to_owned()))
                }
                Some((address, "")) => match address[1..].parse::<Ipv6Addr>() {
                    Ok(address) => Ok(HostPattern::Exact(format!("[{address}]"))),
                    Err(_) => Err(RouteError::NotAnAddress(hostname.to_owned())),
                },
                _ => Err(RouteError::NotAnAddress(hostname.to_owned())),
            };
        }
        let labels = parse_labels(hostname)?;
        if labels.iter().any(|label| matches!(label, LabelPattern::Regex(_))) {
            return Ok(HostPattern::Labels(labels));
        }
        let mut name = String::with_capacity(hostname.len());
        for label in &labels {
            if let LabelPattern::Literal(label) = label {
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(label);
            }
        }
        match labels.first() {
            Some(LabelPattern::Any) => Ok(HostPattern::Wildcard(name)),
            _ => Ok(HostPattern::Exact(name)),
        }
    }

    /// The pattern as text: equal for equal patterns, different for different ones.
    pub(super) fn to_text(&self) -> String {
        match self {
            HostPattern::Any => "*".to_owned(),
            HostPattern::Exact(name) => name.clone(),
            HostPattern::Wildcard(parent) => format!("*.{parent}"),
            HostPattern::Labels(labels) => {
                let labels: Vec<String> = labels
                    .iter()
                    .map(|label| match label {
                        LabelPattern::Literal(text) => text.clone(),
                        LabelPattern::Any => "*".to_owned(),
                        LabelPattern::Regex(regex) => format!("/{regex}/"),
                    })
                    .collect();
                labels.join(".")
            }
        }
    }
}

/// Cuts a hostname at its dots, but not at those inside `/regex/` labels.
fn parse_labels(hostname: &str) -> Result<Vec<LabelPattern>, RouteError> {
    let mut labels = Vec::new();
    let mut rest = hostname;
    loop {
        let (label, after) = if let Some(regex) = rest.strip_prefix('/') {
            let unclosed = || RouteError::UnclosedRegex(hostname.to_owned());
            let (regex, after) = regex.split_once('/').ok_or_else(unclosed)?;
            if regex.is_empty() || !(after.is_empty() || after.starts_with('.')) {
                return Err(unclosed());
            }
            (LabelPattern::Regex(regex.to_owned()), after)
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            (parse_label(hostname, &rest[..end], labels.is_empty() && end < rest.len())?, &rest[end..])
        };
        labels.push(label);
        rest = match after.strip_prefix('.') {
            // A final dot says that the name is complete, which it is anyway.
            None | Some("") => return finish_labels(hostname, labels),
            Some(rest) => rest,
        };
    }
}

/// A label without regular expression; `may_be_any` for the leftmost of several.
fn parse_label(hostname: &str, label: &str, may_be_any: bool) -> Result<LabelPattern, RouteError> {
    if label == "*" && may_be_any {
        return Ok(LabelPattern::Any);
    }
    if label.contains('*') {
        return Err(RouteError::MisplacedWildcard(hostname.to_owned()));
    }
    if let Some((_, port)) = label.split_once(':')
        && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(RouteError::HostnameWithPort(hostname.to_owned()));
    }
    let fits = (1..=MAX_LABEL).contains(&label.len());
    if !fits || !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(RouteError::BadLabel { hostname: hostname.to_owned(), label: label.to_owned() });
    }
    Ok(LabelPattern::Literal(label.to_ascii_lowercase()))
}

/// `*.` alone would be a wildcard below nothing.
fn finish_labels(hostname: &str, labels: Vec<LabelPattern>) -> Result<Vec<LabelPattern>, RouteError> {
    if labels == [LabelPattern::Any] {
        return Err(RouteError::MisplacedWildcard(hostname.to_owned()));
    }
    Ok(labels)
}

/// The name in a request, in its compared form: the request's own bytes if they are in it already.
pub(super) struct HostName<'a>(&'a [u8]);

impl<'a> HostName<'a> {
    /// Brings a name into its compared form, in `room` if it must be rewritten; `None` if it is longer than
    /// [`MAX_NAME`].
    #[inline]
    pub(super) fn new(name: &'a str, room: &'a mut Option<[u8; MAX_NAME]>) -> Option<HostName<'a>> {
        let name = name.as_bytes();
        if name.len() > MAX_NAME {
            return None;
        }
        let name = name.strip_suffix(b".").unwrap_or(name);
        if name.first() == Some(&b'[') {
            return Some(HostName(shortest_address(name, room.insert([0; MAX_NAME]))));
        }
        // To the end, without branches: names are short and this takes many bytes at a time.
        if !name.iter().fold(false, |upper, b| upper | b.is_ascii_uppercase()) {
            return Some(HostName(name));
        }
        let lower = &mut room.insert([0; MAX_NAME])[..name.len()];
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        Some(HostName(lower))
    }

    /// The bytes to compare.
    #[inline]
    pub(super) fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// How many labels patterns see. `None` for an IPv6 address, an empty name and a name with an empty label:
    /// only an exact rule or `*` takes these.
    pub(super) fn labels(&self) -> Option<usize> {
        if self.0.first() == Some(&b'[') {
            return None;
        }
        let mut labels = 0;
        for label in self.0.split(|&b| b == b'.') {
            if label.is_empty() {
                return None;
            }
            labels += 1;
        }
        Some(labels)
    }

    /// What stands behind the leftmost label, if a wildcard may match.
    ///
    /// It may hold empty labels: no rule's parent does.
    pub(super) fn parent(&self) -> Option<&'a [u8]> {
        match memchr::memchr(b'.', self.0) {
            None | Some(0) => None,
            Some(_) if self.0[0] == b'[' => None,
            Some(dot) => Some(&self.0[dot + 1..]),
        }
    }
}

/// An address is compared in its shortest spelling; what is not an address is compared in lower case.
#[cold]
fn shortest_address<'r>(name: &[u8], room: &'r mut [u8; MAX_NAME]) -> &'r [u8] {
    let address = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    let address = address.and_then(|text| std::str::from_utf8(text).ok());
    if let Some(address) = address.and_then(|text| text.parse::<Ipv6Addr>().ok()) {
        let mut rest: &mut [u8] = room;
        // 47 bytes at most: the room cannot run out.
        if write!(rest, "[{address}]").is_ok() {
            let length = MAX_NAME - rest.len();
            return &room[..length];
        }
    }
    let lower = &mut room[..name.len()];
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(hostname: &str) -> String {
        match HostPattern::parse(hostname) {
            Ok(pattern) => pattern.to_text(),
            Err(error) => error.code().to_owned(),
        }
    }

    #[test]
    fn a_rule_is_brought_into_the_compared_form_or_refused_with_a_reason() {
        let label63 = "a".repeat(63);
        let label64 = "a".repeat(64);
        let long = format!("{label63}.{label63}.{label63}.{label63}");
        for (hostname, expected) in [
            ("example.org", "example.org"),
            ("WWW.Example.ORG.", "www.example.org"),
            ("localhost", "localhost"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("a_b.example", "a_b.example"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
            ("*", "*"),
            ("*.Example.org", "*.example.org"),
            ("*.org.", "*.org"),
            ("/[a-z]+/.Example.org", "/[a-z]+/.example.org"),
            ("/a.b/.example./X|y/", "/a.b/.example./X|y/"),
            ("*./a/.org", "*./a/.org"),
            (label63.as_str(), label63.as_str()),
            ("", "empty_hostname"),
            (".", "hostname_bad_label"),
            ("example..org", "hostname_bad_label"),
            (".example.org", "hostname_bad_label"),
            ("example.org..", "hostname_bad_label"),
            ("exa mple.org", "hostname_bad_label"),
            ("exam%70le.org", "hostname_bad_label"),
            ("user@example.org", "hostname_bad_label"),
            (label64.as_str(), "hostname_bad_label"),
            (long.as_str(), "hostname_too_long"),
            ("bücher.example", "hostname_not_ascii"),
            ("example.org:8080", "hostname_with_port"),
            ("[::1]:80", "hostname_with_port"),
            ("[::1", "hostname_not_an_address"),
            ("[::x]", "hostname_not_an_address"),
            ("[::1]x", "hostname_not_an_address"),
            ("www.*.org", "hostname_misplaced_wildcard"),
            ("w*.example.org", "hostname_misplaced_wildcard"),
            ("*.*.org", "hostname_misplaced_wildcard"),
            ("*.", "hostname_misplaced_wildcard"),
            ("/a", "hostname_unclosed_regex"),
            ("/a/b.org", "hostname_unclosed_regex"),
            ("//.org", "hostname_unclosed_regex"),
            ("a/b/.org", "hostname_bad_label"),
        ] {
            assert_eq!(text(hostname), expected, "{hostname}");
        }
    }

    #[test]
    fn huge_and_strange_hostnames_are_refused_without_panic() {
        assert_eq!(text(&"/".repeat(5_000)), "hostname_too_long");
        assert_eq!(text(&"é".repeat(5_000)), "hostname_too_long");
        assert_eq!(text(&".".repeat(200)), "hostname_bad_label");
        assert_eq!(text("\0"), "hostname_bad_label");
    }

    #[test]
    fn a_name_in_a_request_loses_its_case_and_its_final_dot() {
        for (name, expected, labels, parent) in [
            ("WWW.Example.org", "www.example.org", Some(3), Some("example.org")),
            ("www.example.org.", "www.example.org", Some(3), Some("example.org")),
            ("localhost", "localhost", Some(1), None),
            ("", "", None, None),
            (".", "", None, None),
            ("example.org..", "example.org.", None, Some("org.")),
            (".example.org", ".example.org", None, None),
            ("a..b", "a..b", None, Some(".b")),
            ("[0:0::1]", "[::1]", None, None),
            ("[::FFFF:1.2.3.4]", "[::ffff:1.2.3.4]", None, None),
            ("[X.y]", "[x.y]", None, None),
            ("[", "[", None, None),
        ] {
            let mut room = None;
            let host = HostName::new(name, &mut room).expect(name);
            assert_eq!(std::str::from_utf8(host.as_bytes()), Ok(expected), "{name}");
            assert_eq!(host.labels(), labels, "{name}");
            assert_eq!(host.parent(), parent.map(str::as_bytes), "{name}");
        }
        assert!(HostName::new(&"a".repeat(255), &mut None).is_some());
        assert!(HostName::new(&"a".repeat(256), &mut None).is_none());
    }
}
