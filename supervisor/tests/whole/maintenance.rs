//! The operator has a cluster maintained: its requests are answered with 503, and what it has goes on; with the real programs.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    events::Events,
    harness::{
        Backend, Client, Config, End, GET, Message, OK, OPEN, Proxy, SWITCHING, ask, ctl, exchange, get,
        refused, send_signal, wait,
    },
};

/// Both workers, and more than one connection of each.
const ASKED: usize = 6;

/// What `kakehictl cluster list --json` says of a cluster.
fn listed(proxy: &Proxy, name: &str) -> Value {
    let list: Value = serde_json::from_str(&ctl(proxy, &["--json", "cluster", "list"])).unwrap();
    list.as_array().unwrap().iter().find(|it| it["name"] == name).unwrap().clone()
}

#[track_caller]
fn expect_maintenance(response: &Message, retry_after: Option<&str>) {
    response.expect_answer(503, "maintenance");
    assert_eq!(response.field("retry-after"), retry_after);
}

/// All workers answer with 503.
#[track_caller]
fn expect_maintained(proxy: &Proxy, retry_after: Option<&str>) {
    for _ in 0..ASKED {
        expect_maintenance(&get(proxy, "a", "/"), retry_after);
    }
}

/// All workers forward.
#[track_caller]
fn expect_served(proxy: &Proxy) {
    for _ in 0..ASKED {
        get(proxy, "a", "/").expect(200, "ok");
    }
}

#[test]
fn requests_are_answered_with_503_and_connections_go_on() {
    let (backend, other) = (Backend::respond(OK), Backend::respond(OK));
    let proxy =
        Config::new().root("worker_count = 2").site("web", "a", &backend).site("other", "b", &other).start();
    let mut kept = proxy.client();
    ask(&mut kept);
    let before = backend.requests().len();
    let said = ctl(&proxy, &["cluster", "maintain", "web"]);
    assert!(said.contains(r#"mode "ready" → "maintain""#), "{said}");
    expect_maintained(&proxy, None);
    // The connection goes on, whatever is asked.
    for method in ["GET", "HEAD", "DELETE", "GET"] {
        kept.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = kept.response_to(method);
        assert_eq!((response.status(), response.all("connection").len()), (503, 0), "{method}");
        assert!(response.field("content-length").is_some());
    }
    kept.send("GET / HTTP/1.1\r\nHost: b\r\n\r\n");
    kept.response().expect(200, "ok");
    // A body that nobody wants.
    let mut upload = proxy.client();
    upload.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n");
    expect_maintenance(&upload.response(), None);
    let old = exchange(&proxy, "GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!((old.status(), old.field("connection")), (503, Some("close")));
    assert_eq!(backend.requests().len(), before, "the backend hears nothing");

    ctl(&proxy, &["cluster", "maintain", "web", "--retry-after", "120"]);
    expect_maintained(&proxy, Some("120"));
    let listed_now = listed(&proxy, "web");
    assert_eq!(
        (&listed_now["mode"], &listed_now["maintenance_retry_after"]),
        (&"maintain".into(), &120.into())
    );
    let text = ctl(&proxy, &["backends"]);
    assert!(text.contains("cluster web: maintained") && !text.contains("cluster other"), "{text}");
    assert!(proxy.counter("answers.maintenance") >= 2 * ASKED as u64);
    for wrong in ["0", "86401", "x"] {
        let output = proxy.ctl(&["cluster", "maintain", "web", "--retry-after", wrong]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    refused(&proxy, &["cluster", "maintain", "nobody"]);
    refused(&proxy, &["cluster", "ready", "nobody"]);

    ctl(&proxy, &["cluster", "ready", "web"]);
    expect_served(&proxy);
    ask(&mut kept);
    assert_eq!(proxy.ctl_json("status")["by_hand"], 0, "it is as the file says again");
}

#[test]
fn what_is_in_flight_finishes_and_tunnels_stay() {
    let (slow, go) = Backend::slow();
    let echo = Backend::script(|conn| {
        conn.head();
        conn.send(SWITCHING);
        conn.echo();
    });
    let proxy = Config::new()
        .root("worker_count = 2")
        .root("drain_timeout = 1")
        .site("slow", "slow", &slow)
        .site("echo", "a", &echo)
        .start();
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: slow\r\n\r\n");
    slow.wait_for_requests(1);
    let mut tunnel = proxy.client();
    tunnel.send(OPEN);
    assert_eq!(tunnel.head().status(), 101);
    for cluster in ["slow", "echo"] {
        ctl(&proxy, &["cluster", "maintain", cluster]);
    }
    expect_maintenance(&get(&proxy, "slow", "/"), None);
    expect_maintained(&proxy, None);
    tunnel.send("hello");
    assert_eq!(tunnel.bytes(5), b"hello");
    go.send(()).unwrap();
    busy.response().expect(200, "ok");
    // The same connection, and a new request.
    busy.send("GET /next HTTP/1.1\r\nHost: slow\r\n\r\n");
    expect_maintenance(&busy.response(), None);
    // Longer than what is removed would have.
    wait::pace(Duration::from_millis(1_500));
    tunnel.send("still here");
    assert_eq!(tunnel.bytes(10), b"still here");
}

#[test]
fn what_a_rule_does_in_the_place_of_forwarding_comes_first() {
    let backend = Backend::respond(OK);
    let proxy = Config::new()
        .root("worker_count = 2")
        .cluster("web", r#"mode = "maintain""#)
        .cluster("web", "maintenance_retry_after = 60")
        // The password is `secret`.
        .cluster(
            "web",
            r#"authorized_hashes = ["u:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"]"#,
        )
        .cluster(
            "web",
            r#"answers = { 503 = "HTTP/1.1 503 Soon\r\nX-Why: %MESSAGE\r\nX-Wait: %RETRY_AFTER\r\n\r\ncome back in %RETRY_AFTER s" }"#,
        )
        .frontend(
            "web",
            r#"hostname = "a", headers = [{ position = "response", key = "X-Edited", value = "yes" }]"#,
        )
        .frontend("web", r#"hostname = "gone", redirect = "permanent", rewrite_path = "/new""#)
        .frontend("web", r#"hostname = "denied", redirect = "unauthorized""#)
        .frontend("web", r#"hostname = "users", required_auth = true"#)
        .backend("web", &backend)
        .start();
    for _ in 0..ASKED {
        assert_eq!(get(&proxy, "gone", "/").status(), 301);
        get(&proxy, "denied", "/").expect_answer(401, "denied");
        let asked = get(&proxy, "users", "/");
        asked.expect_answer(401, "unauthorized");
        assert!(asked.field("www-authenticate").is_some());
        let known =
            exchange(&proxy, "GET / HTTP/1.1\r\nHost: users\r\nAuthorization: Basic dTpzZWNyZXQ=\r\n\r\n");
        assert_eq!(known.status(), 503);
        let answer = get(&proxy, "a", "/");
        assert_eq!((answer.status(), answer.text()), (503, "come back in 60 s".to_owned()));
        assert_eq!(answer.start, "HTTP/1.1 503 Soon");
        let fields = ["x-why", "x-wait", "x-edited"].map(|name| answer.field(name));
        assert_eq!(fields, [Some("maintenance"), Some("60"), Some("yes")]);
        let head = exchange(&proxy, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((head.status(), head.field("content-length"), head.body.len()), (503, Some("17"), 0));
    }
    backend.expect_untouched();
    // By hand over the file, and back to what the file says.
    ctl(&proxy, &["cluster", "maintain", "web", "--retry-after", "5"]);
    assert_eq!(get(&proxy, "a", "/").text(), "come back in 5 s");
    ctl(&proxy, &["cluster", "ready", "web"]);
    expect_served(&proxy);
    assert_eq!(listed(&proxy, "web")["maintenance_retry_after"], 60);
    ctl(&proxy, &["reload"]);
    expect_served(&proxy);
    ctl(&proxy, &["cluster", "maintain", "web"]);
    assert_eq!(get(&proxy, "a", "/").text(), "come back in 60 s");
    assert_eq!(proxy.ctl_json("status")["by_hand"], 0);
}

#[test]
fn maintenance_is_kept_by_reloads_deaths_upgrades_and_a_new_start() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::new()
        .root("worker_count = 2")
        .root("saved_state = \"state.json\"")
        .root("automatic_state_save = true")
        .site("web", "a", &backend)
        .start();
    let check = |proxy: &Proxy| expect_maintained(proxy, Some("7"));
    ctl(&proxy, &["cluster", "maintain", "web", "--retry-after", "7"]);
    check(&proxy);
    ctl(&proxy, &["reload"]);
    check(&proxy);
    for worker in proxy.workers() {
        send_signal(worker, Signal::SIGKILL);
    }
    wait::within(Duration::from_secs(15), "other workers", || {
        (proxy.counter("worker.restarts") == 2).then_some(())
    });
    check(&proxy);
    proxy.kill_supervisor();
    check(&proxy);
    proxy.start_again();
    check(&proxy);
    ctl(&proxy, &["workers", "upgrade"]);
    check(&proxy);
    ctl(&proxy, &["upgrade"]);
    check(&proxy);
    proxy.terminate();
    proxy.wait(Duration::from_secs(10));
    proxy.start_again();
    check(&proxy);
    let dump = ctl(&proxy, &["config", "dump"]);
    assert!(dump.contains("mode = \"maintain\"") && dump.contains("maintenance_retry_after = 7"), "{dump}");
    assert_eq!(backend.requests().len(), 0);
    ctl(&proxy, &["reload", "--discard-live"]);
    expect_served(&proxy);
}

#[test]
fn who_watches_is_told_and_backends_are_probed_all_the_same() {
    let backend = Backend::respond(OK);
    let proxy = Config::new()
        .frontend("web", r#"hostname = "a""#)
        .cluster("web", "health_check = { interval = 0.05 }")
        .backend("web", &backend)
        .site("all", "b", &backend)
        .start();
    let events = Events::of(&proxy, &["--topic", "health"]);
    // The watch has begun when it tells something.
    let next = || events.lines.recv_timeout(wait::SOON).unwrap();
    wait::until("the watch", || {
        ctl(&proxy, &["cluster", "maintain", "all"]);
        ctl(&proxy, &["cluster", "ready", "all"]);
        events.lines.recv_timeout(Duration::from_millis(200)).is_ok()
    });
    ctl(&proxy, &["cluster", "maintain", "web"]);
    let event = wait::within(wait::SOON, "the event", || Some(next()).filter(|it| it["cluster"] == "web"));
    assert_eq!(event["event"], "cluster_maintained");
    proxy.logged("cluster web is maintained: it takes nothing");
    let probed = backend.connections();
    wait::until("a probe", || backend.connections() > probed);
    ctl(&proxy, &["cluster", "ready", "web"]);
    let event = wait::within(wait::SOON, "the event", || Some(next()).filter(|it| it["cluster"] == "web"));
    assert_eq!(event["event"], "cluster_ready");
    assert_eq!(proxy.ctl_json("backends")["clusters"], serde_json::json!({}));
}

#[test]
fn connections_that_would_be_passed_on_are_refused_and_those_that_are_go_on() {
    let backend = Backend::script(|conn| conn.echo());
    let proxy = Config::new().root("worker_count = 2").passing_on("db", &backend).start();
    let mut open: Vec<Client> = (0..ASKED).map(|_| proxy.client()).collect();
    for client in &mut open {
        client.send("x");
        assert_eq!(client.bytes(1), b"x");
    }
    ctl(&proxy, &["cluster", "maintain", "db", "--retry-after", "60"]);
    let taken = backend.connections();
    for _ in 0..ASKED {
        // It may be so quick that it looks like a refusal.
        let Ok(mut client) = Client::try_connect(proxy.address()) else { continue };
        assert_eq!(client.rest(), (Vec::new(), End::Reset), "not the end of something");
    }
    assert_eq!(backend.connections(), taken);
    for client in &mut open {
        client.send(GET);
        assert_eq!(client.bytes(GET.len()), GET.as_bytes());
    }
    ctl(&proxy, &["cluster", "ready", "db"]);
    let mut client = proxy.client();
    client.send("x");
    assert_eq!(client.bytes(1), b"x");
}
