//! Handshakes: of clients with us, and ours with backends.

use std::{io, rc::Rc, sync::Arc};

use kakehi_ctl::state::{Certificate, TlsVersion};
use rustls::{
    AlertDescription, Error, HandshakeKind, PeerIncompatible, ProtocolVersion,
    client::UnbufferedClientConnection,
    server::{Acceptor, UnbufferedServerConnection},
};
use rustls_pki_types::UnixTime;

use super::{
    identity::ClientIdentity,
    names::normal,
    session::{MAX_CERTIFICATES, MAX_RECORD, Session},
    terminator::{Policy, Terminator},
};
use crate::{
    limits,
    ring::{Admission, Buf, Recv, Source, Stream},
};

/// What is known of a client after its handshake.
pub(crate) struct TlsInfo {
    /// The certificate that it got.
    pub(crate) served: Arc<Certificate>,
    /// The name that it asked for, in lower case.
    pub(crate) name: Option<Box<str>>,
    /// How the handshake was done.
    pub(crate) policy: Rc<Policy>,
    /// Who it is.
    pub(crate) client: Option<ClientIdentity>,
    /// It resumed a session.
    pub(crate) resumed: bool,
    /// Which version is spoken.
    pub(crate) version: TlsVersion,
    /// The certificate is for the name that the client asked for.
    pub(crate) for_name: bool,
}

impl TlsInfo {
    /// True if requests for `host`, in the spelling of certificates, may come over a connection that asked for this name.
    pub(super) fn is_bound_to(&self, host: &str) -> bool {
        match &self.name {
            None => true,
            Some(_) if self.for_name => self.served.covers(host),
            Some(name) => normal(name) == *host,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The peer went away.
    #[error("the peer went away during the handshake")]
    Gone,
    /// The first message is longer than any client's.
    #[error("the first message is too large")]
    HelloTooLarge,
    /// No certificate is for the name that was asked for, and none is served instead.
    #[error("there is no certificate for the name")]
    UnknownName,
    /// The certificate of a client whose session would be resumed is good no more.
    #[error("the certificate is not valid any more: {0}")]
    ClientCertificate(Error),
    /// rustls refuses.
    #[error("{0}")]
    Tls(#[from] Error),
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Failure {
        Failure::Gone
    }
}

/// Kinds of failures, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Gone,
    NoCommonParameters,
    NoCommonProtocol,
    UnknownName,
    Certificate,
    AlertReceived,
    Malformed,
}

impl Failure {
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Failure::Gone => FailureKind::Gone,
            Failure::HelloTooLarge => FailureKind::Malformed,
            Failure::UnknownName => FailureKind::UnknownName,
            Failure::ClientCertificate(_) => FailureKind::Certificate,
            Failure::Tls(error) => match error {
                Error::NoApplicationProtocol => FailureKind::NoCommonProtocol,
                Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                    FailureKind::Certificate
                }
                Error::PeerIncompatible(_) => FailureKind::NoCommonParameters,
                Error::NoCertificatesPresented
                | Error::InvalidCertificate(_)
                | Error::InvalidCertRevocationList(_) => FailureKind::Certificate,
                Error::AlertReceived(_) => FailureKind::AlertReceived,
                Error::General(_) => FailureKind::UnknownName,
                _ => FailureKind::Malformed,
            },
        }
    }
}

/// The first message of a client.
pub struct Hello {
    /// The name that it asks for, in lower case.
    pub name: Option<Box<str>>,
    /// The protocols that it offers.
    pub protocols: OfferedProtocols,
    /// Everything that came so far.
    pub bytes: Vec<u8>,
}

/// The protocols that a client offers (ALPN), those that it wants most first; empty where it offers none.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct OfferedProtocols {
    /// As in the handshake: each with its length (one byte) in front.
    names: Box<[u8]>,
}

impl OfferedProtocols {
    /// Of names of at most 255 bytes.
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a [u8]>) -> OfferedProtocols {
        let mut all = Vec::new();
        for name in names {
            let Ok(length) = u8::try_from(name.len()) else { continue };
            all.push(length);
            all.extend_from_slice(name);
        }
        OfferedProtocols { names: all.into() }
    }

    /// Each name.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.names[..];
        std::iter::from_fn(move || {
            let (length, names) = rest.split_first()?;
            let (name, behind) = names.split_at_checked(usize::from(*length))?;
            rest = behind;
            Some(name)
        })
    }
}

/// Reads the first message of a client as it arrives, without answering. No sockets here.
pub struct HelloReader {
    acceptor: Acceptor,
    bytes: Vec<u8>,
    most: usize,
}

impl Default for HelloReader {
    fn default() -> HelloReader {
        HelloReader::of_at_most(limits::MAX_CLIENT_HELLO)
    }
}

impl HelloReader {
    /// For a message of so many bytes at most, with the headers of its records.
    pub fn of_at_most(most: usize) -> HelloReader {
        HelloReader { acceptor: Acceptor::default(), bytes: Vec::new(), most }
    }

    /// Takes what arrived next; `None` = the message is not complete. What comes with it is kept with it.
    ///
    /// # Errors
    /// Why it is no such message. Nothing more can be read then.
    pub fn read(&mut self, input: &[u8]) -> Result<Option<Hello>, Failure> {
        self.bytes.extend_from_slice(input);
        let mut unread = input;
        while !unread.is_empty() {
            if !self.acceptor.read_tls(&mut unread).is_ok_and(|read| read > 0) {
                return Err(Failure::HelloTooLarge);
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    if self.bytes.len() - unread.len() > self.most {
                        return Err(Failure::HelloTooLarge);
                    }
                    let hello = accepted.client_hello();
                    let name = hello.server_name().map(Box::from);
                    let protocols = hello.alpn().map(OfferedProtocols::new).unwrap_or_default();
                    return Ok(Some(Hello { name, protocols, bytes: std::mem::take(&mut self.bytes) }));
                }
                Err((error, _)) => return Err(Failure::Tls(error)),
            }
        }
        if self.bytes.len() > self.most { Err(Failure::HelloTooLarge) } else { Ok(None) }
    }
}

/// Reads the first message, of `most` bytes, which begins with `input`, and whatever comes with it, without answering.
///
/// # Errors
/// What came, and why it is no such message.
pub(crate) async fn read_hello(
    turns: Turns<'_>,
    stream: &Stream,
    mut input: Input,
    most: usize,
) -> Result<Hello, (Failure, Vec<u8>)> {
    let mut reader = HelloReader::of_at_most(most);
    loop {
        match turns.run(input, |received| reader.read(received)).await {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => {}
            Err(failure) => return Err((failure, reader.bytes)),
        }
        input = match stream.receive().await {
            Ok(Recv::Data(buffer)) => Input::Received(buffer),
            Ok(Recv::Finished) | Err(_) => return Err((Failure::Gone, reader.bytes)),
        };
    }
}

/// The alert for a client that asks for a name which there is no certificate for (RFC 6066 section 3).
pub(crate) fn unrecognized_name() -> Vec<u8> {
    alert(AlertDescription::UnrecognisedName)
}

/// The alert for a client whose first message does not end.
pub(crate) fn too_large() -> Vec<u8> {
    alert(AlertDescription::RecordOverflow)
}

/// RFC 8446 sections 5.1 and 6: a record of type alert, level fatal, in clear text.
fn alert(description: AlertDescription) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, description.into()]
}

/// A handshake that is done, and what came behind it.
pub(crate) struct HandshakeResult {
    pub(crate) session: Session,
    pub(crate) info: TlsInfo,
    pub(crate) data: Option<Buf>,
}

/// Does the handshake with a client that asks for `name`, as far as that is known, and of which `first` has come already.
///
/// # Errors
/// See [`Failure`]; the client was told, as far as it can be.
pub(crate) async fn accept(
    turns: Turns<'_>,
    stream: &Stream,
    terminator: &Terminator,
    name: Option<&str>,
    first: Input,
) -> Result<HandshakeResult, Failure> {
    let policy = Rc::clone(terminator.policy(name));
    let mut session = Session::server(UnbufferedServerConnection::new(Arc::clone(&policy.config))?);
    let mut served = None;
    session.keep_at_most(limits::MAX_CLIENT_HELLO);
    let later = if policy.verifier.is_some() { MAX_CERTIFICATES } else { MAX_RECORD };
    let data = shake(turns, stream, &mut session, first, later, || {
        // Each time, as it is asked for twice where the client has to try again; and nobody must find it later.
        if let Some(last) = terminator.certificates.take_served() {
            served = Some(last);
        }
    })
    .await?;
    let served = served.ok_or(Failure::UnknownName)?;
    let resumed = session.common().handshake_kind() == Some(HandshakeKind::Resumed);
    let mut client = None;
    if let Some([certificate, chain @ ..]) = session.common().peer_certificates() {
        // rustls does not look again at the certificate of a session that is resumed.
        if let Some(verifier) = policy.verifier.as_ref().filter(|_| resumed) {
            let verify = || verifier.verify_client_cert(certificate, chain, UnixTime::now());
            turns.admission.run(turns.source, verify).await.map_err(Failure::ClientCertificate)?;
        }
        client = Some(ClientIdentity::of(certificate));
    }
    // Up to TLS 1.2 the last word is ours, and the client waits for it.
    if session.common().protocol_version() == Some(ProtocolVersion::TLSv1_2)
        && let Some(pending) = session.take_pending()
    {
        stream.send(pending.into()).await?;
    }
    let version = match session.common().protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => TlsVersion::V12,
        _ => TlsVersion::V13,
    };
    let for_name = served.name.as_deref().is_some_and(|name| served.certificate.covers(name));
    let (served, name) = (served.certificate, served.name);
    let info = TlsInfo { served, name, policy, client, resumed, version, for_name };
    Ok(HandshakeResult { session, info, data })
}

/// Does the handshake with a backend.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn connect(
    admission: &Admission,
    stream: &Stream,
    begin: impl FnOnce() -> Result<UnbufferedClientConnection, Error>,
) -> Result<Session, Failure> {
    let turns = Turns { admission, source: Source::Backends };
    let mut session = Session::client(admission.run(turns.source, begin).await?);
    // What it says before it was asked anything is for nobody.
    match shake(turns, stream, &mut session, Input::Own(Vec::new()), MAX_CERTIFICATES, || {}).await? {
        None => Ok(session),
        Some(_) => Err(Error::General("the backend sent data before it was asked for any".to_owned()).into()),
    }
}

/// Sends and receives until the handshake is done; from our first answer on at most `later` bytes are kept of messages that
/// are not complete. Returns data that came behind it.
async fn shake(
    turns: Turns<'_>,
    stream: &Stream,
    session: &mut Session,
    first: Input,
    later: usize,
    mut looked: impl FnMut(),
) -> Result<Option<Buf>, Failure> {
    let mut plain = Vec::new();
    let mut received = first;
    loop {
        let opened = turns
            .run(received, |bytes| {
                let opened = session.open(bytes, &mut plain);
                looked();
                opened
            })
            .await;
        if let Err(error) = opened {
            if let Some(alert) = session.take_pending() {
                stream.send(alert.into()).await?;
                stream.flush().await?;
            }
            return Err(error.into());
        }
        if session.is_established() {
            session.keep_at_most(MAX_RECORD);
            return Ok((!plain.is_empty()).then(|| Buf::owned(plain)));
        }
        if session.is_finished() {
            return Err(Failure::Gone);
        }
        if let Some(pending) = session.take_pending() {
            session.keep_at_most(later);
            stream.send(pending.into()).await?;
        }
        received = match stream.receive().await? {
            Recv::Data(buffer) => Input::Received(buffer),
            Recv::Finished => return Err(Failure::Gone),
        };
    }
}

/// The turns of one handshake: its steps are heavy, and admitted one by one.
#[derive(Clone, Copy)]
pub(crate) struct Turns<'a> {
    pub(crate) admission: &'a Admission,
    /// Whose handshake it is.
    pub(crate) source: Source,
}

impl Turns<'_> {
    /// Does one step with what was received.
    async fn run<T>(self, mut received: Input, step: impl FnOnce(&mut [u8]) -> T) -> T {
        if !self.admission.is_open() {
            // Those that wait must not hold the buffers that all share.
            received.leave_arena();
        }
        self.admission.run(self.source, || step(received.bytes())).await
    }
}

/// What goes into a handshake.
pub(crate) enum Input {
    /// Bytes of which several receives were joined.
    Own(Vec<u8>),
    /// What was received.
    Received(Buf),
}

impl Input {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Input::Own(bytes) => bytes,
            Input::Received(buffer) => buffer,
        }
    }

    fn leave_arena(&mut self) {
        if let Input::Received(buffer) = self {
            *self = Input::Own(buffer.to_vec());
        }
    }
}
