//! Unix sockets on which this program answers: for their owner only from the first moment, and where nobody else answers.

use std::{
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::host::own_file;

/// Why there is no such socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody answers there.
    #[error("{path} is answered by pid {pid}; stop it, or change `{key}`", path = path.display())]
    Alive {
        /// The key that names it.
        key: &'static str,
        /// The socket.
        path: PathBuf,
        /// Of the process that listens, or `?`.
        pid: String,
    },
    /// It belongs to somebody else, who could keep us waiting.
    #[error("`{key}` {path} belongs to uid {owner}; remove it, or change `{key}`", path = path.display())]
    Foreign {
        /// The key that names it.
        key: &'static str,
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Something else has the name.
    #[error("`{key}` {path} exists and is not a socket; remove it, or change `{key}`", path = path.display())]
    NotASocket {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Unix sockets have short names.
    #[error("the path of `{key}` {path} is longer than {max} bytes", path = path.display())]
    TooLong {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// So long it may be.
        max: usize,
    },
    /// The file system or the kernel refused.
    #[error("the socket {path} (`{key}`) cannot be opened: {error}", path = path.display())]
    Io {
        /// The key that names it.
        key: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Opens the socket at `path`, of `max` bytes at most, which `key` names, in the place of one that a dead process left.
///
/// # Errors
/// See [`Error`].
pub(crate) fn open(path: &Path, key: &'static str, max: usize) -> Result<UnixListener, Error> {
    if path.as_os_str().len() > max {
        return Err(Error::TooLong { key, path: path.to_owned(), max });
    }
    let explain = |error| Error::Io { key, path: path.to_owned(), error };
    clear(path, key)?;
    // Nobody may connect in the moment between bind and a chmod.
    let bind = || UnixListener::bind(path);
    let listener = own_file::for_owner_only(bind).and_then(|bound| bound).map_err(explain)?;
    listener.set_nonblocking(true).map_err(explain)?;
    Ok(listener)
}

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

    /// Leaves the file where it is.
    pub(crate) fn leave(mut self) {
        self.identity = None;
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

/// Removes the file of a dead process.
fn clear(path: &Path, key: &'static str) -> Result<(), Error> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(Error::NotASocket { key, path: path.to_owned() });
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::Foreign { key, path: path.to_owned(), owner: metadata.uid() });
    }
    let explain = |error| Error::Io { key, path: path.to_owned(), error };
    match connect(path) {
        Ok(stream) => Err(Error::Alive { key, path: path.to_owned(), pid: peer_pid(&stream) }),
        // Its queue is full: somebody listens who stands still.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::Alive { key, path: path.to_owned(), pid: "?".to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(explain)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(explain(error)),
    }
}

/// Connects without waiting for a place in the queue of whoever listens.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn peer_pid(stream: &UnixStream) -> String {
    // Of a process outside of our namespace the kernel gives the number 0, which rustix has no place for.
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
        .map_or_else(|_| "?".to_owned(), |peer| peer.pid().to_string())
}
