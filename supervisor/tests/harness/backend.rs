//! A backend: each of its connections runs a script in a thread, and all that arrives is kept.

use std::{
    io::Read as _,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as SocketAddress, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use super::{
    Broken, Lock, Message, Server, wait,
    wire::{Stream, Wire},
};

#[derive(Default)]
struct Record {
    /// By connection, in the order of their arrival: every byte.
    received: Vec<Vec<u8>>,
    /// In the order in which they became whole.
    requests: Vec<(usize, Message)>,
    /// Connections whose script has ended.
    ended: usize,
    /// To cut them when the backend goes.
    open: Vec<Stream>,
}

/// A server of the test's own.
pub(crate) struct Backend {
    address: Address,
    record: Arc<Lock<Record>>,
    gone: Arc<AtomicBool>,
}

enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

fn socket_address(path: &Path) -> SocketAddress {
    match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => SocketAddress::from_abstract_name(name),
        None => SocketAddress::from_pathname(path),
    }
    .expect("an address for a backend")
}

impl Backend {
    /// Answers every request with these bytes, and keeps the connection.
    pub(crate) fn respond(answer: impl AsRef<[u8]>) -> Backend {
        let answer = answer.as_ref().to_vec();
        Backend::script(move |conn| while conn.serve(|_| answer.clone()) {})
    }

    /// Answers every request with what `answer` makes of it, and keeps the connection.
    pub(crate) fn answer(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Backend {
        Backend::script(move |conn| while conn.serve(&answer) {})
    }

    /// Answers every request with 200, those for `/slow` when the sender is used or dropped.
    pub(crate) fn slow() -> (Backend, mpsc::Sender<()>) {
        let (go, gone) = mpsc::channel();
        let gone = Lock::new(gone);
        let backend = Backend::script(move |conn| {
            while let Some(request) = conn.request() {
                if request.target() == "/slow" {
                    let _ = gone.lock().unwrap().recv();
                }
                conn.send(super::OK);
            }
        });
        (backend, go)
    }

    /// Answers every request with these bytes, and closes.
    pub(crate) fn respond_and_close(answer: impl AsRef<[u8]>) -> Backend {
        let answer = answer.as_ref().to_vec();
        Backend::script(move |conn| {
            conn.serve(|_| answer.clone());
        })
    }

    /// Runs `script` on every connection; it is closed when the script returns.
    pub(crate) fn script(script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for a backend");
        Backend::on(listener, script)
    }

    /// The same behind a socket that listens already.
    pub(crate) fn on(listener: TcpListener, script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
        let address = Address::Tcp(listener.local_addr().expect("the address of a backend"));
        Backend::run(address, script, move || {
            let (stream, _) = listener.accept().ok()?;
            Some((Stream::Tcp(stream.try_clone().ok()?), Stream::Tcp(stream)))
        })
    }

    /// Runs `script` on every connection, over TLS.
    pub(crate) fn tls(server: &Server, script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for a backend");
        let address = Address::Tcp(listener.local_addr().expect("the address of a backend"));
        let server = server.clone();
        Backend::run(address, script, move || {
            let (stream, _) = listener.accept().ok()?;
            let cutter = Stream::Tcp(stream.try_clone().ok()?);
            Some((Stream::Tls(Box::new(server.accept(stream))), cutter))
        })
    }

    /// The same behind a header of the PROXY protocol (version 2, IPv4).
    pub(crate) fn tls_behind_header(
        server: &Server,
        script: impl Fn(&mut Conn) + Send + Sync + 'static,
    ) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for a backend");
        let address = Address::Tcp(listener.local_addr().expect("the address of a backend"));
        let server = server.clone();
        Backend::run(address, script, move || {
            let (mut stream, _) = listener.accept().ok()?;
            let cutter = Stream::Tcp(stream.try_clone().ok()?);
            // Of the connection that ends the thread nothing comes.
            let _ = stream.read_exact(&mut [0; 28]);
            Some((Stream::Tls(Box::new(server.accept(stream))), cutter))
        })
    }

    /// Answers every request with these bytes, over TLS, and keeps the connection.
    pub(crate) fn respond_over_tls(server: &Server, answer: impl AsRef<[u8]>) -> Backend {
        let answer = answer.as_ref().to_vec();
        Backend::tls(server, move |conn| while conn.serve(|_| answer.clone()) {})
    }

    /// The same behind a Unix socket at `path`, or `@name` for one without a file.
    pub(crate) fn unix(path: &Path, script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
        let listener = UnixListener::bind_addr(&socket_address(path)).expect("a socket for a backend");
        Backend::run(Address::Unix(path.to_owned()), script, move || {
            let (stream, _) = listener.accept().ok()?;
            Some((Stream::Unix(stream.try_clone().ok()?), Stream::Unix(stream)))
        })
    }

    fn run(
        address: Address,
        script: impl Fn(&mut Conn) + Send + Sync + 'static,
        accept: impl Fn() -> Option<(Stream, Stream)> + Send + 'static,
    ) -> Backend {
        let record = Arc::new(Lock::<Record>::default());
        let gone = Arc::new(AtomicBool::new(false));
        let script = Arc::new(script);
        let backend = Backend { address, record: Arc::clone(&record), gone: Arc::clone(&gone) };
        thread::spawn(move || {
            while let Some((stream, cutter)) = accept() {
                if gone.load(Ordering::SeqCst) {
                    return;
                }
                let mut known = record.lock().expect("record");
                let number = known.received.len();
                known.received.push(Vec::new());
                known.open.push(cutter);
                drop(known);
                let (record, script) = (Arc::clone(&record), Arc::clone(&script));
                thread::spawn(move || {
                    let kept = Arc::clone(&record);
                    let tap = Box::new(move |bytes: &[u8]| {
                        kept.lock().expect("record").received[number].extend_from_slice(bytes);
                    });
                    let mut conn = Conn { wire: Wire::new(stream, None, Some(tap)), number, record };
                    script(&mut conn);
                    conn.wire.shutdown(Shutdown::Write);
                    conn.record.lock().expect("record").ended += 1;
                    conn.record.lock().expect("record").open[number] =
                        Stream::Unix(UnixStream::pair().expect("pair").0);
                });
            }
        });
        backend
    }

    /// As a value of `backends[].address`.
    pub(crate) fn address(&self) -> String {
        match &self.address {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Where a TCP backend listens.
    pub(crate) fn socket_address(&self) -> SocketAddr {
        match self.address {
            Address::Tcp(address) => address,
            Address::Unix(_) => panic!("a backend on a unix socket has no port"),
        }
    }

    /// Connections that were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.record.lock().expect("record").received.len()
    }

    /// Connections whose script has ended: the proxy closed them, or the script did.
    pub(crate) fn ended(&self) -> usize {
        self.record.lock().expect("record").ended
    }

    /// Whole requests, in the order in which they became whole.
    pub(crate) fn requests(&self) -> Vec<Message> {
        self.record.lock().expect("record").requests.iter().map(|(_, request)| request.clone()).collect()
    }

    /// The only request there is; fails if there is another number of them.
    #[track_caller]
    pub(crate) fn request(&self) -> Message {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "requests that reached the backend");
        requests.remove(0)
    }

    /// Targets of the whole requests.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.requests().iter().map(|request| request.target().to_owned()).collect()
    }

    /// Every byte of every connection.
    pub(crate) fn received(&self) -> Vec<u8> {
        self.record.lock().expect("record").received.concat()
    }

    /// Fails if a single byte reached the backend.
    #[track_caller]
    pub(crate) fn expect_untouched(&self) {
        let received = self.received();
        assert!(received.is_empty(), "the backend was sent: {}", super::show(&received));
    }

    /// Waits until so many whole requests have come.
    #[track_caller]
    pub(crate) fn wait_for_requests(&self, count: usize) {
        wait::until(&format!("{count} requests at the backend"), || self.requests().len() >= count);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- backend {} ---", self.address());
            for (number, bytes) in self.record.lock().expect("record").received.iter().enumerate() {
                eprintln!("connection {number}: {}", super::show(bytes));
            }
        }
        self.gone.store(true, Ordering::SeqCst);
        match &self.address {
            Address::Tcp(address) => drop(TcpStream::connect(address)),
            Address::Unix(path) => drop(UnixStream::connect_addr(&socket_address(path))),
        }
        for stream in &self.record.lock().expect("record").open {
            let _ = match stream {
                Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
                Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
                Stream::Tls(_) => Ok(()),
            };
        }
    }
}

/// One connection of a backend, in the hands of its script.
pub(crate) struct Conn {
    wire: Wire,
    /// Which connection this is, from 0.
    pub(crate) number: usize,
    record: Arc<Lock<Record>>,
}

impl Conn {
    /// Reads a request with its body; `None` when the proxy closed, or sent no whole request.
    pub(crate) fn request(&mut self) -> Option<Message> {
        let mut request = self.head()?;
        self.body(&mut request)?;
        Some(request)
    }

    /// Reads a request's head.
    pub(crate) fn head(&mut self) -> Option<Message> {
        Message::read_head(&mut self.wire).ok()
    }

    /// Reads the body of a request whose head has been read; the request then counts as whole.
    pub(crate) fn body(&mut self, request: &mut Message) -> Option<()> {
        request.read_request_body(&mut self.wire).ok()?;
        self.record.lock().expect("record").requests.push((self.number, request.clone()));
        Some(())
    }

    /// Sends; whether the proxy took it.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.write(bytes.as_ref()).is_ok()
    }

    /// Reads one request and answers it; whether there was one.
    pub(crate) fn serve(&mut self, answer: impl Fn(&Message) -> Vec<u8>) -> bool {
        self.request().is_some_and(|request| {
            let answer = answer(&request);
            self.send(answer)
        })
    }

    /// Reads exactly so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        self.wire.read_exactly(count)
    }

    /// Reads until the proxy ends its direction.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        self.wire.read_to_end().0
    }

    /// Sends back whatever comes until the proxy ends its direction.
    pub(crate) fn echo(&mut self) {
        while let Ok(bytes) = self.wire.read_some() {
            if !self.send(bytes) {
                return;
            }
        }
    }

    /// Ends its direction, and goes on reading.
    pub(crate) fn half_close(&mut self) {
        self.wire.shutdown(Shutdown::Write);
    }

    /// Closes its direction without a word of TLS.
    pub(crate) fn cut(&mut self) {
        self.wire.cut();
    }

    /// How the proxy's direction ends, after whatever comes before.
    pub(crate) fn end(&mut self) -> super::End {
        self.wire.read_to_end().1
    }

    /// The connection will end with a reset.
    pub(crate) fn reset(&mut self) {
        self.wire.reset_on_close();
    }
}
