//! What lies where kakehi has its sockets, in a folder that others may write to: a start goes on or is refused in words, and so does
//! `kakehictl`, each within its time; what is somebody else's stays as it is.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::sys::stat::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::{Backend, Config, Need, OK, Proxy, ask, kakehictl, machine, program, user, wait};

/// What something lies there for: it is kept as long as this lives.
type Keep = Vec<Socket>;
type Put = fn(&Path) -> Keep;

fn bound(path: &Path, kind: Type, backlog: i32) -> Socket {
    let socket = Socket::new(Domain::UNIX, kind, None).unwrap();
    socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
    socket.listen(backlog).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn regular(path: &Path) -> Keep {
    fs::write(path, "precious").unwrap();
    Vec::new()
}

fn fifo(path: &Path) -> Keep {
    nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o666)).unwrap();
    Vec::new()
}

fn folder(path: &Path) -> Keep {
    fs::create_dir(path).unwrap();
    Vec::new()
}

fn dangling_link(path: &Path) -> Keep {
    symlink("/nowhere/kakehi.sock", path).unwrap();
    Vec::new()
}

/// A link to a socket behind which somebody listens.
fn link(path: &Path) -> Keep {
    let target = path.with_file_name("target");
    symlink(&target, path).unwrap();
    vec![bound(&target, Type::STREAM, 8)]
}

/// Nobody listens behind it any more.
fn stale(path: &Path) -> Keep {
    drop(bound(path, Type::STREAM, 1));
    Vec::new()
}

/// Takes connections, as the kernel does for it, and never says a word.
fn silent(path: &Path) -> Keep {
    vec![bound(path, Type::STREAM, 64)]
}

/// Takes no connection: its queue is full.
fn full(path: &Path) -> Keep {
    let mut kept = vec![bound(path, Type::STREAM, 0)];
    let address = SockAddr::unix(path).unwrap();
    wait::until("a full queue", || {
        let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        let connected = client.connect(&address);
        kept.push(client);
        connected.is_err()
    });
    kept
}

fn sequenced(path: &Path) -> Keep {
    vec![bound(path, Type::SEQPACKET, 64)]
}

/// Of another user, who keeps whoever connects waiting.
fn foreign(path: &Path) -> Keep {
    let kept = sequenced(path);
    chown(path, Some(user::NOBODY), None).unwrap();
    kept
}

fn foreign_stream(path: &Path) -> Keep {
    let kept = silent(path);
    chown(path, Some(user::NOBODY), None).unwrap();
    kept
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// What is known of a file without following it.
fn identity(path: &Path) -> (u64, u32, u32) {
    let about = fs::symlink_metadata(path).unwrap();
    (about.ino(), about.mode(), about.uid())
}

/// The end of a program that must not take longer than that.
#[track_caller]
fn ended(mut child: Child, within: Duration, what: &str) -> Output {
    let deadline = Instant::now() + within;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{what}: not after {within:?}");
        }
        wait::pace(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// A folder as `/tmp` is, and the path of the command socket in it.
fn shared_folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let socket = folder.path().join("kakehi.sock");
    (folder, socket)
}

#[test]
fn a_start_is_refused_in_words_where_its_command_socket_cannot_be() {
    let mut cases: Vec<(&str, Put, &str)> = vec![
        ("a file", regular, "exists and is not a socket"),
        ("a FIFO", fifo, "exists and is not a socket"),
        ("a folder", folder, "exists and is not a socket"),
        ("a link to nothing", dangling_link, "exists and is not a socket"),
        ("a link to a socket", link, "exists and is not a socket"),
        ("a socket that never answers", silent, "already runs there"),
        ("a socket whose queue is full", full, "already runs there"),
        ("a socket of another kind", sequenced, "cannot be opened"),
    ];
    if machine::has(Need::Root) {
        cases.push(("somebody else's socket", foreign_stream, "belongs to uid 65534"));
        cases.push(("somebody else's of another kind", foreign, "belongs to uid 65534"));
    }
    for (what, put, expected) in cases {
        let (folder, socket) = shared_folder();
        let kept = put(&socket);
        let before = identity(&socket);
        let file = folder.path().join("kakehi.toml");
        fs::write(&file, "command_socket = \"kakehi.sock\"\nworker_count = 1\n").unwrap();
        let start = Command::new(program())
            .args(["start", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = ended(start, wait::SOON, what);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {text}");
        assert!(text.contains(expected) && text.contains("kakehi.sock"), "{what}: {text}");
        assert_eq!(identity(&socket), before, "{what}");
        drop(kept);
    }
}

/// A kakehi that starts in a folder where something lies already.
fn start_beside(name: &str, put: Put) -> (tempfile::TempDir, PathBuf, Keep, Backend, Proxy) {
    let (folder, socket) = shared_folder();
    let place = folder.path().join(name);
    let kept = put(&place);
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root(&format!("command_socket = \"{}\"", socket.display())).start();
    (folder, place, kept, backend, proxy)
}

/// It is a whole kakehi, and its supervisor can be followed by another one.
fn serves_and_is_taken_over(proxy: &mut Proxy, what: &str) {
    ask(&mut proxy.client());
    let before = proxy.worker();
    proxy.kill_supervisor();
    let asked = Instant::now();
    proxy.start_again();
    assert!(asked.elapsed() < Duration::from_secs(12), "{what}: after {:?}", asked.elapsed());
    let workers = proxy.ctl_json("workers");
    assert_eq!(workers[0]["pid"], before.0, "{what}: {}", proxy.log());
    ask(&mut proxy.client());
}

#[test]
fn a_dead_command_socket_of_our_own_is_replaced() {
    let (_folder, place, _kept, _backend, mut proxy) = start_beside("kakehi.sock", stale);
    assert!(fs::symlink_metadata(&place).unwrap().file_type().is_socket());
    serves_and_is_taken_over(&mut proxy, "a dead socket");
}

#[test]
fn a_start_goes_on_whatever_lies_where_an_adoption_socket_would() {
    let mut cases: Vec<(&str, Put)> = vec![
        ("a file", regular),
        ("a FIFO", fifo),
        ("a folder", folder),
        ("a link to nothing", dangling_link),
        ("a link to a socket", link),
        ("a socket of another kind", silent),
        ("a socket of another kind whose queue is full", full),
    ];
    if machine::has(Need::Root) {
        cases.push(("somebody else's socket", foreign));
    }
    for (what, put) in cases {
        let (_folder, place, kept, _backend, mut proxy) = start_beside("kakehi.sock.w0.0", put);
        let before = identity(&place);
        serves_and_is_taken_over(&mut proxy, what);
        assert_eq!(identity(&place), before, "{what}");
        if what == "somebody else's socket" {
            assert!(kept[0].accept().is_err(), "it was asked");
            proxy.logged("belongs to uid 65534");
        }
        proxy.terminate();
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0), "{what}: {}", proxy.log());
        assert_eq!(identity(&place), before, "{what}");
    }
}

#[test]
fn an_adoption_socket_that_never_answers_delays_a_start_by_its_time_and_no_more() {
    let asked = Instant::now();
    let (_folder, _place, kept, _backend, proxy) = start_beside("kakehi.sock.w0.0", sequenced);
    assert!(asked.elapsed() < Duration::from_secs(12), "after {:?}", asked.elapsed());
    ask(&mut proxy.client());
    proxy.logged("cannot be taken over");
    drop(kept);
}

#[test]
fn a_dead_adoption_socket_of_our_own_is_cleared_away() {
    let dead: Put = |path| {
        drop(bound(path, Type::SEQPACKET, 1));
        Vec::new()
    };
    let (_folder, place, _kept, _backend, mut proxy) = start_beside("kakehi.sock.w7.0", dead);
    assert!(!place.exists());
    serves_and_is_taken_over(&mut proxy, "a dead socket");
}

#[test]
fn what_lies_where_a_record_would_is_neither_read_nor_written_through() {
    let victim_of: Put = |path| {
        let victim = path.with_file_name("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, path).unwrap();
        Vec::new()
    };
    for name in ["kakehi.sock.state", "kakehi.sock.sockets", "kakehi.sock.w0.0.record"] {
        for (what, put) in [("a FIFO", fifo as Put), ("a link", victim_of), ("a file", regular)] {
            let (folder, place, _kept, _backend, mut proxy) = start_beside(name, put);
            let about = fs::symlink_metadata(&place).unwrap();
            assert!(about.is_file() && about.mode() & 0o777 == 0o600, "{name}, {what}: {about:?}");
            serves_and_is_taken_over(&mut proxy, what);
            if what == "a link" {
                assert_eq!(fs::read_to_string(folder.path().join("victim")).unwrap(), "precious");
            }
        }
    }
}

#[test]
fn kakehictl_says_within_its_time_that_nobody_answers() {
    const VERBS: [&[&str]; 7] = [
        &["status"],
        &["events"],
        &["reload"],
        &["upgrade"],
        &["workers", "upgrade"],
        &["backend", "add", "all", "127.0.0.1:9"],
        &["stop"],
    ];
    let cases: [(&str, Put); 9] = [
        ("a file", regular),
        ("a FIFO", fifo),
        ("a folder", folder),
        ("a link to nothing", dangling_link),
        ("a link to a socket that never answers", link),
        ("a dead socket", stale),
        ("a socket of another kind", sequenced),
        ("a socket that never answers", silent),
        ("a socket whose queue is full", full),
    ];
    for (what, put) in cases {
        let (_folder, socket) = shared_folder();
        let _kept = put(&socket);
        for verb in VERBS {
            let asked = kakehictl()
                .arg("-s")
                .arg(&socket)
                .args(["--timeout", "300"])
                .args(verb)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let output = ended(asked, wait::SOON + wait::SOON, &format!("{what}: {verb:?}"));
            let text = said(&output);
            // What was asked for may be done when somebody reads it.
            assert!(matches!(output.status.code(), Some(3 | 4)), "{what}: {verb:?}: {text}");
            assert!(text.contains("kakehi.sock") && !text.contains("panicked"), "{what}: {verb:?}: {text}");
        }
    }
}

#[test]
fn a_stop_waits_for_ever_only_for_a_kakehi_that_has_begun_to_stop() {
    for put in [silent as Put, full] {
        let (_folder, socket) = shared_folder();
        let _kept = put(&socket);
        let asked = kakehictl()
            .arg("-s")
            .arg(&socket)
            .arg("stop")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = ended(asked, Duration::from_secs(9), "a stop");
        assert!(matches!(output.status.code(), Some(3 | 4)), "{}", said(&output));
    }
    // One that has begun may take longer than what it takes to begin.
    let (backend, go) = Backend::slow();
    let mut proxy = Config::to(&backend).root("graceful_timeout = 60").start();
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    let mut stop = kakehictl().arg("-s").arg(proxy.socket()).arg("stop").spawn().unwrap();
    wait::pace(Duration::from_secs(6));
    assert!(stop.try_wait().unwrap().is_none(), "it did not wait");
    go.send(()).unwrap();
    busy.response().expect(200, "ok");
    wait::until("its end", || stop.try_wait().unwrap().is_some());
    assert!(stop.wait().unwrap().success());
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
}
