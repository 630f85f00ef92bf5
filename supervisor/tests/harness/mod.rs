//! What a whole-program test is written with: the real proxy as a process, backends and clients of raw bytes.
//!
//! - [`Proxy`] runs the program with a file of its own on ports of its own, and takes every process of it
//!   down when it is dropped.
//! - [`Backend`] is a server whose every connection runs a script; it keeps all that it was sent.
//! - [`Client`] sends bytes and reads answers without any opinion about them.
//! - [`flow`] moves large bodies both ways at once and compares every byte.
//! - [`Crowd`] is many clients that take more than their share, [`honest`] one that does not.
//! - [`Load`] asks all the time while something happens.
//! - [`disk`] is a disk that can be filled, [`SlowDisk`] one that stands still for a while, [`user`] what another user does.
//! - [`machine`] says what a test needs of the machine; one that cannot run fails in CI.
//! - [`wait`] waits for a condition; nothing here waits without a deadline.
//!
//! When a test fails, its proxy prints its file and its log, and its backends print what they were sent.

mod backend;
mod client;
mod config;
mod crowd;
mod dice;
pub(crate) mod disk;
pub(crate) mod dns;
pub(crate) mod flow;
mod forger;
pub(crate) mod honest;
mod kakehictl;
mod load;
pub(crate) mod machine;
mod message;
mod network;
mod pki;
mod processes;
mod proxy;
mod slow_disk;
mod sys;
mod tls;
mod tls_socket;
pub(crate) mod traced;
mod unwaiting;
pub(crate) mod user;
pub(crate) mod wait;
mod wire;

pub(crate) use backend::{Backend, Conn};
pub(crate) use client::Client;
pub(crate) use config::Config;
pub(crate) use crowd::{Crowd, Habit, Pages};
pub(crate) use dice::{Dice, setting};
pub(crate) use forger::Forger;
pub(crate) use kakehictl::{ctl, ctl_says, kakehictl, kakehictl_of, refused, shown_to_anybody};
pub(crate) use load::Load;
pub(crate) use machine::Need;
pub(crate) use message::{Framing, Message};
pub(crate) use network::Cables;
pub(crate) use pki::{Issued, Pki};
pub(crate) use processes::{Process, send_signal};
pub(crate) use proxy::{Proxy, free_port, program};
pub(crate) use slow_disk::SlowDisk;
pub(crate) use tls::{Caller, Server};
pub(crate) use wire::{Broken, End, Stream};

/// A test's threads may share a lock: nothing of the proxy runs here.
#[allow(clippy::disallowed_types)]
pub(crate) type Lock<T> = std::sync::Mutex<T>;

/// A plain answer with the body `ok`.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A plain request for everything that routes any host.
pub(crate) const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A request for a tunnel, and the answer of a backend that opens it.
pub(crate) const OPEN: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
pub(crate) const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

/// Sends [`GET`] and expects the answer [`OK`].
#[track_caller]
pub(crate) fn ask(client: &mut Client) {
    client.send(GET);
    client.response().expect(200, "ok");
}

/// Sends `request` on a connection of its own and reads the answer to it.
pub(crate) fn exchange(proxy: &Proxy, request: impl AsRef<[u8]>) -> Message {
    let request = request.as_ref();
    let mut client = proxy.client();
    client.send(request);
    if request.starts_with(b"HEAD ") { client.response_to("HEAD") } else { client.response() }
}

/// Asks for `target` of `host` on a connection of its own.
pub(crate) fn get(proxy: &Proxy, host: &str, target: &str) -> Message {
    exchange(proxy, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
}

/// `size` bytes that repeat at no distance that a buffer could have.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Fails unless both are the same bytes; says where they part instead of printing megabytes.
pub(crate) fn assert_same_bytes(got: &[u8], expected: &[u8], what: &str) {
    let place = got.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(got.len().min(expected.len()));
    assert!(
        got.len() == expected.len() && place == got.len(),
        "{what}: {} bytes got, {} expected, the first difference at {place}",
        got.len(),
        expected.len()
    );
}

/// `data` in chunks of `size` bytes, without the last chunk.
pub(crate) fn chunks(data: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + data.len() / size * 16 + 16);
    for chunk in data.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Whether `needle` stands anywhere in `bytes`.
pub(crate) fn contains(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// `bytes` as one line for a message: escaped, at most 2 KiB.
pub(crate) fn show(bytes: &[u8]) -> String {
    let shown = bytes.get(..2048).unwrap_or(bytes).escape_ascii().to_string();
    if bytes.len() > 2048 { format!("{shown}… ({} bytes)", bytes.len()) } else { shown }
}

/// A port where connections are neither accepted nor refused, and what keeps it so.
pub(crate) fn silent_port() -> (std::net::SocketAddr, impl Sized) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(stream) =
        std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(100))
    {
        filling.push(stream);
    }
    (address, (socket, filling))
}
