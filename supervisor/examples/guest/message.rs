//! HTTP/1.1 messages as the driver's client and backend see them: a head, then a body by its framing.
//!
//! Deliberately its own small reader and not the proxy's: a mistake that both shared would go unnoticed.
//! Every read and write has the socket's deadline, so nothing here waits for ever.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long one read or write may take; an emulated machine is slow.
pub(crate) const SOCKET_DEADLINE: Duration = Duration::from_secs(20);

/// Longest head accepted (bytes).
const MAX_HEAD: usize = 64 * 1024;

/// Length and FNV-1a hash of the bytes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) length: u64,
    pub(crate) hash: u64,
}

impl Sum {
    pub(crate) fn new() -> Self {
        Sum { length: 0, hash: 0xcbf2_9ce4_8422_2325 }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.length += bytes.len() as u64;
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut sum = Sum::new();
        sum.add(bytes);
        sum
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes {:016x}", self.length, self.hash)
    }
}

/// `length` bytes in which every byte depends on its place, so that pieces lost, doubled or swapped show.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|place| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// The first line and the fields of a message.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) first_line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> io::Result<Head> {
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        let mut fields = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or_else(|| broken(format!("field `{line}`")))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Head { first_line, fields })
    }

    /// First value of the field `name` (lower case).
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Second word of the first line: the target of a request, the status of a response.
    pub(crate) fn second_word(&self) -> &str {
        self.first_line.split(' ').nth(1).unwrap_or_default()
    }
}

/// A connection with what was read from it and not used yet.
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    unread: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(SOCKET_DEADLINE))?;
        stream.set_write_timeout(Some(SOCKET_DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, unread: Vec::new() })
    }

    /// With something over its stream; nothing has been read yet.
    pub(crate) fn map<S>(self, over: impl FnOnce(TcpStream) -> S) -> Wire<S> {
        Wire { stream: over(self.stream), unread: self.unread }
    }
}

impl<S: Read + Write> Wire<S> {
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next head; `None` when the peer closed before its first byte.
    pub(crate) fn read_head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return Head::parse(&String::from_utf8_lossy(&head)).map(Some);
            }
            if self.unread.len() > MAX_HEAD {
                return Err(broken("a head without end".to_owned()));
            }
            if !self.fill()? {
                return if self.unread.is_empty() { Ok(None) } else { Err(cut("in a head")) };
            }
        }
    }

    /// The body that `head` announces; `until_close` says what stands for no framing at all.
    pub(crate) fn read_body(&mut self, head: &Head, until_close: bool) -> io::Result<Vec<u8>> {
        if head.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return self.read_chunked();
        }
        if let Some(length) = head.field("content-length") {
            let length = length.parse().map_err(|_| broken(format!("content-length `{length}`")))?;
            return self.take(length);
        }
        if !until_close {
            return Ok(Vec::new());
        }
        while self.fill()? {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// Exactly `length` bytes.
    pub(crate) fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < length {
            if !self.fill()? {
                return Err(cut("in a body"));
            }
        }
        let rest = self.unread.split_off(length);
        Ok(std::mem::replace(&mut self.unread, rest))
    }

    /// Nothing but the end of the stream is left.
    pub(crate) fn expect_end(&mut self) -> io::Result<()> {
        if self.unread.is_empty() && !self.fill()? {
            Ok(())
        } else {
            Err(broken("bytes after the end".to_owned()))
        }
    }

    fn read_chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| broken(format!("chunk size `{line}`")))?;
            if size == 0 {
                while !self.read_line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size)?);
            if !self.read_line()?.is_empty() {
                return Err(broken("a chunk longer than its size".to_owned()));
            }
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.unread.len() > MAX_HEAD || !self.fill()? {
                return Err(cut("in a line"));
            }
        }
    }

    /// Reads once; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        let before = self.unread.len();
        self.unread.resize(before + 64 * 1024, 0);
        let read = loop {
            match self.stream.read(&mut self.unread[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.unread.truncate(before + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }
}

/// `bytes` as a chunked body whose chunks have many sizes, from one byte up to `largest`.
pub(crate) fn chunked(bytes: &[u8], largest: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8 + 64);
    let (mut rest, mut size) = (bytes, 1);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
        size = (size * 3 + 1) % largest.max(2) + 1;
    }
    out.extend_from_slice(b"0\r\nChecked: yes\r\n\r\n");
    out
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn cut(place: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the connection ended {place}"))
}
