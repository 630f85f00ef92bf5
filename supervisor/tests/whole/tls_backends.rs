//! Backends are reached by TLS, and only those whose certificate is the right one.

use crate::harness::{
    Backend, Config, End, Framing, GET, OK, OPEN, Pki, Proxy, SWITCHING, Server, ask, assert_same_bytes,
    chunks, exchange, get, noise, wait,
};

const MIB: usize = 1 << 20;

/// A proxy whose only cluster is at `backend`, with TLS as `keys` say.
fn to(backend: &Backend, keys: &str) -> Config {
    Config::to(backend).cluster("all", &format!("backend_tls = {{ {keys} }}"))
}

#[test]
fn a_certificate_for_the_name_or_the_address_is_taken() {
    let pki = Pki::new();
    for (names, keys, name) in [
        (&["backend.test"][..], r#", server_name = "backend.test""#, Some("backend.test")),
        (&["*.b.test"], r#", server_name = "x.b.test""#, Some("x.b.test")),
        (&["127.0.0.1"], "", None),
        (&["127.0.0.1"], r#", server_name = "127.0.0.1""#, None),
    ] {
        for server in [pki.server(names), Server::tls12(&pki.issue(names))] {
            let backend = Backend::respond_over_tls(&server, OK);
            let proxy = to(&backend, &format!("{}{keys}", pki.ca("ca"))).start();
            get(&proxy, "a", "/").expect(200, "ok");
            let shaken = &server.shaken()[0];
            assert_eq!(shaken.name.as_deref(), name);
            assert_eq!(shaken.alpn.as_deref(), Some(&b"http/1.1"[..]));
        }
    }
}

#[test]
fn another_certificate_is_refused_each_time_with_the_reason() {
    let (pki, stranger) = (Pki::new(), Pki::named("Stranger"));
    let name = r#", server_name = "backend.test""#;
    for (issued, keys) in [
        (pki.issue(&["other.test"]), name),
        (pki.issue(&["x.backend.test"]), name),
        (pki.issue(&["127.0.0.1"]), name),
        (stranger.issue(&["backend.test"]), name),
        (pki.issue_expired(&["backend.test"]), name),
        (pki.issue(&["127.0.0.2", "localhost"]), ""),
    ] {
        for server in [Server::new(&issued), Server::tls12(&issued)] {
            let backend = Backend::respond_over_tls(&server, OK);
            let proxy = to(&backend, &format!("{}{keys}", pki.ca("ca"))).start();
            let mut client = proxy.client();
            for _ in 0..5 {
                client.send(GET);
                client.response().expect_answer(502, "backend_certificate");
            }
            backend.expect_untouched();
            assert!(proxy.counter("upstream.tls_errors") >= 5);
            assert_eq!(proxy.counter("worker.restarts"), 0);
        }
    }
}

#[test]
fn a_backends_own_certificate_in_ca_is_taken_with_its_name_and_dates() {
    let pki = Pki::new();
    let name = r#", server_name = "backend.test""#;
    for authority in [true, false] {
        let good = pki.issue_self_signed(&["backend.test"], authority, false);
        let expired = pki.issue_self_signed(&["backend.test"], authority, true);
        // Its common name is `backend.test` too, which says nothing.
        let other = pki.issue_self_signed(&["other.test"], authority, false);
        let stranger = pki.issue_self_signed(&["backend.test"], false, false);
        for (shown, in_ca, taken) in [
            (&good, &good, true),
            (&expired, &expired, false),
            (&other, &other, false),
            (&stranger, &good, false),
        ] {
            for server in [Server::new(shown), Server::tls12(shown)] {
                let backend = Backend::respond_over_tls(&server, OK);
                let ca = format!("ca = \"{}\"{name}", in_ca.certificate.display());
                let proxy = to(&backend, &ca).start();
                let answer = get(&proxy, "a", "/");
                if taken {
                    answer.expect(200, "ok");
                } else {
                    answer.expect_answer(502, "backend_certificate");
                    backend.expect_untouched();
                }
            }
        }
    }
}

#[test]
fn a_self_signed_certificate_of_openssl_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("backend.pem"), folder.path().join("backend.key"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=backend"])
        .args(["-addext", "subjectAltName=DNS:backend.test,IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is needed for this test");
    assert!(made.status.success(), "{made:?}");
    let server = Server::from_files(&certificate, &key);
    let backend = Backend::respond_over_tls(&server, OK);
    let ca = format!("ca = \"{}\"", certificate.display());
    for name in ["", r#", server_name = "backend.test""#] {
        get(&to(&backend, &format!("{ca}{name}")).start(), "a", "/").expect(200, "ok");
    }
    let wrong = to(&backend, &format!(r#"{ca}, server_name = "backend""#)).start();
    get(&wrong, "a", "/").expect_answer(502, "backend_certificate");
}

#[test]
fn a_backend_that_does_not_speak_tls_is_told_apart_from_one_that_is_absent() {
    let pki = Pki::new();
    let garbage = Backend::script(|conn| {
        let _ = conn.bytes(5);
        conn.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let closing = Backend::script(|_| {});
    let silent = Backend::script(|conn| {
        conn.rest();
    });
    for (backend, status, code) in [
        (&garbage, 502, "backend_tls_failed"),
        (&closing, 502, "backend_tls_failed"),
        (&silent, 504, "backend_connect_timeout"),
    ] {
        let proxy = to(backend, &pki.ca("ca")).root("connect_timeout = 0.3").start();
        for _ in 0..2 {
            get(&proxy, "a", "/").expect_answer(status, code);
        }
    }
}

#[test]
fn the_next_backend_serves_where_the_first_has_the_wrong_certificate() {
    let pki = Pki::new();
    let wrong = Backend::respond_over_tls(&pki.server(&["wrong.test"]), OK);
    let right = Backend::respond_over_tls(&pki.server(&["127.0.0.1"]), OK);
    let proxy = to(&wrong, &pki.ca("ca")).backend("all", &right).start();
    for _ in 0..10 {
        get(&proxy, "a", "/").expect(200, "ok");
    }
    wrong.expect_untouched();
    assert_eq!(right.requests().len(), 10);
}

#[test]
fn the_backend_sees_the_certificate_of_the_cluster() {
    let pki = Pki::new();
    let server = Server::demanding(&pki.issue(&["127.0.0.1"]), pki.authority());
    let backend = Backend::respond_over_tls(&server, OK);
    let me = pki.issue_for("kakehi");
    let keys = format!("{}, {}", pki.ca("ca"), me.keys());
    let proxy = to(&backend, &keys).start();
    get(&proxy, "a", "/").expect(200, "ok");
    assert_eq!(server.shaken()[0].client.as_ref(), Some(&me.der));
    // Without one the backend refuses.
    let proxy = to(&backend, &pki.ca("ca")).start();
    let answer = get(&proxy, "a", "/");
    assert_eq!(answer.status(), 502, "{}", answer.text());
}

#[test]
fn connections_are_kept_and_new_ones_resume_the_session() {
    let pki = Pki::new();
    for server in [pki.server(&["127.0.0.1"]), Server::tls12(&pki.issue(&["127.0.0.1"]))] {
        let backend = Backend::tls(&server, |conn| {
            for _ in 0..5 {
                if !conn.serve(|_| OK.to_vec()) {
                    return;
                }
            }
        });
        let proxy = to(&backend, &pki.ca("ca")).start();
        let mut client = proxy.client();
        for _ in 0..5 {
            ask(&mut client);
        }
        assert_eq!(server.shaken().len(), 1, "one connection for all requests");
        for _ in 0..10 {
            wait::until("the backend closes", || backend.ended() == backend.connections());
            for _ in 0..5 {
                ask(&mut client);
            }
        }
        let shaken = server.shaken();
        let resumed = shaken.iter().filter(|it| it.resumed).count();
        assert_eq!((shaken.len(), resumed), (11, 10));
    }
}

#[test]
fn many_at_once_get_an_answer_each() {
    let pki = Pki::new();
    let server = pki.server(&["127.0.0.1"]);
    let backend = Backend::respond_over_tls(&server, OK);
    let proxy = to(&backend, &pki.ca("ca")).root("worker_count = 2").start();
    let mut clients: Vec<_> = (0..40).map(|_| proxy.client()).collect();
    for _ in 0..5 {
        clients.iter_mut().for_each(|client| client.send(GET));
        clients.iter_mut().for_each(|client| client.response().expect(200, "ok"));
    }
    assert_eq!(backend.requests().len(), 200);
}

/// TLS on both sides, on one side, and the request's framing, all mixed.
#[test]
fn bodies_pass_unchanged_in_both_directions() {
    let pki = Pki::new();
    let server = pki.server(&["127.0.0.1"]);
    let backend = Backend::tls(&server, |conn| {
        while let Some(request) = conn.request() {
            let body = request.body.clone();
            let close = request.target() == "/close";
            let answer = match request.target() {
                "/length" => {
                    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body]
                        .concat()
                }
                "/chunked" => {
                    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                    [head, chunks(&body, 9_000), b"0\r\n\r\n".to_vec()].concat()
                }
                _ => [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &body].concat(),
            };
            conn.send(answer);
            if close {
                return;
            }
        }
    });
    let proxy = to(&backend, &pki.ca("ca"))
        .another_listener()
        .https(&pki.issue(&["a"]))
        .frontend_on(1, "all", r#"hostname = "*""#)
        .start();
    for mut client in [proxy.client(), pki.caller().connect(proxy.address_of(1))] {
        for size in [0, 1, 16_383, 16_384, 16_385, MIB, 5 * MIB] {
            let data = noise(size);
            for target in ["/length", "/chunked", "/close"] {
                for chunked in [false, true] {
                    let head = if chunked {
                        "Transfer-Encoding: chunked".to_owned()
                    } else {
                        format!("Content-Length: {size}")
                    };
                    client.send(format!("POST {target} HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"));
                    if chunked {
                        client.send(chunks(&data, 7_000));
                        client.send("0\r\n\r\n");
                    } else {
                        client.send(&data);
                    }
                    let answer = client.response();
                    assert_eq!(answer.status(), 200);
                    let framing = if target == "/length" { Framing::Length } else { Framing::Chunked };
                    assert_eq!(answer.framing, framing);
                    assert_same_bytes(&answer.body, &data, target);
                }
            }
        }
    }
}

#[test]
fn a_body_whose_end_was_not_said_in_tls_is_cut_visibly() {
    let pki = Pki::new();
    let server = pki.server(&["127.0.0.1"]);
    for size in [10, 300_000, 2 * MIB] {
        let backend = Backend::tls(&server, move |conn| {
            let Some(request) = conn.request() else { return };
            conn.send([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'x'; size]].concat());
            // With a word of TLS it is the end, without it somebody has cut it off.
            if request.target() == "/cut" {
                conn.cut();
                conn.rest();
            }
        });
        let proxy = to(&backend, &pki.ca("ca")).start();
        let mut client = proxy.client();
        client.send("GET /whole HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.framing, answer.body.len()), (Framing::Chunked, size));
        client.send("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n");
        let broken = client.try_response().expect_err("the end is missing");
        assert!(matches!(broken.end, End::Eof | End::Reset), "{:?}", broken.end);
        proxy.wait_for_counter("http.backend_truncations", 1);
        // HTTP/1.0 has no other sign than a reset.
        let mut client = proxy.client();
        client.send("GET /cut HTTP/1.0\r\nHost: a\r\n\r\n");
        assert_eq!(client.try_response().expect_err("the end is missing").end, End::Reset);
    }
}

#[test]
fn a_tunnel_through_tls_on_both_sides_ends_one_direction_at_a_time() {
    let pki = Pki::new();
    let server = pki.server(&["127.0.0.1"]);
    let backend = Backend::tls(&server, |conn| {
        let Some(_) = conn.request() else { return };
        conn.send(SWITCHING);
        if conn.number % 2 == 0 {
            conn.echo();
            conn.send("that was all");
        } else {
            // Its direction ends first.
            conn.send("hello");
            conn.half_close();
            assert_eq!(conn.rest(), b"still talking");
        }
    });
    let proxy = to(&backend, &pki.ca("ca")).https(&pki.issue(&["a"])).start();
    let data = noise(2 * MIB);
    for _ in 0..2 {
        let mut client = pki.caller().connect(proxy.address());
        client.send(OPEN);
        assert_eq!(client.head().status(), 101);
        client.send("ping");
        assert_eq!(client.bytes(4), b"ping");
        assert_same_bytes(&client.converse(&data, data.len()), &data, "echo");
        client.half_close();
        assert_eq!(client.rest(), (b"that was all".to_vec(), End::Eof));

        let mut client = pki.caller().connect(proxy.address());
        client.send(OPEN);
        assert_eq!(client.head().status(), 101);
        assert_eq!(client.bytes(5), b"hello");
        client.send("still ");
        assert_eq!(client.rest(), (Vec::new(), End::Eof), "the other direction has ended");
        client.send("talking");
        client.half_close();
        assert_eq!(client.rest().1, End::Eof);
    }
    proxy.wait_for_counter("tunnel.open", 0);
    assert_eq!(backend.connections(), 4);
    wait::until("all scripts have ended", || backend.ended() == 4);
}

#[test]
fn a_backend_changes_its_certificate_and_the_proxy_its_authority() {
    let (pki, new) = (Pki::new(), Pki::named("New"));
    let server = Server::new(&new.issue(&["127.0.0.1"]));
    let backend = Backend::respond_over_tls(&server, OK);
    let proxy: Proxy = to(&backend, &pki.ca("ca")).start();
    get(&proxy, "a", "/").expect_answer(502, "backend_certificate");
    let ca = format!("backend_tls.ca={}", new.authority().certificate.display());
    let output = proxy.ctl(&["cluster", "patch", "all", &ca]);
    assert!(output.status.success(), "{output:?}");
    exchange(&proxy, GET).expect(200, "ok");
}
