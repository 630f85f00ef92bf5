//! Where the command socket is, out of a file that need not be right, nor be read to its end.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::text_of;
use crate::keys::in_folder;
use crate::state::Settings;

const KEY: &str = "command_socket";

/// The `command_socket` that the file at `path` names, or the usual one. Only the keys before the first table count; what else
/// is wrong with the file does not matter.
///
/// # Errors
/// When there is no such file, or it cannot be read.
pub fn command_socket(path: &Path) -> io::Result<PathBuf> {
    let text = text_of(path)?;
    let absolute = std::path::absolute(path)?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    Ok(in_folder(folder, &named(&text).unwrap_or_else(|| Settings::default().command_socket)))
}

fn named(text: &str) -> Option<PathBuf> {
    let is_header = |line: &str| line.trim_start().starts_with('[');
    let length = text.split_inclusive('\n').take_while(|line| !is_header(line)).map(str::len).sum();
    let root = &text[..length];
    // Where the root is no TOML, the line of the key may be.
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
            assert_eq!(named(text), expected.map(PathBuf::from), "{text}");
        }
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
