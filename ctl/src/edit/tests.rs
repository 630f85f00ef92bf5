//! Keys mean what they mean in a file, what is added must not be there, what is patched must.

use super::*;
use crate::state::{ClusterProtocol, ListenerProtocol, PathRule};

const FOLDER: &str = "/etc/kakehi";

fn keys(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn edit(state: &mut State, edit: &Edit) -> Result<(), String> {
    let edited = edit.change(state, Path::new(FOLDER)).map_err(|error| error.to_string())?;
    state.apply(&edited.change).map_err(|error| error.to_string())
}

#[test]
fn a_value_is_one_of_toml_or_a_string() {
    for (text, key, value) in [
        ("via=false", "via", Some(Value::Boolean(false))),
        ("front_timeout=1.5", "front_timeout", Some(Value::Float(1.5))),
        ("public_address=1.2.3.4:80", "public_address", Some("1.2.3.4:80".into())),
        ("log=\"a b\"", "log", Some("a b".into())),
        ("via=", "via", None),
    ] {
        let it = assignment(text).unwrap();
        assert_eq!((it.key.as_str(), it.value), (key, value), "{text}");
    }
    assert!(check_assignment("via").is_err() && check_assignment("via=").is_ok());
}

#[test]
fn keys_of_a_listener_are_those_of_the_file() {
    let address = ([127, 0, 0, 1], 80).into();
    let mut state = State::default();
    edit(&mut state, &Edit::AddListener { address, keys: keys(&["front_timeout=7", "via=false"]) }).unwrap();
    assert_eq!(
        (state.listeners[&address].timeouts.front_ms, state.listeners[&address].forwarding.via),
        (7_000, false)
    );
    let patch = |texts: &[&str]| Edit::PatchListener { address, keys: keys(texts) };
    edit(&mut state, &patch(&["front_timeout=", "via="])).unwrap();
    assert_eq!(state.listeners[&address], Listener::http(address));
    for (text, said) in [
        ("front_timeot=7", "front_timeout"),
        ("via=3", "via"),
        ("via", "no KEY=VALUE"),
        ("address=1.1.1.1:1", "address"),
        ("certificate=c.pem", "kakehictl certificate add"),
        ("protocol.x=1", "`protocol` is no table"),
    ] {
        let error = edit(&mut state, &patch(&[text])).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
    edit(&mut state, &patch(&["protocol=https", "client_ca=ca.pem", "hsts.enabled=true"])).unwrap();
    let listener = &state.listeners[&address];
    let tls = listener.tls.as_deref().unwrap();
    assert_eq!(listener.protocol, ListenerProtocol::Https);
    assert_eq!(tls.client_auth.as_ref().unwrap().ca.path, Path::new(FOLDER).join("ca.pem"));
    let again = Edit::AddListener { address, keys: Vec::new() };
    assert!(edit(&mut state, &again).unwrap_err().contains("`listener patch` changes it"));
    let elsewhere = Edit::PatchListener { address: ([127, 0, 0, 1], 9).into(), keys: Vec::new() };
    assert!(edit(&mut state, &elsewhere).unwrap_err().contains("no listener at 127.0.0.1:9"));
}

#[test]
fn what_is_added_must_not_be_there_and_what_is_patched_must() {
    let address = ([127, 0, 0, 1], 443).into();
    let mut state = State::default();
    edit(&mut state, &Edit::AddListener { address, keys: keys(&["protocol=https"]) }).unwrap();
    let name = "web".to_owned();
    let add = Edit::AddCluster { name: name.clone(), keys: Vec::new() };
    edit(&mut state, &add).unwrap();
    assert!(edit(&mut state, &add).unwrap_err().contains("`cluster patch` changes it"));
    let path = PathRule::Prefix(String::new());
    let rule = FrontendRule::new(address, "a.example".to_owned(), path, None);
    let add_frontend =
        |texts: &[&str]| Edit::AddFrontend { cluster: name.clone(), rule: rule.clone(), keys: keys(texts) };
    let patch_frontend =
        |texts: &[&str]| Edit::PatchFrontend { cluster: name.clone(), rule: rule.clone(), keys: keys(texts) };
    assert!(edit(&mut state, &patch_frontend(&["client_ca=/ca"])).unwrap_err().contains("no such frontend"));
    edit(&mut state, &add_frontend(&["client_ca=/ca"])).unwrap();
    // To add it again would open it to everybody.
    assert!(edit(&mut state, &add_frontend(&[])).unwrap_err().contains("`frontend patch` changes it"));
    edit(&mut state, &patch_frontend(&["redirect=unauthorized"])).unwrap();
    let frontend = &state.clusters["web"].frontends[0];
    assert!(frontend.deny && frontend.tls.as_ref().unwrap().client_auth.is_some(), "what is not named stays");
    edit(&mut state, &patch_frontend(&["redirect="])).unwrap();
    assert!(!state.clusters["web"].frontends[0].deny);
    assert!(
        edit(&mut state, &patch_frontend(&["hostname=b.example"])).unwrap_err().contains("cannot be changed")
    );
    let backend = Backend {
        id: "one".to_owned(),
        address: "127.0.0.1:9".parse().unwrap(),
        weight: 100,
        ..Backend::default()
    };
    let add_backend = Edit::AddBackend { cluster: name.clone(), backend };
    edit(&mut state, &add_backend).unwrap();
    assert!(edit(&mut state, &add_backend).unwrap_err().contains("`backend patch` changes it"));
    let patch_backend = |id: &str, texts: &[&str]| {
        let (cluster, id) = (name.clone(), id.to_owned());
        Edit::PatchBackend { cluster, id, keys: keys(texts) }
    };
    edit(&mut state, &patch_backend("one", &["weight=5", "backup=true"])).unwrap();
    let backend = &state.clusters["web"].backends[0];
    assert_eq!((backend.weight, backend.backup), (5, true));
    assert!(edit(&mut state, &patch_backend("two", &["weight=5"])).unwrap_err().contains("no backend `two`"));
    assert!(
        edit(&mut state, &patch_backend("one", &["backend_id=two"]))
            .unwrap_err()
            .contains("cannot be changed")
    );
    // A patch of the cluster touches neither.
    let patch = Edit::PatchCluster { name: name.clone(), keys: keys(&["https_redirect=true"]) };
    edit(&mut state, &patch).unwrap();
    let cluster = &state.clusters["web"];
    assert!(cluster.https_redirect && cluster.frontends.len() == 1 && cluster.backends.len() == 1);
}

#[test]
fn keys_of_clusters_are_those_of_the_file() {
    let mut state = State::default();
    let add = |name: &str, texts: &[&str]| Edit::AddCluster { name: name.to_owned(), keys: keys(texts) };
    edit(&mut state, &add("db", &["protocol=tcp", "send_proxy=true"])).unwrap();
    assert!(state.clusters["db"].protocol == ClusterProtocol::Tcp && state.clusters["db"].send_proxy);
    edit(&mut state, &add("web", &["backend_tls.server_name=b"])).unwrap();
    assert_eq!(state.clusters["web"].tls.as_ref().unwrap().server_name.as_deref(), Some("b"));
    for key in ["frontends=[]", "backends=[]"] {
        assert!(edit(&mut state, &add("more", &[key])).unwrap_err().contains("verbs of its own"));
    }
}
