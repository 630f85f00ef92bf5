//! Responses of kakehi's own as operators write them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::template::MAX_TEMPLATE;

/// What a value begins with that names a file.
const FILE: &str = "file://";

/// By the status that they take the place of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Answers(pub BTreeMap<u16, Answer>);

/// A whole response.
#[derive(Debug, Clone, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The file that it stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// What stands there: a template ([`crate::template::Template`]).
    pub text: Arc<str>,
}

impl PartialEq for Answer {
    fn eq(&self, other: &Answer) -> bool {
        self.file == other.file && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Answers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Answer {
    /// The path in a value that names a file.
    pub(crate) fn path_in(value: &str) -> Option<&Path> {
        value.strip_prefix(FILE).map(Path::new)
    }

    /// As it is written in a file.
    pub(crate) fn to_value(&self) -> String {
        match &self.file {
            Some(file) => format!("{FILE}{}", file.display()),
            None => self.text.to_string(),
        }
    }
}

/// The text of a file with a response. It waits for a disk.
///
/// # Errors
/// When it cannot be read, is no regular file, no UTF-8, or longer than [`MAX_TEMPLATE`].
pub(crate) fn read_answer(path: &Path) -> io::Result<Arc<str>> {
    // Before it is opened: a pipe would make us wait, and a device may have no end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(MAX_TEMPLATE as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_TEMPLATE {
        return Err(io::Error::other("it has more than 1048576 bytes"));
    }
    Ok(text.into())
}
