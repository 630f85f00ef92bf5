//! What a round trip costs a server that only echoes: kakehi's ring, glommio's own sockets, and epoll.
//!
//! 64 connections, each with one message of 128 bytes under way. The server is one thread with a core of its own,
//! the clients are one thread on another (`KAKEHI_BENCH_CORES` names them, the first two are used). Criterion shows
//! the time of a round trip as the clients see it; the line below it is the one to compare: CPU time of the
//! server's thread per round trip, warm-up included, as the kernel's scheduler counts it.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kakehi_benches::accounting::thread_cpu_ns;
use kakehi_benches::cores::{Cores, pin_this_thread};
use nix::unistd::{Pid, gettid};

const CONNECTIONS: usize = 64;
const MESSAGE: [u8; 128] = *b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// A server that answers nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// With fewer round trips (as in a smoke test) the CPU time per round trip says nothing.
const MIN_ROUND_TRIPS: u64 = 1_000;

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;
/// Serves [`CONNECTIONS`] connections until all are closed; calls back with its address when it listens.
type Server = fn(&dyn Fn(SocketAddr)) -> Outcome;

mod kakehi {
    use std::cell::Cell;
    use std::net::{SocketAddr, TcpListener};
    use std::rc::Rc;

    use kakehi_engine::ring::{Accepted, Level, Listener, Recv, Ring, SendBuf, Settings, Stream};

    use super::{CONNECTIONS, Outcome};

    pub(super) fn serve(bound: &dyn Fn(SocketAddr)) -> Outcome {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        bound(listener.local_addr()?);
        let executor = super::glommio_sockets::executor()?;
        executor.run(async move {
            let ring = Ring::new(&Settings {
                level: Level::HIGHEST,
                buffer_count: 2048,
                buffer_size: 16384,
                body_memory: 0,
            })?;
            let listener = Listener::adopt(&ring, listener.into())?;
            let left = Rc::new(Cell::new(CONNECTIONS));
            ring.spawn(accept(ring.clone(), listener, Rc::clone(&left)));
            ring.drive(|| left.get() == 0).await?;
            Ok(())
        })
    }

    async fn accept(ring: Ring, listener: Listener, left: Rc<Cell<usize>>) {
        for _ in 0..CONNECTIONS {
            let Ok(Accepted { stream, .. }) = listener.accept().await else { return };
            let left = Rc::clone(&left);
            ring.spawn(async move {
                echo(stream).await;
                left.set(left.get() - 1);
            });
        }
    }

    async fn echo(stream: Stream) {
        while let Ok(Recv::Data(bytes)) = stream.receive().await {
            if stream.send(SendBuf::Received(bytes)).await.is_err() {
                return;
            }
        }
    }
}

mod glommio_sockets {
    use std::io;
    use std::net::SocketAddr;

    use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
    use glommio::net::{TcpListener, TcpStream};
    use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};

    use super::{CONNECTIONS, Outcome};

    /// Little registered memory: the default is more than some machines let a user lock.
    pub(super) fn executor() -> io::Result<LocalExecutor> {
        Ok(LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 16).make()?)
    }

    pub(super) fn serve(bound: &dyn Fn(SocketAddr)) -> Outcome {
        executor()?.run(async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io::Error::from)?;
            bound(listener.local_addr().map_err(io::Error::from)?);
            let mut tasks = Vec::new();
            for _ in 0..CONNECTIONS {
                let stream = listener.accept().await.map_err(io::Error::from)?;
                tasks.push(glommio::spawn_local(echo(stream)).detach());
            }
            for task in tasks {
                task.await;
            }
            Ok(())
        })
    }

    async fn echo(mut stream: TcpStream) {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

mod epoll {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};

    use mio::net::TcpStream;
    use mio::{Events, Interest, Poll, Token};

    use super::{CONNECTIONS, Outcome};

    pub(super) fn serve(bound: &dyn Fn(SocketAddr)) -> Outcome {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        bound(listener.local_addr()?);
        let mut poll = Poll::new()?;
        let mut streams = Vec::with_capacity(CONNECTIONS);
        for number in 0..CONNECTIONS {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
            streams.push(Some(stream));
        }
        let mut events = Events::with_capacity(CONNECTIONS);
        let mut left = CONNECTIONS;
        while left > 0 {
            poll.poll(&mut events, None)?;
            for event in &events {
                let place = &mut streams[event.token().0];
                if place.as_mut().is_some_and(|stream| !echo(stream)) {
                    *place = None;
                    left -= 1;
                }
            }
        }
        Ok(())
    }

    /// One read: it takes less than the buffer holds, so nothing is left and the next message is a new event.
    /// False when the client has gone.
    fn echo(stream: &mut TcpStream) -> bool {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// The clients: this thread, over edge-triggered epoll.
struct Clients {
    poll: mio::Poll,
    events: mio::Events,
    connections: Vec<Connection>,
}

struct Connection {
    stream: mio::net::TcpStream,
    received: usize,
}

impl Clients {
    fn connect(server: SocketAddr) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for number in 0..CONNECTIONS {
            let stream = std::net::TcpStream::connect(server)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, mio::Token(number), mio::Interest::READABLE)?;
            connections.push(Connection { stream, received: 0 });
        }
        Ok(Self { poll, events: mio::Events::with_capacity(CONNECTIONS), connections })
    }

    /// Makes so many round trips, spread over the connections as the server answers.
    fn round_trips(&mut self, wanted: u64) -> io::Result<()> {
        let (mut begun, mut done) = (0, 0);
        for connection in &mut self.connections {
            if begun < wanted {
                connection.send()?;
                begun += 1;
            }
        }
        while done < wanted {
            self.poll.poll(&mut self.events, Some(PATIENCE))?;
            if self.events.is_empty() {
                return Err(ErrorKind::TimedOut.into());
            }
            for event in &self.events {
                let connection = &mut self.connections[event.token().0];
                if !connection.receive()? {
                    continue;
                }
                done += 1;
                if begun < wanted {
                    connection.send()?;
                    begun += 1;
                }
            }
        }
        Ok(())
    }
}

impl Connection {
    fn send(&mut self) -> io::Result<()> {
        self.received = 0;
        // Nothing else is under way on this connection, so the kernel has room for it.
        self.stream.write_all(&MESSAGE)
    }

    /// Whether the message has come back whole.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 2 * MESSAGE.len()];
        while self.received < MESSAGE.len() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    let expected = MESSAGE.get(self.received..self.received + count);
                    if expected != Some(&buffer[..count]) {
                        return Err(io::Error::new(ErrorKind::InvalidData, "the echo is not what was sent"));
                    }
                    self.received += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A server with its clients connected, and what was measured so far.
struct Rig {
    clients: Clients,
    server: JoinHandle<Outcome>,
    thread: Pid,
    round_trips: u64,
    cpu_ns: u64,
}

impl Rig {
    fn start(serve: Server, cores: Cores) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (announce, announced) = mpsc::channel();
        let server = std::thread::spawn(move || {
            pin_this_thread(cores.proxy)?;
            serve(&|address| {
                // Nobody listens any more only when the benchmark has failed already.
                let _ = announce.send((address, gettid()));
            })
        });
        pin_this_thread(cores.generator)?;
        let Ok((address, thread)) = announced.recv() else {
            // It ended before it listened, and says why.
            return Err(match server.join() {
                Ok(Err(error)) => error,
                _ => "the server ended".into(),
            });
        };
        let clients = Clients::connect(address)?;
        Ok(Self { clients, server, thread, round_trips: 0, cpu_ns: 0 })
    }

    fn measure(&mut self, round_trips: u64) -> io::Result<Duration> {
        let before = thread_cpu_ns(self.thread)?;
        let begun = Instant::now();
        self.clients.round_trips(round_trips)?;
        let took = begun.elapsed();
        self.cpu_ns += thread_cpu_ns(self.thread)?.saturating_sub(before);
        self.round_trips += round_trips;
        Ok(took)
    }

    fn stop(self) -> Outcome {
        drop(self.clients);
        self.server.join().map_err(|_| "the server died")?
    }
}

#[expect(clippy::expect_used, reason = "a benchmark that cannot be made ends with the reason")]
fn echo(criterion: &mut Criterion) {
    let servers: [(&str, Server); 3] = [
        ("kakehi's ring", kakehi::serve),
        ("glommio's sockets", glommio_sockets::serve),
        ("epoll", epoll::serve),
    ];
    let named = std::env::var("KAKEHI_BENCH_CORES").ok();
    // Before this thread is bound to one of them.
    let cores = Cores::choose(named.as_deref()).expect("two cores");
    let mut group = criterion.benchmark_group("echo");
    group.throughput(Throughput::Elements(1));
    for (name, serve) in servers {
        // Not started when a filter leaves it out.
        let mut rig = None;
        group.bench_function(name, |bencher| {
            let rig = rig.get_or_insert_with(|| Rig::start(serve, cores).expect("an echo server"));
            bencher.iter_custom(|round_trips| rig.measure(round_trips).expect("every message comes back"));
        });
        if let Some(rig) = rig {
            if rig.round_trips >= MIN_ROUND_TRIPS {
                let cpu_ns = rig.cpu_ns as f64 / rig.round_trips as f64;
                println!("{:24}cpu:    {cpu_ns:.0} ns of the server per round trip", "");
            }
            rig.stop().expect("the server ends when its clients have gone");
        }
    }
    group.finish();
}

criterion_group!(ring_echo, echo);
criterion_main!(ring_echo);
