//! Certificates in a state on the disk: those that have files are read from there again, others need their key saved.

use std::{borrow::Cow, collections::BTreeMap, io};

use kakehi_ctl::{
    order::{KeyPair, Pem},
    state::{Certificate, Fingerprint, PackedFiles, State, WantedCertificate},
};
use kakehi_engine::tls::Stored;
use rustls_pki_types::PrivateKeyDer;

use super::{
    Error, content,
    files::Record,
    keeper::{Depth, Keeper},
    requests::parse,
};

impl Keeper {
    /// Makes a saved state one of this vault. Of a certificate without files, the key is in `keys`, or it lies here already,
    /// as it does in `present`; others are left out, as the warnings say.
    ///
    /// # Errors
    /// When a file, or a key that was saved, cannot be used.
    pub(crate) fn restore(
        &mut self,
        state: &mut State,
        keys: &BTreeMap<Fingerprint, KeyPair>,
        present: &State,
    ) -> Result<Vec<String>, Error> {
        let (mut wanted, mut others, mut left_out) = (Vec::new(), Vec::new(), 0);
        let by_hand = state.certificates_by_hand();
        for (address, certificates) in std::mem::take(&mut state.certificates) {
            for (fingerprint, certificate) in certificates {
                // What else is said of it counts for nothing: it is taken from the certificate.
                let default = certificate.default;
                let names = certificate.said_names();
                if let Some(files) = certificate.files.as_ref().map(PackedFiles::unpack) {
                    wanted.push(WantedCertificate { address, files, names, default });
                    continue;
                }
                let here = present.certificates.values().find_map(|it| it.get(&fingerprint));
                let (place, facts) = if let Some(pair) = keys.get(&fingerprint) {
                    let (stored, facts) = parse(pair).map_err(Error::Sent)?;
                    (self.put(&Record::of_pair(stored, &facts))?, facts)
                } else if let Some(here) = here {
                    let stored = self.vault().certificate(here.place).map_err(Error::Vault)?;
                    (here.place, content::facts(&stored.chain).map_err(Error::Sent)?)
                } else {
                    left_out += 1;
                    continue;
                };
                if facts.fingerprint != fingerprint {
                    return Err(Error::Elsewhere(fingerprint));
                }
                let certificate = facts.certificate(&names, default).map_err(Error::Sent)?;
                others.push((address, fingerprint, Certificate { place, ..certificate }));
            }
        }
        let mut warnings = self.furnish(state, wanted, Depth::Few)?;
        for (address, fingerprint, certificate) in others {
            state.certificates.entry(address).or_default().insert(fingerprint, certificate.into());
        }
        state.follow_files(&by_hand);
        if left_out > 0 {
            warnings.push(format!(
                "{left_out} certificates that came over the command socket are left out: their keys were not saved \
                 (`kakehictl state save --with-keys` does)"
            ));
        }
        Ok(warnings)
    }

    /// The certificates of `state` that have no files, with their keys.
    ///
    /// # Errors
    /// When the state is not of this vault.
    pub(crate) fn keys(&self, state: &State) -> io::Result<BTreeMap<Fingerprint, KeyPair>> {
        let certificates = state.certificates.values().flatten();
        let without_files = certificates.filter(|(_, certificate)| certificate.files.is_none());
        without_files
            .map(|(fingerprint, certificate)| {
                Ok((*fingerprint, written(&self.vault().certificate(certificate.place)?)))
            })
            .collect()
    }
}

/// How many certificates of a state cannot be had again without keys.
pub(crate) fn count_without_files(state: &State) -> usize {
    let all = state.certificates.values().flat_map(|it| it.values());
    all.filter(|certificate| certificate.files.is_none()).count()
}

/// What of a state can be had again without keys.
pub(crate) fn without_keys(state: &State) -> Cow<'_, State> {
    if count_without_files(state) == 0 {
        return Cow::Borrowed(state);
    }
    let mut state = state.clone();
    for certificates in state.certificates.values_mut() {
        certificates.retain(|_, certificate| certificate.files.is_some());
    }
    state.certificates.retain(|_, certificates| !certificates.is_empty());
    Cow::Owned(state)
}

fn written(Stored { chain, key }: &Stored) -> KeyPair {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    let chain = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    KeyPair { chain: Pem(chain), key: Pem(pem(label, key.secret_der())) }
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits =
                (0..3).fold(0_u32, |bits, n| bits << 8 | u32::from(group.get(n).copied().unwrap_or(0)));
            for n in 0..4 {
                let letter = LETTERS[(bits >> (18 - 6 * n) & 63) as usize];
                text.push(if n <= group.len() { char::from(letter) } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_as_pem_is_read_as_it_was() {
        use rustls_pki_types::{CertificateDer, pem::PemObject as _};
        for length in [1, 2, 3, 47, 48, 49, 700] {
            let der: Vec<u8> = (0..length).map(|n| (n * 37 % 251) as u8).collect();
            let text = pem("CERTIFICATE", &der);
            assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap().as_ref(), der, "{text}");
        }
    }
}
