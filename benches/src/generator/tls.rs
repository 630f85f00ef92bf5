//! TLS between a client and the proxy.
//!
//! Clients offer one version, one suite and one group, so that every proxy does the same arithmetic whatever it
//! would prefer: what is compared is how well it does that, not what it chose.
//!
//! A client that resumes has a memory of its own for tickets: its first connection makes a full handshake, and
//! each later one has to resume, or counts as [`Fault::NotResumed`].

use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme, version,
};

use super::tally::Fault;
use super::{HOST, Received, broken};
use crate::BenchError;

/// What all TLS cases have in common, in words, for reports.
pub const TERMS: &str = "TLS 1.3, TLS_AES_128_GCM_SHA256, X25519, one self-signed ECDSA P-256 certificate";

/// Bytes taken from a socket at a time. Less than what decrypted bytes have room for, by more than the record
/// (16 KiB) of which a part may have come before.
pub(super) const WIRE_BUFFER: usize = 192 << 10;

/// Tickets that a client remembers; a proxy sends up to four per handshake, and each is used once.
const TICKETS: usize = 8;

/// What clients do with the tickets that a server gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tickets {
    /// Forget them: every handshake is a full one.
    Ignore,
    /// Resume with them: every handshake but the first of each client is a resumed one.
    Use,
}

/// How clients speak TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tickets: Tickets,
}

impl Tls {
    /// Clients that speak with whoever shows `certificate`, and proves to have its key.
    ///
    /// # Errors
    /// If the cryptography does not offer what is asked for.
    pub fn new(certificate: CertificateDer<'static>, tickets: Tickets) -> Result<Self, BenchError> {
        let provider = CryptoProvider {
            cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![kx_group::X25519],
            ..default_provider()
        };
        let pinned = Pinned { certificate, algorithms: provider.signature_verification_algorithms };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| BenchError::Tls(format!("no TLS for the generator: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(HOST).map_err(|_| BenchError::Tls(format!("{HOST} is no name")))?;
        Ok(Self { config: Arc::new(config), name, tickets })
    }

    /// One client, that has no ticket yet.
    pub(super) fn client(&self) -> Client {
        let config = match self.tickets {
            Tickets::Ignore => Arc::clone(&self.config),
            Tickets::Use => {
                let mut config = ClientConfig::clone(&self.config);
                config.resumption = Resumption::in_memory_sessions(TICKETS);
                Arc::new(config)
            }
        };
        Client { config, name: self.name.clone(), tickets: self.tickets, answered: false }
    }
}

/// What one client remembers from one connection to the next.
#[derive(Debug)]
pub(super) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tickets: Tickets,
    answered: bool,
}

impl Client {
    /// A connection came as far as an answer. Servers send tickets before that, so the next has to resume.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    /// Begins a connection.
    pub(super) fn connect(&self) -> io::Result<Session> {
        let mut connection =
            ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(io::Error::other)?;
        // A request is handed over whole, before the handshake has ended.
        connection.set_buffer_limit(None);
        let must_resume = self.tickets == Tickets::Use && self.answered;
        Ok(Session { connection, must_resume, counted: false })
    }
}

/// The TLS of one connection.
#[derive(Debug)]
pub(super) struct Session {
    connection: ClientConnection,
    must_resume: bool,
    counted: bool,
}

impl Session {
    /// Takes the rest of `request` and sends what the socket takes; true when the socket took it all. Before the
    /// end of the handshake that is the first message only, and the request follows with the last.
    pub(super) fn send(
        &mut self,
        stream: &mut TcpStream,
        request: &[u8],
        sent: &mut usize,
    ) -> Result<bool, Fault> {
        if *sent < request.len() {
            self.connection.writer().write_all(&request[*sent..]).map_err(|_| Fault::Tls)?;
            *sent = request.len();
        }
        self.flush(stream)
    }

    /// Receives into `wire` and decrypts into `plain`, until there is something or nothing more comes.
    pub(super) fn receive(
        &mut self,
        stream: &mut TcpStream,
        wire: &mut [u8],
        plain: &mut [u8],
        ended: bool,
    ) -> Result<Option<Received>, Fault> {
        self.flush(stream)?;
        loop {
            let taken = match stream.read(wire) {
                // Not every server says that it ends before it does; lengths tell whether something is missing.
                Ok(0) => return Ok(Some(Received { length: 0, drained: true })),
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(broken(&error)),
            };
            let length = self.decrypt(&wire[..taken], plain)?;
            self.flush(stream)?;
            let drained = taken < wire.len();
            if length > 0 {
                return Ok(Some(Received { length, drained }));
            }
            if drained && !ended {
                return Ok(None);
            }
        }
    }

    /// The kind of the handshake, once it has ended and only once. A full one is a fault where a ticket was to
    /// spare it.
    pub(super) fn handshake(&mut self) -> Result<Option<HandshakeKind>, Fault> {
        if self.counted || self.connection.is_handshaking() {
            return Ok(None);
        }
        self.counted = true;
        match self.connection.handshake_kind() {
            Some(kind) if self.must_resume && kind != HandshakeKind::Resumed => Err(Fault::NotResumed),
            kind => Ok(kind),
        }
    }

    fn flush(&mut self, stream: &mut TcpStream) -> Result<bool, Fault> {
        while self.connection.wants_write() {
            match self.connection.write_tls(stream) {
                Ok(_) => {}
                // Not connected yet: the event comes when it is.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(true)
    }

    /// Decrypts all of `wire`. rustls takes 4 KiB of it at a time, and holds back no more than one record.
    fn decrypt(&mut self, mut wire: &[u8], plain: &mut [u8]) -> Result<usize, Fault> {
        let mut filled = 0;
        while !wire.is_empty() {
            // After the server's last word rustls takes nothing, and nothing may come.
            if self.connection.read_tls(&mut wire).map_err(|_| Fault::Tls)? == 0 {
                return Err(Fault::Tls);
            }
            let state = self.connection.process_new_packets().map_err(|_| Fault::Tls)?;
            let ready = state.plaintext_bytes_to_read();
            if ready > 0 {
                let room = plain.get_mut(filled..filled + ready).ok_or(Fault::Tls)?;
                self.connection.reader().read_exact(room).map_err(|_| Fault::Tls)?;
                filled += ready;
            }
        }
        Ok(filled)
    }
}

/// Knows one certificate. That is stricter than to trust its issuer, and spares the generator, whose core is
/// the busier one in a handshake, one verification of two: that the server has the key is still verified.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
