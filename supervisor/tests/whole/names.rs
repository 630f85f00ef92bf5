//! Backends by name, with the real programs, a real server of the DNS and two workers: addresses come and go, and nobody notices.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    Backend, Config, Load, Message, OK, Process, Proxy, ask,
    dns::{Dnsmasq, Nameserver, Say},
    exchange, free_port, send_signal, wait,
};

/// For what takes until an answer of the DNS is not good any more.
const LATER: Duration = Duration::from_secs(30);

/// A backend at 127.0.0.`last`, which answers `ok`.
fn backend_at(last: u8, port: u16) -> Backend {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)).expect("a port of a backend");
    Backend::on(listener, |conn| while conn.serve(|_| OK.to_vec()) {})
}

/// Backends at 127.0.0.2 and up, all with one port.
struct Farm {
    port: u16,
    backends: Vec<Backend>,
}

impl Farm {
    fn new(count: u8) -> Farm {
        let port = free_port();
        Farm { port, backends: (2..2 + count).map(|last| backend_at(last, port)).collect() }
    }

    /// Two workers before all addresses of `app.test`.
    fn config(&self, resolvers: &str) -> Config {
        Config::new().root("worker_count = 2").root(resolvers).frontend("web", "hostname = \"*\"").backend_at(
            "web",
            &format!("app.test:{}", self.port),
            "backend_id = \"app\"",
        )
    }

    fn requests(&self, backend: usize) -> usize {
        self.backends[backend].requests().len()
    }

    fn id(&self, last: u8) -> String {
        format!("app-127.0.0.{last}:{}", self.port)
    }
}

fn asked(proxy: &Proxy) -> Message {
    exchange(proxy, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
}

/// Waits until so many requests in a row, of which both workers have some, are answered with `status`.
#[track_caller]
fn wait_for_status(proxy: &Proxy, status: u16) {
    wait::within(LATER, &format!("status {status}"), || {
        (0..12).all(|_| asked(proxy).status() == status).then_some(())
    });
}

/// The ids of backends that `kakehictl backends` shows.
fn shown(proxy: &Proxy) -> BTreeSet<String> {
    let backends = proxy.ctl_json("backends");
    let ids = backends["backends"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned());
    ids.collect()
}

#[track_caller]
fn wait_for_shown(proxy: &Proxy, ids: &[String]) {
    let wanted: BTreeSet<String> = ids.iter().cloned().collect();
    let mut last = BTreeSet::new();
    let begun = Instant::now();
    while begun.elapsed() < LATER {
        last = shown(proxy);
        if last == wanted {
            return;
        }
    }
    panic!("{wanted:?} are not shown, but {last:?}");
}

/// What `kakehictl backends` says of the only name.
fn name_shown(proxy: &Proxy) -> Value {
    proxy.ctl_json("backends")["names"][0].clone()
}

#[track_caller]
fn wait_for_failing(proxy: &Proxy, words: &str) -> Value {
    wait::within(LATER, words, || {
        let name = name_shown(proxy);
        name["failing"]["reason"].as_str().is_some_and(|it| it.contains(words)).then_some(name)
    })
}

fn count(text: &str, words: &str) -> usize {
    text.matches(words).count()
}

#[test]
fn addresses_come_and_go_under_traffic_without_a_lost_request() {
    let farm = Farm::new(3);
    let Some(mut dns) = Dnsmasq::with_hosts(&["127.0.0.2 app.test", "127.0.0.3 app.test"]) else { return };
    let proxy = farm.config(&dns.resolvers()).start();
    let load = Load::on(proxy.address());
    wait::until("requests at both", || farm.requests(0) > 20 && farm.requests(1) > 20);
    assert_eq!(shown(&proxy), BTreeSet::from([farm.id(2), farm.id(3)]));
    dns.set_hosts(&["127.0.0.4 app.test", "127.0.0.3 app.test"]);
    wait::within(LATER, "requests at the one that came", || (farm.requests(2) > 20).then_some(()));
    wait_for_shown(&proxy, &[farm.id(3), farm.id(4)]);
    load.goes_on();
    let gone = farm.requests(0);
    load.goes_on();
    assert_eq!(farm.requests(0), gone, "the one that went gets nothing");
    // Those to the one that stays go on being used, and none to the one that went is left.
    wait::until("the end of the connections to the one that went", || {
        farm.backends[0].ended() == farm.backends[0].connections()
    });
    for hosts in [&["127.0.0.2 app.test"][..], &["127.0.0.3 app.test", "127.0.0.2 app.test"]] {
        dns.set_hosts(hosts);
        let ids: Vec<String> = hosts.iter().map(|it| farm.id(it.as_bytes()[8] - b'0')).collect();
        wait_for_shown(&proxy, &ids);
        load.goes_on();
    }
    load.end();
    let state = proxy.ctl_json("state").to_string();
    assert!(state.contains("app.test") && !state.contains("127.0.0.2"), "{state}");
    let dumped = proxy.ctl(&["config", "dump"]);
    let dumped = String::from_utf8_lossy(&dumped.stdout).into_owned();
    assert!(dumped.contains(&format!("app.test:{}", farm.port)) && !dumped.contains("127.0.0.2"), "{dumped}");
}

#[test]
fn a_name_that_is_not_there_any_more_keeps_its_addresses_and_that_is_said_once() {
    let farm = Farm::new(1);
    let Some(mut dns) = Dnsmasq::with_hosts(&["127.0.0.2 app.test"]) else { return };
    let proxy = farm.config(&dns.resolvers()).start();
    wait_for_status(&proxy, 200);
    let load = Load::on(proxy.address());
    dns.set_hosts(&[]);
    let name = wait_for_failing(&proxy, "NXDOMAIN");
    assert_eq!((&name["addresses"], &name["name"]), (&1.into(), &format!("app.test:{}", farm.port).into()));
    assert!(name["resolved_ms"].as_u64() < name["failing"]["since_ms"].as_u64(), "{name}");
    let text = String::from_utf8_lossy(&proxy.ctl(&["backends"]).stdout).into_owned();
    assert!(text.contains("1 address, resolved ") && text.contains("; failing for "), "{text}");
    dns.kill();
    wait_for_failing(&proxy, "no server answers");
    load.goes_on();
    dns.set_hosts(&["127.0.0.2 app.test"]);
    dns.start();
    wait::within(LATER, "an answer", || name_shown(&proxy)["failing"].is_null().then_some(()));
    load.goes_on();
    load.end();
    proxy.logged("is resolved again");
    assert_eq!(count(&proxy.log(), "is not resolved"), 1, "{}", proxy.log());
}

#[test]
fn a_name_that_is_not_there_any_more_has_no_backends_where_that_is_wanted() {
    let farm = Farm::new(1);
    let Some(mut dns) = Dnsmasq::with_hosts(&["127.0.0.2 app.test", "127.0.0.2 other.test"]) else { return };
    let other = format!("other.test:{}", farm.port);
    let proxy = farm
        .config(&dns.resolvers())
        .root("dns_on_empty = \"drop\"")
        .frontend("kept", "hostname = \"kept.example\"")
        .cluster("kept", "dns_on_empty = \"keep\"")
        .backend_at("kept", &other, "")
        .start();
    wait_for_status(&proxy, 200);
    // Who says nothing says not that it is gone.
    dns.kill();
    wait_for_failing(&proxy, "no server answers");
    wait_for_status(&proxy, 200);
    dns.set_hosts(&[]);
    dns.start();
    wait_for_status(&proxy, 503);
    let kept = exchange(&proxy, "GET / HTTP/1.1\r\nHost: kept.example\r\nConnection: close\r\n\r\n");
    assert_eq!(kept.status(), 200);
    // Live, too.
    let set = |value: &str| {
        let output = proxy.ctl(&["settings", "patch", &format!("dns_on_empty={value}")]);
        assert!(output.status.success(), "{output:?}");
    };
    set("keep");
    wait_for_status(&proxy, 200);
    wait_for_shown(&proxy, &[farm.id(2), format!("{other}-127.0.0.2:{}", farm.port)]);
    set("drop");
    wait_for_status(&proxy, 503);
    dns.set_hosts(&["127.0.0.2 app.test", "127.0.0.2 other.test"]);
    wait_for_status(&proxy, 200);
}

#[test]
fn a_server_that_is_dead_at_the_start_holds_nothing_up_and_is_asked_again() {
    let farm = Farm::new(2);
    let Some(mut dns) = Dnsmasq::prepared() else { return };
    let fixed = Backend::respond(OK);
    let begun = Instant::now();
    let proxy = farm
        .config(&dns.resolvers())
        .frontend("fixed", "hostname = \"fixed.example\"")
        .backend("fixed", &fixed)
        .start();
    assert!(begun.elapsed() < Duration::from_secs(8), "the start took {:?}", begun.elapsed());
    let response = asked(&proxy);
    assert_eq!(response.status(), 503);
    assert!(response.text().contains("no_backend"), "{}", response.text());
    let of_fixed = exchange(&proxy, "GET / HTTP/1.1\r\nHost: fixed.example\r\nConnection: close\r\n\r\n");
    of_fixed.expect(200, "ok");
    let name = wait_for_failing(&proxy, "no server answers");
    assert_eq!(name["resolved_ms"], Value::Null);
    proxy.logged("is not resolved: no server answers");
    dns.set_hosts(&["127.0.0.2 app.test"]);
    dns.start();
    wait_for_status(&proxy, 200);
    assert_eq!(count(&proxy.log(), "is not resolved"), 1, "{}", proxy.log());
    // As a name that is added, for which the change waits.
    let name = format!("app.test:{}", farm.port);
    dns.set_hosts(&["127.0.0.2 app.test", "127.0.0.3 new.test"]);
    wait::pace(Duration::from_millis(200));
    assert!(
        proxy
            .ctl(&["backend", "add", "web", &format!("new.test:{}", farm.port), "--id", "n"])
            .status
            .success()
    );
    assert!(proxy.ctl(&["backend", "remove", "web", "app"]).status.success());
    (0..12).for_each(|_| asked(&proxy).expect(200, "ok"));
    assert!(farm.requests(1) >= 12, "{name}: {}", farm.requests(1));
    for (verb, status) in [("maintain", 503), ("ready", 200)] {
        assert!(proxy.ctl(&["backend", verb, "web", "n"]).status.success());
        wait_for_status(&proxy, status);
    }
    for wrong in ["app.test", "app..test:80", "10.0.0.256:80", "app.test:0"] {
        assert!(!proxy.ctl(&["backend", "add", "web", wrong, "--id", "w"]).status.success(), "{wrong}");
    }
}

#[test]
fn a_service_has_its_weights_and_what_is_not_of_the_first_priority_is_a_backup() {
    let farm = Farm::new(3);
    let Some(mut dns) = Dnsmasq::prepared() else { return };
    dns.set_hosts(&["127.0.0.2 a.test", "127.0.0.3 b.test", "127.0.0.4 c.test"]);
    let record = |host: &str, priority: u16, weight: u16| {
        format!("srv-host=_http._tcp.app.test,{host}.test,{},{priority},{weight}", farm.port)
    };
    let records = [record("a", 10, 30), record("b", 10, 10), record("c", 20, 100)];
    dns.set_records(&records.each_ref().map(String::as_str));
    dns.start();
    let proxy = Config::new()
        .root("worker_count = 2")
        .root(&dns.resolvers())
        .frontend("web", "hostname = \"*\"")
        .backend_at("web", "srv:_http._tcp.app.test", "backend_id = \"app\"")
        .start();
    wait_for_status(&proxy, 200);
    wait_for_shown(&proxy, &[farm.id(2), farm.id(3), farm.id(4)]);
    let before = farm.requests(0) + farm.requests(1);
    (0..80).for_each(|_| asked(&proxy).expect(200, "ok"));
    let (heavy, light) = (farm.requests(0), farm.requests(1));
    assert_eq!(heavy + light - before, 80);
    assert!(heavy > 2 * light && heavy < 4 * light, "{heavy} {light}");
    assert_eq!(farm.requests(2), 0);
    let backends = proxy.ctl_json("backends");
    let keys = backends["backends"].as_array().unwrap().iter();
    let keys: BTreeSet<String> = keys.map(|it| format!("{} {}", it["weight"], it["backup"])).collect();
    assert_eq!(keys, ["10 false", "100 true", "30 false"].map(str::to_owned).into());
    // Only the backup is left.
    dns.kill();
    dns.set_records(&[&records[2]]);
    dns.start();
    wait_for_shown(&proxy, &[farm.id(4)]);
    asked(&proxy).expect(200, "ok");
    assert!(farm.requests(2) > 0);
}

#[test]
fn a_reload_that_leaves_a_name_as_it_is_leaves_its_addresses_and_connections() {
    let farm = Farm::new(2);
    let Some(mut dns) = Dnsmasq::with_hosts(&["127.0.0.2 app.test", "127.0.0.3 app.test"]) else { return };
    let config = farm.config(&dns.resolvers());
    let proxy = config.clone().start();
    let mut clients: Vec<_> = (0..16).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    dns.kill();
    let connections: usize = farm.backends.iter().map(Backend::connections).sum();
    let write = |config: Config| {
        let addresses = [proxy.address()];
        std::fs::write(proxy.folder().join("kakehi.toml"), config.text(&addresses)).unwrap();
        let output = proxy.ctl(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    };
    write(config.clone().cluster("web", "hash_balance_factor = 150"));
    // The DNS is dead: what the new name of another cluster stands for is not known, and is not waited for for long.
    let begun = Instant::now();
    write(config.frontend("more", "hostname = \"more.example\"").backend_at("more", "more.test:80", ""));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    clients.iter_mut().for_each(ask);
    assert_eq!(farm.backends.iter().map(Backend::connections).sum::<usize>(), connections);
    assert_eq!(shown(&proxy), BTreeSet::from([farm.id(2), farm.id(3)]));
}

#[test]
fn without_a_supervisor_the_last_addresses_hold_and_the_next_one_goes_on_with_them() {
    let farm = Farm::new(2);
    let Some(mut dns) = Dnsmasq::with_hosts(&["127.0.0.2 app.test"]) else { return };
    let mut proxy = farm.config(&dns.resolvers()).start();
    wait_for_status(&proxy, 200);
    let load = Load::on(proxy.address());
    dns.kill();
    let record = proxy.folder().join("kakehi.sock.names");
    wait::until("the record of names", || record.exists());
    proxy.kill_supervisor();
    load.goes_on();
    proxy.start_again();
    load.goes_on();
    // Also for the process of a worker that is new.
    wait_for_failing(&proxy, "no server answers");
    assert_eq!(shown(&proxy), BTreeSet::from([farm.id(2)]));
    load.end();
    // They are no children of the new one.
    let process = || proxy.ctl_json("status")["workers"][0].clone();
    let before = process()["pid"].clone();
    send_signal(Process(u32::try_from(before.as_u64().unwrap()).unwrap()), Signal::SIGKILL);
    wait::until("another process", || {
        let now = process();
        now["pid"] != before && now["state"] == "running"
    });
    wait_for_status(&proxy, 200);
    // What it knew does not hold when the DNS says something else.
    dns.set_hosts(&["127.0.0.3 app.test"]);
    dns.start();
    wait_for_shown(&proxy, &[farm.id(3)]);
    wait_for_status(&proxy, 200);
    let before = farm.requests(0);
    wait_for_status(&proxy, 200);
    assert_eq!(farm.requests(0), before);
}

#[test]
fn an_upgrade_leaves_its_addresses_to_the_new_program() {
    let farm = Farm::new(1);
    let Some(mut dns) = Dnsmasq::with_hosts(&["127.0.0.2 app.test"]) else { return };
    let proxy = farm.config(&dns.resolvers()).start();
    wait_for_status(&proxy, 200);
    dns.kill();
    wait_for_failing(&proxy, "no server answers");
    let load = Load::on(proxy.address());
    let workers = proxy.workers();
    let upgraded = proxy.ctl(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    wait::within(LATER, "the ends of those before", || {
        proxy.workers().iter().all(|it| !workers.contains(it)).then_some(())
    });
    load.goes_on();
    load.end();
    assert_eq!(shown(&proxy), BTreeSet::from([farm.id(2)]));
    let name = wait_for_failing(&proxy, "no server answers");
    assert!(name["resolved_ms"].is_u64(), "{name}");
    dns.start();
    wait::within(LATER, "an answer", || name_shown(&proxy)["failing"].is_null().then_some(()));
    wait_for_status(&proxy, 200);
}

#[test]
fn what_comes_is_probed_and_a_drain_of_the_name_is_one_of_all_its_addresses() {
    let farm = Farm::new(2);
    let Some(mut dns) = Dnsmasq::with_hosts(&["127.0.0.2 app.test"]) else { return };
    let proxy = farm
        .config(&dns.resolvers())
        .cluster("web", "health_check = { uri = \"/health\", interval = 0.1, initial = \"down\" }")
        .cluster("web", "fail_open = false")
        .start();
    wait_for_status(&proxy, 200);
    let probes = farm.backends[0].requests();
    let probe = probes.iter().find(|it| it.target() == "/health").unwrap();
    assert_eq!(probe.field("Host"), Some(format!("app.test:{}", farm.port).as_str()));
    dns.set_hosts(&["127.0.0.2 app.test", "127.0.0.3 app.test"]);
    wait_for_shown(&proxy, &[farm.id(2), farm.id(3)]);
    wait::within(LATER, "requests at the one that came", || {
        asked(&proxy).expect(200, "ok");
        farm.backends[1].targets().iter().any(|it| it == "/").then_some(())
    });
    assert!(proxy.ctl(&["backend", "drain", "web", "app"]).status.success());
    wait_for_status(&proxy, 503);
    let backends = proxy.ctl_json("backends");
    let modes = backends["backends"].as_array().unwrap().iter().map(|it| it["operator"]["mode"].clone());
    assert_eq!(modes.collect::<Vec<_>>(), ["drain", "drain"]);
    assert!(proxy.ctl(&["backend", "ready", "web", "app"]).status.success());
    wait_for_status(&proxy, 200);
}

/// Whether the command socket answers at once, and memory and log stay small.
#[track_caller]
fn expect_unimpressed(proxy: &Proxy, what: &str) {
    for _ in 0..20 {
        let begun = Instant::now();
        assert!(proxy.ctl(&["status"]).status.success());
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}: {:?}", begun.elapsed());
        wait::pace(Duration::from_millis(50));
    }
    let memory = std::fs::read_to_string(format!("/proc/{}/status", proxy.supervisor().0)).unwrap();
    let line = memory.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "{what}: {line}");
    assert!(proxy.log().lines().count() < 60, "{what}: {}", proxy.log());
}

#[test]
fn whatever_a_server_of_the_dns_says_the_supervisor_goes_on() {
    let many = |count: u16| -> Vec<Ipv4Addr> {
        (0..count).map(|n| Ipv4Addr::from(0x7f01_0000 + u32::from(n))).collect()
    };
    let farm = Farm::new(1);
    // Of 10,000 addresses no answer has room: as many as fit.
    let flood = Nameserver::new(move |_| Say::Addresses(many(4_000), 0));
    let proxy = farm.config(&flood.resolvers()).start();
    wait::within(LATER, "64 addresses", || (shown(&proxy).len() == 64).then_some(()));
    assert_eq!(name_shown(&proxy)["left_out"], 4_000 - 64);
    let before = flood.asked();
    expect_unimpressed(&proxy, "very many addresses, good for no time");
    let rate = flood.asked() - before;
    assert!(rate < 20, "asked {rate} times");
    proxy.logged("has more than 64 addresses");
    drop((proxy, flood));

    let turn = std::sync::atomic::AtomicU32::new(0);
    let restless = Nameserver::new(move |_| {
        let n = turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Say::Addresses((0..64).map(|it| Ipv4Addr::from(0x7f02_0000 + 64 * (n % 900) + it)).collect(), 0)
    });
    let proxy = farm.config(&restless.resolvers()).root("dns_min_ttl = 0.05").start();
    let before = restless.asked();
    expect_unimpressed(&proxy, "addresses that change all the time");
    assert!(restless.asked() > before + 5);
    drop((proxy, restless));

    for (what, say) in [("silence", 0), ("rubbish", 1), ("SERVFAIL", 2), ("the query itself", 3)] {
        let odd = Nameserver::new(move |_| match say {
            0 => Say::Nothing,
            1 => Say::Bytes(vec![0xff; 400]),
            2 => Say::Code(2),
            _ => Say::Bytes(vec![0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1]),
        });
        let begun = Instant::now();
        let proxy = farm.config(&odd.resolvers()).start();
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}: {:?}", begun.elapsed());
        expect_unimpressed(&proxy, what);
        assert_eq!(asked(&proxy).status(), 503);
        wait::within(LATER, what, || name_shown(&proxy)["failing"].is_object().then_some(()));
        assert_eq!(count(&proxy.log(), "is not resolved"), 1, "{what}: {}", proxy.log());
    }
}
