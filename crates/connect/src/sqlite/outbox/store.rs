//! What relays need of an outbox.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use headwater_core::ports::{
    BlockedKey, Claim, ClaimLimit, Claimed, ClaimedRow, Finding, Lane, Lease, LeaseAsk, OutboxStore, Settled,
};
use headwater_core::{EventId, Result, Table};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, ColumnIndex, Row};

use super::check::check;
use super::lease::{Leases, millis};
use super::news::News;
use super::pools::{Pools, options};
use super::settle::Settle;
use super::shelf::SqliteOutboxShelf;
use super::{Names, failed};
use crate::outbox::Parts;
use crate::store::now;

/// Done rows that are deleted in one statement: a few milliseconds of the one write lock.
pub(super) const CLEANED: i64 = 500;

/// Waiting rows that are let go in one transaction.
const RESUMED: i64 = 1_000;

/// The outbox of a SQLite database, read by query.
pub struct SqliteOutboxStore {
    pools: Pools,
    names: Names,
    table: Arc<Table>,
    leases: Leases,
    settle: Settle,
    news: News,
    /// The highest sequence that was seen: all that is lower is decided, as one transaction writes at a time.
    highest: AtomicI64,
    new: String,
    due: String,
    blocked: String,
    free: String,
    resume: String,
    clean: String,
}

impl SqliteOutboxStore {
    /// The outbox `table` of the database in a file. Nothing is opened yet.
    pub fn new(path: &Path, table: &str) -> Self {
        let names = Names::new(table);
        let outbox = names.outbox();
        let index = |part: &str| format!("INDEXED BY {}", names.part(part));
        let columns = "seq, attempts, id, stream, type, key, payload, headers, CAST(version AS INTEGER), \
             CAST(created_at AS INTEGER), state = 'retrying'";
        let heads = "state IN ('retrying', 'parked')";
        let waiting = format!("{outbox} AS later {} WHERE later.state = 'waiting'", index("waiting"));
        Self {
            news: News::new(options(path)),
            pools: Pools::new(path),
            table: names.table(),
            leases: Leases::new(&names),
            settle: Settle::new(&names),
            highest: AtomicI64::new(0),
            new: format!(
                "SELECT {columns} FROM {outbox} {} WHERE state = 'new' AND seq > ?1 \
                 AND seq NOT IN (SELECT value FROM json_each(?3)) ORDER BY seq LIMIT ?2",
                index("new")
            ),
            due: format!(
                "SELECT {columns} FROM {outbox} {} WHERE state = 'retrying' AND next_try <= ?1 \
                 ORDER BY next_try, seq LIMIT ?2",
                index("due")
            ),
            blocked: format!(
                "SELECT DISTINCT stream, key FROM {outbox} {} WHERE {heads} AND key IS NOT NULL",
                index("heads")
            ),
            // From key to key, by the first row of each. (Two questions, one for each column of the index: of a pair that
            // is greater than that of another row SQLite looks up the first alone.)
            free: format!(
                "WITH RECURSIVE first (seq, stream, key) AS (SELECT * FROM (SELECT seq, stream, key FROM {waiting} AND stream >= '' \
                 ORDER BY stream, key LIMIT 1) UNION ALL SELECT row.seq, row.stream, row.key FROM first CROSS JOIN {outbox} AS row \
                 ON row.seq = coalesce((SELECT seq FROM {waiting} AND later.stream = first.stream AND later.key > first.key \
                  ORDER BY later.key LIMIT 1), (SELECT seq FROM {waiting} AND later.stream > first.stream \
                  ORDER BY later.stream, later.key LIMIT 1))) SELECT seq FROM first WHERE NOT EXISTS \
                 (SELECT 1 FROM {outbox} AS head {} WHERE head.{heads} AND head.stream = first.stream AND head.key = first.key)",
                index("heads")
            ),
            resume: format!(
                "UPDATE {outbox} NOT INDEXED SET state = 'new' WHERE seq IN \
                 (SELECT seq FROM {waiting} AND stream = (SELECT stream FROM {outbox} WHERE seq = ?1) \
                  AND key = (SELECT key FROM {outbox} WHERE seq = ?1) LIMIT ?2)"
            ),
            clean: format!(
                "DELETE FROM {outbox} WHERE seq IN (SELECT seq FROM {outbox} {} \
                 WHERE state IN ('published', 'dropped') AND settled_at <= ?1 ORDER BY settled_at LIMIT {CLEANED})",
                index("done")
            ),
            names,
        }
    }

    /// The statements that touch the outbox and are run all the time, for `EXPLAIN QUERY PLAN`.
    pub fn statements(&self) -> Vec<&str> {
        let mut statements =
            vec![&*self.new, &self.due, &self.blocked, &self.free, &self.resume, &self.clean];
        statements.extend(self.settle.statements());
        statements
    }

    /// What a person may do with rows that cannot be published. `owner` is the source's name.
    pub fn shelf(&self, owner: &str) -> SqliteOutboxShelf {
        SqliteOutboxShelf::new(self.pools.clone(), self.names.clone(), owner)
    }

    async fn claimed(&self, claims: &[Claim], limit: ClaimLimit) -> sqlx::Result<Claimed> {
        self.news.reading().await;
        let mut claimed = Claimed::default();
        // There is one lane.
        let Some(claim) = claims.first() else { return Ok(claimed) };
        if claim.resume {
            self.resume(claim.lane, &mut claimed.blocked).await?;
        }
        let rows = i64::try_from(limit.rows).unwrap_or(i64::MAX);
        let mut room = limit.bytes;
        if claim.retries {
            let due = sqlx::query(AssertSqlSafe(&*self.due)).bind(now() / 1_000).bind(rows);
            self.take(due.fetch(&self.pools.reads), &mut room, claim.lane, &mut claimed).await?;
        }
        let again = claimed.rows.len();
        if room > 0 {
            let known = serde_json::json!(claim.known).to_string();
            let new = sqlx::query(AssertSqlSafe(&*self.new)).bind(claim.above).bind(rows).bind(known);
            self.take(new.fetch(&self.pools.reads), &mut room, claim.lane, &mut claimed).await?;
        }
        if room == 0 || again.max(claimed.rows.len() - again) >= limit.rows {
            claimed.more.push(claim.lane);
        }
        claimed.horizon = self.highest.load(Ordering::Relaxed);
        claimed.table = (!claimed.rows.is_empty()).then(|| Arc::clone(&self.table));
        Ok(claimed)
    }

    /// Takes rows until there is no more room.
    async fn take(
        &self,
        mut rows: impl futures::Stream<Item = sqlx::Result<SqliteRow>> + Unpin,
        room: &mut usize,
        lane: Lane,
        claimed: &mut Claimed,
    ) -> sqlx::Result<()> {
        while *room > 0
            && let Some(row) = rows.try_next().await?
        {
            let row = claimed_row(lane, &row)?;
            self.highest.fetch_max(row.sequence, Ordering::Relaxed);
            *room = room.saturating_sub(row.row.size());
            claimed.rows.push(row);
        }
        Ok(())
    }

    async fn cleaned(&self, retention: Duration) -> sqlx::Result<u64> {
        let before = (now() / 1_000).saturating_sub(millis(retention));
        let mut transaction = self.pools.write().await?;
        let clean = sqlx::query(AssertSqlSafe(&*self.clean)).bind(before);
        let cleaned = clean.execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        Ok(cleaned)
    }

    /// Says which keys are blocked, and lets go what waits behind none of them: some of it at a time, as nobody
    /// reads the lane before all of it is.
    async fn resume(&self, lane: Lane, blocked: &mut Vec<(Lane, BlockedKey)>) -> sqlx::Result<()> {
        // Of each free key the first row.
        let free = sqlx::query_scalar(AssertSqlSafe(&*self.free));
        let mut free: Vec<i64> = free.fetch_all(&self.pools.reads).await?;
        while !free.is_empty() {
            let mut transaction = self.pools.write().await?;
            let mut room = RESUMED;
            while let Some(first) = free.last().filter(|_| room > 0) {
                let resume = sqlx::query(AssertSqlSafe(&*self.resume)).bind(*first);
                let resumed = resume.bind(room).execute(&mut *transaction).await?.rows_affected();
                room = room.saturating_sub(resumed.try_into().unwrap_or(i64::MAX).max(1));
                if room > 0 {
                    free.pop();
                }
            }
            transaction.commit().await?;
        }
        let keys = sqlx::query(AssertSqlSafe(&*self.blocked)).fetch_all(&self.pools.reads).await?;
        for row in &keys {
            blocked.push((lane, (text(row, 0)?.unwrap_or_default(), text(row, 1)?.unwrap_or_default())));
        }
        Ok(())
    }
}

/// A text as it may be shown and compared: SQLite takes whatever bytes an application writes.
pub(super) fn text<I: ColumnIndex<SqliteRow>>(row: &SqliteRow, at: I) -> sqlx::Result<Option<String>> {
    let bytes: Option<&[u8]> = row.try_get(at)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}

/// The id of an event.
pub(super) fn id<I: ColumnIndex<SqliteRow>>(row: &SqliteRow, at: I) -> sqlx::Result<EventId> {
    let text = text(row, at)?.unwrap_or_default();
    let wrong = |()| sqlx::Error::Decode(format!("the id {text} of an event is no UUID").into());
    text.parse().map_err(wrong)
}

fn claimed_row(lane: Lane, row: &SqliteRow) -> sqlx::Result<ClaimedRow> {
    let id = id(row, 2)?;
    let created_at = row.try_get::<i64, _>(9)?.saturating_mul(1_000);
    let of_id = id.to_string();
    let parts = Parts {
        id: &of_id,
        stream: row.try_get(3)?,
        kind: row.try_get(4)?,
        key: row.try_get(5)?,
        payload: row.try_get(6)?,
        headers: row.try_get(7)?,
        version: row.try_get(8)?,
        created_at,
    };
    Ok(ClaimedRow {
        lane,
        sequence: row.try_get(0)?,
        id,
        attempts: row.try_get(1)?,
        again: row.try_get(10)?,
        stream: text(row, 3)?.unwrap_or_default(),
        key: text(row, 5)?,
        created_at,
        row: parts.row(),
    })
}

#[async_trait]
impl OutboxStore for SqliteOutboxStore {
    async fn lease(&self, ask: &LeaseAsk) -> Result<Vec<Lease>> {
        let leases = self.leases.lease(&self.pools, ask).await;
        failed(leases, "renewing the leases of a relay", &self.names)
    }

    async fn claim(&self, claims: &[Claim], limit: ClaimLimit) -> Result<Claimed> {
        let claimed = self.claimed(claims, limit).await;
        failed(claimed, &format!("reading the outbox {}", self.names.outbox()), &self.names)
    }

    async fn settle(&self, relay: &str, settled: &[Settled]) -> Result<Vec<Lane>> {
        let lost = self.settle.settle(&self.pools, relay, settled).await;
        failed(lost, "settling rows of the outbox", &self.names)
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        failed(check(&self.pools.reads, &self.names).await, "looking at the outbox", &self.names)
    }

    async fn wait(&self, at_most: Duration) -> bool {
        self.news.wait(at_most).await
    }

    async fn clean(&self, retention: Duration) -> Result<u64> {
        failed(self.cleaned(retention).await, "deleting old rows of the outbox", &self.names)
    }
}
