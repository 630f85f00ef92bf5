//! The parts of the end-to-end comparison.
//!
//! One core runs the proxy under test; another runs the [`backend`] and the [`generator`], which are kept
//! cheap so that the proxy is what saturates. [`peers`] knows how to configure each proxy, [`identity`] which
//! certificate it shows, [`folders`] where the programs are, [`process`] how to start, pin and stop it, [`accounting`] what it used, [`ring_figures`]
//! what kakehi's ring did, [`point`] names the bodies of the curve, [`heads`] has what the micro-benchmarks read, [`measure`] puts one measurement together, and [`report`] turns many of them into tables
//! and raw data.
//!
//! What is promised: every answer is checked (status, length, content), an error is counted by its kind and
//! never passes for a request, and warm-up is never part of a number.

pub mod accounting;
pub mod backend;
pub mod chunks;
pub mod cores;
pub mod error;
pub mod folders;
pub mod generator;
pub mod heads;
pub mod identity;
pub mod measure;
pub mod payload;
pub mod peers;
pub mod point;
pub mod process;
pub mod report;
pub mod ring_figures;
pub mod strace;

pub use error::{Attempt, BenchError};

use std::process::ExitCode;

/// The whole of a benchmark's `main`: `run` says whether all was as it should be. `asked` is false where a test runner
/// starts it, which wants no benchmark.
pub fn benchmark(asked: bool, run: impl FnOnce() -> Result<bool, BenchError>) -> ExitCode {
    if !asked {
        println!("this is a benchmark: run it with cargo bench, or with --quick");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
