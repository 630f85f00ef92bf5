//! Request targets and authorities (RFC 9112 section 3.2, RFC 3986).
//!
//! Relies on `httparse` having refused spaces and control bytes. Promises that bytes are passed on as sent
//! (RFC 9110 section 7.7): nothing is decoded, no dots are resolved.

use std::net::Ipv6Addr;

use super::{Method, Reason};

/// `host[:port]`, checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Authority<'b> {
    /// As sent, less the colon of an empty port.
    pub(crate) text: &'b str,
    /// Length of the host in it, brackets included.
    pub(crate) name_len: usize,
    /// True if a colon stood behind the host, and no port behind the colon.
    pub(crate) empty_port: bool,
}

impl<'b> Authority<'b> {
    /// Checks `host[:port]`: no user information (RFC 9110 section 4.2.4), a host that is not empty, a port of 1 to 65535 or none.
    ///
    /// The bytes of a host are those of a registered name (RFC 3986 section 3.2.2) less the comma, which
    /// would make a list of it, and less what must be quoted in other fields; or an IPv6 literal.
    #[inline]
    pub(crate) fn read(value: &'b [u8]) -> Result<Authority<'b>, Reason> {
        let name_len = match value {
            [b'[', ..] => bracketed(value)?,
            _ => value.iter().position(|byte| !HOST_BYTES[usize::from(*byte)]).unwrap_or(value.len()),
        };
        let (value, empty_port) = match &value[name_len..] {
            // RFC 9110 section 4.2.1: an `http` URI without a host is invalid.
            _ if name_len == 0 => return Err(Reason::BadHost),
            [] => (value, false),
            // RFC 3986 section 3.2.3: a port may be empty, and its colon should then be left out.
            [b':'] => (&value[..name_len], true),
            [b':', port @ ..] if is_port(port) => (value, false),
            _ => return Err(Reason::BadHost),
        };
        let text = std::str::from_utf8(value).map_err(|_| Reason::BadHost)?;
        Ok(Authority { text, name_len, empty_port })
    }
}

/// `ALPHA DIGIT - . _ ~ % ! $ & ' * +`: every one may stand in a token too.
const HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(b, b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'*' | b'+');
        byte += 1;
    }
    table
};

/// Length of an IPv6 literal with its brackets.
fn bracketed(value: &[u8]) -> Result<usize, Reason> {
    let end = value.iter().position(|b| *b == b']').ok_or(Reason::BadHost)?;
    let literal = std::str::from_utf8(&value[1..end]).map_err(|_| Reason::BadHost)?;
    literal.parse::<Ipv6Addr>().map_err(|_| Reason::BadHost)?;
    Ok(end + 1)
}

fn is_port(text: &[u8]) -> bool {
    if text.is_empty() || text.len() > 5 || !text.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let port = text.iter().fold(0u32, |port, digit| port * 10 + u32::from(digit - b'0'));
    (1..=65535).contains(&port)
}

/// A request target as it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target<'b> {
    /// In origin-form, or `*`.
    pub(crate) text: &'b str,
    /// Length of the path in it.
    pub(crate) path_len: usize,
    /// The authority of an absolute-form.
    pub(crate) authority: Option<Authority<'b>>,
}

/// Reads the target `raw` of a request. `spare` takes the one target that does not stand in the input as
/// it is passed on: an absolute-form with a query and without a path.
#[inline]
pub(crate) fn read<'b>(method: Method, raw: &'b str, spare: &'b mut String) -> Result<Target<'b>, Reason> {
    // RFC 9112 section 3.2.3: authority-form is for CONNECT, which only a forward proxy answers.
    if method == Method::Connect {
        return Err(Reason::ConnectRefused);
    }
    let bytes = raw.as_bytes();
    let (text, authority) = match bytes.first() {
        Some(b'/') => (raw, None),
        // RFC 9112 section 3.2.4: asterisk-form is for OPTIONS.
        Some(b'*') if raw.len() == 1 && method == Method::Options => (raw, None),
        _ => absolute(method, raw, spare)?,
    };
    // RFC 9112 section 3.2: a target has no fragment.
    let path_len = match memchr::memchr2(b'?', b'#', text.as_bytes()) {
        None => text.len(),
        Some(at) if memchr::memchr(b'#', &text.as_bytes()[at..]).is_none() => at,
        Some(_) => return Err(Reason::BadTarget),
    };
    Ok(Target { text, path_len, authority })
}

/// RFC 9112 section 3.2.2: absolute-form.
#[cold]
fn absolute<'b>(
    method: Method,
    raw: &'b str,
    spare: &'b mut String,
) -> Result<(&'b str, Option<Authority<'b>>), Reason> {
    let (scheme, rest) = raw.split_once("://").ok_or(Reason::BadTarget)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Reason::BadTarget);
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let authority = Authority::read(authority.as_bytes())?;
    let text = match rest.as_bytes().first() {
        Some(b'/') => rest,
        Some(_) => {
            spare.clear();
            spare.push('/');
            spare.push_str(rest);
            spare.as_str()
        }
        // RFC 9112 section 3.2.4: the last proxy turns an empty path of OPTIONS into "*".
        None if method == Method::Options => "*",
        // RFC 9112 section 3.2.1: an empty path is sent as "/".
        None => "/",
    };
    Ok((text, Some(authority)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for (text, name) in [
            ("a", "a"),
            ("a.example:80", "a.example"),
            ("under_score.example", "under_score.example"),
            ("127.0.0.1:65535", "127.0.0.1"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("[::1]:8080", "[::1]"),
            ("xn--bcher-kva.example:1", "xn--bcher-kva.example"),
        ] {
            let authority = Authority::read(text.as_bytes()).unwrap();
            assert_eq!((authority.text, &text[..authority.name_len]), (text, name));
        }
    }

    #[test]
    fn a_host_with_an_empty_port_is_the_host() {
        for (text, name) in [("a.example:", "a.example"), ("[::1]:", "[::1]"), ("127.0.0.1:", "127.0.0.1")] {
            let authority = Authority::read(text.as_bytes()).unwrap();
            assert_eq!(authority, Authority { text: name, name_len: name.len(), empty_port: true });
        }
        assert!(!Authority::read(b"a:80").unwrap().empty_port);
    }

    #[test]
    fn anything_else_is_no_authority() {
        for text in [
            "",
            ":80",
            "a:0",
            "a:65536",
            "a:99999",
            "a:000080",
            ":",
            "a::",
            "a:8o",
            "a:+80",
            "a:80:80",
            "u@a",
            "u:p@a",
            "a b",
            "a,b",
            "a/b",
            "a\\b",
            "a?b",
            "a#b",
            "[::1",
            "[::g]",
            "[]",
            "[::1]x",
            "[::1%eth0]",
            "::1",
            "a\tb",
            "\u{e4}.example",
            "a\"b",
            "a;b",
            "a=b",
            "<a>",
            "[v1.x]",
        ] {
            assert_eq!(Authority::read(text.as_bytes()), Err(Reason::BadHost), "{text}");
        }
    }

    fn target(method: Method, raw: &str) -> Result<(String, usize, Option<String>), Reason> {
        let mut spare = String::new();
        let target = read(method, raw, &mut spare)?;
        Ok((target.text.to_owned(), target.path_len, target.authority.map(|a| a.text.to_owned())))
    }

    #[test]
    fn a_target_is_passed_on_as_sent() {
        for (method, raw, text, path_len, authority) in [
            (Method::Get, "/", "/", 1, None),
            (Method::Get, "/a/../%2e%2F;b?c?d=/", "/a/../%2e%2F;b?c?d=/", 14, None),
            (Method::Get, "//evil.example/a", "//evil.example/a", 16, None),
            (Method::Get, "http://h.example:80/a?b", "/a?b", 2, Some("h.example:80")),
            (Method::Get, "HTTPS://h/", "/", 1, Some("h")),
            (Method::Get, "http://h", "/", 1, Some("h")),
            (Method::Get, "http://h:", "/", 1, Some("h")),
            (Method::Get, "http://h:/a", "/a", 2, Some("h")),
            (Method::Get, "http://h?q=1", "/?q=1", 1, Some("h")),
            (Method::Options, "*", "*", 1, None),
            (Method::Options, "http://h", "*", 1, Some("h")),
            (Method::Options, "http://h/", "/", 1, Some("h")),
        ] {
            let expected = (text.to_owned(), path_len, authority.map(str::to_owned));
            assert_eq!(target(method, raw), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn a_target_in_no_known_form_is_refused() {
        for raw in [
            "*",
            "a",
            "h:80",
            "ftp://h/",
            "http:/h/",
            "http:h",
            "/a#b",
            "/a?b#c",
            "http://h#f",
            "?a",
            "*a",
            "\\a",
        ] {
            assert_eq!(target(Method::Get, raw), Err(Reason::BadTarget), "{raw}");
        }
        for raw in ["http:///a", "http://u@h/", "http://h:0/", "http://"] {
            assert_eq!(target(Method::Get, raw), Err(Reason::BadHost), "{raw}");
        }
        assert_eq!(target(Method::Connect, "h:443"), Err(Reason::ConnectRefused));
        assert_eq!(target(Method::Connect, "/"), Err(Reason::ConnectRefused));
    }
}
