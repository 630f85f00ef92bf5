//! The answer to a probe, as it comes: whether it is a good one. Sans-I/O.
//!
//! What a backend sends is believed in nothing. Promises: no more than [`limits::PROBE_HEAD`] of heads and [`limits::PROBE_BODY`] of a
//! body are kept; what is said of an answer has no word in it that the backend has chosen.

use kakehi_ctl::{limits, state::HealthCheck};

use super::Outcome;

/// Fields of a head.
const MOST_FIELDS: usize = 64;
/// More bytes than these are not read for a body, however it is framed: chunks may be small.
const MOST_FRAMED: usize = 4 * limits::PROBE_BODY;

/// An answer that is coming.
pub(super) struct Answer<'a> {
    check: &'a HealthCheck,
    /// What came and was not read.
    rest: Vec<u8>,
    /// Bytes of heads that were read.
    heads: usize,
    body: Option<Body>,
}

/// A body that is looked through.
struct Body {
    status: u16,
    framing: Framing,
    text: Vec<u8>,
    /// Bytes so far, with those around chunks.
    framed: usize,
}

/// Where a body ends (RFC 9112 section 6.3).
enum Framing {
    /// With the connection.
    Close,
    /// After so many more bytes.
    Length(u64),
    /// With the last chunk.
    Chunks(Chunks),
}

/// Where in a body of chunks (RFC 9112 section 7.1).
enum Chunks {
    /// In the size, of which this was read.
    Size(u64),
    /// Behind it, in the same line.
    Extension(u64),
    /// In the data, of which so much is to come.
    Data(u64),
    /// At the end of its line.
    End,
}

impl<'a> Answer<'a> {
    pub(super) fn new(check: &'a HealthCheck) -> Answer<'a> {
        Answer { check, rest: Vec::new(), heads: 0, body: None }
    }

    /// Takes what came. The outcome, once it is known.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<Outcome> {
        if let Some(body) = &mut self.body {
            return body.take(bytes, self.check);
        }
        self.rest.extend_from_slice(bytes);
        loop {
            let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
            let mut head = httparse::Response::new(&mut fields);
            let (length, status) = match head.parse(&self.rest) {
                Ok(httparse::Status::Complete(length)) => (length, head.code.unwrap_or_default()),
                Ok(httparse::Status::Partial) if self.heads + self.rest.len() <= limits::PROBE_HEAD => {
                    return None;
                }
                Ok(httparse::Status::Partial) => return Some(too_large()),
                Err(httparse::Error::TooManyHeaders) => {
                    return Some(Outcome::bad(format!("its head has more than {MOST_FIELDS} fields")));
                }
                Err(_) => return Some(Outcome::bad("its answer is no HTTP/1")),
            };
            self.heads += length;
            if self.heads > limits::PROBE_HEAD {
                return Some(too_large());
            }
            // Interim: RFC 9110 section 15.2. After 101 nothing follows that would be HTTP.
            if (100..200).contains(&status) && status != 101 {
                self.rest.drain(..length);
                continue;
            }
            if !self.check.accepts(status) {
                return Some(Outcome::bad(format!("status {status}")));
            }
            if self.check.body_contains.is_none() {
                return Some(Outcome::good(format!("status {status}")));
            }
            let framing = if matches!(status, 101 | 204 | 304) {
                Some(Framing::Length(0))
            } else {
                framing(head.headers)
            };
            let Some(framing) = framing else {
                return Some(Outcome::bad("its length makes no sense"));
            };
            let mut body = Body { status, framing, text: Vec::new(), framed: 0 };
            let outcome = body.take(&self.rest[length..], self.check);
            (self.body, self.rest) = (Some(body), Vec::new());
            return outcome;
        }
    }

    /// The backend has closed the connection.
    pub(super) fn end(&self) -> Outcome {
        match &self.body {
            Some(body) => body.lacks(),
            None if self.rest.is_empty() && self.heads == 0 => {
                Outcome::bad("it closed the connection without an answer")
            }
            None => Outcome::bad("it closed the connection in the midst of its answer"),
        }
    }
}

fn too_large() -> Outcome {
    Outcome::bad(format!("its head is larger than {} bytes", limits::PROBE_HEAD))
}

/// `None`: it cannot be told where the body ends.
fn framing(fields: &[httparse::Header<'_>]) -> Option<Framing> {
    let all = |name: &'static str| fields.iter().filter(move |it| it.name.eq_ignore_ascii_case(name));
    if let Some(coding) = all("transfer-encoding").next_back() {
        let is_chunked = coding.value.trim_ascii().to_ascii_lowercase().ends_with(b"chunked");
        return Some(if is_chunked { Framing::Chunks(Chunks::Size(0)) } else { Framing::Close });
    }
    match all("content-length").next() {
        Some(length) => {
            let digits = std::str::from_utf8(length.value.trim_ascii()).ok()?;
            digits.bytes().all(|it| it.is_ascii_digit()).then(|| digits.parse().ok().map(Framing::Length))?
        }
        None => Some(Framing::Close),
    }
}

impl Body {
    fn take(&mut self, bytes: &[u8], check: &HealthCheck) -> Option<Outcome> {
        let wanted = check.body_contains.as_deref().unwrap_or_default().as_bytes();
        self.framed += bytes.len();
        // What was found to be missing before may be completed by what comes.
        let from = self.text.len().saturating_sub(wanted.len());
        let is_whole = match self.read(bytes) {
            Ok(is_whole) => is_whole,
            Err(outcome) => return Some(outcome),
        };
        let is_full = self.text.len() >= limits::PROBE_BODY;
        self.text.truncate(limits::PROBE_BODY);
        if self.text[from.min(self.text.len())..].windows(wanted.len().max(1)).any(|it| it == wanted) {
            return Some(Outcome::good(format!("status {}, with the text", self.status)));
        }
        (is_whole || is_full || self.framed > MOST_FRAMED).then(|| self.lacks())
    }

    fn lacks(&self) -> Outcome {
        Outcome::bad(format!("status {}, without `body_contains`", self.status))
    }

    /// Reads what came; true at the end of the body.
    fn read(&mut self, mut bytes: &[u8]) -> Result<bool, Outcome> {
        match &mut self.framing {
            Framing::Close => {
                self.text.extend_from_slice(bytes);
                Ok(false)
            }
            Framing::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                self.text.extend_from_slice(&bytes[..length]);
                *left -= length as u64;
                Ok(*left == 0)
            }
            Framing::Chunks(place) => {
                while let Some((&byte, after)) = bytes.split_first() {
                    match place {
                        Chunks::Size(size) => match (char::from(byte).to_digit(16), byte) {
                            (Some(digit), _) => {
                                let next = size.checked_mul(16).and_then(|it| it.checked_add(digit.into()));
                                let next = next.ok_or_else(|| Outcome::bad("its chunks make no sense"))?;
                                *place = Chunks::Size(next);
                            }
                            (None, b'\n') if *size == 0 => return Ok(true),
                            (None, b'\n') => *place = Chunks::Data(*size),
                            (None, b'\r' | b';' | b' ' | b'\t') => *place = Chunks::Extension(*size),
                            (None, _) => return Err(Outcome::bad("its chunks make no sense")),
                        },
                        Chunks::Extension(size) => match byte {
                            b'\n' if *size == 0 => return Ok(true),
                            b'\n' => *place = Chunks::Data(*size),
                            _ => {}
                        },
                        Chunks::Data(left) => {
                            let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                            self.text.extend_from_slice(&bytes[..length]);
                            *left -= length as u64;
                            if *left == 0 {
                                *place = Chunks::End;
                            }
                            bytes = &bytes[length..];
                            continue;
                        }
                        Chunks::End if byte == b'\n' => *place = Chunks::Size(0),
                        Chunks::End => {}
                    }
                    bytes = after;
                }
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut HealthCheck)) -> HealthCheck {
        let mut check = HealthCheck::default();
        change(&mut check);
        check
    }

    /// The outcome of an answer that comes in pieces of every size, and ends with the connection.
    fn outcome(check: &HealthCheck, text: &str) -> (bool, String) {
        let of = |size: usize| {
            let mut answer = Answer::new(check);
            let known = text.as_bytes().chunks(size).find_map(|piece| answer.take(piece));
            match known.unwrap_or_else(|| answer.end()) {
                Outcome::Good(text) => (true, text.into_owned()),
                Outcome::Bad(text) => (false, text.into_owned()),
                Outcome::Void(text) => panic!("{text}"),
            }
        };
        let whole = of(text.len().max(1));
        for size in [1, 2, 3, 7] {
            assert_eq!(of(size), whole, "{text:?} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn a_status_is_good_or_bad_and_interim_ones_are_neither() {
        let plain = check(|_| ());
        for (text, good, words) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true, "status 200"),
            ("HTTP/1.0 204\r\n\r\n", true, "status 204"),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", false, "status 302"),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", true, "status 200"),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", false, "status 101"),
            ("SSH-2.0-OpenSSH\r\n", false, "no HTTP/1"),
            ("", false, "without an answer"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n", false, "in the midst"),
        ] {
            let (is_good, said) = outcome(&plain, text);
            assert!(is_good == good && said.contains(words), "{text:?}: {said}");
        }
        let redirect = check(|it| it.expected_status = 302);
        assert!(outcome(&redirect, "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n").0);
    }

    #[test]
    fn a_head_is_bounded_however_it_is_made_up() {
        let plain = check(|_| ());
        for text in [
            format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(limits::PROBE_HEAD)),
            "HTTP/1.1 103 A\r\n\r\n".repeat(400) + "HTTP/1.1 200 OK\r\n\r\n",
            format!("HTTP/1.1 200 {}", "x".repeat(1 << 20)),
            format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(100)),
        ] {
            let mut answer = Answer::new(&plain);
            let known = text.as_bytes().chunks(512).find_map(|piece| answer.take(piece));
            assert!(matches!(known, Some(Outcome::Bad(_))), "{}", text.len());
            assert!(answer.rest.len() <= limits::PROBE_HEAD + 512);
        }
    }

    #[test]
    fn a_text_is_found_in_a_body_however_it_is_framed() {
        let wanted = check(|it| it.body_contains = Some("all is well".to_owned()));
        for (text, good) in [
            ("HTTP/1.1 200 OK\r\n\r\nnow all is well here", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is well", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nall is well", false),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6;x=y\r\nall is\r\n5\r\n well\r\n0\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n0\r\n\r\nall is well", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nall is well", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: +11\r\n\r\nall is well", false),
            ("HTTP/1.1 204 No Content\r\n\r\nall is well", false),
            ("HTTP/1.1 500 Oops\r\n\r\nall is well", false),
        ] {
            assert_eq!(outcome(&wanted, text).0, good, "{text:?}");
        }
        let late = format!("HTTP/1.1 200 OK\r\n\r\n{}all is well", "x".repeat(limits::PROBE_BODY));
        let mut answer = Answer::new(&wanted);
        let known = late.as_bytes().chunks(4096).find_map(|piece| answer.take(piece));
        assert!(matches!(known, Some(Outcome::Bad(_))));
    }
}
