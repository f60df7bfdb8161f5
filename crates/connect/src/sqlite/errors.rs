//! What SQLite's errors mean to an operator.

use headwater_core::{Error, Kind, Result};
use rusqlite::ErrorCode;

/// Turns SQLite's errors into Headwater's.
pub trait Sql<T> {
    /// Says what was being done.
    fn sql(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Sql<T> for rusqlite::Result<T> {
    fn sql(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let (kind, hint) = meaning(&error);
            let wrapped = Error::new(kind, doing()).because(error);
            match hint {
                Some(hint) => wrapped.hint(hint),
                None => wrapped,
            }
        })
    }
}

fn meaning(error: &rusqlite::Error) -> (Kind, Option<&'static str>) {
    let Some(code) = error.sqlite_error_code() else {
        return (Kind::Decode, None);
    };
    match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            (Kind::Unavailable, Some("another connection holds a lock for long: are its transactions short?"))
        }
        ErrorCode::CannotOpen
        | ErrorCode::SystemIoFailure
        | ErrorCode::SchemaChanged
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::OutOfMemory => (Kind::Unavailable, None),
        ErrorCode::DiskFull => (Kind::Full, Some("make room on the disk that holds the database")),
        ErrorCode::ReadOnly | ErrorCode::PermissionDenied => {
            (Kind::Refused, Some("Headwater must be allowed to write to the file and to its directory"))
        }
        ErrorCode::NotADatabase => {
            (Kind::Refused, Some("is it a SQLite database? encrypted ones cannot be read"))
        }
        ErrorCode::DatabaseCorrupt => (Kind::Refused, Some("check it: PRAGMA integrity_check")),
        _ => (Kind::Refused, None),
    }
}

/// Whether it failed only because somebody else held a lock.
pub fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn what_passes_is_tried_again() {
        let kind = |code| {
            let failed = Err::<(), _>(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
            failed.sql(|| "testing".into()).unwrap_err().kind()
        };
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_PROTOCOL, ffi::SQLITE_NOMEM, ffi::SQLITE_IOERR_READ] {
            assert_eq!(kind(code), Kind::Unavailable, "{code}");
        }
        assert_eq!(kind(ffi::SQLITE_FULL), Kind::Full);
        assert_eq!(kind(ffi::SQLITE_NOTADB), Kind::Refused);
    }
}
