//! `cargo bench -p kakehi-benches --bench full_table`: what it costs that the table of limits is full.
//!
//! Two proxies with the same file: a limit by a field, and a table of 1,000,000 places. One of them sees as many keys. As clients
//! choose them, they have three quarters of the places: a quarter of the keys find none, and share one. The other one sees a single
//! key. In turn both get 64 connections whose requests have all the same key, and the full one also such whose requests have each of
//! the keys in turn: what is read of the table is in no cache then. CPU time of all processes of the proxy per request, as medians of
//! ratios of neighbouring measurements. The exit code is 0 only if the limit is kept; the short form judges nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use kakehi_benches::accounting::Usage;
use kakehi_benches::backend::Backend;
use kakehi_benches::cores::{Cores, pin_this_thread};
use kakehi_benches::folders::Folders;
use kakehi_benches::generator::{Bound, Generator, HOST, Load};
use kakehi_benches::process::{Process, Program, free_address};
use kakehi_benches::report::median;
use kakehi_benches::{Attempt, BenchError, benchmark};

/// Measures what a full table of limits costs.
#[derive(Debug, Parser)]
struct Options {
    /// Keys for which the table has room
    #[arg(long, default_value_t = 1_000_000)]
    keys: u32,
    /// How often each is measured
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// How long each time
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// A few, for a short time: shows that it works
    #[arg(long, alias = "test")]
    quick: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a request may cost with a full table, of what it costs with an empty one.
const LIMIT: f64 = 1.05;
/// Connections of each load.
const CONNECTIONS: usize = 64;

fn main() -> ExitCode {
    let options = Options::parse();
    benchmark(options.bench || options.quick, || run(&options))
}

fn run(options: &Options) -> Result<bool, BenchError> {
    let (keys, rounds, seconds) =
        if options.quick { (2_000, 1, 0.1) } else { (options.keys, options.rounds.max(1), options.seconds) };
    let program = Folders::find()?.kakehi()?;
    let cores = Cores::choose(std::env::var("KAKEHI_BENCH_CORES").ok().as_deref())?;
    let backend = Backend::start(cores.backend)?;
    pin_this_thread(cores.generator)?;
    let start = || Proxy::start(&program, cores.proxy, &backend, keys);
    let (empty, full) = (start()?, start()?);
    let mut filling = full.load(keys)?;
    let filled = filling.drive(Bound::Requests(u64::from(keys)))?;
    println!("{} requests with {keys} keys in {:.1} s", filled.requests, filled.elapsed.as_secs_f64());
    let (mut few, mut same) = (empty.load(1)?, full.load(1)?);
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(1));
    let (mut same_key, mut other_keys) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = empty.cost(&mut few, time)?;
        same_key.push(full.cost(&mut same, time)? / before);
        other_keys.push(full.cost(&mut filling, time)? / empty.cost(&mut few, time)?);
    }
    println!("| requests to the full table | CPU per request, of that with an empty one | limit |");
    println!("|---|--:|--:|");
    let [same_key, other_keys] = [same_key, other_keys].map(|ratios| median(ratios).unwrap_or(f64::NAN));
    println!("| with the same key | {same_key:.3} | {LIMIT} |");
    println!("| each with another key | {other_keys:.3} | {LIMIT} |");
    // So short a time says nothing.
    Ok(options.quick || (same_key <= LIMIT && other_keys <= LIMIT))
}

/// A kakehi with a limit by a field, which refuses nobody.
struct Proxy {
    process: Process,
    listen: std::net::SocketAddr,
    _folder: tempfile::TempDir,
}

impl Proxy {
    fn start(program: &Path, core: usize, backend: &Backend, keys: u32) -> Result<Proxy, BenchError> {
        let folder = tempfile::tempdir().attempt(|| "no temporary folder".into())?;
        let listen = free_address()?;
        // One request keeps its place busy for a minute, and nobody is refused.
        let text = format!(
            "command_socket = \"./k.sock\"\nworker_count = 1\nmax_connections = 1000\ntable_size = {keys}\n\
             [[listeners]]\naddress = \"{listen}\"\nprotocol = \"http\"\n\
             [clusters.all]\nprotocol = \"http\"\nbackends = [{{ address = \"{}\" }}]\n\
             frontends = [{{ address = \"{listen}\", hostname = \"{HOST}\" }}]\n\
             rate_limits = [{{ key = \"header:X-Key\", rate = 60, per = \"1h\", burst = 100000000 }}]\n",
            backend.address()
        );
        let path = folder.path().join("kakehi.toml");
        fs::write(&path, text).attempt(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(program);
        command.args(["start", "-c"]).arg(&path);
        let log = folder.path().join("log");
        let program = Program { name: "kakehi".into(), command, listen, tls: None, log };
        let mut process = Process::start(program, core)?;
        process.wait_until_ready()?;
        Ok(Proxy { process, listen, _folder: folder })
    }

    fn load(&self, keys: u32) -> Result<Generator, BenchError> {
        Generator::new(Load { connections: CONNECTIONS, keys, ..Load::on(self.listen) })
    }

    /// CPU time per request (ns) of so much time of this load.
    fn cost(&self, load: &mut Generator, time: Duration) -> Result<f64, BenchError> {
        // What was idle meanwhile is warm again.
        load.drive(Bound::Time(time / 10))?;
        let before = Usage::of_tree(self.process.id())?;
        let tally = load.drive(Bound::Time(time))?;
        let used = Usage::of_tree(self.process.id())?.since(&before);
        Ok(used.cpu_ns as f64 / tally.requests as f64)
    }
}
