//! A worker that stands still, or cannot go on, is replaced as if it had died; one that is only slow, or waits for its
//! supervisor, is not.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Backend, Client, Config, GET, Load, OK, Process, Proxy, ask, send_signal, wait};

/// A short `worker_liveness`, and what is much longer.
const SHORT: &str = "worker_liveness = 0.5";
const LONG: Duration = Duration::from_secs(2);

fn pids(proxy: &Proxy) -> Vec<u32> {
    let workers = proxy.ctl_json("workers");
    workers.as_array().unwrap().iter().map(|worker| worker["pid"].as_u64().unwrap() as u32).collect()
}

fn requests(proxy: &Proxy) -> u64 {
    proxy.ctl_json("status")["requests"].as_u64().unwrap()
}

/// Stops a worker's process and waits until it was replaced and the log says where it stood.
#[track_caller]
fn stand_still(proxy: &Proxy, worker: u32) {
    let replaced = proxy.counter("worker.unresponsive");
    send_signal(Process(worker), Signal::SIGSTOP);
    wait::until("its end", || !Process(worker).runs());
    wait::until("another in its place", || pids(proxy).iter().all(|pid| *pid != worker && *pid != 0));
    assert_eq!(proxy.counter("worker.unresponsive"), replaced + 1);
    proxy.logged("it stood still: state T (stopped), ");
}

#[test]
fn a_worker_that_stands_still_is_replaced_while_the_others_serve() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").root(SHORT).start();
    let mut clients: Vec<_> = (0..16).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    let (before, counted) = (pids(&proxy), requests(&proxy));
    send_signal(Process(before[0]), Signal::SIGSTOP);
    // Whoever is its client waits in vain, then its connection breaks; the other worker's clients notice nothing.
    let served: usize = clients
        .iter_mut()
        .map(|client| {
            client.send(GET);
            usize::from(client.patience(wait::SOON).try_response().is_ok())
        })
        .sum();
    assert!((1..16).contains(&served), "{served} of 16 connections were served: each worker has some");
    wait::until("another in its place", || !pids(&proxy).contains(&before[0]));
    // New connections, those too that were in the queue of its socket, are served.
    (0..16).for_each(|_| ask(&mut proxy.client()));
    assert_eq!(pids(&proxy)[1], before[1]);
    assert!(requests(&proxy) >= counted + 16, "counters do not go backwards");
    let status = proxy.ctl_json("status");
    assert_eq!((&status["restarts"], &status["counters"]["worker.unresponsive"]), (&1.into(), &1.into()));
    proxy.logged("it stood still: state T (stopped), ");
    proxy.logged("to be replaced");
}

#[test]
fn new_connections_wait_for_the_replacement_of_the_only_worker() {
    const TIMES: u64 = 3;
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root(SHORT).start();
    for _ in 0..TIMES {
        let worker = proxy.worker();
        send_signal(worker, Signal::SIGSTOP);
        wait::until("it stands still", || worker.status("State").is_some_and(|state| state.starts_with('T')));
        // A connection that the kernel had accepted for the process is lost with it; the queue of its socket is not.
        let served =
            (0..8).map(|_| proxy.client()).collect::<Vec<_>>().into_iter().filter_map(|mut client| {
                client.send(GET);
                client.try_response().ok()
            });
        assert!(served.count() >= 7, "{}", proxy.log());
    }
    assert_eq!(proxy.counter("worker.unresponsive"), TIMES);
}

#[test]
fn nothing_happens_to_a_worker_that_stands_still_where_that_is_switched_off() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_liveness = 0").start();
    let worker = proxy.worker();
    let mut client = proxy.client();
    ask(&mut client);
    send_signal(worker, Signal::SIGSTOP);
    wait::pace(LONG);
    send_signal(worker, Signal::SIGCONT);
    ask(&mut client);
    assert_eq!(proxy.worker(), worker);
    // A reload switches it on, and off again.
    let file = proxy.folder().join("kakehi.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("worker_liveness = 0", SHORT)).unwrap();
    assert!(proxy.ctl(&["reload"]).status.success());
    stand_still(&proxy, worker.0);
    std::fs::write(&file, text).unwrap();
    assert!(proxy.ctl(&["reload"]).status.success());
    let worker = proxy.worker();
    send_signal(worker, Signal::SIGSTOP);
    wait::pace(LONG);
    send_signal(worker, Signal::SIGCONT);
    ask(&mut proxy.client());
    assert_eq!(proxy.worker(), worker);
}

#[test]
fn a_worker_that_is_busy_or_slow_but_answers_is_left_alone() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_liveness = 1.5").start();
    let worker = proxy.worker();
    let load = Load::on(proxy.address());
    // Together much longer than it may be mute, but never at a time.
    for _ in 0..8 {
        send_signal(worker, Signal::SIGSTOP);
        wait::pace(Duration::from_millis(400));
        send_signal(worker, Signal::SIGCONT);
        load.goes_on();
    }
    load.end();
    assert_eq!(proxy.worker(), worker);
    assert_eq!(proxy.counter("worker.unresponsive"), 0);
}

#[test]
fn a_supervisor_that_was_stopped_itself_kills_nobody() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").root(SHORT).start();
    let before = pids(&proxy);
    let everybody: Vec<Process> = before.iter().copied().map(Process).chain([proxy.supervisor()]).collect();
    // Alone, and together with its workers, which do not run at once when it does.
    for stopped in [&everybody[2..], &everybody[..]] {
        stopped.iter().for_each(|process| send_signal(*process, Signal::SIGSTOP));
        wait::pace(LONG);
        for process in stopped.iter().rev() {
            send_signal(*process, Signal::SIGCONT);
            wait::pace(Duration::from_millis(100));
        }
        wait::pace(LONG / 2);
        ask(&mut proxy.client());
        assert_eq!(pids(&proxy), before, "{}", proxy.log());
    }
    assert_eq!(proxy.counter("worker.unresponsive"), 0);
    // It has not forgotten what it is there for.
    stand_still(&proxy, before[0]);
}

#[test]
fn a_worker_that_was_taken_over_is_watched_too() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root(SHORT).start();
    let worker = proxy.worker();
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(pids(&proxy), [worker.0]);
    stand_still(&proxy, worker.0);
    ask(&mut proxy.client());
}

#[test]
fn the_old_process_that_stands_still_beside_the_new_one_is_ended() {
    let backend = Backend::script(|conn| {
        let _ = conn.request();
        let _ = conn.rest();
    });
    let proxy = Config::to(&backend).root(SHORT).start();
    let old = proxy.worker();
    let mut stuck = proxy.client();
    stuck.send(GET);
    wait::until("the request is at the backend", || backend.requests().len() == 1);
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success());
    let new = pids(&proxy);
    // It has a request in flight, so it would stay for `drain_timeout`.
    wait::pace(LONG / 2);
    assert!(old.runs(), "a process that drains answers: {}", proxy.log());
    send_signal(old, Signal::SIGSTOP);
    wait::until("its end", || !old.runs());
    stuck.expect_closed();
    assert_eq!(pids(&proxy), new);
    assert_eq!(proxy.ctl_json("status")["restarts"], 0);
    assert_eq!(proxy.counter("worker.unresponsive"), 1);
}

#[test]
fn a_worker_that_stands_still_delays_no_stop() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root(SHORT).root("worker_count = 2").start();
    send_signal(Process(pids(&proxy)[0]), Signal::SIGSTOP);
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(3), "what it served was cut");
}

#[test]
fn a_worker_whose_listener_breaks_is_replaced_at_once_and_finishes_what_it_has() {
    let (backend, go) = Backend::slow();
    let proxy = Proxy::to(&backend);
    let mut slow = proxy.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    let old = proxy.worker();
    old.break_listener(proxy.address());
    wait::until("another in its place", || pids(&proxy).iter().all(|pid| *pid != old.0 && *pid != 0));
    wait::until("a new connection", || {
        Client::try_connect(proxy.address()).is_ok_and(|mut client| {
            client.send(GET);
            client.try_response().is_ok()
        })
    });
    assert!(old.runs(), "it has a request in flight");
    assert_eq!(proxy.ctl_json("status")["restarts"], 1);
    go.send(()).unwrap();
    slow.response().expect(200, "ok");
    slow.expect_closed();
    wait::until("its end", || !old.runs());
    proxy.logged("cannot accept connections on");
}

#[test]
fn a_worker_that_drains_already_is_ended_by_sigterm() {
    let (backend, _go) = Backend::slow();
    let proxy = Config::to(&backend).root("graceful_timeout = 0.3").root("drain_timeout = 300").start();
    let mut stuck = proxy.client();
    stuck.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    let old = proxy.worker();
    old.break_listener(proxy.address());
    wait::until("another in its place", || pids(&proxy).iter().all(|pid| *pid != old.0 && *pid != 0));
    assert!(old.runs(), "it has a request in flight");
    send_signal(old, Signal::SIGTERM);
    wait::until("its end", || !old.runs());
    stuck.expect_closed();
}
