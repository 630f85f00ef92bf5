//! The pid file: written when kakehi is ready, removed when it stops.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use kakehi_ctl::store;

/// Everybody may know the pid.
const MODE: u32 = 0o644;

/// A pid file of ours; removed when dropped, unless somebody else has written theirs over it.
pub(crate) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes the file whole or not at all: a reader never sees half a number. What a symbolic link there points to stays as
    /// it is.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(path: &Path) -> io::Result<Self> {
        store::write_unsynced(path, content().as_bytes(), MODE)?;
        Ok(PidFile { path: path.to_owned() })
    }
}

fn content() -> String {
    format!("{}\n", process::id())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if fs::read_to_string(&self.path).is_ok_and(|found| found == content()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn the_file_holds_the_pid_and_goes_unless_a_successor_has_written_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kakehi.pid");
        drop(PidFile::write(&path).unwrap());
        assert!(!path.exists());

        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), content());
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_link_points_to_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("kakehi.pid"), folder.path().join("victim"));
        fs::write(&victim, "as it was").unwrap();
        symlink(&victim, &path).unwrap();
        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
        let metadata = fs::symlink_metadata(&path).unwrap();
        // As far as the umask of whoever tests allows.
        assert!(metadata.is_file() && metadata.permissions().mode() & 0o777 & !MODE == 0);
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
