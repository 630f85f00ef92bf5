//! A worker that strangers have taken over gains nothing from a supervisor that takes workers over: what it hands over and
//! says is compared with what the supervisor that started the worker wrote down.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{Adopted, Envelope, ListenerSocket, Order, Program, Report},
    state::{Revision, Settings},
    wire,
};
use kakehi_engine::{observe::Counters, ring, tls::Vault, worker::DescriptorKind};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::{
    Backend, Config, GET, Need, OK, Pki, Process, Proxy, ask, free_port, machine, send_signal, wait,
};

/// Where the process of the first worker waits for a supervisor.
fn adoption_socket(proxy: &Proxy) -> PathBuf {
    let names = fs::read_dir(proxy.folder()).unwrap().map(|entry| entry.unwrap());
    let mut sockets = names.filter(|entry| {
        entry.file_name().to_string_lossy().starts_with("kakehi.sock.w")
            && entry.file_type().unwrap().is_socket()
    });
    sockets.next().expect("an adoption socket").path()
}

/// A proxy whose supervisor was killed, its worker, and where that waits for another one.
pub(crate) fn orphaned(config: Config) -> (Proxy, Process, PathBuf) {
    let mut proxy = config.start();
    let (worker, path) = (proxy.worker(), adoption_socket(&proxy));
    proxy.kill_supervisor();
    (proxy, worker, path)
}

/// A process that nobody may end.
struct Victim(Child);

impl Victim {
    fn new() -> Victim {
        Victim(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("a process"))
    }

    fn process(&self) -> Process {
        Process(self.0.id())
    }

    fn pidfd(&self) -> OwnedFd {
        pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).expect("a pidfd")
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an impostor says of itself: that it is process `pid`, and ahead of all others.
pub(crate) fn claims_of(pid: u32) -> Adopted {
    Adopted {
        id: 0,
        launch: 1,
        pid,
        core: None,
        leaving: false,
        revision: Revision { generation: 1_000_000, ..Revision::default() },
        settings: Settings::default(),
        program: Program { version: "0.1.0".to_owned(), file: (0, 0) },
        io_uring_level: 4,
        io_uring_features: Vec::new(),
        capabilities: Vec::new(),
    }
}

/// What an impostor says and hands over.
struct Lie {
    about: Adopted,
    descriptors: Vec<(DescriptorKind, OwnedFd)>,
}

impl Lie {
    /// That it is process `pid`, on memory that it has made itself; `victim` is the process that it would have ended.
    fn of(pid: u32, victim: &Victim) -> Lie {
        let [counters, ended] = [(); 2].map(|()| Counters::create(c"impostor").unwrap().1);
        let vault = OwnedFd::from(Vault::create().unwrap());
        let about = claims_of(pid);
        let descriptors = vec![
            (DescriptorKind::Counters, counters),
            (DescriptorKind::Ended, ended),
            (DescriptorKind::Vault, vault),
            (DescriptorKind::Process, victim.pidfd()),
        ];
        Lie { about, descriptors }
    }

    /// What the worker itself would say and hand over, but for its listening sockets, as which it hands over `sockets`.
    fn with_sockets(worker: Process, sockets: Vec<(ListenerSocket, OwnedFd)>, victim: &Victim) -> Lie {
        let mut lie = Lie::of(worker.0, victim);
        let program = fs::metadata(format!("/proc/{}/exe", worker.0)).unwrap();
        lie.about.program.file = (program.dev(), program.ino());
        // The places of `docs/architecture.md`.
        for ((_, memory), place) in lie.descriptors.iter_mut().zip([5, 10, 11]) {
            *memory = stolen(worker, place).unwrap();
        }
        let listeners = sockets.into_iter().map(|(which, socket)| (DescriptorKind::Listener(which), socket));
        lie.descriptors.extend(listeners);
        lie
    }
}

/// A copy of a descriptor of another process.
fn stolen(process: Process, number: i32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(process.0 as i32).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).ok()
}

/// The socket by which a worker listens at an address.
fn listening(worker: Process, address: SocketAddr) -> OwnedFd {
    listens(worker, address).expect("a socket that listens")
}

/// The same, if it has one.
pub(crate) fn listens(worker: Process, address: SocketAddr) -> Option<OwnedFd> {
    let numbers = fs::read_dir(format!("/proc/{}/fd", worker.0)).unwrap();
    let numbers = numbers.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let mut sockets = numbers.filter_map(|number| stolen(worker, number));
    let is_it = |socket: &OwnedFd| {
        let bound = rustix::net::getsockname(socket).and_then(SocketAddr::try_from);
        bound == Ok(address) && rustix::net::sockopt::socket_acceptconn(socket) == Ok(true)
    };
    sockets.find(is_it)
}

/// Another socket that listens there, beside that of the worker.
fn another(address: SocketAddr) -> OwnedFd {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(8).unwrap();
    socket.into()
}

/// Something else than the worker behind its adoption socket. What comes over the channel is that a supervisor has come, and then
/// whatever it orders.
fn impostor(path: &Path, lie: Lie) -> mpsc::Receiver<String> {
    fs::remove_file(path).expect("the worker's own socket");
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
    socket.listen(8).unwrap();
    let (sender, news) = mpsc::channel();
    thread::spawn(move || {
        let (connection, _) = socket.accept().expect("a supervisor");
        let connection = OwnedFd::from(connection);
        let request = || ring::receive_descriptors(&connection).ok().flatten();
        let (_, channels) = wait::within(wait::SOON, "its request", request);
        let [orders, descriptors, _successor] = <[OwnedFd; 3]>::try_from(channels).expect("three channels");
        let _ = sender.send("a supervisor".to_owned());
        let mut remaining = lie.descriptors.len();
        for (kind, descriptor) in lie.descriptors {
            remaining -= 1;
            let text = serde_json::json!({ "remaining": remaining, "labels": [kind] }).to_string();
            ring::send_descriptors(&descriptors, &text, &[descriptor]).unwrap();
        }
        let mut orders = UnixStream::from(orders);
        orders.set_nonblocking(false).unwrap();
        let report = Envelope::new(0, Report::Adopted(Box::new(lie.about)));
        wire::write_message(&mut orders, &report, limits::MAX_FRAME).unwrap();
        let mut decoder = wire::Decoder::new(limits::MAX_FRAME);
        while let Ok(Some(Envelope { body, .. })) = wire::read_message::<Order>(&mut orders, &mut decoder) {
            let _ = sender.send(body.name().to_owned());
        }
    });
    news
}

/// Waits until requests are answered whatever socket they come to: those of a worker that has ended close a little later, with what
/// waited there.
#[track_caller]
pub(crate) fn until_answered(proxy: &Proxy) {
    let answered = || {
        let mut client = proxy.client();
        client.send(GET);
        client.try_response().is_ok_and(|response| response.status() == 200)
    };
    wait::until("every connection at other workers", || (0..20).all(|_| answered()));
}

/// The new supervisor has looked at the impostor, and has nothing to do with it.
#[track_caller]
fn expect_refused(mut proxy: Proxy, news: &mpsc::Receiver<String>, victim: &Victim, why: &str) {
    assert_eq!(news.recv_timeout(wait::SOON).as_deref(), Ok("a supervisor"));
    proxy.logged("cannot be taken over");
    proxy.logged(why);
    // It is told to end, and nothing else: not what it serves.
    let order = news.recv_timeout(wait::SOON).unwrap();
    assert!(order.contains("stop"), "{order}");
    until_answered(&proxy);
    let workers = proxy.ctl_json("workers");
    assert_ne!(workers[0]["pid"].as_u64(), Some(u64::from(victim.process().0)));
    proxy.terminate();
    proxy.wait(Duration::from_secs(10));
    assert!(news.try_recv().is_err(), "it was given orders");
    assert!(victim.process().runs(), "it was ended");
}

#[test]
fn what_is_not_the_process_that_was_started_is_no_worker_and_its_process_is_left_alone() {
    let (backend, victim) = (Backend::respond(OK), Victim::new());
    let (mut proxy, worker, path) = orphaned(Config::to(&backend).root("drain_timeout = 1"));
    send_signal(worker, Signal::SIGKILL);
    wait::until("its end", || !worker.runs());
    let news = impostor(&path, Lie::of(victim.process().0, &victim));
    proxy.start_again();
    expect_refused(proxy, &news, &victim, &format!("process {} is gone", worker.0));
}

#[test]
fn memory_that_the_worker_was_not_given_is_not_taken_from_it() {
    let (backend, victim) = (Backend::respond(OK), Victim::new());
    let (mut proxy, worker, path) = orphaned(Config::to(&backend));
    let news = impostor(&path, Lie::of(worker.0, &victim));
    proxy.start_again();
    expect_refused(proxy, &news, &victim, "that is not its own");
    // What it was not itself, the worker that should be there is told as well.
    wait::until("the end of the worker", || !worker.runs());
}

#[test]
fn sockets_that_the_worker_was_not_given_are_not_taken_from_it() {
    let (backend, victim) = (Backend::respond(OK), Victim::new());
    type Sockets = Vec<(ListenerSocket, OwnedFd)>;
    type Made = fn(Process, SocketAddr, SocketAddr) -> Sockets;
    let lies: [(&str, Made); 5] = [
        ("that no worker was given", |_, address, _| {
            vec![(ListenerSocket { address, rank: 0, interface: None }, another(address))]
        }),
        ("that no worker was given", |worker, address, _| {
            vec![(ListenerSocket { address, rank: u32::MAX, interface: None }, listening(worker, address))]
        }),
        ("twice", |worker, address, _| {
            let one = |()| (ListenerSocket { address, rank: 0, interface: None }, listening(worker, address));
            [(); 2].map(one).into()
        }),
        ("no socket that listens on", |worker, address, second| {
            vec![(ListenerSocket { address, rank: 0, interface: None }, listening(worker, second))]
        }),
        ("no socket that listens on", |_, address, _| {
            let udp = std::net::UdpSocket::bind(address).unwrap();
            vec![(ListenerSocket { address, rank: 0, interface: None }, udp.into())]
        }),
    ];
    for (why, sockets) in lies {
        let mut proxy = Config::to(&backend).another_listener().start();
        let (worker, path) = (proxy.worker(), adoption_socket(&proxy));
        // Only root may take descriptors from a process that is no child.
        let sockets = sockets(worker, proxy.address(), proxy.address_of(1));
        let lie = Lie::with_sockets(worker, sockets, &victim);
        proxy.kill_supervisor();
        let news = impostor(&path, lie);
        proxy.start_again();
        expect_refused(proxy, &news, &victim, why);
        wait::until("the end of the worker", || !worker.runs());
    }
}

#[test]
fn what_a_worker_hands_over_is_believed_where_it_is_what_the_supervisor_wrote_down() {
    let (backend, victim) = (Backend::respond(OK), Victim::new());
    let mut proxy = Config::to(&backend).start();
    let (worker, path, address) = (proxy.worker(), adoption_socket(&proxy), proxy.address());
    let sockets = vec![(ListenerSocket { address, rank: 0, interface: None }, listening(worker, address))];
    let lie = Lie::with_sockets(worker, sockets, &victim);
    proxy.kill_supervisor();
    let news = impostor(&path, lie);
    proxy.start_again();
    assert_eq!(news.recv_timeout(wait::SOON).as_deref(), Ok("a supervisor"));
    // That all others are refused is because of the lie.
    assert!(!proxy.log().contains("cannot be taken over"), "{}", proxy.log());
    assert!(victim.process().runs());
    // Without the file, nobody knows which sockets are those of workers.
    let (mut proxy, worker, _) = orphaned(Config::to(&backend));
    fs::remove_file(proxy.folder().join("kakehi.sock.sockets")).unwrap();
    proxy.start_again();
    proxy.logged("which listening sockets it was given");
    wait::until("the end of the worker", || !worker.runs());
    until_answered(&proxy);
}

#[test]
fn sockets_that_came_and_went_while_workers_ran_are_known_to_the_next_supervisor() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let added = SocketAddr::from(([127, 0, 0, 1], free_port())).to_string();
    let done = |proxy: &Proxy, arguments: &[&str]| {
        let output = proxy.ctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    // Each step leaves workers with other sockets than they were started with.
    for (count, step) in [
        (2, &["listener", "add", &added, "protocol=http"][..]),
        (1, &["workers", "scale", "1"]),
        (3, &["workers", "scale", "3"]),
        (3, &["upgrade"]),
        (3, &["listener", "remove", &added]),
    ] {
        done(&proxy, step);
        let pids = |proxy: &Proxy| {
            let workers = proxy.ctl_json("workers");
            workers.as_array().unwrap().iter().map(|it| it["pid"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        wait::until("the end of those that leave", || pids(&proxy).len() == count);
        let workers = pids(&proxy);
        proxy.kill_supervisor();
        proxy.start_again();
        assert_eq!(pids(&proxy), workers, "{step:?}: {}", proxy.log());
        assert!(!proxy.log().contains("cannot be taken over"), "{step:?}: {}", proxy.log());
        (0..4).for_each(|_| ask(&mut proxy.client()));
    }
}

#[test]
fn an_upgrade_believes_a_worker_no_more_than_a_takeover_does() {
    let (backend, victim) = (Backend::respond(OK), Victim::new());
    type Made = fn(&Proxy, &Path, &[Process], &Victim) -> Lie;
    let lies: [(&str, Made); 4] = [
        // Memory of its own, and the process of another worker, which is to be ended in its place.
        ("that is not its own", |_, _, workers, victim| Lie::of(workers[1].0, victim)),
        // The program that comes knows without a record whom the one before has started.
        ("that is not its own", |_, path, workers, victim| {
            fs::remove_file(format!("{}.record", path.display())).unwrap();
            Lie::of(workers[1].0, victim)
        }),
        ("another process than the one that was started", |_, _, workers, victim| {
            let mut lie = Lie::with_sockets(workers[0], Vec::new(), victim);
            lie.about.pid = workers[1].0;
            lie
        }),
        ("that no worker was given", |proxy, _, workers, victim| {
            let address = proxy.address();
            let sockets = vec![(ListenerSocket { address, rank: 0, interface: None }, another(address))];
            Lie::with_sockets(workers[0], sockets, victim)
        }),
    ];
    for (why, lie) in lies {
        let config = Config::to(&backend).root("worker_count = 2\ngraceful_timeout = 1\ndrain_timeout = 1");
        let proxy = config.start();
        let (workers, path) = (proxy.workers(), proxy.folder().join("kakehi.sock.w0.0"));
        let news = impostor(&path, lie(&proxy, &path, &workers, &victim));
        let upgraded = proxy.ctl(&["upgrade"]);
        assert!(upgraded.status.success(), "{upgraded:?}: {}", proxy.log());
        proxy.logged("cannot be taken over");
        proxy.logged(why);
        assert_eq!(news.recv_timeout(wait::SOON).as_deref(), Ok("a supervisor"));
        let order = news.recv_timeout(wait::SOON).unwrap();
        assert!(order.contains("stop"), "{order}");
        // It does not go on beside the others, and the other one was replaced as ever.
        wait::until("the ends of both", || workers.iter().all(|worker| !worker.runs()));
        proxy.logged("has handed everything over and ended");
        assert!(victim.process().runs(), "it was ended");
        (0..8).for_each(|_| ask(&mut proxy.client()));
    }
}

#[test]
fn a_worker_that_stands_still_holds_no_start_up_and_is_replaced() {
    let backend = Backend::respond(OK);
    let (mut proxy, worker, _) = orphaned(Config::to(&backend).root("graceful_timeout = 1"));
    send_signal(worker, Signal::SIGSTOP);
    proxy.start_again();
    proxy.logged("cannot be taken over");
    // It would keep the connections in its queues for ever.
    wait::until("its end", || !worker.runs());
    until_answered(&proxy);
}

#[test]
fn a_worker_that_stands_still_without_a_record_is_ended_where_it_is_to_be_seen() {
    // Who has a socket is shown to root only: workers let nobody look at them.
    if !machine::has(Need::Root) {
        return;
    }
    let backend = Backend::respond(OK);
    let (mut proxy, worker, path) = orphaned(Config::to(&backend).root("graceful_timeout = 1"));
    fs::remove_file(format!("{}.record", path.display())).unwrap();
    send_signal(worker, Signal::SIGSTOP);
    proxy.start_again();
    wait::until("its end", || !worker.runs());
    until_answered(&proxy);
    assert!(!path.exists());
}

#[test]
fn a_start_that_fails_leaves_what_is_written_of_workers_that_it_could_not_take_over() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).start();
    let added = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--backup", "--id", "by-hand"]);
    assert!(added.status.success());
    let worker = proxy.worker();
    proxy.kill_supervisor();
    send_signal(worker, Signal::SIGSTOP);
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("user = \"no-such-user\"\n{text}")).unwrap();
    let records = ["kakehi.sock.state", "kakehi.sock.sockets"].map(|name| proxy.folder().join(name));
    let read = || records.clone().map(|path| fs::read_to_string(path).unwrap());
    let before = read();
    proxy.launch_again();
    let status = proxy.wait(Duration::from_secs(30));
    assert!(!status.success(), "{}", proxy.log());
    proxy.logged("no-such-user");
    assert!(worker.runs() && read() == before);
    send_signal(worker, Signal::SIGCONT);
    fs::write(&file, text).unwrap();
    proxy.start_again();
    assert_eq!(proxy.ctl_json("workers")[0]["pid"], worker.0, "{}", proxy.log());
    assert!(proxy.ctl_json("state")["clusters"]["all"].to_string().contains("by-hand"));
    ask(&mut proxy.client());
}

#[test]
fn numbers_that_a_worker_writes_into_its_counters_hurt_nobody() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    for worker in proxy.workers() {
        let entries =
            fs::read_dir(format!("/proc/{}/fd", worker.0)).unwrap().map(|entry| entry.unwrap().path());
        let is_of_counters = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("kakehi-counters"))
        };
        for path in entries.filter(is_of_counters) {
            fs::OpenOptions::new().write(true).open(path).unwrap().write_all(&[0xff; 4_096]).unwrap();
        }
    }
    assert_eq!(proxy.counter("http.requests"), u64::MAX);
    // Nor whoever adds them up to share connections evenly.
    proxy.ctl(&["workers", "rebalance"]);
    ask(&mut proxy.client());
    assert!(proxy.supervisor().runs());
}

#[test]
fn what_nobody_has_written_down_is_no_worker() {
    let (backend, victim) = (Backend::respond(OK), Victim::new());
    let (mut proxy, worker, path) = orphaned(Config::to(&backend));
    send_signal(worker, Signal::SIGKILL);
    fs::remove_file(format!("{}.record", path.display())).unwrap();
    let news = impostor(&path, Lie::of(victim.process().0, &victim));
    proxy.start_again();
    expect_refused(proxy, &news, &victim, "no supervisor has written down that it started it");
}

#[test]
fn a_record_that_others_can_write_is_none_and_the_worker_is_replaced() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("graceful_timeout = 1").start();
    let (worker, path) = (proxy.worker(), adoption_socket(&proxy));
    let record = PathBuf::from(format!("{}.record", path.display()));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&record), mode(&proxy.folder().join("kakehi.sock.state"))), (0o600, 0o600));
    proxy.kill_supervisor();
    fs::set_permissions(&record, fs::Permissions::from_mode(0o666)).unwrap();
    proxy.start_again();
    proxy.logged("is not a file that only this user can write");
    wait::until("the end of the worker", || !worker.runs());
    ask(&mut proxy.client());
}

#[test]
fn what_workers_serve_is_what_the_supervisor_wrote_down_and_without_that_what_the_file_says() {
    let (backend, other) = (Backend::respond(OK), Backend::respond(OK));
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let backends = |proxy: &Proxy| proxy.ctl_json("status")["backends"].as_u64();
    assert!(proxy.ctl(&["backend", "add", "all", &other.address()]).status.success());
    let record = proxy.folder().join("kakehi.sock.state");
    // A change that was cut while it was written was not made.
    proxy.kill_supervisor();
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, format!("{text}{{\"changes\":[{{\"remove_clu")).unwrap();
    proxy.start_again();
    assert_eq!(backends(&proxy), Some(2));
    // Without it, the workers are those of another state, and replaced.
    let before = proxy.workers();
    proxy.kill_supervisor();
    fs::write(&record, "nonsense\n").unwrap();
    proxy.start_again();
    wait::until("what the file says", || backends(&proxy) == Some(1));
    wait::until("other workers", || before.iter().all(|worker| !worker.runs()));
    ask(&mut proxy.client());
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    let left: Vec<_> =
        fs::read_dir(proxy.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let of_ours = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with("kakehi.sock");
    assert_eq!(left.iter().find(of_ours), None, "{left:?}");
}

#[test]
fn without_a_record_workers_are_replaced_also_where_nothing_was_ever_changed() {
    let (backend, other) = (Backend::respond(OK), Backend::respond(OK));
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let before = proxy.workers();
    proxy.kill_supervisor();
    fs::remove_file(proxy.folder().join("kakehi.sock.state")).unwrap();
    // The file says something else, and the first state of both has the number 0. There is also a listener more.
    let more = free_port();
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace(&backend.address().to_string(), &other.address().to_string());
    let listener = format!("[[listeners]]\naddress = \"127.0.0.1:{more}\"\nprotocol = \"http\"\n");
    fs::write(&file, format!("{text}{listener}")).unwrap();
    proxy.start_again();
    wait::until("other workers", || before.iter().all(|worker| !worker.runs()));
    (0..8).for_each(|_| ask(&mut proxy.client()));
    assert!(backend.requests().is_empty() && other.requests().len() == 8);
    assert!(std::net::TcpStream::connect(("127.0.0.1", more)).is_ok());
    // And a worker that dies comes back.
    send_signal(proxy.workers()[0], Signal::SIGKILL);
    wait::until("its replacement", || proxy.ctl_json("status")["restarts"] == 1);
    wait::until("all of them", || {
        proxy.ctl_json("workers").as_array().unwrap().iter().all(|it| it["state"] == "running")
    });
}

#[test]
fn a_worker_can_read_certificates_and_keys_and_cannot_write_them() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let config = Config::https_to(&backend, &pki.issue(&["a"]));
    // Only root can make it another user.
    let is_root = machine::has(Need::Root);
    let proxy = if is_root { config.root(r#"user = "nobody""#) } else { config }.start();
    let worker = proxy.worker().0;
    let mut found = 0;
    for entry in fs::read_dir(format!("/proc/{worker}/fd")).unwrap().map(|entry| entry.unwrap()) {
        if fs::read_link(entry.path()).is_ok_and(|path| path.to_string_lossy().contains("kakehi-vault")) {
            let number = entry.file_name().to_string_lossy().into_owned();
            let about = fs::read_to_string(format!("/proc/{worker}/fdinfo/{number}")).unwrap();
            let flags = about.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            assert_eq!(u32::from_str_radix(flags, 8).unwrap() & 0o3, 0, "{about}");
            // And nobody else can open it for that.
            assert_eq!(fs::metadata(entry.path()).unwrap().mode() & 0o777, 0o600);
            found += 1;
        }
    }
    assert!(found > 0, "it has no vault");
    ask(&mut pki.caller().connect(proxy.address()));
}
