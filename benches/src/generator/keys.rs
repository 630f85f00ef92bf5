//! A field that is another one in each request, for limits that go by it.

use std::io::Write as _;

/// Digits of a value: as many in each, so that requests are equally long.
const DIGITS: usize = 10;

/// The values that requests have in turn, and where in the request.
#[derive(Debug)]
pub(super) struct Keys {
    count: u32,
    next: u32,
    at: usize,
}

impl Keys {
    /// Makes room for them in `request`, behind its first line; without values none is made.
    pub(super) fn of(count: u32, request: &mut Vec<u8>) -> Option<Keys> {
        let line = (count > 0).then(|| request.iter().position(|byte| *byte == b'\n'))??;
        let field = format!("X-Key: {:0DIGITS$}\r\n", 0);
        let at = line + 1 + field.len() - 2 - DIGITS;
        request.splice(line + 1..line + 1, field.into_bytes());
        Some(Keys { count, next: 0, at })
    }

    /// Puts the next one into `request`.
    pub(super) fn turn(&mut self, request: &mut [u8]) {
        let mut place = &mut request[self.at..self.at + DIGITS];
        let fits = write!(place, "{:0DIGITS$}", self.next);
        debug_assert!(fits.is_ok());
        self.next = (self.next + 1) % self.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_its_turn_and_what_stands_around_it_stays() {
        let mut request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
        let mut keys = Keys::of(2, &mut request).unwrap();
        for expected in ["0000000000", "0000000001", "0000000000"] {
            keys.turn(&mut request);
            let text = format!("GET / HTTP/1.1\r\nX-Key: {expected}\r\nHost: a\r\n\r\n");
            assert_eq!(String::from_utf8_lossy(&request), text);
        }
        assert!(Keys::of(0, &mut request).is_none());
    }
}
