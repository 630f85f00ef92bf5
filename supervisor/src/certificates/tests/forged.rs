//! Changes and states that say what is not so, to have a certificate served that is not the sender's.

use std::sync::Arc;

use kakehi_ctl::state::Names;

use super::*;

#[test]
fn a_change_may_name_a_certificate_only_where_it_was_put_and_as_it_is() {
    let mut keeper = keeper();
    let (fingerprint, certificate) = kept(&mut keeper, &made(&["a.example"]));
    let mut send = |certificate: &Certificate| {
        let certificate = Arc::new(certificate.clone());
        let change = Change::SetCertificate { address: address(443), fingerprint, certificate };
        keeper.furnish_changes(&mut [change]).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(send(&certificate), Ok(()));
    let names = Names::from(["b.example"]);
    assert_eq!(send(&Certificate { named: true, names: names.clone(), ..certificate.clone() }), Ok(()));
    for wrong in [
        Certificate { names, ..certificate.clone() },
        Certificate { named: true, names: ["B.example."].into(), ..certificate.clone() },
        Certificate { named: true, names: ["b example"].into(), ..certificate.clone() },
        Certificate { key: KeyKind::Rsa, ..certificate.clone() },
        Certificate { not_after: certificate.not_after + 1, ..certificate.clone() },
    ] {
        assert!(send(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn bytes_that_look_like_a_certificate_with_the_key_of_another_are_none() {
    let folder = TempDir::new().unwrap();
    let (mut keeper, victim) = (keeper(), made(&["victim.example"]));
    let (fingerprint, certificate) = kept(&mut keeper, &victim);
    let place = certificate.place;
    // A record in the text of a material, which unpacks what is in that of the victim.
    let (record, stored) = (keeper.vault().read(place).unwrap(), keeper.vault().certificate(place).unwrap());
    let forged = stored.record(&[place], &record);
    let text = [&forged[..], b"\n", Authority::new("Authority").certificate.as_bytes()].concat();
    let tls = BackendTls {
        ca: material(&write(&folder, "ca.pem", text)),
        server_name: None,
        client: None,
        alpn: Vec::new(),
    };
    let cluster = Cluster { tls: Some(Box::new(tls)), ..Cluster::default() };
    let mut changes = [Change::SetCluster { name: "a".to_owned(), cluster }];
    keeper.furnish_changes(&mut changes).unwrap();
    let [Change::SetCluster { cluster, .. }] = &changes else { unreachable!() };
    let within = cluster.tls.as_ref().unwrap().ca.place;
    let within = Place { length: forged.len() as u32, ..within };
    let read = keeper.vault().certificate(within).unwrap();
    assert!(read.parts().eq(stored.parts()), "else this test is about nothing");
    let certificate = Arc::new(Certificate { place: within, ..certificate });
    let change = Change::SetCertificate { address: address(443), fingerprint, certificate };
    let error = keeper.furnish_changes(&mut [change]).unwrap_err().to_string();
    assert!(error.contains("certificate add"), "{error}");
}

#[test]
fn a_state_that_is_loaded_says_nothing_of_a_certificate_but_names_to_serve_it_for() {
    let (mut keeper, mut state) = (keeper(), State::default());
    state.listeners.insert(address(443), https(443));
    make(&mut keeper, &mut state, &ask(&made(&["a.example"]), false, None)).unwrap();
    let mut forged = state.clone();
    let all = |state: &mut State, change: fn(&mut Certificate)| {
        let certificates = state.certificates.values_mut().flat_map(|it| it.values_mut());
        certificates.for_each(|certificate| change(Arc::make_mut(certificate)));
    };
    all(&mut forged, |certificate| {
        certificate.names = ["b.example"].into();
        (certificate.not_after, certificate.key, certificate.place) = (1, KeyKind::Rsa, Place::default());
    });
    let mut named = forged.clone();
    keeper.restore(&mut forged, &Default::default(), &state).unwrap();
    assert_eq!(forged, state);
    all(&mut named, |certificate| certificate.named = true);
    let mut wrong = named.clone();
    keeper.restore(&mut named, &Default::default(), &state).unwrap();
    let (names, certificate) = (["b.example"].into(), only(&state).1);
    assert_eq!(only(&named).1, Certificate { names, named: true, ..certificate });
    all(&mut wrong, |certificate| certificate.names = ["b.example "].into());
    let error = keeper.restore(&mut wrong, &Default::default(), &state).unwrap_err().to_string();
    assert!(error.contains("`b.example `"), "{error}");
}
