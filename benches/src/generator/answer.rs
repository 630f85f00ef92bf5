//! Reads one response and checks it; no sockets here.
//!
//! A response must be a 200, framed by `Content-Length` with the length that was asked for or in chunks, and carry the
//! bytes of [`payload`]. Anything else is a [`Fault`].

use super::tally::Fault;
use crate::chunks::{Chunks, Malformed};
use crate::payload;

/// A head longer than this is not one that a proxy in this comparison sends.
const MAX_HEAD: usize = 16 << 10;

/// What a connection has received of the current response.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Start of a head whose end has not come yet.
    head: Vec<u8>,
    /// Set once the head was read.
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    received: u64,
    close: bool,
    /// `None`: it has a length.
    chunks: Option<Chunks>,
}

impl From<Malformed> for Fault {
    fn from(_: Malformed) -> Self {
        Fault::Length
    }
}

/// How far a response is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes must come.
    More,
    /// The response is whole and right; `close` if the server said that it closes the connection.
    Done {
        /// The server said `Connection: close`.
        close: bool,
    },
}

impl Answer {
    /// Takes received bytes; the body must have `expected` bytes in all. After `Done` it is ready for the
    /// next response.
    pub(super) fn take(&mut self, received: &[u8], expected: u64) -> Result<Progress, Fault> {
        if self.body.is_some() {
            return self.take_body(received, expected);
        }
        if self.head.is_empty() {
            return match self.take_head(received, expected)? {
                Some(head_length) => self.take_body(&received[head_length..], expected),
                None => {
                    self.head.extend_from_slice(received);
                    Ok(Progress::More)
                }
            };
        }
        let mut joined = std::mem::take(&mut self.head);
        joined.extend_from_slice(received);
        match self.take_head(&joined, expected)? {
            Some(head_length) => self.take_body(&joined[head_length..], expected),
            None => {
                self.head = joined;
                Ok(Progress::More)
            }
        }
    }

    fn take_head(&mut self, bytes: &[u8], expected: u64) -> Result<Option<usize>, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut fields);
        let head_length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
            Ok(httparse::Status::Partial) | Err(_) => return Err(Fault::Head),
        };
        if head.code != Some(200) {
            return Err(Fault::Status);
        }
        let (mut length, mut chunks): (Option<u64>, _) = (None, None);
        let mut close = head.version == Some(0);
        for field in head.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                length = std::str::from_utf8(field.value).ok().and_then(|digits| digits.parse().ok());
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                chunks = field.value.eq_ignore_ascii_case(b"chunked").then(Chunks::default);
            } else if field.name.eq_ignore_ascii_case("connection") {
                close = field.value.eq_ignore_ascii_case(b"close");
            }
        }
        if chunks.is_some() == length.is_some() || length.is_some_and(|length| length != expected) {
            return Err(Fault::Length);
        }
        self.body = Some(Body { received: 0, close, chunks });
        Ok(Some(head_length))
    }

    fn take_body(&mut self, piece: &[u8], expected: u64) -> Result<Progress, Fault> {
        let Some(body) = &mut self.body else { return Ok(Progress::More) };
        let received = &mut body.received;
        let mut data = |piece: &[u8]| {
            if !payload::fits(*received, piece) {
                return Err(Fault::Content);
            }
            *received += piece.len() as u64;
            Ok(())
        };
        let (complete, behind) = match &mut body.chunks {
            Some(chunks) => {
                let taken = chunks.take(piece, data)?;
                (chunks.is_done(), taken < piece.len())
            }
            None => {
                data(piece)?;
                (body.received == expected, false)
            }
        };
        if body.received > expected || behind || (complete && body.received < expected) {
            return Err(Fault::Length);
        }
        if !complete {
            return Ok(Progress::More);
        }
        let close = body.close;
        self.body = None;
        Ok(Progress::Done { close })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(head: &str, length: usize) -> Vec<u8> {
        [head.as_bytes(), &payload::body(length)].concat()
    }

    #[test]
    fn a_right_response_is_done_however_it_is_cut() {
        let bytes = response("HTTP/1.1 200 OK\r\ncontent-length: 300\r\nConnection: close\r\n\r\n", 300);
        for cut in 1..bytes.len() {
            let mut answer = Answer::default();
            assert_eq!(answer.take(&bytes[..cut], 300), Ok(Progress::More), "{cut}");
            assert_eq!(answer.take(&bytes[cut..], 300), Ok(Progress::Done { close: true }), "{cut}");
        }
    }

    #[test]
    fn every_wrong_response_has_its_kind() {
        let cases = [
            ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 16\r\n\r\n", 16, Fault::Status),
            ("HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n", 17, Fault::Length),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 16, Fault::Length),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", 16, Fault::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n", 17, Fault::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\nx", 15, Fault::Content),
            ("\0\r\n\r\n", 0, Fault::Head),
        ];
        for (head, length, fault) in cases {
            assert_eq!(Answer::default().take(&response(head, length), 16), Err(fault), "{head}");
        }
    }
}
