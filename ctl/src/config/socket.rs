//! Where the command socket is, out of a file that need not be right, nor be read to its end.

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use super::open;
use crate::{keys::in_folder, limits, state::Settings};

const KEY: &str = "command_socket";

/// The `command_socket` that the file at `path` names, or the usual one. Only the keys before the first table count; what else
/// is wrong with the file does not matter.
///
/// # Errors
/// When there is no such file, or it cannot be read.
pub fn command_socket(path: &Path) -> io::Result<PathBuf> {
    let root = root_of(path)?;
    let absolute = std::path::absolute(path)?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    Ok(in_folder(folder, &named(&root).unwrap_or_else(|| Settings::default().command_socket)))
}

/// What stands before the first table; the file may be very long.
fn root_of(path: &Path) -> io::Result<String> {
    let mut file = BufReader::new(open(path)?.take(limits::MAX_CONFIG_FILE));
    let (mut root, mut end) = (String::new(), 0);
    while file.read_line(&mut root)? > 0 {
        if root[end..].trim_start().starts_with('[') {
            root.truncate(end);
            break;
        }
        end = root.len();
    }
    Ok(root)
}

/// Where the root is no TOML, the line of the key may be.
fn named(root: &str) -> Option<PathBuf> {
    named_in(root).or_else(|| root.lines().filter(|line| line.contains(KEY)).find_map(named_in))
}

fn named_in(text: &str) -> Option<PathBuf> {
    let table: toml::Table = text.parse().ok()?;
    Some(PathBuf::from(table.get(KEY)?.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_in_files_that_are_wrong() {
        for (text, expected) in [
            ("command_socket = \"/run/a.sock\"\n", Some("/run/a.sock")),
            (
                "log_level = \"info\"\n  command_socket='/run/a.sock' # here\n[[listeners]]\n",
                Some("/run/a.sock"),
            ),
            ("log_level = info\ncommand_socket = \"/run/a.sock\"\n[[listeners\n", Some("/run/a.sock")),
            (
                "worker_cuont = 2\n\"command_socket\" = \"/run/a.sock\"\n[clusters.a\nx = \n",
                Some("/run/a.sock"),
            ),
            ("[[listeners]]\ncommand_socket = \"/run/a.sock\"\n", None),
            ("# command_socket = \"/run/a.sock\"\n", None),
            ("command_socket = 3\n", None),
            ("", None),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let root = root_of(file.path()).unwrap();
            assert_eq!(named(&root), expected.map(PathBuf::from), "{text}");
        }
    }

    #[test]
    fn no_more_is_read_of_a_file_than_its_root() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let root = "command_socket = \"/run/a.sock\"\n";
        // What follows is no text at all.
        std::fs::write(file.path(), [root.as_bytes(), b" [clusters.a]\n", &[0xff; 100_000]].concat())
            .unwrap();
        assert_eq!(root_of(file.path()).unwrap(), root);
        assert_eq!(command_socket(file.path()).unwrap(), Path::new("/run/a.sock"));
    }

    #[test]
    fn it_lies_in_the_folder_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kakehi.toml");
        assert!(command_socket(&path).is_err());
        std::fs::write(&path, "= broken").unwrap();
        assert_eq!(command_socket(&path).unwrap(), folder.path().join("kakehi.sock"));
        std::fs::write(&path, "command_socket = \"run/other.sock\"\n= broken").unwrap();
        assert_eq!(command_socket(&path).unwrap(), folder.path().join("run/other.sock"));
    }
}
