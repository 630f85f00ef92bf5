//! What can be wrong with a file, and where: errors and warnings that name file, line and column. [`super::findings`] collects
//! them, [`super::report`] shows them with their lines.
//!
//! Promises: what a message repeats of the file is escaped and cut, so that it cannot garble a terminal or a log.

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use super::{places::Places, report::masked};
use crate::state::{State, WantedCertificate};

/// A file that was read: what it configures, and what in it is not honoured.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Everything that is configured.
    pub state: State,
    /// Certificates that it asks for, which are not read yet.
    pub certificates: Vec<WantedCertificate>,
    /// The order of its rules.
    pub places: Places,
    /// In the order of the file; one for all places where the same is to be said.
    pub warnings: Vec<Warning>,
}

/// Something in the file that does not do what its author may expect; the file is used all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The first place.
    pub place: Place,
    /// What is said, without the place.
    pub text: String,
    /// In how many more places.
    pub repeated: usize,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)?;
        match self.repeated {
            0 => Ok(()),
            1 => f.write_str(" (and in 1 more place)"),
            more => write!(f, " (and in {more} more places)"),
        }
    }
}

/// A place in the file; reads `kakehi.toml:12:5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One thing that is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or is not UTF-8.
    #[error("{}: the configuration cannot be read: {error}", path.display())]
    Unreadable {
        /// As it was named.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not TOML.
    #[error("{place}: not TOML: {message}")]
    Syntax {
        /// Where the parser gave up.
        place: Place,
        /// In its words.
        message: String,
    },
    /// A key that nobody knows.
    #[error("{place}: unknown key {} in {level}{}", Quoted(key), Hint(hint))]
    UnknownKey {
        /// Of the key.
        place: Place,
        /// As written.
        key: String,
        /// Where it stands: `a frontend`.
        level: &'static str,
        /// What may have been meant.
        hint: Option<KeyHint>,
    },
    /// A value of the wrong type, or out of range.
    #[error("{place}: `{key}` must be {allowed}, not {found}")]
    BadValue {
        /// Of the value.
        place: Place,
        /// Whose value.
        key: &'static str,
        /// What may stand there.
        allowed: String,
        /// What does.
        found: String,
    },
    /// A key without which its table means nothing.
    #[error("{place}: {level} needs the key `{key}`")]
    MissingKey {
        /// Of the table.
        place: Place,
        /// Which one.
        key: &'static str,
        /// What needs it: `a frontend`.
        level: &'static str,
    },
    /// Two listeners at one address.
    #[error("{place}: there is a listener at `{address}` already, in line {first}")]
    DuplicateListener {
        /// Of the second address.
        place: Place,
        /// The address.
        address: SocketAddr,
        /// Line of the first.
        first: usize,
    },
    /// A frontend at an address where nothing listens.
    #[error(
        "{place}: no listener has the address `{address}` of this frontend; add a `[[listeners]]` with it"
    )]
    NoListener {
        /// Of the frontend's address.
        place: Place,
        /// The address.
        address: SocketAddr,
    },
    /// Two frontends with one listener, host name, path and method, that lead to different answers.
    #[error(
        "{place}: this frontend takes the same requests as the one in line {other} and answers them otherwise"
    )]
    DuplicateFrontend {
        /// Of one of them.
        place: Place,
        /// Line of the other.
        other: usize,
    },
    /// Two backends of one cluster with one id.
    #[error(
        "{place}: the cluster {} has another backend with the id {}, in line {first}",
        Quoted(cluster),
        Quoted(id)
    )]
    DuplicateBackend {
        /// Of the second.
        place: Place,
        /// Whose backends.
        cluster: String,
        /// The id.
        id: String,
        /// Line of the first.
        first: usize,
    },
    /// A host name that cannot be one.
    #[error("{place}: the host name {} cannot be used: {reason}", Quoted(hostname))]
    BadHostname {
        /// Of the value.
        place: Place,
        /// As written.
        hostname: String,
        /// Why, and what to write.
        reason: &'static str,
    },
    /// An item of a list that is none of those that there are.
    #[error("{place}: unknown word {} in `{key}`{}", Quoted(found), Hint(hint))]
    UnknownWord {
        /// Of the item.
        place: Place,
        /// Whose list.
        key: &'static str,
        /// As written.
        found: String,
        /// What may have been meant.
        hint: Option<KeyHint>,
    },
    /// Keys that mean nothing together, or nothing where they stand.
    #[error("{place}: {reason}")]
    Unfit {
        /// Of the key.
        place: Place,
        /// What is wrong, and what to write.
        reason: String,
    },
    /// A cluster's name that cannot be one.
    #[error("{place}: a cluster's name must have 1 to 255 characters that can be printed")]
    BadClusterName {
        /// Of the cluster.
        place: Place,
    },
}

/// What an unknown key may have meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyHint {
    /// A key of that table that is written almost so.
    Nearest(&'static str),
    /// The key exists, elsewhere: `a listener`.
    Elsewhere(&'static str),
}

struct Hint<'a>(&'a Option<KeyHint>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(KeyHint::Nearest(key)) => write!(f, "; did you mean `{key}`?"),
            Some(KeyHint::Elsewhere(level)) => write!(f, "; it belongs in {level}"),
            None => Ok(()),
        }
    }
}

/// Words of the file in a message: between backquotes, escaped, and cut after [`Quoted::LONGEST`] characters.
pub(super) struct Quoted<'a>(pub &'a str);

impl Quoted<'_> {
    const LONGEST: usize = 80;
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = masked(self.0);
        let mut characters = text.chars();
        f.write_str("`")?;
        for character in characters.by_ref().take(Self::LONGEST) {
            match character {
                '"' | '\'' | '\\' => write!(f, "{character}")?,
                other => write!(f, "{}", other.escape_debug())?,
            }
        }
        f.write_str(if characters.next().is_some() { "...`" } else { "`" })
    }
}
