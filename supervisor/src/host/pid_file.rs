//! The pid file: written when kakehi is ready, removed when it stops.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
};

use kakehi_ctl::store;

/// Everybody may know the pid.
const MODE: u32 = 0o644;

/// A pid file of ours; removed when dropped, unless somebody else has written theirs over it.
pub(crate) struct PidFile {
    path: PathBuf,
    place: Option<Place>,
}

/// A folder without links in its path, and a name in it: two paths of one file have one place.
#[derive(Clone, PartialEq)]
pub(crate) struct Place(PathBuf, OsString);

impl Place {
    fn of(path: &Path) -> Option<Place> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(Place(fs::canonicalize(folder).ok()?, path.file_name()?.to_owned()))
    }
}

impl PidFile {
    /// Writes the file whole or not at all: a reader never sees half a number. What a symbolic link there points to stays as
    /// it is.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(path: &Path) -> io::Result<Self> {
        let file = store::write_unsynced(path, &[content().as_bytes()], MODE)?;
        // Whatever the umask is, which is that of all threads.
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        Ok(PidFile { path: path.to_owned(), place: Place::of(path) })
    }

    /// As [`PidFile::write`], unless `path` leads to the one that is there already.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write_beside(present: Option<Place>, path: &Path) -> io::Result<Option<Self>> {
        match present {
            Some(present) if Place::of(path).as_ref() == Some(&present) => Ok(None),
            _ => PidFile::write(path).map(Some),
        }
    }

    pub(crate) fn place(&self) -> Option<Place> {
        self.place.clone()
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
    use std::os::unix::fs::symlink;

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
    fn two_paths_of_one_file_are_one_place() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let file = PidFile::write(&real.join("kakehi.pid")).unwrap();
        assert!(PidFile::write_beside(file.place(), &link.join("kakehi.pid")).unwrap().is_none());
        let other = PidFile::write_beside(file.place(), &link.join("other.pid")).unwrap().unwrap();
        drop(file);
        assert!(!real.join("kakehi.pid").exists() && real.join("other.pid").exists());
        drop(other);
        assert!(!real.join("other.pid").exists());
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
        assert!(metadata.is_file() && metadata.permissions().mode() & 0o777 == MODE);
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
