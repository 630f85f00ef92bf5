//! Where the redirect to `https` leads, and who is there already.

use std::fmt::Write as _;

use crate::h1::RequestHead;

/// Where the same is found by `https`, on this port: a valid URI (RFC 3986) whatever the request looks like. `None`: it names no host.
pub(super) fn https_location(head: &RequestHead<'_>, port: Option<u16>) -> Option<String> {
    let host = head.host_name();
    if host.is_empty() {
        return None;
    }
    let mut location = String::with_capacity("https://:65535".len() + host.len() + head.target.len());
    location.push_str("https://");
    // The brackets of an IPv6 address, which was checked.
    push_uri(&mut location, host, |byte| host.starts_with('[') && matches!(byte, b'[' | b']' | b':'));
    if let Some(port) = port {
        // Writing to a string cannot fail.
        let _ = write!(location, ":{port}");
    }
    // RFC 9112 section 3.2.4: `*` is what an empty path of OPTIONS became.
    if head.target != "*" {
        push_uri(&mut location, head.target, |byte| matches!(byte, b'/' | b'?' | b':' | b'@' | b';' | b','));
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
