//! The permissions of a file, as `chmod(1)` writes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Permissions of a file that its owner can read and write, whatever others can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(u32);

impl FileMode {
    /// The owner reads and writes.
    const OWNER: u32 = 0o600;
    const MOST: u32 = 0o777;

    /// The bits, as `chmod(2)` takes them.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether others than the owner can write, which connecting to a socket takes (`unix(7)`).
    #[must_use]
    pub fn is_for_others(self) -> bool {
        self.0 & 0o022 != 0
    }
}

/// The text is no such permissions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not one to four octal digits up to 0777 with read and write for the owner")]
pub struct FileModeError(String);

impl FromStr for FileMode {
    type Err = FileModeError;

    fn from_str(text: &str) -> Result<FileMode, FileModeError> {
        let is_octal = (1..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| is_octal && *mode <= FileMode::MOST && mode & FileMode::OWNER == FileMode::OWNER)
            .map(FileMode)
            .ok_or_else(|| FileModeError(text.to_owned()))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_can_always_read_and_write() {
        for (text, written) in [("0600", "0600"), ("660", "0660"), ("0777", "0777"), ("700", "0700")] {
            assert_eq!(text.parse::<FileMode>().unwrap().to_string(), written);
        }
        for text in ["", "0", "0400", "0200", "0060", "1777", "00660", "0o600", "+600", "0680", "rw-------"] {
            assert!(text.parse::<FileMode>().is_err(), "{text}");
        }
        assert!(!"0700".parse::<FileMode>().unwrap().is_for_others());
        assert!(!"0644".parse::<FileMode>().unwrap().is_for_others());
        assert!("0660".parse::<FileMode>().unwrap().is_for_others());
        assert!("0602".parse::<FileMode>().unwrap().is_for_others());
    }
}
