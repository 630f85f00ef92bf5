//! What a deadline costs, with the deadlines of 10,000 connections present.
//!
//! Every request moves the deadline of its connection later, and almost none ever fires: `set to later` is the
//! case that must cost next to nothing. The ring is never driven here, so its clock stands at 0 and nothing fires.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use kakehi_engine::ring::{Level, Ring, Settings, Timer};

/// Timers that are set while one is measured.
const PRESENT: usize = 10_000;

/// Later than the first of the deadlines below by more than a bucket of the wheel (ms): two days.
const FAR: u64 = 172_800_000;

/// Deadlines each so much earlier than the one before that the wheel must move the timer (ms): hours, minutes,
/// seconds and ticks ahead.
const EVER_EARLIER: [u64; 8] = [80_000_000, 20_000_000, 3_600_000, 600_000, 60_000, 10_000, 500, 100];

#[expect(clippy::expect_used, reason = "without io_uring there is nothing to measure")]
fn ring() -> Ring {
    let settings = Settings { level: Level::HIGHEST, buffer_count: 16, buffer_size: 4096, body_memory: 0 };
    Ring::new(&settings).expect("a kernel with io_uring")
}

/// Timers with deadlines spread over the minute after `from` (ms), as idle connections have them.
fn timers(ring: &Ring, from: u64) -> Vec<Timer> {
    let spread = 60_000 / PRESENT as u64;
    (0..PRESENT as u64)
        .map(|number| {
            let timer = Timer::new(ring);
            timer.set_at(from + number * spread);
            timer
        })
        .collect()
}

/// Each timer in turn, over and over: the memory of ten thousand is touched, not that of one.
fn set_to_later(criterion: &mut Criterion) {
    let ring = ring();
    let timers = timers(&ring, 60_000);
    let mut turn = timers.iter().cycle();
    let mut deadline = 120_000;
    criterion.bench_function("timer/set to later", |bencher| {
        bencher.iter(|| {
            deadline += 1;
            if let Some(timer) = turn.next() {
                timer.set_at(black_box(deadline));
            }
        });
    });
}

/// A timer can only be set to an earlier time so often: the timers are made anew for every pass, unmeasured.
fn set_to_earlier(criterion: &mut Criterion) {
    let ring = ring();
    criterion.bench_function("timer/set to earlier", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut measured = Duration::ZERO;
            let mut left = usize::try_from(iterations).unwrap_or(usize::MAX);
            while left > 0 {
                let timers = timers(&ring, FAR);
                let sets = EVER_EARLIER.iter().flat_map(|at| timers.iter().map(move |timer| (timer, *at)));
                let begun = Instant::now();
                for (timer, at) in sets.take(left) {
                    timer.set_at(black_box(at));
                }
                measured += begun.elapsed();
                left = left.saturating_sub(PRESENT * EVER_EARLIER.len());
            }
            measured
        });
    });
}

/// What a connection that comes and goes pays.
fn come_and_go(criterion: &mut Criterion) {
    let ring = ring();
    let _present = timers(&ring, 60_000);
    criterion.bench_function("timer/new, set, drop", |bencher| {
        bencher.iter(|| {
            let timer = Timer::new(&ring);
            timer.set(black_box(60_000));
        });
    });
}

criterion_group!(timer, set_to_later, set_to_earlier, come_and_go);
criterion_main!(timer);
