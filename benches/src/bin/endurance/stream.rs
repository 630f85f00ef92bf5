//! A client's connection, in clear text or over TLS, and the sessions that it resumes.

use std::{
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The name that clients over TLS ask for.
pub(crate) const NAME: &str = "endurance.test";
/// Tickets that are kept: those of connections that are made at once, and more.
const TICKETS: usize = 4096;
/// What is read at once (bytes).
const CHUNK: usize = 16 << 10;

/// What clients over TLS have in common.
pub(crate) struct Trust {
    config: Arc<ClientConfig>,
    tickets: Arc<Tickets>,
}

impl Trust {
    /// That of clients that trust `issuer`.
    ///
    /// # Errors
    /// When that is no certificate.
    pub(crate) fn new(issuer: CertificateDer<'static>) -> io::Result<Trust> {
        let mut roots = RootCertStore::empty();
        roots.add(issuer).map_err(io::Error::other)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tickets =
            Arc::new(Tickets { cache: ClientSessionMemoryCache::new(TICKETS), taken: AtomicU64::new(0) });
        config.resumption = Resumption::store(Arc::clone(&tickets) as Arc<dyn ClientSessionStore>);
        Ok(Trust { config: Arc::new(config), tickets })
    }
}

/// Counts the tickets that are used, to be compared with the sessions that were resumed.
#[derive(Debug)]
struct Tickets {
    cache: ClientSessionMemoryCache,
    taken: AtomicU64,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.cache.set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.cache.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.cache.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.cache.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let ticket = self.cache.take_tls13_ticket(name)?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(ticket)
    }
}

/// What became of an offer to resume a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resumed {
    NotOffered,
    Accepted,
    Refused,
}

/// A connection.
pub(crate) struct Stream {
    socket: TcpStream,
    session: Option<Box<ClientConnection>>,
    /// What was read and not asked for yet.
    unread: Vec<u8>,
}

impl Stream {
    /// One in clear text.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Stream> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Stream { socket, session: None, unread: Vec::new() })
    }

    /// One over TLS, whose handshake is done; whether it resumes a session.
    ///
    /// # Errors
    /// When it is refused, or the handshake fails.
    pub(crate) async fn connect_secure(address: SocketAddr, trust: &Trust) -> io::Result<(Stream, Resumed)> {
        let mut stream = Stream::connect(address).await?;
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let taken = || trust.tickets.taken.load(Ordering::Relaxed);
        let before = taken();
        let session = ClientConnection::new(Arc::clone(&trust.config), name).map_err(io::Error::other)?;
        let offered = taken() > before;
        let session = stream.session.insert(Box::new(session));
        while session.is_handshaking() {
            flush(&stream.socket, session).await?;
            if session.is_handshaking() && !receive(&stream.socket, session).await? {
                return Err(io::Error::other("closed in the handshake"));
            }
        }
        flush(&stream.socket, session).await?;
        let resumed = match session.handshake_kind() {
            Some(HandshakeKind::Resumed) => Resumed::Accepted,
            _ if offered => Resumed::Refused,
            _ => Resumed::NotOffered,
        };
        Ok((stream, resumed))
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.session {
            None => self.socket.write_all(bytes).await,
            Some(session) => {
                session.writer().write_all(bytes)?;
                flush(&self.socket, session).await
            }
        }
    }

    pub(crate) async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        while self.unread.len() < into.len() {
            self.fill().await?;
        }
        into.copy_from_slice(&self.unread[..into.len()]);
        self.unread.drain(..into.len());
        Ok(())
    }

    /// Sends all of `bytes`, and reads as many as `into` takes at the same time. In clear text.
    pub(crate) async fn converse(&mut self, bytes: &[u8], into: &mut [u8]) -> io::Result<()> {
        if self.session.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let known = self.unread.len().min(into.len());
        into[..known].copy_from_slice(&self.unread[..known]);
        self.unread.drain(..known);
        let (mut from, mut to) = self.socket.split();
        tokio::try_join!(to.write_all(bytes), from.read_exact(&mut into[known..])).map(drop)
    }

    /// A line, without its end.
    pub(crate) async fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|it| it == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.fill().await?;
        }
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) -> io::Result<()> {
        socket2::SockRef::from(&self.socket).set_linger(Some(std::time::Duration::ZERO))
    }

    /// Up to the empty line.
    pub(crate) async fn read_head(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|it| it == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return Ok(String::from_utf8_lossy(&head).into_owned());
            }
            if self.unread.len() > CHUNK {
                return Err(io::Error::other("a head without end"));
            }
            self.fill().await?;
        }
    }

    /// Whether nothing has come since its last answer, the end neither; tickets may have.
    pub(crate) fn is_idle(&mut self) -> bool {
        let Some(session) = &mut self.session else {
            let read = self.socket.try_read(&mut [0; 1]);
            return matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        };
        loop {
            match session.read_tls(&mut Now(&self.socket)) {
                Ok(1..) if session.process_new_packets().is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => return false,
            }
        }
        let read = session.reader().read(&mut [0; 1]);
        self.unread.is_empty() && matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Reads something.
    async fn fill(&mut self) -> io::Result<()> {
        let Some(session) = &mut self.session else {
            return match self.socket.read_buf(&mut self.unread).await? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            };
        };
        while !take(session, &mut self.unread)? {
            if !receive(&self.socket, session).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

/// Puts what has come behind `unread`; whether there was anything.
fn take(session: &mut ClientConnection, unread: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; CHUNK];
    match session.reader().read(&mut chunk) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => {
            unread.extend_from_slice(&chunk[..length]);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads records; whether there was anything but the end.
async fn receive(socket: &TcpStream, session: &mut ClientConnection) -> io::Result<bool> {
    loop {
        socket.readable().await?;
        match session.read_tls(&mut Now(socket)) {
            Ok(0) => return Ok(false),
            Ok(_) => {
                session.process_new_packets().map_err(io::Error::other)?;
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn flush(socket: &TcpStream, session: &mut ClientConnection) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(&mut Now(socket)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            written => drop(written?),
        }
    }
    Ok(())
}

/// What can be done without waiting.
struct Now<'a>(&'a TcpStream);

impl io::Read for Now<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl io::Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
