//! The backend: a thread per connection that answers a handful of paths.
//!
//! | path | answer |
//! |---|---|
//! | `/hello` | `hello` |
//! | `/echo-target...` | the target itself, so that order and identity of answers show |
//! | `/bytes/N`, `/chunked/N` | N bytes of [`pattern`], by length or in chunks |
//! | `/sum` | length and hash of the request's body |
//! | `/hold` | `held`, once the driver says so |
//! | `/socket` | 101, a greeting in the same segment, an echo until the end, then a farewell |

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::message::{Head, SOCKET_DEADLINE, Sum, Wire, chunked, pattern};
use crate::wait_for;

/// First bytes of the tunnel, sent with the 101.
pub(crate) const GREETING: &[u8] = b"greeting in the segment of the 101";
/// Last bytes of the tunnel, sent after the client's end of stream.
pub(crate) const FAREWELL: &[u8] = b"farewell after the half-close";

/// A running backend.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    gate: Arc<Gate>,
}

/// What holds the answers to `/hold` back.
#[derive(Default)]
struct Gate {
    waiting: AtomicUsize,
    open: AtomicBool,
}

impl Backend {
    /// Listens on `address` (port 0: any) and serves until the driver ends.
    pub(crate) fn start(address: SocketAddr) -> io::Result<Backend> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let gate = Arc::new(Gate::default());
        let shared = Arc::clone(&gate);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let gate = Arc::clone(&shared);
                // A connection that breaks is the client's to report: it misses the answer.
                std::thread::spawn(move || serve(stream, &gate));
            }
        });
        Ok(Backend { address, gate })
    }

    /// Lets the next requests to `/hold` wait again.
    pub(crate) fn close_gate(&self) {
        self.gate.open.store(false, Ordering::SeqCst);
    }

    /// Answers what waits in `/hold`.
    pub(crate) fn open_gate(&self) {
        self.gate.open.store(true, Ordering::SeqCst);
    }

    /// How many requests wait in `/hold`.
    pub(crate) fn held(&self) -> usize {
        self.gate.waiting.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, gate: &Gate) -> io::Result<()> {
    let mut wire = Wire::new(stream)?;
    // Between requests the proxy may keep the connection as long as it likes.
    wire.stream.set_read_timeout(None)?;
    while let Some(head) = wire.read_head()? {
        wire.stream.set_read_timeout(Some(SOCKET_DEADLINE))?;
        let body = wire.read_body(&head, false)?;
        if head.second_word() == "/socket" {
            return tunnel(wire, &head);
        }
        let answer = answer(&head, &body, gate);
        wire.send(&answer)?;
        if head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            return Ok(());
        }
        wire.stream.set_read_timeout(None)?;
    }
    Ok(())
}

fn answer(head: &Head, body: &[u8], gate: &Gate) -> Vec<u8> {
    let target = head.second_word();
    let number = |prefix: &str| target.strip_prefix(prefix).and_then(|number| number.parse::<usize>().ok());
    if let Some(length) = number("/bytes/") {
        return with_length("200 OK", &pattern(length));
    }
    if let Some(length) = number("/chunked/") {
        let mut out = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Checked\r\n\r\n".to_vec();
        out.extend(chunked(&pattern(length), 9000));
        return out;
    }
    match target {
        "/hello" => with_length("200 OK", b"hello"),
        "/sum" => with_length("200 OK", Sum::of(body).to_string().as_bytes()),
        "/hold" => {
            gate.waiting.fetch_add(1, Ordering::SeqCst);
            let opened =
                wait_for(SOCKET_DEADLINE, "the gate", || gate.open.load(Ordering::SeqCst).then_some(()));
            gate.waiting.fetch_sub(1, Ordering::SeqCst);
            match opened {
                Ok(()) => with_length("200 OK", b"held"),
                Err(_) => with_length("500 Internal Server Error", b"the gate stayed shut"),
            }
        }
        target if target.starts_with("/echo-target") => with_length("200 OK", target.as_bytes()),
        _ => with_length("404 Not Found", b"the backend does not know this path"),
    }
}

fn with_length(status: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    out.extend_from_slice(body);
    out
}

/// Switches protocols and echoes bytes; what they mean is no business of a tunnel.
fn tunnel(mut wire: Wire, head: &Head) -> io::Result<()> {
    if !head.field("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
        return wire.send(&with_length("426 Upgrade Required", b"the upgrade did not arrive"));
    }
    let mut opening = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        .to_vec();
    opening.extend_from_slice(GREETING);
    wire.send(&opening)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = wire.stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        wire.stream.write_all(&buffer[..read])?;
    }
    wire.send(FAREWELL)?;
    wire.stream.shutdown(Shutdown::Write)
}
