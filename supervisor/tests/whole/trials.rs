//! A setting that needs new processes of the workers is tried on one first: what no worker could start with is refused, and
//! whatever the trial does, everything else goes on.

use std::{
    fs,
    process::Output,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::harness::{Backend, Config, Need, OK, Process, Proxy, ask, kakehictl, machine, send_signal, wait};

/// Far less than a trial may take, and more than an answer does on a busy machine.
const PROMPT: Duration = Duration::from_secs(1);
/// How its command line names a worker on trial.
const TRIAL: &str = "4294967295";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The worker on trial, once it is one: until then its parent waits for it.
fn on_trial(proxy: &Proxy) -> Option<Process> {
    let is_on_trial = |process: &Process| {
        let line = fs::read(format!("/proc/{}/cmdline", process.0)).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == TRIAL.as_bytes())
    };
    proxy.supervisor().children().into_iter().find(is_on_trial)
}

fn listed(proxy: &Proxy, name: &str) -> serde_json::Value {
    let output = proxy.ctl(&["settings", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    list.as_array().unwrap().iter().find(|it| it["name"] == name).unwrap()["value"].clone()
}

/// Processes of a supervisor that start from now on have so much more address space than a worker has now.
fn bound_memory(proxy: &Proxy, more: u64) -> Process {
    let worker = proxy.worker();
    let size = worker.status("VmSize").unwrap();
    let size = size.split(' ').next().unwrap().parse::<u64>().unwrap() * 1024;
    let limit = Rlimit { current: Some(size + more), maximum: None };
    let supervisor = Pid::from_raw(proxy.supervisor().0 as i32);
    prlimit(supervisor, Resource::As, limit).unwrap();
    worker
}

#[test]
fn a_setting_with_which_no_worker_comes_up_is_refused_by_hand_and_in_the_file() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    // The arena that the allocator keeps for a thread of a worker, and that none on trial has used, is part of it.
    let worker = bound_memory(&proxy, 300 << 20);
    // An arena of 512 MiB.
    let output = proxy.ctl(&["settings", "patch", "buffer_count=32768"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let words = said(&output);
    assert!(words.contains("does not come up: ") && words.contains("nothing was changed"), "{words}");
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("buffer_count = 32768\n{text}")).unwrap();
    for verb in [&["reload"][..], &["reload", "--workers"], &["reload", "--dry-run"]] {
        let output = proxy.ctl(verb);
        assert_eq!(output.status.code(), Some(1), "{verb:?}: {}", said(&output));
        assert!(said(&output).contains("does not come up: "), "{verb:?}: {}", said(&output));
    }
    assert_eq!(listed(&proxy, "buffer_count"), serde_json::Value::Null);
    assert_eq!(proxy.ctl_json("status")["generation"], 0);
    // What is accepted can be had: after an upgrade, and by the process that replaces one that died.
    let output = proxy.ctl(&["settings", "patch", "buffer_count=4096"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success(), "{}", proxy.log());
    wait::until("the end of the process before", || proxy.workers().len() == 1);
    send_signal(proxy.worker(), Signal::SIGKILL);
    wait::until("its replacement", || {
        let first = &proxy.ctl_json("workers")[0];
        first["state"] == "running" && proxy.ctl_json("status")["restarts"].as_u64() >= Some(1)
    });
    wait::until("the end of the first process", || !worker.runs());
    ask(&mut proxy.client());
    assert_eq!(on_trial(&proxy), None);
    let left: Vec<_> = fs::read_dir(proxy.folder()).unwrap().map(|it| it.unwrap().file_name()).collect();
    let of_trial = |name: &std::ffi::OsString| name.to_string_lossy().contains(TRIAL);
    assert!(!left.iter().any(of_trial), "{left:?}");
}

/// A change that waits for its trial, which stands still.
fn with_a_trial_that_stands_still(proxy: &Proxy) -> (JoinHandle<Output>, Process) {
    let mut command = kakehictl();
    command.arg("-s").arg(proxy.socket()).args(["settings", "patch", "buffer_count=256"]);
    let change = thread::spawn(move || command.output().unwrap());
    let trial = wait::within(wait::SOON, "a worker on trial", || on_trial(proxy));
    send_signal(trial, Signal::SIGSTOP);
    (change, trial)
}

#[test]
fn a_trial_that_stands_still_holds_nothing_up_and_is_given_up() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let (change, trial) = with_a_trial_that_stands_still(&proxy);
    let mut answered = 0;
    while !change.is_finished() {
        let asked = Instant::now();
        assert_eq!(proxy.ctl_json("workers").as_array().map(Vec::len), Some(1));
        assert!(asked.elapsed() < PROMPT, "an answer took {:?}", asked.elapsed());
        answered += 1;
    }
    let output = change.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("was not ready within 10 s"), "{}", said(&output));
    assert!(answered > 5, "{answered} answers while the change waited");
    wait::until("the end of the trial", || !trial.runs());
    // The next one is not taken for the one before.
    let output = proxy.ctl(&["settings", "patch", "buffer_count=256"]);
    assert!(output.status.success(), "{}", said(&output));
    ask(&mut proxy.client());
}

#[test]
fn a_stop_ends_a_trial() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 1").start();
    let (change, trial) = with_a_trial_that_stands_still(&proxy);
    let asked = Instant::now();
    proxy.terminate();
    let output = change.join().unwrap();
    assert!(asked.elapsed() < PROMPT, "it went on for {:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(proxy.wait(wait::SOON).code(), Some(0), "{}", proxy.log());
    assert!(!trial.runs());
}

#[test]
fn workers_are_pinned_or_not_as_soon_as_they_are_replaced() {
    if !machine::has(Need::TwoCores) {
        return;
    }
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let cores = || proxy.worker().status("Cpus_allowed_list").unwrap();
    // Where nothing is said of it, the tests pin none.
    let free = cores();
    for (value, is_pinned) in [("true", true), ("false", false)] {
        let key = format!("handle_process_affinity={value}");
        assert!(proxy.ctl(&["settings", "patch", &key]).status.success());
        assert!(proxy.ctl(&["reload", "--workers"]).status.success());
        wait::until("the end of the process before", || proxy.workers().len() == 1);
        assert_eq!(cores() != free, is_pinned, "{value}: {} after {free}", cores());
        assert_eq!(proxy.ctl_json("workers")[0]["core"].is_null(), !is_pinned, "{value}");
    }
}
