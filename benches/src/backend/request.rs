//! What the backend reads of a request head: where it ends, what it asks for, and what follows it.

use std::io;

use crate::payload;

/// The few things that the backend wants to know of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes of the head with its empty line.
    pub(super) head_length: usize,
    /// Length of the body asked for (bytes), `None` if the path names none.
    pub(super) body: Option<usize>,
    /// Length of the request's own body (bytes).
    pub(super) content_length: u64,
    /// Whether the client wants the connection closed after the answer.
    pub(super) close: bool,
}

/// Parses a request head; `None` if it is not whole yet.
///
/// # Errors
/// `InvalidData` if it is malformed or has a body that is not framed by `Content-Length`.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<Request>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    let head_length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let body = head.path.and_then(body_length);
    let mut request = Request { head_length, body, content_length: 0, close: head.version == Some(0) };
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            request.content_length = decimal(field.value).ok_or(io::ErrorKind::InvalidData)?;
        } else if field.name.eq_ignore_ascii_case("connection") {
            request.close = field.value.eq_ignore_ascii_case(b"close");
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(Some(request))
}

fn body_length(path: &str) -> Option<usize> {
    let length = match path {
        "/16" => 16,
        "/1m" => 1 << 20,
        _ => path.strip_prefix("/bytes/")?.parse().ok()?,
    };
    (length <= payload::MAX_BODY).then_some(length)
}

fn decimal(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_size_its_body_and_whether_to_close() {
        let bytes =
            b"POST /bytes/70 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let expected =
            Request { head_length: bytes.len() - 5, body: Some(70), content_length: 5, close: true };
        assert_eq!(parse(bytes).unwrap(), Some(expected));
        assert_eq!(parse(&bytes[..40]).unwrap(), None);
    }

    #[test]
    fn a_path_without_a_size_has_no_body() {
        for (path, length) in [
            ("/16", Some(16)),
            ("/1m", Some(1 << 20)),
            ("/", None),
            ("/bytes/x", None),
            ("/bytes/999999999", None),
        ] {
            assert_eq!(body_length(path), length, "{path}");
        }
    }

    #[test]
    fn chunked_requests_are_not_for_this_backend() {
        assert!(parse(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
