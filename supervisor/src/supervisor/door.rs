//! Who may use the command socket, which [`command`](crate::control::command) serves; both can change while it is served.

use std::{
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::sync::watch;

use crate::supervisor::{Supervisor, question::Question};

/// The name of a socket in the file system; removed when this is dropped.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that a successor's file of the same name is left alone.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file at `path`, as it is now.
    pub(crate) fn at(path: &Path) -> SocketFile {
        SocketFile { path: path.to_owned(), identity: identity(path) }
    }

    /// Gives the file these permissions, which say who can try to connect.
    ///
    /// # Errors
    /// When the file is another one by now, or the kernel refuses.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        // What has the name now may be anything, also a link.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::File::from(openat(CWD, &self.path, flags, Mode::empty())?);
        let found = file.metadata()?;
        if Some((found.dev(), found.ino())) != self.identity {
            return Err(io::Error::other("it is another file by now"));
        }
        fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), fs::Permissions::from_mode(mode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A command socket that is served; its file is removed when this is dropped.
pub(crate) struct Door {
    file: SocketFile,
    guests: watch::Sender<Vec<u32>>,
    /// The mode of the file; `None`: it could not be set, which is tried again.
    mode: Option<u32>,
}

impl Door {
    /// That of the socket with this file of this mode, and what the task that serves it looks at: the users that may use it besides root
    /// and our own.
    pub(crate) fn new(file: SocketFile, guests: Vec<u32>, mode: u32) -> (Door, watch::Receiver<Vec<u32>>) {
        let (guests, seen) = watch::channel(guests);
        (Door { file, guests, mode: Some(mode) }, seen)
    }

    /// Leaves the file where it is.
    pub(crate) fn leave(mut self) {
        self.file.identity = None;
    }

    /// Lets these users in from now on, besides root and our own. Connections of others end.
    fn admit(&mut self, guests: &[u32], mode: u32) -> io::Result<()> {
        if *self.guests.borrow() != guests {
            self.guests.send_replace(guests.to_vec());
        }
        if self.mode == Some(mode) {
            return Ok(());
        }
        let opened = self.file.set_mode(mode);
        self.mode = opened.is_ok().then_some(mode);
        opened
    }
}

impl Supervisor {
    /// Has the command socket answer the users in the settings.
    pub(crate) fn admit_guests(&mut self) {
        let Some(door) = &mut self.door else { return };
        let settings = &self.state.settings;
        if let Err(error) = door.admit(&settings.command_allowed_uids, settings.command_socket_bits()) {
            tracing::warn!("who can open the command socket stays as it was: {error}");
        }
    }

    /// Whether whoever asks may not use the command socket any more.
    pub(crate) fn is_shut_out(&self, question: &Question) -> bool {
        question.guest.is_some_and(|uid| !self.state.settings.command_allowed_uids.contains(&uid))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_file_that_could_not_be_opened_to_guests_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let (mut door, _seen) = Door::new(SocketFile::at(&path), Vec::new(), 0o600);
        let away = folder.path().join("away");
        fs::rename(&path, &away).unwrap();
        assert!(door.admit(&[1_000], 0o666).is_err() && door.admit(&[1_000], 0o666).is_err());
        fs::rename(&away, &path).unwrap();
        door.admit(&[1_000], 0o666).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    }
}
