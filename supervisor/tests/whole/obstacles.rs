//! What stands in the way of an upgrade or of a takeover: a disk that is slow, no room for descriptors.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use kakehi_ctl::{
    limits,
    order::{Envelope, Hello, Request, Response, WORKING},
    wire::{self, Decoder},
};

use crate::harness::{Backend, Client, Config, GET, OK, Process, Proxy, SlowDisk, ask, program, wait};

/// So long one step of a save takes on the slow disk: longer than all of an upgrade before it waits for the save.
const HELD_UP: Duration = Duration::from_secs(6);

fn pids(proxy: &Proxy) -> Vec<u64> {
    let workers = proxy.ctl_json("workers");
    workers.as_array().unwrap().iter().map(|worker| worker["pid"].as_u64().unwrap()).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// A proxy with a client, whose last change is being saved on a disk that takes its time.
struct Saving {
    proxy: Proxy,
    idle: Client,
    disk: SlowDisk,
    begun: Instant,
    saved: PathBuf,
    _folder: tempfile::TempDir,
    _backend: Backend,
}

impl Saving {
    fn begin(keys: &[&str], time: Duration) -> Saving {
        let (backend, folder) = (Backend::respond(OK), tempfile::tempdir().unwrap());
        let saved = folder.path().join("state.json");
        let path = format!("saved_state = \"{}\"", saved.display());
        let config = Config::to(&backend).root(&path).root("automatic_state_save = true");
        let proxy = keys.iter().fold(config, |config, key| config.root(key)).start();
        let mut idle = proxy.client();
        ask(&mut idle);
        let disk = SlowDisk::under(proxy.supervisor(), "rename", None, time);
        let begun = Instant::now();
        let output = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--backup", "--id", "last"]);
        assert!(output.status.success(), "{}", said(&output));
        let it = Saving { proxy, idle, disk, begun, saved, _folder: folder, _backend: backend };
        assert!(!it.is_done(), "the disk is not slow");
        it
    }

    fn is_done(&self) -> bool {
        fs::read_to_string(&self.saved).is_ok_and(|text| text.contains("last"))
    }
}

#[test]
fn an_upgrade_waits_until_the_state_is_saved() {
    if !SlowDisk::can_be_had() {
        return;
    }
    let mut it = Saving::begin(&[], HELD_UP);
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| it.proxy.ctl(&["upgrade"]));
        let takes_its_place = || it.proxy.log().contains("takes the place of this program");
        wait::within(2 * HELD_UP, "the other program", || takes_its_place().then_some(()));
        // Nothing that was begun has ended with the threads of the one before.
        assert!(it.is_done() && it.begun.elapsed() >= HELD_UP, "after {:?}", it.begun.elapsed());
        let output = upgrade.join().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    });
    drop(it.disk);
    ask(&mut it.idle);
}

#[test]
fn an_upgrade_for_which_the_disk_is_too_slow_is_refused_and_nothing_changes() {
    if !SlowDisk::can_be_had() {
        return;
    }
    let mut it = Saving::begin(&["worker_timeout = 1"], 2 * HELD_UP);
    let before = pids(&it.proxy);
    let output = it.proxy.ctl(&["upgrade"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("the state that is being saved"), "{}", said(&output));
    assert_eq!(pids(&it.proxy), before);
    ask(&mut it.idle);
    let Saving { proxy, mut idle, disk, saved, _folder, _backend, .. } = it;
    drop(disk);
    wait::until("the save", || fs::read_to_string(&saved).is_ok_and(|text| text.contains("last")));
    let output = proxy.ctl(&["upgrade"]);
    assert!(output.status.success(), "{}", said(&output));
    ask(&mut idle);
}

#[test]
fn who_asked_for_an_upgrade_hears_signs_of_life_from_the_new_program_too() {
    if !SlowDisk::can_be_had() {
        return;
    }
    let backend = Backend::respond(OK);
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let proxy = Config::to(&backend).root(&format!("pid_file_path = \"{}\"", pid_file.display())).start();
    // The new program writes it before it goes on.
    let disk = SlowDisk::under(proxy.supervisor(), "rename", None, HELD_UP / 2);
    let mut stream = UnixStream::connect(proxy.socket()).unwrap();
    stream.set_read_timeout(Some(wait::SOON)).unwrap();
    let mut decoder = Decoder::new(limits::MAX_FRAME);
    for (id, request) in [(1, Request::Hello(Hello::new(&[WORKING]))), (2, Request::Upgrade)] {
        wire::write_message(&mut stream, &Envelope::new(id, request), limits::MAX_REQUEST_FRAME).unwrap();
    }
    let mut signs = 0;
    loop {
        match wire::read_message::<Response>(&mut stream, &mut decoder).unwrap().unwrap().body {
            Response::Hello(_) => (),
            // Those of the program before do not count.
            Response::Working if proxy.log().contains("takes the place of this program") => signs += 1,
            Response::Working => (),
            Response::Outcomes(_) => break,
            other => panic!("{other:?}"),
        }
    }
    drop(disk);
    assert!((3..=20).contains(&signs), "{signs}");
}

#[test]
fn a_supervisor_without_room_for_descriptors_takes_nobody_over_and_the_next_one_does() {
    let backend = Backend::respond(OK);
    let config =
        (0..40).fold(Config::to(&backend).root("worker_count = 2"), |config, _| config.another_listener());
    let mut proxy = config.start();
    let (mut idle, before) = (proxy.client(), pids(&proxy));
    ask(&mut idle);
    proxy.kill_supervisor();
    let log = proxy.folder().join("cramped");
    let mut cramped = Command::new("sh")
        .args(["-c", "ulimit -n 60 && exec \"$0\" \"$@\""])
        .arg(program())
        .args(["start", "-c"])
        .arg(proxy.folder().join("kakehi.toml"))
        .stdout(File::create(&log).unwrap())
        .stderr(File::options().append(true).open(&log).unwrap())
        .spawn()
        .unwrap();
    let status = wait::within(wait::SOON, "its end", || cramped.try_wait().unwrap());
    let words = fs::read_to_string(&log).unwrap();
    assert!(!status.success() && words.contains("raise the limit of open files"), "{status}: {words}");
    // The workers have noticed nothing.
    assert!(before.iter().all(|pid| Process(*pid as u32).runs()), "{words}");
    ask(&mut idle);
    ask(&mut proxy.client());
    proxy.start_again();
    assert_eq!(pids(&proxy), before);
    ask(&mut idle);
    // The last listener, to which nothing is routed.
    let mut other = Client::connect(proxy.address_of(40));
    other.send(GET);
    assert_eq!(other.response().status(), 404);
}
