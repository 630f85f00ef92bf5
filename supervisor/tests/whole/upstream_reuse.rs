//! A connection goes back to the pool only with nothing in flight: a backend that answers and reads no more of a request
//! costs the next client nothing, and nothing waits on it without a deadline.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixListener,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::harness::{Client, Config, GET, Lock, OK, Pki, Proxy, Server, Stream, chunks, wait};

/// A backend that answers what comes for `/stuck` when it is told to, and reads nothing of it but the first bytes.
struct Stuck {
    address: String,
    go: mpsc::Sender<()>,
    began: mpsc::Receiver<()>,
    _folder: tempfile::TempDir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Clear,
    Tls,
    Unix,
}

fn serve(mut stream: Stream, go: &Lock<mpsc::Receiver<()>>, began: &mpsc::Sender<()>) {
    let mut head = Vec::new();
    let mut piece = [0; 512];
    loop {
        if head.starts_with(b"POST /stuck") || head.starts_with(b"GET /stuck") {
            let _ = began.send(());
            let _ = go.lock().expect("one test").recv();
            if stream.write_all(OK).is_ok() {
                // It is there, and reads no more, for longer than the test takes.
                wait::pace(Duration::from_secs(30));
            }
            return;
        }
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            head.clear();
            if stream.write_all(OK).is_err() {
                return;
            }
        }
        match stream.read(&mut piece) {
            Ok(count @ 1..) => head.extend_from_slice(&piece[..count]),
            _ => return,
        }
    }
}

impl Stuck {
    fn new(side: Side, server: Option<Server>) -> Stuck {
        let (go, gone) = mpsc::channel();
        let (begins, began) = mpsc::channel();
        let gone = Arc::new(Lock::new(gone));
        let folder = tempfile::tempdir().unwrap();
        let serve_in_thread = move |stream| {
            let (gone, begins) = (Arc::clone(&gone), begins.clone());
            thread::spawn(move || serve(stream, &gone, &begins));
        };
        let address = if side == Side::Unix {
            let path = folder.path().join("backend.sock");
            let listener = UnixListener::bind(&path).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // Little fits on the way.
                    let _ = socket2::SockRef::from(&stream).set_recv_buffer_size(4_096);
                    serve_in_thread(Stream::Unix(stream));
                }
            });
            format!("unix:{}", path.display())
        } else {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.listen(128).unwrap();
            let listener = std::net::TcpListener::from(socket);
            let address = listener.local_addr().unwrap().to_string();
            thread::spawn(move || {
                for tcp in listener.incoming().flatten() {
                    serve_in_thread(match &server {
                        None => Stream::Tcp(tcp),
                        Some(server) => server.stream(tcp),
                    });
                }
            });
            address
        };
        Stuck { address, go, began, _folder: folder }
    }
}

fn to(stuck: &Stuck) -> Config {
    Config::new()
        .root("max_connections = 100")
        .listener("max_head_size = 262144")
        .listener("back_timeout = 0.4")
        .frontend("all", r#"hostname = "*""#)
        .backend_at("all", &stuck.address, "")
}

/// How sure it is that the proxy cannot have sent all of the request when the answer comes. What is in the kernel's buffers
/// counts as sent: nobody can tell whether the backend will read it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InFlight {
    Surely,
    Perhaps,
}

/// One client whose request the backend answers without having read it; then the next clients.
#[track_caller]
fn answered_early(proxy: &Proxy, stuck: &Stuck, request: &[u8], in_flight: InFlight) {
    let what = format!("{} ({} bytes)", request[..5].escape_ascii(), request.len());
    let mut sender = TcpStream::connect(proxy.address()).unwrap();
    let mut first = Client::of(sender.try_clone().unwrap());
    let request = request.to_vec();
    let sending = thread::spawn(move || {
        // It may be cut when it has its answer.
        let _ = sender.write_all(&request);
    });
    assert!(stuck.began.recv_timeout(wait::SOON).is_ok(), "{what}: the backend has the request");
    // As much of the request as fits is on its way when the answer comes.
    wait::pace(Duration::from_millis(50));
    stuck.go.send(()).unwrap();
    first.response().expect(200, "ok");
    for n in 0..2 {
        let begin = Instant::now();
        let mut next = proxy.client();
        next.send(GET);
        let answer = next.try_response().unwrap_or_else(|broken| {
            panic!("{what}: client {n} behind it, after {:?}: {broken}", begin.elapsed())
        });
        if in_flight == InFlight::Surely || answer.status() != 504 {
            answer.expect(200, "ok");
        }
        // Whatever the backend does, a deadline bounds it.
        assert!(begin.elapsed() < Duration::from_secs(3), "{what}: client {n} waited {:?}", begin.elapsed());
    }
    first.reset();
    sending.join().unwrap();
}

fn head_of(size: usize) -> Vec<u8> {
    format!("GET /stuck HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(size)).into_bytes()
}

fn body_of(size: usize) -> Vec<u8> {
    let head = format!("POST /stuck HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; size]].concat()
}

fn chunks_of(size: usize) -> Vec<u8> {
    let head = b"POST /stuck HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    [head, chunks(&vec![b'x'; size], 30_000), b"0\r\n\r\n".to_vec()].concat()
}

/// Requests of many sizes: of one the last piece is being sent when the answer comes; others never get that far.
fn all_sizes(proxy: &Proxy, stuck: &Stuck) {
    for size in [60_000, 120_000, 180_000, 250_000] {
        answered_early(proxy, stuck, &head_of(size), InFlight::Perhaps);
    }
    for size in (1..12).map(|n| n * 130_000) {
        answered_early(proxy, stuck, &body_of(size), InFlight::Perhaps);
        answered_early(proxy, stuck, &chunks_of(size), InFlight::Perhaps);
    }
    answered_early(proxy, stuck, &body_of(40_000_000), InFlight::Surely);
    answered_early(proxy, stuck, &chunks_of(40_000_000), InFlight::Surely);
}

#[test]
fn a_connection_whose_request_is_still_being_sent_is_not_used_again() {
    let stuck = Stuck::new(Side::Clear, None);
    all_sizes(&to(&stuck).start(), &stuck);
}

#[test]
fn a_unix_socket_whose_request_is_still_being_sent_is_not_used_again() {
    let stuck = Stuck::new(Side::Unix, None);
    let proxy = to(&stuck).start();
    // More than a unix socket holds.
    answered_early(&proxy, &stuck, &head_of(250_000), InFlight::Surely);
    all_sizes(&proxy, &stuck);
}

#[test]
fn a_connection_with_tls_whose_request_is_still_being_sent_is_not_used_again() {
    let pki = Pki::new();
    let stuck = Stuck::new(Side::Tls, Some(pki.server(&["localhost"])));
    let keys = format!("backend_tls = {{ {}, server_name = \"localhost\" }}", pki.ca("ca"));
    all_sizes(&to(&stuck).cluster("all", &keys).start(), &stuck);
}
