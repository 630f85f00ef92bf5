//! What the operator says of backends: drained, maintained, ready again; with the real programs and two workers.

use std::{process::Output, time::Duration};

use serde_json::Value;

use crate::{
    harness::{Backend, Client, Config, Message, Proxy, ask, wait},
    health::{Farm, QUICK, answering, asked, check, shown, wait_for_answering, wait_for_verdict},
};

#[track_caller]
fn done(output: &Output) -> String {
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[track_caller]
fn say(proxy: &Proxy, verb: &str, id: &str) -> String {
    done(&proxy.ctl(&["backend", verb, "web", id]))
}

fn session(response: &Message) -> String {
    let line = response.all("Set-Cookie").into_iter().find(|it| it.starts_with("SOZUBALANCEID=")).unwrap();
    line.split(';').next().unwrap().to_owned()
}

#[test]
fn a_drained_backend_keeps_its_sessions_and_a_maintained_one_takes_nothing() {
    let farm = Farm::new(3);
    let proxy = farm.config(&["sticky_session = true"]).start();
    let mut sessions = vec![None; 3];
    wait::until("a session with each", || {
        let response = asked(&proxy, "");
        let number: usize = response.text().parse().unwrap();
        sessions[number].get_or_insert_with(|| session(&response));
        sessions.iter().all(Option::is_some)
    });
    let with = |number: usize| asked(&proxy, &format!("Cookie: {}\r\n", sessions[number].as_ref().unwrap()));
    let words = say(&proxy, "drain", "b0");
    assert!(words.contains("mode \"ready\" → \"drain\""), "{words}");
    say(&proxy, "maintain", "b1");
    for _ in 0..3 {
        assert_eq!(answering(&proxy), [2]);
        assert_eq!(with(0).text(), "0", "its session");
        let moved = with(1);
        assert!(moved.text() == "2" && session(&moved) == *sessions[2].as_ref().unwrap());
    }
    let b0 = shown(&proxy, "web", "b0");
    assert!(b0["operator"]["mode"] == "drain" && b0["usable"] == false, "{b0}");
    assert!(b0["operator"]["since_ms"].as_u64().is_some_and(|it| it > 1_600_000_000_000), "{b0}");
    // Not even when nothing else is left.
    say(&proxy, "drain", "b2");
    for _ in 0..8 {
        asked(&proxy, "").expect_answer(503, "no_backend");
        with(1).expect_answer(503, "no_backend");
    }
    assert_eq!(with(0).text(), "0");
    proxy.logged("cluster web has no backend that can be used: requests are answered with 503");
    for id in ["b0", "b1", "b2"] {
        say(&proxy, "ready", id);
    }
    assert_eq!(answering(&proxy), [0, 1, 2]);
    assert_eq!(proxy.ctl_json("status")["by_hand"], 0, "it is as the file says again");
}

#[test]
fn what_the_operator_says_is_kept_by_reloads_deaths_upgrades_and_a_new_start() {
    let farm = Farm::new(2);
    let mut proxy =
        farm.config(&[]).root("saved_state = \"state.json\"").root("automatic_state_save = true").start();
    say(&proxy, "drain", "b0");
    assert_eq!(answering(&proxy), [1]);
    let reloaded = done(&proxy.ctl(&["reload"]));
    assert!(reloaded.contains("by hand"), "{reloaded}");
    assert_eq!(answering(&proxy), [1]);
    for worker in proxy.workers() {
        crate::harness::send_signal(worker, nix::sys::signal::Signal::SIGKILL);
    }
    wait::within(Duration::from_secs(15), "other workers", || {
        (proxy.counter("worker.restarts") == 2).then_some(())
    });
    assert_eq!(answering(&proxy), [1]);
    proxy.kill_supervisor();
    proxy.start_again();
    done(&proxy.ctl(&["workers", "upgrade"]));
    assert_eq!(answering(&proxy), [1]);
    proxy.terminate();
    proxy.wait(Duration::from_secs(10));
    proxy.start_again();
    assert_eq!(answering(&proxy), [1]);
    let shows = done(&proxy.ctl(&["config", "dump"]));
    assert!(shows.contains("mode = \"drain\""), "{shows}");
    let b0 = shown(&proxy, "web", "b0");
    assert_eq!((&b0["operator"]["mode"], &b0["operator"]["since_ms"]), (&"drain".into(), &Value::Null));
    done(&proxy.ctl(&["reload", "--discard-live"]));
    assert_eq!(answering(&proxy), [0, 1]);
    assert!(farm.requests(0) > 0);
}

#[test]
fn a_drained_backend_is_told_to_be_empty_when_it_is_and_not_before() {
    let (slow, go) = Backend::slow();
    let other = Backend::respond(crate::harness::OK);
    let proxy = Config::new()
        .root("worker_count = 2")
        .frontend("web", "hostname = \"*\"")
        .backend_with("web", &slow, "backend_id = \"b0\"")
        .backend_with("web", &other, "backend_id = \"b1\", backup = true")
        .start();
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    slow.wait_for_requests(1);
    say(&proxy, "drain", "b0");
    let b0 = shown(&proxy, "web", "b0");
    assert!(b0["in_flight"] == 1 && b0["drained"] == false, "{b0}");
    // It is looked every second; what has begun goes on.
    let mut looks = 0;
    wait::until("some looks", || {
        ask(&mut proxy.client());
        wait::pace(Duration::from_millis(500));
        looks += 1;
        looks == 5
    });
    assert!(!proxy.log().contains("is drained"), "{}", proxy.log());
    go.send(()).unwrap();
    busy.response().expect(200, "ok");
    proxy.logged("backend b0 of cluster web is drained: nothing is in flight any more");
    let b0 = shown(&proxy, "web", "b0");
    assert!(b0["in_flight"] == 0 && b0["drained"] == true, "{b0}");
    let text = done(&proxy.ctl(&["backends", "web"]));
    assert!(text.contains("drain 3s, drained") || text.contains(", drained"), "{text}");
    assert_eq!(proxy.ctl(&["backends", "nobody"]).status.code(), Some(1));
    let share = |id: &str| shown(&proxy, "web", id)["share_percent"].as_f64().unwrap();
    assert!((share("b0") + share("b1") - 100.0).abs() < 0.01);
    assert!(share("b1") > share("b0"));
}

#[test]
fn three_verdicts_do_not_overwrite_each_other() {
    let mut farm = Farm::new(2);
    let proxy = farm.config(&[&check(QUICK)]).start();
    // The operator's over that of probes, and back.
    say(&proxy, "maintain", "b0");
    farm.answers(0, 500);
    let b0 = wait_for_verdict(&proxy, "web", "b0", false);
    assert_eq!((&b0["operator"]["mode"], &b0["traffic"]["up"]), (&"maintain".into(), &true.into()));
    say(&proxy, "ready", "b0");
    assert_eq!(answering(&proxy), [1], "probes still call it dead");
    farm.answers(0, 200);
    wait_for_verdict(&proxy, "web", "b0", true);
    wait_for_answering(&proxy, &[0, 1]);
    // That of traffic, beside a ready operator.
    drop(farm.backends.remove(1));
    let b1 = wait::within(wait::SOON, "traffic that fails", || {
        asked(&proxy, "");
        let b1 = shown(&proxy, "web", "b1");
        (b1["traffic"]["up"] == false).then_some(b1)
    });
    assert_eq!(b1["operator"]["mode"], "ready");
    let reason = b1["traffic"]["reason"].as_str().unwrap();
    assert!(reason.contains("connection attempts in a row failed"), "{b1}");
}

#[test]
fn passed_on_connections_obey_operator_and_probes() {
    let echo = |word: &'static str| {
        Backend::script(move |conn| {
            // A probe sends nothing.
            if conn.bytes(1).is_ok() {
                conn.send(word);
            }
        })
    };
    let (one, two) = (echo("one"), echo("two"));
    let well = Farm::new(1);
    let port = well.backends[0].socket_address().port();
    let keys = format!("{QUICK}, port = {port}");
    let proxy = Config::new()
        .root("worker_count = 2")
        .listener("protocol = \"tcp\"")
        .cluster("web", "protocol = \"tcp\"")
        .cluster("web", &check(&keys))
        .cluster("web", "fail_open = false")
        .frontend("web", "")
        .backend_with("web", &one, "backend_id = \"b0\"")
        .backend_with("web", &two, "backend_id = \"b1\"")
        .start();
    let answers = || -> Vec<String> {
        let of = |_| {
            // Where there is no backend, the connection may end before it is seen.
            let Ok(mut client) = Client::try_connect(proxy.address()) else { return String::new() };
            client.send("x");
            String::from_utf8(client.rest().0).unwrap()
        };
        let mut all: Vec<String> = (0..16).map(of).collect();
        all.sort();
        all.dedup();
        all
    };
    assert_eq!(answers(), ["one", "two"]);
    say(&proxy, "drain", "b0");
    assert_eq!(answers(), ["two"]);
    well.answers(0, 500);
    wait_for_verdict(&proxy, "web", "b1", false);
    wait::until("nobody", || answers() == [""]);
    well.answers(0, 200);
    wait_for_verdict(&proxy, "web", "b1", true);
    wait::until("the other one", || answers() == ["two"]);
}
