//! The certificate that every proxy shows in the TLS cases.
//!
//! It is made for each run and lies only in the temporary folders of the proxies: a key in the repository would
//! be everybody's, and would end one day. All get the same, since the kind of key decides what a handshake costs:
//! ECDSA over P-256, the cheapest that all of them and all browsers know.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::generator::HOST;
use crate::{Attempt, BenchError};

/// A self-signed certificate for [`HOST`] and its key.
#[derive(Clone)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

/// Where the files of an [`Identity`] are.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// The certificate (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM, PKCS #8).
    pub key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub both: PathBuf,
}

impl Identity {
    /// Makes a key and signs its certificate.
    ///
    /// # Errors
    /// If the cryptography does not work.
    pub fn generate() -> Result<Self, BenchError> {
        let make = || {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut parameters = CertificateParams::new([HOST.to_owned()])?;
            // A proxy may index certificates by their common name too, and rcgen's default is no host name.
            parameters.distinguished_name.push(DnType::CommonName, HOST);
            let certificate = parameters.self_signed(&key)?;
            Ok(Self {
                certificate: certificate.der().clone(),
                certificate_pem: certificate.pem(),
                key_pem: key.serialize_pem(),
            })
        };
        make().map_err(|error: rcgen::Error| BenchError::Tls(format!("cannot make a certificate: {error}")))
    }

    /// The certificate, for the clients that must meet it.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Writes the files into `folder`.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn write(&self, folder: &Path) -> Result<IdentityFiles, BenchError> {
        let files = IdentityFiles {
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
            both: folder.join("both.pem"),
        };
        let both = format!("{}{}", self.certificate_pem, self.key_pem);
        for (path, text) in
            [(&files.certificate, &self.certificate_pem), (&files.key, &self.key_pem), (&files.both, &both)]
        {
            fs::write(path, text).attempt(|| format!("cannot write {}", path.display()))?;
        }
        Ok(files)
    }
}

/// The key stays out of every message.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Reads a certificate that [`Identity::write`] wrote, for clients of another process.
///
/// # Errors
/// If there is none in the file.
pub fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, BenchError> {
    CertificateDer::from_pem_file(path)
        .map_err(|error| BenchError::Tls(format!("no certificate in {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_clients_expect() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::generate().unwrap();
        let files = identity.write(folder.path()).unwrap();
        for path in [&files.certificate, &files.both] {
            assert_eq!(&read_certificate(path).unwrap(), identity.certificate());
        }
        assert!(read_certificate(&files.key).is_err());
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }
}
