//! Fields that a probe sends, with values that stand in files: they may be secrets, and are in no state and no log.

use std::{
    io::{self, Read as _},
    path::PathBuf,
};

use super::is_token;
use crate::{config::open, keys::keyed};

/// Fields that a probe sends at most.
pub const MAX_PROBE_HEADERS: usize = 32;
/// The longest value of one (bytes).
pub const MAX_PROBE_VALUE: usize = 8 * 1024;

/// Fields that say where a message ends, or what becomes of its connection.
const OF_FRAMING: [&str; 3] = ["content-length", "transfer-encoding", "connection"];

keyed! {
    /// A field that a probe sends.
    pub struct ProbeHeader;
    required {
        /// Its name; required. `Content-Length`, `Transfer-Encoding` and `Connection` are kakehi's, and `Host` where `host` is set.
        "name" => name: String = String::new(), Text, Yes, Backends;
        /// File that has its value; required. It is read for each probe; one line end at its end is left out.
        "value_file" => value_file: PathBuf = PathBuf::new(), Path, Yes, Backends;
    }
}

/// Why a field has no value.
#[derive(Debug, thiserror::Error)]
pub enum ProbeValueError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// It is a folder, a pipe or a device.
    #[error("{path} is no regular file", path = path.display())]
    Kind {
        /// What is there.
        path: PathBuf,
    },
    /// What is in it is no value.
    #[error("{path} {reason}, which no value of a field may", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ProbeHeader {
    /// Why no probe may send a field of this name; `None`: it may.
    pub fn unfit_name(&self, is_host_set: bool) -> Option<&'static str> {
        let is = |name: &&str| self.name.eq_ignore_ascii_case(name);
        if self.name.len() > 256 || !is_token(&self.name) {
            Some("`name` is the name of a header field (RFC 9110, section 5.1)")
        } else if OF_FRAMING.iter().any(is) {
            Some("`name`: that field says where a probe ends, and is kakehi's")
        } else if is_host_set && is(&"host") {
            Some("`name`: beside `host`, which says it already")
        } else {
            None
        }
    }

    /// The value that stands in its file now. It waits for a disk.
    ///
    /// # Errors
    /// See [`ProbeValueError`].
    pub fn read_value(&self) -> Result<Vec<u8>, ProbeValueError> {
        let path = || self.value_file.clone();
        let explain = |error| ProbeValueError::Io { path: path(), error };
        let file = match open(&self.value_file) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(ProbeValueError::Kind { path: path() });
            }
            file => file.map_err(explain)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_PROBE_VALUE as u64 + 3).read_to_end(&mut bytes).map_err(explain)?;
        if bytes.ends_with(b"\n") {
            bytes.pop();
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
        }
        let unfit = |reason| Err(ProbeValueError::Content { path: path(), reason });
        if bytes.len() > MAX_PROBE_VALUE {
            return unfit("has more than 8192 bytes");
        }
        // RFC 9110 section 5.5.
        if bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return unfit("has a line end or NUL in it");
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str) -> ProbeHeader {
        ProbeHeader { name: name.to_owned(), ..ProbeHeader::default() }
    }

    #[test]
    fn what_says_where_a_probe_ends_is_no_name() {
        for name in ["Content-Length", "transfer-encoding", "CONNECTION", "", "a b", "a:", "a\r\nb", "\u{e9}"]
        {
            assert!(header(name).unfit_name(false).is_some(), "{name:?}");
        }
        assert!(header("Authorization").unfit_name(true).is_none());
        assert!(header("host").unfit_name(false).is_none() && header("Host").unfit_name(true).is_some());
    }

    #[test]
    fn a_value_is_a_line_of_a_regular_file() {
        let folder = tempfile::tempdir().unwrap();
        let value = |content: &[u8]| {
            let value_file = folder.path().join("value");
            std::fs::write(&value_file, content).unwrap();
            ProbeHeader { value_file, ..header("a") }.read_value()
        };
        assert_eq!(value(b"Bearer x\r\n").unwrap(), b"Bearer x");
        assert_eq!(value(&[b'a'; MAX_PROBE_VALUE]).unwrap().len(), MAX_PROBE_VALUE);
        for content in [&b"a\n\n"[..], b"a\rb", b"a\nb\n", b"a\0", &[b'a'; MAX_PROBE_VALUE + 1]] {
            assert!(matches!(value(content), Err(ProbeValueError::Content { .. })));
        }
        let of = |path: PathBuf| ProbeHeader { value_file: path, ..header("a") }.read_value();
        assert!(matches!(of(folder.path().to_owned()), Err(ProbeValueError::Kind { .. })));
        assert!(matches!(of(folder.path().join("none")), Err(ProbeValueError::Io { .. })));
    }
}
