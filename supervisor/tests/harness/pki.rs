//! Certificates for one test: an authority, what it issues, and the folder that their files are in.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{Caller, Server};

/// Somebody who issues certificates.
pub(crate) struct Pki {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    authority: Issued,
}

/// A certificate with its key, and the files that they are in.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) der: CertificateDer<'static>,
    pub(super) serial: u64,
}

impl Pki {
    pub(crate) fn new() -> Pki {
        Pki::named("Kakehi Test")
    }

    /// With this common name.
    pub(crate) fn named(name: &str) -> Pki {
        let folder = tempfile::Builder::new().prefix("kakehi-pki-").tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let authority =
            write(folder.path(), "ca", &certificate.pem(), &key.serialize_pem(), certificate.der(), 0);
        Pki { folder, issuer: Issuer::new(params, key), authority }
    }

    /// A certificate for these names, with a key of P-256.
    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
    }

    /// A certificate for these names, with a key of RSA.
    pub(crate) fn issue_rsa(&self, names: &[&str]) -> Issued {
        self.issue_with(names, &rcgen::PKCS_RSA_SHA256, |_| {})
    }

    /// A certificate that was valid once.
    pub(crate) fn issue_expired(&self, names: &[&str]) -> Issued {
        self.issue_with(names, &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        })
    }

    /// A certificate for a person or a program.
    pub(crate) fn issue_for(&self, subject: &str) -> Issued {
        self.issue_with(&[], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.distinguished_name.push(DnType::CommonName, subject);
        })
    }

    /// A certificate that nobody but itself has signed, as `openssl req -x509` makes it (an authority by its basic
    /// constraints) or not.
    pub(crate) fn issue_self_signed(&self, names: &[&str], authority: bool, expired: bool) -> Issued {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "backend.test");
        params.is_ca = if authority { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        if expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let serial = fs::read_dir(self.folder.path()).expect("the folder").count() as u64;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let stem = format!("self-signed-{serial}");
        write(self.folder.path(), &stem, &certificate.pem(), &key.serialize_pem(), certificate.der(), serial)
    }

    /// A certificate whose parameters `change` has the last word about.
    pub(crate) fn issue_with(
        &self,
        names: &[&str],
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).expect("names");
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("nobody", String::as_str));
        let serial = fs::read_dir(self.folder.path()).expect("the folder").count() as u64;
        params.serial_number = Some(SerialNumber::from(serial));
        change(&mut params);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let stem = format!("certificate-{serial}");
        write(self.folder.path(), &stem, &certificate.pem(), &key.serialize_pem(), certificate.der(), serial)
    }

    /// A revocation list (PEM) that names these.
    pub(crate) fn revoke(&self, revoked: &[&Issued]) -> PathBuf {
        let revoked_certs = revoked
            .iter()
            .map(|issued| RevokedCertParams {
                serial_number: SerialNumber::from(issued.serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.path().join(format!("revoked-{}.pem", revoked.len()));
        let list = params.signed_by(&self.issuer).expect("a list");
        fs::write(&path, list.pem().expect("a list")).expect("a file");
        path
    }

    /// The certificate of the authority.
    pub(crate) fn authority(&self) -> &Issued {
        &self.authority
    }

    /// A client that trusts what this authority issued.
    pub(crate) fn caller(&self) -> Caller {
        Caller::trusting(&self.authority)
    }

    /// A server that shows a new certificate for these names.
    pub(crate) fn server(&self, names: &[&str]) -> Server {
        Server::new(&self.issue(names))
    }

    /// A key of a configuration file: its name and the file of the authority.
    pub(crate) fn ca(&self, key: &str) -> String {
        format!("{key} = \"{}\"", self.authority.certificate.display())
    }
}

impl Issued {
    /// The keys `certificate` and `key`, as in an inline table.
    pub(crate) fn keys(&self) -> String {
        format!("certificate = \"{}\", key = \"{}\"", self.certificate.display(), self.key.display())
    }

    /// Certificate and key as text.
    pub(crate) fn pem(&self) -> (String, String) {
        let read = |path| fs::read_to_string(path).expect("a file of this test");
        (read(&self.certificate), read(&self.key))
    }

    /// The private key.
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).expect("a key")
    }

    /// SHA-256, hexadecimal.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// Puts another certificate and its key into the files of this one, in two steps that `between` comes between.
    pub(crate) fn overwrite(&self, with: &Issued, between: impl FnOnce()) {
        let (certificate, key) = with.pem();
        replace(&self.certificate, &certificate);
        between();
        replace(&self.key, &key);
    }
}

/// SHA-256 of a certificate, hexadecimal.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As those do who renew certificates: the file is whole at every moment.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("a file");
    fs::rename(&new, path).expect("a rename");
}

fn write(
    folder: &Path,
    stem: &str,
    certificate_pem: &str,
    key_pem: &str,
    der: &CertificateDer<'static>,
    serial: u64,
) -> Issued {
    let (certificate, key) = (folder.join(format!("{stem}.pem")), folder.join(format!("{stem}.key")));
    fs::write(&certificate, certificate_pem).expect("a file");
    fs::write(&key, key_pem).expect("a file");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("a mode");
    Issued { certificate, key, der: der.clone(), serial }
}
