//! No peer stops a worker: while one client, or one backend, does not go on in the middle of its bodies, the only worker
//! serves the others and hears that it is to end.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use crate::harness::{Backend, Config, OK, Process, Proxy, ask, wait};

const MIB: usize = 1 << 20;
/// What a client uploads; the kernel's buffers hold a part of it at most.
const UPLOAD: usize = 16 * MIB;
/// What a backend answers.
const ANSWER: usize = 60 * MIB;
/// Far less than any deadline of the proxy, and far more than a request takes.
const PROMPT: Duration = Duration::from_secs(2);

/// A socket of a backend.
trait Socket: Read + Write + Sized + Send + 'static {
    fn twin(&self) -> Self;
}

impl Socket for TcpStream {
    fn twin(&self) -> TcpStream {
        self.try_clone().expect("a second descriptor")
    }
}

impl Socket for UnixStream {
    fn twin(&self) -> UnixStream {
        self.try_clone().expect("a second descriptor")
    }
}

/// When the backend does not go on, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Never,
    /// After so many bytes of its answer, once it has the whole request.
    Answering(usize),
    /// After so many bytes of the request's body, once it has sent its whole answer.
    Reading(usize),
}

/// What the backend reports: it has the whole request, or sent so much of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Uploaded,
    Stopped,
}

/// Answers `/big` with [`ANSWER`] bytes while it reads the request, and everything else with `ok`.
fn serve(mut socket: impl Socket, stop: Stop, answer: usize, news: &mpsc::Sender<News>) {
    let mut buffer = vec![0; 65_536];
    let mut head = Vec::new();
    loop {
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            match socket.read(&mut buffer).unwrap_or(0) {
                0 => return,
                count => head.extend_from_slice(&buffer[..count]),
            }
        }
        if head.starts_with(b"POST /big") || head.starts_with(b"GET /big") {
            break;
        }
        head.clear();
        if socket.write_all(crate::harness::OK).is_err() {
            return;
        }
    }
    let end = head.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0) + 4;
    let mut got = head.len() - end;
    let mut writer = socket.twin();
    let (uploaded, whole) = mpsc::channel();
    let writing_news = news.clone();
    let writing = thread::spawn(move || {
        let piece = vec![b'x'; 65_536];
        let mut sent = 0;
        if write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {answer}\r\n\r\n").is_err() {
            return;
        }
        while sent < answer {
            if stop == Stop::Answering(sent) {
                let _: Result<(), _> = whole.recv();
                let _ = writing_news.send(News::Stopped);
                // Until the test ends it.
                let _: Result<(), _> = whole.recv();
                return;
            }
            let length = piece.len().min(answer - sent);
            if matches!(stop, Stop::Reading(_)) && sent + length == answer {
                // Behind the whole answer nothing of the request need come any more.
                let _: Result<(), _> = whole.recv();
            }
            if writer.write_all(&piece[..length]).is_err() {
                return;
            }
            sent += length;
        }
    });
    while got < UPLOAD {
        if let Stop::Reading(at) = stop
            && got >= at
        {
            let _ = uploaded.send(());
            let _ = writing.join();
            let _ = news.send(News::Stopped);
            // Nothing of this connection is read any more, as long as the test lasts.
            return wait::pace(Duration::from_secs(60));
        }
        match socket.read(&mut buffer).unwrap_or(0) {
            0 => return,
            count => got += count,
        }
    }
    let _ = news.send(News::Uploaded);
    let _ = uploaded.send(());
    // The connection stays as it is until the proxy closes it.
    while socket.read(&mut buffer).is_ok_and(|count| count > 0) {}
}

/// A proxy with one worker between clients and such a backend.
struct Scene {
    proxy: Proxy,
    news: mpsc::Receiver<News>,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(unix: bool, stop: Stop, answer: usize) -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        let (sender, news) = mpsc::channel();
        let sender = Arc::new(sender);
        let address = if unix {
            let path = folder.path().join("backend.sock");
            let listener = UnixListener::bind(&path).expect("a socket for a backend");
            thread::spawn(move || {
                for socket in listener.incoming().flatten() {
                    let news = Arc::clone(&sender);
                    thread::spawn(move || serve(socket, stop, answer, &news));
                }
            });
            format!("unix:{}", path.display())
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port for a backend");
            let address = listener.local_addr().expect("its address").to_string();
            thread::spawn(move || {
                for socket in listener.incoming().flatten() {
                    let news = Arc::clone(&sender);
                    thread::spawn(move || serve(socket, stop, answer, &news));
                }
            });
            address
        };
        let proxy = Config::new()
            .root("graceful_timeout = 1")
            .frontend("all", r#"hostname = "*""#)
            .backend_at("all", &address, "")
            .start();
        Scene { proxy, news, _folder: folder }
    }

    /// A client that has sent its head and half of its body.
    fn client(&self) -> TcpStream {
        let mut client = TcpStream::connect(self.proxy.address()).expect("a connection to the proxy");
        client.set_read_timeout(Some(wait::SOON)).expect("SO_RCVTIMEO");
        client.set_write_timeout(Some(wait::SOON)).expect("SO_SNDTIMEO");
        let head = format!("POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n");
        client.write_all(head.as_bytes()).expect("the head of the request");
        client.write_all(&vec![b'u'; UPLOAD / 2]).expect("half of the body");
        client
    }

    /// The other half.
    fn send_rest(client: &mut TcpStream) {
        client.write_all(&vec![b'u'; UPLOAD / 2]).expect("the other half of the body");
    }

    #[track_caller]
    fn expect(&self, news: News) {
        let heard = self.news.recv_timeout(wait::SOON);
        assert_eq!(heard, Ok(news), "the backend; the worker: {}", standing(self.proxy.worker()));
    }

    /// Others are served, again and again, and the worker ends when it is told to.
    #[track_caller]
    fn others_are_served(mut self) {
        let worker = self.proxy.worker();
        for _ in 0..20 {
            let mut honest = self.proxy.client();
            honest.patience(PROMPT).send(crate::harness::GET);
            match honest.try_response() {
                Ok(answer) => answer.expect(200, "ok"),
                Err(broken) => panic!("an honest client: {broken}; the worker: {}", standing(worker)),
            }
            wait::pace(Duration::from_millis(25));
        }
        self.proxy.terminate();
        let status = self.proxy.wait(Duration::from_secs(5));
        // The exchange that does not go on is cut at `graceful_timeout`: that is what 3 says.
        assert!(status.code() == Some(3) && !worker.runs(), "{status}");
        let log = self.proxy.log();
        assert!(!log.contains("killed") && !log.contains("does not answer"), "{log}");
    }
}

/// Where a worker stands, for the message.
fn standing(worker: Process) -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", worker.0)).unwrap_or_default();
    format!("waits in `{}`, system call {}", read("wchan"), read("syscall").trim())
}

/// Reads so many bytes.
fn read(client: &mut TcpStream, count: usize) {
    client.read_exact(&mut vec![0; count]).expect("the beginning of the answer");
}

fn a_client_stops_reading(unix: bool) {
    let scene = Scene::new(unix, Stop::Never, ANSWER);
    let mut client = scene.client();
    read(&mut client, 3 * MIB);
    Scene::send_rest(&mut client);
    scene.expect(News::Uploaded);
    scene.others_are_served();
}

#[test]
fn a_client_that_stops_reading_behind_its_upload_stops_nobody_else() {
    a_client_stops_reading(false);
}

#[test]
fn a_client_that_stops_reading_behind_its_upload_to_a_unix_socket_stops_nobody_else() {
    a_client_stops_reading(true);
}

/// The client reads all it gets; the backend pauses.
fn a_backend_stops(unix: bool, stop: Stop, answer: usize) {
    let scene = Scene::new(unix, stop, answer);
    let mut client = scene.client();
    read(&mut client, 2 * MIB);
    let mut reader = client.try_clone().expect("a second descriptor");
    thread::spawn(move || {
        reader.set_read_timeout(None).expect("SO_RCVTIMEO");
        let mut buffer = vec![0; 65_536];
        while reader.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    let mut writer = client.try_clone().expect("a second descriptor");
    let writing = thread::spawn(move || writer.write_all(&vec![b'u'; UPLOAD / 2]));
    scene.expect(if matches!(stop, Stop::Answering(_)) { News::Uploaded } else { News::Stopped });
    scene.others_are_served();
    let _ = client.shutdown(Shutdown::Both);
    let _ = writing.join();
}

#[test]
fn a_backend_that_pauses_in_its_answer_behind_an_upload_stops_nobody_else() {
    a_backend_stops(false, Stop::Answering(4 * MIB), ANSWER);
}

#[test]
fn a_backend_on_a_unix_socket_that_pauses_in_its_answer_behind_an_upload_stops_nobody_else() {
    a_backend_stops(true, Stop::Answering(4 * MIB), ANSWER);
}

#[test]
fn a_backend_that_stops_reading_behind_its_answer_stops_nobody_else() {
    a_backend_stops(false, Stop::Reading(4 * MIB), 4 * MIB);
}

#[test]
fn a_backend_on_a_unix_socket_that_stops_reading_behind_its_answer_stops_nobody_else() {
    a_backend_stops(true, Stop::Reading(4 * MIB), 4 * MIB);
}

#[test]
fn a_listening_socket_that_somebody_else_has_made_blocking_stops_nobody() {
    let backend = Backend::respond(OK);
    let made_elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let same = made_elsewhere.try_clone().unwrap();
    let proxy = Config::to(&backend).activated(made_elsewhere).start();
    let mut established = proxy.client();
    ask(&mut established);
    for _ in 0..20 {
        // An init system does that before it starts the program again, while workers serve on.
        same.set_nonblocking(false).unwrap();
        // After it has been accepted there is no further one.
        let mut client = proxy.client();
        ask(&mut established);
        ask(&mut client);
    }
}

/// The kernel makes a larger table of descriptors for a process with threads behind a wait of 10 to 20 ms, each time.
#[test]
fn the_table_of_descriptors_does_not_grow_when_clients_come() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    let slots = || proxy.worker().status("FDSize").and_then(|slots| slots.parse::<usize>().ok()).unwrap();
    let before = slots();
    let mut clients: Vec<_> = (0..300).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(ask);
    assert!(before > 600, "it begins with {before} slots");
    assert_eq!(slots(), before, "slots in the table with 300 clients and their backends");
}
