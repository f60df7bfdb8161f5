//! What a person may do with the rows of an outbox that cannot be published.

use std::sync::Arc;

use async_trait::async_trait;
use headwater_core::ports::{Shelf, ShelfCount, ShelfFilter, Shelved, ShelvedEvent};
use headwater_core::{EventId, Result};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Postgres, Row};

use super::layout::place;
use super::sessions::Sessions;
use super::{Names, failed};
use crate::outbox::SetAside;

/// The rows of one outbox that are set aside.
pub struct PostgresOutboxShelf {
    sessions: Arc<Sessions>,
    names: Names,
    /// The source's name.
    owner: String,
    list: String,
    show: String,
    retry: String,
    drop: String,
}

const MICROS: &str =
    "CASE WHEN isfinite(created_at) THEN (extract(epoch FROM created_at) * 1000000)::bigint ELSE 0 END";

impl PostgresOutboxShelf {
    pub(super) fn new(sessions: Arc<Sessions>, names: Names, owner: &str) -> Self {
        let outbox = names.outbox();
        let columns =
            format!("id, seq, stream, key, type, payload::text, state, attempts, error, {MICROS} AS since");
        let fits = "($1::text IS NULL OR stream = $1) AND ($2::text IS NULL OR key = $2) AND ($3::uuid IS NULL OR id = $3)";
        let heads = format!("state IN ('retrying', 'parked') AND {fits}");
        let behind = format!(
            "(SELECT count(*) FROM {outbox} AS later WHERE later.state = 'waiting' AND later.lane = head.lane \
             AND {} = {} AND later.stream = head.stream AND later.key = head.key)",
            place("later."),
            place("head.")
        );
        let some = format!("SELECT id FROM {outbox} WHERE {heads} ORDER BY seq LIMIT $4 FOR UPDATE");
        let droppable = "(state = 'parked' OR $2::text IS NOT NULL OR $3::uuid IS NOT NULL)";
        let these =
            format!("SELECT id FROM {outbox} WHERE {heads} AND {droppable} ORDER BY seq LIMIT $4 FOR UPDATE");
        Self {
            list: format!(
                "SELECT {columns}, {behind} AS behind FROM {outbox} AS head WHERE {heads} ORDER BY seq LIMIT $4"
            ),
            // As two conditions, each of which an index holds.
            show: format!(
                "SELECT {columns} FROM {outbox} WHERE (state IN ('retrying', 'parked') OR state = 'waiting') AND {fits} \
                 ORDER BY seq LIMIT $4"
            ),
            retry: format!(
                "UPDATE {outbox} SET state = 'retrying', attempts = 0, next_try = clock_timestamp() WHERE id IN ({some})"
            ),
            // The next of each key comes first then; both in one statement, so that no relay sees neither.
            drop: format!(
                "WITH dropped AS (UPDATE {outbox} SET state = 'dropped', settled_at = clock_timestamp(), next_try = NULL \
                     WHERE id IN ({these}) RETURNING lane, stream, key), \
                 next AS (SELECT row.id FROM dropped CROSS JOIN LATERAL (SELECT id FROM {outbox} AS later \
                     WHERE later.state = 'waiting' AND later.lane = dropped.lane AND {} = {} \
                     AND later.stream = dropped.stream AND later.key = dropped.key ORDER BY later.seq LIMIT 1) AS row), \
                 first AS (UPDATE {outbox} SET state = 'retrying', next_try = clock_timestamp() \
                     WHERE id IN (SELECT id FROM next) AND state = 'waiting') \
                 SELECT count(*) FROM dropped",
                place("later."),
                place("dropped.")
            ),
            sessions,
            names,
            owner: owner.to_owned(),
        }
    }

    fn ask<'q>(&self, sql: &'q str, filter: &ShelfFilter) -> Query<'q, Postgres, PgArguments> {
        // What is not text is no key of an outbox.
        let key = filter.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
        sqlx::query(AssertSqlSafe(sql))
            .bind(filter.stream.clone())
            .bind(key)
            .bind(filter.id.map(|id| Uuid::from_bytes(*id.as_bytes())))
            .bind(i64::try_from(filter.limit).ok().filter(|limit| *limit > 0))
    }

    fn is_asked(&self, filter: &ShelfFilter) -> bool {
        filter.owner.as_ref().is_none_or(|owner| *owner == self.owner)
    }

    async fn rows<T>(
        &self,
        sql: &str,
        filter: &ShelfFilter,
        read: impl Fn(&PgRow) -> sqlx::Result<T>,
    ) -> Result<Vec<T>> {
        if !self.is_asked(filter) {
            return Ok(Vec::new());
        }
        let rows = self.ask(sql, filter).fetch_all(self.sessions.pool().await?).await;
        let read = rows.and_then(|rows| rows.iter().map(read).collect());
        read.map_err(|error| failed(error, "reading what is parked in the outbox", &self.names))
    }
}

fn set_aside(row: &PgRow) -> sqlx::Result<SetAside> {
    Ok(SetAside {
        sequence: row.try_get("seq")?,
        id: EventId::from_bytes(row.try_get::<Uuid, _>("id")?.into_bytes()),
        stream: row.try_get("stream")?,
        kind: row.try_get("type")?,
        key: row.try_get("key")?,
        payload: row.try_get("payload")?,
        state: row.try_get("state")?,
        attempts: row.try_get::<i32, _>("attempts")?.unsigned_abs(),
        error: row.try_get("error")?,
        since: row.try_get("since")?,
    })
}

#[async_trait]
impl Shelf for PostgresOutboxShelf {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        self.rows(&self.list, filter, |row| set_aside(row)?.line(&self.owner, row.try_get("behind")?)).await
    }

    async fn count(&self, owner: &str) -> Result<ShelfCount> {
        if owner != self.owner {
            return Ok(ShelfCount::default());
        }
        let sql = format!(
            "SELECT state, count(*) FROM {} WHERE state IN ('retrying', 'parked') OR state = 'waiting' GROUP BY state",
            self.names.outbox()
        );
        let states = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(self.sessions.pool().await?).await;
        Ok(ShelfCount::of(states.map_err(|error| failed(error, "counting parked events", &self.names))?))
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        self.rows(&self.show, filter, |row| set_aside(row)?.event(&self.owner)).await
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        if !self.is_asked(filter) {
            return Ok(0);
        }
        let done = self.ask(&self.retry, filter).execute(self.sessions.pool().await?).await;
        let done =
            done.map_err(|error| failed(error, "letting parked rows of the outbox go", &self.names))?;
        Ok(done.rows_affected())
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        let dropped = self.rows(&self.drop, filter, |row| row.try_get::<i64, _>(0)).await?;
        Ok(dropped.first().map_or(0, |count| count.unsigned_abs()))
    }
}
