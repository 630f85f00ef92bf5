//! A disk without room: no change is lost as long as kakehi runs, what could not be written is said and written as soon as there is room,
//! and nobody waits for it.

use std::{
    fs::{self, File},
    os::unix::fs::FileTypeExt as _,
    process::{Command, Output},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::harness::{
    Backend, Config, Need, OK, Process, Proxy, ask, disk, disk::SmallDisk, kakehictl, machine, program,
    send_signal, wait,
};

/// Longer than the pause until something is tried again.
const AGAIN: Duration = Duration::from_secs(15);

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// A small disk, if this machine lets the test have one.
fn small_disk() -> Option<SmallDisk> {
    if !machine::has(Need::Mounts) {
        return None;
    }
    kakehictl();
    disk::own_mounts();
    Some(SmallDisk::new(256))
}

/// A kakehi whose sockets, records, pid file and saved state are on the disk.
fn on(disk: &SmallDisk, backend: &Backend) -> Config {
    let at = |key: &str, name: &str| format!("{key} = \"{}\"", disk.join(name));
    Config::to(backend)
        .root(&at("command_socket", "kakehi.sock"))
        .root(&at("saved_state", "state.json"))
        .root("automatic_state_save = true")
        .root("worker_count = 2")
}

#[track_caller]
fn add(proxy: &Proxy, id: &str) {
    let asked = Instant::now();
    let output = proxy.ctl(&["backend", "add", "all", "127.0.0.1:9", "--backup", "--id", id]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(asked.elapsed() < Duration::from_secs(3), "a change took {:?}", asked.elapsed());
}

fn has(proxy: &Proxy, ids: &[&str]) -> bool {
    let backends = proxy.ctl_json("state")["clusters"]["all"]["backends"].to_string();
    ids.iter().all(|id| backends.contains(id))
}

fn failures(proxy: &Proxy) -> [bool; 2] {
    let status = proxy.ctl_json("status");
    ["save_failed", "record_failed"].map(|key| status[key].as_str().is_some_and(|it| it.contains("No space")))
}

fn pids(proxy: &Proxy) -> Vec<u64> {
    let workers = proxy.ctl_json("workers");
    workers.as_array().unwrap().iter().map(|worker| worker["pid"].as_u64().unwrap()).collect()
}

/// Fills it, and changes something, until nothing can be written any more.
fn fill_up(disk: &SmallDisk, proxy: &Proxy) {
    for round in 0..50 {
        disk.fill();
        add(proxy, &format!("while-{round}"));
        // What cannot be kept up to date is removed: that room is taken, too.
        disk.fill();
        if failures(proxy) == [true, true] {
            return;
        }
        wait::pace(Duration::from_millis(50));
    }
    panic!("it is never full");
}

#[test]
fn changes_on_a_full_disk_are_made_and_saved_and_recorded_as_soon_as_there_is_room() {
    let Some(disk) = small_disk() else { return };
    let backend = Backend::respond(OK);
    let mut proxy = on(&disk, &backend).start();
    let state = disk.path().join("state.json");
    add(&proxy, "before");
    wait::until("the save", || fs::read_to_string(&state).is_ok_and(|text| text.contains("before")));
    assert_eq!(failures(&proxy), [false, false]);

    fill_up(&disk, &proxy);
    add(&proxy, "last");
    let status = String::from_utf8(proxy.ctl(&["status"]).stdout).unwrap();
    assert!(status.contains("not saved") && status.contains("no record"), "{status}");
    let saved = fs::read_to_string(&state).unwrap();
    assert!(saved.contains("before") && !saved.contains("last"), "what was saved before is whole: {saved}");
    // A reload, too, and a worker that comes.
    let before = pids(&proxy);
    send_signal(Process(before[0] as u32), Signal::SIGKILL);
    wait::until("its replacement", || pids(&proxy)[0] != before[0]);
    let reloaded = proxy.ctl(&["reload"]);
    assert!(reloaded.status.success(), "{}", said(&reloaded));
    assert!(has(&proxy, &["before", "while-0", "last"]));
    ask(&mut proxy.client());

    disk.free();
    // Nobody changes anything: it is tried again by itself.
    wait::within(AGAIN, "the save and the record", || (failures(&proxy) == [false, false]).then_some(()));
    let saved = fs::read_to_string(&state).unwrap();
    assert!(["before", "while-0", "last"].iter().all(|id| saved.contains(id)), "{saved}");
    let records = || {
        let entries = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".record")).count()
    };
    wait::within(AGAIN, "the records of both workers", || (records() == 2).then_some(()));
    // A supervisor that has to go on finds all of it, and the workers.
    let before = pids(&proxy);
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(pids(&proxy), before, "{}", proxy.log());
    assert!(has(&proxy, &["before", "while-0", "last"]));
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(15)).code(), Some(0), "{}", proxy.log());
}

#[test]
fn a_stop_on_a_full_disk_says_by_its_exit_code_that_changes_are_not_saved() {
    let Some(disk) = small_disk() else { return };
    let backend = Backend::respond(OK);
    // More than what a stop gives back, when records go.
    let names = (0..300).map(|number| format!("hostname = \"a-name-that-takes-some-room-{number}.test\""));
    let config = names.fold(on(&disk, &backend), |config, name| config.frontend("all", &name));
    let mut proxy = config.start();
    add(&proxy, "before");
    let state = disk.path().join("state.json");
    wait::until("the save", || fs::read_to_string(&state).is_ok_and(|text| text.contains("before")));
    fill_up(&disk, &proxy);
    add(&proxy, "lost");
    let by_hand = proxy.ctl(&["state", "save"]);
    assert_eq!(by_hand.status.code(), Some(1), "{}", said(&by_hand));
    assert!(said(&by_hand).contains("No space"), "{}", said(&by_hand));
    proxy.terminate();
    assert_eq!(proxy.wait(Duration::from_secs(20)).code(), Some(3), "{}", proxy.log());
    proxy.logged("is not the one that was running");
    // What was saved is whole, and with room the next start goes on from it.
    disk.free();
    proxy.start_again();
    assert!(has(&proxy, &["before"]) && !has(&proxy, &["lost"]));
}

#[test]
fn a_start_without_room_for_its_pid_file_is_refused_in_words_and_a_takeover_goes_on() {
    let Some(disk) = small_disk() else { return };
    let backend = Backend::respond(OK);
    let other = SmallDisk::new(64);
    let pid_file = other.path().join("kakehi.pid");
    let config = on(&disk, &backend).root(&format!("pid_file_path = \"{}\"", pid_file.display()));
    other.fill();
    let (status, log) = Proxy::start_failing(&config);
    assert_eq!(status.code(), Some(1), "{log}");
    let named = format!("`pid_file_path` {} cannot be written: No space left", pid_file.display());
    assert!(log.contains(&named), "{log}");
    let left: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(!left.iter().any(|entry| entry.file_type().unwrap().is_socket()), "a worker is left: {left:?}");

    other.free();
    let mut proxy = config.start();
    let before = pids(&proxy);
    proxy.kill_supervisor();
    fs::remove_file(&pid_file).unwrap();
    other.fill();
    proxy.start_again();
    assert_eq!(pids(&proxy), before, "{}", proxy.log());
    proxy.logged(&named);
    assert!(!pid_file.exists(), "{}", proxy.log());
    ask(&mut proxy.client());
}

#[test]
fn without_room_for_records_a_start_serves_and_writes_them_when_there_is() {
    let Some(disk) = small_disk() else { return };
    let backend = Backend::respond(OK);
    disk.fill();
    let mut proxy = on(&disk, &backend).start();
    proxy.logged("cannot be written");
    ask(&mut proxy.client());
    disk.free();
    wait::within(AGAIN, "the record", || (!failures(&proxy)[1]).then_some(()));
    wait::within(AGAIN, "those of the workers", || {
        (proxy.log().matches("its record is written").count() == 2).then_some(())
    });
    let before = pids(&proxy);
    proxy.kill_supervisor();
    proxy.start_again();
    assert_eq!(pids(&proxy), before, "{}", proxy.log());
}

#[test]
fn an_upgrade_without_room_for_records_loses_no_worker() {
    let Some(disk) = small_disk() else { return };
    let (backend, go) = Backend::slow();
    disk.fill();
    let proxy = on(&disk, &backend).start();
    proxy.logged("cannot be written");
    let before = pids(&proxy);
    // It ends in the process where it has begun.
    let mut busy = proxy.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    backend.wait_for_requests(1);
    let upgraded = proxy.ctl(&["upgrade"]);
    assert!(upgraded.status.success(), "{}", said(&upgraded));
    let log = proxy.log();
    assert!(!log.contains("cannot be taken over") && !log.contains("cannot be found"), "{log}");
    wait::until("both to be told of", || proxy.log().matches("goes on under this supervisor").count() == 2);
    assert!(pids(&proxy).iter().all(|pid| !before.contains(pid)));
    go.send(()).unwrap();
    busy.response().expect(200, "ok");
    // What the new program has started is written down as soon as there is room.
    disk.free();
    let records = || {
        let entries = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".record")).count()
    };
    wait::within(AGAIN, "the records of both workers", || (records() == 2).then_some(()));
}

#[test]
fn a_log_on_a_full_disk_stops_nobody_and_says_later_how_much_it_missed() {
    let Some(disk) = small_disk() else { return };
    let path = disk.path().join("log");
    let log = File::options().create(true).append(true).open(&path).unwrap();
    let backend = Backend::respond(OK);
    // Nothing but the log is there.
    let proxy = Config::to(&backend).root("worker_count = 2").log_to(log.into()).start();
    disk.fill();
    let written = || fs::metadata(&path).unwrap().len();
    // There is room as far as its last page goes, which is filled to its last byte. A thread writes, later than it is told to.
    let is_full = || written() > 0 && written().is_multiple_of(4_096);
    let mut added = 0..200;
    while !is_full() {
        add(&proxy, &format!("by-hand-{}", added.next().expect("it is full at some time")));
    }
    for round in added.by_ref().take(5) {
        add(&proxy, &format!("by-hand-{round}"));
        ask(&mut proxy.client());
    }
    let upgraded = proxy.ctl(&["workers", "upgrade"]);
    assert!(upgraded.status.success(), "{}", said(&upgraded));
    let ticks = proxy.supervisor().cpu_time();
    wait::pace(Duration::from_millis(500));
    let spent = proxy.supervisor().cpu_time().checked_sub(ticks).unwrap();
    assert!(spent < Duration::from_millis(150), "it spins: {spent:?}");
    disk.free();
    let text = || fs::read_to_string(&path).unwrap();
    let mut number = 0;
    // It goes before the next line for which there is room.
    wait::until("the word of how many lines were lost", || {
        number += 1;
        add(&proxy, &format!("after-{number}"));
        text().contains("lines of the log were lost")
    });
    let text = text();
    let notice = text.lines().find(|line| line.contains("were lost")).unwrap();
    assert!(notice.starts_with("kakehi["), "it begins a line: {notice}");
    assert!(text.lines().any(|line| line.contains("after")), "{text}");
}

#[test]
fn what_is_printed_or_saved_by_hand_and_finds_no_room_is_no_success() {
    let Some(disk) = small_disk() else { return };
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    disk.fill();
    let place = disk.join("dump.json");
    let output = proxy.ctl(&["state", "save", &place]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("No space") && !disk.path().join("dump.json").exists(),
        "{}",
        said(&output)
    );
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let printed = kakehictl().arg("-s").arg(proxy.socket()).arg("state").stdout(full()).output().unwrap();
    assert!(printed.status.code() == Some(1) && said(&printed).contains("No space"), "{}", said(&printed));
    let file = proxy.folder().join("kakehi.toml");
    let checked = Command::new(program()).args(["check", "-c"]).arg(&file).stdout(full()).output().unwrap();
    assert!(checked.status.code() == Some(1) && said(&checked).contains("No space"), "{}", said(&checked));
}

#[test]
fn a_record_that_still_holds_stays_where_a_supervisor_that_comes_cannot_write_it_anew() {
    let Some(disk) = small_disk() else { return };
    let backend = Backend::respond(OK);
    let mut proxy = on(&disk, &backend).start();
    add(&proxy, "by-hand");
    let before = pids(&proxy);
    for _ in 0..2 {
        proxy.kill_supervisor();
        disk.fill();
        proxy.start_again();
        assert!(has(&proxy, &["by-hand"]), "{}", proxy.log());
        assert_eq!(pids(&proxy), before, "{}", proxy.log());
    }
    // What does not hold any more goes: nobody is to go back to it.
    fill_up(&disk, &proxy);
    add(&proxy, "last");
    let there = fs::read_to_string(disk.path().join("kakehi.sock.state"));
    assert!(there.is_err() || there.is_ok_and(|text| text.contains("last")), "it is behind");
}
