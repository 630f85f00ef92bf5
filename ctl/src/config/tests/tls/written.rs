//! The way back: what is written of TLS is read as what it was.

use std::{net::SocketAddr, sync::Arc};

use super::{super::read, ADDRESS, HOST, TRIO, certificates::wanted, cluster, listener};
use crate::{
    config::{check, load, parse, write},
    state::{Certificate, Fingerprint, KeyKind, Listener, ListenerProtocol, PackedFiles, Place, State},
};

#[test]
fn the_settings_of_certificates_are_those_of_the_root() {
    let text = "certificate_watch = false\ncertificate_watch_interval = 1.5\nticket_key_rotation = 60\n";
    let (state, warnings) = read(text);
    let settings = &state.settings;
    assert!(!settings.certificate_watch);
    assert_eq!((settings.certificate_watch_interval_ms, settings.ticket_key_rotation_ms), (1_500, 60_000));
    assert_eq!(warnings, [""; 0]);
    assert_eq!(read(&write::write(&state)).0, state);
}

/// A state with something of everything, and its certificates.
fn everything() -> State {
    let of_listener = "tls_versions = [\"TLS_V13\"]\ncipher_list = [\"TLS_AES_128_GCM_SHA256\"]\ngroups_list = [\"P-384\"]\nsend_tls13_tickets = 1\nhandshake_timeout = 3\nstrict_sni_binding = false\nunknown_sni = \"refuse\"\nclient_ca = \"/ca\"\nclient_crl = \"/crl\"\nclient_auth = \"optional\"\nhsts = { enabled = false, max_age = 5, include_subdomains = true, preload = true, force_replace_backend = true }\nexpect_proxy = true\nproxy_protocol_from = []";
    let of_frontend = "tls_versions = [\"TLS_V13\"]\nclient_ca = \"/ca2\"\nhsts = { enabled = true }";
    let text = listener("https", of_listener)
        + "[[listeners]]\naddress = \"127.0.0.1:5432\"\nprotocol = \"tcp\"\n"
        + &cluster("web", "http", HOST, of_frontend)
        + "[clusters.web.backend_tls]\nserver_name = \"b\"\ncertificate = \"/c\"\nkey = \"/k\"\nalpn = []\n"
        + &cluster("pass", "tcp", "hostname = \"*.db.example\"", "")
        + "[clusters.db]\nprotocol = \"tcp\"\nsend_proxy = true\nfrontends = [{ address = \"127.0.0.1:5432\" }]\n";
    let mut state = read(&text).0;
    let certificate = |files: Option<&str>, default, named| Certificate {
        names: ["a.example"].into(),
        key: KeyKind::Ecdsa,
        not_after: 0,
        default,
        named,
        place: Place::default(),
        files: files.map(|name| PackedFiles::from(&wanted(name, &[], false).files)),
    };
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let certificates = [
        certificate(Some("a.pem"), true, false),
        certificate(Some("b.pem"), false, true),
        certificate(None, false, true),
        // What a state may have, and a file does not.
        certificate(Some("c.pem"), true, false),
        certificate(Some("b.pem"), false, false),
    ];
    let by_fingerprint = certificates.into_iter().zip(1..).map(|(it, n)| (Fingerprint([n; 32]), it.into()));
    state.certificates.insert(address, by_fingerprint.collect());
    state
}

#[test]
fn what_is_written_of_tls_is_read_as_what_it_was() {
    let mut state = everything();
    for (n, material) in state.materials_mut().enumerate() {
        material.digest = format!("digest {n}");
        material.place = Place { offset: 7, length: 9 };
    }
    assert_eq!(state.materials_mut().count(), 6);
    let bare = state.clone().without_contents();
    assert!(
        bare != state && bare.clone().materials_mut().all(|it| it.digest.is_empty() && it.place.length == 0)
    );
    let text = write::write(&state);
    let loaded = parse(&text, "k.toml").unwrap();
    assert_eq!(State { certificates: bare.certificates.clone(), ..loaded.state }, bare, "{text}");
    let expected =
        [wanted("a.pem", &[], true), wanted("b.pem", &["a.example"], false), wanted("c.pem", &[], false)];
    assert_eq!(loaded.certificates, expected, "{text}");
    assert_eq!(loaded.certificates, state.wanted_certificates());
    assert_eq!(loaded.warnings, []);
    let comment = format!(
        "# Certificates that came over the command socket and have no files are left out:\n#   {} of the listener {ADDRESS}\n\n",
        "03".repeat(32)
    );
    assert!(text.starts_with(&comment), "{text}");
    check(&state).unwrap();
}

#[test]
fn what_no_file_could_say_of_tls_is_refused() {
    let refused = |change: &dyn Fn(&mut State)| {
        let mut state = everything();
        change(&mut state);
        check(&state).unwrap_err()
    };
    fn https(state: &mut State) -> &mut Listener {
        state.listeners.values_mut().find(|it| it.tls.is_some()).unwrap()
    }
    let other = "it has values that no configuration file can have";
    assert_eq!(refused(&|state| https(state).tls = None), other);
    assert!(refused(&|state| https(state).protocol = ListenerProtocol::Http).contains("is of `http`"));
    assert_eq!(
        refused(
            &|state| https(state).tls.as_mut().unwrap().client_auth.as_mut().unwrap().ca.path = "ca".into()
        ),
        other
    );
    assert_eq!(refused(&|state| https(state).tls.as_mut().unwrap().alpn = vec!["h2".to_owned()]), other);
    assert!(refused(&|state| https(state).tls.as_mut().unwrap().versions.clear()).contains("empty"));
    assert_eq!(refused(&|state| state.clusters.get_mut("db").unwrap().https_redirect = true), other);
    assert!(
        refused(&|state| state.clusters.get_mut("pass").unwrap().frontends[0].method = Some("GET".to_owned()))
            .contains("`method` cannot be honoured")
    );
    let unfit = |state: &mut State| {
        let certificate = state.certificates.values_mut().flat_map(|it| it.values_mut()).nth(1).unwrap();
        Arc::make_mut(certificate).names = ["a b"].into();
    };
    assert!(refused(&unfit).contains("spaces"));
    // Those without files stand in no file, and are held to the same.
    let unfit = |state: &mut State| {
        let mut certificates = state.certificates.values_mut().flat_map(|it| it.values_mut());
        let certificate = certificates.find(|it| it.files.is_none()).unwrap();
        Arc::make_mut(certificate).names = ["A.example"].into();
    };
    assert_eq!(refused(&unfit), other);
}

#[test]
fn a_file_that_is_loaded_has_absolute_paths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kakehi.toml");
    std::fs::write(&path, listener("https", &format!("{TRIO}\nclient_ca = \"ca.pem\""))).unwrap();
    let mut loaded = load(&path).unwrap();
    assert!(loaded.state.materials_mut().all(|it| it.path == folder.path().join("ca.pem")));
    assert_eq!(loaded.certificates[0].files.key, folder.path().join("k.pem").into());
}
