//! `kakehictl`: the command line of a running kakehi.
//!
//! [`cli`] says which words there are, [`client`] asks the supervisor, [`mod@print`] shows the answer.
//! Exit codes: 0 done, 1 refused, 2 usage, 3 not reachable.

mod cli;
mod client;
mod print;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser as _;
use kakehi_ctl::order::{Response, Topology, WorkerInfo};

use crate::{cli::Arguments, client::Failure};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let text = match run(&arguments) {
        Ok(text) => text,
        Err(failure) => {
            // Whoever closed stderr does not want to know.
            let _ = writeln!(io::stderr(), "kakehictl: {failure}");
            return ExitCode::from(failure.exit_code());
        }
    };
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        // `kakehictl workers | head -1`: the reader has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "kakehictl: the answer cannot be written: {error}");
            ExitCode::from(1)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// How long the load of workers is measured.
const MEASURED: Duration = Duration::from_millis(500);

/// Notes how busy each worker was since `before`.
fn measure_load(topology: &mut Topology, before: &Topology, time: Duration) {
    for worker in &mut topology.workers {
        let earlier = before.workers.iter().find(|it| it.id == worker.id && it.pid == worker.pid);
        worker.load_percent = earlier.map(|earlier| {
            let cpu = |worker: &WorkerInfo| u128::from(worker.cpu_user_ms + worker.cpu_system_ms);
            let percent = cpu(worker).saturating_sub(cpu(earlier)) * 100 / time.as_millis().max(1);
            u64::try_from(percent).unwrap_or(u64::MAX)
        });
    }
}

/// Asks, and gives back what is to be printed.
fn run(arguments: &Arguments) -> Result<String, Failure> {
    let socket = arguments.socket()?;
    let ask = || client::ask(&socket, arguments.verb.request(), arguments.timeout());
    let mut response = ask()?;
    if let Response::Topology(before) = response {
        // How busy a worker is shows only over a while.
        let since = Instant::now();
        #[expect(clippy::disallowed_methods, reason = "nobody waits for this process but its user")]
        thread::sleep(MEASURED);
        response = ask()?;
        if let Response::Topology(topology) = &mut response {
            measure_load(topology, &before, since.elapsed());
        }
    }
    Ok(if arguments.json { print::json(&response) } else { print::human(&response) })
}
