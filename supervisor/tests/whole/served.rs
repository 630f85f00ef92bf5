//! Whatever a supervisor does, it serves within 100 ms: questions over a connection that is open, the watchdog of the init system, the
//! death of a worker and whoever watches.
//!
//! Each operation here is made to take long: a worker, or a disk, stands still. Meanwhile it is asked again and again. A machine that
//! is busy makes everybody late, so it is measured how late a thread is that only sleeps; that time is not held against the
//! supervisor. Few answers may be late all the same, and none by as much as anything that blocks takes.

use std::{
    fs,
    net::SocketAddr,
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kakehi_ctl::{
    change::Change,
    event::{Happening, Topic},
    limits,
    order::{Envelope, Phase, Request, Response},
    wire::{self, Decoder},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    harness::{Backend, Config, OK, Pki, Process, Proxy, SlowDisk, free_port, kakehictl, send_signal, wait},
    hostile_worker::listens,
};

/// What is promised.
const WITHIN: Duration = Duration::from_millis(100);
/// So many answers of an operation may be later.
const LATE: usize = 1;
/// None may be so late.
const BLOCKED: Duration = Duration::from_millis(250);
/// How often it is asked, and how often the machine is looked at.
const PACE: Duration = Duration::from_millis(5);
/// The watchdog is fed twice as often as it wants.
const WATCHDOG: Duration = Duration::from_millis(100);
/// So long an operation is held up.
const HELD_UP: Duration = Duration::from_millis(1_500);

/// Something that took time.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Instant,
    took: Duration,
}

/// What is measured while an operation runs.
struct Measured {
    answers: Vec<Span>,
    /// Phases that were told.
    starting: bool,
    /// Between the last answer of a program and the first of the next.
    replaced: Vec<Span>,
    feeds: Vec<Span>,
    /// How late a thread was that only sleeps.
    machine: Vec<Span>,
}

impl Measured {
    /// What of a time is not owed to the machine.
    fn own(&self, span: &Span) -> Duration {
        let to = span.from + span.took;
        let late = self.machine.iter().filter(|it| it.from < to && it.from + it.took > span.from);
        span.took.saturating_sub(late.map(|it| it.took).sum())
    }

    #[track_caller]
    fn judge(&self, what: &str, spans: &[Span], at_least: usize) {
        let mut own: Vec<Duration> = spans.iter().map(|span| self.own(span)).collect();
        own.sort();
        assert!(own.len() >= at_least, "{what}: only {} were measured", own.len());
        let late = own.iter().filter(|it| **it > WITHIN).count();
        let (median, worst) = (own[own.len() / 2], own[own.len() - 1]);
        let told = format!("{what}: {} measured, median {median:?}, worst {worst:?}, {late} late", own.len());
        eprintln!("{told}");
        assert!(late <= LATE && worst < BLOCKED, "{told}");
    }

    /// Everybody was served while it went on.
    #[track_caller]
    fn prompt(&self, at_least: usize) {
        self.judge("answers", &self.answers, at_least);
        self.judge("feeds of the watchdog", &self.feeds, 5);
    }
}

/// Asks one question and hears its answer; `None` when the other side is gone.
fn ask(stream: &mut UnixStream, decoder: &mut Decoder, request: Request) -> Option<Response> {
    let question = Envelope::new(1, request);
    wire::write_message(&mut *stream, &question, limits::MAX_REQUEST_FRAME).ok()?;
    let answer: Option<Envelope<Response>> = wire::read_message(&mut *stream, decoder).ok()?;
    Some(answer?.body)
}

/// A scene with an init system that listens.
struct Scene {
    proxy: Proxy,
    notify: UnixDatagram,
    _folder: TempDir,
    _backend: Backend,
}

impl Scene {
    fn new(keys: &[&str]) -> Scene {
        let backend = Backend::respond(OK);
        let config = Config::to(&backend);
        Scene::of(keys.iter().fold(config, |config, key| config.root(key)), backend)
    }

    fn of(config: Config, backend: Backend) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        // While it is being built nobody would read what the init system is told.
        kakehictl();
        let proxy = config
            .root("worker_count = 2")
            .root("worker_liveness = 0")
            .root("graceful_timeout = 1")
            .environment("NOTIFY_SOCKET", path.to_str().unwrap())
            .environment("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
            .start();
        wait::until("the end of the start", || proxy.ctl_json("status")["phase"] == "running");
        Scene { proxy, notify, _folder: folder, _backend: backend }
    }

    /// Measures while `operation` goes on.
    fn measure<T>(&mut self, operation: impl FnOnce(&mut Proxy) -> T) -> (T, Measured) {
        let over = Arc::new(AtomicBool::new(false));
        let machine = repeat(&over, |spans| {
            let from = Instant::now();
            wait::pace(PACE);
            let late = from.elapsed().saturating_sub(PACE);
            if late > PACE {
                spans.push(Span { from, took: late });
            }
        });
        let asker = thread::spawn({
            let (over, socket) = (Arc::clone(&over), self.proxy.socket());
            move || ask_again_and_again(&over, &socket)
        });
        let notify = self.notify.try_clone().unwrap();
        notify.set_nonblocking(true).unwrap();
        let mut bytes = [0; 1_024];
        // What was told before.
        while notify.recv(&mut bytes).is_ok() {}
        notify.set_nonblocking(false).unwrap();
        notify.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut before: Option<Instant> = None;
        let feeds = repeat(&over, move |spans| {
            let Ok(length) = notify.recv(&mut bytes) else { return };
            if bytes[..length].starts_with(b"WATCHDOG=1") {
                let now = Instant::now();
                if let Some(from) = before.replace(now) {
                    spans.push(Span { from, took: now.duration_since(from).saturating_sub(WATCHDOG / 2) });
                }
            }
        });
        let done = operation(&mut self.proxy);
        over.store(true, Ordering::Relaxed);
        let (answers, replaced, starting) = asker.join().unwrap();
        let (feeds, machine) = (feeds.join().unwrap(), machine.join().unwrap());
        (done, Measured { answers, replaced, starting, feeds, machine })
    }

    fn pids(&self) -> Vec<Process> {
        let workers = self.proxy.ctl_json("workers");
        workers.as_array().unwrap().iter().map(|it| Process(it["pid"].as_u64().unwrap() as u32)).collect()
    }
}

fn repeat(
    over: &Arc<AtomicBool>,
    mut step: impl FnMut(&mut Vec<Span>) + Send + 'static,
) -> JoinHandle<Vec<Span>> {
    let over = Arc::clone(over);
    thread::spawn(move || {
        let mut spans = Vec::new();
        while !over.load(Ordering::Relaxed) {
            step(&mut spans);
        }
        spans
    })
}

/// How long answers took; between programs, how long there were none; whether one said that it starts.
fn ask_again_and_again(over: &AtomicBool, socket: &Path) -> (Vec<Span>, Vec<Span>, bool) {
    let (mut answers, mut replaced, mut starting) = (Vec::new(), Vec::new(), false);
    let mut connection = None;
    let mut lost: Option<Instant> = None;
    while !over.load(Ordering::Relaxed) {
        let Some((stream, decoder)) = &mut connection else {
            connection =
                UnixStream::connect(socket).ok().map(|stream| (stream, Decoder::new(limits::MAX_FRAME)));
            wait::pace(Duration::from_millis(1));
            continue;
        };
        let from = Instant::now();
        match ask(stream, decoder, Request::Status) {
            Some(Response::Status(status)) => {
                starting |= status.phase == Phase::Starting;
                let span = |from: Instant| Span { from, took: from.elapsed() };
                match lost.take() {
                    Some(lost) => replaced.push(span(lost)),
                    None => answers.push(span(from)),
                }
            }
            // It was asked in the moment in which another program takes its place.
            Some(Response::Refused { reason }) if reason.contains("is being replaced") => {
                connection = None;
                lost.get_or_insert(from);
            }
            Some(other) => panic!("{other:?}"),
            None => {
                connection = None;
                lost.get_or_insert(from);
            }
        }
        wait::pace(PACE);
    }
    (answers, replaced, starting)
}

/// Kills a worker; how long it took until somebody who watches was told. Others may do so as well.
fn killed(proxy: &Proxy, worker: Process, id: u32) -> Span {
    let mut stream = UnixStream::connect(proxy.socket()).unwrap();
    stream.set_read_timeout(Some(wait::SOON)).unwrap();
    let mut decoder = Decoder::new(limits::MAX_FRAME);
    let watching = ask(&mut stream, &mut decoder, Request::Watch { topics: vec![Topic::Workers] });
    assert_eq!(watching, Some(Response::Watching));
    let from = Instant::now();
    send_signal(worker, Signal::SIGKILL);
    loop {
        let told: Option<Envelope<Response>> = wire::read_message(&mut stream, &mut decoder).unwrap();
        if let Some(Response::Event(event)) = told.map(|it| it.body)
            && matches!(event.what, Happening::WorkerDied { worker, .. } if worker == id)
        {
            return Span { from, took: from.elapsed() };
        }
    }
}

/// Runs `kakehictl` beside the test.
fn beside(proxy: &Proxy, arguments: &[&str]) -> JoinHandle<Output> {
    let mut command = kakehictl();
    command.arg("-s").arg(proxy.socket()).args(arguments);
    thread::spawn(move || command.output().unwrap())
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// Stops the process that comes beside `present`, before it is ready.
pub(crate) fn stop_what_comes(proxy: &Proxy, present: &[Process]) -> Process {
    let comes = wait::within(wait::SOON, "a new process", || {
        // Not before it has become the worker: until then its parent waits for it.
        let is_worker = |process: &Process| {
            let line = fs::read(format!("/proc/{}/cmdline", process.0)).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"worker")
        };
        proxy.workers().into_iter().find(|it| !present.contains(it) && is_worker(it))
    });
    send_signal(comes, Signal::SIGSTOP);
    comes
}

#[test]
fn everybody_is_served_within_100_ms_while_a_change_waits_for_a_worker_that_stands_still() {
    let mut scene = Scene::new(&["worker_timeout = 2"]);
    let workers = scene.pids();
    let (death, measured) = scene.measure(|proxy| {
        send_signal(workers[0], Signal::SIGSTOP);
        let change = beside(proxy, &["backend", "add", "all", "127.0.0.1:9", "--id", "more", "--backup"]);
        wait::pace(HELD_UP / 3);
        let death = killed(proxy, workers[1], 1);
        assert!(!change.is_finished());
        succeeded(&change.join().unwrap());
        send_signal(workers[0], Signal::SIGCONT);
        death
    });
    measured.prompt(50);
    measured.judge("a death", &[death], 1);
}

#[test]
fn everybody_is_served_within_100_ms_while_an_upgrade_or_a_scaling_waits_for_a_process() {
    for verb in [["workers", "upgrade"].as_slice(), &["workers", "scale", "3"]] {
        let mut scene = Scene::new(&[]);
        let workers = scene.pids();
        let (death, measured) = scene.measure(|proxy| {
            let operation = beside(proxy, verb);
            let comes = stop_what_comes(proxy, &workers);
            let death = killed(proxy, workers[1], 1);
            wait::pace(HELD_UP);
            assert!(!operation.is_finished());
            send_signal(comes, Signal::SIGCONT);
            let output = operation.join().unwrap();
            // Of the worker that was killed it may have come too early.
            assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
            death
        });
        measured.prompt(50);
        measured.judge("a death", &[death], 1);
    }
}

#[test]
fn a_stop_ends_an_operation_within_100_ms() {
    let mut scene = Scene::new(&["worker_timeout = 600"]);
    let workers = scene.pids();
    let (ended, measured) = scene.measure(|proxy| {
        send_signal(workers[0], Signal::SIGSTOP);
        let mut stream = UnixStream::connect(proxy.socket()).unwrap();
        stream.set_read_timeout(Some(wait::SOON)).unwrap();
        let changes = vec![Change::RemoveCluster { name: "all".to_owned() }];
        let change = Request::Apply { changes };
        wire::write_message(&mut stream, &Envelope::new(1, change), limits::MAX_REQUEST_FRAME).unwrap();
        wait::pace(HELD_UP / 3);
        let from = Instant::now();
        proxy.terminate();
        let mut decoder = Decoder::new(limits::MAX_FRAME);
        let told: Option<Envelope<Response>> = wire::read_message(&mut stream, &mut decoder).unwrap();
        let ended = Span { from, took: from.elapsed() };
        let told = told.unwrap().body;
        assert!(
            matches!(&told, Response::Refused { reason } if reason.contains("is stopping; nothing was changed")),
            "{told:?}"
        );
        proxy.wait(Duration::from_secs(10));
        ended
    });
    measured.judge("the end of an operation", &[ended], 1);
    measured.prompt(50);
}

#[test]
fn everybody_is_served_within_100_ms_while_the_program_is_replaced() {
    let mut scene = Scene::new(&[]);
    let workers = scene.pids();
    let (death, measured) = scene.measure(|proxy| {
        let operation = beside(proxy, &["upgrade"]);
        // One of the new program that is tried.
        let comes = stop_what_comes(proxy, &workers);
        let death = killed(proxy, workers[1], 1);
        wait::pace(HELD_UP);
        assert!(!operation.is_finished());
        send_signal(comes, Signal::SIGCONT);
        succeeded(&operation.join().unwrap());
        death
    });
    measured.prompt(50);
    measured.judge("a death", &[death], 1);
    // From the last question to the one program, to the first answer of the other.
    measured.judge("an answer between two programs", &measured.replaced, 1);
}

#[test]
fn everybody_is_served_within_100_ms_while_a_start_waits_for_a_worker_that_stands_still() {
    let mut scene = Scene::new(&[]);
    let worker = scene.pids()[0];
    scene.proxy.kill_supervisor();
    send_signal(worker, Signal::SIGSTOP);
    let ((), measured) = scene.measure(Proxy::start_again);
    assert!(measured.starting, "nobody was told that it starts");
    measured.prompt(500);
    scene.proxy.logged("cannot be taken over");
    wait::until("the end of the worker that stands still", || !worker.runs());
}

#[test]
fn a_stop_ends_a_start_that_waits_and_leaves_no_worker() {
    let mut scene = Scene::new(&[]);
    let workers = scene.pids();
    scene.proxy.kill_supervisor();
    send_signal(workers[0], Signal::SIGSTOP);
    scene.proxy.launch_again();
    let status = || {
        let asked =
            kakehictl().arg("-s").arg(scene.proxy.socket()).args(["status", "--json"]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&asked.stdout).ok()
    };
    wait::until("an answer", || status().is_some_and(|it| it["phase"] == "starting"));
    let mut bytes = [0; 1_024];
    let asked = Instant::now();
    scene.proxy.terminate();
    scene.notify.set_read_timeout(Some(wait::SOON)).unwrap();
    while !scene.notify.recv(&mut bytes).is_ok_and(|length| bytes[..length].starts_with(b"STOPPING=1")) {}
    assert!(asked.elapsed() < BLOCKED, "it was heard after {:?}", asked.elapsed());
    // A second one for what stands still.
    assert!(scene.proxy.wait(Duration::from_secs(4)).code().is_some());
    assert!(!workers.iter().any(|worker| worker.runs()), "{}", scene.proxy.log());
}

#[test]
fn everybody_is_served_within_100_ms_while_a_disk_stands_still_also_at_the_last_save() {
    if !SlowDisk::can_be_had() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("state.json");
    let mut scene =
        Scene::new(&[&format!("saved_state = \"{}\"", saved.display()), "automatic_state_save = true"]);
    let worker = scene.pids()[1];
    let (took, measured) = scene.measure(|proxy| {
        let _disk = SlowDisk::under(proxy.supervisor(), "rename,fsync", None, HELD_UP);
        let asked = Instant::now();
        // The process that takes its place is written down.
        killed(proxy, worker, 1);
        succeeded(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", "more", "--backup"]));
        wait::pace(HELD_UP / 3);
        proxy.terminate();
        proxy.wait(Duration::from_secs(10));
        asked.elapsed()
    });
    assert!(took > HELD_UP, "the disk was not slow: {took:?}");
    assert!(fs::read_to_string(saved).unwrap().contains("more"));
    measured.prompt(50);
}

#[test]
fn a_change_waits_for_its_record_no_longer_than_for_a_worker_and_the_record_comes_later() {
    if !SlowDisk::can_be_had() {
        return;
    }
    let mut scene = Scene::new(&["worker_timeout = 1"]);
    let (disk, measured) = scene.measure(|proxy| {
        let record = proxy.folder().join("kakehi.sock.state");
        let disk = SlowDisk::under(proxy.supervisor(), "write", Some(&record), 4 * HELD_UP);
        let asked = Instant::now();
        for id in ["one", "two"] {
            succeeded(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", id, "--backup"]));
        }
        let took = asked.elapsed();
        assert!(took > Duration::from_secs(1), "the disk was not slow: {took:?}");
        assert!(took < 3 * HELD_UP, "{took:?}");
        let failed = proxy.ctl_json("status")["record_failed"].to_string();
        assert!(failed.contains("within `worker_timeout`"), "{failed}");
        disk
    });
    measured.prompt(50);
    drop(disk);
    wait::until("the record", || scene.proxy.ctl_json("status")["record_failed"].is_null());
    scene.proxy.kill_supervisor();
    scene.proxy.start_again();
    let backends = scene.proxy.ctl_json("state")["clusters"]["all"]["backends"].to_string();
    assert!(backends.contains("one") && backends.contains("two"), "{backends}");
}

#[test]
fn everybody_is_served_within_100_ms_while_a_worker_waits_for_a_socket_until_it_is_written_down() {
    if !SlowDisk::can_be_had() {
        return;
    }
    let mut scene = Scene::new(&[]);
    let worker = scene.pids()[0];
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (took, measured) = scene.measure(|proxy| {
        let sockets = proxy.folder().join("kakehi.sock.sockets");
        let is_known = || fs::read_to_string(&sockets).unwrap().contains(&address.to_string());
        let _disk = SlowDisk::under(proxy.supervisor(), "rename", None, HELD_UP);
        let asked = Instant::now();
        let change = beside(proxy, &["listener", "add", &address.to_string(), "protocol=http"]);
        let mut took = None;
        while !change.is_finished() {
            if took.is_none() && listens(worker, address).is_some() {
                assert!(is_known(), "a worker has a socket that nobody knows");
                took = Some(asked.elapsed());
            }
            wait::pace(PACE);
        }
        succeeded(&change.join().unwrap());
        assert!(listens(worker, address).is_some() && is_known());
        took.unwrap_or(asked.elapsed())
    });
    assert!(took > HELD_UP, "the disk was not slow: {took:?}");
    measured.prompt(50);
}

#[test]
fn everybody_is_served_within_100_ms_while_a_certificate_cannot_be_read() {
    if !SlowDisk::can_be_had() {
        return;
    }
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let [first, comes] = [pki.issue(&["a"]), pki.issue(&["comes.test"])];
    let config = Config::https_to(&backend, &first).root("certificate_watch = false");
    let mut scene = Scene::of(config, backend);
    let (took, measured) = scene.measure(|proxy| {
        let disk = SlowDisk::under(proxy.supervisor(), "openat", Some(&first.certificate), HELD_UP);
        // It is another file than before.
        fs::copy(&comes.key, &first.key).unwrap();
        fs::copy(&comes.certificate, &first.certificate).unwrap();
        let asked = Instant::now();
        succeeded(&proxy.ctl(&["reload"]));
        drop(disk);
        asked.elapsed()
    });
    assert!(took > HELD_UP, "the disk was not slow: {took:?}");
    measured.prompt(50);
    assert_eq!(pki.caller().to("comes.test").connect(scene.proxy.address()).served(), comes.fingerprint());
}
