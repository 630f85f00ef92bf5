//! What `kakehictl` asks about certificates.

use std::{net::SocketAddr, sync::Arc};

use kakehi_ctl::{
    change::Change,
    order::{CertificateInfo, KeyPair, Pem, Request, Response},
    state::{Certificate, CertificateFiles, Fingerprint, PackedFiles, State},
};
use kakehi_engine::tls::{Stored, Vault};

use super::{
    Error,
    content::{self, Facts, Fault},
    files::{MAX_CHAIN, Record, Source},
    keeper::Keeper,
    verify,
    watch::replacement,
};

/// A certificate that somebody wants to be served.
pub(crate) struct Wanted {
    address: SocketAddr,
    pair: KeyPair,
    files: Option<CertificateFiles>,
    names: Vec<String>,
    default: bool,
    replaces: Option<String>,
}

impl Wanted {
    /// What [`Request::AddCertificate`] asks for.
    pub(crate) fn from(request: Request) -> Option<Wanted> {
        match request {
            Request::AddCertificate { address, chain, key, files, names, default, replaces } => {
                Some(Wanted { address, pair: KeyPair { chain, key }, files, names, default, replaces })
            }
            _ => None,
        }
    }
}

/// The certificate and its key in the texts that were sent.
pub(super) fn parse(
    KeyPair { chain: Pem(chain), key: Pem(key) }: &KeyPair,
) -> Result<(Stored, Facts), Fault> {
    let chain = content::without_repeats(content::certificates(chain.as_bytes())?);
    if chain.len() > MAX_CHAIN {
        return Err(Fault::TooMany);
    }
    let facts = content::facts(&chain)?;
    let stored = Stored { chain, key: content::key(key.as_bytes())? };
    if stored.fits() { Ok((stored, facts)) } else { Err(Fault::TooLarge) }
}

impl Keeper {
    /// Puts a certificate into the vault that was sent; the changes by which it is served, and of what to be aware.
    ///
    /// # Errors
    /// When it cannot be served, or what it should replace is not there.
    pub(crate) fn add(
        &mut self,
        state: &State,
        wanted: &Wanted,
    ) -> Result<(Vec<Change>, Vec<String>), Error> {
        let Wanted { address, pair, files, names, default, replaces } = wanted;
        let (stored, facts) = parse(pair).map_err(Error::Sent)?;
        let warnings = verify::pair(&stored).map_err(Error::SentMismatch)?;
        let replaced = replaces.as_deref().map(|which| find(state, *address, which)).transpose()?;
        // One that takes the place of the default is the default.
        let default = *default || replaced.is_some_and(|(_, replaced)| replaced.default);
        let mut certificate = facts.clone().certificate(names, default).map_err(Error::Sent)?;
        certificate.files = files.as_ref().map(PackedFiles::from);
        certificate.place = self.put(&Record::of_pair(stored, &facts))?;
        if let Some(files) = files {
            self.note_sent(&Source::Certificate(files.clone()), certificate.place);
        }
        let mut changes = Vec::new();
        if default {
            for (fingerprint, present) in state.certificates.get(address).into_iter().flatten() {
                let goes = replaced.is_some_and(|(replaced, _)| replaced == *fingerprint);
                if present.default && !goes && *fingerprint != facts.fingerprint {
                    let certificate = Arc::new(Certificate { default: false, ..(**present).clone() });
                    let fingerprint = *fingerprint;
                    changes.push(Change::SetCertificate { address: *address, fingerprint, certificate });
                }
            }
        }
        match replaced {
            Some(replaced) => {
                changes.extend(replacement(*address, replaced, (facts.fingerprint, certificate)))
            }
            None => {
                let (fingerprint, certificate) = (facts.fingerprint, Arc::new(certificate));
                changes.push(Change::SetCertificate { address: *address, fingerprint, certificate });
            }
        }
        Ok((changes, warnings))
    }
}

/// The certificate of a listener that has this fingerprint, or is the only one for this name.
pub(crate) fn find<'a>(
    state: &'a State,
    address: SocketAddr,
    which: &str,
) -> Result<(Fingerprint, &'a Certificate), Error> {
    let all = state.certificates.get(&address);
    let missing = || Error::NoSuch { address, which: which.to_owned() };
    if let Ok(fingerprint) = which.parse::<Fingerprint>() {
        let found = all.and_then(|all| all.get(&fingerprint)).ok_or_else(missing)?;
        return Ok((fingerprint, found));
    }
    let has = |it: &Certificate| it.names.iter().any(|name| name.eq_ignore_ascii_case(which));
    let found: Vec<_> = all.into_iter().flatten().filter(|(_, certificate)| has(certificate)).collect();
    match found[..] {
        [(fingerprint, certificate)] => Ok((*fingerprint, certificate)),
        [] => Err(missing()),
        _ => Err(Error::Several { address, which: which.to_owned(), count: found.len() }),
    }
}

/// Whether it has this fingerprint, or is served for this name.
fn is_for(which: &str, fingerprint: Fingerprint, certificate: &Certificate) -> bool {
    which.parse() == Ok(fingerprint)
        || certificate.names.iter().any(|name| name.eq_ignore_ascii_case(which))
        || certificate.covers(&which.to_ascii_lowercase())
}

/// What is in the certificates of `which`, as they lie in the vault.
fn infos(vault: &Vault, which: Vec<(SocketAddr, Fingerprint, Arc<Certificate>)>) -> Response {
    let info = |(address, fingerprint, it): (SocketAddr, Fingerprint, Arc<Certificate>)| {
        let stored = vault.certificate(it.place).map_err(|error| error.to_string())?;
        content::describe(address, fingerprint, &it, &stored).map_err(|error| error.to_string())
    };
    match which.into_iter().map(info).collect::<Result<Vec<CertificateInfo>, String>>() {
        Ok(infos) => Response::Certificates(infos),
        Err(reason) => Response::Refused { reason },
    }
}

impl Keeper {
    /// Answers what is in certificates, when it has been read.
    pub(crate) fn tell(
        &self,
        state: &State,
        which: Option<&str>,
        answer: impl FnOnce(Response) + Send + 'static,
    ) {
        let all = state.certificates.iter().flat_map(|(address, certificates)| {
            certificates.iter().map(|(fingerprint, certificate)| (*address, *fingerprint, certificate))
        });
        let asked = all.filter(|(_, fingerprint, certificate)| {
            which.is_none_or(|which| is_for(which, *fingerprint, certificate))
        });
        let asked = asked.map(|(address, fingerprint, it)| (address, fingerprint, Arc::clone(it))).collect();
        match self.vault().try_clone() {
            // There may be very many.
            Ok(vault) => {
                tokio::task::spawn_blocking(move || answer(infos(&vault, asked)));
            }
            Err(error) => answer(Response::Refused { reason: error.to_string() }),
        }
    }
}
