//! Where a message ends: `Content-Length` and `Transfer-Encoding` (RFC 9112 section 6).

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
