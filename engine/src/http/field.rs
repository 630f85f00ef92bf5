//! Fields of a head: where each one lies, and which names mean something to a proxy.
//!
//! Relies on `httparse` having checked names (tokens) and values (no control bytes but HTAB). Adds what it
//! lets pass: every line must end in CRLF. Promises that a [`Field`] lies inside its head, and that the
//! lines of a table are contiguous, so that a run of unchanged lines is one copy.

use crate::limits;

use super::Reason;

/// Most elements of all `Connection` lists of a head. Not a key: four are already unusual. It bounds the
/// work of comparing each field's name with each element.
const MAX_CONNECTION_OPTIONS: u16 = 64;

/// Reusable memory of the head parsers: one per worker, lent to one head at a time.
#[derive(Debug)]
pub struct Scratch {
    pub(crate) fields: Vec<Field>,
    /// The rare target that does not stand in the input as it is passed on.
    pub(crate) target: String,
}

impl Scratch {
    /// A table for heads of up to [`limits::MAX_HEAD_FIELDS_CEILING`] fields.
    pub fn new() -> Scratch {
        Scratch {
            fields: Vec::with_capacity(usize::from(limits::MAX_HEAD_FIELDS_CEILING)),
            target: String::new(),
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

/// What a proxy does with a field of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Passed on as it is, unless `Connection` names it.
    Other,
    /// Passed on as it is, whatever `Connection` names: `X-Forwarded-*` without a meaning of its own here.
    Protected,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Te,
    Upgrade,
    Expect,
    /// Of this connection only: `Keep-Alive`, `Proxy-*`, `HTTP2-Settings`.
    HopByHop,
    Via,
    Forwarded,
    XForwardedFor,
    XForwardedProto,
    XForwardedPort,
    XForwardedHost,
    XRequestId,
    XRealIp,
    /// Whom a client's certificate is for: `X-Client-Cert-*`, and `Client-Cert` of RFC 9440.
    ClientCertificate,
    /// A forwarding field spelt with `_`: many backends cannot tell it from the real one.
    Lookalike,
    Date,
    MaxForwards,
    /// `Proxy`, which CGI makes `HTTP_PROXY` of (httpoxy).
    Proxy,
    /// `Authorization`.
    Credentials,
    /// `Cookie`, which may hold one of our own.
    Cookie,
    /// `WWW-Authenticate`.
    Challenge,
}

/// Which kinds occur in a head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u32);

impl Kinds {
    pub(crate) fn insert(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u8;
    }

    pub(crate) fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }
}

/// One field line; all numbers are offsets into the head's input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    start: u32,
    name_len: u32,
    value: u32,
    value_len: u32,
    pub(crate) kind: Kind,
}

impl Field {
    pub(crate) fn name<'b>(&self, input: &'b [u8]) -> &'b [u8] {
        &input[self.start as usize..][..self.name_len as usize]
    }

    /// Whether this is its name, also for those who cannot tell `_` from `-`; never, if that is empty.
    #[inline]
    pub(crate) fn is_called(&self, input: &[u8], name: &str) -> bool {
        // Nearly all are told apart by their length.
        self.name_len as usize == name.len() && is_called(self.name(input), name)
    }

    pub(crate) fn value<'b>(&self, input: &'b [u8]) -> &'b [u8] {
        &input[self.value as usize..][..self.value_len as usize]
    }

    /// Name and value as the public iterators show them; a name is a token, so it is text.
    pub(crate) fn pair<'b>(&self, input: &'b [u8]) -> (&'b str, &'b [u8]) {
        (std::str::from_utf8(self.name(input)).unwrap_or_default(), self.value(input))
    }
}

/// Fills `table` with the fields that `httparse` found in `input[..end]`, `end` being the end of the head.
///
/// `httparse` takes a bare LF for a line end. A value cannot hold CR, so a line ends in CRLF if and only if
/// there is a CR two bytes before the next line: RFC 9112 section 2.2 lets a recipient accept the bare LF,
/// and two parties that disagree about it disagree about where a head ends.
#[inline]
pub(crate) fn fill(
    table: &mut Vec<Field>,
    input: &[u8],
    end: usize,
    parsed: &[httparse::Header<'_>],
) -> Result<Kinds, Reason> {
    table.clear();
    if !input[..end].ends_with(b"\r\n\r\n") {
        return Err(Reason::BareLineFeed);
    }
    let base = input.as_ptr() as usize;
    let mut kinds = Kinds::default();
    for header in parsed {
        let start = header.name.as_ptr() as usize - base;
        if input[start - 2] != b'\r' {
            return Err(Reason::BareLineFeed);
        }
        let kind = classify(header.name.as_bytes());
        kinds.insert(kind);
        table.push(Field {
            start: start as u32,
            name_len: header.name.len() as u32,
            value: (header.value.as_ptr() as usize - base) as u32,
            value_len: header.value.len() as u32,
            kind,
        });
    }
    Ok(kinds)
}

/// The kind of a field of this name (case-insensitive, RFC 9110 section 5.1).
#[inline]
pub(crate) fn classify(name: &[u8]) -> Kind {
    let Some(first) = name.first() else { return Kind::Other };
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match (name.len(), first | 0x20) {
        (_, b'x') => classify_x(name),
        (4, b'h') if is("host") => Kind::Host,
        (14, b'c') if is("content-length") => Kind::ContentLength,
        (17, b't') if is("transfer-encoding") => Kind::TransferEncoding,
        (10, b'c') if is("connection") => Kind::Connection,
        (2, b't') if is("te") => Kind::Te,
        (7, b'u') if is("upgrade") => Kind::Upgrade,
        (6, b'e') if is("expect") => Kind::Expect,
        (6, b'c') if is("cookie") => Kind::Cookie,
        (10, b'k') if is("keep-alive") => Kind::HopByHop,
        (16, b'p') if is("proxy-connection") => Kind::HopByHop,
        (19, b'p') if is("proxy-authorization") => Kind::HopByHop,
        (18, b'p') if is("proxy-authenticate") => Kind::HopByHop,
        (14, b'h') if is("http2-settings") => Kind::HopByHop,
        (3, b'v') if is("via") => Kind::Via,
        (4, b'd') if is("date") => Kind::Date,
        (5, b'p') if is("proxy") => Kind::Proxy,
        (12, b'm') if is("max-forwards") => Kind::MaxForwards,
        (13, b'a') if is("authorization") => Kind::Credentials,
        (16, b'w') if is("www-authenticate") => Kind::Challenge,
        (9, b'f') if is("forwarded") => Kind::Forwarded,
        (11, b'c') if is("client-cert") || is("client_cert") => Kind::ClientCertificate,
        (17, b'c')
            if ["client-cert-chain", "client_cert_chain", "client-cert_chain", "client_cert-chain"]
                .into_iter()
                .any(is) =>
        {
            Kind::ClientCertificate
        }
        _ => Kind::Other,
    }
}

/// The kind of a field whose name starts with `x`.
fn classify_x(name: &[u8]) -> Kind {
    let kind = classify_x_exact(name);
    // 25: the longest of the names.
    if kind != Kind::Other || name.len() > 25 || !name.contains(&b'_') {
        return kind;
    }
    let mut dashed = [0; 25];
    for (to, from) in dashed.iter_mut().zip(name) {
        *to = if *from == b'_' { b'-' } else { *from };
    }
    match classify_x_exact(&dashed[..name.len()]) {
        Kind::Other | Kind::Protected => Kind::Other,
        _ => Kind::Lookalike,
    }
}

fn classify_x_exact(name: &[u8]) -> Kind {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match name.len() {
        15 if is("x-forwarded-for") => Kind::XForwardedFor,
        17 if is("x-forwarded-proto") => Kind::XForwardedProto,
        // Between kakehi and a backend.
        17 if is("x-kakehi-attempts") => Kind::HopByHop,
        16 if is("x-forwarded-port") => Kind::XForwardedPort,
        16 if is("x-forwarded-host") => Kind::XForwardedHost,
        12 if is("x-request-id") => Kind::XRequestId,
        9 if is("x-real-ip") => Kind::XRealIp,
        14.. if name[..14].eq_ignore_ascii_case(b"x-client-cert-") => Kind::ClientCertificate,
        13.. if name[..12].eq_ignore_ascii_case(b"x-forwarded-") => Kind::Protected,
        _ => Kind::Other,
    }
}

/// Elements of a comma-separated list, without the white space around them (RFC 9110 section 5.6.1).
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim)
}

/// `value` without optional white space at its ends (RFC 9110 section 5.6.3).
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// What the `Connection` fields of a head say (RFC 9110 section 7.6.1).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ConnectionOptions {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    pub(crate) te: bool,
    /// Whether other fields may be named.
    pub(crate) names_others: bool,
    count: u16,
}

impl ConnectionOptions {
    /// Adds one `Connection` field.
    #[inline]
    pub(crate) fn read(&mut self, value: &[u8]) -> Result<(), Reason> {
        // What nearly every client says, if it says anything.
        if value.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
            return Ok(());
        }
        self.read_list(value)
    }

    fn read_list(&mut self, value: &[u8]) -> Result<(), Reason> {
        for option in elements(value) {
            self.count += 1;
            if self.count > MAX_CONNECTION_OPTIONS {
                return Err(Reason::BadConnection);
            }
            let is = |known: &str| option.eq_ignore_ascii_case(known.as_bytes());
            match option.len() {
                0 => {}
                5 if is("close") => self.close = true,
                10 if is("keep-alive") => self.keep_alive = true,
                7 if is("upgrade") => self.upgrade = true,
                2 if is("te") => self.te = true,
                _ => self.names_others = true,
            }
        }
        Ok(())
    }
}

/// True if a challenge or credentials in `value` are of a scheme that authenticates the connection, not the request: NTLM
/// and Negotiate (RFC 4559). Several challenges may stand in one field (RFC 9110 section 11.6.1).
#[inline]
pub(crate) fn authenticates_connection(value: &[u8]) -> bool {
    // `Basic`, `Bearer` and most others end here.
    memchr::memchr2(b'N', b'n', value).is_some() && elements(value).any(names_such_scheme)
}

/// An element of the list begins with a scheme, or goes on with the parameters of the scheme before.
fn names_such_scheme(element: &[u8]) -> bool {
    let end = element.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(element.len());
    let (scheme, rest) = element.split_at(end);
    let alone = matches!(rest, [] | [b' ' | b'\t', ..]) && !trim(rest).starts_with(b"=");
    alone && (scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate"))
}

/// Whether a `Connection` field among `fields` names the field `name`.
pub(crate) fn is_named(fields: &[Field], input: &[u8], name: &[u8]) -> bool {
    fields
        .iter()
        .filter(|field| field.kind == Kind::Connection)
        .any(|field| elements(field.value(input)).any(|option| option.eq_ignore_ascii_case(name)))
}

/// Appends `input[from..to]` without the lines that `keep` refuses; each run that stays is one copy. The order of lines stays
/// (RFC 9110 section 5.3).
#[inline]
pub(crate) fn copy_kept(
    input: &[u8],
    from: usize,
    to: usize,
    fields: &[Field],
    out: &mut Vec<u8>,
    keep: impl Fn(&Field) -> bool,
) {
    let mut run = from;
    for (at, field) in fields.iter().enumerate() {
        if keep(field) {
            continue;
        }
        out.extend_from_slice(&input[run..field.start as usize]);
        run = fields.get(at + 1).map_or(to, |next| next.start as usize);
    }
    out.extend_from_slice(&input[run..to]);
}

/// Whether two names are one, also for those who cannot tell `_` from `-`; never, if they are empty.
pub(crate) fn is_called(field: &[u8], name: &str) -> bool {
    let same = |(a, b): (&u8, u8)| a.eq_ignore_ascii_case(&b) || (*a == b'_' && b == b'-');
    field.len() == name.len() && !field.is_empty() && field.iter().zip(name.bytes()).all(same)
}

/// Where the first field line starts; `end` if there is none.
pub(crate) fn first_line(fields: &[Field], end: usize) -> usize {
    fields.first().map_or(end, |field| field.start as usize)
}

/// Whether `byte` may stand in a token (RFC 9110 section 5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
}

/// Whether `byte` may stand in a field value: HTAB, SP, visible or obs-text (RFC 9110 section 5.5).
pub(crate) fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised_in_any_case_and_nothing_like_them_is() {
        for (name, kind) in [
            ("Host", Kind::Host),
            ("hOST", Kind::Host),
            ("Hosts", Kind::Other),
            ("Content-Length", Kind::ContentLength),
            ("Content_Length", Kind::Other),
            ("X-Forwarded-For", Kind::XForwardedFor),
            ("x_forwarded-for", Kind::Lookalike),
            ("X_REAL_IP", Kind::Lookalike),
            ("X-Forwarded-Prefix", Kind::Protected),
            ("X_Forwarded_Prefix", Kind::Other),
            ("X-Powered_By", Kind::Other),
            ("TE", Kind::Te),
            ("dATE", Kind::Date),
            ("PROXY", Kind::Proxy),
            ("Proxy-Status", Kind::Other),
            ("max-Forwards", Kind::MaxForwards),
            ("AUTHORIZATION", Kind::Credentials),
            ("Authorisation", Kind::Other),
            ("COOKIE", Kind::Cookie),
            ("Cookies", Kind::Other),
            ("X-Kakehi-Attempts", Kind::HopByHop),
            ("x_kakehi_attempts", Kind::Lookalike),
            ("Www-authenticate", Kind::Challenge),
            ("", Kind::Other),
        ] {
            assert_eq!(classify(name.as_bytes()), kind, "{name}");
        }
    }

    #[test]
    fn a_scheme_that_authenticates_the_connection_is_found_in_any_list() {
        for value in [
            "NTLM",
            "ntlm TlRMTVNTUAAB",
            "Negotiate",
            "NEGOTIATE YIIB/=",
            "Basic realm=\"a\", NTLM",
            "Digest realm=x, nonce=y ,\tnegotiate",
        ] {
            assert!(authenticates_connection(value.as_bytes()), "{value}");
        }
        for value in [
            "",
            "Basic realm=\"NTLM\"",
            "NTLMv2",
            "Digest ntlm=1",
            "Digest a=b, negotiate = c",
            "Bearer ntlm",
            "n",
        ] {
            assert!(!authenticates_connection(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn a_connection_list_is_read_in_any_case_and_has_an_end() {
        let mut options = ConnectionOptions::default();
        options.read(b"Close , ,Keep-Alive,\tTE,upgrade").unwrap();
        assert!(
            options.close && options.keep_alive && options.te && options.upgrade && !options.names_others
        );
        options.read(b"x-secret").unwrap();
        assert!(options.names_others);
        assert_eq!(options.read(",".repeat(64).as_bytes()), Err(Reason::BadConnection));
    }
}
