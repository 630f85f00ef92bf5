//! The order of the file through everything that becomes of a state.

use std::path::Path;

use super::super::{ByHand, State, Whose};
use crate::{
    change::{Change, FrontendRule},
    config::{self, Loaded, parse, write},
    edit::Edit,
    state::{PathRule, RulePosition},
};

const LISTENER: &str = "[[listeners]]\naddress = \"127.0.0.1:80\"\nprotocol = \"http\"\n";

/// A cluster with one rule before all others, for a path of its own.
fn cluster(name: &str, keys: &str) -> String {
    format!(
        "[clusters.{name}]\nprotocol = \"http\"\nfrontends = [{{ address = \"127.0.0.1:80\", hostname = \"*\", path = \"/{name}\", \
         position = \"PRE\"{keys} }}]\n"
    )
}

fn file(clusters: &[&str]) -> Loaded {
    let clusters: String = clusters.iter().map(|name| cluster(name, "")).collect();
    parse(&format!("{LISTENER}{clusters}"), "k.toml").unwrap()
}

/// The clusters as their rules are looked at.
fn order(state: &State) -> String {
    let mut all: Vec<_> = state
        .clusters
        .iter()
        .flat_map(|(name, cluster)| cluster.frontends.iter().map(move |it| (it, name)))
        .map(|(frontend, name)| (frontend.order.map_or(u64::MAX, std::num::NonZeroU64::get), name.as_str()))
        .collect();
    all.sort();
    all.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

fn rule(name: &str) -> FrontendRule {
    let (address, path) = ("127.0.0.1:80".parse().unwrap(), PathRule::Prefix(format!("/{name}")));
    FrontendRule { position: RulePosition::Pre, ..FrontendRule::new(address, "*".to_owned(), path, None) }
}

fn by_hand(state: &mut State, edit: &Edit) {
    let mut edited = edit.change(state, Path::new("/")).unwrap();
    state.in_its_place(&state.clone(), &mut edited.change);
    state.apply_as(&Whose::Hand, &[edited.change]).unwrap();
}

/// As a reload of `loaded`.
fn reloaded(present: &State, mut loaded: Loaded) -> (State, Vec<Change>) {
    loaded.places.keep(&mut loaded.state, present);
    present.lay_by_hand_over(&mut loaded.state).unwrap();
    let changes = present.difference(&loaded.state);
    let mut state = present.clone();
    state.apply_as(&Whose::Layers(loaded.state.by_hand.clone()), &changes).unwrap();
    assert_eq!(state.clusters, loaded.state.clusters);
    (state, changes)
}

#[test]
fn a_dump_is_read_to_the_same_state_and_the_file_again_changes_nothing() {
    let state = file(&["c", "a", "b"]).state;
    assert_eq!(order(&state), "c a b");
    let dump = write::write(&state);
    let read = parse(&dump, "dump.toml").unwrap().state;
    assert_eq!((&read.clusters, &read.listeners), (&state.clusters, &state.listeners));
    let (_, changes) = reloaded(&state, parse(&dump, "dump.toml").unwrap());
    assert!(changes.is_empty(), "{changes:?}");
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    let (_, changes) = reloaded(&state, file(&["c", "a", "b"]));
    assert!(changes.is_empty(), "{changes:?}");
    config::check(&state).unwrap();
    // A rule that is added to a dump is behind all that it has.
    let read = parse(&format!("{dump}\n{}", cluster("0", "")), "dump.toml");
    assert_eq!(order(&read.unwrap().state), "c a b 0");
}

#[test]
fn a_cluster_in_the_middle_of_very_many_changes_none_of_the_others() {
    let names: Vec<String> = (0..3_000).map(|number| format!("c{}", number * 7 % 3_000)).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut state = file(&names).state;
    for (at, name) in [(1_500, "new"), (0, "first"), (3_002, "last"), (1_501, "newer"), (1_501, "newest")] {
        names.insert(at, name);
        let (next, changes) = reloaded(&state, file(&names));
        assert!(matches!(&changes[..], [Change::SetCluster { name: set, .. }] if set == name), "{changes:?}");
        assert_eq!(order(&next), names.join(" "));
        state = next;
    }
    // One that moves, and one that goes.
    let moved = names.remove(17);
    names.insert(2_000, moved);
    let (state, changes) = reloaded(&state, file(&names));
    assert_eq!((changes.len(), order(&state)), (1, names.join(" ")));
    names.remove(40);
    let (state, changes) = reloaded(&state, file(&names));
    assert_eq!((changes.len(), order(&state)), (1, names.join(" ")));
}

#[test]
fn written_numbers_come_first_and_what_is_by_hand_last() {
    let text = [
        LISTENER.to_owned(),
        cluster("z", ""),
        cluster("late", ", order = 7"),
        cluster("y", ""),
        cluster("early", ", order = 3"),
    ];
    let mut state = parse(&text.concat(), "k.toml").unwrap().state;
    assert_eq!(order(&state), "early late z y");
    by_hand(&mut state, &Edit::AddCluster { name: "a".into(), keys: Vec::new() });
    for (name, keys) in [("a", &[][..]), ("b", &["order=5".to_owned()])] {
        let (cluster, rule) = ("a".to_owned(), rule(name));
        by_hand(&mut state, &Edit::AddFrontend { cluster, rule, keys: keys.to_vec() });
    }
    assert_eq!(order(&state), "early a late z y a");
    // It stays where it is when the file is read again, and when it is the file's, the file says where it stands.
    let (state, changes) = reloaded(&state, parse(&text.concat(), "k.toml").unwrap());
    assert!(changes.is_empty() && state.by_hand.len() == 3, "{changes:?}");
    let with_a = [text[0].clone(), cluster("a", ""), text[1..].concat()].concat();
    let (state, _) = reloaded(&state, parse(&with_a, "k.toml").unwrap());
    assert_eq!(order(&state), "early a late a z y");
    assert_eq!(
        state.describe_by_hand(),
        ["+ frontend 127.0.0.1:80 * * prefix /b position=\"PRE\" of cluster a"]
    );
}

#[test]
fn what_was_removed_by_hand_comes_back_to_its_place() {
    let mut state = file(&["c", "a", "b"]).state;
    let before = state.clone();
    let cluster = || "a".to_owned();
    by_hand(&mut state, &Edit::from(Change::RemoveFrontend { cluster: cluster(), rule: rule("a") }));
    assert_eq!(order(&state), "c b");
    by_hand(&mut state, &Edit::AddFrontend { cluster: cluster(), rule: rule("a"), keys: Vec::new() });
    assert_eq!((order(&state).as_str(), &state), ("c a b", &before));
    // Removed by hand, it keeps its place in the file.
    by_hand(&mut state, &Edit::from(Change::RemoveFrontend { cluster: cluster(), rule: rule("a") }));
    let (state, changes) = reloaded(&state, file(&["c", "a", "b"]));
    assert!(changes.is_empty() && state.by_hand.len() == 1, "{changes:?}");
    // And a change of another key does not touch it.
    let mut state = before;
    let keys = vec!["max_body_size=5".to_owned()];
    by_hand(&mut state, &Edit::PatchFrontend { cluster: cluster(), rule: rule("a"), keys });
    let (state, _) = reloaded(&state, file(&["c", "x", "a", "b"]));
    assert_eq!(order(&state), "c x a b");
    assert!(state.clusters["a"].frontends[0].limits.is_some());
}

#[test]
fn a_state_of_an_earlier_program_gets_the_order_of_the_file() {
    let file_now = file(&["c", "a", "b"]).state;
    let mut saved = file_now.clone();
    saved.clusters.values_mut().for_each(|cluster| cluster.frontends[0].order = None);
    let text =
        serde_json::to_string(&saved).unwrap().replace("\"order\":null,", "").replace(",\"order\":null", "");
    assert!(!text.contains("order"), "{text}");
    let mut saved: State = serde_json::from_str(&text).unwrap();
    // By a reload,
    let (state, changes) = reloaded(&saved, file(&["c", "a", "b"]));
    assert_eq!((order(&state).as_str(), changes.len()), ("c a b", 3));
    // and where it is loaded.
    saved.take_places(&file_now.file_layer());
    assert_eq!(saved, file_now);
    assert!(ByHand::between(&file_now, &saved).is_empty());
}

#[test]
fn the_digest_of_a_file_heeds_the_order_and_nothing_else_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.toml");
    let digest = |clusters: &[String]| {
        std::fs::write(&path, format!("{LISTENER}{}", clusters.concat())).unwrap();
        config::load(&path).unwrap().state.revision.origin
    };
    let plain = |name: &str| cluster(name, "").replace(", position = \"PRE\"", "");
    let [ab, ba] = [["a", "b"], ["b", "a"]].map(|names| digest(&names.map(|name| cluster(name, ""))));
    assert_ne!(ab, ba);
    assert_eq!(digest(&[plain("a"), plain("b")]), digest(&[plain("b"), plain("a")]));
    assert_eq!(digest(&[cluster("a", ""), plain("b")]), digest(&[plain("b"), cluster("a", "")]));
}
