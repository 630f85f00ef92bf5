//! Where a message ends: `Content-Length` and `Transfer-Encoding` (RFC 9112 section 6).
//!
//! Promises: one reading or none. What two parties could read differently is refused, never repaired.

use super::{Reason, Version, field::elements};

/// How the body of a request ends. A request is never delimited by the end of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestBody {
    /// There is none, and nothing said so.
    None,
    /// This many bytes, possibly 0.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// How the body of a response ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseBody {
    /// There is none, whatever the fields say (`HEAD`, 1xx, 204, 304).
    None,
    /// This many bytes, possibly 0.
    Length(u64),
    /// In chunks.
    Chunked,
    /// It ends where the connection ends.
    UntilClose,
}

/// What the framing fields of a head say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

impl Framing {
    /// Adds one `Content-Length` field: `1*DIGIT`, or a list of the same number (RFC 9112 section 6.3, 5).
    pub(super) fn read_length(&mut self, value: &[u8]) -> Result<(), Reason> {
        for element in elements(value) {
            let length = decimal(element).ok_or(Reason::BadContentLength)?;
            if self.length.is_some_and(|earlier| earlier != length) {
                return Err(Reason::BadContentLength);
            }
            self.length = Some(length);
        }
        Ok(())
    }

    /// Adds one `Transfer-Encoding` field: `chunked`, once, and nothing else (RFC 9112 section 6.1).
    pub(super) fn read_coding(&mut self, value: &[u8], version: Version) -> Result<(), Reason> {
        // RFC 9112 section 6.1: in HTTP/1.0 the framing is to be treated as faulty.
        if version == Version::Http10 {
            return Err(Reason::TransferEncodingInHttp10);
        }
        if value.eq_ignore_ascii_case(b"chunked") && !self.chunked {
            self.chunked = true;
            return Ok(());
        }
        Err(refused_coding(value, self.chunked))
    }

    /// RFC 9112 section 6.1: a message with both fields may be an attempt at smuggling, and is refused.
    pub(super) fn check(&self) -> Result<(), Reason> {
        if self.chunked && self.length.is_some() {
            return Err(Reason::ContentLengthAndTransferEncoding);
        }
        Ok(())
    }
}

/// Codings that exist, before a final `chunked`, are "not implemented"; all else is malformed.
#[cold]
fn refused_coding(value: &[u8], earlier: bool) -> Reason {
    const KNOWN: [&str; 5] = ["gzip", "x-gzip", "deflate", "compress", "x-compress"];
    let known = |coding: &[u8]| KNOWN.iter().any(|name| coding.eq_ignore_ascii_case(name.as_bytes()));
    let (mut count, mut well_formed) = (0, !earlier);
    let mut last: &[u8] = b"";
    for coding in elements(value) {
        // What was the last one so far stands before this one.
        well_formed &= count == 0 || known(last);
        last = coding;
        count += 1;
    }
    if well_formed && count > 1 && last.eq_ignore_ascii_case(b"chunked") {
        Reason::UnknownTransferEncoding
    } else {
        Reason::BadTransferEncoding
    }
}

/// A number of `1*DIGIT` that fits 64 bits (RFC 9110 section 8.6: no overflow). No sign, no space, no `0x`.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(values: &[&str]) -> Result<Option<u64>, Reason> {
        let mut framing = Framing::default();
        values.iter().try_for_each(|value| framing.read_length(value.as_bytes()))?;
        Ok(framing.length)
    }

    fn coding(values: &[&str]) -> Result<bool, Reason> {
        let mut framing = Framing::default();
        values.iter().try_for_each(|value| framing.read_coding(value.as_bytes(), Version::Http11))?;
        Ok(framing.chunked)
    }

    #[test]
    fn a_content_length_is_digits_that_fit_and_agree() {
        assert_eq!(length(&["0"]), Ok(Some(0)));
        assert_eq!(length(&["007"]), Ok(Some(7)));
        assert_eq!(length(&["18446744073709551615"]), Ok(Some(u64::MAX)));
        assert_eq!(length(&["5", "5"]), Ok(Some(5)));
        assert_eq!(length(&["5, 5"]), Ok(Some(5)));
        for bad in [
            "",
            "+5",
            "-5",
            "5 5",
            "0x5",
            "5a",
            "5,6",
            "5,",
            ",5",
            "1_0",
            "18446744073709551616",
            "99999999999999999999999999999999999999999",
            "5.0",
            "\u{665}",
        ] {
            assert_eq!(length(&[bad]), Err(Reason::BadContentLength), "{bad}");
        }
        assert_eq!(length(&["5", "6"]), Err(Reason::BadContentLength));
    }

    #[test]
    fn a_transfer_encoding_is_one_chunked_and_nothing_else() {
        assert_eq!(coding(&["chunked"]), Ok(true));
        assert_eq!(coding(&["ChunkeD"]), Ok(true));
        for bad in [
            "",
            "xchunked",
            "chunkedx",
            "identity",
            "chunked, identity",
            "chunked,chunked",
            ",chunked",
            "chunked,",
            "gzip",
            "chunked, gzip",
            "\"chunked\"",
            "chunked;q=1",
            "identity, chunked",
            "gzip, , chunked",
            "chunk ed",
            "\u{b}chunked",
        ] {
            assert_eq!(coding(&[bad]), Err(Reason::BadTransferEncoding), "{bad}");
        }
        assert_eq!(coding(&["chunked", "chunked"]), Err(Reason::BadTransferEncoding));
        assert_eq!(coding(&["chunked", "gzip, chunked"]), Err(Reason::BadTransferEncoding));
        assert_eq!(coding(&["gzip, chunked"]), Err(Reason::UnknownTransferEncoding));
        assert_eq!(coding(&["deflate , X-GZIP,Chunked"]), Err(Reason::UnknownTransferEncoding));
    }

    #[test]
    fn both_framing_fields_and_a_coding_in_http_10_are_refused() {
        let both = Framing { length: Some(0), chunked: true };
        assert_eq!(both.check(), Err(Reason::ContentLengthAndTransferEncoding));
        let mut framing = Framing::default();
        assert_eq!(framing.read_coding(b"chunked", Version::Http10), Err(Reason::TransferEncodingInHttp10));
    }
}
