//! The tables of an inbox.

use std::path::Path;

use headwater_core::Result;

use crate::sqlite::errors::Sql as _;
use crate::sqlite::install::connect;

/// The SQL that makes the tables of an inbox. What is there already is left as it is. Times are microseconds
/// since 1970.
pub const SCRIPT: &str = "\
CREATE TABLE IF NOT EXISTS headwater_inbox (
    consumer TEXT NOT NULL,
    event_id TEXT NOT NULL,
    handled_at INTEGER NOT NULL,
    PRIMARY KEY (consumer, event_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS headwater_inbox_handled_at ON headwater_inbox (consumer, handled_at);
CREATE TABLE IF NOT EXISTS headwater_cursor (
    consumer TEXT NOT NULL,
    stream TEXT NOT NULL,
    partition INTEGER NOT NULL,
    \"offset\" INTEGER NOT NULL,
    PRIMARY KEY (consumer, stream, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_parked (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer TEXT NOT NULL,
    stream TEXT NOT NULL,
    partition INTEGER NOT NULL,
    \"offset\" INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    key BLOB, -- what keeps its order and waits; event_key is the event's own
    event_key BLOB,
    type TEXT NOT NULL,
    headers TEXT NOT NULL, -- [[name, value], ...]
    payload BLOB,
    time INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('parked', 'waiting', 'retrying')),
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    next_try INTEGER,
    parked_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS headwater_parked_key ON headwater_parked (consumer, stream, key, seq);
";

/// Makes the tables of an inbox where they are missing; says whether any was. Blocks.
pub fn install(path: &Path) -> Result<bool> {
    let doing = || "making the tables of the inbox".to_owned();
    let connection = connect(path)?;
    let count = "SELECT count(*) FROM sqlite_schema \
         WHERE name IN ('headwater_inbox', 'headwater_cursor', 'headwater_parked')";
    let there: i64 = connection.query_row(count, [], |row| row.get(0)).sql(doing)?;
    if there == 3 {
        return Ok(false);
    }
    connection.execute_batch(&format!("BEGIN IMMEDIATE;\n{SCRIPT}COMMIT;")).sql(doing)?;
    Ok(true)
}
