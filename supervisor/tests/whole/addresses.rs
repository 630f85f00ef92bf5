//! What a reload does to addresses: one becomes wider or narrower without losing a client, and the last one does not go by
//! accident.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Output,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    harness::{Backend, Client, Config, GET, Need, OK, Proxy, ask, machine, send_signal, wait},
    hostile_worker::listens,
};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Gives the running proxy another address in its file, and reloads.
#[track_caller]
fn move_to(proxy: &Proxy, address: SocketAddr) -> Output {
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    let present = text.split('"').find(|it| it.parse::<SocketAddr>().is_ok()).unwrap().to_owned();
    // The backends have other ports.
    fs::write(&file, text.replace(&present, &address.to_string())).unwrap();
    proxy.ctl(&["reload"])
}

/// One request after the other, on a connection for each and on one that stays; all are answered.
fn ask_until(stop: &AtomicBool, served: &AtomicU64, address: SocketAddr, anew: bool) {
    let mut client = Client::connect(address);
    while !stop.load(Ordering::SeqCst) {
        client.send(GET);
        let answer = client.response();
        answer.expect(200, "ok");
        served.fetch_add(1, Ordering::SeqCst);
        if anew || answer.field("Connection") == Some("close") {
            client = Client::connect(address);
        }
    }
}

fn widen_and_narrow(ipv6: bool) {
    let (one, all): (IpAddr, IpAddr) = match ipv6 {
        true => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()),
        false => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()),
    };
    let backend = Backend::respond(OK);
    let config = Config::to(&backend).root("worker_count = 2");
    let proxy = if ipv6 { config.on_ipv6() } else { config }.start();
    let address = proxy.address();
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|number| {
                let (stop, served) = (&stop, &served);
                scope.spawn(move || ask_until(stop, served, address, number % 2 == 0))
            })
            .collect();
        for round in 0..6 {
            let to = if round % 2 == 0 { all } else { one };
            let output = move_to(&proxy, SocketAddr::new(to, address.port()));
            assert!(output.status.success(), "{}", said(&output));
            let before = served.load(Ordering::SeqCst);
            wait::until("requests go on", || {
                clients.iter().any(thread::ScopedJoinHandle::is_finished)
                    || served.load(Ordering::SeqCst) > before + 30
            });
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(proxy.ctl_json("status")["restarts"], 0);
}

#[test]
fn an_address_becomes_wider_and_narrower_by_reloads_and_no_client_is_lost() {
    widen_and_narrow(false);
}

#[test]
fn an_ipv6_address_becomes_wider_and_narrower_likewise() {
    if machine::has(Need::Ipv6) {
        widen_and_narrow(true);
    }
}

#[test]
fn an_address_that_contains_ours_and_that_somebody_else_has_is_taken_all_the_same() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    let port = proxy.address().port();
    // Beside ours, at another address of the host.
    let other = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).unwrap();
    let output = move_to(&proxy, (Ipv4Addr::UNSPECIFIED, port).into());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("already taken (by pid"), "{}", said(&output));
    ask(&mut proxy.client());
    drop(other);
    let output = proxy.ctl(&["reload"]);
    assert!(output.status.success(), "{}", said(&output));
    ask(&mut Client::connect((Ipv4Addr::new(127, 0, 0, 2), port).into()));
}

#[test]
fn a_listener_that_went_can_come_back_at_once() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).another_listener().root("worker_count = 2").start();
    let address = proxy.address_of(1).to_string();
    for _ in 0..10 {
        for verb in ["deactivate", "activate"] {
            let output = proxy.ctl(&["listener", verb, &address]);
            assert!(output.status.success(), "{}", said(&output));
        }
    }
}

#[test]
fn a_file_without_listeners_is_refused_while_listeners_run_unless_that_is_wanted() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    let file = proxy.folder().join("kakehi.toml");
    let whole = fs::read_to_string(&file).unwrap();
    let state = proxy.folder().join("state.json");
    let empty_state = proxy.folder().join("empty.json");
    let saved = proxy.ctl(&["state", "save", state.to_str().unwrap()]);
    assert!(saved.status.success(), "{}", said(&saved));
    let mut empty: serde_json::Value = serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap();
    for part in ["listeners", "clusters", "certificates"] {
        empty[part] = serde_json::json!({});
    }
    fs::write(&empty_state, empty.to_string()).unwrap();
    let root = whole.split("\n[[").next().unwrap();
    // Emptied, without listeners, with one that is only configured.
    let inactive = whole.replace("protocol = \"http\"\n", "protocol = \"http\"\nactive = false\n");
    let inactive = inactive.split("\n[clusters").next().unwrap();
    let load = ["state", "load", empty_state.to_str().unwrap()];
    for (text, verb) in
        [(root, &["reload"][..]), ("", &["reload"]), (inactive, &["reload", "-n"]), (&whole, &load)]
    {
        fs::write(&file, text).unwrap();
        let output = proxy.ctl(verb);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("no listener that accepts"), "{}", said(&output));
        ask(&mut proxy.client());
    }
    fs::write(&file, root).unwrap();
    send_signal(proxy.supervisor(), Signal::SIGHUP);
    wait::until("the refusal in the log", || proxy.log().contains("SIGHUP: it has no listener that accepts"));
    ask(&mut proxy.client());
    let output = proxy.ctl(&["reload", "--allow-empty"]);
    assert!(output.status.success(), "{}", said(&output));
    wait::until("nothing listens there", || Client::try_connect(proxy.address()).is_err());
    // From nothing to nothing is no loss.
    assert!(proxy.ctl(&["reload"]).status.success());
    let output = proxy.ctl(&["state", "load", state.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    ask(&mut proxy.client());
    assert!(proxy.ctl(&[&load[..], &["--allow-empty"]].concat()).status.success());
}

/// The supervisor dies at different moments of a change that makes an address wider: whichever address holds then, clients are heard
/// there.
#[test]
fn clients_are_heard_after_a_supervisor_was_killed_while_an_address_became_wider() {
    if !machine::has(Need::Root) {
        return;
    }
    let backend = Backend::respond(OK);
    for moment in [0, 60, 150] {
        let mut proxy = Config::to(&backend).root("worker_count = 2").start();
        let (address, worker) = (proxy.address(), proxy.workers()[0]);
        let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        let file = proxy.folder().join("kakehi.toml");
        let before = fs::read_to_string(&file).unwrap();
        thread::scope(|scope| {
            let mut reload = Some(scope.spawn(|| move_to(&proxy, all)));
            wait::until("a socket of the new address", || {
                if reload.as_ref().is_some_and(thread::ScopedJoinHandle::is_finished)
                    && let Some(ended) = reload.take()
                {
                    panic!("it has ended: {}", said(&ended.join().unwrap()));
                }
                listens(worker, all).is_some()
            });
            // Clients are being led over.
            wait::pace(Duration::from_millis(moment));
            send_signal(proxy.supervisor(), Signal::SIGKILL);
            drop(reload.map(thread::ScopedJoinHandle::join));
        });
        proxy.kill_supervisor();
        // The next one does not make the change because the file says so.
        fs::write(file, before).unwrap();
        proxy.start_again();
        for _ in 0..16 {
            // The SYN of one that is not heard is sent again after a second, and after three.
            let connected = TcpStream::connect_timeout(&address, Duration::from_millis(2_500));
            assert!(connected.is_ok(), "after {moment} ms: {connected:?}\n{}", proxy.log());
        }
        ask(&mut Client::connect(address));
    }
}
