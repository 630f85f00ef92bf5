//! Why a rule cannot stand in a table. Every message says what to write instead.

/// Why rules do not make a table.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RouteError {
    /// No hostname at all.
    #[error("the hostname is empty; write `*` for any host")]
    EmptyHostname,
    /// Longer than names can be (253 bytes), or than a pattern may be (`limits::MAX_HOSTNAME_RULE`).
    #[error("the hostname `{hostname}...` is longer than {limit} bytes")]
    HostnameTooLong {
        /// How it begins.
        hostname: String,
        /// What would be accepted (bytes).
        limit: usize,
    },
    /// Names on the wire are ASCII (RFC 3986 section 3.2.2).
    #[error(
        "the hostname `{0}` is not ASCII; write it in punycode (`bücher.example` is `xn--bcher-kva.example`)"
    )]
    NotAscii(String),
    /// A port: it belongs to the listener's address.
    #[error("the hostname `{0}` has a port; the port is that of the listener's address")]
    HostnameWithPort(String),
    /// In brackets, and not an IPv6 address.
    #[error("`{0}` is not an IPv6 address in brackets, like `[2001:db8::1]`")]
    NotAnAddress(String),
    /// A label that is empty, longer than 63 bytes, or has other bytes than letters, digits, `-` and `_`.
    #[error(
        "`{label}` in the hostname `{hostname}` is not a label: 1 to 63 letters, digits, `-` or `_`, \
         or a regular expression between slashes"
    )]
    BadLabel {
        /// The whole name.
        hostname: String,
        /// What is wrong in it.
        label: String,
    },
    /// `*` anywhere but as the whole leftmost label.
    #[error(
        "`*` in the hostname `{0}` stands for the whole leftmost label only; use a `/regex/` label elsewhere"
    )]
    MisplacedWildcard(String),
    /// A `/regex/` label without its second slash, or with something behind it that is not a dot.
    #[error("a `/regex/` label of the hostname `{0}` does not end with `/` before the next dot")]
    UnclosedRegex(String),
    /// A regular expression that does not compile or takes too much memory.
    #[error("the regular expression `{pattern}` is refused: {source}")]
    BadRegex {
        /// As it was written.
        pattern: String,
        /// What the regex engine says.
        source: regex::Error,
    },
    /// A path that no request can have.
    #[error("the path `{path}` can match no request: {reason}")]
    BadPath {
        /// As it was written.
        path: String,
        /// What is wrong with it, and what to write.
        reason: &'static str,
    },
    /// A text of which no host or path can be made.
    #[error("nothing can be rewritten to `{text}`: {reason}")]
    BadRewrite {
        /// As it was written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A method that is not a token (RFC 9110 section 9.1).
    #[error("`{0}` is not a method; leave it out for any method")]
    BadMethod(String),
    /// Nothing fulfils what a rule asks of requests.
    #[error("the rule can never match: {0}")]
    NeverMatches(String),
    /// The same host, path, method and predicates twice, with different targets.
    #[error("two rules for host `{hostname}`, path `{path}` and {method} lead to different places")]
    Duplicate {
        /// The pattern, in lower case.
        hostname: String,
        /// The path; where two spellings of one path collide, the decoded one.
        path: String,
        /// `method GET` or `any method`.
        method: String,
    },
    /// More rules or text than 32-bit offsets can tell apart.
    #[error("the table would take more than 4 GiB")]
    TooLarge,
}

impl RouteError {
    /// A stable word for logs and machine-readable answers.
    pub fn code(&self) -> &'static str {
        match self {
            RouteError::EmptyHostname => "empty_hostname",
            RouteError::HostnameTooLong { .. } => "hostname_too_long",
            RouteError::NotAscii(_) => "hostname_not_ascii",
            RouteError::HostnameWithPort(_) => "hostname_with_port",
            RouteError::NotAnAddress(_) => "hostname_not_an_address",
            RouteError::BadLabel { .. } => "hostname_bad_label",
            RouteError::MisplacedWildcard(_) => "hostname_misplaced_wildcard",
            RouteError::UnclosedRegex(_) => "hostname_unclosed_regex",
            RouteError::BadRegex { .. } => "bad_regex",
            RouteError::BadPath { .. } => "bad_path",
            RouteError::BadRewrite { .. } => "bad_rewrite",
            RouteError::BadMethod(_) => "bad_method",
            RouteError::NeverMatches(_) => "never_matches",
            RouteError::Duplicate { .. } => "duplicate_route",
            RouteError::TooLarge => "routes_too_large",
        }
    }
}
