//! Many peers that take more than their share: clients in one thread, and a backend for them in another.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::LocalSet,
    time::{sleep, timeout},
};

use super::wait;

/// What each of them does, again and again when it is cut.
#[derive(Clone, Debug)]
pub(crate) enum Habit {
    /// Connects and says nothing.
    Mute,
    /// Sends this, and never reads.
    Deaf(String),
    /// Sends this, and then a byte at each interval.
    Trickle(String, u8, Duration),
    /// Sends this, and then reads so many bytes at each interval.
    Sip(String, usize, Duration),
    /// Sends this, reads so many bytes, and resets the connection.
    Reset(String, usize),
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    arrived: AtomicUsize,
    ended: AtomicUsize,
}

/// Clients of one habit.
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    count: usize,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Sends them; returns when each has sent its request.
    #[track_caller]
    pub(crate) fn of(count: usize, address: SocketAddr, habit: &Habit) -> Crowd {
        let shared = Arc::new(Shared::default());
        let (inside, habit) = (Arc::clone(&shared), habit.clone());
        let thread = thread::spawn(move || {
            on_one_thread(async move {
                for _ in 0..count {
                    let (shared, habit) = (Arc::clone(&inside), habit.clone());
                    tokio::task::spawn_local(async move {
                        let mut first = true;
                        loop {
                            // That a connection ends is part of its life.
                            let _ = live(address, &habit, &shared, std::mem::take(&mut first)).await;
                            shared.ended.fetch_add(1, Ordering::SeqCst);
                            sleep(Duration::from_millis(20)).await;
                        }
                    });
                }
                while !inside.stop.load(Ordering::SeqCst) {
                    sleep(Duration::from_millis(20)).await;
                }
            });
        });
        let crowd = Crowd { shared, count, thread: Some(thread) };
        wait::within(Duration::from_secs(20), "the greedy clients are there", || {
            (crowd.shared.arrived.load(Ordering::SeqCst) >= crowd.count).then_some(())
        });
        crowd
    }

    /// Connections that have ended, by whatever side.
    pub(crate) fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::SeqCst)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn on_one_thread(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future);
}

async fn live(address: SocketAddr, habit: &Habit, shared: &Shared, first: bool) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // The kernel must not read for those who do not.
    if !matches!(habit, Habit::Reset(..)) {
        socket.set_recv_buffer_size(4_096)?;
    }
    let mut stream = timeout(Duration::from_secs(10), socket.connect(address)).await??;
    let text = match habit {
        Habit::Mute => "",
        Habit::Deaf(text) | Habit::Trickle(text, ..) | Habit::Sip(text, ..) | Habit::Reset(text, _) => text,
    };
    stream.write_all(text.as_bytes()).await?;
    if first {
        shared.arrived.fetch_add(1, Ordering::SeqCst);
    }
    let mut buffer = vec![0; 16_384];
    match habit {
        Habit::Mute => {
            let _ = stream.read(&mut buffer).await?;
        }
        Habit::Deaf(_) => std::future::pending().await,
        Habit::Trickle(_, byte, interval) => loop {
            sleep(*interval).await;
            stream.write_all(&[*byte]).await?;
        },
        Habit::Sip(_, bytes, interval) => loop {
            sleep(*interval).await;
            if stream.read(&mut buffer[..*bytes]).await? == 0 {
                return Ok(());
            }
        },
        Habit::Reset(_, bytes) => {
            let mut got = 0;
            while got < *bytes {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    count => got += count,
                }
            }
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
    }
    Ok(())
}

/// A backend for a crowd, in one thread: `/` is `ok`; `/length` and `/chunked` are a page of so many bytes; `/trickle`
/// sends a byte of its page every 20 ms; `/hang` is never answered. A request's body is read before the answer.
pub(crate) struct Pages {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pages {
    pub(crate) fn of(size: usize) -> Pages {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port for a backend");
        // All of a crowd may be sent here at once.
        socket.listen(4_096).expect("a backend that listens");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr().expect("its address");
        let stop = Arc::new(AtomicBool::new(false));
        let inside = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            on_one_thread(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                tokio::task::spawn_local(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::task::spawn_local(async move {
                            // The proxy may go at any time.
                            let _ = serve(stream, size).await;
                        });
                    }
                });
                while !inside.load(Ordering::SeqCst) {
                    sleep(Duration::from_millis(20)).await;
                }
            });
        });
        Pages { address, stop, thread: Some(thread) }
    }

    /// As a value of `backends[].address`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve(mut stream: TcpStream, size: usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(place) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break place + 4;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        bytes.drain(..end);
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(0);
        while bytes.len() < length {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        bytes.drain(..length);
        match head.split(' ').nth(1).unwrap_or("") {
            "/length" => {
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes())
                    .await?;
                stream.write_all(&vec![b'x'; size]).await?;
            }
            "/chunked" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                stream.write_all(&super::chunks(&vec![b'x'; size], 8_192)).await?;
                stream.write_all(b"0\r\n\r\n").await?;
            }
            "/trickle" => {
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes())
                    .await?;
                for _ in 0..size {
                    sleep(Duration::from_millis(20)).await;
                    stream.write_all(b"x").await?;
                }
            }
            "/hang" => while stream.read(&mut [0; 1_024]).await? > 0 {},
            _ => stream.write_all(super::OK).await?,
        }
    }
}
