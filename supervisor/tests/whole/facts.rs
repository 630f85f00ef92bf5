//! What is found out rather than configured reaches the workers, and nothing else.

use std::{fs, time::Duration};

use crate::harness::{Backend, Config, OK, Pki, Proxy, ask, wait};

/// The whole of a proxy's saved and recorded state, as the files have it.
fn written(proxy: &Proxy) -> [String; 2] {
    ["state.json", "kakehi.sock.state"].map(|name| fs::read_to_string(proxy.folder().join(name)).unwrap())
}

#[test]
fn a_fact_beside_saves_is_never_saved_and_never_a_generation() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"]))
        .root("worker_count = 2")
        .root("ticket_key_rotation = 1")
        .root("saved_state = \"state.json\"")
        .root("automatic_state_save = true")
        .root("log_level = \"debug\"")
        .start();
    let facts = || proxy.log().matches("the ticket keys were renewed").count();
    let generation = || proxy.ctl_json("status")["generation"].as_u64().unwrap();
    let save = || assert!(proxy.ctl(&["state", "save"]).status.success());
    let added = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--backup", "--id", "by-hand"]);
    assert!(added.status.success(), "{added:?}");
    save();
    let (before, state, first, told) = (written(&proxy), proxy.ctl_json("state"), generation(), facts());
    wait::within(Duration::from_secs(20), "facts beside saves", || {
        save();
        (facts() >= told + 4).then_some(())
    });
    assert_eq!(written(&proxy), before);
    assert_eq!((proxy.ctl_json("state"), generation()), (state, first));
    // The next change is the next generation, however many facts there were.
    let added = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--backup", "--id", "later"]);
    assert!(added.status.success(), "{added:?}");
    assert_eq!(generation(), first + 1);
    save();
    let texts = written(&proxy).concat();
    assert!(!texts.contains("ticket_keys\"") && !texts.contains("\"fact"), "{texts}");
    assert!(!proxy.log().contains("does not use"), "{}", proxy.log());
    ask(&mut pki.caller().connect(proxy.address()));
}
