//! What reading and rewriting HTTP heads and chunks costs, without sockets.
//!
//! One request through kakehi parses a request head and a response head and writes both again: the sum of
//! `request/parse`, `request/write`, `response/parse` and `response/write` is kakehi's own part of the CPU time
//! that `end_to_end` shows as user time.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kakehi_benches::heads::{self, BROWSER_REQUEST, RESPONSE, SHORT_REQUEST, request, response};
use kakehi_ctl::state::Forwarding;
use kakehi_engine::h1::{AddedFields, ChunkedBody, Emit, ResponsePlan};
use kakehi_engine::http::{Method, Scratch, Version};

#[expect(clippy::expect_used, reason = "the heads of this file are valid")]
fn requests(criterion: &mut Criterion) {
    let forwarding = Forwarding::default();
    let by = heads::by(&forwarding);
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
            head.write_forwarded(&plan, &AddedFields::default(), &mut out);
            out.len()
        });
    });
    group.finish();
}

/// 64 KiB in chunks: as backends send them (4 KiB), and as an attacker does (one byte each).
fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunked");
    for (name, size) in [("4 KiB chunks", 4_096), ("1 byte chunks", 1)] {
        let body = heads::chunks(size);
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
