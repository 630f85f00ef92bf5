//! Answers as text: aligned columns for people, JSON for programs.

use std::fmt::Write as _;

use kakehi_ctl::event::Event;
use kakehi_ctl::order::{Changed, Core, Phase, Response, Status, Topology, WorkerInfo, WorkerState};
use serde::Serialize;
use serde_json::json;

mod backends;
mod certificates;

pub(crate) use certificates::{DAY, certificate, certificates, now, printable};

/// The answer as JSON: an object or an array, with a line end.
pub(crate) fn json(response: &Response) -> String {
    match response {
        Response::Hello(hello) => pretty(hello),
        Response::Status(status) => pretty(status),
        Response::Workers(workers) => pretty(workers),
        Response::State(state) => pretty(state),
        Response::Backends(backends) => pretty(backends),
        Response::Explained(explanation) => pretty(explanation),
        Response::Changed(changed) => pretty(changed),
        Response::Outcomes(workers) => pretty(workers),
        Response::Saved { path, .. } => pretty(path),
        Response::Keys(keys) => pretty(keys),
        Response::Users(users) => pretty(users),
        Response::Certificates(certificates) => pretty(certificates),
        Response::Topology(topology) => pretty(topology),
        Response::Event(event) => line(event),
        Response::Working | Response::Watching | Response::Ended { .. } => pretty(response),
        Response::SessionsClosed { closed, failed } => pretty(&json!({
            "idle": closed.idle, "tunnels": closed.tunnels, "ending": closed.ending, "failed": failed,
        })),
        Response::Stopping => pretty(&"stopped"),
        Response::Refused { reason } | Response::Misused { reason } => pretty(reason),
    }
}

/// A value as JSON on one line.
pub(crate) fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// An event on one line: when, and what.
pub(crate) fn human_event(event: &Event) -> String {
    let lost = match event.lost {
        0 => String::new(),
        lost => format!("({lost} events were lost) "),
    };
    let time = certificates::time_of_day(event.time_ms);
    format!("{time}  {lost}{}\n", printable(&event.what.to_string()))
}

/// A value as JSON with a line end.
pub(crate) fn pretty(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// The answer for people.
pub(crate) fn human(response: &Response) -> String {
    match response {
        Response::Hello(hello) => format!("kakehi {}\n", hello.program),
        Response::Status(status) => human_status(status),
        Response::Workers(workers) => human_workers(workers),
        Response::State(state) => pretty(state),
        // Shown together with the backends.
        Response::Explained(explanation) => pretty(explanation),
        Response::Backends(shown) => backends::backends(shown, now()),
        Response::Changed(changed) => human_changed(changed),
        Response::Outcomes(workers) if workers.is_empty() => "nothing had to change\n".to_owned(),
        Response::Outcomes(workers) => {
            workers.iter().map(|worker| format!("worker {}: {}\n", worker.id, worker.outcome)).collect()
        }
        Response::Certificates(list) => certificates(list, now()),
        Response::Saved { path, left_out: 0 } => format!("saved to {}\n", path.display()),
        Response::Saved { path, left_out } => format!(
            "saved to {} without {left_out} certificates, whose keys are in no file: `--with-keys` saves them\n",
            path.display()
        ),
        // Nobody asks for them to be shown.
        Response::Keys(keys) => format!("{} keys\n", keys.len()),
        Response::Users(users) => format!("{} users\n", users.iter().map(Vec::len).sum::<usize>()),
        Response::Topology(topology) => human_topology(topology),
        Response::Event(event) => human_event(event),
        Response::Working | Response::Watching | Response::Ended { .. } => String::new(),
        Response::SessionsClosed { closed, failed } => {
            let failed = failed.iter().map(|it| format!("worker {}: {}\n", it.id, it.outcome));
            format!("closed: {closed}\n") + &failed.collect::<String>()
        }
        Response::Stopping => "stopped\n".to_owned(),
        Response::Refused { reason } | Response::Misused { reason } => format!("{reason}\n"),
    }
}

fn human_changed(changed: &Changed) -> String {
    let mut text = String::new();
    for warning in &changed.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for change in &changed.changes {
        let _ = writeln!(text, "{change}");
    }
    match (changed.applied, changed.by_hand.len()) {
        (_, 0) => {}
        (true, 1) => text.push_str("1 entry stays by hand\n"),
        (true, count) => drop(writeln!(text, "{count} entries stay by hand")),
        (false, _) => {
            for line in &changed.by_hand {
                let _ = writeln!(text, "stays, by hand: {line}");
            }
        }
    }
    for worker in changed.workers.iter().filter(|worker| worker.outcome != "changed") {
        let _ = writeln!(text, "worker {}: {}", worker.id, worker.outcome);
    }
    if !changed.at_next_start.is_empty() {
        let _ = writeln!(text, "changes at the next start only: {}", changed.at_next_start.join(", "));
    }
    if !changed.with_new_workers.is_empty() {
        let keys = changed.with_new_workers.join(", ");
        let _ = writeln!(text, "with new workers only (`kakehictl reload --workers`): {keys}");
    }
    let end = match (changed.changes.is_empty(), changed.applied) {
        (true, _) => "nothing to change",
        (false, true) => "changed",
        (false, false) => "nothing was changed: a dry run",
    };
    let _ = writeln!(text, "{end}");
    text
}

fn human_status(status: &Status) -> String {
    let listeners = status.listeners.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let rows = [
        ("kakehi", status.version.clone()),
        ("state", phase(status.phase).to_owned()),
        ("process", status.pid.to_string()),
        ("up", duration(status.uptime_s)),
        ("listeners", if listeners.is_empty() { "none".to_owned() } else { listeners }),
        ("generation", status.generation.to_string()),
        ("clusters", status.clusters.to_string()),
        ("frontends", status.frontends.to_string()),
        ("backends", status.backends.to_string()),
        ("by hand", status.by_hand.to_string()),
        ("connections", status.connections.to_string()),
        ("requests", status.requests.to_string()),
        ("restarts", status.restarts.to_string()),
        ("admin", status.admin.clone().unwrap_or_else(|| "off".to_owned())),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<12}{value}");
    }
    for (name, failure) in [("not saved", &status.save_failed), ("no record", &status.record_failed)] {
        if let Some(reason) = failure {
            let _ = writeln!(text, "{name:<12}{reason}");
        }
    }
    text + "\n" + &human_workers(&status.workers)
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
    }
}

fn human_workers(workers: &[WorkerInfo]) -> String {
    let header =
        ["WORKER", "PID", "CORE", "STATE", "CONNECTIONS", "REQUESTS", "CPU USER", "CPU SYSTEM", "IO_URING"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(workers.iter().map(|worker| {
        [
            worker.id.to_string(),
            worker.pid.to_string(),
            worker.core.map_or_else(|| "-".to_owned(), |core| core.to_string()),
            state(worker.state).to_owned(),
            worker.connections.to_string(),
            worker.requests.to_string(),
            seconds(worker.cpu_user_ms),
            seconds(worker.cpu_system_ms),
            format!("level {}", worker.io_uring_level),
        ]
    }));
    table(&rows)
}

fn human_topology(topology: &Topology) -> String {
    let mut rows = vec![["CORE", "NODE", "SIBLINGS", "USE", "WORKER", "LOAD"].map(str::to_owned)];
    let row_of = |core: Option<&Core>, worker: Option<&WorkerInfo>| {
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let siblings = core.map_or_else(Vec::new, |core| core.siblings.iter().map(u32::to_string).collect());
        [
            number(core.map(|core| core.id)),
            number(core.map(|core| core.node)),
            siblings.join(","),
            core.map_or("any core", use_of).to_owned(),
            number(worker.map(|worker| worker.id)),
            worker.and_then(|it| it.load_percent).map_or_else(String::new, |load| format!("{load} %")),
        ]
    };
    for core in &topology.cores {
        let here: Vec<_> = topology.workers.iter().filter(|worker| worker.core == Some(core.id)).collect();
        if here.is_empty() {
            rows.push(row_of(Some(core), None));
        }
        rows.extend(here.into_iter().map(|worker| row_of(Some(core), Some(worker))));
    }
    let elsewhere = topology.workers.iter().filter(|worker| worker.core.is_none());
    rows.extend(elsewhere.map(|worker| row_of(None, Some(worker))));
    let mut text = table(&rows);
    for interface in &topology.interfaces {
        let cores = interface.cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let node = interface.node.map_or_else(String::new, |node| format!(", node {node}"));
        let _ = writeln!(text, "interface {}{node}: interrupts on cores {cores}", interface.name);
    }
    text
}

fn use_of(core: &Core) -> &'static str {
    match (core.allowed, core.serves_interrupts) {
        (true, true) => "interrupts",
        (true, false) => "",
        (false, _) => "not allowed",
    }
}

/// Columns as wide as their widest cell: numbers to the right, words to the left.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let is_number = |cell: &String| cell.chars().all(|c| c.is_ascii_digit() || "-.,% s".contains(c));
    let numbers: Vec<bool> =
        (0..N).map(|column| rows.iter().skip(1).all(|row| is_number(&row[column]))).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((width, cell), number) in widths.iter().zip(row).zip(&numbers) {
            let _ = match number {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Starting => "starting",
        WorkerState::Running => "running",
        WorkerState::Stopping => "stopping",
        WorkerState::Dead => "dead",
    }
}

/// `1.25s`.
fn seconds(milliseconds: u64) -> String {
    format!("{}.{:02}s", milliseconds / 1000, milliseconds % 1000 / 10)
}

/// `2d 3h 4m 5s`, from the first unit that is not zero.
fn duration(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, 'd'), (seconds / 3_600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let from = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    parts[from..].iter().map(|(count, unit)| format!("{count}{unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_begins_with_its_first_unit() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3_661, "1h 1m 1s"), (90_000, "1d 1h 0m 0s")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
