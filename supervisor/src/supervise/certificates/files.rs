//! Files: which ones make a certificate, whether they have changed, and what is in them.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use kakehi_ctl::state::CertificateFiles;
use kakehi_engine::tls::Stored;
use sha2::{Digest as _, Sha256};

use super::{
    content::{self, Facts, Fault},
    verify::{self, Mismatch},
};

/// The largest file that is read (bytes): the bundle of all issuers that browsers trust has a hundredth of it.
const MAX_SIZE: u64 = 16 << 20;

/// The longest chain, with the certificate; the vault takes no longer one.
pub(super) const MAX_CHAIN: usize = 32;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file system refused.
    #[error("{path} cannot be read: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// It is no such file.
    #[error("{path} has {size} bytes, which is more than any certificate has", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// It is not what it should be.
    #[error("{path} {fault}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The files do not belong together.
    #[error("{certificate} and {key}: {mismatch}", certificate = certificate.display(), key = key.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// In what.
        mismatch: Mismatch,
    },
}

/// Short for what may be long: enough of a SHA-256 that no two are ever the same.
pub(super) type Short = [u8; 16];
/// The whole of a SHA-256.
pub(super) type Whole = [u8; 32];

pub(super) fn short(digest: Sha256) -> Short {
    let mut short = Short::default();
    short.copy_from_slice(&digest.finalize()[..16]);
    short
}

/// What files are read for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A certificate of a listener.
    Certificate(CertificateFiles),
    /// Who issues certificates.
    Issuers(PathBuf),
    /// Which of them are void.
    Crls(PathBuf),
    /// A certificate that backends are shown: chain and key.
    Client(PathBuf, PathBuf),
}

impl Source {
    /// Its files.
    pub(super) fn paths(&self) -> Vec<&Path> {
        match self {
            Source::Certificate(CertificateFiles { certificate, chain, key }) => {
                [Some(certificate), chain.as_ref(), Some(key)].into_iter().flatten().map(|it| &**it).collect()
            }
            Source::Issuers(path) | Source::Crls(path) => vec![path],
            Source::Client(chain, key) => vec![chain, key],
        }
    }

    /// What it is called in a table.
    pub(super) fn name(&self) -> Short {
        let mut digest = Sha256::new();
        digest.update([match self {
            Source::Certificate(CertificateFiles { chain: None, .. }) => 0,
            Source::Certificate(_) => 1,
            Source::Issuers(_) => 2,
            Source::Crls(_) => 3,
            Source::Client(..) => 4,
        }]);
        for path in self.paths() {
            digest.update(path.as_os_str().as_encoded_bytes());
            digest.update([0]);
        }
        short(digest)
    }

    /// By which it is seen that a file has changed: its content has, or another lies where a link leads.
    ///
    /// # Errors
    /// When there is no such file.
    pub(super) fn stamp(&self) -> Result<Short, Error> {
        let mut digest = Sha256::new();
        for path in self.paths() {
            let file = fs::metadata(path).map_err(|error| Error::Io { path: path.to_owned(), error })?;
            for number in [file.dev(), file.ino(), file.size()] {
                digest.update(number.to_le_bytes());
            }
            digest.update(file.mtime().to_le_bytes());
            digest.update(file.mtime_nsec().to_le_bytes());
        }
        Ok(short(digest))
    }

    /// Reads it. With `fully`, it is also looked whether everything belongs together; otherwise keys are not looked into.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn read(&self, fully: bool) -> Result<Read, Error> {
        match self {
            Source::Certificate(files) => {
                let (stored, facts) = pair(&files.certificate, files.chain.as_deref(), &files.key)?;
                let mut warnings = Vec::new();
                if fully {
                    let found = checked(&stored, &files.certificate, &files.key)?;
                    let about = |it: String| format!("certificate {}: {it}", files.certificate.display());
                    warnings.extend(found.into_iter().chain(verify::permissions(&files.key)).map(about));
                }
                Ok(Read { records: vec![Record::of_pair(stored)], facts: Some(facts), warnings })
            }
            Source::Issuers(path) => material(path, content::check_issuers),
            Source::Crls(path) => material(path, content::check_crls),
            Source::Client(chain, key) => {
                let (stored, _) = pair(chain, None, key)?;
                let found = checked(&stored, chain, key)?;
                let about = |it: String| format!("client certificate {}: {it}", chain.display());
                let warnings = found.into_iter().chain(verify::permissions(key)).map(about).collect();
                let records = vec![Record::of_text(text(chain)?), Record::of_text(text(key)?)];
                Ok(Read { records, facts: None, warnings })
            }
        }
    }
}

/// What belongs into the vault.
pub(super) struct Record {
    pub(super) content: Content,
    /// Of all of it, whether or not a part of it lies elsewhere.
    pub(super) digest: Whole,
}

/// What a record is of.
pub(super) enum Content {
    /// A material, as it is.
    Text(Vec<u8>),
    /// A certificate with all that belongs to it.
    Pair(Stored),
}

impl Record {
    pub(super) fn of_text(text: Vec<u8>) -> Record {
        Record { digest: Sha256::digest(&text).into(), content: Content::Text(text) }
    }

    pub(super) fn of_pair(stored: Stored) -> Record {
        Record { digest: digest_of(&stored), content: Content::Pair(stored) }
    }
}

/// By which it is seen that something is in the vault already.
pub(super) fn digest_of(stored: &Stored) -> Whole {
    Sha256::digest(stored.record()).into()
}

/// What was read.
pub(super) struct Read {
    /// What belongs into the vault: one for each material, one for a certificate with all that belongs to it.
    pub(super) records: Vec<Record>,
    /// Of a certificate of a listener.
    pub(super) facts: Option<Facts>,
    pub(super) warnings: Vec<String>,
}

fn material(path: &Path, check: impl Fn(&[u8]) -> Result<(), Fault>) -> Result<Read, Error> {
    let text = text(path)?;
    check(&text).map_err(|fault| Error::Content { path: path.to_owned(), fault })?;
    Ok(Read { records: vec![Record::of_text(text)], facts: None, warnings: Vec::new() })
}

fn text(path: &Path) -> Result<Vec<u8>, Error> {
    let explain = |error| Error::Io { path: path.to_owned(), error };
    let size = fs::metadata(path).map_err(explain)?.len();
    if size > MAX_SIZE {
        return Err(Error::Size { path: path.to_owned(), size });
    }
    fs::read(path).map_err(explain)
}

fn pair(certificate: &Path, chain: Option<&Path>, key: &Path) -> Result<(Stored, Facts), Error> {
    let of = |path: &Path| {
        let path = path.to_owned();
        move |fault| Error::Content { path, fault }
    };
    let mut certificates = content::certificates(&text(certificate)?).map_err(of(certificate))?;
    let facts = content::facts(&certificates).map_err(of(certificate))?;
    if let Some(chain) = chain {
        certificates.extend(content::certificates(&text(chain)?).map_err(of(chain))?);
    }
    if certificates.len() > MAX_CHAIN {
        return Err(of(chain.unwrap_or(certificate))(Fault::TooMany));
    }
    let key = content::key(&text(key)?).map_err(of(key))?;
    Ok((Stored { chain: certificates, key }, facts))
}

fn checked(stored: &Stored, certificate: &Path, key: &Path) -> Result<Vec<String>, Error> {
    verify::pair(stored).map_err(|mismatch| Error::Mismatch {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        mismatch,
    })
}
