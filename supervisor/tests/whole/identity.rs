//! A backend connection that authenticates a client (NTLM, Negotiate) is that client's alone, and ends with it.

use crate::harness::{Backend, Client, Config, Message, Proxy, wait};

/// How far a connection of the backend is with its client.
enum Handshake {
    Nobody,
    Challenged(String),
    Done(String),
}

fn unauthorized(challenge: &str) -> Vec<u8> {
    format!("HTTP/1.1 401 Unauthorized\r\n{challenge}\r\nContent-Length: 3\r\n\r\nwho").into_bytes()
}

/// A backend that authenticates connections in three steps: a request without credentials is told `offer`; `SCHEME 1 NAME`
/// gets a challenge, and `SCHEME 3 NAME` on the same connection is answered. From then on everything there is from NAME.
/// A request for `/close` is answered, and the connection closed.
fn authenticating(offer: &'static str) -> Backend {
    Backend::script(move |conn| {
        let mut handshake = Handshake::Nobody;
        while let Some(request) = conn.request() {
            let words: Vec<&str> = request.field("authorization").unwrap_or("").split(' ').collect();
            handshake = match (handshake, words.as_slice()) {
                (Handshake::Done(name), []) | (Handshake::Done(name), [""]) => Handshake::Done(name),
                (_, [_, "1", name]) => Handshake::Challenged((*name).to_owned()),
                (Handshake::Challenged(begun), [_, "3", name]) if begun == *name => Handshake::Done(begun),
                _ => Handshake::Nobody,
            };
            let answer = match &handshake {
                Handshake::Nobody => unauthorized(offer),
                Handshake::Challenged(name) => {
                    unauthorized(&format!("WWW-Authenticate: {} 2 {name}", words[0]))
                }
                Handshake::Done(name) => {
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()).into_bytes()
                }
            };
            conn.send(answer);
            if request.target() == "/close" {
                return;
            }
        }
    })
}

fn request(target: &str, credentials: &str) -> String {
    let authorization =
        if credentials.is_empty() { String::new() } else { format!("Authorization: {credentials}\r\n") };
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n{authorization}\r\n")
}

fn ask(client: &mut Client, credentials: &str) -> Message {
    client.send(request("/", credentials));
    client.response()
}

/// Runs the three steps for `name` on one connection.
fn authenticate(client: &mut Client, scheme: &str, name: &str) {
    ask(client, "").expect(401, "who");
    ask(client, &format!("{scheme} 1 {name}")).expect(401, "who");
    ask(client, &format!("{scheme} 3 {name}")).expect(200, name);
}

const OFFERS: [(&str, &str); 3] = [
    ("WWW-Authenticate: NTLM", "NTLM"),
    ("WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM", "negotiate"),
    ("www-authenticate: Basic realm=\"a, b\", nTLM", "ntlm"),
];

#[test]
fn clients_that_negotiate_at_the_same_time_all_succeed_and_nobody_gets_the_answers_of_another() {
    for (offer, scheme) in OFFERS {
        let backend = authenticating(offer);
        let proxy = Proxy::to(&backend);
        let names = ["alice", "bob", "carol"];
        let mut clients: Vec<Client> = names.iter().map(|_| proxy.client()).collect();
        let mut stranger = proxy.client();
        // Each step by everybody before the next by anybody, with a client without credentials in between.
        for step in ["", "1", "3"] {
            for (client, name) in clients.iter_mut().zip(names) {
                let credentials =
                    if step.is_empty() { String::new() } else { format!("{scheme} {step} {name}") };
                let answer = ask(client, &credentials);
                match step {
                    "3" => answer.expect(200, name),
                    _ => answer.expect(401, "who"),
                }
                ask(&mut stranger, "").expect(401, "who");
                crate::harness::exchange(&proxy, request("/", "")).expect(401, "who");
            }
        }
        for round in 0..3 {
            for (client, name) in clients.iter_mut().zip(names) {
                ask(client, "").expect(200, name);
                ask(&mut stranger, "").expect(401, "who");
                crate::harness::exchange(&proxy, request("/", "")).expect(401, "who");
            }
            assert_eq!(
                proxy.counter("upstream.idle"),
                0,
                "{offer}: nothing of it is in the pool, round {round}"
            );
        }
    }
}

#[test]
fn credentials_bind_the_connection_though_the_backend_asked_for_none() {
    let backend = authenticating("X: y");
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    // 401 without a challenge that would say so.
    ask(&mut client, "NTLM 1 alice").expect(401, "who");
    ask(&mut client, "NTLM 3 alice").expect(200, "alice");
    crate::harness::exchange(&proxy, request("/", "")).expect(401, "who");
    ask(&mut client, "").expect(200, "alice");
    assert_eq!(proxy.counter("upstream.bound"), 1);
}

#[test]
fn the_backend_connection_ends_with_its_client() {
    let backend = authenticating("WWW-Authenticate: NTLM");
    let proxy = Proxy::to(&backend);
    for (count, how) in ["close", "reset", "a last request"].into_iter().enumerate() {
        let mut client = proxy.client();
        authenticate(&mut client, "NTLM", "alice");
        assert_eq!((backend.connections(), backend.ended()), (count + 1, count));
        match how {
            "close" => drop(client),
            "reset" => client.reset(),
            _ => {
                client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                client.response().expect(200, "alice");
                client.expect_closed();
            }
        }
        wait::until(&format!("the end of the backend's connection after {how}"), || {
            backend.ended() == count + 1
        });
    }
}

#[test]
fn a_client_that_turns_to_another_cluster_leaves_its_connection() {
    let (one, other) = (authenticating("WWW-Authenticate: NTLM"), authenticating("WWW-Authenticate: NTLM"));
    let proxy = Config::new().site("one", "a", &one).site("other", "b", &other).start();
    let mut client = proxy.client();
    authenticate(&mut client, "NTLM", "alice");
    client.send("GET / HTTP/1.1\r\nHost: b\r\n\r\n");
    client.response().expect(401, "who");
    wait::until("the end of the first backend's connection", || one.ended() == one.connections());
    ask(&mut client, "").expect(401, "who");
}

#[test]
fn a_backend_connection_that_died_between_two_requests_is_asked_for_again() {
    let backend = authenticating("WWW-Authenticate: NTLM");
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    authenticate(&mut client, "NTLM", "alice");
    client.send(request("/close", ""));
    client.response().expect(200, "alice");
    wait::until("the end of the backend's connection", || backend.ended() == 1);
    // 401 on a new connection, not an error: and it goes on from there.
    authenticate(&mut client, "NTLM", "alice");
    ask(&mut client, "").expect(200, "alice");
}

#[test]
fn a_body_that_comes_in_parts_goes_over_the_connection_of_its_client() {
    let backend = authenticating("WWW-Authenticate: NTLM");
    let proxy = Proxy::to(&backend);
    let (mut alice, mut bob) = (proxy.client(), proxy.client());
    authenticate(&mut alice, "NTLM", "alice");
    authenticate(&mut bob, "NTLM", "bob");
    for _ in 0..2 {
        for (client, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
            client.send(vec![b'x'; 99_999]);
            client.send("x");
            client.response().expect(200, name);
        }
        crate::harness::exchange(&proxy, request("/", "")).expect(401, "who");
    }
}

#[test]
fn other_schemes_share_connections() {
    let backend = Backend::respond(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"NTLM\"\r\nContent-Length: 0\r\n\r\n",
    );
    let proxy = Proxy::to(&backend);
    for credentials in ["", "Basic TlRMTQ==", "Bearer Negotiate"] {
        crate::harness::exchange(&proxy, request("/", credentials)).expect(401, "");
    }
    assert_eq!((backend.connections(), proxy.counter("upstream.bound")), (1, 0));
}

#[test]
fn a_worker_that_is_replaced_serves_such_a_client_once_more_and_then_closes() {
    let backend = authenticating("WWW-Authenticate: NTLM");
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    authenticate(&mut client, "NTLM", "alice");
    let upgraded = proxy.ctl(&["workers", "upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    // The client stays where its backend connection is, and is told to come again.
    let answer = ask(&mut client, "");
    answer.expect(200, "alice");
    assert_eq!(answer.field("connection"), Some("close"));
    client.expect_closed();
    wait::until("the end of the process before", || proxy.workers().len() == 1);
    authenticate(&mut proxy.client(), "NTLM", "bob");
}
