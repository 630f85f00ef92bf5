//! A valid request head.
//!
//! Relies on `httparse` for the grammar, then checks in one pass what it leaves open: line ends, target,
//! `Host`, framing, `Connection`, `Expect`, `Upgrade`. Promises that a [`RequestHead`] that exists is valid,
//! and that the same bytes give the same head however they arrive.

use std::mem::MaybeUninit;

use crate::limits;

use super::cookie;
use super::field::{self, ConnectionOptions, Field, Kind, Kinds};
use super::framing::Framing;
use super::target::{self, Authority};
use super::{HeadLimits, HeadProgress, Method, Reason, RequestBody, Scratch, Version, head};

/// A request head, borrowed from the input and the scratch table. One that exists is valid.
#[derive(Debug, Clone)]
pub struct RequestHead<'b> {
    /// Kind of the method.
    pub method: Method,
    /// The method as sent.
    pub method_text: &'b str,
    /// Version of the client's message.
    pub version: Version,
    /// Target to pass on: origin-form (`/a?b`) or `*`, as sent; of an absolute-form the part after the
    /// authority, `/` if there is none. May hold UTF-8 beyond ASCII, never a space, a control byte or `#`.
    pub target: &'b str,
    /// The authority that counts, with its port if it was sent: that of an absolute-form, else `Host`
    /// (RFC 9112 section 3.2.2). Empty only in HTTP/1.0 without `Host`.
    pub host: &'b str,
    /// How the body ends.
    pub body: RequestBody,
    /// Whether the client wants to go on with this connection (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends its body; never without a body.
    pub expect_continue: bool,
    /// Whether the client asks for another protocol, `h2c` apart.
    pub upgrade: bool,
    /// `Max-Forwards` of `TRACE` and `OPTIONS`: how many more proxies may forward the request (RFC 9110 section 7.6.2). 0:
    /// this one must not, and answers as if it were the last.
    pub max_forwards: Option<u32>,
    /// True if `Authorization` is of a scheme that authenticates the connection: NTLM or Negotiate (RFC 4559).
    pub authenticates_connection: bool,
    /// Bytes of the head in the input, leading empty lines included.
    pub len: usize,

    pub(super) input: &'b [u8],
    pub(super) fields: &'b [Field],
    pub(super) kinds: Kinds,
    pub(super) options: ConnectionOptions,
    /// Where the request line starts.
    pub(super) start: usize,
    /// Whether the request line is passed on byte for byte.
    pub(super) line_as_sent: bool,
    /// Whether the `Host` field, if any, gives way to `host`.
    pub(super) replace_host: bool,
    path_len: usize,
    host_name_len: usize,
}

impl<'b> RequestHead<'b> {
    /// Reads a request head from the start of `input`, which may go on behind it. `None` = incomplete: call
    /// again with the same bytes and more.
    ///
    /// # Errors
    /// Every [`Reason`] from `BareLineFeed` to `BadUpgrade`, less those of bodies. The connection has to be
    /// closed after the answer: where the next message starts is not known.
    pub fn parse(
        input: &'b [u8],
        progress: &mut HeadProgress,
        limits: &HeadLimits,
        scratch: &'b mut Scratch,
    ) -> Result<Option<RequestHead<'b>>, Reason> {
        let limit = limits.bytes as usize;
        if !progress.is_worth_parsing(input, limit) {
            return Ok(None);
        }
        let window = &input[..input.len().min(limit)];
        let start = skip_empty_lines(window)?;

        let mut table = [const { MaybeUninit::uninit() }; limits::MAX_HEAD_FIELDS_CEILING as usize];
        let slots = usize::from(limits.fields.min(limits::MAX_HEAD_FIELDS_CEILING));
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(&window[start..], &mut table[..slots]) {
            Ok(httparse::Status::Complete(len)) => {
                *progress = HeadProgress::default();
                RequestHead::validate(&window[..start + len], start, &parsed, limits, scratch).map(Some)
            }
            Ok(httparse::Status::Partial) => {
                progress.note_incomplete(window);
                refuse_too_large(window, start, &parsed, limits).map_or(Ok(None), Err)
            }
            Err(error) => Err(refuse(&window[start..], error)),
        }
    }

    /// Checks the complete head `input`, whose request line starts at `start`.
    #[inline]
    fn validate(
        input: &'b [u8],
        start: usize,
        parsed: &httparse::Request<'_, 'b>,
        limits: &HeadLimits,
        scratch: &'b mut Scratch,
    ) -> Result<RequestHead<'b>, Reason> {
        let Scratch { fields, target: spare } = scratch;
        let kinds = field::fill(fields, input, input.len(), parsed.headers)?;
        let fields: &'b [Field] = fields;

        let (Some(method_text), Some(raw_target)) = (parsed.method, parsed.path) else {
            return Err(Reason::BadRequestLine);
        };
        let method = Method::from_text(method_text);
        // httparse takes HTTP/1.0 and HTTP/1.1 only.
        let version = if parsed.version == Some(1) { Version::Http11 } else { Version::Http10 };
        // RFC 9112 section 3: 414.
        if raw_target.len() > limits.target as usize {
            return Err(Reason::TargetTooLong);
        }
        let target = target::read(method, raw_target, spare)?;
        // httparse takes exactly one space between the parts, so such a line is already what we would write.
        let line_as_sent = target.authority.is_none() && version == Version::Http11;

        let said = Said::read(input, fields, version, method)?;
        let host = match (target.authority, said.host) {
            // RFC 9112 section 3.2.2: the authority of an absolute-form wins. `Host` has to be there all the same.
            (Some(authority), Some(_)) => authority,
            (Some(authority), None) if version == Version::Http10 => authority,
            (None, Some(host)) => host,
            (None, None) if version == Version::Http10 => Authority::default(),
            // RFC 9112 section 3.2: 400 to HTTP/1.1 without Host.
            (_, None) => return Err(Reason::MissingHost),
        };
        let body = match (said.framing.chunked, said.framing.length) {
            (true, _) => RequestBody::Chunked,
            (false, Some(length)) => RequestBody::Length(length),
            (false, None) => RequestBody::None,
        };
        let options = said.options;
        // RFC 3986 section 6.2.3: `Host: name:` goes on as `Host: name`.
        let replace_host = target.authority.is_some() || said.host.is_none_or(|host| host.empty_port);
        let modern = version == Version::Http11;
        Ok(RequestHead {
            method,
            method_text,
            version,
            target: target.text,
            host: host.text,
            body,
            // RFC 9112 section 9.3.
            keep_alive: !options.close && (modern || options.keep_alive),
            // RFC 9110 section 10.1.1: ignored in HTTP/1.0, and without content there is nothing to wait for.
            expect_continue: modern
                && kinds.has(Kind::Expect)
                && !matches!(body, RequestBody::None | RequestBody::Length(0)),
            // RFC 9110 section 7.8: ignored in HTTP/1.0, and void unless Connection names it.
            upgrade: modern && options.upgrade && said.upgrade,
            max_forwards: said.max_forwards,
            authenticates_connection: said.authenticates_connection,
            len: input.len(),
            input,
            fields,
            kinds,
            options,
            start,
            line_as_sent: line_as_sent && !replace_host,
            replace_host,
            path_len: target.path_len,
            host_name_len: host.name_len,
        })
    }

    /// The host without port; brackets of an IPv6 literal stay.
    #[inline]
    pub fn host_name(&self) -> &'b str {
        &self.host[..self.host_name_len]
    }

    /// The target without query.
    #[inline]
    pub fn path(&self) -> &'b str {
        &self.target[..self.path_len]
    }

    /// The query, without its `?`.
    pub fn query(&self) -> &'b str {
        self.target[self.path_len..].strip_prefix('?').unwrap_or_default()
    }

    /// The fields as sent, in their order: values without the white space around them.
    pub fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + use<'b> {
        let input = self.input;
        self.fields.iter().map(move |field| field.pair(input))
    }

    /// The value of the first field of this name, in any case of its letters.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        let is_it = |field: &&Field| field.name(self.input).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().find(is_it).map(|field| field.value(self.input))
    }

    /// The value of the first cookie of this name.
    pub fn cookie(&self, name: &str) -> Option<&'b [u8]> {
        let lines = self.fields.iter().filter(|field| field.kind == Kind::Cookie);
        lines.map(|field| field.value(self.input)).find_map(|cookies| cookie::find(cookies, name))
    }

    /// What proxies before have written into `X-Forwarded-For`, from the last to the first.
    pub(crate) fn forwarded_hops(&self) -> impl Iterator<Item = &'b [u8]> {
        let lines = self.fields.iter().rev().filter(|field| field.kind == Kind::XForwardedFor);
        lines.flat_map(|field| field.value(self.input).rsplit(|byte| *byte == b',').map(field::trim))
    }

    /// What the first of the proxies before has written into `X-Forwarded-Proto`.
    pub(crate) fn forwarded_proto(&self) -> Option<&'b [u8]> {
        let field = self.fields.iter().find(|field| field.kind == Kind::XForwardedProto)?;
        field.value(self.input).split(|byte| *byte == b',').next().map(field::trim)
    }
}

/// What the fields of a request say that concerns a proxy.
#[derive(Default)]
struct Said<'b> {
    host: Option<Authority<'b>>,
    framing: Framing,
    options: ConnectionOptions,
    /// Whether a protocol other than `h2c` is asked for.
    upgrade: bool,
    max_forwards: Option<u32>,
    authenticates_connection: bool,
}

impl<'b> Said<'b> {
    #[inline]
    fn read(input: &'b [u8], fields: &[Field], version: Version, method: Method) -> Result<Said<'b>, Reason> {
        let mut said = Said::default();
        for field in fields {
            match field.kind {
                // RFC 9112 section 3.2: 400 to more than one Host, or to one with an invalid value.
                Kind::Host if said.host.is_some() => return Err(Reason::DuplicateHost),
                Kind::Host => said.host = Some(Authority::read(field.value(input))?),
                Kind::ContentLength => said.framing.read_length(field.value(input))?,
                Kind::TransferEncoding => said.framing.read_coding(field.value(input), version)?,
                Kind::Connection => said.options.read(field.value(input))?,
                // RFC 9110 section 10.1.1: 417 to an expectation that is not known.
                Kind::Expect if version == Version::Http11 && !is_continue(field.value(input)) => {
                    return Err(Reason::BadExpect);
                }
                Kind::Upgrade => said.upgrade |= names_protocol(field.value(input))?,
                // RFC 9110 section 7.6.2: in other methods it may be ignored, and is.
                Kind::MaxForwards if matches!(method, Method::Trace | Method::Options) => {
                    said.read_max_forwards(field.value(input))?;
                }
                Kind::Credentials => {
                    said.authenticates_connection |= field::authenticates_connection(field.value(input));
                }
                _ => {}
            }
        }
        said.framing.check()?;
        Ok(said)
    }

    /// Reads `Max-Forwards`: `1*DIGIT`, once. What is malformed is refused: forwarded as it is, it would bound nothing.
    #[cold]
    fn read_max_forwards(&mut self, value: &[u8]) -> Result<(), Reason> {
        if self.max_forwards.is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(Reason::BadMaxForwards);
        }
        // RFC 9110 section 7.6.2 lets a recipient put its own maximum in place of a larger number.
        let number = value
            .iter()
            .fold(0u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
        self.max_forwards = Some(number);
        Ok(())
    }
}

/// The one expectation there is.
fn is_continue(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"100-continue")
}

/// Whether an `Upgrade` list names a protocol that is passed on (RFC 9110 section 7.8): any but `h2c`, which
/// would put a second framing on the backend's connection (RFC 9113 section 3.1 has given it up).
fn names_protocol(value: &[u8]) -> Result<bool, Reason> {
    let mut named = false;
    for protocol in field::elements(value).filter(|protocol| !protocol.is_empty()) {
        if !protocol.iter().all(|byte| field::is_token_byte(*byte) || *byte == b'/') {
            return Err(Reason::BadUpgrade);
        }
        named |= is_passed_on(protocol);
    }
    Ok(named)
}

/// Whether an element of `Upgrade` reaches the backend.
pub(super) fn is_passed_on(protocol: &[u8]) -> bool {
    !protocol.is_empty() && !protocol.eq_ignore_ascii_case(b"h2c")
}

/// RFC 9112 section 2.2: at least one empty line before the request line is ignored.
#[inline]
fn skip_empty_lines(input: &[u8]) -> Result<usize, Reason> {
    let mut start = 0;
    while input[start..].starts_with(b"\r\n") {
        start += 2;
        if start > 2 * limits::MAX_LEADING_EMPTY_LINES {
            return Err(Reason::BadRequestLine);
        }
    }
    match &input[start..] {
        [b'\n', ..] | [b'\r', _, ..] => Err(Reason::BareLineFeed),
        _ => Ok(start),
    }
}

/// Whether an incomplete head is already over a limit (RFC 9110 section 5.4, RFC 9112 section 3).
fn refuse_too_large(
    window: &[u8],
    start: usize,
    parsed: &httparse::Request<'_, '_>,
    limits: &HeadLimits,
) -> Option<Reason> {
    let target_len = match (parsed.method, parsed.path) {
        (_, Some(target)) => target.len(),
        (Some(method), None) => (window.len() - start).saturating_sub(method.len() + 1),
        (None, None) => 0,
    };
    if target_len > limits.target as usize {
        Some(Reason::TargetTooLong)
    } else if window.len() >= limits.bytes as usize {
        Some(Reason::HeadTooLarge)
    } else {
        None
    }
}

/// The reason for an error of `httparse` in a request; `input` starts with the request line.
#[cold]
fn refuse(input: &[u8], error: httparse::Error) -> Reason {
    match error {
        httparse::Error::Token => Reason::BadRequestLine,
        httparse::Error::Version => {
            // RFC 9110 section 15.6.6: 505 is for a version of HTTP, not for garbage in its place.
            let version = input.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or_default();
            match version {
                [b'H', b'T', b'T', b'P', b'/', digit, ..] if digit.is_ascii_digit() => Reason::BadVersion,
                _ => Reason::BadRequestLine,
            }
        }
        httparse::Error::NewLine if !ends_in_version(input) => Reason::BadRequestLine,
        _ => head::refuse_field(input, error),
    }
}

/// Whether the first line of `input` ends in a version and a line end, be it a bare one.
fn ends_in_version(input: &[u8]) -> bool {
    let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.ends_with(b"HTTP/1.1") || line.ends_with(b"HTTP/1.0")
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
