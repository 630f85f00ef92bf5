//! The pipes that bodies and connections are spliced through have the room that the configuration says.

use std::{collections::BTreeSet, fs, os::fd::AsFd as _, time::Duration};

use crate::harness::{Backend, Config, Need, Proxy, assert_same_bytes, ctl, machine, noise, refused, wait};

const MIB: usize = 1 << 20;

/// A listener of `tcp` whose backend sends back what it gets.
fn echo() -> (Backend, Config) {
    let backend = Backend::script(|conn| conn.echo());
    let config = Config::new()
        .listener("protocol = \"tcp\"")
        .cluster("echo", "protocol = \"tcp\"")
        .frontend("echo", "")
        .backend("echo", &backend);
    (backend, config)
}

/// Sends this much there and back, over a new connection.
fn converse(proxy: &Proxy, size: usize) {
    let data = noise(size);
    let mut client = proxy.client();
    client.patience(Duration::from_secs(20));
    assert_same_bytes(&client.converse(&data, data.len()), &data, "echo");
}

/// The room of the pipes of the worker that are not of its start (bytes).
fn rooms(proxy: &Proxy) -> BTreeSet<usize> {
    let folder = format!("/proc/{}/fd", proxy.worker().0);
    let links = fs::read_dir(folder).unwrap().flatten();
    // Those that hold its log and the like have a reader elsewhere: of a pipe for bodies both ends are here.
    let pipes: Vec<_> = links
        .filter_map(|link| Some((link.path(), fs::read_link(link.path()).ok()?)))
        .filter(|(_, target)| target.to_string_lossy().starts_with("pipe:"))
        .collect();
    let both_here = |target: &std::path::Path| pipes.iter().filter(|(_, it)| it == target).count() == 2;
    let room = |path: &std::path::Path| {
        let file = fs::File::open(path).ok()?;
        rustix::pipe::fcntl_getpipe_size(file.as_fd()).ok()
    };
    pipes.iter().filter(|(_, target)| both_here(target)).filter_map(|(path, _)| room(path)).collect()
}

/// What is sent until a pipe was used.
#[track_caller]
fn expect_room(proxy: &Proxy, room: usize) {
    let mut found = BTreeSet::new();
    wait::within(Duration::from_secs(20), "a pipe of that room", || {
        converse(proxy, 4 * MIB);
        found = rooms(proxy);
        found.contains(&room).then_some(())
    });
    assert_eq!(found, BTreeSet::from([room]), "no other is kept");
}

#[test]
fn pipes_have_the_room_that_is_configured_and_it_changes_live() {
    if !machine::has(Need::Root) {
        return;
    }
    let (_backend, config) = echo();
    let proxy = config.root("splice_pipe_capacity_bytes = 70000").start();
    // The kernel makes a power of two of pages of it.
    expect_room(&proxy, 1 << 17);
    let said = ctl(&proxy, &["settings", "patch", "splice_pipe_capacity_bytes=65536"]);
    assert!(said.contains("splice_pipe_capacity_bytes 70000 → 65536"), "{said}");
    expect_room(&proxy, 1 << 16);
    ctl(&proxy, &["workers", "upgrade"]);
    expect_room(&proxy, 1 << 16);
    ctl(&proxy, &["settings", "patch", "splice_pipe_capacity_bytes=1048576"]);
    expect_room(&proxy, MIB);
    for wrong in ["0", "4095", "1048577"] {
        let said = refused(&proxy, &["settings", "patch", &format!("splice_pipe_capacity_bytes={wrong}")]);
        assert!(said.contains("from 4096 to 1048576"), "{said}");
    }
}

#[test]
fn the_smallest_pipes_lose_no_byte() {
    let (_backend, config) = echo();
    let proxy = config.root("splice_pipe_capacity_bytes = 4096").start();
    for size in [1, 4_095, 100_000, 8 * MIB] {
        converse(&proxy, size);
    }
    let body = noise(3 * MIB);
    let answer =
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    let backend = Backend::respond(answer);
    let proxy = Config::to(&backend).root("splice_pipe_capacity_bytes = 4096").start();
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
        client.send(&body);
        assert_same_bytes(&client.response().body, &body, "download");
        assert_same_bytes(&backend.requests().pop().unwrap().body, &body, "upload");
    }
}
