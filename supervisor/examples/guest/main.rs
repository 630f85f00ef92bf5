//! The driver of `scripts/kernels`: real traffic through a real kakehi, on the kernel that runs below.
//!
//! It needs nothing but loopback: backend, client and checks are in this program, so that it works inside a virtual
//! machine that holds little else. It prints `ok NAME` or `FAIL NAME: why` for each check, then
//! `guest: N passed, M failed`, and ends with 1 if any failed. On a developer's machine:
//!
//! ```text
//! cargo run -p kakehi --example guest -- --kakehi target/release/kakehi
//! ```
//!
//! `--address` checks only the traffic through a proxy that runs already, in front of `--backend`; with both the
//! same there is no proxy, and the driver checks itself.
#![allow(clippy::print_stdout, reason = "the lines are the product")]

mod backend;
mod life;
mod message;
mod proxy;
mod tls;
mod traffic;

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::backend::Backend;
use crate::proxy::{Programs, Proxy};

/// A check held, or the sentence that says what happened instead.
pub(crate) type Verdict = Result<(), String>;

/// Sends real traffic through a real kakehi and reports what held.
#[derive(Parser)]
struct Arguments {
    /// The program under test.
    #[arg(long, default_value = "target/release/kakehi")]
    kakehi: PathBuf,
    /// Its command line; by default the one beside it.
    #[arg(long)]
    kakehictl: Option<PathBuf>,
    /// io_uring levels to run at, one after the other: 0 to 4, or `default` for kakehi's own choice.
    #[arg(long, value_delimiter = ',', default_value = "default,0")]
    levels: Vec<Level>,
    /// The level that `default` must choose on this kernel.
    #[arg(long)]
    expect_level: Option<u8>,
    /// Check only the traffic through what listens here.
    #[arg(long, requires = "backend")]
    address: Option<SocketAddr>,
    /// Where the driver's own backend listens.
    #[arg(long)]
    backend: Option<SocketAddr>,
}

#[derive(Clone, Copy)]
enum Level {
    Default,
    Forced(u8),
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Level::Default),
            "0" | "1" | "2" | "3" | "4" => text.parse().map(Level::Forced).map_err(explain("level")),
            _ => Err(format!("`{text}` is neither `default` nor 0 to 4")),
        }
    }
}

/// Counts and prints the outcomes.
#[derive(Default)]
struct Report {
    passed: usize,
    failed: usize,
}

impl Report {
    fn add(&mut self, name: &str, verdict: Verdict) -> bool {
        match &verdict {
            Ok(()) => {
                self.passed += 1;
                println!("ok {name}");
            }
            Err(why) => {
                self.failed += 1;
                println!("FAIL {name}: {why}");
            }
        }
        verdict.is_ok()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = arguments.backend.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    let backend = match Backend::start(wanted) {
        Ok(backend) => backend,
        Err(error) => {
            println!("FAIL backend: {wanted}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    match arguments.address {
        Some(address) => check_traffic(&mut report, "", address),
        None => check_levels(&mut report, &arguments, &backend),
    }
    println!("guest: {} passed, {} failed", report.passed, report.failed);
    if report.failed == 0 && report.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check_levels(report: &mut Report, arguments: &Arguments, backend: &Backend) {
    let programs = Programs {
        kakehi: arguments.kakehi.clone(),
        kakehictl: arguments
            .kakehictl
            .clone()
            .unwrap_or_else(|| arguments.kakehi.with_file_name("kakehictl")),
    };
    let mut highest = None;
    for level in &arguments.levels {
        let (prefix, forced, expected) = match level {
            Level::Default => ("default/".to_owned(), None, arguments.expect_level),
            Level::Forced(level) => (format!("level-{level}/"), Some(*level), Some(*level)),
        };
        let name = format!("{prefix}kakehi_starts");
        match Proxy::start(&programs, backend.address, forced) {
            Ok(mut proxy) => {
                report.add(&name, Ok(()));
                highest = highest.max(check_one(report, &prefix, &mut proxy, backend, expected));
            }
            Err(error) => {
                report.add(&name, Err(error));
            }
        }
    }
    if let Some(highest) = highest {
        check_tls_at_other_levels(report, arguments, &programs, backend, highest);
    }
}

/// The levels up to `highest` that are not checked as a whole: what a level changes are the sockets below TLS.
fn check_tls_at_other_levels(
    report: &mut Report,
    arguments: &Arguments,
    programs: &Programs,
    backend: &Backend,
    highest: u8,
) {
    let checked =
        |level: u8| arguments.levels.iter().any(|it| matches!(it, Level::Forced(it) if *it == level));
    for level in (0..=highest).filter(|level| !checked(*level)) {
        let prefix = format!("level-{level}/");
        match Proxy::start(programs, backend.address, Some(level)) {
            Ok(mut proxy) => {
                let failed_before = report.failed;
                let verdict = life::all_workers_run_at_the_level(&mut proxy, Some(level)).map(drop);
                report.add(&format!("{prefix}all_workers_run_at_the_level"), verdict);
                check_tls(report, &prefix, &proxy);
                if report.failed > failed_before {
                    print!("{}", proxy.log());
                }
            }
            Err(error) => {
                report.add(&format!("{prefix}kakehi_starts"), Err(error));
            }
        }
    }
}

fn check_tls(report: &mut Report, prefix: &str, proxy: &Proxy<'_>) {
    tls::check(proxy.tls_address, proxy.folder(), |name, verdict| {
        report.add(&format!("{prefix}{name}"), verdict);
    });
}

/// All checks; the level that it runs at.
fn check_one(
    report: &mut Report,
    prefix: &str,
    proxy: &mut Proxy<'_>,
    backend: &Backend,
    expected: Option<u8>,
) -> Option<u8> {
    let failed_before = report.failed;
    let level = life::all_workers_run_at_the_level(proxy, expected);
    let found = level.as_ref().ok().and_then(|level| u8::try_from(*level).ok());
    if let Some(level) = found {
        println!("info {prefix} io_uring level {level}");
    }
    report.add(&format!("{prefix}all_workers_run_at_the_level"), level.map(|_| ()));
    check_traffic(report, prefix, proxy.address);
    check_tls(report, prefix, proxy);
    let name = format!("{prefix}all_workers_are_in_their_sandbox");
    report.add(&name, life::all_workers_are_in_their_sandbox(proxy));
    let name = format!("{prefix}a_killed_worker_is_replaced_and_serves");
    report.add(&name, life::a_killed_worker_is_replaced_and_serves(proxy));
    let name = format!("{prefix}connections_go_on_whatever_is_replaced");
    report.add(&name, life::connections_go_on_whatever_is_replaced(proxy));
    let name = format!("{prefix}a_graceful_stop_answers_what_is_in_flight_and_exits_0");
    report.add(&name, life::a_graceful_stop_answers_what_is_in_flight(proxy, backend));
    if report.failed > failed_before {
        print!("{}", proxy.log());
    }
    found
}

fn check_traffic(report: &mut Report, prefix: &str, address: SocketAddr) {
    for (name, check) in traffic::CHECKS {
        report.add(&format!("{prefix}{name}"), check(address));
    }
}

/// Asks `ready` until it has an answer, at most for `deadline`.
pub(crate) fn wait_for<T>(
    deadline: Duration,
    what: &str,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T, String> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ready() {
            return Ok(answer);
        }
        if Instant::now() >= end {
            return Err(format!("waited {} s in vain for {what}", deadline.as_secs()));
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Puts what was being done in front of an error.
pub(crate) fn explain<E: Display>(doing: &str) -> impl Fn(E) -> String {
    let doing = doing.to_owned();
    move |error| format!("{doing}: {error}")
}
