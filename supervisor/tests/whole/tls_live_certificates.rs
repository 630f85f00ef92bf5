//! Certificates come, change and go while kakehi serves, by verbs and by files that change.

use std::{
    fs::File,
    io::Write as _,
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::harness::{Backend, Caller, Config, Issued, OK, Pki, Proxy, ask, ctl, kakehictl, wait};

/// Runs a verb of `certificate` with a pair of files.
fn with_files(proxy: &Proxy, verb: &[&str], certificate: &Issued, key: &Issued) -> Output {
    let (certificate, key) = (certificate.certificate.to_str().unwrap(), key.key.to_str().unwrap());
    let arguments = [&["certificate"], verb, &["--certificate", certificate, "--key", key]].concat();
    proxy.ctl(&arguments)
}

fn list(proxy: &Proxy) -> Vec<serde_json::Value> {
    let text = ctl(proxy, &["certificate", "list", "--json"]);
    serde_json::from_str::<serde_json::Value>(&text).unwrap().as_array().unwrap().clone()
}

/// Connects anew all the time; every connection must be served.
struct Knocking {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Knocking {
    fn on(proxy: &Proxy, caller: &Caller) -> Knocking {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..2)
            .map(|_| {
                let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
                let (caller, address) = (caller.clone(), proxy.address());
                thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        ask(&mut caller.connect(address));
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        Knocking { stop, served, threads }
    }

    fn goes_on(&self) {
        let before = self.served.load(Ordering::SeqCst);
        wait::until("connections go on", || self.served.load(Ordering::SeqCst) > before + 4);
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("every connection was served");
        }
    }
}

#[test]
fn certificates_are_added_replaced_and_removed_under_traffic() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [first, new, extra] = [pki.issue(&["a"]), pki.issue(&["a"]), pki.issue(&["extra.test"])];
    let proxy = Config::https_to(&backend, &first).root("worker_count = 2").start();
    let address = proxy.address().to_string();
    let caller = pki.caller();
    let knocking = Knocking::on(&proxy, &caller);
    let mut open = caller.connect(proxy.address());
    ask(&mut open);

    let output = with_files(&proxy, &["add", &address], &extra, &extra);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(caller.to("extra.test").connect(proxy.address()).served(), extra.fingerprint());
    knocking.goes_on();

    let output = with_files(&proxy, &["replace", &address, &first.fingerprint(), "--default"], &new, &new);
    assert!(output.status.success(), "{output:?}");
    for _ in 0..4 {
        assert_eq!(caller.connect(proxy.address()).served(), new.fingerprint());
    }
    // What was made with the one before goes on.
    ask(&mut open);
    knocking.goes_on();

    let listed = list(&proxy);
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().any(|it| it["fingerprint"] == new.fingerprint() && it["names"][0] == "a"));
    let shown = ctl(&proxy, &["certificate", "show", &extra.fingerprint()]);
    assert!(shown.contains("extra.test") && shown.contains("Kakehi Test"), "{shown}");

    ctl(&proxy, &["certificate", "remove", &address, &extra.fingerprint()]);
    let mut client = caller.to("extra.test").expecting("a").connect(proxy.address());
    assert_eq!(client.served(), new.fingerprint(), "the default one");
    assert_eq!(list(&proxy).len(), 1);
    knocking.end();
}

#[test]
fn what_cannot_be_used_is_refused_and_nothing_changes() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [first, new, other] = [pki.issue(&["a"]), pki.issue(&["a"]), pki.issue(&["b"])];
    let proxy = Config::https_to(&backend, &first).start();
    let address = proxy.address().to_string();
    let before = ctl(&proxy, &["state"]);
    let absent = "0".repeat(64);
    for (output, reason) in [
        (with_files(&proxy, &["add", &address], &new, &other), "key"),
        (with_files(&proxy, &["replace", &address, "a"], &new, &other), "key"),
        (with_files(&proxy, &["add", "127.0.0.1:9"], &new, &new), "127.0.0.1:9"),
        (with_files(&proxy, &["replace", &address, &absent], &new, &new), "certificate"),
        (with_files(&proxy, &["add", &address, "--name", "a b"], &new, &new), "a b"),
        (proxy.ctl(&["certificate", "remove", &address, &absent]), "certificate"),
        (proxy.ctl(&["certificate", "add", &address, "--certificate", "/dev/null"]), ""),
        (
            proxy.ctl(&[
                "certificate",
                "add",
                &address,
                "--certificate",
                new.key.to_str().unwrap(),
                "--key",
                new.key.to_str().unwrap(),
            ]),
            "",
        ),
    ] {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)) && said.contains(reason), "{output:?}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
    }
    assert_eq!(ctl(&proxy, &["state"]), before);
    assert_eq!(pki.caller().connect(proxy.address()).served(), first.fingerprint());
}

#[test]
fn standard_input_may_bring_certificate_and_key() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [first, piped] = [pki.issue(&["a"]), pki.issue(&["piped.test"])];
    let proxy = Config::https_to(&backend, &first).start();
    let (certificate, key) = piped.pem();
    for text in [format!("{certificate}{key}"), format!("{key}{certificate}")] {
        let mut child = kakehictl()
            .arg("-s")
            .arg(proxy.socket())
            .args(["certificate", "add", &proxy.address().to_string(), "--certificate", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(pki.caller().to("piped.test").connect(proxy.address()).served(), piped.fingerprint());
        ctl(&proxy, &["certificate", "remove", &proxy.address().to_string(), "piped.test"]);
    }
    let state = ctl(&proxy, &["state"]);
    assert!(!state.contains("PRIVATE KEY"), "{state}");
}

#[test]
fn files_that_change_are_taken_when_certificate_and_key_fit() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [watched, new] = [pki.issue(&["a"]), pki.issue(&["a"])];
    let old = watched.fingerprint();
    let proxy = Config::https_to(&backend, &watched).root("certificate_watch_interval = 0.05").start();
    let caller = pki.caller();
    let knocking = Knocking::on(&proxy, &caller);
    watched.overwrite(&new, || {
        wait::until("the log says that the files do not fit", || {
            proxy.log().lines().any(|line| line.contains("WARN") && line.contains("certificate"))
        });
        for _ in 0..3 {
            assert_eq!(caller.connect(proxy.address()).served(), old, "the key is not there yet");
            knocking.goes_on();
        }
    });
    wait::until("the new certificate", || caller.connect(proxy.address()).served() == new.fingerprint());
    knocking.end();
    // What is no certificate at all changes nothing either.
    let said = proxy.log().len();
    File::create(&watched.certificate).unwrap().write_all(b"gone").unwrap();
    wait::until("a word about it", || proxy.log().len() > said);
    assert_eq!(caller.connect(proxy.address()).served(), new.fingerprint());
    assert_eq!(list(&proxy)[0]["fingerprint"], new.fingerprint());
}

#[test]
fn files_are_left_alone_where_nobody_is_to_watch() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [watched, new] = [pki.issue(&["a"]), pki.issue(&["a"])];
    let old = watched.fingerprint();
    let proxy = Config::https_to(&backend, &watched)
        .root("certificate_watch = false")
        .root("certificate_watch_interval = 0.05")
        .start();
    watched.overwrite(&new, || {});
    wait::pace(std::time::Duration::from_millis(300));
    assert_eq!(pki.caller().connect(proxy.address()).served(), old);
    // A reload reads them.
    ctl(&proxy, &["reload"]);
    assert_eq!(pki.caller().connect(proxy.address()).served(), new.fingerprint());
}
