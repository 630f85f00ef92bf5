//! Turns measurements into tables (Markdown, for people) and raw data (JSON, for everybody who doubts them).
//!
//! A table shows the median over the rounds. A ratio is taken within each round, where both sides ran one
//! after the other on the same machine in the same mood; shown are the median of those ratios and, in
//! brackets, the lowest and the highest.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::cores::Cores;
use crate::generator::tls;
use crate::measure::{Case, Finding, Traffic};
use crate::strace::Calls;

mod curve;
mod limits;
mod table;

use table::{Cell, Table};

/// Columns of a case of traffic.
const TRAFFIC: [&str; 16] = [
    "proxy",
    "CPU us/request",
    "user",
    "system",
    "ends",
    "all",
    "core busy",
    "requests/s",
    "p50 us",
    "p99 us",
    "sleeps/request",
    "enters/request",
    "syscalls/request",
    "CPU ratio",
    "all ratio",
    "rate ratio",
];

/// Columns of a case of the tail.
const TAIL: [&str; 11] = [
    "proxy",
    "requests/s",
    "CPU us/request",
    "p50 us",
    "p99 us",
    "p99.9 us",
    "p99.99 us",
    "most us",
    "p50 ratio",
    "p99 ratio",
    "p99.9 ratio",
];

/// One measurement with its place in the run.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Name of the case.
    pub case: String,
    /// Name of the proxy.
    pub peer: String,
    /// Round, from 0.
    pub round: u32,
    /// What was found.
    pub finding: Finding,
    /// Requests that failed.
    pub faults: u64,
    /// Which kinds, in words.
    pub fault_kinds: String,
}

/// System calls of one proxy in one case.
#[derive(Clone, Debug, Serialize)]
pub struct Traced {
    /// Name of the case.
    pub case: String,
    /// Name of the proxy.
    pub peer: String,
    /// Requests answered while strace counted.
    pub requests: u64,
    /// Calls by name.
    pub calls: Calls,
}

/// The machine and the programs.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Processor, as it names itself.
    pub processor: String,
    /// Kernel release.
    pub kernel: String,
    /// Who ran where.
    pub cores: Cores,
    /// What every proxy says of its version.
    pub versions: BTreeMap<String, String>,
    /// Start of the run (s since 1970).
    pub started: u64,
    /// Length of one measurement (s).
    pub seconds: f64,
    /// Rounds.
    pub rounds: u32,
    /// Requests per second of the best peer in `ka64`, where the tail was measured.
    pub best_rate: Option<f64>,
}

impl Environment {
    /// Looks at this machine.
    #[must_use]
    pub fn here(cores: Cores, versions: BTreeMap<String, String>, seconds: f64, rounds: u32) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        Self { processor, kernel, cores, versions, started, seconds, rounds, best_rate: None }
    }
}

/// Everything that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Machine and programs.
    pub environment: Environment,
    /// The proxy that the ratios compare with all others.
    pub subject: String,
    /// All measurements in their order.
    pub records: Vec<Record>,
    /// System calls, where they were counted.
    pub traced: Vec<Traced>,
}

impl Report {
    /// Requests that failed, all together.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.records.iter().map(|record| record.faults).sum()
    }

    /// The tables of all cases, in the order in which they were first measured.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = self.heading();
        for case in first_seen(self.records.iter().map(|record| record.case.as_str())) {
            let _ = write!(text, "\n### {case}\n\n{}", self.table(case));
        }
        if let Some(limits) = limits::table(&self.records, &self.subject)
            && self.subject.starts_with("kakehi")
        {
            let _ = write!(text, "\n### Limits of {}\n\n{limits}", self.subject);
        }
        for record in self.records.iter().filter(|record| record.faults > 0) {
            let Record { case, peer, round, faults, fault_kinds, .. } = record;
            let _ = write!(
                text,
                "\n**{peer}, {case}, round {round}: {faults} failed requests ({fault_kinds})**\n"
            );
        }
        text
    }

    /// The points of the curve that were measured, as a picture (SVG); `None` where there are too few.
    #[must_use]
    pub fn picture(&self) -> Option<String> {
        curve::svg(&self.records)
    }

    fn heading(&self) -> String {
        let Environment { processor, kernel, cores, seconds, rounds, .. } = &self.environment;
        let mut text = format!(
            "{processor}, Linux {kernel}; proxy on core {}, generator on core {}, backend on core {}; \
             {rounds} rounds of {seconds} s; medians, ratios of {} to the others (lowest-highest)\n\n",
            cores.proxy, cores.generator, cores.backend, self.subject
        );
        if self.records.iter().any(|record| record.case.starts_with("tls_")) {
            let _ = writeln!(
                text,
                "Cases `tls_...`: {}. In `tls_handshake` and `tls_resumed` a request is a connection with its \
                 handshake, in `tls_big` it is 1 MiB; *resumed* is the share of tickets that the proxy accepted.\n",
                tls::TERMS
            );
        }
        if let Some(rate) = self.environment.best_rate {
            let _ = writeln!(
                text,
                "Cases `tail_...`: requests at a fixed rate, a part of the {rate:.0} per second that the best of nginx and HAProxy \
                 answers in `ka64`; latency counts from when each was due.\n"
            );
        }
        for (peer, version) in self.environment.versions.iter().filter(|(_, version)| !version.is_empty()) {
            let _ = writeln!(text, "- {peer}: {version}");
        }
        text
    }

    fn table(&self, case: &str) -> Table {
        let of_case: Vec<&Record> = self.records.iter().filter(|record| record.case == case).collect();
        let mut table = match of_case.first().map(|record| &record.finding) {
            _ if is_of_tail(case) => Table::new(&TAIL),
            Some(Finding::Traffic(_)) => {
                let mut heading = TRAFFIC.to_vec();
                heading.extend(resumes(&of_case).then_some("resumed"));
                Table::new(&heading)
            }
            Some(Finding::Idle { .. }) => {
                Table::new(&["proxy", "at rest KiB", "idle KiB", "KiB/connection", "growth ratio"])
            }
            Some(Finding::Start { .. }) | None => Table::new(&["proxy", "first answer ms", "ratio"]),
        };
        for peer in first_seen(of_case.iter().map(|record| record.peer.as_str())) {
            table.row(self.row(case, peer, &of_case));
        }
        table
    }

    fn row(&self, case: &str, peer: &str, of_case: &[&Record]) -> Vec<Cell> {
        let rounds = Rounds { of_case, peer, subject: &self.subject };
        let mut cells = vec![Cell::text(peer)];
        match of_case.first().map(|record| &record.finding) {
            _ if is_of_tail(case) => {
                let p50 = traffic(|found| Some(found.p50_us));
                let p99 = traffic(|found| Some(found.p99_us));
                let p999 = traffic(|found| Some(found.p999_us));
                cells.extend([
                    rounds.median(&traffic(|found| Some(found.rate)), 0),
                    rounds.median(&traffic(|found| found.cpu_us), 2),
                    rounds.median(&p50, 0),
                    rounds.median(&p99, 0),
                    rounds.median(&p999, 0),
                    rounds.median(&traffic(|found| Some(found.p9999_us)), 0),
                    rounds.median(&traffic(|found| Some(found.most_us)), 0),
                    rounds.ratio(&p50),
                    rounds.ratio(&p99),
                    rounds.ratio(&p999),
                ]);
            }
            Some(Finding::Traffic(_)) => {
                let cpu = traffic(|found| found.cpu_us);
                let all = traffic(|found| Some(found.cpu_us.unwrap_or_default() + found.ends_us));
                let rate = traffic(|found| Some(found.rate));
                cells.extend([
                    rounds.median(&cpu, 2),
                    rounds.median(&traffic(|found| Some(found.cpu_us? * found.user_share?)), 2),
                    rounds.median(&traffic(|found| Some(found.cpu_us? * (1.0 - found.user_share?))), 2),
                    rounds.median(&traffic(|found| Some(found.ends_us)), 2),
                    rounds.median(&all, 2),
                    rounds.median(&traffic(|found| found.busy), 2),
                    rounds.median(&rate, 0),
                    rounds.median(&traffic(|found| Some(found.p50_us)), 0),
                    rounds.median(&traffic(|found| Some(found.p99_us)), 0),
                    rounds.median(&traffic(|found| found.sleeps), 3),
                    rounds.median(&traffic(|found| Some(found.ring?.enters)), 3),
                    self.system_calls(case, peer),
                    rounds.ratio(&cpu),
                    rounds.ratio(&all),
                    rounds.ratio(&rate),
                ]);
                if resumes(of_case) {
                    cells.push(rounds.median(&traffic(|found| found.resumed_share), 4));
                }
            }
            Some(Finding::Idle { .. }) => {
                let at_rest = |finding: &Finding| match finding {
                    Finding::Idle { at_rest_kib, .. } => Some(*at_rest_kib as f64),
                    _ => None,
                };
                let idle = |finding: &Finding| match finding {
                    Finding::Idle { idle_kib, .. } => Some(*idle_kib as f64),
                    _ => None,
                };
                cells.extend([
                    rounds.median(&at_rest, 0),
                    rounds.median(&idle, 0),
                    rounds.median(&growth, 2),
                    rounds.ratio(&growth),
                ]);
            }
            Some(Finding::Start { .. }) | None => {
                let first = |finding: &Finding| match finding {
                    Finding::Start { first_answer_us } => Some(*first_answer_us as f64 / 1e3),
                    _ => None,
                };
                cells.extend([rounds.median(&first, 1), rounds.ratio(&first)]);
            }
        }
        cells
    }

    fn system_calls(&self, case: &str, peer: &str) -> Cell {
        let traced = self.traced.iter().find(|traced| traced.case == case && traced.peer == peer);
        Cell::number(
            traced.map(|traced| traced.calls.values().sum::<u64>() as f64 / traced.requests.max(1) as f64),
            2,
        )
    }
}

fn is_of_tail(case: &str) -> bool {
    Case::of_tail(case).is_some()
}

/// Whether clients came with tickets.
fn resumes(of_case: &[&Record]) -> bool {
    of_case.iter().any(|record| traffic(|found| found.resumed_share)(&record.finding).is_some())
}

/// Memory per idle connection (KiB).
fn growth(finding: &Finding) -> Option<f64> {
    match finding {
        Finding::Idle { connections, at_rest_kib, idle_kib } => {
            Some((*idle_kib as f64 - *at_rest_kib as f64) / *connections as f64)
        }
        _ => None,
    }
}

/// Reads one number out of a finding of traffic.
fn traffic(of: impl Fn(&Traffic) -> Option<f64>) -> impl Fn(&Finding) -> Option<f64> {
    move |finding| match finding {
        Finding::Traffic(found) => of(found),
        _ => None,
    }
}

/// The measurements of one case, seen from one proxy.
struct Rounds<'a> {
    of_case: &'a [&'a Record],
    peer: &'a str,
    subject: &'a str,
}

impl Rounds<'_> {
    fn by_round(&self, peer: &str, of: &dyn Fn(&Finding) -> Option<f64>) -> BTreeMap<u32, f64> {
        let mine = self.of_case.iter().filter(|record| record.peer == peer);
        mine.filter_map(|record| Some((record.round, of(&record.finding)?))).collect()
    }

    fn median(&self, of: &dyn Fn(&Finding) -> Option<f64>, decimals: usize) -> Cell {
        Cell::number(median(self.by_round(self.peer, of).into_values().collect()), decimals)
    }

    fn ratio(&self, of: &dyn Fn(&Finding) -> Option<f64>) -> Cell {
        if self.peer == self.subject {
            return Cell::text("1");
        }
        let theirs = self.by_round(self.peer, of);
        let ratios: Vec<f64> = self
            .by_round(self.subject, of)
            .into_iter()
            .filter_map(|(round, mine)| Some(mine / theirs.get(&round)?))
            .filter(|ratio| ratio.is_finite())
            .collect();
        let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match median(ratios) {
            Some(middle) => Cell::text(&format!("{middle:.2} ({lowest:.2}-{highest:.2})")),
            None => Cell::number(None, 0),
        }
    }
}

/// The one in the middle of these values; `None` of none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

fn first_seen<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(peer: &str, round: u32, first_answer_us: u64) -> Record {
        let finding = Finding::Start { first_answer_us };
        let (case, fault_kinds) = ("start".into(), String::new());
        Record { case, peer: peer.into(), round, finding, faults: 0, fault_kinds }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_within_each_round() {
        let records: Vec<Record> = [(10, 10), (40, 20), (90, 30)]
            .into_iter()
            .zip(0..)
            .flat_map(|((mine, theirs), round)| {
                [record("kakehi", round, mine * 1_000), record("nginx", round, theirs * 1_000)]
            })
            .collect();
        let cores = Cores { proxy: 0, generator: 1, backend: 1 };
        let environment = Environment::here(cores, BTreeMap::new(), 1.0, 3);
        let report = Report { environment, subject: "kakehi".into(), records, traced: Vec::new() };
        let text = report.markdown();
        assert!(text.contains("2.00 (1.00-3.00)"), "{text}");
        assert!(text.contains("| kakehi |            40.0 |"), "{text}");
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
