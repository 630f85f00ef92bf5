//! The full look at a certificate: does the key belong to it, does the chain hang together, is it valid now?
//!
//! It costs about a hundred microseconds a certificate, so it is for those that come one by one: by `kakehictl`, by a file
//! that has changed, and for `kakehi check`.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::SystemTime};

use kakehi_engine::tls::{Stored, distinguished_name};
use rustls::{
    crypto::aws_lc_rs,
    sign::CertifiedKey,
    {Error as RustlsError, InconsistentKeys},
};

use super::content::{self, Fault};

/// A warning about what ends so soon (s).
pub(super) const SOON_S: i64 = 14 * 86_400;

/// Why a certificate cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    /// The key is another one's.
    #[error(
        "the key does not belong to the certificate; give the key that the certificate was asked for with"
    )]
    Key,
    /// The key is not one that can be used.
    #[error("the key cannot be used: {0}")]
    Unusable(String),
    /// A certificate follows that did not issue the one before.
    #[error(
        "certificate {place} of the chain is `{subject}`, but the one before was issued by `{issuer}`; put the certificate first, then who issued it, then who issued that"
    )]
    Order {
        /// From 1.
        place: usize,
        /// Whom it is for.
        subject: String,
        /// Who should be there.
        issuer: String,
    },
    /// A certificate of the chain cannot be read.
    #[error("the chain: {0}")]
    Chain(#[from] Fault),
}

/// Looks at all of it; gives what may be meant, but should be known.
///
/// # Errors
/// See [`Mismatch`].
pub(crate) fn pair(stored: &Stored) -> Result<Vec<String>, Mismatch> {
    let provider = aws_lc_rs::default_provider();
    match CertifiedKey::from_der(stored.chain.clone(), stored.key.clone_key(), &provider) {
        Ok(_) => {}
        Err(RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch)) => return Err(Mismatch::Key),
        Err(error) => return Err(Mismatch::Unusable(error.to_string())),
    }
    let parsed = (1..).zip(&stored.chain).map(|(place, der)| content::parse(place, der));
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    for (place, pair) in (2..).zip(parsed.windows(2)) {
        let [one, next] = pair else { continue };
        if one.issuer().as_raw() != next.subject().as_raw() {
            let (subject, issuer) = (distinguished_name(next.subject()), distinguished_name(one.issuer()));
            return Err(Mismatch::Order { place, subject, issuer });
        }
    }
    let now = now();
    let mut warnings = Vec::new();
    for (place, certificate) in (1..).zip(&parsed) {
        let which = if place == 1 { "it".to_owned() } else { format!("certificate {place} of its chain") };
        let validity = certificate.validity();
        if validity.not_before.timestamp() > now {
            warnings.push(format!("{which} is not valid before {}", validity.not_before));
        }
        if validity.not_after.timestamp() <= now {
            warnings.push(format!("{which} has expired on {}", validity.not_after));
        }
    }
    Ok(warnings)
}

/// Says so if others than its owner can read the key.
pub(super) fn permissions(key: &Path) -> Option<String> {
    let mode = std::fs::metadata(key).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| format!("everybody can read {}; `chmod o-rwx` it", key.display()))
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}
