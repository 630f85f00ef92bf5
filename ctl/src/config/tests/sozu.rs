//! Keys of sozu 2.3, and where two names for one thing have to say the same.

use super::{file, parse, read, the_listener};
use crate::state::{BackendAddress, ForwardedHeaders, Redirect};

fn error(text: &str) -> String {
    parse(text, "k.toml").unwrap_err().to_string().lines().next().unwrap().to_owned()
}

fn with_tls(keys: &str) -> String {
    format!("[[listeners]]\naddress = \"127.0.0.1:8443\"\nprotocol = \"https\"\n{keys}\n")
}

#[test]
fn a_family_of_fields_that_is_not_added_switches_its_fields_off() {
    for (word, families, x_forwarded, forwarded, warnings) in [
        ("both", ForwardedHeaders::Both, true, true, 0),
        ("x_forwarded", ForwardedHeaders::XForwarded, true, false, 0),
        ("rfc7239", ForwardedHeaders::Rfc7239, false, true, 0),
        ("NONE", ForwardedHeaders::None, false, false, 1),
    ] {
        let text = file("x_forwarded_port = true", &format!("forwarded_headers = \"{word}\""), "", "", "");
        let (state, found) = read(&text);
        assert_eq!(found.len(), warnings, "{found:?}");
        let configured = &the_listener(&state).forwarding;
        let mut effective = configured.effective();
        assert_eq!((configured.families, effective.forwarded), (families, forwarded));
        assert!(effective.x_forwarded().iter().all(|(_, is_added)| **is_added == x_forwarded));
        assert!(effective.via && effective.x_request_id);
    }
    let text = file("", "x_forwarded_for = true\nforwarded_headers = \"rfc7239\"", "", "", "");
    assert_eq!(
        error(&text),
        "k.toml:5:1: `x_forwarded_for = true` says otherwise than `forwarded_headers = \"rfc7239\"` in line 6"
    );
    let text = file("", "x_forwarded_for = false\nforwarded_headers = \"x_forwarded\"", "", "", "");
    let forwarding = the_listener(&read(&text).0).forwarding.effective();
    assert!(!forwarding.x_forwarded_for && forwarding.x_forwarded_host);
}

#[test]
fn the_command_socket_has_the_mode_that_is_asked_for() {
    let bits = |root: &str| {
        let (state, warnings) = read(root);
        (state.settings.command_socket_bits(), warnings.len())
    };
    assert_eq!(bits(""), (0o600, 0));
    assert_eq!(bits("command_allowed_uids = [7]"), (0o666, 0));
    assert_eq!(bits("command_socket_mode = \"0660\"\ncommand_allowed_uids = [7]"), (0o660, 0));
    assert_eq!(bits("command_socket_mode = \"0600\"\ncommand_allowed_uids = [7]"), (0o600, 1));
    assert_eq!(bits("command_socket_mode = \"700\""), (0o700, 0));
    // Nobody but root and our own user is answered all the same.
    assert_eq!(bits("command_socket_mode = \"0666\""), (0o666, 1));
    for mode in ["\"0400\"", "\"1666\"", "\"x\"", "\"\"", "384"] {
        let error = error(&format!("command_socket_mode = {mode}"));
        assert!(error.contains("octal permissions up to `0777`"), "{error}");
    }
}

#[test]
fn lists_of_authorities_and_revocations_are_other_names_for_one() {
    let auth = |keys: &str| {
        let (state, warnings) = read(&with_tls(keys));
        assert!(warnings.iter().all(|it| it.contains("certificate")), "{warnings:?}");
        let tls = state.listeners.into_values().next().unwrap().tls.unwrap();
        let auth = tls.client_auth.unwrap();
        let names = |paths: Vec<&crate::state::Material>| -> Vec<String> {
            paths.iter().map(|it| it.path.display().to_string()).collect()
        };
        (names(auth.cas().collect()), names(auth.crls().collect()), auth.required)
    };
    let one = (vec!["a.pem".to_owned()], vec!["r.pem".to_owned()], true);
    assert_eq!(auth("client_ca = \"a.pem\"\nclient_crl = \"r.pem\""), one);
    assert_eq!(auth("client_ca_certificates = [\"a.pem\"]\nclient_ca_crls = [\"./r.pem\"]"), one);
    assert_eq!(
        auth("client_ca = \"a.pem\"\nclient_ca_certificates = [\"a.pem\"]\nclient_ca_crls = [\"r.pem\"]"),
        one
    );
    let (cas, crls, _) =
        auth("client_ca_certificates = [\"a\", \"b\"]\nclient_ca_crls = [\"r\", \"s\", \"t\"]");
    assert_eq!((cas.len(), crls.len()), (2, 3));

    let (state, _) = read(&with_tls("client_ca_certificates = [\"/a\", \"/b\"]\nclient_auth = \"optional\""));
    assert_eq!(read(&crate::config::write::write(&state)).0.listeners, state.listeners);
    for (keys, expected) in [
        (
            "client_ca = \"a\"\nclient_ca_certificates = [\"a\", \"b\"]",
            "k.toml:5:1: `client_ca_certificates` says otherwise than `client_ca`, another name for it, in line 4",
        ),
        (
            "client_ca = \"a\"\nclient_ca_certificates = []",
            "k.toml:5:26: `client_ca_certificates` must not be empty; leave it out for the default",
        ),
        ("client_ca_crls = [\"r\"]", "k.toml:4:1: `client_ca_crls` needs `client_ca` beside it"),
        (
            "client_ca_certificates = [\"\"]",
            "k.toml:4:27: `client_ca_certificates` is a list of paths of files",
        ),
    ] {
        assert_eq!(error(&with_tls(keys)), expected);
    }
}

#[test]
fn a_backend_on_a_unix_socket_is_named_by_its_address() {
    let more = |address: &str, path: &str| {
        format!("[[clusters.web.backends]]\naddress = \"{address}\"\nunix_path = \"{path}\"")
    };
    let text = file("", "", "", "", &format!("unix_path = \"/run/a\"\n{}", more("127.0.0.1:9001", "@b")));
    let (state, warnings) = read(&text);
    assert_eq!(warnings, [""; 0]);
    let backends = &state.clusters["web"].backends;
    let found: Vec<_> = backends.iter().map(|it| (it.id.as_str(), it.address.to_string())).collect();
    assert_eq!(
        found,
        [("127.0.0.1:9000", "unix:/run/a".to_owned()), ("127.0.0.1:9001", "unix:@b".to_owned())]
    );
    assert_eq!(read(&crate::config::write::write(&state)).0.clusters, state.clusters);
    let BackendAddress::Unix(path) = &backends[1].address else { panic!() };
    assert_eq!(BackendAddress::socket_path(path).to_str(), Some("\0b"));

    for (backend, expected) in [
        (
            format!(
                "unix_path = \"/a\"\nbackend_id = \"a\"\n{}\nbackend_id = \"b\"",
                more("127.0.0.1:9000", "/b")
            ),
            "k.toml:18:1: `127.0.0.1:9000` names the backend with `unix_path` in line 14: no two of them have the same address",
        ),
        (
            "[[clusters.b.backends]]\naddress = \"127.0.0.1:1\"\n[clusters.b]\nprotocol = \"http\"\n[clusters.c]\nprotocol = \"http\"\n\
             backends = [{ address = \"127.0.0.1:1\", unix_path = \"/a\", backend_id = \"a\" }, { address = \"127.0.0.1:1\", unix_path = \"/b\" }]"
                .to_owned(),
            "k.toml:21:80: `127.0.0.1:1` names the backend with `unix_path` in line 21: no two of them have the same address",
        ),
        (
            more("unix:/a", "/b"),
            "k.toml:16:1: the backend has two unix sockets, `unix:/a` and that of `unix_path`: leave one out",
        ),
        (
            more("127.0.0.1:1", "relative"),
            "k.toml:17:13: `unix_path` must be an absolute path of 107 bytes at most, or `@name`, not `relative`",
        ),
        (
            more("127.0.0.1:1", "@"),
            "k.toml:17:13: `unix_path` must be an absolute path of 107 bytes at most, or `@name`, not `@`",
        ),
    ] {
        assert_eq!(error(&file("", "", "", "", &backend)), expected);
    }
    let text = file("", "", "health_check = { port = 81 }", "", "unix_path = \"/run/a\"");
    assert!(error(&text).contains("`port` beside a backend behind a unix socket"));
}

#[test]
fn what_is_read_before_a_name_is_known_is_bounded() {
    let (state, _) = read(&file("", "sni_preread_timeout = 2\nsni_preread_max_bytes = 5", "", "", ""));
    let listener = the_listener(&state);
    assert_eq!((listener.sni_preread_ms, listener.sni_preread_max), (2_000, 5));
    assert!(error(&file("", "sni_preread_max_bytes = 4", "", "", "")).contains("an integer from 5 to 65536"));
}

#[test]
fn a_frontend_redirects_and_rewrites() {
    let text = |keys: &str| file("", "", "", keys, "");
    for (word, redirect, status) in [
        ("permanent", Redirect::Permanent, Some(301)),
        ("FOUND", Redirect::Found, Some(302)),
        ("temporary-redirect", Redirect::TemporaryRedirect, Some(307)),
        ("permanent_redirect", Redirect::PermanentRedirect, Some(308)),
        ("forward", Redirect::Forward, None),
    ] {
        let keys = format!("redirect = \"{word}\"\nrewrite_host = \"b.$HOST[0]\"\nrewrite_port = 81");
        let (state, warnings) = read(&text(&keys));
        assert_eq!(warnings, [""; 0]);
        let frontend = &state.clusters["web"].frontends[0];
        assert_eq!((frontend.redirect, frontend.redirect.status(), frontend.deny), (redirect, status, false));
        let made = frontend.rewrite.as_ref().unwrap();
        assert_eq!((made.host.as_deref(), made.port), (Some("b.$HOST[0]"), Some(81)));
        assert_eq!(read(&crate::config::write::write(&state)).0.clusters, state.clusters);
    }
    let (state, _) = read(&text("redirect = \"silent-close\""));
    assert_eq!(state.clusters["web"].frontends[0].redirect, Redirect::SilentClose);
    assert_eq!(read(&crate::config::write::write(&state)).0.clusters, state.clusters);
    // As before: what is refused is refused, whatever program reads the state.
    let (state, _) = read(&text("redirect = \"unauthorized\"\nrewrite_path = \"/x\""));
    let frontend = &state.clusters["web"].frontends[0];
    assert!(frontend.deny && frontend.redirect == Redirect::Forward);
    assert_eq!(read(&crate::config::write::write(&state)).0.clusters, state.clusters);

    for (keys, warned) in [
        ("redirect = \"found\"", "k.toml:12:12: the redirect leads to where the request was for"),
        ("redirect = \"found\"\nredirect_scheme = \"use-http\"", "k.toml:12:12: the redirect leads to"),
        ("redirect = \"found\"\nrewrite_host = \"$HOST[0]\"", "k.toml:12:12: the redirect leads to"),
        ("redirect = \"silent_close\"\nrewrite_port = 81", "k.toml:13:16: `rewrite_port` has no effect"),
        ("redirect_scheme = \"use-https\"", "k.toml:12:19: `redirect_scheme` has no effect in a frontend"),
        ("redirect = \"found\"\nredirect_scheme = \"use-https\"", ""),
        ("redirect = \"found\"\nrewrite_path = \"/x\"", ""),
    ] {
        let (_, warnings) = read(&text(keys));
        assert_eq!(warnings.len(), usize::from(!warned.is_empty()), "{warnings:?}");
        assert!(warnings.iter().all(|it| it.starts_with(warned)), "{warnings:?}");
    }
    // Two frontends for the same requests make the same of them.
    let twice = |host: &str| {
        let another = format!(
            "[[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"a.example\"\nrewrite_host = \"{host}\""
        );
        text(&format!("rewrite_host = \"b\"\n{another}"))
    };
    assert!(read(&twice("b")).1.is_empty());
    assert!(error(&twice("c")).contains("takes the same requests as the one in line 9"));
    assert!(error(&text("redirect = \"found\"\nrewrite_port = 0")).contains("an integer from 1 to 65535"));
}

#[test]
fn a_frontend_edits_fields() {
    let text = |edits: &str| file("", "", "", &format!("headers = [{edits}]"), "");
    let set = "{ position = \"BOTH\", key = \"X-A\", value = \"b $SNI\" }";
    let (state, warnings) = read(&text(&format!(
        "{set}, {{ position = \"response\", key = \"Server\", value = \"\" }}, {{ position = \"request\", key = \"x\", value = \"y\", append = true }}"
    )));
    assert_eq!(warnings, [""; 0]);
    let edits = &state.clusters["web"].frontends[0].headers;
    let found: Vec<_> =
        edits.iter().map(|it| (it.position.directions(), it.name.as_str(), it.append)).collect();
    assert_eq!(
        found,
        [((true, true), "X-A", false), ((false, true), "Server", false), ((true, false), "x", true)]
    );
    assert_eq!(read(&crate::config::write::write(&state)).0.clusters, state.clusters);
    let edit = |name: &str, value: &str| {
        format!("{{ position = \"request\", key = \"{name}\", value = \"{value}\" }}")
    };
    for (edits, said) in [
        (edit("Content-length", "1"), "k.toml:12:36: `key`: that field says where a message ends"),
        (edit("X", "a\\nb"), "k.toml:12:47: `value`: no field has control characters"),
        (edit("X", &"v".repeat(4_097)), "4096 bytes at most"),
        (edit("", "v"), "a name without spaces"),
        ("{ position = \"request\", key = \"X\" }".to_owned(), "a header edit needs the key `value`"),
        (format!("{}{{}}", format!("{set}, ").repeat(64)), "`headers` has 64 edits at most"),
    ] {
        let found = error(&text(&edits));
        assert!(found.contains(said), "{found}");
    }
    // In a cluster of `tcp` nobody reads them.
    let text = "[[listeners]]\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\n[clusters.a]\nprotocol = \"tcp\"\n\
                frontends = [{ address = \"127.0.0.1:1\", headers = [] }]\n";
    assert!(error(text).contains("`headers` cannot be honoured in a frontend of a cluster of `tcp`"));
}

#[test]
fn a_frontend_asks_for_fields_queries_cookies_and_networks() {
    let of = |keys: &str| file("", "", "", keys, "");
    let keys = "position = \"POST\"\nsources = [\"192.0.2.0/24\", \"::1\"]\nheader_predicates = [{ name = \"X-B\", match = \"present\" }, { name = \"X-A\", value = \"\" }, { name = \"x-a\", value = \"\" }]\nquery_predicates = [{ name = \"Q\", match = \"regex\", value = \"a|b\" }]\ncookie_predicates = [{ name = \"c\", value = \"1\" }]";
    let (state, warnings) = read(&of(keys));
    assert_eq!(warnings, [""; 0]);
    let frontend = &state.clusters["web"].frontends[0];
    let predicates = frontend.predicates.as_ref().unwrap();
    let names: Vec<&str> = predicates.headers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!((names, predicates.len()), (vec!["x-a", "x-b"], 5));
    assert_eq!(frontend.position.word(), "POST");
    assert_eq!(read(&crate::config::write::write(&state)).0.clusters, state.clusters);
    for (keys, reason) in [
        ("header_predicates = [{ name = \"Host\", value = \"a\" }]", "`Host` is what `hostname` is about"),
        ("header_predicates = [{ name = \"x y\", value = \"a\" }]", "no name of a field"),
        ("query_predicates = [{ name = \"a\" }]", "the key `value` is missing"),
        ("query_predicates = [{ value = \"a\" }]", "a predicate needs the key `name`"),
        ("cookie_predicates = [{ name = \"a\", match = \"present\", value = \"a\" }]", "which takes any"),
        (
            "header_predicates = [{ name = \"a\", match = \"prefix\", value = \"a\" }]",
            "`exact` or `regex` or `present`",
        ),
        (
            "header_predicates = [{ name = \"A\", value = \"1\" }, { name = \"a\", value = \"2\" }]",
            "k.toml:12:1: the rule can never match: `header_predicates` asks for two values of `a`",
        ),
    ] {
        let error = parse(&of(keys), "k.toml").unwrap_err().to_string();
        assert!(error.contains(reason), "{keys}: {error}");
    }
    // Two rules that differ in nothing else are two; the same one twice is one.
    let another = |keys: &str| {
        format!(
            "{}[clusters.other]\nprotocol = \"http\"\n[[clusters.other.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"A.example\"\n{keys}\n",
            of("query_predicates = [{ name = \"a\", value = \"1\" }]")
        )
    };
    read(&another(""));
    read(&another("query_predicates = [{ name = \"a\", value = \"2\" }]"));
    let error =
        parse(&another("query_predicates = [{ name = \"a\", value = \"1\" }]"), "k.toml").unwrap_err();
    assert!(error.to_string().contains("takes the same requests"), "{error}");
}

#[test]
fn where_sozu_would_choose_another_rule_is_a_warning() {
    let with = |path: &str, keys: &str| {
        let frontend = format!(
            "[[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"A.EXAMPLE\"\npath = \"{path}\"\n{keys}"
        );
        read(&file("", "", "", "path = \"/a/b\"", &frontend)).1
    };
    let asks = "header_predicates = [{ name = \"a\", match = \"present\" }]";
    let warning = "k.toml:19:1: sozu would take this rule before the one for the longer path `/a/b`: here the longer path wins";
    assert_eq!(with("/a", asks), [warning]);
    for (path, keys) in [
        ("/a/b", asks),
        ("/a/b/c", asks),
        ("/c", asks),
        ("/a", ""),
        ("/a", "query_predicates = [{ name = \"a\", match = \"present\" }]"),
    ] {
        assert_eq!(with(path, keys), [""; 0], "{path} {keys}");
    }
}

#[test]
fn own_answers_are_whole_responses() {
    let page = "HTTP/1.1 503 Gone\\r\\nConnection: close\\r\\n\\r\\n%MESSAGE";
    let (state, warnings) =
        read(&file("", &format!("answers = {{ 503 = \"{page}\", 404 = \"HTTP/1.1 404 X\" }}"), "", "", ""));
    assert_eq!(
        warnings,
        [
            "k.toml:5:19: the field `Connection` is left out: what becomes of a connection is not for a template to say"
        ]
    );
    assert_eq!(state.listeners.values().next().unwrap().answers.0.len(), 2);
    assert_eq!(read(&crate::config::write::write(&state)).0, state);
    for (keys, reason) in [
        ("answers = { 503 = \"gone\" }", "k.toml:8:19: line 1: a response begins with a status line"),
        ("answers = { 503 = \"HTTP/1.1 502 X\" }", "line 1: the status is 502, not 503"),
        ("answers = { 503 = \"HTTP/1.1 503 X\\nA: b\\nContent-Length: 5\" }", "line 3: `Content-Length` and"),
        ("answers = { 200 = \"HTTP/1.1 200 X\" }", "kakehi makes no answer `200`"),
        ("answers = { 5xx = \"HTTP/1.1 503 X\" }", "kakehi makes no answer `5xx`"),
    ] {
        let error = parse(&file("", "", keys, "", ""), "k.toml").unwrap_err().to_string();
        assert!(error.contains(reason), "{keys}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "HTTP/1.1 503 A\n\n").unwrap();
    std::fs::write(folder.path().join("b"), "HTTP/1.1 503 B\n\n").unwrap();
    std::fs::write(folder.path().join("c"), b"HTTP/1.1 503 \xff\n\n").unwrap();
    let path = folder.path().join("k.toml");
    let path = path.to_str().unwrap();
    let parse = |keys: &str| parse(&file("", "", keys, "", ""), path);
    assert_eq!(parse("answers = { 503 = \"file://a\" }\nanswer_503 = \"./a\"").unwrap().warnings, []);
    let error = parse("answers = { 503 = \"file://a\" }\nanswer_503 = \"b\"").unwrap_err().to_string();
    assert!(error.contains(":9:1: `answer_503` is another name of `answers.503` in line 8"), "{error}");
    std::fs::write(folder.path().join("d"), format!("HTTP/1.1 302 D\n\n{}", "d".repeat(1_000_000))).unwrap();
    let frontends: String = (0..40)
        .map(|n| {
            format!(
                "[[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"a{n}\"\nredirect = \"found\"\nredirect_scheme = \"use-https\"\nredirect_template = \"file://d\"\n"
            )
        })
        .collect();
    let error = super::parse(&file("", "", "", "", &frontends), path).unwrap_err().to_string();
    assert!(error.contains("more than 33554432 bytes in all"), "{error}");
    for missing in ["none", "c", "/dev/zero", "."] {
        let warnings = parse(&format!("answer_503 = \"{missing}\"")).unwrap().warnings;
        assert!(
            warnings[0].text.contains("cannot be read, and kakehi's own answer is given"),
            "{warnings:?}"
        );
    }
}
