//! Settings of the process change while it runs, by hand and by the file; what needs new workers says so.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    process::{Output, Stdio},
};

use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Config, Need, OK, Process, Proxy, ask, kakehictl_of, machine, send_signal, wait,
};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[track_caller]
fn patch(proxy: &Proxy, keys: &[&str]) -> String {
    let output = proxy.ctl(&[&["settings", "patch"], keys].concat());
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

/// Value and source of a setting, as `settings list` shows them.
fn listed(proxy: &Proxy, name: &str) -> (serde_json::Value, String) {
    let output = proxy.ctl(&["settings", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = list.as_array().unwrap().iter().find(|it| it["name"] == name).unwrap();
    (row["value"].clone(), row["from"].as_str().unwrap().to_owned())
}

fn edit_file(proxy: &Proxy, edit: impl Fn(String) -> String) {
    let file = proxy.folder().join("kakehi.toml");
    fs::write(&file, edit(fs::read_to_string(&file).unwrap())).unwrap();
}

fn pids(proxy: &Proxy) -> Vec<u64> {
    let workers = proxy.ctl_json("workers");
    workers.as_array().unwrap().iter().map(|it| it["pid"].as_u64().unwrap()).collect()
}

#[test]
fn more_connections_are_served_as_soon_as_max_connections_is_raised() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1\nmax_connections = 2").start();
    let mut held = [proxy.client(), proxy.client()];
    held.iter_mut().for_each(ask);
    let mut third = proxy.client();
    third.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait::until("a third that waits", || proxy.ctl_json("status")["connections"] == 2);
    let words = patch(&proxy, &["max_connections=3"]);
    assert!(words.contains("~ max_connections 2 → 3"), "{words}");
    third.response().expect(200, "ok");
    // And down again: those that are open stay, and one more waits.
    patch(&proxy, &["max_connections=1"]);
    ask(&mut held[0]);
}

#[test]
fn the_log_says_more_or_less_at_once_in_supervisor_and_workers() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    patch(&proxy, &["log_level=error"]);
    send_signal(Process(pids(&proxy)[0] as u32), Signal::SIGKILL);
    wait::until("its replacement", || proxy.ctl_json("status")["restarts"] == 1);
    assert!(!proxy.log().contains("changed by"), "{}", proxy.log());
    patch(&proxy, &["log_level=info"]);
    patch(&proxy, &["drain_timeout=31"]);
    wait::until("a line", || proxy.log().contains("~ drain_timeout 30 → 31"));
    let output = proxy.ctl(&["settings", "patch", "log_level=no,such=[filter"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn what_is_set_by_hand_outlives_reloads_and_supervisors_until_it_is_given_back() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 1\ndrain_timeout = 20").start();
    let before = pids(&proxy);
    patch(&proxy, &["drain_timeout=25", "graceful_timeout=5"]);
    edit_file(&proxy, |text| text.replace("drain_timeout = 20", "drain_timeout = 21\nupstream_max_idle = 7"));
    let words = said(&proxy.ctl(&["reload"]));
    assert!(words.contains("~ upstream_max_idle 1024 → 7") && !words.contains("drain_timeout"), "{words}");
    let as_set = |proxy: &Proxy| {
        assert_eq!(listed(proxy, "drain_timeout"), (25.into(), "hand".to_owned()));
        assert_eq!(listed(proxy, "graceful_timeout"), (5.into(), "hand".to_owned()));
        assert_eq!(listed(proxy, "upstream_max_idle"), (7.into(), "file".to_owned()));
        assert_eq!(listed(proxy, "worker_timeout").1, "default");
    };
    as_set(&proxy);
    proxy.kill_supervisor();
    proxy.start_again();
    as_set(&proxy);
    // Also where the file has changed in the meantime, and without a new process.
    proxy.kill_supervisor();
    edit_file(&proxy, |text| text.replace("upstream_max_idle = 7", "upstream_max_idle = 8"));
    proxy.start_again();
    assert_eq!(listed(&proxy, "upstream_max_idle"), (8.into(), "file".to_owned()));
    assert_eq!(listed(&proxy, "drain_timeout"), (25.into(), "hand".to_owned()));
    assert_eq!(pids(&proxy), before);
    let words = patch(&proxy, &["drain_timeout="]);
    assert!(words.contains("~ drain_timeout 25 → 21"), "{words}");
    assert_eq!(listed(&proxy, "drain_timeout"), (21.into(), "file".to_owned()));
    ask(&mut proxy.client());
}

#[test]
fn what_needs_new_workers_says_so_until_they_are_replaced() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let before = pids(&proxy);
    let mut idle = proxy.client();
    ask(&mut idle);
    let pending = "with new workers only (`kakehictl reload --workers`): buffer_count";
    let words = patch(&proxy, &["buffer_count=256"]);
    assert!(words.contains("~ buffer_count 2048 → 256") && words.contains(pending), "{words}");
    assert!(said(&proxy.ctl(&["reload"])).contains(pending));
    assert_eq!(pids(&proxy), before);
    let output = proxy.ctl(&["reload", "--workers"]);
    assert!(output.status.success() && !said(&output).contains("new workers only"), "{}", said(&output));
    let after = pids(&proxy);
    assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)), "{before:?}, {after:?}");
    assert!(!said(&proxy.ctl(&["reload"])).contains(pending));
    ask(&mut idle);
}

#[test]
fn what_is_set_by_hand_outlives_a_stop_where_the_state_is_saved_also_when_the_file_changes() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend)
        .root("worker_count = 1")
        .root("saved_state = \"state.json\"")
        .root("automatic_state_save = true")
        .start();
    patch(&proxy, &["drain_timeout=25"]);
    wait::until("the state on disk", || {
        fs::read_to_string(proxy.folder().join("state.json")).is_ok_and(|it| it.contains("drain_timeout"))
    });
    for file_changes in [false, true] {
        proxy.terminate();
        assert_eq!(proxy.wait(std::time::Duration::from_secs(10)).code(), Some(0));
        if file_changes {
            edit_file(&proxy, |text| text.replace("worker_count = 1", "worker_count = 2"));
        }
        proxy.start_again();
        assert_eq!(listed(&proxy, "drain_timeout"), (25.into(), "hand".to_owned()), "{file_changes}");
    }
    let dump = said(&proxy.ctl(&["config", "dump"]));
    assert!(dump.contains("# by hand: ~ setting drain_timeout: 25"), "{dump}");
    let words = said(&proxy.ctl(&["reload", "--discard-live"]));
    assert!(words.contains("~ drain_timeout 25 → 30"), "{words}");
}

#[test]
fn what_cannot_be_is_refused_and_says_what_to_do_instead() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 1").start();
    for (key, code, why) in [
        ("command_socket=/tmp/x.sock", 2, "at a new start only"),
        ("pid_file_path=/missing/kakehi.pid", 1, "`pid_file_path` cannot be written"),
        ("worker_count=3", 2, "workers scale"),
        ("worker_cores=[0]", 2, "kakehictl pin"),
        ("front_timeout=5", 2, "no setting of the process"),
        ("max_conections=5", 2, "no setting of the process"),
        ("max_connections=0", 2, "must be an integer from 1"),
        ("buffer_count=100", 2, "power of two"),
        // A worker that dies could not come back.
        ("user=nobody-of-this-name", 1, "there is no user"),
    ] {
        let output = proxy.ctl(&["settings", "patch", key]);
        assert_eq!(output.status.code(), Some(code), "{key}: {}", said(&output));
        assert!(said(&output).contains(why), "{key}: {}", said(&output));
    }
    assert_eq!(proxy.ctl_json("status")["generation"], 0);
}

#[test]
fn what_is_by_hand_is_by_hand_also_under_a_supervisor_that_could_not_read_its_file() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 1\ndrain_timeout = 20").start();
    patch(&proxy, &["drain_timeout=25", "graceful_timeout=5", "upstream_max_idle=9"]);
    // What the file says since it was read again is part of it.
    edit_file(&proxy, |text| text.replace("drain_timeout = 20", "drain_timeout = 21"));
    assert!(proxy.ctl(&["reload"]).status.success());
    proxy.kill_supervisor();
    edit_file(&proxy, |text| format!("no_such_key = 1\n{text}"));
    proxy.start_again();
    proxy.logged("no_such_key");
    let hand = |value: u64| (value.into(), "hand".to_owned());
    assert_eq!(listed(&proxy, "drain_timeout"), hand(25));
    // What is given back is what the file said.
    patch(&proxy, &["upstream_max_idle="]);
    assert_eq!(listed(&proxy, "upstream_max_idle").1, "default");
    patch(&proxy, &["drain_timeout="]);
    assert_eq!(listed(&proxy, "drain_timeout").0, 21, "{}", proxy.log());
    patch(&proxy, &["drain_timeout=26"]);
    edit_file(&proxy, |text| text.replace("no_such_key = 1\n", ""));
    let words = said(&proxy.ctl(&["reload"]));
    assert!(words.contains("nothing to change"), "{words}");
    assert_eq!((listed(&proxy, "drain_timeout"), listed(&proxy, "graceful_timeout")), (hand(26), hand(5)));
    assert!(proxy.ctl(&["reload", "--discard-live"]).status.success());
    assert_eq!(listed(&proxy, "drain_timeout"), (21.into(), "file".to_owned()));
    assert_eq!(listed(&proxy, "graceful_timeout").1, "default");
    ask(&mut proxy.client());
}

#[test]
fn the_pid_file_moves_and_what_a_link_points_to_stays_as_it_is() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 1\npid_file_path = \"first.pid\"").start();
    let [first, second, victim] = ["first.pid", "second.pid", "victim"].map(|name| proxy.folder().join(name));
    let pid = format!("{}\n", proxy.supervisor().0);
    let is_pid = |path: &std::path::Path| fs::read_to_string(path).is_ok_and(|text| text == pid);
    wait::until("the pid file", || is_pid(&first));
    fs::write(&victim, "as it was").unwrap();
    symlink(&victim, &second).unwrap();
    let words = patch(&proxy, &[&format!("pid_file_path={}", second.display())]);
    assert!(words.contains("~ pid_file_path "), "{words}");
    let is_file = |path: &std::path::Path| fs::symlink_metadata(path).is_ok_and(|it| it.is_file());
    wait::until("the file to move", || is_pid(&second) && is_file(&second) && !first.exists());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
    // Another path of the same file.
    let link = proxy.folder().join("link");
    symlink(proxy.folder(), &link).unwrap();
    let inode = fs::metadata(&second).unwrap().ino();
    patch(&proxy, &[&format!("pid_file_path={}", link.join("second.pid").display())]);
    assert!(is_pid(&second) && fs::metadata(&second).unwrap().ino() == inode);
    // One that cannot be written changes nothing.
    let output = proxy.ctl(&["settings", "patch", "pid_file_path=/missing/kakehi.pid"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(is_pid(&second));
    // As the file says, which says something else by now.
    patch(&proxy, &["pid_file_path="]);
    assert!(is_pid(&first) && !second.exists());
    edit_file(&proxy, |text| text.replace("first.pid", "third.pid"));
    let words = said(&proxy.ctl(&["reload"]));
    assert!(words.contains("~ pid_file_path ") && !words.contains("new start"), "{words}");
    let third = proxy.folder().join("third.pid");
    assert!(is_pid(&third) && !first.exists());
    proxy.terminate();
    assert_eq!(proxy.wait(wait::SOON).code(), Some(0));
    assert!(!third.exists());
}

#[test]
fn who_may_use_the_command_socket_changes_at_once_also_for_those_who_are_connected() {
    const GUEST: u32 = 65_534;
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 1").start();
    let mode = |proxy: &Proxy| fs::metadata(proxy.socket()).unwrap().permissions().mode() & 0o777;
    let is_root = machine::has(Need::Root) && machine::has(Need::Program("setpriv"));
    let status = |proxy: &Proxy| {
        if !is_root {
            return None;
        }
        let output = kakehictl_of(GUEST, proxy).arg("status").output().unwrap();
        output.status.code()
    };
    assert!(mode(&proxy) == 0o600 && status(&proxy).is_none_or(|code| code == 3));
    patch(&proxy, &["command_allowed_uids=[65534]"]);
    assert!(mode(&proxy) == 0o666 && status(&proxy).is_none_or(|code| code == 0));
    // What is by hand holds for the next supervisor too.
    proxy.kill_supervisor();
    proxy.start_again();
    assert!(mode(&proxy) == 0o666 && status(&proxy).is_none_or(|code| code == 0));
    let watcher = is_root.then(|| {
        let mut command = kakehictl_of(GUEST, &proxy);
        let mut watcher =
            command.args(["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(watcher.stdout.take().unwrap());
        // It hears of a change: it watches.
        let mut line = String::new();
        let tell = |value: &str| patch(&proxy, &[&format!("drain_timeout={value}")]);
        wait::until("a watcher", || {
            tell("31");
            tell("32");
            std::io::BufRead::fill_buf(&mut lines).is_ok_and(|bytes| !bytes.is_empty())
        });
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        assert!(line.contains("drain_timeout"), "{line}");
        // Without a reader it would leave by itself.
        (watcher, lines)
    });
    // Who may be answered and who can connect are two things.
    patch(&proxy, &["command_socket_mode=0600"]);
    assert!(mode(&proxy) == 0o600 && status(&proxy).is_none_or(|code| code == 3));
    patch(&proxy, &["command_socket_mode="]);
    assert!(mode(&proxy) == 0o666 && status(&proxy).is_none_or(|code| code == 0));
    let words = patch(&proxy, &["command_allowed_uids="]);
    assert!(words.contains("~ command_allowed_uids [65534] → "), "{words}");
    assert!(mode(&proxy) == 0o600 && status(&proxy).is_none_or(|code| code == 3));
    if let Some((mut watcher, _lines)) = watcher {
        wait::until("the end of its connection", || watcher.try_wait().unwrap().is_some());
        let output = watcher.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    }
    ask(&mut proxy.client());
}
