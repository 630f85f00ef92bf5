//! `cargo bench -p kakehi-benches --bench end_to_end`: kakehi against the floor, nginx, HAProxy and others.
//!
//! Rounds of A B A B: within a round every case is measured on every proxy, one right after the other, and
//! every second round goes through the proxies backwards. Progress goes to stderr, tables to stdout, raw results to
//! `target/bench/`. The exit code is 0 only if every proxy ran and no request failed. `docs/performance.md`
//! explains the numbers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;
use kakehi_benches::backend::Backend;
use kakehi_benches::cores::{Cores, pin_this_thread};
use kakehi_benches::folders::Folders;
use kakehi_benches::generator::tls::{Tickets, Tls};
use kakehi_benches::identity::Identity;
use kakehi_benches::measure::{Bench, CASES, Case, Finding, Transport};
use kakehi_benches::peers::{Kind, Layer, Peer};
use kakehi_benches::point::{NoPoint, Point};
use kakehi_benches::report::{Environment, Record, Report, Traced};
use kakehi_benches::{Attempt, BenchError, benchmark};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Compares kakehi with other proxies on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// Cases to measure: ka64, ka1000, ka1, close, big, ws64, idle, start, tls_handshake, tls_resumed, tls_ka64,
    /// tls_big, tls_idle, policy [default: all]; a body of any size: [tls_|tcp_]down|up_SIZE[_chunked][_xCONNECTIONS], as in
    /// `up_64k`, `tls_down_16k_chunked_x1000`, `tcp_down_16`; `curve` and `curve_full` are many of them; latency at a fixed rate:
    /// tail_PERCENT[_fresh], of what the best of nginx and HAProxy answers in ka64; `tail` is many of them
    cases: Vec<String>,
    /// Proxies, the first being the one that is compared: kakehi, kakehi@LEVEL, floor, nginx, haproxy,
    /// sozu, envoy, direct; those that are not installed are left out
    #[arg(
        long,
        env = "KAKEHI_BENCH_PEERS",
        value_delimiter = ',',
        default_value = "kakehi,floor,nginx,haproxy,sozu,envoy,direct"
    )]
    peers: Vec<String>,
    /// How often everything is measured
    #[arg(long, env = "KAKEHI_BENCH_ROUNDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, env = "KAKEHI_BENCH_SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Also run ka64 with kakehi's kernel features masked to each level from 0 to 4
    #[arg(long, env = "KAKEHI_BENCH_LEVELS", value_parser = BoolishValueParser::new())]
    levels: bool,
    /// Also count system calls per request with strace, in runs of their own
    #[arg(long, env = "KAKEHI_BENCH_SYSCALLS", value_parser = BoolishValueParser::new())]
    syscalls: bool,
    /// Use the release build of kakehi as it is
    #[arg(long, env = "KAKEHI_BENCH_NO_BUILD", value_parser = BoolishValueParser::new())]
    no_build: bool,
    /// One short round: shows that everything works, not how fast
    #[arg(long, alias = "test")]
    quick: bool,
    /// Only show how each proxy is configured and started
    #[arg(long)]
    configs: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Enough for the idle case: a connection each for client, proxy and backend side.
const OPEN_FILES: u64 = 20_000;

fn main() -> ExitCode {
    let options = Options::parse();
    benchmark(options.bench || options.quick || options.configs, || run(&options))
}

/// True if every proxy ran and no request failed.
fn run(options: &Options) -> Result<bool, BenchError> {
    let cases = choose_cases(&options.cases, options.quick)?;
    let (rounds, seconds, warm_up) =
        if options.quick { (1, 0.3, 0.1) } else { (options.rounds, options.seconds, options.seconds / 4.0) };
    if !(0.01..=3_600.0).contains(&seconds) {
        return Err(BenchError::Usage(format!("--seconds {seconds}: say 0.01 to 3600")));
    }
    let folders = Folders::find()?;
    if !options.no_build && options.peers.iter().any(|name| name.starts_with("kakehi")) {
        folders.build_kakehi()?;
    }
    let peers = find_peers(&options.peers, &folders.programs)?;
    let levels = if options.levels {
        find_peers(&(0..=4).map(|level| format!("kakehi@{level}")).collect::<Vec<_>>(), &folders.programs)?
    } else {
        Vec::new()
    };
    if options.configs {
        return show_configurations(&peers).map(|()| true);
    }
    raise_open_files()?;
    let cores = Cores::choose(std::env::var("KAKEHI_BENCH_CORES").ok().as_deref())?;
    let backend = Backend::start(cores.backend)?;
    pin_this_thread(cores.generator)?;

    let versions: BTreeMap<_, _> = peers.iter().map(|peer| (peer.name(), peer.version())).collect();
    let mut comparison = Comparison {
        bench: Bench {
            cores,
            backend: backend.address(),
            duration: Duration::from_secs_f64(seconds),
            warm_up: Duration::from_secs_f64(warm_up),
            identity: Identity::generate()?,
            best_rate: None,
        },
        report: Report {
            environment: Environment::here(cores, versions, seconds, rounds),
            subject: peers.first().map(Peer::name).unwrap_or_default(),
            records: Vec::new(),
            traced: Vec::new(),
        },
        failed: Vec::new(),
        given_up: Vec::new(),
    };
    if cases.iter().any(|(_, case)| matches!(case, Case::Tail { .. })) {
        comparison.find_best_rate(&peers)?;
    }
    comparison.rounds(rounds, &cases, &peers, &levels);
    if options.syscalls {
        comparison.count_system_calls(&cases, &peers);
    }
    comparison.finish(&folders.results)
}

struct Comparison {
    bench: Bench,
    report: Report,
    /// What could not be measured, in words.
    failed: Vec<String>,
    /// Proxies that did not start once, and for which transport, and are not tried that way again.
    given_up: Vec<(String, Transport)>,
}

impl Comparison {
    /// Measures what the best of nginx and HAProxy answers in `ka64`: a part of that is the rate of the tail.
    fn find_best_rate(&mut self, peers: &[Peer]) -> Result<(), BenchError> {
        let [(_, ka64), ..] = CASES;
        for peer in peers.iter().filter(|peer| matches!(peer.kind, Kind::Nginx | Kind::Haproxy)) {
            if let Some(measured) = self.bench.measure(peer, ka64)?
                && let Finding::Traffic(found) = measured.finding
            {
                eprintln!("{}: {:.0} requests/s at most", peer.name(), found.rate);
                self.bench.best_rate = Some(self.bench.best_rate.unwrap_or_default().max(found.rate));
            }
        }
        self.report.environment.best_rate = self.bench.best_rate;
        if self.bench.best_rate.is_none() {
            return Err(BenchError::Usage(
                "the tail needs nginx or HAProxy, whose rate it is a part of".into(),
            ));
        }
        Ok(())
    }

    fn rounds(&mut self, rounds: u32, cases: &[(String, Case)], peers: &[Peer], levels: &[Peer]) {
        for round in 0..rounds {
            for (name, case) in cases {
                self.in_turn(round, name, *case, peers);
            }
            if let Some(&(name, case)) = CASES.first()
                && !levels.is_empty()
            {
                let all: Vec<Peer> = peers.iter().take(1).chain(levels).cloned().collect();
                self.in_turn(round, &format!("{name} by level of kernel features"), case, &all);
            }
        }
    }

    /// Measures one case on every proxy, every second round in reverse: a machine that gets warmer or busier
    /// while it measures then favours nobody.
    fn in_turn(&mut self, round: u32, name: &str, case: Case, peers: &[Peer]) {
        let order: Vec<&Peer> =
            if round.is_multiple_of(2) { peers.iter().collect() } else { peers.iter().rev().collect() };
        for peer in order {
            if self.has_given_up(peer, case) {
                continue;
            }
            eprintln!("round {} {name}: {}", round + 1, peer.name());
            match self.bench.measure(peer, case) {
                Ok(None) => {}
                Ok(Some(measured)) => self.report.records.push(Record {
                    case: name.to_owned(),
                    peer: peer.name(),
                    round,
                    finding: measured.finding,
                    faults: measured.faults.total(),
                    fault_kinds: measured.faults.to_string(),
                }),
                Err(error) => {
                    self.failed.push(format!("{}, {name}, round {}: {error}", peer.name(), round + 1));
                    if matches!(error, BenchError::NotReady { .. }) {
                        self.given_up.push((peer.name(), case.transport()));
                    }
                }
            }
        }
    }

    fn count_system_calls(&mut self, cases: &[(String, Case)], peers: &[Peer]) {
        for (name, case) in cases {
            let case = *case;
            for peer in peers {
                if self.has_given_up(peer, case) {
                    continue;
                }
                match self.bench.system_calls(peer, case) {
                    Ok(None) => {}
                    Ok(Some((calls, requests))) => {
                        self.report.traced.push(Traced {
                            case: name.clone(),
                            peer: peer.name(),
                            requests,
                            calls,
                        });
                    }
                    Err(error) => self.failed.push(format!("{}, {name}, strace: {error}", peer.name())),
                }
            }
        }
    }

    fn has_given_up(&self, peer: &Peer, case: Case) -> bool {
        self.given_up.contains(&(peer.name(), case.transport()))
    }

    fn finish(mut self, results: &Path) -> Result<bool, BenchError> {
        // Backward rounds must not decide the order of the rows.
        self.report.records.sort_by_key(|record| record.round);
        std::fs::create_dir_all(results).attempt(|| format!("cannot create {}", results.display()))?;
        let path = results.join(format!("end_to_end-{}.json", self.report.environment.started));
        let json = serde_json::to_vec_pretty(&self.report)?;
        std::fs::write(&path, json).attempt(|| format!("cannot write {}", path.display()))?;
        if let Some(picture) = self.report.picture() {
            let path = path.with_extension("svg");
            std::fs::write(&path, picture).attempt(|| format!("cannot write {}", path.display()))?;
            eprintln!("the curve: {}", path.display());
        }
        println!("{}", self.report.markdown());
        eprintln!("raw results: {}", path.display());
        for failure in &self.failed {
            eprintln!("FAILED: {failure}");
        }
        Ok(self.failed.is_empty() && self.report.faults() == 0)
    }
}

/// The cases of these names, in the order in which they are measured; all of [`CASES`] where there are none.
fn choose_cases(names: &[String], quick: bool) -> Result<Vec<(String, Case)>, BenchError> {
    let named = |(name, case): (&str, Case)| (name.to_owned(), if quick { case.quick() } else { case });
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut chosen: Vec<_> = CASES.into_iter().filter(|(name, _)| wanted(name)).map(named).collect();
    for name in names.iter().filter(|name| !CASES.iter().any(|(known, _)| known == name)) {
        let of_tail = if name == "tail" { Case::tail() } else { Case::of_tail(name).into_iter().collect() };
        if !of_tail.is_empty() {
            chosen.extend(of_tail.into_iter().filter_map(|case| Some((case.name_in_tail()?, case))));
            continue;
        }
        let points = match (name.as_str(), name.parse::<Point>()) {
            ("curve", _) => Point::curve(true),
            ("curve_full", _) => Point::curve(false),
            (_, Ok(point)) => vec![point],
            (_, Err(NoPoint)) => {
                let known = CASES.map(|(known, _)| known).join(", ");
                return Err(BenchError::Usage(format!(
                    "no case is called {name}: there are {known}, curve, curve_full, points of the curve, tail, and rates of the tail"
                )));
            }
        };
        chosen.extend(points.into_iter().map(|point| (point.to_string(), point.case())));
    }
    Ok(chosen)
}

fn find_peers(names: &[String], programs: &Path) -> Result<Vec<Peer>, BenchError> {
    let mut found = Vec::new();
    for name in names {
        match Peer::find(name, programs)? {
            Some(peer) => found.push(peer),
            None => eprintln!("{name} is not installed: left out"),
        }
    }
    if found.iter().all(|peer| peer.kind == Kind::Direct) {
        return Err(BenchError::Usage("none of the proxies is installed".into()));
    }
    Ok(found)
}

/// Prints the files and the command line of each proxy, without TLS and then with it, as Markdown.
fn show_configurations(peers: &[Peer]) -> Result<(), BenchError> {
    for peer in peers {
        show_configuration(peer, &peer.name(), None)?;
    }
    let identity = Identity::generate()?;
    let tls = Tls::new(identity.certificate().clone(), Tickets::Ignore)?;
    for peer in peers.iter().filter(|peer| peer.kind.speaks_tls()) {
        show_configuration(peer, &format!("{}, TLS", peer.name()), Some((&identity, tls.clone())))?;
    }
    Ok(())
}

/// Certificates and keys, which are made for each run, are left out.
fn show_configuration(peer: &Peer, title: &str, secure: Option<(&Identity, Tls)>) -> Result<(), BenchError> {
    let (listen, backend) = (([127, 0, 0, 1], 8080).into(), ([127, 0, 0, 1], 9000).into());
    let folder = tempfile::tempdir().attempt(|| "no temporary folder".into())?;
    let Some(program) = peer.prepare(folder.path(), listen, backend, Layer::Http, secure)? else {
        return Ok(());
    };
    let readable = |text: &str| text.replace(&*folder.path().to_string_lossy(), "FOLDER");
    println!("{title}: `{}`\n", readable(&program.command_line()));
    for file in std::fs::read_dir(folder.path()).attempt(|| "cannot list a temporary folder".into())? {
        let path = file.attempt(|| "cannot list a temporary folder".into())?.path();
        if path.extension().is_none_or(|extension| extension != "pem") {
            let text =
                std::fs::read_to_string(&path).attempt(|| format!("cannot read {}", path.display()))?;
            println!("```\n{}```\n", readable(&text));
        }
    }
    Ok(())
}

/// The generator, the backend and all proxies, which inherit the limit, need many descriptors.
fn raise_open_files() -> Result<(), BenchError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).attempt(|| "cannot read RLIMIT_NOFILE".into())?;
    let wanted = OPEN_FILES.min(hard);
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).attempt(|| "cannot raise RLIMIT_NOFILE".into())?;
    }
    if wanted < OPEN_FILES {
        eprintln!("only {wanted} open files are allowed, {OPEN_FILES} are wanted: wide cases may fail");
    }
    Ok(())
}
