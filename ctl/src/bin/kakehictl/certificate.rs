//! The verbs about certificates.
//!
//! Files are read here, so that nobody needs to give kakehi the right to read them; what is in them goes over the control
//! socket, with their paths, at which kakehi looks from then on. Nothing here prints a key.

use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{self, Path, PathBuf},
};

use clap::{Args, Subcommand};
use kakehi_ctl::{
    config,
    order::{CertificateInfo, Pem, Request, Response},
    state::CertificateFiles,
};

use crate::{
    client::Failure,
    print,
    routing::{Ask, Shown, made, values},
};

/// Largest file that is read (bytes): a chain has a few kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// What can be done to certificates.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CertificateVerb {
    /// Give a listener a certificate; its next handshakes use it
    Add {
        /// The listener
        address: SocketAddr,
        #[command(flatten)]
        source: SourceArguments,
    },
    /// Put a certificate in the place of another, in one step
    Replace {
        /// The listener
        address: SocketAddr,
        /// The one that goes: its fingerprint, or a name that only one is served for
        old: String,
        #[command(flatten)]
        source: SourceArguments,
    },
    /// Take a certificate from a listener; connections that were made with it go on
    Remove {
        /// The listener
        address: SocketAddr,
        /// Its fingerprint, or a name that only one is served for
        which: String,
    },
    /// List them, those that expire first at the top
    ///
    /// With --json: an array with one object per certificate.
    List {
        /// Only those that have expired or will within so many days
        #[arg(long, value_name = "DAYS")]
        expiring_within: Option<u32>,
    },
    /// Show all that there is to say of a certificate
    ///
    /// With --json: an array with one object per certificate.
    Show {
        /// Its fingerprint, or a name that it is served for
        which: String,
    },
}

/// Where a certificate comes from, and what it is for.
#[derive(Debug, Clone, Args)]
pub(crate) struct SourceArguments {
    /// Certificate (PEM), with or without its chain; `-`: standard input, which may have the key too
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// Its chain (PEM), where that is a file of its own
    #[arg(long, value_name = "FILE")]
    chain: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Serve it for this name, `example.org` or `*.example.org`, instead of those in it; may be repeated
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Serve it also to clients that name no name, or one that no certificate has
    #[arg(long)]
    default: bool,
    /// Do not look at the files later
    #[arg(long)]
    no_watch: bool,
}

impl CertificateVerb {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        match self {
            CertificateVerb::Add { address, source } => {
                ask(source.request(*address, None, &mut io::stdin())?).map(Shown::Response)
            }
            CertificateVerb::Replace { address, old, source } => {
                ask(source.request(*address, Some(old.clone()), &mut io::stdin())?).map(Shown::Response)
            }
            CertificateVerb::Remove { address, which } => {
                ask(Request::RemoveCertificate { address: *address, which: which.clone() })
                    .map(Shown::Response)
            }
            CertificateVerb::List { expiring_within } => {
                let mut certificates = certificates(ask, None)?;
                if let Some(days) = expiring_within {
                    let until = print::now().saturating_add(i64::from(*days) * print::DAY);
                    certificates.retain(|it| it.not_after <= until);
                }
                let text = print::certificates(&certificates, print::now());
                Ok(made(values(certificates.iter()), text))
            }
            CertificateVerb::Show { which } => {
                let certificates = certificates(ask, Some(which.clone()))?;
                if certificates.is_empty() {
                    return Err(Failure::Refused(format!(
                        "no certificate has the name or fingerprint `{which}`"
                    )));
                }
                let texts: Vec<_> =
                    certificates.iter().map(|it| print::certificate(it, print::now())).collect();
                Ok(made(values(certificates.iter()), texts.join("\n")))
            }
        }
    }
}

/// Those that kakehi has, the one that expires first at the top.
fn certificates(ask: Ask<'_>, which: Option<String>) -> Result<Vec<CertificateInfo>, Failure> {
    match ask(Request::Certificates { which })? {
        Response::Certificates(mut certificates) => {
            certificates.sort_by_key(|it| (it.not_after, it.address, it.fingerprint));
            Ok(certificates)
        }
        _ => Err(Failure::Refused("it does not tell its certificates".to_owned())),
    }
}

impl SourceArguments {
    /// What is asked for, with what the files have; `input` is read where a file is `-`.
    fn request(
        &self,
        address: SocketAddr,
        replaces: Option<String>,
        input: &mut dyn Read,
    ) -> Result<Request, Failure> {
        let name = |name: &String| {
            config::certificate_name(name)
                .map_err(|reason| Failure::Usage(format!("the name `{name}` cannot be used: {reason}")))
        };
        let names = self.names.iter().map(name).collect::<Result<Vec<_>, _>>()?;
        let of_input = is_input(&self.certificate);
        if of_input && self.chain.as_deref().is_some_and(is_input) {
            return Err(Failure::Usage(
                "leave --chain out: the certificates of standard input are the whole chain".to_owned(),
            ));
        }
        let key_file = match &self.key {
            Some(key) => key,
            None if of_input => &self.certificate,
            None => return Err(Failure::Usage("--key FILE is needed beside --certificate FILE".to_owned())),
        };
        let mut read = None;
        let mut text_of = |file: &Path| -> Result<String, Failure> {
            match (is_input(file), &read) {
                (false, _) => File::open(file)
                    .and_then(|mut opened| bounded(&mut opened))
                    .map_err(|error| Failure::Usage(format!("{}: {error}", file.display()))),
                (true, Some(text)) => Ok(String::clone(text)),
                (true, None) => {
                    let text = bounded(input);
                    let text = text.map_err(|error| Failure::Usage(format!("standard input: {error}")))?;
                    Ok(read.insert(text).clone())
                }
            }
        };
        let mut chain = certificates_in(&text_of(&self.certificate)?, &self.certificate)?;
        if let Some(file) = &self.chain {
            chain += &certificates_in(&text_of(file)?, file)?;
        }
        let key = key_in(&text_of(key_file)?, key_file)?;
        let all = [Some(&self.certificate), self.chain.as_ref(), self.key.as_ref()];
        let from_files = !all.into_iter().flatten().any(|file| is_input(file));
        let files = if from_files && !self.no_watch {
            let absolute = |file: &PathBuf| {
                let absolute = path::absolute(file);
                let failed = |error| Failure::Usage(format!("{}: {error}", file.display()));
                absolute.map(PathBuf::into_boxed_path).map_err(failed)
            };
            Some(CertificateFiles {
                certificate: absolute(&self.certificate)?,
                chain: self.chain.as_ref().map(absolute).transpose()?,
                key: absolute(key_file)?,
            })
        } else {
            None
        };
        Ok(Request::AddCertificate {
            address,
            chain: Pem(chain),
            key: Pem(key),
            files,
            names,
            default: self.default,
            replaces,
        })
    }
}

fn is_input(file: &Path) -> bool {
    file == Path::new("-")
}

/// All of a text that is not longer than any certificate.
fn bounded(reader: &mut dyn Read) -> io::Result<String> {
    let mut text = String::new();
    if reader.take(MAX_FILE + 1).read_to_string(&mut text)? as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB: no certificate is"));
    }
    Ok(text)
}

/// The blocks of a text that are labelled so that `wanted` (RFC 7468), each with a line end.
fn blocks(text: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines().map(str::trim_end) {
        let label_of = |marker| line.strip_prefix(marker).and_then(|rest| rest.strip_suffix("-----"));
        if let Some(label) = label_of("-----BEGIN ") {
            open = wanted(label).then(|| (label, String::new()));
        }
        let Some((label, block)) = &mut open else { continue };
        block.push_str(line);
        block.push('\n');
        if label_of("-----END ") == Some(*label) {
            found.push(std::mem::take(block));
            open = None;
        }
    }
    found
}

fn certificates_in(text: &str, file: &Path) -> Result<String, Failure> {
    let certificates = blocks(text, |label| label == "CERTIFICATE");
    if certificates.is_empty() {
        return Err(Failure::Usage(format!("{} has no certificate (PEM)", called(file))));
    }
    Ok(certificates.concat())
}

fn key_in(text: &str, file: &Path) -> Result<String, Failure> {
    let mut keys = blocks(text, |label| label.ends_with("PRIVATE KEY"));
    let file = called(file);
    match keys.pop() {
        None => Err(Failure::Usage(format!("{file} has no private key (PEM)"))),
        Some(_) if !keys.is_empty() => Err(Failure::Usage(format!("{file} has several private keys"))),
        Some(key) if key.starts_with("-----BEGIN ENCRYPTED") || key.contains("Proc-Type: 4,ENCRYPTED") => {
            Err(Failure::Usage(format!(
                "the key in {file} is encrypted: take that away first (`openssl pkey`)"
            )))
        }
        Some(key) => Ok(key),
    }
}

fn called(file: &Path) -> String {
    if is_input(file) { "standard input".to_owned() } else { file.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_a_text_are_found_by_their_labels() {
        let text = "words\r\n-----BEGIN CERTIFICATE-----\r\nAA\r\n-----END CERTIFICATE-----\r\nmore\n-----BEGIN EC PARAMETERS-----\nBB\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\nCC\n-----END EC PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nDD";
        let all = blocks(text, |_| true);
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!(all[0], "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n");
        assert_eq!(key_in(text, Path::new("-")).unwrap(), all[2]);
        assert_eq!(certificates_in(text, Path::new("-")).unwrap(), all[0]);
    }

    #[test]
    fn what_is_no_key_is_said_without_saying_what_it_is() {
        let block =
            |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        let key = block("PRIVATE KEY", "SECRET");
        for (text, said) in [
            (block("CERTIFICATE", "AA"), "standard input has no private key"),
            (format!("{key}{key}"), "several private keys"),
            (block("ENCRYPTED PRIVATE KEY", "SECRET"), "is encrypted"),
            (block("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nSECRET"), "is encrypted"),
        ] {
            let error = key_in(&text, Path::new("-")).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        assert!(bounded(&mut io::repeat(b'a')).unwrap_err().to_string().contains("1 MiB"));
        assert_eq!(bounded(&mut &b"abc"[..]).unwrap(), "abc");
    }
}
