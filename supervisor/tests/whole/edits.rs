//! Edits by several at once: none is lost, none undoes what another did, and what is there is not replaced by accident.

use std::{process::Output, thread};

use crate::harness::{Backend, Config, OK, Pki, Proxy, kakehictl, wait};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    said(output)
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    assert!(said(output).contains(why), "{}", said(output));
}

fn cluster(proxy: &Proxy) -> serde_json::Value {
    proxy.ctl_json("state")["clusters"]["all"].clone()
}

#[test]
fn of_many_who_edit_at_once_nobody_loses_what_was_acknowledged() {
    const EACH: usize = 20;
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let address = proxy.address().to_string();
    kakehictl();
    thread::scope(|scope| {
        for writer in 0..4 {
            let proxy = &proxy;
            scope.spawn(move || {
                for number in 0..EACH {
                    let id = format!("b{writer}-{number}");
                    done(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", &id, "--backup"]));
                }
            });
        }
        // Beside them somebody patches the cluster and the listener, over and over.
        let patch = |noun: &'static str, name: &str, key: &'static str| {
            let (proxy, name) = (&proxy, name.to_owned());
            scope.spawn(move || {
                for value in ["true", "false"].into_iter().cycle().take(EACH) {
                    done(&proxy.ctl(&[noun, "patch", &name, &format!("{key}={value}")]));
                }
            });
        };
        patch("cluster", "all", "https_redirect");
        patch("listener", &address, "via");
        patch("listener", &address, "send_x_real_ip");
    });
    let backends = cluster(&proxy)["backends"].as_array().unwrap().len();
    assert_eq!(backends, 1 + 4 * EACH, "{}", proxy.log());
    let generation = proxy.ctl_json("status")["generation"].as_u64().unwrap();
    assert!(generation >= 4 * EACH as u64 + 30, "{generation}");
}

#[test]
fn what_is_there_is_patched_and_not_replaced_by_adding_it_again() {
    let pki = Pki::new();
    let server = pki.issue(&["a.example"]);
    let backend = Backend::respond(OK);
    let proxy = Config::https_to(&backend, &server).start();
    let address = proxy.address().to_string();
    let ca = pki.ca("client_ca").replace(" = ", "=");
    let frontend = ["all", &address, "b.example"];
    let run = |verb: &[&str], keys: &[&str]| proxy.ctl(&[verb, &frontend, keys].concat());
    done(&run(&["frontend", "add"], &[&ca]));
    // It would open it to everybody.
    refused(&run(&["frontend", "add"], &[]), "`frontend patch` changes it");
    let words = done(&run(&["frontend", "patch"], &["redirect=unauthorized"]));
    assert!(words.contains("redirect") && words.contains("→ \"unauthorized\""), "{words}");
    let frontends = cluster(&proxy)["frontends"].clone();
    let present = frontends.as_array().unwrap().iter().find(|it| it["hostname"] == "b.example").unwrap();
    assert!(present["deny"] == true && !present["tls"].is_null(), "{present}");
    refused(&proxy.ctl(&["cluster", "add", "all"]), "`cluster patch` changes it");
    refused(&proxy.ctl(&["listener", "add", &address]), "`listener patch` changes it");
    done(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--backup"]));
    refused(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9"]), "`backend patch` changes it");
    let words = done(&proxy.ctl(&["backend", "patch", "all", "127.0.0.1:9", "weight=7"]));
    assert!(words.contains("weight 100 → 7"), "{words}");
    proxy.logged("weight 100 → 7");
    // What is so already is no change.
    let generation = || proxy.ctl_json("status")["generation"].to_string();
    let before = generation();
    done(&proxy.ctl(&["backend", "patch", "all", "127.0.0.1:9", "weight=7"]));
    assert_eq!(generation(), before);
    let deep = format!("a{}=1", ".a".repeat(50_000));
    assert_eq!(proxy.ctl(&["cluster", "patch", "all", &deep]).status.code(), Some(2));
    assert_eq!(proxy.ctl(&["--if-generation", "1", "reload"]).status.code(), Some(2));
}

#[test]
fn an_edit_may_ask_that_nobody_has_changed_anything() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    let address = proxy.address().to_string();
    let generation = || proxy.ctl_json("status")["generation"].to_string();
    let before = generation();
    let patch = |generation: &str, value: &str| {
        proxy.ctl(&[
            "--if-generation",
            generation,
            "listener",
            "patch",
            &address,
            &format!("front_timeout={value}"),
        ])
    };
    let words = done(&patch(&before, "70"));
    assert!(words.contains("front_timeout 60 → 70"), "{words}");
    refused(&patch(&before, "80"), "it has been changed");
    let words = done(&patch(&generation(), "80"));
    assert!(words.contains("front_timeout 70 → 80"), "{words}");
    // What no file could say is wrong usage, and changes nothing.
    let wrong = patch(&generation(), "soon");
    assert!(wrong.status.code() == Some(2) && said(&wrong).contains("front_timeout"), "{}", said(&wrong));
}

#[test]
fn saves_by_hand_and_after_changes_do_not_spoil_each_other() {
    const EACH: usize = 25;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root(&format!("saved_state = \"{}\"", file.display()))
        .root("automatic_state_save = true")
        .start();
    kakehictl();
    let saved = || {
        let text = std::fs::read_to_string(&file).ok()?;
        let state: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        state["clusters"]["all"]["backends"].as_array().map(Vec::len)
    };
    thread::scope(|scope| {
        let (proxy, saved) = (&proxy, &saved);
        let changes = scope.spawn(move || {
            for number in 0..EACH {
                done(&proxy.ctl(&[
                    "backend",
                    "add",
                    "all",
                    "127.0.0.1:9",
                    "--id",
                    &number.to_string(),
                    "--backup",
                ]));
            }
        });
        scope.spawn(move || {
            for _ in 0..EACH {
                done(&proxy.ctl(&["state", "save"]));
            }
        });
        while !changes.is_finished() {
            // It is always whole.
            saved();
        }
    });
    wait::until("the last change in the file", || saved() == Some(EACH + 1));
}
