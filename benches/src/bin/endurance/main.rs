//! Everything that an operator does to a running kakehi, again and again, under load; and what clients notice of it.
//!
//! Clients send requests at a fixed rate whatever becomes of those before: on long keep-alive connections, short ones, new
//! ones, with slow bodies, with large bodies both ways at once, as slow readers, with a reset in the middle of an answer, and
//! through tunnels that echo sequence numbers; a quarter of them is 20 ms away, and a quarter speaks TLS. Every failure is counted and explained. The report goes to standard output, and into `docs/specification.md` with `--write`.

mod authority;
mod clients;
mod proxy;
mod servers;
mod stream;
mod tally;

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use clap::Parser;
use tokio::{net::TcpListener, task::LocalSet, time::sleep};

use self::{
    authority::Authority,
    clients::{Clients, Load},
    proxy::{Leaving, Proxy, Setup},
    stream::Trust,
    tally::{Failure, Secure, Tally},
};

/// Where the report stands in the specification.
const MARKS: (&str, &str) = ("<!-- endurance: begin -->\n", "<!-- endurance: end -->\n");
/// Processes that leave may take as long as the file's `drain_timeout`, and a little.
const SETTLE: Duration = Duration::from_secs(23);

/// Does to a running kakehi what operators do, again and again, under load, and counts what clients notice.
#[derive(Parser)]
struct Arguments {
    /// A tenth of everything: shows that all of it works.
    #[arg(long)]
    short: bool,
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Requests per second.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Open tunnels.
    #[arg(long, default_value_t = 200)]
    tunnels: usize,
    /// Folder of the programs `kakehi` and `kakehictl`.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// Folder of older programs: they run instead, are replaced by those of `--programs` and upgraded; nothing else is done.
    #[arg(long)]
    from: Option<PathBuf>,
    /// Put the report into this file, between its marks.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// What is done, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Reload,
    UpgradeWorkers,
    Upgrade,
    KillWorker,
    KillSupervisor,
    Scale,
    Pin,
    Rebalance,
    /// While ticket keys are renewed every second.
    Certificate,
    /// From older programs to those that are tested.
    OldToNew,
    /// A change begins while a worker is stopped, which is continued before `worker_timeout`.
    StoppedWorker,
    /// A change goes on without a worker that is stopped, which is replaced and then continued.
    StuckWorker,
}

impl Step {
    /// It puts other processes in the place of workers, or ends some.
    fn replaces_workers(self) -> bool {
        use Step::{KillSupervisor, KillWorker, OldToNew, Scale, StuckWorker, Upgrade, UpgradeWorkers};
        matches!(
            self,
            UpgradeWorkers | Upgrade | OldToNew | KillWorker | KillSupervisor | Scale | StuckWorker
        )
    }

    /// A process that it puts another in the place of cannot give its connections to it: it answers what it was asked, closes
    /// connections that are idle, and cuts tunnels after `drain_timeout`.
    fn strands_connections(self) -> bool {
        self == Step::StuckWorker
    }

    fn leaving(self) -> Leaving {
        if self.strands_connections() { Leaving::Patiently } else { Leaving::Soon }
    }
}

/// A row of the report.
struct Scenario {
    name: &'static str,
    step: Step,
    times: u32,
}

const SCENARIOS: [Scenario; 12] = [
    Scenario { name: "nothing", step: Step::Nothing, times: 20 },
    Scenario { name: "reload", step: Step::Reload, times: 100 },
    Scenario { name: "workers-upgrade", step: Step::UpgradeWorkers, times: 20 },
    Scenario { name: "upgrade", step: Step::Upgrade, times: 10 },
    Scenario { name: "kill-worker", step: Step::KillWorker, times: 20 },
    Scenario { name: "kill-supervisor", step: Step::KillSupervisor, times: 5 },
    Scenario { name: "scale", step: Step::Scale, times: 10 },
    Scenario { name: "pin", step: Step::Pin, times: 20 },
    Scenario { name: "rebalance", step: Step::Rebalance, times: 20 },
    Scenario { name: "certificate", step: Step::Certificate, times: 100 },
    Scenario { name: "stopped-worker", step: Step::StoppedWorker, times: 20 },
    Scenario { name: "stuck-worker", step: Step::StuckWorker, times: 5 },
];

/// Again and again from the start, with `--from`: no way leads back to the older programs.
const OLD_TO_NEW: Scenario = Scenario { name: "old-to-new", step: Step::OldToNew, times: 1 };
const OLD_TO_NEW_TIMES: usize = 10;

/// What a scenario has shown.
struct Row {
    scenario: &'static str,
    step: Step,
    times: u32,
    requests: u64,
    /// Failures that nothing excuses, with the number of each reason.
    failed: BTreeMap<String, usize>,
    /// Failures in exchanges that a killed worker was in, and how many exchanges there were then.
    killed: Option<(usize, u64)>,
    under_a_request: usize,
    ended: u64,
    idle_closed: u64,
    secure: Secure,
    tunnels: u64,
    broken: BTreeMap<String, usize>,
    broken_by_kill: usize,
    latency_ms: [f64; 3],
    processes: (usize, usize),
    /// What is counted in flight at the end.
    left: u64,
    log: Vec<String>,
}

impl Row {
    fn holds(&self) -> bool {
        let killed = self.killed.is_none_or(|(failed, in_flight)| failed as u64 <= in_flight);
        let kept = self.ended + self.idle_closed == 0 || self.step.strands_connections();
        let idle = self.killed.is_some() || (self.under_a_request == 0 && kept);
        // They cannot move: those of a process that goes end.
        let Secure { handshakes, offered, resumed, ended, idle_closed, .. } = self.secure;
        let secure = handshakes > 0
            && offered > 0
            && resumed == offered
            && (self.step.replaces_workers() || ended + idle_closed == 0);
        self.failed.is_empty()
            && secure
            && self.broken.is_empty()
            && killed
            && idle
            && self.processes.0 == self.processes.1
            && self.left == 0
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, run(&arguments)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("endurance: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> io::Result<bool> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|it| it == name);
    let mut rows = Vec::new();
    let scenarios: Vec<&Scenario> = match arguments.from {
        Some(_) => vec![&OLD_TO_NEW; if arguments.short { 2 } else { OLD_TO_NEW_TIMES }],
        None => SCENARIOS.iter().filter(|scenario| wanted(scenario.name)).collect(),
    };
    for scenario in scenarios {
        let times = if arguments.short && arguments.from.is_none() {
            scenario.times.div_ceil(10).max(2)
        } else {
            scenario.times
        };
        eprintln!("{} ({times} times)", scenario.name);
        let row = endure(arguments, scenario, times).await?;
        eprintln!("  {}", if row.holds() { "holds" } else { "DOES NOT HOLD" });
        rows.push(row);
    }
    let memory = match arguments.from.is_none() && wanted("memory") {
        true => Some(memory(arguments).await?),
        false => None,
    };
    let report = report(arguments, &rows, memory);
    println!("{report}");
    if let Some(path) = &arguments.write {
        write(path, &report)?;
    }
    let steady = memory.is_none_or(|(after_few, after_many, _)| after_many <= after_few * 102 / 100);
    Ok(steady && rows.iter().all(Row::holds))
}

/// Two ports that are free now, below those that the kernel gives to outgoing connections.
async fn free_ports() -> io::Result<[SocketAddr; 2]> {
    let first = 12_000 + std::process::id() % 15_000;
    let mut free = Vec::new();
    for port in first..first + 2_000 {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port as u16)).await {
            free.push(listener.local_addr()?);
        }
        if let [one, two] = free[..] {
            return Ok([one, two]);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

async fn bound() -> io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await
}

async fn endure(arguments: &Arguments, scenario: &Scenario, times: u32) -> io::Result<Row> {
    let folder = tempfile::tempdir()?;
    let [backend, relay, secure_relay] = [bound().await?, bound().await?, bound().await?];
    let (far, secure_far) = (relay.local_addr()?, secure_relay.local_addr()?);
    let workers = if scenario.step == Step::Scale { 1 } else { 2 };
    let setup = Setup {
        listen: free_ports().await?,
        backend: backend.local_addr()?,
        workers,
        ticket_key_rotation: if scenario.step == Step::Certificate { 1 } else { 3600 },
        leaving: scenario.step.leaving(),
        counts: arguments.from.is_none(),
    };
    let [listen, secure] = setup.listen;
    let servers = [
        tokio::spawn(servers::backend(backend)),
        tokio::spawn(servers::relay(relay, listen)),
        tokio::spawn(servers::relay(secure_relay, secure)),
    ];
    let authority = Authority::new()?;
    authority.issue(folder.path())?;
    let programs = match &arguments.from {
        None => arguments.programs.clone(),
        Some(older) => {
            let programs = folder.path().join("programs");
            fs::create_dir(&programs)?;
            proxy::install(older, &programs)?;
            programs
        }
    };
    let mut proxy = Proxy::start(&programs, folder.path(), setup).await?;
    let before = proxy.processes().len();
    let load = Load {
        targets: [listen, far, secure, secure_far],
        trust: Trust::new(authority.certificate())?,
        rate: arguments.rate,
        tunnels: arguments.tunnels,
    };
    let clients = Clients::start(load);
    sleep(Duration::from_secs(2)).await;

    let mut kills: Vec<Instant> = Vec::new();
    let mut in_flight = 0;
    for n in 0..times {
        if scenario.step == Step::KillWorker {
            let begun = Cell::new(0);
            let pid = proxy
                .kill_worker(n as usize, || {
                    let tally = clients.tally.borrow();
                    in_flight += tally.in_flight;
                    begun.set(tally.begun);
                    kills.push(Instant::now());
                })
                .await?;
            sleep(tally::NEWS).await;
            in_flight += clients.tally.borrow().begun - begun.get();
            proxy.wait_for_workers(workers as usize, pid).await?;
        } else {
            act(&mut proxy, scenario.step, n, &authority, &arguments.programs).await?;
        }
        sleep(Duration::from_millis(300)).await;
    }
    clients.stop().await;
    let settled = Instant::now() + SETTLE;
    while proxy.processes().len() != before && Instant::now() < settled {
        sleep(Duration::from_millis(50)).await;
    }
    // Nobody asks any more: nothing is counted.
    let mut left = proxy.in_flight().await?;
    while left > 0 && Instant::now() < settled {
        sleep(Duration::from_millis(100)).await;
        left = proxy.in_flight().await?;
    }
    let processes = (before, proxy.processes().len());
    let log = proxy.stop().await?;
    servers.into_iter().for_each(|server| server.abort());
    Ok(Row { left, ..row(scenario, times, &clients, &kills, in_flight, processes, log) })
}

async fn act(proxy: &mut Proxy, step: Step, n: u32, authority: &Authority, newer: &Path) -> io::Result<()> {
    match step {
        Step::Nothing | Step::KillWorker => {}
        Step::Reload => proxy.reload().await?,
        Step::UpgradeWorkers => drop(proxy.ctl(&["workers", "upgrade"]).await?),
        Step::Upgrade => drop(proxy.ctl(&["upgrade"]).await?),
        Step::KillSupervisor => proxy.kill_supervisor().await?,
        Step::Scale => {
            proxy.ctl(&["workers", "scale", "2"]).await?;
            sleep(Duration::from_millis(300)).await;
            proxy.ctl(&["workers", "scale", "1"]).await?;
        }
        Step::Pin => {
            let worker = (n % 2).to_string();
            let core = (n / 2 % 2).to_string();
            proxy.ctl(&["pin", "set", &worker, &core]).await?;
        }
        Step::Rebalance => drop(proxy.ctl(&["workers", "rebalance"]).await?),
        Step::Certificate => proxy.replace_certificate(authority).await?,
        Step::OldToNew => proxy.go_over_to(newer).await?,
        Step::StoppedWorker => proxy.change_beside_a_stopped_worker(n).await?,
        Step::StuckWorker => proxy.change_without_a_stuck_worker(n).await?,
    }
    Ok(())
}

fn row(
    scenario: &Scenario,
    times: u32,
    clients: &Rc<Clients>,
    kills: &[Instant],
    in_flight: u64,
    processes: (usize, usize),
    log: Vec<String>,
) -> Row {
    let tally = clients.tally.borrow();
    let failed = Tally::inexcusable(&tally.failures, kills);
    let broken = match scenario.step.strands_connections() {
        true => Vec::new(),
        false => Tally::inexcusable(&tally.broken, kills),
    };
    let (excused, broken_by_kill) = (tally.failures.len() - failed.len(), tally.broken.len() - broken.len());
    let count = |failures: &[&Failure]| {
        let mut reasons = BTreeMap::new();
        for failure in failures {
            *reasons.entry(format!("{:?}: {}", failure.kind, failure.why)).or_insert(0) += 1;
        }
        reasons
    };
    let at = |quantile: f64| tally.latency.value_at_quantile(quantile) as f64 / 1000.0;
    Row {
        scenario: scenario.name,
        step: scenario.step,
        times,
        requests: tally.requests(),
        failed: count(&failed),
        killed: (scenario.step == Step::KillWorker).then_some((excused, in_flight)),
        under_a_request: tally.failures.iter().filter(|failure| failure.under_a_request).count(),
        ended: tally.ended,
        idle_closed: tally.idle_closed,
        secure: tally.secure,
        tunnels: tally.tunnels,
        broken: count(&broken),
        broken_by_kill,
        latency_ms: [at(0.5), at(0.99), tally.latency.max() as f64 / 1000.0],
        processes,
        left: 0,
        log,
    }
}

/// Resident memory of all processes (kB) after few and after many reloads, and how many those were.
async fn memory(arguments: &Arguments) -> io::Result<(u64, u64, u32)> {
    const FEW: u32 = 100;
    let many = if arguments.short { 200 } else { 2000 };
    eprintln!("memory ({many} reloads)");
    let folder = tempfile::tempdir()?;
    let backend = bound().await?;
    let (backend_at, listen) = (backend.local_addr()?, free_ports().await?);
    let server = tokio::spawn(servers::backend(backend));
    let authority = Authority::new()?;
    authority.issue(folder.path())?;
    let setup = Setup {
        listen,
        backend: backend_at,
        workers: 2,
        ticket_key_rotation: 3600,
        leaving: Leaving::Soon,
        counts: true,
    };
    let mut proxy = Proxy::start(&arguments.programs, folder.path(), setup).await?;
    let [listen, secure] = listen;
    let trust = Trust::new(authority.certificate())?;
    let targets = [listen, listen, secure, secure];
    let clients = Clients::start(Load { targets, trust, rate: 200, tunnels: 10 });
    let mut after_few = 0;
    for n in 1..=many {
        proxy.reload().await?;
        if n == FEW {
            sleep(Duration::from_secs(2)).await;
            after_few = proxy.memory_kb();
        }
    }
    sleep(Duration::from_secs(2)).await;
    let after_many = proxy.memory_kb();
    clients.stop().await;
    proxy.stop().await?;
    server.abort();
    Ok((after_few, after_many, many))
}

fn report(arguments: &Arguments, rows: &[Row], memory: Option<(u64, u64, u32)>) -> String {
    let mut text = format!(
        "{} requests per second, {} tunnels, a quarter of the clients 20 ms away, a quarter over TLS. Linux {}, {} cores, shared with \
         the clients and the backend.\n\n\
         | what is done | times | requests | failed | closed under a request | connections ended by an answer | \
         idle connections closed | tunnels broken | p50 ms | p99 ms | max ms | processes | still counted | holds |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n",
        arguments.rate,
        arguments.tunnels,
        fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    for row in rows {
        let failed: usize = row.failed.values().sum();
        let failed = match row.killed {
            Some((killed, in_flight)) => format!("{failed}, and {killed} of {in_flight} in flight at a kill"),
            None => failed.to_string(),
        };
        let broken: usize = row.broken.values().sum();
        let broken = match row.broken_by_kill {
            0 => format!("{broken} of {}", row.tunnels),
            killed => format!("{broken} of {}, and {killed} by a kill", row.tunnels),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {failed} | {} | {} | {} | {broken} | {:.1} | {:.1} | {:.0} | {} before, {} after | {} | {} |",
            row.scenario,
            row.times,
            row.requests,
            row.under_a_request,
            row.ended,
            row.idle_closed,
            row.latency_ms[0],
            row.latency_ms[1],
            row.latency_ms[2],
            row.processes.0,
            row.processes.1,
            row.left,
            if row.holds() { "yes" } else { "**no**" },
        );
    }
    text += "\n| over TLS | requests | handshakes | sessions resumed | connections ended by an answer | idle connections \
             closed |\n|---|--:|--:|--:|--:|--:|\n";
    for row in rows {
        let Secure { requests, handshakes, offered, resumed, ended, idle_closed } = row.secure;
        let _ = writeln!(
            text,
            "| {} | {requests} | {handshakes} | {resumed} of {offered} | {ended} | {idle_closed} |",
            row.scenario
        );
    }
    for row in rows {
        for (why, count) in row.failed.iter().chain(&row.broken) {
            let _ = writeln!(text, "\n{}: {count} times {why}", row.scenario);
        }
        if !row.holds() {
            for line in row.log.iter().take(10) {
                let _ = writeln!(text, "\n{}: log: {line}", row.scenario);
            }
        }
    }
    if let Some((after_few, after_many, many)) = memory {
        let change = (after_many as f64 / after_few as f64 - 1.0) * 100.0;
        let _ = writeln!(
            text,
            "\nResident memory of all processes: {after_few} kB after 100 reloads, {after_many} kB after {many} \
             ({change:+.1} %)."
        );
    }
    text
}

/// Puts the report between the marks of the file.
fn write(path: &Path, report: &str) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let (Some(begin), Some(end)) = (text.find(MARKS.0), text.find(MARKS.1)) else {
        return Err(io::Error::other(format!("{} has no place for the report", path.display())));
    };
    let kept = (&text[..begin + MARKS.0.len()], &text[end..]);
    fs::write(path, format!("{}{report}{}", kept.0, kept.1))
}
