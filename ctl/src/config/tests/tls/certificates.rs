//! Certificates that a file asks for.

use std::path::Path;

use super::{super::read, ADDRESS, HOST, TRIO, cluster, listener};
use crate::{
    config::{digest, parse, parse_part},
    state::{CertificateFiles, WantedCertificate},
};

pub(super) fn wanted(certificate: &str, names: &[&str], default: bool) -> WantedCertificate {
    WantedCertificate {
        address: ADDRESS.parse().unwrap(),
        files: CertificateFiles {
            certificate: Path::new("/etc/kakehi").join(certificate).into(),
            chain: None,
            key: Path::new("/etc/kakehi/k.pem").into(),
        },
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        default,
    }
}

#[test]
fn certificates_are_asked_for_once_with_absolute_paths() {
    let tables = "[[listeners.certificates]]\ncertificate = \"./a.pem\"\nkey = \"k.pem\"\nnames = [\"A.example\", \"*.B.example.\"]\n[[listeners.certificates]]\ncertificate = \"c.pem\"\nkey = \"k.pem\"";
    let keys = "certificate = \"f.pem\"\nkey = \"k.pem\"";
    let text = listener("https", &format!("{TRIO}\n{tables}"))
        + &cluster("web", "http", HOST, keys)
        + &cluster("more", "http", "hostname = \"/.+/\"", keys)
        + &cluster(
            "again",
            "http",
            "hostname = \"*\"",
            "certificate = \"a.pem\"\nkey = \"/etc/kakehi/k.pem\"",
        );
    let loaded = parse(&text, "/etc/kakehi/k.toml").unwrap();
    let expected = [
        wanted("c.pem", &[], true),
        wanted("a.pem", &["a.example", "*.b.example"], false),
        wanted("f.pem", &[], false),
    ];
    assert_eq!(loaded.certificates, expected);
    assert_eq!(loaded.warnings, []);
    assert!(loaded.state.clusters.values().all(|it| it.frontends[0].tls.is_none()));

    let chain = listener("https", &format!("{TRIO}\ncertificate_chain = \"i.pem\""));
    let loaded = parse(&chain, "/etc/kakehi/k.toml").unwrap();
    assert_eq!(loaded.certificates[0].files.chain.as_deref(), Some(Path::new("/etc/kakehi/i.pem")));
    let nothing = parse(&format!("activate_listeners = false\n{chain}"), "k.toml").unwrap();
    assert_eq!(nothing.certificates, []);
}

#[test]
fn a_listener_that_has_no_certificate_is_a_warning() {
    let bare = listener("https", "");
    assert_eq!(
        read(&bare).1,
        [
            "k.toml:1:1: the listener `127.0.0.1:8443` has no certificate: handshakes fail until `kakehictl certificate add` gives it one"
        ]
    );
    assert_eq!(read(&(bare.clone() + &cluster("db", "tcp", HOST, ""))).1, [""; 0]);
    let by_frontend = cluster("web", "http", HOST, TRIO);
    assert_eq!(read(&(bare.clone() + &by_frontend)).1, [""; 0]);
    // A part of a file says nothing of the rest.
    assert_eq!(parse_part(&bare, "part", Path::new("/")).unwrap().warnings, []);
}

#[test]
fn a_change_of_certificates_is_a_change_of_the_file() {
    let of = |keys: &str| {
        let loaded = parse(&listener("https", keys), "/k.toml").unwrap();
        digest(&loaded)
    };
    let table = |keys: &str| of(&format!("[[listeners.certificates]]\nkey = \"k\"\n{keys}"));
    let digests = [
        of(""),
        of(TRIO),
        table("certificate = \"c\""),
        table("certificate = \"d\""),
        table("certificate = \"c\"\nnames = [\"a\"]"),
        table("certificate = \"c\"\ndefault = true"),
    ];
    for (n, digest) in digests.iter().enumerate() {
        assert_eq!(digests.iter().position(|it| it == digest), Some(n));
    }
    assert_eq!(table("certificate = \"c\""), table("# comment\ncertificate = \"./c\""));
}
