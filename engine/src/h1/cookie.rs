//! Cookies of a request (RFC 6265 section 4.2): found and taken out, the others byte for byte as they came.

use crate::http::trim;

/// The name and the value of a pair.
fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'=', pair) {
        Some(at) => (trim(&pair[..at]), trim(&pair[at + 1..])),
        None => (trim(pair), b""),
    }
}

fn is_named(pair: &[u8], name: &[u8]) -> bool {
    split(pair).0 == name
}

/// The value of the first cookie in the field value `cookies` that has this name. Names of cookies have a case.
pub(crate) fn find<'b>(cookies: &'b [u8], name: &str) -> Option<&'b [u8]> {
    cookies.split(|byte| *byte == b';').map(split).find(|(found, _)| *found == name.as_bytes()).map(|it| it.1)
}

/// Whether there is a cookie of this name.
pub(crate) fn has(cookies: &[u8], name: &str) -> bool {
    // Most fields that have it not end here.
    memchr::memmem::find(cookies, name.as_bytes()).is_some() && find(cookies, name).is_some()
}

/// Appends `cookies` without those of this name.
pub(crate) fn write_without(cookies: &[u8], name: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for pair in cookies.split(|byte| *byte == b';').filter(|pair| !is_named(pair, name.as_bytes())) {
        let first = out.len() == start;
        if !first {
            out.push(b';');
        }
        // What stood before the first one separated it from the one that is gone.
        out.extend_from_slice(if first { pair.trim_ascii_start() } else { pair });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let cookies = b"a=1; SID=x=y;b = 2 ; empty=; SID=second; bare";
        assert_eq!(find(cookies, "SID"), Some(&b"x=y"[..]));
        assert_eq!(find(cookies, "b"), Some(&b"2"[..]));
        assert_eq!(find(cookies, "empty"), Some(&b""[..]));
        assert_eq!(find(cookies, "bare"), Some(&b""[..]));
        for name in ["ID", "sid", "SIDE", "1"] {
            assert!(find(cookies, name).is_none() && !has(cookies, name), "{name}");
        }
    }

    #[test]
    fn the_others_stay_byte_for_byte() {
        for (cookies, left) in [
            ("S=1", ""),
            ("S=1; a=2", "a=2"),
            ("a=2; S=1", "a=2"),
            ("a=2; S=1; b=\"3 4\"", "a=2; b=\"3 4\""),
            ("a=2;S=1;b=3", "a=2;b=3"),
            ("S=1; S=2; S=3", ""),
            ("a=2;  S =1;\tb=3; ", "a=2;\tb=3; "),
            ("XS=1; S2=2", "XS=1; S2=2"),
            ("", ""),
        ] {
            let mut out = b"> ".to_vec();
            write_without(cookies.as_bytes(), "S", &mut out);
            assert_eq!(out, format!("> {left}").into_bytes(), "{cookies}");
        }
    }
}
