//! What became of each event of a consumer that has the file for itself.

use std::path::Path;

use headwater_core::{EventId, Micros, Result};
use rusqlite::{OptionalExtension as _, Row};
use sqlx::{Executor, Sqlite, SqlitePool, Transaction};

use crate::sqlx_errors::SqlxExt as _;
use crate::store::{Access, SqlExt as _, now, open};

/// Only what is not plain: an event that was delivered at the first try has its inbox row, and nothing here. Who takes
/// away what is set aside, and has not said that it is delivered, drops it.
const SCRIPT: &str = "CREATE TABLE IF NOT EXISTS headwater_delivery (
    consumer TEXT NOT NULL,
    event_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('delivered', 'dropped')),
    attempts INTEGER NOT NULL,
    at INTEGER NOT NULL,
    error TEXT,
    PRIMARY KEY (consumer, event_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS headwater_delivery_at ON headwater_delivery (consumer, at);
CREATE TRIGGER IF NOT EXISTS headwater_delivery_dropped AFTER DELETE ON headwater_parked BEGIN
    INSERT OR IGNORE INTO headwater_delivery VALUES (old.consumer, old.event_id, 'dropped', old.attempts,
        CAST(unixepoch('subsec') * 1000000 AS INTEGER), old.error);
END;";

const HELD: &str = "INSERT OR REPLACE INTO headwater_delivery \
     SELECT consumer, event_id, 'delivered', attempts + 1, ?3, NULL FROM headwater_parked WHERE consumer = ?1 AND seq = ?2";

const ARRIVED: &str = "INSERT OR REPLACE INTO headwater_delivery VALUES (?1, ?2, 'delivered', ?3, ?4, NULL)";

/// Not before the inbox row, which by itself would say that it is delivered.
const CLEAN: &str = "DELETE FROM headwater_delivery WHERE (consumer, event_id) IN ( \
         SELECT consumer, event_id FROM headwater_delivery AS delivery WHERE consumer = ?1 AND at < ?2 \
             AND NOT EXISTS (SELECT 1 FROM headwater_inbox AS inbox \
                 WHERE inbox.consumer = ?1 AND inbox.event_id = delivery.event_id) \
         ORDER BY at LIMIT ?3)";

/// Where an event is looked for, in this order: what is set aside, what became of it, what only says that it was taken.
const FIND: [(&str, &str); 3] = [
    (
        "headwater_parked",
        "SELECT state, attempts, parked_at, error FROM headwater_parked WHERE consumer = ?1 AND event_id = ?2",
    ),
    (
        "headwater_delivery",
        "SELECT state, attempts, at, error FROM headwater_delivery WHERE consumer = ?1 AND event_id = ?2",
    ),
    (
        "headwater_inbox",
        "SELECT 'delivered', 1, handled_at, NULL FROM headwater_inbox WHERE consumer = ?1 AND event_id = ?2",
    ),
];

/// What became of an event at one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// `delivered`, `dropped`, `parked`, `retrying` or `waiting`.
    pub state: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was delivered, dropped, or set aside.
    pub at: Micros,
    /// What was said the last time that it failed.
    pub error: Option<String>,
}

/// What became of an event at a consumer whose inbox is in the file, if that knows it; an earlier version has made fewer
/// tables. Blocks.
pub fn delivery(path: &Path, consumer: &str, id: EventId) -> Result<Option<Delivery>> {
    let row = |row: &Row<'_>| {
        let (state, attempts, at) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Delivery { state, attempts, at, error: row.get(3)? })
    };
    let connection = open(path, Access::Read)?;
    let find = || -> rusqlite::Result<Option<Delivery>> {
        // An event that moves from one to the next meanwhile is not missed.
        let reading = connection.unchecked_transaction()?;
        for (table, find) in FIND {
            if !reading.table_exists(None, table)? {
                continue;
            }
            if let Some(found) = reading.query_row(find, (consumer, id.to_string()), row).optional()? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    };
    find().sql("looking for what became of an event")
}

/// Begins to write it down.
pub(super) async fn install(on: impl Executor<'_, Database = Sqlite>) -> Result<()> {
    on.execute(sqlx::raw_sql(SCRIPT)).await.sqlx("making the table of deliveries").map(drop)
}

/// An event that was set aside is delivered: said before it is taken away. Whether it was still there.
pub(super) async fn held(
    on: &mut Transaction<'static, Sqlite>,
    consumer: &str,
    sequence: i64,
) -> Result<bool> {
    let held = sqlx::query(HELD).bind(consumer).bind(sequence).bind(now());
    Ok(held.execute(&mut **on).await.sqlx("writing down a delivery")?.rows_affected() > 0)
}

/// An event is delivered that was tried more than once.
pub(super) async fn arrived(
    on: &mut Transaction<'static, Sqlite>,
    consumer: &str,
    id: EventId,
    attempts: u32,
) -> Result<()> {
    let arrived = sqlx::query(ARRIVED).bind(consumer).bind(id.to_string()).bind(attempts).bind(now());
    arrived.execute(&mut **on).await.sqlx("writing down a delivery").map(drop)
}

/// Forgets what is older.
pub(super) async fn clean(on: &SqlitePool, consumer: &str, before: Micros, limit: i64) -> Result<u64> {
    let clean = sqlx::query(CLEAN).bind(consumer).bind(before).bind(limit);
    Ok(clean.execute(on).await.sqlx("cleaning the table of deliveries")?.rows_affected())
}
