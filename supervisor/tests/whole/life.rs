//! The life of the processes: start, stop, crash, and what the commands say about them.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Client, Config, Need, OK, Process, Proxy, exchange, get, kakehictl, machine, program,
    send_signal, wait,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// How long a process may take to come or go.
const START: Duration = Duration::from_secs(10);

fn check(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kakehi.toml");
    std::fs::write(&file, text).unwrap();
    Command::new(program()).arg("check").arg("-c").arg(file).output().unwrap()
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn check_takes_a_good_file() {
    let output =
        check(&Config::new().frontend("web", r#"hostname = "*""#).text(&["127.0.0.1:1".parse().unwrap()]));
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn check_names_the_place_of_each_mistake_and_what_was_meant() {
    let cases = [
        ("worker_cuont = 2\n", "kakehi.toml:1:1", "worker_count"),
        ("\nworker_count = \"two\"\n", "kakehi.toml:2:", "worker_count"),
        ("worker_count = \n", "kakehi.toml:1:", ""),
        ("[[listeners]]\naddress = \"127.0.0.1\"\nprotocol = \"http\"\n", "kakehi.toml:2:", "address"),
        (
            "[[listeners]]\naddress = \"127.0.0.1:1\"\nprotocol = \"http\"\nfront_timout = 1\n",
            "kakehi.toml:4:1",
            "front_timeout",
        ),
    ];
    for (text, place, hint) in cases {
        let output = check(text);
        let printed = printed(&output);
        assert!(
            !output.status.success()
                && printed.contains(place)
                && printed.contains(hint)
                && !printed.contains("panicked"),
            "expected {place} and `{hint}` for\n{text}\ngot {}:\n{printed}",
            output.status
        );
    }
}

#[test]
fn check_refuses_rules_that_cannot_be_compiled() {
    for rule in [
        r#"hostname = "/[/.example.org""#,
        r#"hostname = "*", path = "(", path_type = "REGEX""#,
        r#"hostname = "*", path = "(a{1000}){1000}", path_type = "REGEX""#,
    ] {
        let output = check(&Config::new().frontend("web", rule).text(&["127.0.0.1:1".parse().unwrap()]));
        let printed = printed(&output);
        assert!(!output.status.success() && !printed.contains("panicked"), "{rule}: {printed}");
    }
}

#[test]
fn a_bad_file_starts_nothing() {
    let (status, log) = Proxy::start_failing(&Config::new().root("worker_cuont = 2"));
    assert!(!status.success() && log.contains("worker_count"), "{status}: {log}");
    let output = Command::new(program()).args(["start", "-c", "/does/not/exist.toml"]).output().unwrap();
    assert!(
        !output.status.success() && printed(&output).contains("/does/not/exist.toml"),
        "{}",
        printed(&output)
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kakehi.toml");
    let text = Config::new().frontend("web", r#"hostname = "*""#).text(&[address.parse().unwrap()]);
    std::fs::write(&file, text).unwrap();
    let output = Command::new(program()).arg("start").arg("-c").arg(file).output().unwrap();
    assert!(!output.status.success() && printed(&output).contains(&address), "{}", printed(&output));
}

#[test]
fn the_reports_of_kakehictl_have_the_promised_fields() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    get(&proxy, "a", "/").expect(200, "ok");
    let status = proxy.ctl_json("status");
    assert_eq!(status["pid"], proxy.supervisor().0);
    assert_eq!(status["listeners"], serde_json::json!([proxy.address().to_string()]));
    assert_eq!(
        (&status["clusters"], &status["frontends"], &status["backends"]),
        (&1.into(), &1.into(), &1.into())
    );
    for key in ["version", "uptime_s", "connections", "requests", "restarts", "workers"] {
        assert!(!status[key].is_null(), "{key} in {status}");
    }
    wait::until("a request in the counters", || proxy.ctl_json("status")["requests"].as_u64() >= Some(1));
    wait::until("both workers to run", || {
        proxy.ctl_json("workers").as_array().unwrap().iter().all(|worker| worker["state"] == "running")
    });
    let workers = proxy.ctl_json("workers");
    let workers = workers.as_array().unwrap();
    let pids: BTreeSet<u64> = workers.iter().filter_map(|worker| worker["pid"].as_u64()).collect();
    assert_eq!(pids, proxy.workers().iter().map(|worker| u64::from(worker.0)).collect());
    for (id, worker) in workers.iter().enumerate() {
        assert_eq!((&worker["id"], &worker["state"]), (&id.into(), &"running".into()));
        for key in ["connections", "requests", "io_uring_level"] {
            assert!(worker[key].is_u64(), "{key} in {worker}");
        }
    }
    for verb in ["status", "workers"] {
        assert!(proxy.ctl(&[verb]).status.success());
    }
}

#[test]
fn open_connections_are_counted_and_uncounted() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    client.send(GET);
    client.response().expect(200, "ok");
    wait::until("one open connection", || proxy.ctl_json("status")["connections"] == 1);
    drop(client);
    wait::until("no open connection", || proxy.ctl_json("status")["connections"] == 0);
}

#[test]
fn kakehictl_says_by_its_exit_code_what_went_wrong() {
    let run = |arguments: &[&str]| kakehictl().args(arguments).output().unwrap();
    let nobody = run(&["-s", "/does/not/exist.sock", "status"]);
    assert_eq!(nobody.status.code(), Some(3), "{}", printed(&nobody));
    assert!(printed(&nobody).contains("/does/not/exist.sock"));
    assert_eq!(run(&["no-such-verb"]).status.code(), Some(2));
    assert_eq!(run(&["--no-such-option", "status"]).status.code(), Some(2));
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let file = proxy.folder().join("kakehi.toml");
    assert_eq!(run(&["-c", file.to_str().unwrap(), "status"]).status.code(), Some(0));
    let by_environment = kakehictl().env("KAKEHI_SOCKET", proxy.socket()).arg("status").output().unwrap();
    assert_eq!(by_environment.status.code(), Some(0), "{}", printed(&by_environment));
}

#[test]
fn the_command_socket_is_for_its_owner_only() {
    let proxy = Config::new().start();
    let mode = std::fs::metadata(proxy.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn garbage_on_the_command_socket_hurts_nobody() {
    use std::{io::Write, os::unix::net::UnixStream};
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    for bytes in [
        b"\xff\xff\xff\xff".as_slice(),
        b"\x02\0\0\0{}",
        b"\x05\0\0\0hello",
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(proxy.socket()).unwrap();
        let _ = stream.write_all(bytes);
    }
    assert!(proxy.ctl(&["status"]).status.success());
    get(&proxy, "a", "/").expect(200, "ok");
}

#[test]
fn a_worker_that_is_killed_is_replaced_and_no_connection_is_refused() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let address = proxy.address();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let connecting = thread::spawn(move || {
        let mut refused = Vec::new();
        while !stopped.load(Ordering::SeqCst) {
            if let Err(error) = Client::try_connect(address) {
                refused.push(error);
            }
            wait::pace(Duration::from_millis(5));
        }
        refused
    });
    let killed = proxy.worker();
    let start = Instant::now();
    send_signal(killed, Signal::SIGKILL);
    let mut client = proxy.client();
    client.send(GET);
    // A connection that the dying worker had still taken is lost with it; all others wait for the next one.
    let served = client.try_response().is_ok_and(|response| response.status() == 200);
    if !served {
        get(&proxy, "a", "/").expect(200, "ok");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "after {:?}", start.elapsed());
    wait::until("another worker", || proxy.workers().iter().any(|worker| *worker != killed));
    stop.store(true, Ordering::SeqCst);
    let refused = connecting.join().unwrap();
    assert!(refused.is_empty(), "{refused:?}");
    wait::until("the restart in the report", || proxy.ctl_json("status")["restarts"] == 1);
    assert_eq!(proxy.ctl_json("workers")[0]["id"], 0);
}

#[test]
fn workers_go_on_when_the_supervisor_is_killed() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let workers = proxy.workers();
    let mut client = proxy.client();
    client.send(GET);
    client.response().expect(200, "ok");
    send_signal(proxy.supervisor(), Signal::SIGKILL);
    proxy.wait(START);
    for _ in 0..10 {
        client.send(GET);
        client.response().expect(200, "ok");
        get(&proxy, "a", "/").expect(200, "ok");
    }
    assert!(workers.iter().all(|worker| worker.runs()));
    for worker in workers {
        send_signal(worker, Signal::SIGTERM);
    }
}

#[test]
fn a_stop_lets_the_request_in_flight_finish_and_exits_0() {
    let (backend, go) = Backend::slow();
    let mut proxy = Proxy::to(&backend);
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    let worker = proxy.worker();
    proxy.terminate();
    wait::until("no new connection is served", || {
        Client::try_connect(proxy.address()).map_or(true, |mut client| {
            client.send(GET);
            client.patience(Duration::from_millis(100)).try_response().is_err()
        })
    });
    go.send(()).unwrap();
    let response = busy.response();
    response.expect(200, "ok");
    busy.expect_closed();
    assert_eq!(proxy.wait(START).code(), Some(0), "{}", proxy.log());
    assert!(!worker.runs() && !proxy.socket().exists());
}

#[test]
fn a_stop_does_not_wait_for_idle_connections() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let mut idle = proxy.client();
    idle.send(GET);
    idle.response().expect(200, "ok");
    let mut silent = proxy.client();
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.wait(START).code(), Some(0), "{}", proxy.log());
    assert!(start.elapsed() < Duration::from_secs(3), "after {:?}", start.elapsed());
    idle.expect_closed();
    let _ = silent.rest();
}

#[test]
fn a_stop_cuts_what_is_still_in_flight_at_its_deadline() {
    let (backend, _go) = Backend::slow();
    let mut proxy = Config::to(&backend).root("graceful_timeout = 0.3").start();
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.wait(START).code(), Some(3), "{}", proxy.log());
    assert!(start.elapsed() > Duration::from_millis(200), "after {:?}", start.elapsed());
    assert_ne!(busy.try_response().map(|response| response.status()).unwrap_or(0), 200);
}

#[test]
fn a_second_signal_stops_at_once() {
    let (backend, _go) = Backend::slow();
    let mut proxy = Proxy::to(&backend);
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    let worker = proxy.worker();
    proxy.terminate();
    wait::until("kakehi says that it stops", || {
        proxy.log().to_lowercase().contains("stop") || !worker.runs()
    });
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.wait(START).code(), Some(3), "{}", proxy.log());
    assert!(start.elapsed() < Duration::from_secs(3), "after {:?}", start.elapsed());
    wait::until("the end of the worker", || !worker.runs());
}

#[test]
fn a_stop_from_the_keyboard_is_a_clean_stop() {
    let backend = Backend::respond(OK);
    let mut proxy = Proxy::to(&backend);
    send_signal(proxy.supervisor(), Signal::SIGINT);
    assert_eq!(proxy.wait(START).code(), Some(0), "{}", proxy.log());
}

#[test]
fn the_pid_file_names_the_supervisor_and_goes_with_it() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root(r#"pid_file_path = "kakehi.pid""#).start();
    let file = proxy.folder().join("kakehi.pid");
    wait::until("the pid file", || file.exists());
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), proxy.supervisor().0.to_string());
    proxy.terminate();
    proxy.wait(START);
    assert!(!file.exists());
}

#[test]
fn the_demo_prints_where_it_listens_and_answers_there() {
    let mut child = Command::new(program())
        .arg("demo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let supervisor = Process(child.id());
    let (tell, told) = mpsc::channel();
    for stream in [
        Box::new(child.stdout.take().unwrap()) as Box<dyn Read + Send>,
        Box::new(child.stderr.take().unwrap()),
    ] {
        let tell = tell.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
    }
    let mut lines = String::new();
    let client = wait::within(START, "an address on the output of the demo that accepts", || {
        lines.extend(told.try_iter().map(|line| line + "\n"));
        let place = lines.rfind("127.0.0.1:").or_else(|| lines.rfind("localhost:"))?;
        let address: String = lines[place..].replace("localhost", "127.0.0.1");
        let end =
            address.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(address.len());
        Client::try_connect(address[..end].parse().ok()?).ok()
    });
    let mut client = client;
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = client.try_response();
    if machine::has(Need::Root) {
        // Root tries it as it is told to; what handles strangers' bytes is nobody's process all the same.
        let workers = supervisor.children();
        assert!(!workers.is_empty(), "{lines}");
        for worker in workers {
            let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
            let [users, groups] =
                [nobody.uid.as_raw(), nobody.gid.as_raw()].map(|id| format!("{id}\t{id}\t{id}\t{id}"));
            assert_eq!([worker.status("Uid"), worker.status("Gid")], [Some(users), Some(groups)]);
            let groups = worker.status("Groups").unwrap();
            assert!(groups.split(' ').all(|group| group != "0"), "a group of root's: {groups}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(worker.status(set).as_deref(), Some("0000000000000000"), "{set}");
            }
        }
        assert!(!lines.contains("run as root"), "{lines}");
    }
    send_signal(supervisor, Signal::SIGTERM);
    let status = wait::within(START, "the end of the demo", || child.try_wait().unwrap());
    assert_eq!(answer.map(|response| response.status()).ok(), Some(200), "{lines}");
    assert_eq!(status.code(), Some(0), "{lines}");
}

#[test]
fn each_of_two_workers_serves() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    wait::within(START, "requests at both workers", || {
        for _ in 0..10 {
            exchange(&proxy, GET).expect(200, "ok");
        }
        let workers = proxy.ctl_json("workers");
        workers.as_array()?.iter().all(|worker| worker["requests"].as_u64() > Some(1)).then_some(())
    });
}

#[test]
fn each_worker_is_pinned_to_a_core_of_its_own() {
    let cores = if machine::has(Need::TwoCores) { 2 } else { 1 };
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root(&format!("worker_count = {cores}"))
        .root("handle_process_affinity = true")
        .start();
    let reported = proxy.ctl_json("workers");
    let mut seen = BTreeSet::new();
    for worker in reported.as_array().unwrap() {
        let process = Process(u32::try_from(worker["pid"].as_u64().unwrap()).unwrap());
        let allowed = process.status("Cpus_allowed_list").unwrap();
        assert_eq!(allowed, worker["core"].to_string(), "{worker}");
        seen.insert(allowed);
    }
    assert_eq!(seen.len(), cores);
}

#[test]
fn a_worker_holds_no_sockets_but_its_own() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    get(&proxy, "a", "/").expect(200, "ok");
    for worker in proxy.workers() {
        let descriptors = worker.descriptors();
        let sockets = descriptors.iter().filter(|target| target.starts_with("socket:")).count();
        // Two of each: its listener, its order channel, its adoption socket. Two more channels, an idle upstream
        // connection, and little else.
        assert!(sockets <= 11, "{sockets} sockets in {worker:?}: {descriptors:?}");
        assert!(descriptors.len() <= 48, "{} descriptors in {worker:?}: {descriptors:?}", descriptors.len());
    }
}

#[test]
fn a_level_of_kernel_features_can_be_forced_down() {
    let level = |proxy: &Proxy| proxy.ctl_json("workers")[0]["io_uring_level"].as_u64();
    let backend = Backend::respond(OK);
    let by_environment = Config::to(&backend).environment("KAKEHI_IO_URING_LEVEL", "0").start();
    assert_eq!(level(&by_environment), Some(0));
    get(&by_environment, "a", "/").expect(200, "ok");
    let by_key = Config::to(&backend).root("io_uring_level = 1").start();
    assert!(level(&by_key) <= Some(1));
    get(&by_key, "a", "/").expect(200, "ok");
}

#[test]
fn a_low_limit_of_locked_memory_is_no_obstacle() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).ulimit("-S -l 64").start();
    get(&proxy, "a", "/").expect(200, "ok");
}

#[test]
fn a_kernel_that_refuses_io_uring_is_named_as_the_reason() {
    let backend = Backend::respond(OK);
    let (status, log) = Proxy::start_failing(&Config::to(&backend).without_io_uring());
    assert!(!status.success() && log.contains("io_uring") && !log.contains("panicked"), "{status}: {log}");
    assert!(
        log.contains("io_uring_disabled") || log.contains("seccomp"),
        "the message says what to do: {log}"
    );
}
