//! The admin address lives as long as kakehi does: it tells how it is, moves, and goes on through upgrades.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::admin::{fetch, metric, table, with_admin};
use crate::harness::{
    Backend, Client, Config, OK, Process, Proxy, ask, ctl, free_port, program, refused, send_signal, wait,
};

/// Status and text of `/healthz` and `/readyz`.
#[track_caller]
fn standing(admin: SocketAddr) -> [(u16, String); 2] {
    ["/healthz", "/readyz"].map(|target| {
        let message = fetch(admin, target, "");
        (message.status(), message.text().trim_end().to_owned())
    })
}

fn ok() -> (u16, String) {
    (200, "ok".to_owned())
}

fn unavailable(reason: &str) -> (u16, String) {
    (503, reason.to_owned())
}

/// Asks over a unix socket.
fn ask_unix(path: &Path, host: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(wait::SOON))?;
    stream.write_all(
        format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn health_and_readiness_follow_a_worker_that_stands_still_dies_and_comes_back() {
    let backend = Backend::respond(OK);
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = Config::to(&backend).root("worker_count = 2\nworker_liveness = 60");
    let proxy = config.root(&table(&admin.to_string(), "")).start();
    assert_eq!(standing(admin), [ok(), ok()]);
    ctl(&proxy, &["settings", "patch", "worker_liveness=10"]);
    let pids = || -> Vec<Process> {
        let workers = proxy.ctl_json("workers");
        workers.as_array().unwrap().iter().map(|it| Process(it["pid"].as_u64().unwrap() as u32)).collect()
    };
    let before = pids();
    // One of two is mute.
    send_signal(before[1], Signal::SIGSTOP);
    wait::until("one is mute", || standing(admin) == [ok(), unavailable("worker 1 does not answer")]);
    send_signal(before[1], Signal::SIGCONT);
    wait::until("it answers again", || standing(admin) == [ok(), ok()]);
    assert_eq!(proxy.counter("worker.restarts"), 0);
    // Both are.
    before.iter().for_each(|worker| send_signal(*worker, Signal::SIGSTOP));
    wait::until("no worker serves", || {
        standing(admin) == [unavailable("no worker serves"), unavailable("worker 0 does not answer")]
    });
    wait::within(Duration::from_secs(40), "they are replaced", || {
        (standing(admin) == [ok(), ok()]).then_some(())
    });
    // They die, and the next die at once, so that the one after waits.
    let seen = Arc::new(AtomicBool::new(false));
    wait::until("a worker that is not there is seen", || {
        for worker in pids().into_iter().filter(|it| it.0 != 0) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker.0 as i32), Signal::SIGKILL);
        }
        let [health, ready] = standing(admin);
        if ready.0 == 503 && (ready.1.ends_with("is dead") || ready.1.ends_with("is not ready yet")) {
            seen.store(true, Ordering::SeqCst);
        }
        seen.load(Ordering::SeqCst) && health == unavailable("no worker serves")
    });
    wait::within(Duration::from_secs(40), "they are replaced", || {
        (standing(admin) == [ok(), ok()]).then_some(())
    });
    ask(&mut proxy.client());
}

#[test]
fn while_it_stops_it_is_healthy_and_not_ready_to_the_very_end() {
    let (backend, answer) = Backend::slow();
    let (mut proxy, admin) = with_admin(&backend, "");
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    proxy.terminate();
    wait::until("it is not ready", || standing(admin)[1] == unavailable("kakehi is stopping"));
    assert_eq!(standing(admin), [ok(), unavailable("kakehi is stopping")]);
    assert!(metric(&fetch(admin, "/metrics", "").text(), "kakehi_client_connections") >= 1);
    answer.send(()).unwrap();
    busy.response();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(TcpStream::connect(admin).is_err());
}

/// Asks for the metrics all the time: on new connections, and on one that is kept as long as it lasts.
struct Scraper {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Scraper {
    fn on(admin: SocketAddr) -> Scraper {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..4).map(|number| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            thread::spawn(move || {
                let mut kept: Option<Client> = None;
                let mut last = 0;
                while !stop.load(Ordering::SeqCst) {
                    let is_kept = kept.is_some();
                    let mut client = kept.take().unwrap_or_else(|| Client::connect(admin));
                    client.patience(Duration::from_secs(20));
                    client.send(
                        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: identity\r\n\r\n",
                    );
                    let message = match client.try_response() {
                        Ok(message) => message,
                        // A connection that was used may be closed at any time (RFC 9112 section 9.3.1).
                        Err(_) if is_kept => continue,
                        Err(broken) => panic!("a scrape failed: {broken}"),
                    };
                    assert_eq!(message.status(), 200, "{}", message.text());
                    let requests = metric(&message.text(), "kakehi_http_requests_total");
                    assert!(requests >= last, "{requests} after {last}: counters do not go backwards");
                    last = requests;
                    served.fetch_add(1, Ordering::SeqCst);
                    if number % 2 == 0 && message.field("connection") != Some("close") {
                        kept = Some(client);
                    }
                }
            })
        });
        let tasks = tasks.collect();
        Scraper { stop, served, tasks }
    }

    #[track_caller]
    fn goes_on(&self) {
        let before = self.served.load(Ordering::SeqCst);
        wait::until("scrapes go on", || self.served.load(Ordering::SeqCst) > before + 16);
    }

    #[track_caller]
    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.into_iter().for_each(|task| task.join().expect("every scrape was answered"));
    }
}

#[test]
fn no_scrape_is_lost_over_many_upgrades() {
    let backend = Backend::respond(OK);
    let (proxy, admin) = with_admin(&backend, "");
    ask(&mut proxy.client());
    let scraper = Scraper::on(admin);
    for _ in 0..5 {
        scraper.goes_on();
        ask(&mut proxy.client());
        ctl(&proxy, &["upgrade"]);
        assert_eq!(standing(admin), [ok(), ok()]);
    }
    scraper.goes_on();
    scraper.end();
    assert_eq!(proxy.ctl_json("status")["admin"], admin.to_string());
    let descriptors = || proxy.supervisor().descriptors().len();
    wait::until("no client", || proxy.counter("admin.clients") == 0);
    let before = descriptors();
    ctl(&proxy, &["upgrade"]);
    wait::until("no more descriptors than before", || descriptors() <= before);
    // The program that comes closes it as the one before would.
    ctl(&proxy, &["settings", "patch", "admin.hostnames=[\"a.example\"]"]);
    assert_eq!(fetch(admin, "/healthz", "").status(), 200);
}

#[test]
fn a_program_that_does_not_come_up_leaves_the_admin_address_to_the_one_before() {
    let backend = Backend::respond(OK);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("kakehi");
    fs::copy(program(), &copy).unwrap();
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let proxy = Config::to(&backend).root(&table(&admin.to_string(), "")).program(&copy).start();
    let scraper = Scraper::on(admin);
    scraper.goes_on();
    let replace = |content: &[u8]| {
        let new = folder.path().join("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &copy).unwrap();
    };
    // One that is not even tried in its place, and one that fails there: it spoils what it was left.
    replace(b"#!/bin/sh\nexit 1\n");
    refused(&proxy, &["upgrade"]);
    scraper.goes_on();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = start ]; then\n  estate=/proc/self/fd/$5\n  \
         spoiled=$(sed 's/\"hostname\":\"[^\"]*\"/\"hostname\":\"[\"/' $estate)\n  \
         printf %s \"$spoiled\" > $estate\nfi\nexec {} \"$@\"\n",
        program().display()
    );
    replace(script.as_bytes());
    let words = refused(&proxy, &["upgrade"]);
    assert!(words.contains("did not come up"), "{words}");
    scraper.goes_on();
    scraper.end();
    assert_eq!(standing(admin), [ok(), ok()]);
}

#[test]
fn when_the_supervisor_is_killed_the_address_is_free_for_the_next() {
    let backend = Backend::respond(OK);
    let (mut proxy, admin) = with_admin(&backend, "");
    ask(&mut proxy.client());
    // Whose connections stay open.
    let mut kept = Client::connect(admin);
    kept.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    kept.response().expect(200, "ok\n");
    for _ in 0..3 {
        let counted = metric(&fetch(admin, "/metrics", "").text(), "kakehi_http_requests_total");
        proxy.kill_supervisor();
        proxy.start_again();
        let text = fetch(admin, "/metrics", "").text();
        assert!(metric(&text, "kakehi_http_requests_total") >= counted);
    }
    kept.expect_closed();
}

#[test]
fn an_address_that_is_taken_is_named_at_a_start_by_check_and_at_a_change() {
    let backend = Backend::respond(OK);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let holder = format!("{taken} is already taken (by pid {}, ", std::process::id());
    let config = Config::to(&backend).root(&table(&taken.to_string(), ""));
    let (status, log) = Proxy::start_failing(&config);
    assert!(!status.success() && log.contains(&format!("`admin.address`: {holder}")), "{log}");

    let (proxy, admin) = with_admin(&backend, "");
    let words = refused(&proxy, &["settings", "patch", &format!("admin.address={taken}")]);
    assert!(words.contains(&holder) && words.contains("nothing was changed"), "{words}");
    let with = |address: &str, keys: &str| {
        let file = proxy.folder().join("kakehi.toml");
        let text = fs::read_to_string(&file).unwrap();
        let line = text.lines().find(|line| line.starts_with("admin = ")).unwrap().to_owned();
        fs::write(&file, text.replace(&line, &table(address, keys))).unwrap();
    };
    with(&taken.to_string(), "");
    let generation = proxy.ctl_json("status")["generation"].clone();
    let words = refused(&proxy, &["reload"]);
    assert!(words.contains(&holder) && words.contains("nothing was changed"), "{words}");
    let status = proxy.ctl_json("status");
    assert_eq!((&status["admin"], &status["generation"]), (&admin.to_string().into(), &generation));
    assert_eq!(standing(admin), [ok(), ok()]);
    // What nobody may reach is an error with its line.
    with("0.0.0.0:1", "");
    let words = refused(&proxy, &["reload"]);
    assert!(words.contains("kakehi.toml:") && words.contains("needs `allow`"), "{words}");
    // That of a listener is one of ours, and taken.
    let words = refused(&proxy, &["settings", "patch", &format!("admin.address={}", proxy.address())]);
    assert!(words.contains("is already taken"), "{words}");
    // And the other way round, also by an address that contains it.
    for address in [admin, SocketAddr::from(([0, 0, 0, 0], admin.port()))] {
        let words = refused(&proxy, &["listener", "add", &address.to_string(), "protocol=http"]);
        assert!(words.contains("is already taken") && words.contains("that is this kakehi"), "{words}");
    }
    assert_eq!(standing(admin), [ok(), ok()]);

    let check = |address: &str| {
        with(address, "");
        let mut check = Command::new(program());
        check.args(["check", "--here", "-c"]).arg(proxy.folder().join("kakehi.toml"));
        let output = check.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (fits, said) = check(&taken.to_string());
    assert!(!fits && said.contains(&format!("`admin.address`: {holder}")), "{said}");
    let (fits, said) = check(&admin.to_string());
    assert!(fits, "its own is no obstacle: {said}");
    let (fits, said) = check("unix:/no/such/folder/admin.sock");
    assert!(!fits && said.contains("`admin.address`: the folder /no/such/folder is missing"), "{said}");
}

#[test]
fn the_address_moves_while_it_serves() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    assert!(ctl(&proxy, &["status"]).contains("\nadmin       off\n"));
    let port = free_port();
    let inner = SocketAddr::from(([127, 0, 0, 1], port));
    ctl(&proxy, &["settings", "patch", &format!("admin.address={inner}")]);
    assert_eq!(standing(inner), [ok(), ok()]);
    assert!(ctl(&proxy, &["status"]).contains(&format!("\nadmin       {inner}\n")));
    let list = ctl(&proxy, &["settings", "list"]);
    assert!(list.lines().any(|line| line.starts_with("admin.address") && line.contains("hand")), "{list}");
    // To one that contains it, which needs to say who may connect.
    let words = refused(&proxy, &["settings", "patch", &format!("admin.address=0.0.0.0:{port}")]);
    assert!(words.contains("needs `allow`"), "{words}");
    let mut kept = Client::connect(inner);
    ctl(
        &proxy,
        &["settings", "patch", &format!("admin.address=0.0.0.0:{port}"), "admin.allow=[\"127.0.0.0/8\"]"],
    );
    // Who had connected before has an answer, and goes.
    kept.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    if let Ok(message) = kept.try_response() {
        assert_eq!(message.field("connection"), Some("close"));
    }
    assert_eq!(standing(inner), [ok(), ok()]);
    assert_eq!(standing(SocketAddr::from(([127, 0, 0, 7], port))), [ok(), ok()]);
    // And back, to another port, to a unix socket, and away.
    ctl(&proxy, &["settings", "patch", &format!("admin.address={inner}"), "admin.allow="]);
    wait::until("the wide one is closed", || TcpStream::connect(("127.0.0.7", port)).is_err());
    assert_eq!(standing(inner), [ok(), ok()]);
    let other = SocketAddr::from(([127, 0, 0, 1], free_port()));
    ctl(&proxy, &["settings", "patch", &format!("admin.address={other}")]);
    assert_eq!(standing(other), [ok(), ok()]);
    wait::until("the one before is closed", || TcpStream::connect(inner).is_err());
    let path = proxy.folder().join("admin.sock");
    ctl(&proxy, &["settings", "patch", &format!("admin.address=unix:{}", path.display())]);
    wait::until("the one before is closed", || TcpStream::connect(other).is_err());
    assert!(ask_unix(&path, "any").unwrap().contains("200 OK"));
    ctl(&proxy, &["settings", "patch", "admin.address="]);
    wait::until("its file is gone", || !path.exists());
    assert!(ctl(&proxy, &["status"]).contains("\nadmin       off\n"));
}

#[test]
fn what_was_set_by_hand_holds_in_the_next_program_and_the_next_supervisor() {
    let backend = Backend::respond(OK);
    let mut proxy = Proxy::to(&backend);
    let port = free_port();
    let admin = SocketAddr::from(([127, 0, 0, 1], port));
    ctl(
        &proxy,
        &["settings", "patch", &format!("admin.address=0.0.0.0:{port}"), "admin.allow=[\"127.0.0.1\"]"],
    );
    ctl(&proxy, &["upgrade"]);
    assert_eq!(standing(admin), [ok(), ok()]);
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(standing(admin), [ok(), ok()]);
    ctl(&proxy, &["reload"]);
    assert_eq!(standing(admin), [ok(), ok()]);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
}

#[test]
fn a_unix_socket_is_for_its_owner_takes_any_host_and_goes_with_kakehi() {
    let backend = Backend::respond(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let config = Config::to(&backend).root(&table(&format!("unix:{}", path.display()), ""));
    // One that a dead process left is replaced.
    drop(UnixListener::bind(&path).unwrap());
    let mut proxy = config.clone().start();
    assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(ask_unix(&path, "evil.example").unwrap().contains("200 OK"));
    ctl(&proxy, &["upgrade"]);
    assert!(ask_unix(&path, "a").unwrap().contains("200 OK"));
    assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // One on which somebody answers is not.
    let (status, log) = Proxy::start_failing(&config);
    assert!(!status.success() && log.contains("answered by pid") && log.contains("`admin.address`"), "{log}");
    assert!(ask_unix(&path, "a").unwrap().contains("200 OK"));
    proxy.kill_supervisor();
    assert!(path.exists());
    proxy.start_again();
    assert!(ask_unix(&path, "a").unwrap().contains("200 OK"));
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(!path.exists());
    // What is no socket stays.
    fs::write(&path, "precious").unwrap();
    let (status, log) = Proxy::start_failing(&config);
    assert!(!status.success() && log.contains("is not a socket"), "{log}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}
