//! Whole responses of the operator in the place of kakehi's own.

use std::fs;

use crate::harness::{Backend, Config, Message, OK, Pki, Proxy, exchange, free_port};

fn get(proxy: &Proxy, host: &str, more: &str) -> Message {
    exchange(proxy, format!("GET /x?q HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"))
}

/// A response with everything that a template can tell, as a text of TOML.
fn telling(status: u16, media_type: &str) -> String {
    format!(
        "\"HTTP/1.1 {status} Own Words\\r\\nContent-Type: {media_type}\\r\\nConnection: keep-alive\\r\\nX-Why: %MESSAGE\\r\\nX-Wait: %RETRY_AFTER\\r\\n\\r\\n%ROUTE|%CLUSTER_ID|%BACKEND_ID|%MESSAGE|%REQUEST_ID\\n\""
    )
}

#[test]
fn an_answer_of_the_cluster_goes_before_one_of_the_listener() {
    let backend = Backend::respond(OK);
    let nobody = format!("127.0.0.1:{}", free_port());
    let of_listener = format!(
        "answers = {{ 404 = {}, 401 = {}, 503 = \"HTTP/1.1 503 Of The Listener\\n\\nlistener\" }}",
        telling(404, "text/plain"),
        telling(401, "text/html")
    );
    let proxy = Config::new()
        .root("worker_count = 2")
        .listener(&of_listener)
        .backend("web", &backend)
        .frontend("web", "hostname = \"a\"")
        .frontend("web", "hostname = \"denied\", redirect = \"unauthorized\"")
        .backend_at("dead", &nobody, "backend_id = \"one\"")
        .cluster("dead", &format!("answers = {{ 503 = {} }}", telling(503, "text/html")))
        .frontend("dead", "hostname = \"dead\"")
        .backend_at("other", &nobody, "")
        .frontend("other", "hostname = \"other\"")
        .start();
    get(&proxy, "a", "").expect(200, "ok");
    // Both workers, and a connection that goes on.
    for _ in 0..4 {
        let mut client = proxy.client();
        for method in ["GET", "HEAD", "GET"] {
            client.send(format!("{method} /<b> HTTP/1.1\r\nHost: none\r\n\r\n"));
            let response = client.response_to(method);
            assert_eq!((response.status(), response.all("content-type")), (404, vec!["text/plain"]));
            assert_eq!((response.all("x-why"), response.all("connection").len()), (vec!["no_route"], 0));
            assert_eq!((response.all("x-wait").len(), response.all("date").len()), (0, 1));
            let length: usize = response.field("content-length").unwrap().parse().unwrap();
            assert_eq!(response.all("content-length").len(), 1);
            if method == "GET" {
                let text = response.text();
                let (told, id) = text.rsplit_once('|').unwrap();
                assert_eq!((told, id.trim().len(), length), ("GET none/<b>|||no_route", 26, text.len()));
            } else {
                assert!(length > 30 && response.text().is_empty());
            }
        }
    }
    let old = exchange(&proxy, "GET /x HTTP/1.0\r\nHost: none\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((old.status(), old.all("connection")), (404, vec!["close"]));
    let dead = get(&proxy, "dead", "");
    assert_eq!((dead.status(), dead.all("connection")), (503, vec!["close"]));
    assert!(dead.text().starts_with("GET dead/x|dead|one|backend_connect_failed|"), "{}", dead.text());
    get(&proxy, "other", "").expect(503, "listener");
    let denied = exchange(&proxy, "GET /'\"&<script> HTTP/1.1\r\nHost: denied\r\nConnection: close\r\n\r\n");
    assert!(
        denied.text().starts_with("GET denied/&#39;&quot;&amp;&lt;script&gt;|web||denied|"),
        "{}",
        denied.text()
    );
    // What has no template is as before, and so is what is no request.
    get(&proxy, "a b", "").expect(400, "400 Bad Request: bad_host\n");
}

#[test]
fn a_redirect_has_a_response_of_its_own() {
    let backend = Backend::respond(OK);
    let template = "\"HTTP/1.1 302 Over There\\nContent-Type: text/html\\nLocation: %REDIRECT_LOCATION\\nX-A: 1\\n\\n<a href='%REDIRECT_LOCATION'>\"";
    let plain = "\"HTTP/1.1 301 Gone\\n\\ngone to %REDIRECT_LOCATION\"";
    let proxy = Config::new()
        .listener(&format!("answers = {{ 301 = {plain} }}"))
        .backend("web", &backend)
        .frontend(
            "web",
            &format!("hostname = \"a\", redirect = \"found\", rewrite_path = \"/n$PATH[0]\", redirect_template = {template}, headers = [{{ position = \"response\", key = \"X-A\", value = \"2\" }}]"),
        )
        .frontend("web", "hostname = \"b\", redirect = \"permanent\", redirect_scheme = \"use-https\"")
        .start();
    let response = get(&proxy, "a", "");
    assert_eq!((response.status(), response.all("location")), (302, vec!["http://a/n/x?q"]));
    assert_eq!((response.text().as_str(), response.all("x-a")), ("<a href='http://a/n/x?q'>", vec!["2"]));
    let response = get(&proxy, "b", "");
    assert_eq!((response.status(), response.all("location")), (301, vec!["https://b/x?q"]));
    assert_eq!(response.text(), "gone to https://b/x?q");
}

#[test]
fn pages_come_from_files_and_change_with_them() {
    let backend = Backend::respond(OK);
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("404.http");
    let large = "x".repeat(1_000_000);
    let write = |body: &str| {
        fs::write(&page, format!("HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n{body}")).unwrap();
    };
    write(&large);
    let pki = Pki::new();
    let proxy = Config::new()
        .root("worker_count = 2")
        .https(&pki.issue(&["a"]))
        .listener(&format!("answer_404 = \"{}\"\nhsts = {{ enabled = true }}", page.display()))
        .backend("web", &backend)
        .frontend("web", "hostname = \"a\", path = \"/here\"")
        .start();
    let ask = || {
        let mut client = pki.caller().to("a").connect(proxy.address());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.response()
    };
    let response = ask();
    assert_eq!((response.status(), response.text() == large), (404, true));
    assert_eq!(response.all("strict-transport-security").len(), 1);
    write("small");
    assert!(proxy.ctl(&["reload"]).status.success());
    for _ in 0..4 {
        assert_eq!(ask().text(), "small");
    }
    // A page that is none changes nothing, and is told with its line.
    fs::write(&page, "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc").unwrap();
    let output = proxy.ctl(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("404.http, line 2: `Content-Length`"), "{said}");
    assert_eq!(ask().text(), "small");
    // One that is gone is no reason to serve nothing.
    fs::remove_file(&page).unwrap();
    let output = proxy.ctl(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(ask().text(), "404 Not Found: no_route\n");
    // Clear text gets the page for a malformed request.
    let keys = "answers={ 400 = \"HTTP/1.1 400 No\\r\\n\\r\\n%MESSAGE\" }";
    let address = proxy.address().to_string();
    assert!(proxy.ctl(&["listener", "patch", &address, keys]).status.success());
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (400, "clear_text_on_tls"));
}

#[test]
fn what_becomes_of_a_page_concerns_no_other_change() {
    let backend = Backend::respond(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, body: &str| fs::write(path(name), body).unwrap();
    write("404", "HTTP/1.1 404 X\n\nfour");
    write("401", "HTTP/1.1 401 X\n\nthree");
    write("302", "HTTP/1.1 302 X\nLocation: %REDIRECT_LOCATION\n\ntwo");
    let proxy = Config::new()
        .listener(&format!("answer_404 = \"{}\"", path("404").display()))
        .backend("web", &backend)
        .cluster("web", &format!("answers = {{ 401 = \"file://{}\" }}", path("401").display()))
        .frontend("web", "hostname = \"a\", path = \"/x\", redirect = \"unauthorized\"")
        .frontend(
            "web",
            &format!(
                "hostname = \"a\", path = \"/y\", redirect = \"found\", rewrite_path = \"/z\", redirect_template = \"file://{}\"",
                path("302").display()
            ),
        )
        .start();
    let check = |expected: [&str; 3]| {
        for (target, expected) in ["/", "/x", "/y"].into_iter().zip(expected) {
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert_eq!(exchange(&proxy, request).text(), expected, "{target}");
        }
    };
    let ctl = |arguments: &[&str]| {
        let output = proxy.ctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (address, nobody) = (proxy.address().to_string(), format!("127.0.0.1:{}", free_port()));
    let others = |round: &str| {
        ctl(&["backend", "add", "web", &nobody, "--id", round]);
        ctl(&["backend", "drain", "web", round]);
        ctl(&["cluster", "patch", "web", &format!("queue_size={round}")]);
        ctl(&["listener", "patch", &address, &format!("front_timeout={round}")]);
        ctl(&["frontend", "patch", "web", &address, "a", "--path", "/y", &format!("max_body_size={round}")]);
        ctl(&["frontend", "add", "web", &address, "b", "--path", &format!("/{round}")]);
    };
    // Written anew, broken, gone: what is served is what was read last.
    write("404", "HTTP/1.1 404 X\n\nFOUR");
    write("401", "no page");
    fs::remove_file(path("302")).unwrap();
    others("31");
    check(["four", "three", "two"]);
    // Who names a page has it read.
    write("401", "HTTP/1.1 401 X\n\nTHREE");
    ctl(&["cluster", "patch", "web", &format!("answers.401=file://{}", path("401").display())]);
    check(["four", "THREE", "two"]);
    write("302", "HTTP/1.1 302 X\n\nTWO");
    ctl(&["reload"]);
    check(["FOUR", "THREE", "TWO"]);
    // What never ends, or is waited for, is no page.
    for odd in ["/proc/kmsg", "/dev/zero", "/dev/stdin"] {
        ctl(&["listener", "patch", &address, &format!("answers.404=file://{odd}")]);
        others("32");
        ctl(&["backend", "remove", "web", "32"]);
        ctl(&["frontend", "remove", "web", &address, "b", "--path", "/32"]);
        check(["404 Not Found: no_route\n", "THREE", "TWO"]);
    }
    let told = ctl(&["cluster", "patch", "web", "answers.503=HTTP/1.1 503 Long\n\nsecond line"]);
    assert!(told.contains("answers changed (1 → 2)") && !told.contains("second line"), "{told}");
}

#[test]
fn the_id_in_an_answer_is_that_of_the_request() {
    let backend = Backend::respond(OK);
    let proxy = Config::new()
        .listener("trusted_peers = [\"127.0.0.1\"]\nanswers = { 404 = \"HTTP/1.1 404 X\\n\\n%REQUEST_ID\" }")
        .backend("web", &backend)
        .frontend("web", "hostname = \"a\"")
        .start();
    get(&proxy, "b", "X-Request-Id: mine<\r\n").expect(404, "mine&lt;");
    assert_eq!(get(&proxy, "b", "").text().len(), 26);
}

#[test]
fn a_page_says_when_to_come_again_and_a_slow_client_keeps_no_other_from_it() {
    let backend = Backend::respond(OK);
    let page = |status: u16, body: &str| {
        format!(
            "{status} = \"HTTP/1.1 {status} X\\nX-Wait: %RETRY_AFTER\\nContent-Type: text/html\\n\\n{body}\""
        )
    };
    let large = "x".repeat(1_000_000);
    let proxy = Config::new()
        .listener(&format!(
            "answers = {{ {}, {} }}\nrate_limits = [{{ key = \"header:X-User\", rate = 1, per = \"1h\", burst = 0 }}]",
            page(429, "%RETRY_AFTER s"),
            page(404, &large)
        ))
        .backend("web", &backend)
        .frontend("web", "hostname = \"a\"")
        .start();
    get(&proxy, "a", "X-User: u\r\n").expect(200, "ok");
    let late = get(&proxy, "a", "X-User: u\r\n");
    let wait = late.field("retry-after").unwrap();
    assert_eq!((late.status(), late.text(), late.all("x-wait")), (429, format!("{wait} s"), vec![wait]));
    // Each has asked for a large page, and takes nothing of it.
    let slow: Vec<_> = (0..50)
        .map(|n| {
            let mut client = proxy.client();
            client.send(format!("GET / HTTP/1.1\r\nHost: none\r\nX-User: {n}\r\n\r\n"));
            client
        })
        .collect();
    assert_eq!(get(&proxy, "none", "X-User: quick\r\n").text().len(), large.len());
    for mut client in slow {
        assert_eq!(client.response().text().len(), large.len());
    }
}
