//! Parameters in the query of a target, as forms write them.

use std::borrow::Cow;

use super::percent_decode;

/// The value of the first parameter of this name; the value of one without `=` is empty. Names and values are percent-decoded once; a `+`
/// stays one, and so does a `%` without two digits behind it.
pub fn parameter<'q>(query: &'q [u8], name: &str) -> Option<Cow<'q, [u8]>> {
    query.split(|&byte| byte == b'&').find_map(|pair| {
        let (found, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        (!pair.is_empty() && *decoded(found) == *name.as_bytes()).then(|| decoded(value))
    })
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if text.contains(&b'%') { percent_decode(text).into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parameter_of_a_name_counts_decoded_once() {
        for (query, name, value) in [
            ("a=1&b=2", "b", Some("2")),
            ("a=1&a=2", "a", Some("1")),
            ("a", "a", Some("")),
            ("a=", "a", Some("")),
            ("", "a", None),
            ("&&=x", "", Some("x")),
            ("", "", None),
            ("b=a", "a", None),
            ("A=1", "a", None),
            ("a=1=2", "a", Some("1=2")),
            ("%61=%2541+x", "a", Some("%41+x")),
            ("a=%&b=%4&c=%zz", "a", Some("%")),
            ("a=%&b=%4&c=%zz", "b", Some("%4")),
            ("a=%&b=%4&c=%zz", "c", Some("%zz")),
            ("a=b;c=d", "c", None),
            ("a%3Db=c", "a=b", Some("c")),
        ] {
            let found = parameter(query.as_bytes(), name);
            assert_eq!(found.as_deref(), value.map(str::as_bytes), "{name} in {query}");
        }
    }
}
