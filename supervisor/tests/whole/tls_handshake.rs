//! Versions, suites, groups and protocols are agreed on as the listener says; who has nothing in common is told so.

use rustls::{
    AlertDescription::{HandshakeFailure, NoApplicationProtocol, ProtocolVersion as ProtocolVersionAlert},
    NamedGroup, ProtocolVersion,
    crypto::aws_lc_rs::{cipher_suite as suites, kx_group as groups},
};

use crate::harness::{Backend, Config, OK, Pki, ask};

const NO_COMMON: &str = "tls.handshake.failed.no_common_parameters";

#[test]
fn both_versions_are_spoken_and_http_1_1_is_agreed_on() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).start();
    for (caller, version) in
        [(pki.caller().tls12(), ProtocolVersion::TLSv1_2), (pki.caller().tls13(), ProtocolVersion::TLSv1_3)]
    {
        for (offered, agreed) in [
            (&["http/1.1"][..], Some(&b"http/1.1"[..])),
            (&["h2", "http/1.1"], Some(b"http/1.1")),
            (&["http/1.1", "h2"], Some(b"http/1.1")),
            // Who offers nothing at all speaks HTTP/1.1.
            (&[], None),
        ] {
            let mut client = caller.alpn(offered).connect(proxy.address());
            ask(&mut client);
            ask(&mut client);
            assert_eq!(client.agreed().protocol_version(), Some(version));
            assert_eq!(client.agreed().alpn_protocol(), agreed, "{offered:?}");
        }
        for offered in [&["h2"][..], &["http/1.0"], &["h2", "spdy/3"]] {
            caller.alpn(offered).expect_alert(proxy.address(), NoApplicationProtocol);
        }
    }
    proxy.wait_for_counter("tls.handshakes", 8);
    proxy.wait_for_counter("tls.handshake.failed.no_common_protocol", 6);
}

#[test]
fn a_client_with_excluded_parameters_only_is_refused_and_counted() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let caller = pki.caller();
    for (line, taken, refused, alert) in [
        (r#"tls_versions = ["TLS_V12"]"#, caller.tls12(), caller.tls13(), ProtocolVersionAlert),
        (r#"tls_versions = ["TLS_V13"]"#, caller.tls13(), caller.tls12(), ProtocolVersionAlert),
        (
            r#"cipher_list = ["TLS_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]"#,
            caller.suites(&[suites::TLS13_AES_128_GCM_SHA256]),
            caller.suites(&[suites::TLS13_AES_256_GCM_SHA384]),
            HandshakeFailure,
        ),
        (
            r#"cipher_list = ["TLS_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]"#,
            caller.suites(&[suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]),
            caller.suites(&[suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]),
            HandshakeFailure,
        ),
        (
            r#"groups_list = ["P-384"]"#,
            caller.groups(&[groups::SECP384R1]),
            caller.groups(&[groups::X25519, groups::SECP256R1]),
            HandshakeFailure,
        ),
    ] {
        let proxy = Config::https_to(&backend, &pki.issue(&["a"])).listener(line).start();
        ask(&mut taken.connect(proxy.address()));
        refused.expect_alert(proxy.address(), alert);
        ask(&mut caller.connect(proxy.address()));
        proxy.wait_for_counter(NO_COMMON, 1);
        proxy.wait_for_counter("tls.handshakes", 2);
    }
}

#[test]
fn suites_go_by_the_listeners_order_and_groups_by_what_the_client_has_a_share_for() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let caller = pki.caller().tls13();
    for (line, suite, group) in [
        ("", suites::TLS13_AES_256_GCM_SHA384, NamedGroup::X25519MLKEM768),
        (
            r#"cipher_list = ["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"]
tls_versions = ["TLS_V13"]"#,
            suites::TLS13_CHACHA20_POLY1305_SHA256,
            NamedGroup::X25519MLKEM768,
        ),
        (r#"groups_list = ["P-256", "x25519"]"#, suites::TLS13_AES_256_GCM_SHA384, NamedGroup::X25519),
        // There is no share for it: the client is asked for one.
        (r#"groups_list = ["P-256"]"#, suites::TLS13_AES_256_GCM_SHA384, NamedGroup::secp256r1),
    ] {
        let proxy = Config::https_to(&backend, &pki.issue(&["a"])).listener(line).start();
        let all = [groups::X25519MLKEM768, groups::X25519, groups::SECP384R1, groups::SECP256R1];
        let mut client = caller.groups(&all).connect(proxy.address());
        ask(&mut client);
        let agreed = client.agreed();
        assert_eq!(agreed.negotiated_cipher_suite().map(|it| it.suite()), Some(suite.suite()), "{line}");
        assert_eq!(agreed.negotiated_key_exchange_group().map(|it| it.name()), Some(group), "{line}");
    }
}
