//! Which backend a request reaches: by host, path and method, and among a cluster's backends by weight and health.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use crate::harness::{Backend, Config, OK, Proxy, exchange, get, wait};

/// A backend that answers with its name.
fn named(name: &str) -> Backend {
    Backend::respond(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// A proxy with one cluster and backend per frontend, each of which answers with its name.
fn routes(frontends: &[(&str, &str)]) -> (Proxy, Vec<Backend>) {
    let backends: Vec<Backend> = frontends.iter().map(|(name, _)| named(name)).collect();
    let config = frontends.iter().zip(&backends).fold(Config::new(), |config, ((name, keys), backend)| {
        config.frontend(name, keys).backend(name, backend)
    });
    (config.start(), backends)
}

/// Fails unless each host and path leads to the backend of that name.
#[track_caller]
fn expect_routes(proxy: &Proxy, expected: &[(&str, &str, &str)]) {
    let mut failures = String::new();
    for (host, path, name) in expected {
        let answer = get(proxy, host, path);
        let got = if answer.status() == 200 { answer.text() } else { answer.status().to_string() };
        if got != *name {
            failures += &format!("http://{host}{path}: expected {name}, got {got}\n");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn hosts_are_matched_exactly_then_by_regex_then_by_wildcard_then_by_any() {
    let (proxy, _backends) = routes(&[
        ("any", r#"hostname = "*""#),
        ("wildcard", r#"hostname = "*.example.org""#),
        ("regex", r#"hostname = "/v[0-9]+/.example.org""#),
        ("exact", r#"hostname = "V1.Example.org""#),
    ]);
    expect_routes(
        &proxy,
        &[
            ("v1.example.org", "/", "exact"),
            ("V1.EXAMPLE.ORG:8080", "/", "exact"),
            ("v1.example.org.", "/", "exact"),
            ("v2.example.org", "/", "regex"),
            ("V22.example.org", "/", "regex"),
            ("xv2.example.org", "/", "wildcard"),
            ("v2x.example.org", "/", "wildcard"),
            ("a.b.example.org", "/", "any"),
            ("example.org", "/", "any"),
            ("[::1]", "/", "any"),
        ],
    );
}

#[test]
fn paths_are_matched_exactly_then_by_regex_then_by_the_longest_prefix() {
    let (proxy, _backends) = routes(&[
        ("root", r#"hostname = "a""#),
        ("api", r#"hostname = "a", path = "/api""#),
        ("users", r#"hostname = "a", path = "/api/users""#),
        ("regex", r#"hostname = "a", path = "/api/[0-9]+", path_type = "REGEX""#),
        ("exact", r#"hostname = "a", path = "/api/1", path_type = "EQUALS""#),
    ]);
    expect_routes(
        &proxy,
        &[
            ("a", "/", "root"),
            ("a", "/api", "api"),
            ("a", "/api/x", "api"),
            ("a", "/api/users/1", "users"),
            ("a", "/api/1", "exact"),
            ("a", "/api/1?query", "exact"),
            ("a", "/api/12", "regex"),
            ("a", "/api/12x", "api"),
            ("b", "/", "404"),
        ],
    );
}

#[test]
fn a_rule_with_a_method_goes_before_one_without() {
    let (proxy, _backends) = routes(&[
        ("any", r#"hostname = "a""#),
        ("post", r#"hostname = "a", method = "POST""#),
        ("only-put", r#"hostname = "b", method = "PUT""#),
    ]);
    exchange(&proxy, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect(200, "any");
    exchange(&proxy, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").expect(200, "post");
    exchange(&proxy, "PUT / HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n").expect(200, "only-put");
    exchange(&proxy, "GET / HTTP/1.1\r\nHost: b\r\n\r\n").expect_answer(404, "no_route");
}

#[test]
fn a_request_for_nobody_gets_404_and_the_connection_stays() {
    let backend = named("a");
    let proxy = Config::new().frontend("a", r#"hostname = "a""#).backend("a", &backend).start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: b\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect_answer(404, "no_route");
    client.response().expect(200, "a");
}

#[test]
fn a_cluster_without_backends_gives_503() {
    let proxy = Config::new().frontend("a", r#"hostname = "a""#).start();
    get(&proxy, "a", "/").expect_answer(503, "no_backend");
}

#[test]
fn a_frontend_that_refuses_gives_401_and_bothers_nobody() {
    let backend = named("a");
    let proxy = Config::new()
        .frontend("a", r#"hostname = "a", redirect = "unauthorized""#)
        .backend("a", &backend)
        .start();
    get(&proxy, "a", "/").expect_answer(401, "denied");
    backend.expect_untouched();
}

#[test]
fn a_path_that_means_two_things_is_refused() {
    let public = named("public");
    let secret = named("secret");
    let proxy = Config::new()
        .frontend("public", r#"hostname = "a""#)
        .backend("public", &public)
        .frontend("secret", r#"hostname = "a", path = "/admin", redirect = "unauthorized""#)
        .backend("secret", &secret)
        .start();
    for path in [
        "/%61dmin",
        "/x/../admin",
        "/./admin",
        "//admin",
        "/x/%2e%2e/admin",
        "/x%2f..%2fadmin",
        "/\\admin",
        "/admi%6e/x",
        "/;x/admin",
    ] {
        let answer = get(&proxy, "a", path);
        assert_eq!(answer.status(), 400, "{path}: {}", answer.text());
        answer.expect_answer(400, "ambiguous_path");
    }
    get(&proxy, "a", "/admin").expect_answer(401, "denied");
    get(&proxy, "a", "/x/../y%20z").expect(200, "public");
    secret.expect_untouched();
    assert_eq!(public.targets(), ["/x/../y%20z"]);
}

#[test]
fn a_listener_knows_its_own_frontends_only() {
    let (first, second) = (named("first"), named("second"));
    let proxy = Config::new()
        .another_listener()
        .frontend_on(0, "first", r#"hostname = "*""#)
        .backend("first", &first)
        .frontend_on(1, "second", r#"hostname = "*""#)
        .backend("second", &second)
        .start();
    get(&proxy, "a", "/").expect(200, "first");
    let mut client = crate::harness::Client::connect(proxy.address_of(1));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect(200, "second");
}

/// How often each name was the answer to `count` requests.
fn counts(proxy: &Proxy, count: usize) -> BTreeMap<String, usize> {
    let mut client = proxy.client();
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.response();
        let name = if answer.status() == 200 { answer.text() } else { format!("{}", answer.status()) };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn expected<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.map(|(name, count)| (name.to_owned(), count)).into()
}

#[test]
fn requests_go_round_the_backends_by_weight() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let config = Config::new().frontend("web", r#"hostname = "*""#);
    let even = config.clone().backend("web", &a).backend("web", &b).backend("web", &c).start();
    assert_eq!(counts(&even, 30), expected([("a", 10), ("b", 10), ("c", 10)]));
    let weighted = config
        .backend_with("web", &a, "weight = 1")
        .backend_with("web", &b, "weight = 3")
        .backend_with("web", &c, "weight = 6")
        .start();
    assert_eq!(counts(&weighted, 100), expected([("a", 10), ("b", 30), ("c", 60)]));
}

/// An address where connections are refused.
fn refusing() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::harness::free_port())).unwrap();
    listener.local_addr().unwrap()
}

#[test]
fn a_backup_is_used_when_no_primary_can_be() {
    let (primary, backup) = (named("primary"), named("backup"));
    let config = Config::new().frontend("web", r#"hostname = "*""#);
    let healthy =
        config.clone().backend("web", &primary).backend_with("web", &backup, "backup = true").start();
    assert_eq!(counts(&healthy, 10), expected([("primary", 10)]));
    backup.expect_untouched();
    let broken = config
        .backend_at("web", &refusing().to_string(), "")
        .backend_with("web", &backup, "backup = true")
        .start();
    assert_eq!(counts(&broken, 10), expected([("backup", 10)]));
}

#[test]
fn a_backend_that_refuses_costs_no_client_a_request() {
    let healthy = named("healthy");
    let proxy = Config::new()
        .frontend("web", r#"hostname = "*""#)
        .backend_at("web", &refusing().to_string(), "")
        .backend("web", &healthy)
        .start();
    assert_eq!(counts(&proxy, 50), expected([("healthy", 50)]));
    // A body that was not sent yet does not stand in the way of the other backend.
    exchange(&proxy, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").expect(200, "healthy");
}

#[test]
fn a_backend_that_comes_back_is_used_again() {
    let address = refusing();
    let other = named("other");
    let proxy = Config::new()
        .frontend("web", r#"hostname = "*""#)
        .backend_at("web", &address.to_string(), "")
        .backend("web", &other)
        .start();
    assert_eq!(counts(&proxy, 10), expected([("other", 10)]));
    let back = Backend::on(TcpListener::bind(address).unwrap(), |conn| {
        while conn.serve(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback".to_vec()) {}
    });
    wait::within(std::time::Duration::from_secs(10), "a request at the backend that is back", || {
        assert_eq!(get(&proxy, "a", "/").status(), 200);
        (back.connections() > 0).then_some(())
    });
}

#[test]
fn no_backend_that_can_be_reached_is_503_and_a_broken_one_502() {
    let proxy = Config::new()
        .frontend("unreachable", r#"hostname = "unreachable""#)
        .backend_at("unreachable", &refusing().to_string(), "")
        .start();
    let answer = get(&proxy, "unreachable", "/");
    // Which of the two it is, is a matter of taste; the reason is not.
    assert!([502, 503].contains(&answer.status()), "{}", answer.text());
    answer.expect_answer(answer.status(), "backend_connect_failed");
}

#[test]
fn a_backend_may_listen_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let backend =
        Backend::unix(&folder.path().join("backend.sock"), |conn| while conn.serve(|_| OK.to_vec()) {});
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        client.response().expect(200, "ok");
    }
    assert_eq!((backend.requests().len(), backend.connections()), (3, 1));
}

#[test]
fn https_redirect_sends_clients_to_the_same_place_in_https() {
    let backend = named("a");
    let proxy = Config::to(&backend).cluster("all", "https_redirect = true").start();
    let answer = get(&proxy, "a.example:81", "/x?y");
    assert_eq!((answer.status(), answer.field("location")), (301, Some("https://a.example/x?y")));
    backend.expect_untouched();
}

#[test]
fn https_redirect_leads_to_a_valid_place_whatever_was_asked_for() {
    let backend = named("a");
    let proxy = Config::to(&backend).cluster("all", "https_redirect = true").start();
    for (head, location) in [
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n", Some("https://a")),
        ("GET /\"<>?a[]=%zz HTTP/1.1\r\nHost: a\r\n", Some("https://a/%22%3C%3E?a%5B%5D=%25zz")),
        ("GET //evil.example/ HTTP/1.1\r\nHost: a\r\n", Some("https://a//evil.example/")),
        ("GET /x HTTP/1.0\r\n", None),
    ] {
        let mut client = proxy.client();
        client.send(format!("{head}\r\n"));
        let answer = client.response();
        assert_eq!(answer.field("location"), location, "{head}");
        if location.is_none() {
            answer.expect_answer(400, "missing_host");
        }
    }
    backend.expect_untouched();
}

#[test]
fn who_came_by_https_to_a_proxy_in_front_that_is_trusted_is_not_sent_there_again() {
    let backend = named("a");
    let redirect = |trusted: &str| {
        let config = Config::to(&backend).cluster("all", "https_redirect = true");
        config.listener(&format!("trusted_peers = [{trusted}]")).start()
    };
    let status = |proxy: &Proxy, fields: &str| {
        let mut client = proxy.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        client.response().status()
    };
    let (trusting, other) = (redirect("\"127.0.0.0/8\""), redirect("\"192.0.2.1\""));
    let https = "X-Forwarded-Proto: https\r\n";
    assert_eq!(status(&trusting, https), 200);
    assert_eq!(status(&trusting, "X-Forwarded-Proto: http\r\n"), 301);
    assert_eq!(status(&trusting, ""), 301);
    assert_eq!(status(&other, https), 301, "anybody can say that");
}
