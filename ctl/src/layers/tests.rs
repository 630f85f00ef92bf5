//! Layers over each other.

use super::*;
use crate::{
    config::parse,
    edit::{Edit, EditError},
    state::{BackendAddress, CertificateFiles, KeyKind, PackedFiles, Place},
};

const FILE: &str = r#"
[[listeners]]
address = "127.0.0.1:80"
protocol = "http"
front_timeout = 50

[clusters.shop]
protocol = "http"
frontends = [{ address = "127.0.0.1:80", hostname = "shop" }, { address = "127.0.0.1:80", hostname = "old" }]
backends = [{ address = "127.0.0.1:1", backend_id = "a" }, { address = "127.0.0.1:2", backend_id = "b" }]
"#;

fn of(text: &str) -> State {
    parse(text, "k.toml").unwrap().state
}

fn edited(state: &mut State, edit: Edit) {
    let edited = edit.change(state, std::path::Path::new("/")).unwrap();
    state.apply_by_hand(&edited.change).unwrap();
}

fn address() -> SocketAddr {
    "127.0.0.1:80".parse().unwrap()
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|it| (*it).to_owned()).collect()
}

fn backend(id: &str, port: u16) -> Backend {
    let address = BackendAddress::Ip(([127, 0, 0, 1], port).into());
    Backend { id: id.to_owned(), address, weight: 100, ..Backend::default() }
}

fn rule_for(hostname: &str) -> FrontendRule {
    let (hostname, path) = (hostname.to_owned(), PathRule::Prefix(String::new()));
    FrontendRule::new(address(), hostname, path, None)
}

/// A state of [`FILE`] with something of each kind by hand.
fn touched() -> State {
    let mut state = of(FILE);
    edited(
        &mut state,
        Edit::PatchListener { address: address(), keys: keys(&["back_timeout=7", "via=false"]) },
    );
    edited(&mut state, Edit::PatchCluster { name: "shop".into(), keys: keys(&["https_redirect=true"]) });
    edited(&mut state, Edit::AddBackend { cluster: "shop".into(), backend: backend("c", 3) });
    edited(
        &mut state,
        Edit::PatchBackend { cluster: "shop".into(), id: "a".into(), keys: keys(&["weight=7"]) },
    );
    let (cluster, id) = ("shop".to_owned(), "b".to_owned());
    edited(&mut state, Edit::from(Change::RemoveBackend { cluster: cluster.clone(), id }));
    let (rule, keys) = (rule_for("new"), Vec::new());
    edited(&mut state, Edit::AddFrontend { cluster: cluster.clone(), rule, keys });
    edited(&mut state, Edit::from(Change::RemoveFrontend { cluster, rule: rule_for("OLD") }));
    edited(&mut state, Edit::AddCluster { name: "mine".into(), keys: Vec::new() });
    edited(&mut state, Edit::AddBackend { cluster: "mine".into(), backend: backend("m", 9) });
    state
}

#[test]
fn what_is_by_hand_is_told_and_the_file_can_be_had_from_it() {
    let state = touched();
    assert_eq!(
        state.describe_by_hand(),
        [
            "~ listener 127.0.0.1:80: back_timeout 30 → 7, via true → false",
            "+ cluster mine",
            "+ backend m of cluster mine",
            "~ cluster shop: https_redirect false → true",
            "+ frontend 127.0.0.1:80 * new prefix  of cluster shop",
            "- frontend 127.0.0.1:80 * old prefix  of cluster shop",
            "~ backend a of cluster shop: weight 100 → 7",
            "- backend b of cluster shop",
            "+ backend c of cluster shop",
        ]
    );
    assert_eq!(state.by_hand.len(), 9);
    let file = state.file_layer();
    // The order of what was removed is not kept.
    assert!(of(FILE).difference(&file).iter().all(|it| matches!(it, Change::SetCluster { .. })));
    assert_eq!(ByHand::between(&of(FILE), &state), state.by_hand);
    assert_eq!(ByHand::between(&file, &state), state.by_hand);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    // A state of an earlier program has none.
    assert!(!serde_json::to_string(&of(FILE)).unwrap().contains("by_hand"));
}

#[test]
fn the_same_file_again_changes_nothing() {
    let state = touched();
    let mut again = of(FILE);
    assert!(state.lay_by_hand_over(&mut again).unwrap().is_empty());
    state.lay_certificates_over(&mut again);
    assert_eq!((&again.listeners, &again.clusters), (&state.listeners, &state.clusters));
    assert_eq!(again.by_hand, state.by_hand);
    // What is by hand is all that it takes.
    let (hand, mut again) = (state.hand_layer(), of(FILE));
    assert_eq!(hand.clusters["shop"].backends.len(), 2);
    hand.lay_by_hand_over(&mut again).unwrap();
    assert_eq!((&again.listeners, &again.clusters), (&state.listeners, &state.clusters));
}

#[test]
fn keys_by_hand_stay_and_the_others_follow_the_file() {
    let state = touched();
    let text = FILE
        .replace("front_timeout = 50", "front_timeout = 51\nback_timeout = 31\nx_forwarded_for = false")
        .replace("backend_id = \"a\" }", "backend_id = \"a\", backup = true, weight = 50 }")
        .replace(
            "hostname = \"shop\" }",
            "hostname = \"shop\" }, { address = \"127.0.0.1:80\", hostname = \"more\" }",
        );
    let mut file = of(&text);
    state.lay_by_hand_over(&mut file).unwrap();
    let listener = &file.listeners[&address()];
    assert_eq!((listener.timeouts.front_ms, listener.timeouts.back_ms), (51_000, 7_000));
    assert!(!listener.forwarding.via && !listener.forwarding.x_forwarded_for);
    let shop = &file.clusters["shop"];
    assert!(shop.https_redirect);
    let backends: Vec<_> = shop.backends.iter().map(|it| (it.id.as_str(), it.weight, it.backup)).collect();
    assert_eq!(backends, [("a", 7, true), ("c", 100, false)]);
    let hostnames: Vec<_> = shop.frontends.iter().map(|it| it.hostname.as_str()).collect();
    assert_eq!(hostnames, ["shop", "more", "new"]);
    assert_eq!(file.clusters["mine"].backends.len(), 1);
    let lines = file.describe_by_hand();
    assert!(
        lines.contains(&"~ listener 127.0.0.1:80: back_timeout 31 → 7, via true → false".to_owned()),
        "{lines:?}"
    );
    assert!(lines.contains(&"~ backend a of cluster shop: weight 50 → 7".to_owned()), "{lines:?}");
}

#[test]
fn what_the_file_says_as_well_is_the_files() {
    let state = touched();
    let text = FILE.replace("front_timeout = 50", "front_timeout = 50\nback_timeout = 7\nvia = false");
    let text = text.replace(", { address = \"127.0.0.1:2\", backend_id = \"b\" }", "");
    let mut file = of(&text);
    assert!(state.lay_by_hand_over(&mut file).unwrap().is_empty());
    let lines = file.describe_by_hand();
    assert!(
        !lines.iter().any(|it| it.contains("listener 127.0.0.1:80:") || it.contains("backend b")),
        "{lines:?}"
    );
    // From now on it follows the file.
    let mut next = of(FILE);
    file.lay_by_hand_over(&mut next).unwrap();
    assert_eq!(next.listeners[&address()].timeouts.back_ms, 30_000);
}

#[test]
fn what_was_undone_by_hand_is_the_files_again() {
    let mut state = touched();
    edited(&mut state, Edit::PatchListener { address: address(), keys: keys(&["back_timeout=", "via="]) });
    edited(&mut state, Edit::PatchCluster { name: "shop".into(), keys: keys(&["https_redirect="]) });
    edited(
        &mut state,
        Edit::PatchBackend { cluster: "shop".into(), id: "a".into(), keys: keys(&["weight="]) },
    );
    edited(&mut state, Edit::AddBackend { cluster: "shop".into(), backend: backend("b", 2) });
    let (cluster, id) = ("shop".to_owned(), "c".to_owned());
    edited(&mut state, Edit::from(Change::RemoveBackend { cluster: cluster.clone(), id }));
    edited(
        &mut state,
        Edit::from(Change::RemoveFrontend { cluster: cluster.clone(), rule: rule_for("new") }),
    );
    edited(&mut state, Edit::AddFrontend { cluster, rule: rule_for("old"), keys: Vec::new() });
    edited(&mut state, Edit::from(Change::RemoveCluster { name: "mine".into() }));
    assert_eq!(state.describe_by_hand(), [""; 0]);
    assert!(state.by_hand.is_empty());
}

#[test]
fn what_the_file_drops_goes_with_what_was_changed_of_it_and_is_named() {
    let state = touched();
    let mut file = of(&FILE.replace("backend_id = \"a\"", "backend_id = \"z\""));
    let void = state.lay_by_hand_over(&mut file).unwrap();
    assert!(void.len() == 1 && void[0].contains("backend a of cluster shop"), "{void:?}");
    let mut file = of(FILE.split("[clusters").next().unwrap());
    let void = state.lay_by_hand_over(&mut file).unwrap();
    assert!(void.len() == 1 && void[0].contains("cluster shop"), "{void:?}");
    assert_eq!(file.clusters.keys().collect::<Vec<_>>(), ["mine"]);
    // One that by hand has a frontend, and now no listener, is the caller's to refuse.
    let mut state = touched();
    let rule = rule_for("mine");
    edited(&mut state, Edit::AddFrontend { cluster: "mine".into(), rule, keys: Vec::new() });
    let mut file = of("");
    state.lay_by_hand_over(&mut file).unwrap();
    assert!(matches!(file.check(), Err(ChangeError::NoListenerFor { .. })));
}

#[test]
fn a_cluster_that_was_removed_by_hand_stays_so_with_all_that_the_file_gives_it() {
    let mut state = of(FILE);
    edited(&mut state, Edit::from(Change::RemoveCluster { name: "shop".into() }));
    let mut file = of(&FILE.replace("backend_id = \"a\"", "backend_id = \"z\""));
    state.lay_by_hand_over(&mut file).unwrap();
    assert!(file.clusters.is_empty());
    assert_eq!(file.describe_by_hand(), ["- cluster shop"]);
    // One that is made anew by hand has what it was given by hand only.
    edited(&mut state, Edit::AddCluster { name: "shop".into(), keys: Vec::new() });
    edited(&mut state, Edit::AddBackend { cluster: "shop".into(), backend: backend("mine", 9) });
    let mut file = of(FILE);
    state.lay_by_hand_over(&mut file).unwrap();
    let shop = &file.clusters["shop"];
    assert_eq!((shop.frontends.len(), shop.backends.len()), (0, 1));
    assert_eq!(file.file_layer().clusters["shop"].backends.len(), 2);
}

#[test]
fn keys_that_contradict_each_other_are_named() {
    let mut state = of(FILE);
    edited(&mut state, Edit::PatchListener { address: address(), keys: keys(&["request_timeout=40"]) });
    let bad = Edit::PatchListener { address: address(), keys: keys(&["front_timeout=soon"]) };
    assert!(matches!(bad.change(&state, std::path::Path::new("/")), Err(EditError::Usage(_))));
    // A change that fails leaves no mark.
    let before = state.clone();
    let missing = Change::RemoveBackend { cluster: "shop".into(), id: "nobody".into() };
    assert!(state.apply_by_hand(&missing).is_err());
    let missing = Change::RemoveCluster { name: "nobody".into() };
    assert!(state.apply_by_hand(&missing).is_err());
    assert_eq!(state, before);
}

#[test]
fn layers_lie_over_each_other_in_this_order() {
    assert!(Owner::File < Owner::Feed && Owner::Feed < Owner::Hand);
    assert_eq!(Owner::Hand.words(), "by hand");
}

fn certificate(n: u8, name: &str, default: bool) -> Arc<Certificate> {
    let path = |end: &str| std::path::Path::new(&format!("/{name}.{end}")).into();
    let files = CertificateFiles { certificate: path("pem"), chain: None, key: path("key") };
    Arc::new(Certificate {
        names: [name].into(),
        key: KeyKind::Ecdsa,
        not_after: i64::from(n),
        default,
        named: false,
        place: Place { offset: u64::from(n) * 4_096, length: 9 },
        files: Some(PackedFiles::from(&files)),
    })
}

fn fingerprint(n: u8) -> Fingerprint {
    Fingerprint([n; 32])
}

/// A listener of TLS with these certificates.
fn with_certificates(certificates: &[(u8, &str)]) -> State {
    let mut state = of("[[listeners]]\naddress = \"127.0.0.1:80\"\nprotocol = \"https\"\n");
    for (n, name) in certificates {
        let at = state.certificates.entry(address()).or_default();
        at.insert(fingerprint(*n), certificate(*n, name, false));
    }
    state
}

fn set(n: u8, name: &str, default: bool) -> Change {
    let (fingerprint, certificate) = (fingerprint(n), certificate(n, name, default));
    Change::SetCertificate { address: address(), fingerprint, certificate }
}

fn removed(n: u8) -> Change {
    Change::RemoveCertificate { address: address(), fingerprint: fingerprint(n) }
}

/// What is served when a file has these, and what of it is by hand.
fn reloaded(state: &State, certificates: &[(u8, &str)]) -> (State, Vec<u8>) {
    let mut file = with_certificates(certificates);
    state.lay_by_hand_over(&mut file).unwrap();
    state.lay_certificates_over(&mut file);
    let served = file.certificates.get(&address()).into_iter().flatten().map(|(it, _)| it.0[0]).collect();
    (file, served)
}

#[test]
fn a_certificate_that_was_removed_by_hand_stays_so_however_often_its_file_is_renewed() {
    // The order of fingerprints says nothing.
    for renewed in [1, 9] {
        let mut state = with_certificates(&[(4, "gone"), (5, "stays")]);
        state.apply_as(&Whose::Hand, &[removed(4)]).unwrap();
        for n in [renewed, renewed + 1] {
            let served;
            (state, served) = reloaded(&state, &[(n, "gone"), (5, "stays")]);
            assert_eq!((served, state.by_hand.len()), (vec![5], 1));
        }
        // The file drops it: what comes later under its name is another.
        let (dropped, served) = reloaded(&state, &[(5, "stays")]);
        assert_eq!((served, dropped.by_hand.len()), (vec![5], 0));
        // By hand it comes back with what its file holds now, and is the file's again.
        let mut back = state.clone();
        back.apply_as(&Whose::Hand, &[set(7, "gone", false)]).unwrap();
        assert!(back.by_hand.is_empty(), "{:?}", back.describe_by_hand());
        let (back, served) = reloaded(&back, &[(7, "gone"), (5, "stays")]);
        assert_eq!((served, back.by_hand.len()), (vec![5, 7], 0));
    }
}

#[test]
fn what_was_said_of_a_certificate_by_hand_goes_with_its_file() {
    let mut state = with_certificates(&[(4, "a")]);
    state.apply_as(&Whose::Hand, &[set(4, "a", true)]).unwrap();
    assert_eq!(state.by_hand.len(), 1);
    // Renewed by the watch, and then by a reload.
    state.apply_as(&Whose::Files, &[set(6, "a", true), removed(4)]).unwrap();
    assert_eq!(state.describe_by_hand().len(), 1);
    for n in [6, 2] {
        let served;
        (state, served) = reloaded(&state, &[(n, "a")]);
        assert_eq!((served, state.by_hand.len()), (vec![n], 1));
        assert!(state.certificate(address(), &fingerprint(n)).unwrap().default);
    }
    // Its file was renewed while nobody ran, and the state was saved before.
    let mut saved = state.clone();
    let before = saved.certificates_by_hand();
    saved.certificates = BTreeMap::from([(address(), [(fingerprint(8), certificate(8, "a", true))].into())]);
    saved.follow_files(&before);
    saved.settle_by_hand();
    assert_eq!(saved.by_hand.len(), 1);
    let (saved, served) = reloaded(&saved, &[(8, "a")]);
    assert_eq!((served, saved.by_hand.len()), (vec![8], 1));
    assert!(saved.certificate(address(), &fingerprint(8)).unwrap().default);
    // One that was added by hand, and that the file has now as well, is served with what its file holds.
    let mut state = with_certificates(&[(4, "a")]);
    state.apply_as(&Whose::Hand, &[set(5, "b", false)]).unwrap();
    let (state, served) = reloaded(&state, &[(4, "a"), (3, "b")]);
    assert_eq!((served, state.by_hand.len()), (vec![3, 4], 0));
}

#[test]
fn a_certificate_that_took_the_place_of_another_by_hand_keeps_it_when_the_file_of_that_is_renewed() {
    let mut state = with_certificates(&[(4, "a")]);
    state.apply_as(&Whose::Hand, &[set(5, "mine", false), removed(4)]).unwrap();
    assert_eq!(state.by_hand.len(), 2);
    let (state, served) = reloaded(&state, &[(1, "a")]);
    assert_eq!((served, state.by_hand.len()), (vec![5], 2));
    // One of the same file is that of the file.
    let mut state = with_certificates(&[(4, "a")]);
    state.apply_as(&Whose::Hand, &[set(5, "a", false), removed(4)]).unwrap();
    assert!(state.by_hand.is_empty());
}
