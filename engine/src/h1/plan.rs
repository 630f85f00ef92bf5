//! How a response leaves towards the client: the framing of its body and the fate of the connection.
//!
//! Promises that the client can always tell where the body ends, whatever version it speaks.

use super::{Method, ResponseBody, ResponseHead, Version};

/// Framing of the body that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutFraming {
    /// No body follows the head.
    None,
    /// This many bytes follow.
    Length(u64),
    /// Chunks follow.
    Chunked,
    /// The end of the connection ends the body.
    UntilClose,
}

/// What the head that leaves says about the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutConnection {
    /// `Connection: close`; it is closed after the body.
    Close,
    /// `Connection: keep-alive`, for HTTP/1.0.
    KeepAlive10,
    /// Nothing is said: HTTP/1.1 goes on.
    Implicit,
    /// `Connection: upgrade`; a tunnel follows.
    Upgrade,
}

/// How a response leaves towards the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponsePlan {
    /// Framing of the body.
    pub framing: OutFraming,
    /// What becomes of the connection.
    pub connection: OutConnection,
    /// The head says `Transfer-Encoding: chunked` although no body follows (an answer to `HEAD`).
    pub announce_chunked: bool,
}

impl ResponsePlan {
    /// Decides framing and connection (RFC 9112 sections 6.3 and 9.3).
    pub fn new(
        head: &ResponseHead<'_>,
        request_method: Method,
        client_version: Version,
        client_keep_alive: bool,
    ) -> ResponsePlan {
        let modern = client_version == Version::Http11;
        let framing = match head.body {
            ResponseBody::None => OutFraming::None,
            ResponseBody::Length(length) => OutFraming::Length(length),
            // RFC 9112 section 6.1: no transfer coding towards a client of HTTP/1.0.
            ResponseBody::Chunked | ResponseBody::UntilClose if modern => OutFraming::Chunked,
            ResponseBody::Chunked | ResponseBody::UntilClose => OutFraming::UntilClose,
        };
        let connection = if head.status == 101 {
            OutConnection::Upgrade
        } else if head.is_interim() {
            OutConnection::Implicit
        } else if !client_keep_alive || framing == OutFraming::UntilClose {
            OutConnection::Close
        } else if modern {
            OutConnection::Implicit
        } else {
            OutConnection::KeepAlive10
        };
        // RFC 9112 section 6.1: an answer to HEAD may say what the answer to GET would have had.
        let announce_chunked = modern
            && request_method == Method::Head
            && head.framing.chunked
            && head.status >= 200
            && !matches!(head.status, 204 | 304);
        ResponsePlan { framing, connection, announce_chunked }
    }
}
