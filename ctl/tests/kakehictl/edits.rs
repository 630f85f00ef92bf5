//! The verbs about what is configured: what they ask for.

use kakehi_ctl::{
    change::{Change, FrontendRule},
    edit::Edit,
    order::{Request, Response},
    state::{Backend, Cluster, ClusterProtocol, Listener, ListenerProtocol, PathRule, State, Tls},
};

use super::{ADDRESS, Stage, changed, kakehictl};

/// The request for an edit from the folder of these tests.
fn edit(edit: Edit, if_generation: Option<u64>) -> Request {
    Request::Edit { edits: vec![edit], folder: std::env::current_dir().unwrap(), if_generation }
}

fn texts(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[test]
fn what_is_configured_is_changed_by_edits() {
    let address = ADDRESS.parse().unwrap();
    let path = PathRule::Equals("/x".to_owned());
    let rule = FrontendRule::new(address, "a.example".to_owned(), path, Some("GET".to_owned()));
    let of_rule = ["web", ADDRESS, "a.example", "--path", "/x", "--path-type", "equals", "--method", "GET"];
    let backend = Backend {
        id: "one".to_owned(),
        address: "127.0.0.1:9".parse().unwrap(),
        weight: 5,
        backup: true,
        ..Backend::default()
    };
    let web = || "web".to_owned();
    let with_rule =
        |verb: &'static [&'static str], keys: &'static [&'static str]| [verb, &of_rule, keys].concat();
    for (arguments, expected) in [
        (
            vec!["backend", "drain", "web", "one"],
            Edit::PatchBackend { cluster: web(), id: "one".to_owned(), keys: texts(&["mode=drain"]) },
        ),
        (
            vec!["backend", "maintain", "web", "one"],
            Edit::PatchBackend { cluster: web(), id: "one".to_owned(), keys: texts(&["mode=maintain"]) },
        ),
        (
            vec!["backend", "ready", "web", "one"],
            Edit::PatchBackend { cluster: web(), id: "one".to_owned(), keys: texts(&["mode=ready"]) },
        ),
        (
            vec!["listener", "add", ADDRESS, "protocol=https", "send_tls13_tickets=0"],
            Edit::AddListener { address, keys: texts(&["protocol=https", "send_tls13_tickets=0"]) },
        ),
        (vec!["listener", "patch", ADDRESS, "via="], Edit::PatchListener { address, keys: texts(&["via="]) }),
        (
            vec!["listener", "deactivate", ADDRESS],
            Edit::PatchListener { address, keys: texts(&["active=false"]) },
        ),
        (vec!["listener", "remove", ADDRESS], Edit::from(Change::RemoveListener { address })),
        (
            vec!["cluster", "add", "web", "protocol=tcp"],
            Edit::AddCluster { name: web(), keys: texts(&["protocol=tcp"]) },
        ),
        (
            vec!["cluster", "patch", "web", "https_redirect=true"],
            Edit::PatchCluster { name: web(), keys: texts(&["https_redirect=true"]) },
        ),
        (
            with_rule(&["frontend", "add"], &["--deny", "client_ca=ca.pem"]),
            Edit::AddFrontend {
                cluster: web(),
                rule: rule.clone(),
                keys: texts(&["client_ca=ca.pem", "redirect=unauthorized"]),
            },
        ),
        (
            with_rule(&["frontend", "patch"], &["redirect="]),
            Edit::PatchFrontend { cluster: web(), rule: rule.clone(), keys: texts(&["redirect="]) },
        ),
        (
            vec!["backend", "add", "web", "127.0.0.1:9", "--id", "one", "--weight", "5", "--backup"],
            Edit::AddBackend { cluster: web(), backend },
        ),
        (
            vec!["backend", "patch", "web", "one", "weight=7"],
            Edit::PatchBackend { cluster: web(), id: "one".to_owned(), keys: texts(&["weight=7"]) },
        ),
    ] {
        let stage = Stage::answering(edit(expected.clone(), None), changed());
        let (code, _, stderr) = stage.run(&arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        let stage = Stage::answering(edit(expected, Some(12)), changed());
        assert_eq!(stage.run(&[&["--if-generation", "12"], &arguments[..]].concat()).0, 0, "{arguments:?}");
    }
    let no_pair = kakehictl(&["-s", "x", "listener", "add", ADDRESS, "via"], None);
    assert!(no_pair.0 == 2 && no_pair.2.contains("it has no `=`"), "{}", no_pair.2);
    let wrong = Edit::AddListener { address, keys: texts(&["vai=true"]) };
    let misused = Response::Misused { reason: "`vai` is no key".to_owned() };
    let (code, _, stderr) =
        Stage::answering(edit(wrong, None), misused).run(&["listener", "add", ADDRESS, "vai=true"]);
    assert!(code == 2 && stderr.contains("`vai` is no key"), "{stderr}");
}

#[test]
fn listeners_and_clusters_of_other_protocols_are_listed() {
    let address = ADDRESS.parse().unwrap();
    let listener = Listener {
        protocol: ListenerProtocol::Https,
        tls: Some(Box::new(Tls::default())),
        ..Listener::http(address)
    };
    let cluster = Cluster { protocol: ClusterProtocol::Tcp, ..Cluster::default() };
    let state = || State {
        listeners: [(address, listener.clone())].into(),
        clusters: [("db".to_owned(), cluster.clone())].into(),
        ..State::default()
    };
    let list = |noun: &str| {
        let stage = Stage::answering(Request::State, Response::State(Box::new(state())));
        stage.run(&[noun, "list"]).1
    };
    assert!(list("listener").contains("127.0.0.1:8443  yes      https"), "{}", list("listener"));
    assert!(list("cluster").contains("db       tcp"), "{}", list("cluster"));
}
