//! Whole responses as operators write them: a status line, fields, an empty line, a body, and variables in all of it.
//!
//! Promises: what a variable stands for can end no line of the head, and is escaped in a body of HTML or JSON; a template that was read needs
//! no memory beside its text but for its fields and variables.

use std::sync::Arc;

use crate::state::is_token;

/// The longest template (bytes).
pub const MAX_TEMPLATE: usize = 1024 * 1024;

macro_rules! variables {
    ($($(#[$doc:meta])* $Name:ident $field:ident = $word:literal,)+) => {
        /// What can stand for something in a template.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Variable { $($(#[$doc])* $Name,)+ }

        const VARIABLES: &[(&str, Variable)] = &[$(($word, Variable::$Name),)+];

        /// What the variables stand for.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Values<'a> { $($(#[$doc])* pub $field: &'a str,)+ }

        impl Values<'_> {
            fn of(&self, variable: Variable) -> &str {
                match variable { $(Variable::$Name => self.$field,)+ }
            }
        }
    };
}

variables! {
    /// The id of the request.
    RequestId request_id = "%REQUEST_ID",
    /// Method, host and path of the request.
    Route route = "%ROUTE",
    /// The cluster of the rule that took it.
    ClusterId cluster_id = "%CLUSTER_ID",
    /// The backend that was asked last.
    BackendId backend_id = "%BACKEND_ID",
    /// Where a redirect leads.
    RedirectLocation redirect_location = "%REDIRECT_LOCATION",
    /// How a client can say who it is.
    WwwAuthenticate www_authenticate = "%WWW_AUTHENTICATE",
    /// When the client may come again (seconds).
    RetryAfter retry_after = "%RETRY_AFTER",
    /// How long the request has taken.
    Duration duration = "%DURATION",
    /// Why kakehi answers by itself, as its code.
    Message message = "%MESSAGE",
    /// Of sozu, always empty.
    Phase phase = "%PHASE",
    /// Of sozu, always empty.
    SuccessfullyParsed successfully_parsed = "%SUCCESSFULLY_PARSED",
    /// Of sozu, always empty.
    PartiallyParsed partially_parsed = "%PARTIALLY_PARSED",
    /// Of sozu, always empty.
    Invalid invalid = "%INVALID",
    /// The largest head that is taken (bytes).
    Capacity capacity = "%CAPACITY",
}

/// Fields that say where a message ends.
const OF_FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];
/// Fields about the connection, on which others decide.
const OF_CONNECTION: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"];

/// A part of the text: offset and length (bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span(u32, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Text(Span),
    Variable(Variable),
}

/// How variables stand in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escaping {
    /// As they are.
    Plain,
    Html,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: Span,
    value: Vec<Part>,
}

/// A response with variables in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
    status: u16,
    phrase: Span,
    fields: Vec<Field>,
    body: Vec<Part>,
    escaping: Escaping,
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct TemplateError {
    /// Which line of it, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
}

impl Template {
    /// Reads a template. Besides, names of fields that it cannot have and that are left out.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn parse(text: &Arc<str>) -> Result<(Template, Vec<String>), TemplateError> {
        let wrong = |line, reason| Err(TemplateError { line, reason });
        if text.len() > MAX_TEMPLATE {
            return wrong(1, "a response has 1048576 bytes at most");
        }
        let mut lines = Lines { text, at: 0 };
        let first = lines.next().unwrap_or(Span(0, 0));
        let Some((status, phrase)) = status_line(text, first) else {
            return wrong(1, "a response begins with a status line, like `HTTP/1.1 503 Service Unavailable`");
        };
        let (mut fields, mut left_out) = (Vec::new(), Vec::new());
        // Browsers make HTML of what has no type.
        let mut escaping = Escaping::Html;
        let mut number = 1;
        for line in lines.by_ref() {
            number += 1;
            let content = slice(text, line);
            if content.is_empty() {
                break;
            }
            let Some(colon) = content.find(':') else {
                return wrong(number, "a field has a name and a colon; an empty line comes before the body");
            };
            let (name, value) = (&content[..colon], &content[colon + 1..]);
            // RFC 9110 section 5.1.
            if !is_token(name) {
                return wrong(number, "what stands before the colon is no name of a field");
            }
            if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
                return wrong(number, "no field has control characters in its value");
            }
            let is_one_of = |names: &[&str]| names.iter().any(|it| name.eq_ignore_ascii_case(it));
            if is_one_of(&OF_FRAMING) {
                return wrong(number, "`Content-Length` and `Transfer-Encoding` are kakehi's");
            }
            if is_one_of(&OF_CONNECTION) {
                left_out.push(name.to_owned());
                continue;
            }
            if name.eq_ignore_ascii_case("content-type") {
                escaping = Escaping::of(value);
            }
            let start = line.0 + colon as u32 + 1 + (value.len() - value.trim_start().len()) as u32;
            let value = parts(text, Span(start, value.trim().len() as u32));
            fields.push(Field { name: Span(line.0, colon as u32), value });
        }
        let body = parts(text, Span(lines.at as u32, (text.len() - lines.at) as u32));
        let text = Arc::clone(text);
        Ok((Template { text, status, phrase, fields, body, escaping }, left_out))
    }

    /// Its status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// What stands behind the status.
    pub fn phrase(&self) -> &str {
        slice(&self.text, self.phrase)
    }

    /// Whether it writes a field of this name.
    pub fn says(&self, name: &str, values: &Values<'_>) -> bool {
        let named = |field: &&Field| slice(&self.text, field.name).eq_ignore_ascii_case(name);
        self.fields.iter().filter(named).any(|field| !field.is_left_out(values))
    }

    /// Appends its fields, each with its end. One that has variables and comes out empty is left out.
    pub fn write_fields(&self, values: &Values<'_>, out: &mut Vec<u8>) {
        for field in self.fields.iter().filter(|field| !field.is_left_out(values)) {
            out.extend_from_slice(slice(&self.text, field.name).as_bytes());
            out.extend_from_slice(b": ");
            for part in &field.value {
                match part {
                    Part::Text(span) => out.extend_from_slice(slice(&self.text, *span).as_bytes()),
                    Part::Variable(variable) => {
                        let text = values.of(*variable).bytes();
                        out.extend(text.filter(|byte| !byte.is_ascii_control()));
                    }
                }
            }
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends its body.
    pub fn write_body(&self, values: &Values<'_>, out: &mut Vec<u8>) {
        for part in &self.body {
            match part {
                Part::Text(span) => out.extend_from_slice(slice(&self.text, *span).as_bytes()),
                Part::Variable(variable) => self.escaping.write(values.of(*variable), out),
            }
        }
    }
}

impl Field {
    /// Whether it has nothing but variables, and these stand for nothing.
    fn is_left_out(&self, values: &Values<'_>) -> bool {
        let is_nothing =
            |part: &Part| matches!(part, Part::Variable(variable) if values.of(*variable).is_empty());
        !self.value.is_empty() && self.value.iter().all(is_nothing)
    }
}

impl Escaping {
    /// That of a media type.
    fn of(media_type: &str) -> Escaping {
        let name = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if name.contains("json") {
            Escaping::Json
        } else if name == "text/plain" {
            Escaping::Plain
        } else {
            Escaping::Html
        }
    }

    fn write(self, text: &str, out: &mut Vec<u8>) {
        let replaced = |text: &str, with: &[(char, &str)]| {
            with.iter().fold(text.to_owned(), |text, (letter, escaped)| text.replace(*letter, escaped))
        };
        const HTML: [(char, &str); 5] =
            [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;"), ('\'', "&#39;")];
        // It may stand in a script, too.
        const JSON: [(char, &str); 3] = [('&', "\\u0026"), ('<', "\\u003c"), ('>', "\\u003e")];
        let escaped = match self {
            Escaping::Plain => text.to_owned(),
            Escaping::Html => replaced(text, &HTML),
            Escaping::Json => {
                // A text is always one of JSON, too; without its quotes.
                let quoted = serde_json::to_string(text).unwrap_or_default();
                replaced(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default(), &JSON)
            }
        };
        out.extend_from_slice(escaped.as_bytes());
    }
}

fn slice(text: &str, Span(start, length): Span) -> &str {
    &text[start as usize..start as usize + length as usize]
}

/// Lines without their ends, LF or CRLF.
struct Lines<'t> {
    text: &'t str,
    /// Where the next one begins.
    at: usize,
}

impl Iterator for Lines<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let rest = self.text.get(self.at..).filter(|rest| !rest.is_empty())?;
        let length = rest.find('\n').unwrap_or(rest.len());
        let line = rest[..length].strip_suffix('\r').unwrap_or(&rest[..length]);
        // The text has 1 MiB at most.
        let span = Span(self.at as u32, line.len() as u32);
        self.at = (self.at + length + 1).min(self.text.len());
        Some(span)
    }
}

/// Status and what stands behind it.
fn status_line(text: &str, line: Span) -> Option<(u16, Span)> {
    let content = slice(text, line);
    let rest = content.strip_prefix("HTTP/1.1 ").or_else(|| content.strip_prefix("HTTP/1.0 "))?;
    let (digits, behind) = rest.split_at_checked(3)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || content.bytes().any(|it| it.is_ascii_control()) {
        return None;
    }
    let phrase = match behind.strip_prefix(' ') {
        Some(phrase) => phrase,
        None if behind.is_empty() => "",
        None => return None,
    };
    let start = line.0 + (content.len() - phrase.len()) as u32;
    Some((digits.parse().ok()?, Span(start, phrase.len() as u32)))
}

/// Takes a span apart at its variables. A `%` that begins none is one.
fn parts(text: &str, span: Span) -> Vec<Part> {
    let content = slice(text, span);
    let (mut parts, mut from, mut at) = (Vec::new(), 0, 0);
    let push = |parts: &mut Vec<Part>, from: usize, to: usize| {
        if from < to {
            parts.push(Part::Text(Span(span.0 + from as u32, (to - from) as u32)));
        }
    };
    while let Some(next) = content[at..].find('%') {
        at += next;
        let rest = &content[at..];
        let is_of_name = |rest: &str| rest.starts_with(|it: char| it.is_ascii_uppercase() || it == '_');
        let found = VARIABLES
            .iter()
            .find(|(word, _)| rest.strip_prefix(word).is_some_and(|behind| !is_of_name(behind)));
        match found {
            Some((word, variable)) => {
                push(&mut parts, from, at);
                parts.push(Part::Variable(*variable));
                at += word.len();
                from = at;
            }
            None => at += 1,
        }
    }
    push(&mut parts, from, content.len());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Template, Vec<String>), TemplateError> {
        Template::parse(&Arc::from(text))
    }

    fn values() -> Values<'static> {
        Values { route: "GET a/<b>&\"'\\\r\n", message: "no_route", cluster_id: "web", ..Values::default() }
    }

    fn written(text: &str) -> (String, String) {
        let (template, _) = parse(text).unwrap();
        let (mut fields, mut body) = (Vec::new(), Vec::new());
        template.write_fields(&values(), &mut fields);
        template.write_body(&values(), &mut body);
        (String::from_utf8(fields).unwrap(), String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_response_has_a_status_line_fields_and_a_body() {
        for (text, status, phrase, fields, body) in [
            ("HTTP/1.1 503 Not Now\r\nA: b\r\n\r\nx\r\n", 503, "Not Now", "A: b\r\n", "x\r\n"),
            ("HTTP/1.0 404 \nA:b\nC:  d \n\n\nx", 404, "", "A: b\r\nC: d\r\n", "\nx"),
            ("HTTP/1.1 404", 404, "", "", ""),
            ("HTTP/1.1 404 Not Found\nA:", 404, "Not Found", "A: \r\n", ""),
            ("HTTP/1.1 404 Not Found\r\n\r\n", 404, "Not Found", "", ""),
        ] {
            let (template, left_out) = parse(text).unwrap();
            assert_eq!((template.status(), template.phrase()), (status, phrase), "{text:?}");
            assert_eq!(written(text), (fields.to_owned(), body.to_owned()), "{text:?}");
            assert!(left_out.is_empty());
        }
        let (template, left_out) = parse("HTTP/1.1 404 X\nconnection: close\nTE: x\nA: 1\n\n").unwrap();
        assert_eq!(left_out, ["connection", "TE"]);
        assert!(template.says("a", &values()) && !template.says("Connection", &values()));
    }

    #[test]
    fn what_is_no_response_is_told_with_its_line() {
        for (text, line) in [
            ("", 1),
            ("<html></html>", 1),
            ("HTTP/2 404 Not Found\n\n", 1),
            ("HTTP/1.1 40 Not Found\n\n", 1),
            ("HTTP/1.1 4040\n\n", 1),
            ("HTTP/1.1 \u{664}04 X\n\n", 1),
            ("HTTP/1.1 404 a\u{1}\n\n", 1),
            ("HTTP/1.1 404 X\nA: b\nno field\n\n", 3),
            ("HTTP/1.1 404 X\nA b: c\n\n", 2),
            ("HTTP/1.1 404 X\nA: b\rc\n\n", 2),
            ("HTTP/1.1 404 X\nA: b\nContent-length: 5\n\n", 3),
            ("HTTP/1.1 404 X\nTRANSFER-encoding: chunked\n\n", 2),
        ] {
            assert_eq!(parse(text).map_err(|error| error.line).err(), Some(line), "{text:?}");
        }
        let long = format!("HTTP/1.1 404 X\n\n{}", "a".repeat(MAX_TEMPLATE));
        assert!(parse(&long).is_err());
    }

    #[test]
    fn variables_are_escaped_as_the_type_of_the_body_wants() {
        let of = |media_type: &str| {
            written(&format!("HTTP/1.1 404 X\nContent-Type: {media_type}\n\n[%ROUTE] 100% %ROUTES %MESSAGE"))
                .1
        };
        assert_eq!(of("text/plain"), "[GET a/<b>&\"'\\\r\n] 100% %ROUTES no_route");
        let html = "[GET a/&lt;b&gt;&amp;&quot;&#39;\\\r\n] 100% %ROUTES no_route";
        assert_eq!(
            (of("text/html; charset=utf-8").as_str(), of("application/XHTML+xml").as_str()),
            (html, html)
        );
        assert!(written("HTTP/1.1 404 X\n\n%ROUTE").1.starts_with("GET a/&lt;b&gt;"));
        assert_eq!(
            of("application/problem+json"),
            "[GET a/\\u003cb\\u003e\\u0026\\\"'\\\\\\r\\n] 100% %ROUTES no_route"
        );
    }

    #[test]
    fn a_field_whose_variables_stand_for_nothing_is_left_out() {
        let (fields, _) = written(
            "HTTP/1.1 404 X\nRetry-After: %RETRY_AFTER\nX: %RETRY_AFTER%CLUSTER_ID\nY: a%RETRY_AFTER\nZ: %ROUTE\n\n",
        );
        let (template, _) = parse("HTTP/1.1 404 X\nDate: %PHASE\nAllow: GET\n\n").unwrap();
        assert!(template.says("allow", &values()) && !template.says("date", &values()));
        assert_eq!(fields, "X: web\r\nY: a\r\nZ: GET a/<b>&\"'\\\r\n");
    }
}
