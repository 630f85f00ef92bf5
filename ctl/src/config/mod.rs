//! The configuration: a TOML file becomes a [`State`].
//!
//! For: `kakehi start`, `kakehi check` and reloads, and `kakehictl -c`, which looks for the command socket in it.
//!
//! The keys are those of a sozu 2.x `config.toml`, so that such a file loads unchanged, and kakehi's own. [`crate::keys`]
//! defines each of them once, `levels` says where they stand; `pieces` takes a file apart, so that one cluster at a time is
//! in memory as a parsed text; `read` checks it against the keys; `build` gives the values their meaning; `error` says what is
//! wrong, and where, `findings` collects it and `report` shows it. `write` is the way back: a state as a file.
//!
//! Promises: a file is used whole or not at all, and everything that is wrong with it is told at once. A key that nobody knows is an error; one that is not honoured
//! is a warning. Nothing is opened wider because a key is not honoured yet.

mod build;
pub(crate) mod compare;
mod duration;
mod error;
mod faults;
mod findings;
mod levels;
mod pieces;
mod places;
mod read;
#[cfg(test)]
mod reference;
mod report;
mod socket;
#[cfg(test)]
mod tests;
pub mod write;

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufWriter, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use build::{Built, Extent};
pub use error::{ConfigError, KeyHint, Loaded, Place, Warning};
pub use faults::{Fault, FaultStep, FaultTable};
use findings::{Findings, Source};
use pieces::Pieces;
pub use places::Places;
pub(crate) use read::Value;
pub use report::ConfigErrors;
use sha2::{Digest as _, Sha256};
pub use socket::command_socket;

use crate::{
    keys::Canonical as _,
    limits,
    state::{Pages, Settings, State},
};

/// Reads the file at `path`. Relative paths in it are those of its folder, and come out absolute.
///
/// # Errors
///
/// Everything that is wrong with the file.
pub fn load(path: impl AsRef<Path>) -> Result<Loaded, ConfigErrors> {
    load_judged(path, &|_| Vec::new())
}

/// As [`load`], with what `judge` finds wrong with what can be read of the file.
///
/// # Errors
///
/// Everything that is wrong with the file.
pub fn load_judged(path: impl AsRef<Path>, judge: Judge<'_>) -> Result<Loaded, ConfigErrors> {
    let path = path.as_ref();
    let unreadable = |error| ConfigErrors::unreadable(path.to_owned(), error);
    let text = text_of(path).map_err(unreadable)?;
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let mut loaded = parse_in(&text, &path.to_string_lossy(), folder, Extent::Whole, judge)?;
    loaded.state.revision.origin = digest(&loaded);
    loaded.places.number(&mut loaded.state);
    Ok(loaded)
}

/// Finds what cannot be served of a state.
pub type Judge<'j> = &'j dyn Fn(&State) -> Vec<Fault>;

/// The text of a file.
fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let most = limits::MAX_CONFIG_FILE;
    if open(path)?.take(most + 1).read_to_string(&mut text)? as u64 > most {
        let what = format!("it has more than {} MiB", most >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(text)
}

/// Opens a file, and nothing else: a FIFO would be waited for, and a device has no end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // What looks like a file and is none (`/proc/kmsg`) says so instead of being waited for. The same on x86_64 and aarch64.
    const O_NONBLOCK: i32 = 0o4000;
    let is_file = |it: &fs::Metadata| it.is_file();
    // Before it is opened, which may do something with a device; and what was opened, as that may be another one.
    let looked_at = fs::metadata(path)?;
    let file = is_file(&looked_at)
        .then(|| fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path))
        .transpose()?;
    let opened = file.filter(|file| file.metadata().is_ok_and(|it| is_file(&it)));
    opened.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

/// Whether `part`, as a file, would be read as what it is: so what does not come out of a file is held to the same rules.
///
/// What the files had that it names, and where that lies, is not looked at.
///
/// # Errors
/// What the file would be refused for.
pub fn check(part: &State) -> Result<(), String> {
    let routing =
        State { settings: Settings::default(), revision: crate::state::Revision::default(), ..part.clone() };
    let routing = routing.without_contents().without_page_files();
    let text = write::write(&routing);
    // Paths of a state are absolute: one that is not does not come back as it was.
    let read = parse_part(&text, "the change", Path::new("/")).map_err(|errors| errors.in_one_line())?.state;
    let said = part.certificates.values().flat_map(|it| it.values()).filter(|it| it.named);
    let mut names = said.flat_map(|it| it.names.iter());
    let named_as_in_a_file = names.all(|name| certificate_name(name).as_deref() == Ok(name));
    if read.listeners == routing.listeners && read.clusters == routing.clusters && named_as_in_a_file {
        Ok(())
    } else {
        Err("it has values that no configuration file can have".to_owned())
    }
}

/// A name to serve a certificate for, in the form in which a state has it: lower case, without the dot of the root.
///
/// # Errors
/// What is wrong with the name, and what to write.
pub fn certificate_name(name: &str) -> Result<String, &'static str> {
    build::certificate_name(name)
}

/// SHA-256 of what `kakehictl` can change while kakehi runs, before rules have got the numbers of their places, so that neither a comment, the order of keys, nor a key that this
/// program knows and an earlier one did not is a difference.
fn digest(loaded: &Loaded) -> String {
    // What is written comes in very small parts.
    let mut sink = BufWriter::new(Digested(Sha256::new()));
    let written = write_canonical(loaded, &mut sink);
    debug_assert!(written.is_ok(), "a digest takes everything");
    let Digested(digest) = sink.into_inner().unwrap_or_else(|_| Digested(Sha256::new()));
    digest.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Takes what is written into a digest.
struct Digested(Sha256);

impl io::Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_canonical(loaded: &Loaded, sink: &mut dyn io::Write) -> io::Result<()> {
    let State { listeners, clusters, settings, .. } = &loaded.state;
    listeners.values().try_for_each(|listener| listener.write_canonical(sink))?;
    for (name, cluster) in clusters {
        name.write_canonical(sink)?;
        cluster.write_canonical(sink)?;
    }
    settings.worker_count.write_canonical(sink)?;
    settings.worker_cores.write_canonical(sink)?;
    if let Some(rules) = loaded.places.unlike_names() {
        serde_json::to_writer(&mut *sink, rules)?;
    }
    Ok(serde_json::to_writer(sink, &loaded.certificates)?)
}

/// Reads `text`, which is called `file_name` in messages. Relative paths in it are those of that file's folder.
///
/// # Errors
///
/// Everything that is wrong with the text.
pub fn parse(text: &str, file_name: &str) -> Result<Loaded, ConfigErrors> {
    let folder = Path::new(file_name).parent().unwrap_or(Path::new(""));
    let mut loaded = parse_in(text, file_name, folder, Extent::Whole, &|_| Vec::new())?;
    loaded.places.number(&mut loaded.state);
    Ok(loaded)
}

/// Reads `text`, which is some of a file, put together from a change: nothing is said of what it lacks. Relative paths in it
/// are those of `folder`.
///
/// # Errors
///
/// Everything that is wrong with the text.
pub fn parse_part(text: &str, name: &str, folder: &Path) -> Result<Loaded, ConfigErrors> {
    parse_in(text, name, folder, Extent::Part, &|_| Vec::new())
}

/// The same where what stands in files with own answers is known: they are not read again.
///
/// # Errors
/// As [`parse_part`].
pub(crate) fn parse_part_with(
    pages: Pages,
    text: &str,
    name: &str,
    folder: &Path,
) -> Result<Loaded, ConfigErrors> {
    let pieces = Pieces::of(text);
    parse_pieces(&pieces, text, name, (folder, Extent::Part), pages, &|_| Vec::new())
}

fn parse_in(
    text: &str,
    file_name: &str,
    folder: &Path,
    extent: Extent,
    judge: Judge<'_>,
) -> Result<Loaded, ConfigErrors> {
    parse_pieces(&Pieces::of(text), text, file_name, (folder, extent), Pages::default(), judge)
}

fn parse_pieces(
    pieces: &Pieces<'_>,
    text: &str,
    file_name: &str,
    (folder, extent): (&Path, Extent),
    pages: Pages,
    judge: Judge<'_>,
) -> Result<Loaded, ConfigErrors> {
    let source = Source::new(text, file_name);
    let mut findings = Findings::new(&source);
    let (root, clusters) = (read::root(&pieces.rest, &mut findings), pieces.clusters());
    let Built { state, certificates, places, .. } = match root {
        Some(root) => {
            let built = build::state(&root, clusters, folder, extent, pages, &mut findings);
            let mut faults = judge(&built.state);
            faults.retain(|fault| !fault.is_told_by_text(&built.state));
            if !faults.is_empty() {
                faults::tell(&faults, (&root, pieces, &built.left_out), &mut findings);
            }
            built
        }
        None => {
            clusters.for_each(|text| drop(read::root(&text, &mut findings)));
            Default::default()
        }
    };
    let warnings = findings.finish()?;
    Ok(Loaded { state, certificates, places, warnings })
}
