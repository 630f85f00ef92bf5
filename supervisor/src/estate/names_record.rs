//! What a supervisor tells the one that comes after it of the addresses that backends by name have: a file beside the command socket
//! (`SOCKET.names`) that only its own user can read and write.
//!
//! Workers know them, but are not believed. Without the file a supervisor that takes workers over knows no address before the DNS has told
//! it one, and a process of a worker that is started until then has none. It is no state: it holds as long as the DNS says nothing else, and
//! goes with the workers. Nothing is synced to a disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kakehi_ctl::{state::KnownName, store};

use crate::host::own_file;

pub(crate) fn path(command_socket: &Path) -> PathBuf {
    own_file::with_suffix(command_socket, ".names")
}

/// What the supervisor before wrote beside this command socket; empty where there is nothing.
///
/// # Errors
/// When it is not what a supervisor of ours writes.
pub(crate) fn load(command_socket: &Path) -> io::Result<Vec<KnownName>> {
    let path = path(command_socket);
    let Some(file) = own_file::open(&path)? else { return Ok(Vec::new()) };
    serde_json::from_reader(io::BufReader::new(file)).map_err(|error| own_file::about(&path, error))
}

/// Writes it, in the place of what is there; of nothing there is no file.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write(path: &Path, known: &[KnownName]) -> io::Result<()> {
    if known.is_empty() {
        remove(path);
        return Ok(());
    }
    store::write_unsynced(path, &[&serde_json::to_vec(known)?], store::MODE).map(drop)
}

/// There is nobody any more whom it could be of use for.
pub(crate) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use kakehi_ctl::state::{NameAddress, NameAnswer};

    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_others_can_have_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("k.sock");
        assert_eq!(load(&socket).unwrap(), []);
        let address = NameAddress { address: ([10, 0, 0, 1], 80).into(), backup: true, weight: Some(3) };
        let answer =
            NameAnswer { name: "app.test:80".parse().unwrap(), addresses: Some(vec![address]), empty: true };
        let known = [KnownName {
            answer,
            resolved_ms: Some(7),
            hosts: vec![("a".into(), vec![[10, 0, 0, 1].into()])],
        }];
        write(&path(&socket), &known).unwrap();
        assert_eq!(load(&socket).unwrap(), known);
        fs::set_permissions(path(&socket), fs::Permissions::from_mode(0o620)).unwrap();
        assert!(load(&socket).is_err());
        write(&path(&socket), &[]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
