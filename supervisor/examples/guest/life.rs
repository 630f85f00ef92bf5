//! The checks of kakehi's processes: the level that it chose, a worker that dies, a stop that loses nothing.

use std::{fs, time::Duration};

use crate::backend::Backend;
use crate::proxy::Proxy;
use crate::traffic::{self, answer, connect, expect, get, requests};
use crate::{Verdict, explain, wait_for};

/// Every worker must run at `wanted`; returns the level for the report.
pub(crate) fn all_workers_run_at_the_level(proxy: &mut Proxy<'_>, wanted: Option<u8>) -> Result<u64, String> {
    let workers = proxy.running_workers()?;
    let level = workers[0].level;
    if workers.iter().any(|worker| worker.level != level) {
        return Err(format!("the workers disagree: {workers:?}"));
    }
    match wanted {
        Some(wanted) if u64::from(wanted) != level => Err(format!("level {level} instead of {wanted}")),
        _ => Ok(level),
    }
}

/// A filter of system calls stands before every thread of every worker, and no worker has a ring but its own.
pub(crate) fn all_workers_are_in_their_sandbox(proxy: &mut Proxy<'_>) -> Verdict {
    for worker in proxy.running_workers()? {
        let folder = format!("/proc/{}", worker.pid);
        let entries = |name: &str| fs::read_dir(format!("{folder}/{name}")).map_err(explain(name));
        for thread in entries("task")?.flatten() {
            let status = fs::read_to_string(thread.path().join("status")).map_err(explain("status"))?;
            if !status.contains("\nSeccomp:\t2\n") {
                return Err(format!("a thread of worker {} is not filtered: {}", worker.id, proxy.log()));
            }
        }
        let links = entries("fd")?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let rings = links.filter(|link| link.as_os_str() == "anon_inode:[io_uring]").count();
        if rings != 1 {
            return Err(format!("worker {} has {rings} rings", worker.id));
        }
    }
    Ok(())
}

/// A worker ends by SIGKILL; another takes its place and both serve.
pub(crate) fn a_killed_worker_is_replaced_and_serves(proxy: &mut Proxy<'_>) -> Verdict {
    let victim = proxy.running_workers()?.remove(0);
    proxy.kill_worker(&victim)?;
    let workers = proxy.workers_when("the replacement", |workers| {
        workers
            .iter()
            .any(|worker| worker.id == victim.id && worker.pid != victim.pid && worker.state == "running")
    })?;
    // Enough connections for the kernel to give some to each worker.
    for _ in 0..40 {
        requests(proxy.address, 2).map_err(|error| format!("after the replacement: {error}"))?;
    }
    let after = proxy.running_workers()?;
    let pids = |list: &[crate::proxy::Worker]| list.iter().map(|worker| worker.pid).collect::<Vec<_>>();
    if pids(&after) != pids(&workers) {
        return Err(format!("a worker died again: {workers:?} became {after:?}"));
    }
    Ok(())
}

/// Workers are replaced, added and removed, the supervisor is replaced and killed: open connections and a tunnel go on.
pub(crate) fn connections_go_on_whatever_is_replaced(proxy: &mut Proxy<'_>) -> Verdict {
    let mut tunnel = traffic::tunnel(proxy.address)?;
    let mut idle = (0..8).map(|_| connect(proxy.address)).collect::<Result<Vec<_>, _>>()?;
    let mut go_on = |step: &str| -> Verdict {
        let failed = |error| format!("after {step}: {error}");
        for wire in &mut idle {
            get(wire, "/hello").and_then(|body| expect(&body, b"hello")).map_err(failed)?;
        }
        tunnel.send(step.as_bytes()).map_err(explain("sending into the tunnel")).map_err(failed)?;
        let echo = tunnel.take(step.len()).map_err(explain("reading from the tunnel")).map_err(failed)?;
        expect(&echo, step.as_bytes()).map_err(failed)
    };
    go_on("the start")?;
    for arguments in [
        &["workers", "upgrade"][..],
        &["upgrade"],
        &["workers", "scale", "3"],
        &["workers", "rebalance"],
        &["workers", "scale", "1"],
        &["reload"],
        &["workers", "scale", "2"],
    ] {
        proxy.ctl(arguments)?;
        go_on(&arguments.join(" "))?;
    }
    proxy.replace_supervisor()?;
    go_on("another supervisor")?;
    proxy.ctl(&["workers", "upgrade"])?;
    go_on("an upgrade by that")
}

/// SIGTERM with a request in flight: its answer arrives whole and the exit code is 0.
pub(crate) fn a_graceful_stop_answers_what_is_in_flight(proxy: &mut Proxy<'_>, backend: &Backend) -> Verdict {
    backend.close_gate();
    let mut wire = connect(proxy.address)?;
    wire.send(b"GET /hold HTTP/1.1\r\nHost: guest.test\r\n\r\n").map_err(explain("sending a request"))?;
    wait_for(Duration::from_secs(20), "the request to reach the backend", || {
        (backend.held() > 0).then_some(())
    })?;
    proxy.terminate()?;
    proxy.wait_until_stopping(Duration::from_secs(3));
    backend.open_gate();
    expect(&answer(&mut wire)?, b"held")?;
    drop(wire);
    let status = proxy.wait_for_end()?;
    if status.success() { Ok(()) } else { Err(format!("kakehi ended with {status}")) }
}
