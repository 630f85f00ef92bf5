//! Who may use the command socket, which [`command`](crate::control::command) serves; both can change while it is served.

use std::io;

use tokio::sync::watch;

use crate::{
    host::own_socket::SocketFile,
    supervisor::{Supervisor, question::Question},
};

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
    pub(crate) fn leave(self) {
        self.file.leave();
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
    use std::{
        fs,
        os::unix::{fs::PermissionsExt as _, net::UnixListener},
    };

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
