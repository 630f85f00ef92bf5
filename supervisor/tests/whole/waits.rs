//! The supervisor waits for nobody: while a worker, a disk, the init system or a reader of the log stands still, questions are
//! answered, signals are obeyed, and changes go on with those that answer.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixDatagram, UnixStream},
    },
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kakehi_ctl::{
    edit::Edit,
    limits,
    order::{Envelope, Hello, Request, Response, WORKING},
    wire::{self, Decoder},
};
use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::{
    Backend, Config, Issued, OK, Pki, Process, Proxy, ask, free_port, kakehictl, program, send_signal, wait,
};

/// Far less than any operation here takes, and more than a `kakehictl` does, from its start to its end, on a busy machine. How fast
/// the supervisor itself is: [`crate::served`].
const PROMPT: Duration = Duration::from_secs(1);
/// A `worker_timeout`, and one that nobody waits for.
const SHORT: &str = "worker_timeout = 3";
const LONG: &str = "worker_timeout = 600";

/// Two workers, of which the first stands still.
struct Scene {
    proxy: Proxy,
    still: Process,
    _backend: Backend,
}

impl Scene {
    fn new(keys: &[&str]) -> Scene {
        let backend = Backend::respond(OK);
        let config = Config::to(&backend).root("worker_count = 2").root("worker_liveness = 0");
        let proxy = keys.iter().fold(config, |config, key| config.root(key)).start();
        // Before it is ready, a worker that stands still ends the start.
        wait::until("the end of the start", || proxy.ctl_json("status")["phase"] == "running");
        let still = Process(pids(&proxy)[0]);
        send_signal(still, Signal::SIGSTOP);
        Scene { proxy, still, _backend: backend }
    }

    /// Runs `kakehictl` beside the test.
    fn beside(&self, arguments: &[&str]) -> JoinHandle<Output> {
        beside(&self.proxy, arguments)
    }

    /// Asks for a backend more.
    fn add_backend(&self, id: &str) -> JoinHandle<Output> {
        self.beside(&["backend", "add", "all", "127.0.0.1:9", "--id", id])
    }

    /// Asks for a listener more, and waits until its address is listened on: then the workers are asked.
    fn add_listener(&self) -> JoinHandle<Output> {
        let address = format!("127.0.0.1:{}", free_port());
        let change = self.beside(&["listener", "add", &address, "protocol=http"]);
        let mut change = Some(change);
        wait::until("a socket of the new listener", || {
            if change.as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(ended) = change.take()
            {
                panic!("it has ended: {}", said(&ended.join().unwrap()));
            }
            TcpStream::connect(&address).is_ok()
        });
        change.unwrap()
    }

    fn has(&self, backend: &str) -> bool {
        self.proxy.ctl_json("state")["clusters"]["all"]["backends"].to_string().contains(backend)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.still.runs() {
            send_signal(self.still, Signal::SIGCONT);
        }
    }
}

/// Runs `kakehictl` beside the test.
fn beside(proxy: &Proxy, arguments: &[&str]) -> JoinHandle<Output> {
    let mut command = kakehictl();
    command.arg("-s").arg(proxy.socket()).args(arguments);
    thread::spawn(move || command.output().unwrap())
}

fn pids(proxy: &Proxy) -> Vec<u32> {
    let workers = proxy.ctl_json("workers");
    workers.as_array().unwrap().iter().map(|worker| worker["pid"].as_u64().unwrap() as u32).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn a_worker_that_does_not_answer_vetoes_nothing_and_questions_are_answered_meanwhile() {
    let scene = Scene::new(&[SHORT]);
    let change = scene.add_backend("another");
    let mut answered = 0;
    while !change.is_finished() {
        let asked = Instant::now();
        assert_eq!(scene.proxy.ctl_json("status")["backends"].as_u64().map(|it| it >= 1), Some(true));
        assert!(asked.elapsed() < PROMPT, "an answer took {:?}", asked.elapsed());
        answered += 1;
    }
    assert!(answered > 5, "{answered} answers while the change waited");
    let output = change.join().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("worker 0") && said(&output).contains("replaced"), "{}", said(&output));
    assert!(scene.has("another"));
    wait::until("another process", || {
        let workers = scene.proxy.ctl_json("workers");
        let first = &workers[0];
        first["pid"].as_u64() != Some(scene.still.0.into()) && first["state"] == "running"
    });
    (0..8).for_each(|_| ask(&mut scene.proxy.client()));
    // It hears that it is to end when it can hear again.
    send_signal(scene.still, Signal::SIGCONT);
    wait::until("the end of the process that was given up", || !scene.still.runs());
    scene.proxy.logged("answered an order not within `worker_timeout` (3 s)");
}

#[test]
fn a_stop_ends_the_operation_that_runs() {
    let mut scene = Scene::new(&[LONG, "graceful_timeout = 1"]);
    let change = scene.add_listener();
    let asked = Instant::now();
    scene.proxy.terminate();
    let output = change.join().unwrap();
    assert!(asked.elapsed() < PROMPT, "it went on for {:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("kakehi is stopping; nothing was changed"), "{}", said(&output));
    // The worker that stands still is killed.
    assert_eq!(scene.proxy.wait(Duration::from_secs(10)).code(), Some(3));
}

#[test]
fn a_stop_ends_an_upgrade_and_a_scaling_that_run() {
    for verb in [["workers", "upgrade"].as_slice(), &["workers", "scale", "3"]] {
        let backend = Backend::respond(OK);
        let mut proxy = Config::to(&backend).root("worker_count = 2").root("graceful_timeout = 1").start();
        let present = proxy.workers();
        let change = beside(&proxy, verb);
        // The process that comes stands still before it is ready.
        let comes = wait::within(wait::SOON, "a new process", || {
            let mut new = proxy.workers();
            // Not before it has become the worker: until then its parent waits for it.
            let is_worker = |process: &Process| {
                let line = fs::read(format!("/proc/{}/cmdline", process.0)).unwrap_or_default();
                line.split(|byte| *byte == 0).any(|word| word == b"worker")
            };
            new.retain(|process| !present.contains(process) && is_worker(process));
            new.first().copied()
        });
        send_signal(comes, Signal::SIGSTOP);
        let asked = Instant::now();
        proxy.terminate();
        let output = change.join().unwrap();
        assert!(asked.elapsed() < PROMPT, "{verb:?} went on for {:?}", asked.elapsed());
        assert_ne!(output.status.code(), Some(4), "{}", said(&output));
        proxy.wait(Duration::from_secs(10));
        assert!(!comes.runs(), "{verb:?}: the process that was to come is left behind");
    }
}

#[test]
fn changes_wait_for_each_other_and_none_is_lost() {
    let scene = Scene::new(&[SHORT]);
    let first = scene.add_listener();
    let others: Vec<_> = (0..8).map(|number| scene.add_backend(&format!("other{number}"))).collect();
    for change in others.into_iter().chain([first]) {
        let output = change.join().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    assert!((0..8).all(|number| scene.has(&format!("other{number}"))));
}

#[test]
fn a_client_that_waits_no_longer_says_that_the_outcome_is_unknown() {
    let scene = Scene::new(&[SHORT]);
    let output =
        scene.proxy.ctl(&["--timeout", "500", "backend", "add", "all", "127.0.0.1:9", "--id", "another"]);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("outcome unknown"), "{}", said(&output));
    wait::within(Duration::from_secs(10), "the change", || scene.has("another").then_some(()));
    // A question changes nothing: it is known that nothing came of it.
    let output = scene.proxy.ctl(&["--timeout", "1", "status"]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
}

#[test]
fn a_save_that_failed_is_tried_again_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let (place, away) = (folder.path().join("place"), folder.path().join("away"));
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend)
        .root(&format!("saved_state = \"{}\"", place.join("state.json").display()))
        .root("automatic_state_save = true")
        .start();
    let add = |name: &str| {
        let arguments = ["backend", "add", "all", "127.0.0.1:9", "--id", name];
        let output = proxy.ctl(&arguments);
        assert!(output.status.success(), "{}", said(&output));
    };
    let failure = || proxy.ctl_json("status").get("save_failed").map(ToString::to_string);
    add("first");
    assert_eq!(failure(), None);
    wait::until("the first save", || place.join("state.json").exists());
    fs::rename(&place, &away).unwrap();
    add("second");
    wait::until("the failure in the status", || failure().is_some());
    fs::rename(&away, &place).unwrap();
    wait::until("the save", || failure().is_none());
    let saved = fs::read_to_string(place.join("state.json")).unwrap();
    assert!(saved.contains("first") && saved.contains("second"), "{saved}");
    fs::rename(&place, &away).unwrap();
    add("third");
    wait::until("the failure in the status", || failure().is_some());
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(3));
}

#[test]
fn a_reader_of_the_log_that_stands_still_stops_nobody_and_hears_how_much_it_missed() {
    /// Lines of one reload, more than there is patience for.
    const CHANGES: usize = 3_000;
    let (reader, writer) = nix::unistd::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4_096)).unwrap();
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).log_to(writer).start();
    let file = proxy.folder().join("kakehi.toml");
    let more: String = (0..CHANGES)
        .map(|number| {
            format!(
                "[clusters.c{number}]\nprotocol = \"http\"\nbackends = [{{ address = \"127.0.0.1:9\" }}]\n"
            )
        })
        .collect();
    let text = fs::read_to_string(&file).unwrap() + &more;
    fs::write(&file, text).unwrap();
    let asked = Instant::now();
    let output = proxy.ctl(&["reload"]);
    assert!(output.status.success(), "{}", said(&output));
    // Half a second for each line was hours; the reload itself takes a part of a second.
    assert!(asked.elapsed() < Duration::from_secs(20), "it took {:?}", asked.elapsed());
    ask(&mut proxy.client());
    // What waited comes, and behind it the word; it takes a line that is written after some were lost.
    let said_more = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", "after"]);
    assert!(said_more.status.success(), "{}", said(&said_more));
    let heard = thread::spawn(move || {
        let mut lines = BufReader::new(File::from(reader)).lines().map_while(Result::ok);
        lines.any(|line| line.contains("lines of the log were lost"))
    });
    wait::until("the word of how many lines were lost", || heard.is_finished());
    assert!(heard.join().unwrap());
}

#[test]
fn an_init_system_that_reads_nothing_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let init = UnixDatagram::bind(&path).unwrap();
    let backend = Backend::respond(OK);
    kakehictl();
    let mut proxy = Config::to(&backend)
        .environment("NOTIFY_SOCKET", path.to_str().unwrap())
        .environment("WATCHDOG_USEC", "2000")
        .start();
    // Its queue is full.
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    wait::until("a full queue", || filler.send_to(b"X=1", &path).is_err());
    for _ in 0..30 {
        let asked = Instant::now();
        let output = proxy.ctl(&["reload"]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(asked.elapsed() < PROMPT, "a reload took {:?}", asked.elapsed());
    }
    ask(&mut proxy.client());
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    drop(init);
}

#[test]
fn workers_are_taken_over_whatever_the_file_says() {
    for (wrong, named) in
        [("worker_cuont = 2", "worker_cuont"), ("log_level = ", "TOML"), ("", "regular expression")]
    {
        let backend = Backend::respond(OK);
        let mut proxy = Config::to(&backend).start();
        let added = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", "by-hand", "--backup"]);
        assert!(added.status.success(), "{}", said(&added));
        let mut idle = proxy.client();
        ask(&mut idle);
        let worker = proxy.worker();
        let file = proxy.folder().join("kakehi.toml");
        let right = fs::read_to_string(&file).unwrap();
        proxy.kill_supervisor();
        let broken = match wrong {
            "" => right.replace("hostname = \"*\"", "hostname = \"/[/\""),
            wrong => format!("{wrong}\n{right}"),
        };
        assert_ne!(broken, right);
        fs::write(&file, broken).unwrap();
        proxy.start_again();
        ask(&mut idle);
        // It is no child of the supervisor that has taken it over.
        assert_eq!(pids(&proxy), [worker.0], "{}", proxy.log());
        proxy.logged("mend the file, then reload");
        proxy.logged(named);
        let state = || proxy.ctl_json("state")["clusters"]["all"]["backends"].to_string();
        assert!(state().contains("by-hand"));
        // The command line finds the socket all the same.
        let asked = kakehictl().arg("-c").arg(&file).arg("status").output().unwrap();
        assert!(asked.status.success(), "{}", said(&asked));
        let refused = proxy.ctl(&["reload"]);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        ask(&mut idle);
        fs::write(&file, format!("{right}# mended\n")).unwrap();
        let taken = proxy.ctl(&["reload"]);
        assert!(taken.status.success(), "{}", said(&taken));
        assert!(state().contains("by-hand"), "it is not the file's");
        ask(&mut idle);
    }
}

#[test]
fn without_workers_a_wrong_file_starts_nothing() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).start();
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    let file = proxy.folder().join("kakehi.toml");
    fs::write(&file, format!("worker_cuont = 2\n{}", fs::read_to_string(&file).unwrap())).unwrap();
    let output = std::process::Command::new(program()).arg("start").arg("-c").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("worker_cuont"), "{}", said(&output));
}

#[test]
fn a_command_socket_whose_owner_stands_still_does_not_hang_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kakehi.toml");
    fs::write(&file, "command_socket = \"kakehi.sock\"\nworker_count = 1\n").unwrap();
    let address = SockAddr::unix(folder.path().join("kakehi.sock")).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(1).unwrap();
    let mut waiting = Vec::new();
    wait::until("a full queue", || {
        let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        let connected = client.connect(&address);
        waiting.push(client);
        connected.is_err()
    });
    let mut start = std::process::Command::new(program())
        .args(["start", "-c"])
        .arg(&file)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait::until("the end of the start", || start.try_wait().unwrap().is_some());
    let output = start.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("already runs there"), "{}", said(&output));
}

#[test]
fn a_supervisor_that_was_stopped_itself_gives_nobody_up() {
    let scene = Scene::new(&[SHORT]);
    let before = pids(&scene.proxy);
    let change = scene.add_listener();
    send_signal(scene.proxy.supervisor(), Signal::SIGSTOP);
    send_signal(scene.still, Signal::SIGCONT);
    // Longer than `worker_timeout`: both have answered, and nobody has read it.
    wait::pace(Duration::from_secs(4));
    send_signal(scene.proxy.supervisor(), Signal::SIGCONT);
    let output = change.join().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(!said(&output).contains("replaced"), "{}", said(&output));
    assert_eq!(pids(&scene.proxy), before, "{}", scene.proxy.log());
}

#[test]
fn a_change_that_no_worker_can_look_at_is_refused_where_it_contradicts_what_is_there() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_liveness = 0").root("worker_timeout = 1").start();
    let address = proxy.address().to_string();
    assert!(proxy.ctl(&["cluster", "add", "other"]).status.success());
    let still = proxy.worker();
    send_signal(still, Signal::SIGSTOP);
    // The other cluster has it.
    let output = proxy.ctl(&["frontend", "add", "other", &address, "*"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(proxy.ctl_json("state")["clusters"]["other"]["frontends"].as_array().map(Vec::len), Some(0));
    wait::until("another process", || proxy.ctl_json("workers")[0]["state"] == "running");
    ask(&mut proxy.client());
    send_signal(still, Signal::SIGCONT);
}

#[test]
fn a_worker_that_does_not_answer_is_replaced_also_where_dead_ones_are_not() {
    let scene = Scene::new(&["worker_timeout = 1", "worker_automatic_restart = false"]);
    let output = scene.add_backend("another").join().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    wait::until("another process", || {
        let workers = scene.proxy.ctl_json("workers");
        workers[0]["pid"].as_u64() != Some(scene.still.0.into()) && workers[0]["state"] == "running"
    });
}

/// What nobody uses is thrown out of the memory of certificates after a while; what a change brings is used by nobody yet.
#[test]
fn a_certificate_that_comes_while_a_worker_does_not_answer_is_served() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [first, gone, comes] = [pki.issue(&["a"]), pki.issue(&["gone.test"]), pki.issue(&["comes.test"])];
    let config = Config::https_to(&backend, &first).root("worker_count = 2").root("worker_liveness = 0");
    // Longer than that while.
    let proxy = config.root("worker_timeout = 17").start();
    let address = proxy.address().to_string();
    let add = |issued: &Issued| {
        let [certificate, key] =
            [&issued.certificate, &issued.key].map(|path| path.to_str().unwrap().to_owned());
        let output =
            proxy.ctl(&["certificate", "add", &address, "--certificate", &certificate, "--key", &key]);
        assert!(output.status.success(), "{}", said(&output));
    };
    add(&gone);
    assert!(proxy.ctl(&["certificate", "remove", &address, &gone.fingerprint()]).status.success());
    let still = Process(pids(&proxy)[0]);
    send_signal(still, Signal::SIGSTOP);
    add(&comes);
    wait::until("another process", || {
        proxy.ctl_json("workers").as_array().unwrap().iter().all(|worker| worker["state"] == "running")
    });
    for _ in 0..8 {
        assert_eq!(pki.caller().to("comes.test").connect(proxy.address()).served(), comes.fingerprint());
    }
    send_signal(still, Signal::SIGCONT);
}

/// Two workers, of which the first stands still, and how long a change took that it did not answer.
fn change_beside_one_that_stands_still(change: impl Fn(&Proxy) -> Output) -> (Output, Duration) {
    let backend = Backend::respond(OK);
    let config = Config::to(&backend).root("worker_count = 2").root("worker_liveness = 0").root(SHORT);
    let proxy = config.start();
    assert!(proxy.ctl(&["cluster", "add", "other"]).status.success());
    let still = Process(pids(&proxy)[0]);
    send_signal(still, Signal::SIGSTOP);
    let asked = Instant::now();
    let output = change(&proxy);
    let took = asked.elapsed();
    send_signal(still, Signal::SIGCONT);
    (output, took)
}

/// [`SHORT`] once.
const ONE_WAIT: std::ops::Range<Duration> = Duration::from_millis(2_900)..Duration::from_millis(4_500);

#[test]
fn a_change_that_is_made_takes_one_wait_for_the_worker_that_does_not_answer() {
    let add = ["backend", "add", "all", "127.0.0.1:9", "--id", "another"];
    let (output, took) = change_beside_one_that_stands_still(|proxy| proxy.ctl(&add));
    assert!(output.status.success() && said(&output).contains("replaced"), "{}", said(&output));
    assert!(ONE_WAIT.contains(&took), "it took {took:?}");
}

#[test]
fn a_change_that_is_refused_takes_one_wait_for_the_worker_that_does_not_answer() {
    // The other worker finds that another cluster has it, and everybody is told to forget it.
    let (output, took) = change_beside_one_that_stands_still(|proxy| {
        proxy.ctl(&["frontend", "add", "other", &proxy.address().to_string(), "*"])
    });
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("worker 1: "), "{}", said(&output));
    assert!(ONE_WAIT.contains(&took), "it took {took:?}");
}

#[test]
fn a_client_that_knows_signs_of_life_gets_them_until_its_answer_and_others_do_not() {
    let scene = Scene::new(&[SHORT]);
    // The second waits in line behind the first.
    let clients: Vec<_> = [(&[WORKING][..], "drain_timeout=31"), (&[], "drain_timeout=32")]
        .into_iter()
        .map(|(can, key)| {
            let mut stream = UnixStream::connect(scene.proxy.socket()).unwrap();
            stream.set_read_timeout(Some(wait::SOON)).unwrap();
            let edits = vec![Edit::PatchSettings { keys: vec![key.to_owned()] }];
            let change = Request::Edit { edits, folder: "/".into(), if_generation: None };
            thread::spawn(move || {
                let mut decoder = Decoder::new(limits::MAX_FRAME);
                for (id, request) in [(1, Request::Hello(Hello::new(can))), (2, change)] {
                    wire::write_message(&mut stream, &Envelope::new(id, request), limits::MAX_REQUEST_FRAME)
                        .unwrap();
                }
                let mut answers = Vec::new();
                while !matches!(answers.last(), Some(Response::Changed(_))) {
                    let answer = wire::read_message::<Response>(&mut stream, &mut decoder).unwrap().unwrap();
                    assert_eq!(answer.id, if answers.is_empty() { 1 } else { 2 });
                    answers.push(answer.body);
                }
                answers
            })
        })
        .collect();
    let [with, without] = clients.try_into().unwrap_or_else(|_| unreachable!());
    let signs = |answers: Vec<Response>| answers.iter().filter(|it| **it == Response::Working).count();
    assert!(matches!(signs(with.join().unwrap()), 1..=8));
    assert_eq!(signs(without.join().unwrap()), 0);
}

#[test]
fn a_change_is_made_while_many_ask_for_a_large_state_again_and_again() {
    let backend = Backend::respond(OK);
    let mut config = Config::to(&backend).root("worker_count = 1");
    for number in 0..2_000 {
        config = config.backend_with(&format!("cluster-{number}"), &backend, "weight = 3");
    }
    let proxy = config.start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let askers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut stream = UnixStream::connect(proxy.socket()).unwrap();
                    let mut bytes = vec![0; 1 << 16];
                    let mut answers = 0;
                    while !over.load(Ordering::Relaxed) {
                        let question = Envelope::new(1, Request::State);
                        wire::write_message(&mut stream, &question, limits::MAX_REQUEST_FRAME).unwrap();
                        // It is not read for its meaning: that takes longer than to write it.
                        let mut length = [0; 4];
                        stream.read_exact(&mut length).unwrap();
                        let mut left = u32::from_le_bytes(length) as usize;
                        while left > 0 {
                            let most = left.min(bytes.len());
                            left -= stream.read(&mut bytes[..most]).unwrap();
                        }
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        for number in 0..5 {
            let asked = Instant::now();
            let id = format!("more-{number}");
            let output = proxy.ctl(&["backend", "add", "cluster-7", "127.0.0.1:9", "--id", &id]);
            assert!(output.status.success(), "{}", said(&output));
            assert!(asked.elapsed() < 4 * PROMPT, "a change took {:?}", asked.elapsed());
            // Who asks now is told of it.
            let state = proxy.ctl_json("state")["clusters"]["cluster-7"].to_string();
            assert!(state.contains(&id), "{state}");
        }
        over.store(true, Ordering::Relaxed);
        for asker in askers {
            assert!(asker.join().unwrap() > 5, "too few answers");
        }
    });
}
