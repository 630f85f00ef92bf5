//! Which backend gets a request: policies, keys, shards and sticky sessions, with the real programs and two workers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::harness::{Backend, Client, Config, Message, Pki, Proxy, ask, exchange, wait};

/// Backends that answer with their number.
struct Farm {
    backends: Vec<Backend>,
}

fn answer(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

impl Farm {
    fn new(count: usize) -> Farm {
        let backend = |number: usize| Backend::respond(answer(&number.to_string()));
        Farm { backends: (0..count).map(backend).collect() }
    }

    /// Two workers before a cluster of all of them.
    fn config(&self, keys: &str) -> Config {
        self.config_with(keys, |_| String::new())
    }

    fn config_with(&self, keys: &str, of_backend: impl Fn(usize) -> String) -> Config {
        let mut config = Config::new().root("worker_count = 2").frontend("web", "hostname = \"*\"");
        for line in keys.lines() {
            config = config.cluster("web", line.trim());
        }
        for (number, backend) in self.backends.iter().enumerate() {
            let keys = format!("backend_id = \"b{number}\"{}", of_backend(number));
            config = config.backend_with("web", backend, &keys);
        }
        config
    }
}

/// Who answered.
fn number(response: &Message) -> usize {
    assert_eq!(response.status(), 200);
    response.text().parse().unwrap()
}

fn asked(proxy: &Proxy, fields: &str) -> Message {
    exchange(proxy, format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n"))
}

/// How often each of the backends answers requests on many connections.
fn shares(proxy: &Proxy, backends: usize, connections: usize, each: usize) -> Vec<usize> {
    let mut shares = vec![0; backends];
    for _ in 0..connections {
        let mut client = proxy.client();
        for _ in 0..each {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            shares[number(&client.response())] += 1;
        }
    }
    shares
}

#[test]
fn each_policy_gives_each_backend_a_share_by_its_weight() {
    let farm = Farm::new(3);
    let weights = [50, 100, 150];
    let weight = |number: usize| format!(", weight = {}", weights[number]);
    for policy in ["ROUND_ROBIN", "RANDOM", "LEAST_LOADED", "POWER_OF_TWO", "peak_ewma"] {
        let shares = || {
            let proxy = farm.config_with(&format!("load_balancing = \"{policy}\""), weight).start();
            shares(&proxy, 3, 16, 150)
        };
        // Of 2,400; some draw.
        let is_by_weight = |shares: &[usize]| {
            shares.iter().zip(weights).all(|(share, weight)| share.abs_diff(weight * 8) < 120)
        };
        // Where the time of an answer decides, the machine may have been slow to run one of the backends, which is to count: not each time.
        let attempts = if policy == "peak_ewma" { 8 } else { 1 };
        let mut seen = Vec::new();
        let found = (0..attempts).any(|_| {
            seen.push(shares());
            seen.last().is_some_and(|shares| is_by_weight(shares))
        });
        assert!(found, "{policy}: {seen:?}");
    }
}

#[test]
fn a_key_leads_to_the_same_backend_on_every_worker_after_a_restart_and_without_others() {
    let farm = Farm::new(5);
    for (policy, source, field) in [
        ("HRW", "affinity_header = \"X-User\"", "X-User: "),
        ("MAGLEV", "affinity_header = \"x-user\"", "X-User: "),
        ("HRW", "affinity_cookie = \"user\"", "Cookie: a=b; user="),
    ] {
        let keys = format!("load_balancing = \"{policy}\"\n{source}");
        let chosen = |proxy: &Proxy| -> Vec<usize> {
            let of = |user: usize| number(&asked(proxy, &format!("{field}user-{user}\r\n")));
            (0..40).map(of).collect()
        };
        let mut proxy = farm.config(&keys).start();
        let first = chosen(&proxy);
        assert!((0..5).all(|backend| first.contains(&backend)), "{policy}: {first:?}");
        // Other connections, so other workers.
        assert_eq!(chosen(&proxy), first, "{policy}");
        proxy.terminate();
        proxy.wait(Duration::from_secs(10));
        let proxy = farm.config(&keys).start();
        assert_eq!(chosen(&proxy), first, "{policy}, started again");
        let removed = proxy.ctl(&["backend", "remove", "web", "b2"]);
        assert!(removed.status.success(), "{removed:?}");
        let after = chosen(&proxy);
        let moved = first.iter().zip(&after).filter(|(old, new)| old != new);
        if policy == "HRW" {
            assert!(moved.clone().all(|(old, _)| *old == 2), "{first:?} {after:?}");
        }
        assert!(!after.contains(&2));
    }
}

#[test]
fn a_request_without_its_key_goes_by_the_address_that_a_trusted_proxy_names() {
    let farm = Farm::new(8);
    let keys = "load_balancing = \"HRW\"\naffinity_header = \"X-User\"";
    let proxy = farm.config(keys).listener("trusted_peers = [\"127.0.0.0/8\", \"10.0.0.0/8\"]").start();
    let of = |list: &str| number(&asked(&proxy, &format!("X-Forwarded-For: {list}\r\n")));
    let clients: Vec<_> = (0..32).map(|number| of(&format!("192.0.2.{number}"))).collect();
    assert!((0..8).filter(|backend| clients.contains(backend)).count() > 4, "{clients:?}");
    for (client, backend) in clients.iter().enumerate() {
        // What stands before it is what the client has made up.
        assert_eq!(of(&format!("6.6.6.{client}, 192.0.2.{client}, 10.0.0.7")), *backend);
    }
    // Whoever is not trusted is himself.
    let proxy = farm.config(keys).start();
    let of = |list: &str| number(&asked(&proxy, &format!("X-Forwarded-For: {list}\r\n")));
    let first = of("192.0.2.1");
    assert!((2..20).all(|number| of(&format!("192.0.2.{number}")) == first));
}

/// The value of the cookie of a session that a response begins, if it does.
fn session(response: &Message) -> Option<String> {
    let mut lines = response.all("Set-Cookie").into_iter().filter_map(|line| line.strip_prefix("SID="));
    let line = lines.next()?;
    assert!(lines.next().is_none());
    line.split(';').next().map(str::to_owned)
}

#[test]
fn a_session_stays_with_its_backend_and_its_cookie_is_for_nobody_else() {
    let farm = Farm::new(3);
    let ids = |number: usize| if number == 0 { ", sticky_id = \"first\"".to_owned() } else { String::new() };
    let proxy = farm.config_with("sticky_session = true", ids).listener("sticky_name = \"SID\"").start();
    let mut values = BTreeMap::new();
    for _ in 0..12 {
        let response = asked(&proxy, "Cookie: theme=dark\r\n");
        let value = session(&response).expect("a session begins");
        let line = response.all("Set-Cookie")[0];
        assert_eq!(line, format!("SID={value}; Path=/; HttpOnly; SameSite=Lax"));
        values.insert(number(&response), value);
    }
    assert_eq!((values.len(), values[&0].as_str()), (3, "first"));
    for (backend, value) in &values {
        assert!(!value.contains("127.0.0.1") && !value.contains(&format!("b{backend}")), "{value}");
        for _ in 0..6 {
            let response =
                asked(&proxy, &format!("Cookie: a=1; SID={value}; b=\"2 3\"\r\nCookie: SID=x\r\n"));
            assert_eq!((number(&response), session(&response)), (*backend, None));
        }
        let request = farm.backends[*backend].requests().pop().unwrap();
        assert_eq!(request.all("Cookie"), ["a=1; b=\"2 3\""]);
        // Also of one without `Connection: close`, beside others.
        let mut client = proxy.client();
        for _ in 0..4 {
            client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: SID={value}\r\n\r\n"));
            assert_eq!(number(&client.response()), *backend);
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(session(&client.response()).is_some(), "it does not leak into the next request");
        }
    }
    // Nobody has that one.
    let response = asked(&proxy, "Cookie: SID=nobody\r\n");
    assert!(session(&response).is_some());
    // A backend that is gone takes its sessions with it.
    assert!(proxy.ctl(&["backend", "remove", "web", "b0"]).status.success());
    let response = asked(&proxy, "Cookie: SID=first\r\n");
    assert!(number(&response) != 0 && session(&response).is_some_and(|it| it != "first"));
    // Weight 0: what has a session keeps it, and nothing else comes.
    assert!(proxy.ctl(&["backend", "patch", "web", "b1", "weight=0"]).status.success());
    assert_eq!(number(&asked(&proxy, &format!("Cookie: SID={}\r\n", values[&1]))), 1);
    assert_eq!(shares(&proxy, 3, 4, 5), [0, 0, 20]);
}

#[test]
fn a_session_over_https_has_a_secure_cookie_on_every_status_and_ends_where_nobody_answers() {
    let pki = Pki::new();
    let issued = pki.issue(&["a.example"]);
    let missing =
        Backend::respond("HTTP/1.1 404 Not Found\r\nSet-Cookie: own=1\r\nContent-Length: 0\r\n\r\n");
    let proxy = Config::https_to(&missing, &issued)
        .cluster("all", "sticky_session = true")
        .cluster("all", "sticky_same_site = \"strict\"")
        .cluster("all", "sticky_max_age = 3600")
        .start();
    let mut client = pki.caller().to("a.example").connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status(), 404);
    let [own, ours] = response.all("Set-Cookie")[..] else { panic!("{}", response.text()) };
    let value = ours.strip_prefix("SOZUBALANCEID=").unwrap().split(';').next().unwrap();
    let attributes = "Path=/; Max-Age=3600; HttpOnly; Secure; SameSite=Strict";
    assert_eq!((own, ours), ("own=1", format!("SOZUBALANCEID={value}; {attributes}").as_str()));

    // One that dies: another takes over, and says so.
    let mut farm = Farm::new(2);
    let proxy = farm.config("sticky_session = true").start();
    let first = asked(&proxy, "");
    let dead = number(&first);
    let cookie = first.all("Set-Cookie")[0].split(';').next().unwrap().to_owned();
    farm.backends.remove(dead);
    wait::until("the other one", || {
        let response = asked(&proxy, &format!("Cookie: {cookie}\r\n"));
        response.status() == 200 && number(&response) != dead && !response.all("Set-Cookie").is_empty()
    });
}

/// One backend of three is ten times slower; how much of the load does it get?
fn share_of_the_slow_one(policy: &str) -> f64 {
    const CLIENTS: usize = 64;
    let times = [200, 20, 20];
    let served: Arc<[AtomicUsize; 3]> = Arc::default();
    let backends = times.into_iter().enumerate().map(|(number, time)| {
        let served = Arc::clone(&served);
        Backend::answer(move |_| {
            wait::pace(Duration::from_millis(time));
            served[number].fetch_add(1, Ordering::SeqCst);
            answer("ok")
        })
    });
    let farm = Farm { backends: backends.collect() };
    let proxy = farm.config(&format!("load_balancing = \"{policy}\"")).start();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| proxy.client()).collect();
    thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| (0..20).for_each(|_| ask(client)));
        }
    });
    let counts: Vec<_> = served.iter().map(|it| it.load(Ordering::SeqCst)).collect();
    counts[0] as f64 / counts.iter().sum::<usize>() as f64
}

#[test]
fn a_slow_backend_gets_little_where_the_load_decides() {
    for policy in ["LEAST_LOADED", "POWER_OF_TWO", "PEAK_EWMA"] {
        let share = share_of_the_slow_one(policy);
        assert!(share <= 0.15, "{policy}: {share}");
    }
    let share = share_of_the_slow_one("ROUND_ROBIN");
    assert!(share > 0.3, "ROUND_ROBIN: {share}");
}
