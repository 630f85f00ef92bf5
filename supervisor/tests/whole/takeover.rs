//! The supervisor dies, or another program takes its place: workers and connections go on.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Client, Config, Load, OK, OPEN, Process, Proxy, SWITCHING, ask, program, send_signal, wait,
};

fn pids(proxy: &Proxy) -> Vec<u64> {
    let workers = proxy.ctl_json("workers");
    workers.as_array().unwrap().iter().map(|worker| worker["pid"].as_u64().unwrap()).collect()
}

fn requests(proxy: &Proxy) -> u64 {
    proxy.ctl_json("status")["requests"].as_u64().unwrap()
}

/// Files beside the command socket that belong to workers.
fn adoption_sockets(proxy: &Proxy) -> usize {
    let entries = fs::read_dir(proxy.folder()).unwrap().map(|entry| entry.unwrap());
    let of_workers = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("kakehi.sock.w");
    entries.filter(|entry| of_workers(entry) && entry.file_type().unwrap().is_socket()).count()
}

#[test]
fn a_new_supervisor_takes_over_the_workers_of_one_that_was_killed() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let mut idle = proxy.client();
    ask(&mut idle);
    let load = Load::on(proxy.address());
    let before = pids(&proxy);
    for _ in 0..3 {
        let counted = requests(&proxy);
        proxy.kill_supervisor();
        load.goes_on();
        proxy.start_again();
        load.goes_on();
        assert_eq!(pids(&proxy), before);
        assert!(requests(&proxy) >= counted, "counters do not go backwards");
        ask(&mut idle);
    }
    // It is a whole supervisor: it replaces, reloads and stops.
    assert!(proxy.ctl(&["workers", "upgrade"]).status.success());
    assert!(proxy.ctl(&["reload"]).status.success());
    load.goes_on();
    load.end();
    ask(&mut idle);
    send_signal(Process(pids(&proxy)[0] as u32), Signal::SIGKILL);
    wait::until("the restart in the report", || proxy.ctl_json("status")["restarts"] == 1);
    wait::until("two adoption sockets", || adoption_sockets(&proxy) == 2);
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
    assert_eq!(adoption_sockets(&proxy), 0);
}

#[test]
fn a_worker_that_died_in_the_meantime_is_replaced() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let before = pids(&proxy);
    proxy.kill_supervisor();
    send_signal(Process(before[0] as u32), Signal::SIGKILL);
    wait::until("its end", || !Process(before[0] as u32).runs());
    proxy.start_again();
    let now = pids(&proxy);
    assert!(now.len() == 2 && now[0] != before[0] && now[1] == before[1], "{before:?}, then {now:?}");
    for _ in 0..20 {
        ask(&mut proxy.client());
    }
}

#[test]
fn a_change_outlives_the_supervisor_and_a_changed_file() {
    let (backend, other) = (Backend::respond(OK), Backend::respond(OK));
    let mut proxy = Proxy::to(&backend);
    let address = other.address().to_string();
    assert!(proxy.ctl(&["backend", "add", "all", &address]).status.success());
    let backends = |proxy: &Proxy| proxy.ctl_json("status")["backends"].as_u64();
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(backends(&proxy), Some(2));
    proxy.kill_supervisor();
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    let another =
        format!("[clusters.other]\nprotocol = \"http\"\nbackends = [{{ address = \"{address}\" }}]\n");
    fs::write(&file, text + &another).unwrap();
    proxy.start_again();
    wait::until("what the file says", || proxy.ctl_json("status")["clusters"] == 2);
    assert_eq!(backends(&proxy), Some(3), "two of the file, and the one that was added by hand");
    ask(&mut proxy.client());
}

#[test]
fn number_and_place_of_the_workers_outlive_the_supervisor_until_the_file_changes_them() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 1").start();
    assert!(proxy.ctl(&["workers", "scale", "3"]).status.success());
    assert!(proxy.ctl(&["pin", "set", "0", "0"]).status.success());
    let before = pids(&proxy);
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(pids(&proxy), before);
    assert!(proxy.ctl(&["workers", "scale", "2"]).status.success());
    proxy.kill_supervisor();
    let last = before[1];
    send_signal(Process(last as u32), Signal::SIGKILL);
    wait::until("its end", || !Process(last as u32).runs());
    proxy.start_again();
    let now = pids(&proxy);
    assert!(now.len() == 2 && now[0] == before[0], "{before:?}, then {now:?}");
    let dump = String::from_utf8(proxy.ctl(&["config", "dump"]).stdout).unwrap();
    assert!(dump.contains("worker_count = 2") && dump.contains("worker_cores = [0]"), "{dump}");
    proxy.kill_supervisor();
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("worker_count = 1", "worker_count = 4")).unwrap();
    proxy.start_again();
    wait::until("as many as the file says", || pids(&proxy).len() == 4);
    ask(&mut proxy.client());
}

#[test]
fn workers_with_other_settings_are_replaced_one_by_one_and_connections_go_on() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").root("buffer_count = 64").start();
    let before = pids(&proxy);
    let load = Load::on(proxy.address());
    proxy.kill_supervisor();
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("buffer_count = 64", "buffer_count = 128")).unwrap();
    proxy.start_again();
    wait::until("new processes", || pids(&proxy).iter().all(|pid| !before.contains(pid)));
    load.goes_on();
    load.end();
}

#[test]
fn a_worker_that_nobody_takes_over_ends_at_the_orphan_timeout() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("orphan_timeout = 0.5").start();
    let worker = proxy.worker();
    proxy.kill_supervisor();
    ask(&mut proxy.client());
    wait::until("its end", || !worker.runs());
}

#[test]
fn a_stop_by_kakehictl_waits_for_what_is_in_flight_and_one_at_once_cuts_it() {
    let (backend, go) = Backend::slow();
    for (arguments, code) in [(&["stop"][..], 0), (&["stop", "--now"], 3)] {
        let mut proxy = Proxy::to(&backend);
        let mut slow = proxy.client();
        slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
        wait::until("the request is at the backend", || backend.targets().contains(&"/slow".to_owned()));
        std::thread::scope(|scope| {
            let stop = scope.spawn(|| proxy.ctl(arguments));
            if code == 0 {
                wait::until("the stop has begun", || proxy.log().contains("stopping"));
                go.send(()).unwrap();
                slow.response().expect(200, "ok");
            } else {
                slow.expect_closed();
            }
            assert!(stop.join().unwrap().status.success());
        });
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(code), "{}", proxy.log());
    }
}

/// A copy of the program that can be overwritten, in a folder of its own.
fn own_program() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kakehi");
    fs::copy(program(), &path).unwrap();
    (folder, path)
}

/// A proxy that runs such a copy, with a connection that has had a request.
fn start_of_own(backend: &Backend) -> (tempfile::TempDir, PathBuf, Proxy, Client) {
    let (folder, path) = own_program();
    let proxy = Config::to(backend).program(&path).start();
    let mut idle = proxy.client();
    ask(&mut idle);
    (folder, path, proxy, idle)
}

/// Puts another program in its place, as a package manager does.
fn replace(path: &Path, content: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, path).unwrap();
}

#[test]
fn another_program_takes_the_place_and_connections_and_tunnels_go_on() {
    let backend = Backend::respond(OK);
    let echo = Backend::script(|conn| {
        let _ = conn.request();
        conn.send(SWITCHING);
        conn.echo();
    });
    let (_folder, path) = own_program();
    let proxy = Config::to(&backend)
        .root("worker_count = 2")
        .frontend("echo", "hostname = \"echo\"")
        .backend("echo", &echo)
        .program(&path)
        .start();
    let mut tunnel = proxy.client();
    tunnel.send(OPEN.replace("Host: a", "Host: echo"));
    assert_eq!(tunnel.head().status(), 101);
    let mut idle = proxy.client();
    ask(&mut idle);
    let load = Load::on(proxy.address());
    for round in 0..3 {
        let (before, counted) = (pids(&proxy), requests(&proxy));
        replace(&path, &fs::read(program()).unwrap());
        let output = proxy.ctl(&["upgrade"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(proxy.ctl_json("status")["pid"], proxy.supervisor().0);
        let running = fs::read_link(format!("/proc/{}/exe", proxy.supervisor().0)).unwrap();
        assert_eq!(running, path, "what runs is what lies there now");
        let now = pids(&proxy);
        assert!(now.len() == 2 && now.iter().all(|pid| !before.contains(pid)), "{before:?}, then {now:?}");
        assert!(requests(&proxy) >= counted, "counters do not go backwards");
        load.goes_on();
        ask(&mut idle);
        let message = format!("message {round}");
        tunnel.send(message.as_bytes());
        assert_eq!(tunnel.bytes(message.len()), message.as_bytes());
    }
    load.end();
    wait::until("as many processes as before", || proxy.workers().len() == 2);
    wait::until("as many adoption sockets as before", || adoption_sockets(&proxy) == 2);
}

#[test]
fn a_program_that_does_not_come_up_changes_nothing_and_says_why() {
    let backend = Backend::respond(OK);
    let (_folder, path, proxy, mut idle) = start_of_own(&backend);
    let before = pids(&proxy);
    let real = program().display();
    for (content, reason) in [
        ("#!/bin/sh\necho it is broken >&2\nexit 1\n".to_owned(), "it is broken"),
        ("no program at all".to_owned(), "not found"),
        // It accepts the state, but no worker of it comes up.
        (
            format!("#!/bin/sh\n[ \"$1\" = check ] && exec {real} \"$@\"\necho no worker >&2\nexit 7\n"),
            "exit code 7",
        ),
    ] {
        replace(&path, content.as_bytes());
        let output = proxy.ctl(&["upgrade"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(reason) && said.contains("goes on as it was"), "{said}");
        assert_eq!(pids(&proxy), before);
        ask(&mut idle);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(proxy.ctl(&["upgrade"]).status.code(), Some(1));
    replace(&path, &fs::read(program()).unwrap());
    assert!(proxy.ctl(&["upgrade"]).status.success());
    ask(&mut idle);
}

#[test]
fn a_program_that_fails_in_the_place_of_the_one_before_gives_it_back() {
    let backend = Backend::respond(OK);
    let (_folder, path, proxy, mut idle) = start_of_own(&backend);
    let before = pids(&proxy);
    // It spoils what it was left before it reads it: as a version would find it that does not understand it.
    let real = program().display();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = start ]; then\n  estate=/proc/self/fd/$5\n  \
         spoiled=$(sed 's/\"hostname\":\"[^\"]*\"/\"hostname\":\"[\"/' $estate)\n  \
         printf %s \"$spoiled\" > $estate\nfi\nexec {real} \"$@\"\n"
    );
    replace(&path, script.as_bytes());
    let output = proxy.ctl(&["upgrade"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}\n{}", proxy.log());
    assert!(said.contains("did not come up") && said.contains("IPv6 address in brackets"), "{said}");
    assert_eq!(pids(&proxy), before);
    let running = fs::read_link(format!("/proc/{}/exe", proxy.supervisor().0)).unwrap();
    assert!(running.to_string_lossy().ends_with("(deleted)"), "{running:?}");
    ask(&mut idle);
    ask(&mut proxy.client());
}

#[test]
fn a_hangup_during_an_upgrade_is_obeyed() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let file = proxy.folder().join("kakehi.toml");
    let text = fs::read_to_string(&file).unwrap();
    // Before, while and after the one program becomes the other.
    for (round, delay_ms) in (1..).zip([0, 40, 80, 120, 160, 200, 300]) {
        let listed = format!("[clusters.round{round}]\nprotocol = \"http\"\n");
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| proxy.ctl(&["upgrade"]));
            wait::pace(Duration::from_millis(delay_ms));
            fs::write(&file, format!("{text}{listed}")).unwrap();
            send_signal(proxy.supervisor(), Signal::SIGHUP);
            assert!(upgrade.join().unwrap().status.success(), "{}", proxy.log());
        });
        wait::until("what the file says", || {
            !proxy.ctl_json("state")["clusters"][format!("round{round}")].is_null()
        });
    }
}
