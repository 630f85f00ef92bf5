//! What reading and rewriting HTTP heads and chunks costs, without sockets.
//!
//! One request through kakehi parses a request head and a response head and writes both again: the sum of
//! `request/parse`, `request/write`, `response/parse` and `response/write` is kakehi's own part of the CPU time
//! that `end_to_end` shows as user time.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kakehi_ctl::state::Forwarding;
use kakehi_engine::h1::{
    ChunkedBody, Emit, ForwardedBy, HeadLimits, HeadProgress, RequestHead, ResponseHead, ResponsePlan,
    chunk_prefix,
};
use kakehi_engine::http::{Method, Scratch, Version};
use kakehi_engine::limits;

/// The request of the load generator.
const SHORT_REQUEST: &str =
    "GET /bytes/16 HTTP/1.1\r\nHost: bench.localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// The request of a browser.
const BROWSER_REQUEST: &str = "GET /static/app/main.3f2a.js?v=1729 HTTP/1.1\r\n\
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

const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
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

fn request<'a>(bytes: &'a [u8], scratch: &'a mut Scratch) -> Option<RequestHead<'a>> {
    RequestHead::parse(bytes, &mut HeadProgress::default(), &LIMITS, scratch).ok().flatten()
}

fn response<'a>(bytes: &'a [u8], scratch: &'a mut Scratch) -> Option<ResponseHead<'a>> {
    ResponseHead::parse(bytes, Method::Get, &mut HeadProgress::default(), &LIMITS, scratch).ok().flatten()
}

#[expect(clippy::expect_used, reason = "the heads of this file are valid")]
fn requests(criterion: &mut Criterion) {
    let forwarding = Forwarding::default();
    let by = ForwardedBy {
        peer_ip: "192.0.2.17",
        local_port: "8080",
        proto: "http",
        trusted: false,
        switches: &forwarding,
        request_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        client: None,
    };
    for (name, text) in [("short", SHORT_REQUEST), ("browser", BROWSER_REQUEST)] {
        let mut group = criterion.benchmark_group(format!("request {name}"));
        group.throughput(Throughput::Bytes(text.len() as u64));
        let mut scratch = Scratch::new();
        group.bench_function("parse", |bencher| {
            bencher.iter(|| request(black_box(text.as_bytes()), &mut scratch).is_some());
        });
        let head = request(text.as_bytes(), &mut scratch).expect("a valid head");
        let mut out = Vec::with_capacity(4_096);
        group.bench_function("write", |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(&head).write_forwarded(&by, &mut out);
                out.len()
            });
        });
        group.finish();
    }
}

#[expect(clippy::expect_used, reason = "the heads of this file are valid")]
fn responses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("response");
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    let mut scratch = Scratch::new();
    group.bench_function("parse", |bencher| {
        bencher.iter(|| response(black_box(RESPONSE.as_bytes()), &mut scratch).is_some());
    });
    let head = response(RESPONSE.as_bytes(), &mut scratch).expect("a valid head");
    let mut out = Vec::with_capacity(4_096);
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            out.clear();
            let plan = ResponsePlan::new(black_box(&head), Method::Get, Version::Http11, true);
            head.write_forwarded(&plan, None, None, &mut out);
            out.len()
        });
    });
    group.finish();
}

/// 64 KiB in chunks: as backends send them (4 KiB), and as an attacker does (one byte each).
fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunked");
    for (name, size) in [("4 KiB chunks", 4_096), ("1 byte chunks", 1)] {
        let mut body = Vec::new();
        for _ in 0..65_536 / size {
            body.extend_from_slice(&chunk_prefix(size as u64));
            body.resize(body.len() + size, b'x');
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        group.throughput(Throughput::Bytes(body.len() as u64));
        let mut tail = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || body.clone(),
                |input| {
                    tail.clear();
                    ChunkedBody::new(Emit::Chunked, 16).advance(input, &mut tail).is_ok_and(|read| read.done)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(http, requests, responses, chunks);
criterion_main!(http);
