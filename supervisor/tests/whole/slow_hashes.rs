//! Passwords with argon2id and bcrypt: who is let in, what that costs, and that who waits for it holds nobody up.

use std::{fs, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::harness::{
    Backend, Config, GET, Message, OK, Process, Proxy, ctl, ctl_says, exchange, shown_to_anybody, wait,
};

/// Of `secret`: argon2id (8 KiB), bcrypt (cost 4), SHA-256; of `other`: argon2id.
const ARGON2ID: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$vk+JgWgZGbXHtEqPQPhzXbD+QxxkJR5Fq2AXLhDyYaY";
const BCRYPT: &str = "$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
const SHA256: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const OTHER: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$fnvEUpGRuX/qxxYYFxPeCdWt+zrrhITINQJhIboaVqk";

fn line(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(credentials))
}

/// Whole-program tests may be many at a time, and hashes are computed where nothing else runs.
const LONG: Duration = Duration::from_secs(30);

fn ask(proxy: &Proxy, target: &str, credentials: &str, more: &str) -> Message {
    let mut client = proxy.client();
    let fields = line(credentials);
    client.patience(LONG).send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}{more}\r\n"));
    client.response()
}

fn config(backend: &Backend) -> Config {
    let users = format!(
        "[\"ann:{ARGON2ID}\", \"bob:{BCRYPT}\", \"eve:{SHA256}\", \"zoe:{OTHER}\", \"zoe:{SHA256}\"]"
    );
    Config::new()
        .listener("trusted_peers = [\"127.0.0.1\"]")
        .backend("web", backend)
        .cluster("web", &format!("authorized_hashes = {users}"))
        .backend("more", backend)
        .cluster("more", &format!("authorized_hashes = [\"ann:{BCRYPT}\"]"))
        .frontend("web", "hostname = \"a\", path = \"/staff\", required_auth = true")
        .frontend("web", "hostname = \"a\", path = \"/moved\", required_auth = true, redirect = \"found\", rewrite_path = \"/staff\"")
        .frontend("web", "hostname = \"a\", path = \"/in\", rewrite_path = \"/staff$PATH[1]\"")
        .frontend("more", "hostname = \"a\", path = \"/both\", required_auth = true, rewrite_path = \"/staff$PATH[1]\"")
        .frontend("web", "hostname = \"a\", path = \"/limited\", required_auth = true, rate_limits = [{ rate = 2, per = \"1h\", burst = 3 }]")
        .frontend("web", "hostname = \"a\", path = \"/quick\", required_auth = true, rate_limits = [{ rate = 2, per = \"1h\", burst = 3 }]")
        .frontend("web", "hostname = \"a\", path = \"/open\"")
}

#[test]
fn users_with_each_hash_are_let_in_and_nobody_else() {
    let backend = Backend::respond(OK);
    let proxy = config(&backend).root("worker_count = 2").start();
    for target in ["/staff", "/in"] {
        for right in ["ann:secret", "bob:secret", "eve:secret", "zoe:secret", "zoe:other"] {
            ask(&proxy, target, right, "").expect(200, "ok");
        }
        for wrong in
            ["ann:other", "bob:other", "eve:other", "zoe:ann", "carl:secret", ":", "ann:", "ann:secret\0"]
        {
            let response = ask(&proxy, target, wrong, "");
            response.expect_answer(401, "unauthorized");
            assert_eq!(response.all("www-authenticate"), ["Basic realm=\"restricted\""], "{wrong}");
        }
    }
    assert_eq!(ask(&proxy, "/moved", "bob:secret", "").all("location"), ["http://a/staff"]);
    let moved = ask(&proxy, "/moved", "bob:other", "");
    assert_eq!((moved.status(), moved.all("location").len()), (401, 0));
    // The user of both, whose hashes are two.
    ask(&proxy, "/both", "ann:secret", "").expect(200, "ok");
    for wrong in ["ann:other", "bob:secret", "eve:secret"] {
        ask(&proxy, "/both", wrong, "").expect_answer(401, "unauthorized");
    }
    let requests = backend.requests();
    let wrong = ["ann:other", "bob:other", "carl:secret"]
        .map(|it| line(it)["Authorization: ".len()..].trim().to_owned());
    assert!(requests.iter().all(|it| !wrong.iter().any(|wrong| it.all("authorization") == [wrong])));
    assert_eq!(requests.len(), 11);
}

#[test]
fn a_request_is_whole_when_its_password_was_checked() {
    let backend = Backend::answer(|request| {
        let body = format!("{} {}", request.method(), String::from_utf8_lossy(&request.body));
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    });
    // A password is right for the first time in each case.
    for (credentials, status) in
        [("ann:secret", 200), ("bob:secret", 200), ("ann:wrong", 401), ("nobody:x", 401)]
    {
        let fields = line(credentials);
        let proxy = config(&backend).start();
        let mut client = proxy.client();
        client.patience(LONG);
        // Behind it come another, which has to be checked as well, and one with a body.
        client.send(format!(
            "GET /staff HTTP/1.1\r\nHost: a\r\n{fields}\r\nGET /open HTTP/1.1\r\nHost: a\r\n\r\nPOST /staff HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 5\r\n\r\nhelloGET /open HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        assert_eq!(client.response().status(), status, "{credentials}");
        client.response().expect(200, "GET ");
        let posted = client.response();
        assert_eq!(posted.status(), status, "{credentials}");
        // Where the body was not read, nothing follows.
        if status == 200 {
            assert_eq!(posted.text(), "POST hello");
            client.response().expect(200, "GET ");
        } else {
            client.expect_closed();
        }
        let proxy = config(&backend).start();
        let body = "x".repeat(100_000);
        let response = exchange(
            &proxy,
            format!(
                "POST /staff HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 100000\r\nConnection: close\r\n\r\n{body}"
            ),
        );
        assert_eq!(response.status(), status, "{credentials}");
        assert!(status != 200 || response.text() == format!("POST {body}"));
        let proxy = config(&backend).start();
        let response =
            exchange(&proxy, format!("HEAD /staff HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n"));
        assert_eq!((response.status(), response.body.len()), (status, 0), "{credentials}");
        // Nobody is asked for a body that nobody takes.
        let proxy = config(&backend).start();
        let mut client = proxy.client();
        client.patience(LONG);
        client.send(format!(
            "POST /staff HTTP/1.1\r\nHost: a\r\n{fields}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        ));
        let mut head = client.head();
        if head.status() == 100 {
            client.send("hello");
            head = client.response();
            assert_eq!(head.text(), "POST hello");
        }
        assert_eq!(head.status(), status, "{credentials}");
    }
}

#[test]
fn what_was_right_is_computed_once_and_what_was_wrong_each_time() {
    let backend = Backend::respond(OK);
    let proxy = config(&backend).root("worker_count = 1").start();
    let counters =
        || ["computed", "remembered", "waiting"].map(|it| proxy.counter(&format!("authentication.{it}")));
    for round in 1..=5 {
        ask(&proxy, "/staff", "ann:secret", "").expect(200, "ok");
        assert_eq!(counters(), [1, round - 1, 0]);
    }
    // Neither SHA-256 nor what is no password takes the thread.
    ask(&proxy, "/staff", "eve:secret", "").expect(200, "ok");
    ask(&proxy, "/staff", "ann", "").expect_answer(401, "unauthorized");
    assert_eq!(counters(), [1, 4, 0]);
    for (round, wrong) in (2..).zip(["ann:x", "ann:x", "nobody:x", "nobody:x", "eve:x"]) {
        ask(&proxy, "/staff", wrong, "").expect_answer(401, "unauthorized");
        assert_eq!(counters(), [round, 4, 0], "{wrong}");
    }
    // Both of two that are asked are.
    ask(&proxy, "/both", "ann:secret", "").expect(200, "ok");
    assert_eq!(counters(), [7, 5, 0]);
    // Each counts once against a limit, as one does whose password takes no time.
    let until_limited = |target: &str, credentials: &str| {
        (0..20).take_while(|_| ask(&proxy, target, credentials, "").status() != 429).count()
    };
    let quick = until_limited("/quick", "eve:secret");
    assert!(quick < 20 && until_limited("/limited", "ann:x") == quick, "{quick}");
    // Another process knows nothing of it.
    let before = counters()[0];
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success());
    ask(&proxy, "/staff", "ann:secret", "").expect(200, "ok");
    assert_eq!(counters()[0], before + 1);
}

#[test]
fn a_user_who_is_removed_or_has_another_password_is_out_at_once_and_no_hash_is_shown() {
    let backend = Backend::respond(OK);
    let config = config(&backend).root("worker_count = 1");
    let proxy = config.clone().start();
    let ctl = |arguments: &[&str]| ctl_says(&proxy, arguments);
    ask(&proxy, "/staff", "ann:secret", "").expect(200, "ok");
    let mut shown = vec![ctl(&["cluster", "patch", "web", &format!("authorized_hashes=[\"ann:{OTHER}\"]")])];
    ask(&proxy, "/staff", "ann:secret", "").expect_answer(401, "unauthorized");
    ask(&proxy, "/staff", "ann:other", "").expect(200, "ok");
    shown.push(ctl(&["cluster", "patch", "web", &format!("authorized_hashes=[\"bob:{BCRYPT}\"]")]));
    ask(&proxy, "/staff", "ann:other", "").expect_answer(401, "unauthorized");
    ask(&proxy, "/staff", "bob:secret", "").expect(200, "ok");
    shown.extend(shown_to_anybody(&proxy));
    for text in &shown {
        assert!(
            !text.contains("$argon2id") && !text.contains("$2y$") && !text.contains(&BCRYPT[10..30]),
            "{text}"
        );
    }
    assert!(ctl(&["config", "dump", "--with-keys"]).contains(BCRYPT));
    ctl(&["cluster", "patch", "web", "authorized_hashes="]);
    ask(&proxy, "/staff", "bob:secret", "").expect_answer(401, "unauthorized");
}

#[test]
fn a_request_whose_password_takes_long_stays_at_the_cluster_that_chance_has_made_its_own() {
    const USERS: usize = 24;
    let backends = [Backend::respond(OK), Backend::respond(OK)];
    let users: Vec<String> = (0..USERS).map(|user| format!("\"u{user}:{ARGON2ID}\"")).collect();
    let counted = "rate_limits = [{ rate = 1000, per = 3600, key = \"route\" }]";
    let split = "split = [{ cluster = \"one\", weight = 1 }, { cluster = \"two\", weight = 1 }]";
    let proxy = Config::new()
        .root("worker_count = 1")
        .cluster("one", counted)
        .cluster("two", counted)
        .cluster("one", &format!("authorized_hashes = [{}]", users.join(", ")))
        .site("one", "one", &backends[0])
        .site("two", "two", &backends[1])
        .frontend("one", &format!("hostname = \"a\", path = \"/staff\", required_auth = true, {split}"))
        .start();
    for user in 0..USERS {
        ask(&proxy, "/staff", &format!("u{user}:secret"), "").expect(200, "ok");
    }
    assert_eq!(proxy.counter("authentication.computed"), USERS as u64, "each was routed twice");
    // What was counted before the password was known is what the backends have got.
    let counted = |host: &str| {
        let url = format!("http://{host}:{}/", proxy.address().port());
        let said: serde_json::Value =
            serde_json::from_str(&ctl(&proxy, &["--json", "explain", &url])).unwrap();
        said["limits"][0]["used"].as_u64().unwrap() as usize
    };
    let got = backends.each_ref().map(|backend| backend.requests().len());
    assert_eq!([counted("one"), counted("two")], got);
    assert!(got.iter().all(|count| *count > 0), "{got:?}");
}

/// The thread of a worker that computes.
fn hashing_thread(worker: Process) -> Process {
    let threads = fs::read_dir(format!("/proc/{}/task", worker.0)).unwrap().map(Result::unwrap);
    let is_it = |thread: &fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim_end() == "kakehi-hash")
    };
    let found: Vec<_> = threads.filter(is_it).collect();
    assert_eq!(found.len(), 1, "of worker {}", worker.0);
    Process(found[0].file_name().to_str().unwrap().parse().unwrap())
}

#[test]
fn hashes_are_computed_beside_requests_on_all_cores_in_the_memory_of_one() {
    let backend = Backend::respond(OK);
    let large = ARGON2ID.replace("m=8", "m=32768");
    let proxy = config(&backend)
        .root("worker_count = 1")
        .root("worker_cores = [0]")
        .cluster("large", &format!("authorized_hashes = [\"ann:{large}\"]"))
        .backend("large", &backend)
        .frontend("large", "hostname = \"a\", path = \"/large\", required_auth = true")
        .start();
    ask(&proxy, "/staff", "ann:secret", "").expect(200, "ok");
    let worker = proxy.worker();
    let thread = hashing_thread(worker);
    let cores = |process: Process| process.status("Cpus_allowed_list");
    assert_eq!(cores(thread), cores(proxy.supervisor()));
    let nice = |process: Process| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.0)).unwrap();
        // The 19th field; the name, in brackets, is the second.
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
    };
    assert_eq!(nice(thread), (nice(worker) + 10).min(19));
    // Nor does another core for the worker change that.
    let all = cores(proxy.supervisor()).unwrap();
    let first = all.split(|it: char| !it.is_ascii_digit()).next().unwrap();
    assert!(proxy.ctl(&["pin", "set", "0", first]).status.success(), "{}", proxy.log());
    assert_eq!((cores(worker).as_deref(), cores(thread)), (Some(first), Some(all.clone())));
    let kib = |key: &str| worker.status(key).unwrap().trim_end_matches(" kB").parse::<u64>().unwrap();
    let before = kib("VmRSS");
    let mut clients: Vec<_> = (0..8)
        .map(|number| {
            let mut client = proxy.client();
            let fields = format!("{}X-Forwarded-For: 192.0.2.{number}\r\n", line(&format!("ann:{number}")));
            client.patience(LONG).send(format!("GET /large HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
            client
        })
        .collect();
    // On a machine that has nothing to spare, they wait too long.
    clients.iter_mut().for_each(|client| assert!(matches!(client.response().status(), 401 | 503)));
    wait::within(LONG, "one to be computed", || (proxy.counter("authentication.computed") > 1).then_some(()));
    let most = kib("VmHWM");
    assert!(most > before + 28_000 && most < before + 52_000, "{before} KiB, {most} KiB at most");
    wait::within(LONG, "the memory to be given back", || (kib("VmRSS") < before + 16_000).then_some(()));
}

/// Threads are stopped as this machine has them.
#[cfg(target_arch = "x86_64")]
mod frozen {
    use super::*;
    use crate::harness::{Client, traced::Traced};

    fn send(proxy: &Proxy, target: &str, credentials: &str, client: u8) -> Client {
        let mut connection = proxy.client();
        let fields = format!("{}X-Forwarded-For: 192.0.2.{client}\r\n", line(credentials));
        connection.patience(LONG).send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        connection
    }

    fn freeze(proxy: &Proxy) -> Traced {
        Traced::stop(hashing_thread(proxy.worker()))
    }

    fn expect_busy(response: &Message) {
        response.expect_answer(503, "authentication_busy");
        assert_eq!(response.all("retry-after"), ["1"]);
    }

    #[test]
    fn who_waits_holds_nobody_up_and_one_client_leaves_room_for_others() {
        let backend = Backend::respond(OK);
        let proxy = config(&backend).root("worker_count = 1").start();
        ask(&proxy, "/staff", "bob:secret", "").expect(200, "ok");
        let before = proxy.counter("authentication.computed");
        let frozen = freeze(&proxy);
        let mut waiting: Vec<_> =
            (0..4).map(|number| send(&proxy, "/staff", &format!("ann:{number}"), 1)).collect();
        proxy.wait_for_counter("authentication.waiting", 4);
        expect_busy(&send(&proxy, "/staff", "ann:secret", 1).response());
        // Of others, there may be as many as there is room for; one is under way.
        for number in 4..33 {
            waiting.push(send(&proxy, "/staff", &format!("ann:{number}"), 2 + number / 4));
        }
        proxy.wait_for_counter("authentication.waiting", 33);
        expect_busy(&send(&proxy, "/staff", "ann:secret", 100).response());
        expect_busy(&send(&proxy, "/staff", "nobody:x", 101).response());
        expect_busy(&send(&proxy, "/moved", "ann:secret", 101).response());
        assert_eq!(proxy.counter("answers.authentication_busy"), 4);
        // All others go on: without a password, with SHA-256, with one that is remembered.
        for (target, credentials) in [("/open", "ann:x"), ("/staff", "eve:secret"), ("/staff", "bob:secret")]
        {
            ask(&proxy, target, credentials, "").expect(200, "ok");
        }
        ask(&proxy, "/staff", "", "").expect_answer(401, "unauthorized");
        // Who goes leaves the line: but for the one under way, nothing of theirs is computed.
        drop(waiting);
        proxy.wait_for_counter("client.connections", 0);
        assert_eq!(proxy.counter("authentication.waiting"), 0);
        drop(frozen);
        ask(&proxy, "/staff", "ann:secret", "").expect(200, "ok");
        assert_eq!(proxy.counter("authentication.computed"), before + 2);
        let requests = backend.requests();
        assert!(requests.len() == 5, "{requests:?}");
    }

    #[test]
    fn those_who_wait_for_the_same_wait_together() {
        let backend = Backend::respond(OK);
        let proxy = config(&backend).root("worker_count = 1").start();
        let frozen = freeze(&proxy);
        let mut waiting: Vec<_> = (0..6).map(|_| send(&proxy, "/staff", "ann:secret", 1)).collect();
        let mut wrong: Vec<_> = (0..6).map(|number| send(&proxy, "/staff", "nobody:x", number)).collect();
        proxy.wait_for_counter("authentication.waiting", 12);
        // One that goes takes nothing from the others.
        waiting.pop();
        proxy.wait_for_counter("authentication.waiting", 11);
        drop(frozen);
        waiting.iter_mut().for_each(|client| client.response().expect(200, "ok"));
        wrong.iter_mut().for_each(|client| client.response().expect_answer(401, "unauthorized"));
        assert_eq!(proxy.counter("authentication.computed"), 2);
    }

    #[test]
    fn who_has_waited_too_long_comes_again_and_its_connection_goes_on() {
        let backend = Backend::respond(OK);
        let proxy = config(&backend).root("worker_count = 1").start();
        let frozen = freeze(&proxy);
        let mut clients = [send(&proxy, "/staff", "ann:secret", 1), send(&proxy, "/in", "nobody:x", 2)];
        for client in &mut clients {
            expect_busy(&client.response());
            client.send("GET /open HTTP/1.1\r\nHost: a\r\n\r\n");
            client.response().expect(200, "ok");
        }
        drop(frozen);
        ask(&proxy, "/staff", "ann:secret", "").expect(200, "ok");
        assert_eq!(backend.targets(), ["/open", "/open", "/staff"]);
    }

    #[test]
    fn what_changes_while_one_waits_holds() {
        let backend = Backend::respond(OK);
        let proxy = config(&backend).root("worker_count = 1").start();
        let patch = |users: &str| {
            let output = proxy.ctl(&["cluster", "patch", "web", &format!("authorized_hashes={users}")]);
            assert!(output.status.success(), "{output:?}");
        };
        for (credentials, users, status) in [
            // It was right, and it was wrong.
            ("ann:secret", format!("[\"ann:{OTHER}\"]"), 401),
            ("ann:secret", format!("[\"ann:{ARGON2ID}\"]"), 200),
            ("bob:secret", format!("[\"ann:{ARGON2ID}\", \"bob:{BCRYPT}\"]"), 200),
            ("ann:wrong", String::new(), 401),
        ] {
            let frozen = freeze(&proxy);
            let mut client = send(&proxy, "/staff", credentials, 1);
            proxy.wait_for_counter("authentication.waiting", 1);
            patch(&users);
            drop(frozen);
            assert_eq!(client.response().status(), status, "{credentials} {users}");
        }
        // The rule is gone, or asks no more.
        patch(&format!("[\"ann:{ARGON2ID}\"]"));
        let frozen = freeze(&proxy);
        let mut client = send(&proxy, "/staff", "ann:wrong", 1);
        proxy.wait_for_counter("authentication.waiting", 1);
        proxy.reload(&Config::to(&backend).root("worker_count = 1"));
        drop(frozen);
        client.response().expect(200, "ok");
    }

    #[test]
    fn who_waits_is_answered_through_an_upgrade() {
        let backend = Backend::respond(OK);
        let proxy = config(&backend).root("worker_count = 1").start();
        let before = proxy.worker();
        let frozen = freeze(&proxy);
        let mut client = send(&proxy, "/staff", "ann:secret", 1);
        proxy.wait_for_counter("authentication.waiting", 1);
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| proxy.ctl(&["workers", "upgrade"]));
            wait::until("another worker that serves", || {
                proxy.workers().iter().any(|worker| *worker != before)
                    && exchange(&proxy, GET.replace("/ ", "/open ")).status() == 200
            });
            drop(frozen);
            client.response().expect(200, "ok");
            assert!(upgrade.join().unwrap().status.success());
        });
        ask(&proxy, "/staff", "bob:secret", "").expect(200, "ok");
    }
}
