//! How backends are probed: in clear text and by TLS, behind unix sockets, other ports and the PROXY protocol; and what a hostile answer
//! costs. What follows from probes is in [`health`](crate::health).

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    harness::{Backend, Config, Conn, Need, Pki, Proxy, exchange, free_port, kakehictl_of, machine, wait},
    health::{Farm, QUICK, check, shown, wait_for_verdict, with_body},
};

/// One cluster for each backend, by name.
fn clusters(backends: &[(&str, &str)], keys: &str) -> Config {
    let mut config = Config::new().root("worker_count = 2");
    for (name, address) in backends {
        let cluster = config.frontend(name, &format!("hostname = \"{name}\"")).cluster(name, &check(keys));
        config = cluster.backend_at(name, address, "backend_id = \"b\"");
    }
    config
}

#[test]
fn a_hostile_answer_costs_its_backend_the_verdict_and_nobody_else_anything() {
    let stalling = Backend::script(|conn| {
        conn.request();
        conn.rest();
    });
    let trickling = Backend::script(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nX: ");
        while conn.send("x") {
            wait::pace(Duration::from_millis(10));
        }
    });
    let large = Backend::script(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\n");
        conn.send(format!("X: {}\r\n\r\n", "x".repeat(1 << 20)));
        conn.rest();
    });
    let many = Backend::script(|conn| {
        conn.request();
        while conn.send("HTTP/1.1 103 Early\r\n\r\n") {}
    });
    let shell = Backend::respond("SSH-2.0-\x1b[31mred\x1b[0m\r\n\r\n");
    let silent = Backend::script(|conn| drop(conn.head()));
    let endless = Backend::script(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while conn.send("1\r\nx\r\n") {}
    });
    let honest = Farm::new(1);
    let refusing = format!("127.0.0.1:{}", free_port());
    let backends = [
        ("stalling", stalling.address(), "no whole answer within 0.3 s"),
        ("trickling", trickling.address(), "no whole answer within 0.3 s"),
        ("large", large.address(), "its head is larger than 4096 bytes"),
        ("many", many.address(), "its head is larger than 4096 bytes"),
        ("shell", shell.address(), "its answer is no HTTP/1"),
        ("silent", silent.address(), "it closed the connection without an answer"),
        ("refusing", refusing, "it refuses connections"),
        ("endless", endless.address(), "status 200, without `body_contains`"),
    ];
    let keys = "uri = \"/health\", interval = 0.05, timeout = 0.3, unhealthy_threshold = 2, body_contains = \"well\"";
    let mut all: Vec<(&str, &str)> = backends.iter().map(|it| (it.0, it.1.as_str())).collect();
    let address = honest.backends[0].address();
    all.push(("honest", &address));
    let proxy = clusters(&all, keys).start();
    for (name, _, reason) in &backends {
        let b = wait_for_verdict(&proxy, name, "b", false);
        assert_eq!(b["probe"]["reason"], *reason, "{name}: {b}");
        assert!(b["probe"]["last"]["took_ms"].as_u64().unwrap() < 2_000, "{name}: {b}");
    }
    wait_for_verdict(&proxy, "honest", "b", true);
    // A second at their side, and the supervisor is as quick as ever.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        proxy.ctl_json("status");
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    let b = shown(&proxy, "honest", "b");
    assert!(b["probe"]["up"] == true && b["probe"]["bad"] == 0, "{b}");
    assert!(!proxy.log().contains('\u{1b}'));
    assert!(proxy.supervisor().resident() < 64 << 20, "{}", proxy.supervisor().resident());
}

#[test]
fn a_probe_goes_by_tls_as_requests_do_or_as_its_own_table_says() {
    let (pki, stranger) = (Pki::new(), Pki::named("Stranger"));
    let name = ", server_name = \"backend.test\"";
    let answer = with_body(200, "well");
    let respond = |pki: &Pki| Backend::respond_over_tls(&pki.server(&["backend.test"]), &answer);
    let (good, wrong, own) = (respond(&pki), respond(&stranger), respond(&pki));
    let clear = Backend::script(move |conn| {
        if conn.bytes(1).is_ok() {
            conn.send(&answer);
        }
    });
    let tls = format!("backend_tls = {{ {}{name} }}", pki.ca("ca"));
    let keys = check(QUICK);
    let with_own = check(&format!("{QUICK}, mode = \"TCP\", tls = {{ {}{name} }}", pki.ca("ca")));
    let mut config = Config::new().root("worker_count = 2");
    for (cluster, backend, lines) in [
        ("good", &good, vec![&tls, &keys]),
        ("wrong", &wrong, vec![&tls, &keys]),
        ("clear", &clear, vec![&tls, &keys]),
        ("own", &own, vec![&with_own]),
    ] {
        config = config.frontend(cluster, &format!("hostname = \"{cluster}\""));
        for line in lines {
            config = config.cluster(cluster, line);
        }
        config = config.backend_with(cluster, backend, "backend_id = \"b\"");
    }
    let proxy = config.start();
    wait_for_verdict(&proxy, "good", "b", true);
    let own = wait_for_verdict(&proxy, "own", "b", true);
    assert_eq!(own["probe"]["reason"], "a TLS handshake");
    let wrong = wait_for_verdict(&proxy, "wrong", "b", false);
    assert_eq!(wrong["probe"]["reason"], "its certificate is not accepted: its issuer is not known");
    let clear = wait_for_verdict(&proxy, "clear", "b", false);
    assert_eq!(clear["probe"]["reason"], "it does not speak TLS");
}

#[test]
fn backends_behind_unix_sockets_other_ports_and_the_proxy_protocol_are_probed_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    let answer = with_body(200, "well");
    let well = |answer: Vec<u8>| move |conn: &mut Conn| while conn.serve(|_| answer.clone()) {};
    let unix = Backend::unix(&path, well(answer.clone()));
    let name = format!("@kakehi-test-{}", std::process::id());
    let nameless = Backend::unix(Path::new(&name), well(answer));
    let missing = format!("unix:{}", folder.path().join("nobody").display());
    let elsewhere = Backend::respond(with_body(200, "well"));
    let port = format!(", port = {}", elsewhere.socket_address().port());
    let header = Backend::script(|conn| {
        if conn.bytes(16).is_ok_and(|it| it == b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0") {
            conn.serve(|_| with_body(200, "well"));
        }
    });
    let refusing = format!("127.0.0.1:{}", free_port());
    let mut config = Config::new().root("worker_count = 2");
    for (cluster, address, keys, line) in [
        ("unix", unix.address(), "", ""),
        ("abstract", nameless.address(), "", ""),
        ("missing", missing, "", ""),
        ("port", refusing.clone(), port.as_str(), ""),
        ("tcp", elsewhere.address(), ", mode = \"TCP\"", ""),
        ("closed", refusing, ", mode = \"tcp\"", ""),
        ("header", header.address(), "", "send_proxy = true"),
    ] {
        config = config
            .frontend(cluster, &format!("hostname = \"{cluster}\""))
            .cluster(cluster, &check(&format!("{QUICK}{keys}").replace("uri = \"/health\", ", "")))
            .cluster(cluster, line)
            .backend_at(cluster, &address, "backend_id = \"b\"");
    }
    let proxy = config.start();
    for (cluster, up, reason) in [
        ("unix", true, "status 200"),
        ("abstract", true, "status 200"),
        ("missing", false, "there is no such socket"),
        ("port", true, "status 200"),
        ("tcp", true, "a connection"),
        ("closed", false, "it refuses connections"),
        ("header", true, "status 200"),
    ] {
        let b = wait_for_verdict(&proxy, cluster, "b", up);
        assert_eq!(b["probe"]["reason"], reason, "{cluster}: {b}");
    }
    assert_eq!(unix.requests()[0].all("Host"), ["localhost"]);
    for cluster in ["unix", "abstract"] {
        exchange(&proxy, format!("GET / HTTP/1.1\r\nHost: {cluster}\r\nConnection: close\r\n\r\n"))
            .expect(200, "well");
    }
}

#[test]
fn probes_send_the_fields_of_their_check_with_values_that_are_read_each_time() {
    let farm = Farm::new(1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "Bearer one\n").unwrap();
    let headers = |name: &str, file: &std::path::Path| {
        format!("{QUICK}, headers = [{{ name = \"{name}\", value_file = \"{}\" }}]", file.display())
    };
    let proxy = farm.config(&[&check(&headers("Authorization", &file))]).start();
    let last = |name: &str| {
        let all = farm.backends[0].requests();
        let probe = all.iter().rev().find(|it| it.target() == "/health").cloned();
        probe.and_then(|it| it.field(name).map(str::to_owned))
    };
    wait::until("a probe", || last("Authorization").as_deref() == Some("Bearer one"));
    assert_eq!(last("User-Agent").as_deref(), Some("kakehi-health-check"));
    std::fs::write(&file, "Bearer two\r\n").unwrap();
    wait::until("the other value", || last("authorization").as_deref() == Some("Bearer two"));
    // It takes the place of kakehi's own.
    let patch =
        format!("health_check.headers=[{{ name = \"user-agent\", value_file = '{}' }}]", file.display());
    assert!(proxy.ctl(&["cluster", "patch", "web", &patch]).status.success());
    wait::until("another field", || last("User-Agent").as_deref() == Some("Bearer two"));
    // Without its value there is no probe, which says nothing of the backend.
    std::fs::remove_file(&file).unwrap();
    proxy.logged("`health_check.headers`");
    assert_eq!(shown(&proxy, "web", "b0")["probe"]["up"], true);
    assert!(!proxy.log().contains("Bearer"), "a secret in the log");
    // What would be another request, or none, is refused, and so is a file that a value cannot come from.
    std::fs::write(&file, "a\r\nX: b\n").unwrap();
    for (name, words) in [
        ("Content-Length", "that field says where a probe ends"),
        ("Transfer-Encoding", "that field says where a probe ends"),
        ("connection", "that field says where a probe ends"),
        ("a b", "is the name of a header field"),
        ("X-Token", "has a line end or NUL in it"),
    ] {
        let (status, log) = Proxy::start_failing(&farm.config(&[&check(&headers(name, &file))]));
        assert!(!status.success() && log.contains(words), "{name}: {log}");
    }
    std::fs::write(&file, "a").unwrap();
    let keys = format!("{}, host = \"a\"", headers("Host", &file));
    let (_, log) = Proxy::start_failing(&farm.config(&[&check(&keys)]));
    assert!(log.contains("beside `host`"), "{log}");
}

#[test]
fn a_guest_of_the_command_socket_cannot_have_probes_send_files() {
    const GUEST: u32 = 65_534;
    if !(machine::has(Need::Root) && machine::has(Need::Program("setpriv"))) {
        return;
    }
    let farm = Farm::new(1);
    let proxy = farm.config(&[&check(QUICK)]).root("command_allowed_uids = [65534]").start();
    let secret = proxy.folder().join("secret");
    std::fs::write(&secret, "a secret").unwrap();
    let patch =
        format!("health_check.headers=[{{ name = \"a\", \"value_\\u0066ile\" = '{}' }}]", secret.display());
    let refused = kakehictl_of(GUEST, &proxy).args(["cluster", "patch", "web", &patch]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("only root"), "{refused:?}");
    let mut state = proxy.ctl_json("state");
    let header = serde_json::json!({ "name": "a", "value_file": secret });
    state["clusters"]["web"]["health"]["headers"] = serde_json::json!([header]);
    let file = proxy.folder().join("state.json");
    std::fs::write(&file, state.to_string()).unwrap();
    let loads = kakehictl_of(GUEST, &proxy).args(["state", "load"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&loads.stderr);
    assert!(loads.status.code() == Some(1) && said.contains("only root"), "{loads:?}");
    // Root may, and what is there already is in nobody's way.
    assert!(proxy.ctl(&["cluster", "patch", "web", &patch]).status.success());
    wait::until("the field", || farm.backends[0].requests().iter().any(|it| it.field("a").is_some()));
    let patch = ["cluster", "patch", "web", "health_check.interval=1"];
    let other = kakehictl_of(GUEST, &proxy).args(patch).output().unwrap();
    assert!(other.status.success(), "{other:?}");
    // Nor may anybody else have it sent to himself.
    for arguments in [
        &["backend", "add", "web", "127.0.0.66:80"][..],
        &["cluster", "patch", "web", "health_check.port=1"],
        &["cluster", "patch", "web", "health_check.uri=/other"],
    ] {
        let refused = kakehictl_of(GUEST, &proxy).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains("only root"), "{arguments:?}: {refused:?}");
    }
}
