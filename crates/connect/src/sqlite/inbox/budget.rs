//! How much of a consumer's events may be set aside, in a file that only Headwater writes to.

use std::path::Path;

use headwater_core::{Error, Kind, Result};
use sqlx::{Executor, SqliteConnection};

use crate::sqlx_errors::SqlxExt as _;
use crate::store::{Access, SqlExt as _, open};

/// What an event takes that is set aside: what is in it, and about what its row and its entry in the index take.
macro_rules! size {
    ($row:literal) => {
        concat!(
            "(200 + coalesce(length(",
            $row,
            ".payload), 0) + length(",
            $row,
            ".headers) \
             + 2 * coalesce(length(",
            $row,
            ".key), 0) + coalesce(length(",
            $row,
            ".event_key), 0))"
        )
    };
}

/// Counts what is set aside, whoever sets it aside or lets it go: a commit has no time to look through all of it.
pub(super) const SCRIPT: &str = concat!(
    "CREATE TABLE IF NOT EXISTS headwater_aside (consumer TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS headwater_aside_more AFTER INSERT ON headwater_parked BEGIN
    INSERT INTO headwater_aside VALUES (new.consumer, ",
    size!("new"),
    ") ON CONFLICT (consumer) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER IF NOT EXISTS headwater_aside_less AFTER DELETE ON headwater_parked BEGIN
    UPDATE headwater_aside SET bytes = bytes - ",
    size!("old"),
    " WHERE consumer = old.consumer;
END;
BEGIN IMMEDIATE;
DELETE FROM headwater_aside;
INSERT INTO headwater_aside SELECT consumer, sum(",
    size!("parked"),
    ") FROM headwater_parked AS parked GROUP BY consumer;
COMMIT;"
);

const USED: &str = "SELECT bytes FROM headwater_aside WHERE consumer = ?";

const OWNERS: &str = "SELECT consumer, bytes FROM headwater_aside WHERE bytes > 0 ORDER BY consumer";

/// Whose events are set aside in the file, and how many bytes of each. Blocks.
pub fn owners(path: &Path) -> Result<Vec<(String, u64)>> {
    let connection = open(path, Access::Read)?;
    let read = || -> rusqlite::Result<Vec<(String, u64)>> {
        let mut owners = connection.prepare(OWNERS)?;
        let found = owners.query_map([], |row| {
            let bytes: i64 = row.get(1)?;
            Ok((row.get(0)?, u64::try_from(bytes).unwrap_or(0)))
        });
        found?.collect()
    };
    read().sql("asking whose events are set aside")
}

/// How many bytes may be set aside of each consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget(pub(super) u64);

impl Budget {
    /// An error of kind `Full` where nothing more may be set aside. What is there may be more than the budget, by what
    /// transactions that ran at once have set aside.
    pub(super) async fn check(self, connection: &mut SqliteConnection, consumer: &str) -> Result<()> {
        let used = sqlx::query_scalar::<_, i64>(USED).bind(consumer).fetch_optional(connection).await;
        let used = used.sqlx("asking how much is set aside")?;
        let used = u64::try_from(used.unwrap_or(0)).unwrap_or(0);
        if used < self.0 {
            return Ok(());
        }
        let doing =
            format!("no more events of {consumer} can be set aside: {used} bytes are, {} may be", self.0);
        Err(Error::new(Kind::Full, doing).hint(format!(
            "see `headwater parked list --of {consumer}`; mend what fails, let it go or drop it, or raise \
             `max_set_aside` of [push.{consumer}]"
        )))
    }
}

/// Begins to count.
pub(super) async fn install(on: impl Executor<'_, Database = sqlx::Sqlite>) -> Result<()> {
    on.execute(sqlx::raw_sql(SCRIPT)).await.sqlx("counting what is set aside").map(drop)
}
