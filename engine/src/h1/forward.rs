//! A request as a backend gets it (RFC 9110 section 7.6).
//!
//! Relies on a valid [`RequestHead`]. Promises: HTTP/1.1, `Host` once, framing in our own words, no field of
//! the client's connection, no forwarding field that the peer had no right to set; every other line byte for
//! byte and in its order. What kakehi adds stands after what the client sent.

use kakehi_ctl::state::Forwarding;

use super::cookie;
use super::field::{self, Field, Kind};
use super::request::is_passed_on;
use super::{RequestBody, RequestHead, Version};

/// Appends text in parts, one after the other. A macro, because the copy of a literal then has a known size.
macro_rules! put {
    ($out:expr, $($part:expr),+) => {{ $( $out.extend_from_slice($part.as_bytes()); )+ }};
}

/// What kakehi tells a backend about where a request came from.
#[derive(Debug, Clone, Copy)]
pub struct ForwardedBy<'a> {
    /// Address of the peer, without port or brackets: `1.2.3.4` or `2001:db8::1`.
    pub peer_ip: &'a str,
    /// Port that the client connected to, in decimal.
    pub local_port: &'a str,
    /// `http` or `https`.
    pub proto: &'a str,
    /// Whether the peer may set the forwarding fields itself.
    pub trusted: bool,
    /// Which fields are added.
    pub switches: &'a Forwarding,
    /// Identity of this request: the text of a ULID.
    pub request_id: &'a str,
    /// The cookie of that name is for kakehi alone.
    pub session_cookie: Option<&'a str>,
    /// The certificate that the client has shown, if it has.
    pub client: Option<ClientCertificate<'a>>,
    /// What the request is made into.
    pub rewritten: Rewritten<'a>,
}

/// What a request is for in the place of what its client asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rewritten<'a> {
    /// Its authority: a host, with or without a port.
    pub authority: Option<&'a str>,
    /// Its target: path and query.
    pub target: Option<&'a str>,
}

impl Rewritten<'_> {
    fn is_any(&self) -> bool {
        self.authority.is_some() || self.target.is_some()
    }
}

/// A client's certificate as a backend is told of it.
#[derive(Debug, Clone, Copy)]
pub struct ClientCertificate<'a> {
    /// Whom it is for (RFC 4514), in visible ASCII.
    pub subject: &'a str,
    /// SHA-256, hexadecimal.
    pub fingerprint: &'a str,
}

impl RequestHead<'_> {
    /// Appends the request as the backend gets it.
    ///
    /// Forwarding fields of a peer that is not trusted are dropped, switched on or off, and those spelt with
    /// `_` with them; other fields with `_` in their names are passed on where the listener says so. Of a trusted peer the lists (`X-Forwarded-For`, `Forwarded`, `Via`) are continued in
    /// one line, and the others win over ours.
    pub fn write_forwarded(&self, by: &ForwardedBy<'_>, out: &mut Vec<u8>) {
        // Room for what is added besides the parts that are counted.
        out.reserve(self.len + 2 * self.host.len() + 512);
        let from = if self.line_as_sent && !by.rewritten.is_any() {
            self.start
        } else {
            let Rewritten { authority, target } = by.rewritten;
            put!(out, self.method_text, " ", target.unwrap_or(self.target), " HTTP/1.1\r\n");
            // RFC 9112 section 3.2.2: for an absolute-form a proxy writes Host anew.
            if self.replace_host || authority.is_some() {
                put!(out, "Host: ", authority.unwrap_or(self.host), "\r\n");
            }
            field::first_line(self.fields, self.len - 2)
        };
        field::copy_kept(self.input, from, self.len - 2, self.fields, out, |line| self.keeps(line, by));
        if let Some(name) = by.session_cookie {
            self.write_other_cookies(name, out);
        }
        if let Some(left) = self.max_forwards {
            // RFC 9110 section 7.6.2. Whoever has 0 is answered, not forwarded.
            let left = left.saturating_sub(1);
            put!(out, "Max-Forwards: ", itoa::Buffer::new().format(left), "\r\n");
        }
        self.write_framing(out);
        self.write_connection(out);
        self.write_origin(by, out);
        out.extend_from_slice(b"\r\n");
    }

    /// Whether a field line of the client is passed on as it is.
    #[inline]
    fn keeps(&self, line: &Field, by: &ForwardedBy<'_>) -> bool {
        let switches = by.switches;
        if line.is_called(self.input, &switches.id_field) {
            return false;
        }
        let name = || line.name(self.input);
        // CGI, WSGI and their like make `HTTP_A_B` of `A-B` and of `A_B`: whoever reads it cannot tell which it was.
        let is_unmistakable = || switches.underscores || !name().contains(&b'_');
        match line.kind {
            // RFC 9110 section 5.1: a field of any name is passed on; section 11.6.2: credentials as they are.
            // RFC 9110 section 7.6.1: what Connection names is for this connection only.
            Kind::Other | Kind::Date | Kind::Challenge => is_unmistakable() && !self.is_of_connection(line),
            Kind::Cookie => {
                !by.session_cookie.is_some_and(|own| cookie::has(line.value(self.input), own))
                    && !self.is_of_connection(line)
            }
            // Who was admitted by them must be the one that the backend sees.
            Kind::Protected | Kind::Credentials => is_unmistakable(),
            Kind::Proxy => false,
            // RFC 9110 section 7.6.2: that of TRACE and OPTIONS is written anew.
            Kind::MaxForwards => self.max_forwards.is_none(),
            Kind::Host => !self.replace_host && by.rewritten.authority.is_none(),
            // RFC 9110 section 10.1.1: an expectation that was ignored must not come true further on.
            Kind::Expect => self.expect_continue,
            Kind::ContentLength
            | Kind::TransferEncoding
            | Kind::Connection
            | Kind::Te
            | Kind::Upgrade
            | Kind::HopByHop => false,
            // Lists that kakehi continues are written anew.
            Kind::XForwardedFor => by.trusted && !switches.x_forwarded_for,
            Kind::Forwarded => by.trusted && !switches.forwarded,
            Kind::Via => by.trusted && !switches.via,
            Kind::XRealIp => by.trusted && !switches.elide_x_real_ip,
            Kind::XForwardedProto | Kind::XForwardedPort | Kind::XForwardedHost | Kind::XRequestId => {
                by.trusted
            }
            Kind::Lookalike => by.trusted && switches.underscores,
            // What was verified here goes before what anybody says.
            Kind::ClientCertificate => by.trusted && by.client.is_none() && is_unmistakable(),
        }
    }

    /// Whether `Connection` names a field.
    #[inline]
    fn is_of_connection(&self, line: &Field) -> bool {
        self.options.names_others && field::is_named(self.fields, self.input, line.name(self.input))
    }

    /// The cookies that came together with one of the name `own`.
    fn write_other_cookies(&self, own: &str, out: &mut Vec<u8>) {
        let lines =
            self.fields.iter().filter(|line| line.kind == Kind::Cookie && !self.is_of_connection(line));
        for cookies in lines.map(|line| line.value(self.input)).filter(|cookies| cookie::has(cookies, own)) {
            let start = out.len();
            out.extend_from_slice(b"Cookie: ");
            let empty = out.len();
            cookie::write_without(cookies, own, out);
            if out.len() == empty {
                out.truncate(start);
            } else {
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    fn write_framing(&self, out: &mut Vec<u8>) {
        match self.body {
            RequestBody::None => {}
            RequestBody::Length(length) => {
                put!(out, "Content-Length: ", itoa::Buffer::new().format(length), "\r\n");
            }
            RequestBody::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
    }

    fn write_connection(&self, out: &mut Vec<u8>) {
        let trailers = self.kinds.has(Kind::Te) && self.options.te && self.accepts_trailers();
        match (self.upgrade, trailers) {
            (false, false) => return,
            (true, false) => out.extend_from_slice(b"Connection: upgrade\r\n"),
            (false, true) => out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n"),
            (true, true) => out.extend_from_slice(b"Connection: upgrade, TE\r\nTE: trailers\r\n"),
        }
        if self.upgrade {
            out.extend_from_slice(b"Upgrade: ");
            self.write_list(Kind::Upgrade, out, is_passed_on);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// RFC 9110 section 10.1.4: of TE only `trailers` can be promised on the client's behalf.
    fn accepts_trailers(&self) -> bool {
        self.lines(Kind::Te)
            .any(|value| field::elements(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers")))
    }

    /// Who asked, for what, and through whom.
    fn write_origin(&self, by: &ForwardedBy<'_>, out: &mut Vec<u8>) {
        let switches = by.switches;
        // Whether a peer's field stands already, because the peer is trusted.
        let stands = |kind| by.trusted && self.kinds.has(kind);
        if switches.x_forwarded_for {
            self.start_list("X-Forwarded-For: ", Kind::XForwardedFor, by, out);
            put!(out, by.peer_ip, "\r\n");
        }
        if switches.x_forwarded_proto && !stands(Kind::XForwardedProto) {
            put!(out, "X-Forwarded-Proto: ", by.proto, "\r\n");
        }
        if switches.x_forwarded_port && !stands(Kind::XForwardedPort) {
            put!(out, "X-Forwarded-Port: ", by.local_port, "\r\n");
        }
        if switches.x_forwarded_host && !stands(Kind::XForwardedHost) && !self.host.is_empty() {
            put!(out, "X-Forwarded-Host: ", self.host, "\r\n");
        }
        if switches.x_real_ip && (switches.elide_x_real_ip || !stands(Kind::XRealIp)) {
            put!(out, "X-Real-IP: ", by.peer_ip, "\r\n");
        }
        if switches.forwarded {
            self.start_list("Forwarded: ", Kind::Forwarded, by, out);
            self.write_forwarded_element(by, out);
        }
        if switches.via {
            self.start_list("Via: ", Kind::Via, by, out);
            // RFC 9110 section 7.6.3: the version is the received one.
            match self.version {
                Version::Http11 => put!(out, "1.1 kakehi\r\n"),
                Version::Http10 => put!(out, "1.0 kakehi\r\n"),
            }
        }
        if switches.x_request_id && !stands(Kind::XRequestId) {
            put!(out, "X-Request-Id: ", by.request_id, "\r\n");
        }
        if !switches.id_field.is_empty() {
            put!(out, switches.id_field, ": ", by.request_id, "\r\n");
        }
        if let Some(ClientCertificate { subject, fingerprint }) = by.client {
            put!(out, "X-Client-Cert-Subject: ", subject, "\r\n");
            put!(out, "X-Client-Cert-Fingerprint: ", fingerprint, "\r\n");
        }
    }

    /// RFC 7239 section 4. A colon, so any port and any IPv6 address, has to be quoted; a host holds nothing
    /// that would have to be escaped.
    fn write_forwarded_element(&self, by: &ForwardedBy<'_>, out: &mut Vec<u8>) {
        // RFC 7239 section 6: IPv6 in brackets.
        if by.peer_ip.contains(':') {
            put!(out, "for=\"[", by.peer_ip, "]\"");
        } else {
            put!(out, "for=", by.peer_ip);
        }
        if self.host.contains(':') {
            put!(out, ";host=\"", self.host, "\"");
        } else if !self.host.is_empty() {
            put!(out, ";host=", self.host);
        }
        put!(out, ";proto=", by.proto, "\r\n");
    }

    /// Appends `label` and, if the peer is trusted, the list that it sent, ready for one more element.
    #[inline]
    fn start_list(&self, label: &str, kind: Kind, by: &ForwardedBy<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(label.as_bytes());
        if by.trusted && self.kinds.has(kind) {
            for value in self.lines(kind).filter(|value| !value.is_empty()) {
                out.extend_from_slice(value);
                out.extend_from_slice(b", ");
            }
        }
    }

    /// Appends the elements of all lists of `kind` that `keep` lets pass, in one list.
    fn write_list(&self, kind: Kind, out: &mut Vec<u8>, keep: impl Fn(&[u8]) -> bool) {
        let elements = self.lines(kind).flat_map(field::elements).filter(|element| keep(element));
        for (at, element) in elements.enumerate() {
            if at > 0 {
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(element);
        }
    }

    fn lines(&self, kind: Kind) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |line| line.kind == kind).map(|line| line.value(self.input))
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
