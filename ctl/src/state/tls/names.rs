//! Versions, cipher suites and groups of TLS under the names that people write, and the files that a state names.
//!
//! Cipher suites have up to three names: that of IANA's registry, that of sozu and rustls, and that of OpenSSL. The case of
//! letters makes no difference.

use std::collections::HashSet;

use super::{CipherSuite, ClientAuth, Group, Material, Place, TlsVersion, WantedCertificate};
use crate::state::State;

/// The one of `all` that has this name.
fn named<T: Copy>(all: &[T], text: &str, names: impl Fn(T) -> &'static [&'static str]) -> Option<T> {
    all.iter().copied().find(|it| names(*it).iter().any(|name| name.eq_ignore_ascii_case(text)))
}

impl TlsVersion {
    /// All, the oldest first.
    pub const ALL: [TlsVersion; 2] = [TlsVersion::V12, TlsVersion::V13];

    /// Its name in a file.
    pub fn name(self) -> &'static str {
        match self {
            TlsVersion::V12 => "TLS_V12",
            TlsVersion::V13 => "TLS_V13",
        }
    }

    /// Its names: in a file, and as OpenSSL, nginx and examples of sozu write it.
    fn names(self) -> &'static [&'static str] {
        match self {
            TlsVersion::V12 => &["TLS_V12", "TLSv1.2"],
            TlsVersion::V13 => &["TLS_V13", "TLSv1.3"],
        }
    }

    /// The version that has this name, among others.
    pub fn from_name(text: &str) -> Option<TlsVersion> {
        named(&Self::ALL, text, TlsVersion::names)
    }
}

impl CipherSuite {
    /// Its names, that of IANA first.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            CipherSuite::Aes256GcmSha384 => &["TLS_AES_256_GCM_SHA384", "TLS13_AES_256_GCM_SHA384"],
            CipherSuite::Aes128GcmSha256 => &["TLS_AES_128_GCM_SHA256", "TLS13_AES_128_GCM_SHA256"],
            CipherSuite::ChaCha20Poly1305Sha256 => {
                &["TLS_CHACHA20_POLY1305_SHA256", "TLS13_CHACHA20_POLY1305_SHA256"]
            }
            CipherSuite::EcdheEcdsaAes256GcmSha384 => {
                &["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"]
            }
            CipherSuite::EcdheEcdsaAes128GcmSha256 => {
                &["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"]
            }
            CipherSuite::EcdheEcdsaChaCha20Poly1305Sha256 => {
                &["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"]
            }
            CipherSuite::EcdheRsaAes256GcmSha384 => {
                &["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"]
            }
            CipherSuite::EcdheRsaAes128GcmSha256 => {
                &["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"]
            }
            CipherSuite::EcdheRsaChaCha20Poly1305Sha256 => {
                &["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"]
            }
        }
    }

    /// Its name in the registry of IANA.
    pub fn name(self) -> &'static str {
        self.names().first().copied().unwrap_or_default()
    }

    /// The suite that has this name, among others.
    pub fn from_name(text: &str) -> Option<CipherSuite> {
        named(&Self::ALL, text, CipherSuite::names)
    }
}

impl Group {
    /// Its names, the one that kakehi writes first.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Group::X25519MlKem768 => &["X25519MLKEM768"],
            Group::X25519 => &["x25519"],
            Group::P256 => &["P-256", "secp256r1", "prime256v1"],
            Group::P384 => &["P-384", "secp384r1"],
        }
    }

    /// The name that kakehi writes.
    pub fn name(self) -> &'static str {
        self.names().first().copied().unwrap_or_default()
    }

    /// The group that has this name, among others.
    pub fn from_name(text: &str) -> Option<Group> {
        named(&Self::ALL, text, Group::names)
    }
}

impl State {
    /// Every file whose content a worker needs.
    pub fn materials_mut(&mut self) -> impl Iterator<Item = &mut Material> {
        let of_listeners = self.listeners.values_mut().filter_map(|it| it.tls.as_mut()?.client_auth.as_mut());
        let of_frontends = self.clusters.values_mut().flat_map(|cluster| {
            let of_probes = cluster.health.as_mut().and_then(|check| check.tls.as_mut());
            let backend = cluster.tls.as_mut().into_iter().chain(of_probes).flat_map(|tls| {
                let client = tls.client.as_mut().into_iter().flat_map(|(chain, key)| [chain, key]);
                std::iter::once(&mut tls.ca).chain(client)
            });
            let frontends =
                cluster.frontends.iter_mut().filter_map(|it| it.tls.as_mut()?.client_auth.as_mut());
            backend.chain(frontends.flat_map(ClientAuth::materials_mut))
        });
        of_listeners.flat_map(ClientAuth::materials_mut).chain(of_frontends)
    }

    /// The same state as a file says it: with the paths of files, and without what they had and where that lies.
    #[must_use]
    pub fn without_contents(mut self) -> State {
        for material in self.materials_mut() {
            material.digest.clear();
            material.place = Place::default();
        }
        self
    }

    /// The certificates that have files, as a file asks for them: one for each pair of listener and files.
    pub fn wanted_certificates(&self) -> Vec<WantedCertificate> {
        let mut wanted: Vec<WantedCertificate> = Vec::new();
        for (address, certificates) in &self.certificates {
            let (mut has_default, mut listed) = (false, HashSet::new());
            for certificate in certificates.values() {
                let Some(files) = &certificate.files else { continue };
                if !listed.insert(files) {
                    continue;
                }
                wanted.push(WantedCertificate {
                    address: *address,
                    files: files.unpack(),
                    names: certificate.said_names(),
                    default: certificate.default && !has_default,
                });
                has_default |= certificate.default;
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_state_and_each_leads_back() {
        let json = |value: serde_json::Value| value.as_str().unwrap().to_owned();
        for version in TlsVersion::ALL {
            assert_eq!(json(serde_json::to_value(version).unwrap()), version.name());
            assert_eq!(version.names()[0], version.name());
            for name in version.names() {
                assert_eq!(TlsVersion::from_name(&name.to_lowercase()), Some(version), "{name}");
            }
        }
        for suite in CipherSuite::ALL {
            assert_eq!(json(serde_json::to_value(suite).unwrap()), suite.name());
            for name in suite.names() {
                assert_eq!(CipherSuite::from_name(&name.to_lowercase()), Some(suite), "{name}");
            }
        }
        for group in Group::ALL {
            assert_eq!(json(serde_json::to_value(group).unwrap()), group.name());
            for name in group.names() {
                assert_eq!(Group::from_name(&name.to_uppercase()), Some(group), "{name}");
            }
        }
        assert_eq!(TlsVersion::from_name("TLS_V11"), None);
        assert_eq!(CipherSuite::from_name("ECDHE-RSA-AES128-SHA"), None);
        assert_eq!(Group::from_name("P-521"), None);
    }
}
