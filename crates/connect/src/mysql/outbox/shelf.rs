//! What a person may do with the rows of an outbox that cannot be published.

use async_trait::async_trait;
use headwater_core::Result;
use headwater_core::ports::{Shelf, ShelfFilter, Shelved, ShelvedEvent};
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySql, MySqlPool, QueryBuilder, Row, Transaction};

use super::layout::WORK;
use super::{Names, Queue, place_of_key};
use crate::mysql::errors::failed;
use crate::outbox::SetAside;

/// The rows of one outbox that are set aside.
pub struct MySqlOutboxShelf {
    pool: MySqlPool,
    names: Names,
    /// The source's name.
    owner: String,
}

/// What is read of a row.
const COLUMNS: &str = "head.`id`, head.`seq`, head.`stream`, head.`key`, head.`type`, head.`payload`, head.`state`, \
     head.`attempts`, head.`error`, COALESCE(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', head.`created_at`), 0) AS since";

/// The first rows of keys: in the queues of retrying and parked ones.
const HEADS: (Queue, Queue) = (Queue::Retrying(0), Queue::Done);

/// Those of them that wait for a person.
const PARKED: (Queue, Queue) = (Queue::Parked(0), Queue::Done);

/// All of them, and those that wait behind them.
const ALL: (Queue, Queue) = (Queue::Waiting(0), Queue::Done);

impl MySqlOutboxShelf {
    pub(super) fn new(pool: MySqlPool, names: Names, owner: &str) -> Self {
        Self { pool, names, owner: owner.to_owned() }
    }

    /// `FROM` with all that follows it: rows that fit, oldest first.
    fn rows(
        &self,
        select: String,
        join: &str,
        (first, end): (Queue, Queue),
        filter: &ShelfFilter,
    ) -> QueryBuilder<MySql> {
        let mut query = QueryBuilder::new(format!(
            "{select} FROM {} AS head FORCE INDEX (`{WORK}`) {join} WHERE head.`queue` >= {} AND head.`queue` < {}",
            self.names.outbox(),
            first.number(),
            end.number()
        ));
        if let Some(stream) = &filter.stream {
            query.push(" AND CAST(head.`stream` AS BINARY) = ").push_bind(stream.as_bytes().to_vec());
        }
        if let Some(key) = &filter.key {
            query.push(" AND CAST(head.`key` AS BINARY) = ").push_bind(key.to_vec());
        }
        if let Some(id) = &filter.id {
            query.push(" AND head.`id` = ").push_bind(id.to_string());
        }
        query.push(" ORDER BY head.`seq`");
        if filter.limit > 0 {
            query.push(format!(" LIMIT {}", filter.limit));
        }
        query
    }

    fn is_asked(&self, filter: &ShelfFilter) -> bool {
        filter.owner.as_ref().is_none_or(|owner| *owner == self.owner)
    }

    async fn listed(&self, filter: &ShelfFilter) -> sqlx::Result<Vec<Shelved>> {
        let (waiting, end) = (Queue::Waiting(0).number(), Queue::Retrying(0).number());
        let join = format!(
            "LEFT JOIN (SELECT `place`, COUNT(*) AS behind FROM {} FORCE INDEX (`{WORK}`) \
             WHERE `queue` >= {waiting} AND `queue` < {end} GROUP BY `place`) AS later ON later.`place` = {}",
            self.names.outbox(),
            place_of_key("head.")
        );
        let select = format!("SELECT {COLUMNS}, COALESCE(later.behind, 0) AS behind");
        let rows = self.rows(select, &join, HEADS, filter).build().fetch_all(&self.pool).await?;
        let line = |row| set_aside(row)?.line(&self.owner, row.try_get("behind")?);
        rows.iter().map(line).collect()
    }

    async fn shown(&self, filter: &ShelfFilter) -> sqlx::Result<Vec<ShelvedEvent>> {
        let rows =
            self.rows(format!("SELECT {COLUMNS}"), "", ALL, filter).build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| set_aside(row)?.event(&self.owner)).collect()
    }

    async fn let_go(&self, filter: &ShelfFilter) -> sqlx::Result<u64> {
        let set = "`state` = 'retrying', `attempts` = 0, `next_try` = UTC_TIMESTAMP(6)";
        let mut transaction = self.pool.begin().await?;
        let heads = self.heads(&mut transaction, HEADS, filter).await?;
        for head in &heads {
            self.update(&mut transaction, set, head.sequence).await?;
        }
        transaction.commit().await?;
        Ok(heads.len() as u64)
    }

    /// The next of each key comes first then; in one transaction, so that no relay sees neither.
    async fn dropped(&self, filter: &ShelfFilter) -> sqlx::Result<u64> {
        let set = "`state` = 'dropped', `settled_at` = UTC_TIMESTAMP(6), `next_try` = NULL";
        let mut transaction = self.pool.begin().await?;
        let queues = if filter.names_one() { HEADS } else { PARKED };
        let heads = self.heads(&mut transaction, queues, filter).await?;
        for head in &heads {
            self.update(&mut transaction, set, head.sequence).await?;
            let Some(key) = &head.key else { continue };
            if let Some(next) = self.behind(&mut transaction, head, key).await? {
                self.update(&mut transaction, "`state` = 'retrying', `next_try` = UTC_TIMESTAMP(6)", next)
                    .await?;
            }
        }
        transaction.commit().await?;
        Ok(heads.len() as u64)
    }

    /// The first rows of the keys that fit, locked.
    async fn heads(
        &self,
        on: &mut Transaction<'_, MySql>,
        queues: (Queue, Queue),
        filter: &ShelfFilter,
    ) -> sqlx::Result<Vec<Head>> {
        let select = format!("SELECT `seq`, `lane`, `stream`, `key`, {}", place_of_key(""));
        let mut query = self.rows(select, "", queues, filter);
        let rows = query.push(" FOR UPDATE").build().fetch_all(&mut **on).await?;
        let head = |row: &MySqlRow| {
            Ok(Head {
                sequence: row.try_get(0)?,
                lane: row.try_get(1)?,
                stream: row.try_get(2)?,
                key: row.try_get(3)?,
                place: row.try_get(4)?,
            })
        };
        rows.iter().map(head).collect()
    }

    async fn behind(
        &self,
        on: &mut Transaction<'_, MySql>,
        head: &Head,
        key: &str,
    ) -> sqlx::Result<Option<i64>> {
        let sql = format!(
            "SELECT `seq` FROM {} FORCE INDEX (`{WORK}`) WHERE `queue` = ? AND `place` = ? \
             AND CAST(`stream` AS BINARY) = ? AND CAST(`key` AS BINARY) = ? ORDER BY `seq` LIMIT 1",
            self.names.outbox()
        );
        let ask = sqlx::query_scalar(AssertSqlSafe(sql)).bind(Queue::Waiting(head.lane.into()).number());
        ask.bind(head.place).bind(head.stream.as_bytes()).bind(key.as_bytes()).fetch_optional(&mut **on).await
    }

    async fn update(&self, on: &mut Transaction<'_, MySql>, set: &str, sequence: i64) -> sqlx::Result<()> {
        let sql = format!("UPDATE {} SET {set} WHERE `seq` = ?", self.names.outbox());
        sqlx::query(AssertSqlSafe(sql)).bind(sequence).execute(&mut **on).await.map(drop)
    }
}

/// The first row of a key.
struct Head {
    sequence: i64,
    lane: u8,
    stream: String,
    key: Option<String>,
    /// Of its key among what waits.
    place: Option<i64>,
}

fn set_aside(row: &MySqlRow) -> sqlx::Result<SetAside> {
    let id: &str = row.try_get("id")?;
    let wrong = |()| sqlx::Error::Decode(format!("the id of an event is no UUID: {id}").into());
    Ok(SetAside {
        sequence: row.try_get("seq")?,
        id: id.parse().map_err(wrong)?,
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
impl Shelf for MySqlOutboxShelf {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        if !self.is_asked(filter) {
            return Ok(Vec::new());
        }
        let doing = "reading what is parked in the outbox";
        self.listed(filter).await.map_err(|error| failed(error, doing, &self.names.plain()))
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        if !self.is_asked(filter) {
            return Ok(Vec::new());
        }
        let doing = "reading what is parked in the outbox";
        self.shown(filter).await.map_err(|error| failed(error, doing, &self.names.plain()))
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        if !self.is_asked(filter) {
            return Ok(0);
        }
        let doing = "letting parked rows of the outbox go";
        self.let_go(filter).await.map_err(|error| failed(error, doing, &self.names.plain()))
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        if !self.is_asked(filter) {
            return Ok(0);
        }
        let doing = "dropping parked rows of the outbox";
        self.dropped(filter).await.map_err(|error| failed(error, doing, &self.names.plain()))
    }
}
