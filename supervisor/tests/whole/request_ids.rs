//! The id of a request, as its backend and its client are told it.

use std::collections::BTreeSet;

use crate::harness::{Backend, Client, Config, Message, OK, Pki, ctl, exchange};

fn is_ulid(text: &str) -> bool {
    text.len() == 26 && text.chars().all(|it| it.is_ascii_digit() || it.is_ascii_uppercase())
}

/// The id of an answer, which must have one.
#[track_caller]
fn id(message: &Message, name: &str) -> String {
    let ids = message.all(name);
    assert!(matches!(ids[..], [id] if is_ulid(id)), "{}", message.text());
    ids[0].to_owned()
}

#[test]
fn backend_and_client_are_told_the_same_id_and_no_other_request_has_it() {
    let backend = Backend::respond(
        "HTTP/1.1 200 OK\r\nSozu-Id: theirs\r\nsozu-id: theirs\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let mut seen = BTreeSet::new();
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for number in 0..16 {
        let client = &mut clients[number % 4];
        client.send("GET / HTTP/1.1\r\nHost: a\r\nSozu-Id: mine\r\nSozu_Id: mine\r\nSOZU-ID: mine\r\n\r\n");
        seen.insert(id(&client.response(), "Sozu-Id"));
    }
    let told: BTreeSet<String> = backend.requests().iter().map(|it| id(it, "Sozu-Id")).collect();
    assert_eq!((seen.len(), &told), (16, &seen));
    for request in backend.requests() {
        assert!(!request.fields.iter().any(|(_, value)| value == "mine"), "{request:?}");
        assert_eq!(request.field("x-request-id"), request.field("sozu-id"));
    }
}

#[test]
fn answers_of_kakehis_own_have_one_too_also_where_nothing_of_the_request_is_known() {
    let backend = Backend::respond(OK);
    let proxy = Config::new()
        .listener("answers = { 404 = \"HTTP/1.1 404 Not Found\\r\\n\\r\\n%REQUEST_ID\" }")
        .backend("web", &backend)
        .frontend("web", "hostname = \"a\"")
        .start();
    let mut seen = BTreeSet::new();
    for request in [
        "GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        "HEAD / HTTP/1.1\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let answer = exchange(&proxy, request);
        let id = id(&answer, "sozu-id");
        if answer.status() == 404 && !request.starts_with("HEAD") {
            assert_eq!(answer.text(), id);
        }
        assert!(seen.insert(id), "{request}");
    }
}

#[test]
fn the_field_has_the_name_that_is_asked_for_or_none() {
    let backend = Backend::respond("HTTP/1.1 200 OK\r\nSozu-Id: theirs\r\nContent-Length: 2\r\n\r\nok");
    let pki = Pki::new();
    let issued = pki.issue(&["a.test"]);
    let ask = |config: Config| {
        let proxy = config.listener("trusted_peers = [\"127.0.0.0/8\"]").start();
        exchange(&proxy, "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nSozu-Id: mine\r\n\r\n")
    };
    // That of a proxy in front, which is believed in `X-Request-Id`, but not here.
    let answer = ask(Config::to(&backend).listener("sozu_id_header = \"x-request-id\""));
    let made = id(&answer, "x-request-id");
    assert_eq!(answer.field("sozu-id"), Some("theirs"));
    let request = backend.requests().pop().unwrap();
    assert_eq!((request.all("x-request-id"), request.field("sozu-id")), (vec![made.as_str()], Some("mine")));
    let answer = ask(Config::to(&backend).listener("sozu_id_header = \"\""));
    assert_eq!((answer.all("sozu-id"), answer.field("x-request-id")), (vec!["theirs"], None));
    let request = backend.requests().pop().unwrap();
    assert_eq!((request.all("sozu-id"), request.all("x-request-id")), (vec!["mine"], vec!["mine"]));
    // Over TLS, and after a change while it runs.
    let proxy = Config::https_to(&backend, &issued).start();
    let address = proxy.address().to_string();
    let mut client = pki.caller().to("a.test").connect(proxy.address());
    let get = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    client.send(get);
    id(&client.response(), "sozu-id");
    ctl(&proxy, &["listener", "patch", &address, "sozu_id_header=X-Id"]);
    client.send(get);
    id(&client.response(), "x-id");
}

#[test]
fn interim_responses_have_none_and_neither_they_nor_trailers_bring_one() {
    let backend = Backend::respond(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nSozu-Id: theirs\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\nSOZU_ID: theirs\r\nsozu-id: theirs\r\nX-T: 1\r\n\r\n",
    );
    let proxy = Config::to(&backend).listener("underscores_in_headers = true").start();
    let mut client = proxy.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nSozu-Id: mine\r\nX-T: 2\r\n\r\n",
    );
    let hints = client.head();
    assert_eq!((hints.status(), hints.field("sozu-id"), hints.field("link")), (103, None, Some("</a>")));
    let response = client.response();
    id(&response, "sozu-id");
    assert_eq!(response.trailers, [("X-T".to_owned(), "1".to_owned())]);
    let request = backend.request();
    id(&request, "sozu-id");
    assert_eq!(request.trailers, [("X-T".to_owned(), "2".to_owned())]);
}

#[test]
fn a_name_that_means_something_else_is_refused() {
    for name in [
        "Content-Length",
        "host",
        "Cookie",
        "a b",
        "X:",
        "Set-Cookie",
        "X-Forwarded-Proto",
        "sec-websocket-key",
    ] {
        let backend = Backend::respond(OK);
        let config = Config::to(&backend).listener(&format!("sozu_id_header = \"{name}\""));
        let (status, output) = crate::harness::Proxy::start_failing(&config);
        assert!(!status.success() && output.contains("sozu_id_header"), "{name}: {output}");
    }
}
