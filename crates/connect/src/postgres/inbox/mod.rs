//! The inbox in a service's own PostgreSQL database.

mod layout;
mod rows;
mod settle;
mod shelf;

use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{Arrival, Backlog, Due, Held, Inbox, Settlement, Taken};
use headwater_core::{Error, Kind, Result};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row, Transaction};

pub(super) use layout::{TABLES, indexes};
pub use layout::{install, script};

use crate::inbox::{CLEANED, MARGIN, begin};
use crate::sqlx_errors::SqlxExt;
use layout::Tables;

/// An inbox in a PostgreSQL database. A consumer uses as many connections of the pool at once as it works
/// on keys, and one more.
#[derive(Debug, Clone)]
pub struct PostgresInbox {
    pool: PgPool,
    sql: Arc<Sql>,
    begin: Arc<str>,
}

#[derive(Debug)]
struct Sql {
    cursor: String,
    take: String,
    blocked: String,
    due: String,
    head: String,
    clean: String,
    settle: settle::Sql,
    shelf: shelf::Sql,
}

impl PostgresInbox {
    /// The inbox that `headwater init` made: in the schema `public`.
    pub fn new(pool: PgPool) -> Self {
        Self::in_schema(pool, "public")
    }

    /// The inbox in another schema.
    pub fn in_schema(pool: PgPool, schema: &str) -> Self {
        Self { pool, sql: Arc::new(Sql::new(&Tables::of(schema))), begin: BEGIN.into() }
    }

    /// Whether the transaction is still the one that was begun, before anything is written down. One that a handler has
    /// ended by a statement is not, and neither is one in which a statement failed that the handler did not pass on:
    /// COMMIT would roll it back and say nothing of it.
    async fn check(&self, transaction: &mut Transaction<'static, Postgres>) -> Result<()> {
        let doing = "committing, with what is checked at the end, and unless a statement failed that the handler did not \
             pass on";
        let asked = sqlx::raw_sql(CHECK).fetch_one(&mut **transaction).await;
        let open = asked.and_then(|row| row.try_get::<Option<String>, _>(0)).sqlx(doing)?;
        if open.as_deref() == Some("open") {
            return Ok(());
        }
        let doing = "committing after the handler has ended the transaction";
        Err(Error::new(Kind::Refused, doing).hint("a handler neither commits nor rolls back"))
    }

    async fn open(&self, doing: &str) -> Result<Transaction<'static, Postgres>> {
        begin(&self.pool, self.begin.to_string()).await.sqlx(doing)
    }
}

/// READ COMMITTED, whatever the pool's are: the cursors of several workers would be in each other's way. The setting is
/// gone when the transaction is: see [`PostgresInbox::check`].
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL headwater.inbox = 'open'";

/// What is checked at the end is checked here: a COMMIT has no `statement_timeout`, and this comes before the cursor.
const CHECK: &str = "SET CONSTRAINTS ALL IMMEDIATE; SELECT current_setting('headwater.inbox', true)";

/// Begins a transaction of which no statement, and no pause between two, is longer than this, or than what is set
/// for the session already.
fn begin_bounded(bound: Duration) -> String {
    format!(
        "{BEGIN}; SELECT set_config(name, least(nullif(extract(epoch FROM current_setting(name)::interval) * 1000, 0), \
             {})::bigint::text, true) \
         FROM (VALUES ('statement_timeout'), ('idle_in_transaction_session_timeout')) AS bounds (name)",
        bound.as_millis().min(i32::MAX as u128)
    )
}

impl Sql {
    fn new(tables: &Tables) -> Self {
        let Tables { inbox, cursor, parked } = tables;
        let columns = rows::COLUMNS;
        Self {
            cursor: format!(
                "SELECT \"offset\" FROM {cursor} WHERE consumer = $1 AND stream = $2 AND partition = $3"
            ),
            // In the order of the ids: two members that take the same events wait, and do not deadlock.
            take: format!(
                "INSERT INTO {inbox} (consumer, event_id) SELECT $1, id FROM unnest($2::uuid[]) AS id ORDER BY id \
                 ON CONFLICT DO NOTHING RETURNING event_id"
            ),
            // A statement of its own: it sees what those committed whom the one before it waited for. A limit and not
            // EXISTS: the whole table is read for none.
            blocked: format!(
                "SELECT at FROM unnest($2::text[], $3::bytea[]) WITH ORDINALITY AS asked (stream, key, at) \
                 WHERE (SELECT true FROM {parked} AS parked WHERE parked.consumer = $1 \
                     AND parked.stream = asked.stream AND sha256(parked.key) = sha256(asked.key) AND parked.key IS NOT NULL LIMIT 1)"
            ),
            // From key to key, whatever waits behind each.
            due: format!(
                "WITH RECURSIVE keys AS ( \
                     (SELECT stream, key, sha256(key) AS hash FROM {parked} WHERE consumer = $1 AND key IS NOT NULL \
                         ORDER BY stream, sha256(key) LIMIT 1) \
                     UNION ALL \
                     SELECT next.* FROM keys CROSS JOIN LATERAL ( \
                         SELECT stream, key, sha256(key) FROM {parked} WHERE consumer = $1 AND key IS NOT NULL \
                             AND (stream, sha256(key)) > (keys.stream, keys.hash) \
                         ORDER BY stream, sha256(key) LIMIT 1) AS next \
                 ) \
                 SELECT stream, key, seq FROM ( \
                 SELECT keys.stream, keys.key, head.seq, head.next_try FROM keys CROSS JOIN LATERAL ( \
                     SELECT seq, state, next_try FROM {parked} WHERE consumer = $1 AND stream = keys.stream \
                         AND sha256(key) = keys.hash AND key IS NOT NULL ORDER BY seq LIMIT 1) AS head \
                 WHERE head.state = 'waiting' OR head.state = 'retrying' AND head.next_try <= clock_timestamp() \
                 UNION ALL \
                 SELECT stream, NULL, seq, next_try FROM {parked} \
                 WHERE consumer = $1 AND key IS NULL AND state = 'retrying' AND next_try <= clock_timestamp() \
                 ) AS due ORDER BY next_try NULLS FIRST, seq LIMIT $2"
            ),
            head: format!(
                "SELECT {columns} FROM {parked} WHERE seq = CASE WHEN $3::bytea IS NULL THEN $4 ELSE ( \
                     SELECT seq FROM {parked} WHERE consumer = $1 AND stream = $2 AND sha256(key) = sha256($3) AND key IS NOT NULL \
                         ORDER BY seq LIMIT 1 \
                 ) END AND (state = 'waiting' OR state = 'retrying' AND next_try <= clock_timestamp()) \
                 FOR UPDATE SKIP LOCKED"
            ),
            // By the newest row, unless it is from the future, not by the clock: what a consumer handled before it stood
            // still, and reads again afterwards, does not grow old meanwhile.
            clean: format!(
                "DELETE FROM {inbox} WHERE ctid = ANY(ARRAY( \
                     SELECT ctid FROM {inbox} WHERE consumer = $1 \
                         AND handled_at <= (SELECT least(max(handled_at), clock_timestamp()) - $2 * interval '1 microsecond' \
                             FROM {inbox} WHERE consumer = $1) \
                     ORDER BY handled_at LIMIT $3 FOR UPDATE SKIP LOCKED))"
            ),
            settle: settle::Sql::new(tables),
            shelf: shelf::Sql::new(tables),
        }
    }
}

impl Inbox for PostgresInbox {
    type Transaction = Transaction<'static, Postgres>;

    fn bounded(self, handler: Duration) -> Self {
        Self { begin: begin_bounded(handler.saturating_add(MARGIN)).into(), ..self }
    }

    async fn cursor(&self, consumer: &str, stream: &str, partition: u32) -> Result<Option<u64>> {
        let asked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(self.sql.cursor.as_str()))
            .bind(consumer)
            .bind(stream)
            .bind(i32::try_from(partition).unwrap_or(i32::MAX));
        let offset = asked.fetch_optional(&self.pool).await.sqlx("reading a consumer's cursor")?;
        Ok(offset.map(|offset| u64::try_from(offset).unwrap_or(0)))
    }

    async fn begin(&self, consumer: &str, arrivals: &[Arrival]) -> Result<(Self::Transaction, Vec<Taken>)> {
        let mut transaction = self.open("beginning a consumer's transaction").await?;
        if arrivals.is_empty() {
            return Ok((transaction, Vec::new()));
        }
        let ids: Vec<Uuid> =
            arrivals.iter().map(|arrival| Uuid::from_bytes(*arrival.id.as_bytes())).collect();
        let take = sqlx::query_scalar(AssertSqlSafe(self.sql.take.as_str())).bind(consumer).bind(&ids);
        let fresh: Vec<Uuid> = take.fetch_all(&mut *transaction).await.sqlx("writing inbox rows")?;
        let fresh: std::collections::HashSet<Uuid> = fresh.into_iter().collect();
        let state = |id: &Uuid| if fresh.contains(id) { Taken::New } else { Taken::Seen };
        let mut taken: Vec<Taken> = ids.iter().map(state).collect();
        for at in self.blocked(&mut transaction, consumer, arrivals).await? {
            if let Some(taken) = taken.get_mut(at).filter(|taken| **taken == Taken::New) {
                *taken = Taken::Blocked;
            }
        }
        Ok((transaction, taken))
    }

    async fn commit(
        &self,
        mut transaction: Self::Transaction,
        consumer: &str,
        settlement: &Settlement,
    ) -> Result<()> {
        self.check(&mut transaction).await?;
        self.sql.settle.run(&mut transaction, consumer, settlement).await?;
        transaction.commit().await.sqlx("committing a consumer's transaction")
    }

    async fn rollback(&self, transaction: Self::Transaction) -> Result<()> {
        transaction.rollback().await.sqlx("rolling back a consumer's transaction")
    }

    async fn clean(&self, consumer: &str, retention: Duration) -> Result<u64> {
        let clean = sqlx::query(AssertSqlSafe(self.sql.clean.as_str()))
            .bind(consumer)
            .bind(i64::try_from(retention.as_micros()).unwrap_or(i64::MAX))
            .bind(CLEANED);
        let done = clean.execute(&self.pool).await.sqlx("cleaning the inbox")?;
        Ok(done.rows_affected())
    }
}

impl PostgresInbox {
    /// Which of the arrivals have a key with something set aside.
    async fn blocked(
        &self,
        transaction: &mut Transaction<'static, Postgres>,
        consumer: &str,
        arrivals: &[Arrival],
    ) -> Result<Vec<usize>> {
        let streams: Vec<&str> = arrivals.iter().map(|arrival| &*arrival.stream).collect();
        let keys: Vec<Option<&[u8]>> = arrivals.iter().map(|arrival| arrival.key.as_deref()).collect();
        let asked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(self.sql.blocked.as_str()))
            .bind(consumer)
            .bind(streams)
            .bind(keys);
        let places = asked.fetch_all(&mut **transaction).await.sqlx("looking for parked keys")?;
        Ok(places.into_iter().filter_map(|at| usize::try_from(at - 1).ok()).collect())
    }
}

impl Backlog for PostgresInbox {
    async fn due(&self, consumer: &str, limit: usize) -> Result<Vec<Due>> {
        let asked = sqlx::query(AssertSqlSafe(self.sql.due.as_str()))
            .bind(consumer)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let doing = "looking for parked events that may go";
        let rows = asked.fetch_all(&self.pool).await.sqlx(doing)?;
        let due = |row: sqlx::postgres::PgRow| -> sqlx::Result<Due> {
            let stream: String = row.try_get(0)?;
            let key: Option<Vec<u8>> = row.try_get(1)?;
            Ok(Due { stream: stream.into(), key: key.map(Into::into), sequence: row.try_get(2)? })
        };
        rows.into_iter().map(due).collect::<sqlx::Result<_>>().sqlx(doing)
    }

    async fn head(&self, consumer: &str, due: &Due) -> Result<Option<(Self::Transaction, Held)>> {
        let doing = "taking a parked event";
        let mut transaction = self.open(doing).await?;
        let asked = sqlx::query(AssertSqlSafe(self.sql.head.as_str()))
            .bind(consumer)
            .bind(&*due.stream)
            .bind(due.key.as_deref())
            .bind(due.sequence);
        let Some(row) = asked.fetch_optional(&mut *transaction).await.sqlx(doing)? else {
            transaction.rollback().await.sqlx(doing)?;
            return Ok(None);
        };
        let (sequence, attempts) = rows::head(&row).sqlx(doing)?;
        let record = rows::columns(&row).sqlx(doing)?.record()?;
        Ok(Some((transaction, Held { sequence, attempts, record })))
    }
}
