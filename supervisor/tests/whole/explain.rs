//! `kakehictl explain`: what it says of a request is what the workers then do with it.

use std::os::unix::net::UnixStream;

use kakehi_ctl::{
    limits,
    order::{Envelope, Explanation, Inquiry, Request, Response},
    wire::{self, Decoder},
};
use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Client, Config, Dice, Issued, OK, Pki, Proxy, ctl, exchange, refused, send_signal, wait,
};

/// A backend that tells which cluster it is of, and the head that it got.
fn telling(cluster: &'static str) -> Backend {
    Backend::answer(move |request| {
        let head = [&request.start, "\r\n"].concat().into_bytes();
        let fields = request.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let body = [head, fields.collect::<String>().into_bytes()].concat();
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nX-Cluster: {cluster}\r\nContent-Length: {}\r\n\r\n", body.len());
        if request.method() == "HEAD" {
            return answer.into_bytes();
        }
        answer.push_str(&String::from_utf8_lossy(&body));
        answer.into_bytes()
    })
}

/// Text without what is another one each time: ids are 26 capitals and digits.
fn without_ids(text: &str) -> String {
    let mut masked = String::new();
    for word in text.split_inclusive(|it: char| !it.is_ascii_alphanumeric()) {
        let id = word.trim_end_matches(|it: char| !it.is_ascii_alphanumeric());
        let is_id = id.len() == 26 && id.chars().all(|it| it.is_ascii_digit() || it.is_ascii_uppercase());
        masked.push_str(if is_id { &word[26..] } else { word });
    }
    masked
}

/// A connection to the command socket.
struct Asking(UnixStream, Decoder);

impl Asking {
    fn of(proxy: &Proxy) -> Asking {
        Asking(UnixStream::connect(proxy.socket()).unwrap(), Decoder::new(limits::MAX_FRAME))
    }

    fn ask(&mut self, request: Request) -> Response {
        wire::write_message(&mut self.0, &Envelope::new(1, request), limits::MAX_REQUEST_FRAME).unwrap();
        let answer: Option<Envelope<Response>> = wire::read_message(&mut self.0, &mut self.1).unwrap();
        answer.unwrap().body
    }

    fn explain(&mut self, port: u16, head: &str) -> Explanation {
        let from = "127.0.0.1".parse().unwrap();
        let inquiry = Inquiry { head: head.to_owned(), from, server_name: None };
        match self.ask(Request::Explain { listener: None, tls: false, port, inquiry }) {
            Response::Explained(explanation) => *explanation,
            other => panic!("{other:?} to {head}"),
        }
    }
}

/// Rules of all kinds, for hosts, paths, methods and values that random requests meet often.
fn many_rules(backends: &[Backend; 3]) -> Config {
    let [one, two, three] = backends;
    Config::new()
        .root("worker_count = 2")
        .listener("trusted_peers = [\"127.0.0.0/8\"]")
        .backend("one", one)
        .backend("two", two)
        .backend("three", three)
        .cluster("one", "authorized_hashes = [\"ann:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\"]")
        .cluster("three", "https_redirect = true")
        .frontend("one", "hostname = \"a.test\"")
        .frontend("one", "hostname = \"a.test\", path = \"/x\", method = \"POST\"")
        .frontend("two", "hostname = \"a.test\", path = \"/x\", path_type = \"EQUALS\"")
        .frontend("two", "hostname = \"a.test\", path = \"/x/[0-9]+\", path_type = \"REGEX\", headers = [{ position = \"both\", key = \"X-Edit\", value = \"$CLUSTER/$REQUEST_ID/$CLIENT_IP\" }, { position = \"request\", key = \"X-User\", value = \"\" }]")
        .frontend("one", "hostname = \"a.test\", path = \"/x/y\", header_predicates = [{ name = \"X-User\", value = \"1\" }], rewrite_path = \"/made$PATH[1]\"")
        .frontend("two", "hostname = \"a.test\", path = \"/x/y\", query_predicates = [{ name = \"q\", match = \"present\" }], redirect = \"found\", rewrite_host = \"b.test\"")
        .frontend("one", "hostname = \"*.test\", path = \"/staff\", required_auth = true")
        .frontend("one", "hostname = \"*.test\", path = \"/denied\", redirect = \"unauthorized\"")
        .frontend("one", "hostname = \"*.test\", path = \"/closed\", redirect = \"silent_close\"")
        .frontend("two", "hostname = \"*.test\", path = \"/y\", sources = [\"10.0.0.0/8\"]")
        .frontend("two", "hostname = \"*.test\", path = \"/s\", split_key = \"header:X-User\", split = [{ cluster = \"one\", weight = 1 }, { cluster = \"two\", weight = 2 }]")
        .frontend("two", "hostname = \"*.test\", path = \"/into\", rewrite_path = \"/denied$PATH[1]\"")
        .frontend("three", "hostname = \"/[bc]+/.test\", cookie_predicates = [{ name = \"g\", value = \"1\" }]")
        .frontend("three", "hostname = \"b.test\", path = \"/x\"")
        .frontend("one", "hostname = \"*\", path = \"/any\", allow = [\"10.0.0.0/8\"]")
        .frontend("two", "hostname = \"*\", position = \"POST\", path = \"/last\"")
        .frontend("one", "hostname = \"*\", position = \"PRE\", header_predicates = [{ name = \"X-First\", match = \"present\" }]")
}

fn random_head(dice: &mut Dice) -> String {
    let method = dice.pick(&["GET", "GET", "POST", "PUT", "OPTIONS"]);
    let host =
        dice.pick(&["a.test", "A.test", "b.test", "bc.test", "d.test", "x.a.test", "other", "a.test:80"]);
    let parts = [
        "/x", "/x/y", "/x/7", "/staff", "/denied", "/closed", "/y", "/s", "/into", "/any", "/last", "",
        "/%78", "/../x",
    ];
    let mut target = String::from("/");
    for _ in 0..dice.below(3) {
        target = format!("{}{}", target.trim_end_matches('/'), dice.pick(&parts));
    }
    if target.is_empty() {
        target.push('/');
    }
    target.push_str(dice.pick(&["", "", "?q", "?q=1&r", "?r=%20"]));
    let mut fields = String::new();
    for field in [
        "X-User: 1\r\n",
        "X-User: 2\r\n",
        "X-First: \r\n",
        "Cookie: g=1; h=2\r\n",
        "X-Forwarded-For: 10.1.2.3\r\n",
        "X-Forwarded-Proto: https\r\n",
        "Authorization: Basic YW5uOnNlY3JldA==\r\n",
        "X-Request-Id: mine\r\n",
        "Sozu-Id: mine\r\n",
    ] {
        if dice.once_in(5) {
            fields.push_str(field);
        }
    }
    format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
}

/// Holds what was said of a request against what became of it.
#[track_caller]
fn compare(proxy: &Proxy, head: &str, said: &Explanation) {
    let answer = &said.found.answer;
    let mut client = proxy.client();
    client.send(head);
    if answer.reason.as_deref() == Some("silent_close") {
        return client.expect_closed();
    }
    let got = client.response();
    assert_eq!(answer.forwarded, got.field("x-cluster").is_some(), "{head}{said:?}");
    if answer.forwarded {
        assert_eq!(said.found.cluster.as_deref(), got.field("x-cluster"), "{head}{said:?}");
        let as_got = answer.head.as_ref().unwrap().trim_end().to_owned() + "\r\n";
        assert_eq!(without_ids(&as_got), without_ids(&got.text()), "{head}");
    } else {
        assert_eq!(answer.status, Some(got.status()), "{head}{said:?}");
        assert!(got.text().ends_with(&format!(": {}\n", answer.reason.as_ref().unwrap())), "{head}{said:?}");
        assert_eq!(answer.location.as_deref(), got.field("location"), "{head}");
        let is_of_rule = !["no_route", "ambiguous_path"].contains(&answer.reason.as_deref().unwrap());
        assert_eq!(said.rule.is_some(), is_of_rule, "{head}{said:?}");
    }
    for edit in said.found.edits.response.iter().filter_map(|edit| edit.strip_prefix('+')) {
        let (name, value) = edit.split_once(": ").unwrap();
        assert_eq!(got.field(name).map(without_ids), Some(without_ids(value)), "{head}");
    }
    if let Some(rule) = &said.rule {
        assert_eq!(Some(&rule.cluster), said.found.rule_of.as_ref());
        assert!(said.tried.iter().all(|tried| tried.rule.rule != rule.rule), "{said:?}");
    }
}

#[test]
fn what_is_explained_is_what_the_workers_do() {
    let backends = ["one", "two", "three"].map(telling);
    let proxy = many_rules(&backends).start();
    let mut asking = Asking::of(&proxy);
    let mut dice = Dice::new(0x6578_706c_6169);
    let port = proxy.address().port();
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..10_000 {
        let head = random_head(&mut dice);
        let said = asking.explain(port, &head);
        compare(&proxy, &head, &said);
        let what = said.found.answer.reason.or(said.found.cluster).unwrap_or_default();
        *seen.entry(what).or_default() += 1;
    }
    // Each kind of answer was met.
    for what in [
        "one",
        "two",
        "three",
        "no_route",
        "ambiguous_path",
        "denied",
        "unauthorized",
        "silent_close",
        "redirect",
        "https_redirect",
        "source_refused",
    ] {
        assert!(seen.get(what).is_some_and(|count| *count > 20), "{what}: {seen:?}");
    }
    // By the changed rules too, on each worker, and in the next program.
    ctl(
        &proxy,
        &[
            "frontend",
            "patch",
            "two",
            &proxy.address().to_string(),
            "a.test",
            "--path",
            "/x",
            "--path-type",
            "EQUALS",
            "redirect=permanent",
            "rewrite_path=/moved",
        ],
    );
    let head = "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
    compare(&proxy, head, &asking.explain(port, head));
    ctl(&proxy, &["workers", "upgrade"]);
    compare(&proxy, head, &asking.explain(port, head));
}

#[test]
fn a_split_is_explained_by_its_shares() {
    let backends = ["one", "two", "three"].map(telling);
    let [one, two, _] = &backends;
    let proxy = Config::new()
        .root("worker_count = 2")
        .backend("one", one)
        .backend("two", two)
        .frontend("one", "hostname = \"*\", split = [{ cluster = \"one\", weight = 3 }, { cluster = \"two\", weight = 1 }]")
        .start();
    let mut asking = Asking::of(&proxy);
    let head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let said: Vec<_> = (0..2_000).map(|_| asking.explain(proxy.address().port(), head)).collect();
    let of_two = said.iter().filter(|it| it.found.cluster.as_deref() == Some("two")).count();
    // A quarter of them, by seven standard deviations.
    assert!((365..635).contains(&of_two), "{of_two}");
    let shares: Vec<_> = said[0].found.split.iter().map(|it| (it.cluster.as_str(), it.weight)).collect();
    assert_eq!(shares, [("one", 3), ("two", 1)]);
    let mut clients: Vec<Client> = (0..2).map(|_| proxy.client()).collect();
    let mut ask = |number: usize| {
        clients[number % 2].send(head);
        clients[number % 2].response().field("x-cluster") == Some("two")
    };
    let taken = (0..2_000).filter(|number| ask(*number)).count();
    assert!((365..635).contains(&taken), "{taken}");
}

#[test]
fn limits_are_shown_as_full_as_they_are_and_asking_fills_none() {
    let backend = Backend::respond(OK);
    let proxy = Config::new()
        .root("worker_count = 2")
        .listener("rate_limits = [{ rate = 100, per = 3600 }]")
        .backend("web", &backend)
        .cluster("web", "queue_size = 5")
        .cluster("web", "max_requests = 7")
        .cluster("web", "max_connections_per_ip = 3")
        .frontend("web", "hostname = \"a\", rate_limits = [{ rate = 2, per = 3600, burst = 1, key = \"header:X-User\" }], deny = [\"192.0.2.0/24\"]")
        .start();
    let explain = |more: &[&str]| -> serde_json::Value {
        let url = format!("http://{}/", proxy.address());
        let arguments = [&["--json", "explain", &url, "-H", "Host: a", "-H", "X-User: ann"], more].concat();
        serde_json::from_str(&ctl(&proxy, &arguments)).unwrap()
    };
    let limits = |of: &serde_json::Value| -> Vec<String> {
        let limits = of["limits"].as_array().unwrap().iter();
        limits
            .map(|it| {
                format!(
                    "{} {} {} {}",
                    it["place"].as_str().unwrap(),
                    it["limit"].as_str().unwrap(),
                    it["used"],
                    it["refuses"]
                )
            })
            .collect()
    };
    let mut client = proxy.client();
    for used in 0..3 {
        let mut expected = vec![
            format!("listener rate_limits source {used} false"),
            "frontend allow, deny 0 false".to_owned(),
            format!("frontend rate_limits header:x-user {used} {}", used == 2),
        ];
        if used < 2 {
            let connections = usize::from(used > 0);
            expected.push(format!("cluster max_connections_per_ip {connections} false"));
            expected
                .extend(["cluster max_requests 0 false".to_owned(), "cluster queue_size 0 false".to_owned()]);
        }
        for _ in 0..5 {
            assert_eq!(limits(&explain(&[])), expected);
        }
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-User: ann\r\n\r\n");
        assert_eq!(client.response().status(), if used < 2 { 200 } else { 429 });
    }
    let denied = explain(&["--from", "192.0.2.7"]);
    assert_eq!(
        (denied["answer"]["status"].as_u64(), denied["answer"]["reason"].as_str()),
        (Some(403), Some("source_refused"))
    );
    assert_eq!(limits(&denied)[1], "frontend allow, deny 0 true");
    assert_eq!(backend.requests().len(), 2, "nothing was sent");
}

#[test]
fn what_a_cluster_or_a_listener_would_not_take_is_said() {
    let (backend, stop) = Backend::slow();
    let proxy = Config::new()
        .another_listener()
        .another_listener()
        .cluster("empty", "https_redirect = false")
        .frontend("empty", "hostname = \"empty\"")
        .backend("capped", &backend)
        .cluster("capped", "max_connections_per_ip = 1")
        .frontend("capped", "hostname = \"capped\"")
        .backend("full", &backend)
        .cluster("full", "max_requests = 1")
        .frontend("full", "hostname = \"full\"")
        .start();
    let said = |host: &str| {
        let url = format!("http://{host}:{}/", proxy.address().port());
        let said: serde_json::Value =
            serde_json::from_str(&ctl(&proxy, &["--json", "explain", &url])).unwrap();
        let reason = said["answer"]["reason"].as_str().unwrap_or("none").to_owned();
        (said["answer"]["forwarded"].as_bool().unwrap(), reason)
    };
    assert_eq!(said("empty"), (false, "no_backend".to_owned()));
    exchange(&proxy, "GET / HTTP/1.1\r\nHost: empty\r\n\r\n").expect_answer(503, "no_backend");
    assert_eq!((said("capped"), said("full")), ((true, "none".to_owned()), (true, "none".to_owned())));
    let mut busy: Vec<Client> = ["capped", "full"]
        .map(|host| {
            let mut client = proxy.client();
            client.send(format!("GET /slow HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            client
        })
        .into();
    backend.wait_for_requests(2);
    assert_eq!(said("capped"), (false, "too_many_connections".to_owned()));
    assert_eq!(said("full"), (false, "cluster_full".to_owned()));
    exchange(&proxy, "GET / HTTP/1.1\r\nHost: capped\r\n\r\n").expect_answer(429, "too_many_connections");
    exchange(&proxy, "GET / HTTP/1.1\r\nHost: full\r\n\r\n").expect_answer(503, "cluster_full");
    drop(stop);
    busy.clear();
    let address = proxy.address_of(1).to_string();
    ctl(&proxy, &["listener", "patch", &address, "deny=[\"192.0.2.0/24\"]"]);
    let url = format!("http://a:{}/", proxy.address_of(1).port());
    let text = ctl(&proxy, &["explain", &url, "--from", "192.0.2.1"]);
    assert!(text.contains("answer     none: the connection is closed (source_refused)\n"), "{text}");
    ctl(&proxy, &["listener", "deactivate", &address]);
    assert!(refused(&proxy, &["explain", &url, "--listener", &address]).contains("accepts nothing"));
}

#[test]
fn what_is_passed_on_by_its_name_is_held_against_what_is_said_of_connections() {
    let backend = Backend::script(|conn| conn.echo());
    let (pki, decrypted) = (Pki::new(), Backend::respond(OK));
    let proxy = Config::https_to(&decrypted, &pki.issue(&["a.test"]))
        .cluster("db", "protocol = \"tcp\"")
        .cluster("db", "max_connections_per_ip = 5")
        .frontend("db", "hostname = \"db.test\", deny = [\"192.0.2.0/24\"]")
        .backend("db", &backend)
        .start();
    let url = format!("https://db.test:{}/", proxy.address().port());
    let explain = |more: &[&str]| ctl(&proxy, &[&["explain", &url], more].concat());
    let text = explain(&[]);
    assert!(text.contains("answer     none: the connection is passed on as it is\n"), "{text}");
    assert!(
        text.contains("max_connections_per_ip, 0 of 5 used\n") && text.contains("cluster    db\n"),
        "{text}"
    );
    let closed = |reason: &str| format!("answer     none: the connection is closed ({reason})\n");
    let text = explain(&["--from", "192.0.2.1"]);
    assert!(text.contains(&closed("source_refused")) && text.contains("allow, deny: refuses it\n"), "{text}");
    ctl(&proxy, &["cluster", "maintain", "db"]);
    let text = explain(&[]);
    assert!(text.contains(&closed("maintenance")), "{text}");
    // A name that is decrypted here is not concerned.
    let other = ctl(&proxy, &["explain", &url.replace("db.test", "a.test")]);
    assert!(other.contains("answer     a backend's\n"), "{other}");
    assert_eq!(backend.connections(), 0, "nobody was connected");
}

#[test]
fn people_are_told_which_rules_failed_in_what_and_what_is_nearest() {
    let backend = Backend::respond(OK);
    let proxy = Config::new()
        .backend_with("web", &backend, "backend_id = \"w1\"")
        .frontend("web", "hostname = \"a.test\", path = \"/x\", method = \"POST\"")
        .frontend("web", "hostname = \"a.test\", path = \"/y\"")
        .frontend(
            "web",
            "hostname = \"a.test\", header_predicates = [{ name = \"X-Beta\", match = \"present\" }]",
        )
        .frontend("web", "hostname = \"b.test\"")
        .start();
    let url = |path: &str| format!("http://a.test:{}{path}", proxy.address().port());
    let text = ctl(&proxy, &["explain", &url("/x")]);
    let tried: Vec<_> = text.lines().filter(|line| line.starts_with("tried")).collect();
    assert!(tried[0].contains("failed in `header_predicates x-beta`"), "{text}");
    assert!(tried[1].contains("PREFIX /x, POST") && tried[1].ends_with("failed in `method`"), "{text}");
    assert!(tried[2].contains("PREFIX /y") && tried[2].ends_with("failed in `path`"), "{text}");
    assert!(tried[3].contains("b.test") && tried[3].ends_with("failed in `hostname`"), "{text}");
    assert!(text.contains("rule       none\n") && text.contains("answer     404 no_route\n"), "{text}");
    let text = ctl(&proxy, &["explain", &url("/x"), "--method", "POST", "-H", "X-Beta: 1"]);
    assert!(text.contains("rule       a.test, PREFIX /x, POST (cluster web)\n"), "{text}");
    assert!(
        text.contains("answer     a backend's\n") && text.contains("head       POST /x HTTP/1.1\n"),
        "{text}"
    );
    assert!(text.contains("w1") && text.contains("USABLE"), "{text}");
    // Why a backend is not used.
    ctl(&proxy, &["backend", "maintain", "web", "w1"]);
    let text = ctl(&proxy, &["--json", "explain", &url("/y")]);
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(said["backends"][0]["usable"], false, "{text}");
    assert_eq!(said["backends"][0]["operator"]["mode"], "maintain", "{text}");
    // What the worker would refuse before any rule is.
    let text =
        ctl(&proxy, &["explain", &url("/"), "-H", "Content-Length: 1", "-H", "Transfer-Encoding: chunked"]);
    assert!(text.contains("answer     400 ") && !text.contains("tried"), "{text}");
}

#[test]
fn what_cannot_be_asked_is_refused_with_what_to_do() {
    let backend = Backend::respond(OK);
    let pki = Pki::new();
    let issued: Issued = pki.issue(&["a.test"]);
    let proxy = Config::https_to(&backend, &issued)
        .another_listener()
        .another_listener()
        .frontend_on(1, "all", "hostname = \"a.test\"")
        .start();
    let port = proxy.address_of(1).port();
    for (arguments, words) in [
        (vec!["a.test/"], "it has no scheme"),
        (vec!["http://a.test:1/"], "no listener of `http` has the port 1"),
        (vec!["https://a.test/", "--listener", "192.0.2.1:1"], "there is no listener at 192.0.2.1:1"),
        (vec!["http://a.test/", "-H", "no field"], "is no field"),
        (vec!["http://a.test/", "-H", "A: b\r\nC: d"], "line end"),
        (vec!["http://a.test/", "--method", "G T"], "neither a method"),
    ] {
        let arguments = [vec!["explain"], arguments].concat();
        assert!(refused(&proxy, &arguments).contains(words), "{arguments:?}");
    }
    let of_tls = proxy.address_of(0).to_string();
    let wrong = refused(&proxy, &["explain", "http://a.test/", "--listener", &of_tls]);
    assert!(wrong.contains("is of `https`, and the URL of `http`"), "{wrong}");
    let text = ctl(&proxy, &["explain", &format!("http://a.test:{port}/")]);
    assert!(text.contains("(cluster all)"), "{text}");
    let text = ctl(&proxy, &["explain", "https://a.test/", "--listener", &of_tls]);
    assert!(text.contains("X-Forwarded-Proto: https"), "{text}");
}

#[test]
fn a_worker_that_stands_still_keeps_nobody_else_from_an_answer() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_liveness = 0").start();
    send_signal(proxy.worker(), Signal::SIGSTOP);
    let url = format!("http://{}/", proxy.address());
    let output = proxy.ctl(&["--timeout", "300", "explain", &url]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    ctl(&proxy, &["status"]);
    send_signal(proxy.worker(), Signal::SIGKILL);
    // The one that comes in its place answers.
    wait::until("an answer", || proxy.ctl(&["explain", &url]).status.success());
    exchange(&proxy, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect(200, "ok");
}
