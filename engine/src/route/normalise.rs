//! The one normaliser: what a path means to a server that tidies it up before it looks.
//!
//! Requests are routed and forwarded by the bytes that the client sent. A backend, though, may read
//! `/%61dmin`, `/x/../admin`, `//admin`, `\admin` or `/admin;v=1` as `/admin`. So the table asks twice, once
//! with the bytes as sent and once with what [`normalise`] makes of them, and refuses the request if the
//! answers differ: nobody gets round a rule by spelling.
//!
//! The steps, in this order, each done once:
//!
//! 1. percent-decoding (RFC 3986 section 2.1; a `%` without two hex digits stays as it is);
//! 2. `\` becomes `/`;
//! 3. in each segment, `;` and what follows it goes;
//! 4. runs of slashes become one;
//! 5. `.` and `..` segments are removed (RFC 3986 section 5.2.4); `..` at the root stays at the root.
//!
//! Servers do not agree on the order of these steps. Where the order makes a difference, no single reading is
//! safe, and the path is reported as having none ([`NoReading`]):
//!
//! - a NUL byte: what follows it may be cut off;
//! - a `..` segment together with `\`, an encoded slash or backslash, parameters or an empty segment: what
//!   `..` removes depends on whether these count as segments; likewise with both literal `..` and encoded dots;
//! - a slash or backslash that is encoded, or a `\`, inside parameters: they may or may not end them.

use crate::http::next_byte;

/// The path has no reading that all servers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoReading;

/// Whether a NUL byte, plain or encoded, stands in `path`.
#[inline]
pub(super) fn holds_nul(path: &[u8]) -> bool {
    path.iter().any(|&byte| byte == b'%' || byte == 0)
        && (path.contains(&0) || path.windows(3).any(|three| three == b"%00"))
}

/// Whether servers may disagree on what `path` means: false for nearly every path of nearly every client.
#[inline]
pub(super) fn is_suspicious(path: &[u8]) -> bool {
    // Both loops run to the end, without branches, so that the compiler can take many bytes at a time.
    let odd_byte = |&b: &u8| (b == b'%') | (b == b';') | (b == b'\\') | (b == 0) | (b >= 0x80);
    let odd_pair = |(&a, &b): (&u8, &u8)| (a == b'/') & ((b == b'/') | (b == b'.'));
    let odd = path.iter().fold(false, |odd, byte| odd | odd_byte(byte));
    path.iter().zip(path.get(1..).unwrap_or_default()).fold(odd, |odd, pair| odd | odd_pair(pair))
}

/// Writes the normalised form of `path` to the front of `buffer` and returns it.
///
/// A path that does not begin with a slash, even when decoded (`*` of `OPTIONS`), is only decoded.
///
/// `buffer` must be at least as long as `path`; the result is never longer.
pub(super) fn normalise<'b>(path: &[u8], buffer: &'b mut [u8]) -> Result<&'b [u8], NoReading> {
    let decoded = decode(path, buffer)?;
    if decoded.length == 0 || buffer[0] != b'/' {
        return Ok(&buffer[..decoded.length]);
    }
    // The output overwrites the input from the front: it is never ahead of what is still to be read.
    // Between segments it always ends with a slash.
    let (mut read, mut written) = (1, 1);
    let mut climbs = false;
    let mut empty_segment = false;
    loop {
        let end = buffer[read..decoded.length].iter().position(|&b| b == b'/').map(|at| read + at);
        let segment_end = end.unwrap_or(decoded.length);
        let raw = &buffer[read..segment_end];
        let length = raw.iter().position(|&b| b == b';').unwrap_or(raw.len());
        match &raw[..length] {
            b"" => empty_segment |= end.is_some(),
            b"." => {}
            b".." => {
                climbs = true;
                let parent = buffer[..written - 1].iter().rposition(|&b| b == b'/');
                written = parent.map_or(1, |slash| slash + 1);
            }
            _ => {
                buffer.copy_within(read..read + length, written);
                written += length;
                if end.is_some() {
                    buffer[written] = b'/';
                    written += 1;
                }
            }
        }
        match end {
            Some(slash) => read = slash + 1,
            None => break,
        }
    }
    if climbs && (decoded.odd_separator || empty_segment || decoded.mixed_dots) {
        return Err(NoReading);
    }
    Ok(&buffer[..written])
}

/// What steps 1 and 2 left in the buffer, and what they saw.
struct Decoded {
    length: usize,
    /// `\`, `%2F`, `%5C`, `;` or `%3B`.
    odd_separator: bool,
    /// `%2E`, and `/..` in clear.
    mixed_dots: bool,
}

fn decode(path: &[u8], buffer: &mut [u8]) -> Result<Decoded, NoReading> {
    let mut decoded = Decoded { length: 0, odd_separator: false, mixed_dots: false };
    let mut encoded_dot = false;
    let mut in_parameters = false;
    let mut rest = path;
    while let Some((byte, encoded, after)) = next_byte(rest) {
        rest = after;
        let byte = match (byte, encoded) {
            (0, _) => return Err(NoReading),
            (b'\\', _) | (b'/', true) => {
                if in_parameters {
                    return Err(NoReading);
                }
                decoded.odd_separator = true;
                b'/'
            }
            (b'/', false) => {
                in_parameters = false;
                b'/'
            }
            (b';', _) => {
                decoded.odd_separator = true;
                in_parameters = true;
                b';'
            }
            (b'.', true) => {
                encoded_dot = true;
                b'.'
            }
            (other, _) => other,
        };
        buffer[decoded.length] = byte;
        decoded.length += 1;
    }
    decoded.mixed_dots = encoded_dot && path.windows(3).any(|w| w == b"/..");
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(path: &str) -> Result<String, NoReading> {
        let mut buffer = vec![0; path.len()];
        normalise(path.as_bytes(), &mut buffer).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    #[test]
    fn each_step_is_done_as_documented() {
        for (path, expected) in [
            ("", ""),
            ("*", "*"),
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/%61dmin", "/admin"),
            ("/%2561", "/%61"),
            ("/100%", "/100%"),
            ("/%4", "/%4"),
            ("/%zz", "/%zz"),
            ("/%%61", "/%a"),
            ("/caf%C3%A9", "/café"),
            ("%2Fadmin", "/admin"),
            ("\\admin", "/admin"),
            ("/a\\b", "/a/b"),
            ("/a%5cb", "/a/b"),
            ("/a%2fb", "/a/b"),
            ("/admin;v=1", "/admin"),
            ("/admin;v=1/x;y", "/admin/x"),
            ("/admin%3Bv=1", "/admin"),
            ("/a/;x/b", "/a/b"),
            ("/;x", "/"),
            ("//admin", "/admin"),
            ("/a///b//", "/a/b/"),
            ("/./a", "/a"),
            ("/a/./b/.", "/a/b/"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../c", "/a/c"),
            ("/../../a", "/a"),
            ("/a/%2e%2E/b", "/b"),
            ("/.git", "/.git"),
            ("/a/..b/...", "/a/..b/..."),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn paths_that_servers_read_in_different_ways_have_no_reading() {
        for path in [
            "/a%00",
            "/a%00/../b",
            "/\0",
            "/foo/x%2Fy/../../admin",
            "/foo/x\\y/../../admin",
            "/foo/x%5Cy/../../admin",
            "/foo/..;/admin",
            "/x;y/../admin",
            "/app/x/..//../admin",
            "/app/x/%2e%2e/../admin",
            "/..%2fadmin",
            "/x/..;%2Ffoo/admin",
            "/a;%2Fadmin",
            "/a;\\admin",
            "/a%3B%5Cadmin",
        ] {
            assert_eq!(normal(path), Err(NoReading), "{path}");
        }
    }

    #[test]
    fn the_normal_form_is_its_own_normal_form_unless_it_still_holds_a_percent_sign() {
        let alphabet: [&str; 9] = ["/", ".", "..", "%2F", "%61", ";", "\\", "a", "%2e"];
        for mut number in 0..9u32.pow(5) {
            let mut path = String::from("/");
            for _ in 0..5 {
                path.push_str(alphabet[(number % 9) as usize]);
                number /= 9;
            }
            let Ok(once) = normal(&path) else { continue };
            assert!(once.len() <= path.len(), "{path}");
            assert!(
                !once.contains("//") && !once.contains("/./") && !once.contains("/../"),
                "{path} gives {once}"
            );
            assert_eq!(normal(&once).as_deref(), Ok(once.as_str()), "{path}");
        }
    }

    #[test]
    fn a_path_that_is_not_suspicious_is_its_own_normal_form() {
        let alphabet: [&str; 7] = ["/", ".", "a", "..", "%61", "b/", "*"];
        let mut plain = 0;
        for mut number in 0..7u32.pow(5) {
            let mut path = String::from("/");
            for _ in 0..5 {
                path.push_str(alphabet[(number % 7) as usize]);
                number /= 7;
            }
            if !is_suspicious(path.as_bytes()) {
                plain += 1;
                assert_eq!(normal(&path).as_deref(), Ok(path.as_str()));
            }
        }
        assert!(plain > 100, "{plain}");
    }

    #[test]
    fn the_characters_that_make_a_path_suspicious_are_found_anywhere() {
        for path in ["/%", "/a//b", "/a/.b", "/a;", "/a\\", "//", "/.", "/é", "\\"] {
            assert!(is_suspicious(path.as_bytes()), "{path}");
        }
        for path in ["", "*", "/", "/a.b/c..d/", "/index.html", "/a/b-c_d~e!$&'()*+,=:@"] {
            assert!(!is_suspicious(path.as_bytes()), "{path}");
        }
    }
}
