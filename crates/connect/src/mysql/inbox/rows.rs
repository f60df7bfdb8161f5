//! Rows of the table of what is set aside.

use headwater_core::EventId;
use sqlx::Row;
use sqlx::mysql::MySqlRow;
use sqlx::types::Uuid;

use crate::inbox::Columns;

/// What [`columns`] and [`head`] read.
pub(super) const COLUMNS: &str =
    "stream, `partition`, `offset`, event_id, event_key, type, headers, payload, time, seq, attempts";

/// The event.
pub(super) fn columns(row: &MySqlRow) -> sqlx::Result<Columns> {
    let id: Uuid = row.try_get("event_id")?;
    Ok(Columns {
        stream: row.try_get("stream")?,
        partition: row.try_get::<i32, _>("partition")?.into(),
        offset: row.try_get("offset")?,
        id: EventId::from_bytes(id.into_bytes()),
        key: row.try_get("event_key")?,
        kind: row.try_get("type")?,
        headers: row.try_get("headers")?,
        payload: row.try_get("payload")?,
        time: row.try_get("time")?,
    })
}

/// Its sequence, and how often it was tried.
pub(super) fn head(row: &MySqlRow) -> sqlx::Result<(i64, u32)> {
    let attempts: i32 = row.try_get("attempts")?;
    Ok((row.try_get("seq")?, u32::try_from(attempts).unwrap_or(0)))
}
