//! How often a worker asks its allocator for memory, per request: counted in the real program, so that nobody makes it more
//! without knowing.

use std::{fs, path::Path, process::Command};

use crate::harness::{Backend, Client, Config, Need, Pki, Proxy, chunks, machine};

/// Requests that are counted.
const REQUESTS: u64 = 500;
/// Those before, until everything that is kept is there.
const BEFORE: u64 = 50;
/// What a worker does besides, while so many requests are served: it looks after itself every second.
const BESIDE: u64 = 50;
const SIZE: usize = 64 << 10;

/// A library that counts, in `folder`.
fn counter(folder: &Path) -> String {
    let library = folder.join("allocations.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/whole/allocations.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-fno-builtin", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library.to_str().unwrap().to_owned()
}

/// A proxy whose worker counts.
struct Counted {
    proxy: Proxy,
    _folder: tempfile::TempDir,
    count: std::path::PathBuf,
}

impl Counted {
    fn start(config: Config) -> Counted {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("count");
        let proxy = config
            .environment("LD_PRELOAD", &counter(folder.path()))
            .environment("KAKEHI_TEST_ALLOCATIONS", name.to_str().unwrap())
            .start();
        let worker = proxy.workers()[0].0;
        Counted { proxy, count: folder.path().join(format!("count.{worker}")), _folder: folder }
    }

    fn taken(&self) -> u64 {
        u64::from_ne_bytes(fs::read(&self.count).unwrap().try_into().unwrap())
    }

    /// Fails unless each exchange takes so many allocations, or up to twice as many where a large body may come in more pieces.
    #[track_caller]
    fn expect(&self, each: u64, body: Body, what: &str, mut exchange: impl FnMut()) {
        (0..BEFORE).for_each(|_| exchange());
        let before = self.taken();
        (0..REQUESTS).for_each(|_| exchange());
        let taken = self.taken() - before;
        let is_right = match body {
            Body::Small => (each * REQUESTS..=each * REQUESTS + BESIDE).contains(&taken),
            // It may come in more pieces.
            Body::Large => taken <= 2 * each * REQUESTS,
        };
        assert!(is_right, "{what}: {taken} allocations in {REQUESTS} requests, not {each} in each");
    }
}

/// Whether a body fits the first buffer.
enum Body {
    Small,
    Large,
}

fn backend() -> Backend {
    Backend::answer(|request| match request.target() {
        "/chunks" => {
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            answer.extend(chunks(&[b'x'; SIZE], SIZE));
            answer.extend(b"0\r\n\r\n");
            answer
        }
        "/length" => {
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
            answer.extend([b'x'; SIZE]);
            answer
        }
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    })
}

fn get(client: &mut Client, target: &str) {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
    assert_eq!(client.response().status(), 200);
}

fn post(client: &mut Client, size: usize) {
    let mut request =
        format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {size}\r\n\r\n").into_bytes();
    request.resize(request.len() + size, b'x');
    client.send(request);
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_request_takes_as_many_allocations_as_stand_here() {
    if !machine::has(Need::Program("cc")) {
        return;
    }
    let backend = backend();
    let counted = Counted::start(Config::to(&backend));
    let mut client = counted.proxy.client();
    counted.expect(1, Body::Small, "a small response", || get(&mut client, "/"));
    counted.expect(1, Body::Small, "a small upload", || post(&mut client, 100));
    counted.expect(2, Body::Small, "a new connection", || get(&mut counted.proxy.client(), "/"));
    counted.expect(4, Body::Large, "64 KiB with a length", || get(&mut client, "/length"));
    counted.expect(6, Body::Large, "64 KiB in a chunk", || get(&mut client, "/chunks"));
    counted.expect(7, Body::Large, "an upload of 64 KiB", || post(&mut client, SIZE));
}

#[test]
fn a_request_over_tls_takes_as_many_allocations_as_stand_here() {
    if !machine::has(Need::Program("cc")) {
        return;
    }
    let (backend, pki) = (backend(), Pki::new());
    let counted = Counted::start(Config::https_to(&backend, &pki.issue(&["a.example"])));
    let mut client = pki.caller().to("a.example").connect(counted.proxy.address());
    counted.expect(4, Body::Small, "a small response", || get(&mut client, "/"));
    counted.expect(13, Body::Large, "64 KiB with a length", || get(&mut client, "/length"));
    counted.expect(15, Body::Large, "an upload of 64 KiB", || post(&mut client, SIZE));
}
