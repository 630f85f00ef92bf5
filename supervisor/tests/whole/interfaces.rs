//! A listener that is bound to an interface hears those who come over it, and nobody else.

use std::{
    fs,
    net::TcpStream,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt::BindToDevice};

use crate::harness::{
    Backend, Cables, Client, Config, GET, Need, OK, Proxy, ask, ctl, free_port, machine, refused,
    send_signal, wait,
};

/// The cables, if this machine lets a test have them.
fn cables() -> Option<Cables> {
    (machine::has(Need::Networks) && machine::has(Need::Program("ip"))).then(Cables::new)
}

/// Adds a listener on all addresses, with a frontend of cluster `all`.
fn listen(proxy: &Proxy, port: u16, keys: &[&str]) -> String {
    let address = format!("0.0.0.0:{port}");
    ctl(proxy, &[&["listener", "add", &address, "protocol=http"], keys].concat());
    ctl(proxy, &["frontend", "add", "all", &address, "*"]);
    address
}

/// Who is served: over each cable, and over loopback.
fn served(cables: &Cables, port: u16) -> [bool; 3] {
    let is_served = |stream: std::io::Result<TcpStream>| match stream {
        Ok(stream) => {
            ask(&mut Client::of(stream));
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
            false
        }
    };
    [
        is_served(cables.connect(0, port)),
        is_served(cables.connect(1, port)),
        is_served(TcpStream::connect(("127.0.0.1", port))),
    ]
}

/// All workers. What was accepted, or stood in the queue of a socket that goes, is served still.
#[track_caller]
fn expect_served(cables: &Cables, port: u16, expected: [bool; 3]) {
    wait::until("the other sockets", || served(cables, port) == expected);
    for _ in 0..5 {
        assert_eq!(served(cables, port), expected);
    }
}

#[test]
fn a_listener_hears_its_interface_only_and_changes_it_live() {
    let Some(cables) = cables() else { return };
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let port = free_port();
    let address = listen(&proxy, port, &["interface=here0"]);
    expect_served(&cables, port, [true, false, false]);
    let list = ctl(&proxy, &["listener", "list"]);
    assert!(list.contains("INTERFACE") && list.contains("here0") && list.contains("any"), "{list}");
    // Those that there are end in order.
    let mut kept = Client::of(cables.connect(0, port).unwrap());
    ask(&mut kept);
    let said = ctl(&proxy, &["listener", "patch", &address, "interface=here1"]);
    assert!(said.contains("interface \"here0\" → \"here1\""), "{said}");
    expect_served(&cables, port, [false, true, false]);
    kept.send(GET);
    let last = kept.response();
    assert_eq!((last.status(), last.field("connection")), (200, Some("close")));
    ctl(&proxy, &["listener", "patch", &address, "interface=lo"]);
    expect_served(&cables, port, [false, false, true]);
    ctl(&proxy, &["listener", "patch", &address, "interface="]);
    expect_served(&cables, port, [true, true, true]);
    ctl(&proxy, &["listener", "patch", &address, "interface=here1"]);
    let check = |proxy: &Proxy| {
        expect_served(&cables, port, [false, true, false]);
        assert_eq!(proxy.ctl_json("status")["restarts"], 0);
    };
    check(&proxy);
    // Whoever comes after these processes has the same sockets.
    ctl(&proxy, &["reload"]);
    ctl(&proxy, &["workers", "upgrade"]);
    check(&proxy);
    ctl(&proxy, &["upgrade"]);
    check(&proxy);
    ctl(&proxy, &["workers", "scale", "3"]);
    check(&proxy);
    ctl(&proxy, &["workers", "scale", "1"]);
    check(&proxy);
    let restarts = proxy.counter("worker.restarts");
    for worker in proxy.workers() {
        send_signal(worker, nix::sys::signal::Signal::SIGKILL);
    }
    wait::within(Duration::from_secs(15), "another worker", || {
        (proxy.counter("worker.restarts") > restarts).then_some(())
    });
    expect_served(&cables, port, [false, true, false]);
    proxy.kill_supervisor();
    proxy.start_again();
    expect_served(&cables, port, [false, true, false]);
    ctl(&proxy, &["listener", "deactivate", &address]);
    expect_served(&cables, port, [false, false, false]);
    ctl(&proxy, &["listener", "activate", &address]);
    expect_served(&cables, port, [false, true, false]);
}

#[test]
fn no_client_is_lost_when_a_listener_comes_to_be_bound_and_is_bound_no_more() {
    let Some(cables) = cables() else { return };
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let port = free_port();
    let address = listen(&proxy, port, &[]);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let (cables, stop, count) = (cables.clone(), &stop, &count);
                scope.spawn(move || {
                    let connect = || Client::of(cables.connect(0, port).unwrap());
                    let mut client = connect();
                    while !stop.load(Ordering::SeqCst) {
                        client.send(GET);
                        let answer = client.response();
                        answer.expect(200, "ok");
                        count.fetch_add(1, Ordering::SeqCst);
                        if number % 2 == 0 || answer.field("Connection") == Some("close") {
                            client = connect();
                        }
                    }
                })
            })
            .collect();
        for round in 0..6 {
            let key = if round % 2 == 0 { "interface=here0" } else { "interface=" };
            ctl(&proxy, &["listener", "patch", &address, key]);
            let before = count.load(Ordering::SeqCst);
            wait::until("requests go on", || {
                clients.iter().any(thread::ScopedJoinHandle::is_finished)
                    || count.load(Ordering::SeqCst) > before + 30
            });
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(proxy.ctl_json("status")["restarts"], 0);
}

#[test]
fn an_interface_that_is_not_there_is_an_error_that_changes_nothing() {
    let backend = Backend::respond(OK);
    let missing = "there is no interface `no-such-dev` on this host for ";
    let (status, log) = Proxy::start_failing(&Config::to(&backend).listener("interface = \"no-such-dev\""));
    assert!(!status.success() && log.contains(missing), "{log}");

    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let address = proxy.address().to_string();
    let generation = proxy.ctl_json("status")["generation"].clone();
    for arguments in [
        &["listener", "patch", &address, "interface=no-such-dev"][..],
        &["listener", "add", "127.0.0.2:8080", "protocol=http", "interface=no-such-dev"],
    ] {
        let said = refused(&proxy, arguments);
        assert!(said.contains(missing) && said.contains("nothing was changed"), "{said}");
    }
    let said = refused(&proxy, &["listener", "patch", &address, "interface=a/b"]);
    assert!(said.contains("`interface` must be the name of an interface, of 1 to 15 bytes"), "{said}");
    // All of a file, or nothing.
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    let changed = text.replacen("protocol = \"http\"", "protocol = \"http\"\ninterface = \"no-such-dev\"", 1);
    assert_ne!(changed, text);
    fs::write(&file, format!("{changed}\n[clusters.more]\nprotocol = \"http\"\n")).unwrap();
    let said = refused(&proxy, &["reload"]);
    assert!(said.contains(missing), "{said}");
    ask(&mut proxy.client());
    assert_eq!(proxy.ctl_json("status")["generation"], generation);
    // One that is there.
    fs::write(&file, text.replacen("protocol = \"http\"", "protocol = \"http\"\ninterface = \"lo\"", 1))
        .unwrap();
    ctl(&proxy, &["reload"]);
    for _ in 0..4 {
        ask(&mut proxy.client());
    }
}

#[test]
fn a_socket_of_the_init_system_is_taken_for_the_interface_that_it_is_bound_to() {
    let backend = Backend::respond(OK);
    let passed = || {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        nix::sys::socket::setsockopt(&socket, BindToDevice, &"lo".into()).unwrap();
        assert!(getsockopt(&socket.as_fd(), BindToDevice).is_ok());
        socket
    };
    let proxy = Config::to(&backend).listener("interface = \"lo\"").activated(passed()).start();
    ask(&mut proxy.client());
    assert!(!proxy.log().contains("which no listener is configured for"), "{}", proxy.log());
    // For a listener on any interface it is of no use, and in its way.
    let (status, log) = Proxy::start_failing(&Config::to(&backend).activated(passed()));
    assert!(!status.success() && log.contains("is already taken"), "{log}");
}
