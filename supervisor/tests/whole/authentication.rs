//! Basic authentication: who is let in, and that no digest of a password is shown.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::harness::{
    Backend, Config, Message, Need, OK, Proxy, ctl_says, exchange, kakehictl_of, machine, shown_to_anybody,
};

/// SHA-256 of `secret`, and of `other`.
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

/// `ann:secret`, `bob:other`, `ann:other`, `eve:secret`.
const ANN: &str = "Authorization: Basic YW5uOnNlY3JldA==\r\n";
const BOB: &str = "Authorization: basic Ym9iOm90aGVy\r\n";
const WRONG_PASSWORD: &str = "Authorization: Basic YW5uOm90aGVy\r\n";
const WRONG_USER: &str = "Authorization: Basic ZXZlOnNlY3JldA==\r\n";

fn get(proxy: &Proxy, target: &str, more: &str) -> Message {
    exchange(proxy, format!("GET {target} HTTP/1.1\r\nHost: a\r\n{more}Connection: close\r\n\r\n"))
}

fn config(backend: &Backend) -> Config {
    Config::new()
        .root("worker_count = 2")
        .backend("web", backend)
        .cluster("web", &format!("authorized_hashes = [\"ann:{SECRET}\", \"bob:{OTHER}\"]"))
        .cluster("web", "www_authenticate = \"Staff only\"")
        .frontend("web", "hostname = \"a\", path = \"/staff\", required_auth = true")
        .frontend("web", "hostname = \"a\", path = \"/moved\", required_auth = true, redirect = \"found\", rewrite_path = \"/staff\"")
        .frontend("web", "hostname = \"a\", path = \"/in\", rewrite_path = \"/staff$PATH[1]\"")
        .frontend("web", "hostname = \"a\", path = \"/denied\", redirect = \"unauthorized\"")
        .frontend("web", "hostname = \"a\", path = \"/open\"")
}

#[test]
fn only_users_with_their_password_are_let_in() {
    let (backend, nobody) = (Backend::respond(OK), Backend::respond(OK));
    let proxy = config(&backend)
        .root("basic_auth_max_credential_bytes = 64")
        .backend("empty", &nobody)
        .frontend("empty", "hostname = \"a\", path = \"/empty\", required_auth = true")
        .start();
    let long = format!("Authorization: Basic {}\r\n", "YW5u".repeat(40));
    for _ in 0..4 {
        get(&proxy, "/staff", ANN).expect(200, "ok");
        get(&proxy, "/staff", BOB).expect(200, "ok");
        get(&proxy, "/open", "").expect(200, "ok");
        assert_eq!(get(&proxy, "/moved", ANN).all("location"), ["http://a/staff"]);
        get(&proxy, "/in", ANN).expect(200, "ok");
        let twice = format!("{WRONG_PASSWORD}{ANN}");
        for (target, fields) in [
            ("/staff", ""),
            ("/staff", WRONG_PASSWORD),
            ("/staff", WRONG_USER),
            ("/staff", "Authorization: Basic YW5u\r\n"),
            ("/staff", "Authorization: Bearer YW5uOnNlY3JldA==\r\n"),
            ("/staff", "Authorization: Basic =\r\n"),
            ("/staff", "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n"),
            ("/staff", &twice),
            ("/staff", &long),
            ("/moved", ""),
            // A rule that leads there asks no less.
            ("/in", ""),
            ("/in", WRONG_USER),
        ] {
            let response = get(&proxy, target, fields);
            assert_eq!(response.status(), 401, "{target} {fields}");
            assert_eq!(response.text(), "401 Unauthorized: unauthorized\n");
            assert_eq!(response.all("www-authenticate"), ["Basic realm=\"Staff only\""]);
            assert_eq!(response.all("location").len(), 0);
        }
        // RFC 9110 section 11.6.1: a 401 always says how.
        let denied = get(&proxy, "/denied", ANN);
        assert_eq!((denied.status(), denied.text().as_str()), (401, "401 Unauthorized: denied\n"));
        assert_eq!(denied.all("www-authenticate"), ["Basic realm=\"Staff only\""]);
        let empty = get(&proxy, "/empty", ANN);
        assert_eq!(
            (empty.status(), empty.all("www-authenticate")),
            (401, vec!["Basic realm=\"restricted\""])
        );
    }
    // What the client has sent goes on to the backend, and the connection goes on behind a 401.
    let mut client = proxy.client();
    for (fields, status) in [("", 401), (ANN, 200), (WRONG_USER, 401), (BOB, 200)] {
        client.send(format!("GET /staff HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(client.response().status(), status);
    }
    let requests = backend.requests();
    assert!(requests.iter().any(|it| it.all("authorization") == ["Basic YW5uOnNlY3JldA=="]));
    assert!(requests.iter().all(|it| it.all("authorization") != ["Basic ZXZlOnNlY3JldA=="]));
    assert_eq!(nobody.requests().len(), 0);
}

#[test]
fn users_come_and_go_live_and_no_digest_is_shown() {
    let backend = Backend::respond(OK);
    let folder = tempfile::tempdir().unwrap();
    let (saved, whole) = (folder.path().join("saved.json"), folder.path().join("whole.json"));
    let proxy = config(&backend).start();
    let ctl = |arguments: &[&str]| ctl_says(&proxy, arguments);
    let keys = format!("authorized_hashes=[\"ann:{OTHER}\"]");
    let mut shown = vec![ctl(&["cluster", "patch", "web", &keys])];
    for _ in 0..4 {
        get(&proxy, "/staff", WRONG_PASSWORD).expect(200, "ok");
        assert_eq!(get(&proxy, "/staff", ANN).status(), 401);
        assert_eq!(get(&proxy, "/staff", BOB).status(), 401);
    }
    ctl(&["workers", "upgrade"]);
    get(&proxy, "/staff", WRONG_PASSWORD).expect(200, "ok");
    shown.extend(shown_to_anybody(&proxy));
    shown.push(ctl(&["state", "save", saved.to_str().unwrap()]));
    shown.push(fs::read_to_string(&saved).unwrap());
    for text in &shown {
        assert!(!text.contains(SECRET) && !text.contains(OTHER), "{text}");
    }
    assert!(shown[1].contains("ann:***"), "{}", shown[1]);
    // Without them it is no state that could be loaded, and with them it is the whole of it.
    let output = proxy.ctl(&["state", "load", saved.to_str().unwrap()]);
    assert!(!output.status.success(), "{output:?}");
    assert!(ctl(&["config", "dump", "--with-keys"]).contains(OTHER));
    ctl(&["state", "save", "--with-keys", whole.to_str().unwrap()]);
    ctl(&["cluster", "patch", "web", "authorized_hashes="]);
    assert_eq!(get(&proxy, "/staff", WRONG_PASSWORD).status(), 401);
    ctl(&["state", "load", whole.to_str().unwrap()]);
    get(&proxy, "/staff", WRONG_PASSWORD).expect(200, "ok");
}

#[test]
fn errors_of_a_file_and_guests_have_no_digest() {
    const GUEST: u32 = 65_534;
    let backend = Backend::respond(OK);
    let proxy = config(&backend).root(&format!("command_allowed_uids = [{GUEST}]")).start();
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    for (right, wrong) in [
        (format!("{SECRET}\""), format!("{}\"", &SECRET[1..])),
        ("authorized_hashes".to_owned(), "authorised_hashes".to_owned()),
        (format!("{OTHER}\"]"), format!("{OTHER}\", 5]")),
        (format!("{OTHER}\"]"), format!("{OTHER}\"] x")),
        (format!("{OTHER}\"]"), format!("{OTHER}\", \"c:$2b$15${}\"]", "k".repeat(53))),
        (
            format!("{OTHER}\"]"),
            format!("{OTHER}\", \"c:$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ${}\"]", "k".repeat(43)),
        ),
    ] {
        assert!(text.contains(&right), "{right}");
        fs::write(&file, text.replace(&right, &wrong)).unwrap();
        let output = proxy.ctl(&["reload"]);
        let said = format!("{output:?}");
        assert!(!output.status.success() && said.contains("kakehi.toml:"), "{said}");
        assert!(
            !said.contains(&SECRET[1..33]) && !said.contains(&OTHER[..32]) && !said.contains("kkkk"),
            "{said}"
        );
    }
    fs::write(&file, text).unwrap();
    assert!(proxy.ctl(&["reload"]).status.success());
    if !(machine::has(Need::Root) && machine::has(Need::Program("setpriv"))) {
        return;
    }
    fs::set_permissions(proxy.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let guest = |arguments: &[&str]| kakehictl_of(GUEST, &proxy).args(arguments).output().unwrap();
    let dump = guest(&["config", "dump"]);
    assert!(dump.status.success() && !format!("{dump:?}").contains(SECRET), "{dump:?}");
    for arguments in [
        &["config", "dump", "--with-keys"][..],
        // Nor does kakehi read files for them.
        &["cluster", "patch", "web", "answers.503=file:///etc/passwd"],
    ] {
        let refused = guest(arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains("only root"), "{refused:?}");
    }
    assert!(guest(&["cluster", "patch", "web", "queue_size=5"]).status.success());
    get(&proxy, "/staff", ANN).expect(200, "ok");
}

#[test]
fn passwords_go_with_redirects_to_https_upgrades_limits_and_bodies() {
    let backend = Backend::respond(OK);
    let proxy = config(&backend)
        .listener("trusted_peers = [\"127.0.0.1\"]")
        .backend("led", &backend)
        .cluster("led", &format!("https_redirect = true\nauthorized_hashes = [\"ann:{SECRET}\"]"))
        .frontend("led", "hostname = \"a\", path = \"/led\", required_auth = true")
        .frontend(
            "web",
            "hostname = \"a\", path = \"/slow\", required_auth = true, rate_limits = [{ rate = 2, per = \"1h\", burst = 1 }]",
        )
        .start();
    // Nobody is asked in clear text who is led away first.
    assert_eq!(get(&proxy, "/led", "").status(), 301);
    assert_eq!(get(&proxy, "/led", "X-Forwarded-Proto: https\r\n").status(), 401);
    get(&proxy, "/led", &format!("X-Forwarded-Proto: https\r\n{ANN}")).expect(200, "ok");
    // Guesses count against a limit.
    let guesses: Vec<u16> = (0..6).map(|_| get(&proxy, "/slow", WRONG_USER).status()).collect();
    assert!(guesses.contains(&401) && guesses.ends_with(&[429]), "{guesses:?}");
    assert_eq!(get(&proxy, "/slow", ANN).status(), 429);
    // Nothing becomes a tunnel, and a body that comes with wrong credentials is no request.
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let request =
        format!("GET /staff HTTP/1.1\r\nHost: a\r\n{upgrade}\r\nGET /open HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut client = proxy.client();
    client.send(request);
    assert_eq!((client.response().status(), client.response().status()), (401, 200));
    let body = "GET /open HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = body.len();
    let request = format!(
        "POST /staff HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    assert_eq!(exchange(&proxy, request).status(), 401);
    // Those with a password, and the one behind the upgrade.
    let requests = backend.requests();
    assert!(requests.len() == 2 && requests.iter().all(|it| it.field("upgrade").is_none()), "{requests:?}");
}
