//! Frontends that divide their requests among clusters.

use std::collections::BTreeMap;

use crate::harness::{Backend, Client, Config, Message, Proxy, ctl, exchange, refused};

/// A backend that answers with the name of its cluster.
fn named(cluster: &'static str) -> Backend {
    Backend::respond(format!("HTTP/1.1 200 OK\r\nX-Cluster: {cluster}\r\nContent-Length: 0\r\n\r\n"))
}

fn config(stable: &Backend, canary: &Backend, keys: &str) -> Config {
    Config::new()
        .root("worker_count = 2")
        .listener("trusted_peers = [\"127.0.0.0/8\"]")
        .backend("stable", stable)
        .backend("canary", canary)
        .frontend("stable", &format!("hostname = \"a\", {keys}"))
}

const NINE_TO_ONE: &str =
    "split = [{ cluster = \"stable\", weight = 9 }, { cluster = \"canary\", weight = 1 }]";

fn get(client: &mut Client, fields: &str) -> String {
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    let response = client.response();
    response.field("x-cluster").unwrap_or_else(|| panic!("{}", response.text())).to_owned()
}

/// How many of so many requests each cluster got, over four connections.
fn shares(proxy: &Proxy, count: usize, fields: impl Fn(usize) -> String) -> BTreeMap<String, usize> {
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    let mut shares = BTreeMap::new();
    for number in 0..count {
        *shares.entry(get(&mut clients[number % 4], &fields(number))).or_default() += 1;
    }
    shares
}

#[test]
fn each_request_is_sent_by_chance_as_the_weights_say() {
    let (stable, canary) = (named("stable"), named("canary"));
    let proxy = config(&stable, &canary, NINE_TO_ONE).start();
    let canaries = |proxy: &Proxy, count| {
        shares(proxy, count, |_| String::new()).get("canary").copied().unwrap_or_default()
    };
    let of_two_thousand = canaries(&proxy, 2_000);
    // A tenth, by seven standard deviations.
    assert!((106..295).contains(&of_two_thousand), "{of_two_thousand}");
    let address = proxy.address().to_string();
    let patch = |split: &str| ctl(&proxy, &["frontend", "patch", "stable", &address, "a", split]);
    // From the next request on, on connections that are open too.
    patch("split=[{ cluster = \"stable\", weight = 0 }, { cluster = \"canary\", weight = 1 }]");
    assert_eq!(canaries(&proxy, 100), 100);
    patch("split=[{ cluster = \"stable\", weight = 1 }]");
    assert_eq!(canaries(&proxy, 100), 0);
    patch("split=");
    assert_eq!(canaries(&proxy, 100), 0);
}

#[test]
fn a_key_keeps_a_client_at_its_cluster_on_all_workers_whatever_comes() {
    let (stable, canary) = (named("stable"), named("canary"));
    let half = |key: &str| {
        format!(
            "split_key = \"{key}\", split = [{{ cluster = \"stable\", weight = 1 }}, {{ cluster = \"canary\", weight = 1 }}]"
        )
    };
    let mut proxy = config(&stable, &canary, &half("cookie:user")).start();
    let of = |proxy: &Proxy, user: usize| -> Vec<String> {
        // New connections, which either worker may get.
        let answers = (0..4).map(|_| get(&mut proxy.client(), &format!("Cookie: user={user}\r\n")));
        answers.collect()
    };
    let before: Vec<_> = (0..40).map(|user| of(&proxy, user)).collect();
    for answers in &before {
        assert!(answers.iter().all(|it| *it == answers[0]), "{answers:?}");
    }
    let canaries = before.iter().filter(|answers| answers[0] == "canary").count();
    assert!((5..35).contains(&canaries), "{canaries}");
    ctl(&proxy, &["reload", "--workers"]);
    proxy.kill_supervisor();
    proxy.start_again();
    ctl(&proxy, &["upgrade"]);
    assert_eq!((0..40).map(|user| of(&proxy, user)).collect::<Vec<_>>(), before);
    // More weight sends some elsewhere who were at the first cluster, and nobody back.
    let address = proxy.address().to_string();
    ctl(
        &proxy,
        &[
            "frontend",
            "patch",
            "stable",
            &address,
            "a",
            "split=[{ cluster = \"stable\", weight = 1 }, { cluster = \"canary\", weight = 3 }]",
        ],
    );
    let after: Vec<_> = (0..40).map(|user| of(&proxy, user)).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before[0] == "stable" || after[0] == "canary"));
    assert!(after.iter().filter(|it| it[0] == "canary").count() > canaries);
    // Who has no cookie is told by its address.
    let without = |client: &str| get(&mut proxy.client(), &format!("X-Forwarded-For: {client}\r\n"));
    for client in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
        let first = without(client);
        assert!((0..6).all(|_| without(client) == first), "{client}");
    }
}

#[test]
fn the_rule_is_that_of_its_cluster_and_the_rest_that_of_the_chosen_one() {
    const ANN: &str = "ann:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let (stable, canary) = (named("stable"), named("canary"));
    let to_canary = "required_auth = true, split = [{ cluster = \"canary\", weight = 1 }], headers = [{ position = \"both\", key = \"X-Chosen\", value = \"$CLUSTER\" }]";
    let proxy = config(&stable, &canary, to_canary)
        .cluster("stable", &format!("authorized_hashes = [\"{ANN}\"]"))
        .cluster("stable", "www_authenticate = \"Stable\"")
        .cluster("canary", "rate_limits = [{ rate = 1, per = 3600, burst = 1 }]")
        .cluster("canary", "answers = { 429 = \"HTTP/1.1 429 Slow\\r\\n\\r\\n%CLUSTER_ID\" }")
        .start();
    let ask = |fields: &str| -> Message {
        exchange(&proxy, format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n"))
    };
    let ann = "Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let refused = ask("");
    assert_eq!((refused.status(), refused.field("www-authenticate")), (401, Some("Basic realm=\"Stable\"")));
    let admitted = ask(ann);
    assert_eq!((admitted.field("x-cluster"), admitted.field("x-chosen")), (Some("canary"), Some("canary")));
    assert_eq!(canary.request().field("x-chosen"), Some("canary"));
    // Its limits: two were counted, and the third is one too many.
    let limited = ask(ann);
    assert_eq!((limited.status(), limited.text().as_str()), (429, "canary"));
    stable.expect_untouched();
}

#[test]
fn a_cluster_stays_as_long_as_a_split_names_it() {
    let (stable, canary) = (named("stable"), named("canary"));
    let proxy = config(&stable, &canary, NINE_TO_ONE).start();
    let text = refused(&proxy, &["cluster", "remove", "canary"]);
    assert!(text.contains("`canary` in its `split`"), "{text}");
    let address = proxy.address().to_string();
    let of = ["frontend", "patch", "stable", &address, "a"];
    let patch = |split: &'static str| [&of[..], &[split]].concat();
    let text = refused(&proxy, &patch("split=[{ cluster = \"nobody\", weight = 1 }]"));
    assert!(text.contains("`nobody`"), "{text}");
    for wrong in [
        "split=[{ cluster = \"canary\", weight = 0 }]",
        "split=[{ cluster = \"canary\" }]",
        "split=[{ weight = 1 }]",
        "split=[{ cluster = \"canary\", weight = 1 }, { cluster = \"canary\", weight = 1 }]",
        "split_key=route",
        "split_key=address",
    ] {
        refused(&proxy, &patch(wrong));
    }
    // One that comes together with a rule that names it, and goes with it.
    let next = named("next");
    let with_next = |keys: &str| config(&stable, &canary, keys).backend("next", &next);
    proxy.reload(&with_next("split = [{ cluster = \"next\", weight = 1 }]"));
    assert_eq!(shares(&proxy, 8, |_| String::new()), BTreeMap::from([("next".to_owned(), 8)]));
    proxy.reload(&config(&stable, &canary, "path = \"/\""));
    assert_eq!(shares(&proxy, 8, |_| String::new()), BTreeMap::from([("stable".to_owned(), 8)]));
    ctl(&proxy, &["cluster", "remove", "canary"]);
    assert_eq!(shares(&proxy, 8, |_| String::new()), BTreeMap::from([("stable".to_owned(), 8)]));
}

#[test]
fn a_part_in_maintenance_keeps_its_share_and_explain_says_so() {
    let (stable, canary) = (named("stable"), named("canary"));
    let half = "split_key = \"cookie:user\", split = [{ cluster = \"stable\", weight = 1 }, { cluster = \"canary\", weight = 1 }]";
    let proxy = config(&stable, &canary, half).start();
    let of = |user: usize| {
        exchange(
            &proxy,
            format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: user={user}\r\nConnection: close\r\n\r\n"),
        )
    };
    let before: Vec<String> = (0..24).map(|user| of(user).field("x-cluster").unwrap().to_owned()).collect();
    assert!(["stable", "canary"].iter().all(|it| before.iter().any(|cluster| cluster == it)));
    ctl(&proxy, &["cluster", "maintain", "canary"]);
    for (user, cluster) in before.iter().enumerate() {
        let status = if cluster == "canary" { 503 } else { 200 };
        assert_eq!(of(user).status(), status, "{user}");
        let (url, cookie) = (format!("http://a:{}/", proxy.address().port()), format!("Cookie: user={user}"));
        let text = ctl(&proxy, &["explain", &url, "-H", &cookie]);
        assert_eq!(text.contains("answer     503 maintenance\n"), status == 503, "{text}");
        assert!(text.contains("cluster canary, weight 1, in maintenance\n"), "{text}");
    }
}
