//! What a person may do with the rows of an outbox that cannot be published.

use async_trait::async_trait;
use headwater_core::Result;
use headwater_core::ports::{Shelf, ShelfFilter, Shelved, ShelvedEvent};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Row, Sqlite};

use super::pools::Pools;
use super::store::{id, text};
use super::{Names, failed};
use crate::outbox::SetAside;
use crate::store::now;

/// The rows of one outbox that are set aside.
pub struct SqliteOutboxShelf {
    pools: Pools,
    names: Names,
    /// The source's name.
    owner: String,
    list: String,
    show: String,
    retry: String,
    drop: String,
    next: String,
}

impl SqliteOutboxShelf {
    pub(super) fn new(pools: Pools, names: Names, owner: &str) -> Self {
        let outbox = names.outbox();
        let (heads, waiting) = (names.part("heads"), names.part("waiting"));
        let columns = "id, seq, stream, key, type, payload, state, attempts, error, created_at";
        let fits =
            "(?1 IS NULL OR stream = ?1) AND (?2 IS NULL OR key = ?2) AND (?3 IS NULL OR lower(id) = ?3)";
        let first =
            format!("{outbox} AS head INDEXED BY {heads} WHERE state IN ('retrying', 'parked') AND {fits}");
        let later = format!("{outbox} AS later INDEXED BY {waiting} WHERE state = 'waiting'");
        let behind =
            format!("(SELECT count(*) FROM {later} AND later.stream = head.stream AND later.key = head.key)");
        let some = format!("SELECT seq FROM {first} ORDER BY seq LIMIT ?4");
        let droppable = "(state = 'parked' OR ?2 IS NOT NULL OR ?3 IS NOT NULL)";
        let these = format!("SELECT seq FROM {first} AND {droppable} ORDER BY seq LIMIT ?4");
        Self {
            list: format!("SELECT {columns}, {behind} AS behind FROM {first} ORDER BY seq LIMIT ?4"),
            show: format!(
                "SELECT {columns} FROM {first} UNION ALL SELECT {columns} FROM {later} AND {fits} \
                 ORDER BY seq LIMIT ?4"
            ),
            retry: format!(
                "UPDATE {outbox} SET state = 'retrying', attempts = 0, next_try = ?5 WHERE seq IN ({some})"
            ),
            drop: format!(
                "UPDATE {outbox} SET state = 'dropped', settled_at = ?5, next_try = NULL WHERE seq IN ({these}) \
                 RETURNING seq"
            ),
            next: format!(
                "UPDATE {outbox} SET state = 'retrying', next_try = ?2 WHERE seq = (SELECT min(seq) FROM {later} \
                 AND stream = (SELECT stream FROM {outbox} WHERE seq = ?1) AND key = (SELECT key FROM {outbox} WHERE seq = ?1))"
            ),
            pools,
            names,
            owner: owner.to_owned(),
        }
    }

    fn ask<'q>(&self, sql: &'q str, filter: &ShelfFilter) -> Query<'q, Sqlite, SqliteArguments> {
        // What is not text is no key of an outbox.
        let key = filter.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
        sqlx::query(AssertSqlSafe(sql))
            .bind(filter.stream.clone())
            .bind(key)
            .bind(filter.id.map(|id| id.to_string()))
            .bind(i64::try_from(filter.limit).ok().filter(|limit| *limit > 0).unwrap_or(-1))
    }

    fn is_asked(&self, filter: &ShelfFilter) -> bool {
        filter.owner.as_ref().is_none_or(|owner| *owner == self.owner)
    }

    async fn rows<T>(
        &self,
        sql: &str,
        filter: &ShelfFilter,
        read: impl Fn(&SqliteRow) -> sqlx::Result<T>,
    ) -> Result<Vec<T>> {
        if !self.is_asked(filter) {
            return Ok(Vec::new());
        }
        let rows = self.ask(sql, filter).fetch_all(&self.pools.reads).await;
        let read = rows.and_then(|rows| rows.iter().map(read).collect());
        failed(read, "reading what is parked in the outbox", &self.names)
    }

    async fn retried(&self, filter: &ShelfFilter) -> sqlx::Result<u64> {
        let mut transaction = self.pools.write().await?;
        let retry = self.ask(&self.retry, filter).bind(now() / 1_000);
        let retried = retry.execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        Ok(retried)
    }

    /// The next of each key comes first then, in one transaction: no relay sees neither.
    async fn dropped(&self, filter: &ShelfFilter) -> sqlx::Result<u64> {
        let now = now() / 1_000;
        let mut transaction = self.pools.write().await?;
        let dropped = self.ask(&self.drop, filter).bind(now).fetch_all(&mut *transaction).await?;
        for row in &dropped {
            let next = sqlx::query(AssertSqlSafe(&*self.next)).bind(row.try_get::<i64, _>(0)?).bind(now);
            next.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(dropped.len() as u64)
    }
}

fn set_aside(row: &SqliteRow) -> sqlx::Result<SetAside> {
    Ok(SetAside {
        sequence: row.try_get("seq")?,
        id: id(row, "id")?,
        stream: text(row, "stream")?.unwrap_or_default(),
        kind: text(row, "type")?.unwrap_or_default(),
        key: text(row, "key")?,
        payload: text(row, "payload")?,
        state: row.try_get("state")?,
        attempts: row.try_get("attempts")?,
        error: row.try_get("error")?,
        since: row.try_get::<i64, _>("created_at")?.saturating_mul(1_000),
    })
}

#[async_trait]
impl Shelf for SqliteOutboxShelf {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        self.rows(&self.list, filter, |row| set_aside(row)?.line(&self.owner, row.try_get("behind")?)).await
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        self.rows(&self.show, filter, |row| set_aside(row)?.event(&self.owner)).await
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        if !self.is_asked(filter) {
            return Ok(0);
        }
        failed(self.retried(filter).await, "letting parked rows of the outbox go", &self.names)
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        if !self.is_asked(filter) {
            return Ok(0);
        }
        failed(self.dropped(filter).await, "dropping parked rows of the outbox", &self.names)
    }
}
