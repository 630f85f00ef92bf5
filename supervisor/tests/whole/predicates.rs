//! What rules ask of a request beyond host, path and method, and rules before and behind all others.

use crate::harness::{Backend, Config, OK, Proxy, ctl, exchange, refused};

/// A rule for host `a` and all paths, which tells by its redirect that it took the request.
fn rule(config: Config, name: &str, keys: &str) -> Config {
    let comma = if keys.is_empty() { "" } else { ", " };
    config.frontend(
        "web",
        &format!("hostname = \"a\"{comma}{keys}, redirect = \"found\", rewrite_path = \"/{name}\""),
    )
}

/// The name of the rule that takes a request.
fn taken(proxy: &Proxy, target: &str, fields: &str) -> String {
    let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n");
    let response = exchange(proxy, request);
    let Some(location) = response.field("location") else { return response.status().to_string() };
    location.trim_start_matches("http://a/").split('?').next().unwrap_or_default().to_owned()
}

#[test]
fn a_rule_is_passed_over_where_one_of_its_predicates_does_not_hold() {
    let backend = Backend::respond(OK);
    let mut config = Config::new().root("worker_count = 2").listener("trusted_peers = [\"127.0.0.0/8\"]");
    config = config.backend("web", &backend);
    for (name, keys) in [
        ("plain", ""),
        ("exact", "header_predicates = [{ name = \"X-Tenant\", value = \"blue\" }]"),
        ("regex", "header_predicates = [{ name = \"x-tenant\", match = \"regex\", value = \"gr.*n\" }]"),
        ("present", "header_predicates = [{ name = \"X-Beta\", match = \"present\" }]"),
        ("query", "query_predicates = [{ name = \"v\", value = \"a b+c\" }]"),
        ("cookie", "cookie_predicates = [{ name = \"group\", value = \"b\" }]"),
        ("sources", "sources = [\"192.0.2.0/24\"]"),
        (
            "more",
            "header_predicates = [{ name = \"X-Tenant\", value = \"blue\" }], cookie_predicates = [{ name = \"group\", match = \"present\" }]",
        ),
        ("post", "method = \"POST\", header_predicates = [{ name = \"X-Beta\", match = \"present\" }]"),
        ("long", "path = \"/long\""),
        ("long-beta", "path = \"/long/er\", header_predicates = [{ name = \"X-Beta\", value = \"1\" }]"),
    ] {
        config = rule(config, name, keys);
    }
    let proxy = config.start();
    for (target, fields, name) in [
        ("/", "", "plain"),
        ("/", "X-Tenant: blue\r\n", "exact"),
        ("/", "X-TENANT:  blue \r\n", "exact"),
        ("/", "X-Tenant: Blue\r\n", "plain"),
        ("/", "X-Tenant: red\r\nX-Tenant: blue\r\n", "plain"),
        ("/", "X-Tenant: blue\r\nX-Tenant: red\r\n", "exact"),
        ("/", "X-Tenant: green\r\n", "regex"),
        ("/", "X-Tenant: ogreen\r\n", "plain"),
        ("/", "X-Beta:\r\n", "present"),
        ("/?v=a%20b+c", "", "query"),
        ("/?w&v=a%20b%2bc&v=x", "", "query"),
        ("/?v=x&v=a%20b+c", "", "plain"),
        ("/?v=a%2520b+c", "", "plain"),
        ("/", "Cookie: x=y; group=b\r\n", "cookie"),
        ("/", "Cookie: group=\"b\"\r\n", "plain"),
        ("/", "X-Forwarded-For: 192.0.2.7\r\n", "sources"),
        ("/", "X-Forwarded-For: 192.0.2.7, 198.51.100.1\r\n", "plain"),
        // More of them goes before fewer, and fewer in their order.
        ("/", "X-Tenant: blue\r\nCookie: group=b\r\n", "more"),
        ("/", "X-Tenant: blue\r\nX-Beta: 1\r\nX-Forwarded-For: 192.0.2.7\r\n", "exact"),
        ("/", "X-Beta: 1\r\nX-Forwarded-For: 192.0.2.7\r\n", "present"),
        // Host, path and method go before predicates; who does not fit leaves the request to the next one.
        ("/long/er", "X-Tenant: blue\r\nCookie: group=b\r\n", "long"),
        ("/long/er", "X-Beta: 1\r\n", "long-beta"),
        ("/long/er", "X-Beta: 2\r\n", "long"),
        ("/%6cong/er", "X-Beta: 1\r\n", "400"),
    ] {
        // Both workers.
        for _ in 0..4 {
            assert_eq!(taken(&proxy, target, fields), name, "{target} {fields}");
        }
    }
}

#[test]
fn rules_before_and_behind_all_others_stand_in_their_order() {
    let backend = Backend::respond(OK);
    let mut config = Config::new().backend("web", &backend);
    for (name, keys) in [
        ("behind-1", "position = \"POST\", path = \"/b\""),
        ("behind-2", "position = \"POST\", path = \"/b/c\""),
        ("tree", "path = \"/a\""),
        ("before-1", "position = \"PRE\", path = \"/a/x\", path_type = \"EQUALS\", method = \"GET\""),
        (
            "before-2",
            "position = \"PRE\", header_predicates = [{ name = \"X-Canary\", match = \"present\" }]",
        ),
        ("before-3", "position = \"PRE\", path = \"/a/[0-9]+\", path_type = \"REGEX\""),
    ] {
        config = rule(config, name, keys);
    }
    let proxy = config.start();
    for (target, fields, name) in [
        ("/a", "", "tree"),
        ("/a/x", "X-Canary: 1\r\n", "before-1"),
        ("/a/7", "X-Canary: 1\r\n", "before-2"),
        ("/a/7", "", "before-3"),
        ("/a/7x", "", "tree"),
        ("/b/c", "", "behind-1"),
        ("/c", "", "404"),
        // A spelling that would lead past a rule before all others.
        ("/a/%37", "", "400"),
        ("/a/y/../x", "", "400"),
    ] {
        assert_eq!(taken(&proxy, target, fields), name, "{target} {fields}");
    }
}

#[test]
fn rules_that_differ_in_their_predicates_alone_come_and_go_live() {
    let backend = Backend::respond(OK);
    let config = Config::to(&backend).root("worker_count = 2").backend("web", &backend);
    let proxy = rule(config, "plain", "").start();
    let address = proxy.address().to_string();
    let blue = "header_predicates=[{ name = \"X-Tenant\", value = \"blue\" }]";
    let beta = "cookie_predicates=[{ name = \"beta\", match = \"present\" }]";
    let found = ["redirect=found", "rewrite_path=/blue"];
    let add = |proxy: &Proxy, keys: &[&str]| {
        ctl(proxy, &[&["frontend", "add", "web", &address, "a"], keys].concat());
    };
    add(&proxy, &[&found[..], &[blue]].concat());
    add(&proxy, &["redirect=found", "rewrite_path=/beta", "--when", beta]);
    add(&proxy, &["redirect=found", "rewrite_path=/first", "--when", "position=PRE", "--path", "/first"]);
    let said = refused(&proxy, &["frontend", "add", "web", &address, "a", "--when", blue]);
    assert!(said.contains("already"), "{said}");
    let said = refused(&proxy, &["frontend", "patch", "web", &address, "a", blue]);
    assert!(said.contains("which requests a frontend takes cannot be changed"), "{said}");
    let said = refused(&proxy, &["frontend", "remove", "web", &address, "a", "--when", "redirect=found"]);
    assert!(said.contains("is not about which requests a frontend takes"));
    let check = |proxy: &Proxy, expected: [&str; 4]| {
        let asked = [("/", ""), ("/", "X-Tenant: blue\r\n"), ("/", "Cookie: beta=\r\n"), ("/first", "")];
        for (expected, (target, fields)) in expected.into_iter().zip(asked) {
            for _ in 0..4 {
                assert_eq!(taken(proxy, target, fields), expected, "{fields}");
            }
        }
    };
    check(&proxy, ["plain", "blue", "beta", "first"]);
    // What is by hand outlives a reload and a new program, and a dump has it.
    ctl(&proxy, &["reload"]);
    ctl(&proxy, &["upgrade"]);
    check(&proxy, ["plain", "blue", "beta", "first"]);
    let dump = ctl(&proxy, &["config", "dump"]);
    assert!(dump.contains("match = \"present\"") && dump.contains("position = \"PRE\""), "{dump}");
    let patch = |proxy: &Proxy, keys: &[&str]| {
        ctl(proxy, &[&["frontend", "patch", "web", &address, "a"], keys].concat());
    };
    patch(&proxy, &["rewrite_path=/azure", "--when", blue]);
    // The only one for that path is meant without a word more.
    patch(&proxy, &["rewrite_path=/one", "--path", "/first"]);
    check(&proxy, ["plain", "azure", "beta", "one"]);
    ctl(&proxy, &["frontend", "remove", "web", &address, "a", "--when", beta]);
    ctl(&proxy, &["frontend", "remove", "web", &address, "a", "--path", "/first"]);
    check(&proxy, ["plain", "azure", "plain", "plain"]);
    ctl(&proxy, &["frontend", "remove", "web", &address, "a"]);
    ctl(&proxy, &["frontend", "remove", "web", &address, "a"]);
    check(&proxy, ["200", "200", "200", "200"]);
}

#[test]
fn a_rewritten_path_meets_the_rules_that_its_request_would() {
    let backend = Backend::respond(OK);
    let internal = "header_predicates = [{ name = \"X-Internal\", match = \"present\" }]";
    let proxy = Config::new()
        .root("worker_count = 2")
        .backend("web", &backend)
        .frontend("web", "hostname = \"a\", path = \"/in\", rewrite_path = \"/private$PATH[1]\"")
        .frontend("web", "hostname = \"a\", path = \"/private\", redirect = \"unauthorized\"")
        .frontend("web", &format!("hostname = \"a\", path = \"/private\", {internal}"))
        .frontend(
            "web",
            "hostname = \"a\", position = \"PRE\", path = \"/private/no\", redirect = \"unauthorized\"",
        )
        .start();
    for _ in 0..4 {
        for (target, fields, status) in [
            ("/private/x", "", 401),
            ("/in/x", "", 401),
            ("/private/x", "X-Internal: 1\r\n", 200),
            ("/in/x", "X-Internal: 1\r\n", 200),
            ("/private/no", "X-Internal: 1\r\n", 401),
            ("/in/no", "X-Internal: 1\r\n", 401),
        ] {
            assert_eq!(taken(&proxy, target, fields), status.to_string(), "{target} {fields}");
        }
    }
}
