//! `load`: puts load on one proxy by hand, with a backend of its own. For work on a proxy, not for comparisons.
//!
//! `load backend` starts the backend, prints its address and runs until it is killed; point a proxy at it.
//! `load certificate FOLDER` makes a certificate for a proxy that is to speak TLS.
//! `load drive ADDRESS` drives that proxy and prints what it saw; with `--tls FOLDER/certificate.pem` over TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use kakehi_benches::BenchError;
use kakehi_benches::backend::Backend;
use kakehi_benches::generator::tls::{Tickets, Tls};
use kakehi_benches::generator::{Bound, Generator, Load, Mode};
use kakehi_benches::identity::{Identity, read_certificate};

#[derive(Debug, Parser)]
#[command(about = "Puts load on one proxy by hand")]
struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the backend until killed
    Backend {
        /// Core to run on
        #[arg(long, default_value_t = 0)]
        core: usize,
    },
    /// Make a certificate: certificate.pem, key.pem, and both.pem for proxies that want one file
    Certificate {
        /// Existing folder for the files
        folder: PathBuf,
    },
    /// Drive a server that answers as the backend does
    Drive {
        /// Where it listens
        address: SocketAddr,
        /// Connections at a time
        #[arg(short, long, default_value_t = 64)]
        connections: usize,
        /// Response body in bytes
        #[arg(short, long, default_value_t = 16)]
        body: usize,
        /// Request body in bytes
        #[arg(short, long, default_value_t = 0)]
        upload: usize,
        /// The body in chunks, whichever way it goes
        #[arg(long)]
        chunked: bool,
        /// Requests per second, whatever becomes of those before; latency counts from when each was due [default: each
        /// connection asks as soon as it was answered]
        #[arg(long, value_name = "PER_SECOND", conflicts_with = "close")]
        rate: Option<f64>,
        /// Seconds
        #[arg(short, long, default_value_t = 5.0)]
        seconds: f64,
        /// Each request has a field X-Key with one of so many values, each in turn
        #[arg(long, default_value_t = 0)]
        keys: u32,
        /// A new connection per request
        #[arg(long)]
        close: bool,
        /// Speak TLS with a server that shows this certificate (PEM)
        #[arg(long, value_name = "CERTIFICATE")]
        tls: Option<PathBuf>,
        /// Resume with tickets; a connection that could have and did not counts as failed
        #[arg(long, requires = "tls")]
        resume: bool,
    },
}

fn main() -> ExitCode {
    match run(Options::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode, BenchError> {
    match verb {
        Verb::Backend { core } => {
            let backend = Backend::start(core)?;
            println!("{}", backend.address());
            loop {
                std::thread::park();
            }
        }
        Verb::Certificate { folder } => {
            Identity::generate()?.write(&folder)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Drive {
            address,
            connections,
            body,
            upload,
            chunked,
            rate,
            seconds,
            keys,
            close,
            tls,
            resume,
        } => {
            let mode = if close { Mode::Close } else { Mode::KeepAlive };
            let load = Load { target: address, connections, body, upload, chunked, mode, rate, keys };
            let seconds =
                Duration::try_from_secs_f64(seconds).map_err(|error| BenchError::Usage(error.to_string()))?;
            let tickets = if resume { Tickets::Use } else { Tickets::Ignore };
            let certificate = tls.map(|path| read_certificate(&path)).transpose()?;
            let tls = certificate.map(|certificate| Tls::new(certificate, tickets)).transpose()?;
            let tally = Generator::with(load, tls)?.drive(Bound::Time(seconds))?;
            let latency_us = |quantile| tally.latency.value_at_quantile(quantile) / 1_000;
            println!(
                "{} requests, {:.0}/s, p50 {} us, p99 {} us, p99.9 {} us, most {} us, handshakes: {} full, {} resumed; failed: {}",
                tally.requests,
                tally.rate(),
                latency_us(0.5),
                latency_us(0.99),
                latency_us(0.999),
                tally.latency.max() / 1_000,
                tally.handshakes.full,
                tally.handshakes.resumed,
                tally.faults
            );
            Ok(if tally.faults.total() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
