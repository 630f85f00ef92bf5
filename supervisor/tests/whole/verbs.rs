//! Everything that is configured can be listed, added, changed and removed while kakehi serves, and kept.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

use crate::harness::{
    Backend, Client, Config, GET, Load, Need, OK, Proxy, ctl, exchange, free_port, get, kakehictl_of,
    machine, noise, refused, wait,
};

fn on(address: SocketAddr, host: &str, target: &str) -> u16 {
    let mut client = Client::connect(address);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.response().status()
}

#[test]
fn a_whole_configuration_comes_and_goes_by_single_verbs() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let load = Load::on(proxy.address());
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listener = address.to_string();
    let server = backend.address();
    ctl(&proxy, &["listener", "add", &listener, "x_request_id=false", "front_timeout=9"]);
    ctl(&proxy, &["cluster", "add", "shop"]);
    ctl(&proxy, &["frontend", "add", "shop", &listener, "shop.test", "--path", "/x", "--method", "GET"]);
    assert_eq!(on(address, "shop.test", "/x"), 503, "no backend yet");
    ctl(&proxy, &["backend", "add", "shop", &server, "--id", "one"]);
    assert_eq!(on(address, "SHOP.test", "/x"), 200);
    assert_eq!(on(address, "shop.test", "/"), 404);
    assert!(backend.requests().iter().any(|it| it.field("X-Request-Id").is_none()));
    ctl(&proxy, &["listener", "patch", &listener, "x_request_id="]);
    ctl(
        &proxy,
        &[
            "frontend",
            "patch",
            "shop",
            &listener,
            "shop.test",
            "redirect=unauthorized",
            "--path",
            "/x",
            "--method",
            "GET",
        ],
    );
    assert_eq!(on(address, "shop.test", "/x"), 401);
    ctl(
        &proxy,
        &["frontend", "add", "shop", &listener, "*.test", "--path", "/[0-9]+", "--path-type", "regex"],
    );
    assert_eq!(on(address, "b.test", "/7"), 200);
    ctl(&proxy, &["cluster", "patch", "shop", "https_redirect=true"]);
    assert_eq!(on(address, "b.test", "/7"), 301);
    ctl(&proxy, &["cluster", "patch", "shop", "https_redirect="]);
    assert_eq!(on(address, "b.test", "/7"), 200);

    let list = ctl(&proxy, &["frontend", "list", "shop"]);
    assert!(list.contains("*.test") && list.contains("~/[0-9]+") && list.contains("yes"), "{list}");
    assert!(ctl(&proxy, &["backend", "list"]).contains("one"));
    assert!(ctl(&proxy, &["cluster", "list"]).contains("shop"));
    let json: serde_json::Value =
        serde_json::from_str(&ctl(&proxy, &["listener", "list", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);

    ctl(&proxy, &["frontend", "remove", "shop", &listener, "shop.test", "--path", "/x", "--method", "GET"]);
    assert_eq!(on(address, "shop.test", "/x"), 404);
    let mut open = Client::connect(address);
    open.send("GET /7 HTTP/1.1\r\nHost: b.test\r\n\r\n");
    assert_eq!(open.response().status(), 200);
    ctl(&proxy, &["listener", "deactivate", &listener]);
    open.expect_closed();
    wait::until("nobody listens", || Client::try_connect(address).is_err());
    assert!(ctl(&proxy, &["listener", "list"]).contains(&format!("{listener}  no")));
    ctl(&proxy, &["listener", "activate", &listener]);
    assert_eq!(on(address, "b.test", "/7"), 200);
    assert!(refused(&proxy, &["listener", "remove", &listener]).contains("frontend of cluster `shop`"));
    ctl(&proxy, &["cluster", "remove", "shop"]);
    assert_eq!(on(address, "b.test", "/7"), 404);
    ctl(&proxy, &["listener", "remove", &listener]);
    wait::until("nobody listens", || Client::try_connect(address).is_err());
    load.goes_on();
    load.end();
    // The file says what is running again.
    assert!(ctl(&proxy, &["config", "diff"]).contains("nothing"), "{}", ctl(&proxy, &["config", "diff"]));
}

#[test]
fn what_is_wrong_is_refused_with_a_reason_and_changes_nothing() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let listener = proxy.address().to_string();
    let deep = format!("/{}", "(".repeat(300));
    for (arguments, reason) in [
        (&["listener", "add", &listener][..], "there is a listener"),
        (&["listener", "add", "127.0.0.1:0"], "address"),
        (&["listener", "add", "192.0.2.1:9"], "not an address of this host"),
        (&["listener", "patch", &listener, "front_timeot=3"], "front_timeout"),
        (&["listener", "patch", &listener, "max_head_size=1"], "max_head_size"),
        (&["listener", "patch", "127.0.0.1:9", "via=false"], "no listener"),
        (&["cluster", "add", "all"], "there is a cluster"),
        (&["cluster", "add", ""], "name"),
        (&["cluster", "patch", "all", "frontends=[]"], "verbs of its own"),
        (&["cluster", "remove", "nix"], "no cluster `nix`"),
        (&["frontend", "add", "nix", &listener, "a"], "no cluster `nix`"),
        (&["frontend", "add", "all", "127.0.0.1:9", "a"], "127.0.0.1:9"),
        (&["frontend", "add", "all", &listener, "a b"], "spaces"),
        (&["frontend", "add", "all", &listener, "a..b"], "empty label"),
        (&["frontend", "add", "all", &listener, "/[/.test"], "regular expression"),
        (&["frontend", "add", "all", &listener, "a", "--path", &deep, "--path-type", "regex"], "expression"),
        (&["frontend", "add", "all", &listener, "a", "--method", "G T"], "method"),
        (&["frontend", "remove", "all", &listener, "nowhere"], "no such frontend"),
        (&["backend", "add", "all", "unix:relative"], "unix"),
        (&["backend", "remove", "all", "nix"], "no backend `nix`"),
    ] {
        let said = refused(&proxy, arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    // The same rule for two clusters.
    ctl(&proxy, &["cluster", "add", "other"]);
    let said = refused(&proxy, &["frontend", "add", "other", &listener, "*"]);
    assert!(said.contains("worker 0") && said.contains("nothing was changed"), "{said}");
    get(&proxy, "a", "/").expect(200, "ok");
}

#[test]
fn a_dump_is_a_file_that_loads_and_means_the_same() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).listener("front_timeout = 1.5").root("max_connections = 77").start();
    let listener = proxy.address().to_string();
    ctl(&proxy, &["cluster", "add", "more"]);
    ctl(
        &proxy,
        &["frontend", "add", "more", &listener, "more.test", "--path", "/\"quoted\"", "--path-type", "regex"],
    );
    ctl(&proxy, &["backend", "add", "more", &backend.address(), "--weight", "3", "--backup"]);
    let dump = ctl(&proxy, &["config", "dump"]);
    assert!(dump.contains("front_timeout = 1.5") && dump.contains("max_connections = 77"), "{dump}");
    assert!(dump.contains("# by hand: + cluster more"), "{dump}");
    assert!(ctl(&proxy, &["config", "diff"]).contains("stays, by hand: + cluster more"));
    fs::write(proxy.folder().join("kakehi.toml"), dump).unwrap();
    let said = ctl(&proxy, &["config", "diff"]);
    assert!(said.contains("nothing") && !said.contains("by hand"), "{said}");
}

#[test]
fn a_state_is_saved_compared_and_loaded() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let listener = proxy.address().to_string();
    let file = proxy.folder().join("state.json");
    let path = file.to_str().unwrap();
    ctl(&proxy, &["state", "save", path]);
    assert!(ctl(&proxy, &["state", "diff", path]).contains("nothing"));
    ctl(&proxy, &["frontend", "add", "all", &listener, "b.test", "--deny"]);
    ctl(&proxy, &["backend", "add", "all", "127.0.0.1:9", "--id", "nine"]);
    let said = ctl(&proxy, &["state", "diff", path]);
    assert!(said.contains("- frontend b.test") && said.contains("- backend nine"), "{said}");
    assert_eq!(get(&proxy, "b.test", "/").status(), 401);
    ctl(&proxy, &["state", "load", path]);
    assert_eq!(get(&proxy, "b.test", "/").status(), 200);
    assert!(ctl(&proxy, &["state", "diff", path]).contains("nothing"));

    let whole = fs::read_to_string(&file).unwrap();
    for (text, reason) in [
        (whole.replace("\"version\":1", "\"version\":2"), "version 2"),
        (whole[..whole.len() / 2].to_owned(), "not a state"),
        (whole.replace("\"hostname\":\"*\"", "\"hostname\":\"a b\""), "spaces"),
    ] {
        fs::write(&file, text).unwrap();
        let said = refused(&proxy, &["state", "load", path]);
        assert!(said.contains(reason), "{said}");
    }
    assert!(refused(&proxy, &["state", "load", "/nowhere/state"]).contains("/nowhere/state"));
    assert!(refused(&proxy, &["state", "save", "/nowhere/state"]).contains("/nowhere/state"));
    assert!(refused(&proxy, &["state", "save"]).contains("saved_state"));
}

#[test]
fn a_saved_state_outlives_a_stop_and_a_changed_file_what_is_by_hand() {
    let backend = Backend::respond(OK);
    let mut proxy =
        Config::to(&backend).root("saved_state = \"state.json\"").root("automatic_state_save = true").start();
    let saved = proxy.folder().join("state.json");
    assert!(!saved.exists(), "nothing has changed yet");
    let listener = proxy.address().to_string();
    for n in 0..20 {
        ctl(&proxy, &["frontend", "add", "all", &listener, &format!("n{n}.test"), "--deny"]);
    }
    proxy.terminate();
    proxy.wait(std::time::Duration::from_secs(10));
    proxy.start_again();
    wait::until("it serves", || Client::try_connect(proxy.address()).is_ok());
    assert_eq!(get(&proxy, "n19.test", "/").status(), 401);
    assert_eq!(proxy.ctl_json("status")["frontends"], 21);

    proxy.terminate();
    proxy.wait(std::time::Duration::from_secs(10));
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text + "[clusters.more]\nprotocol = \"http\"\n").unwrap();
    proxy.start_again();
    wait::until("it serves", || Client::try_connect(proxy.address()).is_ok());
    assert_eq!(get(&proxy, "n19.test", "/").status(), 401, "it is by hand");
    let status = proxy.ctl_json("status");
    assert!(status["clusters"] == 2 && status["by_hand"] == 20, "the file has changed, too: {status}");

    // One that is not understood is no reason to serve something else.
    proxy.terminate();
    proxy.wait(std::time::Duration::from_secs(10));
    fs::write(&saved, "nonsense").unwrap();
    let output = Command::new(crate::harness::program()).arg("start").arg("-c").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("state.json") && said.contains("remove the file"),
        "{said}"
    );
}

/// Frames that are nearly right: bytes changed, cut, repeated, lengths that lie.
#[test]
fn requests_that_are_nearly_right_hurt_nobody() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let listener = proxy.address().to_string();
    let seeds = [
        r#""status""#.to_owned(),
        r#""state""#.to_owned(),
        r#"{"reload":{"dry_run":true}}"#.to_owned(),
        r#""topology""#.to_owned(),
        r#"{"pin":{"worker":7,"core":70}}"#.to_owned(),
        r#"{"scale":{"count":0}}"#.to_owned(),
        format!(
            r#"{{"apply":{{"changes":[{{"set_frontend":{{"cluster":"all","frontend":{{"address":"{listener}","hostname":"[::1]","path":{{"type":"REGEX","value":"/(a|b)*"}},"method":"GET","deny":true}}}}}}]}}}}"#
        ),
        r#"{"apply":{"changes":[{"set_backend":{"cluster":"all","backend":{"id":"x","address":"unix:/x","weight":0,"backup":true}}}]}}"#.to_owned(),
        r#"{"apply":{"changes":[{"set_cluster":{"name":"x","cluster":{"https_redirect":true,"https_redirect_port":1,"frontends":[],"backends":[]}}}]}}"#.to_owned(),
        r#"{"load_state":{"dry_run":true,"state":{"version":1,"settings":{},"listeners":{},"clusters":{}}}}"#.to_owned(),
    ];
    let random = noise(1 << 20);
    let mut random =
        random.chunks_exact(4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]) as usize);
    let mut next = move || random.next().unwrap();
    for round in 0..1_500 {
        let body = &seeds[round % seeds.len()];
        let mut text = format!(r#"{{"version":1,"id":{round},"body":{body}}}"#).into_bytes();
        for _ in 0..next() % 4 {
            let at = next() % text.len();
            match next() % 5 {
                0 => text[at] = next() as u8,
                1 => drop(text.remove(at)),
                2 => text.truncate(at.max(1)),
                3 => text.insert(at, b"{}[]\",:0-"[next() % 9]),
                _ => text.extend_from_within(at..),
            }
        }
        let length = match next() % 20 {
            0 => next() as u32,
            1 => u32::MAX,
            _ => text.len() as u32,
        };
        let mut stream = std::os::unix::net::UnixStream::connect(proxy.socket()).unwrap();
        // Whatever becomes of it: an answer, a refusal, or the end.
        let _ = stream.write_all(&[&length.to_le_bytes()[..], &text].concat());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 64]);
    }
    get(&proxy, "a", "/").expect(200, "ok");
    let status = proxy.ctl_json("status");
    assert_eq!(status["restarts"], 0);
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

#[test]
fn other_users_may_use_the_command_socket_if_they_are_named() {
    let backend = Backend::respond(OK);
    let closed = Config::to(&backend).start();
    let open = Config::to(&backend).root("command_allowed_uids = [65534]").start();
    let mode = |proxy: &Proxy| fs::metadata(proxy.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&closed), mode(&open)), (0o600, 0o666));
    if !machine::has(Need::Root) || !machine::has(Need::Program("setpriv")) {
        return;
    }
    let as_user = |uid, proxy: &Proxy, verb: &[&str]| {
        let output = kakehictl_of(uid, proxy).args(verb).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = as_user(65534, &open, &["status"]);
    assert_eq!(code, Some(0), "{said}");
    // They say where root writes, and as whom workers run.
    for key in ["saved_state=/tmp/kakehi-of-a-guest", "user=root", "log_level=debug"] {
        let (code, said) = as_user(65534, &open, &["settings", "patch", key]);
        assert!(code == Some(1) && said.contains("only root and the user"), "{key}: {code:?} {said}");
    }
    let (code, said) = as_user(65533, &open, &["status"]);
    assert!(code == Some(1) && said.contains("command_allowed_uids"), "{said}");
    let (code, said) = as_user(65534, &closed, &["status"]);
    assert!(code == Some(3) && said.contains("permission"), "{said}");
    exchange(&open, GET).expect(200, "ok");
}
