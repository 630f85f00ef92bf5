//! TLS on the test's side: what a client offers and whom it trusts, and what a backend shows.

use std::{
    collections::HashMap,
    fmt, io,
    net::{SocketAddr, TcpStream},
    sync::{Arc, OnceLock},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    Error, HandshakeKind, NamedGroup, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
    client::{
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};

use super::{
    Client, End, Issued, Lock,
    tls_socket::{Done, TlsSocket, alert_of, end_of},
    wait::SOON,
    wire::Stream,
};

/// A client, before it calls.
#[derive(Clone)]
pub(crate) struct Caller {
    name: String,
    says_name: bool,
    expects: Option<String>,
    roots: Arc<RootCertStore>,
    versions: Vec<&'static SupportedProtocolVersion>,
    suites: Vec<SupportedCipherSuite>,
    groups: Vec<&'static dyn SupportedKxGroup>,
    alpn: Vec<Vec<u8>>,
    identity: Option<Issued>,
    sessions: Option<Resumption>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Caller {
    /// Trusts an authority, asks for `a`, offers all and HTTP/1.1, and resumes nothing.
    pub(crate) fn trusting(authority: &Issued) -> Caller {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der.clone()).expect("an authority");
        Caller {
            name: "a".to_owned(),
            says_name: true,
            expects: None,
            roots: Arc::new(roots),
            versions: vec![&TLS12, &TLS13],
            suites: aws_lc_rs::ALL_CIPHER_SUITES.to_vec(),
            groups: aws_lc_rs::ALL_KX_GROUPS.to_vec(),
            alpn: vec![b"http/1.1".to_vec()],
            identity: None,
            sessions: None,
            config: OnceLock::new(),
        }
    }

    fn changed(&self, change: impl FnOnce(&mut Caller)) -> Caller {
        let mut changed = self.clone();
        change(&mut changed);
        changed.config = OnceLock::new();
        changed
    }

    /// Asks for this name, and takes only a certificate for it. Sessions stay what they are.
    pub(crate) fn to(&self, name: &str) -> Caller {
        Caller { name: name.to_owned(), ..self.clone() }
    }

    /// Takes only a certificate for this name, whatever it asks for.
    pub(crate) fn expecting(&self, name: &str) -> Caller {
        self.changed(|caller| caller.expects = Some(name.to_owned()))
    }

    /// Asks for no name.
    pub(crate) fn nameless(&self) -> Caller {
        self.changed(|caller| caller.says_name = false)
    }

    /// Speaks TLS 1.2 only.
    pub(crate) fn tls12(&self) -> Caller {
        self.changed(|caller| caller.versions = vec![&TLS12])
    }

    /// Speaks TLS 1.3 only.
    pub(crate) fn tls13(&self) -> Caller {
        self.changed(|caller| caller.versions = vec![&TLS13])
    }

    /// Offers these cipher suites, and the versions that they are of.
    pub(crate) fn suites(&self, suites: &[SupportedCipherSuite]) -> Caller {
        self.changed(|caller| {
            caller.suites = suites.to_vec();
            caller.versions.retain(|version| suites.iter().any(|suite| suite.version() == *version));
        })
    }

    /// Offers these groups.
    pub(crate) fn groups(&self, groups: &[&'static dyn SupportedKxGroup]) -> Caller {
        self.changed(|caller| caller.groups = groups.to_vec())
    }

    /// Offers these protocols.
    pub(crate) fn alpn(&self, protocols: &[&str]) -> Caller {
        self.changed(|caller| caller.alpn = protocols.iter().map(|name| name.as_bytes().to_vec()).collect())
    }

    /// Shows this certificate when it is asked for one.
    pub(crate) fn identity(&self, identity: &Issued) -> Caller {
        self.changed(|caller| caller.identity = Some(identity.clone()))
    }

    /// Keeps tickets, and resumes sessions where it has one for the name.
    pub(crate) fn remembering(&self) -> Caller {
        self.keeping(Resumption::in_memory_sessions(256))
    }

    /// Keeps tickets, and shows them to whomever it calls next, under whatever name.
    pub(crate) fn confusing_names(&self) -> Caller {
        self.keeping(Resumption::store(Arc::new(Pocket::default())))
    }

    /// rustls resumes only under the configuration that a session was made with: that is made here, for all copies.
    fn keeping(&self, sessions: Resumption) -> Caller {
        let caller = self.changed(|caller| caller.sessions = Some(sessions));
        caller.config();
        caller
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(self.config.get_or_init(|| {
            let provider = Arc::new(CryptoProvider {
                cipher_suites: self.suites.clone(),
                kx_groups: self.groups.clone(),
                ..aws_lc_rs::default_provider()
            });
            let everything = Arc::new(aws_lc_rs::default_provider());
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), everything)
                .build()
                .expect("a verifier");
            let builder = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&self.versions)
                .expect("versions")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Trust { inner, name: self.expects.clone() }));
            let mut config = match &self.identity {
                None => builder.with_no_client_auth(),
                Some(identity) => builder
                    .with_client_auth_cert(vec![identity.der.clone()], identity.private_key())
                    .expect("a certificate for a client"),
            };
            config.enable_secret_extraction = true;
            config.enable_sni = self.says_name;
            config.alpn_protocols = self.alpn.clone();
            config.resumption = self.sessions.clone().unwrap_or_else(Resumption::disabled);
            Arc::new(config)
        }))
    }

    /// The state of TLS before a word was said.
    pub(crate) fn connection(&self) -> ClientConnection {
        let name = ServerName::try_from(self.name.clone()).expect("a name");
        ClientConnection::new(self.config(), name).expect("a connection")
    }

    /// The first message, as it goes out.
    pub(crate) fn hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.connection().write_tls(&mut hello).expect("a vector takes all");
        hello
    }

    /// Connects and does the handshake.
    pub(crate) fn try_connect(&self, address: SocketAddr) -> io::Result<Client> {
        self.over(TcpStream::connect_timeout(&address, SOON)?)
    }

    /// Does the handshake on a connection that is there.
    pub(crate) fn over(&self, tcp: TcpStream) -> io::Result<Client> {
        Ok(Client::over(self.stream(tcp)?))
    }

    /// Does the handshake on a connection that is there, which nothing is known of how it is used.
    pub(crate) fn stream(&self, tcp: TcpStream) -> io::Result<Stream> {
        tcp.set_read_timeout(Some(SOON))?;
        tcp.set_write_timeout(Some(SOON))?;
        let mut socket = TlsSocket::new(tcp, self.connection().into(), None);
        socket.shake()?;
        Ok(Stream::Tls(Box::new(socket)))
    }

    /// Connects; fails the test where the handshake fails.
    #[track_caller]
    pub(crate) fn connect(&self, address: SocketAddr) -> Client {
        self.try_connect(address)
            .unwrap_or_else(|error| panic!("TLS to {address} as `{}`: {error}", self.name))
    }

    /// Fails unless the handshake is refused with this alert. In TLS 1.3 a client may only learn that when it reads.
    #[track_caller]
    pub(crate) fn expect_alert(&self, address: SocketAddr, alert: AlertDescription) {
        let end = self.refusal(address);
        assert_eq!(end, End::Alert(alert), "`{}` to {address}", self.name);
    }

    /// How a connection ends that must not come about.
    #[track_caller]
    pub(crate) fn refusal(&self, address: SocketAddr) -> End {
        match self.try_connect(address) {
            Err(error) => end_of(&error),
            Ok(mut client) => {
                client.send(super::GET);
                match client.try_response() {
                    Ok(answer) => panic!("expected a refusal, got: {}", super::show(&answer.raw)),
                    Err(broken) => broken.end,
                }
            }
        }
    }

    /// Why the certificate of the server is not taken, if that is so.
    #[track_caller]
    pub(crate) fn distrust(&self, address: SocketAddr) -> Option<CertificateError> {
        let error = self.try_connect(address).err()?;
        assert_eq!(alert_of(&error), None, "an alert came first");
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::InvalidCertificate(reason) => Some(reason.clone()),
            other => panic!("{other}"),
        }
    }
}

/// Trusts an authority, and may expect another name than the one that it asks for.
#[derive(Debug)]
struct Trust {
    inner: Arc<WebPkiServerVerifier>,
    name: Option<String>,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let expected = self.name.as_deref().map(|name| ServerName::try_from(name).expect("a name"));
        self.inner.verify_server_cert(certificate, chain, expected.as_ref().unwrap_or(name), ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Sessions that are shown under every name.
#[derive(Default)]
struct Pocket {
    tls12: Lock<HashMap<(), Tls12ClientSessionValue>>,
    tls13: Lock<Vec<Tls13ClientSessionValue>>,
}

impl fmt::Debug for Pocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pocket")
    }
}

impl ClientSessionStore for Pocket {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.tls12.lock().expect("sessions").insert((), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.tls12.lock().expect("sessions").get(&()).cloned()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.tls12.lock().expect("sessions").clear();
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.tls13.lock().expect("sessions").push(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tls13.lock().expect("sessions").pop()
    }
}

/// What a backend's connection was made with.
#[derive(Debug, Clone)]
pub(crate) struct Shaken {
    pub(crate) resumed: bool,
    pub(crate) name: Option<String>,
    /// What the client showed.
    pub(crate) client: Option<CertificateDer<'static>>,
    pub(crate) alpn: Option<Vec<u8>>,
}

/// How a backend terminates TLS.
#[derive(Clone)]
pub(crate) struct Server {
    config: Arc<ServerConfig>,
    shaken: Arc<Lock<Vec<Shaken>>>,
}

impl Server {
    /// Shows this certificate.
    pub(crate) fn new(issued: &Issued) -> Server {
        Server::of(issued, None, &[&TLS12, &TLS13])
    }

    /// Speaks TLS 1.2 only.
    pub(crate) fn tls12(issued: &Issued) -> Server {
        Server::of(issued, None, &[&TLS12])
    }

    /// Shows a certificate that somebody else has made.
    pub(crate) fn from_files(certificate: &std::path::Path, key: &std::path::Path) -> Server {
        let der = CertificateDer::from_pem_file(certificate).expect("a certificate");
        let issued = Issued { certificate: certificate.to_owned(), key: key.to_owned(), der, serial: 0 };
        Server::new(&issued)
    }

    /// Demands a certificate that `authority` issued.
    pub(crate) fn demanding(issued: &Issued, authority: &Issued) -> Server {
        Server::of(issued, Some(authority), &[&TLS12, &TLS13])
    }

    fn of(
        issued: &Issued,
        authority: Option<&Issued>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Server {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = match authority {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der.clone()).expect("an authority");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let mut config =
            builder.with_single_cert(vec![issued.der.clone()], issued.private_key()).expect("a certificate");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Server { config: Arc::new(config), shaken: Arc::default() }
    }

    /// Handshakes that were done, in their order.
    pub(crate) fn shaken(&self) -> Vec<Shaken> {
        self.shaken.lock().expect("handshakes").clone()
    }

    /// TLS over a connection that was accepted; the first read does the handshake.
    pub(crate) fn stream(&self, tcp: TcpStream) -> Stream {
        Stream::Tls(Box::new(self.accept(tcp)))
    }

    /// TLS over a connection that was accepted.
    pub(super) fn accept(&self, tcp: TcpStream) -> TlsSocket {
        let connection = ServerConnection::new(Arc::clone(&self.config)).expect("a connection");
        let shaken = Arc::clone(&self.shaken);
        let done: Done = Box::new(move |connection: &Connection| {
            let name = match connection {
                Connection::Server(server) => server.server_name().map(str::to_owned),
                Connection::Client(_) => None,
            };
            shaken.lock().expect("handshakes").push(Shaken {
                resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
                name,
                client: connection.peer_certificates().and_then(<[_]>::first).cloned(),
                alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            });
        });
        TlsSocket::new(tcp, connection.into(), Some(done))
    }
}
