//! What frontends change of the fields of requests and responses.

use crate::harness::{Backend, Config, Message, OK, Pki, Proxy, exchange, free_port};

fn get(proxy: &Proxy, host: &str, more: &str) -> Message {
    exchange(proxy, format!("GET /x HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"))
}

fn edit(position: &str, key: &str, value: &str) -> String {
    format!("{{ position = \"{position}\", key = \"{key}\", value = \"{value}\" }}")
}

/// A frontend for `host` with these edits.
fn with(config: Config, cluster: &str, host: &str, keys: &str, edits: &[String]) -> Config {
    config.frontend(cluster, &format!("hostname = \"{host}\"{keys}, headers = [{}]", edits.join(", ")))
}

#[test]
fn a_backend_gets_the_fields_that_a_frontend_makes() {
    let backend = Backend::respond(OK);
    let edits = [
        edit("request", "X-Set", "one"),
        edit("request", "x-set", "two"),
        edit("request", "Cookie", ""),
        edit("both", "X-Forwarded-For", "nobody"),
        edit("request", "Via", ""),
        "{ position = \"request\", key = \"Accept\", value = \"text/x\", append = true }".to_owned(),
        edit("request", "X-Known", "$CLIENT_IP $SCHEME $CLUSTER $SNI|$REQUEST_ID|$OTHER"),
        edit("response", "X-Not-Here", "1"),
    ];
    let config = Config::new().root("worker_count = 2").backend("web", &backend);
    let proxy = with(config, "web", "a", "", &edits).start();
    let more = "X-Set: mine\r\nAccept: a/b\r\nCookie: a=b\r\nx-SET: too\r\nX-Other: kept\r\n";
    get(&proxy, "a", more).expect(200, "ok");
    let request = backend.request();
    assert_eq!(request.all("x-set"), ["one", "two"]);
    assert_eq!(request.all("accept"), ["a/b", "text/x"]);
    assert_eq!((request.all("cookie").len(), request.all("via").len()), (0, 0));
    assert_eq!((request.all("x-forwarded-for"), request.all("x-other")), (vec!["nobody"], vec!["kept"]));
    assert_eq!((request.all("host"), request.all("x-not-here").len()), (vec!["a"], 0));
    let id = request.field("x-request-id").unwrap();
    assert_eq!(request.all("x-known"), [format!("127.0.0.1 http web |{id}|$OTHER")]);
    // With a body, in one piece and in chunks, what frames it is as it was.
    for (framing, body) in
        [("Content-Length: 3", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n")]
    {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\nConnection: close\r\n\r\n{body}");
        exchange(&proxy, request).expect(200, "ok");
        assert_eq!(backend.requests().pop().unwrap().text(), "abc");
    }
}

#[test]
fn clients_get_the_fields_that_a_frontend_makes_also_of_our_own_answers() {
    let backend = Backend::respond(
        "HTTP/1.1 200 OK\r\nServer: secret\r\nX-Powered-By: age\r\nSet-Cookie: a=b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    let edits = [
        edit("response", "Server", ""),
        edit("response", "x-powered-by", "$CLUSTER"),
        edit("response", "Set-Cookie", "c=d"),
        edit("response", "Strict-Transport-Security", "max-age=1"),
        edit("response", "Location", ""),
        edit("response", "X-Id", "$REQUEST_ID"),
    ];
    let pki = Pki::new();
    let nobody = format!("127.0.0.1:{}", free_port());
    let config = Config::new()
        .https(&pki.issue(&["a", "denied", "gone", "moved", "elsewhere", "other"]))
        .listener("hsts = { enabled = true }")
        .backend("web", &backend)
        .backend_at("dead", &nobody, "");
    let config = with(config, "web", "a", "", &edits);
    let config = with(config, "web", "denied", ", redirect = \"unauthorized\"", &edits);
    let config = with(config, "web", "moved", ", redirect = \"found\", rewrite_path = \"/y\"", &edits);
    let proxy = with(config, "dead", "gone", "", &edits).frontend("web", "hostname = \"other\"").start();
    let ask = |host: &str, method: &str| {
        let mut client = pki.caller().to(host).connect(proxy.address());
        client.send(format!("{method} / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response_to(method)
    };
    for (host, method, status, body) in [
        ("a", "GET", 200, "ok"),
        ("a", "HEAD", 200, ""),
        ("denied", "GET", 401, "401 Unauthorized: denied\n"),
        ("denied", "HEAD", 401, ""),
        ("moved", "GET", 302, "302 Found: redirect\n"),
        ("gone", "GET", 503, "503 Service Unavailable: backend_connect_failed\n"),
    ] {
        let response = ask(host, method);
        assert_eq!((response.status(), response.text().as_str()), (status, body), "{host}");
        assert_eq!((response.all("server").len(), response.all("location").len()), (0, 0), "{host}");
        assert_eq!(response.all("x-powered-by"), [if host == "gone" { "dead" } else { "web" }]);
        assert_eq!(response.all("set-cookie"), ["c=d"]);
        assert_eq!(response.all("strict-transport-security"), ["max-age=1"]);
        assert_eq!(response.field("x-id").unwrap().len(), 26);
    }
    // Not of other frontends, and not where none took the request.
    let response = ask("other", "GET");
    assert_eq!((response.all("server"), response.all("x-id").len()), (vec!["secret"], 0));
    assert_eq!(ask("elsewhere", "GET").all("set-cookie").len(), 0);
}

#[test]
fn edits_come_and_go_while_connections_stay() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let address = proxy.address().to_string();
    let mut client = proxy.client();
    let mut set = |edits: &str| {
        let output = proxy.ctl(&["frontend", "patch", "all", &address, "*", &format!("headers={edits}")]);
        assert!(output.status.success(), "{output:?}");
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.response().all("x-a").join(",")
    };
    assert_eq!(set("[{ position = \"response\", key = \"X-A\", value = \"1\" }]"), "1");
    assert_eq!(set("[{ position = \"both\", key = \"X-A\", value = \"$CLIENT_IP\" }]"), "127.0.0.1");
    assert_eq!(set(""), "");
    let refused = |edit: &str, said: &str| {
        let keys = format!("headers=[{edit}]");
        let output = proxy.ctl(&["frontend", "patch", "all", &address, "*", &keys]);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.contains(said), "{edit}: {words}");
    };
    for name in ["Content-Length", "transfer-encoding", "HOST", "Connection", "Upgrade", "TE", "Trailer"] {
        refused(&edit("both", name, "1"), "is kakehi's");
    }
    refused(&edit("both", "X A", "1"), "a name without spaces");
    refused(&edit("both", "X-A", "a\\r\\nEvil: 1"), "control characters");
    refused(&edit("both", "X-A", "a\\u0000"), "control characters");
    refused(&edit("both", "X-A", " a"), "white space");
    refused(&edit("all", "X-A", "a"), "`request` or `response` or `both`");
}

/// A frontend that rewrites and edits, of a cluster with these backends.
fn rewriting(backends: &[&Backend]) -> Config {
    let edits = [edit("both", "X-A", "$REQUEST_ID"), edit("request", "X-Gone", "")];
    let config = Config::new().root("worker_count = 2");
    let config = backends.iter().fold(config, |config, backend| config.backend("web", backend));
    with(
        config,
        "web",
        "a",
        ", path = \"/old\", rewrite_host = \"b\", rewrite_path = \"/new$PATH[1]\"",
        &edits,
    )
}

#[test]
fn what_is_sent_again_is_what_was_made_of_it_the_first_time() {
    let bad = Backend::script(|conn| {
        conn.request();
        conn.reset();
    });
    let good = Backend::respond(OK);
    let keys = ["retry_on = [\"reset\"]", "attempts_header = true", "passive = false", "retry_budget = 1000"];
    let config = rewriting(&[&bad, &good]);
    let proxy = keys.into_iter().fold(config, |config, key| config.cluster("web", key)).start();
    for body in ["", "abc"] {
        for _ in 0..4 {
            let request = format!(
                "PUT /old/x?y HTTP/1.1\r\nHost: a\r\nX-Gone: 1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            exchange(&proxy, request).expect(200, "ok");
        }
    }
    let (failed, answered) = (bad.requests(), good.requests());
    assert!(!failed.is_empty() && answered.len() == 8, "{} and {}", failed.len(), answered.len());
    for request in failed.iter().chain(&answered) {
        assert_eq!((request.target(), request.all("host")), ("/new/x?y", vec!["b"]));
        assert_eq!((request.all("x-gone").len(), request.all("x-a").len()), (0, 1));
        assert_eq!(request.all("x-a"), request.all("x-request-id"));
    }
    let again =
        answered.iter().filter(|it| it.field("x-kakehi-attempts").map(str::trim) == Some("2")).count();
    assert_eq!(again, failed.len());
    for first in &failed {
        assert!(answered.iter().any(|second| second.all("x-a") == first.all("x-a")), "the same request");
    }
}

#[test]
fn a_tunnel_is_made_with_what_a_frontend_makes() {
    let backend = Backend::script(|conn| {
        conn.request();
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly",
        );
        conn.echo();
    });
    let proxy = rewriting(&[&backend]).start();
    let mut client = proxy.client();
    client
        .send("GET /old/chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst");
    let head = client.head();
    assert_eq!((head.status(), head.all("upgrade"), head.all("x-a").len()), (101, vec!["websocket"], 1));
    assert_eq!(client.bytes(10), b"earlyfirst");
    let request = backend.request();
    assert_eq!((request.target(), request.all("host")), ("/new/chat", vec!["b"]));
    assert_eq!(request.all("upgrade"), ["websocket"]);
}
