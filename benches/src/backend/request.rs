//! What the backend reads of a request head: where it ends, what it asks for, and what follows it.

use std::io;

use crate::payload;

/// What the path begins with that asks for a body in chunks.
const CHUNKED: &str = "/chunked/";

/// The few things that the backend wants to know of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes of the head with its empty line.
    pub(super) head_length: usize,
    /// Length of the body asked for (bytes), `None` if the path names none.
    pub(super) body: Option<usize>,
    /// The body asked for is to be in chunks.
    pub(super) chunked: bool,
    /// Length of the request's own body (bytes).
    pub(super) content_length: u64,
    /// The request's own body is in chunks.
    pub(super) in_chunks: bool,
    /// Whether the client wants the connection closed after the answer.
    pub(super) close: bool,
    /// It asks for a tunnel.
    pub(super) upgrade: bool,
}

/// Parses a request head; `None` if it is not whole yet.
///
/// # Errors
/// `InvalidData` if it is malformed or has a body that is framed neither by `Content-Length` nor in chunks.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<Request>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    let head_length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let chunked = head.path.is_some_and(|path| path.starts_with(CHUNKED));
    let body = head.path.and_then(body_length);
    let close = head.version == Some(0);
    let (content_length, in_chunks, upgrade) = (0, false, false);
    let mut request = Request { head_length, body, chunked, content_length, in_chunks, close, upgrade };
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            request.content_length = decimal(field.value).ok_or(io::ErrorKind::InvalidData)?;
        } else if field.name.eq_ignore_ascii_case("connection") {
            request.close = field.value.eq_ignore_ascii_case(b"close");
        } else if field.name.eq_ignore_ascii_case("upgrade") {
            request.upgrade = true;
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(io::ErrorKind::InvalidData.into());
            }
            request.in_chunks = true;
        }
    }
    Ok(Some(request))
}

fn body_length(path: &str) -> Option<usize> {
    let length = match path {
        "/16" => 16,
        "/1m" => 1 << 20,
        _ => path.strip_prefix("/bytes/").or(path.strip_prefix(CHUNKED))?.parse().ok()?,
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
        let head_length = bytes.len() - 5;
        let expected = Request {
            head_length,
            body: Some(70),
            chunked: false,
            content_length: 5,
            in_chunks: false,
            close: true,
            upgrade: false,
        };
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
    fn bodies_in_chunks_are_told_from_others() {
        let head = parse(b"POST /chunked/9 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().unwrap();
        assert!(head.in_chunks && head.chunked && head.body == Some(9));
        assert!(parse(b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n").is_err());
    }
}
