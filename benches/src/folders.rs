//! Where the programs are that are measured, and where results go.

use std::path::PathBuf;
use std::process::Command;

use crate::{Attempt, BenchError};

/// Where cargo put this program, and so where the others are.
pub struct Folders {
    target: PathBuf,
    /// The workspace's release programs.
    pub programs: PathBuf,
    /// Where raw results go.
    pub results: PathBuf,
}

impl Folders {
    /// For a benchmark, which is `target/PROFILE/deps/NAME-HASH`.
    ///
    /// # Errors
    /// If it is somewhere else.
    pub fn find() -> Result<Self, BenchError> {
        let program = std::env::current_exe().attempt(|| "where am I?".into())?;
        let target = program.ancestors().nth(3).ok_or_else(|| {
            BenchError::Program(format!("{} is not in a target folder of cargo", program.display()))
        })?;
        let target = target.to_owned();
        Ok(Self { programs: target.join("release"), results: target.join("bench"), target })
    }

    /// The program `kakehi`, built anew if it has to be.
    ///
    /// # Errors
    /// As [`Self::build_kakehi`].
    pub fn kakehi(&self) -> Result<PathBuf, BenchError> {
        self.build_kakehi()?;
        Ok(std::env::var_os("KAKEHI_BENCH_KAKEHI")
            .map_or_else(|| self.programs.join("kakehi"), PathBuf::from))
    }

    /// Always asks cargo: an old build must not be measured. `KAKEHI_BENCH_KAKEHI` names another program.
    ///
    /// # Errors
    /// If it does not build.
    pub fn build_kakehi(&self) -> Result<(), BenchError> {
        if std::env::var_os("KAKEHI_BENCH_KAKEHI").is_some() {
            return Ok(());
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            // As scripts/lib/programs does: with other packages, dependencies would have other features and be built again.
            .args([
                "build",
                "--release",
                "--locked",
                "--bins",
                "-p",
                "kakehi",
                "-p",
                "kakehi-ctl",
                "--manifest-path",
            ])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
            .arg("--target-dir")
            .arg(&self.target)
            .status()
            .attempt(|| "cannot run cargo".into())?;
        if status.success() { Ok(()) } else { Err(BenchError::Program("kakehi does not build".into())) }
    }
}
