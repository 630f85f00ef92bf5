//! Backends as text: one line for each.

use std::fmt::Write as _;

use kakehi_ctl::{
    order::{BackendInfo, Backends, ClusterCondition, NameInfo},
    state::BackendMode,
};

use super::{certificates::printable, duration, table};

/// One line for each backend, and what is the matter with clusters; `now` in seconds since 1970.
pub(crate) fn backends(shown: &Backends, now: i64) -> String {
    let now_ms = u64::try_from(now).unwrap_or_default().saturating_mul(1000);
    let header = [
        "CLUSTER",
        "BACKEND",
        "USABLE",
        "OPERATOR",
        "PROBE",
        "TRAFFIC",
        "LAST PROBE",
        "IN FLIGHT",
        "QUEUE",
        "SHARE",
    ];
    let count = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(shown.backends.iter().map(|it| {
        [
            printable(&it.cluster),
            printable(&it.id),
            if it.usable { "yes" } else { "no" }.to_owned(),
            operator(it, now_ms),
            printable(&probe(it, now_ms)),
            traffic(it, now_ms),
            printable(&last_probe(it, now_ms)),
            count(it.in_flight),
            count(it.waiting),
            it.share_percent.map_or_else(|| "-".to_owned(), |share| format!("{share:.1} %")),
        ]
    }));
    let mut text = table(&rows);
    for (name, condition) in &shown.clusters {
        let words = match condition {
            ClusterCondition::Down => "no backend can be used",
            ClusterCondition::Panic => "panic: probes call too few primaries well, and are not believed",
            ClusterCondition::Maintained => {
                "maintained: requests are answered with 503, and connections that would be passed on are closed"
            }
            ClusterCondition::Other => continue,
        };
        let _ = writeln!(text, "cluster {}: {words}", printable(name));
    }
    for it in &shown.names {
        let _ = writeln!(text, "cluster {}: {}", printable(&it.cluster), name(it, now_ms));
    }
    if shown.left_out > 0 {
        let _ = writeln!(text, "{} more are not shown: name a cluster", shown.left_out);
    }
    text
}

/// How a name is resolved.
fn name(it: &NameInfo, now_ms: u64) -> String {
    let ago = |since_ms: u64| duration(now_ms.saturating_sub(since_ms) / 1000);
    let backend = printable(&it.id);
    let name = match it.name.to_string() {
        name if name == it.id => backend,
        name => format!("{backend} ({name})"),
    };
    let count = match it.addresses {
        1 => "1 address".to_owned(),
        count => format!("{count} addresses"),
    };
    let resolved = match it.resolved_ms {
        Some(resolved) => format!("{count}, resolved {} ago", ago(resolved)),
        None => "not resolved yet".to_owned(),
    };
    let left_out = match it.left_out {
        0 => String::new(),
        more => format!(", {more} more are not used"),
    };
    let failing = it.failing.as_ref().map_or_else(String::new, |failing| {
        format!("; failing for {}: {}", ago(failing.since_ms), printable(&failing.reason))
    });
    format!("backend {name}: {resolved}{left_out}{failing}")
}

fn for_so_long(since_ms: Option<u64>, now_ms: u64) -> String {
    since_ms.map_or_else(String::new, |since| format!(" {}", duration(now_ms.saturating_sub(since) / 1000)))
}

fn operator(it: &BackendInfo, now_ms: u64) -> String {
    let drained = if it.drained { ", drained" } else { "" };
    let since = if it.operator.mode == BackendMode::Ready { None } else { it.operator.since_ms };
    format!("{}{}{drained}", it.operator.mode.word(), for_so_long(since, now_ms))
}

fn probe(it: &BackendInfo, now_ms: u64) -> String {
    let Some(probe) = &it.probe else { return "-".to_owned() };
    match probe.up {
        Some(true) => format!("up{}", for_so_long(probe.since_ms, now_ms)),
        Some(false) => format!("down{}: {}", for_so_long(probe.since_ms, now_ms), probe.reason),
        None => "no verdict yet".to_owned(),
    }
}

fn traffic(it: &BackendInfo, now_ms: u64) -> String {
    let (since, reason) = (for_so_long(it.traffic.since_ms, now_ms), &it.traffic.reason);
    match &*it.traffic.passed_over_by {
        [] => "up".to_owned(),
        [worker] => format!("passed over{since} by worker {worker}: {reason}"),
        workers => format!("passed over{since} by {} workers: {reason}", workers.len()),
    }
}

fn last_probe(it: &BackendInfo, now_ms: u64) -> String {
    let Some(last) = it.probe.as_ref().and_then(|probe| probe.last.as_ref()) else { return "-".to_owned() };
    let sign = if last.good { "good" } else { "bad" };
    let ago = now_ms.saturating_sub(last.time_ms) / 1000;
    format!("{sign} {ago}s ago in {} ms: {}", last.took_ms, last.outcome)
}
