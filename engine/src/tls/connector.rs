//! TLS to backends.

use std::{net::IpAddr, sync::Arc};

use kakehi_ctl::state::BackendTls;
use rustls::{
    ClientConfig,
    client::{Resumption, UnbufferedClientConnection},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};

use super::{
    backend_verifier::BackendVerifier,
    handshake::{self, Failure},
    session::Session,
    terminator::{Context, TlsError},
};
use crate::ring::{Ring, Stream};

/// Sessions that are remembered for each cluster, to be resumed.
const SESSIONS: usize = 256;

/// How the backends of a cluster are reached by TLS where there is no ring: with the same trust as requests.
pub struct ClientTls {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Compiles what a cluster says.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn compile(context: &Context, tls: &BackendTls) -> Result<ClientTls, TlsError> {
        let Connector { config, name } = Connector::compile(context, tls)?;
        Ok(ClientTls { config, name })
    }

    /// The name that the certificate of a backend at `address` must have, which was found by the name `found_by`, if by any.
    pub fn name(&self, found_by: Option<&str>, address: Option<IpAddr>) -> ServerName<'static> {
        name_of(self.name.as_ref(), found_by, address)
    }
}

/// The name of a backend at `address`. One in the configuration goes before, and then the one by which it was found.
fn name_of(
    configured: Option<&ServerName<'static>>,
    found_by: Option<&str>,
    address: Option<IpAddr>,
) -> ServerName<'static> {
    let found_by = || ServerName::try_from(found_by?.to_owned()).ok();
    let name = configured.cloned().or_else(found_by).or_else(|| Some(ServerName::from(address?)));
    // A unix socket has no name that a certificate could have.
    name.unwrap_or_else(|| ServerName::from(IpAddr::from([0, 0, 0, 0])))
}

/// How backends of a cluster are reached by TLS: never without verifying whom (RFC 9110 section 4.3.4).
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl Connector {
    /// Compiles what a cluster says.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn compile(context: &Context, tls: &BackendTls) -> Result<Connector, TlsError> {
        let provider = Arc::new(context.provider());
        let verifier = Arc::new(BackendVerifier::new(context.authorities(&tls.ca)?, Arc::clone(&provider))?);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &tls.client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let wrong = |path: &std::path::Path, reason: String| TlsError::Material {
                    path: path.display().to_string(),
                    reason,
                };
                let chain_text = context.material(chain)?;
                let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain_text).collect();
                let mut certificates = certificates.map_err(|error| wrong(&chain.path, error.to_string()))?;
                // Files of a chain often begin with the certificate itself.
                certificates.dedup();
                let key_der = PrivateKeyDer::from_pem_slice(&context.material(key)?)
                    .map_err(|error| wrong(&key.path, error.to_string()))?;
                builder.with_client_auth_cert(certificates, key_der)?
            }
        };
        config.alpn_protocols = tls.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let name = tls.server_name.as_ref().map(|name| {
            ServerName::try_from(name.clone()).map_err(|_| TlsError::Material {
                path: "server_name".to_owned(),
                reason: format!("`{name}` is neither a host name nor an address"),
            })
        });
        Ok(Connector { config: Arc::new(config), name: name.transpose()? })
    }

    /// Does the handshake on a connection to a backend at `address`, before which the name goes by which it was found, and one in
    /// the configuration before both.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) async fn connect(
        &self,
        ring: &Ring,
        stream: &Stream,
        (found_by, address): (Option<&str>, Option<IpAddr>),
    ) -> Result<Session, Failure> {
        let name = name_of(self.name.as_ref(), found_by, address);
        let begin = || UnbufferedClientConnection::new(Arc::clone(&self.config), name);
        handshake::connect(ring.admission(), stream, begin).await
    }
}
