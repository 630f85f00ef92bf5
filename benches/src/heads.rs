//! Heads that the micro-benchmarks read and write, and how they do.

use kakehi_ctl::state::Forwarding;
use kakehi_engine::h1::{
    ForwardedBy, HeadLimits, HeadProgress, RequestHead, ResponseHead, Rewritten, chunk_prefix,
};
use kakehi_engine::http::{Method, Scratch};
use kakehi_engine::limits;

/// The request of the load generator.
pub const SHORT_REQUEST: &str =
    "GET /bytes/16 HTTP/1.1\r\nHost: bench.localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// The request of a browser.
pub const BROWSER_REQUEST: &str = "GET /static/app/main.3f2a.js?v=1729 HTTP/1.1\r\n\
    Host: www.example.org\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"128\", \"Not;A=Brand\";v=\"24\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36\r\n\
    Accept: */*\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: no-cors\r\n\
    Sec-Fetch-Dest: script\r\n\
    Referer: https://www.example.org/app\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=0f8fad5bd9cb469fa16570867728950e; theme=dark; consent=1\r\n\
    If-None-Match: \"3f2a-61c0b5\"\r\n\r\n";

/// The response of a backend.
pub const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
    Server: backend\r\n\
    Date: Tue, 15 Nov 1994 08:12:31 GMT\r\n\
    Content-Type: application/octet-stream\r\n\
    Content-Length: 16\r\n\
    Cache-Control: public, max-age=60\r\n\
    ETag: \"3f2a-61c0b5\"\r\n\r\n";

const LIMITS: HeadLimits = HeadLimits {
    bytes: limits::MAX_HEAD_SIZE,
    fields: limits::MAX_HEAD_FIELDS,
    target: limits::MAX_TARGET_SIZE,
};

/// Reads the head of a request.
pub fn request<'a>(bytes: &'a [u8], scratch: &'a mut Scratch) -> Option<RequestHead<'a>> {
    RequestHead::parse(bytes, &mut HeadProgress::default(), &LIMITS, scratch).ok().flatten()
}

/// Reads the head of a response.
pub fn response<'a>(bytes: &'a [u8], scratch: &'a mut Scratch) -> Option<ResponseHead<'a>> {
    ResponseHead::parse(bytes, Method::Get, &mut HeadProgress::default(), &LIMITS, scratch).ok().flatten()
}

/// How requests are written.
#[must_use]
pub fn by(switches: &Forwarding) -> ForwardedBy<'_> {
    ForwardedBy {
        peer_ip: "192.0.2.17",
        local_port: "8080",
        proto: "http",
        trusted: false,
        switches,
        request_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        session_cookie: None,
        rewritten: Rewritten::default(),
        client: None,
    }
}

/// 64 KiB in chunks of `size` bytes.
#[must_use]
pub fn chunks(size: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..65_536 / size {
        body.extend_from_slice(&chunk_prefix(size as u64));
        body.resize(body.len() + size, b'x');
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}
