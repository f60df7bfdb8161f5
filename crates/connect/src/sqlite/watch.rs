//! Noticing that something happened: a commit, another schema, another file.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result, ResultExt as _};
use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};

use super::errors::Sql as _;

/// How long a source that was just closed may take to let go of the lock.
const HANDOVER: Duration = Duration::from_secs(2);

/// Watches one database through one connection.
pub struct Watch {
    path: PathBuf,
    file: (u64, u64),
    /// `PRAGMA data_version` when it was last asked: it changes with every commit of another connection.
    seen: Option<i64>,
    /// Held as long as the source is open.
    _lock: File,
}

impl Watch {
    /// Watches the database at `path`; an error of kind `Busy` when another process captures it.
    pub fn new(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), file: identity(path)?, seen: None, _lock: lock(path)? })
    }

    /// Whether another connection committed since the last call.
    pub fn moved(&mut self, conn: &Connection) -> Result<bool> {
        let mut statement = conn.prepare_cached("PRAGMA data_version").sql(|| "asking for news".into())?;
        let now: i64 = statement.query_row([], |row| row.get(0)).sql(|| "asking for news".into())?;
        let moved = self.seen != Some(now);
        self.seen = Some(now);
        Ok(moved)
    }

    /// An error when the path now leads to another file than the one that is open: SQLite would go on
    /// reading the old one.
    pub fn same_file(&self) -> Result<()> {
        if identity(&self.path)? == self.file {
            return Ok(());
        }
        Err(Error::new(Kind::Unavailable, format!("{} was replaced by another file", self.path.display())))
    }
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let meta =
        std::fs::metadata(path).doing(Kind::Unavailable, || format!("looking at {}", path.display()))?;
    Ok((meta.dev(), meta.ino()))
}

/// One source at a time may capture a database: two would each prune what the other has yet to read.
/// The lock is on a file beside it; locks on the database itself are SQLite's.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push("-headwater");
    let doing = || format!("locking {}", Path::new(&name).display());
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let hint = "let Headwater's user write to the database's folder: SQLite itself makes files there";
    let file = file.doing(Kind::Refused, doing).map_err(|error| error.hint(hint))?;
    let deadline = Instant::now() + HANDOVER;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let error = Error::new(Kind::Busy, format!("{} is captured already", path.display()));
                return Err(error.hint("stop the other headwater, or the other source of this one"));
            }
            Err(error) => return Err(Error::new(Kind::Unavailable, doing()).because(error)),
        }
    }
}

/// The schema's version: raised by every change of a table, trigger or index, and by VACUUM.
pub fn schema_version(conn: &Connection) -> Result<i64> {
    let doing = || "asking for the schema's version".to_owned();
    let mut statement = conn.prepare_cached("PRAGMA schema_version").sql(doing)?;
    statement.query_row([], |row| row.get(0)).sql(doing)
}
