//! What of TLS lies in files: certificates, their keys, and who issues those of others.
//!
//! Only the supervisor reads such files. What it reads goes into the vault, memory that it shares with the workers, and
//! the state says where: so a worker needs no right to open a file, and no message carries a key.
//!
//! | file | what it is for |
//! |---|---|
//! | [`content`] | certificates, keys and revocation lists, taken apart |
//! | [`pem`] | are all parts of a text read |
//! | [`verify`] | does a key belong to its certificate, does a chain hang together |
//! | [`files`] | files: whether they have changed, and what is in them |
//! | [`materials`] | where a configuration needs the content of files |
//! | [`keeper`] | what was read, in the vault once; what nobody uses any more is erased |
//! | [`watch`] | files that change while kakehi runs |
//! | [`requests`] | certificates that are added, and told of |
//! | [`stored`] | certificates in a state on the disk |
//! | [`expiry`] | it is told which certificates expire |

mod content;
mod expiry;
mod files;
mod keeper;
mod materials;
mod pem;
mod requests;
mod stored;
#[cfg(test)]
mod tests;
mod verify;
mod watch;

use std::{io, net::SocketAddr};

use kakehi_ctl::state::Fingerprint;

pub(crate) use self::{
    content::Fault,
    keeper::{Depth, Keeper},
    verify::Mismatch,
};
pub(crate) use self::{
    expiry::figures,
    requests::{Wanted, find},
    stored::{count_without_files, without_keys},
    watch::Changed,
};

/// Why a certificate, or another file that TLS needs, cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file is wrong.
    #[error(transparent)]
    File(#[from] files::Error),
    /// What was sent is wrong.
    #[error("what was sent {0}")]
    Sent(Fault),
    /// What was sent does not belong together.
    #[error("what was sent: {0}")]
    SentMismatch(Mismatch),
    /// The vault cannot be used.
    #[error("certificates cannot be kept in memory: {0}")]
    Vault(io::Error),
    /// A change names a place where the certificate does not lie.
    #[error("certificate {0} is not known here; add it with `kakehictl certificate add`")]
    Elsewhere(Fingerprint),
    /// A change says of a certificate what is not so.
    #[error("certificate {0} is not what was said of it; add it with `kakehictl certificate add`")]
    Otherwise(Fingerprint),
    /// There is no such certificate.
    #[error(
        "the listener at {address} has no certificate `{which}`; `kakehictl certificate list` shows them"
    )]
    NoSuch {
        /// The listener.
        address: SocketAddr,
        /// What was asked for.
        which: String,
    },
    /// There is more than one.
    #[error(
        "the listener at {address} has {count} certificates for `{which}`; name one of them by its fingerprint"
    )]
    Several {
        /// The listener.
        address: SocketAddr,
        /// What was asked for.
        which: String,
        /// How many.
        count: usize,
    },
}
