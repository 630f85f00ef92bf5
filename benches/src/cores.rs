//! Which core runs what.
//!
//! The proxy has a core of its own. The generator and the backend share another one unless
//! `KAKEHI_BENCH_CORES` names three (`proxy,generator,backend`): the numbers of a machine with two cores
//! and of one with many are then measured the same way by default.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::{Attempt, BenchError};

/// The cores of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cores {
    /// Runs the proxy under test and nothing else of the run.
    pub proxy: usize,
    /// Runs the load generator.
    pub generator: usize,
    /// Runs the backend.
    pub backend: usize,
}

impl Cores {
    /// The cores named by `KAKEHI_BENCH_CORES`, or else the first two that this process may run on.
    ///
    /// # Errors
    /// If the variable is malformed, or fewer than two cores may be used: a proxy that shares its core with
    /// its load measures the scheduler.
    pub fn choose(named: Option<&str>) -> Result<Self, BenchError> {
        let allowed = allowed()?;
        if let Some(text) = named {
            return Self::parse(text, &allowed);
        }
        match allowed[..] {
            [proxy, other, ..] => Ok(Self { proxy, generator: other, backend: other }),
            _ => Err(BenchError::Usage(
                "the comparison needs two cores: one for the proxy, one for its load".into(),
            )),
        }
    }

    fn parse(text: &str, allowed: &[usize]) -> Result<Self, BenchError> {
        let numbers: Option<Vec<usize>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[proxy, generator, backend])
                if [proxy, generator, backend].iter().all(|core| allowed.contains(core)) =>
            {
                Ok(Self { proxy, generator, backend })
            }
            _ => Err(BenchError::Usage(format!(
                "KAKEHI_BENCH_CORES={text}: say proxy,generator,backend with cores out of {allowed:?}"
            ))),
        }
    }
}

pub(crate) fn allowed() -> Result<Vec<usize>, BenchError> {
    let set = sched_getaffinity(Pid::from_raw(0)).attempt(|| "cannot ask for the allowed cores".into())?;
    Ok((0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect())
}

/// Binds the calling thread, and what it spawns from now on, to `core`.
///
/// # Errors
/// If the kernel refuses.
pub fn pin_this_thread(core: usize) -> Result<(), BenchError> {
    let pin = || {
        let mut set = CpuSet::new();
        set.set(core)?;
        sched_setaffinity(Pid::from_raw(0), &set)
    };
    pin().attempt(|| format!("cannot run on core {core}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_named_cores_are_taken_in_their_order() {
        let cores = Cores::parse("2, 0,1", &[0, 1, 2]).unwrap();
        assert_eq!(cores, Cores { proxy: 2, generator: 0, backend: 1 });
    }

    #[test]
    fn a_core_that_may_not_be_used_is_refused() {
        for text in ["0,1", "0,1,7", "0,1,x", ""] {
            assert!(Cores::parse(text, &[0, 1]).is_err(), "{text}");
        }
    }
}
