//! The trailer section of a body in chunks (RFC 9110 section 6.5, RFC 9112 section 7.1.2).
//!
//! Promises: bounded in bytes and fields, every line valid, and nothing in it that a recipient could merge
//! into the head with effect: framing, routing, authentication, forwarding and connection fields are dropped.

use crate::limits;

use super::Reason;
use super::field::{Kind, classify, is_called, is_token_byte, is_value_byte};

/// Collects a trailer section that may arrive in pieces.
#[derive(Debug)]
pub(super) struct Trailers {
    /// The lines that are passed on, then the line that is not complete.
    bytes: Vec<u8>,
    /// Where that line starts.
    line: usize,
    /// Bytes of the section so far, dropped lines included.
    total: usize,
    fields_left: u16,
    /// Fields with `_` in their names are dropped, as in the head of a request.
    drops_underscores: bool,
    /// A name that is kakehi's own.
    own: Option<Box<str>>,
}

impl Trailers {
    /// An empty section; at most `max_fields` lines are put up with.
    pub(super) fn new(max_fields: u16) -> Trailers {
        let (bytes, own) = Default::default();
        Trailers { bytes, line: 0, total: 0, fields_left: max_fields, drops_underscores: false, own }
    }

    /// From now on fields with `_` in their names are dropped.
    pub(super) fn drop_underscores(&mut self) {
        self.drops_underscores = true;
    }

    /// From now on fields of this name are dropped; none if it is empty.
    pub(super) fn drop_own(&mut self, name: &str) {
        self.own = (!name.is_empty()).then(|| name.into());
    }

    /// Reads on; says how many bytes belong to the section, and whether its empty line was among them.
    pub(super) fn read(&mut self, input: &[u8]) -> Result<(usize, bool), Reason> {
        // Nearly every body ends like this.
        if self.total == 0 && input.starts_with(b"\r\n") {
            self.total = 2;
            return Ok((2, true));
        }
        let mut consumed = 0;
        while consumed < input.len() {
            let rest = &input[consumed..];
            let len = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
            self.total += len;
            if self.total > limits::MAX_TRAILER_SIZE {
                return Err(Reason::BadTrailer);
            }
            self.bytes.extend_from_slice(&rest[..len]);
            consumed += len;
            if rest[len - 1] == b'\n' && self.end_line()? {
                return Ok((consumed, true));
            }
        }
        Ok((consumed, false))
    }

    /// The lines that are passed on, each with its CRLF.
    pub(super) fn kept(&self) -> &[u8] {
        &self.bytes[..self.line]
    }

    /// Judges the line that just became complete; whether it was the empty one.
    fn end_line(&mut self) -> Result<bool, Reason> {
        // A bare LF ends no line (RFC 9112 section 2.2).
        let line = self.bytes[self.line..].strip_suffix(b"\r\n").ok_or(Reason::BadTrailer)?;
        if line.is_empty() {
            self.bytes.truncate(self.line);
            return Ok(true);
        }
        self.fields_left = self.fields_left.checked_sub(1).ok_or(Reason::BadTrailer)?;
        let colon = memchr::memchr(b':', line).ok_or(Reason::BadTrailer)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        // A line that starts with white space (obsolete folding) has no token before its colon.
        if name.is_empty()
            || !name.iter().all(|byte| is_token_byte(*byte))
            || !value.iter().all(|byte| is_value_byte(*byte))
        {
            return Err(Reason::BadTrailer);
        }
        let is_own = self.own.as_ref().is_some_and(|own| is_called(name, own));
        if is_allowed(name) && !is_own && !(self.drops_underscores && name.contains(&b'_')) {
            self.line = self.bytes.len();
        } else {
            self.bytes.truncate(self.line);
        }
        Ok(false)
    }
}

/// RFC 9110 section 6.5.1: what is needed for framing, routing, authentication, request modifiers, response
/// control or the format of the content has no place in a trailer section.
fn is_allowed(name: &[u8]) -> bool {
    const REFUSED: [&str; 31] = [
        "accept-encoding",
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-location",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "range",
        "referer",
        "retry-after",
        "set-cookie",
        "strict-transport-security",
        "trailer",
        "vary",
        "warning",
        "www-authenticate",
        "x-http-method-override",
        "x-original-url",
    ];
    classify(name) == Kind::Other
        && !REFUSED.iter().any(|refused| name.eq_ignore_ascii_case(refused.as_bytes()))
}
