//! How much backends and clusters are given at a time, on all workers together, and who waits meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::harness::{Backend, Client, Config, GET, Lock, OK, Process, Proxy, ask, send_signal, wait};

/// A backend that answers when it is told to, and knows how many requests it has at a time.
struct Gate {
    backend: Backend,
    /// Each lets one request go.
    go: mpsc::Sender<()>,
    present: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// The paths that were asked for, in their order.
    seen: Arc<Lock<Vec<String>>>,
}

impl Gate {
    fn new() -> Gate {
        let (go, gone) = mpsc::channel();
        let gone = Arc::new(Lock::new(gone));
        let (present, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let seen: Arc<Lock<Vec<String>>> = Arc::default();
        let (here, highest, paths) = (Arc::clone(&present), Arc::clone(&most), Arc::clone(&seen));
        let backend = Backend::answer(move |request| {
            paths.lock().unwrap().push(request.target().to_owned());
            highest.fetch_max(here.fetch_add(1, SeqCst) + 1, SeqCst);
            // Who is not told to go any more goes.
            let _ = gone.lock().unwrap().recv();
            here.fetch_sub(1, SeqCst);
            OK.to_vec()
        });
        Gate { backend, go, present, most, seen }
    }

    /// Two workers before it.
    fn config(&self, max_connections: usize, keys: &[&str]) -> Config {
        let config = Config::new().root("worker_count = 2").frontend("all", "hostname = \"*\"");
        let config = keys.iter().fold(config, |config, line| config.cluster("all", line));
        config.backend_with("all", &self.backend, &format!("max_connections = {max_connections}"))
    }

    fn wait_for(&self, count: usize) {
        wait::until("requests at the backend", || self.present.load(SeqCst) == count);
    }

    fn release(&self, count: usize) {
        (0..count).for_each(|_| self.go.send(()).unwrap());
    }
}

fn asking(proxy: &Proxy, path: &str) -> Client {
    let mut client = proxy.client();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client
}

/// Clients that have asked, one after the other.
fn line(proxy: &Proxy, count: usize) -> Vec<Client> {
    (0..count).map(|number| asking(proxy, &format!("/{number}"))).collect()
}

#[test]
fn a_backend_has_no_more_than_its_share_whichever_workers_they_come_from() {
    let gate = Gate::new();
    let proxy = gate.config(3, &["queue_size = 100", "queue_timeout = 30"]).start();
    let mut clients = line(&proxy, 40);
    gate.wait_for(3);
    for left in (0..40).rev() {
        gate.release(1);
        let expected = left.min(3);
        wait::until("the next one", || gate.present.load(SeqCst) >= expected);
    }
    clients.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    assert_eq!(gate.most.load(SeqCst), 3);
}

#[test]
fn without_a_queue_who_finds_no_room_is_told_at_once_or_goes_to_a_backup() {
    let gate = Gate::new();
    let proxy = gate.config(2, &[]).start();
    let mut served = line(&proxy, 2);
    gate.wait_for(2);
    for _ in 0..8 {
        asking(&proxy, "/").response().expect_answer(503, "queue_full");
    }
    gate.release(2);
    served.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    assert_eq!(proxy.counter("answers.queue_full"), 8);

    let backup = Backend::respond(OK);
    let proxy = gate.config(1, &[]).backend_with("all", &backup, "backup = true").start();
    let mut first = asking(&proxy, "/");
    gate.wait_for(1);
    (0..6).for_each(|_| ask(&mut proxy.client()));
    gate.release(1);
    first.response().expect(200, "ok");
    assert_eq!(backup.requests().len(), 6);
}

#[test]
fn who_waits_too_long_or_finds_too_many_waiting_is_told_so() {
    let gate = Gate::new();
    let proxy = gate.config(1, &["queue_size = 4", "queue_timeout = 0.5"]).start();
    let mut first = asking(&proxy, "/");
    gate.wait_for(1);
    // They count on all workers.
    let answers: Vec<_> = line(&proxy, 12).iter_mut().map(|client| client.response().text()).collect();
    let count = |code: &str| answers.iter().filter(|answer| answer.contains(code)).count();
    assert_eq!((count("queue_full"), count("queue_timeout")), (8, 4), "{answers:?}");
    gate.release(1);
    first.response().expect(200, "ok");
    gate.release(1);
    asking(&proxy, "/").response().expect(200, "ok");
}

/// Waits until so many are in the line, on all workers.
fn wait_for_line(proxy: &Proxy, count: u64) {
    wait::until("the line", || proxy.ctl_json("backends")["backends"][0]["waiting"].as_u64() == Some(count));
}

/// The order in which a backend that takes one at a time sees who came one after the other.
fn order_of(count: u64) -> Vec<String> {
    let gate = Gate::new();
    let proxy = gate.config(1, &["queue_size = 100", "queue_timeout = 30"]).start();
    let mut clients = vec![asking(&proxy, "/0")];
    gate.wait_for(1);
    for number in 1..count {
        clients.push(asking(&proxy, &format!("/{number}")));
        wait_for_line(&proxy, number);
    }
    gate.release(count as usize);
    clients.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    let seen = gate.seen.lock().unwrap();
    seen.clone()
}

#[test]
fn who_has_waited_longest_goes_first_whichever_worker_has_room() {
    let expected: Vec<_> = (0..24).map(|number| format!("/{number}")).collect();
    // A worker that the machine lets stand still for 40 ms is passed over, rightly.
    let orders: Vec<_> = (0..8).map(|_| order_of(24)).take_while(|seen| *seen != expected).collect();
    assert!(orders.len() < 8, "{orders:?}");
}

#[test]
fn room_is_handed_on_within_20_ms() {
    let gate = Gate::new();
    let proxy = gate.config(1, &["queue_size = 100", "queue_timeout = 30"]).start();
    let mut clients = line(&proxy, 60);
    let mut gaps = Vec::new();
    for number in 0..60 {
        gate.wait_for(1);
        let freed = Instant::now();
        gate.release(1);
        if number < 59 {
            wait::within(wait::SOON, "the next one", || {
                (gate.seen.lock().unwrap().len() > number + 1).then_some(())
            });
            gaps.push(freed.elapsed());
        }
    }
    clients.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    gaps.sort_unstable();
    // The harness itself looks every 5 ms, and the machine may be busy.
    assert!(gaps[gaps.len() / 2] < Duration::from_millis(30), "{gaps:?}");
}

#[test]
fn who_leaves_leaves_the_line() {
    who_leaves(Client::reset);
}

#[test]
fn who_closes_leaves_the_line() {
    // What it would see of an answer is nothing, and that it waits for none cannot be told from that it sends no more.
    who_leaves(drop);
}

fn who_leaves(leave: fn(Client)) {
    let gate = Gate::new();
    let proxy = gate.config(1, &["queue_size = 3", "queue_timeout = 30"]).start();
    let mut first = asking(&proxy, "/");
    gate.wait_for(1);
    // Three of them wait, the others are told that there is no room.
    let (mut waiting, mut refused) = (Vec::new(), 0);
    for mut client in line(&proxy, 12) {
        client.patience(Duration::from_millis(300));
        match client.try_response() {
            Ok(response) => {
                response.expect_answer(503, "queue_full");
                refused += 1;
            }
            Err(_) => waiting.push(client),
        }
    }
    assert_eq!((waiting.len(), refused), (3, 9));
    waiting.into_iter().for_each(leave);
    let mut late = wait::within(wait::SOON, "room in the line", || {
        let mut client = asking(&proxy, "/late");
        client.patience(Duration::from_millis(300));
        client.try_response().is_err().then_some(client)
    });
    gate.release(2);
    first.response().expect(200, "ok");
    late.patience(wait::SOON);
    late.response().expect(200, "ok");
    let seen = gate.seen.lock().unwrap();
    assert!(seen.iter().all(|path| path == "/" || path == "/late"), "{seen:?}");
}

/// Which worker serves a client's next request: the one that counts it.
fn holder(proxy: &Proxy) -> Process {
    let busiest = || {
        let workers = proxy.ctl_json("workers");
        let workers = workers.as_array().unwrap().clone();
        workers
            .into_iter()
            .find(|it| it["connections"].as_u64() > Some(0))
            .map(|it| it["pid"].as_u64().unwrap())
    };
    Process(wait::within(wait::SOON, "the worker that has the connection", || {
        busiest().map(|pid| pid as u32)
    }))
}

#[test]
fn what_a_worker_that_was_killed_held_is_free_again_and_what_others_hold_is_not() {
    let gate = Gate::new();
    let proxy = gate.config(1, &[]).start();
    for _ in 0..3 {
        let held = asking(&proxy, "/held");
        gate.wait_for(1);
        asking(&proxy, "/").response().expect_answer(503, "queue_full");
        send_signal(holder(&proxy), Signal::SIGKILL);
        drop(held);
        gate.release(1);
        gate.wait_for(0);
        let mut next = wait::within(wait::SOON, "the place", || {
            let mut client = proxy.client();
            client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
            client.patience(Duration::from_millis(200));
            client.try_response().is_err().then_some(client)
        });
        gate.release(1);
        next.patience(wait::SOON);
        next.response().expect(200, "ok");
        wait::until("both workers", || {
            proxy.ctl_json("workers").as_array().unwrap().iter().all(|it| it["state"] == "running")
        });
    }
    assert_eq!(gate.most.load(SeqCst), 1);
}

#[test]
fn places_are_kept_when_the_supervisor_dies_and_when_a_new_program_comes() {
    let gate = Gate::new();
    let mut proxy = gate.config(1, &["queue_size = 10", "queue_timeout = 30"]).start();
    let mut held = asking(&proxy, "/held");
    gate.wait_for(1);
    let mut waiting = asking(&proxy, "/waiting");
    proxy.kill_supervisor();
    proxy.start_again();
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success() || !proxy.log().contains("panicked"));
    // The process that holds it finishes beside the new one, which counts in another lane of the same memory.
    let mut late = asking(&proxy, "/late");
    wait::pace(Duration::from_millis(100));
    assert_eq!(gate.present.load(SeqCst), 1);
    for client in [&mut held, &mut waiting, &mut late] {
        gate.release(1);
        client.response().expect(200, "ok");
    }
    assert!(proxy.ctl(&["upgrade"]).status.success(), "{}", proxy.log());
    gate.release(1);
    asking(&proxy, "/last").response().expect(200, "ok");
    assert_eq!(gate.most.load(SeqCst), 1);
}

#[test]
fn a_worker_that_stands_still_at_the_head_of_the_line_holds_up_nobody() {
    let gate = Gate::new();
    let config = gate.config(1, &["queue_size = 100", "queue_timeout = 30"]);
    let proxy = config.root("worker_liveness = 0").start();
    let mut first = asking(&proxy, "/first");
    gate.wait_for(1);
    // Not the one that has the request.
    let holder = holder(&proxy);
    let other = proxy.workers().into_iter().find(|worker| worker.0 != holder.0).unwrap();
    let waiting = line(&proxy, 16);
    wait_for_line(&proxy, 16);
    send_signal(other, Signal::SIGSTOP);
    // Whoever is on the other one is served, as soon as the first is done, wherever that was.
    gate.release(17);
    wait::within(Duration::from_secs(10), "those of the other worker", || {
        (gate.seen.lock().unwrap().len() > 1).then_some(())
    });
    send_signal(other, Signal::SIGCONT);
    first.response().expect(200, "ok");
    for mut client in waiting {
        client.response().expect(200, "ok");
    }
}

#[test]
fn a_cluster_takes_so_many_at_a_time() {
    let gate = Gate::new();
    let proxy = gate.config(0, &["max_requests = 4"]).start();
    let mut served = line(&proxy, 4);
    gate.wait_for(4);
    for _ in 0..6 {
        asking(&proxy, "/").response().expect_answer(503, "cluster_full");
    }
    gate.release(4);
    served.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    gate.release(1);
    asking(&proxy, "/").response().expect(200, "ok");
    // An established connection goes on behind a refusal.
    let (mut busy, mut client) = (line(&proxy, 4), proxy.client());
    gate.wait_for(4);
    client.send(GET);
    client.response().expect_answer(503, "cluster_full");
    gate.release(5);
    busy.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    thread::yield_now();
    client.send(GET);
    client.response().expect(200, "ok");
}

#[test]
fn a_backend_that_comes_back_has_still_what_it_had() {
    let (gate, other) = (Gate::new(), Backend::respond(OK));
    let config = gate.config(1, &[]);
    let proxy = config.start();
    let mut first = asking(&proxy, "/");
    gate.wait_for(1);
    proxy.reload(&Config::to(&other).root("worker_count = 2"));
    ask(&mut proxy.client());
    proxy.reload(&gate.config(1, &[]));
    for _ in 0..6 {
        asking(&proxy, "/").response().expect_answer(503, "queue_full");
    }
    gate.release(2);
    first.response().expect(200, "ok");
    wait::until("room", || asking(&proxy, "/").response().status() == 200);
    assert_eq!(gate.most.load(SeqCst), 1);
}

#[test]
fn whoever_waits_goes_to_a_backend_that_has_come_meanwhile() {
    let (gate, other) = (Gate::new(), Backend::respond(OK));
    let keys = ["queue_size = 100", "queue_timeout = 30"];
    let proxy = gate.config(1, &keys).start();
    let mut first = asking(&proxy, "/");
    gate.wait_for(1);
    let mut waiting = line(&proxy, 20);
    wait::until("all of them wait", || {
        let shown = proxy.ctl_json("backends");
        shown["backends"][0]["waiting"].as_u64() == Some(20)
    });
    let config =
        keys.iter().fold(Config::to(&other).root("worker_count = 2"), |it, key| it.cluster("all", key));
    proxy.reload(&config);
    waiting.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    assert_eq!(other.requests().len(), 20);
    gate.release(1);
    first.response().expect(200, "ok");
}
