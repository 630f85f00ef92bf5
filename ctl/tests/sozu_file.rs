//! A sozu 2.x `config.toml` with every key that there is loads unchanged, and says what of it is not honoured.
#![expect(clippy::panic, reason = "the helpers of a test fail with it")]

use kakehi_ctl::{
    config,
    state::{CipherSuite, ClusterProtocol, ListenerProtocol, PathRule, State, TlsVersion},
};

fn load() -> (State, Vec<String>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/every-sozu-key.toml");
    let loaded = config::load(path).unwrap_or_else(|error| panic!("{error}"));
    (loaded.state, loaded.warnings.into_iter().map(|warning| warning.text).collect())
}

#[test]
fn what_is_honoured_reaches_the_state() {
    let (state, _) = load();
    let settings = &state.settings;
    assert_eq!(settings.worker_count, Some(2));
    assert!(!settings.pin_workers);
    assert_eq!(settings.max_connections, 20_000);
    assert_eq!(settings.pipe_capacity, 65_536);
    assert_eq!(settings.pid_file_path.as_deref(), Some("/run/sozu.pid".as_ref()));
    assert!(settings.command_socket.ends_with("tests/data/sozu.sock"));

    assert_eq!(state.listeners.len(), 3, "udp is not served");
    let listener = &state.listeners[&"127.0.0.1:8080".parse().unwrap()];
    let timeouts = &listener.timeouts;
    assert_eq!(
        (timeouts.front_ms, timeouts.back_ms, timeouts.connect_ms, timeouts.request_ms),
        (62_000, 32_000, 5_000, 12_000)
    );
    assert_eq!(listener.public_address, Some("192.0.2.1:80".parse().unwrap()));
    assert_eq!(listener.interface, Some("lo".parse().unwrap()));
    assert!(listener.forwarding.x_real_ip && listener.forwarding.elide_x_real_ip);

    assert_eq!(state.clusters.keys().collect::<Vec<_>>(), ["db", "edits", "web"], "udp is not served");
    let web = &state.clusters["web"];
    assert_eq!((web.https_redirect, web.https_redirect_port), (true, Some(8443)));
    let rules: Vec<_> = web
        .frontends
        .iter()
        .map(|rule| (rule.hostname.as_str(), &rule.path, rule.deny || rule.required_auth))
        .collect();
    let everything = PathRule::Prefix(String::new());
    assert_eq!(
        rules,
        [
            ("lolcatho.st", &PathRule::Prefix("/api".to_owned()), false),
            ("*.lolcatho.st", &PathRule::Equals("/x".to_owned()), false),
            ("/a[0-9]+/.lolcatho.st", &PathRule::Regex("^/x$".to_owned()), false),
            ("closed.st", &everything, true),
            ("moved.st", &everything, false),
            ("lolcatho.st", &everything, false),
        ]
    );
    assert_eq!(web.frontends[1].method.as_deref(), Some("GET"));
    let backends: Vec<_> = web.backends.iter().map(|it| (it.id.as_str(), it.weight, it.backup)).collect();
    assert_eq!(backends, [("one", 50, false), ("[::1]:1027", 100, true)]);
}

#[test]
fn tls_and_tcp_are_served() {
    let (state, _) = load();
    let https = &state.listeners[&"127.0.0.1:8443".parse().unwrap()];
    let tls = https.tls.as_deref().unwrap();
    assert_eq!(tls.cipher_suites, [CipherSuite::Aes256GcmSha384]);
    assert_eq!((tls.tickets, tls.alpn.as_slice()), (4, &["http/1.1".to_owned()][..]));
    assert!(tls.strict_sni && tls.hsts.as_ref().is_some_and(|hsts| hsts.include_subdomains));
    let frontend = state.clusters["web"].frontends.iter().find(|it| it.address == https.address).unwrap();
    assert_eq!(frontend.tls.as_ref().unwrap().versions, Some(vec![TlsVersion::V13]));

    let tcp = &state.listeners[&"127.0.0.1:5432".parse().unwrap()];
    assert!(tcp.protocol == ListenerProtocol::Tcp && tcp.expect_proxy);
    let db = &state.clusters["db"];
    assert!(db.protocol == ClusterProtocol::Tcp && db.send_proxy);
    assert_eq!((db.frontends[0].address, db.frontends[0].hostname.as_str()), (tcp.address, "*"));
    assert_eq!(db.frontends[1].predicates.as_ref().unwrap().alpn, ["http/1.1", "postgresql"]);
}

#[test]
fn what_is_not_honoured_is_named() {
    let (_, warnings) = load();
    let not_honoured = [
        "`metrics` in the root is not honoured yet and changes nothing",
        "`tags` in a frontend is not honoured yet and changes nothing",
        "`cipher_suites` has no effect beside `cipher_list`, of which it is the older name",
        "`h2` in `alpn_protocols` is not spoken yet: it is not offered",
        "`hsts` has no effect: it is for listeners of `https` and their frontends",
        "`protocol = \"udp\"` is not supported yet: the listener `127.0.0.1:5353` and its frontends are skipped",
        "`protocol = \"udp\"` is not supported yet: the cluster `dns` is skipped",
    ];
    for expected in not_honoured {
        assert!(warnings.iter().any(|warning| warning == expected), "{expected}\n{warnings:#?}");
    }
    for honoured in [
        "front_timeout",
        "public_address",
        "https_redirect",
        "backup",
        "log_level",
        "worker_count",
        "sticky_name",
        "sticky_session",
        "sticky_id",
        "load_balancing",
        "health_check",
        "splice_pipe_capacity_bytes",
        "interface",
        "alpn",
    ] {
        assert!(!warnings.iter().any(|warning| warning.contains(&format!("`{honoured}`"))), "{honoured}");
    }
}

/// With the keys and the shape of the example that comes with sozu: two frontends name listeners that are not there.
const EXAMPLE: &str = include_str!("data/as-for-sozu.toml");

#[test]
fn an_example_of_sozu_loads_and_listeners_that_are_missing_are_made_up() {
    let loaded = config::parse(EXAMPLE, "config.toml").unwrap_or_else(|errors| panic!("{errors}"));
    let listeners: Vec<_> =
        loaded.state.listeners.values().map(|it| (it.address.port(), it.protocol, it.active)).collect();
    assert_eq!(
        listeners,
        [
            (18080, ListenerProtocol::Http, true),
            (18081, ListenerProtocol::Tcp, true),
            (18443, ListenerProtocol::Https, true),
            (18444, ListenerProtocol::Https, true)
        ]
    );
    let frontends: usize = loaded.state.clusters.values().map(|it| it.frontends.len()).sum();
    assert_eq!((loaded.state.clusters.len(), frontends, loaded.certificates.len()), (2, 6, 2));
    let garden = &loaded.state.clusters["garden"];
    let backends: Vec<_> = garden.backends.iter().map(|it| (it.id.as_str(), it.weight, it.backup)).collect();
    assert_eq!(backends, [("stone", 30, false), ("moss", 60, true)]);
    let settings = &loaded.state.settings;
    assert_eq!((settings.worker_count, settings.max_connections), (Some(2), 4_000));
}

#[test]
fn an_example_of_sozu_brings_the_warnings_that_one_expects_and_no_other() {
    let loaded = config::parse(EXAMPLE, "config.toml").unwrap_or_else(|errors| panic!("{errors}"));
    let no_effect = |key: &str, why: &str| format!("`{key}` in the root has no effect: {why}");
    let not_yet =
        |key: &str, place: &str| format!("`{key}` in {place} is not honoured yet and changes nothing");
    let made_up = |address: &str, protocol: &str| {
        format!(
            "no listener has the address `{address}` of this frontend: one with `protocol = \"{protocol}\"` is made up; \
             write `[[listeners]]` with that address"
        )
    };
    let missing = |path: &str| {
        format!(
            "{path} cannot be read, and kakehi's own answer is given: No such file or directory (os error 2)"
        )
    };
    let expected = [
        (
            "command_buffer_size = 3",
            no_effect("command_buffer_size", "control messages are bounded by kakehi itself"),
        ),
        (
            "max_command_buffer_size",
            no_effect("max_command_buffer_size", "control messages are bounded by kakehi itself"),
        ),
        ("ctl_command_timeout", no_effect("ctl_command_timeout", "`kakehictl` has the option `--timeout`")),
        ("min_buffers", no_effect("min_buffers", "kakehi lends buffers from an arena; see `buffer_count`")),
        ("max_buffers", no_effect("max_buffers", "kakehi lends buffers from an arena; see `buffer_count`")),
        ("buffer_size = 16393", no_effect("buffer_size", "a buffer of the arena always has 17 KiB")),
        (
            "zombie_check_interval",
            no_effect("zombie_check_interval", "every connection has deadlines of its own"),
        ),
        (
            "accept_queue_timeout",
            no_effect("accept_queue_timeout", "what is not accepted yet waits in the kernel"),
        ),
        ("log_target", not_yet("log_target", "the root")),
        ("log_colored", not_yet("log_colored", "the root")),
        ("access_logs_target", not_yet("access_logs_target", "the root")),
        ("[metrics]", not_yet("metrics", "the root")),
        ("answer_404", missing("pages/404.http")),
        ("answer_503", missing("pages/503.http")),
        // Once for each kind of key, also where it stands more often.
        ("tags", not_yet("tags", "a frontend")),
        (":18444", made_up("0.0.0.0:18444", "https")),
        (":18081", made_up("0.0.0.0:18081", "tcp")),
    ];
    let line_of = |words: &str| EXAMPLE.lines().position(|line| line.contains(words)).unwrap() + 1;
    let mut expected: Vec<_> = expected.iter().map(|(words, text)| (line_of(words), text.as_str())).collect();
    let mut warnings: Vec<_> =
        loaded.warnings.iter().map(|warning| (warning.place.line, warning.text.as_str())).collect();
    expected.sort_unstable();
    warnings.sort_unstable();
    assert_eq!(warnings, expected);
}
