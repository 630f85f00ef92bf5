//! What follows from probes, with the real programs, real backends and two workers. How they are made is in [`probes`](crate::probes), what the
//! operator says of backends in [`drains`](crate::drains).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    events::Events,
    harness::{Backend, Config, Message, Proxy, exchange, send_signal, wait},
};

/// Backends that answer with their number, and probes with the status that a test wants.
pub(crate) struct Farm {
    pub(crate) backends: Vec<Backend>,
    statuses: Vec<Arc<AtomicU16>>,
}

/// Probes that are quick, so that a test is.
pub(crate) const QUICK: &str =
    "uri = \"/health\", interval = 0.05, timeout = 1, healthy_threshold = 2, unhealthy_threshold = 2";

pub(crate) fn with_body(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} Status\r\nLocation: /elsewhere\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

impl Farm {
    pub(crate) fn new(count: usize) -> Farm {
        let statuses: Vec<_> = (0..count).map(|_| Arc::new(AtomicU16::new(200))).collect();
        let backend = |number: usize| {
            let status = Arc::clone(&statuses[number]);
            Backend::answer(move |request| match request.target().starts_with("/health") {
                true => with_body(status.load(Ordering::SeqCst), "all is well"),
                false => with_body(200, &number.to_string()),
            })
        };
        Farm { backends: (0..count).map(backend).collect(), statuses }
    }

    /// What a backend answers to probes from now on.
    pub(crate) fn answers(&self, backend: usize, status: u16) {
        self.statuses[backend].store(status, Ordering::SeqCst);
    }

    /// Two workers before a cluster of all of them, with lines of its own.
    pub(crate) fn config(&self, lines: &[&str]) -> Config {
        let mut config = Config::new().root("worker_count = 2").frontend("web", "hostname = \"*\"");
        for line in lines {
            config = config.cluster("web", line);
        }
        for (number, backend) in self.backends.iter().enumerate() {
            config = config.backend_with("web", backend, &format!("backend_id = \"b{number}\""));
        }
        config
    }

    /// Probes that a backend was asked.
    fn probes(&self, backend: usize) -> usize {
        self.backends[backend].targets().iter().filter(|it| it.starts_with("/health")).count()
    }

    /// Other requests that it was asked.
    pub(crate) fn requests(&self, backend: usize) -> usize {
        self.backends[backend].targets().iter().filter(|it| !it.starts_with("/health")).count()
    }
}

pub(crate) fn check(keys: &str) -> String {
    format!("health_check = {{ {keys} }}")
}

/// Asks on a connection of its own.
pub(crate) fn asked(proxy: &Proxy, fields: &str) -> Message {
    exchange(proxy, format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n"))
}

/// Who answers requests on many connections, which both workers have.
#[track_caller]
pub(crate) fn answering(proxy: &Proxy) -> Vec<usize> {
    let of = |_| {
        let response = asked(proxy, "");
        assert_eq!(response.status(), 200, "{}", response.text());
        response.text().parse().unwrap()
    };
    let mut all: Vec<usize> = (0..24).map(of).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What `kakehictl backends` says of a backend.
#[track_caller]
pub(crate) fn shown(proxy: &Proxy, cluster: &str, id: &str) -> Value {
    let all = proxy.ctl_json("backends");
    let backends = all["backends"].as_array().unwrap();
    let found = backends.iter().find(|it| it["cluster"] == cluster && it["id"] == id);
    found.unwrap_or_else(|| panic!("no {id} of {cluster} in {all}")).clone()
}

/// Waits until probes of a backend have made this verdict.
#[track_caller]
pub(crate) fn wait_for_verdict(proxy: &Proxy, cluster: &str, id: &str, up: bool) -> Value {
    let mut last = Value::Null;
    let limit = Duration::from_secs(15);
    wait::within(limit, &format!("{id} of {cluster} is up: {up}"), || {
        last = shown(proxy, cluster, id);
        (last["probe"]["up"] == up).then_some(())
    });
    last
}

/// Waits until exactly these answer. Workers are told of a verdict a moment after it is shown.
#[track_caller]
pub(crate) fn wait_for_answering(proxy: &Proxy, expected: &[usize]) {
    let mut last = Vec::new();
    wait::within(wait::SOON, &format!("answers of {expected:?} only"), || {
        last = answering(proxy);
        (last == expected).then_some(())
    });
}

#[test]
fn a_backend_whose_probes_fail_is_not_used_until_enough_of_them_are_good() {
    let farm = Farm::new(3);
    let proxy = farm.config(&[&check(QUICK)]).start();
    assert_eq!(answering(&proxy), [0, 1, 2]);
    farm.answers(0, 500);
    let b0 = wait_for_verdict(&proxy, "web", "b0", false);
    assert_eq!((&b0["probe"]["reason"], &b0["usable"]), (&"status 500".into(), &false.into()));
    assert!(b0["probe"]["since_ms"].as_u64().is_some_and(|it| it > 1_600_000_000_000), "{b0}");
    wait_for_answering(&proxy, &[1, 2]);
    let before = farm.requests(0);
    for _ in 0..4 {
        assert_eq!(answering(&proxy), [1, 2]);
    }
    assert_eq!(farm.requests(0), before);
    farm.answers(0, 204);
    wait_for_verdict(&proxy, "web", "b0", true);
    wait_for_answering(&proxy, &[0, 1, 2]);
    let log = proxy.logged("backend b0 of cluster web is up: status 204");
    assert_eq!(log.matches("backend b0 of cluster web is down: status 500").count(), 1, "{log}");
    assert_eq!(proxy.counter("upstream.probes_overruled"), 0);
}

#[test]
fn a_backend_is_probed_once_in_an_interval_however_many_workers_there_are() {
    let farm = Farm::new(1);
    let keys = "uri = \"/health?x=1\", interval = 0.2, host = \"probe.example:81\"";
    let proxy = farm.config(&[&check(keys)]).start();
    wait::until("the first probes", || farm.probes(0) >= 3);
    let (begun, before) = (Instant::now(), farm.probes(0));
    wait::until("more probes", || farm.probes(0) >= before + 8);
    let most = begun.elapsed().as_secs_f64() / 0.2 + 2.0;
    assert!((farm.probes(0) - before) as f64 <= most, "{} in {:?}", farm.probes(0) - before, begun.elapsed());
    let request = farm.backends[0].requests().into_iter().find(|it| it.target() != "/").unwrap();
    assert_eq!((request.target(), request.all("Host")), ("/health?x=1", vec!["probe.example:81"]));
    assert_eq!(request.all("Connection"), ["close"]);
    assert_eq!(proxy.counter("worker.restarts"), 0);
}

#[test]
fn a_redirect_is_a_status_like_others_and_a_body_may_have_to_say_something() {
    for (keys, status, up) in [
        ("", 302, false),
        (", expected_status = 302", 302, true),
        (", expected_status = 302", 200, false),
        (", accepted_statuses = [\"404\", \"300-399\"]", 302, true),
        (", accepted_statuses = [\"any\"]", 599, true),
        (", body_contains = \"is well\"", 200, true),
        (", body_contains = \"is bad\"", 200, false),
    ] {
        let farm = Farm::new(2);
        farm.answers(0, status);
        farm.answers(1, status);
        let proxy = farm.config(&[&check(&format!("{QUICK}{keys}"))]).start();
        let b0 = wait_for_verdict(&proxy, "web", "b0", up);
        assert!(b0["probe"]["last"]["outcome"].as_str().unwrap().contains(&status.to_string()), "{b0}");
        assert_eq!(farm.backends[0].targets().iter().filter(|it| *it == "/elsewhere").count(), 0);
    }
}

#[test]
fn with_initial_down_a_backend_is_not_used_before_it_was_found_well() {
    let farm = Farm::new(2);
    farm.answers(0, 500);
    farm.answers(1, 500);
    let keys = check(&format!("{QUICK}, initial = \"down\""));
    let proxy = farm.config(&[&keys, "fail_open = false"]).start();
    for _ in 0..8 {
        asked(&proxy, "").expect_answer(503, "no_backend");
    }
    farm.answers(1, 200);
    wait_for_verdict(&proxy, "web", "b1", true);
    wait_for_answering(&proxy, &[1]);
    assert_eq!(farm.requests(0), 0);
}

#[test]
fn when_no_probe_is_good_all_are_used_unless_fail_open_is_false() {
    for (line, fails_open) in [("fail_open = true", true), ("fail_open = false", false)] {
        let farm = Farm::new(2);
        let proxy = farm.config(&[&check(QUICK), line]).start();
        farm.answers(0, 500);
        farm.answers(1, 500);
        wait_for_verdict(&proxy, "web", "b0", false);
        wait_for_verdict(&proxy, "web", "b1", false);
        assert_eq!(proxy.ctl_json("backends")["clusters"]["web"], "down");
        if fails_open {
            wait_for_answering(&proxy, &[0, 1]);
            assert!(proxy.counter("upstream.probes_overruled") > 0);
        } else {
            wait::until("503", || asked(&proxy, "").status() == 503);
            let begun = Instant::now();
            for _ in 0..20 {
                asked(&proxy, "").expect_answer(503, "no_backend");
            }
            assert!(begun.elapsed() < Duration::from_secs(2), "at once: {:?}", begun.elapsed());
        }
        farm.answers(1, 200);
        wait_for_verdict(&proxy, "web", "b1", true);
        wait_for_answering(&proxy, &[1]);
        let log = proxy.logged("cluster web has a backend again that can be used");
        let down = log.matches("cluster web has no backend that can be used").count();
        assert_eq!(down, 1, "once, however many requests: {log}");
        assert_eq!(proxy.ctl_json("backends")["clusters"]["web"], Value::Null);
    }
}

#[test]
fn below_the_panic_threshold_probes_are_not_believed() {
    let farm = Farm::new(4);
    let proxy = farm.config(&[&check(QUICK), "panic_threshold = 50", "fail_open = false"]).start();
    farm.answers(0, 500);
    farm.answers(1, 500);
    wait_for_verdict(&proxy, "web", "b0", false);
    wait_for_verdict(&proxy, "web", "b1", false);
    wait_for_answering(&proxy, &[2, 3]);
    farm.answers(2, 500);
    wait_for_verdict(&proxy, "web", "b2", false);
    wait_for_answering(&proxy, &[0, 1, 2, 3]);
    assert_eq!(proxy.ctl_json("backends")["clusters"]["web"], "panic");
    assert!(proxy.counter("upstream.probes_overruled") > 0);
    proxy.logged("panic, probes call only 25 % of its primaries well");
    farm.answers(2, 200);
    wait_for_verdict(&proxy, "web", "b2", true);
    wait_for_answering(&proxy, &[2, 3]);
    proxy.logged("the panic is over");
}

#[test]
fn a_reload_and_other_changes_keep_what_was_found_and_make_no_verdict_a_generation() {
    let farm = Farm::new(3);
    let config = |interval: &str, more: &str| {
        farm.config(&[&check(&QUICK.replace("0.05", interval)), "send_proxy = false", more])
    };
    let proxy = config("0.05", "").start();
    let generation = || proxy.ctl_json("status")["generation"].as_u64().unwrap();
    let first = generation();
    farm.answers(0, 500);
    wait_for_verdict(&proxy, "web", "b0", false);
    wait_for_answering(&proxy, &[1, 2]);
    assert_eq!(generation(), first);
    // From now on nothing is found any more: an hour is longer than the test.
    for (interval, more) in
        [("3600", ""), ("3600", "load_balancing = \"RANDOM\""), ("3600", "slow_start = 1")]
    {
        let text = config(interval, more).text(&[proxy.address()]);
        std::fs::write(proxy.folder().join("kakehi.toml"), text).unwrap();
        let reloaded = proxy.ctl(&["reload"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        assert_eq!(answering(&proxy), [1, 2], "{more}");
        assert_eq!(shown(&proxy, "web", "b0")["probe"]["up"], false);
    }
    for keys in [["weight=7"], ["backup=false"]] {
        assert!(proxy.ctl(&[&["backend", "patch", "web", "b0"][..], &keys].concat()).status.success());
        assert_eq!(answering(&proxy), [1, 2]);
    }
    // However its connections begin: what probes found of it holds.
    let before = farm.requests(0);
    assert!(proxy.ctl(&["listener", "patch", &proxy.address().to_string(), "via=false"]).status.success());
    assert_eq!((answering(&proxy), farm.requests(0)), (vec![1, 2], before));
    let log = proxy.log();
    assert_eq!(log.matches("backend b0 of cluster web is down").count(), 1, "{log}");
    // Another check begins at once, and goes by what was found until it has found something else.
    let (probes, patch) = (farm.probes(0), |key: &str| proxy.ctl(&["cluster", "patch", "web", key]));
    assert!(patch("health_check.uri=/health/other").status.success());
    assert!(patch("health_check.interval=0.05").status.success());
    assert_eq!(answering(&proxy), [1, 2]);
    wait::until("more probes", || farm.probes(0) > probes + 3);
    assert_eq!(answering(&proxy), [1, 2]);
    farm.answers(0, 200);
    wait_for_verdict(&proxy, "web", "b0", true);
    farm.answers(0, 500);
    wait_for_verdict(&proxy, "web", "b0", false);
    wait_for_answering(&proxy, &[1, 2]);
    // Without probes there is nobody who would say that it is well again.
    assert!(proxy.ctl(&["cluster", "patch", "web", "health_check="]).status.success());
    assert_eq!(shown(&proxy, "web", "b0")["probe"], Value::Null);
    wait_for_answering(&proxy, &[0, 1, 2]);
}

#[test]
fn a_worker_that_takes_the_place_of_a_dead_one_knows_all_verdicts_before_it_serves() {
    let farm = Farm::new(2);
    // The first probe makes the verdict, and there is no other.
    let keys = "uri = \"/health\", interval = 3600, healthy_threshold = 1, unhealthy_threshold = 1";
    farm.answers(0, 500);
    let proxy = farm.config(&[&check(keys)]).start();
    wait_for_verdict(&proxy, "web", "b0", false);
    wait_for_answering(&proxy, &[1]);
    let before = farm.requests(0);
    for round in 1..=2 {
        thread::scope(|scope| {
            let killing = scope.spawn(|| {
                for worker in proxy.workers() {
                    send_signal(worker, Signal::SIGKILL);
                }
                wait::within(Duration::from_secs(15), "others in their place", || {
                    (proxy.counter("worker.restarts") == 2 * round).then_some(())
                });
            });
            while !killing.is_finished() {
                // Connections of workers that die are cut.
                if let Ok(mut client) = crate::harness::Client::try_connect(proxy.address()) {
                    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                    if let Ok(response) = client.try_response() {
                        assert_eq!(response.text(), "1");
                    }
                }
            }
        });
        assert_eq!(answering(&proxy), [1]);
    }
    let upgraded = proxy.ctl(&["workers", "upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    assert_eq!(answering(&proxy), [1]);
    assert_eq!((farm.requests(0), farm.probes(0)), (before, 1));
}

#[test]
fn without_a_supervisor_the_last_verdicts_hold_and_the_next_one_finds_its_own() {
    let farm = Farm::new(2);
    let mut proxy = farm.config(&[&check(QUICK)]).start();
    farm.answers(0, 500);
    wait_for_verdict(&proxy, "web", "b0", false);
    wait_for_answering(&proxy, &[1]);
    proxy.kill_supervisor();
    assert_eq!(answering(&proxy), [1]);
    let before = farm.requests(0);
    // Still dead: the next one does not call it well before it has looked.
    proxy.start_again();
    for _ in 0..4 {
        assert_eq!(answering(&proxy), [1]);
    }
    wait_for_verdict(&proxy, "web", "b0", false);
    assert_eq!((answering(&proxy), farm.requests(0)), (vec![1], before));
    proxy.kill_supervisor();
    farm.answers(0, 200);
    proxy.start_again();
    wait_for_verdict(&proxy, "web", "b0", true);
    wait_for_answering(&proxy, &[0, 1]);
}

/// Waits for an event of this kind, about this backend where it is about one.
#[track_caller]
fn told(events: &Events, kind: &str, backend: &str) -> Value {
    loop {
        let event = events.lines.recv_timeout(wait::SOON).unwrap_or_else(|_| panic!("no event {kind}"));
        if event["event"] == kind && (event["backend"] == backend || event["backend"].is_null()) {
            return event;
        }
    }
}

#[test]
fn who_watches_is_told_of_each_transition_once() {
    let farm = Farm::new(2);
    let proxy = farm.config(&[&check(QUICK), "panic_threshold = 40"]).start();
    let events = Events::of(&proxy, &["--topic", "health"]);
    wait::within(Duration::from_secs(20), "the watch", || {
        farm.answers(0, 500);
        wait_for_verdict(&proxy, "web", "b0", false);
        farm.answers(0, 200);
        wait_for_verdict(&proxy, "web", "b0", true);
        events.lines.try_recv().ok()
    });
    farm.answers(0, 503);
    let down = told(&events, "backend_down", "b0");
    assert_eq!((&down["cluster"], &down["reason"]), (&"web".into(), &"status 503".into()));
    farm.answers(1, 503);
    told(&events, "backend_down", "b1");
    assert_eq!(told(&events, "cluster_panic", "")["healthy_percent"], 0);
    farm.answers(0, 200);
    told(&events, "backend_up", "b0");
    told(&events, "cluster_panic_ended", "");
    assert!(proxy.ctl(&["backend", "maintain", "web", "b0"]).status.success());
    let mut last: Vec<Value> =
        vec![told(&events, "cluster_panic", ""), told(&events, "backend_drained", "b0")];
    // Nothing is told twice, however many probes and requests there are.
    (0..8).for_each(|_| drop(asked(&proxy, "")));
    wait::pace(Duration::from_millis(300));
    last.extend(events.lines.try_iter());
    assert_eq!(last.len(), 2, "{last:?}");
}

#[test]
fn a_program_that_takes_the_place_of_another_one_goes_on_with_its_verdicts() {
    let farm = Farm::new(2);
    farm.answers(0, 500);
    let keys = "uri = \"/health\", interval = 3600, healthy_threshold = 3, unhealthy_threshold = 1";
    let proxy = farm.config(&[&check(keys)]).start();
    wait_for_verdict(&proxy, "web", "b0", false);
    wait_for_answering(&proxy, &[1]);
    let (before, probes) = (farm.requests(0), farm.probes(0));
    // One good probe is not enough.
    farm.answers(0, 200);
    let workers = proxy.workers();
    let upgraded = proxy.ctl(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    wait::until("the ends of those before", || proxy.workers().iter().all(|it| !workers.contains(it)));
    assert_eq!(answering(&proxy), [1]);
    wait::until("a probe of the new program", || farm.probes(0) > probes);
    let b0 = shown(&proxy, "web", "b0");
    assert_eq!((&b0["probe"]["up"], &b0["usable"]), (&false.into(), &false.into()), "{b0}");
    assert_eq!((answering(&proxy), farm.requests(0)), (vec![1], before));
}

#[test]
fn two_clusters_with_one_address_have_two_verdicts() {
    let backend = Backend::answer(|request| match request.target() {
        "/good" => with_body(200, "well"),
        _ => with_body(500, "0"),
    });
    let keys = |uri: &str| check(&QUICK.replace("/health", uri));
    let proxy = Config::new()
        .root("worker_count = 2")
        .frontend("one", "hostname = \"one\"")
        .cluster("one", &keys("/good"))
        .backend_with("one", &backend, "backend_id = \"b\"")
        .frontend("two", "hostname = \"two\"")
        .cluster("two", &keys("/bad"))
        .backend_with("two", &backend, "backend_id = \"b\"")
        .start();
    wait_for_verdict(&proxy, "one", "b", true);
    wait_for_verdict(&proxy, "two", "b", false);
}

#[test]
fn a_supervisor_that_was_stopped_does_not_blame_backends_for_it() {
    let farm = Farm::new(1);
    let keys = "uri = \"/health\", interval = 0.05, timeout = 0.2, unhealthy_threshold = 1";
    let proxy = farm.config(&[&check(keys)]).start();
    wait_for_verdict(&proxy, "web", "b0", true);
    for _ in 0..5 {
        send_signal(proxy.supervisor(), Signal::SIGSTOP);
        wait::pace(Duration::from_millis(900));
        send_signal(proxy.supervisor(), Signal::SIGCONT);
        let probes = farm.probes(0);
        wait::until("more probes", || farm.probes(0) > probes + 2);
    }
    assert!(!proxy.log().contains("is down"), "{}", proxy.log());
}
