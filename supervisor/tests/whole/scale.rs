//! Workers come, go, and move to other cores while they serve; connections move from one to another.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    harness::{
        Backend, Client, Config, Load, Need, OK, OPEN, Process, Proxy, SWITCHING, ask, ctl, machine,
        send_signal, wait,
    },
    served::stop_what_comes,
};

/// Of each worker: connections and requests.
fn workers(proxy: &Proxy) -> Vec<(u64, u64)> {
    let figure = |worker: &serde_json::Value, name: &str| worker[name].as_u64().unwrap();
    let workers = proxy.ctl_json("workers");
    let workers = workers.as_array().unwrap().iter();
    workers.map(|worker| (figure(worker, "connections"), figure(worker, "requests"))).collect()
}

#[track_caller]
fn wait_for_workers(proxy: &Proxy, count: usize) {
    wait::until("as many workers", || workers(proxy).len() == count && proxy.workers().len() == count);
}

#[test]
fn no_connection_is_lost_when_workers_come_and_go() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let mut idle: Vec<_> = (0..20).map(|_| proxy.client()).collect();
    idle.iter_mut().for_each(ask);
    let load = Load::on(proxy.address());
    let mut requests = 0;
    for round in 0..10 {
        for count in ["2", "3", "1"] {
            ctl(&proxy, &["workers", "scale", count]);
            load.goes_on();
            idle.iter_mut().for_each(ask);
        }
        // Now and then something else happens as well.
        match round % 3 {
            0 => drop(ctl(&proxy, &["workers", "upgrade"])),
            1 => drop(ctl(&proxy, &["reload"])),
            _ => {}
        }
        let now = proxy.ctl_json("status")["requests"].as_u64().unwrap();
        assert!(now > requests, "counters do not go backwards: {requests}, then {now}");
        requests = now;
    }
    load.end();
    wait_for_workers(&proxy, 1);
    let status = proxy.ctl_json("status");
    assert_eq!((&status["restarts"], &status["connections"]), (&0.into(), &20.into()));
}

#[test]
fn tunnels_move_to_the_workers_that_stay() {
    let backend = Backend::script(|conn| {
        let _ = conn.request();
        conn.send(SWITCHING);
        conn.echo();
    });
    let proxy = Config::to(&backend).root("worker_count = 3").start();
    let mut tunnels: Vec<_> = (0..12)
        .map(|_| {
            let mut tunnel = proxy.client();
            tunnel.send(OPEN);
            assert_eq!(tunnel.head().status(), 101);
            tunnel
        })
        .collect();
    for count in ["1", "3", "2", "1"] {
        ctl(&proxy, &["workers", "scale", count]);
        for tunnel in &mut tunnels {
            tunnel.send(count);
            assert_eq!(tunnel.bytes(1), count.as_bytes());
        }
    }
    wait_for_workers(&proxy, 1);
    assert_eq!(proxy.ctl_json("status")["counters"]["tunnel.open"], 12);
}

#[test]
fn workers_share_new_connections_evenly_however_many_there_were() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 3").start();
    for (counts, workers_now) in [(&["2"][..], 2_u64), (&["4", "1", "3"], 3)] {
        for count in counts {
            ctl(&proxy, &["workers", "scale", count]);
        }
        wait_for_workers(&proxy, workers_now as usize);
        let before = workers(&proxy);
        // With the sockets of workers that went in use, one would get twice as many or more. 45 is more than three
        // standard deviations.
        for _ in 0..600 {
            ask(&mut proxy.client());
        }
        let after = workers(&proxy);
        let got: Vec<_> = after.iter().zip(&before).map(|(after, before)| after.1 - before.1).collect();
        assert!(got.iter().all(|got| got.abs_diff(600 / workers_now) < 45), "{got:?}");
    }
}

#[test]
fn the_sockets_of_a_worker_that_went_live_on_in_others_and_go_back() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).another_listener().root("worker_count = 2").start();
    let listening = |process: Process| {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let listens = |inode: &str| {
            table.lines().any(|line| {
                let columns: Vec<_> = line.split_whitespace().collect();
                columns[3] == "0A" && columns[9] == inode
            })
        };
        let descriptors = process.descriptors();
        let mut inodes: Vec<_> = descriptors
            .iter()
            .filter_map(|target| target.strip_prefix("socket:[")?.strip_suffix(']'))
            .filter(|inode| listens(inode))
            .collect();
        inodes.sort_unstable();
        inodes.dedup();
        inodes.len()
    };
    for _ in 0..3 {
        ctl(&proxy, &["workers", "scale", "1"]);
        wait_for_workers(&proxy, 1);
        assert_eq!(listening(proxy.worker()), 4, "two listeners of two workers");
        ctl(&proxy, &["workers", "scale", "2"]);
        assert!(proxy.workers().into_iter().all(|worker| listening(worker) == 2));
    }
    assert_eq!(listening(proxy.supervisor()), 4);
}

#[test]
fn a_worker_that_hosts_the_sockets_of_another_may_die_or_be_replaced() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    ctl(&proxy, &["workers", "scale", "1"]);
    wait_for_workers(&proxy, 1);
    ctl(&proxy, &["workers", "upgrade"]);
    (0..20).for_each(|_| ask(&mut proxy.client()));
    wait_for_workers(&proxy, 1);
    let worker = proxy.worker();
    send_signal(worker, Signal::SIGKILL);
    wait::until("another process", || proxy.workers().iter().any(|it| it.0 != worker.0));
    (0..20).for_each(|_| ask(&mut proxy.client()));
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(workers(&proxy).len(), 1, "as was said last");
    (0..20).for_each(|_| ask(&mut proxy.client()));
}

#[test]
fn the_number_of_workers_changes_with_the_file_too() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("worker_count = 1", "worker_count = 3")).unwrap();
    let said = ctl(&proxy, &["reload", "--dry-run"]);
    assert!(said.contains("~ worker_count 1 → 3"), "{said}");
    assert_eq!(workers(&proxy).len(), 1);
    ctl(&proxy, &["reload"]);
    assert_eq!(workers(&proxy).len(), 3);
    for wrong in ["0", "2000"] {
        assert_eq!(proxy.ctl(&["workers", "scale", wrong]).status.code(), Some(1));
    }
}

#[test]
fn connections_move_from_the_busiest_worker_to_the_idlest() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let mut clients: Vec<_> = (0..60).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    ctl(&proxy, &["workers", "scale", "3"]);
    let said = ctl(&proxy, &["workers", "rebalance"]);
    assert!(said.contains("worker 0: gives 20 connections to worker"), "{said}");
    wait::until("20 each", || workers(&proxy).iter().all(|(connections, _)| *connections == 20));
    clients.iter_mut().for_each(ask);
    assert!(ctl(&proxy, &["workers", "rebalance"]).contains("nothing had to change"));
    assert!(workers(&proxy).iter().all(|(_, requests)| *requests >= 20));
}

#[test]
fn a_worker_that_is_too_busy_gives_connections_away_by_itself() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root("worker_count = 1")
        .root("rebalance = \"auto\"")
        .root("rebalance_interval = 0.5")
        .start();
    let address = proxy.address();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<Client> = (0..6).map(|_| Client::connect(address)).collect();
        for mut client in clients {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    ask(&mut client);
                }
            });
        }
        let _at_last = StopAtLast(&stop);
        ctl(&proxy, &["workers", "scale", "2"]);
        // How many is a matter of how busy each was, which the rest of the machine has a say in.
        wait::within(Duration::from_secs(60), "a share for both", || {
            workers(&proxy).iter().all(|it| it.0 >= 1).then_some(())
        });
    });
}

/// Ends the clients when the test ends, however it does.
struct StopAtLast<'a>(&'a AtomicBool);

impl Drop for StopAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_worker_moves_to_another_core_as_it_is() {
    let cores = thread::available_parallelism().unwrap().get();
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    let worker = proxy.worker();
    let load = Load::on(proxy.address());
    let on = |core: &str| worker.status("Cpus_allowed_list").as_deref() == Some(core);
    for core in ["0", "1", "0"].into_iter().take(if machine::has(Need::TwoCores) { 3 } else { 1 }) {
        ctl(&proxy, &["pin", "set", "0", core]);
        assert!(on(core));
        load.goes_on();
        assert_eq!(proxy.ctl_json("workers")[0]["core"].to_string(), core);
    }
    assert_eq!(proxy.worker(), worker, "the process stays");
    ctl(&proxy, &["workers", "upgrade"]);
    wait_for_workers(&proxy, 1);
    assert_eq!(
        proxy.worker().status("Cpus_allowed_list").as_deref(),
        Some("0"),
        "it holds for its successor"
    );
    load.goes_on();
    load.end();
    ctl(&proxy, &["pin", "auto", "--no-smt"]);
    let topology = proxy.ctl_json("pin");
    let allowed = topology["cores"].as_array().unwrap().iter().filter(|core| core["allowed"] == true).count();
    assert_eq!(allowed, cores);
    assert_eq!(topology["workers"][0]["core"], 0);
    assert!(ctl(&proxy, &["pin"]).contains("SIBLINGS"));
    for wrong in
        [&["pin", "set", "0", "9999"][..], &["pin", "set", "7", "0"], &["pin", "auto", "--numa", "77"]]
    {
        assert_eq!(proxy.ctl(wrong).status.code(), Some(1), "{wrong:?}");
    }
}

#[test]
fn the_file_says_where_workers_run_and_new_connections_follow_the_core() {
    if !machine::has(Need::TwoCores) {
        return;
    }
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root("worker_count = 2")
        .root("worker_cores = [1, 0]")
        .root("steering = \"cpu\"")
        .start();
    let cores: Vec<_> =
        proxy.ctl_json("workers").as_array().unwrap().iter().map(|it| it["core"].clone()).collect();
    assert_eq!(cores, [1, 0]);
    // On loopback a connection is received on the core of the client.
    let on_core = |core: usize| {
        let before = workers(&proxy);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut cores = nix::sched::CpuSet::new();
                cores.set(core).unwrap();
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores).unwrap();
                (0..30).for_each(|_| ask(&mut proxy.client()));
            });
        });
        let after = workers(&proxy);
        after.iter().zip(&before).map(|(after, before)| after.1 - before.1).collect::<Vec<_>>()
    };
    // On a busy machine the kernel's own thread may receive one on another core.
    for (core, worker) in [(0, 1), (1, 0)] {
        let served = on_core(core);
        assert!(served[worker] >= 27 && served.iter().sum::<u64>() == 30, "{core}: {served:?}");
    }
    let load = Load::on(proxy.address());
    load.goes_on();
    load.end();
    wait::within(Duration::from_secs(10), "no connection is left", || {
        workers(&proxy).iter().all(|(connections, _)| *connections == 0).then_some(())
    });
}

#[test]
fn a_scaling_that_failed_in_a_reload_is_tried_again_by_the_next() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("worker_count = 1", "worker_count = 2")).unwrap();
    let present = proxy.workers();
    thread::scope(|scope| {
        let reload = scope.spawn(|| ctl(&proxy, &["reload"]));
        send_signal(stop_what_comes(&proxy, &present), Signal::SIGKILL);
        let said = reload.join().unwrap();
        assert!(said.contains("worker 1"), "{said}");
    });
    assert_eq!(workers(&proxy).len(), 1, "{}", proxy.log());
    ctl(&proxy, &["reload"]);
    wait_for_workers(&proxy, 2);
}
