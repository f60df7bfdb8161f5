//! Rows of the table of what is set aside.

use headwater_core::{Error, Kind, Result};
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
    let read = || -> sqlx::Result<(String, Columns)> {
        let columns = Columns {
            stream: row.try_get("stream")?,
            partition: row.try_get("partition")?,
            offset: row.try_get("offset")?,
            id: headwater_core::EventId::from_bytes([0; 16]),
            key: row.try_get("event_key")?,
            kind: row.try_get("type")?,
            headers: row.try_get("headers")?,
            payload: row.try_get("payload")?,
            time: row.try_get("time")?,
        };
        Ok((row.try_get("event_id")?, columns))
    };
    let (id, columns) = read().sqlx("reading a parked event")?;
    let wrong = |()| Error::new(Kind::Decode, format!("the id of a parked event is no UUID: {id}"));
    Ok(Columns { id: id.parse().map_err(wrong)?, ..columns })
}

/// Its sequence, and how often it was tried.
pub(super) fn head(row: &SqliteRow) -> sqlx::Result<(i64, u32)> {
    Ok((row.try_get("seq")?, row.try_get("attempts")?))
}
