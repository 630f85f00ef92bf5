//! What the file means; [`errors`] has what is refused, [`tls`] what concerns TLS and `tcp`.

mod admin;
mod errors;
mod pieces;
mod sozu;
mod tls;

use std::path::Path;

use super::{
    check,
    levels::PLAIN_LISTENER,
    load, parse,
    reference::{document, example, sample},
    write,
};
use crate::{
    keys::{Key, Kind, Support},
    limits,
    state::{BackendAddress, Listener, PathRule, RedirectScheme, State},
};

/// A file with a listener, a cluster, a frontend and a backend, each with more keys; lines 2, 5, 9 and 12 are theirs.
fn file(root: &str, listener: &str, cluster: &str, frontend: &str, backend: &str) -> String {
    format!(
        "{root}\n[[listeners]]\naddress = \"127.0.0.1:8080\"\nprotocol = \"http\"\n{listener}\n\
         [clusters.web]\nprotocol = \"http\"\n{cluster}\n\
         [[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"a.example\"\n{frontend}\n\
         [[clusters.web.backends]]\naddress = \"127.0.0.1:9000\"\n{backend}\n"
    )
}

/// State and warnings of a file that loads.
fn read(text: &str) -> (State, Vec<String>) {
    let loaded = parse(text, "k.toml").unwrap_or_else(|error| panic!("{error}\n{text}"));
    (loaded.state, loaded.warnings.iter().map(ToString::to_string).collect())
}

fn the_listener(state: &State) -> &Listener {
    &state.listeners[&"127.0.0.1:8080".parse().unwrap()]
}

#[test]
fn durations_are_seconds_whole_or_with_a_fraction() {
    let cases = [
        ("10", 10_000),
        ("0.25", 250),
        ("0.0001", 1),
        ("1e1", 10_000),
        ("0x10", 16_000),
        ("1_000", 1_000_000),
        ("\"500ms\"", 500),
        ("\"30s\"", 30_000),
        ("\"5m\"", 300_000),
        ("\"1h\"", 3_600_000),
    ];
    for (written, milliseconds) in cases {
        let (state, _) = read(&file(&format!("front_timeout = {written}"), "", "", "", ""));
        assert_eq!(the_listener(&state).timeouts.front_ms, milliseconds, "{written}");
    }
}

#[test]
fn a_listener_takes_from_the_root_what_it_does_not_say() {
    let (state, warnings) = read(&file(
        "front_timeout = 5\nback_timeout = 6\nvia = false\nunderscores_in_headers = true\nmax_head_size = 1024\ntrusted_peers = [\"10.0.0.0/8\", \"::1\"]",
        "back_timeout = 7\nvia = true\nforwarded = false\nsend_x_real_ip = true",
        "",
        "",
        "",
    ));
    let listener = the_listener(&state);
    assert_eq!((listener.timeouts.front_ms, listener.timeouts.back_ms), (5_000, 7_000));
    assert_eq!(listener.timeouts.connect_ms, limits::CONNECT_TIMEOUT_MS);
    assert_eq!(listener.sizes.head, 1024);
    assert!(listener.forwarding.underscores);
    assert!(listener.forwarding.via && !listener.forwarding.forwarded && listener.forwarding.x_real_ip);
    assert_eq!(
        listener.forwarding.trusted_peers,
        ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]
    );
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn backends_have_names_of_their_own_and_may_be_unix_sockets() {
    let (state, _) = read(&file(
        "",
        "",
        "",
        "",
        "[[clusters.web.backends]]\naddress = \"unix:/run/app\"\nweight = 0\nbackup = true\nbackend_id = \"app\"",
    ));
    let backends = &state.clusters["web"].backends;
    assert_eq!(
        (backends[0].id.as_str(), backends[0].weight, backends[0].backup),
        ("127.0.0.1:9000", 100, false)
    );
    assert_eq!((backends[1].id.as_str(), backends[1].weight, backends[1].backup), ("app", 0, true));
    assert_eq!(backends[1].address, BackendAddress::Unix("/run/app".into()));
}

#[test]
fn a_frontend_is_read_with_its_rule() {
    let (state, warnings) = read(&file(
        "",
        "",
        "",
        "path = \"/a\"\npath_type = \"EQUALS\"\nmethod = \"POST\"\nposition = \"TREE\"\nredirect = \"forward\"",
        "",
    ));
    let frontend = &state.clusters["web"].frontends[0];
    assert_eq!(frontend.path, PathRule::Equals("/a".to_owned()));
    assert_eq!((frontend.method.as_deref(), frontend.deny), (Some("POST"), false));
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn a_word_of_a_choice_may_be_in_capitals_or_not_with_a_hyphen_or_an_underscore() {
    for (load_balancing, path_type, scheme) in [
        ("round_robin", "equals", "USE_HTTPS"),
        ("Round-Robin", "Equals", "use_https"),
        ("ROUND_ROBIN", "EQUALS", "use-https"),
    ] {
        let cluster = format!("load_balancing = \"{load_balancing}\"");
        let frontend = format!(
            "path = \"/a\"\npath_type = \"{path_type}\"\nredirect = \"found\"\nredirect_scheme = \"{scheme}\""
        );
        let (state, warnings) = read(&file("rebalance = \"AUTO\"", "", &cluster, &frontend, ""));
        assert_eq!(state.clusters["web"].frontends[0].path, PathRule::Equals("/a".to_owned()));
        assert!(state.settings.rebalance_auto);
        let made = state.clusters["web"].frontends[0].rewrite.as_ref().unwrap();
        assert_eq!((made.scheme, warnings), (RedirectScheme::UseHttps, vec![]));
    }
    let wrong = parse(&file("rebalance = \"AUT\"", "", "", "", ""), "k.toml").unwrap_err().to_string();
    assert!(wrong.contains("`rebalance` must be `manual` or `auto`, not `AUT`"), "{wrong}");
}

#[test]
fn a_path_that_never_matches_is_a_warning() {
    let query = read(&file("", "", "", "path = \"/a?b=1\"", "")).1;
    assert_eq!(
        query,
        ["k.toml:12:8: a `path` is compared without the query: one with `?` or `#` never matches"]
    );
    let relative = read(&file("", "", "", "path = \"a\"", "")).1;
    assert_eq!(relative, ["k.toml:12:8: a `path` that does not begin with `/` never matches"]);
}

#[test]
fn a_method_in_small_letters_is_a_warning() {
    let (state, warnings) = read(&file("", "", "", "method = \"get\"", ""));
    assert_eq!(state.clusters["web"].frontends[0].method.as_deref(), Some("get"));
    assert_eq!(
        warnings,
        ["k.toml:12:10: methods are case-sensitive: `get` is another one than `GET`, which clients send"]
    );
    assert_eq!(read(&file("", "", "", "method = \"M-SEARCH\"", "")).1, [""; 0]);
}

#[test]
fn a_listener_for_ipv6_only_is_a_warning() {
    let both = |other: &str| {
        let other = format!("[[listeners]]\naddress = \"{other}\"\nprotocol = \"http\"");
        read(&file("", &other, "", "", "").replace("127.0.0.1:8080", "[::]:8080")).1
    };
    let warning =
        "k.toml:3:11: `[::]:8080` is for IPv6 only: clients of IPv4 need a listener at `0.0.0.0:8080` too";
    assert_eq!(both("0.0.0.0:8080"), [""; 0]);
    assert_eq!(both("0.0.0.0:8081"), [warning]);
    assert_eq!(both("[::1]:8080"), [warning]);
}

#[test]
fn a_frontend_without_a_listener_gets_one_made_up_as_by_sozu() {
    let (state, warnings) = read(
        "[clusters]\n[clusters.a]\nprotocol = \"http\"\nfrontends = [\n\
         { address = \"0.0.0.0:81\", hostname = \"a\" },\n\
         { address = \"0.0.0.0:444\", hostname = \"a\", certificate = \"a.pem\", key = \"a.key\" },\n\
         { address = \"0.0.0.0:444\", hostname = \"b\" }]\n\
         [clusters.b]\nprotocol = \"tcp\"\nfrontends = [{ address = \"0.0.0.0:8080\" }, { address = \"0.0.0.0:8080\" }]\n",
    );
    let made_up: Vec<_> = state.listeners.values().map(|it| (it.address.port(), it.protocol)).collect();
    use crate::state::ListenerProtocol::{Http, Https, Tcp};
    assert_eq!(made_up, [(81, Http), (444, Https), (8080, Tcp)]);
    assert_eq!(state.listeners.values().next().unwrap(), &Listener::http("0.0.0.0:81".parse().unwrap()));
    assert_eq!(state.clusters["a"].frontends.len(), 3);
    let expected = [("5:13", 81, "http"), ("6:13", 444, "https"), ("10:26", 8080, "tcp")].map(|(place, port, protocol)| {
        format!(
            "k.toml:{place}: no listener has the address `0.0.0.0:{port}` of this frontend: one with `protocol = \"{protocol}\"` is made up; write `[[listeners]]` with that address"
        )
    });
    assert_eq!(warnings, expected);
}

#[test]
fn a_frontend_with_a_certificate_gets_no_listener_of_clear_text() {
    let text = "[clusters.a]\nprotocol = \"http\"\nfrontends = [\n\
        { address = \"0.0.0.0:81\", hostname = \"a\" },\n\
        { address = \"0.0.0.0:81\", hostname = \"b\", certificate = \"b.pem\", key = \"b.key\" }]\n";
    let errors = parse(text, "k.toml").unwrap_err();
    let found = errors.in_one_line();
    assert!(
        found.starts_with("k.toml:5:") && found.contains("the frontend in line 4 has no certificate"),
        "{found}"
    );
}

#[test]
fn what_cannot_be_protected_as_asked_is_refused_and_never_forwarded() {
    let (state, warnings) = read(&file("", "", "", "redirect = \"unauthorized\"", ""));
    assert!(state.clusters["web"].frontends[0].deny && warnings.is_empty());
    let (state, warnings) = read(&file("", "", "", "required_auth = true", ""));
    assert!(state.clusters["web"].frontends[0].required_auth);
    let warning = "k.toml:12:17: `required_auth` refuses everybody: the cluster has no `authorized_hashes`";
    assert_eq!(warnings, [warning]);
    let hash = "a".repeat(64);
    let users = format!("authorized_hashes = [\"ann:{hash}\"]\nwww_authenticate = \"Staff\"");
    let (state, warnings) = read(&file("", "", &users, "required_auth = true", ""));
    assert_eq!(warnings, [""; 0]);
    assert!(!format!("{state:?}").contains(&hash));
    let dump = write::write(&state);
    assert!(dump.contains(&hash) && !write::write(&state.clone().masked()).contains(&hash));
    assert!(check(&state).is_ok() && check(&state.masked()).unwrap_err().contains("64 hexadecimal digits"));
}

#[test]
fn what_is_not_served_yet_is_skipped_with_what_hangs_on_it() {
    let (state, warnings) = read(&file("", "", "", "", "").replacen("\"http\"", "\"udp\"", 1));
    assert!(state.listeners.is_empty() && state.clusters["web"].frontends.is_empty());
    assert_eq!(
        warnings,
        [
            "k.toml:2:1: `protocol = \"udp\"` is not supported yet: the listener `127.0.0.1:8080` and its frontends are skipped"
        ]
    );

    let (state, warnings) = read(
        "[clusters.dns]\nprotocol = \"udp\"\nfrontends = [{ address = \"127.0.0.1:1\" }]\nbackends = []\n",
    );
    assert!(state.clusters.is_empty());
    assert_eq!(
        warnings,
        ["k.toml:1:1: `protocol = \"udp\"` is not supported yet: the cluster `dns` is skipped"]
    );

    let (state, warnings) = read(&file("activate_listeners = false", "", "", "", ""));
    assert!(state.listeners.is_empty() && state.clusters["web"].frontends.is_empty());
    assert_eq!(
        warnings,
        ["k.toml:1:1: `activate_listeners` is `false`: nothing listens, and no frontend is served"]
    );
}

#[test]
fn udp_may_listen_where_http_does() {
    let udp = "[[listeners]]\naddress = \"127.0.0.1:8080\"\nprotocol = \"udp\"";
    let (state, warnings) = read(&file("", udp, "", "", ""));
    assert_eq!((state.listeners.len(), state.clusters["web"].frontends.len(), warnings.len()), (1, 1, 1));
}

#[test]
fn a_key_that_is_not_honoured_is_a_warning_told_once() {
    let (_, warnings) = read(&file(
        "max_buffers = 5\nlog_target = \"stdout\"",
        "sticky_name = \"x\"",
        "load_balancing = \"MAGLEV\"\nhttp2 = true",
        "position = \"PRE\"\ntags = { a = \"b\" }",
        "sticky_id = \"1\"\n[[clusters.web.backends]]\naddress = \"127.0.0.1:9001\"\nsticky_id = \"2\"",
    ));
    let expected = [
        "k.toml:1:1: `max_buffers` in the root has no effect: kakehi lends buffers from an arena; see `buffer_count`",
        "k.toml:2:1: `log_target` in the root is not honoured yet and changes nothing",
        "k.toml:10:1: `http2` in a cluster is not honoured yet and changes nothing",
        "k.toml:15:1: `tags` in a frontend is not honoured yet and changes nothing",
    ];
    assert_eq!(warnings, expected);
}

#[test]
fn the_example_loads_without_a_word() {
    let loaded = load(document("examples/kakehi.toml")).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(the_listener(&loaded.state), &Listener::http("127.0.0.1:8080".parse().unwrap()));
    assert_eq!(loaded.state.clusters["example"].backends[0].address.to_string(), "127.0.0.1:9000");
}

fn honoured(support: Support) -> bool {
    matches!(support, Support::Yes | Support::Own | Support::Partly(_))
}

#[test]
fn the_defaults_that_are_documented_are_those_that_apply() {
    // Those of TLS and of tables that are only there when they are asked for have tests of their own.
    let with_defaults = example(&|level, key| {
        let always = ["the root", "a listener", "a cluster", "a frontend", "a backend"].contains(&level.what);
        (always && honoured(key.support) && !key.default().is_empty()).then(|| key.default())
    });
    assert!(with_defaults.contains("\nfront_timeout = 60\n") && with_defaults.contains("\nweight = 100\n"));
    assert_eq!(read(&with_defaults), read(&example(&|_, _| None)));
}

/// A value for a key, but for those that cannot stand beside others.
fn in_use(key: &Key) -> Option<String> {
    const NOT_BESIDE: [&str; 6] = [
        "affinity_cookie",
        "affinity_path",
        "cipher_suites",
        "client_ca_certificates",
        "client_ca_crls",
        "unix_path",
    ];

    match key.name {
        // Samples of them contradict those of others.
        "forwarded_headers" => Some("\"both\"".to_owned()),
        // They have to be there.
        name if name.starts_with("answer_") => None,
        name => (!NOT_BESIDE.contains(&name)).then(|| sample(key)),
    }
}

#[test]
fn the_example_loads_with_every_key_in_use() {
    let (_, warnings) = read(&example(&|_, key| in_use(key)));
    assert!(warnings.len() > 40, "{warnings:#?}");
}

#[test]
fn the_highest_value_of_each_key_reaches_the_state() {
    let (plain, _) = read(&example(&|_, _| None));
    for level in [&super::levels::ROOT, &PLAIN_LISTENER, &super::levels::CLUSTER, &super::levels::BACKEND] {
        for key in level.keys().filter(|key| matches!(key.support, Support::Yes | Support::Own)) {
            let (Kind::Integer(_, max) | Kind::PowerOfTwo(_, max)) = key.kind else { continue };
            let (state, _) = read(&example(&|here, this| {
                (here.what == level.what && this.name == key.name).then(|| max.to_string())
            }));
            let is_default = key.default() == max.to_string();
            assert_eq!(state == plain, is_default, "{} of {}", key.name, level.what);
        }
    }
}

#[test]
fn limits_are_read_where_they_stand_and_written_as_they_were_read() {
    let text = file(
        "max_connections_per_ip = 7",
        "deny = [\"192.0.2.0/24\"]\nrate_limits = [{ rate = 5 }, { key = \"header:X-User\", rate = 2, per = \"1m\", dry_run = true }]",
        "max_connections_per_ip = 0\nrate_limits = [{ key = \"route\", rate = 9, burst = 0, exempt = [\"::1\"] }]",
        "allow = [\"10.0.0.0/8\"]\nmax_body_size = 5\nrate_limits = [{ key = \"cookie:S\", rate = 3, status = 503 }]",
        "",
    );
    let (state, warnings) = read(&text);
    assert_eq!(warnings, [""; 0]);
    let listener = the_listener(&state);
    assert_eq!(listener.sources.deny.len(), 1);
    assert_eq!(
        (listener.rates[1].per_ms, listener.rates[1].key.to_string()),
        (60_000, "header:x-user".to_owned())
    );
    let cluster = &state.clusters["web"];
    let limits = cluster.limits.as_ref().unwrap();
    assert_eq!((limits.per_ip, limits.rates[0].burst), (Some(0), Some(0)));
    let limits = cluster.frontends[0].limits.as_ref().unwrap();
    assert_eq!((limits.max_body_size, limits.rates[0].status), (Some(5), 503));
    assert_eq!(read(&crate::config::write::write(&state)).0.clusters, state.clusters);
    assert_eq!(read(&crate::config::write::write(&state)).0.listeners, state.listeners);
}

#[test]
fn relative_paths_are_those_of_the_folder_of_the_file() {
    let text = "command_socket = \"./run/ctl.sock\"\npid_file_path = \"kakehi.pid\"\n";
    let settings = parse(text, "/etc/kakehi/kakehi.toml").unwrap().state.settings;
    assert_eq!(settings.command_socket, Path::new("/etc/kakehi/run/ctl.sock"));
    assert_eq!(settings.pid_file_path.as_deref(), Some(Path::new("/etc/kakehi/kakehi.pid")));
    let settings =
        parse("command_socket = \"/run/ctl.sock\"", "/etc/kakehi/kakehi.toml").unwrap().state.settings;
    assert_eq!(settings.command_socket, Path::new("/run/ctl.sock"));
    let settings = parse("", "/etc/kakehi/kakehi.toml").unwrap().state.settings;
    assert_eq!(settings.command_socket, Path::new("/etc/kakehi/kakehi.sock"));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kakehi.toml");
    std::fs::write(&path, "").unwrap();
    assert!(load(&path).unwrap().state.settings.command_socket.is_absolute());
}

#[test]
fn what_is_written_is_read_as_what_it_was() {
    // Every key that is honoured, with a value that is not its default.
    let text = example(&|_, key| match key.support {
        Support::Yes | Support::Own => in_use(key),
        _ => None,
    });
    let mut state = read(&text).0;
    state.listeners.values_mut().for_each(|listener| {
        listener.timeouts.front_ms = 1_234;
        listener.sizes.body = 1 << 40;
        listener.forwarding.via = false;
        listener.active = false;
    });
    state.settings.orphan_timeout_ms = Some(1_500);
    let written = super::write::write(&state);
    assert_eq!(read(&written).0, state, "{written}");
    let (usual, _) = read("");
    let written = super::write::write(&usual);
    assert_eq!(read(&written).0, usual, "{written}");
}

#[test]
fn what_no_file_could_say_is_refused() {
    let (mut state, _) = read(&file("", "", "", "", ""));
    super::check(&state).unwrap();
    the_listener_mut(&mut state).sizes.head = 1;
    let error = super::check(&state).unwrap_err();
    assert!(error.contains("max_head_size"), "{error}");
    the_listener_mut(&mut state).sizes.head = limits::MAX_HEAD_SIZE;
    state.clusters.get_mut("web").unwrap().frontends[0].hostname = "a b".to_owned();
    assert!(super::check(&state).unwrap_err().contains("spaces"));
    state.clusters.get_mut("web").unwrap().frontends[0].hostname = "a".to_owned();
    state.clusters.get_mut("web").unwrap().frontends[0].method = Some("G T".to_owned());
    assert!(super::check(&state).unwrap_err().contains("method"));
}

fn the_listener_mut(state: &mut State) -> &mut Listener {
    state.listeners.values_mut().next().unwrap()
}

#[test]
fn a_key_more_that_a_program_knows_is_no_change_of_the_file() {
    let text = file("", "front_timeout = 70", "https_redirect = true", "path = \"/a\"", "weight = 7");
    let digest = |text: &str| super::digest(&parse(text, "k.toml").unwrap());
    assert_eq!(
        digest(&text),
        "49a54a54b87e160d6a81cf6bce107edad9b2ad0d6a8b10b9a0c7d2f6b81f5353",
        "what a state was saved with, or what a supervisor that died had read, must be found again"
    );
    assert_eq!(
        digest(&text),
        digest(&text.replace("front_timeout = 70", "front_timeout = 70\nvia = true # as without it"))
    );
    assert_ne!(digest(&text), digest(&text.replace("weight = 7", "weight = 8")));
}
