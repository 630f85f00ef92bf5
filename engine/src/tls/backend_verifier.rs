//! Which certificates of backends are trusted: those that an authority in `ca` issued, and those that stand in `ca`
//! themselves.
//!
//! A certificate that signs itself is seldom made as one of an authority and of a server at once, and a chain of nothing but
//! itself is none for webpki. That it stands in `ca`, byte for byte, says more than any chain could. Name, dates and the
//! signature of the handshake are checked in either case.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::{
    prelude::{FromDer as _, X509Certificate},
    time::ASN1Time,
};

/// What a file of authorities has.
pub(super) struct Authorities {
    /// Who may issue.
    pub(super) roots: Arc<RootCertStore>,
    /// SHA-256 of each certificate.
    fingerprints: Vec<[u8; digest::SHA256_OUTPUT_LEN]>,
}

impl Authorities {
    pub(super) fn new(roots: RootCertStore, certificates: &[CertificateDer<'_>]) -> Authorities {
        let fingerprints = certificates.iter().filter_map(|certificate| fingerprint(certificate)).collect();
        Authorities { roots: Arc::new(roots), fingerprints }
    }

    /// True if exactly this certificate stands in the file.
    fn contain(&self, certificate: &CertificateDer<'_>) -> bool {
        fingerprint(certificate).is_some_and(|it| self.fingerprints.contains(&it))
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Option<[u8; digest::SHA256_OUTPUT_LEN]> {
    digest::digest(&digest::SHA256, certificate).as_ref().try_into().ok()
}

/// Verifies backends of a cluster.
pub(super) struct BackendVerifier {
    authorities: Arc<Authorities>,
    chains: Arc<WebPkiServerVerifier>,
}

impl BackendVerifier {
    /// # Errors
    /// When rustls cannot verify with these authorities.
    pub(super) fn new(authorities: Arc<Authorities>, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let roots = Arc::clone(&authorities.roots);
        let chains = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(BackendVerifier { authorities, chains })
    }
}

/// RFC 5280 section 4.1.2.5: both dates are part of the time in which a certificate is valid.
fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    let now = now.ok_or(CertificateError::Expired)?;
    if now < parsed.validity().not_before {
        Err(CertificateError::NotValidYet)
    } else if now > parsed.validity().not_after {
        Err(CertificateError::Expired)
    } else {
        Ok(())
    }
}

impl ServerCertVerifier for BackendVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.authorities.contain(certificate) {
            return self.chains.verify_server_cert(certificate, chain, name, ocsp, now);
        }
        check_dates(certificate, now)?;
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

impl std::fmt::Debug for BackendVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BackendVerifier")
    }
}
