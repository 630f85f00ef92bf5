//! What is configured of TLS: how a listener terminates it, which certificates it has, how backends are reached by it.
//!
//! Certificates and keys themselves are no part of a state. They lie in the vault, memory that supervisor and workers
//! share, and the state says where: so nothing that shows a state shows a key, and no worker needs to read a file.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::compact::{Names, PackedFiles};
use crate::{
    keys::{keyed, words},
    limits,
};

mod names;

/// A version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    /// RFC 5246.
    #[serde(rename = "TLS_V12")]
    V12,
    /// RFC 8446.
    #[serde(rename = "TLS_V13")]
    V13,
}

/// A cipher suite, under its name in the registry of IANA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum CipherSuite {
    #[serde(rename = "TLS_AES_256_GCM_SHA384")]
    Aes256GcmSha384,
    #[serde(rename = "TLS_AES_128_GCM_SHA256")]
    Aes128GcmSha256,
    #[serde(rename = "TLS_CHACHA20_POLY1305_SHA256")]
    ChaCha20Poly1305Sha256,
    #[serde(rename = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")]
    EcdheEcdsaAes256GcmSha384,
    #[serde(rename = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")]
    EcdheEcdsaAes128GcmSha256,
    #[serde(rename = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256")]
    EcdheEcdsaChaCha20Poly1305Sha256,
    #[serde(rename = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384")]
    EcdheRsaAes256GcmSha384,
    #[serde(rename = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")]
    EcdheRsaAes128GcmSha256,
    #[serde(rename = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256")]
    EcdheRsaChaCha20Poly1305Sha256,
}

impl CipherSuite {
    /// All, the most wanted first.
    pub const ALL: [CipherSuite; 9] = [
        CipherSuite::Aes256GcmSha384,
        CipherSuite::Aes128GcmSha256,
        CipherSuite::ChaCha20Poly1305Sha256,
        CipherSuite::EcdheEcdsaAes256GcmSha384,
        CipherSuite::EcdheEcdsaAes128GcmSha256,
        CipherSuite::EcdheEcdsaChaCha20Poly1305Sha256,
        CipherSuite::EcdheRsaAes256GcmSha384,
        CipherSuite::EcdheRsaAes128GcmSha256,
        CipherSuite::EcdheRsaChaCha20Poly1305Sha256,
    ];

    /// Which version of TLS it belongs to.
    pub fn version(self) -> TlsVersion {
        match self {
            CipherSuite::Aes256GcmSha384
            | CipherSuite::Aes128GcmSha256
            | CipherSuite::ChaCha20Poly1305Sha256 => TlsVersion::V13,
            _ => TlsVersion::V12,
        }
    }
}

/// A group of the key exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Group {
    #[serde(rename = "X25519MLKEM768")]
    X25519MlKem768,
    #[serde(rename = "x25519")]
    X25519,
    #[serde(rename = "P-256")]
    P256,
    #[serde(rename = "P-384")]
    P384,
}

impl Group {
    /// All, the most wanted first.
    pub const ALL: [Group; 4] = [Group::X25519MlKem768, Group::X25519, Group::P256, Group::P384];
}

keyed! {
    /// How a listener terminates TLS.
    pub struct Tls;
    own {
        /// What a client gets that names no name, or one that no certificate has: the default certificate, or a refusal
        /// (the alert `unrecognized_name`).
        "unknown_sni" => unknown_name: UnknownName = UnknownName::Default, Choice(UnknownName::WORDS), Own, Connections;
        /// Tickets that a client gets after a handshake, to resume its session with; 0 = sessions are not resumed.
        "send_tls13_tickets" => tickets: u8 = limits::TLS_TICKETS, Integer(0, 16), Yes, Connections;
        /// Deadline of the handshake, from accept, in seconds.
        "handshake_timeout" => handshake_ms: u64 = limits::HANDSHAKE_TIMEOUT_MS, Seconds, Own, Connections;
        /// Refuse requests for a name that the certificate of the handshake does not have (421).
        "strict_sni_binding" => strict_sni: bool = true, Bool, Yes, Requests;
    }
    beside {
        /// Versions that it speaks.
        versions: Vec<TlsVersion> = vec![TlsVersion::V12, TlsVersion::V13];
        /// Cipher suites, the most wanted first.
        cipher_suites: Vec<CipherSuite> = CipherSuite::ALL.to_vec();
        /// Groups of the key exchange, the most wanted first.
        groups: Vec<Group> = Group::ALL.to_vec();
        /// Protocols that it agrees to (ALPN), the most wanted first.
        alpn: Vec<String> = vec!["http/1.1".to_owned()];
        /// Whether clients show certificates.
        client_auth: Option<ClientAuth> = None;
        /// `Strict-Transport-Security` of the responses.
        hsts: Option<Hsts> = None;
    }
}

words! {
    /// What a client gets that names no name, or one that no certificate has.
    pub enum UnknownName {
        /// The listener's default certificate.
        Default = "default",
        /// A refusal (the alert `unrecognized_name`).
        Refuse = "refuse",
    }
}

/// Clients show certificates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientAuth {
    /// Who issues them (PEM).
    pub ca: Material,
    /// Which of them are void (PEM), of every issuer.
    pub crl: Option<Material>,
    /// Those that show none are refused.
    pub required: bool,
    /// Others that issue them, in files of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_cas: Vec<Material>,
    /// Others that are void.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_crls: Vec<Material>,
}

impl ClientAuth {
    /// All files of issuers.
    pub fn cas(&self) -> impl Iterator<Item = &Material> {
        std::iter::once(&self.ca).chain(&self.more_cas)
    }

    /// All files.
    pub(crate) fn materials_mut(&mut self) -> impl Iterator<Item = &mut Material> {
        let ClientAuth { ca, crl, more_cas, more_crls, .. } = self;
        std::iter::once(ca).chain(more_cas).chain(crl).chain(more_crls)
    }

    /// All files of revocation lists.
    pub fn crls(&self) -> impl Iterator<Item = &Material> {
        self.crl.iter().chain(&self.more_crls)
    }
}

keyed! {
    /// `Strict-Transport-Security` (RFC 6797).
    #[derive(Eq, Hash)]
    pub struct Hsts;
    required {
        /// Whether `Strict-Transport-Security` is sent; required. `false` in a frontend takes that of its listener
        /// away.
        "enabled" => enabled: bool = false, Bool, Yes, Requests;
    }
    own {
        /// `max-age`: how long clients remember, in seconds.
        "max_age" => max_age: u32 = limits::HSTS_MAX_AGE, Integer(0, u32::MAX as u64), Yes, Requests;
        /// `includeSubDomains`: also for all names below.
        "include_subdomains" => include_subdomains: bool = false, Bool, Yes, Requests;
        /// `preload`: may stand in the lists of browsers.
        "preload" => preload: bool = false, Bool, Yes, Requests;
        /// Replace what the backend sends; otherwise that stays.
        "force_replace_backend" => force_replace_backend: bool = false, Bool, Yes, Requests;
    }
}

/// What a frontend of a listener with TLS says otherwise. It decides in the handshake, by the name that the client asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FrontendTls {
    /// Versions; `None` = those of the listener.
    pub versions: Option<Vec<TlsVersion>>,
    /// Client certificates; `None` = as the listener.
    pub client_auth: Option<ClientAuth>,
    /// `None` = as the listener.
    pub hsts: Option<Hsts>,
}

/// How backends are reached by TLS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendTls {
    /// Who issues their certificates (PEM).
    pub ca: Material,
    /// The name that their certificates must have, and that they are asked for; `None` = the address of the backend.
    pub server_name: Option<String>,
    /// The certificate that they are shown: chain (PEM) and key (PEM).
    pub client: Option<(Material, Material)>,
    /// Protocols that are offered (ALPN).
    pub alpn: Vec<String>,
}

/// A file whose content is needed where it cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// The file.
    pub path: PathBuf,
    /// What it had: SHA-256, hexadecimal; empty as long as it was not read.
    #[serde(default)]
    pub digest: String,
    /// Where that lies.
    #[serde(default)]
    pub place: Place,
}

/// A place in the vault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// SHA-256 of a certificate (DER), which names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not the fingerprint of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits (SHA-256), with or without `:` between them")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        let mut digits = text.chars().filter(|it| *it != ':').map(|it| it.to_digit(16));
        for byte in &mut bytes {
            let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else {
                return Err(FingerprintError);
            };
            // Two digits of four bits.
            *byte = (high << 4 | low) as u8;
        }
        if digits.next().is_some() { Err(FingerprintError) } else { Ok(Fingerprint(bytes)) }
    }
}

/// A certificate of a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Names that it is served for, in lower case: those in it, or those that were said instead. `*.name` is any one label
    /// below a name.
    pub names: Names,
    /// Kind of its key.
    pub key: KeyKind,
    /// Until when it is valid (seconds since 1970).
    pub not_after: i64,
    /// It is the listener's default.
    pub default: bool,
    /// The names were said, not found in it.
    #[serde(default)]
    pub named: bool,
    /// Where its chain and its key lie.
    pub place: Place,
    /// Its files; `None` when it came over the command socket.
    pub files: Option<PackedFiles>,
}

impl Certificate {
    /// The names that were said for it; none where those in it count.
    pub fn said_names(&self) -> Vec<String> {
        if self.named { self.names.to_vec() } else { Vec::new() }
    }

    /// Whether it is for this host, which is in lower case.
    pub fn covers(&self, host: &str) -> bool {
        let parent = host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(below) => parent == Some(below),
            None => name == host,
        })
    }
}

/// Kind of a certificate's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// On P-256, P-384 or P-521.
    Ecdsa,
    /// Ed25519.
    Ed25519,
    /// RSA.
    Rsa,
}

/// The files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CertificateFiles {
    /// Certificate (PEM), with or without its chain.
    pub certificate: Box<Path>,
    /// Its chain (PEM).
    pub chain: Option<Box<Path>>,
    /// Its private key (PEM).
    pub key: Box<Path>,
}

/// A certificate that a file asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WantedCertificate {
    /// The listener.
    pub address: std::net::SocketAddr,
    /// Its files.
    pub files: CertificateFiles,
    /// Names to serve it for, instead of those in it.
    pub names: Vec<String>,
    /// It is the listener's default.
    pub default: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_with_and_without_colons_and_whole_or_not_at_all() {
        let text = "00ff".repeat(16);
        let fingerprint: Fingerprint = text.parse().unwrap();
        assert_eq!(fingerprint.to_string(), text);
        let colons: Vec<_> = text.as_bytes().chunks(2).map(|it| std::str::from_utf8(it).unwrap()).collect();
        assert_eq!(colons.join(":").to_uppercase().parse(), Ok(fingerprint));
        for wrong in ["", "00", &text[1..], &format!("{text}0"), &"zz".repeat(32)] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(FingerprintError), "{wrong}");
        }
    }

    #[test]
    fn a_certificate_covers_its_names_and_any_one_label_below_those_with_a_star() {
        let certificate = Certificate {
            names: ["a.example", "*.b.example", "*"].into(),
            key: KeyKind::Ecdsa,
            not_after: 0,
            default: false,
            named: false,
            place: Place::default(),
            files: None,
        };
        for (host, is_covered) in [
            ("a.example", true),
            ("b.example", false),
            ("x.b.example", true),
            ("x.y.b.example", false),
            (".b.example", false),
            ("x.a.example", false),
            ("", false),
        ] {
            assert_eq!(certificate.covers(host), is_covered, "{host}");
        }
    }

    #[test]
    fn suites_belong_to_the_version_that_they_are_named_for() {
        for suite in CipherSuite::ALL {
            let name = serde_json::to_string(&suite).unwrap();
            assert_eq!(name.contains("_WITH_"), suite.version() == TlsVersion::V12, "{name}");
        }
    }
}
