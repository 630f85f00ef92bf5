//! Where redirects lead, and what a frontend makes of where its requests lead.

use std::fmt::Write as _;

use kakehi_ctl::state::RedirectScheme;

use super::listener::{Action, Rewriting, Routes, Target};
use crate::{
    h1::RequestHead,
    http::{Asked, Reason},
    route,
};

/// Where the same is found by `https`, on this port: a valid URI (RFC 3986) whatever the request looks like. `None`: it names no host.
pub(super) fn https_location(head: &RequestHead<'_>, port: Option<u16>) -> Option<String> {
    let port = port.map(|port| port.to_string());
    uri("https", head.host_name(), port.as_deref(), head.target)
}

/// Where a redirect of a frontend leads: a valid URI whatever the request looks like.
///
/// # Errors
/// `MissingHost` or `BadHost`: there is no host to lead to.
pub(super) fn location(
    head: &RequestHead<'_>,
    is_https: bool,
    made: Option<&Rewriting>,
) -> Result<String, Reason> {
    let present = if is_https { "https" } else { "http" };
    let scheme = match made.map(|made| made.scheme) {
        None | Some(RedirectScheme::UseSame) => present,
        Some(RedirectScheme::UseHttp) => "http",
        Some(RedirectScheme::UseHttps) => "https",
    };
    let usual = if scheme == "https" { 443 } else { 80 };
    let host = made.map(|made| made.host(head)).transpose()?.flatten();
    let port = match made.and_then(|made| made.port) {
        Some(port) => (port != usual).then(|| port.to_string()),
        // Of another host or scheme it is not known.
        None => (host.is_none() && scheme == present).then(|| port_of(head)).flatten(),
    };
    let target = made.and_then(|made| made.target(head));
    uri(
        scheme,
        host.as_deref().unwrap_or(head.host_name()),
        port.as_deref(),
        target.as_deref().unwrap_or(head.target),
    )
    .ok_or(Reason::MissingHost)
}

/// The port in the authority of a request.
fn port_of(head: &RequestHead<'_>) -> Option<String> {
    let port = head.host.get(head.host_name().len()..)?.strip_prefix(':')?;
    (!port.is_empty()).then(|| port.to_owned())
}

impl Rewriting {
    /// The host in the place of that of a request; `None`: that one.
    ///
    /// # Errors
    /// `MissingHost` or `BadHost`: none can be made of it.
    fn host(&self, head: &RequestHead<'_>) -> Result<Option<String>, Reason> {
        let reason = if head.host_name().is_empty() { Reason::MissingHost } else { Reason::BadHost };
        self.rewriter.host(head.host_name()).map_err(|route::NoHost| reason)
    }

    /// The target in the place of that of a request; `None`: that one.
    pub(super) fn target(&self, head: &RequestHead<'_>) -> Option<String> {
        let mut target = self.rewriter.path(head.host_name(), head.path())?;
        // The query stays.
        target.push_str(head.target.get(head.path().len()..).unwrap_or_default());
        Some(target)
    }

    /// The authority in the place of that of a request; `None`: that one.
    ///
    /// # Errors
    /// `MissingHost` or `BadHost`: none can be made of it.
    pub(super) fn authority(&self, head: &RequestHead<'_>) -> Result<Option<String>, Reason> {
        let host = self.host(head)?;
        Ok(match (host, self.port) {
            (host, None) => host,
            (None, Some(_)) if head.host_name().is_empty() => None,
            (host, Some(port)) => Some(format!("{}:{port}", host.as_deref().unwrap_or(head.host_name()))),
        })
    }
}

/// Holds a path that a frontend has made against the rules that refuse, as if the client had asked for it: what a rule makes must lead
/// nobody past another one.
///
/// # Errors
/// Why it is refused.
pub(super) fn judge_rewritten(
    routes: &Routes,
    head: &RequestHead<'_>,
    target: &str,
    asked: &dyn Asked,
    admit: impl Fn(&Target) -> Result<(), Reason>,
) -> Result<(), Reason> {
    let path = target.split('?').next().unwrap_or_default();
    if route::leads_up(path) {
        return Err(Reason::AmbiguousPath);
    }
    match routes.find(head.host_name(), path, head.method_text, asked) {
        Err(Reason::AmbiguousPath) => Err(Reason::AmbiguousPath),
        Ok(target) if target.action == Action::Deny => Err(Reason::Denied),
        Ok(target) if target.action == Action::Close => Err(Reason::SilentClose),
        Ok(target) => {
            admit(target)?;
            match &target.guard {
                Some(guard) if guard.has_sources() && !guard.admits(asked.client()) => {
                    Err(Reason::SourceRefused)
                }
                _ => Ok(()),
            }
        }
        Err(_) => Ok(()),
    }
}

/// A URI of these parts; `None` without a host.
fn uri(scheme: &str, host: &str, port: Option<&str>, target: &str) -> Option<String> {
    if host.is_empty() {
        return None;
    }
    let mut location = String::with_capacity("https://:65535".len() + host.len() + target.len());
    location.push_str(scheme);
    location.push_str("://");
    // The brackets of an IPv6 address, which was checked.
    push_uri(&mut location, host, |byte| host.starts_with('[') && matches!(byte, b'[' | b']' | b':'));
    if let Some(port) = port {
        location.push(':');
        location.push_str(port);
    }
    // RFC 9112 section 3.2.4: `*` is what an empty path of OPTIONS became.
    if target != "*" {
        push_uri(&mut location, target, |byte| matches!(byte, b'/' | b'?' | b':' | b'@' | b';' | b','));
    }
    Some(location)
}

/// Whether a proxy in front, which is trusted, says that its client speaks `https`. Where several are in a row, the first of them
/// knows.
pub(super) fn came_by_https(head: &RequestHead<'_>) -> bool {
    head.forwarded_proto().is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"))
}

/// Appends a part of a URI. Every byte is percent-encoded but those that may stand anywhere, what is encoded already, and what `also`
/// names.
fn push_uri(out: &mut String, part: &str, also: impl Fn(u8) -> bool) {
    let bytes = part.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        let is_escape = byte == b'%'
            && matches!(bytes.get(at + 1..at + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
        let is_unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        let is_delimiter = matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b'=');
        if is_escape || is_unreserved || is_delimiter || also(byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        h1::{HeadLimits, HeadProgress},
        http::Scratch,
    };

    fn with<T>(request: &str, then: impl FnOnce(&RequestHead<'_>) -> T) -> T {
        let limits = HeadLimits { bytes: 16_384, fields: 100, target: 8_192 };
        let mut scratch = Scratch::default();
        let head =
            RequestHead::parse(request.as_bytes(), &mut HeadProgress::default(), &limits, &mut scratch);
        then(&head.unwrap().unwrap())
    }

    fn location(line: &str, host: &str, port: Option<u16>) -> Option<String> {
        with(&format!("{line}\r\n{host}\r\n"), |head| https_location(head, port))
    }

    #[test]
    fn a_location_is_a_uri_whatever_was_asked_for() {
        for (line, host, expected) in [
            ("GET /x?y=1 HTTP/1.1", "a", "https://a/x?y=1"),
            ("GET /a%20b;c@d:e,f?g=/h HTTP/1.1", "a:81", "https://a/a%20b;c@d:e,f?g=/h"),
            (
                "GET /\"<>\\^`{|}[]?[]=%zz% HTTP/1.1",
                "a",
                "https://a/%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D?%5B%5D=%25zz%25",
            ),
            ("GET /\u{fc} HTTP/1.1", "a", "https://a/%C3%BC"),
            ("OPTIONS * HTTP/1.1", "a", "https://a"),
            ("GET //evil.example HTTP/1.1", "a", "https://a//evil.example"),
            ("GET http://b?x HTTP/1.1", "a", "https://b/?x"),
            ("GET / HTTP/1.1", "[::1]:80", "https://[::1]/"),
            ("GET / HTTP/1.1", "a%zz.b", "https://a%25zz.b/"),
        ] {
            assert_eq!(
                location(line, &format!("Host: {host}\r\n"), None).as_deref(),
                Some(expected),
                "{line}"
            );
        }
        assert_eq!(location("GET / HTTP/1.1", "Host: a\r\n", Some(8443)).as_deref(), Some("https://a:8443/"));
        assert_eq!(location("GET / HTTP/1.0", "", None), None);
    }

    #[test]
    fn the_first_proxy_of_a_row_says_how_the_client_came() {
        for (fields, expected) in [
            ("", false),
            ("X-Forwarded-Proto: https\r\n", true),
            ("X-Forwarded-Proto: HTTPS , http\r\n", true),
            ("X-Forwarded-Proto: http, https\r\n", false),
            ("X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n", false),
            ("X-Forwarded-Proto: httpsx\r\n", false),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert_eq!(with(&request, came_by_https), expected, "{fields}");
        }
    }
}
