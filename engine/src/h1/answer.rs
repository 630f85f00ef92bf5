//! The answers that kakehi makes itself: short, plain text, with the reason's code in the body.

use kakehi_ctl::template::{Template, Values};

use super::{DateLine, Reason};
use crate::http::phrase;

/// Methods that kakehi passes on by name, for the `Allow` that a 405 must have (RFC 9110 section 15.5.6).
const ALLOW: &[u8] = b"Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE\r\n";
/// Those that kakehi answers itself, or leads on, where it is the last recipient.
const ALLOW_HERE: &[u8] = b"Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH\r\n";

/// Appends a complete answer for `reason` to `out`.
///
/// `status` is that of the reason, where nothing else was configured. `close` announces that the connection ends with this answer; `head_only` leaves the body out (an answer
/// to `HEAD`), its length stays. `extra` are more fields, whose names and values the caller vouches for:
/// tokens, and no CR, LF or NUL. `date` is the present one. The body is `"<status> <phrase>: <code>\n"`.
pub fn write_answer(
    reason: Reason,
    status: u16,
    close: bool,
    head_only: bool,
    extra: &[(&str, &str)],
    date: &DateLine,
    out: &mut Vec<u8>,
) {
    let (code, phrase) = (reason.code(), phrase(status));
    let mut digits = itoa::Buffer::new();
    let (is_405, status) = (status == 405, digits.format(status));
    let length = status.len() + 1 + phrase.len() + 2 + code.len() + 1;

    out.reserve(256);
    put(out, &[b"HTTP/1.1 ", status.as_bytes(), b" ", phrase.as_bytes(), b"\r\n"]);
    put(out, &[b"Content-Type: text/plain\r\nContent-Length: "]);
    put(out, &[itoa::Buffer::new().format(length).as_bytes(), b"\r\n"]);
    // RFC 9110 section 6.6.1.
    out.extend_from_slice(date.as_bytes());
    match reason {
        // RFC 9110 section 9.3.7: what a last recipient may say of itself.
        Reason::OptionsEnded | Reason::TraceEnded => out.extend_from_slice(ALLOW_HERE),
        _ if is_405 => out.extend_from_slice(ALLOW),
        _ => {}
    }
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    for (name, value) in extra {
        debug_assert!(
            !value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)),
            "a value with a line end in it"
        );
        put(out, &[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    out.extend_from_slice(b"\r\n");
    if !head_only {
        put(out, &[status.as_bytes(), b" ", phrase.as_bytes(), b": ", code.as_bytes(), b"\n"]);
    }
}

/// Appends what an operator has written in the place of [`write_answer`]; the rest is as there. `values` are what its variables stand for.
///
/// Fields of `extra` that the template has are left out.
pub fn write_template(
    template: &Template,
    values: &Values<'_>,
    close: bool,
    head_only: bool,
    extra: &[(&str, &str)],
    date: &DateLine,
    out: &mut Vec<u8>,
) {
    let mut body = Vec::new();
    template.write_body(values, &mut body);
    out.reserve(512 + if head_only { 0 } else { body.len() });
    let status = template.status();
    let phrase = if template.phrase().is_empty() { phrase(status) } else { template.phrase() };
    put(
        out,
        &[b"HTTP/1.1 ", itoa::Buffer::new().format(status).as_bytes(), b" ", phrase.as_bytes(), b"\r\n"],
    );
    template.write_fields(values, out);
    put(out, &[b"Content-Length: ", itoa::Buffer::new().format(body.len()).as_bytes(), b"\r\n"]);
    if !template.says("date", values) {
        out.extend_from_slice(date.as_bytes());
    }
    if status == 405 && !template.says("allow", values) {
        out.extend_from_slice(ALLOW);
    }
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    for (name, value) in extra.iter().filter(|(name, _)| !template.says(name, values)) {
        put(out, &[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.append(&mut body);
    }
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(reason: Reason, close: bool, head_only: bool, extra: &[(&str, &str)]) -> String {
        let mut out = Vec::new();
        write_answer(reason, reason.status(), close, head_only, extra, &DateLine::at(784_111_777), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_says_status_and_code_and_how_long_it_is() {
        assert_eq!(
            answer(Reason::NoRoute, false, false, &[]),
            "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 24\r\n\
             Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n404 Not Found: no_route\n"
        );
        for reason in Reason::ALL {
            let text = answer(*reason, true, false, &[]);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        }
    }

    #[test]
    fn an_answer_to_head_keeps_the_length_and_has_no_body() {
        let text = answer(Reason::NoRoute, true, true, &[]);
        assert!(
            text.contains(
                "Content-Length: 24\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close\r\n"
            )
        );
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_405_names_the_methods_and_extra_fields_are_written() {
        assert!(answer(Reason::ConnectRefused, true, false, &[]).contains("\r\nAllow: GET, "));
        for here in [Reason::TraceEnded, Reason::OptionsEnded] {
            let text = answer(here, false, false, &[]);
            assert!(text.contains("\r\nAllow: GET, ") && !text.contains("TRACE"), "{text}");
        }
        let redirect = answer(Reason::HttpsRedirect, false, false, &[("Location", "https://a.example/")]);
        assert!(redirect.contains("\r\nLocation: https://a.example/\r\n"));
    }
}
