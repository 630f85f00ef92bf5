//! Connections of a TCP listener, and those of names that are not terminated here, are passed on as they are.

use std::time::Duration;

use crate::harness::{
    Backend, Client, Config, End, Load, OK, Pki, Proxy, Server, ask, assert_same_bytes, free_port, noise,
    wait,
};

const MIB: usize = 1 << 20;

/// One listener of TCP whose connections go to these backends.
fn to(backends: &[&Backend]) -> Config {
    let config = Config::new()
        .listener(r#"protocol = "tcp""#)
        .cluster("tcp", r#"protocol = "tcp""#)
        .frontend("tcp", "");
    backends.iter().fold(config, |config, backend| config.backend("tcp", backend))
}

fn echo() -> Backend {
    Backend::script(|conn| {
        conn.echo();
        conn.send("the end");
    })
}

/// Says its name, whoever comes.
fn named(name: &'static str) -> Backend {
    Backend::script(move |conn| {
        conn.send(name);
        conn.echo();
    })
}

#[test]
fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
    let backend = echo();
    let proxy = to(&[&backend]).start();
    let mut client = proxy.client();
    client.send("hello");
    assert_eq!(client.bytes(5), b"hello");
    let data = noise(20 * MIB);
    client.patience(Duration::from_secs(20));
    assert_same_bytes(&client.converse(&data, data.len()), &data, "echo");
    client.half_close();
    assert_eq!(client.rest(), (b"the end".to_vec(), End::Eof));
    proxy.wait_for_counter("tunnel.open", 0);
    assert_eq!(proxy.counter("tcp.forwarded"), 1);

    let talks = Backend::script(|conn| {
        conn.send("I go first");
        conn.half_close();
        assert_eq!(conn.rest(), b"and I last");
    });
    let proxy = to(&[&talks]).start();
    let mut client = proxy.client();
    assert_eq!(client.rest(), (b"I go first".to_vec(), End::Eof));
    client.send("and I last");
    client.half_close();
    wait::until("the script ends", || talks.ended() == 1);
}

#[test]
fn a_reset_of_either_side_reaches_the_other() {
    let resets = Backend::script(|conn| {
        let _ = conn.bytes(1);
        conn.reset();
    });
    let proxy = to(&[&resets]).start();
    let mut client = proxy.client();
    client.send("x");
    assert_eq!(client.rest().1, End::Reset);

    let backend = Backend::script(|conn| assert_eq!(conn.end(), End::Reset));
    let proxy = to(&[&backend]).start();
    let mut client = proxy.client();
    client.send("x");
    wait::until("it is there", || !backend.received().is_empty());
    client.reset();
    wait::until("the script ends", || backend.ended() == 1);
}

#[test]
fn silence_ends_a_connection_at_its_deadline() {
    let backend = echo();
    let proxy = to(&[&backend]).root("tunnel_timeout = 0.4").start();
    let mut client = proxy.client();
    for _ in 0..4 {
        wait::pace(Duration::from_millis(200));
        client.send("x");
        assert_eq!(client.bytes(1), b"x");
    }
    let (rest, end) = client.rest();
    assert!(rest.is_empty() && end != End::Deadline, "{end:?}");
    proxy.wait_for_counter("tunnel.timeouts", 1);
}

#[test]
fn connections_are_balanced_and_go_elsewhere_when_a_backend_is_down() {
    let (one, two) = (named("1"), named("2"));
    let proxy = to(&[&one, &two]).start();
    for _ in 0..20 {
        let _ = proxy.client().bytes(1);
    }
    assert_eq!((one.connections(), two.connections()), (10, 10));
    let down = format!("127.0.0.1:{}", free_port());
    let proxy = to(&[&one]).backend_at("tcp", &down, "").start();
    for _ in 0..10 {
        assert_eq!(proxy.client().bytes(1), b"1");
    }
    let proxy = to(&[]).backend_at("tcp", &down, "").start();
    for _ in 0..3 {
        // It may be so quick that it looks like a refusal.
        let Ok(mut client) = Client::try_connect(proxy.address()) else { continue };
        assert_eq!(client.rest(), (Vec::new(), End::Reset), "not the end of something");
    }
}

#[test]
fn names_of_tls_choose_the_cluster_and_tls_is_the_backends() {
    let pki = Pki::new();
    let servers = ["a", "x.wild.test", "rest.test"].map(|name| pki.server(&[name]));
    let backends = servers.each_ref().map(|server| Backend::respond_over_tls(server, OK));
    let config = |rest: bool| {
        let config = Config::new()
            .listener(r#"protocol = "tcp""#)
            .listener("request_timeout = 1")
            .cluster("exact", r#"protocol = "tcp""#)
            .frontend("exact", r#"hostname = "a""#)
            .backend("exact", &backends[0])
            .cluster("wild", r#"protocol = "tcp""#)
            .frontend("wild", r#"hostname = "*.wild.test""#)
            .backend("wild", &backends[1]);
        if !rest {
            return config.start();
        }
        config
            .cluster("rest", r#"protocol = "tcp""#)
            .frontend("rest", "")
            .backend("rest", &backends[2])
            .start()
    };
    let proxy = config(true);
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        for (name, expects) in [
            ("a", "a"),
            ("A", "a"),
            ("x.wild.test", "x.wild.test"),
            ("X.WILD.test", "x.wild.test"),
            ("x.y.wild.test", "rest.test"),
            ("b", "rest.test"),
        ] {
            ask(&mut caller.expecting(expects).to(name).connect(proxy.address()));
        }
        ask(&mut caller.nameless().expecting("rest.test").connect(proxy.address()));
    }
    assert_eq!(servers.each_ref().map(|server| server.shaken().len()), [4, 4, 6]);
    assert_eq!(proxy.counter("tls.handshakes"), 0);
    // Without one for the rest, an unknown name is refused.
    let proxy = config(false);
    for caller in [pki.caller().to("b"), pki.caller().nameless()] {
        caller.expect_alert(proxy.address(), rustls::AlertDescription::UnrecognisedName);
    }
    ask(&mut pki.caller().connect(proxy.address()));
}

#[test]
fn the_message_with_the_name_may_take_so_long_and_be_so_large() {
    let pki = Pki::new();
    let backend = Backend::respond_over_tls(&pki.server(&["a"]), OK);
    let config = Config::new()
        .listener(r#"protocol = "tcp""#)
        .listener("sni_preread_timeout = 0.3")
        .cluster("exact", r#"protocol = "tcp""#)
        .frontend("exact", r#"hostname = "a""#)
        .backend("exact", &backend)
        .cluster("rest", r#"protocol = "tcp""#)
        .frontend("rest", "")
        .backend("rest", &backend);
    let proxy = config.clone().start();
    ask(&mut pki.caller().connect(proxy.address()));
    // A record that never ends, and nothing at all.
    for start in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b""] {
        let mut client = proxy.client();
        client.send(start);
        let (rest, end) = client.rest();
        assert!(rest.is_empty() && end != End::Deadline, "{end:?}");
    }
    // Less than any client sends: nobody gets through, not even to the one that takes the rest.
    let proxy = config.listener("sni_preread_max_bytes = 64").start();
    pki.caller().expect_alert(proxy.address(), rustls::AlertDescription::RecordOverflow);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn some_names_pass_through_a_port_that_terminates_others() {
    let pki = Pki::new();
    let server: Server = pki.server(&["through.test"]);
    let through = Backend::respond_over_tls(&server, OK);
    let terminated = Backend::respond(OK);
    let certificate = pki.issue(&["a"]);
    let proxy = Config::https_to(&terminated, &certificate)
        .cluster("through", r#"protocol = "tcp""#)
        .frontend("through", r#"hostname = "through.test""#)
        .backend("through", &through)
        .start();
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        let mut client = caller.to("through.test").connect(proxy.address());
        assert_ne!(client.served(), certificate.fingerprint());
        ask(&mut client);
        let mut client = caller.connect(proxy.address());
        assert_eq!(client.served(), certificate.fingerprint());
        ask(&mut client);
    }
    assert_eq!((through.requests().len(), terminated.requests().len()), (2, 2));
    assert_eq!(through.requests()[0].field("Via"), None);
    assert_eq!(proxy.counter("tcp.forwarded"), 2);
    // A megabyte each way through both.
    let data = noise(MIB);
    let mut client = pki.caller().to("through.test").connect(proxy.address());
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n"));
    client.send(&data);
    client.response().expect(200, "ok");
    assert_same_bytes(&through.requests().pop().unwrap().body, &data, "upload");
}

fn upgrade_workers(proxy: &Proxy) {
    let before = proxy.workers();
    let output = proxy.ctl(&["workers", "upgrade"]);
    assert!(output.status.success(), "{output:?}");
    wait::until("the end of the processes before", || {
        proxy.workers().iter().all(|worker| !before.contains(worker))
    });
}

#[test]
fn open_connections_move_to_the_new_process() {
    let backend = echo();
    let proxy = to(&[&backend]).root("worker_count = 2").start();
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
    for round in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            let word = format!("{round} {number}");
            client.send(&word);
            assert_eq!(client.bytes(word.len()), word.as_bytes());
        }
        upgrade_workers(&proxy);
    }
    let data = noise(MIB);
    for client in &mut clients {
        assert_same_bytes(&client.converse(&data, data.len()), &data, "echo");
        client.half_close();
        assert_eq!(client.rest(), (b"the end".to_vec(), End::Eof));
    }
    assert_eq!(backend.connections(), 6);
}

#[test]
fn idle_connections_over_tls_are_served_once_more_and_then_closed_in_order() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).root("worker_count = 2").start();
    let mut idle: Vec<Client> = Vec::new();
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        for _ in 0..4 {
            let mut client = caller.connect(proxy.address());
            ask(&mut client);
            idle.push(client);
        }
        // This one has asked for nothing yet.
        idle.push(caller.connect(proxy.address()));
    }
    let output = proxy.ctl(&["workers", "upgrade"]);
    assert!(output.status.success(), "{output:?}");
    for client in &mut idle {
        client.send(crate::harness::GET);
        let answer = client.response();
        answer.expect(200, "ok");
        assert_eq!(answer.field("Connection"), Some("close"));
        assert_eq!(client.rest(), (Vec::new(), End::Eof), "with a word of TLS");
    }
    ask(&mut pki.caller().connect(proxy.address()));
    let load = Load::on_tls(pki.caller(), proxy.address());
    for _ in 0..3 {
        let output = proxy.ctl(&["workers", "upgrade"]);
        assert!(output.status.success(), "{output:?}");
        load.goes_on();
    }
    load.end();
}
