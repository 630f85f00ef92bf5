//! What is by hand stays by hand: a reload brings what the file says and leaves the rest alone, whoever has died or been replaced
//! meanwhile.

use std::{fs, process::Output, time::Duration};

use crate::harness::{Backend, Config, Issued, OK, Pki, Proxy, ask, wait};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[track_caller]
fn done(proxy: &Proxy, arguments: &[&str]) -> String {
    let output = proxy.ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

#[track_caller]
fn add(proxy: &Proxy, id: &str) {
    done(proxy, &["backend", "add", "all", "127.0.0.1:9", "--id", id, "--backup"]);
}

/// The names of the backends, without that which takes the requests.
fn backends(proxy: &Proxy) -> Vec<String> {
    let state = proxy.ctl_json("state");
    let backends = state["clusters"]["all"]["backends"].as_array().unwrap().iter();
    let names = backends.map(|it| it["id"].as_str().unwrap().to_owned());
    names.filter(|it| !it.contains("127.0.0.1")).collect()
}

fn by_hand(proxy: &Proxy) -> u64 {
    proxy.ctl_json("status")["by_hand"].as_u64().unwrap()
}

/// Puts lines into the file behind the address of the listener, and another backend.
fn change_file(proxy: &Proxy, line: &str, id: &str) {
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    let backend =
        format!("backends = [\n{{ address = \"127.0.0.1:9\", backend_id = \"{id}\", backup = true }},");
    let text = text.replacen("protocol = \"http\"\n", &format!("protocol = \"http\"\n{line}\n"), 1);
    fs::write(&file, text.replacen("backends = [", &backend, 1)).unwrap();
}

/// Adds a backend by hand, removes one of the file, and patches a listener.
fn touch(proxy: &Proxy) {
    add(proxy, "mine");
    done(proxy, &["backend", "remove", "all", "from-file"]);
    done(proxy, &["listener", "patch", &proxy.address().to_string(), "front_timeout=77"]);
}

fn listener(proxy: &Proxy) -> (u64, u64) {
    let state = proxy.ctl_json("state");
    let timeouts = &state["listeners"][proxy.address().to_string()]["timeouts"];
    (timeouts["front_ms"].as_u64().unwrap(), timeouts["back_ms"].as_u64().unwrap())
}

fn with_backend_of_file(backend: &Backend) -> Config {
    Config::to(backend).backend_at("all", "127.0.0.1:9", "backend_id = \"from-file\", backup = true")
}

#[test]
fn a_reload_leaves_alone_what_is_by_hand_unless_that_is_to_be_dropped() {
    let backend = Backend::respond(OK);
    let proxy = with_backend_of_file(&backend).root("worker_count = 2").start();
    assert_eq!(by_hand(&proxy), 0);
    touch(&proxy);
    assert_eq!(by_hand(&proxy), 3);
    let diff = done(&proxy, &["config", "diff"]);
    for line in
        ["stays, by hand: + backend mine", "stays, by hand: - backend from-file", "front_timeout 60 → 77"]
    {
        assert!(diff.contains(line), "{diff}");
    }
    assert!(diff.contains("nothing to change"), "{diff}");
    change_file(&proxy, "front_timeout = 50\nback_timeout = 20", "new");
    let diff = done(&proxy, &["reload", "--dry-run"]);
    assert!(diff.contains("back_timeout 30 → 20") && !diff.contains("front_timeout 77"), "{diff}");
    let words = done(&proxy, &["reload"]);
    assert!(words.contains("3 entries stay by hand"), "{words}");
    assert_eq!(backends(&proxy), ["new", "mine"]);
    assert_eq!(listener(&proxy), (77_000, 20_000));
    ask(&mut proxy.client());
    // Whose what is, is part of what is dumped and saved.
    let dump = done(&proxy, &["config", "dump"]);
    for line in ["# by hand: + backend mine", "# by hand: - backend from-file", "front_timeout 50 → 77"] {
        assert!(dump.contains(line), "{dump}");
    }
    assert!(proxy.ctl_json("state")["by_hand"]["clusters"]["all"]["backends"]["mine"].is_string());
    // What is by hand is changed by hand.
    done(&proxy, &["backend", "patch", "all", "mine", "weight=3"]);
    done(&proxy, &["listener", "patch", &proxy.address().to_string(), "front_timeout=50"]);
    assert_eq!(by_hand(&proxy), 2, "what the file says as well is the file's");
    done(&proxy, &["reload", "--discard-live"]);
    assert_eq!(by_hand(&proxy), 0);
    assert_eq!(backends(&proxy), ["new", "from-file"]);
    assert_eq!(listener(&proxy), (50_000, 20_000));
    assert!(done(&proxy, &["reload"]).contains("nothing to change"));
    ask(&mut proxy.client());
}

#[test]
fn what_is_by_hand_outlives_a_killed_supervisor_also_where_the_file_changes_meanwhile() {
    let backend = Backend::respond(OK);
    let mut proxy = with_backend_of_file(&backend).start();
    touch(&proxy);
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(by_hand(&proxy), 3);
    change_file(&proxy, "back_timeout = 20", "second");
    done(&proxy, &["reload"]);
    assert_eq!(
        (backends(&proxy), listener(&proxy)),
        (vec!["second".into(), "mine".into()], (77_000, 20_000))
    );
    // A reload is part of what is written down.
    proxy.kill_supervisor();
    change_file(&proxy, "request_timeout = 9", "third");
    proxy.start_again();
    wait::until("what the file says", || backends(&proxy).contains(&"third".to_owned()));
    assert_eq!(backends(&proxy), ["third", "second", "mine"]);
    assert_eq!((listener(&proxy), by_hand(&proxy)), ((77_000, 20_000), 3));
    ask(&mut proxy.client());
}

#[test]
fn what_is_by_hand_outlives_an_upgrade_and_a_stop_with_a_saved_state() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::respond(OK);
    let mut proxy = with_backend_of_file(&backend)
        .root(&format!("saved_state = \"{}\"", folder.path().join("state.json").display()))
        .root("automatic_state_save = true")
        .start();
    touch(&proxy);
    done(&proxy, &["upgrade"]);
    assert_eq!(by_hand(&proxy), 3);
    change_file(&proxy, "back_timeout = 20", "second");
    done(&proxy, &["reload"]);
    assert_eq!(backends(&proxy), ["second", "mine"]);
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    proxy.start_again();
    assert_eq!((by_hand(&proxy), listener(&proxy)), (3, (77_000, 20_000)));
    // Also where the file changes while nobody runs.
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    change_file(&proxy, "request_timeout = 9", "third");
    proxy.start_again();
    assert_eq!((by_hand(&proxy), listener(&proxy)), (3, (77_000, 20_000)));
    assert_eq!(backends(&proxy), ["third", "second", "mine"]);
    ask(&mut proxy.client());
    // A state that is loaded is by hand as far as it is not as the file says.
    let saved = folder.path().join("another.json");
    let saved = saved.to_str().unwrap();
    done(&proxy, &["state", "save", saved]);
    done(&proxy, &["reload", "--discard-live"]);
    assert_eq!(backends(&proxy), ["third", "second", "from-file"]);
    done(&proxy, &["state", "load", saved]);
    assert_eq!(by_hand(&proxy), 3);
    assert!(done(&proxy, &["reload"]).contains("nothing to change"));
    assert_eq!(backends(&proxy), ["third", "second", "mine"]);
}

#[test]
fn certificates_that_come_and_go_by_hand_stay_so_also_when_their_files_are_renewed() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [first, gone, mine, renewed, gone_renewed] =
        [&["a"], &["gone.test"], &["mine.test"], &["mine.test"], &["gone.test"]]
            .map(|names| pki.issue(names));
    let mut proxy = Config::https_to(&backend, &first)
        .certificate(&gone, "")
        .root("certificate_watch_interval = 0.1")
        .start();
    let address = proxy.address().to_string();
    let paths =
        |issued: &Issued| [&issued.certificate, &issued.key].map(|path| path.to_str().unwrap().to_owned());
    let [certificate, key] = paths(&mine);
    done(&proxy, &["certificate", "add", &address, "--certificate", &certificate, "--key", &key]);
    done(&proxy, &["certificate", "remove", &address, &gone.fingerprint()]);
    let served = |name: &str| pki.caller().to(name).connect(proxy.address()).served();
    assert_eq!((served("mine.test"), by_hand(&proxy)), (mine.fingerprint(), 2));
    done(&proxy, &["reload"]);
    assert_eq!(served("mine.test"), mine.fingerprint());
    let is_there = |issued: &Issued| {
        let certificates = &proxy.ctl_json("state")["certificates"][&address];
        !certificates[issued.fingerprint()].is_null()
    };
    assert!(!is_there(&gone), "it stays removed");
    let [new_certificate, new_key] = paths(&renewed);
    let fingerprint = renewed.fingerprint();
    fs::rename(new_key, key).unwrap();
    fs::rename(new_certificate, certificate).unwrap();
    wait::until("the renewed one", || served("mine.test") == fingerprint);
    done(&proxy, &["reload"]);
    assert_eq!((served("mine.test"), by_hand(&proxy)), (fingerprint, 2));
    // What was removed stays so when its file is renewed, whoever reads the file then.
    let ([new_certificate, new_key], [certificate, key]) = (paths(&gone_renewed), paths(&gone));
    let fingerprint = gone_renewed.fingerprint();
    fs::rename(new_key, key).unwrap();
    fs::rename(new_certificate, certificate).unwrap();
    done(&proxy, &["reload"]);
    let is_served = |name: &str| pki.caller().to(name).expecting("a").connect(proxy.address()).served();
    assert_eq!((is_served("gone.test"), by_hand(&proxy)), (first.fingerprint(), 2));
    proxy.kill_supervisor();
    proxy.start_again();
    done(&proxy, &["reload"]);
    let certificates = proxy.ctl_json("state")["certificates"][&address].clone();
    assert!(certificates[&fingerprint].is_null() && by_hand(&proxy) == 2, "{certificates}");
    done(&proxy, &["reload", "--discard-live"]);
    let certificates = proxy.ctl_json("state")["certificates"][&address].clone();
    let is_there = |fingerprint: String| !certificates[fingerprint].is_null();
    assert!(is_there(fingerprint) && is_there(first.fingerprint()) && !is_there(renewed.fingerprint()));
}

#[test]
fn certificates_by_hand_stay_so_when_their_files_are_renewed_while_nobody_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [first, gone, mine] = [&["a"], &["gone.test"], &["mine.test"]].map(|names| pki.issue(names));
    let mut proxy = Config::https_to(&backend, &first)
        .certificate(&gone, "")
        .root(&format!("saved_state = \"{}\"", folder.path().join("state.json").display()))
        .root("automatic_state_save = true")
        .start();
    let address = proxy.address().to_string();
    let [certificate, key] = [&mine.certificate, &mine.key].map(|path| path.to_str().unwrap());
    done(&proxy, &["certificate", "add", &address, "--certificate", certificate, "--key", key, "--default"]);
    done(&proxy, &["certificate", "remove", &address, &gone.fingerprint()]);
    // The one that was the default is not any more, where the file does not say so.
    let there = |proxy: &Proxy| proxy.ctl_json("state")["certificates"][&address].clone();
    let count = by_hand(&proxy);
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    let renewed = [&first, &gone, &mine].map(|old| {
        let new = pki.issue(&[match old.fingerprint() {
            it if it == first.fingerprint() => "a",
            it if it == gone.fingerprint() => "gone.test",
            _ => "mine.test",
        }]);
        let fingerprint = new.fingerprint();
        fs::rename(&new.certificate, &old.certificate).unwrap();
        fs::rename(&new.key, &old.key).unwrap();
        fingerprint
    });
    proxy.start_again();
    for _ in 0..2 {
        let certificates = there(&proxy);
        let [first, gone, mine] = renewed.each_ref().map(|it| &certificates[it]);
        assert!(gone.is_null() && certificates.as_object().unwrap().len() == 2, "{certificates}");
        assert_eq!((&first["default"], &mine["default"]), (&false.into(), &true.into()), "{certificates}");
        assert_eq!(by_hand(&proxy), count);
        done(&proxy, &["reload"]);
    }
}

#[test]
fn a_file_that_does_not_go_with_what_is_by_hand_is_refused_and_says_so() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).another_listener().start();
    let second = proxy.address_of(1).to_string();
    done(&proxy, &["frontend", "add", "all", &second, "mine.test"]);
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    let gone = format!("[[listeners]]\naddress = \"{second}\"\nprotocol = \"http\"\n");
    assert!(text.contains(&gone));
    fs::write(&file, text.replace(&gone, "")).unwrap();
    let refused = proxy.ctl(&["reload"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains(&second), "{}", said(&refused));
    ask(&mut proxy.client());
    let words = done(&proxy, &["reload", "--discard-live"]);
    assert!(words.contains(&format!("- listener {second}")), "{words}");
}
