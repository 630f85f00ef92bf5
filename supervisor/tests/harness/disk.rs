//! A disk that can be full, and folders of the system that this test alone sees. The mounts are those of the thread that makes
//! them, and of all that it starts: nothing of them is left, however the test ends.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

const NONE: Option<&str> = None;

/// From here on, mounts of this thread and of the processes that it starts are their own. Wants [`super::Need::Mounts`].
pub(crate) fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .expect("mounts that nobody else sees");
}

/// Puts an empty file system of this size over a folder.
pub(crate) fn cover(folder: &Path, kib: usize) {
    let size = format!("size={kib}k,mode=0755");
    mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("a tmpfs");
}

/// A folder on a small disk of its own.
pub(crate) struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Wants [`super::Need::Mounts`], and [`own_mounts`] before.
    pub(crate) fn new(kib: usize) -> SmallDisk {
        let folder = tempfile::Builder::new().prefix("kakehi-disk-").tempdir().expect("a folder");
        cover(folder.path(), kib);
        SmallDisk { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path on it, as a text.
    pub(crate) fn join(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Leaves no room on it, not for a byte.
    pub(crate) fn fill(&self) {
        let path = self.folder.path().join("filler");
        let mut filler =
            File::options().create(true).append(true).open(path).expect("the file that fills it");
        for size in [1 << 16, 1 << 12, 1] {
            let piece = vec![0; size];
            while match filler.write(&piece) {
                Ok(written) => written > 0,
                Err(error) if error.kind() == ErrorKind::StorageFull => false,
                Err(error) => panic!("{error}"),
            } {}
        }
    }

    /// Gives back what [`SmallDisk::fill`] has taken.
    pub(crate) fn free(&self) {
        fs::remove_file(self.folder.path().join("filler")).expect("the file that filled it");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // So that the folder below can be removed. Processes that are there keep it.
        let _ = nix::mount::umount2(self.folder.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
