//! The backend, and the relay that makes clients 20 ms away.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// One way of the relay; both ways together are the 20 ms.
const DELAY: Duration = Duration::from_millis(10);
/// Longest head of a request (bytes).
const MAX_HEAD: usize = 16 << 10;
/// Size of the answer to a request for `/page` or `/chunked`.
pub(crate) const PAGE: usize = 240_000;
/// Size of its chunks.
const CHUNK: usize = 16_000;

/// Serves requests on `listener`: an answer of 16 bytes after the whole request, a body as it comes (`/echo`), a page with a
/// length or in chunks, or a tunnel that echoes.
pub(crate) async fn backend(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            // A connection that breaks is seen by the client, which counts it.
            let _ = serve(stream).await;
        });
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if bytes.len() > MAX_HEAD || stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        if field("upgrade").is_some() {
            stream
                .write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
                )
                .await?;
            stream.write_all(&bytes[head..]).await?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await?;
            return to.shutdown().await;
        }
        let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        match text.split(' ').nth(1).unwrap_or_default() {
            "/echo" => {
                bytes.drain(..head);
                echo(&mut stream, std::mem::take(&mut bytes), length).await?;
                continue;
            }
            "/page" => {
                bytes.drain(..head);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {PAGE}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&vec![b'p'; PAGE]).await?;
                continue;
            }
            "/chunked" => {
                bytes.drain(..head);
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &vec![b'p'; CHUNK], b"\r\n"].concat();
                for _ in 0..PAGE / CHUNK {
                    stream.write_all(&chunk).await?;
                }
                stream.write_all(b"0\r\n\r\n").await?;
                continue;
            }
            _ => {}
        }
        while bytes.len() < head + length {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        bytes.drain(..head + length);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\nsixteen bytes ok").await?;
    }
}

/// Sends back a body of `length` bytes, of which `first` have come, while the rest of it comes.
async fn echo(stream: &mut TcpStream, first: Vec<u8>, length: usize) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    to.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
    to.write_all(&first).await?;
    let mut rest = (&mut from).take((length - first.len()) as u64);
    tokio::io::copy(&mut rest, &mut to).await?;
    Ok(())
}

/// Passes everything that comes to `listener` on to `target`, and back, each way later by [`DELAY`].
pub(crate) async fn relay(listener: TcpListener, target: SocketAddr) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::join!(delay(from_client, to_server), delay(from_server, to_client));
        });
    }
}

/// What one side sends reaches the other later, its end included; a reset arrives as an end.
async fn delay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut arriving) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut bytes = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut bytes).await {
            if sender.send((Instant::now() + DELAY, bytes[..length].to_vec())).is_err() {
                return;
            }
        }
        let _ = sender.send((Instant::now() + DELAY, Vec::new()));
    };
    let writing = async move {
        while let Some((when, bytes)) = arriving.recv().await {
            sleep_until(when).await;
            let written = if bytes.is_empty() { to.shutdown().await } else { to.write_all(&bytes).await };
            if written.is_err() || bytes.is_empty() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
