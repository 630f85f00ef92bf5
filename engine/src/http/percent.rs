//! Percent-encoding (RFC 3986 section 2.1), for paths and queries.

/// Decodes `%XX` once; the result may be any bytes.
pub(crate) fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, _, after)) = next_byte(rest) {
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// The next byte, whether it was percent-encoded, and what follows.
pub(crate) fn next_byte(text: &[u8]) -> Option<(u8, bool, &[u8])> {
    match text {
        [b'%', high, low, rest @ ..] => match (hex_digit(*high), hex_digit(*low)) {
            (Some(high), Some(low)) => Some((high << 4 | low, true, rest)),
            _ => Some((b'%', false, &text[1..])),
        },
        [byte, rest @ ..] => Some((*byte, false, rest)),
        [] => None,
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}
