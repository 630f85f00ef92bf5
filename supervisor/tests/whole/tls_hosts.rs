//! What a connection over TLS may be used for, what a backend learns of it, and what a browser is told to remember.

use crate::harness::{Backend, Client, Config, Message, OK, Pki, exchange};

fn get(client: &mut Client, host: &str) -> Message {
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.response()
}

#[test]
fn a_host_that_the_certificate_is_not_for_is_misdirected_and_the_connection_goes_on() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let config = Config::https_to(&backend, &pki.issue(&["a.test", "*.w.test"]))
        .certificate(&pki.issue(&["other.test"]), "");
    let proxy = config.clone().start();
    let mut client = pki.caller().to("a.test").connect(proxy.address());
    for _ in 0..2 {
        for host in ["a.test", "A.TEST", "a.test:443", "a.test.", "x.w.test", "X.W.Test:8443"] {
            get(&mut client, host).expect(200, "ok");
        }
        for host in ["other.test", "w.test", "x.y.w.test", "127.0.0.1", "[::1]", "b.test:443"] {
            get(&mut client, host).expect_answer(421, "misdirected_request");
        }
    }
    client.send("GET http://other.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n");
    client.response().expect_answer(421, "misdirected_request");
    assert!(backend.requests().iter().all(|request| request.field("Host") != Some("other.test")));

    let proxy = config.listener("strict_sni_binding = false").start();
    let mut client = pki.caller().to("a.test").connect(proxy.address());
    for host in ["a.test", "other.test", "w.test", "127.0.0.1"] {
        get(&mut client, host).expect(200, "ok");
    }
}

#[test]
fn a_client_that_asks_for_no_name_is_bound_to_none() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a.test"])).start();
    let mut client = pki.caller().nameless().expecting("a.test").connect(proxy.address());
    for host in ["a.test", "127.0.0.1", "[::1]:8443", "other.test"] {
        get(&mut client, host).expect(200, "ok");
    }
}

#[test]
fn a_name_that_no_certificate_has_binds_to_itself() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a.test"])).start();
    let mut client = pki.caller().to("unknown.test").expecting("a.test").connect(proxy.address());
    for host in ["unknown.test", "Unknown.Test.:443"] {
        get(&mut client, host).expect(200, "ok");
    }
    for host in ["a.test", "other.test", "127.0.0.1"] {
        get(&mut client, host).expect_answer(421, "misdirected_request");
    }
}

#[test]
fn backends_learn_that_it_was_https() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).start();
    let mut client = pki.caller().connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: http\r\nForwarded: for=evil\r\n\r\n");
    client.response().expect(200, "ok");
    let request = backend.request();
    assert_eq!(request.all("X-Forwarded-Proto"), ["https"]);
    assert_eq!(request.all("X-Forwarded-Port"), [proxy.address().port().to_string().as_str()]);
    assert_eq!(request.all("X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(request.all("Forwarded"), ["for=127.0.0.1;host=a;proto=https"]);
}

#[test]
fn clear_text_is_redirected_and_https_is_not() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    for (line, location) in [("", "https://a/x?y=1"), ("https_redirect_port = 8443", "https://a:8443/x?y=1")]
    {
        let proxy = Config::to(&backend)
            .another_listener()
            .https(&pki.issue(&["a"]))
            .frontend_on(1, "all", r#"hostname = "*""#)
            .cluster("all", "https_redirect = true")
            .cluster("all", line)
            .start();
        for host in ["a", "a:8080"] {
            let answer = exchange(&proxy, format!("GET /x?y=1 HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            answer.expect_answer(301, "https_redirect");
            assert_eq!(answer.all("Location"), [location]);
        }
        get(&mut pki.caller().connect(proxy.address_of(1)), "a").expect(200, "ok");
    }
}

const SET: &str = "Strict-Transport-Security";

#[test]
fn every_answer_over_tls_says_that_it_stays_so_and_none_in_clear_text() {
    let pki = Pki::new();
    let backend = Backend::respond(OK);
    let own = Backend::respond(
        "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nContent-Length: 2\r\n\r\nok",
    );
    let config = |extra: &str| {
        Config::new()
            .frontend("plain", r#"hostname = "a""#)
            .backend("plain", &backend)
            .another_listener()
            .https(&pki.issue(&["a", "own", "off", "ten", "none"]))
            .listener(&format!("hsts = {{ enabled = true{extra} }}"))
            .frontend_on(1, "plain", r#"hostname = "a""#)
            .frontend_on(1, "plain", r#"hostname = "off", hsts = { enabled = false }"#)
            .frontend_on(
                1,
                "plain",
                r#"hostname = "ten", hsts = { enabled = true, max_age = 10, preload = true }"#,
            )
            .frontend_on(1, "own", r#"hostname = "own""#)
            .backend("own", &own)
            .start()
    };
    for (extra, ours, replaced) in [
        ("", "max-age=31536000", "max-age=1"),
        (
            ", max_age = 5, include_subdomains = true, preload = true",
            "max-age=5; includeSubDomains; preload",
            "max-age=1",
        ),
        (", force_replace_backend = true", "max-age=31536000", "max-age=31536000"),
    ] {
        let proxy = config(extra);
        let mut client = pki.caller().connect(proxy.address_of(1));
        for (host, status, expected) in [
            ("a", 200, &[ours][..]),
            ("own", 200, &[replaced]),
            ("off", 200, &[]),
            ("ten", 200, &["max-age=10; preload"]),
            ("none", 404, &[ours]),
            ("x.test", 421, &[ours]),
        ] {
            let answer = get(&mut client, host);
            assert_eq!(answer.status(), status, "{host}");
            assert_eq!(answer.all(SET), expected, "{host} {extra}");
        }
        client.send("GET  HTTP/1.1\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status(), answer.all(SET)), (400, vec![ours]), "{extra}");
        for (host, status) in [("a", 200), ("none", 404)] {
            let answer = exchange(&proxy, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!((answer.status(), answer.all(SET).len()), (status, 0), "{host}");
        }
    }
}

#[test]
fn what_a_listener_began_in_clear_text_does_not_go_on_when_it_speaks_tls() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::to(&backend).start();
    let mut client = proxy.client();
    get(&mut client, "a").expect(200, "ok");
    let text = Config::https_to(&backend, &pki.issue(&["a"])).text(&[proxy.address()]);
    std::fs::write(proxy.folder().join("kakehi.toml"), text).unwrap();
    let output = proxy.ctl(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    get(&mut pki.caller().connect(proxy.address()), "a").expect(200, "ok");
    get(&mut client, "a").expect_answer(421, "misdirected_request");
    client.expect_closed();
}
