//! Rows of the table of what is set aside.

use headwater_core::{Error, EventId, Kind, Result};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::inbox::Columns;
use crate::sqlx_errors::SqlxExt;

/// The first event of what is due, if it may be tried.
pub(super) const HEAD: &str = "SELECT * FROM headwater_parked WHERE seq = CASE WHEN ?3 IS NULL THEN ?4 ELSE ( \
         SELECT seq FROM headwater_parked WHERE consumer = ?1 AND stream = ?2 AND key = ?3 ORDER BY seq LIMIT 1 \
     ) END AND (state = 'waiting' OR state = 'retrying' AND next_try <= ?5)";

/// The event.
pub(super) fn columns(row: &SqliteRow) -> Result<Columns> {
    let id = id(row)?;
    let read = || -> sqlx::Result<Columns> {
        Ok(Columns {
            stream: row.try_get("stream")?,
            partition: row.try_get("partition")?,
            offset: row.try_get("offset")?,
            id,
            key: row.try_get("event_key")?,
            kind: row.try_get("type")?,
            headers: row.try_get("headers")?,
            payload: row.try_get("payload")?,
            time: row.try_get("time")?,
        })
    };
    read().sqlx("reading a parked event")
}

/// Its id.
pub(super) fn id(row: &SqliteRow) -> Result<EventId> {
    let id: String = row.try_get("event_id").sqlx("reading a parked event")?;
    id.parse().map_err(|()| Error::new(Kind::Decode, format!("the id of a parked event is no UUID: {id}")))
}

/// Its sequence, and how often it was tried.
pub(super) fn head(row: &SqliteRow) -> sqlx::Result<(i64, u32)> {
    Ok((row.try_get("seq")?, row.try_get("attempts")?))
}
