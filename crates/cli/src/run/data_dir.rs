//! The data_dir: there, writable, and used by one process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use headwater_core::{Error, Kind, Result};

/// A data_dir that this process holds until it is dropped.
pub struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Makes the folder where it is missing, and takes it. An error of kind `Busy` names the process that
    /// has it. Blocks.
    pub fn take(path: &Path) -> Result<Self> {
        let wrong = |doing: &str, error| {
            Error::new(Kind::Config, format!("{doing} data_dir {}", path.display()))
                .because(error)
                .hint("data_dir must be a folder that this user may write to, on a local disk")
        };
        std::fs::create_dir_all(path).map_err(|error| wrong("making", error))?;
        let lock = lock_file(path);
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(&lock);
        let mut file = file.map_err(|error| wrong("writing to", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(wrong("locking", error)),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| wrong("writing to", error))?;
        Ok(Self { _lock: file })
    }

    /// The process that has it now, where one does.
    pub fn owner(path: &Path) -> Option<String> {
        let mut file = File::open(lock_file(path)).ok()?;
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)).then(|| process(&mut file))
    }
}

fn lock_file(path: &Path) -> PathBuf {
    path.join("headwater.lock")
}

fn process(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    match (read, text.trim()) {
        (Ok(_), id) if !id.is_empty() => format!("process {id}"),
        _ => "another process".to_owned(),
    }
}

fn busy(path: &Path, file: &mut File) -> Error {
    let who = process(file);
    Error::new(Kind::Busy, format!("data_dir {} is in use: {who} runs on it", path.display()))
        .hint("stop that one first, or give this one a data_dir of its own")
}

/// The bytes that this user may still write where `path` is, or will be.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|ancestor| ancestor.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        assert_eq!(DataDir::owner(&path), None);
        let held = DataDir::take(&path).unwrap();
        let id = format!("process {}", std::process::id());
        assert_eq!(DataDir::owner(&path), Some(id.clone()));
        let error = DataDir::take(&path).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains(&format!("is in use: {id} runs on it")), "{error}");
        drop(held);
        assert_eq!(DataDir::owner(&path), None);
        DataDir::take(&path).unwrap();
    }

    #[test]
    fn a_file_is_no_data_dir() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::take(file.path()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
    }
}
