//! A valid response head, and how a client gets it.
//!
//! Relies on `httparse` for the grammar. Promises the same strictness as towards clients: a response whose
//! end is ambiguous is refused, because what follows on that connection could be taken for another answer.

use std::mem::MaybeUninit;

use crate::limits;

use super::field::{self, ConnectionOptions, Field, Kind};
use super::framing::Framing;
use super::{
    DateLine, HeadLimits, HeadProgress, Method, OutConnection, OutFraming, Reason, ResponseBody,
    ResponsePlan, Scratch, Version, head,
};

/// Why a response is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseDefect {
    /// What came does not begin like a status line. On a connection that had carried a response before, it may be what was
    /// left of that one: see that connection as dead.
    #[error("it does not begin with `HTTP/`")]
    NoStatusLine,
    /// The first line is not `version SP status SP reason` (RFC 9112 section 4), or its version is another.
    #[error("its status line is malformed, or not of HTTP/1.0 or HTTP/1.1")]
    StatusLine,
    /// The first digit of the status is not 1 to 5 (RFC 9110 section 15).
    #[error("its status code is not between 100 and 599")]
    Status,
    /// A rule that requests have as well is broken.
    #[error("its head is malformed: {0}")]
    Head(Reason),
    /// It is larger than `max_response_head_size`.
    #[error("its head is larger than `max_response_head_size`")]
    HeadTooLarge,
    /// It has more fields than `max_head_fields`.
    #[error("its head has more fields than `max_head_fields`")]
    TooManyFields,
    /// The connection ended in the middle of the head.
    #[error("the connection ended inside of its head")]
    HeadCut,
    /// 101 in answer to a request without `Upgrade` (RFC 9110 section 15.2.2).
    #[error("it switches protocols and nobody asked for it")]
    UnaskedUpgrade,
    /// More interim responses than are put up with.
    #[error("more interim responses came than are put up with")]
    TooManyInterim,
    /// The framing of its body is broken.
    #[error("its body is malformed: {0}")]
    Body(Reason),
}

impl ResponseDefect {
    /// What the client is told.
    pub fn reason(self) -> Reason {
        match self {
            ResponseDefect::HeadTooLarge | ResponseDefect::TooManyFields => {
                Reason::BackendResponseHeadTooLarge
            }
            _ => Reason::BackendBadResponse,
        }
    }
}

/// A response head, borrowed from the input and the scratch table. One that exists is valid.
#[derive(Debug, Clone)]
pub struct ResponseHead<'b> {
    /// Status code, 100..=599.
    pub status: u16,
    /// Version of the backend's message.
    pub version: Version,
    /// How the body ends.
    pub body: ResponseBody,
    /// Whether the backend's connection can be used again after the body. Of an interim response: after the final one.
    pub keep_alive: bool,
    /// True if it has a `Date`.
    pub dated: bool,
    /// True if it is a 401 that asks for a scheme that authenticates the connection: NTLM or Negotiate (RFC 4559).
    pub authenticates_connection: bool,
    /// Whether the response names other protocols (`Upgrade`, named by `Connection`).
    pub upgrade: bool,
    /// Bytes of the head in the input.
    pub len: usize,

    /// What the framing fields say, also where there is no body.
    pub(super) framing: Framing,
    input: &'b [u8],
    fields: &'b [Field],
    options: ConnectionOptions,
}

/// The field that tells a client to come by TLS only (RFC 6797).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrictTransport {
    /// Its value.
    pub value: String,
    /// It goes in place of what a backend says; otherwise that stands.
    pub replaces: bool,
}

/// What a response gets besides what its backend says.
#[derive(Debug, Clone, Copy, Default)]
pub struct AddedFields<'a> {
    /// `Strict-Transport-Security`, unless the backend says something of it that stands.
    pub transport: Option<&'a StrictTransport>,
    /// `Date`, of a final response that has none.
    pub date: Option<&'a DateLine>,
    /// The name of the field with the id of the request, whose lines go, and that id; empty: none comes.
    pub id: Option<(&'a str, &'a str)>,
}

impl<'b> ResponseHead<'b> {
    /// Reads the head of a response to a `request_method` from the start of `input`, which may go on behind
    /// it. `None` = incomplete: call again with the same bytes and more.
    ///
    /// # Errors
    /// See [`ResponseDefect`]; the connection cannot be used any more.
    pub fn parse(
        input: &'b [u8],
        request_method: Method,
        progress: &mut HeadProgress,
        limits: &HeadLimits,
        scratch: &'b mut Scratch,
    ) -> Result<Option<ResponseHead<'b>>, ResponseDefect> {
        let limit = limits.bytes as usize;
        if !progress.is_worth_parsing(input, limit) {
            return Ok(None);
        }
        let window = &input[..input.len().min(limit)];
        // httparse skips empty lines, which only a request may have before it (RFC 9112 section 2.2).
        if !window.iter().zip(b"HTTP/").all(|(byte, expected)| byte == expected) {
            return Err(ResponseDefect::NoStatusLine);
        }
        let mut table = [const { MaybeUninit::uninit() }; limits::MAX_HEAD_FIELDS_CEILING as usize];
        let slots = usize::from(limits.fields.min(limits::MAX_HEAD_FIELDS_CEILING));
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, window, &mut table[..slots]) {
            Ok(httparse::Status::Complete(len)) => {
                *progress = HeadProgress::default();
                ResponseHead::validate(&window[..len], request_method, &parsed, scratch).map(Some)
            }
            Ok(httparse::Status::Partial) if window.len() >= limit => Err(ResponseDefect::HeadTooLarge),
            Ok(httparse::Status::Partial) => {
                progress.note_incomplete(window);
                Ok(None)
            }
            Err(error) => Err(refuse(window, error)),
        }
    }

    #[inline]
    fn validate(
        input: &'b [u8],
        request_method: Method,
        parsed: &httparse::Response<'_, 'b>,
        scratch: &'b mut Scratch,
    ) -> Result<ResponseHead<'b>, ResponseDefect> {
        let kinds = field::fill(&mut scratch.fields, input, input.len(), parsed.headers)
            .map_err(ResponseDefect::Head)?;
        let fields: &'b [Field] = &scratch.fields;
        let version = if parsed.version == Some(1) { Version::Http11 } else { Version::Http10 };
        // RFC 9110 section 15: the first digit is 1 to 5.
        let status = parsed.code.filter(|code| (100..=599).contains(code)).ok_or(ResponseDefect::Status)?;

        let mut framing = Framing::default();
        let mut options = ConnectionOptions::default();
        let mut authenticates_connection = false;
        let mut read = |line: &Field| -> Result<(), Reason> {
            match line.kind {
                Kind::ContentLength => framing.read_length(line.value(input))?,
                Kind::TransferEncoding => framing.read_coding(line.value(input), version)?,
                Kind::Connection => options.read(line.value(input))?,
                Kind::Challenge if status == 401 => {
                    authenticates_connection |= field::authenticates_connection(line.value(input));
                }
                _ => {}
            }
            Ok(())
        };
        fields.iter().try_for_each(&mut read).map_err(ResponseDefect::Head)?;
        framing.check().map_err(ResponseDefect::Head)?;
        let announced = framing.chunked || framing.length.is_some_and(|length| length > 0);
        // RFC 9112 section 6.3, in its order. Where a body is announced that must not be, nobody knows whether it comes: the
        // connection is not used again.
        let (body, is_certain) = match status {
            // RFC 9110 section 8.6, RFC 9112 section 6.1: neither of the fields may be there.
            ..200 | 204 => (ResponseBody::None, !announced),
            // RFC 9110 section 9.3.2.
            _ if request_method == Method::Head => (ResponseBody::None, true),
            // A length is that of the answer to GET; some backends that say `chunked` send chunks.
            304 => (ResponseBody::None, !framing.chunked),
            // RFC 9110 section 15.3.6: there is no content, whatever frames it.
            205 => (ResponseBody::Length(0), framing.length == Some(0)),
            _ if framing.chunked => (ResponseBody::Chunked, true),
            _ => (framing.length.map_or(ResponseBody::UntilClose, ResponseBody::Length), true),
        };
        // RFC 9112 section 9.3.
        let persists = !options.close && (version == Version::Http11 || options.keep_alive);
        Ok(ResponseHead {
            status,
            version,
            body,
            keep_alive: persists && is_certain && body != ResponseBody::UntilClose,
            dated: kinds.has(Kind::Date),
            authenticates_connection,
            upgrade: kinds.has(Kind::Upgrade) && options.upgrade,
            len: input.len(),
            framing,
            input,
            fields,
            options,
        })
    }

    /// Whether another head follows this one: any 1xx but 101 (RFC 9110 section 15.2). Such a head must not
    /// reach a client of HTTP/1.0.
    #[inline]
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// The fields as sent, in their order: values without the white space around them.
    pub fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + use<'b> {
        let input = self.input;
        self.fields.iter().map(move |line| line.pair(input))
    }

    /// Appends the head as the client gets it: HTTP/1.1, the backend's reason phrase, every end-to-end field
    /// byte for byte and in its order, then framing and connection as `plan` has them.
    ///
    pub fn write_forwarded(&self, plan: &ResponsePlan, added: &AddedFields<'_>, out: &mut Vec<u8>) {
        let AddedFields { transport, date, id } = *added;
        out.reserve(self.len + 256);
        // RFC 9110 section 6.2: the version is that of the proxy's own message.
        out.extend_from_slice(b"HTTP/1.1");
        let from = "HTTP/1.1".len();
        let end = self.len - 2;
        // RFC 9110 section 15.5.22: 426 has to name the protocols; 101 is the change itself.
        let replaced = transport.is_some_and(|transport| transport.replaces);
        let upgrade = plan.connection == OutConnection::Upgrade || (self.status == 426 && self.upgrade);
        let fields_start = field::first_line(self.fields, end);
        let line = &self.input[from..fields_start - 2];
        if line.len() == " 200".len() {
            // RFC 9112 section 4: the space stands even if the reason phrase is empty.
            out.extend_from_slice(line);
            out.extend_from_slice(b" \r\n");
            field::copy_kept(self.input, fields_start, end, self.fields, out, |line| {
                self.keeps(line, upgrade, replaced, id)
            });
        } else {
            field::copy_kept(self.input, from, end, self.fields, out, |line| {
                self.keeps(line, upgrade, replaced, id)
            });
        }
        if let Some((name, id)) = id.filter(|(_, id)| !id.is_empty()) {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if let Some(transport) = transport
            && (transport.replaces || !self.fields.iter().any(|line| self.is_transport(line)))
        {
            out.extend_from_slice(b"Strict-Transport-Security: ");
            out.extend_from_slice(transport.value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        // RFC 9110 section 6.6.1: who receives a response without Date adds it. An interim one needs none.
        if let Some(date) = date
            && !self.dated
            && self.status >= 200
        {
            out.extend_from_slice(date.as_bytes());
        }
        self.write_framing(plan, out);
        out.extend_from_slice(match (plan.connection, upgrade) {
            (OutConnection::Close, true) => b"Connection: close, upgrade\r\n",
            (OutConnection::Close, false) => b"Connection: close\r\n",
            (OutConnection::Upgrade | OutConnection::Implicit, true) => b"Connection: upgrade\r\n",
            (OutConnection::KeepAlive10, _) => b"Connection: keep-alive\r\n",
            (OutConnection::Upgrade | OutConnection::Implicit, false) => b"",
        });
        out.extend_from_slice(b"\r\n");
    }

    #[inline]
    fn keeps(&self, line: &Field, upgrade: bool, transport_replaced: bool, id: Option<(&str, &str)>) -> bool {
        if id.is_some_and(|(name, _)| line.is_called(self.input, name)) {
            return false;
        }
        match line.kind {
            Kind::Other if transport_replaced && self.is_transport(line) => false,
            Kind::ContentLength | Kind::TransferEncoding | Kind::Connection | Kind::Te | Kind::HopByHop => {
                false
            }
            Kind::Upgrade => upgrade,
            // RFC 9110 section 7.6.1. Section 11.6.1: challenges are passed on as they are; section 10.2.1: so is `Allow`.
            Kind::Other | Kind::Proxy | Kind::MaxForwards | Kind::Credentials | Kind::Challenge => {
                !self.options.names_others || !field::is_named(self.fields, self.input, line.name(self.input))
            }
            _ => true,
        }
    }

    fn is_transport(&self, line: &Field) -> bool {
        line.name(self.input).eq_ignore_ascii_case(b"strict-transport-security")
    }

    fn write_framing(&self, plan: &ResponsePlan, out: &mut Vec<u8>) {
        let length = match plan.framing {
            OutFraming::Length(length) => Some(length),
            // RFC 9110 section 8.6: none in 1xx and 204; in 304 and answers to HEAD it is that of a GET.
            OutFraming::None if self.status >= 200 && self.status != 204 => self.framing.length,
            _ => None,
        };
        if let Some(length) = length {
            out.extend_from_slice(b"Content-Length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        } else if plan.framing == OutFraming::Chunked || plan.announce_chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
    }
}

/// What is wrong where `httparse` found an `error` in the head at the start of `input`.
#[cold]
fn refuse(input: &[u8], error: httparse::Error) -> ResponseDefect {
    match error {
        httparse::Error::TooManyHeaders => ResponseDefect::TooManyFields,
        httparse::Error::Version | httparse::Error::Status => ResponseDefect::StatusLine,
        _ => ResponseDefect::Head(head::refuse_field(input, error)),
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
