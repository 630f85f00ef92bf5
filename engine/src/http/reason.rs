//! Why kakehi answers by itself: one registry for the whole engine.
//!
//! Promises: a code never changes its meaning, and stands the same in the answer's body, the access log
//! and the metrics. New reasons are added, old ones are not renamed.

macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident = $status:literal $code:literal, )*) => {
        /// Reason of an answer that kakehi makes itself.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
        #[error("{}", self.code())]
        #[repr(u8)]
        pub enum Reason { $( $(#[$doc])* $name, )* }

        impl Reason {
            /// Every reason, in the order of [`Reason::index`].
            pub const ALL: &[Reason] = &[$( Reason::$name, )*];

            /// Status code of the answer, 200..=599.
            pub fn status(self) -> u16 {
                match self { $( Reason::$name => $status, )* }
            }

            /// Stable name, in `snake_case`.
            pub fn code(self) -> &'static str {
                match self { $( Reason::$name => $code, )* }
            }
        }
    };
}

reasons! {
    /// A line of the head ends in LF without CR, or has a CR elsewhere (RFC 9112 section 2.2).
    BareLineFeed = 400 "bare_line_feed",
    /// The first line is not `method SP target SP version` (RFC 9112 section 3).
    BadRequestLine = 400 "bad_request_line",
    /// A field line without a colon, with a name that is no token, or with a control byte in its value
    /// (RFC 9112 section 5).
    BadField = 400 "bad_field",
    /// A field value goes on in the next line (RFC 9112 section 5.2).
    ObsoleteFold = 400 "obsolete_fold",
    /// The request target is in no form of RFC 9112 section 3.2, or has bytes that no target has.
    BadTarget = 400 "bad_target",
    /// Neither HTTP/1.0 nor HTTP/1.1.
    BadVersion = 505 "bad_version",
    /// The authority is not `host[:port]` with a port of 1 to 65535.
    BadHost = 400 "bad_host",
    /// HTTP/1.1 without `Host` (RFC 9112 section 3.2).
    MissingHost = 400 "missing_host",
    /// More than one `Host`.
    DuplicateHost = 400 "duplicate_host",
    /// `Content-Length` is no number, too large, or given twice with different values.
    BadContentLength = 400 "bad_content_length",
    /// Both `Content-Length` and `Transfer-Encoding`: the classic of request smuggling.
    ContentLengthAndTransferEncoding = 400 "content_length_and_transfer_encoding",
    /// `Transfer-Encoding` is anything but one `chunked`.
    BadTransferEncoding = 400 "bad_transfer_encoding",
    /// A transfer coding that exists, and that kakehi does not implement (RFC 9112 section 6.1).
    UnknownTransferEncoding = 501 "unknown_transfer_encoding",
    /// `Transfer-Encoding` in HTTP/1.0, which does not know it (RFC 9112 section 6.1).
    TransferEncodingInHttp10 = 400 "transfer_encoding_in_http10",
    /// `Connection` names more fields than anybody has.
    BadConnection = 400 "bad_connection",
    /// The head is longer than `max_head_size`.
    HeadTooLarge = 431 "head_too_large",
    /// The head has more fields than `max_head_fields`.
    TooManyFields = 431 "too_many_fields",
    /// The request target is longer than `max_target_size`.
    TargetTooLong = 414 "target_too_long",
    /// `CONNECT`: kakehi is no forward proxy.
    ConnectRefused = 405 "connect_refused",
    /// The chunk framing of a body is broken (RFC 9112 section 7.1).
    BadChunk = 400 "bad_chunk",
    /// The trailer section of a body is broken or too large (RFC 9112 section 7.1.2).
    BadTrailer = 400 "bad_trailer",
    /// `Expect` asks for something else than `100-continue` (RFC 9110 section 10.1.1).
    BadExpect = 417 "bad_expect",
    /// `Upgrade` is no list of protocol names (RFC 9110 section 7.8).
    BadUpgrade = 400 "bad_upgrade",

    /// No complete request head within `request_timeout`.
    RequestTimeout = 408 "request_timeout",
    /// The request body stood still, or trickled below `body_min_rate`.
    BodyTimeout = 408 "body_timeout",
    /// The request body is larger than `max_body_size`.
    BodyTooLarge = 413 "body_too_large",
    /// The path can be read in two ways, one of which would escape a rule.
    AmbiguousPath = 400 "ambiguous_path",
    /// A rule refuses this request.
    Denied = 401 "denied",
    /// No frontend matches host, path and method.
    NoRoute = 404 "no_route",
    /// The cluster has no backend that may be used.
    NoBackend = 503 "no_backend",
    /// No backend could be reached.
    BackendConnectFailed = 503 "backend_connect_failed",
    /// No connection to a backend within `connect_timeout`.
    BackendConnectTimeout = 504 "backend_connect_timeout",
    /// The backend was silent for `back_timeout`.
    BackendTimeout = 504 "backend_timeout",
    /// The backend closed before its answer was complete.
    BackendClosed = 502 "backend_closed",
    /// The answer of the backend is malformed, or its end is ambiguous.
    BackendBadResponse = 502 "backend_bad_response",
    /// The head of the backend's answer is larger than `max_response_head_size`.
    BackendResponseHeadTooLarge = 502 "backend_response_head_too_large",
    /// The cluster wants `https`.
    HttpsRedirect = 301 "https_redirect",
    /// The request is for a host that its TLS connection was not made for (RFC 9110 section 15.5.20).
    Misdirected = 421 "misdirected_request",
    /// HTTP in clear text on a listener that speaks TLS.
    ClearTextOnTls = 400 "clear_text_on_tls",
    /// The TLS handshake with the backend failed.
    BackendTlsFailed = 502 "backend_tls_failed",
    /// The certificate of the backend is not valid for it.
    BackendCertificate = 502 "backend_certificate",
    /// `Max-Forwards` of `TRACE` or `OPTIONS` is no number, or stands there twice (RFC 9110 section 7.6.2).
    BadMaxForwards = 400 "bad_max_forwards",
    /// `OPTIONS` with `Max-Forwards: 0`: kakehi is the last recipient (RFC 9110 section 7.6.2).
    OptionsEnded = 200 "max_forwards_reached",
    /// `TRACE` with `Max-Forwards: 0`: kakehi reflects no requests, which may hold credentials.
    TraceEnded = 405 "trace_not_reflected",
    /// The backends that could be used have no room, and as many requests as may wait do (`queue_size`).
    QueueFull = 503 "queue_full",
    /// No backend had room within `queue_timeout`.
    QueueTimeout = 503 "queue_timeout",
    /// The cluster has as many requests as it takes at a time (`max_requests`).
    ClusterFull = 503 "cluster_full",
    /// The listener or the frontend takes no requests of this client (`allow`, `deny`).
    SourceRefused = 403 "source_refused",
    /// More than a rate limit lets through (`rate_limits`).
    RateLimited = 429 "rate_limited",
    /// The client has as many connections as it may have at this cluster (`max_connections_per_ip`).
    TooManyConnections = 429 "too_many_connections",
    /// The worker has more to do than it can (`overload_delay`).
    Overloaded = 503 "overloaded",
    /// A frontend leads the client elsewhere (`redirect`); also 302, 307 and 308.
    Redirect = 301 "redirect",
    /// A frontend closes the connection without an answer (`redirect = "silent_close"`); nothing is sent.
    SilentClose = 444 "silent_close",
    /// The credentials name none of the cluster's users with its password, or there are none (`required_auth`).
    Unauthorized = 401 "unauthorized",
    /// Too many passwords with slow hashes (argon2id, bcrypt) wait to be checked, or this one has waited for 5 s.
    AuthenticationBusy = 503 "authentication_busy",
    /// The operator has the cluster maintained (`mode = "maintain"`).
    Maintenance = 503 "maintenance",
}

impl Reason {
    /// Position in [`Reason::ALL`]: an index for tables of counters.
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Reason phrase of the status.
    pub fn phrase(self) -> &'static str {
        phrase(self.status())
    }
}

/// Reason phrase of a status of an answer that kakehi makes itself (RFC 9110 section 15 and others).
pub(crate) fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        406 => "Not Acceptable",
        409 => "Conflict",
        410 => "Gone",
        418 => "I'm a Teapot",
        422 => "Unprocessable Content",
        423 => "Locked",
        425 => "Too Early",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        // Of nginx: never sent.
        444 => "No Response",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_code_and_index_and_a_phrase() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert_ne!(reason.phrase(), "Error", "{}", reason.code());
            assert!(reason.code().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            let namesakes = Reason::ALL.iter().filter(|other| other.code() == reason.code()).count();
            assert_eq!(namesakes, 1, "{}", reason.code());
        }
    }
}
