//! A network that this test alone sees, with clients behind two cables. The namespace is that of the thread that makes it, and of all that
//! it starts: nothing of it is left, however the test ends.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::mpsc,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

use super::wait::SOON;

/// Runs `ip` with these words.
#[track_caller]
fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("the program `ip`");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Clients in a namespace of their own, at the other ends of two cables: `here0` has 10.9.0.1, `here1` 10.9.1.1.
#[derive(Clone)]
pub(crate) struct Cables {
    connect: mpsc::Sender<(SocketAddr, mpsc::Sender<io::Result<TcpStream>>)>,
}

impl Cables {
    /// From here on, the network of this thread and of what it starts is its own. Wants [`super::Need::Networks`].
    pub(crate) fn new() -> Cables {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own");
        ip("link set lo up");
        let (connect, wanted) = mpsc::channel::<(SocketAddr, mpsc::Sender<io::Result<TcpStream>>)>();
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own");
            tell.send(gettid()).expect("the test");
            let Ok(()) = gone.recv() else { return };
            for number in 0..2 {
                ip(&format!("addr add 10.9.{number}.2/24 dev there{number}"));
                ip(&format!("link set there{number} up"));
            }
            tell.send(gettid()).expect("the test");
            for (address, answer) in wanted {
                let _ = answer.send(TcpStream::connect_timeout(&address, SOON));
            }
        });
        let there = told.recv().expect("the other network");
        for number in 0..2 {
            ip(&format!("link add name here{number} type veth peer name there{number}"));
            ip(&format!("addr add 10.9.{number}.1/24 dev here{number}"));
            ip(&format!("link set here{number} up"));
            ip(&format!("link set there{number} netns {there}"));
        }
        go.send(()).expect("the other network");
        told.recv().expect("the other network");
        Cables { connect }
    }

    /// Connects to this port over the cable of this number, 0 or 1.
    pub(crate) fn connect(&self, cable: u8, port: u16) -> io::Result<TcpStream> {
        let (answer, stream) = mpsc::channel();
        self.connect.send((SocketAddr::from(([10, 9, cable, 1], port)), answer)).expect("the other network");
        stream.recv().expect("the other network")
    }
}
