//! The file that names the running process, so that two gateways never run from one configuration.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::process;

/// A PID file of this process; dropping it removes the file.
#[derive(Debug)]
pub(crate) struct PidFile(PathBuf);

/// More than any process id takes; a longer file is no PID file.
const LONGEST: u64 = 32;

impl PidFile {
    /// Writes the file; refuses when it names another live process, or is no PID file at all.
    pub(crate) fn create(path: &Path) -> Result<Self, String> {
        Self::take_over(path, std::process::id())
    }

    /// The same where the file may name another process: the one that this one takes over from.
    pub(crate) fn take_over(path: &Path, predecessor: u32) -> Result<Self, String> {
        let failed =
            |error: io::Error| format!("the PID file `{}` can't be written: {error}", path.display());
        // Opened without truncating, and locked while it is judged, so that of two starts at once one wins.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        file.lock().map_err(failed)?;
        let mut content = String::new();
        (&file).take(LONGEST).read_to_string(&mut content).map_err(failed)?;
        judge(path, content.trim(), predecessor)?;
        file.set_len(0).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(PidFile(path.to_owned()))
    }
}

fn judge(path: &Path, content: &str, predecessor: u32) -> Result<(), String> {
    let path = path.display();
    match content.parse::<i32>() {
        _ if content.is_empty() => Ok(()),
        // In a container the id of the last run may well be one's own.
        Ok(pid) if [std::process::id(), predecessor].contains(&pid.unsigned_abs()) => Ok(()),
        Ok(pid) if process::is_alive(pid) => {
            Err(format!("the PID file `{path}` names process {pid}, which is running: stop it first"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{path}` is not a PID file: it must hold one number, or not exist")),
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let own = std::process::id().to_string();
        if fs::read_to_string(&self.0).is_ok_and(|content| content.trim() == own) {
            let _ = fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("portcullis.pid");
        (dir, path)
    }

    #[test]
    fn the_file_names_the_process_and_goes_with_it() {
        let (_dir, path) = place();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_process_is_respected() {
        let (_dir, path) = place();
        fs::write(&path, "1\n").unwrap();
        let error = PidFile::create(&path).unwrap_err();
        assert!(error.contains("names process 1, which is running"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn a_predecessor_is_replaced() {
        let (_dir, path) = place();
        fs::write(&path, "1\n").unwrap();
        let _file = PidFile::take_over(&path, 1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_dead_process_is_replaced() {
        let (_dir, path) = place();
        fs::write(&path, format!("{}\n", i32::MAX)).unwrap();
        assert!(PidFile::create(&path).is_ok());
    }

    #[test]
    fn another_file_is_not_overwritten() {
        let (_dir, path) = place();
        fs::write(&path, "workers: 2\n").unwrap();
        assert!(PidFile::create(&path).unwrap_err().contains("is not a PID file"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "workers: 2\n");
    }

    #[test]
    fn a_file_that_was_taken_over_stays() {
        let (_dir, path) = place();
        let file = PidFile::create(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
