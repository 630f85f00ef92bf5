//! The fuzzer: runs the target that `KAKEHI_FUZZ_TARGET` names under libFuzzer, or, with `KAKEHI_FUZZ_SEEDS`, writes its
//! seeds into that folder and ends. Started by `scripts/fuzz`, which builds it with instrumentation.
#![no_main]
#![allow(clippy::print_stderr, reason = "a tool on a terminal")]

use std::{fs, path::PathBuf, process::exit, sync::OnceLock};

use kakehi_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

/// The target that the environment names.
fn chosen() -> Target {
    let name = std::env::var("KAKEHI_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("set KAKEHI_FUZZ_TARGET to one of: {}", names.join(" "));
        exit(2);
    };
    if let Some(folder) = std::env::var_os("KAKEHI_FUZZ_SEEDS").map(PathBuf::from) {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            if let Err(error) = fs::write(folder.join(format!("seed-{number}")), seed) {
                eprintln!("{}: {error}", folder.display());
                exit(1);
            }
        }
        exit(0);
    }
    *target
}

fuzz_target!(init: { TARGET.get_or_init(chosen); }, |data: &[u8]| (TARGET.get_or_init(chosen).check)(data));
