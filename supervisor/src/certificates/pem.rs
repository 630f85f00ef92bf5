//! Whether all parts of a text (PEM, RFC 7468) are read.
//!
//! A reader of PEM looks for lines that are `-----BEGIN X-----`, and passes over everything else. So a part whose first line is
//! indented, or is glued to the last line of the part before it (`cat` of files without a line's end), is not there for it:
//! an intermediate, an issuer or a revocation list is missing, and nobody is told.
//!
//! Promises: after [`check`], the text has as many parts as it has `-----BEGIN`, and each is of a kind that is known.

use super::content::Fault;

const BEGIN: &[u8] = b"-----BEGIN";

/// Kinds of parts that stand in files of certificates and keys. What is not needed of them is passed over.
const KNOWN: [&str; 12] = [
    "CERTIFICATE",
    "X509 CRL",
    "PRIVATE KEY",
    "EC PRIVATE KEY",
    "RSA PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "PUBLIC KEY",
    "RSA PUBLIC KEY",
    "EC PARAMETERS",
    "DH PARAMETERS",
    "CERTIFICATE REQUEST",
    "NEW CERTIFICATE REQUEST",
];

/// Looks whether each `-----BEGIN` in `text` begins a part.
///
/// # Errors
/// The first that does not, with its line.
pub(super) fn check(text: &[u8]) -> Result<(), Fault> {
    // The part that has begun: its line and its last line.
    let mut open: Option<(usize, Vec<u8>)> = None;
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii_end();
        match &open {
            Some((_, end)) if line.starts_with(end) => {
                if has_begin(line) {
                    return Err(Fault::Glued { line: number });
                }
                open = None;
            }
            Some((begun, _)) if has_begin(line) => {
                return Err(Fault::Unended { line: number, begun: *begun });
            }
            None if has_begin(line) => {
                let label = label(line).ok_or(Fault::Glued { line: number })?;
                if !KNOWN.contains(&label) {
                    return Err(Fault::Label { line: number, label: printable(label) });
                }
                open = Some((number, [b"-----END ", label.as_bytes(), b"-----"].concat()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn has_begin(line: &[u8]) -> bool {
    line.windows(BEGIN.len()).any(|window| window == BEGIN)
}

/// `X` of a line that is `-----BEGIN X-----`.
fn label(line: &[u8]) -> Option<&str> {
    let label = line.strip_prefix(BEGIN)?.strip_prefix(b" ")?.strip_suffix(b"-----")?;
    std::str::from_utf8(label).ok().filter(|label| !label.contains('-'))
}

/// Nothing of what a file of keys says may reach a log, but a word like those that are known.
fn printable(label: &str) -> String {
    let is_word = |it: u8| it.is_ascii_uppercase() || it.is_ascii_digit() || it == b' ';
    let shown = label.len() <= 30 && label.bytes().all(is_word);
    if shown { label.to_owned() } else { "...".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn parts_with_comments_between_them_and_ends_of_lines_of_windows_are_all_there() {
        let text = format!("subject=CN = a\n{PART}\n issuer\n{PART}");
        let combined = format!("{PART}-----BEGIN EC PARAMETERS-----\nBgg=\n-----END EC PARAMETERS-----  \n");
        for text in [&text, &combined, &text.replace('\n', "\r\n"), text.trim_end(), "", "no PEM at all"] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_part_that_would_not_be_read_is_named_by_its_line() {
        let glued = format!("{}{PART}", PART.trim_end());
        let indented = format!("{PART}{}", PART.replace("-----BEGIN", " -----BEGIN"));
        let marked = format!("\u{feff}{PART}");
        let twice = "-----BEGIN CERTIFICATE----------BEGIN CERTIFICATE-----\n";
        let behind = PART.replace("FICATE-----\nA", "FICATE----- # mine\nA");
        for (text, line) in [(glued.as_str(), 3), (&indented, 4), (&marked, 1), (twice, 1), (&behind, 1)] {
            assert_eq!(check(text.as_bytes()), Err(Fault::Glued { line }), "{text}");
        }
        let unended = format!("# a\n-----BEGIN CERTIFICATE-----\nAAAA\n{PART}");
        assert_eq!(check(unended.as_bytes()), Err(Fault::Unended { line: 4, begun: 2 }));
        let trusted = PART.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
        let label = "TRUSTED CERTIFICATE".to_owned();
        assert_eq!(check(trusted.as_bytes()), Err(Fault::Label { line: 1, label }));
        let odd = PART.replace("CERTIFICATE", "\u{1b}[31m");
        assert_eq!(check(odd.as_bytes()), Err(Fault::Label { line: 1, label: "...".to_owned() }));
    }
}
