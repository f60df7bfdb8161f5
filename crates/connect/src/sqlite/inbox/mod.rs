//! The inbox in a service's own SQLite database.

mod budget;
mod deferred;
mod delivery;
mod going;
mod layout;
mod rows;
mod settle;
mod shelf;
mod unwritten;

use std::collections::HashSet;
use std::time::Duration;

use headwater_core::Result;
use headwater_core::ports::{Arrival, Backlog, Due, Held, Inbox, Settlement, Taken};
use serde_json::{Value, json};
use sqlx::{Row, Sqlite, SqliteConnection, SqlitePool, Transaction};

pub use budget::owners;
pub use deferred::{Deferred, DeferredInbox};
pub use delivery::{Delivery, delivery};
pub use layout::{SCRIPT, install};

use crate::inbox::{CLEANED, hex};
use crate::sqlite::transaction::begin;
use crate::sqlx_errors::SqlxExt;
use crate::store::{micros, now};

/// An inbox in a SQLite database. One transaction writes at a time, so the pool needs a busy timeout as long as
/// the handlers of a consumer's other workers take together.
#[derive(Debug, Clone)]
pub struct SqliteInbox {
    pool: SqlitePool,
}

/// The savepoint is gone when the transaction is: a handler has ended it, or SQLite has, after some errors.
const BEGIN: &str = "BEGIN IMMEDIATE; SAVEPOINT headwater_inbox";

const STILL_THERE: &str = "RELEASE headwater_inbox";

const CURSOR: &str =
    "SELECT \"offset\" FROM headwater_cursor WHERE consumer = ? AND stream = ? AND partition = ?";

const TAKE: &str = "INSERT OR IGNORE INTO headwater_inbox (consumer, event_id, handled_at) \
     SELECT ?1, value, ?3 FROM json_each(?2) RETURNING event_id";

const SEEN: &str = "SELECT event_id FROM headwater_inbox \
     WHERE consumer = ?1 AND event_id IN (SELECT value FROM json_each(?2))";

const BLOCKED: &str = "SELECT asked.key FROM json_each(?2) AS asked WHERE EXISTS ( \
         SELECT 1 FROM headwater_parked AS parked WHERE parked.consumer = ?1 \
             AND parked.stream = asked.value ->> 0 AND parked.key = unhex(asked.value ->> 1))";

/// The state is that of the row with the lowest sequence: SQLite promises it of a lone min().
const DUE: &str = "SELECT stream, key, seq FROM ( \
         SELECT stream, key, min(seq) AS seq, state, next_try FROM headwater_parked \
         WHERE consumer = ?1 AND key IS NOT NULL GROUP BY stream, key \
         UNION ALL \
         SELECT stream, NULL, seq, state, next_try FROM headwater_parked \
         WHERE consumer = ?1 AND key IS NULL AND state = 'retrying') \
     WHERE state = 'waiting' OR state = 'retrying' AND next_try <= ?3 \
     ORDER BY next_try, seq LIMIT ?2";

/// By the newest row, unless it is from the future, not by the clock: what a consumer handled before it stood still, and
/// reads again afterwards, does not grow old meanwhile.
const CLEAN: &str = "DELETE FROM headwater_inbox WHERE consumer = ?1 AND event_id IN ( \
         SELECT event_id FROM headwater_inbox WHERE consumer = ?1 \
             AND handled_at <= (SELECT min(max(handled_at), ?4) - ?2 FROM headwater_inbox WHERE consumer = ?1) \
         ORDER BY handled_at LIMIT ?3)";

impl SqliteInbox {
    /// The inbox that `headwater init` made.
    pub fn new(pool: SqlitePool) -> Self {
        Self { pool }
    }

    /// What [`Inbox::begin`] would say now, without taking anything.
    async fn look(&self, consumer: &str, arrivals: &[Arrival]) -> Result<Vec<Taken>> {
        let doing = "looking for inbox rows";
        if arrivals.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.pool.acquire().await.sqlx(doing)?;
        let ids: Vec<String> = arrivals.iter().map(|arrival| arrival.id.to_string()).collect();
        let seen = sqlx::query_scalar(SEEN).bind(consumer).bind(json!(ids).to_string());
        let seen: Vec<String> = seen.fetch_all(&mut *connection).await.sqlx(doing)?;
        let seen: HashSet<String> = seen.into_iter().collect();
        let state = |id: &String| if seen.contains(id) { Taken::Seen } else { Taken::New };
        let mut taken: Vec<Taken> = ids.iter().map(state).collect();
        block(&mut connection, consumer, arrivals, &mut taken).await?;
        Ok(taken)
    }

    /// Takes the write lock first: a transaction that reads before it writes could be refused later.
    async fn write(&self, doing: &str) -> Result<Transaction<'static, Sqlite>> {
        begin(&self.pool, BEGIN).await.sqlx(doing)
    }
}

/// Marks what is new and waits behind an event that is set aside.
async fn block(
    connection: &mut SqliteConnection,
    consumer: &str,
    arrivals: &[Arrival],
    taken: &mut [Taken],
) -> Result<()> {
    let asked = |arrival: &Arrival| json!([*arrival.stream, arrival.key.as_deref().map(hex)]);
    let asked = Value::Array(arrivals.iter().map(asked).collect()).to_string();
    let blocked = sqlx::query_scalar::<_, i64>(BLOCKED).bind(consumer).bind(asked);
    for at in blocked.fetch_all(connection).await.sqlx("looking for parked keys")? {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(taken) = taken.get_mut(at).filter(|taken| **taken == Taken::New) {
            *taken = Taken::Blocked;
        }
    }
    Ok(())
}

impl Inbox for SqliteInbox {
    type Transaction = Transaction<'static, Sqlite>;

    async fn cursor(&self, consumer: &str, stream: &str, partition: u32) -> Result<Option<u64>> {
        let asked = sqlx::query_scalar::<_, i64>(CURSOR).bind(consumer).bind(stream).bind(partition);
        let offset = asked.fetch_optional(&self.pool).await.sqlx("reading a consumer's cursor")?;
        Ok(offset.map(|offset| u64::try_from(offset).unwrap_or(0)))
    }

    async fn begin(&self, consumer: &str, arrivals: &[Arrival]) -> Result<(Self::Transaction, Vec<Taken>)> {
        let mut transaction = self.write("beginning a consumer's transaction").await?;
        if arrivals.is_empty() {
            return Ok((transaction, Vec::new()));
        }
        let ids: Vec<String> = arrivals.iter().map(|arrival| arrival.id.to_string()).collect();
        let take = sqlx::query_scalar(TAKE).bind(consumer).bind(json!(ids).to_string()).bind(now());
        let fresh: Vec<String> = take.fetch_all(&mut *transaction).await.sqlx("writing inbox rows")?;
        let fresh: HashSet<String> = fresh.into_iter().collect();
        let state = |id: &String| if fresh.contains(id) { Taken::New } else { Taken::Seen };
        let mut taken: Vec<Taken> = ids.iter().map(state).collect();
        block(&mut transaction, consumer, arrivals, &mut taken).await?;
        Ok((transaction, taken))
    }

    async fn commit(
        &self,
        mut transaction: Self::Transaction,
        consumer: &str,
        settlement: &Settlement,
    ) -> Result<()> {
        let still_there = sqlx::query(STILL_THERE).execute(&mut *transaction).await;
        still_there.sqlx("committing after the transaction was ended, which the handler did not pass on")?;
        settle::run(&mut transaction, consumer, settlement).await?;
        transaction.commit().await.sqlx("committing a consumer's transaction")
    }

    async fn rollback(&self, transaction: Self::Transaction) -> Result<()> {
        transaction.rollback().await.sqlx("rolling back a consumer's transaction")
    }

    async fn clean(&self, consumer: &str, retention: Duration) -> Result<u64> {
        let clean = sqlx::query(CLEAN).bind(consumer).bind(micros(retention)).bind(CLEANED).bind(now());
        Ok(clean.execute(&self.pool).await.sqlx("cleaning the inbox")?.rows_affected())
    }
}

impl Backlog for SqliteInbox {
    async fn due(&self, consumer: &str, limit: usize) -> Result<Vec<Due>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let asked = sqlx::query(DUE).bind(consumer).bind(limit).bind(now());
        let doing = "looking for parked events that may go";
        let rows = asked.fetch_all(&self.pool).await.sqlx(doing)?;
        let due = |row: sqlx::sqlite::SqliteRow| -> sqlx::Result<Due> {
            let stream: String = row.try_get(0)?;
            let key: Option<Vec<u8>> = row.try_get(1)?;
            Ok(Due { stream: stream.into(), key: key.map(Into::into), sequence: row.try_get(2)? })
        };
        rows.into_iter().map(due).collect::<sqlx::Result<_>>().sqlx(doing)
    }

    async fn head(&self, consumer: &str, due: &Due) -> Result<Option<(Self::Transaction, Held)>> {
        let doing = "taking a parked event";
        let mut transaction = self.write(doing).await?;
        let asked = sqlx::query(rows::HEAD)
            .bind(consumer)
            .bind(&*due.stream)
            .bind(due.key.as_deref())
            .bind(due.sequence)
            .bind(now());
        let Some(row) = asked.fetch_optional(&mut *transaction).await.sqlx(doing)? else {
            transaction.rollback().await.sqlx(doing)?;
            return Ok(None);
        };
        let (sequence, attempts) = rows::head(&row).sqlx(doing)?;
        Ok(Some((transaction, Held { sequence, attempts, record: rows::columns(&row)?.record()? })))
    }
}
