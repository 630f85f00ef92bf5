//! Files: which ones make a certificate, whether they have changed, and what is in them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
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
    /// It is too large.
    #[error("{path} has more than {MAX_SIZE} bytes, which no such file has", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
    },
    /// It is a folder, a pipe or a device.
    #[error("{path} is no regular file", path = path.display())]
    Kind {
        /// What is there.
        path: PathBuf,
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
                let certificate = Text::read(&files.certificate)?;
                let chain = files.chain.as_deref().map(Text::read).transpose()?;
                let (stored, facts) = pair(&certificate, chain.as_ref(), &Text::read(&files.key)?)?;
                let mut warnings = Vec::new();
                if fully {
                    let found = checked(&stored, &files.certificate, &files.key)?;
                    let about = |it: String| format!("certificate {}: {it}", files.certificate.display());
                    warnings.extend(found.into_iter().chain(verify::permissions(&files.key)).map(about));
                }
                Ok(Read { records: vec![Record::of_pair(stored, &facts)], facts: Some(facts), warnings })
            }
            Source::Issuers(path) => material(path, |text| content::check_issuers(text).map(|()| Vec::new())),
            Source::Crls(path) => material(path, |text| content::check_crls(text, verify::now())),
            Source::Client(chain, key) => {
                // What is kept is what was looked at, even if the files change meanwhile.
                let texts = [Text::read(chain)?, Text::read(key)?];
                let (stored, _) = pair(&texts[0], None, &texts[1])?;
                let found = checked(&stored, chain, key)?;
                let about = |it: String| format!("client certificate {}: {it}", chain.display());
                let warnings = found.into_iter().chain(verify::permissions(key)).map(about).collect();
                let records = texts.into_iter().map(|text| Record::of_text(text.bytes)).collect();
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
    /// A certificate with all that belongs to it, and which others are much like it.
    Pair(Stored, Whole),
}

impl Record {
    pub(super) fn of_text(text: Vec<u8>) -> Record {
        Record { digest: Sha256::digest(&text).into(), content: Content::Text(text) }
    }

    pub(super) fn of_pair(stored: Stored, facts: &Facts) -> Record {
        Record { digest: digest_of(&stored), content: Content::Pair(stored, facts.kin) }
    }
}

/// By which it is seen that something is in the vault already.
pub(super) fn digest_of(stored: &Stored) -> Whole {
    let mut digest = Sha256::new();
    for part in stored.parts() {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// What was read.
pub(super) struct Read {
    /// What belongs into the vault: one for each material, one for a certificate with all that belongs to it.
    pub(super) records: Vec<Record>,
    /// Of a certificate of a listener.
    pub(super) facts: Option<Facts>,
    pub(super) warnings: Vec<String>,
}

fn material(path: &Path, check: impl Fn(&[u8]) -> Result<Vec<String>, Fault>) -> Result<Read, Error> {
    let text = Text::read(path)?;
    let found = check(&text.bytes).map_err(|fault| text.fault(fault))?;
    let warnings = found.into_iter().map(|it| format!("{}: {it}", path.display())).collect();
    Ok(Read { records: vec![Record::of_text(text.bytes)], facts: None, warnings })
}

/// What is in a file.
struct Text<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> Text<'a> {
    /// Reads a file, and nothing else: a pipe would make us wait, and a device may have no end.
    fn read(path: &'a Path) -> Result<Text<'a>, Error> {
        let explain = |error| Error::Io { path: path.to_owned(), error };
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
        let file = file.map_err(explain)?;
        if !file.metadata().map_err(explain)?.is_file() {
            return Err(Error::Kind { path: path.to_owned() });
        }
        let mut bytes = Vec::new();
        file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(explain)?;
        if bytes.len() as u64 > MAX_SIZE {
            return Err(Error::Size { path: path.to_owned() });
        }
        Ok(Text { path, bytes })
    }

    /// What is wrong with it.
    fn fault(&self, fault: Fault) -> Error {
        Error::Content { path: self.path.to_owned(), fault }
    }
}

fn pair(certificate: &Text<'_>, chain: Option<&Text<'_>>, key: &Text<'_>) -> Result<(Stored, Facts), Error> {
    let read = |text: &Text<'_>| content::certificates(&text.bytes).map_err(|fault| text.fault(fault));
    let mut certificates = read(certificate)?;
    let facts = content::facts(&certificates).map_err(|fault| certificate.fault(fault))?;
    if let Some(chain) = chain {
        certificates.extend(read(chain)?);
    }
    let certificates = content::without_repeats(certificates);
    if certificates.len() > MAX_CHAIN {
        return Err(chain.unwrap_or(certificate).fault(Fault::TooMany));
    }
    let key = content::key(&key.bytes).map_err(|fault| key.fault(fault))?;
    let stored = Stored { chain: certificates, key };
    if stored.fits() { Ok((stored, facts)) } else { Err(certificate.fault(Fault::TooLarge)) }
}

fn checked(stored: &Stored, certificate: &Path, key: &Path) -> Result<Vec<String>, Error> {
    verify::pair(stored).map_err(|mismatch| Error::Mismatch {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        mismatch,
    })
}
