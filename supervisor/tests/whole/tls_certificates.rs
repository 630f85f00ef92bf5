//! A client gets the certificate that is for the name that it asks for, with a key that it can use.

use rustls::{AlertDescription, crypto::aws_lc_rs::cipher_suite as suites};

use crate::harness::{Backend, Config, OK, Pki, ask};

#[test]
fn the_name_decides_exact_before_wildcard_before_default() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [default, exact, wild, named] = [
        pki.issue(&["default.test"]),
        pki.issue(&["a.shop.test"]),
        pki.issue(&["*.shop.test"]),
        pki.issue(&["whatever.test"]),
    ];
    let proxy = Config::https_to(&backend, &default)
        .listener("strict_sni_binding = false")
        .certificate(&exact, "")
        .certificate(&wild, "")
        .certificate(&named, r#", names = ["named.test"]"#)
        .start();
    for (name, expects, served) in [
        ("default.test", "default.test", &default),
        ("a.shop.test", "a.shop.test", &exact),
        ("A.Shop.TEST", "a.shop.test", &exact),
        ("b.shop.test", "b.shop.test", &wild),
        ("B.SHOP.test", "b.shop.test", &wild),
        // One label, and not none.
        ("a.b.shop.test", "default.test", &default),
        ("shop.test", "default.test", &default),
        ("named.test", "whatever.test", &named),
        ("whatever.test", "default.test", &default),
        ("unknown.test", "default.test", &default),
    ] {
        for caller in [pki.caller().tls12(), pki.caller().tls13()] {
            let mut client = caller.expecting(expects).to(name).connect(proxy.address());
            assert_eq!(client.served(), served.fingerprint(), "{name}");
            ask(&mut client);
        }
    }
    let mut client = pki.caller().nameless().expecting("default.test").connect(proxy.address());
    assert_eq!(client.served(), default.fingerprint());
    ask(&mut client);
}

#[test]
fn the_default_may_be_one_of_the_others() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [one, two] = [pki.issue(&["one.test"]), pki.issue(&["two.test"])];
    let proxy = Config::to(&backend)
        .listener(r#"protocol = "https""#)
        .certificate(&one, "")
        .certificate(&two, ", default = true")
        .start();
    for caller in [pki.caller().nameless(), pki.caller().to("x.test")] {
        assert_eq!(caller.expecting("two.test").connect(proxy.address()).served(), two.fingerprint());
    }
}

#[test]
fn of_two_kinds_of_keys_a_client_gets_the_one_that_it_knows() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let (ecdsa, rsa) = (pki.issue(&["a"]), pki.issue_rsa(&["a"]));
    for (first, second) in [(&ecdsa, &rsa), (&rsa, &ecdsa)] {
        let proxy = Config::https_to(&backend, first).certificate(second, "").start();
        let caller = pki.caller();
        for (caller, served) in [
            (caller.tls13(), &ecdsa),
            (caller.tls12(), &ecdsa),
            (caller.suites(&[suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]), &rsa),
            (caller.suites(&[suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256]), &rsa),
            (caller.suites(&[suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]), &ecdsa),
        ] {
            let mut client = caller.connect(proxy.address());
            assert_eq!(client.served(), served.fingerprint());
            ask(&mut client);
        }
    }
}

#[test]
fn an_unknown_name_or_none_is_refused_where_that_is_wanted() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a", "*.b.test"]))
        .listener(r#"unknown_sni = "refuse""#)
        .start();
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        for caller in [caller.to("x"), caller.to("b.test"), caller.to("x.y.b.test"), caller.nameless()] {
            caller.expect_alert(proxy.address(), AlertDescription::UnrecognisedName);
        }
        ask(&mut caller.connect(proxy.address()));
        caller.to("x.b.test").connect(proxy.address());
    }
    proxy.wait_for_counter("tls.handshake.failed.unknown_name", 8);
}

#[test]
fn a_frontend_brings_a_certificate_with_it() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [default, shop] = [pki.issue(&["a"]), pki.issue(&["shop.test"])];
    let keys = format!(r#"hostname = "shop.test", {}"#, shop.keys());
    let proxy = Config::https_to(&backend, &default)
        .frontend("all", &keys)
        .frontend("all", &format!(r#"path = "/x", {keys}"#))
        .start();
    let mut client = pki.caller().to("shop.test").connect(proxy.address());
    assert_eq!(client.served(), shop.fingerprint());
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.response().expect(200, "ok");
    assert_eq!(proxy.counter("tls.certificates"), 2);
}
