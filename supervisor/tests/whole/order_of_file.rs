//! Rules that are otherwise equal are looked at in the order of the file, whatever the names of their clusters are, and whatever becomes of
//! the state.

use std::fs;

use crate::harness::{Backend, Config, OK, Proxy, ctl, exchange};

/// Clusters in the order of the file, with one rule of each kind that can tie.
fn file(clusters: &[&str], backend: &Backend) -> Config {
    let mut config = Config::new().root("worker_count = 2").root("saved_state = \"saved.json\"");
    for name in clusters {
        for (kind, keys) in [
            (
                "pre",
                "hostname = \"*\", path = \"/pre\", position = \"PRE\", query_predicates = [{ name = \"NAME\", match = \"present\" }]",
            ),
            (
                "post",
                "hostname = \"*\", path = \"/post\", position = \"POST\", query_predicates = [{ name = \"NAME\", match = \"present\" }]",
            ),
            ("regex", "hostname = \"a.test\", path = \"/r.*|/NAME\", path_type = \"REGEX\""),
            (
                "asks",
                "hostname = \"a.test\", header_predicates = [{ name = \"X-NAME\", match = \"present\" }]",
            ),
            ("host", "hostname = \"/[b-z]+|NAME/.test\""),
        ] {
            let does = format!("rewrite_path = \"/{name}/{kind}\", redirect = \"found\"");
            config = config.frontend(name, &format!("{}, {does}", keys.replace("NAME", name)));
        }
        config = config.backend(name, backend);
    }
    config
}

/// The clusters that take requests which all rules of a kind would take.
fn taken(proxy: &Proxy, clusters: &[&str]) -> Vec<String> {
    let fields: String = clusters.iter().map(|name| format!("X-{name}: 1\r\n")).collect();
    let query = clusters.join("&");
    let targets = [
        ("a.test", format!("/pre?{query}"), "pre"),
        ("c.d", format!("/post?{query}"), "post"),
        ("a.test", "/r".to_owned(), "regex"),
        ("a.test", "/x".to_owned(), "asks"),
        ("q.test", "/x".to_owned(), "host"),
    ];
    let one = |(host, target, kind): &(&str, String, &str)| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n");
        let response = exchange(proxy, request);
        let Some(location) = response.field("location") else { panic!("{target}: {}", response.status()) };
        let path = location.split('/').skip(3).collect::<Vec<_>>().join("/");
        let (cluster, by) = path.split('?').next().unwrap().split_once('/').unwrap();
        assert_eq!(by, *kind, "{location}");
        let url = format!("http://{host}:{}{target}", proxy.address().port());
        let fields: Vec<String> = clusters.iter().map(|name| format!("X-{name}: 1")).collect();
        let mut arguments = vec!["--json", "explain", &url];
        fields.iter().for_each(|field| arguments.extend(["-H", field.as_str()]));
        let said: serde_json::Value = serde_json::from_str(&ctl(proxy, &arguments)).unwrap();
        let rule = said.pointer("/rule/cluster").or_else(|| said.pointer("/explained/rule/cluster"));
        assert_eq!(rule.and_then(|it| it.as_str()), Some(cluster), "{said}");
        cluster.to_owned()
    };
    targets.iter().map(one).collect()
}

#[test]
fn the_order_of_the_file_holds_across_clusters_through_reload_dump_saved_state_and_upgrade() {
    let backend = Backend::respond(OK);
    let config = file(&["n", "c", "m"], &backend);
    let mut proxy = config.clone().start();
    let all = ["a", "n", "c", "m", "z"];
    let is = |proxy: &Proxy, first: &str| assert_eq!(taken(proxy, &all), [first; 5], "{}", proxy.log());
    is(&proxy, "n");

    // The same again, and another order.
    proxy.reload(&config);
    is(&proxy, "n");
    proxy.reload(&file(&["m", "n", "c"], &backend));
    is(&proxy, "m");

    // One more in the middle changes that alone; one more at the beginning is the first.
    fs::write(
        proxy.folder().join("kakehi.toml"),
        file(&["m", "z", "n", "c"], &backend).text(&[proxy.address()]),
    )
    .unwrap();
    let said = ctl(&proxy, &["reload"]);
    assert!(
        said.contains("cluster z") && !said.contains("cluster n") && !said.contains("cluster c"),
        "{said}"
    );
    is(&proxy, "m");
    proxy.reload(&file(&["z", "n", "c", "m"], &backend));
    is(&proxy, "z");

    // What is by hand comes last, unless it says otherwise.
    let address = proxy.address().to_string();
    ctl(&proxy, &["cluster", "add", "a"]);
    let when = "query_predicates=[{name=\"a\",match=\"present\"}]";
    let rule = ["a", &address, "*", "--path", "/pre", "--when", "position=PRE", "--when", when];
    let add = |keys: &[&str]| {
        let keys = [&["redirect=found", "rewrite_path=/a/pre"], keys].concat();
        ctl(&proxy, &[&["frontend", "add"], &rule[..], &keys].concat());
    };
    let remove = || ctl(&proxy, &[&["frontend", "remove"], &rule[..]].concat());
    add(&[]);
    is(&proxy, "z");
    remove();
    add(&["order=1"]);
    assert_eq!(taken(&proxy, &all)[0], "a");
    remove();
    ctl(&proxy, &["cluster", "remove", "a"]);

    // A dump is a file of the same state.
    let dump = ctl(&proxy, &["config", "dump"]);
    fs::write(proxy.folder().join("kakehi.toml"), &dump).unwrap();
    let said = ctl(&proxy, &["reload"]);
    assert!(!said.contains("cluster"), "{said}");
    is(&proxy, "z");

    // So is a saved state, over another file.
    let saved = proxy.folder().join("state.json").display().to_string();
    ctl(&proxy, &["state", "save", &saved]);
    proxy.reload(&file(&["c", "z", "n", "m"], &backend));
    is(&proxy, "c");
    ctl(&proxy, &["state", "load", &saved]);
    is(&proxy, "z");
    ctl(&proxy, &["workers", "upgrade"]);
    is(&proxy, "z");
    ctl(&proxy, &["upgrade"]);
    is(&proxy, "z");

    // Another supervisor takes the workers over.
    proxy.kill_supervisor();
    proxy.start_again();
    is(&proxy, "z");
    ctl(&proxy, &["reload", "--discard-live"]);
    is(&proxy, "c");
}
