//! What a supervisor tells the one that comes after it of the listening sockets that it has opened, past the workers that have them.
//!
//! A worker that strangers have taken over may hand over sockets of its own, under addresses and ranks that it likes. So which ones
//! there are stands in a file beside the command socket (`SOCKET.sockets`) that only its own user can read and write, each with the
//! cookie by which the kernel knows it (`SO_COOKIE`), and which no other socket gets as long as the machine runs. It is written
//! before any worker gets them. One that is gone since may stand there: nobody can hand it over.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufReader},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use kakehi_ctl::{order::ListenerSocket, store};
use rustix::net::{
    SocketType, getsockname, ipproto,
    sockopt::{socket_acceptconn, socket_cookie, socket_protocol, socket_type},
};

use crate::host::{
    listeners::Sockets,
    own_file::{self, Failure},
};

/// Sockets that were opened for workers: which ones, and what the kernel knows them by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KnownSockets(BTreeSet<(ListenerSocket, u64)>);

impl KnownSockets {
    /// These.
    ///
    /// # Errors
    /// When the kernel does not tell what it knows one by.
    pub(crate) fn of<'a>(
        sockets: impl Iterator<Item = (ListenerSocket, &'a OwnedFd)>,
    ) -> io::Result<KnownSockets> {
        let known = sockets.map(|(which, socket)| Ok((which, socket_cookie(socket)?)));
        known.collect::<io::Result<_>>().map(KnownSockets)
    }

    /// Those that the supervisor before wrote down beside this command socket; `None` where there is nothing.
    ///
    /// # Errors
    /// When it is not what a supervisor of ours writes.
    pub(crate) fn read(command_socket: &Path) -> io::Result<Option<KnownSockets>> {
        let path = path(command_socket);
        let Some(file) = own_file::open(&path)? else { return Ok(None) };
        let known = serde_json::from_reader(BufReader::new(file));
        known.map(|it| Some(KnownSockets(it))).map_err(|error| own_file::about(&path, error))
    }

    /// # Errors
    /// Unless each of `sockets` is one of these, and listens, and none is there twice.
    pub(crate) fn check(&self, sockets: &Sockets) -> io::Result<()> {
        let mut seen = BTreeSet::new();
        for (which, socket) in sockets {
            check_listener(socket, which.address)?;
            let text = match (self.0.contains(&(*which, socket_cookie(socket)?)), seen.insert(*which)) {
                (true, true) => continue,
                (false, _) => "that no worker was given",
                (_, false) => "twice",
            };
            let (binding, rank) = (which.binding(), which.rank);
            return Err(io::Error::other(format!(
                "it handed over a socket {text} (for {binding}, number {rank})"
            )));
        }
        Ok(())
    }
}

/// # Errors
/// Unless that is a TCP socket which listens at the address.
fn check_listener(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let bound = getsockname(socket).and_then(SocketAddr::try_from);
    let kind = (socket_acceptconn(socket), socket_type(socket), socket_protocol(socket));
    match (kind, bound) {
        ((Ok(true), Ok(SocketType::STREAM), Ok(Some(ipproto::TCP))), Ok(bound)) if bound == address => Ok(()),
        _ => Err(io::Error::other(format!("it handed over no socket that listens on {address}"))),
    }
}

/// Where they stand.
pub(crate) fn path(command_socket: &Path) -> PathBuf {
    own_file::with_suffix(command_socket, ".sockets")
}

/// The sockets in their file. One that could not be kept up to date is removed: workers whose sockets nobody knows are replaced.
pub(crate) struct SocketRecord {
    path: PathBuf,
    written: Option<KnownSockets>,
    failure: Failure,
}

impl SocketRecord {
    /// Beside this command socket; not written yet.
    pub(crate) fn new(command_socket: &Path) -> SocketRecord {
        SocketRecord { path: path(command_socket), written: None, failure: Failure::default() }
    }

    /// Writes down that these are the sockets, if that is not there already. What the kernel does not tell cannot be.
    pub(crate) fn write(&mut self, known: io::Result<KnownSockets>) {
        let written = known.and_then(|known| {
            if self.written.as_ref() != Some(&known) {
                let text = serde_json::to_vec(&known.0)?;
                if let Err(error) = store::write_unsynced(&self.path, &[&text], store::MODE) {
                    // What a supervisor before has left may say the same.
                    if !own_file::holds(&self.path, &text) {
                        let _ = fs::remove_file(&self.path);
                    }
                    return Err(error);
                }
            }
            Ok(known)
        });
        match written {
            Ok(known) => {
                self.written = Some(known);
                self.failure.end(&self.path);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// It was not kept up to date, for this reason.
    pub(crate) fn lapse(&mut self, error: &io::Error) {
        let _ = fs::remove_file(&self.path);
        self.fail(error);
    }

    /// There is nobody any more whom it could be of use for.
    pub(crate) fn remove(&mut self) {
        self.failure = Failure::default();
        self.written = None;
        let _ = fs::remove_file(&self.path);
    }

    /// Why it is not there, and when it is to be written again.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }

    fn fail(&mut self, error: &io::Error) {
        self.written = None;
        if self.failure.note(&self.path, error) {
            tracing::warn!(
                "the listening sockets cannot be written down in {}: {error}; until they can, which is tried again and again, a \
                 supervisor that has to go on after this one replaces the workers",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn listening() -> (SocketAddr, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (listener.local_addr().unwrap(), listener.into())
    }

    #[test]
    fn only_a_socket_that_listens_at_the_address_is_a_listener() {
        let (address, listener) = listening();
        let client = TcpStream::connect(address).unwrap();
        assert!(check_listener(&listener, address).is_ok());
        assert!(check_listener(&listening().1, address).is_err());
        assert!(check_listener(&client.into(), address).is_err());
        assert!(check_listener(&UdpSocket::bind(address).unwrap().into(), address).is_err());
        assert!(check_listener(&tempfile::tempfile().unwrap().into(), address).is_err());
    }

    #[test]
    fn what_was_written_down_is_known_by_its_cookie_and_only_once_under_its_own_number() {
        let folder = tempfile::tempdir().unwrap();
        let command_socket = folder.path().join("k.sock");
        assert_eq!(KnownSockets::read(&command_socket).unwrap(), None);
        let (address, socket) = listening();
        let which = |rank| ListenerSocket { address, rank, interface: None };
        let copy = || socket.try_clone().unwrap();
        let mut record = SocketRecord::new(&command_socket);
        record.write(KnownSockets::of([(which(0), &socket)].into_iter()));
        let known = KnownSockets::read(&command_socket).unwrap().unwrap();
        assert!(known.check(&Vec::new()).is_ok());
        assert!(known.check(&vec![(which(0), copy())]).is_ok());
        for rank in [1, u32::MAX] {
            assert!(known.check(&vec![(which(rank), copy())]).is_err());
        }
        let elsewhere = ListenerSocket { interface: "lo".parse().ok(), ..which(0) };
        assert!(known.check(&vec![(elsewhere, copy())]).is_err());
        let error = known.check(&vec![(which(0), copy()), (which(0), copy())]).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
        // Another that has come to listen there.
        drop(socket);
        let other = TcpListener::bind(address).unwrap().into();
        assert!(known.check(&vec![(which(0), other)]).is_err());
        record.remove();
        assert_eq!(KnownSockets::read(&command_socket).unwrap(), None);
    }
}
