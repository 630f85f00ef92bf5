//! The pid file: written when kakehi is ready, removed when it stops.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

/// A pid file of ours; removed when dropped, unless somebody else has written theirs over it.
pub(super) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes the file whole or not at all: a reader never sees half a number.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn write(path: &Path) -> io::Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", process::id()));
        fs::write(&temporary, content())?;
        fs::rename(&temporary, path).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
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
}
