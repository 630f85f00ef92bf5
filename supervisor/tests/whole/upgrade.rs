//! Workers are replaced while they serve: connections go on in the new process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Config, GET, Load, OK, OPEN, Process, Proxy, SWITCHING, ask, assert_same_bytes, noise,
    send_signal, wait,
};

#[track_caller]
fn upgrade(proxy: &Proxy, arguments: &[&str]) {
    let arguments: Vec<_> = ["workers", "upgrade"].iter().chain(arguments).copied().collect();
    let output = proxy.ctl(&arguments);
    assert!(output.status.success(), "{output:?}");
}

/// Upgrades all workers and waits until the processes before have ended, for a second at most.
#[track_caller]
fn upgrade_all(proxy: &Proxy) {
    let before = pids(proxy);
    upgrade(proxy, &[]);
    wait::within(Duration::from_secs(1), "the end of the processes before", || {
        let now = pids(proxy);
        (now.len() == before.len() && before.iter().all(|pid| !now.contains(pid))).then_some(())
    });
}

fn pids(proxy: &Proxy) -> Vec<u32> {
    proxy.workers().iter().map(|worker| worker.0).collect()
}

#[test]
fn idle_and_new_connections_go_on_in_the_new_processes() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let mut used: Vec<_> = (0..30).map(|_| proxy.client()).collect();
    used.iter_mut().for_each(ask);
    for _ in 0..3 {
        let mut fresh: Vec<_> = (0..10).map(|_| proxy.client()).collect();
        upgrade_all(&proxy);
        used.iter_mut().for_each(ask);
        fresh.iter_mut().for_each(ask);
        used.append(&mut fresh);
    }
    let counters = &proxy.ctl_json("status")["counters"];
    assert_eq!(counters["client.connections"], used.len(), "{counters}");
    assert!(counters["client.handed_over"].as_u64() >= Some(120), "{counters}");
    assert_eq!(counters["client.taken_over"], counters["client.handed_over"]);
    // 30 and 3 times all that there were; the harness asked once or more for each worker at the start.
    assert!(counters["http.requests"].as_u64() >= Some(30 + 40 + 50 + 60), "{counters}");
}

#[test]
fn a_thousand_idle_connections_and_those_that_wait_in_the_queue_go_on_in_the_new_process() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut clients: Vec<_> = (0..1_000).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    send_signal(proxy.worker(), Signal::SIGSTOP);
    clients.extend((0..300).map(|_| proxy.client()));
    send_signal(proxy.worker(), Signal::SIGCONT);
    upgrade_all(&proxy);
    clients.iter_mut().for_each(ask);
    proxy.wait_for_counter("client.connections", clients.len() as u64);
    assert!(proxy.counter("client.handed_over") >= 1_000);
}

#[test]
fn whom_a_header_of_the_proxy_protocol_has_named_is_known_in_the_new_process() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let patched = proxy.ctl(&["listener", "patch", &proxy.address().to_string(), "expect_proxy=true"]);
    assert!(patched.status.success(), "{patched:?}");
    let begin = |from: &str| {
        let mut client = proxy.client();
        client.send(format!("PROXY TCP4 {from} 192.0.2.1 1000 80\r\n"));
        client
    };
    let (mut used, mut fresh) = (begin("192.0.2.7"), begin("192.0.2.8"));
    ask(&mut used);
    // The header of the other one has been read too, as far as anybody can tell.
    wait::pace(Duration::from_millis(100));
    upgrade_all(&proxy);
    for (client, from) in [(&mut used, "192.0.2.7"), (&mut fresh, "192.0.2.8")] {
        ask(client);
        assert_eq!(backend.requests().last().unwrap().all("x-forwarded-for"), [from]);
    }
}

#[test]
fn half_a_request_is_no_obstacle() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    ask(&mut client);
    // The first use of kakehictl may have to build it, which takes longer than half a request may.
    proxy.ctl_json("status");
    let (first, rest) = GET.split_at(20);
    client.send(first);
    let before = pids(&proxy);
    upgrade(&proxy, &[]);
    // The process that has the half waits for the other one; new clients are served by the new process.
    ask(&mut proxy.client());
    client.send(rest);
    client.response().expect(200, "ok");
    ask(&mut client);
    wait::until("the end of the process before", || pids(&proxy).iter().all(|pid| !before.contains(pid)));
    ask(&mut client);
}

#[test]
fn what_is_in_flight_ends_where_it_is_and_its_connection_follows() {
    let (backend, go) = Backend::slow();
    let proxy = Proxy::to(&backend);
    let mut slow = proxy.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    wait::until("the request is at the backend", || backend.targets().contains(&"/slow".to_owned()));
    let before = pids(&proxy);
    upgrade(&proxy, &["0"]);
    ask(&mut proxy.client());
    assert_eq!(pids(&proxy).len(), 2, "the process before waits for its exchange");
    go.send(()).unwrap();
    slow.response().expect(200, "ok");
    wait::until("the end of the process before", || pids(&proxy).iter().all(|pid| !before.contains(pid)));
    ask(&mut slow);
}

#[test]
fn tunnels_go_on_in_the_new_processes_and_lose_no_byte() {
    let backend = Backend::script(|conn| {
        let Some(_) = conn.request() else { return };
        conn.send(SWITCHING);
        conn.echo();
    });
    let proxy = Config::to(&backend).root("worker_count = 2").root("drain_timeout = 20").start();
    let stop = Arc::new(AtomicBool::new(false));
    let open = Arc::new(AtomicU64::new(0));
    let tunnels: Vec<_> = (0..12)
        .map(|n| {
            let mut client = proxy.client();
            let (stop, open) = (Arc::clone(&stop), Arc::clone(&open));
            thread::spawn(move || {
                client.send(OPEN);
                assert_eq!(client.head().status(), 101);
                open.fetch_add(1, Ordering::SeqCst);
                // Some talk without a pause, some now and then; each message differs from the one before.
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let message = format!("{n}: {number} {}", "x".repeat(number % 5_000));
                    client.send(&message);
                    assert_eq!(client.bytes(message.len()), message.as_bytes());
                    if n % 3 == 0 {
                        wait::pace(Duration::from_millis(30));
                    }
                }
                client.half_close();
                let (rest, _) = client.rest();
                assert_eq!(rest, b"", "nothing is left over, and the end comes through");
            })
        })
        .collect();
    wait::until("all tunnels are open", || open.load(Ordering::SeqCst) == 12);
    for _ in 0..5 {
        upgrade_all(&proxy);
    }
    let counters = &proxy.ctl_json("status")["counters"];
    assert_eq!(
        (&counters["tunnel.open"], &counters["tunnel.opened"]),
        (&12.into(), &12.into()),
        "{counters}"
    );
    stop.store(true, Ordering::SeqCst);
    for tunnel in tunnels {
        tunnel.join().expect("every byte came back");
    }
    wait::until("no tunnel is left", || proxy.ctl_json("status")["counters"]["tunnel.open"] == 0);
}

#[test]
fn a_tunnel_that_carried_a_lot_moves_while_it_waits_for_more() {
    // Both ways go over to large private buffers, and wait in them when the last piece filled most of one.
    const SIZE: usize = 3 << 20;
    let backend = Backend::script(|conn| {
        let Some(_) = conn.request() else { return };
        conn.send(SWITCHING);
        while let Ok(all) = conn.bytes(SIZE) {
            conn.send(all);
        }
    });
    let proxy = Config::to(&backend).root("drain_timeout = 20").start();
    let data = noise(SIZE);
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(OPEN);
        assert_eq!(client.head().status(), 101);
    }
    for _ in 0..3 {
        for client in &mut clients {
            client.send(&data);
            assert_same_bytes(&client.bytes(SIZE), &data, "echo");
        }
        upgrade_all(&proxy);
    }
    assert!(proxy.ctl_json("status")["counters"]["ring.bulk"].as_u64() > Some(0), "the bulk mode was met");
    // And in the middle of a transfer.
    for client in &mut clients {
        client.send(&data[..SIZE / 2]);
        upgrade_all(&proxy);
        client.send(&data[SIZE / 2..]);
        assert_same_bytes(&client.bytes(SIZE), &data, "echo");
    }
}

#[test]
fn a_tunnel_that_is_closed_one_way_goes_on_the_other_way() {
    let (go, gone) = mpsc::channel::<()>();
    #[allow(clippy::disallowed_types)]
    let gone = std::sync::Mutex::new(gone);
    let backend = Backend::script(move |conn| {
        let Some(_) = conn.request() else { return };
        conn.send(SWITCHING);
        let all = conn.rest();
        let _ = gone.lock().unwrap().recv();
        conn.send(all);
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send(OPEN);
    assert_eq!(client.head().status(), 101);
    client.send("the last words");
    client.half_close();
    upgrade_all(&proxy);
    upgrade_all(&proxy);
    go.send(()).unwrap();
    assert_eq!(client.rest().0, b"the last words");
}

#[test]
fn what_does_not_end_is_cut_at_the_drain_timeout() {
    let backend = Backend::script(|conn| {
        let _ = conn.request();
        let _ = conn.rest();
    });
    let proxy = Config::to(&backend).root("drain_timeout = 0.3").start();
    let mut stuck = proxy.client();
    stuck.send(GET);
    wait::until("the request is at the backend", || backend.requests().len() == 1);
    let before = pids(&proxy);
    upgrade(&proxy, &[]);
    wait::until("the end of the process before", || pids(&proxy).iter().all(|pid| !before.contains(pid)));
    stuck.expect_closed();
}

#[test]
fn no_request_is_lost_over_many_upgrades_under_load() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let load = Load::on(proxy.address());
    let mut requests = 0;
    for _ in 0..10 {
        upgrade_all(&proxy);
        load.goes_on();
        let now = proxy.ctl_json("status")["requests"].as_u64().unwrap();
        assert!(now >= requests, "counters do not go backwards: {requests}, then {now}");
        requests = now;
    }
    load.end();
    let status = proxy.ctl_json("status");
    assert_eq!(status["restarts"], 0);
}

#[test]
fn a_worker_that_is_not_there_cannot_be_upgraded_and_one_that_dies_after_it_is_replaced() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let output = proxy.ctl(&["workers", "upgrade", "7"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    upgrade_all(&proxy);
    let worker: Process = proxy.worker();
    send_signal(worker, Signal::SIGKILL);
    wait::until("the worker is replaced", || proxy.workers().iter().any(|it| it.0 != worker.0));
    ask(&mut proxy.client());
}
