//! What frontends say of TLS, and those whose connections are passed on as they are.

use std::path::Path;

use super::{super::read, ADDRESS, HOST, TRIO, cluster, error, expect_errors, listener};
use crate::change::FrontendRule;
use crate::state::{ClusterMode, ClusterProtocol, ListenerProtocol, TlsVersion};

#[test]
fn a_frontend_may_ask_for_more_than_its_listener() {
    let of = |of_listener: &str, hostname: &str, keys: &str| {
        let text = listener("https", &format!("{TRIO}\n{of_listener}"))
            + &cluster("web", "http", &format!("hostname = \"{hostname}\""), keys);
        let (state, warnings) = read(&text);
        assert_eq!(warnings, [""; 0]);
        state.clusters["web"].frontends[0].tls.as_deref().cloned()
    };
    assert_eq!(of("", "a.example", ""), None);
    let keys = "tls_versions = [\"TLS_V13\"]\nclient_ca = \"/ca\"\nclient_crl = \"/crl\"\nhsts = { enabled = false }";
    let says = of("client_ca = \"/other\"\nclient_auth = \"optional\"", "*.example", keys).unwrap();
    assert_eq!(says.versions, Some(vec![TlsVersion::V13]));
    let client_auth = says.client_auth.unwrap();
    assert!(client_auth.required && client_auth.crl.is_some() && client_auth.ca.path == Path::new("/ca"));
    assert!(!says.hsts.unwrap().enabled);
    // This is not settled in the handshake.
    assert!(of("", "*", "hsts = { enabled = true }").unwrap().hsts.unwrap().enabled);
    assert!(
        !of("", "a", "client_ca = \"/ca\"\nclient_auth = \"optional\"")
            .unwrap()
            .client_auth
            .unwrap()
            .required
    );
}

#[test]
fn each_error_of_a_frontend_names_the_place_and_what_to_write() {
    let on = |protocol: &str, keys: &str, cluster: String| listener(protocol, keys) + &cluster;
    let web = |keys: &str| cluster("web", "http", HOST, keys);
    let less = "k.toml:12:1: a frontend can only ask for more than its listener: leave `client_auth` to the listener, or take it away there and ask in the other frontends";
    let by_name = |line: usize, what: &str| {
        format!(
            "k.toml:13:1: this frontend and the one in line {line} have the same host name and say otherwise of {what}, which are settled by that name alone"
        )
    };
    let two = |one: &str, other: &str| {
        listener("https", TRIO)
            + &web(one)
            + &format!(
                "path = \"/a\"\n[[clusters.web.frontends]]\naddress = \"{ADDRESS}\"\nhostname = \"A.example.\"\n{other}\n"
            )
    };
    expect_errors(&[
        (on("https", TRIO, web("client_ca = \"x\"\nclient_auth = \"none\"")), less),
        (
            on(
                "https",
                &format!("client_ca = \"x\"\n{TRIO}"),
                web("client_auth = \"optional\"\nclient_ca = \"x\""),
            ),
            less,
        ),
        (
            on("https", TRIO, web("client_auth = \"required\"")),
            "k.toml:11:1: `client_auth = \"required\"` needs `client_ca`: certificates of those who issue the clients' certificates",
        ),
        (on("https", TRIO, web("certificate = \"x\"")), "k.toml:11:1: `certificate` needs `key` beside it"),
        (
            on("https", TRIO, web("tls_versions = [\"TLS_V1\"]")),
            "k.toml:11:17: `TLS_V1` is not spoken, and `tls_versions` has no other: add `TLS_V12` or `TLS_V13`",
        ),
        (
            on(
                "https",
                &format!("{TRIO}\ntls_versions = [\"TLS_V13\"]\ncipher_list = [\"TLS_AES_128_GCM_SHA256\"]"),
                web("tls_versions = [\"TLS_V12\"]"),
            ),
            "k.toml:13:1: no cipher suite of the listener fits the versions of TLS: add one",
        ),
        (on("https", TRIO, web("hsts = { }")), "k.toml:11:8: `hsts` needs the key `enabled`"),
        (
            on("http", "", web("hsts = { enabled = true }")),
            "k.toml:10:1: `hsts` is for listeners of `https` and their frontends only",
        ),
        (
            on("http", "", web("client_ca = \"x\"")),
            "k.toml:10:1: `client_ca` is for listeners of `https` and their frontends only",
        ),
        (
            on("https", TRIO, cluster("web", "http", "hostname = \"*\"", "tls_versions = [\"TLS_V13\"]")),
            "k.toml:11:1: `tls_versions` cannot be honoured for the host name `*`: TLS knows only exact names, and `*.example.org` for any one label",
        ),
        (
            on("https", TRIO, cluster("web", "http", "hostname = \"/a+/.b\"", "client_ca = \"x\"")),
            "k.toml:11:1: `client_ca` cannot be honoured for the host name `/a+/.b`: TLS knows only exact names, and `*.example.org` for any one label",
        ),
        (two("tls_versions = [\"TLS_V13\"]", "tls_versions = [\"TLS_V12\"]"), &by_name(8, "`tls_versions`")),
        (two("client_ca = \"x\"", "client_ca = \"y\""), &by_name(8, "client certificates")),
        (
            two("hsts = { enabled = true }", "path = \"/a\"\nhsts = { enabled = false }")
                .replace("A.example.", "a.example"),
            "k.toml:13:1: this frontend takes the same requests as the one in line 8 and answers them otherwise",
        ),
    ]);
    // One that says nothing contradicts nobody, nor does one that says the same.
    read(&two("tls_versions = [\"TLS_V13\"]", ""));
    read(&two("tls_versions = [\"TLS_V13\"]", "client_ca = \"x\""));
    read(&two("tls_versions = [\"TLS_V13\", \"TLS_V12\"]", "tls_versions = [\"TLS_V12\", \"TLS_V13\"]"));
}

#[test]
fn connections_are_passed_on_as_they_are() {
    let everything = listener("tcp", "") + &cluster("db", "tcp", "", "") + "[clusters.db.udp]\n";
    let (state, warnings) = read(&everything.replace("[clusters.db.udp]\n", ""));
    assert_eq!(warnings, [""; 0]);
    let db = &state.clusters["db"];
    assert_eq!((db.protocol, db.send_proxy), (ClusterProtocol::Tcp, false));
    assert_eq!(db.frontends[0].hostname, "*");
    assert_eq!(state.listeners.values().next().unwrap().protocol, ListenerProtocol::Tcp);

    for (protocol, keys) in [("tcp", ""), ("https", "")] {
        for hostname in ["db.example", "*.db.example"] {
            let host = format!("hostname = \"{hostname}\"");
            let (state, warnings) = read(&(listener(protocol, keys) + &cluster("db", "tcp", &host, "")));
            assert_eq!((state.clusters["db"].frontends[0].hostname.as_str(), warnings.len()), (hostname, 0));
        }
    }
    let both = listener("https", TRIO)
        + &cluster("web", "http", "hostname = \"*\"", "")
        + &cluster("db", "tcp", HOST, "");
    assert_eq!(read(&both).1, [""; 0]);
    let text = "[clusters.db]\nprotocol = \"tcp\"\nsend_proxy = true\nhttps_redirect = true\nmode = \"maintain\"\nmaintenance_retry_after = 5\n";
    let (state, warnings) = read(text);
    assert!(state.clusters["db"].send_proxy && !state.clusters["db"].https_redirect);
    assert_eq!(
        warnings,
        [
            "k.toml:4:1: `https_redirect` has no effect in a cluster of `tcp`, which knows no requests",
            "k.toml:6:1: `maintenance_retry_after` has no effect in a cluster of `tcp`, whose clients cannot be told anything",
        ]
    );
    let db = &state.clusters["db"];
    assert_eq!((db.mode, db.maintenance_retry_after), (ClusterMode::Maintain, None));
}

#[test]
fn protocols_tell_frontends_of_one_name_apart() {
    let text = listener("tcp", "")
        + &cluster("a", "tcp", HOST, "alpn = [\"h3\", \"h2\", \"h3\"]")
        + &cluster("b", "tcp", HOST, "alpn = []")
        + &cluster("c", "tcp", "", &format!("alpn = [\"{}\"]", "x".repeat(255)));
    let (state, warnings) = read(&text);
    assert_eq!(warnings, [""; 0]);
    let alpn = |name: &str| state.clusters[name].frontends[0].predicates.as_ref().map(|it| it.alpn.clone());
    // In an order that tells nothing.
    assert_eq!((alpn("a"), alpn("b")), (Some(vec!["h2".to_owned(), "h3".to_owned()]), None));
    assert_eq!(alpn("c").map(|it| it[0].len()), Some(255));
    assert_eq!(read(&super::super::write::write(&state)).0.clusters, state.clusters);
    let rule = FrontendRule::from(&state.clusters["a"].frontends[0]);
    assert_eq!(rule.asks(), "alpn=[\"h2\", \"h3\"]");
    assert!(!rule.is_of(&state.clusters["b"].frontends[0]));
    // Requests have none.
    let web = listener("http", "") + &cluster("web", "http", HOST, "alpn = []");
    assert_eq!(read(&web).1, [""; 0]);
}

#[test]
fn what_has_no_meaning_for_connections_is_an_error() {
    let of = |protocol: &str, hostname: &str, keys: &str| {
        listener(protocol, "") + &cluster("db", "tcp", hostname, keys)
    };
    let no = |key: &str| {
        format!(
            "k.toml:10:1: `{key}` cannot be honoured in a frontend of a cluster of `tcp`: connections are passed on as they are"
        )
    };
    let keys = [
        ("path", "path = \"/a\""),
        ("method", "method = \"GET\""),
        ("redirect", "redirect = \"unauthorized\""),
        ("required_auth", "required_auth = true"),
        ("tls_versions", "tls_versions = [\"TLS_V13\"]"),
        ("client_ca", "client_ca = \"x\""),
        ("certificate", TRIO),
        ("hsts", "hsts = { enabled = true }"),
    ];
    for (key, text) in keys {
        assert_eq!(error(&of("tcp", HOST, text)), no(key));
        assert_eq!(error(&of("https", HOST, text)), no(key));
    }
    read(&of("tcp", "", "path = \"\"\nredirect = \"forward\"\nrequired_auth = false"));
    let protocols =
        |count: usize| format!("alpn = [{}]", (0..count).map(|n| format!("\"p{n}\",")).collect::<String>());
    let other_host = listener("https", TRIO)
        + &cluster("db", "tcp", HOST, "")
        + &cluster("web", "http", HOST, "path = \"/a\"");
    let two =
        listener("tcp", "") + &cluster("a", "tcp", "", "") + &cluster("b", "tcp", "hostname = \"*\"", "");
    expect_errors(&[
        (
            of("http", HOST, ""),
            "k.toml:8:11: the listener `127.0.0.1:8443` is of `http`, and the cluster `db` of `tcp`: it can have frontends on listeners of `tcp`, and of `https` where a host name is passed through",
        ),
        (
            listener("tcp", "") + &cluster("web", "http", HOST, ""),
            "k.toml:8:11: the listener `127.0.0.1:8443` is of `tcp` and reads no requests: the cluster `web` must be of `tcp` too",
        ),
        (
            of("https", "", ""),
            "k.toml:7:1: a frontend that passes TLS through needs the key `hostname`: an exact name, or `*.name`",
        ),
        (
            of("https", "hostname = \"*\"", ""),
            "k.toml:9:12: the host name `*` cannot be used: TLS knows only exact names, and `*.example.org` for any one label",
        ),
        (
            of("tcp", "hostname = \"/a/.b\"", ""),
            "k.toml:9:12: the host name `/a/.b` cannot be used: TLS knows only exact names, and `*.example.org` for any one label",
        ),
        (
            two,
            "k.toml:13:1: this frontend takes the same requests as the one in line 7 and answers them otherwise",
        ),
        (
            other_host,
            "k.toml:14:1: this host name is passed through by one frontend and decrypted for another, the one in line 8",
        ),
        (
            of("tcp", HOST, "alpn = [\"h2\", \"\"]"),
            "k.toml:10:15: the name of a protocol in `alpn` has 1 to 255 bytes",
        ),
        (
            of("https", HOST, &format!("alpn = [\"{}\"]", "x".repeat(256))),
            "k.toml:10:9: the name of a protocol in `alpn` has 1 to 255 bytes",
        ),
        (of("tcp", "", &protocols(33)), "k.toml:10:1: `alpn` has 32 protocols at most"),
        (
            listener("https", TRIO) + &cluster("web", "http", HOST, "alpn = [\"h2\"]"),
            "k.toml:11:1: `alpn` cannot be honoured in a frontend of a cluster of `http`: it is for connections that are passed on",
        ),
        (
            listener("tcp", "")
                + &cluster("a", "tcp", HOST, "alpn = [\"h2\", \"h3\"]")
                + &cluster("b", "tcp", HOST, "alpn = [\"h3\", \"h2\", \"h2\"]"),
            "k.toml:13:1: this frontend takes the same requests as the one in line 7 and answers them otherwise",
        ),
        (
            "[clusters.db]\nprotocol = \"tcp\"\nbackend_tls = {}".to_owned(),
            "k.toml:3:1: a cluster of `tcp` passes connections on as they are: `backend_tls` is for those of `http`",
        ),
    ]);
}
