//! The one error type of the benchmarks.

use std::io;

/// Why a measurement could not be made. Wrong answers of a proxy are not here: the generator counts them.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A system call or a file failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A proxy did not answer a request soon enough after its start, or ended before it could.
    #[error("{peer} ended, or did not answer within {seconds} s of its start; its output:\n{log}")]
    NotReady {
        /// Name of the proxy.
        peer: String,
        /// How long it was waited for.
        seconds: u64,
        /// The end of what the proxy wrote.
        log: String,
    },
    /// So many requests failed that there is nothing to measure.
    #[error("gave up after {count} failed requests: {kinds}")]
    TooManyFaults {
        /// Requests that failed.
        count: u64,
        /// How many of which kind.
        kinds: String,
    },
    /// A count of requests was not reached in time.
    #[error("only {done} of {wanted} requests were answered within {seconds} s")]
    TooSlow {
        /// Requests answered.
        done: u64,
        /// Requests asked for.
        wanted: u64,
        /// How long it was tried.
        seconds: u64,
    },
    /// The certificate of a run, or the clients that must meet it, could not be made.
    #[error("{0}")]
    Tls(String),
    /// A program that the run needs is not there or failed.
    #[error("{0}")]
    Program(String),
    /// The command line or the environment asks for something that does not exist.
    #[error("{0}")]
    Usage(String),
    /// The raw results could not be written as JSON.
    #[error("raw results: {0}")]
    Json(#[from] serde_json::Error),
}

/// Says what failed, in words.
pub trait Attempt<T> {
    /// Names what was being done when the error came.
    ///
    /// # Errors
    /// [`BenchError::Io`] if `self` is an error.
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, BenchError>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, BenchError> {
        self.map_err(|source| BenchError::Io { what: what(), source: source.into() })
    }
}
