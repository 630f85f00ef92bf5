//! Who issues the certificates of a run. They are made anew each time and lie in its folder only.

use std::{fs, io, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;

use crate::stream::NAME;

/// In the folder of the run: certificate and key.
pub(crate) const CERTIFICATE: &str = "certificate.pem";
pub(crate) const KEY: &str = "key.pem";

pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// # Errors
    /// When the cryptography does not work.
    pub(crate) fn new() -> io::Result<Authority> {
        let make = || {
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name.push(DnType::CommonName, "Endurance");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?.der().clone();
            Ok(Authority { certificate, issuer: Issuer::new(params, key) })
        };
        make().map_err(|error: rcgen::Error| io::Error::other(error))
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Puts another certificate with its key into `folder`.
    ///
    /// # Errors
    /// When that cannot be made or written.
    pub(crate) fn issue(&self, folder: &Path) -> io::Result<()> {
        let make = || {
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new([NAME.to_owned()])?.signed_by(&key, &self.issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (certificate, key) = make().map_err(|error: rcgen::Error| io::Error::other(error))?;
        fs::write(folder.join(CERTIFICATE), certificate)?;
        fs::write(folder.join(KEY), key)
    }
}
