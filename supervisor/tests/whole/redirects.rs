//! Frontends that lead clients elsewhere, and those that make other hosts and paths of what they forward.

use crate::harness::{Backend, Client, Config, End, Message, OK, Pki, Proxy, exchange};

fn get(proxy: &Proxy, host: &str, target: &str) -> Message {
    exchange(proxy, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// Two workers before frontends with these keys.
fn config(backend: &Backend, frontends: &[&str]) -> Config {
    let config = Config::new().root("worker_count = 2").backend("web", backend);
    frontends.iter().fold(config, |config, keys| config.frontend("web", keys))
}

#[test]
fn each_redirect_has_its_status_and_leads_where_it_is_to() {
    let backend = Backend::respond(OK);
    let proxy = config(
        &backend,
        &[
            r#"hostname = "a", redirect = "permanent", redirect_scheme = "use-https""#,
            r#"hostname = "b", redirect = "found", rewrite_host = "new.example""#,
            r#"hostname = "c", redirect = "temporary_redirect", rewrite_path = "/moved$PATH[0]""#,
            r#"hostname = "*.d", redirect = "permanent_redirect", rewrite_host = "$HOST[1].example", rewrite_port = 8443, redirect_scheme = "use-https""#,
            r#"hostname = "e", path = "/old", redirect = "found", rewrite_path = "/new$PATH[1]""#,
            r#"hostname = "f", path_type = "REGEX", path = "/u/([a-z]+)(/.*)?", redirect = "found", rewrite_host = "f", rewrite_port = 80, rewrite_path = "/$PATH[1]""#,
        ],
    )
    .start();
    for (host, target, status, location) in [
        ("a:8080", "/x?y=1", 301, "https://a/x?y=1"),
        ("b", "/x", 302, "http://new.example/x"),
        ("c:81", "/x?q=/..", 307, "http://c:81/moved/x?q=/.."),
        ("w.d", "/", 308, "https://w.example:8443/"),
        ("e", "/old/a%0d%0ab?c", 302, "http://e/new/a%0d%0ab?c"),
        ("e", "/old//evil.example/", 302, "http://e/new//evil.example/"),
        ("f:99", "/u/me/and?more", 302, "http://f/me?more"),
    ] {
        let response = get(&proxy, host, target);
        assert_eq!((response.status(), response.all("location")), (status, vec![location]), "{host}{target}");
        assert!(response.text().contains("redirect"), "{}", response.text());
    }
    assert!(backend.requests().is_empty());
    assert_eq!(proxy.counter("answers.redirect"), 7);
}

#[test]
fn a_redirect_keeps_the_connection_and_its_scheme_is_the_one_that_the_client_speaks() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let keys = r#"hostname = "a", redirect = "found", rewrite_path = "/x""#;
    let proxy = config(&backend, &[keys]).https(&pki.issue(&["a"])).start();
    let mut client = pki.caller().connect(proxy.address());
    for _ in 0..3 {
        client.send("GET /y HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status(), response.all("location")), (302, vec!["https://a/x"]));
    }
    // A body is read, and what follows is a request of its own.
    client.send("POST /y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.response().status(), 302);

    // A proxy in front that is trusted says what its client speaks.
    let proxy = config(&backend, &[keys]).listener(r#"trusted_peers = ["127.0.0.0/8"]"#).start();
    let request = "GET /y HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(&proxy, request).all("location"), ["https://a/x"]);
}

#[test]
fn who_is_closed_silently_gets_not_a_byte() {
    let backend = Backend::respond(OK);
    let proxy = config(
        &backend,
        &[r#"hostname = "*""#, r#"hostname = "*", path = "/wp-", redirect = "silent_close""#],
    )
    .start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    client.send("GET /wp-login.php HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.rest(), (Vec::new(), End::Eof));
    assert_eq!((proxy.counter("answers.silent_close"), backend.requests().len()), (1, 1));
}

#[test]
fn of_a_host_that_gives_none_none_is_made() {
    let backend = Backend::respond(OK);
    let proxy = config(
        &backend,
        &[
            r#"hostname = "*", path = "/r", redirect = "found", rewrite_host = "$HOST[0].suffix""#,
            r#"hostname = "*", path = "/f", rewrite_host = "$HOST[0].suffix""#,
            r#"hostname = "*", path = "/p", redirect = "found", rewrite_path = "/x""#,
            r#"hostname = "*.lab.test", redirect = "found", rewrite_host = "$HOST[1]""#,
        ],
    )
    .start();
    for (host, target, reason) in [
        ("[::1]:80", "/r", "bad_host"),
        ("[::1]", "/f", "bad_host"),
        ("evil%2ecom.lab.test", "/x", "bad_host"),
    ] {
        get(&proxy, host, target).expect_answer(400, reason);
    }
    for target in ["/r", "/f", "/p"] {
        exchange(&proxy, format!("GET {target} HTTP/1.0\r\n\r\n")).expect_answer(400, "missing_host");
    }
    assert_eq!(get(&proxy, "a.test.", "/r").all("location"), ["http://a.test.suffix/r"]);
    assert_eq!(seen(&backend, &proxy, "a.test.:81", "/f").all("host"), ["a.test.suffix"]);
}

/// What the backend gets of a request.
fn seen(backend: &Backend, proxy: &Proxy, host: &str, target: &str) -> Message {
    get(proxy, host, target).expect(200, "ok");
    backend.requests().pop().unwrap()
}

#[test]
fn backends_see_the_host_and_path_that_a_frontend_makes() {
    let backend = Backend::respond(OK);
    let proxy = config(
        &backend,
        &[
            r#"hostname = "a", path = "/api", rewrite_path = "/v1$PATH[1]""#,
            r#"hostname = "*.tenants.test", rewrite_host = "app.internal", rewrite_port = 9000, rewrite_path = "/$HOST[1]$PATH[0]""#,
            r#"hostname = "/[a-z]+/./[0-9]+/.test", rewrite_host = "$HOST[2].$HOST[1].test""#,
        ],
    )
    .start();
    for (host, target, expected_host, expected_target) in [
        ("a", "/api/x?y=/api", "a", "/v1/x?y=/api"),
        ("A:8080", "/api", "A:8080", "/v1"),
        ("a", "http://a/api/%41", "a", "/v1/%41"),
        ("one.tenants.test", "/", "app.internal:9000", "/one/"),
        ("Two.Tenants.Test:81", "/x//y", "app.internal:9000", "/Two/x//y"),
        ("shop.7.test", "/a", "7.shop.test", "/a"),
    ] {
        let request = seen(&backend, &proxy, host, target);
        assert_eq!((request.all("host"), request.target()), (vec![expected_host], expected_target), "{host}");
        assert_eq!(request.all("x-forwarded-host"), [host], "what the client asked for");
    }
    // The body and the other fields are as they were.
    let request =
        "POST /api/x HTTP/1.1\r\nHost: a\r\nX-A: b\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    exchange(&proxy, request).expect(200, "ok");
    let request = backend.requests().pop().unwrap();
    assert_eq!((request.target(), request.all("x-a"), request.text()), ("/v1/x", vec!["b"], "abc".into()));
}

#[test]
fn what_a_frontend_makes_leads_nobody_past_another_one() {
    let backend = Backend::respond(OK);
    let proxy = config(
        &backend,
        &[
            r#"hostname = "a", path = "/pub", rewrite_path = "/$PATH[1]""#,
            r#"hostname = "a", path = "/secret", redirect = "unauthorized""#,
            r#"hostname = "a", path = "/gone", redirect = "silent_close""#,
            r#"hostname = "a", path = "/lan", allow = ["10.0.0.0/8"]"#,
            r#"hostname = "a", path = "/here", allow = ["127.0.0.0/8"]"#,
        ],
    )
    .start();
    assert_eq!(seen(&backend, &proxy, "a", "/pub/here").target(), "/here");
    assert_eq!(seen(&backend, &proxy, "a", "/pub/ok").target(), "/ok");
    assert_eq!(seen(&backend, &proxy, "a", "/pub//evil.example/x").target(), "/evil.example/x");
    for (target, status) in [
        ("/pub/lan", 403),
        ("/pub/./x", 400),
        ("/pub/secret", 401),
        ("/pub//secret", 401),
        ("/pub///secret/x", 401),
        ("/pub/%73ecret", 400),
        ("/pub/x/..%2fsecret", 400),
        ("/pub/..%2fx", 400),
        ("/pub/..", 400),
        ("/pub/..;/x", 400),
        ("/pub/x%5c..%5c..", 400),
        ("/pub/%2e%2e/x", 400),
        ("/pub/a%00b", 400),
        ("/pub/a\\..\\b", 400),
    ] {
        assert_eq!(get(&proxy, "a", target).status(), status, "{target}");
    }
    let mut client = proxy.client();
    client.send("GET /pub/gone HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.rest(), (Vec::new(), End::Eof));
    assert_eq!(backend.requests().len(), 3);
}

#[test]
fn what_can_be_made_of_nothing_is_refused_before_it_is_served() {
    let backend = Backend::respond(OK);
    let proxy = config(&backend, &[r#"hostname = "a", path = "/x""#]).start();
    for (key, said) in [
        ("rewrite_path=/$PATH[2]", "the last is `$PATH[1]`"),
        ("rewrite_host=$HOST[1]", "the last is `$HOST[0]`"),
        ("rewrite_host=$PATH[1].example", "must not choose hosts"),
        ("rewrite_host=evil@a", "a host has labels"),
        ("rewrite_path=x", "begins with `/`"),
    ] {
        let output =
            proxy.ctl(&["frontend", "patch", "web", &proxy.address().to_string(), "a", "--path", "/x", key]);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && words.contains(said), "{key}: {words}");
    }
    get(&proxy, "a", "/x").expect(200, "ok");
    // Live, for the connections that there are.
    let mut client: Client = proxy.client();
    client.send("GET /x/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    let key = "rewrite_path=/y$PATH[1]";
    let output =
        proxy.ctl(&["frontend", "patch", "web", &proxy.address().to_string(), "a", "--path", "/x", key]);
    assert!(output.status.success(), "{output:?}");
    client.send("GET /x/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().expect(200, "ok");
    assert_eq!(backend.requests().pop().unwrap().target(), "/y/1");
}
