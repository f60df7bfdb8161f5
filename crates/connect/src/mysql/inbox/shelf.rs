//! What a person may do with the events that an inbox has set aside.

use async_trait::async_trait;
use headwater_core::ports::{Shelf, ShelfFilter, ShelfState, Shelved, ShelvedEvent};
use headwater_core::{EventId, Result};
use sqlx::mysql::MySqlRow;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, MySql, QueryBuilder, Row};

use super::{MySqlInbox, rows};
use crate::mysql::sql::{LONGEST, list};
use crate::sqlx_errors::{SqlxExt, shelf_state};

/// What is read beside [`rows::COLUMNS`].
const OWN: &str = "consumer, `key`, state, error, \
     TIMESTAMPDIFF(MICROSECOND, '1970-01-01', parked_at) AS since";

/// The events of each key numbered, each event without one by itself; without what is in them.
const HEADS: &str = "SELECT seq, consumer, stream, `key`, key_hash, event_id, state, attempts, error, parked_at, \
     ROW_NUMBER() OVER (PARTITION BY consumer, stream, key_hash, IF(key_hash IS NULL, seq, 0) ORDER BY seq) AS place, \
     COUNT(*) OVER (PARTITION BY consumer, stream, key_hash, IF(key_hash IS NULL, seq, 0)) - 1 AS behind \
     FROM headwater_parked";

/// A statement that ends with what fits the filter, oldest first.
fn fitting(sql: String, filter: &ShelfFilter) -> QueryBuilder<MySql> {
    let mut query = QueryBuilder::new(sql);
    if let Some(consumer) = &filter.owner {
        query.push(" AND consumer = ").push_bind(consumer.clone());
    }
    if let Some(stream) = &filter.stream {
        query.push(" AND stream = ").push_bind(stream.clone());
    }
    if let Some(key) = &filter.key {
        query.push(" AND key_hash = UNHEX(SHA2(").push_bind(key.to_vec()).push(", 256))");
    }
    if let Some(id) = &filter.id {
        query.push(" AND event_id = ").push_bind(Uuid::from_bytes(*id.as_bytes()));
    }
    query.push(" ORDER BY seq");
    if filter.limit > 0 {
        query.push(format!(" LIMIT {}", filter.limit));
    }
    query
}

impl MySqlInbox {
    /// Does something to the first event of each key that fits and is in one of these states. They are looked for
    /// first, and then changed a few at a time: a statement that did both would lock whatever it looks at.
    async fn each_head(&self, work: &str, states: &str, filter: &ShelfFilter) -> sqlx::Result<u64> {
        let sql = format!("SELECT seq FROM ({HEADS}) AS head WHERE place = 1 AND state IN ({states})");
        let heads: Vec<i64> = fitting(sql, filter).build_query_scalar().fetch_all(&self.pool).await?;
        let mut done = 0;
        for some in heads.chunks(LONGEST) {
            let (places, values) = list(some);
            let sql = format!("{work} WHERE seq IN ({places}) AND state IN ({states})");
            let query = values.fold(sqlx::query(AssertSqlSafe(sql)), |query, seq| query.bind(seq));
            done += query.execute(&self.pool).await?.rows_affected();
        }
        Ok(done)
    }
}

fn state(row: &MySqlRow) -> sqlx::Result<ShelfState> {
    shelf_state(row.try_get("state")?)
}

fn shelved(row: &MySqlRow) -> sqlx::Result<Shelved> {
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

fn event(row: &MySqlRow) -> Result<ShelvedEvent> {
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
impl Shelf for MySqlInbox {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        let doing = "listing parked keys";
        let sql = format!(
            "SELECT stream, event_id, seq, attempts, {OWN}, behind FROM ({HEADS}) AS head WHERE place = 1"
        );
        let rows = fitting(sql, filter).build().fetch_all(&self.pool).await.sqlx(doing)?;
        rows.iter().map(shelved).collect::<sqlx::Result<_>>().sqlx(doing)
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        let sql = format!("SELECT {}, {OWN} FROM headwater_parked WHERE TRUE", rows::COLUMNS);
        let rows = fitting(sql, filter).build().fetch_all(&self.pool).await.sqlx("reading parked events")?;
        rows.iter().map(event).collect()
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        let retry =
            "UPDATE headwater_parked SET state = 'retrying', attempts = 0, next_try = UTC_TIMESTAMP(6)";
        self.each_head(retry, "'parked', 'retrying'", filter).await.sqlx("letting parked events go")
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        let states = if filter.names_one() { "'parked', 'retrying'" } else { "'parked'" };
        self.each_head("DELETE FROM headwater_parked", states, filter).await.sqlx("dropping parked events")
    }
}
