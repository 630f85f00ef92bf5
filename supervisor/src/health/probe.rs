//! One probe: a connection of its own, with one absolute deadline, and what came of it.
//!
//! Whatever a backend does or does not do, a probe ends at its deadline. What is wrong with this process or host (no descriptor, no
//! port, a supervisor that was stopped) says nothing of the backend: [`Outcome::Void`].

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use kakehi_ctl::state::{BackendAddress, ProbeMode};
use kakehi_engine::tls::ClientTls;
use rustls::{CertificateError, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout_at},
};

use super::{
    Outcome,
    answer::Answer,
    plan::{Field, Plan},
};

/// A deadline that is found to have passed for so long passed while this process did not run.
const LATE: Duration = Duration::from_millis(500);
/// Bytes that are received at a time.
const PIECE: usize = 4_096;
/// A header of the PROXY protocol, version 2, of a connection that is nobody's but our own (`LOCAL`).
const PROXY_LOCAL: &[u8; 16] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// How far a probe is.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Stage {
    Connecting,
    Handshake,
    Answer,
}

const WAITED_FOR: [&str; 3] = ["no connection", "no TLS handshake", "no whole answer"];

/// Probes what is at `address`.
pub(super) async fn probe(
    plan: &Plan,
    address: &BackendAddress,
    tls: Option<&Result<Arc<ClientTls>, String>>,
) -> Outcome {
    let tls = match tls {
        Some(Ok(tls)) => Some(&**tls),
        Some(Err(reason)) => return Outcome::Void(format!("TLS cannot be set up: {reason}").into()),
        None => None,
    };
    let fields = match plan.fields().await {
        Ok(fields) => fields,
        Err(reason) => return Outcome::Void(reason.into()),
    };
    let timeout = Duration::from_millis(plan.check.timeout_ms);
    let deadline = Instant::now() + timeout;
    let stage = AtomicU8::new(Stage::Connecting as u8);
    match timeout_at(deadline, attempt((plan, &fields), address, tls, &stage)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => of_error(&error),
        Err(_) if deadline.elapsed() > LATE => Outcome::Void("the supervisor did not run meanwhile".into()),
        Err(_) => {
            let what = WAITED_FOR[usize::from(stage.load(Ordering::Relaxed)).min(WAITED_FOR.len() - 1)];
            Outcome::bad(format!("{what} within {} s", timeout.as_secs_f64()))
        }
    }
}

async fn attempt(
    (plan, fields): (&Plan, &[Field]),
    address: &BackendAddress,
    tls: Option<&ClientTls>,
    stage: &AtomicU8,
) -> io::Result<Outcome> {
    match address {
        BackendAddress::Ip(address) => {
            let address = SocketAddr::new(address.ip(), plan.check.port.unwrap_or(address.port()));
            let stream = TcpStream::connect(address).await?;
            let name = tls.map(|tls| (tls, tls.name(None, Some(address.ip()))));
            converse(stream, (plan, fields), name, stage, &address.to_string()).await
        }
        BackendAddress::Resolved(resolved) => {
            let (ip, host) = (resolved.address.ip(), &*resolved.server_name);
            let address = SocketAddr::new(ip, plan.check.port.unwrap_or(resolved.address.port()));
            let stream = TcpStream::connect(address).await?;
            let name = tls.map(|tls| (tls, tls.name(Some(host), Some(ip))));
            converse(stream, (plan, fields), name, stage, &format!("{host}:{}", address.port())).await
        }
        // Nobody knows where it is.
        BackendAddress::Name(_) => Ok(Outcome::Void("it has a name in the place of an address".into())),
        BackendAddress::Unix(path) => {
            let stream = UnixStream::connect(BackendAddress::socket_path(path)).await?;
            let name = tls.map(|tls| (tls, tls.name(None, None)));
            converse(stream, (plan, fields), name, stage, "localhost").await
        }
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    (plan, fields): (&Plan, &[Field]),
    tls: Option<(&ClientTls, ServerName<'static>)>,
    stage: &AtomicU8,
    host: &str,
) -> io::Result<Outcome> {
    if plan.send_proxy {
        stream.write_all(PROXY_LOCAL).await?;
    }
    let speaks_tls = tls.is_some();
    let mut wire = match tls {
        None => Wire::Plain(stream),
        Some((tls, name)) => {
            stage.store(Stage::Handshake as u8, Ordering::Relaxed);
            match TlsStream::begin(stream, tls, name).await? {
                Ok(stream) => Wire::Tls(Box::new(stream)),
                Err(outcome) => return Ok(outcome),
            }
        }
    };
    if plan.check.mode == ProbeMode::Tcp {
        return Ok(Outcome::good(if speaks_tls { "a TLS handshake" } else { "a connection" }));
    }
    stage.store(Stage::Answer as u8, Ordering::Relaxed);
    wire.send(&plan.request(host, fields)).await?;
    let mut answer = Answer::new(&plan.check);
    let mut piece = [0; PIECE];
    loop {
        let length = wire.receive(&mut piece).await?;
        if length == 0 {
            return Ok(answer.end());
        }
        if let Some(outcome) = answer.take(&piece[..length]) {
            return Ok(outcome);
        }
    }
}

/// What an error says of the backend, in words that it cannot choose.
fn of_error(error: &io::Error) -> Outcome {
    use rustix::io::Errno;
    let here = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL, Errno::PERM];
    if Errno::from_io_error(error).is_some_and(|errno| here.contains(&errno)) {
        return Outcome::Void(format!("no probe could be made: {}", error.kind()).into());
    }
    Outcome::bad(match error.kind() {
        io::ErrorKind::ConnectionRefused => "it refuses connections".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "it reset the connection".to_owned(),
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        // Of a unix socket.
        io::ErrorKind::WouldBlock => "its queue is full".to_owned(),
        kind => kind.to_string(),
    })
}

enum Wire<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.write_all(bytes).await,
            Wire::Tls(stream) => stream.send(bytes).await,
        }
    }

    /// 0 at the end.
    async fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read(bytes).await,
            Wire::Tls(stream) => stream.receive(bytes).await,
        }
    }
}

/// TLS over a stream. What rustls keeps of a peer is bounded: a record, and a message of the handshake.
struct TlsStream<S> {
    stream: S,
    connection: ClientConnection,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Does the handshake; otherwise what it says of the backend.
    async fn begin(
        stream: S,
        tls: &ClientTls,
        name: ServerName<'static>,
    ) -> io::Result<Result<TlsStream<S>, Outcome>> {
        let connection = match ClientConnection::new(Arc::clone(&tls.config), name) {
            Ok(connection) => connection,
            Err(error) => return Ok(Err(Outcome::Void(format!("TLS cannot be set up: {error}").into()))),
        };
        let mut stream = TlsStream { stream, connection };
        while stream.connection.is_handshaking() {
            stream.flush().await?;
            match stream.pull().await? {
                Ok(0) => return Ok(Err(Outcome::bad("it closed the connection in the TLS handshake"))),
                Ok(_) => {}
                Err(error) => return Ok(Err(Outcome::bad(of_tls(&error)))),
            }
        }
        stream.flush().await?;
        Ok(Ok(stream))
    }

    async fn flush(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut records)?;
        }
        self.stream.write_all(&records).await
    }

    /// Receives some bytes and reads what is whole of them; 0 at the end.
    async fn pull(&mut self) -> io::Result<Result<usize, rustls::Error>> {
        let mut bytes = [0; PIECE];
        let length = self.stream.read(&mut bytes).await?;
        let mut rest = &bytes[..length];
        while !rest.is_empty() {
            self.connection.read_tls(&mut rest)?;
            if let Err(error) = self.connection.process_new_packets() {
                // The alert, if the backend still takes it.
                let _ = self.flush().await;
                return Ok(Err(error));
            }
        }
        Ok(Ok(length))
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.connection.writer(), bytes)?;
        self.flush().await
    }

    async fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match io::Read::read(&mut self.connection.reader(), bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It has closed the connection without a word of TLS: what came is all the same whole, or not.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            match self.pull().await? {
                Ok(0) => return Ok(0),
                Ok(_) => self.flush().await?,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}

/// Why a handshake failed, in words that the backend cannot choose.
fn of_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(reason) => {
            let reason = match reason {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "it is not valid yet"
                }
                CertificateError::UnknownIssuer => "its issuer is not known",
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "it is for another name"
                }
                CertificateError::BadSignature => "its signature is wrong",
                _ => "it cannot be verified",
            };
            format!("its certificate is not accepted: {reason}")
        }
        rustls::Error::AlertReceived(alert) => format!("it gave the TLS handshake up: {alert:?}"),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        _ => "the TLS handshake failed".to_owned(),
    }
}
