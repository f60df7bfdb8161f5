//! Headwater's own SQLite files: how they are opened, and what their errors mean.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headwater_core::{Error, Kind, Micros, Result};
use rusqlite::ffi::{self, ErrorCode};
use rusqlite::{Connection, OpenFlags};

/// How long another may hold a file.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause after it was found to be held, where SQLite makes none.
const PAUSE: Duration = Duration::from_millis(5);

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is made when it is not there.
    Create,
    /// It must be there; it may be written.
    Write,
    /// It must be there; nothing of this connection changes what it holds.
    Read,
    /// It must be there and complete in itself, and nobody changes it in place: no locks, no files
    /// beside it, and it opens on a full disk.
    Immutable,
}

/// Opens an SQLite file. Readers get write access to the file where they may: the first and the last
/// connection of a WAL file have to recover and to tidy up.
pub(crate) fn open(path: &Path, access: Access) -> Result<Connection> {
    let base = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let write = base | OpenFlags::SQLITE_OPEN_READ_WRITE;
    let opened = match access {
        Access::Create => Connection::open_with_flags(path, write | OpenFlags::SQLITE_OPEN_CREATE),
        Access::Write | Access::Read => Connection::open_with_flags(path, write),
        Access::Immutable => {
            let read = base | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(immutable_uri(path), read)
        }
    };
    let connection = opened.sql(&format!("opening {}", path.display()))?;
    let ready = || -> rusqlite::Result<()> {
        connection.busy_timeout(PATIENCE)?;
        connection.set_prepared_statement_cache_capacity(32);
        if access == Access::Read {
            connection.pragma_update(None, "query_only", true)?;
        }
        Ok(())
    };
    ready().sql(&format!("opening {}", path.display()))?;
    Ok(connection)
}

/// Has a file written ahead, by a log beside it. For that the file is needed alone for a moment, and SQLite does not wait for
/// others who open it too: the busy timeout is not for this.
pub(crate) fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// What SQLite takes for "this file, which nobody changes"; in `ATTACH`, too.
pub(crate) fn immutable_uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte))
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?immutable=1"
}

/// Turns SQLite's errors into Headwater's.
pub(crate) trait SqlExt<T> {
    /// Wraps the error with the kind that SQLite's code stands for, and with what was being done.
    fn sql(self, doing: &str) -> Result<T>;
}

impl<T> SqlExt<T> for rusqlite::Result<T> {
    fn sql(self, doing: &str) -> Result<T> {
        self.map_err(|error| {
            let (kind, hint) = meaning(&error);
            let wrapped = Error::new(kind, doing).because(error);
            if hint.is_empty() { wrapped } else { wrapped.hint(hint) }
        })
    }
}

fn meaning(error: &rusqlite::Error) -> (Kind, &'static str) {
    let Some(code) = error.sqlite_error() else {
        return (Kind::Decode, "the file was written by another version, or changed by hand");
    };
    match (code.code, code.extended_code) {
        (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => {
            (Kind::Full, "make room on the disk of data_dir; Headwater goes on by itself")
        }
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => {
            (Kind::Busy, "another program holds the file; close it")
        }
        (ErrorCode::ReadOnly | ErrorCode::PermissionDenied, _) => {
            (Kind::Refused, "give the user who runs this the right to write in data_dir")
        }
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => {
            (Kind::Decode, "the file is damaged: look at the disk, and restore data_dir from a backup")
        }
        _ => (Kind::Unavailable, ""),
    }
}

/// Turns errors of the file system into Headwater's.
pub(crate) fn io<T>(result: std::io::Result<T>, doing: &str) -> Result<T> {
    result.map_err(|error| {
        let (kind, hint) = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                (Kind::Full, "make room on the disk of data_dir; Headwater goes on by itself")
            }
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                (Kind::Refused, "give the user who runs this the right to write in data_dir")
            }
            _ => return Error::new(Kind::Unavailable, doing).because(error),
        };
        Error::new(kind, doing).because(error).hint(hint)
    })
}

/// The time now.
pub(crate) fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}

/// A duration in microseconds.
pub(crate) fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn many_may_open_a_new_file_at_once() {
        const MANY: usize = 4;
        let (dir, barrier) = (tempfile::tempdir().unwrap(), Barrier::new(MANY));
        let begin = |round: usize| -> Result<()> {
            let connection = open(&dir.path().join(round.to_string()), Access::Create);
            // Whatever went wrong, the others are not to wait for ever.
            barrier.wait();
            let connection = connection?;
            write_ahead(&connection).sql("writing ahead")?;
            connection.execute_batch("CREATE TABLE IF NOT EXISTS one (id INTEGER)").sql("making a table")
        };
        let all = || (0..100).map(begin).fold(None, |failed, one| failed.or(one.err()));
        let failed: Vec<Error> = std::thread::scope(|scope| {
            let threads = [(); MANY].map(|()| scope.spawn(all));
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(failed.is_empty(), "{failed:?}");
    }
}
