//! One who may use the command socket and takes all that he can get of it keeps root from nothing: neither with connections, nor with
//! frames that never end, nor with operations that take their time.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kakehi_ctl::{
    limits,
    order::{Envelope, Request, Response},
    wire,
};

use nix::sys::signal::Signal;

use crate::harness::{Backend, Config, Need, OK, Proxy, kakehictl, machine, send_signal, user, wait};

/// More than there are places.
const MANY: usize = 200;
/// Far less than a place that is waited for takes.
const PROMPT: Duration = Duration::from_secs(2);
/// Who may not use the command socket at all.
const STRANGER: u32 = 65_533;

/// A guest's proxy; the guest can reach the socket.
fn with_guest() -> (Backend, Proxy) {
    let backend = Backend::respond(OK);
    // Before anything is measured: it may have to be built.
    kakehictl();
    let proxy = Config::to(&backend)
        .root(&format!("command_allowed_uids = [{}]", user::NOBODY))
        .root("worker_count = 2")
        .start();
    fs::set_permissions(proxy.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    (backend, proxy)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Root asks and changes as if there were nobody else.
#[track_caller]
fn root_is_served(proxy: &Proxy, round: usize) {
    let id = format!("of-root-{round}");
    for verb in
        [&["status"][..], &["backend", "add", "all", "127.0.0.1:9", "--backup", "--id", &id], &["reload"]]
    {
        let asked = Instant::now();
        let output = proxy.ctl(verb);
        assert!(output.status.success(), "{verb:?}: {}", said(&output));
        assert!(asked.elapsed() < PROMPT, "{verb:?} took {:?}", asked.elapsed());
    }
}

/// Whether the other side has closed the connection, maybe after a refusal.
fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut answer = [0; 512];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn a_guest_who_holds_every_connection_that_he_can_get_does_not_lock_root_out() {
    if !machine::has(Need::Root) {
        return;
    }
    let (_backend, proxy) = with_guest();
    let socket = proxy.socket();
    let connect = move || (0..MANY).map(|_| UnixStream::connect(&socket).unwrap()).collect::<Vec<_>>();
    let mut held = user::run(user::NOBODY, connect);
    let places = |held: &mut Vec<UnixStream>| {
        held.retain_mut(|stream| !is_closed(stream));
        held.len()
    };
    wait::until("the refusal of those for whom there is no place", || places(&mut held) <= 64);
    // The guest himself finds no place any more, and hears why.
    let socket = proxy.socket();
    let heard = user::run(user::NOBODY, move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    });
    assert!(heard.contains("clients are connected already"), "{heard}");
    root_is_served(&proxy, 0);
    // Nor with frames of which a part comes now and then.
    let frame = wire::encode(&Envelope::new(1, Request::Status), limits::MAX_REQUEST_FRAME).unwrap();
    for (round, byte) in (1..).zip(frame.iter().take(6)) {
        for stream in &mut held {
            let _ = stream.write_all(&[*byte]);
        }
        root_is_served(&proxy, round);
    }
    assert!(places(&mut held) > 32, "his connections were cut: nothing was shown");
    drop(held);
    let guest = user_ctl(&proxy, user::NOBODY, &["status"]);
    assert!(guest.status.success(), "{}", said(&guest));
}

/// `kakehictl` as another user.
fn user_ctl(proxy: &Proxy, uid: u32, verb: &[&str]) -> Output {
    let copy = program_for_all(proxy.folder());
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--clear-groups"]).arg(copy);
    command.arg("-s").arg(proxy.socket()).args(verb).output().unwrap()
}

/// A `kakehictl` where everybody can read it.
fn program_for_all(folder: &Path) -> PathBuf {
    let copy = folder.join("kakehictl");
    if !copy.exists() {
        fs::copy(kakehictl().get_program(), &copy).unwrap();
    }
    copy
}

/// Connects and talks nonsense, and does it again when it has been turned away, until it is told to stop.
fn knock(uid: u32, socket: PathBuf, stop: &Arc<AtomicBool>, knocks: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let (stop, knocks) = (Arc::clone(stop), Arc::clone(knocks));
    user::start(uid, move || {
        while !stop.load(Ordering::SeqCst) {
            if let Ok(mut stream) = UnixStream::connect(&socket) {
                knocks.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(b"\x02\0\0\0{}");
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    })
}

#[test]
fn who_knocks_without_end_keeps_root_from_nothing_and_does_not_fill_the_log() {
    if !machine::has(Need::Root) {
        return;
    }
    for uid in [user::NOBODY, STRANGER] {
        let (_backend, proxy) = with_guest();
        let (stop, knocks) = (Arc::default(), Arc::default());
        let knocking = [(); 2].map(|()| knock(uid, proxy.socket(), &stop, &knocks));
        wait::until("many knocks", || knocks.load(Ordering::SeqCst) > 500);
        for round in 0..4 {
            root_is_served(&proxy, round);
        }
        stop.store(true, Ordering::SeqCst);
        knocking.into_iter().for_each(|thread| thread.join().unwrap());
        let lines = proxy.log().matches("may not use the command socket").count();
        let most = if uid == STRANGER { 1..30 } else { 0..1 };
        assert!(most.contains(&lines), "{lines} lines for {knocks:?} knocks");
    }
}

#[test]
fn the_operations_of_a_guest_wait_behind_those_of_root() {
    if !machine::has(Need::Root) {
        return;
    }
    let (_backend, proxy) = with_guest();
    let socket = proxy.socket();
    // Each takes a part of a second: all of them, longer than anybody waits.
    let mut asked = user::run(user::NOBODY, move || {
        let request = Envelope::new(1, Request::UpgradeWorkers { worker: None });
        let frame = wire::encode(&request, limits::MAX_REQUEST_FRAME).unwrap();
        let ask = |_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(&frame).unwrap();
            stream
        };
        (0..60).map(ask).collect::<Vec<_>>()
    });
    wait::until("the first of them", || proxy.log().contains("upgrade"));
    for round in 0..3 {
        let id = format!("of-root-{round}");
        let began = Instant::now();
        let output = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--backup", "--id", &id]);
        assert!(output.status.success(), "{}", said(&output));
        // One of the guest's is under way, which is not broken off.
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    }
    let answered = asked.iter_mut().filter_map(|stream| {
        stream.set_nonblocking(true).unwrap();
        let mut decoder = wire::Decoder::new(limits::MAX_FRAME);
        wire::read_message::<Response>(stream, &mut decoder).ok()
    });
    assert!(answered.count() < 45, "there was nothing to wait for");
}

#[test]
fn what_has_ended_before_its_connection_is_accepted_is_not_listened_to() {
    const SOCKET: &str = "KAKEHI_TEST_SOCKET_TO_ASK_AT";
    const NAME: &str = "command_places::what_has_ended_before_its_connection_is_accepted_is_not_listened_to";
    // This very test, as the process that asks and ends.
    if let Some(socket) = std::env::var_os(SOCKET) {
        let mut asks = UnixStream::connect(socket).unwrap();
        let frame =
            wire::encode(&Envelope::new(1, Request::UpgradeWorkers { worker: None }), limits::MAX_FRAME)
                .unwrap();
        return asks.write_all(&frame).unwrap();
    }
    let backend = Backend::respond(OK);
    kakehictl();
    let proxy = Config::to(&backend).start();
    let (supervisor, worker) = (proxy.supervisor(), proxy.worker());
    let mut asks = Command::new(std::env::current_exe().unwrap());
    asks.args(["--exact", NAME]).env(SOCKET, proxy.socket()).stdout(Stdio::null());
    send_signal(supervisor, Signal::SIGSTOP);
    assert!(asks.status().unwrap().success());
    send_signal(supervisor, Signal::SIGCONT);
    // Whoever waits for the answer gets it, behind that in the queue, and his operation comes after any that was asked for before.
    root_is_served(&proxy, 0);
    assert_eq!(proxy.worker(), worker, "it was replaced: {}", proxy.log());
}
