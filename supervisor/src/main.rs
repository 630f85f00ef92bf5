//! The program `kakehi`: `start`, `check`, `demo`, and the hidden `worker`.
//!
//! `start` becomes the supervisor ([`supervisor`]), which launches this same program again as `worker`
//! ([`worker_main`]) once per core. What happens to a connection is the engine's business; here is only what
//! concerns processes: their start, limits, sockets, death and end.
//!
//! Imports go downwards only, in this order; `scripts/check-layers` refuses others.
//!
//! | module | what it is for |
//! |---|---|
//! | [`check`], [`demo`] | the other commands |
//! | [`begin`] | from a configuration, or from what another supervisor left, to a supervisor that serves |
//! | [`control`] | the loop, the command socket, requests, changes, saves |
//! | [`placement`], [`upgrade`] | how many workers there are and where; new processes in the place of old ones |
//! | [`supervisor`] | the state of the supervisor, and the one place where it waits |
//! | [`certificates`], [`estate`], [`health`] | what of TLS lies in files; what moves from one supervisor to the next; probes of backends |
//! | [`fleet`] | the processes of one worker |
//! | [`host`] | cores, limits, addresses, signals, the init system |
//! | [`worker_main`] | the command `worker`, and in which descriptor it finds what |
//! | [`logging`], [`scm`], [`outlet`], [`timer`], [`sys`] | what all of them use |
//!
//! Exit codes: 0 done or stopped cleanly, 1 could not start or go on, 2 wrong usage, 3 stopped but something was cut.

mod admin;
mod begin;
mod certificates;
mod check;
mod control;
mod demo;
mod errand;
mod estate;
mod fleet;
mod health;
mod host;
mod logging;
mod metrics;
mod names;
mod outlet;
mod placement;
mod scm;
mod supervisor;
mod sys;
mod timer;
mod upgrade;
mod worker_main;

use std::{net::SocketAddr, os::fd::RawFd, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// An HTTP reverse proxy: one pinned worker process per core, each with its own io_uring.
#[derive(Parser)]
#[command(name = "kakehi", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the proxy in the foreground until SIGTERM or SIGINT; the log goes to standard output.
    ///
    /// The first SIGTERM or SIGINT stops it gracefully: nothing new is accepted and what is in flight has
    /// `graceful_timeout` seconds to finish. A second one stops it at once.
    Start {
        /// The configuration file (TOML).
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Go on where the program stopped that this one takes the place of.
        #[arg(long, hide = true, value_name = "FD")]
        resume: Option<RawFd>,
    },
    /// Say whether a configuration file is right, without opening a socket.
    ///
    /// Prints warnings and exits with 0 when the file would be accepted, prints all errors and exits with 1 otherwise.
    Check {
        /// The configuration file (TOML).
        #[arg(short, long, value_name = "FILE", required_unless_present = "state")]
        config: Option<PathBuf>,
        /// Look at this host too: users, folders, addresses and ports, cores, io_uring.
        ///
        /// Run it as the user that kakehi is started as. Addresses that a running kakehi with the same command socket has are
        /// not taken.
        #[arg(long)]
        here: bool,
        /// A running state instead, in an open descriptor.
        #[arg(long, hide = true, value_name = "FD")]
        state: Option<RawFd>,
    },
    /// Run the proxy in front of a small backend of its own: no file is needed.
    Demo {
        /// Where to listen; by default a free port of 127.0.0.1.
        #[arg(short, long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
    /// One worker; started by the supervisor, of no use by hand.
    #[command(hide = true)]
    Worker(worker_main::Place),
}

fn main() -> ExitCode {
    // First of all: nothing that our own parent left open may reach a worker.
    if let Err(error) = sys::adopt_inherited_descriptors() {
        logging::complain(format_args!(
            "cannot look through the inherited file descriptors in /proc/self/fd: {error}"
        ));
        return ExitCode::FAILURE;
    }
    match Arguments::parse().verb {
        Verb::Start { config, resume: Some(estate) } => begin::resume(estate, &config),
        Verb::Start { config, resume: None } => start(&config),
        Verb::Check { state: Some(state), .. } => check::run_on_state(state),
        Verb::Check { config, here, .. } => check::run(&config.unwrap_or_default(), here),
        Verb::Demo { listen } => demo::run(listen),
        Verb::Worker(place) => worker_main::run(place),
    }
}

fn start(file: &std::path::Path) -> ExitCode {
    match kakehi_ctl::config::load(file) {
        Ok(loaded) => begin::run(loaded, file),
        Err(errors) => begin::refuse(&errors, file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
