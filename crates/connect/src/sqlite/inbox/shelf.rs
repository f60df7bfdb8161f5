//! What a person may do with the events that an inbox has set aside.

use async_trait::async_trait;
use bytes::Bytes;
use headwater_core::Result;
use headwater_core::ports::{Shelf, ShelfCount, ShelfFilter, ShelfState, Shelved, ShelvedEvent};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite};

use super::{SqliteInbox, rows};
use crate::sqlx_errors::{SqlxExt, shelf_state};
use crate::store::now;

/// What fits the filter; `HEADS` numbers the events of each key, and each event without one is one of its own.
macro_rules! fits {
    () => {
        "(?1 IS NULL OR consumer = ?1) AND (?2 IS NULL OR stream = ?2) AND (?3 IS NULL OR key = ?3) \
         AND (?4 IS NULL OR event_id = ?4)"
    };
}

macro_rules! heads {
    () => {
        "SELECT seq, consumer, stream, key, event_id, state, attempts, error, parked_at, row_number() OVER (PARTITION BY consumer, stream, key, CASE WHEN key IS NULL THEN seq END \
             ORDER BY seq) AS place, \
         count(*) OVER (PARTITION BY consumer, stream, key, CASE WHEN key IS NULL THEN seq END) - 1 AS behind \
         FROM headwater_parked"
    };
}

/// The first of each key in such a state.
macro_rules! firsts {
    ($state:literal) => {
        concat!(
            "seq IN (SELECT seq FROM (",
            heads!(),
            ") WHERE place = 1 AND ",
            $state,
            " AND ",
            fits!(),
            " ORDER BY seq LIMIT ?5)"
        )
    };
}

const LIST: &str =
    concat!("SELECT * FROM (", heads!(), ") WHERE place = 1 AND ", fits!(), " ORDER BY seq LIMIT ?5");

const COUNT: &str = "SELECT state, count(*) FROM headwater_parked WHERE consumer = ? GROUP BY state";

const SHOW: &str = concat!("SELECT * FROM headwater_parked WHERE ", fits!(), " ORDER BY seq LIMIT ?5");

const RETRY: &str = concat!(
    "UPDATE headwater_parked SET state = 'retrying', attempts = 0, next_try = ?6 WHERE ",
    firsts!("state <> 'waiting'")
);

const DROP: &str = concat!(
    "DELETE FROM headwater_parked WHERE ",
    firsts!("(state = 'parked' OR state = 'retrying' AND (?3 IS NOT NULL OR ?4 IS NOT NULL))")
);

fn ask<'q>(sql: &'static str, filter: &'q ShelfFilter) -> Query<'q, Sqlite, SqliteArguments> {
    sqlx::query(sql)
        .bind(filter.owner.as_deref())
        .bind(filter.stream.as_deref())
        .bind(filter.key.as_deref())
        .bind(filter.id.map(|id| id.to_string()))
        .bind(i64::try_from(filter.limit).ok().filter(|limit| *limit > 0).unwrap_or(-1))
}

fn state(row: &SqliteRow) -> sqlx::Result<ShelfState> {
    shelf_state(row.try_get("state")?)
}

fn key(row: &SqliteRow) -> sqlx::Result<Option<Bytes>> {
    Ok(row.try_get::<Option<Vec<u8>>, _>("key")?.map(Into::into))
}

fn event(row: &SqliteRow) -> Result<ShelvedEvent> {
    let doing = "reading a parked event";
    Ok(ShelvedEvent {
        owner: row.try_get("consumer").sqlx(doing)?,
        key: key(row).sqlx(doing)?,
        state: state(row).sqlx(doing)?,
        attempts: rows::head(row).sqlx(doing)?.1,
        error: row.try_get("error").sqlx(doing)?,
        since: row.try_get("parked_at").sqlx(doing)?,
        record: rows::columns(row)?.record()?,
    })
}

fn shelved(row: &SqliteRow) -> Result<Shelved> {
    let doing = "listing parked keys";
    let stream: String = row.try_get("stream").sqlx(doing)?;
    let behind: i64 = row.try_get("behind").sqlx(doing)?;
    Ok(Shelved {
        owner: row.try_get("consumer").sqlx(doing)?,
        stream: stream.into(),
        key: key(row).sqlx(doing)?,
        id: rows::id(row)?,
        state: state(row).sqlx(doing)?,
        attempts: rows::head(row).sqlx(doing)?.1,
        error: row.try_get("error").sqlx(doing)?,
        since: row.try_get("parked_at").sqlx(doing)?,
        waiting: u64::try_from(behind).unwrap_or(0),
    })
}

#[async_trait]
impl Shelf for SqliteInbox {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        let rows = ask(LIST, filter).fetch_all(&self.pool).await.sqlx("listing parked keys")?;
        rows.iter().map(shelved).collect()
    }

    async fn count(&self, owner: &str) -> Result<ShelfCount> {
        let states = sqlx::query_as(COUNT).bind(owner).fetch_all(&self.pool).await;
        Ok(ShelfCount::of(states.sqlx("counting parked events")?))
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        let rows = ask(SHOW, filter).fetch_all(&self.pool).await.sqlx("reading parked events")?;
        rows.iter().map(event).collect()
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        let done = ask(RETRY, filter).bind(now()).execute(&self.pool).await;
        Ok(done.sqlx("letting parked events go")?.rows_affected())
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        let done = ask(DROP, filter).execute(&self.pool).await;
        Ok(done.sqlx("dropping parked events")?.rows_affected())
    }
}
