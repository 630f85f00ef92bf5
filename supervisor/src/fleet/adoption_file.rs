//! The files by which a supervisor that comes finds a process: its adoption socket, and beside it the record of who it is.
//!
//! Both are named after the command socket, the worker, and a number that a supervisor gives once. So what is still on its way to a slow
//! disk when its process has ended never meets the files of another process.

use std::{
    ffi::OsString,
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    iter::repeat_with,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use kakehi_ctl::limits;
use rustix::{
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::task::JoinHandle;

use crate::{fleet::record::ProcessRecord, host::own_file};

/// A record that could not be written is tried again after this time, then after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So long the end of a process waits for its record to be written.
const NOTE_PATIENCE: Duration = Duration::from_millis(100);
/// Supervisors that may be about to take a worker over at a time.
const BACKLOG: i32 = 8;
/// Numbers that are given one after the other, and as many that are drawn by lot: [`limits::MAX_SOCKET_PATH`] has room for their
/// digits. The first begin again when all were given.
const NUMBERS: u32 = 50_000;
/// Numbers that are tried one after the other, and then by lot where files lie under all of these.
const TRIES: usize = 100;

/// The next number of an adoption socket, of whatever worker.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The file of an adoption socket. It stays when this is dropped: the process may outlive the supervisor.
pub(crate) struct AdoptionFile {
    path: PathBuf,
    /// The process behind it, once that is known.
    process: Option<ProcessRecord>,
    /// The record beside it is being written.
    noted: Option<JoinHandle<()>>,
    /// It was removed.
    is_gone: Arc<AtomicBool>,
}

impl AdoptionFile {
    /// One that is there; behind it is whatever process.
    pub(crate) fn at(path: PathBuf) -> AdoptionFile {
        AdoptionFile { path, process: None, noted: None, is_gone: Arc::default() }
    }

    /// One that is there, and the process behind it.
    pub(crate) fn of(path: PathBuf, process: ProcessRecord) -> AdoptionFile {
        AdoptionFile { process: Some(process), ..AdoptionFile::at(path) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The process behind it, if that is known.
    pub(crate) fn process(&self) -> Option<&ProcessRecord> {
        self.process.as_ref()
    }

    /// Removes it: the process behind it has ended, or was never started.
    pub(crate) fn remove(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
        let _ = fs::remove_file(&self.path);
        match &self.process {
            Some(process) => process.remove(&self.path),
            None => drop(fs::remove_file(ProcessRecord::path(&self.path))),
        }
    }

    /// The same, not before the record is written that would come behind it; a disk that stands still is not waited for.
    pub(crate) async fn remove_when_noted(&mut self) {
        if let Some(noted) = self.noted.take() {
            let _ = tokio::time::timeout(NOTE_PATIENCE, noted).await;
        }
        self.remove();
    }

    /// Has it written down which process is behind it, for a supervisor to come. Tried again while the process lives, where there is no
    /// room.
    pub(crate) fn note(&mut self, process: ProcessRecord) {
        self.process = Some(process.clone());
        let note = Arc::new(Note { path: self.path.clone(), process, is_gone: Arc::clone(&self.is_gone) });
        self.noted = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = note.write() {
                tracing::warn!(
                    worker = note.process.id,
                    "its record {} cannot be written: {error}; until it can, which is tried again and again, a supervisor that has to go on \
                     after this one replaces the worker",
                    ProcessRecord::path(&note.path).display()
                );
                tokio::spawn(write_later(note));
            }
        }));
    }
}

/// Which process is behind an adoption socket.
struct Note {
    path: PathBuf,
    process: ProcessRecord,
    /// The socket was removed.
    is_gone: Arc<AtomicBool>,
}

impl Note {
    /// Writes it down as long as the process lives: the file of one that has ended was removed, and must not come back.
    fn write(&self) -> io::Result<()> {
        let is_gone = || self.is_gone.load(Ordering::SeqCst);
        if is_gone() || self.process.check_alive().is_err() || !self.path.exists() {
            return Ok(());
        }
        let written = self.process.write(&self.path);
        if is_gone() {
            // It may have been removed before this was there.
            self.process.remove(&self.path);
        }
        written
    }
}

/// Writes it down as soon as that can be done.
async fn write_later(note: Arc<Note>) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let again = Arc::clone(&note);
        match tokio::task::spawn_blocking(move || again.write()).await {
            Ok(Err(_)) => pause = (pause * 2).min(LONGEST_PAUSE),
            _ if note.is_gone.load(Ordering::SeqCst) => return,
            _ => return tracing::info!(worker = note.process.id, "its record is written"),
        }
    }
}

/// Makes an adoption socket for a process of worker `id`, beside `command_socket`.
///
/// # Errors
/// Those of the file system and of `socket(2)`.
pub(crate) fn listen(command_socket: &Path, id: u32) -> io::Result<(OwnedFd, AdoptionFile)> {
    let socket = socket()?;
    let in_turn = || NEXT.fetch_add(1, Ordering::Relaxed) % NUMBERS;
    // Somebody else may have put files under all names that he could foresee.
    let by_lot = || {
        let lot = RandomState::new().build_hasher().finish() % u64::from(NUMBERS);
        NUMBERS + lot as u32
    };
    for number in repeat_with(in_turn).take(TRIES).chain(repeat_with(by_lot).take(TRIES)) {
        let mut name = prefix(command_socket);
        // The number of a worker on trial has more digits than there is room for.
        name.push(format!("{}.{number}", id.min(limits::MAX_WORKERS)));
        let path = command_socket.with_file_name(name);
        // For its owner only, from the first moment.
        let bind = || SocketAddrUnix::new(&path).and_then(|address| net::bind(&socket, &address));
        match own_file::for_owner_only(bind)? {
            Ok(()) => {
                net::listen(&socket, BACKLOG)?;
                return Ok((socket, AdoptionFile::at(path)));
            }
            Err(Errno::ADDRINUSE) => {}
            Err(error) => {
                return Err(io::Error::new(
                    io::Error::from(error).kind(),
                    format!("its adoption socket {} cannot be made: {error}", path.display()),
                ));
            }
        }
    }
    Err(io::Error::other("there are too many adoption sockets beside the command socket"))
}

/// Not bound, not blocking.
pub(super) fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// How the names of all adoption sockets begin.
pub(super) fn prefix(command_socket: &Path) -> OsString {
    let mut name = command_socket.file_name().unwrap_or_default().to_owned();
    name.push(".w");
    name
}

/// Whether a name behind [`prefix`] is that of a socket: of worker N, with the number M.
pub(super) fn is_of_worker(rest: &[u8]) -> bool {
    let number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    rest.iter()
        .position(|byte| *byte == b'.')
        .is_some_and(|dot| number(&rest[..dot]) && number(&rest[dot + 1..]))
}

/// Whether a file beside `command_socket` with this name is the record of a worker's process.
pub(crate) fn is_record(command_socket: &Path, name: &[u8]) -> bool {
    let rest = name.strip_prefix(prefix(command_socket).as_encoded_bytes());
    rest.and_then(|rest| rest.strip_suffix(b".record")).is_some_and(is_of_worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_is_that_of_a_worker_of_this_instance() {
        for (name, is_one) in [
            ("0.0", true),
            ("12.99", true),
            ("0.0.record", false),
            ("0.", false),
            (".0", false),
            ("", false),
            // Of an instance whose command socket is `kakehi.sock.www`.
            ("ww.w0.0", false),
        ] {
            assert_eq!(is_of_worker(name.as_bytes()), is_one, "{name}");
        }
        let socket = Path::new("/run/kakehi.sock");
        assert!(is_record(socket, b"kakehi.sock.w0.12.record"));
        for name in ["kakehi.sock.w0.12", "kakehi.sock.www.w0.12.record", "w0.12.record", "kakehi.sock.state"]
        {
            assert!(!is_record(socket, name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn no_number_is_given_twice_nor_is_a_process_without_a_place_where_others_have_left_many_files() {
        let folder = tempfile::tempdir().unwrap();
        let command_socket = folder.path().join("k.sock");
        for number in 0..3 * TRIES {
            fs::write(folder.path().join(format!("k.sock.w0.{number}")), "somebody else's").unwrap();
        }
        let (_socket, one) = listen(&command_socket, 0).unwrap();
        one.remove();
        assert!(!one.path().exists());
        let (_socket, two) = listen(&command_socket, 0).unwrap();
        assert_ne!(one.path(), two.path());
        let rest = two.path().file_name().unwrap().as_encoded_bytes().strip_prefix(b"k.sock.w").unwrap();
        assert!(is_of_worker(rest));
        let name = |id| listen(&command_socket, id).unwrap().1.path().file_name().unwrap().len();
        assert!(name(u32::MAX) - "k.sock".len() <= 107 - limits::MAX_SOCKET_PATH);
    }

    #[tokio::test]
    async fn what_is_written_late_of_a_process_leaves_the_record_of_another_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.sock.w0.0");
        fs::write(&path, "").unwrap();
        let [counters, ended, vault] = [(); 3].map(|()| OwnedFd::from(tempfile::tempfile().unwrap()));
        let record =
            |launch| ProcessRecord::of((0, launch, std::process::id()), &counters, &ended, &vault).unwrap();
        let (before, after) = (record(1), record(2));
        after.write(&path).unwrap();
        AdoptionFile::of(path.clone(), before.clone()).remove();
        assert_eq!(ProcessRecord::read(&path).unwrap(), Some(after.clone()));
        let late = Note { path: path.clone(), process: before, is_gone: Arc::new(true.into()) };
        fs::write(&path, "").unwrap();
        late.write().unwrap();
        assert_eq!(ProcessRecord::read(&path).unwrap(), Some(after.clone()));
        AdoptionFile::of(path.clone(), after).remove();
        assert_eq!(ProcessRecord::read(&path).unwrap(), None);
    }
}
