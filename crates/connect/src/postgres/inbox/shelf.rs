//! What a person may do with the events that an inbox has set aside.

use async_trait::async_trait;
use headwater_core::ports::{Shelf, ShelfFilter, ShelfState, Shelved, ShelvedEvent};
use headwater_core::{EventId, Result};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Postgres, Row};

use super::layout::Tables;
use super::{PostgresInbox, rows};
use crate::sqlx_errors::{SqlxExt, shelf_state};

#[derive(Debug)]
pub(super) struct Sql {
    list: String,
    show: String,
    retry: String,
    drop: String,
}

impl Sql {
    pub(super) fn new(tables: &Tables) -> Self {
        let parked = &tables.parked;
        let columns = rows::COLUMNS;
        let own = "consumer, key, state, error, (extract(epoch FROM parked_at) * 1000000)::bigint AS since";
        let fits = "($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR stream = $2) \
             AND ($3::bytea IS NULL OR key = $3) AND ($4::uuid IS NULL OR event_id = $4)";
        // Each event without a key is one of its own.
        let one = "PARTITION BY consumer, stream, key, CASE WHEN key IS NULL THEN seq END";
        let heads = format!(
            "SELECT *, row_number() OVER ({one} ORDER BY seq) AS place, count(*) OVER ({one}) - 1 AS behind FROM {parked}"
        );
        let firsts = |state: &str| {
            format!(
                "seq IN (SELECT seq FROM ({heads}) AS head WHERE place = 1 AND {state} AND {fits} \
                     ORDER BY seq LIMIT $5)"
            )
        };
        let retried = firsts("state <> 'waiting'");
        let dropped = firsts(
            "(state = 'parked' OR state = 'retrying' AND ($3::bytea IS NOT NULL OR $4::uuid IS NOT NULL))",
        );
        Self {
            list: format!(
                "SELECT stream, event_id, seq, attempts, {own}, behind FROM ({heads}) AS head \
                 WHERE place = 1 AND {fits} ORDER BY seq LIMIT $5"
            ),
            show: format!("SELECT {columns}, {own} FROM {parked} WHERE {fits} ORDER BY seq LIMIT $5"),
            retry: format!(
                "UPDATE {parked} SET state = 'retrying', attempts = 0, next_try = clock_timestamp() WHERE {retried}"
            ),
            drop: format!("DELETE FROM {parked} WHERE {dropped}"),
        }
    }
}

fn ask<'q>(sql: &'q str, filter: &'q ShelfFilter) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(sql))
        .bind(filter.owner.as_deref())
        .bind(filter.stream.as_deref())
        .bind(filter.key.as_deref())
        .bind(filter.id.map(|id| Uuid::from_bytes(*id.as_bytes())))
        .bind(i64::try_from(filter.limit).ok().filter(|limit| *limit > 0))
}

fn state(row: &PgRow) -> sqlx::Result<ShelfState> {
    shelf_state(row.try_get("state")?)
}

fn shelved(row: &PgRow) -> sqlx::Result<Shelved> {
    let (stream, key): (String, Option<Vec<u8>>) = (row.try_get("stream")?, row.try_get("key")?);
    let (id, behind): (Uuid, i64) = (row.try_get("event_id")?, row.try_get("behind")?);
    Ok(Shelved {
        owner: row.try_get("consumer")?,
        stream: stream.into(),
        key: key.map(Into::into),
        id: EventId::from_bytes(id.into_bytes()),
        state: state(row)?,
        attempts: rows::head(row)?.1,
        error: row.try_get("error")?,
        since: row.try_get("since")?,
        waiting: u64::try_from(behind).unwrap_or(0),
    })
}

fn event(row: &PgRow) -> Result<ShelvedEvent> {
    let doing = "reading parked events";
    let key: Option<Vec<u8>> = row.try_get("key").sqlx(doing)?;
    Ok(ShelvedEvent {
        owner: row.try_get("consumer").sqlx(doing)?,
        key: key.map(Into::into),
        state: state(row).sqlx(doing)?,
        attempts: rows::head(row).sqlx(doing)?.1,
        error: row.try_get("error").sqlx(doing)?,
        since: row.try_get("since").sqlx(doing)?,
        record: rows::columns(row).sqlx(doing)?.record()?,
    })
}

#[async_trait]
impl Shelf for PostgresInbox {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        let doing = "listing parked keys";
        let rows = ask(&self.sql.shelf.list, filter).fetch_all(&self.pool).await.sqlx(doing)?;
        rows.iter().map(shelved).collect::<sqlx::Result<_>>().sqlx(doing)
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        let rows = ask(&self.sql.shelf.show, filter).fetch_all(&self.pool).await;
        rows.sqlx("reading parked events")?.iter().map(event).collect()
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        let done = ask(&self.sql.shelf.retry, filter).execute(&self.pool).await;
        Ok(done.sqlx("letting parked events go")?.rows_affected())
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        let done = ask(&self.sql.shelf.drop, filter).execute(&self.pool).await;
        Ok(done.sqlx("dropping parked events")?.rows_affected())
    }
}
