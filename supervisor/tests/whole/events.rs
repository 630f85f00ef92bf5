//! Who watches is told what happens, as it happens; who watches and does not listen holds nobody up.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    process::{Child, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kakehi_ctl::{
    change::Change,
    event::Happening,
    limits,
    order::{Ending, Envelope, Request, Response},
    wire::{self, Decoder},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Backend, Config, OK, Proxy, ask, kakehictl, program, send_signal, wait};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `kakehictl events --json`, and what it has printed.
pub(crate) struct Events {
    child: Child,
    pub(crate) lines: mpsc::Receiver<Value>,
}

impl Events {
    pub(crate) fn of(proxy: &Proxy, arguments: &[&str]) -> Events {
        let mut command = kakehictl();
        command.arg("-s").arg(proxy.socket()).args(["events", "--json"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Events { child, lines: receiver }
    }

    /// The next one, which must be of this kind.
    #[track_caller]
    fn expect(&self, kind: &str) -> Value {
        let event = self.lines.recv_timeout(wait::SOON).unwrap_or_else(|_| panic!("no event, not {kind}"));
        assert_eq!(event["event"], kind, "{event}");
        event
    }

    /// The watch has begun: what is done from now on is told.
    #[track_caller]
    fn begun(&self, proxy: &Proxy) {
        for number in 0.. {
            let id = format!("watched-{number}");
            done(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", &id, "--backup"]));
            if self.lines.recv_timeout(Duration::from_millis(200)).is_ok() {
                return;
            }
            assert!(number < 50, "nothing is told");
        }
    }

    /// It ends by itself; its exit code.
    #[track_caller]
    fn ended(mut self) -> Option<i32> {
        let child = &mut self.child;
        wait::within(wait::SOON, "the end of the events", || child.try_wait().unwrap()).code()
    }
}

#[test]
fn deaths_changes_refusals_and_the_end_are_told_as_they_happen() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let events = Events::of(&proxy, &[]);
    events.begun(&proxy);
    let only_workers = Events::of(&proxy, &["--topic", "workers", "--topic", "operations"]);
    wait::until("the second watch", || {
        send_signal(proxy.workers()[0], Signal::SIGKILL);
        let died = events.expect("worker_died");
        assert!(died["reason"].as_str().unwrap().contains("SIGKILL"), "{died}");
        let replaced = events.expect("worker_replaced");
        assert_eq!(replaced["worker"], died["worker"]);
        only_workers.lines.recv_timeout(Duration::from_millis(200)).is_ok()
    });
    while only_workers.lines.recv_timeout(Duration::from_millis(200)).is_ok() {}
    let generation = proxy.ctl_json("status")["generation"].as_u64().unwrap();
    done(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", "told", "--backup"]));
    let changed = events.expect("changed");
    assert_eq!(changed["generation"].as_u64(), Some(generation + 1));
    assert!(
        changed["changes"].to_string().contains("+ backend told") && changed["time_ms"].is_u64(),
        "{changed}"
    );
    assert!(changed["by"].as_str().unwrap().starts_with("uid "), "{changed}");
    // A dry run is nothing that happens, and what is refused changes nothing.
    assert!(proxy.ctl(&["reload", "--dry-run"]).status.success());
    assert_eq!(proxy.ctl(&["backend", "remove", "all", "nobody"]).status.code(), Some(1));
    assert!(events.expect("refused")["reason"].as_str().unwrap().contains("no backend `nobody`"));
    let file = proxy.folder().join("kakehi.toml");
    let right = fs::read_to_string(&file).unwrap();
    fs::write(&file, "nonsense").unwrap();
    send_signal(proxy.supervisor(), Signal::SIGHUP);
    assert_eq!(events.expect("refused")["by"], "SIGHUP");
    fs::write(&file, right).unwrap();
    done(&proxy.ctl(&["workers", "scale", "3"]));
    let step = events.expect("step");
    assert!(step["operation"] == "scale" && step["done"] == 1 && step["total"] == 1, "{step}");
    assert_eq!(only_workers.expect("step"), step, "and nothing else");
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    assert_eq!(events.ended(), Some(0));
    assert_eq!(only_workers.ended(), Some(0));
}

#[test]
fn a_save_that_fails_and_one_that_succeeds_again_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (place, away) = (folder.path().join("states"), folder.path().join("away"));
    fs::create_dir(&place).unwrap();
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend)
        .root(&format!("saved_state = \"{}\"", place.join("state.json").display()))
        .root("automatic_state_save = true")
        .start();
    let events = Events::of(&proxy, &["--topic", "saves", "--topic", "changes"]);
    events.begun(&proxy);
    while events.lines.recv_timeout(Duration::from_millis(200)).is_ok() {}
    fs::rename(&place, &away).unwrap();
    done(&proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--id", "unsaved", "--backup"]));
    events.expect("changed");
    assert!(events.expect("save_failed")["reason"].as_str().unwrap().contains("state.json"));
    fs::rename(&away, &place).unwrap();
    events.expect("saved_again");
}

/// A program at this place, as a whole at once.
fn put(path: &Path) {
    let new = path.with_extension("new");
    fs::copy(program(), &new).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, path).unwrap();
}

#[test]
fn what_takes_longer_shows_its_steps_unless_nobody_wants_to_see_them() {
    let backend = Backend::respond(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kakehi");
    put(&path);
    let proxy = Config::to(&backend).root("worker_count = 2").program(&path).start();
    let steps = done(&proxy.ctl(&["workers", "upgrade"]));
    assert_eq!(steps, "upgrade 1/2: worker 0 upgraded\nupgrade 2/2: worker 1 upgraded\n");
    assert_eq!(done(&proxy.ctl(&["workers", "upgrade", "0", "--quiet"])), "");
    assert_eq!(done(&proxy.ctl(&["workers", "upgrade", "0", "--json"])), "");
    assert_eq!(done(&proxy.ctl(&["workers", "scale", "3"])), "scale 1/1: worker 2 added\n");
    assert_eq!(done(&proxy.ctl(&["workers", "scale", "2"])), "scale 1/1: worker 2 removed\n");
    let events = Events::of(&proxy, &[]);
    events.begun(&proxy);
    put(&path);
    // Over the change of the program, on the connection that stays open.
    let steps = done(&proxy.ctl(&["upgrade"]));
    let lines: Vec<&str> = steps.lines().collect();
    assert_eq!(lines.len(), 6, "{steps}");
    assert!(
        lines[0].ends_with("is tried") && lines[3].ends_with("takes the place of this program"),
        "{steps}"
    );
    assert_eq!(&lines[4..], ["upgrade 1/2: worker 0 upgraded", "upgrade 2/2: worker 1 upgraded"]);
    ask(&mut proxy.client());
    // Who watches goes on with the program that has come.
    wait::until("events of the new program", || {
        done(&proxy.ctl(&["listener", "patch", &proxy.address().to_string(), "via=false"]));
        done(&proxy.ctl(&["listener", "patch", &proxy.address().to_string(), "via=true"]));
        events.lines.try_iter().any(|event| event["event"] == "changed")
    });
}

/// A client of the command socket.
struct Raw {
    stream: UnixStream,
    decoder: Decoder,
}

impl Raw {
    fn new(proxy: &Proxy) -> Raw {
        let stream = UnixStream::connect(proxy.socket()).unwrap();
        stream.set_read_timeout(Some(wait::SOON)).unwrap();
        Raw { stream, decoder: Decoder::new(limits::MAX_FRAME) }
    }

    fn send(&mut self, id: u64, request: Request) {
        let envelope = Envelope::new(id, request);
        wire::write_message(&mut self.stream, &envelope, limits::MAX_REQUEST_FRAME).unwrap();
    }

    #[track_caller]
    fn next(&mut self) -> Envelope<Response> {
        wire::read_message(&mut self.stream, &mut self.decoder).unwrap().expect("a message")
    }

    fn watch(proxy: &Proxy) -> Raw {
        let mut raw = Raw::new(proxy);
        raw.send(7, Request::Watch { topics: Vec::new() });
        assert_eq!(raw.next(), Envelope::new(7, Response::Watching));
        raw
    }
}

#[test]
fn who_watches_and_does_not_listen_holds_nobody_up_and_hears_how_much_it_missed() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).start();
    let mut deaf = Raw::watch(&proxy);
    let mut other = Raw::new(&proxy);
    let refused = || Request::Apply { changes: vec![Change::RemoveCluster { name: "nobody".repeat(50) }] };
    for _ in 0..3_000 {
        let asked = Instant::now();
        other.send(1, refused());
        assert!(matches!(other.next().body, Response::Refused { .. }));
        assert!(asked.elapsed() < Duration::from_secs(2));
    }
    // What was kept comes, and with the next event how many did not.
    let mut heard = 0;
    deaf.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    while let Ok(Some(Envelope { id: 7, body: Response::Event(event), .. })) =
        wire::read_message(&mut deaf.stream, &mut deaf.decoder)
    {
        assert!(event.lost == 0 && matches!(event.what, Happening::Refused { .. }), "{event:?}");
        heard += 1;
    }
    deaf.stream.set_read_timeout(Some(wait::SOON)).unwrap();
    other.send(1, refused());
    match deaf.next().body {
        Response::Event(event) => assert_eq!(heard + event.lost, 3_000),
        other => panic!("{other:?}"),
    }
    // Other questions may be asked meanwhile; the last frame says that it was the last.
    deaf.send(8, Request::Workers);
    assert!(matches!(deaf.next(), Envelope { id: 8, body: Response::Workers(_), .. }));
    proxy.terminate();
    assert!(matches!(
        deaf.next(),
        Envelope { id: 7, body: Response::Ended { reason: Ending::Stopped, .. }, .. }
    ));
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn watchers_have_a_part_of_the_places_and_others_are_served_beside_them() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    let watchers: Vec<Raw> = (0..16).map(|_| Raw::watch(&proxy)).collect();
    let mut one_more = Raw::new(&proxy);
    one_more.send(7, Request::Watch { topics: Vec::new() });
    assert!(matches!(one_more.next(), Envelope { id: 7, body: Response::Refused { .. }, .. }));
    one_more.send(8, Request::Workers);
    assert!(matches!(one_more.next(), Envelope { id: 8, body: Response::Workers(_), .. }));
    // Steps are a courtesy: what was asked is done without them.
    assert_eq!(done(&proxy.ctl(&["workers", "upgrade"])), "");
    drop(watchers);
    wait::until("a place", || {
        done(&proxy.ctl(&["workers", "upgrade"])) == "upgrade 1/1: worker 0 upgraded\n"
    });
}
