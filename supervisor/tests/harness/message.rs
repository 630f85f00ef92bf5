//! One HTTP/1 message as it was on the wire, parsed without judging it.

use super::wire::{Broken, End, Wire};

/// How the end of a body was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none, by the rules or for want of a field.
    None,
    /// `Content-Length`.
    Length,
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The connection ended.
    UntilClose,
}

/// A request or a response.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// Request line or status line.
    pub(crate) start: String,
    /// Names as sent, values without the spaces around them, byte for byte as Latin-1.
    pub(crate) fields: Vec<(String, String)>,
    /// Without framing.
    pub(crate) body: Vec<u8>,
    /// As [`Message::fields`].
    pub(crate) trailers: Vec<(String, String)>,
    /// Everything as it was on the wire.
    pub(crate) raw: Vec<u8>,
    /// How the body ended.
    pub(crate) framing: Framing,
}

impl Message {
    /// The status of a response; 0 where there is none.
    pub(crate) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// `HTTP/1.1` or whatever stands there.
    pub(crate) fn version(&self) -> &str {
        if self.start.starts_with("HTTP/") {
            self.start.split(' ').next().unwrap_or("")
        } else {
            self.start.rsplit(' ').next().unwrap_or("")
        }
    }

    /// The method of a request.
    pub(crate) fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or("")
    }

    /// The target of a request.
    pub(crate) fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or("")
    }

    /// The first value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Every value of a field, line by line.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// The body as text, for messages and answers of kakehi itself.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Fails unless this is an answer of kakehi itself with this status and reason.
    #[track_caller]
    pub(crate) fn expect_answer(&self, status: u16, code: &str) {
        assert!(
            self.status() == status && self.text().trim_end().ends_with(code),
            "expected {status} with the reason `{code}`, got: {}",
            super::show(&self.raw)
        );
    }

    /// Fails unless this is a response with this status and body.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16, body: impl AsRef<[u8]>) {
        assert!(
            self.status() == status && self.body == body.as_ref(),
            "expected {status} with the body `{}`, got: {}",
            super::show(body.as_ref()),
            super::show(&self.raw)
        );
    }

    /// Reads a head; nothing of the body.
    pub(crate) fn read_head(wire: &mut Wire) -> Result<Message, Broken> {
        let raw = wire.read_through(b"\r\n\r\n")?;
        let text: String = raw[..raw.len() - 4].iter().map(|&byte| char::from(byte)).collect();
        let mut lines = text.split("\r\n");
        Ok(Message {
            start: lines.next().unwrap_or("").to_owned(),
            fields: fields(lines),
            body: Vec::new(),
            trailers: Vec::new(),
            raw,
            framing: Framing::None,
        })
    }

    /// Reads the body of a request whose head has been read.
    pub(crate) fn read_request_body(&mut self, wire: &mut Wire) -> Result<(), Broken> {
        self.read_framed_body(wire).map(|_| ())
    }

    /// Reads the body of the response to a request with `method`.
    pub(crate) fn read_response_body(&mut self, wire: &mut Wire, method: &str) -> Result<(), Broken> {
        let status = self.status();
        if method == "HEAD" || status == 204 || status == 304 || (100..200).contains(&status) {
            return Ok(());
        }
        if self.read_framed_body(wire)? {
            return Ok(());
        }
        let (rest, end) = wire.read_to_end();
        self.raw.extend_from_slice(&rest);
        self.body = rest;
        self.framing = Framing::UntilClose;
        match end {
            End::Eof => Ok(()),
            end => Err(Broken { end, got: self.raw.clone() }),
        }
    }

    /// Whether the head said how long the body is.
    fn read_framed_body(&mut self, wire: &mut Wire) -> Result<bool, Broken> {
        if self.field("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().ends_with("chunked")) {
            self.framing = Framing::Chunked;
            self.read_chunks(wire)?;
            return Ok(true);
        }
        let Some(length) = self.field("content-length").and_then(|v| v.parse().ok()) else {
            return Ok(false);
        };
        self.framing = Framing::Length;
        let body = wire.read_exactly(length).map_err(|broken| broken.after(&self.raw))?;
        self.raw.extend_from_slice(&body);
        self.body = body;
        Ok(true)
    }

    fn read_chunks(&mut self, wire: &mut Wire) -> Result<(), Broken> {
        loop {
            let line = wire.read_through(b"\r\n").map_err(|broken| broken.after(&self.raw))?;
            self.raw.extend_from_slice(&line);
            let text = String::from_utf8_lossy(&line).into_owned();
            let size = text.split(';').next().unwrap_or("").trim();
            let Ok(size) = usize::from_str_radix(size, 16) else {
                return Err(Broken { end: End::Garbage, got: self.raw.clone() });
            };
            if size == 0 {
                break;
            }
            let chunk = wire.read_exactly(size + 2).map_err(|broken| broken.after(&self.raw))?;
            self.raw.extend_from_slice(&chunk);
            self.body.extend_from_slice(&chunk[..size]);
            if !chunk.ends_with(b"\r\n") {
                return Err(Broken { end: End::Garbage, got: self.raw.clone() });
            }
        }
        loop {
            let line = wire.read_through(b"\r\n").map_err(|broken| broken.after(&self.raw))?;
            self.raw.extend_from_slice(&line);
            if line == b"\r\n" {
                return Ok(());
            }
            let text: String = line[..line.len() - 2].iter().map(|&byte| char::from(byte)).collect();
            self.trailers.extend(fields(std::iter::once(text.as_str())));
        }
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
        })
        .collect()
}
