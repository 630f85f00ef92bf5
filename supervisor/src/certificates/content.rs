//! What certificates, chains and keys are, once their text was read: taken apart, and described.
//!
//! Promises: nothing here looks into a private key further than to its kind.

use std::{collections::HashSet, net::IpAddr};

use kakehi_ctl::{
    config,
    order::CertificateInfo,
    state::{Certificate, Fingerprint, KeyKind, Names, PackedFiles},
};
use kakehi_engine::tls::{Stored, distinguished_name};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use x509_parser::{
    asn1_rs::{Any, Oid, Sequence, Tag},
    certificate::X509Certificate,
    extensions::GeneralName,
    oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519},
    prelude::{CertificateRevocationList, FromDer as _},
    x509::{AlgorithmIdentifier, X509Version},
};

use super::pem;

/// What is wrong with a text that should be certificates, a key or a revocation list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// There is no certificate.
    #[error("has no certificate: it needs at least one part `-----BEGIN CERTIFICATE-----` (PEM)")]
    NoCertificate,
    /// It is no chain.
    #[error("has more certificates than any chain; give only the certificate and those that issued it")]
    TooMany,
    /// It is too long.
    #[error("has certificates or a key of more than a megabyte, which nobody could be sent")]
    TooLarge,
    /// There is no key.
    #[error(
        "has no private key: it needs a part `-----BEGIN PRIVATE KEY-----`, `EC PRIVATE KEY` or `RSA PRIVATE KEY` (PEM)"
    )]
    NoKey,
    /// Its key needs a password.
    #[error(
        "has a private key that is encrypted with a password, which nobody is there to give: decrypt it with `openssl pkey -in FILE -out NEW`, and let nobody else read NEW"
    )]
    EncryptedKey,
    /// Its key writes its curve out.
    #[error(
        "has a private key with explicit EC parameters, which TLS does not know: write it with the name of its curve, `openssl pkey -in FILE -ec_param_enc named_curve -out NEW`; a certificate that was made with it has them too, and must be issued anew"
    )]
    ExplicitKey,
    /// A certificate writes the curve of its key out.
    #[error(
        "certificate {place} in it has explicit EC parameters, which TLS does not know: write its key with the name of its curve, `openssl pkey -in KEY -ec_param_enc named_curve -out NEW`, and have the certificate issued anew for NEW (`openssl req -new -key NEW -subj /CN=NAME -addext subjectAltName=DNS:NAME`)"
    )]
    ExplicitParameters {
        /// Which, from 1.
        place: usize,
    },
    /// A certificate without extensions.
    #[error(
        "certificate {place} in it is of version 1 of X.509, which has no names of hosts, and which clients refuse: have it issued anew with extensions, which makes it version 3 (`openssl x509 -req -in REQUEST -CA ISSUER -CAkey ISSUERKEY -extfile FILE -out NEW`, FILE having the line `subjectAltName=DNS:NAME`)"
    )]
    Version1 {
        /// Which, from 1.
        place: usize,
    },
    /// A part that would be passed over.
    #[error(
        "has `-----BEGIN` in line {line}, and not at its beginning, or with something behind it, so that this part would not be read: give each `-----BEGIN` and `-----END` a line of its own, without spaces"
    )]
    Glued {
        /// From 1.
        line: usize,
    },
    /// A part that does not end.
    #[error(
        "has `-----BEGIN` in line {line}, before the part has ended that begins in line {begun}: is it half written?"
    )]
    Unended {
        /// From 1.
        line: usize,
        /// Where the part begins that does not end.
        begun: usize,
    },
    /// A part that nobody would look at.
    #[error(
        "has a part `-----BEGIN {label}-----` in line {line}, which would not be read; a certificate is `-----BEGIN CERTIFICATE-----` (`openssl x509 -in FILE -out NEW` writes it so)"
    )]
    Label {
        /// From 1.
        line: usize,
        /// What it is called.
        label: String,
    },
    /// There is no revocation list.
    #[error("has no revocation list: it needs at least one part `-----BEGIN X509 CRL-----` (PEM)")]
    NoCrl,
    /// It is not PEM.
    #[error("is not PEM: {0}; is it half written, or DER?")]
    Pem(String),
    /// A certificate is not one.
    #[error("certificate {place} in it cannot be read: {reason}")]
    Certificate {
        /// Which, from 1.
        place: usize,
        /// Why.
        reason: String,
    },
    /// A revocation list is not one.
    #[error("revocation list {place} in it cannot be read: {reason}")]
    Crl {
        /// Which, from 1.
        place: usize,
        /// Why.
        reason: String,
    },
    /// No suite is for such keys.
    #[error(
        "its certificate has a key of a kind that TLS is not spoken with here; it must be ECDSA, Ed25519 or RSA"
    )]
    KeyKind,
    /// It says no name.
    #[error(
        "its certificate has neither a subject alternative name nor a common name; say for which names it is served (`names`)"
    )]
    NoName,
    /// It cannot be served for a name.
    #[error("cannot be served for `{name}`: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        reason: &'static str,
    },
}

/// What is in a certificate that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) fingerprint: Fingerprint,
    /// In lower case: those of DNS and addresses, or else its common name; none at all where it has none.
    pub(crate) names: Names,
    pub(crate) key: KeyKind,
    pub(crate) not_after: i64,
    /// Certificates are much alike that have the same.
    pub(crate) kin: [u8; 32],
}

impl Facts {
    /// What a listener knows of the certificate, which lies nowhere yet, with other names if some are said.
    ///
    /// # Errors
    /// When it has no names and none are said, or one that is said is none.
    pub(crate) fn certificate(self, said: &[String], default: bool) -> Result<Certificate, Fault> {
        let named = !said.is_empty();
        let names = match named {
            true => said.iter().map(|name| served(name)).collect::<Result<Names, _>>()?,
            false => self.names,
        };
        if names == Names::default() {
            return Err(Fault::NoName);
        }
        let Facts { key, not_after, .. } = self;
        Ok(Certificate { names, key, not_after, default, named, place: Default::default(), files: None })
    }
}

fn served(name: &str) -> Result<String, Fault> {
    config::certificate_name(name).map_err(|reason| Fault::Name { name: name.to_owned(), reason })
}

/// The certificates in a text (PEM).
///
/// # Errors
/// See [`Fault`].
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    pem::check(text)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let read = read.map_err(|error| Fault::Pem(error.to_string()))?;
    if read.is_empty() { Err(Fault::NoCertificate) } else { Ok(read) }
}

/// Leaves out what stands in a chain already: files of a chain often begin with the certificate itself.
pub(crate) fn without_repeats(chain: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    let mut seen = HashSet::new();
    let is_new: Vec<bool> = chain.iter().map(|der| seen.insert(der.as_ref())).collect();
    chain.into_iter().zip(is_new).filter_map(|(der, is_new)| is_new.then_some(der)).collect()
}

/// The key in a text (PEM): PKCS #8, SEC1 or PKCS #1.
///
/// # Errors
/// See [`Fault`].
pub(crate) fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Fault> {
    use rustls_pki_types::pem::Error;
    pem::check(text)?;
    let has = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    let key = PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        Error::NoItemsFound if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") => Fault::EncryptedKey,
        Error::NoItemsFound => Fault::NoKey,
        _ if has(b"Proc-Type: 4,ENCRYPTED") => Fault::EncryptedKey,
        // Nothing of what the text says may reach a log.
        _ => Fault::Pem("a part of it does not end, or is not base64".to_owned()),
    })?;
    if has_explicit_parameters(&key) { Err(Fault::ExplicitKey) } else { Ok(key) }
}

/// Whether the curve of a key is described, and not named (RFC 5480 section 2.1.1 and RFC 5915 section 3 allow only names).
fn has_explicit_parameters(key: &PrivateKeyDer<'_>) -> bool {
    // In a sequence, the algorithm with its parameters is the second thing of PKCS #8, and the parameters the third of SEC1.
    let parameters = |der| -> Option<Tag> {
        let (_, sequence) = Sequence::from_der(der).ok()?;
        let (rest, _) = Any::from_der(&sequence.content).ok()?;
        let (rest, second) = Any::from_der(rest).ok()?;
        let inner = match key {
            PrivateKeyDer::Pkcs8(_) => {
                let (parameters, kind) = Oid::from_der(second.data).ok()?;
                (kind == OID_KEY_TYPE_EC_PUBLIC_KEY).then_some(parameters)?
            }
            PrivateKeyDer::Sec1(_) => Any::from_der(rest).ok().filter(|(_, it)| it.tag() == Tag(0))?.1.data,
            _ => return None,
        };
        Any::from_der(inner).ok().map(|(_, parameters)| parameters.tag())
    };
    parameters(key.secret_der()) == Some(Tag::Sequence)
}

/// Whether a text (PEM) is who issues certificates.
///
/// # Errors
/// See [`Fault`].
pub(crate) fn check_issuers(text: &[u8]) -> Result<(), Fault> {
    (1..).zip(certificates(text)?).try_for_each(|(place, der)| parse(place, &der).map(drop))
}

/// Whether a text (PEM) is revocation lists; says which of them are out of date at `now`.
///
/// # Errors
/// See [`Fault`].
pub(crate) fn check_crls(text: &[u8], now: i64) -> Result<Vec<String>, Fault> {
    pem::check(text)?;
    let (mut place, mut warnings) = (0, Vec::new());
    for list in CertificateRevocationListDer::pem_slice_iter(text) {
        place += 1;
        let list = list.map_err(|error| Fault::Pem(error.to_string()))?;
        let (_, list) = CertificateRevocationList::from_der(&list)
            .map_err(|error| Fault::Crl { place, reason: error.to_string() })?;
        if let Some(due) = list.next_update().filter(|due| due.timestamp() <= now) {
            let issuer = distinguished_name(list.issuer());
            warnings.push(format!(
                "the list of `{issuer}` has expired on {due}; certificates that were revoked since are accepted"
            ));
        }
    }
    if place == 0 { Err(Fault::NoCrl) } else { Ok(warnings) }
}

/// The certificate in `der`, which is number `place` of its text.
///
/// # Errors
/// When it is none.
pub(super) fn parse(place: usize, der: &[u8]) -> Result<X509Certificate<'_>, Fault> {
    let wrong = |reason: String| Fault::Certificate { place, reason };
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(wrong("something follows it".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// What is in the first certificate of a chain.
///
/// # Errors
/// See [`Fault`].
pub(crate) fn facts(chain: &[CertificateDer<'_>]) -> Result<Facts, Fault> {
    let der = chain.first().ok_or(Fault::NoCertificate)?;
    let certificate = parse(1, der)?;
    if certificate.version() == X509Version::V1 {
        return Err(Fault::Version1 { place: 1 });
    }
    Ok(Facts {
        fingerprint: Fingerprint(Sha256::digest(der).into()),
        names: names(&certificate),
        key: key_kind(&certificate)?,
        not_after: certificate.validity().not_after.timestamp(),
        kin: kin(&certificate),
    })
}

/// What they have in common that somebody issues for keys of one kind, or that issue themselves.
fn kin(certificate: &X509Certificate<'_>) -> [u8; 32] {
    let mut digest = Sha256::new();
    if certificate.issuer().as_raw() != certificate.subject().as_raw() {
        digest.update(certificate.issuer().as_raw());
    }
    digest.update(certificate.public_key().algorithm.algorithm.as_bytes());
    digest.update(certificate.public_key().subject_public_key.data.len().to_le_bytes());
    digest.finalize().into()
}

fn key_kind(certificate: &X509Certificate<'_>) -> Result<KeyKind, Fault> {
    let AlgorithmIdentifier { algorithm: kind, parameters } = &certificate.public_key().algorithm;
    let explicit = parameters.as_ref().is_some_and(|it| it.tag() == Tag::Sequence);
    if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && explicit {
        return Err(Fault::ExplicitParameters { place: 1 });
    }
    [
        (OID_KEY_TYPE_EC_PUBLIC_KEY, KeyKind::Ecdsa),
        (OID_SIG_ED25519, KeyKind::Ed25519),
        (OID_PKCS1_RSAENCRYPTION, KeyKind::Rsa),
    ]
    .into_iter()
    .find_map(|(oid, named)| (*kind == oid).then_some(named))
    .ok_or(Fault::KeyKind)
}

fn names(certificate: &X509Certificate<'_>) -> Names {
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.map_or(&[][..], |extension| &extension.value.general_names);
    let mut names: Vec<String> = Vec::new();
    for name in alternatives {
        let name = match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        };
        names.extend(name.filter(|name| !names.contains(name)));
    }
    if names.is_empty() {
        let common = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
        names.extend(common.map(str::to_ascii_lowercase));
    }
    names.into_iter().collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    four.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// Everything that there is to say about a certificate of the listener at `address`.
///
/// # Errors
/// When what was stored is no certificate.
pub(super) fn describe(
    address: std::net::SocketAddr,
    fingerprint: Fingerprint,
    certificate: &Certificate,
    stored: &Stored,
) -> Result<CertificateInfo, Fault> {
    let parsed = parse(1, stored.chain.first().ok_or(Fault::NoCertificate)?)?;
    Ok(CertificateInfo {
        address,
        fingerprint,
        names: certificate.names.to_vec(),
        subject: distinguished_name(parsed.subject()),
        issuer: distinguished_name(parsed.issuer()),
        serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        not_before: parsed.validity().not_before.timestamp(),
        not_after: certificate.not_after,
        key: certificate.key,
        default: certificate.default,
        chain_length: stored.chain.len() - 1,
        files: certificate.files.as_ref().map(PackedFiles::unpack),
    })
}
