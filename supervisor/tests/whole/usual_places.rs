//! `kakehictl` without `-s` and `-c`: which kakehi it asks, in a host of its own.

use std::{
    fs,
    os::unix::{fs::chown, net::UnixListener},
    path::Path,
    process::Output,
};

use crate::harness::{Backend, Config, Need, OK, Proxy, disk, kakehictl, machine, user};

fn at(socket: &Path) -> (Backend, Proxy) {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root(&format!("command_socket = \"{}\"", socket.display())).start();
    (backend, proxy)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn without_a_word_kakehictl_asks_the_variable_then_run_then_the_working_directory() {
    if !machine::has(Need::Mounts) {
        return;
    }
    kakehictl();
    disk::own_mounts();
    // The harness finds ports without it.
    disk::cover(Path::new("/run"), 1_024);
    fs::create_dir("/run/kakehi").unwrap();
    let here = tempfile::tempdir().unwrap();
    let [in_run, in_folder, elsewhere] =
        [Path::new("/run/kakehi"), here.path(), here.path()].map(|folder| folder.join("kakehi.sock"));
    let elsewhere = elsewhere.with_file_name("elsewhere.sock");
    let status = |variable: Option<&Path>| {
        let mut command = kakehictl();
        command.current_dir(here.path()).args(["status", "--json"]);
        if let Some(socket) = variable {
            command.env("KAKEHI_SOCKET", socket);
        }
        command.output().unwrap()
    };
    let asked = |variable: Option<&Path>, proxy: &Proxy| {
        let output = status(variable);
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        assert_eq!(answer["pid"], proxy.supervisor().0);
    };

    let nobody = status(None);
    let text = said(&nobody);
    assert_eq!(nobody.status.code(), Some(2), "{text}");
    for place in ["/run/kakehi/kakehi.sock", "./kakehi.sock", "-s SOCKET", "-c FILE", "KAKEHI_SOCKET"] {
        assert!(text.contains(place), "{text}");
    }

    let (_backend, of_folder) = at(&in_folder);
    asked(None, &of_folder);
    let (_backend, of_run) = at(&in_run);
    asked(None, &of_run);
    let (_backend, other) = at(&elsewhere);
    asked(Some(&elsewhere), &other);
    // One that is set and empty names nothing.
    asked(Some(Path::new("")), &of_run);
    // What is named is asked, and nothing in its place.
    let missing = status(Some(Path::new("/run/kakehi/missing.sock")));
    assert_eq!(missing.status.code(), Some(3), "{}", said(&missing));
    drop(of_run);
    // Its process is gone, its socket is still there: that there is another one elsewhere is no reason to ask that.
    assert_eq!(status(None).status.code(), Some(3));
    fs::remove_file(&in_run).unwrap();
    asked(None, &of_folder);
}

#[test]
fn a_socket_of_somebody_else_in_the_working_directory_is_asked_only_when_it_is_named() {
    if !machine::has(Need::Mounts) {
        return;
    }
    kakehictl();
    disk::own_mounts();
    disk::cover(Path::new("/run"), 1_024);
    let here = tempfile::tempdir().unwrap();
    let socket = here.path().join("kakehi.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    chown(&socket, Some(user::NOBODY), None).unwrap();
    let output = kakehictl().current_dir(here.path()).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(listener.accept().is_err(), "it was asked");
    let named = ["-s", "kakehi.sock", "--timeout", "300", "status"];
    let output = kakehictl().current_dir(here.path()).args(named).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(listener.accept().is_ok(), "it was not asked");
}
