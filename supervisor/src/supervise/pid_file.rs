//! The pid file: written when kakehi is ready, removed when it stops.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

/// A pid file of ours; removed when dropped, unless somebody else has written theirs over it.
pub(super) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes the file whole or not at all: a reader never sees half a number. What a symbolic link points to, at `path` or
    /// where the file is written first, stays as it is.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn write(path: &Path) -> io::Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", process::id()));
        // Left by a crash, or by somebody who wants to have something else written over.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let written = File::create_new(&temporary)
            .and_then(|mut file| file.write_all(content().as_bytes()))
            .and_then(|()| fs::rename(&temporary, path));
        written.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
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
    fn what_a_link_points_to_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("kakehi.pid"), folder.path().join("victim"));
        fs::write(&victim, "as it was").unwrap();
        symlink(&victim, &path).unwrap();
        symlink(&victim, folder.path().join(format!("kakehi.pid.{}", process::id()))).unwrap();
        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
