//! Connections that are passed on by the protocols that a client of TLS offers (`alpn`), beside the name that it asks for.

use std::{fmt::Write as _, net::SocketAddr};

use rustls::AlertDescription;

use crate::harness::{Backend, Caller, Client, Config, End, GET, OK, Pki, Proxy, Server, ctl, refused, wait};

/// A backend that decrypts for itself, and says its name.
fn named(server: &Server, name: &str) -> Backend {
    Backend::respond_over_tls(
        server,
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()),
    )
}

/// Clusters of `tcp`, each with one frontend and the backend of its name.
fn with(config: Config, frontends: &[(&Backend, &str, &str)]) -> Config {
    frontends.iter().fold(config, |config, (backend, name, keys)| {
        config.cluster(name, r#"protocol = "tcp""#).frontend(name, keys).backend(name, backend)
    })
}

/// Whose answer a client gets.
fn reached(client: &mut Client) -> String {
    client.send(GET);
    client.response().text()
}

fn reaches(caller: &Caller, address: SocketAddr) -> String {
    reached(&mut caller.connect(address))
}

#[test]
fn a_frontend_takes_those_who_offer_one_of_its_protocols_and_leaves_all_others() {
    let pki = Pki::new();
    let server = pki.server(&["a", "b", "x.wild"]);
    let backends = ["both", "acme", "rest", "wild", "other"].map(|name| named(&server, name));
    let [both, acme, rest, wild, other] = &backends;
    let config = Config::new().root("worker_count = 2").listener(r#"protocol = "tcp""#);
    let frontends = [
        (both, "both", r#"hostname = "a", alpn = ["h2", "h3"]"#),
        (acme, "acme", r#"hostname = "a", alpn = ["acme-tls/1"]"#),
        (rest, "rest", r#"hostname = "a""#),
        (wild, "wild", r#"hostname = "*.wild", alpn = ["h2"]"#),
    ];
    let proxy = with(config.clone(), &[&frontends[..], &[(other, "other", "alpn = []")]].concat()).start();
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        for (name, offered, expected) in [
            ("a", &["http/1.1"][..], "rest"),
            ("a", &[], "rest"),
            ("a", &["h2", "http/1.1"], "both"),
            ("A", &["http/1.1", "h3"], "both"),
            ("a", &["H2", "http/1.1"], "rest"),
            // Who offers several is led by the first that there is; what nobody knows (RFC 8701) makes no difference.
            ("a", &["\n\n", "acme-tls/1", "h2", "http/1.1"], "acme"),
            ("a", &["h2", "acme-tls/1", "http/1.1"], "both"),
            ("x.wild", &["h2", "http/1.1"], "wild"),
            ("x.wild", &["http/1.1"], "other"),
            ("b", &["h2", "http/1.1"], "other"),
        ] {
            // Both workers.
            for _ in 0..3 {
                let caller = caller.to(name).alpn(offered).expecting("a");
                assert_eq!(reaches(&caller, proxy.address()), expected, "{name} {offered:?}");
            }
        }
    }
    // Nobody takes the rest: it is as if the name was not known.
    let proxy = with(config, &frontends).start();
    let caller = pki.caller().to("x.wild").expecting("a");
    assert_eq!(reaches(&caller.alpn(&["h2", "http/1.1"]), proxy.address()), "wild");
    for offered in [&["http/1.1"][..], &[]] {
        caller.alpn(offered).expect_alert(proxy.address(), AlertDescription::UnrecognisedName);
    }
    assert_eq!(proxy.counter("tls.handshake.failed.unknown_name"), 2);
}

#[test]
fn without_names_protocols_are_looked_at_all_the_same() {
    let pki = Pki::new();
    let server = pki.server(&["a"]);
    let (h2, rest) = (named(&server, "h2"), named(&server, "rest"));
    let config = Config::new().listener(r#"protocol = "tcp""#).listener("sni_preread_timeout = 5");
    let proxy = with(config.clone(), &[(&h2, "h2", r#"alpn = ["h2"]"#), (&rest, "rest", "")]).start();
    let offers = pki.caller().alpn(&["h2", "http/1.1"]);
    for caller in [offers.clone(), offers.nameless()] {
        assert_eq!(reaches(&caller, proxy.address()), "h2");
    }
    assert_eq!(reaches(&pki.caller(), proxy.address()), "rest");
    // What is no TLS is for the rest, which does not understand it, and for nobody where there is none.
    let untouched = h2.connections();
    proxy.client().send(GET);
    let _ = proxy.client();
    rest.wait_for_requests(1);
    let alone = with(config, &[(&h2, "h2", r#"alpn = ["h2"]"#)]).start();
    let mut client = alone.client();
    client.send(GET);
    let (said, end) = client.rest();
    assert_eq!((said.first(), end), (Some(&21), End::Eof), "an alert");
    assert_eq!(h2.connections(), untouched);
}

#[test]
fn the_first_message_may_come_in_pieces_and_behind_a_header() {
    let pki = Pki::new();
    let caller = pki.caller().tls13().alpn(&["spdy/1", "h2"]);
    let hello = caller.hello();
    let [h2, rest] = ["h2", "rest"].map(|name| {
        Backend::script(move |conn| {
            conn.send(name);
            conn.rest();
        })
    });
    let config = |config: Config| {
        with(config, &[(&h2, "h2", r#"hostname = "a", alpn = ["h2"]"#), (&rest, "rest", r#"hostname = "a""#)])
    };
    // The same handshake in records of one byte each, and of three.
    let records = |size: usize| {
        let mut all = Vec::new();
        for piece in hello[5..].chunks(size) {
            let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
            all.extend([&hello[..3], &length, piece].concat());
        }
        all
    };
    let proxy = config(Config::new().listener(r#"protocol = "tcp""#)).start();
    for (bytes, at_a_time) in [(hello.clone(), 1), (hello.clone(), 7), (records(1), 1000), (records(3), 2)] {
        let mut client = proxy.client();
        for piece in bytes.chunks(at_a_time) {
            client.send(piece);
        }
        assert_eq!(client.bytes(2), b"h2", "{at_a_time} at a time");
        client.half_close();
        let _ = client.rest();
    }
    let all = [&hello[..], &hello, &records(1), &records(3)].concat();
    wait::until("every byte, as it came", || h2.received() == all);
    // Not of this client, though its name and the bytes are there.
    let without = pki.caller().tls13().alpn(&["h2x", "xh2", "http/1.1"]).hello();
    let mut client = proxy.client();
    client.send(&without);
    assert_eq!(client.bytes(4), b"rest");

    let proxy = config(Config::new().listener(r#"protocol = "tcp""#).listener("expect_proxy = true")).start();
    let mut header = String::new();
    write!(header, "PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n").unwrap();
    for at_a_time in [1, 60, 5000] {
        let mut client = proxy.client();
        for piece in [header.as_bytes(), &hello].concat().chunks(at_a_time) {
            client.send(piece);
        }
        assert_eq!(client.bytes(2), b"h2");
    }
}

#[test]
fn beside_names_that_are_decrypted_who_offers_nothing_that_is_passed_on_asks_for_an_unknown_name() {
    let pki = Pki::new();
    let server = pki.server(&["through.test", "*.wild.test", "a"]);
    let (through, here) = (named(&server, "through"), Backend::respond(OK));
    let certificate = pki.issue(&["a", "through.test"]);
    let https = |keys: &str| {
        let config = Config::https_to(&here, &certificate).frontend("web", r#"hostname = "own.wild.test""#);
        let config = config.listener(keys);
        with(
            config,
            &[
                (&through, "through", r#"hostname = "through.test", alpn = ["h2"]"#),
                (&through, "wild", r#"hostname = "*.wild.test", alpn = ["h2"]"#),
            ],
        )
        .start()
    };
    let proxy = https("");
    let offers = pki.caller().alpn(&["h2", "http/1.1"]);
    assert_eq!(reaches(&offers.to("through.test"), proxy.address()), "through");
    assert_eq!(reaches(&offers.to("x.wild.test"), proxy.address()), "through");
    // What is decrypted under its own name is, whatever the client offers.
    assert_eq!(reaches(&offers, proxy.address()), "ok");
    let mut client = offers.to("own.wild.test").expecting("a").connect(proxy.address());
    assert_eq!(client.served(), certificate.fingerprint());
    // The certificate that it has is served; no rule is for the name.
    let mut client = pki.caller().to("through.test").connect(proxy.address());
    assert_eq!(client.served(), certificate.fingerprint());
    let taken = through.connections();
    client.send("GET / HTTP/1.1\r\nHost: through.test\r\n\r\n");
    assert_eq!(client.response().status(), 200, "the rule for all hosts");
    assert_eq!(through.connections(), taken);
}

#[test]
fn frontends_that_differ_in_their_protocols_alone_come_and_go_live() {
    let pki = Pki::new();
    let server = pki.server(&["a"]);
    let (h2, rest) = (named(&server, "h2"), named(&server, "rest"));
    let config = with(
        Config::new().root("worker_count = 2").listener(r#"protocol = "tcp""#),
        &[(&rest, "rest", r#"hostname = "a""#)],
    );
    let proxy = config.cluster("h2", r#"protocol = "tcp""#).backend("h2", &h2).start();
    let address = proxy.address().to_string();
    let offers = pki.caller().alpn(&["h2", "http/1.1"]);
    let check = |proxy: &Proxy, expected: &str| {
        for _ in 0..4 {
            assert_eq!(reaches(&offers, proxy.address()), expected);
            assert_eq!(reaches(&pki.caller(), proxy.address()), "rest");
        }
    };
    check(&proxy, "rest");
    ctl(&proxy, &["frontend", "add", "h2", &address, "a", "--when", r#"alpn=["h3", "h2"]"#]);
    check(&proxy, "h2");
    let list = ctl(&proxy, &["frontend", "list", "h2"]);
    assert!(list.contains(r#"alpn=["h2", "h3"]"#), "{list}");
    // In any order it is the same one, and nobody else may have one of them.
    let said = refused(&proxy, &["frontend", "add", "h2", &address, "a", r#"alpn=["h2", "h3"]"#]);
    assert!(said.contains("already"), "{said}");
    let said = refused(&proxy, &["frontend", "add", "rest", &address, "A", r#"alpn=["h4", "h2"]"#]);
    assert!(said.contains("`h2` and `rest` both take clients that offer `h2`"), "{said}");
    let said = refused(&proxy, &["frontend", "patch", "h2", &address, "a", r#"alpn=["h4"]"#]);
    assert!(
        said.contains("which requests a frontend takes cannot be changed") || said.contains("such"),
        "{said}"
    );
    ctl(&proxy, &["reload"]);
    ctl(&proxy, &["upgrade"]);
    check(&proxy, "h2");
    ctl(&proxy, &["frontend", "remove", "h2", &address, "a", "--when", r#"alpn=["h2", "h3"]"#]);
    check(&proxy, "rest");
    // One for all names.
    ctl(&proxy, &["frontend", "add", "h2", &address, "*", r#"alpn=["h2"]"#]);
    check(&proxy, "rest");
    assert_eq!(reaches(&offers.nameless(), proxy.address()), "h2");
}
