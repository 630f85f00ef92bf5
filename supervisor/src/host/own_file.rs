//! Files that a supervisor writes for the one that comes after it: only our own user can have written them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{fs::Mode, process::umask};
use tokio::time::Instant;

/// What `create` gives, which creates files: they are for their owner only, from the first moment. The umask, which says so, is that of all
/// threads, some of which create files for others: it is done by a thread that has one of its own, or, where a container forbids that,
/// for all of them for a moment.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn for_owner_only<T: Send>(create: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let created = thread::Builder::new().spawn_scoped(scope, || {
            let is_own = unshare(CloneFlags::CLONE_FS).is_ok();
            let before = umask(Mode::from_bits_truncate(0o177));
            let created = create();
            if !is_own {
                umask(before);
            }
            io::Result::Ok(created)
        })?;
        created.join().unwrap_or_else(|_| Err(io::Error::other("what creates a file has panicked")))
    })
}

/// What could not be written is tried again after this time, then after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// That such a file could not be written, and is to be tried again.
#[derive(Default)]
pub(crate) struct Failure {
    reason: Option<String>,
    /// When, and after how long the time after.
    retry: Option<(Instant, Duration)>,
}

impl Failure {
    /// Whether it is the first of its kind, to be told.
    pub(crate) fn note(&mut self, path: &Path, error: &io::Error) -> bool {
        let pause = self.retry.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        self.retry = Some((Instant::now() + pause, pause));
        self.reason.replace(format!("{}: {error}", path.display())).is_none()
    }

    /// It is written.
    pub(crate) fn end(&mut self, path: &Path) {
        self.retry = None;
        if self.reason.take().is_some() {
            tracing::info!("{} is written again", path.display());
        }
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// When it is to be tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }
}

/// `path` with `suffix` behind its last name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Why the file at `path` is not believed.
pub(crate) fn about(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("its record {} cannot be believed: {error}", path.display()))
}

/// Whether there is such a file with this content, and nothing else in it. Whatever lies there, no more than that is read.
pub(crate) fn holds(path: &Path, content: &[u8]) -> bool {
    let Ok(Some(file)) = open(path) else { return false };
    let mut there = Vec::new();
    file.take(content.len() as u64 + 1).read_to_end(&mut there).is_ok() && there == content
}

/// Opens a file that only its owner can have written, which is us; `None` where there is none.
///
/// # Errors
/// When others can have written it, or it is no file, or cannot be opened.
pub(crate) fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(about(path, error)),
    };
    let status = file.metadata()?;
    let is_own = status.uid() == rustix::process::geteuid().as_raw() && status.mode() & 0o077 == 0;
    match status.is_file() && is_own {
        true => Ok(Some(file)),
        false => Err(about(path, "it is not a file that only this user can write")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn what_is_for_its_owner_only_is_so_from_the_first_moment_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for_owner_only(|| fs::write(&ours, "")).unwrap().unwrap();
        fs::create_dir(&theirs).unwrap();
        assert_eq!((mode(&ours), mode(&theirs) & 0o700), (0o600, 0o700));
    }

    #[test]
    fn whatever_lies_there_is_compared_without_waiting_for_it_or_reading_more_than_that() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a-file");
        assert!(!holds(&path, b"as it is"));
        fs::write(&path, "as it is").unwrap();
        assert!(!holds(&path, b"as it is"), "others may have written it");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(holds(&path, b"as it is"));
        assert!(!holds(&path, b"as it") && !holds(&path, b"as it is not"));
        // Of which nobody has the memory.
        File::options().write(true).open(&path).unwrap().set_len(1 << 42).unwrap();
        assert!(!holds(&path, b"as it is"));
        fs::remove_file(&path).unwrap();
        mkfifoat(CWD, &path, Mode::from_bits_truncate(0o600)).unwrap();
        assert!(!holds(&path, b"as it is"), "a FIFO that nobody writes to");
    }
}
