//! What systemd sees of kakehi, and what kakehi takes from it; spoken here by the test. And privileges that are dropped.

use std::{net::TcpListener, os::unix::net::UnixDatagram, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Client, Config, GET, Load, Need, OK, Process, Proxy, ask, get, kakehictl, machine, send_signal,
    wait,
};

/// The socket of an init system.
struct Init(UnixDatagram);

impl Init {
    fn new(folder: &Path) -> Init {
        let socket = UnixDatagram::bind(folder.join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Init(socket)
    }

    /// Waits for a message with this line; gives the message.
    #[track_caller]
    fn expect(&self, line: &str) -> String {
        let mut bytes = [0; 4096];
        loop {
            let length = self.0.recv(&mut bytes).unwrap_or_else(|error| panic!("no {line}: {error}"));
            let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if message.lines().any(|it| it == line) {
                return message;
            }
        }
    }
}

#[test]
fn readiness_reloads_the_watchdog_and_the_stop_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let init = Init::new(folder.path());
    let backend = Backend::respond(OK);
    // While it is being built nobody would read what the init system is told.
    kakehictl();
    let mut proxy = Config::to(&backend)
        .environment("NOTIFY_SOCKET", folder.path().join("notify").to_str().unwrap())
        .environment("WATCHDOG_USEC", "200000")
        .start();
    let ready = init.expect("READY=1");
    assert!(ready.contains(&format!("MAINPID={}", proxy.supervisor().0)), "{ready}");
    for _ in 0..3 {
        init.expect("WATCHDOG=1");
    }
    send_signal(proxy.supervisor(), Signal::SIGHUP);
    assert!(init.expect("RELOADING=1").contains("MONOTONIC_USEC="));
    init.expect("READY=1");
    assert!(proxy.ctl(&["upgrade"]).status.success());
    let ready = init.expect("READY=1");
    assert!(ready.contains(&format!("MAINPID={}", proxy.supervisor().0)), "{ready}");
    init.expect("WATCHDOG=1");
    proxy.terminate();
    init.expect("STOPPING=1");
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
}

/// A listening socket as `ReusePort=` of a socket unit makes it.
fn socket(reuse_port: bool) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(reuse_port).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(100).unwrap();
    socket.into()
}

#[test]
fn a_socket_that_is_passed_on_is_served_with_all_that_waits_in_it() {
    let backend = Backend::respond(OK);
    let listener = socket(true);
    // Somebody came before kakehi did.
    let mut early = Client::connect(listener.local_addr().unwrap());
    early.send(GET);
    let mut proxy = Config::to(&backend).root("worker_count = 2").activated(listener).start();
    early.response().expect(200, "ok");
    (0..20).for_each(|_| get(&proxy, "a", "/").expect(200, "ok"));
    assert!(proxy.ctl(&["upgrade"]).status.success());
    (0..20).for_each(|_| get(&proxy, "a", "/").expect(200, "ok"));
    proxy.kill_supervisor();
    proxy.start_again();
    (0..20).for_each(|_| get(&proxy, "a", "/").expect(200, "ok"));
}

#[test]
fn a_socket_that_several_workers_cannot_share_is_refused_with_the_remedy() {
    let backend = Backend::respond(OK);
    let config = Config::to(&backend).root("worker_count = 2").activated(socket(false));
    let (status, log) = Proxy::start_failing(&config);
    assert!(!status.success() && log.contains("ReusePort=yes"), "{log}");
}

#[test]
fn workers_become_the_user_and_serve_on_through_upgrades_and_takeovers() {
    if !machine::has(Need::Root) {
        return;
    }
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").root("user = \"nobody\"").start();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let everyone_is_nobody = |proxy: &Proxy| {
        let workers = proxy.ctl_json("workers");
        for worker in workers.as_array().unwrap() {
            let process = Process(worker["pid"].as_u64().unwrap() as u32);
            for (name, id) in [("Uid", nobody.uid.as_raw()), ("Gid", nobody.gid.as_raw())] {
                let ids = process.status(name).unwrap();
                assert!(ids.split_whitespace().all(|it| it == id.to_string()), "{name}: {ids}");
            }
            assert_eq!(process.status("CapEff").unwrap(), "0000000000000000");
            assert_eq!(process.status("NoNewPrivs").unwrap(), "1");
        }
    };
    let load = Load::on(proxy.address());
    everyone_is_nobody(&proxy);
    assert!(proxy.ctl(&["upgrade"]).status.success());
    everyone_is_nobody(&proxy);
    load.goes_on();
    proxy.kill_supervisor();
    load.goes_on();
    proxy.start_again();
    everyone_is_nobody(&proxy);
    assert!(proxy.ctl(&["workers", "scale", "1"]).status.success());
    assert!(proxy.ctl(&["reload"]).status.success());
    load.goes_on();
    load.end();
    wait::until("one worker", || proxy.ctl_json("workers").as_array().unwrap().len() == 1);
}

#[test]
fn a_user_that_is_not_there_is_named() {
    let backend = Backend::respond(OK);
    let (status, log) = Proxy::start_failing(&Config::to(&backend).root("user = \"no-such-user\""));
    assert!(!status.success() && log.contains("no user `no-such-user`"), "{log}");
}

#[test]
fn as_process_1_it_reaps_strangers_and_can_be_upgraded_and_stopped() {
    if !machine::has(Need::Namespaces) {
        return;
    }
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").in_container().start();
    let init = proxy.supervisor().children()[0];
    // A process of the container whose parent ends before it.
    let script = "sleep 0.3 & echo started";
    let status = Command::new("nsenter")
        .args(["--target", &init.0.to_string(), "--pid", "--mount", "sh", "-c", script])
        .status()
        .unwrap();
    assert!(status.success());
    let zombies =
        || init.children().iter().filter(|it| it.status("State").is_some_and(|it| it.contains('Z'))).count();
    wait::until("the stranger", || init.children().len() == 3);
    wait::until("its end, reaped", || init.children().len() == 2 && zombies() == 0);
    let load = Load::on(proxy.address());
    for _ in 0..2 {
        assert!(proxy.ctl(&["upgrade"]).status.success(), "{}", proxy.log());
        load.goes_on();
    }
    assert_eq!(proxy.ctl_json("status")["pid"], 1);
    load.end();
    send_signal(init, Signal::SIGTERM);
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0), "{}", proxy.log());
}

#[test]
fn no_thread_of_a_worker_has_a_capability_whoever_it_runs_as() {
    let is_root = machine::has(Need::Root);
    for user in ["", "user = \"nobody\"", "user = \"root\""].into_iter().take(if is_root { 3 } else { 1 }) {
        let backend = Backend::respond(OK);
        let proxy = Config::to(&backend).root(user).start();
        ask(&mut proxy.client());
        let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.worker().0)).unwrap();
        for thread in threads.map(Result::unwrap) {
            let thread = Process(thread.file_name().to_str().unwrap().parse().unwrap());
            // Only root can leave the last.
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"].into_iter().take(if is_root {
                5
            } else {
                4
            }) {
                assert_eq!(thread.status(set).as_deref(), Some("0000000000000000"), "{user}: {set}");
            }
            assert_eq!(thread.status("NoNewPrivs").as_deref(), Some("1"));
        }
        // Where that is wanted it was said in the file.
        let told = proxy.log().contains("the workers run as root");
        assert_eq!(told, is_root && user.is_empty(), "{}", proxy.log());
    }
}
