//! Who a client is, by the certificate that it has shown.

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientIdentity {
    /// Whom its certificate is for: a distinguished name as text (RFC 4514), in visible ASCII.
    pub(crate) subject: String,
    /// SHA-256 of its certificate, hexadecimal.
    pub(crate) fingerprint: String,
}

impl ClientIdentity {
    /// That of a certificate that was verified.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> ClientIdentity {
        let subject = X509Certificate::from_der(certificate)
            .map_or_else(|_| String::new(), |(_, parsed)| distinguished_name(parsed.subject()));
        let hash = digest::digest(&digest::SHA256, certificate);
        let fingerprint = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        ClientIdentity { subject, fingerprint }
    }
}

/// A distinguished name as text (RFC 4514): the last part first. What is not visible ASCII is escaped, so that it can stand
/// in a field of HTTP.
pub fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts: Vec<String> = name
        .iter_rdn()
        .map(|part| {
            let attributes: Vec<String> = part
                .iter()
                .map(|attribute| {
                    let oid = attribute.attr_type();
                    let known = x509_parser::objects::oid2abbrev(oid, x509_parser::objects::oid_registry());
                    let label = known.map_or_else(|_| oid.to_id_string(), str::to_owned);
                    // A value that is no text is shown as its bytes (RFC 4514 section 2.4).
                    match attribute.as_str() {
                        Ok(text) => format!("{label}={}", escape(text)),
                        Err(_) => {
                            let hex: String =
                                attribute.as_slice().iter().map(|byte| format!("{byte:02X}")).collect();
                            format!("{label}=#{hex}")
                        }
                    }
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

/// RFC 4514 section 2.4.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => out.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning_in_a_name_or_in_a_field_is_escaped() {
        for (text, escaped) in [
            ("plain", "plain"),
            (" a b ", "\\ a b\\ "),
            ("a,b+c=d", "a\\,b\\+c=d"),
            ("#1", "\\#1"),
            ("x\r\nEvil: 1", "x\\0D\\0AEvil: 1"),
            ("Zoë", "Zo\\C3\\AB"),
            ("", ""),
        ] {
            assert_eq!(escape(text), escaped);
        }
    }
}
