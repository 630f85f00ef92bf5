//! What request and response heads share: limits, and how an incomplete head is looked at again.

use super::Reason;

/// Limits of one head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes of the whole head, line ends and leading empty lines included.
    pub bytes: u32,
    /// Field lines; more than [`limits::MAX_HEAD_FIELDS_CEILING`](crate::limits::MAX_HEAD_FIELDS_CEILING)
    /// are never taken.
    pub fields: u16,
    /// Bytes of the request target; not used for responses.
    pub target: u32,
}

/// How far an incomplete head was looked at. One per connection and direction; starts as its default, and
/// is that again after a complete head. The input only grows at its end between two calls.
///
/// A head that arrives byte by byte costs linear time: the parser runs at the first arrival, when the first
/// line and when the head shows its end, and each time the size has doubled (so that garbage is refused early).
#[derive(Debug, Default, Clone, Copy)]
pub struct HeadProgress {
    scanned: usize,
    attempted: usize,
    line_seen: bool,
}

impl HeadProgress {
    /// Whether the parser should run over `input`; `limit` is the size at which it must.
    #[inline]
    pub(super) fn is_worth_parsing(&mut self, input: &[u8], limit: usize) -> bool {
        if self.attempted == 0 {
            return !input.is_empty();
        }
        self.shows_end(input) || input.len() >= limit || input.len() >= 2 * self.attempted
    }

    /// Notes that the parser ran over `input` and found no end.
    pub(super) fn note_incomplete(&mut self, input: &[u8]) {
        (self.scanned, self.attempted) = (input.len(), input.len());
        self.line_seen = self.line_seen || memchr::memchr(b'\n', input).is_some();
    }

    /// Whether the first line or an empty line ends in what came since the last look. One with a bare line
    /// feed counts: the parser will refuse it.
    fn shows_end(&mut self, input: &[u8]) -> bool {
        let from = self.scanned.saturating_sub(2).min(input.len());
        self.scanned = input.len();
        if !self.line_seen && memchr::memchr(b'\n', &input[from..]).is_some() {
            self.line_seen = true;
            return true;
        }
        memchr::memchr_iter(b'\n', &input[from..])
            .any(|at| matches!(&input[from + at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
    }
}

/// The reason for an error of `httparse` in the fields of the head at the start of `input`.
#[cold]
pub(super) fn refuse_field(input: &[u8], error: httparse::Error) -> Reason {
    if error == httparse::Error::TooManyHeaders {
        return Reason::TooManyFields;
    }
    let end = memchr::memmem::find(input, b"\r\n\r\n").unwrap_or(input.len());
    for at in memchr::memchr2_iter(b'\r', b'\n', &input[..end]) {
        // RFC 9112 section 5.2 lets a server refuse an obsolete fold; a gateway answers 502 to one in a response.
        match (at.checked_sub(1).map(|before| input[before]), input[at], input.get(at + 1)) {
            (Some(b'\r'), b'\n', Some(b' ' | b'\t')) => return Reason::ObsoleteFold,
            (Some(b'\r'), b'\n', _) | (_, b'\r', None | Some(b'\n')) => {}
            _ => return Reason::BareLineFeed,
        }
    }
    Reason::BadField
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_comes_byte_by_byte_is_parsed_a_few_times_only() {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(4000));
        let mut progress = HeadProgress::default();
        let mut attempts = Vec::new();
        for len in 1..=head.len() {
            let input = &head.as_bytes()[..len];
            if progress.is_worth_parsing(input, 16_384) {
                attempts.push(len);
                progress.note_incomplete(input);
            }
        }
        assert!(attempts.len() < 16, "{attempts:?}");
        assert_eq!(attempts.last(), Some(&head.len()), "the end of the head is noticed");
    }

    #[test]
    fn the_end_is_noticed_wherever_the_arrivals_part() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for split in 14..head.len() {
            let mut progress = HeadProgress::default();
            progress.note_incomplete(&head[..split]);
            assert!(progress.is_worth_parsing(head, 16_384), "{split}");
        }
    }
}
