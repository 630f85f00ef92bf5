//! What a file says of TLS, of certificates and of connections that are passed on as they are.

use std::path::Path;

use super::{honoured, read};
use crate::{
    config::{
        levels::{BACKEND_TLS, CERTIFICATE, HSTS, LISTENER_TLS},
        parse,
    },
    state::{CipherSuite, Group, Hsts, Listener, ListenerProtocol, Tls, TlsVersion, UnknownName},
};

mod certificates;
mod frontends;
mod written;

const ADDRESS: &str = "127.0.0.1:8443";
/// So that nothing is said of a listener without a certificate.
const TRIO: &str = "certificate = \"c.pem\"\nkey = \"k.pem\"";

/// A listener, whose keys begin in line 4.
fn listener(protocol: &str, keys: &str) -> String {
    format!("[[listeners]]\naddress = \"{ADDRESS}\"\nprotocol = \"{protocol}\"\n{keys}\n")
}

/// A cluster with one frontend for `hostname` (a key, or nothing) on the listener.
fn cluster(name: &str, protocol: &str, hostname: &str, frontend: &str) -> String {
    format!(
        "[clusters.{name}]\nprotocol = \"{protocol}\"\n[[clusters.{name}.frontends]]\naddress = \"{ADDRESS}\"\n{hostname}\n{frontend}\n"
    )
}

const HOST: &str = "hostname = \"a.example\"";

/// What `keys` make of the TLS of a listener that has a certificate, and the warnings.
fn tls(keys: &str) -> (Tls, Vec<String>) {
    let (state, warnings) = read(&listener("https", &format!("{keys}\n{TRIO}")));
    let listener = state.listeners.values().next().unwrap();
    assert_eq!(listener.protocol, ListenerProtocol::Https);
    (listener.tls.as_deref().unwrap().clone(), warnings)
}

fn error(text: &str) -> String {
    match parse(text, "k.toml") {
        Ok(_) => panic!("this was accepted:\n{text}"),
        Err(errors) => errors.lines().next().unwrap(),
    }
}

/// Fails with all of `cases` whose error is not the expected one.
fn expect_errors(cases: &[(String, &str)]) {
    let wrong: String = cases
        .iter()
        .map(|(text, expected)| (error(text), expected))
        .filter(|(found, expected)| found != *expected)
        .map(|(found, expected)| format!("found    {found}\nexpected {expected}\n\n"))
        .collect();
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_documented_defaults_of_tls_are_those_that_apply() {
    let keys =
        LISTENER_TLS.iter().chain(Tls::OWN).filter(|key| honoured(key.support) && !key.default().is_empty());
    let defaults: String = keys.map(|key| format!("{} = {}\n", key.name, key.default())).collect();
    assert!(defaults.contains("send_tls13_tickets = 2\n") && defaults.contains("cipher_list = ["));
    let (found, warnings) = tls(&defaults);
    assert_eq!((found, warnings), (Tls::default(), vec![]));
    assert_eq!(tls(""), (Tls::default(), vec![]));

    let defaults = |keys: &'static crate::keys::Level| -> String {
        let keys = keys.keys().filter(|key| !key.default().is_empty());
        keys.map(|key| format!("{} = {}\n", key.name, key.default())).collect()
    };
    let with = |more: &str| tls(&format!("hsts = {{ enabled = true }}\n{more}")).0.hsts.unwrap();
    let table = defaults(&HSTS).replace('\n', ", ");
    let (all, _) = tls(&format!("hsts = {{ enabled = true, {} }}", table.trim_end_matches(", ")));
    assert_eq!(all.hsts.unwrap(), with(""));
    let backend = |keys: &str| {
        let text = format!("[clusters.a]\nprotocol = \"http\"\n[clusters.a.backend_tls]\n{keys}");
        read(&text).0.clusters["a"].tls.clone().unwrap()
    };
    assert_eq!(backend(&defaults(&BACKEND_TLS)), backend(""));
    // Which one depends on the host.
    assert!(backend("").ca.path.starts_with("/etc"));
    let certificate = |keys: &str| {
        let table = format!("[[listeners.certificates]]\ncertificate = \"c\"\nkey = \"k\"\n{keys}");
        parse(&listener("https", &table), "k.toml").unwrap().certificates
    };
    assert_eq!(certificate(&defaults(&CERTIFICATE)), certificate(""));
}

#[test]
fn versions_suites_and_groups_are_known_by_their_names() {
    let (found, warnings) = tls(
        "tls_versions = [\"tls_v13\", \"TLS_V12\"]\ncipher_list = [\"TLS13_AES_128_GCM_SHA256\", \"ecdhe-rsa-chacha20-poly1305\", \"TLS_AES_128_GCM_SHA256\", \"TLS_CHACHA20_POLY1305_SHA256\"]\ngroups_list = [\"secp384r1\", \"X25519\", \"prime256v1\", \"P-256\"]",
    );
    assert_eq!(found.versions, TlsVersion::ALL);
    assert_eq!(
        found.cipher_suites,
        [
            CipherSuite::Aes128GcmSha256,
            CipherSuite::EcdheRsaChaCha20Poly1305Sha256,
            CipherSuite::ChaCha20Poly1305Sha256
        ]
    );
    assert_eq!(found.groups, [Group::P384, Group::X25519, Group::P256]);
    assert_eq!(warnings, [""; 0]);

    let (found, warnings) = tls("tls_versions = [\"TLS_V11\", \"TLS_V13\"]");
    assert_eq!(found.versions, [TlsVersion::V13]);
    assert_eq!(
        warnings,
        ["k.toml:4:17: `TLS_V11` in `tls_versions` is not spoken: clients need TLS 1.2 at least"]
    );
    let (found, warnings) = tls(
        "tls_versions = [\"TLS_V13\"]\ncipher_suites = [\"TLS_CHACHA20_POLY1305_SHA256\"]\ncipher_list = [\"TLS_AES_128_GCM_SHA256\"]",
    );
    assert_eq!(found.cipher_suites, [CipherSuite::Aes128GcmSha256]);
    assert_eq!(
        warnings,
        ["k.toml:5:1: `cipher_suites` has no effect beside `cipher_list`, of which it is the older name"]
    );
    let (found, _) = tls("tls_versions = [\"TLS_V13\"]\ncipher_suites = [\"TLS_CHACHA20_POLY1305_SHA256\"]");
    assert_eq!(found.cipher_suites, [CipherSuite::ChaCha20Poly1305Sha256]);
}

#[test]
fn what_a_listener_says_of_tls_reaches_the_state() {
    let (found, warnings) = tls(
        "send_tls13_tickets = 0\nhandshake_timeout = 2.5\nstrict_sni_binding = false\nunknown_sni = \"refuse\"\nclient_ca = \"ca.pem\"\nclient_crl = \"/crl.pem\"\nhsts = { enabled = true, max_age = 60, preload = true }",
    );
    assert_eq!((found.tickets, found.handshake_ms, found.strict_sni), (0, 2_500, false));
    assert_eq!(found.unknown_name, UnknownName::Refuse);
    let client_auth = found.client_auth.unwrap();
    assert!(client_auth.required);
    assert_eq!(client_auth.ca.path, Path::new("ca.pem"));
    assert_eq!(client_auth.crl.unwrap().path, Path::new("/crl.pem"));
    let hsts = Hsts {
        enabled: true,
        max_age: 60,
        include_subdomains: false,
        preload: true,
        force_replace_backend: false,
    };
    assert_eq!(found.hsts, Some(hsts));
    assert_eq!(warnings, [""; 0]);

    let with_ca = |word: &str| tls(&format!("client_ca = \"ca\"\nclient_auth = \"{word}\"")).0.client_auth;
    assert!(!with_ca("optional").unwrap().required && with_ca("required").unwrap().required);
    assert_eq!(with_ca("none"), None);
    assert_eq!(tls("client_auth = \"none\"").0.client_auth, None);
}

#[test]
fn http2_is_not_offered_and_that_is_said() {
    let (found, warnings) = tls("alpn_protocols = [\"h2\", \"http/1.1\"]\ndisable_http11 = true");
    assert_eq!(found.alpn, ["http/1.1"]);
    assert_eq!(
        warnings,
        [
            "k.toml:4:19: `h2` in `alpn_protocols` is not spoken yet: it is not offered",
            "k.toml:5:1: `disable_http11` is not honoured: HTTP/2 is not spoken yet, and HTTP/1.1 goes on"
        ]
    );
    let (found, warnings) = tls("alpn_protocols = [\"h2\"]");
    assert_eq!(found.alpn, ["http/1.1"]);
    assert_eq!(
        warnings,
        ["k.toml:4:19: `h2` in `alpn_protocols` is not spoken yet: `http/1.1` is offered in its place"]
    );
}

#[test]
fn a_version_without_a_cipher_suite_is_not_spoken_and_that_is_said() {
    let (found, warnings) = tls("cipher_list = [\"TLS_AES_128_GCM_SHA256\"]");
    assert_eq!(found.versions, [TlsVersion::V13]);
    assert_eq!(
        warnings,
        ["k.toml:4:1: no cipher suite of the listener fits `TLS_V12`, which is therefore not spoken"]
    );
}

#[test]
fn each_error_of_a_listener_names_the_place_and_what_to_write() {
    let https = |keys: &str| listener("https", &format!("{keys}\n{TRIO}"));
    expect_errors(&[
        (
            https("tls_versions = [\"TLS_V14\"]"),
            "k.toml:4:17: unknown word `TLS_V14` in `tls_versions`; did you mean `TLS_V13`?",
        ),
        (https("tls_versions = [\"zz\"]"), "k.toml:4:17: unknown word `zz` in `tls_versions`"),
        (
            https("tls_versions = []"),
            "k.toml:4:16: `tls_versions` must not be empty; leave it out for the default",
        ),
        (
            https("tls_versions = [1]"),
            "k.toml:4:17: `tls_versions` must be an array of versions of TLS (strings), not one with an integer",
        ),
        (
            https("tls_versions = [\"SSL_V3\"]"),
            "k.toml:4:17: `SSL_V3` is not spoken, and `tls_versions` has no other: add `TLS_V12` or `TLS_V13`",
        ),
        (
            https("cipher_list = [\"TLS_AES_128_GCM_SHA265\"]"),
            "k.toml:4:16: unknown word `TLS_AES_128_GCM_SHA265` in `cipher_list`; did you mean `TLS_AES_128_GCM_SHA256`?",
        ),
        (
            https("cipher_list = []"),
            "k.toml:4:15: `cipher_list` must not be empty; leave it out for the default",
        ),
        (
            https("cipher_suites = []"),
            "k.toml:4:17: `cipher_suites` must not be empty; leave it out for the default",
        ),
        (
            https("cipher_suites = [\"ECDHE-RSA-AES128-GCM-SHA256\"]\ntls_versions = [\"TLS_V13\"]"),
            "k.toml:4:1: no cipher suite of the listener fits the versions of TLS: add one",
        ),
        (
            https("groups_list = [\"P-521\"]"),
            "k.toml:4:16: unknown word `P-521` in `groups_list`; did you mean `P-256`?",
        ),
        (
            https("groups_list = []"),
            "k.toml:4:15: `groups_list` must not be empty; leave it out for the default",
        ),
        (
            https("alpn_protocols = []"),
            "k.toml:4:18: `alpn_protocols` must not be empty; leave it out for the default",
        ),
        (
            https("alpn_protocols = [\"http/1.0\"]"),
            "k.toml:4:19: unknown word `http/1.0` in `alpn_protocols`; did you mean `http/1.1`?",
        ),
        (
            https("send_tls13_tickets = 17"),
            "k.toml:4:22: `send_tls13_tickets` must be an integer from 0 to 16, not `17`",
        ),
        (
            https("unknown_sni = \"drop\""),
            "k.toml:4:15: `unknown_sni` must be `default` or `refuse`, not `drop`",
        ),
        (https("hsts = { max_age = 1 }"), "k.toml:4:8: `hsts` needs the key `enabled`"),
        (
            https("client_auth = \"optional\""),
            "k.toml:4:1: `client_auth = \"optional\"` needs `client_ca`: certificates of those who issue the clients' certificates",
        ),
        (https("client_crl = \"x\""), "k.toml:4:1: `client_crl` needs `client_ca` beside it"),
        (listener("https", "certificate = \"x\""), "k.toml:4:1: `certificate` needs `key` beside it"),
        (listener("https", "key = \"x\""), "k.toml:4:1: `key` needs `certificate` beside it"),
        (
            listener("https", "certificate_chain = \"x\""),
            "k.toml:4:1: `certificate_chain` needs `certificate` beside it",
        ),
        (
            listener("https", "[[listeners.certificates]]\nkey = \"x\""),
            "k.toml:4:1: a certificate needs the key `certificate`",
        ),
        (
            listener("https", "[[listeners.certificates]]\ncertificate = \"x\""),
            "k.toml:4:1: a certificate needs the key `key`",
        ),
        (
            listener("https", "certificates = [{ certificate = \"x\", key = \"x\", names = [\"a.*.b\"] }]"),
            "k.toml:4:58: the host name `a.*.b` cannot be used: `*` may only be the first label (`*.example.org`), or the whole name",
        ),
        (
            listener("https", "certificates = [{ certificate = \"x\", key = \"x\", names = [\"*\"] }]"),
            "k.toml:4:58: the host name `*` cannot be used: TLS knows only exact names, and `*.example.org` for any one label",
        ),
        (
            listener(
                "https",
                "certificates = [{ certificate = \"x\", key = \"x\", names = [\"10.0.0.1\"] }]",
            ),
            "k.toml:4:58: the host name `10.0.0.1` cannot be used: no client names an ip address in a TLS handshake",
        ),
        (
            https("certificates = [{ certificate = \"x\", key = \"x\", default = true }]"),
            "k.toml:4:17: the listener has a default certificate already, in line 5",
        ),
        (
            listener(
                "https",
                "certificates = [{ certificate = \"x\", key = \"x\" },\n{ certificate = \"./x\", key = \"x\", names = [\"a\"] }]",
            ),
            "k.toml:5:1: the listener has this certificate already, in line 4",
        ),
        (
            listener("http", "hsts = { enabled = true }"),
            "k.toml:4:1: `hsts` is for listeners of `https` and their frontends only",
        ),
        (
            listener("tcp", "client_ca = \"x\""),
            "k.toml:4:1: `client_ca` is for listeners of `https` and their frontends only",
        ),
        (
            listener("http", "certificates = []"),
            "k.toml:4:1: `certificates` is for listeners of `https` and their frontends only",
        ),
    ]);
}

#[test]
fn keys_of_tls_where_there_is_none_change_nothing() {
    for protocol in ["http", "tcp"] {
        let keys = format!(
            "{TRIO}\ntls_versions = [\"TLS_V13\"]\nclient_auth = \"none\"\nhsts = {{ enabled = false }}"
        );
        let (state, warnings) = read(&listener(protocol, &keys));
        assert_eq!(state.listeners.values().next().unwrap().tls, None);
        let expected =
            ["4:1: `certificate`", "5:1: `key`", "6:1: `tls_versions`", "7:1: `client_auth`", "8:1: `hsts`"];
        let expected = expected.map(|key| {
            format!("k.toml:{key} has no effect: it is for listeners of `https` and their frontends")
        });
        assert_eq!(warnings, expected);
    }
}

#[test]
fn the_proxy_protocol_is_believed_from_the_networks_that_are_named() {
    for protocol in ["http", "https", "tcp"] {
        let keys = if protocol == "https" { TRIO } else { "" };
        let of = |more: &str| {
            let (state, warnings) = read(&listener(protocol, &format!("{keys}\n{more}")));
            assert_eq!(warnings, [""; 0]);
            state.listeners.values().next().unwrap().clone()
        };
        let usual = of("");
        assert!(!usual.expect_proxy && usual.proxy_peers == Listener::default().proxy_peers);
        let named = of(
            "expect_proxy = true\npublic_address = \"192.0.2.1:443\"\nproxy_protocol_from = [\"192.0.2.7\"]",
        );
        assert!(named.expect_proxy && named.public_address.is_some());
        assert_eq!(named.proxy_peers, ["192.0.2.7/32".parse().unwrap()]);
        assert_eq!(of("proxy_protocol_from = []").proxy_peers, []);
    }
}

#[test]
fn backends_are_reached_by_tls() {
    let of = |keys: &str| format!("[clusters.a]\nprotocol = \"http\"\n[clusters.a.backend_tls]\n{keys}\n");
    let text =
        of("ca = \"ca.pem\"\nserver_name = \"app.internal\"\ncertificate = \"c\"\nkey = \"/k\"\nalpn = []");
    let loaded = parse(&text, "/etc/kakehi/k.toml").unwrap();
    let tls = loaded.state.clusters["a"].tls.clone().unwrap();
    assert_eq!(tls.ca.path, Path::new("/etc/kakehi/ca.pem"));
    assert_eq!(tls.server_name.as_deref(), Some("app.internal"));
    let (chain, key) = tls.client.unwrap();
    assert_eq!((chain.path.as_path(), key.path.as_path()), (Path::new("/etc/kakehi/c"), Path::new("/k")));
    assert_eq!(tls.alpn, [""; 0]);
    assert_eq!((loaded.certificates, loaded.warnings), (vec![], vec![]));
    read(&of("server_name = \"::1\""));
    expect_errors(&[
        (of("key = \"k\""), "k.toml:4:1: `key` needs `certificate` beside it"),
        (of("certificate = \"k\""), "k.toml:4:1: `certificate` needs `key` beside it"),
        (of("alpn = [\"h2\"]"), "k.toml:4:9: backends are spoken to in `http/1.1` only, not in `h2`"),
        (of("server_name = \"*.a\""), "k.toml:4:15: `*.a` is no name that a certificate can be asked for"),
        (of("server_name = \"a b\""), "k.toml:4:15: `a b` is no name that a certificate can be asked for"),
    ]);
}
