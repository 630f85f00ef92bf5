//! The configuration changes while kakehi serves: by a reload of the file, by SIGHUP, by single changes.

use std::{
    net::SocketAddr,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::harness::{Backend, Client, Config, Process, Proxy, get, send_signal, wait};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A backend that answers with its name.
fn named(name: &str) -> Backend {
    Backend::respond(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

fn one_line(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Writes the file of a running proxy anew.
fn rewrite(proxy: &Proxy, config: &Config, addresses: &[SocketAddr]) {
    std::fs::write(proxy.folder().join("kakehi.toml"), config.text(addresses)).unwrap();
}

#[track_caller]
fn reload(proxy: &Proxy) -> String {
    let output = proxy.ctl(&["reload"]);
    assert!(output.status.success(), "{}", one_line(&output));
    one_line(&output)
}

/// What the backend behind a connection calls itself.
fn who(client: &mut Client) -> String {
    client.send(GET);
    String::from_utf8_lossy(&client.response().body).into_owned()
}

#[test]
fn a_changed_backend_takes_over_on_connections_that_stay_open() {
    let (old, new) = (named("old"), named("new"));
    let proxy = Config::to(&old).root("worker_count = 2").start();
    let mut clients: Vec<_> = (0..8).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(who(client), "old");
    }
    rewrite(&proxy, &Config::to(&new).root("worker_count = 2"), &[proxy.address()]);
    let said = reload(&proxy);
    assert!(
        said.contains("+ backend") && said.contains("- backend") && said.ends_with("changed\n"),
        "{said}"
    );
    for client in &mut clients {
        assert_eq!(who(client), "new");
    }
    let said = reload(&proxy);
    assert_eq!(said, "nothing to change\n");
}

#[test]
fn a_removed_backend_finishes_its_request_and_its_idle_connections_are_closed() {
    let (old, go) = Backend::slow();
    let new = named("new");
    let proxy = Proxy::to(&old);
    let mut slow = proxy.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    wait::until("the request is at the backend", || old.requests().len() == 1);
    assert_eq!(get(&proxy, "a", "/").status(), 200);
    rewrite(&proxy, &Config::to(&new), &[proxy.address()]);
    reload(&proxy);
    wait::until("the idle connection is closed, the other is not", || old.ended() == 1);
    assert_eq!(who(&mut proxy.client()), "new");
    go.send(()).unwrap();
    assert_eq!(slow.response().status(), 200, "what was in flight is finished");
    assert_eq!(who(&mut slow), "new", "on the same connection");
    wait::until("a retired backend keeps no connection", || old.ended() == 2);
}

#[test]
fn listeners_come_and_go_and_the_others_notice_nothing() {
    let backend = named("here");
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let first = proxy.address();
    let second = SocketAddr::from(([127, 0, 0, 1], crate::harness::free_port()));
    let two = Config::to(&backend).root("worker_count = 2").another_listener().frontend_on(
        1,
        "all",
        r#"hostname = "*""#,
    );
    rewrite(&proxy, &two, &[first, second]);
    assert!(reload(&proxy).contains(&format!("+ listener {second}")));
    // Both workers listen there.
    let mut clients: Vec<_> = (0..16).map(|_| Client::connect(second)).collect();
    for client in &mut clients {
        assert_eq!(who(client), "here");
    }
    // A worker that dies is replaced with the listener that came later.
    let worker: Process = proxy.workers()[0];
    send_signal(worker, Signal::SIGKILL);
    wait::until("the worker is replaced", || {
        proxy.workers().len() == 2 && !proxy.workers().iter().any(|it| it.0 == worker.0)
    });
    for _ in 0..16 {
        assert_eq!(who(&mut Client::connect(second)), "here");
    }

    let mut kept: Vec<_> = (0..8).map(|_| proxy.client()).collect();
    assert!(kept.iter_mut().all(|client| who(client) == "here"));
    rewrite(&proxy, &Config::to(&backend).root("worker_count = 2"), &[first]);
    assert!(reload(&proxy).contains(&format!("- listener {second}")));
    wait::until("nothing listens there", || Client::try_connect(second).is_err());
    assert!(kept.iter_mut().all(|client| who(client) == "here"), "the other listener's connections went on");
}

#[test]
fn a_bad_file_changes_nothing_and_says_where() {
    let backend = named("here");
    let proxy = Proxy::to(&backend);
    let file = proxy.folder().join("kakehi.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    for (bad, said) in [
        (format!("worker_cuont = 1\n{good}"), "kakehi.toml:1:1"),
        (format!("{good}\n["), "kakehi.toml:"),
        (good.replace("hostname = \"*\"", "hostname = \"/[/\""), ": the regular expression `[` is refused"),
        (String::from_utf8_lossy(&[b'#'; 10]).into_owned() + "\0", "kakehi.toml:1:"),
    ] {
        std::fs::write(&file, &bad).unwrap();
        for arguments in [&["reload"][..], &["reload", "--dry-run"]] {
            let output = proxy.ctl(arguments);
            let text = one_line(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(said) && text.contains("nothing was changed"), "{text}\nfor\n{bad}");
        }
        assert_eq!(who(&mut proxy.client()), "here");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(proxy.ctl(&["reload"]).status.code(), Some(1));
    assert_eq!(who(&mut proxy.client()), "here");
}

#[test]
fn an_address_that_is_taken_refuses_the_whole_change() {
    let (old, new) = (named("old"), named("new"));
    let proxy = Proxy::to(&old);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap();
    rewrite(&proxy, &Config::to(&new).another_listener(), &[proxy.address(), taken_address]);
    let output = proxy.ctl(&["reload"]);
    let text = one_line(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&taken_address.to_string()) && text.contains("already taken"), "{text}");
    assert_eq!(who(&mut proxy.client()), "old", "the part that could be done was not done either");
    drop(taken);
    reload(&proxy);
    assert_eq!(who(&mut proxy.client()), "new");
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let (old, new) = (named("old"), named("new"));
    let proxy = Proxy::to(&old);
    rewrite(&proxy, &Config::to(&new).root("buffer_count = 64"), &[proxy.address()]);
    let output = proxy.ctl(&["reload", "--dry-run"]);
    let text = one_line(&output);
    assert!(output.status.success() && text.contains("+ backend") && text.contains("a dry run"), "{text}");
    assert!(text.contains("with new workers only (`kakehictl reload --workers`): buffer_count"), "{text}");
    assert_eq!(who(&mut proxy.client()), "old");
}

#[test]
fn sighup_reloads_and_the_log_tells_who_changed_what() {
    let (old, new) = (named("old"), named("new"));
    let proxy = Proxy::to(&old);
    rewrite(&proxy, &Config::to(&new), &[proxy.address()]);
    send_signal(proxy.supervisor(), Signal::SIGHUP);
    wait::until("the new backend answers", || who(&mut proxy.client()) == "new");
    wait::until("the log tells", || proxy.log().contains("changed by SIGHUP: + backend"));

    std::fs::write(proxy.folder().join("kakehi.toml"), "nonsense").unwrap();
    send_signal(proxy.supervisor(), Signal::SIGHUP);
    wait::until("the log tells why not", || proxy.log().contains("nothing was changed"));
    assert_eq!(who(&mut proxy.client()), "new");
}

#[test]
fn single_changes_are_made_at_once_and_impossible_ones_refused() {
    let (one, two) = (named("one"), named("two"));
    let proxy = Config::to(&one).root("worker_count = 2").start();
    let second = two.address().to_string();
    let done = |arguments: &[&str]| {
        let output = proxy.ctl(arguments);
        (output.status.code(), one_line(&output))
    };
    let (code, text) = done(&["backend", "add", "all", &second, "--id", "second"]);
    assert!(code == Some(0) && text.contains("+ backend second"), "{text}");
    let mut client = proxy.client();
    let mut seen: Vec<_> = (0..4).map(|_| who(&mut client)).collect();
    seen.sort_unstable();
    assert_eq!(seen, ["one", "one", "two", "two"]);

    let state = proxy.ctl_json("state");
    let backends = state["clusters"]["all"]["backends"].as_array().unwrap();
    assert_eq!(backends.len(), 2, "{state}");
    let first = backends[0]["id"].as_str().unwrap();
    assert_eq!(done(&["backend", "remove", "all", first]).0, Some(0));
    assert!((0..4).all(|_| who(&mut client) == "two"));

    for (arguments, said) in [
        (&["backend", "remove", "all", "nobody"][..], "no backend `nobody`"),
        (&["backend", "add", "nowhere", &second], "no cluster `nowhere`"),
        (&["cluster", "remove", "nowhere"], "no cluster `nowhere`"),
    ] {
        let (code, text) = done(arguments);
        assert!(code == Some(1) && text.contains(said), "{text}");
    }
    assert_eq!(done(&["backend", "add", "all", "not an address"]).0, Some(2));

    assert_eq!(done(&["cluster", "remove", "all"]).0, Some(0));
    client.send(GET);
    assert_eq!(client.response().status(), 404);
    wait::until("the log tells who", || proxy.log().contains("changed by uid "));
}

#[test]
fn a_tunnel_goes_on_over_reloads_and_ends_a_while_after_its_backend_was_removed() {
    let echo = Backend::script(|conn| {
        let Some(_) = conn.request() else { return };
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        conn.echo();
    });
    let other = named("other");
    let config = |with_other: bool| {
        let config = Config::to(&echo).root("drain_timeout = 1");
        if with_other {
            config.backend("more", &other).frontend("more", r#"hostname = "more""#)
        } else {
            config
        }
    };
    let proxy = config(false).start();
    let mut tunnel = proxy.client();
    tunnel.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(tunnel.head().status(), 101);
    let mut echoes = |text: &str| {
        tunnel.send(text);
        assert_eq!(tunnel.bytes(text.len()), text.as_bytes());
    };
    echoes("before");
    rewrite(&proxy, &config(true), &[proxy.address()]);
    reload(&proxy);
    echoes("after a change that is not its own");
    rewrite(&proxy, &Config::to(&other).root("drain_timeout = 1"), &[proxy.address()]);
    reload(&proxy);
    echoes("for a while after its backend was removed");
    let (rest, _) = tunnel.patience(Duration::from_secs(10)).rest();
    assert_eq!(rest, b"", "it was ended");
}

#[test]
fn no_request_is_lost_over_many_reloads_under_load() {
    let (one, two) = (named("one"), named("two"));
    let proxy = Config::to(&one).root("worker_count = 2").start();
    let address = proxy.address();
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = (0..6)
        .map(|n| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(Ordering::SeqCst) {
                    // Half of the clients come anew for each request.
                    if n % 2 == 0 {
                        client = Client::connect(address);
                    }
                    let answer = who(&mut client);
                    assert!(answer == "one" || answer == "two", "{answer}");
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let spare = SocketAddr::from(([127, 0, 0, 1], crate::harness::free_port()));
    for n in 0..20 {
        let backend = if n % 2 == 0 { &two } else { &one };
        let config = Config::to(backend).root("worker_count = 2");
        match n % 3 {
            // The routes change too, and a listener comes and goes.
            0 => rewrite(
                &proxy,
                &config.another_listener().frontend("all", r#"hostname = "b""#),
                &[address, spare],
            ),
            _ => rewrite(&proxy, &config, &[address]),
        }
        let before = served.load(Ordering::SeqCst);
        reload(&proxy);
        wait::until("requests go on", || served.load(Ordering::SeqCst) > before + 12);
    }
    stop.store(true, Ordering::SeqCst);
    for client in load {
        client.join().expect("every request was answered");
    }
    assert_eq!(proxy.ctl_json("status")["restarts"], 0);
}
